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
/// closed where every one of them has shown it for every partition of the shares. Where the shares have changed their
/// number of partitions (docs/adr/0018) that is every partition of each generation that may still bring the slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Closed {
    /// How many partitions the shares have, by generation: known from the end of a slice, or of the generation before.
    pub partitions: BTreeMap<u32, u32>,
    /// How far each lane is closed.
    pub lanes: BTreeMap<Lane, End>,
}

/// Partition of the tallies, generation of the shares, partition of them.
pub(super) type Lane = (u32, u32, u32);

/// How far a lane is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The newest closed slice.
    pub slice: u64,
    /// Nothing follows: the generation has ended.
    pub last: bool,
}

impl Closed {
    pub fn load(sql: &mut dyn Sql) -> Result<Self> {
        let partitions = sql.query("SELECT generation, partitions FROM generations", &[])?;
        let rows = sql.query(r#"SELECT tally_partition, generation, "partition", slice, ended FROM closed"#, &[])?;
        let lanes = rows.iter().map(|row| {
            let end = End { slice: row.u64(3)?, last: row.u64(4)? == 1 };
            Ok(((row.u32(0)?, row.u32(1)?, row.u32(2)?), end))
        });
        let lanes = lanes.collect::<Result<_>>()?;
        let partitions = partitions.iter().map(|row| Ok((row.u32(0)?, row.u32(1)?))).collect::<Result<_>>()?;
        Ok(Self { partitions, lanes })
    }

    /// Stores what is not as in `before`.
    pub fn save(&self, before: &Self, sql: &mut dyn Sql) -> Result<()> {
        let new = self.partitions.iter().filter(|(generation, _)| !before.partitions.contains_key(generation));
        let new: Vec<Vec<Value>> = new.map(|(generation, count)| vec![(*generation).into(), (*count).into()]).collect();
        sql.execute_many("INSERT INTO generations (generation, partitions) VALUES ($1, $2)", &new)?;
        let mut rows = Vec::new();
        for (lane, end) in &self.lanes {
            if before.lanes.get(lane) != Some(end) {
                let (slice, ended) = (Value::int(end.slice)?, u32::from(end.last).into());
                rows.push(vec![lane.0.into(), lane.1.into(), lane.2.into(), slice, ended]);
            }
        }
        sql.execute_many(
            r#"INSERT INTO closed (tally_partition, generation, "partition", slice, ended) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (tally_partition, generation, "partition")
               DO UPDATE SET slice = excluded.slice, ended = excluded.ended"#,
            &rows,
        )
    }

    /// The newest slice that was shown in any partition.
    pub fn newest(&self) -> Option<u64> {
        self.lanes.values().map(|end| end.slice).max()
    }

    /// The newest slice closed everywhere.
    pub fn through(&self, facts: &Facts) -> Option<u64> {
        let tally_partitions = u32::try_from(facts.tally_partitions?).ok()?;
        let mut through: Option<u64> = None;
        for (generation, partitions) in &self.partitions {
            let expected = u64::from(*partitions) * u64::from(tally_partitions);
            let lanes = self.lanes.iter().filter(|((_, of, _), _)| of == generation);
            let (mut shown, mut least) = (0, None::<u64>);
            for (_, end) in lanes {
                shown += 1;
                // A lane that has ended brings no slice any more.
                if !end.last {
                    least = Some(least.map_or(end.slice, |least| least.min(end.slice)));
                }
            }
            if shown < expected {
                return None;
            }
            through = match (through, least) {
                (Some(through), Some(least)) => Some(through.min(least)),
                (through, least) => through.or(least),
            };
        }
        through
    }
}
