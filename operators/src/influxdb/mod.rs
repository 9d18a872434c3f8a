//! `influxdb`: totals per worker and of the pool in cells of event time, written to InfluxDB (DESIGN 6 and 9).
//!
//! Lent to it by [`Externals`](sluice_topology::Externals): [`Stores`], its own store in it by name.
//!
//! - A cell's totals are in the state. [`Operator::flush`] writes those that have changed as absolute totals at the time the
//!   cell begins, and returns when the server has them; the task commits after it. A crash in between writes the same again.
//! - A server that is away makes the task wait inside `flush`: it lags behind its topic and loses nothing.
//! - A cell is forgotten once every partition has closed all of its slices, and so complete.
//!
//! Measurements: `shares`, by the tags `miner_address`, `worker_name` and `status` (`accepted`, `stale`, `rejected`), with
//! the fields `count` and `work` (expected hashes); `pool`, without tags, with `accepted`, `stale`, `rejected`, `work` and
//! a count for each reason.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluice_mining::Work;
use sluice_proto::v1::{Reason, SliceEnd, Tally};
use sluice_proto::{Body, RecordKind};
use sluice_series::{Field, Point, SeriesError, SeriesStore};
use sluice_topology::{
    BuildContext, Context, Input, InputPosition, InputSpec, Kind, Operator, OperatorError, Parallel, Role, SettingSpec,
    SettingType, Source, StateTable,
};

use crate::codec::{Sum, damaged, read_u64};
use crate::subject::Subject;

/// Begin of a cell (8 bytes), subject -> [`Totals`].
const CELLS: usize = 0;
/// Number of a span of [`NAMES_MS`] (8 bytes), account -> distinct workers; worker -> nothing, if it has a name there.
const NAMES: usize = 1;
/// Partition of the topic of tallies, generation and partition of share.submissions (4 bytes each) -> end of its last closed
/// slice there, milliseconds (8 bytes).
const CLOSED: usize = 2;

/// Workers of an account beyond its limit go by this name.
const OTHERS: &str = "(others)";
/// For how long a worker keeps its place among those with a name: 30 days.
const NAMES_MS: u64 = 30 * 24 * 3_600_000;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "influxdb",
    summary: "writes shares and work per worker, and of the pool, to InfluxDB",
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
            name: "url",
            ty: SettingType::Text,
            default: Some("http://127.0.0.1:8086"),
            doc: "`http://HOST:PORT` of InfluxDB 1.8, 2 or 3",
        },
        SettingSpec {
            name: "bucket",
            ty: SettingType::Text,
            default: Some("sluice"),
            doc: "bucket of version 2, `DATABASE` or `DATABASE/RETENTION` of version 1.8, database of version 3; it must exist, but in version 3",
        },
        SettingSpec {
            name: "org",
            ty: SettingType::Text,
            default: Some("sluice"),
            doc: "organization of version 2; the others ask for none",
        },
        SettingSpec {
            name: "token",
            ty: SettingType::Secret,
            default: Some(""),
            doc: "token of versions 2 and 3, `USER:PASSWORD` of version 1.8",
        },
        SettingSpec {
            name: "every",
            ty: SettingType::Duration,
            default: Some("1m"),
            doc: "length of a cell, between two points of a series; at least a slice of tally",
        },
        SettingSpec {
            name: "workers",
            ty: SettingType::Integer(1, 1_000_000),
            default: Some("2000"),
            doc: "distinct names of workers that an account may have in 30 days; further ones are summed as (others), since \
                  each is a series",
        },
    ],
    state: &[StateTable::grouped("cells", 8), StateTable::grouped("names", 8), StateTable::plain("closed")],
    parallel: Parallel::Single,
    role: Role::Export(build),
};

/// The stores that are lent, by the name of their operator in the YAML.
#[derive(Clone, Default)]
pub struct Stores(pub HashMap<String, Arc<dyn SeriesStore>>);

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let store = cx.externals.get::<Stores>().and_then(|stores| stores.0.get(cx.name)).cloned();
    let store = store.ok_or_else(|| OperatorError::Setting(format!("{}: no time series are lent to it", cx.name)))?;
    let every_ms = u64::try_from(cx.settings.duration("every").as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(Box::new(InfluxDb { store, every_ms, workers: cx.settings.integer("workers"), changed: BTreeMap::new() }))
}

