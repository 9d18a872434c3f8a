//! The log on a real cluster of Fluvio, whose controller `FLUVIO_ENDPOINT` names (`host:9003`). Where there is none nothing is
//! tested, and every test says so.
//!
//! `FLUVIO_REPLICATION` is how many copies each partition gets: 1 unless it is set, so that a cluster of one SPU will do.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use fluvio::metadata::topic::TopicSpec as FluvioTopic;
use fluvio::{FluvioAdmin, FluvioClusterConfig};
use futures::future::join_all;
use sluice_log::{
    FluvioLog, FluvioOptions, Log, LogError, Partition, Record, Retention, SharedLog, TopicSpec, conformance,
};
use sluice_proto::Offset;

const SOON: Duration = Duration::from_secs(20);

/// A log of its own in each run; `None`, said loudly, where there is no cluster.
fn cluster(test: &str) -> Option<FluvioOptions> {
    let Some(endpoint) = std::env::var("FLUVIO_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()) else {
        skipped(test);
        return None;
    };
    let replication = std::env::var("FLUVIO_REPLICATION").map_or(1, |number| number.parse().unwrap());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let prefix = format!("t{:x}-{}-", since.as_millis(), test.chars().take(6).collect::<String>());
    Some(FluvioOptions { prefix, replication, ..FluvioOptions::new(endpoint) })
}

/// Past the capture of the test's output, which nobody reads when it passes.
fn skipped(test: &str) {
    use std::io::Write;
    let line = format!("\n!!! SKIPPED: {test}: FLUVIO_ENDPOINT is not set, NOTHING was tested on Fluvio !!!\n");
    println!("{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
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

/// One thread for all, as a task has it: nothing may wait in the way of what it waits for.
#[tokio::test]
async fn it_conforms_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("conform") else { return };
    let log = FluvioLog::open(options).await.unwrap();
    conformance::run(log.clone()).await;
    log.close().unwrap();
    let refused = log.append(&Partition::new("conformance.read", 0), numbers(0..1)).await;
    assert!(matches!(refused, Err(LogError::Stopped(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_on_several_threads_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("threads") else { return };
    conformance::run(FluvioLog::open(options).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_is_there_again_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("reopen") else { return };
    conformance::survives_reopening(|| async { FluvioLog::open(options.clone()).await.unwrap() as SharedLog }).await;
}

/// A log that is looked for, and is not there, is not made.
#[tokio::test]
async fn a_log_that_is_not_there_is_not_made_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("find") else { return };
    assert!(FluvioLog::find(options.clone()).await.unwrap().is_none());
    let uuid = FluvioLog::open(options.clone()).await.unwrap().uuid();
    assert_eq!(FluvioLog::find(options).await.unwrap().unwrap().uuid(), uuid);
}

/// Processes that begin a log at once have one log; each sees what the others do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_begin_at_once_have_one_log_or_are_skipped_without_a_cluster() {
    let Some(options) = cluster("begin") else { return };
    let open = || FluvioLog::open(options.clone());
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
    // So is a partition that another process trimmed.
    one.append(&of, numbers(6..16)).await.unwrap();
    one.trim(&of, Offset::new(9)).await.unwrap();
    assert_eq!(three.bounds(&of).await.unwrap().start, Offset::new(9));
    let told = three.read(&of, Offset::new(3), 100, SOON).await;
    assert!(matches!(told, Err(LogError::OutOfRange { start, .. }) if start == Offset::new(9)), "{told:?}");
}

/// Records as large as they may be, several in a batch, one behind the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_records_are_read_or_are_skipped_without_a_cluster() {
    let Some(options) = cluster("large") else { return };
    let log = FluvioLog::open(options).await.unwrap();
    log.create_topic(&spec("blocks", 1)).await.unwrap();
    let of = Partition::new("blocks", 0);
    let batches: Vec<Vec<Bytes>> = [(1, 10), (1, 16 << 20), (3, 5 << 20), (1, 10)]
        .map(|(count, bytes)| vec![Bytes::from(vec![7; bytes]); count])
        .to_vec();
    for batch in &batches {
        log.append(&of, batch.clone()).await.unwrap();
    }
    let read = conformance::read_all(&(log.clone() as SharedLog), &of, Offset::new(1), 1 << 20).await;
    assert!(values(&read) == batches.concat(), "{} records", read.len());
    let refused = log.append(&of, vec![Bytes::from(vec![7; (16 << 20) + 1])]).await;
    assert!(matches!(refused, Err(LogError::TooLarge { .. })), "{refused:?}");
}

/// Invariant P1: a topic that was made anew behind the log's back is noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_topic_made_anew_is_noticed_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("anew") else { return };
    let log = FluvioLog::open(options.clone()).await.unwrap();
    log.create_topic(&spec("shares", 1)).await.unwrap();
    log.append(&Partition::new("shares", 0), numbers(0..5)).await.unwrap();
    log.close().unwrap();
    let admin = FluvioAdmin::connect_with_config(&FluvioClusterConfig::new(&options.endpoint)).await.unwrap();
    let topics = admin.all::<FluvioTopic>().await.unwrap();
    let named = format!("{}shares-", options.prefix);
    let name = topics.into_iter().map(|topic| topic.name).find(|name| name.starts_with(&named)).unwrap();
    admin.delete::<FluvioTopic>(name).await.unwrap();
    // Deleting takes a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let log = FluvioLog::open(options).await.unwrap();
    let told = log.create_topic(&spec("shares", 1)).await;
    assert!(matches!(&told, Err(LogError::Corrupt(what)) if what.contains("has had some")), "{told:?}");
}

/// A retention that is longer than the topic was made with cannot be kept: it is refused. A shorter one is kept in mind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_retention_is_refused_or_is_skipped_without_a_cluster() {
    let Some(options) = cluster("retain") else { return };
    let log = FluvioLog::open(options.clone()).await.unwrap();
    let hours = |hours: u64| {
        let retention = Retention { age: Some(Duration::from_secs(3600 * hours)), bytes: None };
        TopicSpec { retention, ..spec("shares", 1) }
    };
    log.create_topic(&hours(3)).await.unwrap();
    log.create_topic(&hours(2)).await.unwrap();
    let told = log.create_topic(&hours(4)).await.unwrap_err().to_string();
    assert!(told.contains("sooner than is asked for"), "{told}");
    let again = FluvioLog::find(options).await.unwrap().unwrap();
    assert_eq!(again.topics().await.unwrap()[0].retention, hours(2).retention);
}

/// A cluster that is not up is waited for, a minute long.
#[tokio::test]
async fn a_cluster_that_is_not_up_is_waited_for() {
    let nobody = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        port.local_addr().unwrap().to_string()
    };
    let opened = tokio::time::timeout(Duration::from_secs(3), FluvioLog::find(FluvioOptions::new(nobody))).await;
    assert!(opened.is_err(), "it was not asked again");
}
