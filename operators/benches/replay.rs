//! Verification of a long history, beside the hashing floor (DESIGN 10): shares of many sessions in the embedded log, as
//! gateways write them, through the whole share processor (verify, dedupe, vardiff, tally) on all cores.
//!
//! The floor is what the cores do when they judge one share after the other and nothing else, as a share that comes
//! alone is judged. Beside wall time, which others on the machine spoil, stands CPU time: the ratio is given of both.
//! What is verified is what the tasks wrote when they first read that history, live; then they are started once more,
//! with their state.
//!
//! `cargo bench -p sluice-operators --bench replay -- SHARES` (1,000,000; each is mined before, 256 hashes a share).

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod pool;
#[path = "../src/testing/records.rs"]
mod records;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_log::{EmbeddedLog, EmbeddedOptions, SharedLog};
use sluice_mining::{JobTable, PreparedJob};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{Body, Epoch, EventTime, Offset, partition_of};
use sluice_state::{Digest, MemoryLimits, StateEnv};
use sluice_topology::Graph;
use sluice_topology::runtime::replay::{Check, Progress, Replay, Until};
use sluice_topology::runtime::{Plan, Producer, RuntimeOptions, TopologyRuntime};
use tokio::runtime::Runtime;

const SESSIONS: u64 = 1_000;
/// Event time between shares: every session has 20 a minute.
const EVERY_MS: u64 = 60_000 / 20 / SESSIONS;
/// Event time between jobs.
const JOB_MS: u64 = 30_000;
/// Shares that are mined and appended together.
const PIECE: u64 = 50_000;
/// Shares that a core judges for the floor.
const JUDGED: usize = 25_000;

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let cores = std::thread::available_parallelism().unwrap().get() as u32;
    let bench = Bench::new(count, cores);
    let floor = bench.floor();
    println!("floor: judging alone: {floor}");
    let (live, digests) = bench.live();
    println!("live: {live}");
    let (again, _) = bench.live();
    println!("  started again with that history: caught up after {:.2} s", again.wall.as_secs_f64());
    let (replayed, same) = bench.replay(&digests);
    println!("replay with verification: {replayed}; {same} outputs as recorded, digests as those of the live state");
    let (wall, cpu) = (floor.wall_each() / replayed.wall_each(), floor.cpu_each() / replayed.cpu_each());
    println!("  of the floor: {:.0} % by wall time, {:.0} % by CPU time", wall * 100.0, cpu * 100.0);
}

/// What shares have cost.
struct Cost {
    shares: u64,
    wall: Duration,
    cpu: Duration,
}

impl Cost {
    fn wall_each(&self) -> f64 {
        self.wall.as_secs_f64() / self.shares as f64
    }

    fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() / self.shares as f64
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = 1.0 / self.wall_each();
        write!(f, "{} shares, {rate:.0} a second, {:.2} us of CPU each", self.shares, self.cpu_each() * 1e6)
    }
}

fn job_at(millis: u64) -> u64 {
    millis / JOB_MS + 1
}

fn job(id: u64) -> Job {
    Job { keep_ms: 600_000, ..pool::job(id) }
}

fn prepared(id: u64) -> PreparedJob {
    records::prepared(&job(id), id, issued(id))
}

fn issued(id: u64) -> EventTime {
    records::at((id - 1) * JOB_MS)
}

/// Share number `number`, which is accepted: sessions take turns, with accounts and workers of the usual length.
fn share(job: &PreparedJob, number: u64) -> Submission {
    let mut share = records::submission(job.job(), job.id(), number % SESSIONS);
    share.extranonce2 = number;
    share.account = format!("bc1q{:038}", number % SESSIONS / 4);
    share.worker = format!("rig{}", number % SESSIONS);
    pool::mined(job, share)
}