struct InfluxDb {
    store: Arc<dyn SeriesStore>,
    every_ms: u64,
    workers: u64,
    /// Rows of the table `cells` that have changed since they were written to the store.
    changed: BTreeMap<Vec<u8>, Totals>,
}

impl Operator for InfluxDb {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match &**input.record {
            Body::Tally(tally) => self.count(tally, cx),
            Body::SliceEnd(end) => close(end, input.source, self.every_ms, cx),
            _ => Err(crate::unexpected("influxdb", input)),
        }
    }

    fn flush(&mut self, _: &[InputPosition]) -> Result<(), OperatorError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let mut points = Vec::new();
        for (key, totals) in &self.changed {
            let (time_ms, subject) = key.split_first_chunk::<8>().ok_or_else(|| damaged(key))?;
            totals.points(u64::from_be_bytes(*time_ms), Subject::read(subject)?, &mut points)?;
        }
        match self.store.write(&points) {
            Ok(()) => self.changed.clear(),
            Err(error @ SeriesError::Interrupted) => return Err(OperatorError::Interrupted(error.to_string())),
            Err(error) => return Err(OperatorError::External(error.to_string())),
        }
        Ok(())
    }
}

impl InfluxDb {
    fn count(&mut self, tally: &Tally, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let mut totals = Totals::default();
        for at in &tally.accepted {
            let work = Work::from_parts(at.work_hi, at.work_lo).get();
            totals.add(Reason::Accepted as i32, Sum { work, shares: at.shares })?;
        }
        for count in &tally.rejected {
            let work = Work::from_parts(count.work_hi, count.work_lo).get();
            totals.add(count.reason, Sum { work, shares: count.shares })?;
        }
        let begin = tally.slice.saturating_mul(u64::from(tally.slice_ms));
        let cell = (begin / self.every_ms * self.every_ms).to_be_bytes();
        let place = self.place(begin, tally, cx)?;
        let worker = if place == Place::None { OTHERS } else { &tally.worker };
        let sum = |subject: Subject<'_>| {
            let key = [&cell[..], &subject.key()].concat();
            let mut sum = Totals::read(cx.state.get(CELLS, &key)?.as_deref())?;
            for (reason, counted) in &totals.0 {
                sum.add((*reason).into(), *counted)?;
            }
            Ok::<_, OperatorError>((key, sum))
        };
        // Nothing has changed until all sums are known to be right.
        let sums = [sum(Subject::Pool)?, sum(Subject::Worker(&tally.account, worker))?];
        if let Place::New(worker, (account, count)) = place {
            cx.state.put(NAMES, &worker, &[])?;
            cx.state.put(NAMES, &account, &count.to_be_bytes())?;
        }
        for (key, sum) in sums {
            cx.state.put(CELLS, &key, &sum.to_bytes())?;
            self.changed.insert(key, sum);
        }
        Ok(())
    }

    /// Whether a worker has a series of its own.
    fn place(&self, begin: u64, tally: &Tally, cx: &Context<'_>) -> Result<Place, OperatorError> {
        let span = (begin / NAMES_MS).to_be_bytes();
        let row = |subject: Subject<'_>| [&span[..], &subject.key()].concat();
        let worker = row(Subject::Worker(&tally.account, &tally.worker));
        if cx.state.get(NAMES, &worker)?.is_some() {
            return Ok(Place::Has);
        }
        let account = row(Subject::Account(&tally.account));
        let count = read_u64(cx.state.get(NAMES, &account)?.as_deref())?;
        Ok(if count < self.workers { Place::New(worker, (account, count + 1)) } else { Place::None })
    }
}

/// The place of a worker among those of its account that have series of their own.
#[derive(PartialEq)]
enum Place {
    /// It has one.
    Has,
    /// It gets one: its row, and the account's with the number of places that are taken then.
    New(Vec<u8>, (Vec<u8>, u64)),
    /// There is none left.
    None,
}

