//! The jobmanager: one thread that turns tip notices, polls and a timer into jobs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
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
use crate::node::{NodeConfig, NodeError};
use crate::source::Sources;
use crate::status::{NodeState, NodeStatus, Status};
use crate::zmq::Listener;

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
    thread: Option<JoinHandle<()>>,
    status: Arc<Mutex<Status>>,
    failure: watch::Receiver<Option<String>>,
    listeners: Vec<(String, Listener)>,
}

enum Notice {
    Tip([u8; 32]),
    Stop,
}

impl JobManager {
    /// Starts it. The first job comes as soon as a node gives a template.
    ///
    /// # Errors
    /// If settings cannot be used or the log cannot be read.
    pub async fn start(config: JobManagerConfig, io: JobManagerIo) -> Result<Self, JobManagerError> {
        let last_job = last_job(&io).await?;
        let (notices, heard) = channel();
        let mut listeners = Vec::new();
        for node in &config.nodes {
            if let Some(endpoint) = &node.zmq {
                let notices = notices.clone();
                let notice = move |hash| {
                    if notices.send(Notice::Tip(hash)).is_err() {
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
        let mut worker = Worker::new(config, &io, last_job, status.clone(), Handle::current())?;
        let thread = std::thread::Builder::new().name("jobmanager".into()).spawn(move || {
            if let Err(error) = worker.run(&heard) {
                tracing::error!(%error, "the jobmanager stopped");
                failed.send_replace(Some(error.to_string()));
            }
        })?;
        Ok(Self { notices, thread: Some(thread), status, failure, listeners })
    }

    /// What it does.
    pub fn status(&self) -> Status {
        let mut status = self.status.lock().clone();
        for node in &mut status.nodes {
            let listeners = self.listeners.iter().filter(|(name, _)| *name == node.name);
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

    /// Stops it; waits for a call in progress.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.listeners.clear();
        let stopped = self.notices.send(Notice::Stop);
        if let Some(thread) = self.thread.take()
            && (thread.join().is_err() || stopped.is_err())
        {
            tracing::debug!("the jobmanager had stopped before");
        }
    }
}

impl Drop for JobManager {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Id of the last job in the topic; 0 if there is none.
async fn last_job(io: &JobManagerIo) -> Result<u64, JobManagerError> {
    let partition = Partition::new(io.jobs.as_str(), 0);
    let bounds = io.log.bounds(&partition).await?;
    let Some(last) = bounds.next.get().checked_sub(1) else { return Ok(0) };
    let records = io.log.read(&partition, Offset::new(last), 1 << 20, Duration::ZERO).await?;
    let Some(record) = records.into_iter().next_back() else { return Ok(0) };
    match sluice_proto::decode(record.value) {
        Ok(envelope) => Ok(match envelope.body {
            Some(Body::Job(job)) => job.job_id,
            _ => 0,
        }),
        Err(error) => Err(JobManagerError::LastJob(partition, error.to_string())),
    }
}

struct Worker {
    config: JobManagerConfig,
    sources: Sources,
    jobs: Producer,
    templates: Producer,
    status: Arc<Mutex<Status>>,
    sent: Sent,
    /// The template of the last job.
    template: Option<Template>,
    last_job: u64,
    runtime: Handle,
    /// Random per start: no two sources, and no two starts, give out the same work.
    salt: u32,
    count: u32,
}

impl Worker {
    fn new(
        config: JobManagerConfig,
        io: &JobManagerIo,
        last_job: u64,
        status: Arc<Mutex<Status>>,
        runtime: Handle,
    ) -> Result<Self, JobManagerError> {
        let producer = |topic: &str| Producer::new(io.log.clone(), topic, 1, &config.name, io.epoch);
        Ok(Self {
            sources: Sources::new(&config.nodes, config.chain)?,
            jobs: producer(&io.jobs),
            templates: producer(&io.templates),
            status,
            sent: Sent::default(),
            template: None,
            last_job,
            runtime,
            salt: RandomState::new().build_hasher().finish() as u32,
            count: 0,
            config,
        })
    }

    fn run(&mut self, notices: &Receiver<Notice>) -> Result<(), JobManagerError> {
        let mut refreshed = Instant::now();
        self.refresh()?;
        loop {
            match notices.recv_timeout(self.config.poll) {
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Notice::Tip(hash)) if self.tip() != Some(hash) => self.new_tip(hash)?,
                Ok(Notice::Tip(_)) => continue,
                Err(RecvTimeoutError::Timeout) => match self.sources.tip() {
                    Some(hash) if self.tip() != Some(hash) => self.new_tip(hash)?,
                    _ if self.template.is_none() || refreshed.elapsed() >= self.config.refresh => self.refresh()?,
                    _ => {
                        self.report();
                        continue;
                    }
                },
            }
            refreshed = Instant::now();
            self.report();
        }
    }

    fn tip(&self) -> Option<[u8; 32]> {
        self.template.as_ref().map(|template| template.prev_hash)
    }

    /// At a new tip: first a job without transactions, where its target is sure, then the full one.
    fn new_tip(&mut self, hash: [u8; 32]) -> Result<(), JobManagerError> {
        if let Some(template) = self.empty(hash) {
            self.publish(template)?;
        }
        self.refresh()
    }

    fn empty(&mut self, hash: [u8; 32]) -> Option<Template> {
        let current = self.template.as_ref()?;
        let now = u32::try_from(EventTime::now().secs()).unwrap_or(u32::MAX);
        let mut empty = current.empty_on(self.config.chain, hash, now)?;
        let (parent, height) = (current.prev_hash, current.height);
        let header = self.sources.header(&hash)?;
        // A tip that does not follow ours (a reorganisation): only the node's template is right.
        if header.prev_hash != Some(parent) || header.height != height {
            return None;
        }
        empty.min_time = header.median_time.saturating_add(1);
        empty.cur_time = empty.cur_time.max(empty.min_time);
        Some(empty)
    }

    /// A job of the node's template of the moment.
    fn refresh(&mut self) -> Result<(), JobManagerError> {
        match self.sources.template() {
            Some(template) => self.publish(template),
            None => Ok(()),
        }
    }

    fn publish(&mut self, template: Template) -> Result<(), JobManagerError> {
        let clean = self.tip() != Some(template.prev_hash);
        let now = EventTime::now();
        self.last_job = now.millis().max(self.last_job + 1);
        let (template_id, template_clock) = self.send_template(&template, now)?;
        self.count = self.count.wrapping_add(1);
        let mut source_tag = [0; 8];
        source_tag[..4].copy_from_slice(&self.salt.to_be_bytes());
        source_tag[4..].copy_from_slice(&self.count.to_be_bytes());
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let job = build_job(
            &template,
            &JobParams {
                job_id: self.last_job,
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
        let template_id = self.last_job;
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
