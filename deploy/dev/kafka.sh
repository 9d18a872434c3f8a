#!/usr/bin/env bash
# kafka.sh DIR: puts the jars of Apache Kafka into DIR/lib (DESIGN 13). Does nothing where they are, or where KAFKA_LIB
# names a folder that has them.
. "$(dirname "$0")/common.sh"
target=$1

[ -n "${KAFKA_LIB:-}" ] && exit 0
[ -d "$target/lib" ] && exit 0

say "getting Apache Kafka (once)"
mkdir -p "$target"
cp "$here/kafka/pom.xml" "$target/pom.xml"
rm -rf "$target/lib.new"
(cd "$target" && mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib.new -DincludeScope=runtime) >&2
mv "$target/lib.new" "$target/lib"
