//! Who owns a task (DESIGN 5, docs/adr/0014): epochs are claimed in a topic, and an owner that was replaced hears of it.
//!
//! ```text
//! opening: claim in sluice.owners --> epoch --> fences in all output partitions --> outputs
//! working: outputs durable --> is there a later claim? --> flush, commit
//! ```
//!
//! A claim names the next epoch of the task; of two that name the same, the one that stands first has it. A claim comes
//! before its owner's fences, so an owner that finds no later claim once its outputs are durable knows that they stand
//! before the fences of whoever comes after it: what it commits then has been read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluice_failpoints::Point;
use sluice_log::{LogError, Partition, Record, Retention, SharedLog, TopicSpec};
use sluice_proto::v1::{Coordinates, Envelope, Fence};
use sluice_proto::{Body, Epoch, EventTime, Offset, RecordKind, decode, encode, hash64};

use super::reader::{READ_BYTES, ReadError};
use super::source_epoch::{EpochError, before_claims};

/// The topic of claims: one partition, kept for ever. An entry takes about 70 bytes; 100,000 of them are read in
/// about 0.15 s, once a process.
pub const OWNERS_TOPIC: &str = "sluice.owners";
/// How long one look for later claims waits for them.
const WAIT: Duration = Duration::from_secs(1);

/// Why an epoch could not be taken, or not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// A topic of the runtime's own could not be created.
    #[error("cannot create {topic}: {error}")]
    Topic {
        /// The topic.
        topic: String,
        /// What the log said.
        error: LogError,
    },
    /// Claims could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Something else than claims is in their topic.
    #[error("{OWNERS_TOPIC}/0 offset {offset} is a {found} and no claim: something else writes to the topic")]
    Foreign {
        /// Offset of the record.
        offset: Offset,
        /// What it is.
        found: &'static str,
    },
    /// A claim or a fence could not be appended.
    #[error("cannot append a claim or fence to {place}: {error}")]
    Append {
        /// The partition, or the partitions.
        place: String,
        /// What the log said.
        error: LogError,
    },
    /// The epoch that an earlier program kept cannot be read.
    #[error(transparent)]
    Kept(#[from] EpochError),
    /// The task has used up the last epoch.
    #[error("{task} has no epoch left above {last}: give it another name")]
    Exhausted {
        /// The task or service.
        task: String,
        /// The last epoch it took, or that its records in the log are of.
        last: Epoch,
    },
}

/// The owners of all tasks and services of a log, as far as this process has read their claims. One for a process:
/// tasks share what it has read. It has no thread: it reads when it is asked.
pub struct Owners {
    log: SharedLog,
    partition: Partition,
    id: Bytes,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The topic is there.
    created: bool,
    /// Offset of the next claim to read.
    next: Offset,
    /// The newest epoch by the hash of a task's name.
    newest: BTreeMap<u64, Epoch>,
}

impl Owners {
    /// The owners in `log`. `id` is the name of this process in claims and fences, random for each start (see
    /// [`sluice_log::new_uuid`]); it is for people, and decides nothing.
    pub fn new(log: SharedLog, id: [u8; 16]) -> Arc<Self> {
        let (partition, id) = (Partition::new(OWNERS_TOPIC, 0), Bytes::copy_from_slice(&id));
        Arc::new(Self { log, partition, id, known: Mutex::default() })
    }

    /// The topic of claims, for whoever creates the topics of a log.
    pub fn topic() -> TopicSpec {
        TopicSpec { name: OWNERS_TOPIC.to_owned(), partitions: 1, retention: Retention::default() }
    }

    /// The log they own tasks of.
    pub(crate) fn log(&self) -> &SharedLog {
        &self.log
    }

    /// Creates the topic of claims where it is missing, and reads what is in it.
    ///
    /// # Errors
    /// If it cannot be created or read.
    pub async fn open(&self) -> Result<(), OwnerError> {
        if !self.known.lock().created {
            self.create(&Self::topic()).await?;
            self.known.lock().created = true;
        }
        self.catch_up().await.map(drop)
    }

