//! A job made ready to judge shares by.

use sha2::{Digest, Sha256};
use sluice_proto::v1::{Job, Reason, Submission};
use sluice_proto::{EventTime, Offset};

use crate::hash::{finish, header_hash};
use crate::merkle::root_from_branch;
use crate::{Difficulty, Target, TargetError, Work};

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
    pub const fn of(submission: &Submission) -> Self {
        Self { one: submission.extranonce1, two: submission.extranonce2 }
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
    /// SHA-256 of the coinbase up to extranonce1.
    prefix: Sha256,
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
            prefix: Sha256::new().chain_update(&job.coinbase1),
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
        let mut middle = [0_u8; 12];
        middle[..4].copy_from_slice(&extranonce.one.to_be_bytes());
        middle[4..].copy_from_slice(&extranonce.two.to_be_bytes());
        finish(self.prefix.clone().chain_update(middle).chain_update(&self.job.coinbase2))
    }

    /// The header of a submission: exactly the bytes the miner hashed, if it followed BIP310.
    pub fn header(&self, submission: &Submission) -> [u8; 80] {
        let root = root_from_branch(self.coinbase_txid(Extranonce::of(submission)), &self.branch);
        let mut header = [0_u8; 80];
        header[0..4].copy_from_slice(&self.version(submission).to_le_bytes());
        header[4..36].copy_from_slice(&self.prev_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&submission.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.job.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&submission.nonce.to_le_bytes());
        header
    }

    /// Bits this submission may set: what session and job agree on.
    fn mask(&self, submission: &Submission) -> u32 {
        submission.version_mask & self.job.version_mask
    }

    /// Version of the header: the job's outside the mask, the miner's inside (BIP310).
    fn version(&self, submission: &Submission) -> u32 {
        if !submission.has_version_bits {
            return self.job.version;
        }
        let mask = self.mask(submission);
        (self.job.version & !mask) | (submission.version_bits & mask)
    }

    /// What is wrong with a share of this job apart from its age and its hash, if anything.
    pub(crate) fn fault(&self, submission: &Submission) -> Option<Reason> {
        if submission.ntime < self.job.min_ntime {
            Some(Reason::NtimeTooOld)
        } else if submission.ntime > self.job.max_ntime {
            Some(Reason::NtimeTooNew)
        } else if submission.has_version_bits && submission.version_bits & !self.mask(submission) != 0 {
            Some(Reason::VersionMask)
        } else {
            None
        }
    }

    /// Header, hash, and whether the hash makes a block: the test that comes before every other (invariant B1).
    pub(crate) fn block_test(&self, submission: &Submission) -> ([u8; 80], [u8; 32], bool) {
        let header = self.header(submission);
        let hash = header_hash(&header);
        (header, hash, self.network_target.is_met_by(&hash))
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
    /// The header; `None` if the job is unknown.
    pub header: Option<[u8; 80]>,
    /// Its hash; `None` if the job is unknown.
    pub hash: Option<[u8; 32]>,
    /// Difficulty the share was judged at: the one it was issued with.
    pub difficulty: Difficulty,
    /// Work of a share of that difficulty.
    pub work: Work,
}
