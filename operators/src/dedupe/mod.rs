//! `dedupe`: a header counts once (DESIGN 6). Hashes are kept per job and go with the job, in one range delete.
//!
//! Writes everything, in order, to `out`; copies of the verdicts to `valid`, `rejected` and `stale` (docs/adr/0002).

#[cfg(test)]
mod tests;

use sluice_proto::v1::{Reason, Verdict};
use sluice_proto::{Body, RecordKind};
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    StateTable,
};

/// Job id (8 bytes, big-endian) and header hash (32 bytes), without a value.
const HASHES: usize = 0;
/// One row: the smallest job id whose hashes are still there.
const MARKS: usize = 1;
const LIVE_FROM: &[u8] = b"live_from";

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "dedupe",
    summary: "turns repeated headers into duplicates",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Verdict, RecordKind::Tick],
        optional: false,
        priority: false,
    }],
    outputs: &[
        OutputSpec {
            name: "out",
            writes: &[RecordKind::Verdict, RecordKind::Tick],
            optional: true,
            keyed: Keyed::Session,
        },
        OutputSpec { name: "valid", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
        OutputSpec { name: "rejected", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
        OutputSpec { name: "stale", writes: &[RecordKind::Verdict], optional: true, keyed: Keyed::Session },
    ],
    lookups: &[],
    settings: &[],
    state: &[StateTable { name: "hashes", group_prefix: Some(8) }, StateTable { name: "marks", group_prefix: None }],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(_: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    Ok(Box::new(Dedupe { live_from: None }))
}

struct Dedupe {
    /// The mark in the state, once read.
    live_from: Option<u64>,
}

impl Operator for Dedupe {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.record.event_time();
        match &input.record.body {
            Some(Body::Verdict(verdict)) => {
                self.expire(verdict.live_from_job, cx)?;
                let mut verdict = verdict.clone();
                if verdict.reason() == Reason::Accepted && !first_time(&verdict, cx)? {
                    verdict.set_reason(Reason::Duplicate);
                }
                let copy = match verdict.reason() {
                    Reason::Accepted => "valid",
                    Reason::Stale => "stale",
                    _ => "rejected",
                };
                let key = Key::session(verdict.session);
                cx.emit(copy, key.clone(), time, Body::Verdict(verdict.clone()));
                cx.emit("out", key, time, Body::Verdict(verdict));
            }
            Some(Body::Tick(tick)) => cx.emit("out", Key::Partition(input.source.partition), time, Body::Tick(*tick)),
            other => return Err(crate::unexpected("dedupe", input, other.as_ref())),
        }
        Ok(())
    }
}

impl Dedupe {
    /// Forgets the hashes of jobs before `live_from`, if that has grown.
    fn expire(&mut self, live_from: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let mark = match self.live_from {
            Some(mark) => mark,
            None => crate::codec::read_u64(cx.state.get(MARKS, LIVE_FROM)?.as_deref())?,
        };
        self.live_from = Some(mark.max(live_from));
        if live_from > mark {
            cx.state.expire_below(HASHES, &live_from.to_be_bytes())?;
            cx.state.put(MARKS, LIVE_FROM, &live_from.to_be_bytes())?;
        }
        Ok(())
    }
}

/// Takes the header's place in the set; false if it was taken.
fn first_time(verdict: &Verdict, cx: &mut Context<'_>) -> Result<bool, OperatorError> {
    let mut key = [0_u8; 40];
    key[..8].copy_from_slice(&verdict.job_id.to_be_bytes());
    let hash: &[u8; 32] = verdict.header_hash[..].try_into().map_err(|_| {
        OperatorError::Record(format!("an accepted verdict with a header hash of {} bytes", verdict.header_hash.len()))
    })?;
    key[8..].copy_from_slice(hash);
    Ok(cx.state.insert(HASHES, &key, &[])?)
}
