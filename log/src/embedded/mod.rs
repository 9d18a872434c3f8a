//! The log inside the process, on RocksDB (DESIGN 4): one machine, one disk, durable by one sync per group commit.
//!
//! - A column family per partition; chunks of records under the offset of their first record.
//! - One thread writes. It takes everything that waits, for all partitions, and makes it durable with one synced write.
//! - The newest chunks of each partition stay in memory: a reader at the tail never touches the database.
//!
//! # Queue
//! An append is in the queue, in its place, when the call returns; its future waits until it is durable. The queue holds
//! what callers have in flight and no more, so callers bound it by the futures they keep: a task has one at a time, a
//! gateway as many as its sessions may have submissions in flight. Beyond `queue_bytes` appends are still taken, since an
//! append left out would be a hole in the order of its lane, but the metric `queue_full` counts and a warning is logged
//! at most once a second. One commit takes `group_bytes` at most.

mod appender;
mod follower;
mod lock;
mod mark;
mod queue;
mod retention;
mod slot;
mod store;
mod tuning;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use sluice_proto::{EventTime, Offset};
use tokio::sync::oneshot;

pub use follower::LogFollower;
pub use lock::is_written;

use crate::metrics::{Counters, LogMetrics, count};
use crate::tail::Found;
use crate::{Bounds, Log, LogError, Partition, Record, Retention, TopicInfo, TopicSpec};
use appender::Appender;
use mark::{Mark, Marked};
use queue::{Pending, Queue, closed};
use slot::Slot;
use store::Store;

/// How to open a log. [`EmbeddedOptions::new`] has the defaults.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Directory of the log; made if it is not there.
    pub dir: PathBuf,
    /// Bytes of waiting appends above which the log warns that callers are faster than the disk. 64 MiB.
    pub queue_bytes: usize,
    /// Bytes of records to commit at once, at most; a single larger append is committed alone. 4 MiB.
    pub group_bytes: usize,
    /// Bytes of each partition's newest records to keep in memory for readers at the tail. 4 MiB.
    pub tail_bytes: usize,
    /// Bytes of all memtables. 256 MiB.
    pub write_buffer_bytes: usize,
    /// Bytes of the write-ahead log; opening after a crash reads at most about that much. 128 MiB.
    pub wal_bytes: u64,
    /// Block cache shared with other databases of the process; if `None` the log has its own.
    pub block_cache: Option<rocksdb::Cache>,
    /// Bytes of the log's own block cache. 32 MiB.
    pub block_cache_bytes: usize,
    /// Compress what is on disk (LZ4): less disk for more CPU. Off.
    pub compress: bool,
    /// How often records beyond their retention are looked for. One minute.
    pub retention_interval: Duration,
    /// The identity of another log that this one is to go on with; a log that begins makes one of its own otherwise.
    pub uuid: Option<[u8; 16]>,
}

impl EmbeddedOptions {
    /// The defaults for a log in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            queue_bytes: 64 << 20,
            group_bytes: 4 << 20,
            tail_bytes: 4 << 20,
            write_buffer_bytes: 256 << 20,
            wal_bytes: 128 << 20,
            block_cache: None,
            block_cache_bytes: 32 << 20,
            compress: false,
            retention_interval: Duration::from_secs(60),
            uuid: None,
        }
    }
}

/// A log inside the process; see `log/src/embedded`. Closed by [`EmbeddedLog::close`] or when dropped.
pub struct EmbeddedLog {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    uuid: [u8; 16],
    options: EmbeddedOptions,
    /// `None` once the log is closed.
    store: RwLock<Option<Arc<Store>>>,
    topics: RwLock<BTreeMap<Arc<str>, TopicInfo>>,
    slots: RwLock<HashMap<Partition, Arc<Slot>>>,
    /// Held while a topic is created.
    creating: Mutex<()>,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    pace: retention::Pace,
    /// Second of the last warning about a full queue.
    warned: AtomicU64,
}

impl EmbeddedLog {
    /// Opens the log in `options.dir`, or creates one. Reads what a crash has left in the write-ahead log.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another process has it, [`LogError::Corrupt`] if it is damaged or of another program,
    /// [`LogError::Storage`] if the directory cannot be used.
    pub fn open(options: EmbeddedOptions) -> Result<Arc<Self>, LogError> {
        let store = Arc::new(Store::open(&options)?);
        let inner = Arc::new(Inner::new(options, &store)?);
        let marked = check_mark(&store, &inner.slots.read())?;
        let mark = Mark::open(store.dir(), marked)
            .map_err(|e| LogError::Storage(format!("{}: {e}", store.dir().display())))?;
        let appender = Appender {
            store,
            queue: inner.queue.clone(),
            counters: inner.counters.clone(),
            mark,
            group_bytes: inner.options.group_bytes,
        };
        let threads = vec![
            spawn("log-append", move || appender.run())?,
            spawn("log-retention", {
                let inner = inner.clone();
                move || inner.keep_retention()
            })?,
        ];
        Ok(Arc::new(Self { inner, threads: Mutex::new(threads) }))
    }

