//! The log in memory, for unit tests: nothing survives the process, and "durable" means "in the list".

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use sluice_proto::{EventTime, Offset};

use crate::chunk::{ChunkBuilder, Head};
use crate::genesis::{genesis_record, new_uuid};
use crate::tail::{Found, Tail};
use crate::{Bounds, Log, LogError, Partition, Record, TopicInfo, TopicSpec};

/// A log in memory. Retention is remembered but not applied; [`Log::trim`] works.
pub struct MemoryLog {
    uuid: [u8; 16],
    topics: RwLock<BTreeMap<Arc<str>, TopicInfo>>,
    partitions: RwLock<HashMap<Partition, Arc<MemoryPartition>>>,
}

struct MemoryPartition {
    head: Mutex<Head>,
    tail: Tail,
}

impl MemoryLog {
    /// An empty log with a new identity.
    // A log is used through `Arc` everywhere, so it comes in one.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { uuid: new_uuid(), topics: RwLock::default(), partitions: RwLock::default() })
    }

    fn partition(&self, of: &Partition) -> Result<Arc<MemoryPartition>, LogError> {
        self.partitions.read().get(of).cloned().ok_or_else(|| LogError::Unknown(of.clone()))
    }

    fn create(&self, spec: &TopicSpec) -> Result<TopicInfo, LogError> {
        spec.check()?;
        let mut topics = self.topics.write();
        if let Some(info) = topics.get_mut(spec.name.as_str()) {
            info.check_count(spec)?;
            info.retention = spec.retention;
            return Ok(info.clone());
        }
        let info = spec.info();
        let mut partitions = self.partitions.write();
        for number in 0..spec.partitions {
            let partition = Partition::new(info.name.clone(), number);
            partitions.insert(partition.clone(), Arc::new(self.new_partition(partition, spec.partitions)));
        }
        topics.insert(info.name.clone(), info.clone());
        Ok(info)
    }

    fn new_partition(&self, partition: Partition, partitions: u32) -> MemoryPartition {
        let genesis = genesis_record(self.uuid, &partition, partitions);
        let created = MemoryPartition {
            head: Mutex::new(Head::EMPTY),
            tail: Tail::new(partition, genesis.clone(), 0, 0, usize::MAX),
        };
        created.append(&[genesis]);
        created
    }

    fn trim_now(&self, of: &Partition, before: Offset) -> Result<(), LogError> {
        let partition = self.partition(of)?;
        if let Some(start) = crate::trim_to(of, partition.tail.bounds(), before)? {
            partition.tail.trim(start);
        }
        Ok(())
    }
}

impl MemoryPartition {
    fn append(&self, batch: &[Bytes]) -> Offset {
        let mut head = self.head.lock();
        let first = Offset::new(head.next);
        if batch.is_empty() {
            return first;
        }
        let bytes = batch.iter().map(Bytes::len).sum();
        let mut builder = ChunkBuilder::new(&head, EventTime::now().millis(), bytes, batch.len());
        batch.iter().for_each(|record| builder.push(record));
        let chunk = builder.finish(&mut head);
        self.tail.publish([chunk]);
        first
    }

    async fn read(&self, offset: Offset, max_bytes: usize, wait: Duration) -> Result<Vec<Record>, LogError> {
        match self.tail.find_or_wait(offset.get(), max_bytes, wait).await? {
            Found::Records(records) => Ok(records),
            Found::Nothing => Ok(Vec::new()),
            Found::Older { from, .. } => {
                Err(LogError::Corrupt(format!("{} lost offset {from} from memory", self.tail.partition())))
            }
        }
    }
}

impl Log for MemoryLog {
    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        async move { self.create(spec) }.boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        async move { Ok(self.topics.read().values().cloned().collect()) }.boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        let done = crate::check_batch(to, &batch).and_then(|()| self.partition(to)).map(|p| p.append(&batch));
        ready(done).boxed()
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        let partition = self.partition(from);
        async move { partition?.read(offset, max_bytes, wait).await }.boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        ready(self.partition(of).map(|p| p.tail.bounds())).boxed()
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        ready(self.trim_now(of, before)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_conforms() {
        crate::conformance::run(MemoryLog::new()).await;
    }
}
