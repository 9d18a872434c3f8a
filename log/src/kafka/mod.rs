//! The log on Apache Kafka or Redpanda (DESIGN 4, docs/adr/0023).
//!
//! ```text
//! append --> appends: one idempotent producer, acks=all, explicit partitions --> brokers
//! read   <-- readers: cursors, shared by who reads at the same place        <-- brokers
//! topics, bounds, trim: topics                identity, genesis records: registry
//! ```
//!
//! Durable means: on as many brokers as `min_insync` says. Nothing rests on Kafka's transactions or committed offsets, and
//! on its groups only who tries to do what ([`Membership`]). A record may be there twice after a change of leaders; readers know by its coordinates (DESIGN 5). Where a partition lost
//! records that were durable, or was made anew, its positions, its genesis record or its lanes do not fit any more, and who reads it
//! stops (invariant P1).

mod appends;
mod cursor;
mod membership;
mod readers;
mod settings;
mod topics;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready, try_join_all};
use parking_lot::RwLock;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sluice_proto::Offset;
use tokio::time::Instant;

use crate::genesis::{genesis_record, new_uuid};
use crate::metrics::count;
use crate::registry::{self, Named, Registry};
use crate::{Bounds, Log, LogError, LogMetrics, Partition, Record, Retention, TopicInfo, TopicSpec, check_range};
use appends::{Appends, Slot};
pub use membership::Membership;
use readers::{Place, Readers};
pub use settings::KafkaOptions;
use settings::MAX_RECORD;
use topics::{HEARD_OF, IF_ANY, Topics, is_final};

/// How long the last appends have to become durable when the log is closed.
const CLOSE: Duration = Duration::from_secs(3);
/// How long a record that is there may take to come: brokers may change meanwhile.
const ARRIVES: Duration = Duration::from_secs(30);
/// Most bytes of the registry that are read at once.
const REGISTRY_BYTES: usize = 1 << 20;

/// A log on brokers. Any number of processes may have it open.
pub struct KafkaLog {
    inner: Arc<Inner>,
}

struct Inner {
    uuid: [u8; 16],
    options: KafkaOptions,
    topics: Topics,
    appends: Appends,
    readers: Arc<Readers>,
    registry: tokio::sync::Mutex<Registry>,
    known: RwLock<HashMap<Arc<str>, Arc<Known>>>,
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

impl KafkaLog {
    /// Opens the log on the brokers; begins it where there is none.
    ///
    /// # Errors
    /// If the brokers cannot be reached, or the topic of the registry is not as this log needs it.
    pub async fn open(options: KafkaOptions) -> Result<Arc<Self>, LogError> {
        let topics = Topics::open(&options)?;
        let spec = TopicSpec { name: registry::TOPIC.into(), partitions: 1, retention: Retention::default() };
        topics.create(&on_brokers(&options, registry::TOPIC), &spec).await?;
        let opened = Self::with(options, topics, true).await?;
        opened.ok_or_else(|| LogError::Storage("Kafka does not show the registry of topics it has made".into()))
    }

    /// Opens the log on the brokers, if there is one.
    ///
    /// # Errors
    /// As [`KafkaLog::open`].
    pub async fn find(options: KafkaOptions) -> Result<Option<Arc<Self>>, LogError> {
        let topics = Topics::open(&options)?;
        Self::with(options, topics, false).await
    }

    /// Where the registry has no genesis yet, `begin` writes one; without it there is no log.
    async fn with(options: KafkaOptions, topics: Topics, begin: bool) -> Result<Option<Arc<Self>>, LogError> {
        let name = on_brokers(&options, registry::TOPIC);
        let Some(described) = topics.describe(&name, if begin { HEARD_OF } else { IF_ANY }).await? else {
            return Ok(None);
        };
        described.check(&name, &options)?;
        let (appends, readers) = (Appends::open(&options)?, Readers::new(options.clone())?);
        let (mut registry, place) = (Registry::default(), (Arc::clone(&name), 0));
        catch_up(&mut registry, &topics, &readers, &place).await?;
        if registry.uuid().is_none() && begin {
            let at = Partition::new(registry::TOPIC, 0);
            let slot = Slot::new(name.to_string(), 0, at.clone());
            let genesis = genesis_record(options.uuid.unwrap_or_else(new_uuid), &at, 1);
            answered(appends.append(&slot, vec![genesis])).await?;
            catch_up(&mut registry, &topics, &readers, &place).await?;
        }
        let Some(uuid) = registry.uuid() else { return Ok(None) };
        let uuid = crate::genesis::is_wanted(uuid, options.uuid)?;
        let registry = tokio::sync::Mutex::new(registry);
        let inner = Inner { uuid, options, topics, appends, readers, registry, known: RwLock::default() };
        Ok(Some(Arc::new(Self { inner: Arc::new(inner) })))
    }