    /// Creates a topic of the runtime's own where it is missing.
    pub(crate) async fn create(&self, topic: &TopicSpec) -> Result<(), OwnerError> {
        let created = self.log.create_topic(topic).await.map(drop);
        created.map_err(|error| OwnerError::Topic { topic: topic.name.clone(), error })
    }

    /// Takes the next epoch of a task or service: above every one that was claimed, and above `last`. It is durable
    /// before it is returned, and nobody else ever gets it. From here on, earlier owners find themselves replaced.
    ///
    /// # Errors
    /// If the topic cannot be created, read or written, or no epoch is left.
    pub async fn claim(&self, name: &str, last: Epoch) -> Result<Epoch, OwnerError> {
        self.open().await?;
        let task = hash64(name);
        loop {
            let from = self.catch_up().await?;
            let last = last.max(self.newest(task).unwrap_or_default());
            let Some(epoch) = last.next() else { return Err(OwnerError::Exhausted { task: name.to_owned(), last }) };
            let claim = fence(task, epoch, &self.id);
            let at = self
                .log
                .append(&self.partition, vec![claim])
                .await
                .map_err(|error| OwnerError::Append { place: self.partition.to_string(), error })?;
            if self.stands_first((task, epoch), from, at).await? {
                self.catch_up().await?;
                return Ok(epoch);
            }
            tracing::info!(task = name, %epoch, "another process has claimed this epoch first");
        }
    }

    /// As [`Owners::claim`], for a service. Where the log has no claim of it, the epoch is above the one that an earlier
    /// program kept in `state_dir`.
    ///
    /// # Errors
    /// As [`Owners::claim`], and if what is kept there cannot be read.
    pub async fn claim_source(&self, name: &str, state_dir: &Path) -> Result<Epoch, OwnerError> {
        self.open().await?;
        let last = if self.newest(hash64(name)).is_some() { Epoch::default() } else { before_claims(state_dir, name)? };
        self.claim(name, last).await
    }

