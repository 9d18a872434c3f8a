//! What the tests of the jobmanager share: a log, a jobmanager on it, and readers of its two topics.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::ScriptBuf;
use bitcoin::hashes::Hash;
use prost::Message;
use sluice_jobmanager::{JobManager, JobManagerConfig, JobManagerIo, NodeConfig, Status};
use sluice_log::{Log, MemoryLog, Partition, Retention, SharedLog, TopicSpec};
use sluice_mining::Chain;
use sluice_mining::block::BlockTx;
use sluice_proto::v1::{Job, TemplateBody, TemplateChunk};
use sluice_proto::{Body, Epoch, Offset};
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_topology::runtime::Owners;

/// A guard against hanging, not a measure.
pub const GUARD: Duration = Duration::from_secs(60);
/// An interval that no test waits for.
pub const NEVER: Duration = Duration::from_secs(24 * 3600);
const JOBS: &str = "mining.jobs";
const TEMPLATES: &str = "mining.templates";

/// A log with the two topics.
pub async fn log() -> Arc<MemoryLog> {
    let log = MemoryLog::new();
    for name in [JOBS, TEMPLATES] {
        let spec = TopicSpec { name: name.into(), partitions: 1, retention: Retention::default() };
        log.create_topic(&spec).await.unwrap();
    }
    log
}

/// A simulated node with this many transactions waiting.
pub fn node(mempool: usize) -> SimNode {
    SimNode::start(SimNodeConfig { mempool, ..SimNodeConfig::default() }).unwrap()
}

/// How to reach a simulated node.
pub fn sim(name: &str, node: &SimNode) -> NodeConfig {
    let (rpc, auth) = (node.rpc_url(), node.auth().to_owned());
    NodeConfig { name: name.into(), rpc, auth, zmq: Some(node.zmq().to_owned()) }
}

/// Gives every block of one node to another, as peers do.
pub fn relay(from: &SimNode, to: &SimNode) {
    for height in 1..=from.height() {
        let block = from.block(&from.block_hash(height).unwrap()).unwrap();
        let answer = to
            .rpc()
            .call("submitblock", &serde_json::json!([bitcoin::consensus::encode::serialize_hex(&*block)]))
            .unwrap();
        assert!([serde_json::Value::Null, "duplicate".into()].contains(&answer), "{answer}");
    }
}

/// Settings with intervals that pass often; tests replace those that matter to them.
pub fn config(chain: Chain, nodes: Vec<NodeConfig>) -> JobManagerConfig {
    JobManagerConfig {
        name: "jobmanager".into(),
        chain,
        nodes,
        payout: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([0x77; 20])),
        tag: "/sluice test/".into(),
        refresh: NEVER,
        refresh_fees: 0,
        fee_poll: NEVER,
        stuck_after: NEVER,
        coinbase_limit: 1_000,
        poll: Duration::from_millis(20),
        stale_grace: Duration::from_secs(2),
        keep: Duration::from_secs(300),
        version_mask: 0x1fff_e000,
    }
}

/// A jobmanager that writes to `log`, as its start number `epoch`.
pub async fn start(log: &Arc<MemoryLog>, config: JobManagerConfig, epoch: u32) -> JobManager {
    let log: SharedLog = log.clone();
    let (producer, owners, epoch) = ("jobmanager".into(), Owners::new(log.clone(), [0; 16]), Epoch::new(epoch));
    let io = JobManagerIo { log, producer, jobs: JOBS.into(), templates: TEMPLATES.into(), epoch, owners };
    JobManager::start(config, io).await.unwrap()
}

