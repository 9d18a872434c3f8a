//! `ledger`: hands tallies and block outcomes to the ledger (DESIGN 6 and 9, invariant M1).
//!
//! Two things are lent to it by [`Externals`](sluice_topology::Externals): the `Arc<dyn LedgerStore>` and the
//! [`LedgerRules`] in force, which [`rules`] makes of the topology's section `ledger:`. The store must have been bound
//! to the log (`LedgerStore::bind_log`) before the tasks start.
//!
//! - The records of a batch wait in memory until [`Operator::flush`], which gives them to the store in one transaction
//!   with the positions behind them; the task commits its own positions after it. A crash in between repeats the batch,
//!   and the store ignores what its positions cover.
//! - A database that is down makes the task wait inside `flush`, so that it lags behind its topics and loses nothing.
//!   `LedgerStore::interrupt` ends that wait when the program stops; the batch is repeated at the next start.
//! - Each transaction names the task's epoch: a process that was replaced and goes on is refused by the database itself.
//! - The task's state remembers how far it has handed over. A ledger that knows less (a new database, or an old copy of
//!   it) is refused, since what lies between would be missing from the money (invariant P1).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_ledger::{
    BasisPoints, BatchOwner, LedgerBatch, LedgerError, LedgerEvent, LedgerRecord, LedgerStore, NextOffset,
    RecordSource, Rules, Scheme,
};
use sluice_proto::{Body, Offset, RecordKind};
use sluice_topology::spec::{Ledger as Config, RewardScheme};
use sluice_topology::{
    BuildContext, Context, Input, InputPosition, InputSpec, Kind, Operator, OperatorError, Ownership, Parallel, Role,
    SettingSpec, SettingType, Source, StateTable,
};

use crate::codec::{damaged, push_text, read_u64, split_text};

/// Topic and partition (4 bytes) -> offset behind the last record handed over (8 bytes).
const READ: usize = 0;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "ledger",
    summary: "credits miners with the blocks they were part of",
    inputs: &[
        InputSpec {
            name: "tallies",
            accepts: &[RecordKind::Tally, RecordKind::SliceEnd],
            optional: false,
            priority: false,
        },
        InputSpec { name: "outcomes", accepts: &[RecordKind::BlockOutcome], optional: false, priority: false },
    ],
    outputs: &[],
    lookups: &[],
    settings: &[SettingSpec {
        name: "keep",
        ty: SettingType::Duration,
        default: Some("7d"),
        doc: "for how long the work of slices is kept behind the newest window that a block may need",
    }],
    state: &[StateTable::plain("read")],
    parallel: Parallel::Single,
    role: Role::Effects(build),
};

/// The rules in force, as they are lent to the operator: the store keeps each change as a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerRules(pub Rules);

/// The rules that the section `ledger:` of a topology asks for.
///
/// # Errors
/// If a number is out of range; the check of the topology leaves none that is.
pub fn rules(config: &Config) -> Result<Rules, LedgerError> {
    let scheme = match config.scheme {
        RewardScheme::Solo => Scheme::Solo,
        RewardScheme::Pplns { window } => Scheme::new("pplns", window.into())?,
    };
    let fee = BasisPoints::new(config.fee_bps.into()).ok_or_else(|| {
        LedgerError::Inconsistent(format!("a fee of {} basis points, at most 10000 are right", config.fee_bps))
    })?;
    Ok(Rules { scheme, fee })
}

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let missing = |what: &str| OperatorError::Setting(format!("{}: no {what} is lent to it", cx.name));
    let store = cx.externals.get::<Arc<dyn LedgerStore>>().cloned().ok_or_else(|| missing("ledger"))?;
    let LedgerRules(rules) = *cx.externals.get::<LedgerRules>().ok_or_else(|| missing("rules of rewards"))?;
    let mut batch = LedgerBatch::new(rules);
    batch.keep = cx.settings.duration("keep");
    Ok(Box::new(Ledger { store, batch, read: None }))
}

struct Ledger {
    store: Arc<dyn LedgerStore>,
    /// What the next flush hands over.
    batch: LedgerBatch,
    /// The rows of the table `read`, once read.
    read: Option<Rows>,
}

/// Offset behind the last record handed over, by topic and partition.
type Rows = BTreeMap<(Arc<str>, u32), Offset>;

impl Operator for Ledger {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let event = match &**input.record {
            Body::Tally(tally) => LedgerEvent::Tally(tally.clone()),
            Body::SliceEnd(end) => LedgerEvent::SliceEnd(*end),
            Body::BlockOutcome(outcome) => LedgerEvent::Outcome(outcome.clone()),
            _ => return Err(crate::unexpected("ledger", input)),
        };
        self.note(input.source, cx)?;
        let Source { topic, partition, partitions, offset, .. } = input.source.clone();
        let source = RecordSource { topic, partition, partitions, offset };
        self.batch.records.push(LedgerRecord { source, event_time: input.event_time, event });
        Ok(())
    }

    fn owned(&mut self, by: &Ownership<'_>) {
        self.batch.owner = Some(BatchOwner { task: by.task.to_owned(), epoch: by.epoch });
    }

    fn flush(&mut self, positions: &[InputPosition]) -> Result<(), OperatorError> {
        if self.batch.records.is_empty() {
            return Ok(());
        }
        self.batch.positions = positions.iter().map(next_offset).collect();
        self.store.apply(&self.batch).map_err(refused)?;
        self.batch.records.clear();
        self.batch.after = self.read.as_ref().map_or_else(Vec::new, as_positions);
        Ok(())
    }
}

impl Ledger {
    /// Notes in the state that the record at `source` is handed over with this batch.
    fn note(&mut self, source: &Source, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let rows = match &mut self.read {
            Some(rows) => rows,
            none => {
                let rows = none.insert(read_rows(cx)?);
                self.batch.after = as_positions(rows);
                rows
            }
        };
        let next = source.offset.next();
        rows.insert((Arc::clone(&source.topic), source.partition), next);
        let mut key = Vec::with_capacity(source.topic.len() + 6);
        push_text(&mut key, &source.topic);
        key.extend_from_slice(&source.partition.to_be_bytes());
        Ok(cx.state.put(READ, &key, &next.get().to_be_bytes())?)
    }
}

fn read_rows(cx: &Context<'_>) -> Result<Rows, OperatorError> {
    let mut rows = Rows::new();
    let mut failed = None;
    cx.state.scan(READ, &[], None, &mut |key, value| {
        let read = || {
            let (topic, partition) = split_text(key)?;
            let partition = partition.try_into().map(u32::from_be_bytes).map_err(|_| damaged(key))?;
            Ok(((Arc::from(topic), partition), Offset::new(read_u64(Some(value))?)))
        };
        match read() {
            Ok((key, next)) => drop(rows.insert(key, next)),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    })?;
    failed.map_or(Ok(rows), Err)
}

fn as_positions(rows: &Rows) -> Vec<NextOffset> {
    let rows = rows.iter();
    rows.map(|((topic, partition), next)| NextOffset { topic: Arc::clone(topic), partition: *partition, next: *next })
        .collect()
}

fn next_offset(position: &InputPosition) -> NextOffset {
    NextOffset { topic: Arc::clone(&position.topic), partition: position.partition, next: position.next }
}

fn refused(error: LedgerError) -> OperatorError {
    match error {
        LedgerError::Record(what) => OperatorError::Record(what),
        LedgerError::Interrupted => OperatorError::Interrupted(error.to_string()),
        other => OperatorError::External(other.to_string()),
    }
}
