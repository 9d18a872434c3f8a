//! Topics: made on the cluster, named in the registry, and looked at before they are used.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use sluice_proto::Offset;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::cluster::{Place, storage};
use super::marks::Marks;
use super::reads::ARRIVES;
use super::{Inner, Known, KnownPartition, Own, Said, Slot, answered, marks};
use crate::genesis::genesis_record;
use crate::registry::{self, Named, Registry};
use crate::{LogError, Partition, Record, TopicInfo, TopicSpec};

/// Most bytes of a topic of the log's own that are read at once.
const AT_ONCE: usize = 1 << 20;

impl Inner {
    /// Creates topics, all at once: the first record of a topic that has just been made may take its copies seconds.
    pub(super) async fn create(&self, specs: &[TopicSpec]) -> Result<Vec<TopicInfo>, LogError> {
        let mut infos = Vec::with_capacity(specs.len());
        for spec in specs {
            infos.push(self.make(spec).await?);
        }
        let named: Vec<_> = {
            let mut registry = self.refresh_registry().await?;
            let all: Vec<_> = infos.iter().flat_map(|info| info.all().map(|at| (at, info.partitions))).collect();
            self.name_partitions(&mut registry, &all).await?;
            infos.iter().map(|info| registry.what.of_topic(&info.name)).collect()
        };
        try_join_all(infos.iter().zip(named).map(|(info, named)| self.look_up(&info.name, named))).await?;
        Ok(infos)
    }

    /// Makes a topic on the cluster, if it is not there, and holds it against what is asked for.
    async fn make(&self, spec: &TopicSpec) -> Result<TopicInfo, LogError> {
        spec.check()?;
        let name = self.options.on_cluster(&spec.name);
        self.cluster.create(&name, spec).await?;
        let Some(described) = self.cluster.describe(&name).await? else {
            return Err(LogError::Storage(format!("Fluvio does not show the topic {name} it has made")));
        };
        let info = TopicInfo { partitions: described.partitions, ..spec.info() };
        info.check_count(spec)?;
        described.check(&name, &self.options)?;
        described.check_retention(&name, spec.retention)?;
        let mut marks = self.refresh_marks().await?;
        if marks.what.retention(&spec.name).unwrap_or(described.retention) != spec.retention {
            tracing::warn!(topic = spec.name, "Fluvio goes on removing records as it was told when the topic was made");
            self.mark(&mut marks, marks::retained(&spec.name, spec.retention)).await?;
        }
        Ok(info)
    }

