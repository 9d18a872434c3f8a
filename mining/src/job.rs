//! A job made ready to judge shares by.

use sluice_proto::v1::{Job, Reason};
use sluice_proto::{EventTime, Offset, Share};

use crate::hash::{Message, TOGETHER, hash_shares, header_hash};
use crate::merkle::root_from_branch;
use crate::{Difficulty, EXTRANONCE1_SIZE, EXTRANONCE2_SIZE, Target, TargetError, Work};

/// The two extranonces of a share, as their integers (big-endian on the wire and in the coinbase).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extranonce {
    /// The session's, 4 bytes.
    pub one: u32,
    /// The miner's, 8 bytes.
    pub two: u64,
}

impl Extranonce {
    /// Extranonces of a submission.
    pub fn of<'a>(share: impl Into<Share<'a>>) -> Self {
        let share = share.into();
        Self { one: share.extranonce1, two: share.extranonce2 }
    }

    /// As they lie in the coinbase.
    fn bytes(self) -> [u8; EXTRANONCE1_SIZE + EXTRANONCE2_SIZE] {
        let mut bytes = [0; EXTRANONCE1_SIZE + EXTRANONCE2_SIZE];
        bytes[..EXTRANONCE1_SIZE].copy_from_slice(&self.one.to_be_bytes());
        bytes[EXTRANONCE1_SIZE..].copy_from_slice(&self.two.to_be_bytes());
        bytes
    }
}

/// Why a job record cannot be used. The record is wrong, so the reader stops (invariant P1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// A hash that is not 32 bytes.
    #[error("job {0:x}: a hash of {1} bytes, 32 are right")]
    HashSize(u64, usize),
    /// A network target that is none.
    #[error("job {0:x}: {1}")]
    Target(u64, TargetError),
    /// Job ids must grow along the topic.
    #[error("job {got:x} follows job {last:x}: job ids must grow; are two jobmanagers writing to one topic?")]
    NotGrowing {
        /// Last job id applied.
        last: u64,
        /// The one that follows.
        got: u64,
    },
    /// Offsets must grow.
    #[error("the job at offset {got} follows the one at offset {last}")]
    Order {
        /// Last offset applied.
        last: Offset,
        /// The one that follows.
        got: Offset,
    },
}

/// A job, decoded once: its coinbase is hashed up to extranonce1, its targets are integers.
#[derive(Clone, Debug)]
pub struct PreparedJob {
    job: Job,
    offset: Offset,
    issued: EventTime,
    prev_hash: [u8; 32],
    branch: Vec<[u8; 32]>,
    /// The coinbase with a gap for the extranonces.
    coinbase: Message,
    network_target: Target,
}

impl PreparedJob {
    /// Prepares the job record at `offset` of `mining.jobs`, written at `issued`.
    ///
    /// # Errors
    /// If a hash has not 32 bytes or `nbits` is no target.
    pub fn new(offset: Offset, issued: EventTime, job: Job) -> Result<Self, JobError> {
        let hash = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).map_err(|_| JobError::HashSize(job.job_id, bytes.len()));
        Ok(Self {
            offset,
            issued,
            prev_hash: hash(&job.prev_hash)?,
            branch: job.merkle_branch.iter().map(|node| hash(node)).collect::<Result<_, _>>()?,
            coinbase: Message::new(&job.coinbase1, &job.coinbase2, EXTRANONCE1_SIZE + EXTRANONCE2_SIZE),
            network_target: Target::from_compact(job.nbits).map_err(|error| JobError::Target(job.job_id, error))?,
            job,
        })
    }

    /// The record.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.job.job_id
    }

    /// Its offset in `mining.jobs`.
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// When it was written.
    pub fn issued(&self) -> EventTime {
        self.issued
    }

    /// Hash of the block it builds on.
    pub fn prev_hash(&self) -> &[u8; 32] {
        &self.prev_hash
    }

    /// The target a block's hash must not exceed.
    pub fn network_target(&self) -> Target {
        self.network_target
    }

    /// Transaction id of the coinbase with these extranonces.
    pub fn coinbase_txid(&self, extranonce: Extranonce) -> [u8; 32] {
        self.coinbase.double_hash(&extranonce.bytes())
    }

    /// The header of a submission: exactly the bytes the miner hashed, if it followed BIP310.
    pub fn header<'a>(&self, share: impl Into<Share<'a>>) -> [u8; 80] {
        let share = share.into();
        let root = root_from_branch(self.coinbase_txid(Extranonce::of(share)), &self.branch);
        self.header_above(&share, root)
    }

    /// The header of a submission, with the merkle root known.
    fn header_above(&self, share: &Share<'_>, root: [u8; 32]) -> [u8; 80] {
        let mut header = [0_u8; 80];
        header[0..4].copy_from_slice(&self.version(share).to_le_bytes());
        header[4..36].copy_from_slice(&self.prev_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&share.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.job.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&share.nonce.to_le_bytes());
        header
    }

    /// Bits this submission may set: what session and job agree on.
    fn mask(&self, share: &Share<'_>) -> u32 {
        share.version_mask & self.job.version_mask
    }

    /// Version of the header: the job's outside the mask, the miner's inside (BIP310).
    fn version(&self, share: &Share<'_>) -> u32 {
        if !share.has_version_bits {
            return self.job.version;
        }
        let mask = self.mask(share);
        (self.job.version & !mask) | (share.version_bits & mask)
    }

    /// What is wrong with a share of this job apart from its age and its hash, if anything.
    pub(crate) fn fault(&self, share: &Share<'_>) -> Option<Reason> {
        if share.ntime < self.job.min_ntime {
            Some(Reason::NtimeTooOld)
        } else if share.ntime > self.job.max_ntime {
            Some(Reason::NtimeTooNew)
        } else if share.has_version_bits && share.version_bits & !self.mask(share) != 0 {
            Some(Reason::VersionMask)
        } else {
            None
        }
    }

    /// The header of a submission and its hash.
    pub fn hashed<'a>(&self, share: impl Into<Share<'a>>) -> Hashed {
        let header = self.header(share);
        Hashed { header, hash: header_hash(&header) }
    }

    /// As [`PreparedJob::hashed`] for each of `shares`, in order: in about 40 % of the time where the CPU can hash many
    /// messages side by side.
    pub fn hash_all(&self, shares: &[Share<'_>], mut each: impl FnMut(Hashed)) {
        for shares in shares.chunks(TOGETHER) {
            let (mut fillings, header) =
                ([[0; EXTRANONCE1_SIZE + EXTRANONCE2_SIZE]; TOGETHER], |number: usize, root| {
                    self.header_above(&shares[number], root)
                });
            for (filling, share) in fillings.iter_mut().zip(shares) {
                *filling = Extranonce::of(*share).bytes();
            }
            let fillings = &fillings[..shares.len()];
            hash_shares(&self.coinbase, &self.branch, fillings, header, |header, hash| each(Hashed { header, hash }));
        }
    }
}

