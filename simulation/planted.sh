#!/usr/bin/env bash
# Plants each bug of bugs/ into a copy of the program and expects the simulation to find it.
#
#   simulation/planted.sh [NAME...]     the bugs of these names, all without
#
# SCHEDULES (10000) is how many schedules may pass until it does.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin
: "${CARGO_TARGET_DIR:=$PWD/target}" "${SCHEDULES:=10000}"
export CARGO_TARGET_DIR
names=("$@")
if [ ${#names[@]} = 0 ]; then
  for patch in simulation/bugs/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

place=$(mktemp -d)
copy=$place/copy
cleanup() { git worktree remove --force "$copy" 2>/dev/null || true; rm -rf "$place"; }
trap cleanup EXIT
git worktree add --quiet --detach "$copy" HEAD

missed=0
for name in "${names[@]}"; do
  patch=$PWD/simulation/bugs/$name.patch
  if ! git -C "$copy" apply "$patch"; then
    echo "$name: the patch does not apply any more" >&2
    missed=1
    continue
  fi
  # Its messages are what a compiler says to a wrong patch.
  if ! (cd "$copy" && cargo build --release --quiet --locked -p sluice-simulation 2> "$place/build"); then
    cat "$place/build" >&2
    echo "$name: the program with it does not compile" >&2
    missed=1
  elif "$CARGO_TARGET_DIR/release/sluice-simulation" --schedules "$SCHEDULES" > "$place/out" 2> "$place/err"; then
    echo "$name: not found in $SCHEDULES schedules" >&2
    missed=1
  else
    echo "$name: $(grep -o 'seed [0-9]* violates.*' "$place/err" | head -1 | cut -c1-200)"
    grep -q 'violates' "$place/err" || { cat "$place/err" >&2; missed=1; }
  fi
  git -C "$copy" checkout --quiet -- .
done
exit "$missed"
