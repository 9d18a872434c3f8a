//! Cost of judging one share (DESIGN 10): a coinbase of 250 bytes, 12 levels of merkle tree.
//!
//! Beside it the floor: as many SHA-256 compressions as that takes, back to back, each waiting for the one before, as
//! the levels of a branch do.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use bitcoin::ScriptBuf;
use criterion::{Criterion, criterion_group, criterion_main};
use sha2::block_api::compress256;
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_mining::{Chain, Difficulty, EXTRANONCE1_SIZE, EXTRANONCE2_SIZE, JobTable, Rolled, Sats};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset, Share};

const COINBASE: usize = 250;
const LEVELS: usize = 12;

/// A job of a full template: the coinbase filled up to [`COINBASE`] bytes by its payout script.
fn job(job_id: u64) -> Job {
    let template = Template {
        height: 951_658,
        prev_hash: [7; 32],
        version: 0x2000_0000,
        nbits: 0x1702_068f,
        cur_time: 1_780_112_431,
        min_time: 1_780_110_800,
        coinbase_value: Sats::new(312_500_000).unwrap(),
        commitment: Some([9; 32]),
        transactions: Vec::new(),
    };
    let with_payout = |bytes: usize| {
        let params = JobParams {
            job_id,
            template_id: 1,
            template_clock: 1,
            payout: ScriptBuf::from_bytes(vec![0x51; bytes]),
            tag: b"/sluice/",
            source_tag: [3; 8],
            version_mask: 0x1fff_e000,
            stale_grace_ms: 2_000,
            keep_ms: 600_000,
            clean: false,
            chain: Chain::Main,
        };
        build_job(&template, &params).unwrap()
    };
    let size = |job: &Job| job.coinbase1.len() + EXTRANONCE1_SIZE + EXTRANONCE2_SIZE + job.coinbase2.len();
    let mut job = with_payout(COINBASE - size(&with_payout(0)));
    assert_eq!(size(&job), COINBASE);
    job.merkle_branch = (0..LEVELS).map(|level| vec![level as u8; 32].into()).collect();
    job
}

/// The table of a gateway that has run for a while: 20 jobs.
fn table() -> JobTable {
    let mut table = JobTable::new();
    for n in 1..=20 {
        table.apply(Offset::new(n), EventTime::from_millis(n * 30_000), job(n)).unwrap();
    }
    table
}

fn judge(c: &mut Criterion) {
    let table = table();
    let mut group = c.benchmark_group("judge");
    group.bench_function("share", |b| {
        let mut submission = Submission {
            job_id: 19,
            extranonce1: 0x0100_002a,
            ntime: 1_780_112_440,
            version_bits: 0x0001_0000,
            has_version_bits: true,
            version_mask: 0x1fff_e000,
            difficulty: Difficulty::from_integer(16_384).unwrap().units(),
            job_clock: 20,
            ..Submission::default()
        };
        let received = EventTime::from_millis(601_000);
        b.iter(|| {
            submission.extranonce2 += 1;
            submission.nonce = submission.nonce.wrapping_add(0x9e37_79b9);
            black_box(table.judge(black_box(&submission), received))
        });
    });
    group.bench_function("sixteen_hashed_together", |b| {
        let job = table.latest().unwrap();
        let mut extranonce2 = 0;
        b.iter(|| {
            let shares: [Rolled; 16] = std::array::from_fn(|_| {
                extranonce2 += 1;
                Rolled::of(Share { extranonce1: 0x0100_002a, extranonce2, ntime: 1_780_112_440, ..Share::default() })
            });
            job.hash_all(&shares, |hash| {
                black_box(hash);
            });
        });
    });
    group.bench_function("target_and_work", |b| {
        let mut difficulty = 16_384;
        b.iter(|| {
            difficulty = difficulty % 1_000_000 + 1;
            let target = Difficulty::from_integer(black_box(difficulty)).unwrap().to_target();
            (target, target.work())
        });
    });
    let compressions = compressions(&job(1));
    group.bench_function(format!("floor_{compressions}_compressions"), |b| {
        let blocks = [[0x5a; 64]];
        b.iter(|| {
            let mut state = black_box([1; 8]);
            (0..compressions).for_each(|_| compress256(&mut state, black_box(&blocks)));
            state
        });
    });
    group.finish();
}

/// SHA-256 compressions of one share: the coinbase behind its prefix, the branch, the header, and the second hash of
/// each. A message takes one block per 64 bytes and 9 bytes of padding.
fn compressions(job: &Job) -> usize {
    let blocks = |bytes: usize| (bytes + 9).div_ceil(64);
    let coinbase = blocks(COINBASE) - job.coinbase1.len() / 64;
    (coinbase + 1) + LEVELS * (blocks(64) + 1) + (blocks(80) + 1)
}

criterion_group!(benches, judge);
criterion_main!(benches);
