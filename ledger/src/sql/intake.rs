//! Reads a batch's records into sums, checking that they can be right (invariant P1).

use std::collections::BTreeMap;

use sluice_proto::v1::{BlockOutcome, SliceEnd, Tally};

use super::facts::{Closed, Facts};
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
        let lane = (record.source.partition, tally.partition);
        if let Some(closed) = self.closed.0.get(&lane).filter(|closed| tally.slice <= **closed) {
            return Err(LedgerError::Record(format!(
                "a tally of slice {} of partition {} behind the end of slice {closed}",
                tally.slice, tally.partition
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
        same("partitions of the shares", &mut self.facts.partitions, end.partitions.into())?;
        if end.partition >= end.partitions {
            return Err(LedgerError::Record(format!("partition {} of {}", end.partition, end.partitions)));
        }
        match self.closed.0.insert((record.source.partition, end.partition), end.slice) {
            Some(before) if end.slice <= before => Err(LedgerError::Record(format!(
                "the end of slice {} of partition {} behind the end of slice {before}",
                end.slice, end.partition
            ))),
            _ => Ok(()),
        }
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
