//! Headers that were accepted: what the operator `dedupe` keeps in its state, here for the answer to the miner.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes of accepted headers, and of headers that went to the block lane, per job.
#[derive(Debug, Default)]
pub(crate) struct Duplicates {
    jobs: BTreeMap<u64, Headers>,
}

#[derive(Debug, Default)]
struct Headers {
    /// By the four lowest bits of byte 8: a set that grows moves all it has, and a job's headers can be millions.
    accepted: [Set; 16],
    blocks: Set,
}

type Set = HashSet<[u8; 32], BuildHasherDefault<Leading>>;

impl Duplicates {
    /// Takes in an accepted header; false if it was there.
    pub(crate) fn accept(&mut self, job: u64, hash: [u8; 32]) -> bool {
        self.jobs.entry(job).or_default().accepted[usize::from(hash[8] & 15)].insert(hash)
    }

    /// Takes in a header that makes a block; false if it was there.
    pub(crate) fn block(&mut self, job: u64, hash: [u8; 32]) -> bool {
        self.jobs.entry(job).or_default().blocks.insert(hash)
    }

    /// Forgets the headers of jobs before `live_from`.
    pub(crate) fn expire_below(&mut self, live_from: u64) {
        while let Some(first) = self.jobs.first_entry()
            && *first.key() < live_from
        {
            first.remove();
        }
    }

    #[cfg(test)]
    pub(crate) fn jobs(&self) -> usize {
        self.jobs.len()
    }
}

/// A header hash is random already: its first 8 bytes will do. (The last ones are the zeros of the proof of work.)
#[derive(Default)]
struct Leading(u64);

impl Hasher for Leading {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_new_once_per_job_until_the_job_expires() {
        let mut seen = Duplicates::default();
        assert!(seen.accept(1, [1; 32]));
        assert!(!seen.accept(1, [1; 32]));
        assert!(seen.accept(2, [1; 32]));
        assert!(seen.block(1, [1; 32]) && !seen.block(1, [1; 32]), "a set of its own");
        seen.expire_below(2);
        assert_eq!(seen.jobs(), 1);
        assert!(!seen.accept(2, [1; 32]));
    }
}
