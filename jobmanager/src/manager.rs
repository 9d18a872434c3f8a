//! The jobmanager: its settings, its start and its end. What it does stands in `worker`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bitcoin::ScriptBuf;
use parking_lot::Mutex;
use sluice_log::{LogError, Partition, SharedLog};
use sluice_mining::Chain;
use sluice_mining::template::TemplateError;
use sluice_proto::{Body, Epoch, Offset, hash64};
use sluice_topology::runtime::{OwnerError, Owners};
use tokio::sync::watch;

use crate::node::{NodeConfig, NodeError};
use crate::status::Status;
use crate::watch::{Event, Tell, Watch};
use crate::worker::Worker;
use crate::writer::Writer;
use crate::zmq::Heard;

/// How long a stop waits for an append that is in progress.
const PATIENCE: Duration = Duration::from_secs(2);

/// Settings of the jobmanager.
#[derive(Clone, Debug)]
pub struct JobManagerConfig {
    /// Name in the topology.
    pub name: String,
    /// The chain.
    pub chain: Chain,
    /// Nodes in order of preference.
    pub nodes: Vec<NodeConfig>,
    /// Script that coinbases pay.
    pub payout: ScriptBuf,
    /// Text in the coinbases.
    pub tag: String,
    /// A new job at least this often.
    pub refresh: Duration,
    /// A new job before that where the fees have grown by this share, per cent; 0 for never.
    pub refresh_fees: u64,
    /// How often the fees are looked at.
    pub fee_poll: Duration,
    /// How often the tip is asked for.
    pub poll: Duration,
    /// For how long a node may stand still before it is told and no longer chosen.
    pub stuck_after: Duration,
    /// Largest coinbase transaction without witness, bytes.
    pub coinbase_limit: usize,
    /// Grace for shares of the old tip.
    pub stale_grace: Duration,
    /// Life of a job after the next one.
    pub keep: Duration,
    /// Version bits that miners may roll.
    pub version_mask: u32,
}

/// Where the jobmanager writes.
pub struct JobManagerIo {
    /// The log.
    pub log: SharedLog,
    /// Name of the producer of its records: its identity, which stays the same when it is renamed.
    pub producer: String,
    /// Topic of jobs; one partition.
    pub jobs: String,
    /// Topic of templates; one partition.
    pub templates: String,
    /// Epoch of this start, claimed from `owners`.
    pub epoch: Epoch,
    /// Who owns what in the log.
    pub owners: Arc<Owners>,
}

