#!/usr/bin/env bash
# Installs and builds what a target of the Makefile needs and this machine lacks.
#   setup.sh build   what the program needs to be compiled
#   setup.sh test    that, and the real parts of the tests (DESIGN 13): Bitcoin Core, a foreign miner, PostgreSQL, Kafka,
#                   Redis, InfluxDB
. "$(dirname "$0")/common.sh"

case "${1:-}" in
build | test) ;;
*)
    say "usage: setup.sh build|test"
    exit 2
    ;;
esac

packages build-essential cmake clang libclang-dev pkg-config libzmq3-dev libssl-dev ca-certificates
command -v cargo >/dev/null || { say "cargo is missing: install rustup (rustup.rs), then try again"; exit 1; }
[ "$1" = build ] && exit 0

packages libboost-dev libevent-dev postgresql redis-server
command -v java >/dev/null || packages openjdk-17-jre-headless
command -v mvn >/dev/null || packages maven
command -v go >/dev/null || packages golang-go
"$here/bitcoind.sh" "$cache/bitcoind"
"$here/para.sh" "$cache/para"
"$here/kafka.sh" "$cache/kafka"
"$here/influxd.sh" "$cache/influxd"
