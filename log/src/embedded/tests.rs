use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::Offset;

use super::mark::{self, Mark, Marked};
use super::{EmbeddedLog, EmbeddedOptions, LogFollower};
use crate::conformance::{self, read_all};
use crate::{Log, LogError, Partition, Retention, SharedLog, TopicSpec};

const NOW: Duration = Duration::ZERO;

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(EmbeddedOptions::new(dir)).unwrap()
}

async fn topic(log: &dyn Log, name: &str, retention: Retention) -> Partition {
    log.create_topic(&TopicSpec { name: name.into(), partitions: 1, retention }).await.unwrap();
    Partition::new(name, 0)
}

/// `count` records of `size` bytes, which begin with their number from `from` on.
fn records(from: u64, count: u64, size: usize) -> Vec<Bytes> {
    let record = |n: u64| {
        let mut bytes = n.to_be_bytes().to_vec();
        bytes.resize(size, 0xab);
        bytes.into()
    };
    (from..from + count).map(record).collect()
}

fn number(value: &Bytes) -> u64 {
    u64::from_be_bytes(*value.first_chunk().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(open(dir.path())).await;
}

/// With next to nothing in memory, every read comes from disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_when_reading_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let small = EmbeddedOptions { tail_bytes: 0, write_buffer_bytes: 1 << 20, ..EmbeddedOptions::new(dir.path()) };
    let log = EmbeddedLog::open(small).unwrap();
    conformance::run(log.clone()).await;
    assert!(log.metrics().disk_reads > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_when_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { compress: true, tail_bytes: 0, ..EmbeddedOptions::new(dir.path()) };
    conformance::run(EmbeddedLog::open(options).unwrap()).await;
}

#[tokio::test]
async fn it_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    conformance::survives_reopening(async || open(dir.path()) as SharedLog).await;
}

#[tokio::test]
async fn a_log_in_use_is_not_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).err().unwrap();
    assert!(matches!(&error, LogError::Locked(_)) && error.to_string().contains("in use"), "{error}");
    log.close().unwrap();
    let of = Partition::new("t", 0);
    assert!(matches!(log.topics().await, Ok(topics) if topics.is_empty()));
    assert!(matches!(log.append(&of, records(0, 1, 9)).await, Err(LogError::Unknown(_))));
    open(dir.path());
}

#[tokio::test]
async fn closing_ends_readers_and_writers() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let of = topic(&*log, "t", Retention::default()).await;
    let waiting = tokio::spawn(log.read(&of, Offset::new(1), 1, Duration::from_secs(60)));
    tokio::task::yield_now().await;
    let pending = log.append(&of, records(7, 1, 8));
    log.close().unwrap();
    assert_eq!(pending.await.unwrap(), Offset::new(1));
    // It was either woken by the last record or by the end.
    match waiting.await.unwrap() {
        Ok(records) => assert_eq!(number(&records[0].value), 7),
        Err(error) => assert!(matches!(error, LogError::Stopped(_)), "{error}"),
    }
    assert!(matches!(log.append(&of, records(8, 1, 8)).await, Err(LogError::Stopped(_))));
    assert!(matches!(log.read(&of, Offset::new(1), 1, NOW).await, Err(LogError::Stopped(_))));
    assert!(matches!(log.trim(&of, Offset::new(1)).await, Err(LogError::Stopped(_))));
}

#[tokio::test]
async fn retention_by_size_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let retention = Retention { age: None, bytes: Some(100_000) };
    let of = topic(&*log, "t", retention).await;
    for n in 0..50 {
        log.append(&of, records(n * 100, 100, 100)).await.unwrap();
    }
    log.enforce_retention().unwrap();
    let log: SharedLog = log;
    let left = read_all(&log, &of, Offset::ZERO, 1 << 20).await;
    assert_eq!(left.len(), 1 + 1_000, "the genesis record and ten batches of 10,000 bytes");
    assert_eq!(number(&left[1].value), 4_000);
    assert_eq!(left[1].offset, log.bounds(&of).await.unwrap().start);
}

