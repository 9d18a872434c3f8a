//! The one thread that writes: it takes all that is waiting, for all partitions, makes it durable with one sync, shows
//! it to the readers, and answers the callers, in this order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sluice_failpoints::{Injected, Point};
use sluice_proto::{EventTime, Offset};

use super::mark::Mark;
use super::queue::{Pending, Queue};
use super::slot::Slot;
use super::store::Store;
use crate::LogError;
use crate::chunk::{Chunk, ChunkBuilder, Head};
use crate::metrics::{Counters, count, nanos};

/// A chunk is closed once it has this many bytes: readers take chunks from disk whole.
const CHUNK_BYTES: usize = 256 << 10;

/// The writer of a log.
pub(super) struct Appender {
    pub(super) store: Arc<Store>,
    pub(super) queue: Arc<Queue>,
    pub(super) counters: Arc<Counters>,
    pub(super) mark: Mark,
    /// Bytes to commit at once, at most (one append may be larger).
    pub(super) group_bytes: usize,
}

/// What a group adds to one partition.
struct Addition {
    slot: Arc<Slot>,
    head: Head,
    /// Which appends of the group are for it.
    appends: Vec<usize>,
    bytes: usize,
    records: usize,
    chunks: Vec<Chunk>,
}

impl Appender {
    /// Works until the queue is closed or an error stops it.
    pub(super) fn run(mut self) {
        // However this thread ends, no caller may wait for ever.
        let guard = StopOnExit { queue: self.queue.clone() };
        let mut group = Vec::new();
        while self.queue.take(&mut group, self.group_bytes) {
            if let Err(error) = self.commit(&mut group) {
                self.stop(&mut group, &error);
                break;
            }
        }
        drop(guard);
    }

    fn commit(&mut self, group: &mut Vec<Pending>) -> Result<(), LogError> {
        let started = Instant::now();
        let now_ms = EventTime::now().millis();
        let mut firsts = vec![0; group.len()];
        let mut additions = additions(group);
        for addition in &mut additions {
            addition.fill(group, now_ms, &mut firsts);
        }
        sluice_failpoints::check(Point::AppendBefore).map_err(injected)?;
        self.store.write(additions.iter().flat_map(|a| a.chunks.iter().map(|c| (a.slot.partition(), c))))?;
        sluice_failpoints::check(Point::AppendAfter).map_err(injected)?;
        self.mark.advance(self.store.sequence(), additions.iter().map(|a| (a.slot.name_hash, a.head.next)));
        count(&self.counters.syncs, 1);
        count(&self.counters.commit_ns, nanos(started.elapsed()));
        for addition in additions {
            count(&self.counters.records, addition.records as u64);
            count(&self.counters.bytes, addition.bytes as u64);
            *addition.slot.head.lock() = addition.head;
            addition.slot.tail.publish(addition.chunks);
        }
        sluice_failpoints::pass(Point::AnswersBefore);
        let ended = Instant::now();
        for (pending, first) in group.drain(..).zip(firsts) {
            self.counters.append_took(ended.saturating_duration_since(pending.called));
            pending.answer(Ok(Offset::new(first)));
        }
        Ok(())
    }

    /// Nothing more may be written behind what has failed.
    fn stop(&self, group: &mut Vec<Pending>, error: &LogError) {
        let cause: Arc<str> = error.to_string().into();
        tracing::error!(%cause, "the log cannot write and has stopped");
        self.counters.stopped.store(1, Ordering::Relaxed);
        self.queue.stop(&cause);
        for pending in group.drain(..) {
            pending.answer(Err(LogError::Stopped(cause.clone())));
        }
    }
}

fn injected(error: Injected) -> LogError {
    LogError::Storage(error.to_string())
}

/// What `group` adds to each partition, in the order in which they first appear.
fn additions(group: &[Pending]) -> Vec<Addition> {
    let mut additions: Vec<Addition> = Vec::new();
    let mut known: HashMap<*const Slot, usize> = HashMap::new();
    for (index, pending) in group.iter().enumerate() {
        let at = *known.entry(Arc::as_ptr(&pending.slot)).or_insert_with(|| {
            additions.push(Addition::new(pending.slot.clone()));
            additions.len() - 1
        });
        if let Some(addition) = additions.get_mut(at) {
            addition.appends.push(index);
            addition.bytes += pending.bytes;
            addition.records += pending.batch.len();
        }
    }
    additions
}

impl Addition {
    fn new(slot: Arc<Slot>) -> Self {
        let head = *slot.head.lock();
        Self { slot, head, appends: Vec::new(), bytes: 0, records: 0, chunks: Vec::new() }
    }

    /// Puts its appends into chunks and notes the offset of each one's first record.
    fn fill(&mut self, group: &[Pending], now_ms: u64, firsts: &mut [u64]) {
        let (mut bytes, mut records) = (self.bytes, self.records);
        let mut builder: Option<ChunkBuilder> = None;
        for &index in &self.appends {
            let (Some(pending), Some(first)) = (group.get(index), firsts.get_mut(index)) else { continue };
            *first = self.head.next + builder.as_ref().map_or(0, |b| u64::from(b.count()));
            for record in &pending.batch {
                let head = &mut self.head;
                let filling =
                    builder.get_or_insert_with(|| ChunkBuilder::new(head, now_ms, bytes.min(CHUNK_BYTES), records));
                filling.push(record);
                bytes = bytes.saturating_sub(record.len());
                records = records.saturating_sub(1);
                if filling.len() >= CHUNK_BYTES {
                    self.chunks.extend(builder.take().map(|b| b.finish(head)));
                }
            }
        }
        self.chunks.extend(builder.map(|b| b.finish(&mut self.head)));
    }
}

struct StopOnExit {
    queue: Arc<Queue>,
}

impl Drop for StopOnExit {
    fn drop(&mut self) {
        let cause = if std::thread::panicking() { "the thread that writes it has failed" } else { "it was closed" };
        self.queue.stop(&cause.into());
    }
}
