//! A place in a partition from which records come in, and the newest of those that came.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use sluice_proto::Offset;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::readers::Events;
use crate::Record;

/// Bytes of records that a cursor keeps for readers who come a little later.
const KEPT: usize = 1 << 20;
/// Records share memory, this many bytes at a time.
const PIECE: usize = 64 << 10;
/// Most bytes that are taken from librdkafka at once.
const TAKEN: usize = 256 << 10;

/// What a cursor has for a reader.
#[derive(Debug)]
pub(super) enum Found {
    Records(Vec<Record>),
    /// Nothing came in time.
    Nothing,
    /// The place is not one of this cursor's any more.
    Elsewhere,
    /// Kafka says that the position does not fit, or the partition cannot be read.
    Failed(KafkaError),
}

/// One stream of a partition, shared by all who read at about the same place.
pub(super) struct Cursor {
    queue: PartitionQueue<Events>,
    state: Mutex<State>,
    /// Something came in.
    came: Arc<Notify>,
}

struct State {
    records: VecDeque<Record>,
    bytes: usize,
    /// From where on records are here.
    first: u64,
    /// The next one to come is at this offset, or behind it.
    next: u64,
    failed: Option<KafkaError>,
    used: Instant,
    piece: BytesMut,
}

impl Cursor {
    /// A cursor on a partition that the consumer will be assigned from offset `from` on.
    pub(super) fn new(consumer: &Arc<BaseConsumer<Events>>, topic: &str, partition: i32, from: u64) -> Option<Self> {
        let came = Arc::new(Notify::new());
        let mut queue = consumer.split_partition_queue(topic, partition)?;
        let called = Arc::clone(&came);
        queue.set_nonempty_callback(move || called.notify_waiters());
        let state = State {
            records: VecDeque::new(),
            bytes: 0,
            first: from,
            next: from,
            failed: None,
            used: Instant::now(),
            piece: BytesMut::new(),
        };
        Some(Self { queue, state: Mutex::new(state), came })
    }

    /// Whether a reader at `offset` finds its records here.
    pub(super) fn covers(&self, offset: u64) -> bool {
        let state = self.state.lock();
        state.failed.is_none() && (state.first..=state.next).contains(&offset)
    }

    /// Kafka had something against it: nothing more comes.
    pub(super) fn has_failed(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// The records before `start` have been removed.
    pub(super) fn forget_before(&self, start: u64) {
        let mut state = self.state.lock();
        while let Some(oldest) = state.records.pop_front_if(|oldest| oldest.offset.get() < start) {
            state.bytes -= oldest.value.len();
        }
        state.first = state.first.max(start);
        state.next = state.next.max(start);
    }

    /// For how long nobody has read here.
    pub(super) fn idle(&self) -> Duration {
        self.state.lock().used.elapsed()
    }

    /// The records from `offset` on, about `max_bytes` of them; waits for one until `deadline`.
    pub(super) async fn read(&self, offset: u64, max_bytes: usize, deadline: Instant) -> Found {
        loop {
            // Listens before it looks, so that what comes in between is not missed.
            let mut came = pin!(self.came.notified());
            came.as_mut().enable();
            let found = self.look(offset, max_bytes);
            if !matches!(found, Found::Nothing) || Instant::now() >= deadline {
                return found;
            }
            if tokio::time::timeout_at(deadline, came).await.is_err() {
                return self.look(offset, max_bytes);
            }
        }
    }

    fn look(&self, offset: u64, max_bytes: usize) -> Found {
        let mut state = self.state.lock();
        state.used = Instant::now();
        if offset < state.first || offset > state.next {
            return Found::Elsewhere;
        }
        if state.records.back().is_none_or(|newest| newest.offset.get() < offset) && state.failed.is_none() {
            self.take(&mut state);
        }
        let at = state.records.partition_point(|record| record.offset.get() < offset);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for record in state.records.range(at..) {
            if bytes + record.value.len() > max_bytes && !found.is_empty() {
                break;
            }
            bytes += record.value.len();
            found.push(record.clone());
        }
        match &state.failed {
            _ if !found.is_empty() => Found::Records(found),
            Some(error) => Found::Failed(error.clone()),
            None => Found::Nothing,
        }
    }

    /// Takes in what librdkafka has.
    fn take(&self, state: &mut State) {
        let (mut taken, before) = (0, state.records.len());
        while taken < TAKEN {
            match self.queue.poll(Duration::ZERO) {
                Some(Ok(message)) => taken += state.keep(&message),
                Some(Err(error)) => {
                    state.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        if state.records.len() > before {
            // Others wait at the same place.
            self.came.notify_waiters();
        }
        while state.bytes > KEPT.max(taken) {
            let Some(oldest) = state.records.pop_front() else { break };
            state.bytes -= oldest.value.len();
            state.first = oldest.offset.get() + 1;
        }
    }
}

impl State {
    /// Keeps a message; returns its size.
    fn keep(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let Ok(offset) = u64::try_from(message.offset()) else { return 0 };
        // What was fetched for an earlier assignment.
        if offset < self.next {
            return 0;
        }
        let payload = message.payload().unwrap_or_default();
        if self.piece.capacity() - self.piece.len() < payload.len() {
            self.piece = BytesMut::with_capacity(PIECE.max(payload.len()));
        }
        self.piece.extend_from_slice(payload);
        let value = self.piece.split().freeze();
        self.bytes += value.len();
        self.records.push_back(Record { offset: Offset::new(offset), value });
        self.next = offset + 1;
        payload.len()
    }
}
