//! Judging a share: the jobs there are and the headers that were accepted.

use sluice_mining::{IssuedCache, JobError, JobTable, Known, block};
use sluice_proto::v1::{Candidate, Job, Reason};
use sluice_proto::{EventTime, Offset, Share};

use crate::duplicates::Duplicates;

/// What became of a share.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Accepted, or why not: what `verify` and `dedupe` will say.
    pub(crate) reason: Reason,
    /// It makes a block that has not been sent to the block lane yet.
    pub(crate) candidate: Option<Candidate>,
}

/// Jobs and accepted headers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    jobs: JobTable,
    seen: Duplicates,
    issued: IssuedCache,
}

impl Judge {
    /// Applies a job record.
    pub(crate) fn apply(&mut self, offset: Offset, issued: EventTime, job: Job) -> Result<(), JobError> {
        self.jobs.apply(offset, issued, job)?;
        self.seen.expire_below(self.live_from());
        Ok(())
    }

    /// Offset of the last job applied: the job clock.
    pub(crate) fn clock(&self) -> Offset {
        self.jobs.applied()
    }

    /// Jobs with smaller ids can no longer be cited.
    pub(crate) fn live_from(&self) -> u64 {
        self.jobs.live_from(self.jobs.applied())
    }

    /// Judges a share received at `received`, whose job clock is [`Judge::clock`].
    pub(crate) fn judge(&mut self, share: &Share<'_>, received: EventTime) -> Outcome {
        let known = Known { issued: self.issued.of(share.difficulty), hash: None };
        let judgement = self.jobs.judge_knowing(*share, received, known);
        let Some(hash) = judgement.hash else {
            return Outcome { reason: judgement.reason, candidate: None };
        };
        // The block first, whatever the share is (invariant B1); again only if it was not sent before.
        let solved = judgement.is_block && self.seen.block(share.job_id, hash);
        let candidate = if solved { block::candidate(*share, &judgement) } else { None };
        let repeated = judgement.reason == Reason::Accepted && !self.seen.accept(share.job_id, hash);
        Outcome { reason: if repeated { Reason::Duplicate } else { judgement.reason }, candidate }
    }
}
