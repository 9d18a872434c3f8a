//! The way of a share allocates nothing of its own: a test binary with an allocator that counts (DESIGN 10).

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::alloc::System;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;

use sluice_gateway::internals::ShareBench;
use sluice_gateway::{Gateway, GatewayConfig, GatewayIo};
use sluice_log::{EmbeddedLog, EmbeddedOptions, SharedLog, TopicSpec};
use sluice_mining::{Chain, Difficulty, PreparedJob, header_hash};
use sluice_proto::v1::{Job, Reason};
use sluice_proto::{Body, Epoch, EventTime, Offset, Share};
use sluice_topology::runtime::Producer;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{USER, job};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time: the allocator counts for the whole process.
static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Submits that are accepted at the lowest difficulty, `batches` of `size`.
fn lines(job: &Job, extranonce1: u32, batches: usize, size: usize) -> Vec<Vec<u8>> {
    let prepared = PreparedJob::new(Offset::new(1), EventTime::default(), job.clone()).unwrap();
    let target = Difficulty::MIN.to_target();
    let share = |extranonce2: u64| {
        let share = Share { extranonce1, extranonce2, ntime: job.ntime, ..Share::default() };
        let mut header = prepared.header(share);
        let meets = |nonce: &u32| {
            header[76..].copy_from_slice(&nonce.to_le_bytes());
            target.is_met_by(&header_hash(&header))
        };
        let nonce = (0..u32::MAX).find(meets).unwrap();
        (extranonce2, nonce)
    };
    let batch = |number: usize| {
        let mut text = String::new();
        for (extranonce2, nonce) in (number * size..(number + 1) * size).map(|n| share(n as u64)) {
            writeln!(
                text,
                "{{\"id\":{extranonce2},\"method\":\"mining.submit\",\"params\":[\"{USER}\",\"{:x}\",\
                 \"{extranonce2:016x}\",\"{:08x}\",\"{nonce:08x}\"]}}",
                job.job_id, job.ntime,
            )
            .unwrap();
        }
        text.into_bytes()
    };
    (0..batches).map(batch).collect()
}

/// Allocations since `region` began, and those that became larger or smaller.
fn allocations(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.allocations + change.reallocations
}

#[test]
fn a_share_is_parsed_judged_written_and_answered_without_an_allocation() {
    let _alone = ALONE.lock();
    let mut bench = ShareBench::new(&job(7), USER);
    // After 5,000 headers of the job each of the 16 sets of them has about 312, and room for 448.
    let batches = lines(&job(7), bench.extranonce1(), 6, 1_000);
    let (last, before) = batches.split_last().unwrap();
    for batch in before {
        assert!(bench.take(batch) > 0);
        assert_eq!(bench.records().len(), 1_000);
    }
    let region = Region::new(ALLOCATOR);
    bench.take(last);
    assert_eq!(allocations(&region), 0);
    assert_eq!(bench.records().len(), 1_000);
    assert_eq!(bench.accepted(), 6_000);
}

#[test]
fn what_a_round_allocates_does_not_grow_with_its_shares() {
    const BATCHES: usize = 20;
    const SIZE: usize = 400;
    let _alone = ALONE.lock();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
    let (gateway, jobs) = runtime.block_on(start(log.clone()));
    runtime.block_on(jobs.append(0, vec![(EventTime::now(), Body::Job(job(1)))])).unwrap();
    let mut miner = Miner::log_in(&gateway);
    let batches = lines(&job(1), miner.extranonce1, BATCHES, SIZE);
    let (before, counted) = batches.split_at(BATCHES / 2);
    before.iter().for_each(|batch| miner.submit(batch, SIZE));
    let region = Region::new(ALLOCATOR);
    counted.iter().for_each(|batch| miner.submit(batch, SIZE));
    let (counted, shares) = (allocations(&region), SIZE * BATCHES / 2);
    // A batch comes in a read or two, and takes as many rounds through the gateway, the log and back. One allocation a
    // share, anywhere on that way, would be twice as many.
    assert!(counted < shares / 2, "{counted} allocations for {shares} shares");
    assert_eq!(gateway.status().shares_with(Reason::Accepted), (SIZE * BATCHES) as u64);
    runtime.block_on(gateway.stop());
    log.close().unwrap();
}

async fn start(log: SharedLog) -> (Gateway, Producer) {
    for (name, partitions) in [("jobs", 1), ("shares", 8), ("candidates", 1)] {
        log.create_topic(&TopicSpec { name: name.into(), partitions, retention: Default::default() }).await.unwrap();
    }
    let mut config = GatewayConfig::new("stratumd", Chain::Regtest);
    config.listen = vec!["127.0.0.1:0".into()];
    config.difficulty = Difficulty::MIN;
    config.in_flight = 1_000;
    let io = GatewayIo {
        log: log.clone(),
        producer: "stratumd".into(),
        jobs: "jobs".into(),
        targets: None,
        shares: "shares".into(),
        candidates: "candidates".into(),
        epoch: Epoch::new(1),
        cache: None,
    };
    let jobs = Producer::new(log, "jobs", 1, "jobmanager", Epoch::new(1));
    (Gateway::start(config, io).await.unwrap(), jobs)
}

/// A miner that allocates nothing once it has logged in.
struct Miner {
    stream: TcpStream,
    extranonce1: u32,
    buffer: Vec<u8>,
}

impl Miner {
    fn log_in(gateway: &Gateway) -> Self {
        let mut stream = TcpStream::connect(gateway.addresses()[0]).unwrap();
        let login = format!(
            "{{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}}\n\
             {{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"{USER}\",\"x\"]}}\n"
        );
        stream.write_all(login.as_bytes()).unwrap();
        let (mut text, mut byte) = (String::new(), [0]);
        while !text.contains("mining.notify\",\"params\"") || !text.ends_with('\n') {
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        let answer: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let extranonce1 = u32::from_str_radix(answer["result"][1].as_str().unwrap(), 16).unwrap();
        Self { stream, extranonce1, buffer: vec![0; 1 << 16] }
    }

    /// Sends a batch and waits for all answers.
    fn submit(&mut self, batch: &[u8], size: usize) {
        self.stream.write_all(batch).unwrap();
        let mut answered = 0;
        while answered < size {
            let read = self.stream.read(&mut self.buffer).unwrap();
            assert!(read > 0, "the gateway has closed the connection");
            answered += self.buffer[..read].iter().filter(|byte| **byte == b'\n').count();
        }
    }
}
