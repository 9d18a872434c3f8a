//! Makings of tests.

use sluice_mining::{Difficulty, PreparedJob, header_hash};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};

/// A network target of difficulty 1: shares of tests are no blocks.
pub(crate) const HARD: u32 = 0x1d00_ffff;
/// The network target of a regtest chain: every other hash makes a block.
pub(crate) const EASY: u32 = 0x207f_ffff;

/// A job on the tip `tip`, with a network target of `nbits`.
pub(crate) fn job(job_id: u64, tip: u8, nbits: u32) -> Job {
    Job {
        job_id,
        height: 100,
        prev_hash: vec![tip; 32].into(),
        version: 0x2000_0000,
        version_mask: 0x1fff_e000,
        nbits,
        ntime: 1_700_000_000,
        min_ntime: 1_699_999_000,
        max_ntime: 1_700_007_200,
        coinbase1: vec![1; 60].into(),
        coinbase2: vec![2; 60].into(),
        merkle_branch: vec![vec![3; 32].into(), vec![4; 32].into()],
        coinbase_value: 5_000_000_000,
        clean: true,
        stale_grace_ms: 0,
        keep_ms: 60_000,
        network: "regtest".to_owned(),
        ..Job::default()
    }
}

/// The nonce, from `first` on, with which `submission` meets `difficulty` on `job`, or with which it does not.
pub(crate) fn nonce(job: &Job, submission: &Submission, difficulty: Difficulty, meets: bool, first: u32) -> u32 {
    let job = PreparedJob::new(Offset::new(1), EventTime::default(), job.clone()).unwrap();
    let target = difficulty.to_target();
    let mut tried = submission.clone();
    (first..)
        .find(|nonce| {
            tried.nonce = *nonce;
            target.is_met_by(&header_hash(&job.header(&tried))) == meets
        })
        .unwrap()
}