#[tokio::test]
async fn retention_by_age_removes_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let of = topic(&*log, "t", Retention { age: Some(Duration::from_millis(300)), bytes: None }).await;
    log.append(&of, records(0, 10, 100)).await.unwrap();
    log.append(&of, records(10, 10, 100)).await.unwrap();
    log.enforce_retention().unwrap();
    assert_eq!(log.bounds(&of).await.unwrap().start, Offset::ZERO);
    tokio::time::sleep(Duration::from_millis(350)).await;
    let kept = log.append(&of, records(20, 10, 100)).await.unwrap();
    log.enforce_retention().unwrap();
    assert_eq!(log.bounds(&of).await.unwrap().start, kept);
    assert_eq!(log.metrics().trimmed, 20);
    tokio::time::sleep(Duration::from_millis(350)).await;
    log.enforce_retention().unwrap();
    assert_eq!(log.bounds(&of).await.unwrap().start, Offset::new(30), "the newest record stays");
}

/// Trimmed records give their disk back: whole files go.
#[tokio::test]
async fn trimming_frees_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        write_buffer_bytes: 4 << 20,
        wal_bytes: 4 << 20,
        tail_bytes: 1 << 20,
        ..EmbeddedOptions::new(dir.path())
    };
    let log = EmbeddedLog::open(options).unwrap();
    let of = topic(&*log, "t", Retention::default()).await;
    for n in 0..100 {
        log.append(&of, records(n * 1_000, 1_000, 400)).await.unwrap();
    }
    let before = settled(dir.path(), |bytes| bytes > 30 << 20).await;
    assert!(before > 30 << 20, "{before} bytes of tables");
    log.trim(&of, Offset::new(99_000)).await.unwrap();
    let after = settled(dir.path(), |bytes| bytes < 8 << 20).await;
    assert!(after < 8 << 20, "{after} bytes of tables after trimming, {before} before");
    let log: SharedLog = log;
    assert_eq!(read_all(&log, &of, Offset::new(99_000), 1 << 20).await.len(), 1_001);
}

/// Bytes of tables in `dir`, once they are as expected, or after some seconds.
async fn settled(dir: &Path, expected: impl Fn(u64) -> bool) -> u64 {
    for _ in 0..100 {
        let bytes = table_bytes(dir);
        if expected(bytes) {
            return bytes;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    table_bytes(dir)
}

fn table_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    files
        .filter(|f| f.path().extension().is_some_and(|e| e == "sst"))
        .map(|f| f.metadata().map_or(0, |m| m.len()))
        .sum()
}

#[tokio::test]
async fn the_database_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let mut db = rocksdb::DB::open(&options, dir.path()).unwrap();
    db.put(b"key", b"value").unwrap();
    let refused = |kind: &str| {
        let error = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).err().unwrap();
        assert!(matches!(error, LogError::Corrupt(_)) && error.to_string().contains("another kind"), "{kind}: {error}");
    };
    drop(db);
    refused("a foreign key");
    db = rocksdb::DB::open(&options, dir.path()).unwrap();
    db.create_cf("tables", &options).unwrap();
    drop(db);
    refused("a foreign column family");
}

async fn filled(dir: &Path) -> Partition {
    let log = open(dir);
    let of = topic(&*log, "t", Retention::default()).await;
    for n in 0..20 {
        log.append(&of, records(n * 100, 100, 200)).await.unwrap();
    }
    of
}

fn refused_as_damaged(dir: &Path) {
    let error = EmbeddedLog::open(EmbeddedOptions::new(dir)).err().unwrap();
    assert!(matches!(error, LogError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains(&dir.display().to_string()), "{error} does not say where");
}

#[tokio::test]
async fn a_lost_current_file_is_no_empty_log() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    refused_as_damaged(dir.path());
}

#[tokio::test]
async fn a_lost_table_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let files = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path());
    let table = files.filter(|f| f.extension().is_some_and(|e| e == "sst")).max().unwrap();
    std::fs::remove_file(table).unwrap();
    refused_as_damaged(dir.path());
}