/// Why the jobmanager could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum JobManagerError {
    /// A node's settings.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The log failed.
    #[error("the jobmanager stopped: {0}")]
    Log(#[from] LogError),
    /// The epoch could not be begun, or not be looked after.
    #[error("the jobmanager stopped: {0}")]
    Owner(#[from] OwnerError),
    /// Another process runs the same jobmanager now. What this one would write counts nowhere.
    #[error(
        "the jobmanager was replaced by another process: {name} now runs in epoch {by}, and this process held epoch \
         {own}; let one of the two run"
    )]
    Replaced {
        /// Its identity.
        name: String,
        /// The epoch that this process held.
        own: Epoch,
        /// The epoch of the other process.
        by: Epoch,
    },
    /// The last job in the log cannot be read.
    #[error("the last job of {0} cannot be read: {1}")]
    LastJob(Partition, String),
    /// A template that cannot become a job for a reason that will not pass.
    #[error("no job can be made: {0}")]
    Template(#[from] TemplateError),
    /// The coinbase is too large for the firmware of miners.
    #[error("a coinbase of {size} bytes, coinbase_limit is {limit}: pay fewer or shorter outputs, or raise the limit")]
    CoinbaseSize {
        /// Of the coinbase transaction without witness, bytes.
        size: usize,
        /// What is allowed, bytes.
        limit: usize,
    },
    /// The system failed.
    #[error("the jobmanager stopped: {0}")]
    System(#[from] std::io::Error),
}

/// A running jobmanager. Dropping it stops it.
pub struct JobManager {
    notices: Sender<Notice>,
    stopping: Arc<AtomicBool>,
    /// The thread, and what hears of its end.
    thread: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
    status: Arc<Mutex<Status>>,
    /// What was heard of each node by ZMQ.
    heard: Vec<Arc<Heard>>,
    failure: watch::Receiver<Option<String>>,
}

/// What the thread wakes up for.
pub(crate) enum Notice {
    /// Of the node with this number.
    Node(usize, Event),
    Stop,
}

impl JobManager {
    /// Starts it. The first job comes as soon as a node gives a template.
    ///
    /// # Errors
    /// If settings cannot be used or the log cannot be read.
    pub async fn start(config: JobManagerConfig, io: JobManagerIo) -> Result<Self, JobManagerError> {
        io.owners.open().await?;
        let written = [&io.jobs, &io.templates].map(|topic| Partition::new(topic.as_str(), 0));
        // From here on, what an earlier process still writes brings no old work (docs/adr/0014).
        io.owners.fence(&io.producer, io.epoch, written.into()).await?;
        let last_job = last_job(&io).await?.unwrap_or_default();
        let (notices, heard) = channel();
        let status = Arc::new(Mutex::new(Status::new(config.nodes.iter().map(|node| node.name.clone()))));
        let (failed, failure) = watch::channel(None);
        let stopping = Arc::new(AtomicBool::new(false));
        let writer = Writer::new(config.clone(), &io, last_job, status.clone(), stopping.clone());
        let mut watches = Vec::with_capacity(config.nodes.len());
        for (number, node) in config.nodes.iter().enumerate() {
            let notices = notices.clone();
            let tell: Tell = Arc::new(move |event| notices.send(Notice::Node(number, event)).is_ok());
            watches.push(Watch::start(node, config.chain, config.poll, &tell)?);
        }
        let heard_of = watches.iter().map(|watch| watch.heard().clone()).collect();
        let mut worker = Worker::new(config, watches, writer, status.clone());
        let (running, ended) = channel();
        let thread = std::thread::Builder::new().name("jobmanager".into()).spawn(move || {
            // Dropped at the end, which is how a stop hears of it.
            let _running: Sender<()> = running;
            if let Err(error) = worker.run(&heard) {
                tracing::error!(%error, "the jobmanager stopped");
                failed.send_replace(Some(error.to_string()));
            }
        })?;
        let thread = Mutex::new(Some((thread, ended)));
        Ok(Self { notices, stopping, thread, status, heard: heard_of, failure })
    }

    /// What it does.
    pub fn status(&self) -> Status {
        let mut status = self.status.lock().clone();
        for (node, heard) in status.nodes.iter_mut().zip(&self.heard) {
            node.notices = heard.tips.load(Ordering::Relaxed);
            node.lost = heard.lost.load(Ordering::Relaxed);
            node.disconnected = heard.disconnected.load(Ordering::Relaxed);
        }
        status
    }

    /// Resolves with the cause when it has failed for good.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        loop {
            if let Some(cause) = failure.borrow_and_update().clone() {
                return cause;
            }
            if failure.changed().await.is_err() {
                // Stopped without a failure: never resolves.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops it: no job is written any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let stopped = self.notices.send(Notice::Stop);
        let Some((thread, ended)) = self.thread.lock().take() else { return };
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the log does not answer: the jobmanager ends without its answer");
        } else if thread.join().is_err() || stopped.is_err() {
            tracing::debug!("the jobmanager had stopped before");
        }
    }
}

impl Drop for JobManager {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Offsets at the end of the topic of jobs that the last job is looked for in first: as far as to the fence of whoever
/// wrote it, where somebody else wrote behind that.
const LAST_JOB_WITHIN: u64 = 256;

/// The last job that was written, as far as the next one depends on it.
#[derive(Default)]
pub(crate) struct LastJob {
    /// Its id; 0 if there is none.
    pub(crate) id: u64,
    /// The tip it builds on.
    pub(crate) tip: Option<[u8; 32]>,
}

/// The last job in the topic; `None` if there is none.
async fn last_job(io: &JobManagerIo) -> Result<Option<LastJob>, JobManagerError> {
    let partition = Partition::new(io.jobs.as_str(), 0);
    let bounds = io.log.bounds(&partition).await?;
    let (start, end) = (bounds.start.get(), bounds.next.get());
    // Offsets may have holes: where there is no job at the end, it is looked for further and further back.
    let mut span = LAST_JOB_WITHIN;
    loop {
        let from = end.saturating_sub(span).max(start);
        if let Some(last) = last_job_from(io, &partition, from).await? {
            return Ok(Some(last));
        }
        if from == start {
            return Ok(None);
        }
        span *= 16;
    }
}

/// The last job from an offset on that counts: what is written in a lower epoch behind a higher one is void.
async fn last_job_from(io: &JobManagerIo, of: &Partition, from: u64) -> Result<Option<LastJob>, JobManagerError> {
    let (mut last, mut at) = (None, Offset::new(from));
    let (own, mut epoch) = (hash64(&io.producer), 0);
    loop {
        let records = io.log.read(of, at, 1 << 20, Duration::ZERO).await?;
        let Some(end) = records.last() else { return Ok(last) };
        at = Offset::new(end.offset.get() + 1);
        for record in records {
            let envelope = sluice_proto::decode(record.value)
                .map_err(|error| JobManagerError::LastJob(of.clone(), error.to_string()))?;
            let by_own = envelope.from.filter(|from| from.task == own);
            if by_own.is_some_and(|from| from.epoch < epoch) {
                continue;
            }
            epoch = by_own.map_or(epoch, |from| from.epoch);
            if let Some(Body::Job(job)) = envelope.body {
                last = Some(LastJob { id: job.job_id, tip: job.prev_hash.as_ref().try_into().ok() });
            }
        }
    }
}
