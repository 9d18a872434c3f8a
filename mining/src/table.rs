//! The jobs there are, and judging by them.

use std::collections::VecDeque;

use sluice_proto::v1::{Job, Reason};
use sluice_proto::{EventTime, Offset, Share};

use crate::Issued;
use crate::job::{JobError, Judgement, PreparedJob};

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

/// What is known of a share before it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The difficulty that it was issued with.
    pub issued: Issued,
    /// The hash that the job which it cites gives it ([`PreparedJob::hash`]), if it was hashed before.
    pub hash: Option<[u8; 32]>,
}

#[derive(Debug)]
struct Entry {
    job: PreparedJob,
    /// When the jobs on this job's tip began.
    tip_since: EventTime,
    /// Smallest job id that could still be cited as of this job, and that job's offset.
    live_from: u64,
    live_offset: Offset,
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
        let oldest = self.entries.front().map_or(&job, |entry| &entry.job);
        let (live_from, live_offset) = (oldest.id(), oldest.offset());
        self.entries.push_back(Entry { job, tip_since, live_from, live_offset });
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

    /// What a table that is to answer like this one must be made from: the offset of the oldest job that could be cited
    /// as of the oldest one that is not forgotten.
    pub fn keep_from(&self) -> Offset {
        self.entries.front().map_or(self.applied, |entry| entry.live_offset)
    }

    /// Smallest job id that could still be cited as of `clock`; 0 before the first job.
    pub fn live_from(&self, clock: Offset) -> u64 {
        self.as_of(clock).map_or(0, |at| self.entries[at].live_from)
    }

    /// Judges a share received at `received`, as of its job clock. The block test comes first (invariant B1).
    pub fn judge<'a>(&self, share: impl Into<Share<'a>>, received: EventTime) -> Judgement<'_> {
        let share = share.into();
        self.judge_knowing(share, received, Known { issued: Issued::of(share.difficulty), hash: None })
    }

    /// As [`JobTable::judge`], with what is known of the share.
    pub fn judge_knowing<'a>(
        &self,
        share: impl Into<Share<'a>>,
        received: EventTime,
        Known { issued, hash }: Known,
    ) -> Judgement<'_> {
        let share = share.into();
        let Issued { difficulty, target, work } = issued;
        let found = self.as_of(Offset::new(share.job_clock)).and_then(|current| {
            let at = self.index(share.job_id)?;
            (at <= current).then_some((at, current))
        });
        let Some((at, current)) = found else {
            return Judgement { reason: Reason::JobNotFound, is_block: false, job: None, hash: None, difficulty, work };
        };
        let job = &self.entries[at].job;
        let hash = hash.unwrap_or_else(|| job.hash(share));
        let is_block = job.network_target().is_met_by(&hash);
        let reason = match self.too_late(at, current, received).or_else(|| job.fault(&share)) {
            Some(reason) => reason,
            None if target.is_met_by(&hash) => Reason::Accepted,
            None => Reason::LowDifficulty,
        };
        Judgement { reason, is_block, job: Some(job), hash: Some(hash), difficulty, work }
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
        // Nearly every share knew the newest.
        match self.entries.back() {
            Some(newest) if newest.job.offset() <= clock => Some(self.entries.len() - 1),
            _ => self.entries.partition_point(|entry| entry.job.offset() <= clock).checked_sub(1),
        }
    }

    fn index(&self, job_id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&job_id, |entry| entry.job.id()).ok()
    }
}

