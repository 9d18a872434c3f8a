//! The log on real brokers of Apache Kafka: what every log holds to, and what brokers may do to it.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sluice_log::{
    Bounds, KafkaLog, KafkaOptions, Log, LogError, Partition, Record, Retention, SharedLog, TopicSpec, conformance,
};
use sluice_proto::Offset;
use sluice_testkit::kafka::Kafka;

const SOON: Duration = Duration::from_secs(20);

fn one(kafka: &Kafka, prefix: &str) -> KafkaOptions {
    KafkaOptions { prefix: format!("{prefix}."), replication: 1, min_insync: 1, ..KafkaOptions::new(kafka.brokers()) }
}

fn spec(name: &str, partitions: u32) -> TopicSpec {
    TopicSpec { name: name.into(), partitions, retention: Retention::default() }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Bytes> {
    range.map(|n| Bytes::copy_from_slice(&n.to_be_bytes())).collect()
}

fn values(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|record| record.value.clone()).collect()
}

fn admin(kafka: &Kafka) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", kafka.brokers().join(",")).create().unwrap()
}

/// One thread for all, as a task has it: nothing may wait in the way of what it waits for.
#[tokio::test]
async fn it_conforms() {
    let kafka = Kafka::shared().unwrap();
    let log = KafkaLog::open(one(&kafka, "conformance")).await.unwrap();
    conformance::run(log.clone()).await;
    log.close().unwrap();
    let refused = log.append(&Partition::new("conformance.read", 0), numbers(0..1)).await;
    assert!(matches!(refused, Err(LogError::Stopped(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_on_several_threads() {
    let kafka = Kafka::shared().unwrap();
    conformance::run(KafkaLog::open(one(&kafka, "threads")).await.unwrap()).await;
}

/// Processes that begin a log at once have one log; each sees what the others do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_begin_at_once_have_one_log() {
    let kafka = Kafka::shared().unwrap();
    let open = || KafkaLog::open(one(&kafka, "processes"));
    let logs: Vec<_> = join_all([open(), open(), open()]).await.into_iter().map(Result::unwrap).collect();
    assert!(logs.iter().all(|log| log.uuid() == logs[0].uuid()));
    let created = join_all(logs.iter().map(|log| async { log.create_topic(&spec("shares", 3)).await })).await;
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let of = Partition::new("shares", 1);
    let [one, two, three] = &logs[..] else { panic!() };
    one.append(&of, numbers(0..3)).await.unwrap();
    two.append(&of, numbers(3..6)).await.unwrap();
    let read = conformance::read_all(&(three.clone() as SharedLog), &of, Offset::ZERO, usize::MAX).await;
    // Each may have given the partition its genesis record: the same one.
    let genesis = read.iter().filter(|record| record.value == read[0].value).count();
    assert_eq!(values(&read[genesis..]), numbers(0..6));
    // A topic that another process made is known when it is asked for.
    one.create_topic(&spec("later", 1)).await.unwrap();
    let later = Partition::new("later", 0);
    two.append(&later, numbers(0..1)).await.unwrap();
    assert_eq!(three.topics().await.unwrap().iter().map(|topic| &*topic.name).collect::<Vec<_>>(), ["later", "shares"]);
    assert_eq!(three.read(&later, Offset::new(1), 100, SOON).await.unwrap().len(), 1);
}

/// Invariant P1: a topic that was made anew behind the log's back is noticed, empty or filled again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_topic_made_anew_is_noticed() {
    let kafka = Kafka::shared().unwrap();
    let options = one(&kafka, "anew");
    let log = KafkaLog::open(options.clone()).await.unwrap();
    for name in ["emptied", "filled"] {
        log.create_topic(&spec(name, 1)).await.unwrap();
        log.append(&Partition::new(name, 0), numbers(0..5)).await.unwrap();
    }
    log.close().unwrap();
    let (admin, asked) = (admin(&kafka), AdminOptions::new());
    let names = ["anew.emptied", "anew.filled"];
    admin.delete_topics(&names, &asked).await.unwrap();
    for name in names {
        let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1)).set("min.insync.replicas", "1");
        let topic = topic.set("unclean.leader.election.enable", "false").set("max.message.bytes", "17000000");
        // Deleting takes a moment.
        let begun = Instant::now();
        while admin.create_topics([&topic], &asked).await.unwrap()[0].is_err() {
            assert!(begun.elapsed() < SOON);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let other = KafkaLog::open(KafkaOptions { prefix: "other.".into(), ..options.clone() }).await.unwrap();
    other.create_topic(&spec("topic", 1)).await.unwrap();
    let log = KafkaLog::open(options).await.unwrap();
    let emptied = log.create_topic(&spec("emptied", 1)).await;
    assert!(matches!(&emptied, Err(LogError::Corrupt(what)) if what.contains("has had some")), "{emptied:?}");
    let producer: rdkafka::producer::FutureProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.brokers().join(",")).create().unwrap();
    let record = rdkafka::producer::FutureRecord::<(), _>::to("anew.filled").payload("foreign").partition(0);
    producer.send(record, SOON).await.unwrap();
    let filled = log.bounds(&Partition::new("filled", 0)).await;
    assert!(matches!(&filled, Err(LogError::Corrupt(what)) if what.contains("another record")), "{filled:?}");
}

/// Invariant P1: a reader whose position has been removed, or lies behind the end, is told; it is never reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_reader_whose_records_are_removed_is_told() {
    let kafka = Kafka::shared().unwrap();
    let log = KafkaLog::open(one(&kafka, "removed")).await.unwrap();
    log.create_topic(&spec("shares", 1)).await.unwrap();
    let of = Partition::new("shares", 0);
    log.append(&of, numbers(0..10)).await.unwrap();
    assert_eq!(log.read(&of, Offset::new(1), 1, SOON).await.unwrap().len(), 1);
    log.trim(&of, Offset::new(8)).await.unwrap();
    // A reader that comes anew.
    let other = KafkaLog::open(one(&kafka, "removed")).await.unwrap();
    let told = other.read(&of, Offset::new(3), 100, SOON).await;
    assert!(matches!(told, Err(LogError::OutOfRange { start, .. }) if start == Offset::new(8)), "{told:?}");
    let told = other.read(&of, Offset::new(12), 100, SOON).await;
    assert!(matches!(told, Err(LogError::OutOfRange { next, .. }) if next == Offset::new(11)), "{told:?}");
}

/// A partition whose records have all become too old: who begins waits for the next one, and gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_an_emptied_partition_gets_what_comes() {
    let kafka = Kafka::shared().unwrap();
    let log = KafkaLog::open(one(&kafka, "emptied")).await.unwrap();
    log.create_topic(&spec("shares", 1)).await.unwrap();
    let of = Partition::new("shares", 0);
    log.append(&of, numbers(0..10)).await.unwrap();
    let mut all = rdkafka::TopicPartitionList::new();
    all.add_partition_offset("emptied.shares", 0, rdkafka::Offset::End).unwrap();
    admin(&kafka).delete_records(&all, &AdminOptions::new()).await.unwrap();
    let end = Offset::new(11);
    assert_eq!(log.bounds(&of).await.unwrap(), Bounds { start: end, next: end });
    assert!(log.read(&of, Offset::ZERO, 1_000, Duration::from_millis(200)).await.unwrap().is_empty());
    let reader = tokio::spawn(log.read(&of, Offset::ZERO, 1_000, SOON));
    log.append(&of, numbers(10..11)).await.unwrap();
    let read = reader.await.unwrap().unwrap();
    assert_eq!((read[0].offset, read[1].offset, values(&read[1..])), (Offset::ZERO, end, numbers(10..11)));
}

