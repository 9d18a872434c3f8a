#!/usr/bin/env bash
# influxd.sh DIR: builds InfluxDB 1.8.10 (DESIGN 13) as DIR/bin/influxd, which takes the same writes as versions 2 and 3.
# Does nothing where it is, or where INFLUXD_EXE names a program.
. "$(dirname "$0")/common.sh"
target=$1

[ -n "${INFLUXD_EXE:-}" ] && exit 0
[ -x "$target/bin/influxd" ] && exit 0

say "building InfluxDB (once; about a minute)"
mkdir -p "$target/bin"
GOBIN="$target/bin" GOFLAGS=-modcacherw go install github.com/influxdata/influxdb/cmd/influxd@v1.8.10
