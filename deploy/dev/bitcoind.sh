#!/usr/bin/env bash
# bitcoind.sh DIR: builds Bitcoin Core into DIR/bin, from the source that the crate libbitcoinkernel-sys carries
# (DESIGN 13). Does nothing where it is there already, or where BITCOIND_EXE or PATH have one.
. "$(dirname "$0")/common.sh"
target=$1

[ -n "${BITCOIND_EXE:-}" ] && exit 0
command -v bitcoind >/dev/null && exit 0
[ -x "$target/bin/bitcoind" ] && exit 0

say "building Bitcoin Core (about 5 minutes, once)"
manifest=$here/bitcoind/Cargo.toml
cargo fetch --quiet --locked --manifest-path "$manifest"
source=$(cargo metadata --quiet --locked --format-version 1 --manifest-path "$manifest" |
    grep -o '"manifest_path":"[^"]*libbitcoinkernel-sys-[^"]*/Cargo.toml"' | cut -d'"' -f4)
source=$(dirname "$source")/bitcoin
build=$target/build
off=(WALLET TESTS BENCH TX UTIL GUI WALLET_TOOL FUZZ_BINARY KERNEL_LIB)
flags=(-DENABLE_WALLET=OFF -DENABLE_EXTERNAL_SIGNER=OFF)
for part in "${off[@]:1}"; do flags+=("-DBUILD_$part=OFF"); done
cmake -S "$source" -B "$build" -DBUILD_DAEMON=ON -DBUILD_CLI=ON -DWITH_ZMQ=ON "${flags[@]}" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 >"$target.log" 2>&1 ||
    { tail -n 40 "$target.log" >&2; exit 1; }
cmake --build "$build" -j"$(nproc)" --target bitcoind bitcoin-cli >>"$target.log" 2>&1 ||
    { tail -n 40 "$target.log" >&2; exit 1; }
mkdir -p "$target/bin"
cp "$build/bin/bitcoin-cli" "$target/bin/"
cp "$build/bin/bitcoind" "$target/bin/bitcoind.new"
mv "$target/bin/bitcoind.new" "$target/bin/bitcoind"
rm -rf "$build"
