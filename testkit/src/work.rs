//! Hashing headers: what simulated miners and the simulated node do all day.

use anyhow::{Context as _, Result};
use sha2::block_api::compress256;
use sluice_mining::block::{BlockTx, assemble, coinbase_bytes};
use sluice_mining::{PreparedJob, Target};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};

/// A header whose first 64 bytes are hashed already: only time, target and nonce are left.
#[derive(Clone)]
pub struct Work {
    header: [u8; 80],
    midstate: [u32; 8],
    /// The rest of the header with its padding; the nonce is filled in.
    last: [u8; 64],
}

/// SHA-256 before the first block (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

impl Work {
    /// Work on a header; its nonce does not matter.
    pub fn new(header: [u8; 80]) -> Self {
        let (mut first, mut last, mut midstate) = ([0; 64], [0; 64], INITIAL);
        first.copy_from_slice(&header[..64]);
        compress256(&mut midstate, &[first]);
        last[..12].copy_from_slice(&header[64..76]);
        pad(&mut last, 16, 80);
        Self { header, midstate, last }
    }

    /// The header with this nonce.
    pub fn header(&self, nonce: u32) -> [u8; 80] {
        let mut header = self.header;
        header[76..].copy_from_slice(&nonce.to_le_bytes());
        header
    }

    /// Hash of the header with this nonce, internal order: two compressions and nothing else, since searching is this.
    pub fn hash(&self, nonce: u32) -> [u8; 32] {
        let (mut last, mut state) = (self.last, self.midstate);
        last[12..16].copy_from_slice(&nonce.to_le_bytes());
        compress256(&mut state, &[last]);
        let (mut block, mut second) = ([0; 64], INITIAL);
        block[..32].copy_from_slice(&bytes(state));
        pad(&mut block, 32, 32);
        compress256(&mut second, &[block]);
        bytes(second)
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

/// Pads the last block of a message of `length` bytes, of which the block holds `used`.
fn pad(block: &mut [u8; 64], used: usize, length: u64) {
    block[used] = 0x80;
    block[56..].copy_from_slice(&(length * 8).to_be_bytes());
}

fn bytes(state: [u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *place = word.to_be_bytes();
    }
    bytes
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