    /// No claim of the task between the offsets `from` and `at` has this epoch, or a later one.
    async fn stands_first(&self, own: (u64, Epoch), from: Offset, at: Offset) -> Result<bool, OwnerError> {
        let mut next = from;
        while next < at {
            let records = self.read(next, Duration::ZERO).await?;
            let Some(last) = records.last() else { break };
            next = last.offset.next();
            for record in records.iter().filter(|record| record.offset < at) {
                if claim_of(&self.partition, record)?.is_some_and(|(task, epoch)| task == own.0 && epoch >= own.1) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The newest epoch that was claimed for the task with this hash, as far as claims have been read.
    pub fn newest(&self, task: u64) -> Option<Epoch> {
        self.known.lock().newest.get(&task).copied()
    }

    /// The epoch that has replaced the epoch `own` of the task with this hash, by all claims that are durable now.
    ///
    /// # Errors
    /// If claims cannot be read.
    pub async fn later(&self, task: u64, own: Epoch) -> Result<Option<Epoch>, OwnerError> {
        self.catch_up().await?;
        Ok(self.newest(task).filter(|newest| *newest > own))
    }

    /// Reads all claims that are durable by now; returns the offset behind them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn catch_up(&self) -> Result<Offset, OwnerError> {
        let bounds = self.log.bounds(&self.partition).await;
        let end = bounds.map_err(|error| self.log_error(Offset::ZERO, error))?.next;
        loop {
            let next = self.known.lock().next;
            if next >= end {
                return Ok(next);
            }
            let records = self.read(next, Duration::ZERO).await?;
            if records.is_empty() {
                return Ok(next);
            }
            self.take(&records)?;
        }
    }

    async fn read(&self, from: Offset, wait: Duration) -> Result<Vec<Record>, ReadError> {
        let read = self.log.read(&self.partition, from, READ_BYTES, wait).await;
        read.map_err(|error| self.log_error(from, error))
    }

    /// Takes in records that were read; those that were taken in before change nothing.
    fn take(&self, records: &[Record]) -> Result<(), OwnerError> {
        let mut known = self.known.lock();
        for record in records {
            if record.offset < known.next {
                continue;
            }
            if let Some((task, epoch)) = claim_of(&self.partition, record)? {
                let newest = known.newest.entry(task).or_default();
                *newest = epoch.max(*newest);
            }
            known.next = record.offset.next();
        }
        Ok(())
    }

    fn log_error(&self, offset: Offset, error: LogError) -> ReadError {
        ReadError::Log { partition: self.partition.clone(), offset, error }
    }

    /// Appends the fence of an epoch to each of `partitions`; returns once all are durable. Behind it, readers void what
    /// earlier epochs of the task or service write.
    ///
    /// # Errors
    /// If the log fails.
    pub async fn fence(&self, name: &str, epoch: Epoch, partitions: Vec<Partition>) -> Result<(), OwnerError> {
        let record = fence(hash64(name), epoch, &self.id);
        let place = |partitions: &[Partition]| match partitions {
            [only] => only.to_string(),
            [first, ..] => format!("{first} and {} more", partitions.len() - 1),
            [] => "nothing".to_owned(),
        };
        let shown = place(&partitions);
        sluice_failpoints::pass(Point::FenceBefore);
        let batches = partitions.into_iter().map(|partition| (partition, vec![record.clone()])).collect();
        self.log.append_all(batches).await.map_err(|error| OwnerError::Append { place: shown, error })?;
        sluice_failpoints::pass(Point::FenceAfter);
        Ok(())
    }
}

/// The bytes of a claim or fence.
fn fence(task: u64, epoch: Epoch, owner: &Bytes) -> Bytes {
    let from = Coordinates { task, epoch: epoch.get(), ..Coordinates::default() };
    let body = Body::Fence(Fence { task, epoch: epoch.get(), owner: owner.clone() });
    encode(&Envelope::new(EventTime::now(), from, body))
}

/// Task and epoch of a claim; `None` for the genesis record.
fn claim_of(partition: &Partition, record: &Record) -> Result<Option<(u64, Epoch)>, OwnerError> {
    let offset = record.offset;
    let decoded = decode(record.value.clone());
    let envelope = decoded.map_err(|error| ReadError::Decode { partition: partition.clone(), offset, error })?;
    match envelope.body {
        Some(Body::Fence(fence)) => Ok(Some((fence.task, Epoch::new(fence.epoch)))),
        Some(Body::Genesis(_)) => Ok(None),
        other => {
            let found = other.as_ref().map_or("record without a body", |body| RecordKind::of(body).name());
            Err(OwnerError::Foreign { offset, found })
        }
    }
}

/// An epoch that a task holds, and its watch for a later one.
pub(crate) struct Tenure {
    owners: Arc<Owners>,
    task: u64,
    pub(crate) epoch: Epoch,
    watch: Option<BoxFuture<'static, Result<Vec<Record>, LogError>>>,
}

impl Tenure {
    /// Of the task with this name, which has claimed `epoch`.
    pub(crate) fn new(owners: Arc<Owners>, name: &str, epoch: Epoch) -> Self {
        Self { owners, task: hash64(name), epoch, watch: None }
    }

    /// The epoch that has replaced this one, by all claims that are durable now.
    pub(crate) async fn ended(&self) -> Result<Option<Epoch>, OwnerError> {
        self.owners.later(self.task, self.epoch).await
    }

    /// The epoch that has replaced this one, as far as is known; wakes the task once there are more claims.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Result<Option<Epoch>, OwnerError> {
        let owners = &self.owners;
        let from = owners.known.lock().next;
        let read = || owners.log.read(&owners.partition, from, READ_BYTES, WAIT);
        if let Poll::Ready(records) = self.watch.get_or_insert_with(read).as_mut().poll(cx) {
            self.watch = None;
            owners.take(&records.map_err(|error| owners.log_error(from, error))?)?;
            // The next look begins when the task comes round.
            cx.waker().wake_by_ref();
        }
        Ok(owners.newest(self.task).filter(|newest| *newest > self.epoch))
    }
}
