//! Topics on the brokers: created as asked, and what is there held against it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use sluice_proto::Offset;

use super::readers::Events;
use super::settings::{KafkaOptions, MAX_BATCH, MAX_RECORD};
use super::storage;
use crate::{Bounds, LogError, Partition, Retention, TopicSpec};

/// How long one question to a broker may take.
const ASK: Duration = Duration::from_secs(10);
/// For how long brokers that do not answer are asked again.
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long a cluster that has too few brokers is waited for: they may be coming up.
const COMING_UP: Duration = Duration::from_secs(10);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks brokers about topics.
pub(super) struct Topics {
    options: KafkaOptions,
    admin: Arc<AdminClient<Events>>,
}

/// A topic as brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) partitions: u32,
    /// Copies of the partition that has the fewest.
    replicas: usize,
    settings: BTreeMap<String, String>,
}

impl Described {
    fn number(&self, setting: &str) -> Option<u64> {
        self.settings.get(setting)?.parse().ok()
    }

    /// For how long records are kept; -1 stands for ever.
    pub(super) fn retention(&self) -> Retention {
        let age = self.number("retention.ms").map(Duration::from_millis);
        Retention { age, bytes: self.number("retention.bytes") }
    }

    /// What of it breaks what this log promises, with what to do.
    fn faults(&self, options: &KafkaOptions) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let setting = |name: &str| self.settings.get(name).map_or("nothing", String::as_str);
        let (replicas, wanted) = (self.replicas, usize::from(options.replication));
        expect(
            replicas >= wanted,
            format!("a partition has {replicas} copies, {wanted} are asked for (`replication`)"),
        );
        let (insync, wanted) = (self.number("min.insync.replicas").unwrap_or(0), u64::from(options.min_insync));
        expect(insync >= wanted, format!("min.insync.replicas is {insync}, {wanted} are asked for (`min_insync`)"));
        expect(
            setting("unclean.leader.election.enable") == "false",
            "unclean.leader.election.enable must be false: a broker that lags would become the leader, and what was \
             acknowledged be lost"
                .into(),
        );
        expect(
            setting("cleanup.policy") == "delete",
            format!("cleanup.policy is {}, and must be delete", setting("cleanup.policy")),
        );
        let largest = self.number("max.message.bytes").unwrap_or(0);
        expect(
            largest >= MAX_RECORD as u64,
            format!("max.message.bytes is {largest}, at least {MAX_RECORD} are needed"),
        );
        faults
    }

    pub(super) fn check(&self, topic: &str, options: &KafkaOptions) -> Result<(), LogError> {
        let faults = self.faults(options);
        if faults.is_empty() {
            return Ok(());
        }
        Err(LogError::Unfit(format!("topic {topic} on the brokers: {}", faults.join("; "))))
    }
}

impl Topics {
    pub(super) fn open(options: &KafkaOptions) -> Result<Self, LogError> {
        let admin = AdminClient::from_config_and_context(&options.client(), Events);
        let admin = Arc::new(admin.map_err(|error| storage("a client", &error))?);
        Ok(Self { options: options.clone(), admin })
    }

