//! What a share costs the gateway between its socket and its log: cut the line, parse, judge, look for duplicates, build
//! the record, render the answer. The job is as on the main chain: a coinbase of 250 bytes and 12 merkle levels.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_gateway::internals::ShareBench;
use support::{USER, job};

fn share(c: &mut Criterion) {
    let mut bench = ShareBench::new(&job(0x19a_bcde_f012), USER);
    let mut group = c.benchmark_group("gateway");
    group.throughput(Throughput::Elements(1));
    let mut nonce = 0_u32;
    let mut line = String::new();
    group.bench_function("share", |b| {
        b.iter(|| {
            use std::fmt::Write;
            nonce = nonce.wrapping_add(1);
            line.clear();
            writeln!(
                line,
                "{{\"id\":{nonce},\"method\":\"mining.submit\",\"params\":[\"{USER}\",\"19abcdef012\",\
                 \"00000000{nonce:08x}\",\"6553f101\",\"{nonce:08x}\"]}}"
            )
            .unwrap();
            assert!(bench.take(black_box(line.as_bytes())) > 0);
            assert_eq!(black_box(bench.records()).len(), 1);
        });
    });
    group.finish();
}

criterion_group!(benches, share);
criterion_main!(benches);
