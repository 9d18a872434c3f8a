# make run      builds what is missing and shows a pool that finds blocks
# make test     formatting, lints, every test, against real parts that it installs or builds once
# make nightly  what takes too long for every run: 300 kills, every byte of a log's files, 10,000 simulated schedules
# make bench    the figures of docs/BENCHMARKS.md

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
cache := $(if $(SLUICE_CACHE),$(SLUICE_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/sluice)
export CARGO_TARGET_DIR ?= $(cache)/target

.PHONY: help run build test nightly bench clean-data

help:
	@sed -n 's/^# //p' Makefile

build:
	deploy/dev/setup.sh build
	cargo build --release --locked --bin sluice

run: build
	$(CARGO_TARGET_DIR)/release/sluice demo

test:
	deploy/dev/setup.sh test
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo test --release --locked --workspace --no-fail-fast
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --quiet

nightly:
	deploy/dev/setup.sh test
	cargo test --release --locked --workspace --no-fail-fast -- --ignored nightly_
	cargo run --release --locked -p sluice-simulation -- --schedules 10000
	simulation/planted.sh

bench:
	deploy/dev/setup.sh test
	cargo bench --locked --workspace
