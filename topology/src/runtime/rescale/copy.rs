//! The history of a topic, shared out again among another number of partitions.
//!
//! Records are merged by event time, where that is the same by their old partition; within one they stay in their order.
//! So the copy is a function of the old partitions, and each session's records keep their order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sluice_log::{Partition, Record, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, EventTime, Offset, RecordKind, decode, encode_into, partition_of};

use super::{Change, RescaleError, SOURCE};
use crate::runtime::lanes::{Lane, LaneTail};
use crate::runtime::reader::{READ_BYTES, ReadError, TopicReader};

/// Bytes that wait to be appended, over all partitions.
const BATCH: usize = 1 << 20;

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Records of the old partitions that were copied.
    pub records: u64,
    /// Records that were older than asked for.
    pub older: u64,
    /// Records of each new partition, the cut among them: those that stood there and those that were appended.
    pub partitions: Vec<u64>,
    /// Of those, how many stood there from an attempt before.
    pub stood: u64,
}

/// Copies `sources`, each up to its cut, to the partitions of the new generation.
pub(super) async fn copy(
    log: &SharedLog,
    sources: Vec<(TopicReader, Offset)>,
    since: EventTime,
    change: &Change<'_>,
) -> Result<Copied, RescaleError> {
    let mut merge =
        Merge(sources.into_iter().map(|(reader, end)| Head { reader, end, ready: VecDeque::new() }).collect());
    let name = change.topic.at(change.change.generation);
    let mut targets = Vec::new();
    for number in 0..change.change.partitions {
        targets.push(Target::new(log.clone(), Partition::new(Arc::clone(&name), number)).await?);
    }
    let mut copier = Copier { log, targets, change, ticks: BTreeMap::new(), waiting: 0 };
    let mut copied = Copied::default();
    while let Some(record) = merge.next().await? {
        if record.event_time() < since {
            copied.older += 1;
        } else if copier.record(record).await? {
            copied.records += 1;
        }
    }
    for target in 0..copier.targets.len() {
        copier.put(target, change.cut_time(), change.cut_body()).await?;
    }
    copier.flush().await?;
    for target in &mut copier.targets {
        target.ended().await?;
        copied.partitions.push(target.count);
        copied.stood += target.stood;
    }
    Ok(copied)
}

/// The old partitions, each with the records that wait for their turn.
struct Merge(Vec<Head>);

struct Head {
    reader: TopicReader,
    end: Offset,
    ready: VecDeque<Envelope>,
}

impl Head {
    async fn fill(&mut self) -> Result<(), ReadError> {
        while self.ready.is_empty() && self.reader.position() < self.end {
            let records = self.reader.next_batch(Duration::ZERO).await?;
            let before = records.into_iter().filter(|(offset, _)| *offset < self.end);
            self.ready.extend(before.map(|(_, envelope)| envelope));
        }
        Ok(())
    }
}

impl Merge {
    async fn next(&mut self) -> Result<Option<Envelope>, ReadError> {
        for head in &mut self.0 {
            head.fill().await?;
        }
        // The first of the least.
        let waiting = self.0.iter_mut().filter(|head| !head.ready.is_empty());
        let first = waiting.min_by_key(|head| head.ready.front().map(Envelope::event_time));
        Ok(first.and_then(|head| head.ready.pop_front()))
    }
}

struct Copier<'a> {
    log: &'a SharedLog,
    targets: Vec<Target>,
    change: &'a Change<'a>,
    /// The newest tick of each gateway that was copied.
    ticks: BTreeMap<u32, EventTime>,
    waiting: usize,
}

