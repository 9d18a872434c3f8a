#!/usr/bin/env bash
# para.sh DIR: installs para 0.6.0 into DIR/bin, whose miner is the foreign one of the end-to-end test. Does nothing
# where it is there already, or where PARA_EXE has one.
. "$(dirname "$0")/common.sh"
target=$1

[ -n "${PARA_EXE:-}" ] && exit 0
[ -x "$target/bin/para" ] && exit 0

say "building para's miner (about 10 minutes, once)"
# Its speed is not what is tested: without link-time optimisation it is built in half the time.
CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_TARGET_DIR="$target/target" \
    cargo install --quiet --locked para --version 0.6.0 --root "$target" >"$target.log" 2>&1 ||
    { tail -n 40 "$target.log" >&2; exit 1; }
rm -rf "$target/target"
