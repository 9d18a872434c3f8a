//! Reads a batch's records into sums, checking that they can be right (invariant P1).

use std::collections::BTreeMap;

use sluice_proto::v1::{BlockOutcome, SliceEnd, Tally};

use super::facts::{Closed, End, Facts};
use crate::batch::{LedgerEvent, LedgerRecord};
use crate::error::{LedgerError, Result};
use crate::score::{Score, tally_score};

/// What a batch's new records add to the ledger.
pub(super) struct Intake<'a> {
    pub facts: Facts,
    pub closed: Closed,
    /// Work by slice and account.
    pub work: BTreeMap<(u64, &'a str), Score>,
    /// Outcomes of blocks with their records, in order.
    pub outcomes: Vec<(&'a LedgerRecord, &'a BlockOutcome)>,
}

impl<'a> Intake<'a> {
    pub fn new(facts: Facts, closed: Closed) -> Self {
        Self { facts, closed, work: BTreeMap::new(), outcomes: Vec::new() }
    }

    /// Takes one record.
    pub fn take(&mut self, record: &'a LedgerRecord) -> Result<()> {
        let taken = match &record.event {
            LedgerEvent::Tally(tally) => self.tally(record, tally),
            LedgerEvent::SliceEnd(end) => self.slice_end(record, end),
            LedgerEvent::Outcome(outcome) => {
                self.outcomes.push((record, outcome));
                Ok(())
            }
        };
        taken.map_err(|error| match error {
            LedgerError::Record(text) => LedgerError::Record(format!("{}: {text}", record.source)),
            other => other,
        })
    }

    fn tally(&mut self, record: &LedgerRecord, tally: &'a Tally) -> Result<()> {
        self.shape(record, tally.slice_ms)?;
        check_account(&tally.account)?;
        let lane = (record.source.partition, generation(tally.generation), tally.partition);
        if let Some(closed) = self.closed.lanes.get(&lane).filter(|end| end.last || tally.slice <= end.slice) {
            return Err(LedgerError::Record(format!(
                "a tally of slice {} of partition {} behind the end of {}slice {}",
                tally.slice,
                tally.partition,
                if closed.last { "the generation with " } else { "" },
                closed.slice
            )));
        }
        let score = tally_score(tally)?;
        if score == Score::ZERO {
            return Ok(());
        }
        let sum = self.work.entry((tally.slice, &tally.account)).or_default();
        *sum = sum.checked_add(score).ok_or(LedgerError::Overflow("the score of an account"))?;
        Ok(())
    }

    fn slice_end(&mut self, record: &LedgerRecord, end: &SliceEnd) -> Result<()> {
        self.shape(record, end.slice_ms)?;
        if end.partition >= end.partitions {
            return Err(LedgerError::Record(format!("partition {} of {}", end.partition, end.partitions)));
        }
        let generation = generation(end.generation);
        self.partitions(generation, end.partitions)?;
        if end.next_partitions > 0 {
            self.partitions(generation.saturating_add(1), end.next_partitions)?;
        }
        let lane = (record.source.partition, generation, end.partition);
        let now = End { slice: end.slice, last: end.next_partitions > 0 };
        match self.closed.lanes.insert(lane, now) {
            Some(before) if before.last => Err(LedgerError::Record(format!(
                "the end of slice {} of partition {} behind the end of generation {generation}",
                end.slice, end.partition
            ))),
            Some(before) if end.slice <= before.slice => Err(LedgerError::Record(format!(
                "the end of slice {} of partition {} behind the end of slice {}",
                end.slice, end.partition, before.slice
            ))),
            _ => Ok(()),
        }
    }

    /// A generation of the shares keeps its number of partitions.
    fn partitions(&mut self, generation: u32, found: u32) -> Result<()> {
        let known = *self.closed.partitions.entry(generation).or_insert(found);
        if known == found {
            return Ok(());
        }
        Err(LedgerError::Record(format!(
            "the number of partitions of generation {generation} of the shares was {known} and now is {found}: a change \
             needs `sluice rescale`"
        )))
    }

    /// Slices and partitions must stay as they were.
    fn shape(&mut self, record: &LedgerRecord, slice_ms: u32) -> Result<()> {
        if slice_ms == 0 {
            return Err(LedgerError::Record("a slice of length 0".into()));
        }
        same("milliseconds of a slice", &mut self.facts.slice_ms, slice_ms.into())?;
        same("partitions of the tallies", &mut self.facts.tally_partitions, record.source.partitions.into())
    }
}

/// An account that can stand in every database and is not the pool's own.
pub(super) fn check_account(name: &str) -> Result<()> {
    if name.is_empty() || name.contains('\0') {
        return Err(LedgerError::Record(format!("an account called {name:?}")));
    }
    Ok(())
}

fn same(what: &str, known: &mut Option<u64>, found: u64) -> Result<()> {
    match known {
        Some(before) if *before != found => Err(LedgerError::Record(format!(
            "the number of {what} was {before} and now is {found}: \
             a change needs a new generation of the topics and a new ledger database"
        ))),
        _ => {
            *known = Some(found);
            Ok(())
        }
    }
}

/// As it is counted: records have 0 for the first.
fn generation(recorded: u32) -> u32 {
    recorded.max(1)
}
