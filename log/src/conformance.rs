//! What every back end must do, as one suite that the tests of each back end run.
//!
//! The functions panic where the log does not conform: they are for tests only. Each uses topics of its own, so that
//! they can share a log.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use sluice_proto::Offset;

use crate::{Bounds, LogError, MAX_RECORD, Partition, Record, Retention, SharedLog, TopicSpec, check_genesis};

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(20);

/// Runs all of them on one log.
pub async fn run(log: SharedLog) {
    genesis_comes_first(&log).await;
    topics_are_created_once(&log).await;
    bad_topics_are_refused(&log).await;
    records_are_read_as_appended(&log).await;
    order_is_that_of_the_calls(&log).await;
    a_dropped_append_still_happens(&log).await;
    wrong_arguments_do_not_stop_the_log(&log).await;
    readers_wait_for_records(&log).await;
    a_budget_bounds_a_read(&log).await;
    positions_that_do_not_fit_are_refused(&log).await;
    trimming_moves_the_start(&log).await;
    partitions_do_not_mix(&log).await;
    appends_to_many_partitions_are_one_call(&log).await;
    concurrent_producers_keep_their_order(&log).await;
}

async fn topic(log: &SharedLog, name: &str, partitions: u32) -> Partition {
    let spec = TopicSpec { name: name.into(), partitions, retention: Retention::default() };
    log.create_topic(&spec).await.unwrap();
    Partition::new(name, 0)
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Bytes> {
    range.map(|n| Bytes::copy_from_slice(&n.to_be_bytes())).collect()
}

fn values(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|r| r.value.clone()).collect()
}

/// Reads everything from `from` on that is there, in reads of `max_bytes`, and checks that offsets only grow.
pub async fn read_all(log: &SharedLog, of: &Partition, from: Offset, max_bytes: usize) -> Vec<Record> {
    let (mut all, mut at): (Vec<Record>, _) = (Vec::new(), from);
    loop {
        let records = log.read(of, at, max_bytes, NOW).await.unwrap();
        let Some(last) = records.last() else { return all };
        at = last.offset.next();
        all.extend(records);
        assert!(all.windows(2).all(|pair| pair[0].offset < pair[1].offset), "offsets of {of} do not grow");
    }
}

/// Offset 0 holds the genesis record, which names log, topic and partition.
pub async fn genesis_comes_first(log: &SharedLog) {
    topic(log, "conformance.genesis", 2).await;
    for number in 0..2 {
        let of = Partition::new("conformance.genesis", number);
        assert_eq!(log.bounds(&of).await.unwrap(), Bounds { start: Offset::ZERO, next: Offset::new(1) });
        let records = log.read(&of, Offset::ZERO, 1, NOW).await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].offset, Offset::ZERO);
        check_genesis(records[0].value.clone(), log.uuid(), &of, 2).unwrap();
    }
}

/// Creating a topic again changes its retention only, and never its number of partitions.
pub async fn topics_are_created_once(log: &SharedLog) {
    let of = topic(log, "conformance.again", 3).await;
    log.append(&of, numbers(0..2)).await.unwrap();
    let retention = Retention { age: Some(Duration::from_secs(3600)), bytes: Some(1 << 40) };
    let spec = TopicSpec { name: "conformance.again".into(), partitions: 3, retention };
    let info = log.create_topic(&spec).await.unwrap();
    assert_eq!((info.partitions, info.retention), (3, retention));
    let listed = log.topics().await.unwrap();
    assert!(listed.contains(&info));
    assert!(listed.windows(2).all(|pair| pair[0].name < pair[1].name), "topics are not listed by name");
    assert_eq!(log.bounds(&of).await.unwrap().next, Offset::new(3));
    let other = log.create_topic(&TopicSpec { partitions: 4, ..spec }).await;
    assert!(matches!(other, Err(LogError::PartitionCount { has: 3, wanted: 4, .. })), "{other:?}");
}

/// Names that could not be a file, a metric or a topic of another log are refused, and so is a topic of nothing.
pub async fn bad_topics_are_refused(log: &SharedLog) {
    for name in ["", "a/b", "ä", "a b", &"x".repeat(201)] {
        let spec = TopicSpec { name: name.into(), partitions: 1, retention: Retention::default() };
        let refused = log.create_topic(&spec).await;
        assert!(matches!(refused, Err(LogError::Name(_))), "{name:?}: {refused:?}");
    }
    let spec = TopicSpec { name: "conformance.none".into(), partitions: 0, retention: Retention::default() };
    assert!(matches!(log.create_topic(&spec).await, Err(LogError::NoPartitions(_))));
}

