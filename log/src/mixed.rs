//! Several logs that are one to whoever reads and writes: each topic lives on one of them (docs/adr/0028).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use sluice_proto::Offset;

use crate::{Bounds, Log, LogError, Partition, Record, SharedLog, TopicInfo, TopicSpec};

/// The log of a pool whose topics live in several places.
///
/// All of them have one identity, the main one's: so they belong together, and a log of another pool is refused when it is
/// opened. Nothing orders records of different topics, on one log or on several, so nothing else changes.
pub struct MixedLog {
    main: SharedLog,
    others: BTreeMap<String, SharedLog>,
    /// Name of another log by topic; the main one has the rest, and the program's own topics.
    topics: BTreeMap<String, String>,
}

impl MixedLog {
    /// `main`, but the topics that `topics` names are on `others`, by their names.
    ///
    /// # Errors
    /// If one of them has another identity, or a topic is on a log that is not there.
    pub fn new(
        main: SharedLog,
        others: BTreeMap<String, SharedLog>,
        topics: BTreeMap<String, String>,
    ) -> Result<Arc<Self>, LogError> {
        for (name, other) in &others {
            crate::genesis::is_wanted(other.uuid(), Some(main.uuid()))
                .map_err(|error| LogError::Unfit(format!("log {name}: {error}")))?;
        }
        if let Some((topic, log)) = topics.iter().find(|(_, log)| !others.contains_key(*log)) {
            return Err(LogError::Unfit(format!("topic {topic} is on a log {log} that is not open")));
        }
        Ok(Arc::new(Self { main, others, topics }))
    }

    /// The log of a topic, in any of its generations (`NAME.g2`).
    fn of(&self, topic: &str) -> &SharedLog {
        let generation = topic.rsplit_once(".g").filter(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()));
        let named = self.topics.get(topic).or_else(|| self.topics.get(generation?.0));
        named.and_then(|name| self.others.get(name)).unwrap_or(&self.main)
    }
}

impl Log for MixedLog {
    fn uuid(&self) -> [u8; 16] {
        self.main.uuid()
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        self.of(&spec.name).create_topic(spec)
    }

    fn create_topics<'a>(&'a self, specs: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<TopicInfo>, LogError>> {
        try_join_all(specs.iter().map(|spec| self.create_topic(spec))).boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        async {
            let logs: Vec<&SharedLog> = std::iter::once(&self.main).chain(self.others.values()).collect();
            let all = try_join_all(logs.iter().map(|log| log.topics())).await?;
            // A topic that was left behind on another log is none.
            let of = logs.into_iter().zip(all);
            let there = of.flat_map(|(log, topics)| topics.into_iter().map(move |topic| (log, topic)));
            let mut topics: Vec<TopicInfo> =
                there.filter(|(log, topic)| Arc::ptr_eq(log, self.of(&topic.name))).map(|(_, topic)| topic).collect();
            topics.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(topics)
        }
        .boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        self.of(&to.topic).append(to, batch)
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        self.of(&from.topic).read(from, offset, max_bytes, wait)
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.of(&of.topic).bounds(of)
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        self.of(&of.topic).trim(of, before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EmbeddedLog, EmbeddedOptions, Retention};

    #[tokio::test(flavor = "multi_thread")]
    async fn each_topic_is_on_its_log_and_all_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, uuid| {
            EmbeddedLog::open(EmbeddedOptions { uuid, ..EmbeddedOptions::new(dir.path().join(name)) }).unwrap()
        };
        let main: SharedLog = open("main", None);
        let warm: SharedLog = open("warm", Some(main.uuid()));
        let on = |topics: &[(&str, &str)]| topics.iter().map(|(topic, log)| ((*topic).into(), (*log).into())).collect();
        let others = || BTreeMap::from([("warm".to_owned(), Arc::clone(&warm))]);
        let mixed = MixedLog::new(Arc::clone(&main), others(), on(&[("tallies", "warm")])).unwrap();
        for name in ["shares", "tallies", "tallies.g2", "sluice.owners"] {
            let spec = TopicSpec { name: name.into(), partitions: 1, retention: Retention::default() };
            mixed.create_topic(&spec).await.unwrap();
        }
        let names = async |log: &dyn Log| {
            log.topics().await.unwrap().into_iter().map(|topic| topic.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&*warm).await, ["tallies", "tallies.g2"]);
        assert_eq!(names(&*main).await, ["shares", "sluice.owners"]);
        assert_eq!(names(&*mixed).await, ["shares", "sluice.owners", "tallies", "tallies.g2"]);
        let at = Partition::new("tallies", 0);
        assert_eq!(mixed.append(&at, vec![Bytes::from_static(b"x")]).await.unwrap(), Offset::new(1));
        assert_eq!(warm.bounds(&at).await.unwrap(), mixed.bounds(&at).await.unwrap());
        assert!(main.bounds(&at).await.is_err());
        let strange: SharedLog = open("strange", None);
        let strange = BTreeMap::from([("warm".to_owned(), strange)]);
        assert!(matches!(MixedLog::new(Arc::clone(&main), strange, BTreeMap::new()), Err(LogError::Unfit(_))));
        assert!(MixedLog::new(main, others(), on(&[("tallies", "cold")])).is_err());
    }
}