    /// Creates a topic, if it is not there.
    pub(super) async fn create(&self, name: &str, spec: &TopicSpec) -> Result<(), LogError> {
        let settings = self.settings(spec.retention);
        let replication = TopicReplication::Fixed(i32::from(self.options.replication));
        let partitions = i32::try_from(spec.partitions).map_err(|_| LogError::NoPartitions(spec.name.clone()))?;
        let topic = settings
            .iter()
            .fold(NewTopic::new(name, partitions, replication), |topic, (name, value)| topic.set(name, value));
        let begun = Instant::now();
        loop {
            let asked = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
            let code = match self.admin.create_topics([&topic], &asked).await {
                Ok(results) => match results.into_iter().next() {
                    Some(Err((_, code))) => code,
                    _ => return Ok(()),
                },
                Err(error) if is_passing(&error) => RDKafkaErrorCode::RequestTimedOut,
                Err(error) => return Err(storage(&format!("creating topic {name}"), &error)),
            };
            match code {
                RDKafkaErrorCode::TopicAlreadyExists => return Ok(()),
                RDKafkaErrorCode::InvalidReplicationFactor if begun.elapsed() < COMING_UP => {}
                RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::BrokerNotAvailable
                | RDKafkaErrorCode::NotController
                    if begun.elapsed() < PATIENCE => {}
                code => {
                    let what = format!("{code}: has the cluster {} brokers?", self.options.replication);
                    return Err(LogError::Storage(format!("creating topic {name} on Kafka: {what}")));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Settings of a topic with this retention.
    fn settings(&self, retention: Retention) -> Vec<(&'static str, String)> {
        let for_ever = || "-1".to_owned();
        vec![
            ("cleanup.policy", "delete".into()),
            ("retention.ms", retention.age.map_or_else(for_ever, |age| age.as_millis().to_string())),
            ("retention.bytes", retention.bytes.map_or_else(for_ever, |bytes| bytes.to_string())),
            ("min.insync.replicas", self.options.min_insync.to_string()),
            ("unclean.leader.election.enable", "false".into()),
            ("max.message.bytes", MAX_BATCH.to_string()),
        ]
    }

    /// Changes for how long records of a topic are kept.
    pub(super) async fn retain(&self, name: &str, retention: Retention) -> Result<(), LogError> {
        let settings = self.settings(retention);
        // It replaces all that was set for the topic: so all of it is set again.
        let all = settings
            .iter()
            .fold(AlterConfig::new(ResourceSpecifier::Topic(name)), |all, (name, value)| all.set(name, value));
        let altered = self.admin.alter_configs([&all], &AdminOptions::new().request_timeout(Some(ASK))).await;
        let altered = altered.map_err(|error| storage(&format!("retention of topic {name}"), &error))?;
        match altered.into_iter().next() {
            Some(Err((_, code))) => Err(LogError::Storage(format!("retention of topic {name} on Kafka: {code}"))),
            _ => Ok(()),
        }
    }

    /// What the brokers have of a topic, once each of its partitions has a leader; `None` if there is no such topic.
    pub(super) async fn describe(&self, name: &str) -> Result<Option<Described>, LogError> {
        let begun = Instant::now();
        loop {
            if let Some((partitions, replicas, led)) = self.partitions(name).await? {
                if led || begun.elapsed() > PATIENCE {
                    let settings = self.settings_of(name).await?;
                    return Ok(Some(Described { partitions, replicas, settings }));
                }
            } else if begun.elapsed() > Duration::from_secs(1) {
                // Brokers hear of a new topic one after the other.
                return Ok(None);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn partitions(&self, name: &str) -> Result<Option<(u32, usize, bool)>, LogError> {
        let name = name.to_owned();
        self.ask("topics", move |admin| {
            let metadata = admin.inner().fetch_metadata(Some(&name), ASK)?;
            let topic = metadata.topics().first().filter(|topic| topic.error().is_none());
            Ok(topic.map(|topic| {
                let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
                let led = topic.partitions().iter().all(|partition| partition.leader() >= 0);
                (topic.partitions().len() as u32, replicas.unwrap_or(0), led)
            }))
        })
        .await
        .map(|found| found.filter(|(partitions, ..)| *partitions > 0))
    }

    async fn settings_of(&self, name: &str) -> Result<BTreeMap<String, String>, LogError> {
        let asked = AdminOptions::new().request_timeout(Some(ASK));
        let described = self.admin.describe_configs([&ResourceSpecifier::Topic(name)], &asked).await;
        let described = described.map_err(|error| storage(&format!("settings of topic {name}"), &error))?;
        let settings = match described.into_iter().next() {
            Some(Ok(resource)) => resource.entries,
            Some(Err(code)) => return Err(LogError::Storage(format!("settings of topic {name} on Kafka: {code}"))),
            None => Vec::new(),
        };
        Ok(settings.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// Where a partition begins and ends.
    pub(super) async fn bounds(&self, topic: &str, at: &Partition) -> Result<Bounds, LogError> {
        let (topic, partition, unknown) = (topic.to_owned(), super::number(at)?, at.clone());
        let asked = self.ask("bounds", move |admin| match admin.inner().fetch_watermarks(&topic, partition, ASK) {
            Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition,
            )) => Ok(None),
            bounds => bounds.map(Some),
        });
        let Some((start, next)) = asked.await? else { return Err(LogError::Unknown(unknown)) };
        let offset = |number: i64| Offset::new(u64::try_from(number).unwrap_or(0));
        Ok(Bounds { start: offset(start), next: offset(next) })
    }

    /// Removes the records of a partition before `before`.
    pub(super) async fn trim(&self, topic: &str, at: &Partition, before: u64) -> Result<(), LogError> {
        let mut list = TopicPartitionList::new();
        let to = KafkaOffset::Offset(i64::try_from(before).unwrap_or(i64::MAX));
        let added = list.add_partition_offset(topic, super::number(at)?, to);
        added.map_err(|error| storage(&format!("trimming {at}"), &error))?;
        let asked = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
        let trimmed = self.admin.delete_records(&list, &asked).await;
        let trimmed = trimmed.map_err(|error| storage(&format!("trimming {at}"), &error))?;
        let errors = trimmed.elements().iter().filter_map(|element| element.error().err()).next();
        errors.map_or(Ok(()), |error| Err(storage(&format!("trimming {at}"), &error)))
    }

    /// Asks brokers, again and again while they cannot be reached: they may be about to come back.
    async fn ask<T: Send + 'static>(
        &self,
        what: &str,
        question: impl Fn(&AdminClient<Events>) -> Result<T, KafkaError> + Clone + Send + 'static,
    ) -> Result<T, LogError> {
        let begun = Instant::now();
        loop {
            let (admin, question) = (Arc::clone(&self.admin), question.clone());
            let answer = tokio::task::spawn_blocking(move || question(&admin)).await;
            let answer = answer.map_err(|error| LogError::Storage(format!("{what}: {error}")))?;
            match answer {
                Err(error) if is_passing(&error) && begun.elapsed() < PATIENCE => {
                    tracing::debug!(%error, what, "Kafka is asked again");
                }
                answer => return answer.map_err(|error| storage(what, &error)),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A broker is gone or another one is about to take over: it will pass.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::NotCoordinator
                | Code::BrokerNotAvailable
                | Code::ReplicaNotAvailable
                | Code::NetworkException
                | Code::Resolve
                | Code::DestroyBroker
                | Code::UnknownBroker
        )
    )
}