/// For how long a job is accepted after the next one, nanoseconds.
fn life(job: &PreparedJob) -> u64 {
    u64::from(job.job().keep_ms) * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Difficulty;
    use proptest::prelude::*;
    use sluice_proto::v1::Submission;

    /// A tip, by one byte.
    fn job(id: u64, tip: u8) -> Job {
        Job {
            job_id: id,
            prev_hash: vec![tip; 32].into(),
            nbits: 0x207f_ffff,
            min_ntime: 10,
            max_ntime: 1_000,
            stale_grace_ms: 2_000,
            keep_ms: 10_000,
            ..Job::default()
        }
    }

    const fn ms(millis: u64) -> EventTime {
        EventTime::from_millis(millis)
    }

    /// Jobs as (offset, milliseconds, id, tip).
    fn table(jobs: &[(u64, u64, u64, u8)]) -> JobTable {
        let mut table = JobTable::new();
        for &(offset, at, id, tip) in jobs {
            table.apply(Offset::new(offset), ms(at), job(id, tip)).unwrap();
        }
        table
    }

    fn share(job_id: u64, job_clock: u64) -> Submission {
        Submission { job_id, job_clock, difficulty: 1, ntime: 500, ..Submission::default() }
    }

    /// How a share that meets its target is judged: the nonce is searched for, so that only job and time decide.
    fn reason(table: &JobTable, job_id: u64, clock: u64, at: u64) -> Reason {
        let meets = |nonce| {
            let submission = Submission { nonce, ..share(job_id, clock) };
            let judgement = table.judge(&submission, ms(at));
            (judgement.reason != Reason::LowDifficulty).then_some(judgement.reason)
        };
        (0..100_000).find_map(meets).unwrap()
    }

    #[test]
    fn an_empty_table_knows_nothing() {
        let table = JobTable::new();
        let judgement = table.judge(&share(1, 5), ms(1));
        assert_eq!((judgement.reason, judgement.is_block), (Reason::JobNotFound, false));
        assert!(judgement.job.is_none() && judgement.hash.is_none());
        assert_eq!(
            (table.applied(), table.keep_from(), table.live_from(Offset::new(9))),
            (Offset::ZERO, Offset::ZERO, 0)
        );
        assert!(table.latest().is_none());
    }

    #[test]
    fn quirk_job_ids_and_offsets_must_grow() {
        let mut table = table(&[(4, 0, 10, 1)]);
        let again = |table: &mut JobTable, offset, id| table.apply(Offset::new(offset), ms(1), job(id, 1)).unwrap_err();
        assert_eq!(again(&mut table, 5, 10), JobError::NotGrowing { last: 10, got: 10 });
        assert_eq!(again(&mut table, 5, 9), JobError::NotGrowing { last: 10, got: 9 });
        assert_eq!(again(&mut table, 4, 11), JobError::Order { last: Offset::new(4), got: Offset::new(4) });
        assert_eq!(table.applied(), Offset::new(4), "what was refused was not applied");
        assert_eq!(table.latest().unwrap().id(), 10);
    }

    #[test]
    fn a_job_is_found_from_its_own_clock_on() {
        let table = table(&[(3, 0, 1, 1), (7, 100, 2, 1)]);
        assert_eq!(reason(&table, 2, 6, 100), Reason::JobNotFound, "the gateway had not applied it");
        assert_eq!(reason(&table, 2, 7, 100), Reason::Accepted);
        assert_eq!(reason(&table, 1, 2, 0), Reason::JobNotFound);
        assert_eq!(reason(&table, 1, 3, 0), Reason::Accepted);
        assert_eq!(reason(&table, 1, 5, 0), Reason::Accepted, "between two jobs");
        assert_eq!(reason(&table, 3, 9, 0), Reason::JobNotFound);
    }

    #[test]
    fn shares_of_an_old_tip_have_their_grace() {
        let table = table(&[(1, 0, 1, 1), (2, 1_000, 2, 2), (3, 1_500, 3, 2)]);
        assert_eq!(reason(&table, 1, 1, 60_000), Reason::Accepted, "the gateway knew of no other tip");
        assert_eq!(reason(&table, 1, 2, 3_000), Reason::Accepted);
        assert_eq!(reason(&table, 1, 2, 3_001), Reason::Stale);
        // The grace runs from the tip's first job, not from its newest.
        assert_eq!(reason(&table, 1, 3, 3_000), Reason::Accepted);
        assert_eq!(reason(&table, 1, 3, 3_001), Reason::Stale);
        assert_eq!(reason(&table, 2, 3, 11_500), Reason::Accepted, "an older job of the same tip is not stale");
    }

    #[test]
    fn a_tip_that_comes_back_makes_its_old_jobs_valid_again() {
        let table = table(&[(1, 0, 1, 1), (2, 1_000, 2, 2), (3, 5_000, 3, 1)]);
        assert_eq!(reason(&table, 1, 2, 4_000), Reason::Stale);
        assert_eq!(reason(&table, 1, 3, 6_000), Reason::Accepted);
        assert_eq!(reason(&table, 2, 3, 7_000), Reason::Accepted, "grace after the second switch");
        assert_eq!(reason(&table, 2, 3, 7_001), Reason::Stale);
    }

    #[test]
    fn a_job_lives_on_for_a_while_after_the_next() {
        let table = table(&[(1, 0, 1, 1), (2, 5_000, 2, 1)]);
        assert_eq!(reason(&table, 1, 2, 15_000), Reason::Accepted);
        assert_eq!(reason(&table, 1, 2, 15_001), Reason::JobNotFound);
        assert_eq!(reason(&table, 2, 2, 1_000_000), Reason::Accepted, "the newest job lives until there is another");
        assert_eq!(reason(&table, 1, 1, 1_000_000), Reason::Accepted, "as of a clock without the other");
    }

    #[test]
    fn jobs_are_forgotten_after_twice_their_life() {
        let mut table = table(&[(1, 0, 1, 1), (2, 5_000, 2, 1), (3, 25_000, 3, 1)]);
        assert!(table.get(1).is_some(), "replaced exactly twice its life ago");
        assert_eq!((table.keep_from(), table.live_from(Offset::new(3))), (Offset::new(1), 1));
        table.apply(Offset::new(4), ms(25_001), job(4, 1)).unwrap();
        assert!(table.get(1).is_none() && table.get(2).is_some());
        assert_eq!(table.applied(), Offset::new(4));
        assert_eq!(table.keep_from(), Offset::new(1), "as of the second job the first could still be cited");
        assert_eq!(table.live_from(Offset::new(4)), 2);
        assert_eq!(table.live_from(Offset::new(3)), 1, "as it was as of the job before");
    }

    #[test]
    fn trap_01_the_block_test_comes_first() {
        let table = table(&[(1, 0, 1, 1), (2, 1_000, 2, 2)]);
        let judged = |at, change: &dyn Fn(&mut Submission)| {
            // Every second hash is a block here; the first nonce that makes one is taken.
            (0..1_000).find_map(|nonce| {
                let mut submission = Submission { nonce, ..share(1, 2) };
                change(&mut submission);
                let judgement = table.judge(&submission, ms(at));
                judgement.is_block.then_some(judgement.reason)
            })
        };
        assert_eq!(judged(900_000, &|_| ()), Some(Reason::JobNotFound));
        assert_eq!(judged(5_000, &|_| ()), Some(Reason::Stale));
        assert_eq!(judged(1_000, &|share| share.difficulty = u64::MAX), Some(Reason::LowDifficulty));
        assert_eq!(judged(1_000, &|share| share.ntime = 1), Some(Reason::NtimeTooOld));
        assert_eq!(judged(1_000, &|share| share.ntime = u32::MAX), Some(Reason::NtimeTooNew));
        let bits = |share: &mut Submission| (share.has_version_bits, share.version_bits) = (true, 1);
        assert_eq!(judged(1_000, &bits), Some(Reason::VersionMask));
    }

    #[test]
    fn work_and_difficulty_are_those_of_the_issue() {
        let table = table(&[(1, 0, 1, 1)]);
        let issued = Difficulty::from_integer(512).unwrap();
        let judgement = table.judge(&Submission { difficulty: issued.units(), ..share(1, 1) }, ms(1));
        assert_eq!((judgement.difficulty, judgement.work), (issued, issued.work()));
        let unknown = table.judge(&Submission { difficulty: issued.units(), ..share(9, 1) }, ms(1));
        assert_eq!((unknown.difficulty, unknown.work), (issued, issued.work()));
        let zero = table.judge(&Submission { difficulty: 0, ..share(1, 1) }, ms(1));
        assert_eq!(zero.difficulty, Difficulty::MIN);
    }

    /// What a judgement says.
    fn said(table: &JobTable, submission: &Submission, at: u64) -> (Reason, bool, Option<[u8; 32]>, Option<u64>) {
        let judgement = table.judge(submission, ms(at));
        (judgement.reason, judgement.is_block, judgement.hash, judgement.job.map(PreparedJob::id))
    }

    proptest! {
        /// Invariant S2: jobs behind a share's clock do not change its verdict, however many have been applied.
        #[test]
        fn later_jobs_change_no_answer(
            // The gaps are such that nothing is forgotten, 12 * 1.6 s < 2 * 10 s.
            steps in prop::collection::vec((1..4_u64, 0..1_600_u64, 1..3_u64, 0..3_u8), 1..12),
            clock in 0..40_u64,
            job_id in 0..26_u64,
            at in 0..40_000_u64,
            nonce: u32,
            difficulty in 0..3_u64,
        ) {
            let mut jobs = Vec::new();
            let (mut offset, mut time, mut id) = (0, 0, 0);
            for (more, later, next, tip) in steps {
                (offset, time, id) = (offset + more, time + later, id + next);
                jobs.push((offset, time, id, tip));
            }
            let known: Vec<_> = jobs.iter().copied().filter(|job| job.0 <= clock).collect();
            let (then, now) = (table(&known), table(&jobs));
            let submission = Submission { nonce, difficulty, ..share(job_id, clock) };
            prop_assert_eq!(said(&then, &submission, at), said(&now, &submission, at));
            prop_assert_eq!(then.live_from(Offset::new(clock)), now.live_from(Offset::new(clock)));
        }

        /// A restart makes the table again from `keep_from` on: it must answer as the one before did.
        #[test]
        fn a_table_made_again_answers_the_same(
            // Gaps of up to one and a half lives: some jobs are forgotten, some are not; lives differ.
            steps in prop::collection::vec((1..4_u64, 0..15_000_u64, 0..3_u8, 5_000..10_000_u32), 1..20),
            clock in 0..60_u64,
            job_id in 0..20_u64,
            before_last in 0..40_000_u64,
            nonce: u32,
        ) {
            let (mut before, mut records, mut offset, mut time) = (JobTable::new(), Vec::new(), 0, 0);
            for (id, (more, later, tip, keep_ms)) in steps.into_iter().enumerate() {
                (offset, time) = (offset + more, time + later);
                let record = (Offset::new(offset), ms(time), Job { keep_ms, ..job(id as u64, tip) });
                before.apply(record.0, record.1, record.2.clone()).unwrap();
                records.push(record);
            }
            let mut again = JobTable::new();
            for (offset, issued, job) in records.into_iter().filter(|record| record.0 >= before.keep_from()) {
                again.apply(offset, issued, job).unwrap();
            }
            let submission = Submission { nonce, difficulty: 1, ..share(job_id, clock) };
            let at = time.saturating_sub(before_last);
            prop_assert_eq!(said(&before, &submission, at), said(&again, &submission, at));
            prop_assert_eq!(before.live_from(Offset::new(clock)), again.live_from(Offset::new(clock)));
            prop_assert_eq!((before.keep_from(), before.applied()), (again.keep_from(), again.applied()));
        }
    }
}
