//! Logs with a handle on when appends become durable, and whether.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use sluice_log::{Bounds, Log, LogError, MemoryLog, Partition, Record, TopicInfo, TopicSpec};
use sluice_proto::{Body, Offset, RecordKind, decode};
use tokio::sync::watch;

/// A log in memory whose appends of submissions resolve only while the gate is open, and fail once it is broken.
pub struct GatedLog {
    inner: Arc<MemoryLog>,
    open: watch::Sender<bool>,
    broken: AtomicBool,
    /// Kinds of the records appended, in the order of the calls, without ticks.
    calls: Mutex<Vec<RecordKind>>,
    called: watch::Sender<usize>,
}

impl GatedLog {
    /// A log with its gate open.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryLog::new(),
            open: watch::Sender::new(true),
            broken: AtomicBool::new(false),
            calls: Mutex::default(),
            called: watch::Sender::new(0),
        })
    }

    /// Opens or closes the gate.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Lets every append of submissions fail from here on.
    pub fn break_it(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// What was appended, in the order of the calls.
    pub fn calls(&self) -> Vec<RecordKind> {
        self.calls.lock().clone()
    }

    /// Waits until this many records were handed to the log.
    pub async fn called(&self, count: usize) {
        let mut called = self.called.subscribe();
        let wait = called.wait_for(|called| *called >= count);
        tokio::time::timeout(crate::pool::GUARD, wait).await.expect("the log was not called").unwrap();
    }
}

impl Log for GatedLog {
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
        let kinds = batch.iter().map(|record| RecordKind::of(decode(record.clone()).unwrap().body.as_ref().unwrap()));
        let kinds: Vec<_> = kinds.filter(|kind| *kind != RecordKind::Tick).collect();
        let gated = kinds.contains(&RecordKind::Submission);
        self.calls.lock().extend(&kinds);
        self.called.send_modify(|called| *called += kinds.len());
        if gated && self.broken.load(Ordering::SeqCst) {
            return ready(Err(LogError::Stopped("the disk is full".into()))).boxed();
        }
        let mut open = self.open.subscribe();
        let (inner, to) = (Arc::clone(&self.inner), to.clone());
        if !gated {
            return inner.append(&to, batch);
        }
        // Not durable, and not to be read, before the gate is open. Ticks of the partition may come before it: the test
        // looks at submissions only.
        async move {
            open.wait_for(|open| *open).await.map_err(|_| LogError::Stopped("the test has ended".into()))?;
            inner.append(&to, batch).await
        }
        .boxed()
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        self.inner.read(from, offset, max_bytes, wait)
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.inner.bounds(of)
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        self.inner.trim(of, before)
    }
}

/// Everything in the partition.
pub async fn records(log: &dyn Log, partition: &Partition) -> Vec<(Offset, sluice_proto::v1::Envelope)> {
    let end = log.bounds(partition).await.unwrap().next;
    let (mut all, mut from) = (Vec::new(), Offset::ZERO);
    while from < end {
        for record in log.read(partition, from, 1 << 20, Duration::ZERO).await.unwrap() {
            from = record.offset.next();
            let envelope = decode(record.value).unwrap();
            if !matches!(envelope.body, Some(Body::Genesis(_))) {
                all.push((record.offset, envelope));
            }
        }
    }
    all
}
