//! What a share costs the gateway between its socket and its log: cut the line, parse, judge, look for duplicates, build
//! the record, render the answer. The job is as on the main chain: a coinbase of 250 bytes and 12 merkle levels.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_gateway::internals::ShareBench;
use sluice_proto::v1::Job;

const USER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080.rig1";

fn job() -> Job {
    Job {
        job_id: 0x19a_bcde_f012,
        height: 900_000,
        prev_hash: vec![7; 32].into(),
        version: 0x2000_0000,
        version_mask: 0x1fff_e000,
        nbits: 0x1702_5a2c,
        ntime: 1_700_000_000,
        min_ntime: 1_699_999_000,
        max_ntime: 1_700_007_200,
        coinbase1: vec![1; 100].into(),
        coinbase2: vec![2; 138].into(),
        merkle_branch: (0..12).map(|level| vec![level; 32].into()).collect(),
        coinbase_value: 312_500_000,
        segwit: true,
        clean: true,
        stale_grace_ms: 2_000,
        keep_ms: 300_000,
        network: "regtest".to_owned(),
        ..Job::default()
    }
}

fn share(c: &mut Criterion) {
    let mut bench = ShareBench::new(&job(), USER);
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
            assert_eq!(bench.shares().map(black_box).count(), 1);
        });
    });
    group.finish();
}

criterion_group!(benches, share);
criterion_main!(benches);
