//! The broker that both engines work on, as the bench itself sees it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use sluice_log::{KafkaLog, KafkaOptions};
use sluice_testkit::kafka::Kafka;

use crate::PARTITIONS;

/// How long a question to the broker may take.
const ASK: Duration = Duration::from_secs(20);

/// A log of Sluice on the broker.
pub type SharedKafkaLog = Arc<KafkaLog>;

/// A private broker, and a client to ask it.
pub struct Broker {
    kafka: Kafka,
    asks: BaseConsumer,
}

impl Broker {
    /// Apache Kafka itself.
    pub fn start() -> Result<Self> {
        let kafka = Kafka::start(1)?;
        let asks = config(&kafka).create().context("a client of the broker")?;
        Ok(Self { kafka, asks })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.kafka.brokers().join(",")
    }

    /// Settings of a client.
    pub fn client(&self) -> ClientConfig {
        config(&self.kafka)
    }

    /// The log whose topics begin with `prefix`; begun if it is not there.
    pub async fn log(&self, prefix: &str) -> Result<SharedKafkaLog> {
        Ok(KafkaLog::open(options(&self.address(), prefix)).await?)
    }

    /// Makes topics for Goka, as many partitions as Sluice's have; a compacted one is that of a table.
    pub async fn create(&self, topics: &[(&str, bool)]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create().context("an administrator")?;
        let new = topics.iter().map(|(name, compacted)| {
            let topic = NewTopic::new(name, PARTITIONS as i32, TopicReplication::Fixed(1));
            topic.set("cleanup.policy", if *compacted { "compact" } else { "delete" })
        });
        let asked = AdminOptions::new().operation_timeout(Some(ASK));
        for made in admin.create_topics(&new.collect::<Vec<_>>(), &asked).await.context("creating topics")? {
            made.map_err(|(name, code)| anyhow::anyhow!("creating {name}: {code}"))?;
        }
        Ok(())
    }

    /// Removes all topics whose names begin with `prefix`: what a run has left would only fill the disk.
    pub async fn clear(&self, prefix: &str) -> Result<()> {
        let metadata = self.asks.fetch_metadata(None, ASK).context("the topics of the broker")?;
        let names: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).collect();
        let names: Vec<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        let admin: AdminClient<DefaultClientContext> = self.client().create().context("an administrator")?;
        let asked = AdminOptions::new().operation_timeout(Some(ASK));
        admin.delete_topics(&names, &asked).await.context("deleting topics").map(drop)
    }

    /// Where each partition of a topic ends.
    pub fn ends(&self, topic: &str) -> Result<Vec<i64>> {
        let end = |partition| {
            let watermarks = self.asks.fetch_watermarks(topic, partition as i32, ASK);
            watermarks.map(|(_, end)| end).with_context(|| format!("the end of {topic}/{partition}"))
        };
        (0..PARTITIONS).map(end).collect()
    }
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers().join(",")).set("group.id", "bench");
    config.set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    config.set("fetch.queue.backoff.ms", "1");
    config
}

/// How a log on the broker is opened, by bench and child alike.
pub fn options(address: &str, prefix: &str) -> KafkaOptions {
    let brokers = address.split(',').map(str::to_owned).collect();
    KafkaOptions { prefix: format!("{prefix}."), replication: 1, min_insync: 1, ..KafkaOptions::new(brokers) }
}
