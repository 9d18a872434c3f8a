//! Who of several processes does what: by Kafka's consumer groups, which notice when one is gone.
//!
//! A group decides nothing but who tries. That no two do the same is a matter of epochs and fences (DESIGN 5): while a group
//! changes its mind, two may, and the later claim holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::watch;

use super::{KafkaOptions, storage};
use crate::LogError;

/// How often the group is listened to: its heartbeats go on by themselves.
const LISTEN: Duration = Duration::from_millis(100);

/// A place among those who share out the partitions of a topic. Dropping it leaves them.
pub struct Membership {
    assigned: watch::Receiver<BTreeSet<u32>>,
    stop: Arc<AtomicBool>,
}

impl Membership {
    /// Joins those who share out the partitions of `topic` as `unit`.
    pub(super) fn join(options: &KafkaOptions, topic: &str, unit: &str) -> Result<Self, LogError> {
        let mut config = options.client();
        let settings = [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // Nothing is read: no record of a topic goes to a member.
            ("auto.offset.reset", "latest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            // A process that is gone is noticed after this; brokers allow no less.
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "1500"),
        ];
        config.set("group.id", format!("{}sluice.{unit}", options.prefix));
        for (name, value) in settings {
            config.set(name, value);
        }
        let (to, assigned) = watch::channel(BTreeSet::new());
        let failed = |error: KafkaError| storage(&format!("joining the group of {unit}"), &error);
        let consumer = BaseConsumer::from_config_and_context(&config, Group { assigned: to }).map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), format!("group {unit}"));
        let listen = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(Err(error)) = consumer.poll(LISTEN) {
                    tracing::debug!(%error, "a group of Kafka");
                }
            }
            consumer.unsubscribe();
        };
        let thread = std::thread::Builder::new().name(name).spawn(listen);
        thread.map_err(|error| LogError::Storage(format!("a thread for the group of {unit}: {error}")))?;
        Ok(Self { assigned, stop })
    }

    /// The partitions that are this process's now.
    pub fn assigned(&self) -> BTreeSet<u32> {
        self.assigned.borrow().clone()
    }

    /// Returns once they are others than when it was last asked.
    pub async fn changed(&mut self) {
        if self.assigned.changed().await.is_err() {
            // Its thread has ended: nothing changes any more.
            std::future::pending().await
        }
        self.assigned.borrow_and_update();
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Hears what the group decides.
struct Group {
    assigned: watch::Sender<BTreeSet<u32>>,
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Group {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let (list, is_new) = match rebalance {
            Rebalance::Assign(list) => (list, true),
            Rebalance::Revoke(list) => (list, false),
            Rebalance::Error(error) => return tracing::warn!(%error, "a group of Kafka has no answer"),
        };
        if is_new && let Err(error) = consumer.pause(list) {
            tracing::debug!(%error, "partitions that are only to be known are read, too");
        }
        let partitions: Vec<u32> = list.elements().iter().filter_map(|it| u32::try_from(it.partition()).ok()).collect();
        tracing::info!(?partitions, is_new, "the group shares out partitions");
        self.assigned.send_modify(|assigned| {
            for partition in partitions {
                if is_new {
                    assigned.insert(partition)
                } else {
                    assigned.remove(&partition)
                };
            }
        });
    }
}