/// What is appended is read: empty records, large ones, many of them, from any offset.
pub async fn records_are_read_as_appended(log: &SharedLog) {
    let of = topic(log, "conformance.read", 1).await;
    let mut batches: Vec<Vec<Bytes>> = (0..40).map(|n| numbers(n * 100..n * 100 + n)).collect();
    batches.push(vec![Bytes::new(), Bytes::from(vec![7; 900_000]), Bytes::new()]);
    let mut firsts = Vec::new();
    for batch in &batches {
        firsts.push(log.append(&of, batch.clone()).await.unwrap());
    }
    let records = read_all(log, &of, Offset::ZERO, 10_000).await;
    assert_eq!(values(&records[1..]), batches.concat());
    for (batch, first) in batches.iter().zip(firsts).filter(|(batch, _)| !batch.is_empty()) {
        let at = records.iter().position(|r| r.offset == first).unwrap();
        assert_eq!(values(&records[at..at + batch.len()]), *batch);
        let again = log.read(&of, first, usize::MAX, NOW).await.unwrap();
        assert_eq!(again[0], records[at]);
    }
    for (record, following) in records.iter().zip(&records[1..]).skip(1).step_by(97) {
        let again = log.read(&of, record.offset.next(), 1, NOW).await.unwrap();
        assert_eq!(again[0], *following);
    }
}

/// The order is fixed by the calls of `append`, whatever the order in which the futures are polled.
pub async fn order_is_that_of_the_calls(log: &SharedLog) {
    let of = topic(log, "conformance.order", 1).await;
    let mut appends: Vec<_> = (0..50).map(|n| log.append(&of, numbers(n * 3..n * 3 + 3))).collect();
    appends.reverse();
    let mut offsets = join_all(appends).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    offsets.reverse();
    assert!(offsets.is_sorted() && offsets[0] == Offset::new(1), "{offsets:?}");
    let next = log.append(&of, Vec::new()).await.unwrap();
    assert_eq!(next, log.bounds(&of).await.unwrap().next);
    assert_eq!(values(&read_all(log, &of, offsets[0], 1_000).await), numbers(0..150));
}

/// A caller that gives up takes nothing back: a hole would break the links between records.
pub async fn a_dropped_append_still_happens(log: &SharedLog) {
    let of = topic(log, "conformance.dropped", 1).await;
    drop(log.append(&of, numbers(0..1)));
    log.append(&of, numbers(1..2)).await.unwrap();
    assert_eq!(values(&read_all(log, &of, Offset::new(1), 1_000).await), numbers(0..2));
}

/// Mistakes of one caller are no reason to stop.
pub async fn wrong_arguments_do_not_stop_the_log(log: &SharedLog) {
    let of = topic(log, "conformance.mistakes", 1).await;
    let nowhere = Partition::new("conformance.mistakes", 1);
    assert!(matches!(log.append(&nowhere, numbers(0..1)).await, Err(LogError::Unknown(p)) if p == nowhere));
    assert!(matches!(log.read(&nowhere, Offset::ZERO, 1, NOW).await, Err(LogError::Unknown(_))));
    assert!(matches!(log.bounds(&nowhere).await, Err(LogError::Unknown(_))));
    assert!(matches!(log.trim(&nowhere, Offset::ZERO).await, Err(LogError::Unknown(_))));
    let large = vec![Bytes::from_static(b"fits"), Bytes::from(vec![0; MAX_RECORD + 1])];
    assert!(matches!(log.append(&of, large).await, Err(LogError::TooLarge { .. })));
    assert_eq!(log.append(&of, numbers(0..1)).await.unwrap(), Offset::new(1));
}

/// A reader at the end gets a record soon after it became durable, and an empty list if none comes.
pub async fn readers_wait_for_records(log: &SharedLog) {
    let of = topic(log, "conformance.wait", 1).await;
    let next = log.bounds(&of).await.unwrap().next;
    let started = Instant::now();
    let wait = Duration::from_millis(80);
    assert!(log.read(&of, next, 1_000, wait).await.unwrap().is_empty());
    assert!(started.elapsed() >= wait);
    let mut at = next;
    for n in 0..20 {
        let reader = tokio::spawn(log.read(&of, at, 1_000, SOON));
        tokio::task::yield_now().await;
        let appended = log.append(&of, numbers(n..n + 1)).await.unwrap();
        let records = reader.await.unwrap().unwrap();
        assert_eq!((records[0].offset, values(&records)), (appended, numbers(n..n + 1)));
        at = records[0].offset.next();
    }
}

