//! `dedupe`: a header counts once (DESIGN 6). Headers are kept per job and go with the job, in one range delete.
//!
//! Writes everything, in order, to `out`; copies of the verdicts to `valid`, `rejected` and `stale` (docs/adr/0002).

mod headers;
#[cfg(test)]
mod tests;

use sluice_proto::v1::{Reason, Verdict};
use sluice_proto::{Body, RecordKind};
use sluice_topology::operator::StateView;
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    StateTable,
};

use headers::Headers;

/// Job id (8 bytes, big-endian) and number of the row (4 bytes) -> accepted headers ([`Headers`]).
const HEADERS: usize = 0;
/// One row: the smallest job id whose headers are still there.
const MARKS: usize = 1;
const LIVE_FROM: &[u8] = b"live_from";

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "dedupe",
    summary: "turns repeated headers into duplicates",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Verdict, RecordKind::Tick, RecordKind::Cut],
        optional: false,
        priority: false,
    }],
    outputs: &[
        OutputSpec {
            name: "out",
            writes: &[RecordKind::Verdict, RecordKind::Tick, RecordKind::Cut],
            optional: true,
            keyed: Keyed::Session,
        },
        OutputSpec { name: "valid", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
        OutputSpec { name: "rejected", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
        OutputSpec { name: "stale", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
    ],
    lookups: &[],
    settings: &[],
    state: &[StateTable::grouped("headers", 8), StateTable::plain("marks")],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(_: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    Ok(Box::new(Dedupe { kept: None }))
}

struct Dedupe {
    /// What is in the state, once read.
    kept: Option<Kept>,
}

struct Kept {
    live_from: u64,
    headers: Headers,
}

impl Operator for Dedupe {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match &**input.record {
            Body::Verdict(verdict) => self.verdict(verdict, input, cx),
            Body::Tick(_) | Body::Cut(_) => {
                cx.pass("out", Key::Partition(input.source.partition), input);
                Ok(())
            }
            _ => Err(crate::unexpected("dedupe", input)),
        }
    }

    fn settle(&mut self, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        self.kept.as_mut().map_or(Ok(()), |kept| kept.headers.settle(HEADERS, state))
    }
}

impl Dedupe {
    fn verdict(&mut self, verdict: &Verdict, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let kept = match &mut self.kept {
            Some(kept) => kept,
            none => none.insert(Kept::read(&cx.state)?),
        };
        kept.expire(verdict.live_from_job, cx)?;
        let key = Key::session(verdict.session);
        if verdict.reason() == Reason::Accepted && !kept.headers.accept(verdict.job_id, header(verdict)?)? {
            let mut repeated = verdict.clone();
            repeated.set_reason(Reason::Duplicate);
            cx.emit("rejected", key.clone(), input.event_time, Body::Verdict(repeated.clone()));
            cx.emit("out", key, input.event_time, Body::Verdict(repeated));
            return Ok(());
        }
        let copy = match verdict.reason() {
            Reason::Accepted => "valid",
            Reason::Stale => "stale",
            _ => "rejected",
        };
        cx.pass(copy, key.clone(), input);
        cx.pass("out", key, input);
        Ok(())
    }
}

impl Kept {
    fn read(state: &StateView<'_>) -> Result<Self, OperatorError> {
        let live_from = crate::codec::read_u64(state.get(MARKS, LIVE_FROM)?.as_deref())?;
        Ok(Self { live_from, headers: Headers::read(HEADERS, state)? })
    }

    /// Forgets the headers of jobs before `live_from`, if that has grown.
    fn expire(&mut self, live_from: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if live_from > self.live_from {
            self.live_from = live_from;
            self.headers.expire_below(live_from);
            cx.state.expire_below(HEADERS, &live_from.to_be_bytes())?;
            cx.state.put(MARKS, LIVE_FROM, &live_from.to_be_bytes())?;
        }
        Ok(())
    }
}

/// The header hash of an accepted verdict.
fn header(verdict: &Verdict) -> Result<[u8; 32], OperatorError> {
    verdict.header_hash[..].try_into().map_err(|_| {
        OperatorError::Record(format!("an accepted verdict with a header hash of {} bytes", verdict.header_hash.len()))
    })
}