/// What judging a share hashes: the job's and the share's alone, whatever the time and the other jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The header.
    pub header: [u8; 80],
    /// Its hash, internal order.
    pub hash: [u8; 32],
}

/// What became of a share. A pure function of the submission and the jobs up to its job clock (invariant S2).
#[derive(Clone, Debug)]
pub struct Judgement<'a> {
    /// Accepted, or why not.
    pub reason: Reason,
    /// The header's hash makes a block, whatever the reason says (invariant B1).
    pub is_block: bool,
    /// The job; `None` if it is unknown as of the job clock.
    pub job: Option<&'a PreparedJob>,
    /// The header; `None` if the job is unknown.
    pub header: Option<[u8; 80]>,
    /// Its hash; `None` if the job is unknown.
    pub hash: Option<[u8; 32]>,
    /// Difficulty the share was judged at: the one it was issued with.
    pub difficulty: Difficulty,
    /// Work of a share of that difficulty.
    pub work: Work,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job() -> Job {
        Job {
            job_id: 0x2a,
            prev_hash: vec![1; 32].into(),
            version: 0x2000_0004,
            version_mask: 0x1fff_e000,
            nbits: 0x207f_ffff,
            ntime: 1_000,
            min_ntime: 900,
            max_ntime: 8_200,
            coinbase1: vec![2; 70].into(),
            coinbase2: vec![3; 70].into(),
            merkle_branch: vec![vec![4; 32].into()],
            ..Job::default()
        }
    }

    fn prepared(job: Job) -> PreparedJob {
        PreparedJob::new(Offset::new(1), EventTime::from_nanos(1), job).unwrap()
    }

    fn share(version_bits: u32, version_mask: u32) -> Share<'static> {
        Share { version_bits, version_mask, has_version_bits: true, ntime: 1_000, ..Share::default() }
    }

    fn version(job: &PreparedJob, share: &Share<'_>) -> u32 {
        u32::from_le_bytes(*job.header(*share).first_chunk().unwrap())
    }

    #[test]
    fn hashes_of_another_size_and_wrong_targets_are_refused() {
        let refused = |job| PreparedJob::new(Offset::new(1), EventTime::default(), job).unwrap_err();
        let short = Job { prev_hash: vec![1; 31].into(), ..job() };
        assert_eq!(refused(short), JobError::HashSize(0x2a, 31));
        let long = Job { merkle_branch: vec![vec![4; 33].into()], ..job() };
        assert_eq!(refused(long), JobError::HashSize(0x2a, 33));
        let negative = Job { nbits: 0x1d80_ffff, ..job() };
        assert_eq!(refused(negative), JobError::Target(0x2a, TargetError::Negative(0x1d80_ffff)));
    }

    #[test]
    fn the_header_has_its_fields_in_their_places() {
        let submission = Share { nonce: 0x0102_0304, ntime: 0x0506_0708, ..Share::default() };
        let header = prepared(job()).header(submission);
        assert_eq!(header[..4], [4, 0, 0, 0x20]);
        assert_eq!(header[4..36], [1; 32]);
        assert_eq!(header[68..72], [8, 7, 6, 5]);
        assert_eq!(header[72..76], [0xff, 0xff, 0x7f, 0x20]);
        assert_eq!(header[76..], [4, 3, 2, 1]);
    }

    #[test]
    fn extranonces_lie_big_endian_in_the_coinbase() {
        let extranonce = Extranonce { one: 0x0a0b_0c0d, two: 0x0102_0304_0506_0708 };
        let middle = [0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4, 5, 6, 7, 8];
        let coinbase = [&[2; 70][..], &middle, &[3; 70]].concat();
        assert_eq!(prepared(job()).coinbase_txid(extranonce), crate::double_sha256(&coinbase));
    }

    #[test]
    fn trap_10_version_bits_outside_the_mask_are_a_fault() {
        let job = prepared(job());
        assert_eq!(job.fault(&share(0x1fff_e000, 0x1fff_e000)), None);
        assert_eq!(job.fault(&share(0, 0)), None);
        assert_eq!(job.fault(&share(0x2000_0000, 0x1fff_e000)), Some(Reason::VersionMask), "not the whole version");
        assert_eq!(job.fault(&share(0x2000, 0)), Some(Reason::VersionMask), "rolling was not agreed");
        assert_eq!(job.fault(&share(0x1000, u32::MAX)), Some(Reason::VersionMask), "the job allows less than agreed");
        let without = Share { has_version_bits: false, ..share(0x2000_0000, 0) };
        assert_eq!(job.fault(&without), None, "a field that was not sent");
    }

    #[test]
    fn trap_09_block_time_has_its_range() {
        let job = prepared(job());
        let at = |ntime| job.fault(&Share { ntime, ..Share::default() });
        assert_eq!([at(900), at(8_200)], [None, None]);
        assert_eq!([at(899), at(0)], [Some(Reason::NtimeTooOld); 2]);
        assert_eq!([at(8_201), at(u32::MAX)], [Some(Reason::NtimeTooNew); 2]);
    }

    proptest! {
        /// BIP310: (job & !mask) | (bits & mask), where the mask is what session and job agree on.
        #[test]
        fn the_version_is_the_jobs_outside_the_mask_and_the_miners_inside(
            version_of_job: u32,
            of_job: u32,
            of_session: u32,
            bits: u32,
        ) {
            let job = prepared(Job { version: version_of_job, version_mask: of_job, ..job() });
            let submission = share(bits, of_session);
            let (mask, rolled) = (of_job & of_session, version(&job, &submission));
            for bit in (0..32).map(|n| 1_u32 << n) {
                let expected = if mask & bit == 0 { version_of_job } else { bits };
                prop_assert_eq!(rolled & bit, expected & bit, "bit {:#x}", bit);
            }
            prop_assert_eq!(job.fault(&submission).is_some(), bits & !mask != 0);
            let unrolled = Share { has_version_bits: false, ..submission };
            prop_assert_eq!(version(&job, &unrolled), version_of_job);
        }

        /// Shares together are hashed as each alone, however many there are.
        #[test]
        fn shares_together_have_the_hashes_of_each_alone(
            fields in prop::collection::vec((any::<[u32; 4]>(), any::<u64>(), any::<bool>()), 0..40),
        ) {
            let shares: Vec<Share<'_>> = fields
                .into_iter()
                .map(|([extranonce1, ntime, nonce, version_bits], extranonce2, has_version_bits)| {
                    let version_mask = 0x1fff_e000;
                    let names = Share { account: "account", worker: "worker", ..Share::default() };
                    Share { extranonce1, extranonce2, ntime, nonce, version_bits, has_version_bits, version_mask, ..names }
                })
                .collect();
            let (job, mut together) = (prepared(job()), Vec::new());
            job.hash_all(&shares, |hashed| together.push(hashed));
            let alone: Vec<_> = shares.iter().map(|share| job.hashed(*share)).collect();
            prop_assert_eq!(together, alone);
        }

        /// Every bit of every field of a share reaches the hash.
        #[test]
        fn shares_that_differ_hash_differently(one: u32, two: u64, nonce: u32, ntime: u32, flip in 0..160_u32) {
            let job = prepared(job());
            let share = |one, two, nonce, ntime| Share {
                extranonce1: one, extranonce2: two, nonce, ntime, ..Share::default()
            };
            let bit = |from: u32| if (from..from + 32).contains(&flip) { 1_u32 << (flip - from) } else { 0 };
            let bit64 = if flip >= 96 { 1_u64 << (flip - 96) } else { 0 };
            let a = job.hashed(share(one, two, nonce, ntime)).hash;
            let b = job.hashed(share(one ^ bit(0), two ^ bit64, nonce ^ bit(32), ntime ^ bit(64))).hash;
            prop_assert_ne!(a, b);
        }
    }
}