/// A read brings about as much as was asked for, and always at least one record.
pub async fn a_budget_bounds_a_read(log: &SharedLog) {
    let of = topic(log, "conformance.budget", 1).await;
    let first = log.append(&of, vec![Bytes::from(vec![1; 1_000]); 100]).await.unwrap();
    for (budget, most) in [(0, 1), (1, 1), (10_000, 11), (usize::MAX, 100)] {
        let records = log.read(&of, first, budget, NOW).await.unwrap();
        assert!((1..=most).contains(&records.len()), "{} records for {budget} bytes", records.len());
    }
}

/// Invariant P1: a position that does not fit the log is an error.
pub async fn positions_that_do_not_fit_are_refused(log: &SharedLog) {
    let of = topic(log, "conformance.range", 1).await;
    log.append(&of, numbers(0..5)).await.unwrap();
    let next = log.bounds(&of).await.unwrap().next;
    assert!(log.read(&of, next, 1, NOW).await.unwrap().is_empty());
    let beyond = log.read(&of, next.next(), 1, NOW).await;
    assert!(matches!(&beyond, Err(LogError::OutOfRange { asked, .. }) if *asked == next.next()), "{beyond:?}");
    let trim = log.trim(&of, next.next()).await;
    assert!(matches!(trim, Err(LogError::OutOfRange { .. })), "{trim:?}");
}

/// Trimming removes a prefix, except the newest record; the genesis record stays, and reading from 0 jumps the gap.
pub async fn trimming_moves_the_start(log: &SharedLog) {
    let of = topic(log, "conformance.trim", 1).await;
    for n in 0..10 {
        log.append(&of, numbers(n * 10..n * 10 + 10)).await.unwrap();
    }
    let records = read_all(log, &of, Offset::ZERO, 1_000).await;
    log.trim(&of, Offset::new(1)).await.unwrap();
    assert_eq!(log.bounds(&of).await.unwrap().start, Offset::ZERO);
    for index in [1 + 34, 1 + 10, 1 + 80] {
        let at = records[index].offset;
        let start = at.max(log.bounds(&of).await.unwrap().start);
        log.trim(&of, at).await.unwrap();
        assert_eq!(log.bounds(&of).await.unwrap().start, start, "it never moves back");
        let left: Vec<_> = records.iter().filter(|r| r.offset >= start).cloned().collect();
        assert_eq!(read_all(log, &of, start, 100).await, left);
        for gone in [Offset::new(1), records[index - 1].offset].into_iter().filter(|&o| o < start) {
            let refused = log.read(&of, gone, 1, NOW).await;
            assert!(matches!(refused, Err(LogError::OutOfRange { .. })), "{refused:?}");
        }
        let beginning = [&records[..1], &left].concat();
        assert_eq!(read_all(log, &of, Offset::ZERO, 1_000).await, beginning);
    }
    let next = log.bounds(&of).await.unwrap().next;
    log.trim(&of, next).await.unwrap();
    assert_eq!(log.bounds(&of).await.unwrap(), Bounds { start: records[100].offset, next });
    assert_eq!(log.read(&of, Offset::ZERO, usize::MAX, NOW).await.unwrap(), [&records[..1], &records[100..]].concat());
    assert_eq!(log.append(&of, numbers(0..1)).await.unwrap(), next);
}

/// Each partition has its own offsets and records.
pub async fn partitions_do_not_mix(log: &SharedLog) {
    topic(log, "conformance.partitions", 8).await;
    let of = |n: u32| Partition::new("conformance.partitions", n);
    let appends = (0..80).map(|n| log.append(&of(n % 8), numbers(n..n + 1)));
    join_all(appends).await.into_iter().for_each(|done| assert!(done.is_ok(), "{done:?}"));
    for number in 0..8 {
        let expected: Vec<_> = (0..10).flat_map(|n| numbers(n * 8 + number..n * 8 + number + 1)).collect();
        assert_eq!(values(&read_all(log, &of(number), Offset::new(1), 1_000).await), expected);
    }
}

