//! A log that fails at chosen appends: how a process dies between its append and its commit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use sluice_log::{Bounds, Log, LogError, Partition, Record, SharedLog, TopicInfo, TopicSpec};
use sluice_proto::Offset;

/// What becomes of an append by the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// It becomes durable.
    Durable,
    /// It becomes durable, but the process dies before it hears of it.
    Unheard,
    /// The process dies before it.
    Lost,
}

/// A log whose next appends by tasks meet their fates; those behind them become durable.
pub struct FaultyLog {
    inner: SharedLog,
    fates: Mutex<VecDeque<Append>>,
    died: AtomicU64,
    /// Bytes of a read, at most: it decides where batches end.
    read_bytes: AtomicUsize,
}

impl FaultyLog {
    pub fn new(inner: SharedLog) -> Arc<Self> {
        let read_bytes = AtomicUsize::new(usize::MAX);
        Arc::new(Self { inner, fates: Mutex::default(), died: AtomicU64::new(0), read_bytes })
    }

    /// The log without faults, for those that write to the tasks.
    pub fn sound(&self) -> SharedLog {
        self.inner.clone()
    }

    /// The fates of the next appends.
    pub fn then(&self, fates: &[Append]) {
        self.fates.lock().unwrap().extend(fates);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.fates.lock().unwrap().clear();
    }

    /// How many appends have failed.
    pub fn died(&self) -> u64 {
        self.died.load(Ordering::Relaxed)
    }

    /// Reads return about this many bytes, at most.
    pub fn cut_reads(&self, bytes: usize) {
        self.read_bytes.store(bytes, Ordering::Relaxed);
    }

    fn dead(&self) -> LogError {
        self.died.fetch_add(1, Ordering::Relaxed);
        LogError::Stopped("the process dies here".into())
    }
}

impl Log for FaultyLog {
    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        self.inner.create_topic(spec)
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        self.inner.topics()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        match self.fates.lock().unwrap().pop_front().unwrap_or(Append::Durable) {
            Append::Durable => self.inner.append(to, batch),
            Append::Unheard => {
                let (durable, dead) = (self.inner.append(to, batch), self.dead());
                Box::pin(async move {
                    durable.await?;
                    Err(dead)
                })
            }
            Append::Lost => Box::pin(std::future::ready(Err(self.dead()))),
        }
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        self.inner.read(from, offset, max_bytes.min(self.read_bytes.load(Ordering::Relaxed)), wait)
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.inner.bounds(of)
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        self.inner.trim(of, before)
    }
}
