//! The jobmanager: one thread that turns tip notices, polls and a timer into jobs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bitcoin::ScriptBuf;
use parking_lot::Mutex;
use sluice_log::{LogError, Partition, SharedLog};
use sluice_mining::Chain;
use sluice_mining::template::{JobParams, Template, TemplateError, build_job};
use sluice_mining::wire::display_hash;
use sluice_proto::{Body, Epoch, EventTime, Offset};
use sluice_topology::runtime::Producer;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::chunks::Sent;
use crate::node::{HeaderInfo, NodeConfig, NodeError};
use crate::source::Sources;
use crate::status::{NodeState, NodeStatus, Status};
use crate::zmq::Listener;

/// How long a stop waits for a call to a node that is in progress.
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
    /// How often the tip is asked for.
    pub poll: Duration,
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
    /// Topic of jobs; one partition.
    pub jobs: String,
    /// Topic of templates; one partition.
    pub templates: String,
    /// Epoch of this start.
    pub epoch: Epoch,
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
    /// The last job in the log cannot be read.
    #[error("the last job of {0} cannot be read: {1}")]
    LastJob(Partition, String),
    /// A template that cannot become a job for a reason that will not pass.
    #[error("no job can be made: {0}")]
    Template(#[from] TemplateError),
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
    failure: watch::Receiver<Option<String>>,
    listeners: Mutex<Vec<(String, Listener)>>,
}

enum Notice {
    /// The node with this number has this tip.
    Tip(usize, [u8; 32]),
    Stop,
}

impl JobManager {
    /// Starts it. The first job comes as soon as a node gives a template.
    ///
    /// # Errors
    /// If settings cannot be used or the log cannot be read.
    pub async fn start(config: JobManagerConfig, io: JobManagerIo) -> Result<Self, JobManagerError> {
        let last_job = last_job(&io).await?.unwrap_or_default();
        let (notices, heard) = channel();
        let mut listeners = Vec::new();
        for (number, node) in config.nodes.iter().enumerate() {
            if let Some(endpoint) = &node.zmq {
                let notices = notices.clone();
                let notice = move |hash| {
                    if notices.send(Notice::Tip(number, hash)).is_err() {
                        tracing::debug!("a tip notice after the stop");
                    }
                };
                listeners.push((node.name.clone(), Listener::start(node.name.clone(), endpoint.clone(), notice)?));
            }
        }
        let nodes = config.nodes.iter().map(|node| node.name.clone());
        let nodes = nodes.map(|name| NodeStatus { name, state: NodeState::Connecting, notices: 0 }).collect();
        let status = Status { nodes, height: 0, nbits: 0, jobs: 0, last_job: None, tips: 0 };
        let status = Arc::new(Mutex::new(status));
        let (failed, failure) = watch::channel(None);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut worker = Worker::new(config, &io, last_job, status.clone(), stopping.clone())?;
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
        Ok(Self { notices, stopping, thread, status, failure, listeners: Mutex::new(listeners) })
    }