    /// Makes durable what was appended, writes everything out, and gives the directory free. Readers and later calls
    /// get [`LogError::Stopped`]. Blocks; does nothing the second time.
    ///
    /// # Errors
    /// If writing out fails. What was acknowledged is safe even then.
    pub fn close(&self) -> Result<(), LogError> {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.inner.queue.close();
        self.inner.pace.end();
        for thread in threads {
            // A thread that panicked has said so, and has stopped the queue.
            let _ = thread.join();
        }
        self.inner.close_store()
    }

    /// The counters now.
    pub fn metrics(&self) -> LogMetrics {
        self.inner.counters.read(self.inner.queue.bytes() as u64)
    }

    /// Removes what is beyond its retention now, as the background pass does by itself. Blocks.
    ///
    /// # Errors
    /// The last error of any partition.
    pub fn enforce_retention(&self) -> Result<(), LogError> {
        self.inner.enforce_retention()
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the log could not be written out; what was acknowledged is safe");
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|e| LogError::Storage(format!("no thread for the log: {e}")))
}

/// Refuses a log with a partition that has recovered less than it had acknowledged; what is marked from now on.
fn check_mark(store: &Store, slots: &HashMap<Partition, Arc<Slot>>) -> Result<Marked, LogError> {
    let end = |slot: &Arc<Slot>| (slot.name_hash, (slot.partition().clone(), slot.head.lock().next));
    let ends: BTreeMap<u64, (Partition, u64)> = slots.values().map(end).collect();
    Marked::read(store.dir()).check(store.dir(), &ends)?;
    let heads = ends.iter().map(|(name, (_, next))| (*name, *next)).collect();
    Ok(Marked { sequence: store.sequence(), heads })
}

impl Inner {
    fn new(options: EmbeddedOptions, store: &Arc<Store>) -> Result<Self, LogError> {
        let mut topics = BTreeMap::new();
        let mut slots = HashMap::new();
        for info in store.topics()? {
            for partition in info.all() {
                let found = store.find(partition.clone(), info.partitions)?;
                slots.insert(partition, Arc::new(Slot::new(found, options.tail_bytes)));
            }
            topics.insert(info.name.clone(), info);
        }
        Ok(Self {
            uuid: store.uuid(),
            options,
            store: RwLock::new(Some(store.clone())),
            topics: RwLock::new(topics),
            slots: RwLock::new(slots),
            creating: Mutex::new(()),
            queue: Arc::default(),
            counters: Arc::default(),
            pace: retention::Pace::default(),
            warned: AtomicU64::new(0),
        })
    }

    fn store(&self) -> Result<Arc<Store>, LogError> {
        self.store.read().clone().ok_or_else(closed)
    }

    fn slot(&self, of: &Partition) -> Result<Arc<Slot>, LogError> {
        self.slots.read().get(of).cloned().ok_or_else(|| LogError::Unknown(of.clone()))
    }

    fn create(&self, spec: &TopicSpec) -> Result<TopicInfo, LogError> {
        spec.check()?;
        let _creating = self.creating.lock();
        let info = spec.info();
        let existing = self.topics.read().get(&info.name).cloned();
        let store = self.store()?;
        match existing {
            Some(existing) => {
                existing.check_count(spec)?;
                if existing.retention != info.retention {
                    store.put_topic(&info)?;
                }
            }
            None => {
                let found = store.create_topic(&info)?;
                let slots =
                    found.into_iter().map(|f| (f.partition.clone(), Arc::new(Slot::new(f, self.options.tail_bytes))));
                self.slots.write().extend(slots);
            }
        }
        self.topics.write().insert(info.name.clone(), info.clone());
        Ok(info)
    }

    fn enqueue(&self, to: &Partition, batch: Vec<Bytes>) -> Result<oneshot::Receiver<queue::Answer>, LogError> {
        crate::check_batch(to, &batch)?;
        let slot = self.slot(to)?;
        let (done, answer) = oneshot::channel();
        if batch.is_empty() {
            let next = slot.tail.bounds().next;
            // The receiver is in our hands: this cannot fail.
            let _ = done.send(Ok(next));
            return Ok(answer);
        }
        self.push(vec![pending(slot, batch, Some(done))])?;
        Ok(answer)
    }

    /// Enqueues all of `batches` or none; `None` if there is nothing to wait for.
    fn enqueue_all(
        &self,
        batches: Vec<(Partition, Vec<Bytes>)>,
    ) -> Result<Option<oneshot::Receiver<queue::Answer>>, LogError> {
        let mut appends = Vec::with_capacity(batches.len());
        for (to, batch) in batches {
            crate::check_batch(&to, &batch)?;
            let slot = self.slot(&to)?;
            if !batch.is_empty() {
                appends.push(pending(slot, batch, None));
            }
        }
        let Some(last) = appends.last_mut() else { return Ok(None) };
        let (done, answer) = oneshot::channel();
        last.done = Some(done);
        self.push(appends)?;
        Ok(Some(answer))
    }