/// What the brokers have is held against what is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_less_safe_than_asked_for_is_refused() {
    let kafka = Kafka::shared().unwrap();
    let log = KafkaLog::open(one(&kafka, "unfit")).await.unwrap();
    let topic = NewTopic::new("unfit.shares", 1, TopicReplication::Fixed(1));
    let topic = topic.set("cleanup.policy", "compact").set("unclean.leader.election.enable", "true");
    admin(&kafka).create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    let refused = log.create_topic(&spec("shares", 1)).await.unwrap_err().to_string();
    for fault in
        ["cleanup.policy is compact", "unclean.leader.election.enable must be false", "max.message.bytes is 1048588"]
    {
        assert!(refused.contains(fault), "{refused}");
    }
    let more = KafkaOptions { replication: 3, ..one(&kafka, "copies") };
    let refused = KafkaLog::open(more).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("has the cluster 3 brokers?"), "{refused}");
}

/// Appends that wait for a broker are answered once it is back; none is lost, none is there twice, in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_appends_outlive_a_broker() {
    let mut kafka = Kafka::start(1).unwrap();
    let log = KafkaLog::open(one(&kafka, "outlive")).await.unwrap();
    log.create_topic(&spec("shares", 1)).await.unwrap();
    let of = Partition::new("shares", 0);
    log.append(&of, numbers(0..10)).await.unwrap();
    kafka.kill(0).unwrap();
    let waiting = tokio::spawn(join_all((1..10).map(|n| log.append(&of, numbers(n * 10..n * 10 + 10)))));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "nothing is durable without a broker");
    kafka.restart(0).unwrap();
    let offsets = waiting.await.unwrap().into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    assert!(offsets.is_sorted(), "{offsets:?}");
    let read = conformance::read_all(&(log.clone() as SharedLog), &of, Offset::new(1), usize::MAX).await;
    assert_eq!(values(&read), numbers(0..100));
}