    /// Takes a place among the processes that share out the partitions of a topic, each of which does `unit`.
    ///
    /// # Errors
    /// If there can be no client.
    pub fn join(&self, topic: &str, unit: &str) -> Result<Membership, LogError> {
        Membership::join(&self.inner.options, &self.inner.on_brokers(topic), unit)
    }

    /// What it has counted since it was opened. Of reads, those from memory went on where one had been.
    pub fn metrics(&self) -> LogMetrics {
        self.inner.appends.metrics()
    }

    /// Ends the log: waits a moment for the last appends, takes no more.
    ///
    /// # Errors
    /// If they have not become durable by then.
    pub fn close(&self) -> Result<(), LogError> {
        self.inner.appends.close(CLOSE)
    }
}

/// Name of a topic on the brokers.
fn on_brokers(options: &KafkaOptions, topic: &str) -> Arc<str> {
    format!("{}{topic}", options.prefix).into()
}

/// Reads the registry to its end.
async fn catch_up(registry: &mut Registry, topics: &Topics, readers: &Readers, place: &Place) -> Result<(), LogError> {
    let at = Partition::new(registry::TOPIC, 0);
    let end = topics.bounds(&place.0, &at).await?.next;
    while registry.next < end {
        // An answer is a matter of milliseconds; the wait is for brokers that change.
        let deadline = Instant::now() + ARRIVES;
        let read = readers.read(place, registry.next.get(), REGISTRY_BYTES, deadline).await?;
        let records = read.map_err(|error| storage("the registry of topics", &error))?;
        if records.is_empty() {
            return Err(LogError::Storage(format!("{at} does not show offset {}, but ends at {end}", registry.next)));
        }
        registry.take(records)?;
    }
    Ok(())
}

async fn answered(answer: tokio::sync::oneshot::Receiver<appends::Answer>) -> Result<Offset, LogError> {
    answer.await.unwrap_or_else(|_| Err(LogError::Stopped("it was closed".into())))
}

impl Inner {
    fn on_brokers(&self, topic: &str) -> Arc<str> {
        on_brokers(&self.options, topic)
    }

    async fn create(&self, spec: &TopicSpec) -> Result<TopicInfo, LogError> {
        spec.check()?;
        let name = self.on_brokers(&spec.name);
        self.topics.create(&name, spec).await?;
        let Some(described) = self.topics.describe(&name, HEARD_OF).await? else {
            return Err(LogError::Storage(format!("Kafka does not show the topic {name} it has made")));
        };
        let mut info = spec.info();
        info.partitions = described.partitions;
        info.check_count(spec)?;
        described.check(&name, &self.options)?;
        if described.retention() != spec.retention {
            self.topics.retain(&name, spec.retention).await?;
        }
        let named = {
            let mut registry = self.registry.lock().await;
            self.name_partitions(&mut registry, &info).await?;
            registry.of_topic(&info.name)
        };
        self.look_up(&info.name, named).await?;
        Ok(info)
    }

    /// Gives each partition its genesis record, as the registry has it.
    async fn name_partitions(&self, registry: &mut Registry, info: &TopicInfo) -> Result<(), LogError> {
        self.refresh(registry).await?;
        let missing: Vec<_> = info.all().filter(|at| registry.named(at).is_none()).collect();
        if !missing.is_empty() {
            let records = missing.iter().map(|at| genesis_record(self.uuid, at, info.partitions)).collect();
            self.register(registry, records).await?;
        }
        let mut created = Vec::new();
        for at in info.all() {
            let Some(named) = registry.named(&at).filter(|named| !named.created) else { continue };
            let (name, genesis) = (self.on_brokers(&at.topic), named.genesis.clone());
            // Another process may be at it: then it is there twice, and read once.
            if self.topics.bounds(&name, &at).await?.next == Offset::ZERO {
                let slot = Slot::new(name.to_string(), number(&at)?, at.clone());
                answered(self.appends.append(&slot, vec![genesis])).await?;
            }
            created.push(registry::created(self.uuid, &at, info.partitions));
        }
        if created.is_empty() { Ok(()) } else { self.register(registry, created).await }
    }

