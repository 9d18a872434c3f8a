use sluice_proto::Body;
use sluice_proto::v1::{Reason, ReasonCount, Tally};

use super::query::{Rate, Totals};
use super::*;
use crate::testing::Rig;
use crate::testing::records::{START, at, slice_end, tally};

/// Number of the slice that the tests begin in: it begins a minute and 10 minutes.
const FIRST: u64 = START / 10;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn work(milliblocks: u64) -> u128 {
    let at = &tally(0, 0, "", "", milliblocks).accepted[0];
    (u128::from(at.work_hi) << 64) | u128::from(at.work_lo)
}

fn give(rig: &mut Rig, partition: u32, tally: Tally) {
    let end = at((tally.slice + 1 - FIRST) * 10_000);
    let out = rig.give_of("in", (partition, 2), end, Body::Tally(tally)).unwrap();
    assert!(out.is_empty(), "it writes nothing");
}

fn end(rig: &mut Rig, slice: u64) {
    rig.give("in", at(0), Body::SliceEnd(slice_end(0, 1, slice)));
}

#[test]
fn rates_are_sums_over_whole_buckets() {
    let mut rig = Rig::new(&KIND);
    // One thousandth of a block's work in each slice of 20 minutes, by turns from two workers of one account.
    for number in 0..120 {
        give(&mut rig, 0, tally(0, FIRST + number, "alice", ["a", "b"][number as usize % 2], 1));
    }
    give(&mut rig, 1, tally(1, FIRST + 119, "bob", "", 5));
    rig.commit();
    let reader = rig.reader();
    let stats = query::Stats::new(reader.as_ref(), "stats");
    let now = at(20 * MINUTE);
    let rate = |subject, window| stats.rate(subject, window, now).unwrap();
    assert_eq!(rate(Subject::Pool, MINUTE), Rate { work: 6 * work(1) + work(5), over_ms: MINUTE });
    assert_eq!(rate(Subject::Account("alice"), 5 * MINUTE), Rate { work: 30 * work(1), over_ms: 5 * MINUTE });
    assert_eq!(rate(Subject::Worker("alice", "b"), 10 * MINUTE), Rate { work: 30 * work(1), over_ms: 10 * MINUTE });
    assert_eq!(rate(Subject::Worker("bob", ""), HOUR), Rate { work: work(5), over_ms: HOUR });
    assert_eq!(rate(Subject::Account("carol"), HOUR).work, 0);
    // Beyond an hour the buckets are of 10 minutes.
    assert_eq!(rate(Subject::Pool, 2 * HOUR), Rate { work: 120 * work(1) + work(5), over_ms: 2 * HOUR });
    // Within a minute that has begun, the window is that much longer.
    let later = stats.rate(Subject::Pool, MINUTE, at(20 * MINUTE + 30_000)).unwrap();
    assert_eq!(later, Rate { work: 6 * work(1) + work(5), over_ms: MINUTE + 30_000 });
}

#[test]
fn totals_count_accepted_work_and_rejects_by_reason() {
    let mut rig = Rig::new(&KIND);
    let mut mixed = tally(0, FIRST, "alice", "a", 7);
    let rejected = |reason: Reason, shares| ReasonCount { reason: reason.into(), shares, work_hi: 0, work_lo: 1 };
    mixed.rejected = vec![rejected(Reason::Stale, 2), rejected(Reason::LowDifficulty, 1)];
    give(&mut rig, 0, mixed);
    give(&mut rig, 0, tally(0, FIRST + 9, "alice", "b", 3));
    let only_rejected = Tally {
        accepted: Vec::new(),
        rejected: vec![rejected(Reason::Stale, 4)],
        ..tally(0, FIRST + 20, "al", "a", 0)
    };
    give(&mut rig, 0, only_rejected);
    rig.commit();
    let reader = rig.reader();
    let stats = query::Stats::new(reader.as_ref(), "stats");
    let alice = Totals {
        accepted: 10,
        work: work(7) + work(3),
        rejected: vec![(Reason::Stale, 2), (Reason::LowDifficulty, 1)],
        last_share_ms: at(100_000).millis(),
    };
    assert_eq!(stats.totals(Subject::Account("alice")).unwrap(), alice);
    let pool = Totals { rejected: vec![(Reason::Stale, 6), (Reason::LowDifficulty, 1)], ..alice };
    assert_eq!(stats.totals(Subject::Pool).unwrap(), pool);
    let al = Totals { rejected: vec![(Reason::Stale, 4)], ..Totals::default() };
    assert_eq!(stats.totals(Subject::Account("al")).unwrap(), al, "not those of alice, and never a share");
    let worker = stats.totals(Subject::Worker("alice", "b")).unwrap();
    assert_eq!((worker.accepted, worker.last_share_ms), (3, at(100_000).millis()));
    assert_eq!(stats.totals(Subject::Account("carol")).unwrap(), Totals::default());
    let ends = [at(10_000).millis(), at(100_000).millis()];
    let listed = [("alice".to_owned(), "a".to_owned(), ends[0]), ("alice".to_owned(), "b".to_owned(), ends[1])];
    assert_eq!(stats.workers(Some("alice")).unwrap(), listed);
    assert_eq!(stats.workers(None).unwrap(), listed);
    assert_eq!(stats.workers(Some("al")).unwrap(), []);
}

#[test]
fn old_buckets_go_and_totals_stay() {
    let mut rig = Rig::new(&KIND);
    // A slice every 10 minutes for 8 days.
    for number in 0..8 * 144 {
        give(&mut rig, 0, tally(0, FIRST + number * 60, "alice", "a", 1));
        end(&mut rig, FIRST + number * 60);
    }
    rig.commit();
    // Pool, account and worker: minutes of the last 2 hours, tens of the last 7 days, both ends included.
    assert_eq!((rig.rows("minutes"), rig.rows("tens")), (3 * 13, 3 * (7 * 144 + 1)));
    let reader = rig.reader();
    let stats = query::Stats::new(reader.as_ref(), "stats");
    assert_eq!(stats.totals(Subject::Pool).unwrap().accepted, 8 * 144);
    let now = at(8 * 24 * HOUR);
    assert_eq!(stats.rate(Subject::Pool, 24 * HOUR, now).unwrap(), Rate { work: 144 * work(1), over_ms: 24 * HOUR });
}

/// S2: partitions may come in any order among themselves.
#[test]
fn s2_the_order_of_partitions_changes_nothing() {
    let digests = |order: &[u32]| {
        let mut rig = Rig::new(&KIND);
        for partition in order {
            for number in 0..30 {
                give(
                    &mut rig,
                    *partition,
                    tally(*partition, FIRST + number, "alice", "a", u64::from(*partition) + number),
                );
            }
        }
        rig.digests()
    };
    assert_eq!(digests(&[0, 1]), digests(&[1, 0]));
}

#[test]
fn p1_a_record_of_another_kind_stops_it() {
    let mut rig = Rig::new(&KIND);
    let record = Body::Tick(crate::testing::records::tick(1, 1));
    assert!(rig.give_of("in", (0, 1), at(1), record).unwrap_err().to_string().contains("stats cannot read"));
}
