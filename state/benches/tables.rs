//! Cost of a row: what dedupe does (a set of hashes per job) and what tally does (a sum per worker), with a commit every
//! 1000 records, on RocksDB.

#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_state::{Lineage, MemoryLimits, StateEnv, TableSpec, Tables};

const BATCH: u64 = 1000;

fn open(dir: &std::path::Path) -> Tables {
    let env = StateEnv::on_disk(dir, MemoryLimits::default()).unwrap();
    let lineage = Lineage { task: "bench".into(), log_uuid: [0; 16], wiring: String::new() };
    env.open(vec![TableSpec::plain("sums"), TableSpec::grouped("seen", 8)], &lineage).unwrap()
}

/// A key as of a header hash: no order between one and the next.
fn hashed(n: u64) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&(n / 100_000).to_be_bytes());
    for (i, chunk) in key[8..].chunks_mut(8).enumerate() {
        let mixed = (n ^ (i as u64) << 60)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        chunk.copy_from_slice(&mixed.to_be_bytes());
    }
    key
}

fn rows(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut tables = open(dir.path());
    let mut group = c.benchmark_group("tables");
    group.throughput(Throughput::Elements(BATCH));
    let mut n = 0;
    group.bench_function("insert_new", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                assert!(tables.insert(1, &hashed(n), b"").unwrap());
                n += 1;
            }
            tables.expire_below(1, &(n / 100_000).saturating_sub(3).to_be_bytes()).unwrap();
            tables.commit().unwrap();
        });
    });
    let mut turn = 0u64;
    group.bench_function("add_to_sum", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                turn += 1;
                let key = (turn % 5000).to_be_bytes();
                let sum = tables.get(0, &key).unwrap().map_or(0, |sum| sum.len() as u64);
                tables.put(0, &key, &(sum + turn).to_be_bytes()).unwrap();
            }
            tables.commit().unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