    fn push(&self, appends: Vec<Pending>) -> Result<(), LogError> {
        let waiting = self.queue.push(appends)?;
        if waiting > self.options.queue_bytes {
            self.warn_full(waiting);
        }
        Ok(())
    }

    fn warn_full(&self, waiting: usize) {
        count(&self.counters.queue_full, 1);
        let second = EventTime::now().secs();
        if self.warned.swap(second, Ordering::Relaxed) != second {
            tracing::warn!(
                waiting,
                bound = self.options.queue_bytes,
                "appends come faster than the disk makes them durable"
            );
        }
    }

    fn keep_retention(&self) {
        while self.pace.wait(self.options.retention_interval) {
            // Errors are logged where they happen; the next pass tries again.
            let _ = self.enforce_retention();
        }
    }

    fn enforce_retention(&self) -> Result<(), LogError> {
        let retention: HashMap<Arc<str>, Retention> =
            self.topics.read().values().map(|t| (t.name.clone(), t.retention)).collect();
        let slots: Vec<_> = self
            .slots
            .read()
            .values()
            .filter_map(|s| Some((s.clone(), *retention.get(&s.partition().topic)?)))
            .collect();
        retention::pass(&*self.store()?, &slots, &self.counters)
    }

    fn close_store(&self) -> Result<(), LogError> {
        let Some(store) = self.store.write().take() else { return Ok(()) };
        let slots: Vec<_> = self.slots.read().values().cloned().collect();
        slots.iter().for_each(|s| s.tail.close());
        let stopped = self.counters.stopped.load(Ordering::Relaxed) != 0;
        let partitions: Vec<_> = slots.iter().map(|s| s.partition().clone()).collect();
        // After an I/O error there is nothing to write out to; the write-ahead log has what was acknowledged.
        let flushed = if stopped { Ok(()) } else { store.flush(&partitions) };
        // Reads from disk that are under way end soon; the database is closed when the last one is done.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Arc::strong_count(&store) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        flushed
    }
}

fn pending(slot: Arc<Slot>, batch: Vec<Bytes>, done: Option<oneshot::Sender<queue::Answer>>) -> Pending {
    let bytes = batch.iter().map(Bytes::len).sum();
    Pending { slot, batch, bytes, called: Instant::now(), done }
}

async fn read_older(
    store: Weak<Store>,
    slot: Arc<Slot>,
    mut records: Vec<Record>,
    from: u64,
    end: u64,
    max_bytes: usize,
) -> Result<Vec<Record>, LogError> {
    let work = move || {
        let store = store.upgrade().ok_or_else(closed)?;
        let before = records.len();
        store.read(slot.partition(), from, end, max_bytes, &mut records)?;
        if records.len() > before {
            return Ok(records);
        }
        let Bounds { start, next } = slot.tail.bounds();
        let partition = slot.partition().clone();
        if start.get() <= from {
            return Err(LogError::Corrupt(format!(
                "{}: offset {from} of {partition} is missing",
                store.dir().display()
            )));
        }
        Err(LogError::OutOfRange { partition, asked: Offset::new(from), start, next })
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(LogError::Storage(format!("a read from the log failed: {e}"))))
}

impl Log for EmbeddedLog {
    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        let (inner, spec) = (self.inner.clone(), spec.clone());
        async move {
            let done = tokio::task::spawn_blocking(move || inner.create(&spec)).await;
            done.unwrap_or_else(|e| Err(LogError::Storage(format!("creating a topic failed: {e}"))))
        }
        .boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        ready(Ok(self.inner.topics.read().values().cloned().collect())).boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        match self.inner.enqueue(to, batch) {
            Ok(answer) => answer.map(|done| done.unwrap_or_else(|_| Err(closed()))).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn append_all(&self, batches: Vec<(Partition, Vec<Bytes>)>) -> BoxFuture<'static, Result<(), LogError>> {
        match self.inner.enqueue_all(batches) {
            Ok(Some(answer)) => answer.map(|done| done.unwrap_or_else(|_| Err(closed())).map(drop)).boxed(),
            Ok(None) => ready(Ok(())).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        let slot = self.inner.slot(from);
        // A reader that waits must not keep the log from being closed.
        let store = self.inner.store.read().as_ref().map(Arc::downgrade).unwrap_or_default();
        let counters = self.inner.counters.clone();
        async move {
            let slot = slot?;
            match slot.tail.find_or_wait(offset.get(), max_bytes, wait).await? {
                Found::Nothing => Ok(Vec::new()),
                Found::Records(records) => {
                    count(&counters.tail_reads, 1);
                    Ok(records)
                }
                Found::Older { genesis, from, end } => {
                    count(&counters.disk_reads, 1);
                    read_older(store, slot, genesis.into_iter().collect(), from, end, max_bytes).await
                }
            }
        }
        .boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        ready(self.inner.slot(of).map(|s| s.tail.bounds())).boxed()
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        let (inner, slot) = (self.inner.clone(), self.inner.slot(of));
        async move {
            let slot = slot?;
            let work = move || retention::trim(&*inner.store()?, &slot, before, &inner.counters);
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|e| Err(LogError::Storage(format!("trimming failed: {e}"))))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
