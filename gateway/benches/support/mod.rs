//! What the benches have in common: a user, and a job as on the main chain, with a coinbase of 250 bytes and 12 merkle
//! levels.

use sluice_proto::v1::Job;

/// A user of regtest.
pub const USER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080.rig1";

/// A job of this id.
pub fn job(job_id: u64) -> Job {
    Job {
        job_id,
        height: 900_000,
        prev_hash: vec![job_id as u8; 32].into(),
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
