//! The fused share processor (verify, dedupe, vardiff and tally in one task) over shares that wait in the log: state in
//! RocksDB on disk, inputs from and outputs to the embedded log. Wall time and CPU a share, and judging alone beside it.
//!
//! `SHARES` sets how many shares one run has (200,000); each is mined before, 256 hashes a share.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod pool;
#[path = "../src/testing/records.rs"]
mod records;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_log::{EmbeddedLog, EmbeddedOptions, SharedLog};
use sluice_mining::JobTable;
use sluice_proto::v1::Submission;
use sluice_proto::{Body, Epoch, EventTime, Offset};
use sluice_state::{MemoryLimits, StateEnv};
use sluice_topology::Graph;
use sluice_topology::runtime::{Producer, RuntimeHandle, RuntimeOptions, TaskStatus, TopologyRuntime};
use tokio::runtime::Runtime;

const SESSIONS: u64 = 1_000;
/// Event time between shares: every session has 20 a minute.
const EVERY_MS: u64 = 60_000 / 20 / SESSIONS;

/// `count` shares that are accepted, by sessions in turn, with accounts and workers of the usual length.
fn shares(count: u64) -> Vec<Submission> {
    let job = records::prepared(&pool::job(1), 1, records::at(0));
    let mine = |number: u64| {
        let mut share = records::submission(job.job(), 1, number % SESSIONS);
        share.extranonce2 = number;
        share.account = format!("bc1q{:038}", number % SESSIONS / 4);
        share.worker = format!("rig{}", number % SESSIONS);
        pool::mined(&job, share)
    };
    let half = count / 2;
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| (half..count).map(mine).collect::<Vec<_>>());
        let mut all: Vec<_> = (0..half).map(mine).collect();
        all.extend(rest.join().unwrap());
        all
    })
}

struct Bench {
    runtime: Runtime,
    graph: Graph,
    log: SharedLog,
    shares: u64,
    dir: tempfile::TempDir,
    runs: u64,
}

/// What one run took.
struct Run {
    wall: Duration,
    /// Of the whole process.
    cpu: Duration,
    status: TaskStatus,
}

impl Bench {
    fn new(shares: &[Submission]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log: SharedLog = EmbeddedLog::open(EmbeddedOptions::new(dir.path().join("log"))).unwrap();
        let graph = pool::graph(1);
        let bench = Self { runtime, graph, log, shares: shares.len() as u64, dir, runs: 0 };
        bench.runtime.block_on(bench.fill(shares));
        bench
    }

    /// The shares as a gateway writes them, with a tick every second.
    async fn fill(&self, shares: &[Submission]) {
        for topic in self.graph.plan(&[]).unwrap().topics {
            self.log.create_topic(&topic).await.unwrap();
        }
        let producer = |topic| Producer::new(self.log.clone(), topic, 1, "pool", Epoch::new(1));
        producer("mining.jobs").append(0, vec![(records::at(0), Body::Job(pool::job(1)))]).await.unwrap();
        let submissions = producer("share.submissions");
        for (number, batch) in (0..).zip(shares.chunks(500)) {
            let time = |index: usize| records::at((number * 500 + index as u64) * EVERY_MS);
            let bodies = batch.iter().enumerate().map(|(index, share)| (time(index), Body::Submission(share.clone())));
            let mut bodies: Vec<(EventTime, Body)> = bodies.collect();
            for gateway in 0..3 {
                bodies.push((time(batch.len() - 1), Body::Tick(records::tick(gateway, 1))));
            }
            submissions.append(0, bodies).await.unwrap();
        }
    }

    /// The task from an empty state to the end of the shares.
    fn run(&mut self) -> Run {
        self.runs += 1;
        let env =
            StateEnv::on_disk(self.dir.path().join(format!("state{}", self.runs)), MemoryLimits::default()).unwrap();
        let plan = self.graph.plan(&["verify".to_owned()]).unwrap();
        self.runtime.block_on(async {
            let (before, begun) = (pool::cpu(), Instant::now());
            let externals = Arc::default();
            let handle =
                TopologyRuntime::start(plan, self.log.clone(), env, externals, RuntimeOptions::default()).await;
            let handle: RuntimeHandle = handle.unwrap();
            let status = loop {
                let status = handle.status().await.remove(0);
                assert!(status.error.is_none(), "{status:?}");
                if status.inputs.iter().all(|input| input.lag == 0) {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            let run = Run { wall: begun.elapsed(), cpu: pool::cpu() - before, status };
            handle.stop(Duration::from_secs(60)).await.unwrap();
            run
        })
    }

    fn report(&self, run: &Run) {
        let each = |time: Duration| time.as_nanos() / u128::from(self.shares);
        println!("share processor: {} ns wall, {} ns CPU a share", each(run.wall), each(run.cpu));
        for operator in &run.status.operators {
            println!("  {}: {} ns", operator.name, each(operator.busy));
        }
        println!("  batches: {}, records written: {}", run.status.batches, run.status.appended);
    }
}

fn share_processor(c: &mut Criterion) {
    let count = std::env::var("SHARES").map_or(200_000, |count| count.parse().unwrap());
    let shares = shares(count);
    let mut group = c.benchmark_group("share_processor");
    group.sample_size(10).throughput(Throughput::Elements(1));

    let mut table = JobTable::new();
    table.apply(Offset::new(1), records::at(0), pool::job(1)).unwrap();
    let mut at = 0;
    group.bench_function("judge", |b| {
        b.iter(|| {
            at = (at + 1) % shares.len();
            std::hint::black_box(table.judge(&shares[at], records::at(1)));
        });
    });

    let mut bench = Bench::new(&shares);
    let run = bench.run();
    let verify = &run.status.operators[0];
    assert_eq!(verify.emitted, verify.processed, "each record has its verdict or tick");
    bench.report(&run);
    // One iteration is a share: the run is as long as it is, and the time is that of one of its shares.
    let each = |time: Duration, iters: u64| time.mul_f64(iters as f64 / count as f64);
    group.bench_function("fused", |b| b.iter_custom(|iters| each(bench.run().wall, iters)));
    group.bench_function("fused_cpu", |b| b.iter_custom(|iters| each(bench.run().cpu, iters)));
    group.finish();
    let last = bench.run();
    bench.report(&last);
}

criterion_group!(benches, share_processor);
criterion_main!(benches);
