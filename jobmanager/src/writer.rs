//! Writes templates and jobs to the log.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sluice_failpoints::Point;
use sluice_mining::template::{JobParams, Template, build_job, coinbase_size};
use sluice_mining::wire::display_hash;
use sluice_proto::{Body, Epoch, EventTime, hash64};
use sluice_topology::runtime::{Owners, Producer};
use tokio::runtime::Handle;

use crate::JobManagerConfig;
use crate::chunks::Sent;
use crate::manager::{JobManagerError, JobManagerIo, LastJob};
use crate::status::Status;

/// The way of templates to jobs in the log.
pub(crate) struct Writer {
    config: JobManagerConfig,
    producer: String,
    epoch: Epoch,
    owners: Arc<Owners>,
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

impl Writer {
    /// Must be called where the runtime that the log runs on is known.
    pub(crate) fn new(
        config: JobManagerConfig,
        io: &JobManagerIo,
        last_job: LastJob,
        status: Arc<Mutex<Status>>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let producer = |topic: &str| Producer::new(io.log.clone(), topic, 1, &io.producer, io.epoch);
        Self {
            producer: io.producer.clone(),
            epoch: io.epoch,
            owners: io.owners.clone(),
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
        }
    }

    /// The template of the last job of this start.
    pub(crate) fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The tip of the last job, of an earlier start too.
    pub(crate) fn tip(&self) -> Option<[u8; 32]> {
        self.last_job.tip
    }

    /// Writes a job of this template, which the first sign of its tip came for at `since`.
    ///
    /// # Errors
    /// If the log fails, or no job can be made for a reason that will not pass.
    pub(crate) fn publish(&mut self, template: Template, since: Instant) -> Result<(), JobManagerError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.check_owned()?;
        let clean = self.last_job.tip != Some(template.prev_hash);
        let now = EventTime::now();
        self.last_job.id = now.millis().max(self.last_job.id + 1);
        let (template_id, template_clock) = self.send_template(&template, now)?;
        sluice_failpoints::pass(Point::JobBefore);
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
        let (size, limit) = (coinbase_size(&job), self.config.coinbase_limit);
        if size > limit {
            return Err(JobManagerError::CoinbaseSize { size, limit });
        }
        self.runtime.block_on(self.jobs.append(0, vec![(EventTime::now(), Body::Job(job))]))?;
        sluice_failpoints::pass(Point::JobAfter);
        self.note(&template, clean.then(|| since.elapsed()));
        self.last_job.tip = Some(template.prev_hash);
        self.template = Some(template);
        Ok(())
    }

    /// An error if another process runs this jobmanager now.
    fn check_owned(&self) -> Result<(), JobManagerError> {
        let later = self.runtime.block_on(self.owners.later(hash64(&self.producer), self.epoch))?;
        match later {
            Some(by) => Err(JobManagerError::Replaced { name: self.producer.clone(), own: self.epoch, by }),
            None => Ok(()),
        }
    }

    /// Notes that a job is in the log; `tip` is how long it took from the notice of its tip, if that is new.
    fn note(&self, template: &Template, tip: Option<Duration>) {
        if let Some(took) = tip {
            let (tip, micros) = (display_hash(&template.prev_hash), took.as_micros() as u64);
            tracing::info!(height = template.height, %tip, micros, "new tip");
        }
        let mut status = self.status.lock();
        status.height = template.height;
        status.nbits = template.nbits;
        status.jobs += 1;
        status.last_job = Some(SystemTime::now());
        if let Some(took) = tip {
            status.tips += 1;
            status.tip_latency.record(took);
        }
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
}