    async fn register(&self, registry: &mut Registry, records: Vec<Bytes>) -> Result<(), LogError> {
        let at = Partition::new(registry::TOPIC, 0);
        let slot = Slot::new(self.on_brokers(registry::TOPIC).to_string(), 0, at);
        answered(self.appends.append(&slot, records)).await?;
        self.refresh(registry).await
    }

    async fn refresh(&self, registry: &mut Registry) -> Result<(), LogError> {
        catch_up(registry, &self.topics, &self.readers, &(self.on_brokers(registry::TOPIC), 0)).await
    }

    /// Makes a topic known, once each of its partitions has been found to be what the registry says.
    async fn look_up(&self, topic: &Arc<str>, named: Vec<Named>) -> Result<Arc<Known>, LogError> {
        if let Some(known) = self.known.read().get(topic) {
            return Ok(Arc::clone(known));
        }
        if named.is_empty() {
            return Err(LogError::Unknown(Partition::new(Arc::clone(topic), 0)));
        }
        let name = self.on_brokers(topic);
        let look_up = |(partition, named): (u32, Named)| {
            let (at, name) = (Partition::new(Arc::clone(topic), partition), Arc::clone(&name));
            async move {
                let place = (Arc::clone(&name), number(&at)?);
                self.check_genesis(&at, &place, &named).await?;
                let slot = Slot::new(name.to_string(), place.1, at);
                Ok::<_, LogError>(KnownPartition { place, slot, genesis: named.genesis })
            }
        };
        let partitions = try_join_all((0..).zip(named).map(look_up)).await?;
        let known = Arc::new(Known { partitions });
        Ok(Arc::clone(self.known.write().entry(Arc::clone(topic)).or_insert(known)))
    }

    /// The partition begins with the record that the registry has, unless its beginning was removed.
    async fn check_genesis(&self, at: &Partition, place: &Place, named: &Named) -> Result<(), LogError> {
        let bounds = self.topics.bounds(&place.0, at).await?;
        let anew = |what: &str| {
            LogError::Corrupt(format!(
                "{at} on the brokers {what}: the topic was deleted or made anew behind this log's back. Restore it, or give \
                 the log another `prefix`"
            ))
        };
        if bounds.next == Offset::ZERO {
            return if named.created { Err(anew("has no record, and has had some")) } else { Ok(()) };
        }
        if bounds.start > Offset::ZERO {
            return Ok(());
        }
        let deadline = Instant::now() + ARRIVES;
        let read = self.readers.read(place, 0, 1, deadline).await?;
        let read = read.map_err(|error| storage(&format!("the genesis record of {at}"), &error))?;
        match read.first() {
            Some(record) if record.value == named.genesis => Ok(()),
            _ => Err(anew("begins with another record than this log has given it")),
        }
    }

    async fn known(&self, at: &Partition) -> Result<Arc<Known>, LogError> {
        let known = self.known.read().get(&at.topic).cloned();
        let known = match known {
            Some(known) => known,
            // Another process may have made it since.
            None => {
                let named = {
                    let mut registry = self.registry.lock().await;
                    self.refresh(&mut registry).await?;
                    registry.of_topic(&at.topic)
                };
                self.look_up(&at.topic, named).await.map_err(|error| match error {
                    LogError::Unknown(_) => LogError::Unknown(at.clone()),
                    error => error,
                })?
            }
        };
        if known.partitions.len() > at.number as usize { Ok(known) } else { Err(LogError::Unknown(at.clone())) }
    }