/// The mark stands in for a write-ahead log that has lost synced writes.
#[tokio::test]
async fn a_log_behind_its_mark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let marked = Marked::read(dir.path());
    assert!(marked.sequence >= 20);
    drop(Mark::open(dir.path(), Marked { sequence: marked.sequence + 1, ..marked.clone() }).unwrap());
    refused_as_damaged(dir.path());
    // A partition alone: recovery goes on behind a write-ahead log that it takes for ended.
    let (name, next) = marked.heads.first_key_value().unwrap();
    for heads in [[(*name, next + 1)], [(name ^ 1, 1)]] {
        drop(Mark::open(dir.path(), Marked { sequence: 1, heads: heads.into() }).unwrap());
        refused_as_damaged(dir.path());
    }
    std::fs::remove_file(dir.path().join(mark::FILE)).unwrap();
    open(dir.path());
}

#[tokio::test]
async fn a_follower_reads_beside_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    assert!(LogFollower::open(dir.path()).is_err(), "there is no log yet");
    let log = open(dir.path());
    let of = topic(&*log, "t", Retention::default()).await;
    log.append(&of, records(0, 10, 100)).await.unwrap();
    let follower: SharedLog = LogFollower::open(dir.path()).unwrap();
    assert_eq!(follower.uuid(), log.uuid());
    assert_eq!(follower.topics().await.unwrap(), log.topics().await.unwrap());
    let shared: SharedLog = log.clone();
    let mut at = Offset::new(1);
    for round in 0..200 {
        let first = log.append(&of, records(10 + round * 10, 10, 20_000)).await.unwrap();
        while at < first {
            let seen = follower.read(&of, at, 50_000, Duration::from_secs(10)).await.unwrap();
            assert_eq!(number(&seen[0].value), at.get() - 1);
            at = seen.last().unwrap().offset.next();
        }
    }
    assert_eq!(
        read_all(&follower, &of, Offset::ZERO, 1 << 20).await,
        read_all(&shared, &of, Offset::ZERO, 1 << 20).await
    );
    log.trim(&of, Offset::new(500)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(follower.bounds(&of).await.unwrap(), log.bounds(&of).await.unwrap());
    assert!(matches!(follower.read(&of, Offset::new(1), 1, NOW).await, Err(LogError::OutOfRange { .. })));
    assert!(matches!(follower.append(&of, Vec::new()).await, Err(LogError::ReadOnly)));
    assert!(matches!(follower.trim(&of, Offset::ZERO).await, Err(LogError::ReadOnly)));
}

/// Damage to the write-ahead log ends what RocksDB reads of it: who replays the log beside the pool must not take that for
/// its end.
#[tokio::test]
async fn p1_a_follower_refuses_a_log_that_has_lost_records() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(dir.path());
    let of = topic(&*log, "t", Retention::default()).await;
    for round in 0..10 {
        log.append(&of, records(round * 10, 10, 1_000)).await.unwrap();
    }
    for file in dir.path().read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    assert_eq!(LogFollower::open(copy.path()).unwrap().bounds(&of).await.unwrap().next, Offset::new(101));
    let newest = copy.path().read_dir().unwrap().map(|file| file.unwrap().path());
    let newest = newest.filter(|file| file.extension().is_some_and(|it| it == "log")).max().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 6) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        for damaged in [&flipped[..], &whole[..at]] {
            std::fs::write(&newest, damaged).unwrap();
            match LogFollower::open(copy.path()) {
                Err(LogError::Corrupt(_)) => {}
                Err(error) => panic!("{at}: {error}"),
                Ok(log) => assert_eq!(log.bounds(&of).await.unwrap().next, Offset::new(101), "{at}"),
            }
        }
    }
}

#[tokio::test]
async fn counters_count() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let of = topic(&*log, "t", Retention::default()).await;
    log.append(&of, records(0, 10, 100)).await.unwrap();
    log.append(&of, records(0, 5, 10)).await.unwrap();
    log.read(&of, Offset::new(1), 1, NOW).await.unwrap();
    let metrics = log.metrics();
    assert_eq!((metrics.records, metrics.bytes, metrics.appends, metrics.tail_reads), (15, 1_050, 2, 1));
    assert_eq!(metrics.latency.iter().sum::<u64>(), 2);
    assert!((1..=2).contains(&metrics.syncs) && metrics.commit_ns > 0 && metrics.queued_bytes == 0);
}
