//! `verify`: judges every submission again, as of its job clock, and writes a verdict for each (DESIGN 6).

mod ahead;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use sluice_mining::{IssuedCache, JobTable, Judgement, Known};
use sluice_proto::v1::{Submission, Verdict};
use sluice_proto::{Body, Offset, RecordKind, Share};
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    StateTable,
};

use crate::codec::read_u64;
use crate::tables::job_table::JobTableState;
use ahead::Ahead;

/// One row: the newest job clock (8 bytes).
const CLOCK: usize = 0;
const NEWEST: &[u8] = b"newest";

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "verify",
    summary: "judges every submission as of its job clock",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Submission, RecordKind::Tick, RecordKind::Cut],
        optional: false,
        priority: false,
    }],
    outputs: &[OutputSpec {
        name: "out",
        writes: &[RecordKind::Verdict, RecordKind::Tick, RecordKind::Cut],
        optional: false,
        keyed: Keyed::Session,
    }],
    lookups: &["job_table"],
    settings: &[],
    state: &[StateTable::plain("clock")],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(_: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    Ok(Box::new(Verify { clock: None, ahead: Ahead::default(), issued: IssuedCache::default() }))
}

/// The operator: all it needs is in the table of jobs, as far as the newest job clock says.
struct Verify {
    /// The row in the state, once read.
    clock: Option<u64>,
    ahead: Ahead,
    issued: IssuedCache,
}

impl Operator for Verify {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.event_time;
        match &**input.record {
            Body::Submission(submission) => {
                let clock = self.advance(submission.job_clock, cx)?;
                let jobs = cx.lookup::<JobTableState>("job_table")?;
                let verdict = jobs.as_of(clock, |jobs| {
                    let share = Share::from(submission);
                    let hash = self.ahead.take(&share, jobs);
                    let known = Known { issued: self.issued.of(share.difficulty), hash };
                    verdict(submission, jobs, &jobs.judge_knowing(share, time, known), input)
                })?;
                cx.emit("out", Key::session(submission.session), time, Body::Verdict(verdict));
            }
            Body::Tick(tick) => {
                let clock = self.advance(tick.job_clock, cx)?;
                cx.lookup::<JobTableState>("job_table")?.as_of(clock, |_| ())?;
                cx.emit("out", Key::Partition(input.source.partition), time, Body::Tick(*tick));
            }
            Body::Cut(_) => cx.pass("out", Key::Partition(input.source.partition), input),
            _ => return Err(crate::unexpected("verify", input)),
        }
        Ok(())
    }

    fn foresee(&mut self, share: &Share<'_>) {
        self.ahead.push(share);
    }

    fn requires(&self, record: &Body) -> Option<(&'static str, Offset)> {
        let clock = match record {
            Body::Submission(submission) => submission.job_clock,
            Body::Tick(tick) => tick.job_clock,
            _ => return None,
        };
        Some(("job_table", Offset::new(clock)))
    }
}

impl Verify {
    /// The newest job clock there was, with this one. It is kept, so that after a restart the table has forgotten what it
    /// had forgotten before (invariant S2).
    fn advance(&mut self, clock: u64, cx: &mut Context<'_>) -> Result<Offset, OperatorError> {
        let known = match self.clock {
            Some(known) => known,
            None => read_u64(cx.state.get(CLOCK, NEWEST)?.as_deref())?,
        };
        let newest = known.max(clock);
        if newest > known {
            cx.state.put(CLOCK, NEWEST, &newest.to_be_bytes())?;
        }
        self.clock = Some(newest);
        Ok(Offset::new(newest))
    }
}

fn verdict(submission: &Submission, jobs: &JobTable, judgement: &Judgement<'_>, input: &Input<'_>) -> Verdict {
    let (work_hi, work_lo) = judgement.work.to_parts();
    Verdict {
        reason: judgement.reason.into(),
        session: submission.session,
        account: submission.account.clone(),
        worker: submission.worker.clone(),
        job_id: submission.job_id,
        nbits: judgement.job.map_or(0, |job| job.job().nbits),
        difficulty: judgement.difficulty.units(),
        work_hi,
        work_lo,
        header_hash: judgement.hash.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(&hash)),
        origin_partition: input.source.partition,
        origin_offset: input.source.offset.get(),
        gateway: submission.gateway,
        live_from_job: jobs.live_from(Offset::new(submission.job_clock)),
        is_block: judgement.is_block,
    }
}
