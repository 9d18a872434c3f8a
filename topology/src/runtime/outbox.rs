//! What a batch writes: encoded with its coordinates, appended by partition, awaited until durable.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use sluice_log::{Partition, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Epoch, EventTime, Offset, encode_into, partition_of};
use sluice_state::{StateError, Tables};

use super::error::TaskError;
use super::lanes::{Lane, LaneTail};
use super::persist;
use crate::operator::Key;

/// Which lanes a task writes on.
pub(crate) enum Lanes {
    /// One for each input: a record has the position of what it was made from.
    Inputs(Vec<Lane>),
    /// One for all of them, that of a source: records are counted, anew in each epoch.
    Source(Lane),
}

/// Stored destinations of a task.
pub(crate) struct Outbox {
    log: SharedLog,
    epoch: Epoch,
    lanes: Lanes,
    topics: Vec<Topic>,
    buffer: BytesMut,
    /// Records appended so far.
    pub(crate) appended: u64,
}

struct Topic {
    name: Arc<str>,
    outlets: Vec<Outlet>,
}

/// One destination partition.
struct Outlet {
    partition: Partition,
    slot: String,
    /// End of each lane, as the batch has moved it so far.
    tails: Vec<LaneTail>,
    moved: Vec<bool>,
    batch: Vec<Bytes>,
}

impl Outbox {
    pub(crate) fn new(log: SharedLog, epoch: Epoch, lanes: Lanes) -> Self {
        Self { log, epoch, lanes, topics: Vec::new(), buffer: BytesMut::new(), appended: 0 }
    }

    /// Index of the destination `topic`, which has this many partitions; new ones take the committed ends of lanes.
    pub(crate) fn topic(&mut self, tables: &Tables, topic: &Arc<str>, partitions: u32) -> Result<usize, StateError> {
        if let Some(known) = self.topics.iter().position(|known| known.name == *topic) {
            return Ok(known);
        }
        let mut outlets = Vec::new();
        for number in 0..partitions {
            let partition = Partition::new(Arc::clone(topic), number);
            let slot = partition.to_string();
            let tails = match &self.lanes {
                Lanes::Inputs(lanes) => {
                    let tails = lanes.iter().map(|lane| persist::tail(tables, &slot, *lane));
                    tails.collect::<Result<Vec<_>, _>>()?
                }
                // A new epoch begins with nothing before it.
                Lanes::Source(_) => vec![LaneTail::default()],
            };
            let moved = vec![false; tails.len()];
            outlets.push(Outlet { partition, slot, tails, moved, batch: Vec::new() });
        }
        self.topics.push(Topic { name: Arc::clone(topic), outlets });
        Ok(self.topics.len() - 1)
    }

    /// Adds a record to the batch, made from the record of `input` at `source`.
    ///
    /// # Errors
    /// If the key names a partition that the topic does not have.
    pub(crate) fn store(
        &mut self,
        topic: usize,
        (input, source): (usize, Offset),
        key: &Key,
        event_time: EventTime,
        body: Arc<Body>,
    ) -> Result<(), String> {
        let epoch = self.epoch;
        let topic = &mut self.topics[topic];
        let count = topic.outlets.len() as u32;
        let mut envelope = Envelope::new(event_time, Default::default(), Arc::unwrap_or_clone(body));
        let by_hash = |key: &[u8]| {
            let number = partition_of(key, count);
            number..number + 1
        };
        let chosen = match key {
            Key::Bytes(key) => by_hash(key),
            Key::Session(id) => by_hash(&id.to_be_bytes()),
            Key::Partition(number) if *number < count => *number..*number + 1,
            Key::Partition(number) => {
                return Err(format!("record for partition {number} of {}, which has {count}", topic.name));
            }
            Key::Every => 0..count,
        };
        for outlet in &mut topic.outlets[chosen.start as usize..chosen.end as usize] {
            envelope.from = Some(match &self.lanes {
                Lanes::Inputs(lanes) => {
                    outlet.moved[input] = true;
                    outlet.tails[input].next(lanes[input], epoch, source.get())
                }
                Lanes::Source(lane) => outlet.tails[0].next_of_source(*lane, epoch),
            });
            encode_into(&envelope, &mut self.buffer);
            outlet.batch.push(self.buffer.split().freeze());
        }
        Ok(())
    }

    /// Nothing waits to be appended.
    pub(crate) fn is_empty(&self) -> bool {
        self.topics.iter().flat_map(|topic| &topic.outlets).all(|outlet| outlet.batch.is_empty())
    }

    /// Appends the batch; returns once all of it is durable.
    pub(crate) async fn append(&mut self) -> Result<(), TaskError> {
        let mut appends = Vec::new();
        for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
            if outlet.batch.is_empty() {
                continue;
            }
            self.appended += outlet.batch.len() as u64;
            let append = self.log.append(&outlet.partition, std::mem::take(&mut outlet.batch));
            let partition = &outlet.partition;
            appends.push(async move {
                append.await.map_err(|error| TaskError::Append { partition: partition.clone(), error })
            });
        }
        try_join_all(appends).await.map(drop)
    }

    /// Puts the ends of lanes that moved into the next commit; a source's end with its epoch.
    pub(crate) fn save(&mut self, tables: &mut Tables) {
        let Lanes::Inputs(lanes) = &self.lanes else { return };
        for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
            for (input, moved) in outlet.moved.iter_mut().enumerate() {
                if std::mem::take(moved)
                    && let Some(position) = outlet.tails[input].last()
                {
                    persist::save_tail(tables, &outlet.slot, lanes[input], self.epoch, position);
                }
            }
        }
    }
}
