//! The embedded log against its budget (DESIGN 10): records of 200 bytes over 8 partitions, on the disk that holds the
//! build directory.
//!
//! | bench | what an iteration is | what its time is |
//! |---|---|---|
//! | `durable/N` | one append of N records, the next only when it is durable | wall clock |
//! | `durable/8xN` | 8 appends of N records in flight, one a partition | wall clock |
//! | `cpu/...` | the same | CPU of all threads of the process |
//! | `open_loop/p99`, `/p50` | an append of 100 records every 333 us (300,000 records/s), whether the last is durable or not | that quantile of the time from the planned moment of the call to durable |
//! | `open_loop/bare_file/...` | the same load on a bare file, its floor on this disk | that quantile |
//! | `scan/disk`, `scan/memory` | a read of at most 1 MiB | wall clock |

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use futures::future::{BoxFuture, try_join_all};
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, LogError, Partition, Retention, TopicSpec};
use sluice_proto::Offset;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const TOPIC: &str = "share.submissions";
const PARTITIONS: u32 = 8;
const RECORD: usize = 200;
/// Records of an append in the open loop, and how often one comes: 300,000 records/s.
const PACE: (usize, Duration) = (100, Duration::from_nanos(333_333));

/// A log with a topic, in a directory of its own.
struct Rig {
    log: Option<Arc<EmbeddedLog>>,
    runtime: Runtime,
    dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with(|dir| EmbeddedOptions::new(dir))
    }

    fn with(options: impl Fn(&Path) -> EmbeddedOptions) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let log = EmbeddedLog::open(options(dir.path())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let spec = TopicSpec { name: TOPIC.into(), partitions: PARTITIONS, retention: Retention::default() };
        runtime.block_on(log.create_topic(&spec)).unwrap();
        Self { log: Some(log), runtime, dir }
    }

    fn log(&self) -> &EmbeddedLog {
        self.log.as_ref().unwrap()
    }

    /// The same log, opened again, with at most `tail_bytes` of each partition in memory.
    fn reopen(&mut self, tail_bytes: usize) {
        self.log.take().unwrap().close().unwrap();
        let options = EmbeddedOptions { tail_bytes, ..EmbeddedOptions::new(self.dir.path()) };
        self.log = Some(EmbeddedLog::open(options).unwrap());
    }

    fn append(&self, turn: u64, batch: &[Bytes]) -> BoxFuture<'static, Result<Offset, LogError>> {
        self.log().append(&partition(turn), batch.to_vec())
    }

    /// `turns` appends, `in_flight` at a time, to one partition after the other.
    fn run(&self, turns: u64, in_flight: u64, batch: &[Bytes]) {
        self.runtime.block_on(async {
            for turn in 0..turns {
                let first = turn * in_flight;
                try_join_all((first..first + in_flight).map(|n| self.append(n, batch))).await.unwrap();
            }
        });
    }
}

fn partition(turn: u64) -> Partition {
    Partition::new(TOPIC, (turn % u64::from(PARTITIONS)) as u32)
}

/// Records that do not compress and share no memory, as a gateway's.
fn batch(records: usize) -> Vec<Bytes> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (seed >> 56) as u8
    };
    (0..records).map(|_| (0..RECORD).map(|_| byte()).collect::<Vec<u8>>().into()).collect()
}

/// CPU time that the threads of this process have used.
fn cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = threads.filter_map(|thread| {
        // A thread may end between the list and the look at it.
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn append(c: &mut Criterion) {
    for (name, in_flight, records) in [("500", 1, 500), ("100", 1, 100), ("8x500", 8, 500), ("8x100", 8, 100)] {
        let batch = batch(records);
        let measured = |group: &mut BenchmarkGroup<'_, WallTime>, clock: &dyn Fn() -> Duration| {
            let rig = Rig::new();
            group.throughput(Throughput::Elements(in_flight * records as u64));
            group.bench_function(name, |b| {
                b.iter_custom(|turns| {
                    let before = clock();
                    rig.run(turns, in_flight, &batch);
                    clock() - before
                });
            });
            rig.log().close().unwrap();
        };
        let started = Instant::now();
        measured(&mut c.benchmark_group("durable"), &|| started.elapsed());
        measured(&mut c.benchmark_group("cpu"), &cpu);
    }
}

/// Latencies of `count` appends that come at their times whatever the log does, ascending.
fn open_loop(rig: &Rig, count: u64, batch: &[Bytes]) -> Vec<Duration> {
    let (sent, received) = mpsc::channel::<(Instant, BoxFuture<'static, Result<Offset, LogError>>)>();
    let start = Instant::now() + PACE.1;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let took = |(planned, answer): (Instant, BoxFuture<'static, Result<Offset, LogError>>)| {
                runtime.block_on(answer).unwrap();
                planned.elapsed()
            };
            received.into_iter().map(took).collect::<Vec<_>>()
        });
        for turn in 0..count {
            let planned = start + PACE.1 * u32::try_from(turn).unwrap();
            std::thread::sleep(planned.saturating_duration_since(Instant::now()));
            sent.send((planned, rig.append(turn, batch))).unwrap();
        }
        drop(sent);
        let mut latencies = waiter.join().unwrap();
        latencies.sort_unstable();
        latencies
    })
}

