//! The feed of jobs: reads `mining.jobs`, renders each notify once, and hands jobs to all workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_log::{Bounds, Partition, SharedLog};
use sluice_mining::{Chain, wire};
use sluice_proto::v1::{Envelope, Job};
use sluice_proto::{Body, EventTime, Offset, decode};
use sluice_topology::runtime::TopicReader;
use tokio::sync::mpsc::Sender;

use crate::GatewayError;

/// Longest wait for the next job before asking again.
const POLL: Duration = Duration::from_secs(5);
/// Jobs looked at behind the newest, at first.
const FIRST_STEP: u64 = 64;
/// What a start goes back beyond twice the life of the newest job.
const MARGIN: Duration = Duration::from_secs(600);

/// A job as all sessions get it.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    /// Id of the job.
    pub(crate) job_id: u64,
    /// Version bits that miners may roll.
    pub(crate) version_mask: u32,
    /// The notify that says that earlier jobs are stale.
    pub(crate) clean: Bytes,
    /// The notify that does not.
    pub(crate) plain: Bytes,
}

impl Rendered {
    /// Renders a job.
    pub(crate) fn new(job: &Job) -> Self {
        let line = |clean: bool| {
            let params = wire::notify_params(job, clean);
            Bytes::from(format!("{{\"id\":null,\"method\":\"mining.notify\",\"params\":{params}}}\n"))
        };
        Self { job_id: job.job_id, version_mask: job.version_mask, clean: line(true), plain: line(false) }
    }
}

/// Jobs that were read together. Workers apply all and send the last.
#[derive(Debug)]
pub(crate) struct JobBatch {
    /// Offset, when it was written, and the job; at least one.
    pub(crate) jobs: Vec<(Offset, EventTime, Job)>,
    /// The last one.
    pub(crate) rendered: Arc<Rendered>,
    /// One of them is for a new tip.
    pub(crate) clean: bool,
    /// When it was taken out of the log.
    pub(crate) read: Instant,
}

/// Jobs on their way to a worker.
pub(crate) struct Handed {
    /// The jobs.
    pub(crate) batch: Arc<JobBatch>,
    /// Dropped by the worker when it has sent them to all its miners.
    pub(crate) sending: Sender<()>,
}

/// Reads jobs.
pub(crate) struct JobFeed {
    name: String,
    chain: Chain,
    reader: TopicReader,
}

impl JobFeed {
    /// A feed of the topic `jobs` for the gateway `name`, and the jobs that are there: from before the oldest that can
    /// still be cited up to the newest. Where the newest one is said to be (`hint`: offset and id) and the log has it there, it
    /// begins with that one: sessions that begin now cite none before it.
    ///
    /// # Errors
    /// If the topic cannot be read or holds something else.
    pub(crate) async fn open(
        log: SharedLog,
        topic: &str,
        name: &str,
        chain: Chain,
        hint: Option<(Offset, u64)>,
    ) -> Result<(Self, Vec<Arc<JobBatch>>), GatewayError> {
        let failed = |error| GatewayError::Log { name: name.to_owned(), error };
        let partition = Partition::new(topic, 0);
        let bounds = log.bounds(&partition).await.map_err(failed)?;
        let from = match confirmed(&log, &partition, bounds, hint).await.map_err(failed)? {
            None => first_offset(&log, &partition, bounds).await.map_err(failed)?,
            confirmed => confirmed,
        };
        let reader = match from {
            Some(from) => TopicReader::new(log, partition, from),
            None => TopicReader::from_oldest(log, partition).await.map_err(|error| read_error(name, error))?,
        };
        let mut feed = Self { name: name.to_owned(), chain, reader };
        let mut batches = Vec::new();
        while feed.reader.position() < bounds.next {
            // Offsets may have holes: where nothing comes at once, nothing is there.
            let before = feed.reader.position();
            batches.extend(feed.next(Duration::ZERO).await?);
            if feed.reader.position() == before {
                break;
            }
        }
        Ok((feed, batches))
    }

    /// The next jobs; waits for them.
    pub(crate) async fn next_batch(&mut self) -> Result<Arc<JobBatch>, GatewayError> {
        loop {
            if let Some(batch) = self.next(POLL).await? {
                return Ok(batch);
            }
        }
    }

