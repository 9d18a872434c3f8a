//! Single values that the ledger remembers, and the slices that are closed.

use std::collections::BTreeMap;

use super::{Sql, Value};
use crate::error::{LedgerError, Result};

/// Nanoseconds of a millisecond.
const MILLI: u64 = 1_000_000;

/// What the ledger knows of the shape of its input, and how far it has tidied up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Length of a slice, milliseconds; known from the first tally or end of slice.
    pub slice_ms: Option<u64>,
    /// Partitions of the shares.
    pub partitions: Option<u64>,
    /// Partitions of the tallies.
    pub tally_partitions: Option<u64>,
    /// Slices below this one are gone.
    pub pruned_below: u64,
    /// How far all partitions were closed when old slices were last looked for.
    pub prune_checked: u64,
}

impl Facts {
    pub fn load(sql: &mut dyn Sql) -> Result<Self> {
        let mut facts = Self::default();
        for row in sql.query("SELECT name, number FROM facts WHERE number IS NOT NULL", &[])? {
            let number = row.u64(1)?;
            match row.text(0)? {
                "slice_ms" => facts.slice_ms = Some(number),
                "partitions" => facts.partitions = Some(number),
                "tally_partitions" => facts.tally_partitions = Some(number),
                "pruned_below" => facts.pruned_below = number,
                "prune_checked" => facts.prune_checked = number,
                other => {
                    return Err(LedgerError::Inconsistent(format!("unknown fact '{other}'; run the newer program")));
                }
            }
        }
        Ok(facts)
    }

    /// Stores what is not as in `before`.
    pub fn save(&self, before: &Self, sql: &mut dyn Sql) -> Result<()> {
        let list = |facts: &Self| {
            [
                ("slice_ms", facts.slice_ms),
                ("partitions", facts.partitions),
                ("tally_partitions", facts.tally_partitions),
                ("pruned_below", Some(facts.pruned_below)),
                ("prune_checked", Some(facts.prune_checked)),
            ]
        };
        let mut rows = Vec::new();
        for ((name, value), (_, old)) in list(self).into_iter().zip(list(before)) {
            match value {
                Some(number) if value != old => rows.push(vec![Value::text(name), Value::int(number)?]),
                _ => {}
            }
        }
        sql.execute_many(
            "INSERT INTO facts (name, number) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET number = excluded.number",
            &rows,
        )
    }

    /// Slice of event time `nanos`, once the length of a slice is known.
    pub fn slice_of(&self, nanos: u64) -> Option<u64> {
        nanos.checked_div(self.slice_ms?.checked_mul(MILLI)?)
    }
}

/// The newest closed slice by partition of the tallies and partition of the shares.
///
/// Tallies are partitioned by account, so each of their partitions shows the end of each slice on its own: a slice is
/// closed where every one of them has shown it for every partition of the shares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Closed(pub BTreeMap<(u32, u32), u64>);

impl Closed {
    pub fn load(sql: &mut dyn Sql) -> Result<Self> {
        let rows = sql.query(r#"SELECT tally_partition, "partition", slice FROM closed"#, &[])?;
        rows.iter().map(|row| Ok(((row.u32(0)?, row.u32(1)?), row.u64(2)?))).collect::<Result<_>>().map(Self)
    }

    /// Stores what is not as in `before`.
    pub fn save(&self, before: &Self, sql: &mut dyn Sql) -> Result<()> {
        let mut rows = Vec::new();
        for (key, slice) in &self.0 {
            if before.0.get(key) != Some(slice) {
                rows.push(vec![key.0.into(), key.1.into(), Value::int(*slice)?]);
            }
        }
        sql.execute_many(
            r#"INSERT INTO closed (tally_partition, "partition", slice) VALUES ($1, $2, $3)
               ON CONFLICT (tally_partition, "partition") DO UPDATE SET slice = excluded.slice"#,
            &rows,
        )
    }

    /// The newest slice closed everywhere.
    pub fn through(&self, facts: &Facts) -> Option<u64> {
        let expected = facts.partitions?.checked_mul(facts.tally_partitions?)?;
        if self.0.len() as u64 != expected {
            return None;
        }
        self.0.values().min().copied()
    }
}
