//! The log on Fluvio (DESIGN 4, docs/adr/0025).
//!
//! ```text
//! append --> appends: a producer a partition, one request under way --> the leader, acknowledged by all copies
//! read   <-- readers: cursors, shared by who reads at the same place <-- the leader, what all copies have
//! topics, bounds: cluster        trim, retention: marks        identity, genesis records: registry
//! ```
//!
//! What Fluvio acknowledges is *written* by all copies of a partition, and synced by none: it is durable as long as not all
//! machines that hold a copy lose power at once. It knows no idempotence either: what was sent again may be there twice, and
//! readers know by its coordinates (DESIGN 5). Where a partition lost records, or was made anew, its positions, its genesis
//! record or its lanes do not fit any more, and who reads it stops (invariant P1).
//!
//! The program may be on any runtime of tokio: the log has one of its own.

mod appends;
mod cluster;
mod cursor;
mod link;
mod marks;
mod readers;
mod reads;
mod settings;
mod topics;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use sluice_proto::Offset;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::genesis::{genesis_record, is_wanted, new_uuid};
use crate::registry::{self, Registry};
use crate::{Bounds, Log, LogError, LogMetrics, Partition, Record, Retention, TopicInfo, TopicSpec};
use appends::{Answer, Appends, Slot};
use cluster::{Cluster, Place};
use marks::Marks;
use readers::Readers;
pub use settings::FluvioOptions;
use settings::MAX_RECORD;

/// How long the last appends have to be acknowledged when the log is closed.
const CLOSE: Duration = Duration::from_secs(3);
/// Threads that do what nobody waits for: producers and cursors.
const THREADS: usize = 2;

/// A log on a cluster of Fluvio. Any number of processes may have it open.
pub struct FluvioLog {
    inner: Arc<Inner>,
    runtime: Mutex<Option<Runtime>>,
}

struct Inner {
    uuid: [u8; 16],
    options: FluvioOptions,
    cluster: Arc<Cluster>,
    appends: Appends,
    readers: Arc<Readers>,
    registry: Own<Registry>,
    /// What is known of the marks; read anew before anything rests on it.
    marks: Own<Marks>,
    known: RwLock<HashMap<Arc<str>, Arc<Known>>>,
}

/// A topic of the log's own, and what it says.
struct Own<T> {
    place: Place,
    slot: Arc<Slot>,
    said: tokio::sync::Mutex<Said<T>>,
}

struct Said<T> {
    what: T,
    next: Offset,
}

/// A topic that has been looked at.
struct Known {
    partitions: Vec<KnownPartition>,
}

struct KnownPartition {
    place: Place,
    slot: Arc<Slot>,
    genesis: Bytes,
}

impl<T: Default> Own<T> {
    fn new(options: &FluvioOptions, topic: &'static str) -> Self {
        let (place, at) = ((options.on_cluster(topic), 0), Partition::new(topic, 0));
        let said = Said { what: T::default(), next: Offset::ZERO };
        Self { slot: Slot::new(place.clone(), at), place, said: tokio::sync::Mutex::new(said) }
    }
}

impl FluvioLog {
    /// Opens the log on the cluster; begins it where there is none.
    ///
    /// # Errors
    /// If the cluster cannot be reached, or has fewer SPUs than there are to be copies, or one of the log's own topics is not
    /// as it must be.
    pub async fn open(options: FluvioOptions) -> Result<Arc<Self>, LogError> {
        let opened = Self::with(options, true).await?;
        opened.ok_or_else(|| LogError::Storage("Fluvio does not show the registry of topics it has made".into()))
    }

    /// Opens the log on the cluster, if there is one.
    ///
    /// # Errors
    /// As [`FluvioLog::open`].
    pub async fn find(options: FluvioOptions) -> Result<Option<Arc<Self>>, LogError> {
        Self::with(options, false).await
    }