    async fn next(&mut self, wait: Duration) -> Result<Option<Arc<JobBatch>>, GatewayError> {
        let records = self.reader.next_batch(wait).await.map_err(|error| read_error(&self.name, error))?;
        let read = Instant::now();
        let jobs = records.into_iter().map(|(offset, envelope)| self.job(offset, envelope));
        let jobs = jobs.collect::<Result<Vec<_>, _>>()?;
        let Some((_, _, last)) = jobs.last() else { return Ok(None) };
        let (rendered, clean) = (Arc::new(Rendered::new(last)), jobs.iter().any(|(_, _, job)| job.clean));
        Ok(Some(Arc::new(JobBatch { jobs, rendered, clean, read })))
    }

    fn job(&self, offset: Offset, envelope: Envelope) -> Result<(Offset, EventTime, Job), GatewayError> {
        let issued = envelope.event_time();
        let problem = match envelope.body {
            Some(Body::Job(job)) if job.network == self.chain.as_str() => return Ok((offset, issued, job)),
            Some(Body::Job(job)) => format!(
                "the job at offset {offset} is for the chain {}, this gateway serves {}: correct the network or the wiring",
                job.network, self.chain
            ),
            _ => format!("the record at offset {offset} of its topic of jobs is no job: correct the wiring"),
        };
        Err(GatewayError::Job { name: self.name.clone(), problem })
    }
}

fn read_error(name: &str, error: sluice_topology::runtime::ReadError) -> GatewayError {
    GatewayError::Read { name: name.to_owned(), error: Box::new(error) }
}

/// The offset of the hint, if the job that it names stands there.
async fn confirmed(
    log: &SharedLog,
    partition: &Partition,
    bounds: Bounds,
    hint: Option<(Offset, u64)>,
) -> Result<Option<Offset>, sluice_log::LogError> {
    let Some((at, job_id)) = hint.filter(|(at, _)| (bounds.start..bounds.next).contains(at)) else { return Ok(None) };
    let there = job_at(log, partition, at.get()).await?;
    let right = there.is_some_and(|(offset, _, job)| (offset, job.job_id) == (at, job_id));
    if !right {
        tracing::warn!(%partition, offset = %at, "another job than the cache says: it is not believed");
    }
    Ok(right.then_some(at))
}

/// Where to begin so that every job that can still be cited is read: months of jobs may be in the topic. Steps back from
/// the end, twice as far each time. `None` begins with the oldest.
async fn first_offset(
    log: &SharedLog,
    partition: &Partition,
    bounds: Bounds,
) -> Result<Option<Offset>, sluice_log::LogError> {
    let Some((newest, newest_issued, job)) = newest_job(log, partition, bounds).await? else { return Ok(None) };
    let reach = 2 * u64::from(job.keep_ms) * 1_000_000 + MARGIN.as_nanos() as u64;
    let mut step = FIRST_STEP;
    while let Some(at) = newest.checked_sub(step).filter(|at| *at > bounds.start.get().max(1)) {
        match job_at(log, partition, at).await? {
            Some((offset, issued, _)) if newest_issued.nanos_since(issued) > reach => return Ok(Some(offset)),
            _ => step *= 2,
        }
    }
    Ok(None)
}

/// The newest job with its offset: fences may stand behind it, and offsets may have holes.
async fn newest_job(
    log: &SharedLog,
    partition: &Partition,
    bounds: Bounds,
) -> Result<Option<(u64, EventTime, Job)>, sluice_log::LogError> {
    let first = bounds.start.get().max(1);
    let newest_first = (first..bounds.next.get()).rev().take(FIRST_STEP as usize);
    for offset in newest_first {
        if let Some((offset, issued, job)) = job_at(log, partition, offset).await? {
            return Ok(Some((offset.get(), issued, job)));
        }
    }
    Ok(None)
}

/// The job at or behind `offset`, with its offset; `None` if another record stands there.
async fn job_at(
    log: &SharedLog,
    partition: &Partition,
    offset: u64,
) -> Result<Option<(Offset, EventTime, Job)>, sluice_log::LogError> {
    let records = log.read(partition, Offset::new(offset), 1, Duration::ZERO).await?;
    let Some(record) = records.into_iter().next() else { return Ok(None) };
    // What cannot be read here is reported when the reader comes to it.
    let Ok(envelope) = decode(record.value) else { return Ok(None) };
    let issued = envelope.event_time();
    Ok(match envelope.body {
        Some(Body::Job(job)) => Some((record.offset, issued, job)),
        _ => None,
    })
}
