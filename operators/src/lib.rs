//! Operators (DESIGN 6), one folder each, all pure but for `submit`, `ledger` and `influxdb`, which act through what
//! is lent to them. To add one: a folder with its [`Kind`], and its line in [`KINDS`]; the determinism test finds it there.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod assemble;
mod codec;
pub mod dedupe;
pub mod influxdb;
pub mod ledger;
mod rows;
pub mod stats;
mod subject;
pub mod submit;
pub mod tables;
pub mod tally;
pub mod vardiff;
pub mod verify;

#[cfg(test)]
mod testing;

use sluice_proto::RecordKind;
use sluice_topology::{Input, Kind, OperatorError, TableKind};

/// All operators, sorted by name.
pub static KINDS: &[&Kind] = &[
    &assemble::KIND,
    &dedupe::KIND,
    &influxdb::KIND,
    &ledger::KIND,
    &stats::KIND,
    &submit::KIND,
    &tally::KIND,
    &vardiff::KIND,
    &verify::KIND,
];

/// All broadcast tables, sorted by name.
pub static TABLES: &[&TableKind] = &[&tables::job_table::KIND, &tables::template_table::KIND];

/// A record on a port that does not take its kind: the check of the topology should have refused the wiring.
pub(crate) fn unexpected(operator: &str, input: &Input<'_>) -> OperatorError {
    OperatorError::Record(format!(
        "{operator} cannot read a record of kind {} (input {}, {}/{} offset {})",
        RecordKind::of(input.record).name(),
        input.port,
        input.source.topic,
        input.source.partition,
        input.source.offset,
    ))
}