    /// Where the registry has no genesis yet, `begin` writes one; without it there is no log.
    async fn with(options: FluvioOptions, begin: bool) -> Result<Option<Arc<Self>>, LogError> {
        let cluster = Cluster::new(options.clone());
        // The registry comes last: where it is, the others are.
        for topic in [marks::TOPIC, registry::TOPIC] {
            let name = options.on_cluster(topic);
            if begin {
                let spec = TopicSpec { name: topic.into(), partitions: 1, retention: Retention::default() };
                cluster.create(&name, &spec).await?;
            }
            let Some(described) = cluster.describe(&name).await? else { return Ok(None) };
            described.check(&name, &options)?;
            described.check_retention(&name, Retention::default())?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("fluvio")
            .enable_all()
            .build()
            .map_err(|error| LogError::Storage(format!("threads for Fluvio: {error}")))?;
        let handle = runtime.handle().clone();
        let mut inner = Inner {
            uuid: [0; 16],
            appends: Appends::new(Arc::clone(&cluster), handle.clone()),
            readers: Readers::new(Arc::clone(&cluster), handle),
            registry: Own::new(&options, registry::TOPIC),
            marks: Own::new(&options, marks::TOPIC),
            known: RwLock::default(),
            cluster,
            options,
        };
        let found = inner.identity(begin).await;
        if let Ok(Some(uuid)) = found {
            inner.uuid = uuid;
        }
        let log = Self { inner: Arc::new(inner), runtime: Mutex::new(Some(runtime)) };
        Ok(found?.map(|_| Arc::new(log)))
    }

    /// What it has counted since it was opened. Of reads, those from memory went on where one had been.
    pub fn metrics(&self) -> LogMetrics {
        self.inner.appends.metrics()
    }

    /// Ends the log: waits a moment for the last appends, takes no more.
    ///
    /// # Errors
    /// If they have not been acknowledged by then.
    pub fn close(&self) -> Result<(), LogError> {
        let closed = self.inner.appends.close(CLOSE);
        self.end();
        closed
    }

    fn end(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            // It may be the thread of another runtime, which must not wait.
            runtime.shutdown_background();
        }
    }
}

impl Drop for FluvioLog {
    fn drop(&mut self) {
        let _ = self.inner.appends.close(Duration::ZERO);
        self.end();
    }
}

async fn answered(answer: oneshot::Receiver<Answer>) -> Answer {
    answer.await.unwrap_or_else(|_| Err(LogError::Stopped("it was closed".into())))
}

impl Inner {
    /// The log's identity, as its registry has it.
    async fn identity(&self, begin: bool) -> Result<Option<[u8; 16]>, LogError> {
        drop(self.refresh_marks().await?);
        let wanted = self.options.uuid;
        let known = self.refresh_registry().await?.what.uuid();
        if known.is_some() || !begin {
            return known.map(|uuid| is_wanted(uuid, wanted)).transpose();
        }
        let genesis = genesis_record(wanted.unwrap_or_else(new_uuid), &Partition::new(registry::TOPIC, 0), 1);
        answered(self.appends.append(&self.registry.slot, vec![genesis])).await?;
        let known = self.refresh_registry().await?.what.uuid();
        known.map(|uuid| is_wanted(uuid, wanted)).transpose()
    }

    /// Begins an append, if the topic is known; else gives the batch back.
    fn begin(&self, to: &Partition, batch: Vec<Bytes>) -> Result<Begun, LogError> {
        if let Some(bytes) = batch.iter().map(Bytes::len).find(|&bytes| bytes > MAX_RECORD) {
            return Err(LogError::TooLarge { partition: to.clone(), bytes, limit: MAX_RECORD });
        }
        let known = self.known.read().get(&to.topic).cloned();
        let Some(known) = known else { return Ok(Begun::NotKnown(batch)) };
        let partition = known.partitions.get(to.number as usize).ok_or_else(|| LogError::Unknown(to.clone()))?;
        if batch.is_empty() {
            return Ok(Begun::Empty);
        }
        Ok(Begun::Waits(self.appends.append(&partition.slot, batch)))
    }
}

enum Begun {
    Waits(oneshot::Receiver<Answer>),
    Empty,
    NotKnown(Vec<Bytes>),
}

impl Log for FluvioLog {
    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        let created = self.inner.create(std::slice::from_ref(spec));
        async move {
            let missing = || LogError::Storage(format!("topic {} was not made", spec.name));
            created.await?.into_iter().next().ok_or_else(missing)
        }
        .boxed()
    }

    fn create_topics<'a>(&'a self, specs: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<TopicInfo>, LogError>> {
        self.inner.create(specs).boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        self.inner.all_topics().boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        let begun = match self.inner.begin(to, batch) {
            Err(error) => return ready(Err(error)).boxed(),
            Ok(begun) => begun,
        };
        let (inner, to) = (Arc::clone(&self.inner), to.clone());
        async move {
            match begun {
                Begun::Waits(answer) => answered(answer).await,
                Begun::Empty => Ok(inner.bounds(&to).await?.next),
                // Another process has made the topic. The order of the first appends is that of the polls then.
                Begun::NotKnown(batch) => {
                    inner.known(&to).await?;
                    match inner.begin(&to, batch)? {
                        Begun::Waits(answer) => answered(answer).await,
                        Begun::Empty => Ok(inner.bounds(&to).await?.next),
                        Begun::NotKnown(_) => Err(LogError::Unknown(to)),
                    }
                }
            }
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
        let (inner, from) = (Arc::clone(&self.inner), from.clone());
        async move { inner.read(&from, offset, max_bytes, wait).await }.boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        let (inner, of) = (Arc::clone(&self.inner), of.clone());
        async move { inner.bounds(&of).await }.boxed()
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        let (inner, of) = (Arc::clone(&self.inner), of.clone());
        async move { inner.trim(&of, before).await }.boxed()
    }
}