/// Notes that a partition has closed a slice, as one partition of the topic of tallies says, each of which says so; and forgets
/// cells that all of them have passed.
fn close(end: &SliceEnd, source: &Source, every_ms: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
    let generation = end.generation.max(1);
    let key = |said_by: u32, generation: u32, partition: u32| {
        [said_by.to_be_bytes(), generation.to_be_bytes(), partition.to_be_bytes()].concat()
    };
    // Who has not closed anything yet is waited for.
    let next = (generation.saturating_add(1), end.next_partitions);
    for (generation, partitions) in [(generation, end.partitions), next] {
        for (said_by, partition) in (0..source.partitions).flat_map(|by| (0..partitions).map(move |it| (by, it))) {
            cx.state.insert(CLOSED, &key(said_by, generation, partition), &0_u64.to_be_bytes())?;
        }
    }
    let closed = match end.next_partitions {
        0 => end.slice.saturating_add(1).saturating_mul(u64::from(end.slice_ms)),
        _ => u64::MAX,
    };
    cx.state.put(CLOSED, &key(source.partition, generation, end.partition), &closed.to_be_bytes())?;
    let (mut passed, mut failed) = (u64::MAX, None);
    cx.state.scan(CLOSED, &[], None, &mut |_, row| {
        match read_u64(Some(row)) {
            Ok(closed) => passed = passed.min(closed),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    // Where all have ended, the next generation's partitions are there with 0.
    let oldest = passed / every_ms * every_ms;
    cx.state.expire_below(CELLS, &oldest.to_be_bytes())?;
    Ok(cx.state.expire_below(NAMES, &(passed / NAMES_MS).to_be_bytes())?)
}

/// Sums by the number of their reason, ascending; [`Reason::Accepted`] is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Totals(BTreeMap<u8, Sum>);

impl Totals {
    fn add(&mut self, reason: i32, sum: Sum) -> Result<(), OperatorError> {
        // Of a newer program: counted as rejected.
        let total = self.0.entry(u8::try_from(reason).unwrap_or(u8::MAX)).or_default();
        *total = total.add(sum)?;
        Ok(())
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(reason, sum)| std::iter::once(*reason).chain(sum.to_bytes())).collect()
    }

    fn read(row: Option<&[u8]>) -> Result<Self, OperatorError> {
        let one = |chunk: &[u8]| match chunk.split_first() {
            Some((reason, sum)) => Ok((*reason, Sum::read(Some(sum))?)),
            None => Err(damaged(chunk)),
        };
        row.unwrap_or_default().chunks(25).map(one).collect::<Result<_, _>>().map(Self)
    }

    fn of(&self, reason: Reason) -> Sum {
        self.0.get(&(reason as u8)).copied().unwrap_or_default()
    }

    /// Those that are neither accepted nor stale.
    fn rejected(&self) -> Result<Sum, OperatorError> {
        let mut others =
            self.0.iter().filter(|(reason, _)| ![Reason::Accepted as u8, Reason::Stale as u8].contains(*reason));
        others.try_fold(Sum::default(), |sum, (_, other)| sum.add(*other))
    }

    fn points(&self, time_ms: u64, subject: Subject<'_>, points: &mut Vec<Point>) -> Result<(), OperatorError> {
        let (accepted, stale, rejected) = (self.of(Reason::Accepted), self.of(Reason::Stale), self.rejected()?);
        match subject {
            Subject::Worker(account, worker) => {
                for (status, sum) in [("accepted", accepted), ("stale", stale), ("rejected", rejected)] {
                    // A chart needs a zero only where there is a line.
                    if sum.shares == 0 && status != "accepted" {
                        continue;
                    }
                    let tags = [("miner_address", account), ("worker_name", worker), ("status", status)];
                    let tags = tags.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
                    let fields = vec![("count", Field::Count(sum.shares)), ("work", Field::Work(sum.work))];
                    points.push(Point { measurement: "shares", tags, fields, time_ms });
                }
            }
            Subject::Pool | Subject::Account(_) => {
                let mut fields = vec![
                    ("accepted", Field::Count(accepted.shares)),
                    ("stale", Field::Count(stale.shares)),
                    ("rejected", Field::Count(rejected.shares)),
                    ("work", Field::Work(accepted.work)),
                ];
                fields.extend(REASONS.map(|(reason, name)| (name, Field::Count(self.of(reason).shares))));
                points.push(Point { measurement: "pool", tags: Vec::new(), fields, time_ms });
            }
        }
        Ok(())
    }
}

/// Fields of the pool's rejects. A reason of a newer program is in the field `rejected` only.
const REASONS: [(Reason, &str); 6] = [
    (Reason::JobNotFound, "rejected_job_not_found"),
    (Reason::Duplicate, "rejected_duplicate"),
    (Reason::LowDifficulty, "rejected_low_difficulty"),
    (Reason::NtimeTooOld, "rejected_ntime_too_old"),
    (Reason::NtimeTooNew, "rejected_ntime_too_new"),
    (Reason::VersionMask, "rejected_version_mask"),
];
