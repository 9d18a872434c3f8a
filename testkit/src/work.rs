//! Hashing headers: what simulated miners and the simulated node do all day.

use anyhow::{Context as _, Result};
use sha2::{Digest, Sha256};
use sluice_mining::block::{BlockTx, assemble, coinbase_bytes};
use sluice_mining::{PreparedJob, Target};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};

/// A header whose first 64 bytes are hashed already: only time, target and nonce are left.
#[derive(Clone)]
pub struct Work {
    header: [u8; 80],
    midstate: Sha256,
}

impl Work {
    /// Work on a header; its nonce does not matter.
    pub fn new(header: [u8; 80]) -> Self {
        Self { midstate: Sha256::new().chain_update(&header[..64]), header }
    }

    /// The header with this nonce.
    pub fn header(&self, nonce: u32) -> [u8; 80] {
        let mut header = self.header;
        header[76..].copy_from_slice(&nonce.to_le_bytes());
        header
    }

    /// Hash of the header with this nonce, internal order.
    pub fn hash(&self, nonce: u32) -> [u8; 32] {
        let mut tail = [0_u8; 16];
        tail[..12].copy_from_slice(&self.header[64..76]);
        tail[12..].copy_from_slice(&nonce.to_le_bytes());
        Sha256::digest(self.midstate.clone().chain_update(tail).finalize()).into()
    }

    /// Tries up to `count` nonces from `first` on; the first that meets the target, and its hash.
    pub fn search(&self, target: Target, first: u32, count: u64) -> Option<(u32, [u8; 32])> {
        let last = u64::from(first).saturating_add(count).min(1 << 32);
        (u64::from(first)..last).find_map(|nonce| {
            let nonce = u32::try_from(nonce).ok()?;
            let hash = self.hash(nonce);
            target.is_met_by(&hash).then_some((nonce, hash))
        })
    }
}

/// Mines a job to a block as a miner that rolls versions does, and puts the whole block together.
///
/// # Errors
/// If the job cannot be used, or the transactions are not its template's.
pub fn solve_block(job: &Job, extranonce1: u32, transactions: &[BlockTx]) -> Result<Vec<u8>> {
    let prepared = PreparedJob::new(Offset::new(1), EventTime::now(), job.clone())?;
    for extranonce2 in 0..=u64::MAX {
        let submission = Submission {
            job_id: job.job_id,
            extranonce1,
            extranonce2,
            ntime: job.ntime,
            // Any bits of the mask.
            version_bits: 0x0aaa_a000 & job.version_mask,
            has_version_bits: true,
            version_mask: job.version_mask,
            ..Default::default()
        };
        let work = Work::new(prepared.header(&submission));
        if let Some((nonce, _)) = work.search(prepared.network_target(), 0, 1 << 32) {
            let header = prepared.header(&Submission { nonce, ..submission });
            let coinbase = coinbase_bytes(job, extranonce1, extranonce2);
            return Ok(assemble(&header, &coinbase, job.segwit, transactions)?);
        }
    }
    None.context("no block in all extranonces")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block of all.
    #[test]
    fn the_genesis_block_is_found_again() {
        let block = bitcoin::constants::genesis_block(bitcoin::Network::Bitcoin);
        let header: [u8; 80] = bitcoin::consensus::serialize(&block.header).try_into().unwrap();
        let work = Work::new(header);
        let target = Target::from_compact(block.header.bits.to_consensus()).unwrap();
        let nonce = block.header.nonce;
        assert_eq!(work.header(nonce), header);
        assert_eq!(work.hash(nonce), sluice_mining::header_hash(&header));
        assert_eq!(work.search(target, nonce - 100, 101), Some((nonce, work.hash(nonce))));
        assert_eq!(work.search(target, nonce - 100, 100), None, "the right one is one further");
        assert_eq!(work.search(target, u32::MAX - 2, 1_000), None, "nonces end at 2^32");
    }
}
