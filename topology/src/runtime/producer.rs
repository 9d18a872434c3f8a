//! How a source (gateway, jobmanager) writes to a topic: each record gets its coordinates (DESIGN 5).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluice_log::{LogError, Partition, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Epoch, EventTime, Offset, Share, encode_into, encode_share_into, hash64, partition_of};

use super::lanes::{Lane, LaneTail};

/// Writes records of a source to one topic. A source counts its records from 1 in each partition, anew in each epoch,
/// so that readers notice a missing one and drop a repeated one. Shared by reference between threads; who writes from
/// one thread a partition takes the writers out of it.
///
/// There must be one producer for a task name and topic in an epoch: take the epoch from [`super::Owners::claim`].
pub struct Producer {
    partitions: Vec<Mutex<Writer>>,
    log: SharedLog,
    topic: Arc<str>,
}

/// Writes records of a source to one partition: collects them, encoded where they will stay, and appends them together.
/// Collecting allocates nothing but the growth of a batch beyond the one before it.
pub struct Writer {
    partition: Partition,
    lane: Lane,
    epoch: Epoch,
    tail: LaneTail,
    /// The records, one behind the other.
    buffer: BytesMut,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Writer {
    /// Puts a record behind those that wait.
    pub fn put(&mut self, event_time: EventTime, body: Body) {
        let from = self.tail.next_of_source(self.lane, self.epoch);
        encode_into(&Envelope::new(event_time, from, body), &mut self.buffer);
        self.ends.push(self.buffer.len());
    }

    /// Puts a submission behind the records that wait, as [`Writer::put`] does.
    pub fn put_share(&mut self, event_time: EventTime, share: &Share<'_>) {
        let from = self.tail.next_of_source(self.lane, self.epoch);
        encode_share_into(event_time, &from, share, &mut self.buffer);
        self.ends.push(self.buffer.len());
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The records that wait, for [`sluice_log::Log::append`]: to be appended before those of the next call. All of them share one
    /// piece of memory.
    pub fn take(&mut self) -> (Partition, Vec<Bytes>) {
        // The next batch will be about as large.
        let next = BytesMut::with_capacity(self.buffer.len() + self.buffer.len() / 8);
        let whole = std::mem::replace(&mut self.buffer, next).freeze();
        let mut start = 0;
        let record = |end| whole.slice(std::mem::replace(&mut start, end)..end);
        (self.partition.clone(), self.ends.drain(..).map(record).collect())
    }
}

impl Producer {
    /// A producer to `topic`, which has this many partitions, for the source `task_name` in its `epoch`.
    pub fn new(log: SharedLog, topic: &str, partitions: u32, task_name: &str, epoch: Epoch) -> Self {
        let topic: Arc<str> = topic.into();
        let lane = Lane::source(hash64(task_name), epoch);
        let writer = |number| Writer {
            partition: Partition::new(Arc::clone(&topic), number),
            lane,
            epoch,
            tail: LaneTail::default(),
            buffer: BytesMut::new(),
            ends: Vec::new(),
        };
        Self { partitions: (0..partitions).map(|number| Mutex::new(writer(number))).collect(), log, topic }
    }

    /// Number of partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    /// The partition that `key` belongs to.
    pub fn partition_of(&self, key: &[u8]) -> u32 {
        partition_of(key, self.partitions())
    }

    /// One writer for each partition, in order.
    pub fn into_writers(self) -> Vec<Writer> {
        self.partitions.into_iter().map(Mutex::into_inner).collect()
    }

    /// Appends `records` to a partition, in this order and behind those of earlier calls: the order is fixed by the
    /// call, not by when the future is polled. Resolves to the offset of the first once all are durable.
    ///
    /// # Errors
    /// As [`sluice_log::Log::append`]. An append that failed leaves a gap behind it on purpose: the log has stopped, and
    /// whatever would be written later must not look complete.
    pub fn append(
        &self,
        partition: u32,
        records: Vec<(EventTime, Body)>,
    ) -> BoxFuture<'static, Result<Offset, LogError>> {
        let Some(writer) = self.partitions.get(partition as usize) else {
            let unknown = Partition::new(Arc::clone(&self.topic), partition);
            return Box::pin(std::future::ready(Err(LogError::Unknown(unknown))));
        };
        let mut writer = writer.lock();
        for (event_time, body) in records {
            writer.put(event_time, body);
        }
        let (partition, batch) = writer.take();
        // Still under the lock: two calls for one partition reach the log in the order of their numbers.
        self.log.append(&partition, batch)
    }
}
