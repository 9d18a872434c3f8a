//! The durable end of a partition in memory: its bounds, its newest chunks, and those who wait for more.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::Offset;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::chunk::Chunk;
use crate::{Bounds, LogError, Partition, Record};

/// What a look at the tail brought.
#[derive(Debug)]
pub(crate) enum Found {
    /// Records for the reader.
    Records(Vec<Record>),
    /// The records from `from` on are durable but no longer in memory: read them from the storage, those before `end`
    /// only. `genesis` goes before them.
    Older { genesis: Option<Record>, from: u64, end: u64 },
    /// Nothing yet.
    Nothing,
}

/// The durable end of a partition.
#[derive(Debug)]
pub(crate) struct Tail {
    partition: Partition,
    genesis: Bytes,
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Debug)]
struct State {
    start: u64,
    next: u64,
    /// Without gaps up to `next`.
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Bytes of chunks to keep at most; if it is not 0, the newest chunk is kept however large it is.
    limit: usize,
    closed: bool,
}

impl Tail {
    /// The tail of a partition with these bounds, none of whose records are in memory but the genesis record.
    pub(crate) fn new(partition: Partition, genesis: Bytes, start: u64, next: u64, limit: usize) -> Self {
        let state = State { start, next, chunks: VecDeque::new(), bytes: 0, limit, closed: false };
        Self { partition, genesis, state: Mutex::new(state), grown: Notify::new() }
    }

    /// The partition.
    pub(crate) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What can be read.
    pub(crate) fn bounds(&self) -> Bounds {
        let state = self.state.lock();
        Bounds { start: Offset::new(state.start), next: Offset::new(state.next) }
    }

    /// Makes durable chunks visible and wakes those who wait.
    pub(crate) fn publish(&self, chunks: impl IntoIterator<Item = Chunk>) {
        let mut dropped = Vec::new();
        {
            let mut state = self.state.lock();
            for chunk in chunks {
                state.next = chunk.end();
                state.bytes += chunk.data.len();
                state.chunks.push_back(chunk);
            }
            let always = usize::from(state.limit > 0);
            while state.bytes > state.limit && state.chunks.len() > always {
                dropped.extend(state.pop_front());
            }
        }
        self.grown.notify_waiters();
        // Memory is given back outside the lock.
        drop(dropped);
    }

    /// Moves the start to `start`, and forgets the chunks that lie before it.
    pub(crate) fn trim(&self, start: u64) {
        let mut dropped = Vec::new();
        let mut state = self.state.lock();
        state.start = state.start.max(start);
        while state.chunks.len() > 1 && state.chunks.front().is_some_and(|c| c.end() <= start) {
            dropped.extend(state.pop_front());
        }
        drop(state);
    }

    /// Ends all waiting: nothing will come any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.grown.notify_waiters();
    }

    /// The records from `offset` on, as far as they are in memory.
    pub(crate) fn find(&self, offset: u64, max_bytes: usize) -> Result<Found, LogError> {
        let state = self.state.lock();
        self.check(&state, offset)?;
        let genesis = (offset == 0).then(|| Record { offset: Offset::ZERO, value: self.genesis.clone() });
        let from = if offset == 0 { state.start.max(1) } else { offset };
        if from >= state.next {
            return Ok(genesis.map_or(Found::Nothing, |g| Found::Records(vec![g])));
        }
        let Some(chunks) = state.from(from, max_bytes) else {
            return Ok(Found::Older { genesis, from, end: state.next });
        };
        drop(state);
        self.collect(&chunks, from, max_bytes, genesis).map(Found::Records)
    }

    fn collect(
        &self,
        chunks: &[Chunk],
        from: u64,
        max_bytes: usize,
        genesis: Option<Record>,
    ) -> Result<Vec<Record>, LogError> {
        let mut records: Vec<_> = genesis.into_iter().collect();
        let mut left = max_bytes;
        for chunk in chunks {
            let taken = chunk
                .read(from.max(chunk.first), left, &mut records)
                .map_err(|e| LogError::Corrupt(format!("{} in memory at {}: {e}", self.partition, chunk.first)))?;
            left = left.saturating_sub(taken);
            let whole = records.last().is_some_and(|r| r.offset.get() + 1 == chunk.end());
            if left == 0 || !whole {
                break;
            }
        }
        Ok(records)
    }

    fn check(&self, state: &State, offset: u64) -> Result<(), LogError> {
        if state.closed {
            return Err(LogError::Stopped("it was closed".into()));
        }
        if offset == 0 || (state.start..=state.next).contains(&offset) {
            return Ok(());
        }
        Err(LogError::OutOfRange {
            partition: self.partition.clone(),
            asked: Offset::new(offset),
            start: Offset::new(state.start),
            next: Offset::new(state.next),
        })
    }

    /// As [`Tail::find`], but waits up to `wait` for something to be there. Needs a tokio runtime with time.
    pub(crate) async fn find_or_wait(&self, offset: u64, max_bytes: usize, wait: Duration) -> Result<Found, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            // Listens before it looks, so that what is published in between is not missed.
            let mut grown = pin!(self.grown.notified());
            grown.as_mut().enable();
            let found = self.find(offset, max_bytes)?;
            if wait.is_zero() || !matches!(found, Found::Nothing) {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, grown).await.is_err() {
                return Ok(Found::Nothing);
            }
        }
    }
}

impl State {
    fn pop_front(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.data.len();
        Some(chunk)
    }

    /// The chunks from the one that holds `from` on, enough for `max_bytes`; `None` if that one is not in memory.
    fn from(&self, from: u64, max_bytes: usize) -> Option<Vec<Chunk>> {
        if self.chunks.front().is_none_or(|c| c.first > from) {
            return None;
        }
        let index = self.chunks.partition_point(|c| c.end() <= from);
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for chunk in self.chunks.range(index..) {
            // The first may be read from its middle: its bytes do not count.
            bytes += if chunks.is_empty() { 0 } else { chunk.data.len() };
            chunks.push(chunk.clone());
            if bytes >= max_bytes {
                break;
            }
        }
        Some(chunks)
    }
}
