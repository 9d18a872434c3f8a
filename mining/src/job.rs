//! A job made ready to judge shares by.

use sluice_proto::v1::{Job, Reason};
use sluice_proto::{EventTime, Offset, Share};

use crate::hash::{Chosen, Given, Message, TOGETHER, hash_shares, header_hash};
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

/// What the hash of a share depends on besides its job: all that a miner rolls, and what it may roll of the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolled {
    extranonce: Extranonce,
    ntime: u32,
    nonce: u32,
    /// `None`: the job's version stands.
    version_bits: Option<u32>,
    /// The session's.
    version_mask: u32,
}

impl Rolled {
    /// That of a submission.
    pub fn of<'a>(share: impl Into<Share<'a>>) -> Self {
        let share = share.into();
        Self {
            extranonce: Extranonce::of(share),
            ntime: share.ntime,
            nonce: share.nonce,
            version_bits: share.has_version_bits.then_some(share.version_bits),
            version_mask: share.version_mask,
        }
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
        self.given().header(&self.chosen(Rolled::of(share)))
    }

    /// Hash of the header of a submission, internal order.
    pub fn hash<'a>(&self, share: impl Into<Share<'a>>) -> [u8; 32] {
        header_hash(&self.header(share))
    }

    /// As [`PreparedJob::hash`] for each of `shares`, in order: in about 40 % of the time where the CPU can hash many
    /// messages side by side.
    pub fn hash_all(&self, shares: &[Rolled], mut each: impl FnMut([u8; 32])) {
        let (given, mut chosen) = (self.given(), [Chosen::default(); TOGETHER]);
        for shares in shares.chunks(TOGETHER) {
            for (chosen, share) in chosen.iter_mut().zip(shares) {
                *chosen = self.chosen(*share);
            }
            hash_shares(&given, &chosen[..shares.len()], &mut each);
        }
    }

    /// What is the same in all headers of the job.
    fn given(&self) -> Given<'_> {
        Given { coinbase: &self.coinbase, branch: &self.branch, prev_hash: &self.prev_hash, nbits: self.job.nbits }
    }

    /// What a share puts into its header.
    fn chosen(&self, share: Rolled) -> Chosen {
        let version = self.version(share);
        Chosen { filling: share.extranonce.bytes(), version, ntime: share.ntime, nonce: share.nonce }
    }

    /// Version of the header: the job's outside the mask, the miner's inside (BIP310).
    fn version(&self, share: Rolled) -> u32 {
        let Some(bits) = share.version_bits else { return self.job.version };
        let mask = share.version_mask & self.job.version_mask;
        (self.job.version & !mask) | (bits & mask)
    }

    /// What is wrong with a share of this job apart from its age and its hash, if anything.
    pub(crate) fn fault(&self, share: &Share<'_>) -> Option<Reason> {
        if share.ntime < self.job.min_ntime {
            Some(Reason::NtimeTooOld)
        } else if share.ntime > self.job.max_ntime {
            Some(Reason::NtimeTooNew)
        } else if share.has_version_bits && share.version_bits & !(share.version_mask & self.job.version_mask) != 0 {
            Some(Reason::VersionMask)
        } else {
            None
        }
    }
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
    /// Hash of the header, internal order; `None` if the job is unknown.
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
            let rolled: Vec<_> = shares.iter().map(|share| Rolled::of(*share)).collect();
            job.hash_all(&rolled, |hash| together.push(hash));
            let alone: Vec<_> = shares.iter().map(|share| job.hash(*share)).collect();
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
            let a = job.hash(share(one, two, nonce, ntime));
            let b = job.hash(share(one ^ bit(0), two ^ bit64, nonce ^ bit(32), ntime ^ bit(64)));
            prop_assert_ne!(a, b);
        }
    }
}