    pub(super) async fn all_topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let marks = self.refresh_marks().await?;
        let registry = self.refresh_registry().await?;
        let mut infos = Vec::new();
        for name in registry.what.topics() {
            let partitions = registry.what.named(&Partition::new(name.clone(), 0)).map_or(0, |named| named.partitions);
            let described = self.cluster.describe(&self.options.on_cluster(&name)).await?;
            infos.extend(described.map(|described| {
                let retention = marks.what.retention(&name).unwrap_or(described.retention);
                TopicInfo { name, partitions, retention }
            }));
        }
        Ok(infos)
    }

    /// What the registry says by now.
    pub(super) async fn refresh_registry(&self) -> Result<MutexGuard<'_, Said<Registry>>, LogError> {
        let mut registry = self.registry.said.lock().await;
        self.catch_up(&self.registry, &mut registry, Registry::take).await?;
        Ok(registry)
    }

    /// What the marks say by now.
    pub(super) async fn refresh_marks(&self) -> Result<MutexGuard<'_, Said<Marks>>, LogError> {
        let mut marks = self.marks.said.lock().await;
        self.catch_up(&self.marks, &mut marks, |marks, records| marks.take(&records)).await?;
        Ok(marks)
    }

    /// Reads a topic of the log's own to its end.
    pub(super) async fn catch_up<T>(
        &self,
        own: &Own<T>,
        said: &mut Said<T>,
        take: impl Fn(&mut T, Vec<Record>) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let at = own.slot.at();
        let end = self.cluster.bounds(&own.place, at).await?.next;
        while said.next < end {
            let records = self.arrived(at, &own.place, said.next, AT_ONCE).await?;
            said.next = records.last().map_or(said.next, |last| last.offset.next());
            take(&mut said.what, records)?;
        }
        Ok(())
    }

    /// Sets a mark.
    pub(super) async fn mark(&self, marks: &mut Said<Marks>, mark: Bytes) -> Result<(), LogError> {
        answered(self.appends.append(&self.marks.slot, vec![mark])).await?;
        self.catch_up(&self.marks, marks, |marks, records| marks.take(&records)).await
    }

    async fn register(&self, registry: &mut Said<Registry>, records: Vec<Bytes>) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        answered(self.appends.append(&self.registry.slot, records)).await?;
        self.catch_up(&self.registry, registry, Registry::take).await
    }

    /// Gives each partition its genesis record, as the registry has it. With each, how many its topic has.
    async fn name_partitions(&self, registry: &mut Said<Registry>, all: &[(Partition, u32)]) -> Result<(), LogError> {
        let missing = all.iter().filter(|(at, _)| registry.what.named(at).is_none());
        let records = missing.map(|(at, partitions)| genesis_record(self.uuid, at, *partitions)).collect();
        self.register(registry, records).await?;
        let new = all.iter().filter_map(|(at, partitions)| {
            let named = registry.what.named(at).filter(|named| !named.created)?;
            Some((at, named.genesis.clone(), registry::created(self.uuid, at, *partitions)))
        });
        let (begun, created): (Vec<_>, Vec<_>) = new.map(|(at, genesis, created)| ((at, genesis), created)).unzip();
        try_join_all(begun.into_iter().map(|(at, genesis)| self.begin_partition(at, genesis))).await?;
        self.register(registry, created).await
    }

    /// Gives a partition its genesis record. Another process may be at it: then it is there twice, and read once.
    async fn begin_partition(&self, at: &Partition, genesis: Bytes) -> Result<(), LogError> {
        let place = (self.options.on_cluster(&at.topic), at.number);
        if self.cluster.bounds(&place, at).await?.next == Offset::ZERO {
            answered(self.appends.append(&Slot::new(place, at.clone()), vec![genesis])).await?;
        }
        Ok(())
    }

    /// Makes a topic known, once each of its partitions has been found to be what the registry says.
    async fn look_up(&self, topic: &Arc<str>, named: Vec<Named>) -> Result<Arc<Known>, LogError> {
        if let Some(known) = self.known.read().get(topic) {
            return Ok(Arc::clone(known));
        }
        if named.is_empty() {
            return Err(LogError::Unknown(Partition::new(Arc::clone(topic), 0)));
        }
        let name = self.options.on_cluster(topic);
        let look_up = |(partition, named): (u32, Named)| {
            let (at, place) = (Partition::new(Arc::clone(topic), partition), (Arc::clone(&name), partition));
            async move {
                self.check_genesis(&at, &place, &named).await?;
                let slot = Slot::new(place.clone(), at);
                Ok::<_, LogError>(KnownPartition { place, slot, genesis: named.genesis })
            }
        };
        let partitions = try_join_all((0..).zip(named).map(look_up)).await?;
        let known = Arc::new(Known { partitions });
        Ok(Arc::clone(self.known.write().entry(Arc::clone(topic)).or_insert(known)))
    }

    /// The partition begins with the record that the registry has, unless its beginning was removed.
    async fn check_genesis(&self, at: &Partition, place: &Place, named: &Named) -> Result<(), LogError> {
        let bounds = self.cluster.bounds(place, at).await?;
        let anew = |what: &str| {
            LogError::Corrupt(format!(
                "{at} on Fluvio {what}: the topic was deleted or made anew behind this log's back, or its SPUs lost what they \
                 had. Restore it, or give the log another `prefix`"
            ))
        };
        if bounds.next == Offset::ZERO {
            return if named.created { Err(anew("has no record, and has had some")) } else { Ok(()) };
        }
        if bounds.start > Offset::ZERO {
            return Ok(());
        }
        match self.arrived(at, place, Offset::ZERO, 1).await?.first() {
            Some(record) if record.value == named.genesis => Ok(()),
            _ => Err(anew("begins with another record than this log has given it")),
        }
    }

    /// Records of a partition that are known to be there.
    pub(super) async fn arrived(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError> {
        let (what, until) = (format!("reading {at} from offset {from} on"), Instant::now() + ARRIVES);
        loop {
            let found = self.readers.read(place, from.get(), max_bytes, until).await;
            match found {
                Ok(found) if found.is_empty() => {
                    return Err(LogError::Storage(format!("Fluvio does not show {at} offset {from}, and has it")));
                }
                Ok(found) => return Ok(found),
                Err(fault) => self.again(&what, fault, until).await?,
            }
        }
    }

    /// Whether a read is worth another try, after a moment.
    pub(super) async fn again(&self, what: &str, fault: super::link::Fault, until: Instant) -> Result<(), LogError> {
        if matches!(fault, super::link::Fault::Refused(_)) || Instant::now() > until {
            return Err(storage(what, &fault));
        }
        tracing::debug!(what, told = fault.told(), "Fluvio is asked again");
        tokio::time::sleep(super::reads::PAUSE).await;
        Ok(())
    }

    pub(super) async fn known(&self, at: &Partition) -> Result<Arc<Known>, LogError> {
        let known = self.known.read().get(&at.topic).cloned();
        let known = match known {
            Some(known) => known,
            // Another process may have made it since.
            None => {
                let named = self.refresh_registry().await?.what.of_topic(&at.topic);
                self.look_up(&at.topic, named).await.map_err(|error| match error {
                    LogError::Unknown(_) => LogError::Unknown(at.clone()),
                    error => error,
                })?
            }
        };
        if known.partitions.len() > at.number as usize { Ok(known) } else { Err(LogError::Unknown(at.clone())) }
    }
}