    async fn read(
        &self,
        at: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Record>, LogError> {
        let known = self.known(at).await?;
        let KnownPartition { place, genesis, .. } = &known.partitions[at.number as usize];
        if offset > Offset::ZERO {
            return self.read_behind(at, place, offset, max_bytes, wait).await;
        }
        let bounds = self.topics.bounds(&place.0, at).await?;
        let from = bounds.start.max(Offset::new(1));
        // With the genesis record in hand there is nothing to wait for. But where the broker's retention has left no record,
        // the genesis record alone would not tell a reader where to go on.
        let emptied = bounds.start > Offset::new(1) && bounds.start == bounds.next;
        let wait = if emptied { wait } else { Duration::ZERO };
        let found = self.read_behind(at, place, from, max_bytes, wait).await?;
        if found.is_empty() && !wait.is_zero() {
            return Ok(found);
        }
        let mut records = vec![Record { offset, value: genesis.clone() }];
        records.extend(found);
        Ok(records)
    }

    /// As [`Log::read`], behind the genesis record. How far the partition goes is asked where no cursor has been yet, and
    /// where nothing came for as long as the caller waits: so a partition that has become shorter is noticed.
    async fn read_behind(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Record>, LogError> {
        let deadline = Instant::now() + wait;
        let counters = self.appends.counters();
        if self.readers.is_known(place, from.get()) {
            count(&counters.tail_reads, 1);
            let found = self.read_once(at, place, from, max_bytes, deadline).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        loop {
            count(&counters.disk_reads, 1);
            let bounds = self.topics.bounds(&place.0, at).await?;
            check_range(at, from, bounds)?;
            if from < bounds.next {
                let found = self.read_once(at, place, from, max_bytes, Instant::now() + ARRIVES).await?;
                let missing = || {
                    LogError::Storage(format!("Kafka does not show {at} offset {from}, but ends at {}", bounds.next))
                };
                return if found.is_empty() { Err(missing()) } else { Ok(found) };
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let found = self.read_once(at, place, from, max_bytes, deadline).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    async fn read_once(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Vec<Record>, LogError> {
        let patience = Instant::now() + ARRIVES;
        loop {
            let error = match self.readers.read(place, from.get(), max_bytes, deadline).await? {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            check_range(at, from, self.topics.bounds(&place.0, at).await?)?;
            // The place is right: so a broker that is about to go, or has just come, said otherwise.
            if is_final(&error) || Instant::now() > patience {
                return Err(storage(&format!("reading {at} from offset {from} on"), &error));
            }
            tracing::debug!(%error, %at, %from, "Kafka is read again");
        }
    }

    async fn trim(&self, of: &Partition, before: Offset) -> Result<(), LogError> {
        let known = self.known(of).await?;
        let place = &known.partitions[of.number as usize].place;
        let bounds = self.topics.bounds(&place.0, of).await?;
        if let Some(start) = crate::trim_to(of, bounds, before)? {
            self.topics.trim(&place.0, of, start).await?;
            count(&self.appends.counters().trimmed, start.saturating_sub(bounds.start.get()));
            self.readers.forget_before(place, start);
        }
        Ok(())
    }

    async fn bounds(&self, of: &Partition) -> Result<Bounds, LogError> {
        let known = self.known(of).await?;
        self.topics.bounds(&known.partitions[of.number as usize].place.0, of).await
    }

    async fn all_topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let mut registry = self.registry.lock().await;
        self.refresh(&mut registry).await?;
        let describe = |name: Arc<str>| {
            let partitions = registry.named(&Partition::new(name.clone(), 0)).map_or(0, |named| named.partitions);
            async move {
                let described = self.topics.describe(&self.on_brokers(&name), HEARD_OF).await?;
                Ok(described.map(|it| TopicInfo { name, partitions, retention: it.retention() }))
            }
        };
        let topics = try_join_all(registry.topics().into_iter().map(describe)).await?;
        Ok(topics.into_iter().flatten().collect())
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
    Waits(tokio::sync::oneshot::Receiver<appends::Answer>),
    Empty,
    NotKnown(Vec<Bytes>),
}

impl Log for KafkaLog {
    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        self.inner.create(spec).boxed()
    }

    fn create_topics<'a>(&'a self, specs: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<TopicInfo>, LogError>> {
        // Each is some questions to brokers: all at once.
        try_join_all(specs.iter().map(|spec| self.inner.create(spec))).boxed()
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

/// Number of a partition as Kafka counts.
fn number(at: &Partition) -> Result<i32, LogError> {
    i32::try_from(at.number).map_err(|_| LogError::Unknown(at.clone()))
}

fn storage(what: &str, error: &KafkaError) -> LogError {
    let hint = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {
            ": no broker answers; are they up, and are `brokers` right?"
        }
        _ => "",
    };
    LogError::Storage(format!("{what} on Kafka: {error}{hint}"))
}

/// What librdkafka has to say.
fn report(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // That settings are what they are meant to be.
        _ if facility == "CONFWARN" => tracing::debug!(target: "kafka", facility, "{message}"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(target: "kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(target: "kafka", facility, "{message}"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(target: "kafka", facility, "{message}"),
    }
}