    /// What it does.
    pub fn status(&self) -> Status {
        let mut status = self.status.lock().clone();
        let all = self.listeners.lock();
        for node in &mut status.nodes {
            let listeners = all.iter().filter(|(name, _)| *name == node.name);
            node.notices = listeners.map(|(_, listener)| listener.notices()).sum();
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

    /// Stops it: no job is written any more. Waits a moment for a call to a node that is in progress.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let stopped = self.notices.send(Notice::Stop);
        let mut listeners = self.listeners.lock();
        listeners.iter().for_each(|(_, listener)| listener.halt());
        listeners.clear();
        drop(listeners);
        let Some((thread, ended)) = self.thread.lock().take() else { return };
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a node does not answer: the jobmanager ends without its answer");
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

/// The last job that was written, as far as the next one depends on it.
#[derive(Default)]
struct LastJob {
    /// Its id; 0 if there is none.
    id: u64,
    /// The tip it builds on.
    tip: Option<[u8; 32]>,
}

/// The last job in the topic; `None` if there is none.
async fn last_job(io: &JobManagerIo) -> Result<Option<LastJob>, JobManagerError> {
    let partition = Partition::new(io.jobs.as_str(), 0);
    let bounds = io.log.bounds(&partition).await?;
    let (start, end) = (bounds.start.get(), bounds.next.get());
    // Offsets may have holes: where there is no job at the end, it is looked for further and further back.
    let mut span = 1;
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

/// The last job from an offset on.
async fn last_job_from(io: &JobManagerIo, of: &Partition, from: u64) -> Result<Option<LastJob>, JobManagerError> {
    let (mut last, mut at) = (None, Offset::new(from));
    loop {
        let records = io.log.read(of, at, 1 << 20, Duration::ZERO).await?;
        let Some(end) = records.last() else { return Ok(last) };
        at = Offset::new(end.offset.get() + 1);
        for record in records {
            let envelope = sluice_proto::decode(record.value)
                .map_err(|error| JobManagerError::LastJob(of.clone(), error.to_string()))?;
            if let Some(Body::Job(job)) = envelope.body {
                last = Some(LastJob { id: job.job_id, tip: job.prev_hash.as_ref().try_into().ok() });
            }
        }
    }
}

struct Worker {
    config: JobManagerConfig,
    sources: Sources,
    jobs: Producer,
    templates: Producer,
    status: Arc<Mutex<Status>>,
    stopping: Arc<AtomicBool>,
    sent: Sent,
    /// The template of the last job of this start.
    template: Option<Template>,
    last_job: LastJob,
    runtime: Handle,
    /// Random per start: no two sources, and no two starts, give out the same work.
    salt: u32,
    count: u32,
}

impl Worker {
    fn new(
        config: JobManagerConfig,
        io: &JobManagerIo,
        last_job: LastJob,
        status: Arc<Mutex<Status>>,
        stopping: Arc<AtomicBool>,
    ) -> Result<Self, JobManagerError> {
        let producer = |topic: &str| Producer::new(io.log.clone(), topic, 1, &config.name, io.epoch);
        Ok(Self {
            sources: Sources::new(&config.nodes, config.chain)?,
            jobs: producer(&io.jobs),
            templates: producer(&io.templates),
            status,
            stopping,
            sent: Sent::default(),
            template: None,
            last_job,
            runtime: Handle::current(),
            salt: RandomState::new().build_hasher().finish() as u32,
            count: 0,
            config,
        })
    }

    fn run(&mut self, notices: &Receiver<Notice>) -> Result<(), JobManagerError> {
        self.sources.poll();
        let mut due = self.next_refresh(Instant::now())?;
        self.report();
        loop {
            match notices.recv_timeout(self.config.poll) {
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                // Of a second node, or of a tip that a poll has found.
                Ok(Notice::Tip(_, hash)) if self.last_job.tip == Some(hash) && self.template.is_some() => continue,
                Ok(Notice::Tip(node, hash)) => {
                    if let Some(header) = self.sources.follow(node, &hash, self.last_job.tip) {
                        due = self.new_tip(hash, Some(header))?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => match self.sources.poll() {
                    Some(hash) if self.last_job.tip != Some(hash) => {
                        let header = self.sources.header(&hash);
                        due = self.new_tip(hash, header)?;
                    }
                    Some(_) if Instant::now() >= due => due = self.next_refresh(due)?,
                    _ => {}
                },
            }
            self.report();
        }
    }

    /// At a new tip: first a job without transactions, where its target is sure, then the full one. When the next one
    /// is due.
    fn new_tip(&mut self, hash: [u8; 32], header: Option<HeaderInfo>) -> Result<Instant, JobManagerError> {
        if let Some(template) = header.and_then(|header| self.empty(hash, &header)) {
            self.publish(template)?;
        }
        self.next_refresh(Instant::now())
    }

    fn empty(&self, hash: [u8; 32], header: &HeaderInfo) -> Option<Template> {
        let current = self.template.as_ref()?;
        // A tip that does not follow ours (a reorganisation), or has been followed by another one since its notice:
        // only the node's template is right.
        let follows = header.prev_hash == Some(current.prev_hash) && header.height == current.height;
        if !follows || header.confirmations != 1 {
            return None;
        }
        let now = u32::try_from(EventTime::now().secs()).unwrap_or(u32::MAX);
        let mut empty = current.empty_on(self.config.chain, hash, now)?;
        empty.min_time = header.median_time.saturating_add(1);
        empty.cur_time = empty.cur_time.max(empty.min_time);
        Some(empty)
    }

    /// A job of the node's template of the moment; when the next one is due, which is at `due` where no node has a
    /// template.
    fn next_refresh(&mut self, due: Instant) -> Result<Instant, JobManagerError> {
        let Some(template) = self.sources.template() else { return Ok(due) };
        self.publish(template)?;
        Ok(Instant::now() + self.config.refresh)
    }

    fn publish(&mut self, template: Template) -> Result<(), JobManagerError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        let clean = self.last_job.tip != Some(template.prev_hash);
        let now = EventTime::now();
        self.last_job.id = now.millis().max(self.last_job.id + 1);
        let (template_id, template_clock) = self.send_template(&template, now)?;
        self.count = self.count.wrapping_add(1);
        let mut source_tag = [0; 8];
        source_tag[..4].copy_from_slice(&self.salt.to_be_bytes());
        source_tag[4..].copy_from_slice(&self.count.to_be_bytes());
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let job = build_job(
            &template,
            &JobParams {
                job_id: self.last_job.id,
                template_id,
                template_clock,
                payout: self.config.payout.clone(),
                tag: self.config.tag.as_bytes(),
                source_tag,
                version_mask: self.config.version_mask,
                stale_grace_ms: millis(self.config.stale_grace),
                keep_ms: millis(self.config.keep),
                clean,
                chain: self.config.chain,
            },
        )?;
        self.runtime.block_on(self.jobs.append(0, vec![(EventTime::now(), Body::Job(job))]))?;
        if clean {
            tracing::info!(height = template.height, tip = %display_hash(&template.prev_hash), "new tip");
        }
        let mut status = self.status.lock();
        status.height = template.height;
        status.nbits = template.nbits;
        status.jobs += 1;
        status.tips += u64::from(clean);
        status.last_job = Some(SystemTime::now());
        drop(status);
        self.last_job.tip = Some(template.prev_hash);
        self.template = Some(template);
        Ok(())
    }

    /// Writes the template's transactions; its id and the offset of its last chunk, or zeros if it has none.
    fn send_template(&mut self, template: &Template, now: EventTime) -> Result<(u64, u64), JobManagerError> {
        if template.transactions.is_empty() {
            return Ok((0, 0));
        }
        if let Some(same) = self.sent.same(template) {
            return Ok(same);
        }
        let template_id = self.last_job.id;
        let chunks = self.sent.chunks(template_id, template)?;
        let mut clock = 0;
        for chunk in chunks {
            clock = self.runtime.block_on(self.templates.append(0, vec![(now, Body::TemplateChunk(chunk))]))?.get();
        }
        self.sent.note(template_id, clock, template);
        Ok((template_id, clock))
    }

    fn report(&self) {
        let mut status = self.status.lock();
        for (node, (_, state)) in status.nodes.iter_mut().zip(self.sources.states()) {
            node.state = state.clone();
        }
    }
}
