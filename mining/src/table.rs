//! The jobs there are, and judging by them.

use std::collections::VecDeque;

use sluice_proto::v1::{Job, Reason, Submission};
use sluice_proto::{EventTime, Offset};

use crate::job::{JobError, Judgement, PreparedJob};
use crate::{Difficulty, Work};

/// Jobs in the order of `mining.jobs`. A gateway and every `verify` keep one each.
///
/// All questions are asked *as of* a job clock, an offset of `mining.jobs`: what was applied after it does not change
/// the answer (invariant S2). To hold that, `verify` must apply jobs on demand, not far ahead of the submissions it
/// judges: a job is forgotten once it has been replaced for more than twice its life.
#[derive(Debug, Default)]
pub struct JobTable {
    entries: VecDeque<Entry>,
    applied: Offset,
}

#[derive(Debug)]
struct Entry {
    job: PreparedJob,
    /// When the jobs on this job's tip began.
    tip_since: EventTime,
    /// Smallest job id that could still be cited as of this job.
    live_from: u64,
}

impl JobTable {
    /// A table without jobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the job record at `offset`, written at `issued`.
    ///
    /// # Errors
    /// If the record is wrong, or its offset or id does not grow.
    pub fn apply(&mut self, offset: Offset, issued: EventTime, job: Job) -> Result<&PreparedJob, JobError> {
        let job = PreparedJob::new(offset, issued, job)?;
        let mut tip_since = issued;
        if let Some(last) = self.entries.back() {
            if job.id() <= last.job.id() {
                return Err(JobError::NotGrowing { last: last.job.id(), got: job.id() });
            }
            if offset <= last.job.offset() {
                return Err(JobError::Order { last: last.job.offset(), got: offset });
            }
            if last.job.prev_hash() == job.prev_hash() {
                tip_since = last.tip_since;
            }
        }
        self.applied = offset;
        while self.first_is_dead(issued) {
            self.entries.pop_front();
        }
        let live_from = self.entries.front().map_or(job.id(), |entry| entry.job.id());
        self.entries.push_back(Entry { job, tip_since, live_from });
        let last = self.entries.len() - 1;
        Ok(&self.entries[last].job)
    }

    /// Whether the oldest job was replaced more than twice its life before `now`.
    fn first_is_dead(&self, now: EventTime) -> bool {
        match (self.entries.front(), self.entries.get(1)) {
            (Some(first), Some(next)) => now.nanos_since(next.job.issued()) > 2 * life(&first.job),
            _ => false,
        }
    }

    /// Offset of the last job applied; 0 if there is none.
    pub fn applied(&self) -> Offset {
        self.applied
    }

    /// The newest job.
    pub fn latest(&self) -> Option<&PreparedJob> {
        self.entries.back().map(|entry| &entry.job)
    }

    /// The job with this id, if it has not been forgotten.
    pub fn get(&self, job_id: u64) -> Option<&PreparedJob> {
        self.index(job_id).map(|at| &self.entries[at].job)
    }

    /// Offset of the oldest job that is not forgotten: what a restart must read from.
    pub fn keep_from(&self) -> Offset {
        self.entries.front().map_or(self.applied, |entry| entry.job.offset())
    }

    /// Smallest job id that could still be cited as of `clock`; 0 before the first job.
    pub fn live_from(&self, clock: Offset) -> u64 {
        self.as_of(clock).map_or(0, |at| self.entries[at].live_from)
    }

    /// Judges a share received at `received`, as of its job clock. The block test comes first (invariant B1).
    pub fn judge(&self, submission: &Submission, received: EventTime) -> Judgement<'_> {
        let difficulty = Difficulty::from_units(submission.difficulty).unwrap_or(Difficulty::MIN);
        let share_target = difficulty.to_target();
        let found = self.as_of(Offset::new(submission.job_clock)).and_then(|current| {
            let at = self.index(submission.job_id)?;
            (at <= current).then_some((at, current))
        });
        let Some((at, current)) = found else {
            return Judgement {
                reason: Reason::JobNotFound,
                is_block: false,
                job: None,
                header: None,
                hash: None,
                difficulty,
                work: share_target.work(),
            };
        };
        let job = &self.entries[at].job;
        let (header, hash, is_block) = job.block_test(submission);
        let reason = match self.too_late(at, current, received).or_else(|| job.fault(submission)) {
            Some(reason) => reason,
            None if share_target.is_met_by(&hash) => Reason::Accepted,
            None => Reason::LowDifficulty,
        };
        let work: Work = share_target.work();
        Judgement { reason, is_block, job: Some(job), header: Some(header), hash: Some(hash), difficulty, work }
    }

    /// Whether the job at `at` had expired or gone stale at `received`, with `current` the newest job.
    fn too_late(&self, at: usize, current: usize, received: EventTime) -> Option<Reason> {
        let (job, newest) = (&self.entries[at].job, &self.entries[current]);
        if at < current && received.nanos_since(self.entries[at + 1].job.issued()) > life(job) {
            return Some(Reason::JobNotFound);
        }
        let grace = u64::from(newest.job.job().stale_grace_ms) * 1_000_000;
        let other_tip = job.prev_hash() != newest.job.prev_hash();
        (other_tip && received.nanos_since(newest.tip_since) > grace).then_some(Reason::Stale)
    }

    /// Index of the newest job as of `clock`.
    fn as_of(&self, clock: Offset) -> Option<usize> {
        self.entries.partition_point(|entry| entry.job.offset() <= clock).checked_sub(1)
    }

    fn index(&self, job_id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&job_id, |entry| entry.job.id()).ok()
    }
}

/// For how long a job is accepted after the next one, nanoseconds.
fn life(job: &PreparedJob) -> u64 {
    u64::from(job.job().keep_ms) * 1_000_000
}