/// The same load on a bare file whose blocks are there already: one thread writes all that is due, with one sync.
fn bare_file(count: u64, bytes: usize) -> Vec<Duration> {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = batch(1)[0].repeat(bytes.div_ceil(RECORD) * 64);
    let room = 16 * data.len() as u64;
    (0..16).for_each(|n| file.write_all_at(&data, n * data.len() as u64).unwrap());
    file.sync_all().unwrap();
    let start = Instant::now() + PACE.1;
    let planned = |turn: u64| start + PACE.1 * u32::try_from(turn).unwrap();
    let (mut latencies, mut at) = (Vec::new(), 0);
    while (latencies.len() as u64) < count {
        let first = latencies.len() as u64;
        std::thread::sleep(planned(first).saturating_duration_since(Instant::now()));
        let due = (first..count.min(first + 64)).take_while(|turn| planned(*turn) <= Instant::now()).count().max(1);
        at = if at + (due * bytes) as u64 > room { 0 } else { at };
        file.write_all_at(&data[..due * bytes], at).unwrap();
        file.sync_data().unwrap();
        at += (due * bytes) as u64;
        latencies.extend((first..first + due as u64).map(|turn| planned(turn).elapsed()));
    }
    latencies.sort_unstable();
    latencies
}

fn latency(c: &mut Criterion) {
    let rig = Rig::new();
    let batch = batch(PACE.0);
    let mut group = c.benchmark_group("open_loop");
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        group.bench_function(name, |b| {
            // At least as many appends as a quantile needs to mean something.
            b.iter_custom(|turns| {
                let latencies = open_loop(&rig, turns.max(3_000), &batch);
                latencies[latencies.len() * percent / 100] * u32::try_from(turns).unwrap()
            });
        });
        group.bench_function(format!("bare_file/{name}"), |b| {
            b.iter_custom(|turns| {
                let latencies = bare_file(turns.max(3_000), PACE.0 * RECORD);
                latencies[latencies.len() * percent / 100] * u32::try_from(turns).unwrap()
            });
        });
    }
    group.finish();
}

fn scan(c: &mut Criterion) {
    const APPENDS: u64 = 4_000;
    let mut rig = Rig::new();
    rig.run(APPENDS, 1, &batch(500));
    let mut group = c.benchmark_group("scan");
    // Opened again, nothing is in memory yet (pages the operating system has cached aside).
    rig.reopen(0);
    scan_from(&mut group, "disk", &rig, Offset::new(1));
    // What is appended from now on stays in memory.
    rig.reopen(1 << 30);
    rig.run(APPENDS, 1, &batch(500));
    scan_from(&mut group, "memory", &rig, Offset::new(1 + APPENDS / u64::from(PARTITIONS) * 500));
    group.finish();
}

/// Reads 1 MiB at a time: every partition from `start` to its end, one after the other, and again.
fn scan_from(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, rig: &Rig, start: Offset) {
    let (mut turn, mut at) = (0, start);
    let mut read = || loop {
        let records = rig.log().read(&partition(turn), at, 1 << 20, Duration::ZERO);
        let records = rig.runtime.block_on(records).unwrap();
        if let Some(last) = records.last() {
            at = last.offset.next();
            return records.len() as u64;
        }
        (turn, at) = (turn + 1, start);
    };
    // As many records as fit; only the last read of a partition has fewer.
    group.throughput(Throughput::Elements(read()));
    group.bench_function(name, |b| b.iter(&mut read));
}

/// Opening after a crash, with write-ahead logs as large as they get.
fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);
    for mib in [64, 128, 256, 512] {
        let options = |dir: &Path| EmbeddedOptions { wal_bytes: mib << 20, ..EmbeddedOptions::new(dir) };
        let rig = Rig::with(options);
        let batch = batch(500);
        let (mut turn, mut largest) = (0, 0);
        // They grow until one more byte makes the log write memtables out.
        while largest < (mib << 20) * 9 / 10 && turn < 3 * (mib << 20) / (500 * RECORD as u64) {
            rig.runtime.block_on(rig.append(turn, &batch)).unwrap();
            turn += 1;
            largest = largest.max(waiting_bytes(rig.dir.path()));
        }
        println!("{mib} MiB allowed: {} MiB to recover", waiting_bytes(rig.dir.path()) >> 20);
        group.bench_function(format!("{mib}MiB"), |b| {
            b.iter_custom(|turns| (0..turns).map(|_| opening(rig.dir.path(), &options)).sum::<Duration>());
        });
    }
    group.finish();
}

/// How long a copy of the log in `dir` takes to open, as if its process had been killed.
fn opening(dir: &Path, options: &dyn Fn(&Path) -> EmbeddedOptions) -> Duration {
    let copy = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for file in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let begun = Instant::now();
    let log = EmbeddedLog::open(options(copy.path())).unwrap();
    let took = begun.elapsed();
    log.close().unwrap();
    took
}

/// Bytes of write-ahead logs in `dir`.
fn waiting_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|file| file.metadata().map_or(0, |data| data.len())).sum()
}

fn config() -> Criterion {
    Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(6))
}

criterion_group! { name = benches; config = config(); targets = append, latency, scan, recovery }
criterion_main!(benches);
