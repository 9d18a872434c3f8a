//! `stats`: hash rates and counts per worker, account and pool, over windows of event time, kept in state (DESIGN 6).
//!
//! Fed by tallies: what it costs grows with workers, not with shares. [`query`] reads its committed tables.

pub mod query;
#[cfg(test)]
mod tests;

use sluice_mining::Work;
use sluice_proto::v1::Tally;
use sluice_proto::{Body, RecordKind};
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Kind, Operator, OperatorError, Parallel, Role, SettingSpec, SettingType,
    StateTable,
};

use crate::codec::{Sum, read_u64};
pub use crate::subject::Subject;

/// Bucket (8 bytes), subject -> [`Sum`] of accepted shares. Buckets of [`BUCKETS`] milliseconds.
const MINUTES: usize = 0;
const TENS: usize = 1;
/// Subject, kind (1 byte: [`ACCEPTED`] or a reason) -> [`Sum`], since the statistics began.
const TOTALS: usize = 2;
/// Subject -> end of the last slice with an accepted share, milliseconds (8 bytes).
const LAST: usize = 3;

/// Length of a bucket of the tables [`MINUTES`] and [`TENS`], milliseconds.
const BUCKETS: [u64; 2] = [60_000, 600_000];
/// Kind of the totals of accepted shares; others are numbers of reasons.
const ACCEPTED: u8 = 0;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "stats",
    summary: "hash rates and counts per worker, account and pool",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Tally, RecordKind::SliceEnd],
        optional: false,
        priority: false,
    }],
    outputs: &[],
    lookups: &[],
    settings: &[
        SettingSpec {
            name: "keep_minutes",
            ty: SettingType::Duration,
            default: Some("2h"),
            doc: "for how long sums per minute are kept",
        },
        SettingSpec {
            name: "keep_tens",
            ty: SettingType::Duration,
            default: Some("7d"),
            doc: "for how long sums per 10 minutes are kept",
        },
    ],
    state: &[
        StateTable::grouped("minutes", 8),
        StateTable::grouped("tens", 8),
        StateTable::plain("totals"),
        StateTable::plain("last"),
    ],
    parallel: Parallel::Single,
    role: Role::Statistics(build),
};

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let keep = |name| u64::try_from(cx.settings.duration(name).as_millis()).unwrap_or(u64::MAX);
    Ok(Box::new(Stats { keep_ms: [keep("keep_minutes"), keep("keep_tens")] }))
}

struct Stats {
    keep_ms: [u64; 2],
}

impl Operator for Stats {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match &**input.record {
            Body::Tally(tally) => count(tally, cx),
            Body::SliceEnd(end) => {
                let now = end.slice.saturating_mul(u64::from(end.slice_ms));
                for (table, keep) in [MINUTES, TENS].into_iter().zip(self.keep_ms) {
                    let oldest = now.saturating_sub(keep) / BUCKETS[table];
                    cx.state.expire_below(table, &oldest.to_be_bytes())?;
                }
                Ok(())
            }
            _ => Err(crate::unexpected("stats", input)),
        }
    }
}

fn count(tally: &Tally, cx: &mut Context<'_>) -> Result<(), OperatorError> {
    let begin = tally.slice.saturating_mul(u64::from(tally.slice_ms));
    let end = begin.saturating_add(u64::from(tally.slice_ms));
    let mut accepted = Sum::default();
    for at in &tally.accepted {
        let work = Work::from_parts(at.work_hi, at.work_lo).get();
        accepted = accepted.add(Sum { work, shares: at.shares })?;
    }
    for subject in [Subject::Pool, Subject::Account(&tally.account), Subject::Worker(&tally.account, &tally.worker)] {
        let name = subject.key();
        if accepted.shares > 0 {
            for table in [MINUTES, TENS] {
                let bucket = begin / BUCKETS[table];
                add(table, &[&bucket.to_be_bytes()[..], &name].concat(), accepted, cx)?;
            }
            let last = read_u64(cx.state.get(LAST, &name)?.as_deref())?.max(end);
            cx.state.put(LAST, &name, &last.to_be_bytes())?;
            add(TOTALS, &[&name[..], &[ACCEPTED]].concat(), accepted, cx)?;
        }
        for count in &tally.rejected {
            let sum = Sum { work: Work::from_parts(count.work_hi, count.work_lo).get(), shares: count.shares };
            let reason = u8::try_from(count.reason).unwrap_or(u8::MAX);
            add(TOTALS, &[&name[..], &[reason]].concat(), sum, cx)?;
        }
    }
    Ok(())
}

fn add(table: usize, key: &[u8], sum: Sum, cx: &mut Context<'_>) -> Result<(), OperatorError> {
    let sum = Sum::read(cx.state.get(table, key)?.as_deref())?.add(sum)?;
    Ok(cx.state.put(table, key, &sum.to_bytes())?)
}