/// Invariant S1: with three copies, two of which make a record durable, no broker that is killed takes anything that was
/// acknowledged with it. What was read at the tail meanwhile is what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_nothing_acknowledged_is_lost_with_a_broker() {
    const PARTITIONS: u32 = 3;
    let mut kafka = Kafka::start(3).unwrap();
    let log = KafkaLog::open(KafkaOptions::new(kafka.brokers())).await.unwrap();
    log.create_topic(&spec("shares", PARTITIONS)).await.unwrap();
    are_good_at_once(&log).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..PARTITIONS).map(|n| tokio::spawn(write(log.clone(), n, stop.clone()))).collect();
    let readers: Vec<_> = (0..PARTITIONS).map(|n| tokio::spawn(follow(log.clone(), n, stop.clone()))).collect();
    for killed in [0, 2, 1] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        kafka.kill(killed).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        kafka.restart(killed).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    for (number, (writer, reader)) in (0..).zip(writers.into_iter().zip(readers)) {
        let (acknowledged, seen) = (writer.await.unwrap(), reader.await.unwrap());
        let of = Partition::new("shares", number);
        let all = values(&conformance::read_all(&(log.clone() as SharedLog), &of, Offset::new(1), usize::MAX).await);
        let (mut once, mut last) = (BTreeSet::new(), None);
        for value in &all {
            // Twice is allowed, and told apart by coordinates; a new one in another order is not.
            if once.insert(value.clone()) {
                assert!(last < Some(value.clone()), "{of}: {value:?} behind {last:?}");
                last = Some(value.clone());
            }
        }
        assert!(acknowledged > 100, "{of}: {acknowledged} acknowledged");
        assert_eq!(once, numbers(0..acknowledged).into_iter().collect(), "{of}");
        assert_eq!(seen, all, "{of} as it was read while brokers died");
        eprintln!("{of}: {acknowledged} acknowledged, {} there, {} twice", once.len(), all.len() - once.len());
    }
}

/// Topics can be used as soon as they have been made, though brokers hear of them one after the other.
async fn are_good_at_once(log: &Arc<KafkaLog>) {
    for number in 0..20 {
        let topic = format!("new{number}");
        log.create_topic(&spec(&topic, 3)).await.unwrap();
        let of = Partition::new(topic, number % 3);
        let bounds = Bounds { start: Offset::ZERO, next: Offset::new(1) };
        assert_eq!(log.bounds(&of).await.unwrap(), bounds, "the genesis record");
    }
}

/// Appends batches of ten, one after the other; how many records were acknowledged.
async fn write(log: Arc<KafkaLog>, number: u32, stop: Arc<AtomicBool>) -> u32 {
    let (of, mut next) = (Partition::new("shares", number), 0);
    while !stop.load(Ordering::Relaxed) {
        log.append(&of, numbers(next..next + 10)).await.unwrap();
        next += 10;
    }
    next
}

/// All that is read at the tail, to the end of what was written.
async fn follow(log: Arc<KafkaLog>, number: u32, stop: Arc<AtomicBool>) -> Vec<Bytes> {
    let (of, mut next, mut seen) = (Partition::new("shares", number), Offset::new(1), Vec::new());
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        let records = log.read(&of, next, 100_000, Duration::from_millis(500)).await.unwrap();
        if records.is_empty() && stopped {
            return seen;
        }
        next = records.last().map_or(next, |last| last.offset.next());
        seen.extend(values(&records));
    }
}
