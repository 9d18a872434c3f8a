use std::sync::Arc;

use sluice_proto::Body;
use sluice_proto::v1::{Reason, ReasonCount, SliceEnd, Tally};
use sluice_series::{Field, MemorySeries, Point, SeriesStore};
use sluice_topology::{Externals, OperatorError, SettingValue};

use super::*;
use crate::testing::Rig;
use crate::testing::records::{START, at, slice_end, tally};

/// Number of the slice that the tests begin in: it begins a minute.
const FIRST: u64 = START / 10;
const MINUTE: u64 = 60_000;

fn rig(workers: u64) -> (Rig, Arc<MemorySeries>) {
    let series = Arc::new(MemorySeries::default());
    let mut externals = Externals::default();
    externals.insert(Stores([("influxdb".to_owned(), series.clone() as Arc<dyn SeriesStore>)].into()));
    (Rig::with(&KIND, &[("workers", SettingValue::Integer(workers))], externals), series)
}

fn give(rig: &mut Rig, partition: u32, tally: Tally) {
    let end = at((tally.slice + 1 - FIRST) * 10_000);
    assert!(rig.give_of("in", (partition, 2), end, Body::Tally(tally)).unwrap().is_empty());
}

fn end(rig: &mut Rig, end: SliceEnd) {
    rig.give("in", at(0), Body::SliceEnd(end));
}

/// Count of a worker with a status in the cell at `minute`.
fn count(series: &MemorySeries, minute: u64, worker: &str, status: &str) -> Option<u64> {
    let at = START * 1_000 + minute * MINUTE;
    let named = |point: &Point, name, value: &str| point.tags.iter().any(|tag| *tag == (name, value.to_owned()));
    let of =
        |point: &&Point| point.time_ms == at && named(point, "worker_name", worker) && named(point, "status", status);
    let points = series.points();
    let (_, field) = points.iter().find(of)?.fields.iter().find(|(name, _)| *name == "count")?;
    match field {
        Field::Count(count) => Some(*count),
        Field::Work(_) => None,
    }
}

#[test]
fn totals_of_a_cell_are_absolute_and_at_its_begin() {
    let (mut rig, series) = rig(10);
    for slice in 0..7 {
        give(&mut rig, 0, tally(0, FIRST + slice, "alice", "a", 1));
    }
    rig.flush().unwrap();
    assert_eq!([0, 1].map(|minute| count(&series, minute, "a", "accepted")), [Some(6), Some(1)]);
    // Another partition's, later: the total, not what was added to it.
    give(&mut rig, 1, tally(1, FIRST, "alice", "a", 1));
    let mut bad = tally(1, FIRST, "alice", "a", 1);
    bad.accepted.clear();
    let rejected = |reason: Reason, shares| ReasonCount { reason: reason.into(), shares, work_hi: 0, work_lo: 1 };
    bad.rejected = vec![rejected(Reason::Stale, 2), rejected(Reason::Duplicate, 3), rejected(Reason::LowDifficulty, 4)];
    give(&mut rig, 1, bad);
    rig.flush().unwrap();
    let of = |status| count(&series, 0, "a", status);
    assert_eq!((of("accepted"), of("stale"), of("rejected")), (Some(7), Some(2), Some(7)));
    let points = series.points();
    let pool = points.iter().find(|it| it.measurement == "pool").unwrap();
    assert_eq!((pool.time_ms, pool.tags.len()), (START * 1_000, 0));
    let field = |name| pool.fields.iter().find(|(known, _)| *known == name).unwrap().1;
    assert_eq!(
        ["accepted", "stale", "rejected", "rejected_duplicate", "rejected_ntime_too_old"].map(field),
        [7, 2, 7, 3, 0].map(Field::Count)
    );
}

#[test]
fn an_account_has_so_many_series_and_no_more() {
    let (mut rig, series) = rig(2);
    for worker in ["a", "b", "c", "d", "a"] {
        give(&mut rig, 0, tally(0, FIRST, "alice", worker, 1));
    }
    give(&mut rig, 0, tally(0, FIRST, "bob", "c", 1));
    rig.flush().unwrap();
    let counts = ["a", "b", "c", OTHERS].map(|worker| count(&series, 0, worker, "accepted"));
    assert_eq!(counts, [Some(2), Some(1), Some(1), Some(2)], "the c is bob's");
    // In another 30 days others may have them.
    let later = NAMES_MS / 10_000;
    give(&mut rig, 0, tally(0, FIRST + later, "alice", "d", 1));
    rig.flush().unwrap();
    assert_eq!(count(&series, NAMES_MS / MINUTE, "d", "accepted"), Some(1));
}

#[test]
fn a_cell_is_kept_until_every_partition_of_every_generation_is_behind_it() {
    let (mut rig, _) = rig(10);
    let cells = |rig: &mut Rig| {
        rig.commit();
        rig.rows("cells")
    };
    for slice in [0, 6, 12] {
        give(&mut rig, 0, tally(0, FIRST + slice, "alice", "a", 1));
    }
    for slice in 0..12 {
        end(&mut rig, slice_end(0, 2, FIRST + slice));
    }
    assert_eq!(cells(&mut rig), 6, "partition 1 has closed nothing");
    for slice in 0..6 {
        end(&mut rig, slice_end(1, 2, FIRST + slice));
    }
    assert_eq!(cells(&mut rig), 4, "both are behind the first minute");
    for partition in 0..2 {
        end(&mut rig, SliceEnd { next_partitions: 1, ..slice_end(partition, 2, FIRST + 17) });
    }
    assert_eq!(cells(&mut rig), 4, "the next generation's partition has closed nothing");
    end(&mut rig, SliceEnd { generation: 2, ..slice_end(0, 1, FIRST + 17) });
    assert_eq!(cells(&mut rig), 0);
}

#[test]
fn points_that_were_not_written_are_written_with_the_next_flush() {
    let (mut rig, series) = rig(10);
    give(&mut rig, 0, tally(0, FIRST, "alice", "a", 1));
    series.interrupt();
    assert!(matches!(rig.flush(), Err(OperatorError::Interrupted(_))));
    assert!(series.points().is_empty());
}

#[test]
fn totals_survive_and_other_bytes_are_damage() {
    let mut totals = Totals::default();
    totals.add(Reason::Accepted.into(), Sum { work: u128::MAX, shares: 3 }).unwrap();
    totals.add(300, Sum { work: 1, shares: 1 }).unwrap();
    assert_eq!(Totals::read(Some(&totals.to_bytes())).unwrap(), totals);
    assert_eq!(totals.rejected().unwrap().shares, 1, "a reason that is not known here");
    assert!(totals.add(Reason::Accepted.into(), Sum { work: 1, shares: 1 }).is_err(), "no sum wraps");
    assert!(Totals::read(Some(&[1; 24])).is_err());
}
