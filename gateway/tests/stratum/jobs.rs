//! Jobs, and shares for them.

use sluice_mining::template::{JobParams, Template, build_job};
use sluice_mining::{Chain, Difficulty, PreparedJob, Sats, header_hash, payout_script};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};

/// The user of all tests.
pub const ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
/// A network target of difficulty 1: shares of tests are no blocks.
pub const HARD: u32 = 0x1d00_ffff;
/// The network target of a regtest chain: every other hash makes a block.
pub const EASY: u32 = 0x207f_ffff;

/// A job as the jobmanager would make it, on the tip `tip`.
pub fn job(job_id: u64, tip: u8, nbits: u32) -> Job {
    let now = u32::try_from(EventTime::now().secs()).unwrap();
    let template = Template {
        height: 100 + u32::from(tip),
        prev_hash: [tip; 32],
        version: 0x2000_0000,
        nbits,
        cur_time: now,
        min_time: now - 600,
        coinbase_value: Sats::new(5_000_000_000).unwrap(),
        commitment: Some([9; 32]),
        transactions: Vec::new(),
    };
    let params = JobParams {
        job_id,
        template_id: 0,
        template_clock: 0,
        payout: payout_script(Chain::Regtest, ADDRESS).unwrap(),
        tag: b"/test/",
        source_tag: job_id.to_be_bytes(),
        version_mask: 0x1fff_e000,
        stale_grace_ms: 0,
        keep_ms: 600_000,
        clean: true,
        chain: Chain::Regtest,
    };
    build_job(&template, &params).unwrap()
}

/// Fills in the nonce, from the one it has on, with which the hash meets `difficulty`, or with which it does not.
pub fn solve(job: &Job, mut share: Submission, difficulty: Difficulty, meets: bool) -> Submission {
    let job = PreparedJob::new(Offset::new(1), EventTime::default(), job.clone()).unwrap();
    let target = difficulty.to_target();
    while target.is_met_by(&header_hash(&job.header(&share))) != meets {
        share.nonce += 1;
    }
    share
}