/// An append to several partitions is an append to each, in the order of the calls; without records it is none.
pub async fn appends_to_many_partitions_are_one_call(log: &SharedLog) {
    let of = topic(log, "many", 3).await;
    let at = |number| Partition::new(of.topic.clone(), number);
    let before = log.append(&at(1), numbers(0..2));
    let all = log.append_all(vec![(at(1), numbers(2..4)), (at(0), numbers(5..6)), (at(2), vec![])]);
    let after = log.append(&at(1), numbers(4..5));
    assert!(all.await.is_ok());
    // What was called before is durable no later.
    assert_eq!(values(&read_all(log, &at(1), Offset::new(1), usize::MAX).await)[..4], numbers(0..4));
    assert!(before.await.is_ok() && after.await.is_ok());
    assert_eq!(values(&read_all(log, &at(1), Offset::new(1), usize::MAX).await), numbers(0..5));
    assert_eq!(values(&read_all(log, &at(0), Offset::new(1), usize::MAX).await), numbers(5..6));
    assert!(log.append_all(vec![]).await.is_ok() && log.append_all(vec![(at(2), vec![])]).await.is_ok());
    let unknown = log.append_all(vec![(at(0), numbers(6..7)), (at(9), numbers(0..1))]).await;
    assert!(matches!(unknown, Err(LogError::Unknown(_))), "{unknown:?}");
    assert!(log.append(&at(2), numbers(0..1)).await.is_ok(), "wrong arguments do not stop the log");
}

/// Producers on several threads, readers at the tail: every record once, each producer's in its order.
pub async fn concurrent_producers_keep_their_order(log: &SharedLog) {
    const PRODUCERS: u32 = 6;
    const BATCHES: u32 = 60;
    topic(log, "conformance.concurrent", 2).await;
    let of = |n: u32| Partition::new("conformance.concurrent", n);
    let readers: Vec<_> = (0..2).map(|n| tokio::spawn(follow(log.clone(), of(n), PRODUCERS * BATCHES * 4))).collect();
    let producers = (0..PRODUCERS).map(|p| {
        let log = log.clone();
        tokio::spawn(async move {
            for b in 0..BATCHES {
                let start = (p << 16) + b * 4;
                let done =
                    [log.append(&of(0), numbers(start..start + 4)), log.append(&of(1), numbers(start..start + 4))];
                join_all(done).await.into_iter().for_each(|done| assert!(done.is_ok(), "{done:?}"));
            }
        })
    });
    join_all(producers).await.into_iter().for_each(|done| assert!(done.is_ok(), "{done:?}"));
    for reader in readers {
        let seen = reader.await.unwrap();
        for p in 0..PRODUCERS {
            let of_p: Vec<_> = seen.iter().copied().filter(|n| n >> 16 == p).collect();
            assert_eq!(of_p, (p << 16..(p << 16) + BATCHES * 4).collect::<Vec<_>>(), "records of producer {p}");
        }
    }
}

async fn follow(log: SharedLog, of: Partition, count: u32) -> Vec<u32> {
    let (mut seen, mut at) = (Vec::new(), Offset::new(1));
    while seen.len() < count as usize {
        let records = log.read(&of, at, 4_096, SOON).await.unwrap();
        assert!(!records.is_empty(), "nothing came after {} of {count} records", seen.len());
        at = records.last().unwrap().offset.next();
        seen.extend(records.iter().map(|r| u32::from_be_bytes(r.value.as_ref().try_into().unwrap())));
    }
    seen
}

/// For logs that outlive the process: what was there before `open` is there after it. `open` is called twice, and the
/// first log is dropped before the second is opened.
pub async fn survives_reopening<F>(mut open: impl FnMut() -> F)
where
    F: Future<Output = SharedLog>,
{
    let log = open().await;
    let of = topic(&log, "conformance.reopen", 2).await;
    let trimmed = Partition::new("conformance.reopen", 1);
    for n in 0..20 {
        log.append(&of, numbers(n * 10..n * 10 + 10)).await.unwrap();
        log.append(&trimmed, numbers(n * 10..n * 10 + 10)).await.unwrap();
    }
    log.trim(&trimmed, Offset::new(95)).await.unwrap();
    let uuid = log.uuid();
    let topics = log.topics().await.unwrap();
    let before = [read_all(&log, &of, Offset::ZERO, 1_000).await, read_all(&log, &trimmed, Offset::ZERO, 1_000).await];
    let bounds = [log.bounds(&of).await.unwrap(), log.bounds(&trimmed).await.unwrap()];
    drop(log);
    let log = open().await;
    assert_eq!(log.uuid(), uuid);
    assert_eq!(log.topics().await.unwrap(), topics);
    for (of, (before, bounds)) in [of, trimmed].iter().zip(before.iter().zip(bounds)) {
        assert_eq!(log.bounds(of).await.unwrap(), bounds);
        assert_eq!(&read_all(&log, of, Offset::ZERO, 1_000).await, before);
        assert_eq!(log.append(of, numbers(0..1)).await.unwrap(), bounds.next);
    }
}
