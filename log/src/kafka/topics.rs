//! Topics on the brokers: created as asked, and what is there held against it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
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
/// For how long a topic that has been made, but that a broker does not know, is asked for again: brokers hear of it one after
/// the other.
pub(super) const HEARD_OF: Duration = Duration::from_secs(20);
/// The same, where it is not known to have been made.
pub(super) const IF_ANY: Duration = Duration::from_secs(1);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Stands for a setting that brokers do not tell.
const NOTHING: &str = "nothing";

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
        let setting = |name: &str| self.settings.get(name).map_or(NOTHING, String::as_str);
        let (replicas, wanted) = (self.replicas, usize::from(options.replication));
        expect(
            replicas >= wanted,
            format!("a partition has {replicas} copies, {wanted} are asked for (`replication`)"),
        );
        // Redpanda knows neither of the two: there a majority of the copies has what is acknowledged, and leads.
        let (insync, wanted) = (setting("min.insync.replicas"), u64::from(options.min_insync));
        expect(
            self.number("min.insync.replicas").is_none_or(|insync| insync >= wanted),
            format!("min.insync.replicas is {insync}, {wanted} are asked for (`min_insync`)"),
        );
        expect(
            matches!(setting("unclean.leader.election.enable"), "false" | NOTHING),
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
                Err(error) if is_final(&error) => return Err(storage(&format!("creating topic {name}"), &error)),
                Err(_) => RDKafkaErrorCode::RequestTimedOut,
            };
            match code {
                RDKafkaErrorCode::TopicAlreadyExists => return Ok(()),
                RDKafkaErrorCode::InvalidReplicationFactor if begun.elapsed() < COMING_UP => {}
                code if !is_final_code(code) && begun.elapsed() < PATIENCE => {}
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
        let what = format!("retention of topic {name}");
        let alter = || self.admin.alter_configs([&all], &AdminOptions::new().request_timeout(Some(ASK)));
        again(&what, || alter().map(|altered| one(altered?.into_iter().map(|topic| topic.map_err(|(_, code)| code)))))
            .await
            .map(drop)
    }

    /// What the brokers have of a topic, once each of its partitions has a leader; `None` if no such topic is seen for as long
    /// as `patience`.
    pub(super) async fn describe(&self, name: &str, patience: Duration) -> Result<Option<Described>, LogError> {
        let begun = Instant::now();
        loop {
            match self.partitions(name).await? {
                Some((partitions, replicas, led)) if led || begun.elapsed() > PATIENCE => {
                    let settings = self.settings_of(name).await?;
                    // A broker that has not heard of the topic tells none.
                    if !settings.is_empty() {
                        return Ok(Some(Described { partitions, replicas, settings }));
                    }
                }
                Some(_) => {}
                None if begun.elapsed() > patience => return Ok(None),
                None => {}
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
        let what = format!("settings of topic {name}");
        let asked = AdminOptions::new().request_timeout(Some(ASK));
        let topic = ResourceSpecifier::Topic(name);
        let described = again(&what, || self.admin.describe_configs([&topic], &asked).map(|found| one(found?))).await?;
        let settings = described.map(|resource| resource.entries).unwrap_or_default();
        Ok(settings.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// Where a partition that has been made begins and ends.
    pub(super) async fn bounds(&self, topic: &str, at: &Partition) -> Result<Bounds, LogError> {
        let (name, partition, begun) = (topic.to_owned(), super::number(at)?, Instant::now());
        let asked = self.ask("bounds", move |admin| match admin.inner().fetch_watermarks(&name, partition, ASK) {
            Err(KafkaError::MetadataFetch(code)) if is_unknown(code) => {
                if begun.elapsed() > HEARD_OF {
                    return Ok(None);
                }
                // What the client remembers of the topic is from before all of it was there, and it does not ask again by itself.
                admin.inner().fetch_metadata(Some(&name), ASK)?;
                Err(KafkaError::MetadataFetch(code))
            }
            bounds => bounds.map(Some),
        });
        let Some((start, next)) = asked.await? else { return Err(LogError::Unknown(at.clone())) };
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
        again(&format!("trimming {at}"), || {
            let trimmed = self.admin.delete_records(&list, &asked);
            trimmed.map(|trimmed| trimmed?.elements().iter().try_for_each(|element| element.error()))
        })
        .await
    }

    /// Asks brokers what blocks a thread.
    async fn ask<T: Send + 'static>(
        &self,
        what: &str,
        question: impl Fn(&AdminClient<Events>) -> Result<T, KafkaError> + Clone + Send + 'static,
    ) -> Result<T, LogError> {
        again(what, || {
            let (admin, question) = (Arc::clone(&self.admin), question.clone());
            let answer = tokio::task::spawn_blocking(move || question(&admin));
            // It ends without an answer only where the program does.
            answer.map(|answer| answer.unwrap_or(Err(KafkaError::Canceled)))
        })
        .await
    }
}

/// Asks, again and again while it cannot be answered: brokers may be about to come back, or to hear of a topic.
async fn again<T, F: Future<Output = Result<T, KafkaError>>>(
    what: &str,
    question: impl Fn() -> F,
) -> Result<T, LogError> {
    let begun = Instant::now();
    loop {
        match question().await {
            Err(error) if !is_final(&error) && begun.elapsed() < PATIENCE => {
                tracing::debug!(%error, what, "Kafka is asked again");
            }
            answer => return answer.map_err(|error| storage(what, &error)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The answer for the only topic that was asked about.
fn one<T>(answers: impl IntoIterator<Item = Result<T, RDKafkaErrorCode>>) -> Result<Option<T>, KafkaError> {
    answers.into_iter().next().transpose().map_err(KafkaError::AdminOp)
}

/// The broker that was asked has not heard of the topic, or not yet.
fn is_unknown(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::UnknownTopic
    )
}

/// Asking again will not help: what is asked for is refused, or makes no sense. Everything else passes: brokers die, others
/// take over, and say so in many ways meanwhile.
pub(super) fn is_final(error: &KafkaError) -> bool {
    match error {
        // The library does not take its code out.
        KafkaError::AdminOp(code) => is_final_code(*code),
        error => error.rdkafka_error_code().is_none_or(is_final_code),
    }
}

fn is_final_code(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Authentication
            | Code::SSL
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidArgument
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidReplicaAssignment
            | Code::InvalidRequest
            | Code::InvalidTopic
            | Code::MessageSizeTooLarge
            | Code::NotImplemented
            | Code::OffsetOutOfRange
            | Code::PolicyViolation
            | Code::TopicAlreadyExists
            | Code::TopicDeletionDisabled
            | Code::UnsupportedFeature
            | Code::UnsupportedVersion
            | Code::Fatal
            | Code::Fenced
            | Code::State
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redpanda tells of a topic, and what Kafka may.
    #[test]
    fn a_topic_without_two_settings_is_redpandas() {
        let options = KafkaOptions::new(Vec::new());
        let with = |more: &[(&str, &str)]| {
            let largest = MAX_BATCH.to_string();
            let told = [("cleanup.policy", "delete"), ("max.message.bytes", &*largest)];
            let settings = told.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Described { partitions: 1, replicas: 3, settings: settings.collect() }.faults(&options).len()
        };
        assert_eq!(with(&[]), 0);
        assert_eq!(with(&[("min.insync.replicas", "2"), ("unclean.leader.election.enable", "false")]), 0);
        assert_eq!(with(&[("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")]), 2);
    }

    #[test]
    fn only_what_stays_so_is_final() {
        use RDKafkaErrorCode as Code;
        // Seen while brokers were killed.
        for code in [Code::OffsetNotAvailable, Code::UnknownTopicOrPartition, Code::NotLeaderForPartition] {
            assert!(!is_final(&KafkaError::MetadataFetch(code)), "{code}");
            assert!(!is_final(&KafkaError::AdminOp(code)), "{code}");
        }
        for code in [Code::TopicAuthorizationFailed, Code::SaslAuthenticationFailed, Code::InvalidConfig] {
            assert!(is_final(&KafkaError::AdminOp(code)), "{code}");
        }
        assert!(is_final(&KafkaError::Canceled));
    }
}
