//! From a node's notice of a new tip to a job in the log (DESIGN 7), with Bitcoin Core and the durable log, and what a
//! block costs before its first byte goes out.
//!
//! | bench | what an iteration is | what its time is |
//! |---|---|---|
//! | `tip/empty` | a block of Bitcoin Core | from its ZMQ notice to the job without transactions, durable |
//! | `block/call` | the call that sends a block of 2 MB | wall clock |

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitcoin::ScriptBuf;
use bitcoin::hashes::Hash;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_jobmanager::{BlockCall, JobManager, JobManagerConfig, JobManagerIo, NodeConfig};
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, Retention, TopicSpec};
use sluice_mining::Chain;
use sluice_proto::Epoch;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_topology::runtime::Owners;

const GUARD: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(24 * 3600);

fn script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([0x77; 20]))
}

async fn jobmanager(node: &Bitcoind, dir: &tempfile::TempDir) -> JobManager {
    let log = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
    for name in ["mining.jobs", "mining.templates"] {
        let spec = TopicSpec { name: name.into(), partitions: 1, retention: Retention::default() };
        log.create_topic(&spec).await.unwrap();
    }
    let (rpc, auth) = (node.rpc_url(), node.auth().to_owned());
    let config = JobManagerConfig {
        name: "jobmanager".into(),
        chain: Chain::Regtest,
        nodes: vec![NodeConfig { name: "core".into(), rpc, auth, zmq: Some(node.zmq()) }],
        payout: script(),
        tag: "/sluice bench/".into(),
        refresh: NEVER,
        refresh_fees: 0,
        fee_poll: NEVER,
        // Longer than a block takes here: the notice tells, as it does in production.
        poll: Duration::from_secs(2),
        stuck_after: NEVER,
        coinbase_limit: 1_000,
        stale_grace: Duration::from_secs(2),
        keep: Duration::from_secs(300),
        version_mask: 0x1fff_e000,
    };
    let (producer, jobs, templates) = ("jobmanager".into(), "mining.jobs".into(), "mining.templates".into());
    let (owners, epoch) = (Owners::new(log.clone(), [0; 16]), Epoch::new(1));
    JobManager::start(config, JobManagerIo { log, producer, jobs, templates, epoch, owners }).await.unwrap()
}

/// Waits until the full job of the newest tip is there, so that the next tip finds nothing under way.
fn settle(manager: &JobManager, tips: u64, jobs: u64) {
    let deadline = Instant::now() + GUARD;
    loop {
        let status = manager.status();
        if status.tips >= tips && status.jobs >= jobs {
            return;
        }
        assert!(Instant::now() < deadline, "no job: {status:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn tip(c: &mut Criterion) {
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    node.generate(20, &script()).unwrap();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let manager = runtime.block_on(jobmanager(&node, &dir));
    settle(&manager, 1, 1);
    while manager.status().nodes[0].notices == 0 {
        let (tips, jobs) = (manager.status().tips, manager.status().jobs);
        node.generate(1, &script()).unwrap();
        settle(&manager, tips + 1, jobs + 2);
    }
    let mut group = c.benchmark_group("tip");
    group.sample_size(20);
    group.bench_function("empty", |bencher| {
        bencher.iter_custom(|blocks| {
            let mut sum = Duration::ZERO;
            for _ in 0..blocks {
                let before = manager.status();
                node.generate(1, &script()).unwrap();
                settle(&manager, before.tips + 1, before.jobs + 2);
                sum += manager.status().tip_latency.last;
            }
            sum
        });
    });
    group.finish();
    let latency = manager.status().tip_latency;
    println!(
        "tip/empty: {} tips, by bounds of {:?} us: {:?}",
        latency.count(),
        sluice_jobmanager::TIP_BOUNDS_US,
        latency.buckets
    );
}

fn block(c: &mut Criterion) {
    let block: Vec<u8> = (0..2_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut group = c.benchmark_group("block");
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("call", |bencher| bencher.iter(|| BlockCall::new(black_box(&block))));
    group.finish();
}

criterion_group!(benches, tip, block);
criterion_main!(benches);