impl Copier<'_> {
    /// Copies one record to where it belongs; false if it is not to be copied.
    async fn record(&mut self, record: Envelope) -> Result<bool, RescaleError> {
        let (time, count) = (record.event_time(), self.targets.len());
        match record.body {
            Some(Body::Submission(submission)) => {
                let target = partition_of(&submission.session.to_be_bytes(), count as u32);
                self.put(target as usize, time, Body::Submission(submission)).await?;
            }
            // Each old partition has a copy of a tick: one is enough, and an older one says nothing.
            Some(Body::Tick(tick)) => {
                let newest = self.ticks.get(&tick.gateway).copied().unwrap_or_default();
                if time <= newest {
                    return Ok(false);
                }
                self.ticks.insert(tick.gateway, time);
                for target in 0..count {
                    self.put(target, time, Body::Tick(tick)).await?;
                }
            }
            // The one behind the history of the generation before: its history is now this one's.
            Some(Body::Cut(_)) => return Ok(false),
            other => {
                let kind = other.as_ref().map_or("nothing", |body| RecordKind::of(body).name());
                let topic = &self.change.change.topic;
                return Err(RescaleError::Refused(format!(
                    "{topic} holds a record of kind {kind}, which is not shared out by session"
                )));
            }
        }
        Ok(true)
    }

    async fn put(&mut self, target: usize, time: EventTime, body: Body) -> Result<(), RescaleError> {
        self.waiting += self.targets[target].put(time, body, self.change).await?;
        if self.waiting >= BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RescaleError> {
        self.waiting = 0;
        let batches = self.targets.iter_mut().filter(|target| !target.batch.is_empty());
        let batches = batches.map(|target| (target.partition.clone(), std::mem::take(&mut target.batch)));
        let batches: Vec<_> = batches.collect();
        let Some((first, _)) = batches.first() else { return Ok(()) };
        let first = first.clone();
        self.log.append_all(batches).await.map_err(RescaleError::log(&first))
    }
}

/// A new partition.
struct Target {
    log: SharedLog,
    partition: Partition,
    /// Of the source that history and cut come from.
    tail: LaneTail,
    buffer: BytesMut,
    batch: Vec<Bytes>,
    /// Records that stand there already and are not compared yet; the next one to read.
    standing: VecDeque<Record>,
    next: Offset,
    end: Offset,
    count: u64,
    stood: u64,
}

impl Target {
    async fn new(log: SharedLog, partition: Partition) -> Result<Self, RescaleError> {
        let end = log.bounds(&partition).await.map_err(RescaleError::log(&partition))?.next;
        Ok(Self {
            log,
            partition,
            tail: LaneTail::default(),
            buffer: BytesMut::new(),
            batch: Vec::new(),
            standing: VecDeque::new(),
            next: Offset::ZERO,
            end,
            count: 0,
            stood: 0,
        })
    }

    /// Compares the next record with what stands there, or lets it wait to be appended; returns the bytes that wait more.
    async fn put(&mut self, time: EventTime, body: Body, change: &Change<'_>) -> Result<usize, RescaleError> {
        let from = self.tail.next_of_source(Lane::source(SOURCE, change.epoch()), change.epoch());
        encode_into(&Envelope::new(time, from, body), &mut self.buffer);
        let bytes = self.buffer.split().freeze();
        self.count += 1;
        match self.standing().await? {
            None => {
                let waiting = bytes.len();
                self.batch.push(bytes);
                Ok(waiting)
            }
            Some(there) if there.value == bytes => {
                self.stood += 1;
                Ok(0)
            }
            Some(there) => Err(self.differs(there.offset, format!("record {} of the history", self.count))),
        }
    }

    /// The next record that stands there; `None` behind the last one.
    async fn standing(&mut self) -> Result<Option<Record>, RescaleError> {
        while self.standing.is_empty() && self.next < self.end {
            let read = self.log.read(&self.partition, self.next, READ_BYTES, Duration::ZERO).await;
            let records = read.map_err(RescaleError::log(&self.partition))?;
            let Some(last) = records.last() else { break };
            self.next = last.offset.next();
            // The genesis record is the log's own.
            self.standing.extend(records.into_iter().filter(|record| record.offset > Offset::ZERO));
        }
        Ok(self.standing.pop_front())
    }

    /// Nothing stands behind the cut.
    async fn ended(&mut self) -> Result<(), RescaleError> {
        match self.standing().await? {
            None => Ok(()),
            Some(there) => {
                let what = match decode(there.value).ok().and_then(|record| record.body) {
                    Some(body) => format!("nothing, but there is a {}", RecordKind::of(&body).name()),
                    None => "nothing".to_owned(),
                };
                Err(self.differs(there.offset, what))
            }
        }
    }

    fn differs(&self, offset: Offset, expected: String) -> RescaleError {
        RescaleError::Differs { partition: self.partition.clone(), offset, expected }
    }
}