/// Shares of these numbers, mined by all cores.
fn shares(from: u64, to: u64, cores: u64) -> Vec<Submission> {
    let mine = move |from: u64, to: u64| {
        let mut job = prepared(job_at(from * EVERY_MS));
        let next = |number: u64| {
            if job.id() != job_at(number * EVERY_MS) {
                job = prepared(job_at(number * EVERY_MS));
            }
            share(&job, number)
        };
        (from..to).map(next).collect::<Vec<_>>()
    };
    let part = (to - from).div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let parts = (0..cores).map(|core| (from + core * part, (from + (core + 1) * part).min(to)));
        let parts: Vec<_> = parts.map(|(from, to)| scope.spawn(move || mine(from, to.max(from)))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// Name and digest of each table of all tasks.
type Digests = Vec<(String, Digest)>;

struct Bench {
    runtime: Runtime,
    graph: Graph,
    log: SharedLog,
    count: u64,
    cores: u32,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(count: u64, cores: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log: SharedLog = EmbeddedLog::open(EmbeddedOptions::new(dir.path().join("log"))).unwrap();
        let bench = Self { runtime, graph: pool::graph(cores), log, count, cores, dir };
        bench.runtime.block_on(bench.fill());
        bench
    }

    /// The shares as gateways write them, with a tick every second.
    async fn fill(&self) {
        for topic in self.graph.plan(&[]).unwrap().topics {
            self.log.create_topic(&topic).await.unwrap();
        }
        let producer = |topic, partitions| Producer::new(self.log.clone(), topic, partitions, "pool", Epoch::new(1));
        let jobs = producer("mining.jobs", 1);
        for id in 1..=job_at(self.count * EVERY_MS) {
            jobs.append(0, vec![(issued(id), Body::Job(job(id)))]).await.unwrap();
        }
        let submissions = producer("share.submissions", self.cores);
        for from in (0..self.count).step_by(PIECE as usize) {
            let piece = shares(from, (from + PIECE).min(self.count), u64::from(self.cores));
            for (number, second) in (0..).zip(piece.chunks((1_000 / EVERY_MS) as usize)) {
                let first = from + number * (1_000 / EVERY_MS);
                self.append(&submissions, first, second).await;
            }
        }
    }

    async fn append(&self, submissions: &Producer, first: u64, shares: &[Submission]) {
        let time = |index: usize| records::at((first + index as u64) * EVERY_MS);
        let mut batches = vec![Vec::new(); self.cores as usize];
        for (index, share) in shares.iter().enumerate() {
            let partition = partition_of(&share.session.to_be_bytes(), self.cores);
            batches[partition as usize].push((time(index), Body::Submission(share.clone())));
        }
        for (partition, mut batch) in (0..).zip(batches) {
            let clock = shares.last().unwrap().job_clock;
            for gateway in 0..3 {
                batch.push((time(shares.len() - 1), Body::Tick(records::tick(gateway, clock))));
            }
            submissions.append(partition, batch).await.unwrap();
        }
    }

    /// What the cores do when they judge one share after the other and nothing else.
    fn floor(&self) -> Cost {
        let mut table = JobTable::new();
        table.apply(Offset::new(1), issued(1), job(1)).unwrap();
        let shares = shares(0, (JOB_MS / EVERY_MS).min(self.count), u64::from(self.cores));
        let judge = || {
            for share in shares.iter().cycle().take(JUDGED) {
                std::hint::black_box(table.judge(share, issued(1)));
            }
        };
        judge();
        let (cpu, begun) = (pool::cpu(), Instant::now());
        std::thread::scope(|scope| (0..self.cores).for_each(|_| drop(scope.spawn(|| (0..10).for_each(|_| judge())))));
        let shares = u64::from(self.cores) * 10 * JUDGED as u64;
        Cost { shares, wall: begun.elapsed(), cpu: pool::cpu() - cpu }
    }

    fn plan(&self) -> Plan {
        self.graph.plan(&["verify".to_owned()]).unwrap()
    }

    /// The pool's tasks, from where their state is to the end of the shares; the digests of their tables then.
    fn live(&self) -> (Cost, Digests) {
        self.runtime.block_on(async {
            let (before, begun) = (pool::cpu(), Instant::now());
            let (log, options) = (self.log.clone(), RuntimeOptions::default());
            let start = TopologyRuntime::start(
                self.plan(),
                log,
                StateEnv::on_disk(self.dir.path().join("live"), MemoryLimits::default()).unwrap(),
                Arc::default(),
                options,
            );
            let handle = start.await.unwrap();
            let digests = loop {
                let status = handle.status().await;
                assert!(status.iter().all(|task| task.error.is_none()), "{status:?}");
                if status.iter().flat_map(|task| &task.inputs).all(|input| input.lag == 0) {
                    break status.into_iter().flat_map(|task| task.digests).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            let cost = Cost { shares: self.count, wall: begun.elapsed(), cpu: pool::cpu() - before };
            handle.stop(Duration::from_secs(60)).await.unwrap();
            (cost, digests)
        })
    }

    /// All tasks from an empty state, with every output compared; how many there were.
    fn replay(&self, digests: &Digests) -> (Cost, u64) {
        let plan = self.plan();
        let replay = Replay {
            log: self.log.clone(),
            env: StateEnv::scratch(self.dir.path().join("replayed"), MemoryLimits::default()).unwrap(),
            externals: Arc::default(),
            network: plan.network.clone(),
            check: Check::Verify,
        };
        let tasks: Vec<_> = plan.tasks.into_iter().map(|task| (task, Until::End)).collect();
        let (before, begun) = (pool::cpu(), Instant::now());
        let done = replay.run(&tasks, &Progress::default());
        let cost = Cost { shares: self.count, wall: begun.elapsed(), cpu: pool::cpu() - before };
        let done: Vec<_> = done.into_iter().map(|task| task.unwrap_or_else(|failure| panic!("{failure:?}"))).collect();
        assert!(done.iter().all(|task| task.unrecorded.is_none()), "{done:?}");
        let tables = done.iter().flat_map(|task| &task.tables);
        let replayed: Digests = tables.map(|(name, digest, _)| (name.clone(), *digest)).collect();
        assert_eq!(&replayed, digests);
        (cost, done.iter().map(|task| task.compared.same).sum())
    }
}