/// Waits until something holds of the jobmanager's status.
pub async fn status_until(manager: &JobManager, mut holds: impl FnMut(&Status) -> bool) -> Status {
    let deadline = Instant::now() + GUARD;
    loop {
        let status = manager.status();
        if holds(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "not in time: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes blocks until the jobmanager hears notices of the node: a subscription takes its time.
pub async fn until_heard(manager: &JobManager, name: &str, mut make: impl FnMut()) {
    let deadline = Instant::now() + GUARD;
    let notices = |status: &Status| status.nodes.iter().find(|node| node.name == name).unwrap().notices;
    while notices(&manager.status()) == 0 {
        assert!(Instant::now() < deadline, "no notice of {name} is heard");
        make();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads jobs and, as they ask for them, templates, as `assemble` does.
pub struct Reader {
    log: Arc<MemoryLog>,
    job_at: u64,
    chunk_at: u64,
    known: HashMap<[u8; 32], BlockTx>,
    templates: HashMap<u64, (Vec<BlockTx>, Vec<TemplateChunk>, usize)>,
}

impl Reader {
    /// From the topics' beginnings on.
    pub fn new(log: &Arc<MemoryLog>) -> Self {
        Self { log: log.clone(), job_at: 0, chunk_at: 0, known: HashMap::new(), templates: HashMap::new() }
    }

    /// The next job.
    pub async fn job(&mut self) -> Job {
        loop {
            let partition = Partition::new(JOBS, 0);
            // One at a time: records that are read together would be skipped.
            let records = self.log.read(&partition, Offset::new(self.job_at), 1, GUARD).await.unwrap();
            let record = records.into_iter().next().expect("a job in time");
            self.job_at = record.offset.get() + 1;
            if let Some(Body::Job(job)) = sluice_proto::decode(record.value).unwrap().body {
                return job;
            }
        }
    }

    /// The next job for which something holds.
    pub async fn job_until(&mut self, mut holds: impl FnMut(&Job) -> bool) -> Job {
        let deadline = Instant::now() + GUARD;
        loop {
            let job = self.job().await;
            if holds(&job) {
                return job;
            }
            assert!(Instant::now() < deadline, "not in time; last: {job:?}");
        }
    }

    /// Whether there is a job that was not read yet.
    pub async fn has_job(&self) -> bool {
        let partition = Partition::new(JOBS, 0);
        !self.log.read(&partition, Offset::new(self.job_at), 1, Duration::ZERO).await.unwrap().is_empty()
    }

    /// Whether there is any job at all.
    pub async fn has_job_after_genesis(&self) -> bool {
        let records = self.log.read(&Partition::new(JOBS, 0), Offset::ZERO, 1 << 20, Duration::ZERO).await.unwrap();
        records.into_iter().any(|record| matches!(sluice_proto::decode(record.value).unwrap().body, Some(Body::Job(_))))
    }

    /// The transactions of a job, put together from the chunks up to its template clock.
    pub async fn transactions(&mut self, job: &Job) -> Vec<BlockTx> {
        if job.template_id == 0 {
            return Vec::new();
        }
        self.read_chunks(job.template_clock).await;
        self.templates[&job.template_id].0.clone()
    }

    /// The chunks of a job's template, and how many transactions they carry.
    pub async fn chunks(&mut self, job: &Job) -> (Vec<TemplateChunk>, usize) {
        self.read_chunks(job.template_clock).await;
        let (_, chunks, fresh) = &self.templates[&job.template_id];
        (chunks.clone(), *fresh)
    }

    async fn read_chunks(&mut self, clock: u64) {
        let mut chunks: Vec<TemplateChunk> = Vec::new();
        while self.chunk_at <= clock {
            let partition = Partition::new(TEMPLATES, 0);
            let records = self.log.read(&partition, Offset::new(self.chunk_at), 1, Duration::ZERO).await.unwrap();
            let record = records.into_iter().next().expect("chunks are durable before their job");
            self.chunk_at = record.offset.get() + 1;
            let Some(Body::TemplateChunk(chunk)) = sluice_proto::decode(record.value).unwrap().body else { continue };
            assert_eq!(chunk.index as usize, chunks.len());
            assert!(chunk.data.len() <= 900_000);
            let last = chunk.index + 1 == chunk.count;
            chunks.push(chunk);
            if last {
                self.put_together(std::mem::take(&mut chunks));
            }
        }
        assert!(chunks.is_empty(), "a template clock in the middle of a template");
    }

    fn put_together(&mut self, chunks: Vec<TemplateChunk>) {
        let data: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
        let body = TemplateBody::decode(&zstd::bulk::decompress(&data, 64 << 20).unwrap()[..]).unwrap();
        if chunks[0].full {
            self.known.clear();
        }
        for data in &body.new_transactions {
            let tx = BlockTx::parse(data.clone()).unwrap();
            assert!(self.known.insert(tx.wtxid, tx).is_none(), "a transaction is sent once");
        }
        let ids = body.wtxids.as_chunks::<32>().0;
        let transactions = ids.iter().map(|id| self.known[id].clone()).collect();
        self.templates.insert(chunks[0].template_id, (transactions, chunks, body.new_transactions.len()));
    }
}

/// Hash in internal order.
pub fn bytes(hash: bitcoin::BlockHash) -> Vec<u8> {
    hash.to_byte_array().to_vec()
}
