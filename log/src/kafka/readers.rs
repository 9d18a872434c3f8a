//! Which cursor serves a read: readers at the same place share one, those behind get one of their own.
//!
//! A consumer of librdkafka has one position in a partition, so a second cursor of a partition needs a second consumer.
//! Most partitions are read at one place, and one consumer is all there is.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, TopicPartitionList};
use tokio::time::Instant;

use super::cursor::{Cursor, Found};
use super::settings::KafkaOptions;
use super::{report, storage};
use crate::LogError;

/// A cursor that nobody has read for this long is given up.
const IDLE: Duration = Duration::from_secs(20);
/// How long a broker may take to say who leads a topic.
const ASK: Duration = Duration::from_secs(2);
/// How often the events of consumers are looked after.
const TURN: Duration = Duration::from_millis(100);

/// What clients tell besides answers and records.
pub(super) struct Events;

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Events {}

/// Name of a topic on the brokers, and number of a partition.
pub(super) type Place = (Arc<str>, i32);

/// All who read.
pub(super) struct Readers {
    options: KafkaOptions,
    consumers: Mutex<Vec<Assigned>>,
    cursors: Mutex<HashMap<Place, Vec<Open>>>,
}

/// A consumer, and the partitions that it has a cursor of.
struct Assigned {
    consumer: Arc<BaseConsumer<Events>>,
    places: HashSet<Place>,
    /// Topics whose leaders it knows.
    topics: HashSet<Arc<str>>,
}

/// What [`Readers::cursor`] has.
enum Chosen {
    Cursor(Arc<Cursor>),
    /// The consumer is to learn of the topic first: else it does so at its leisure, once a second.
    Ask(usize, Arc<BaseConsumer<Events>>),
}

struct Open {
    cursor: Arc<Cursor>,
    /// Which consumer it is on.
    consumer: usize,
}

impl Readers {
    pub(super) fn new(options: KafkaOptions) -> Result<Arc<Self>, LogError> {
        let readers = Arc::new(Self { options, consumers: Mutex::default(), cursors: Mutex::default() });
        let of_thread = Arc::downgrade(&readers);
        let thread = std::thread::Builder::new().name("kafka-read".into()).spawn(move || look_after(&of_thread));
        thread.map_err(|error| LogError::Storage(format!("a thread for reads: {error}")))?;
        Ok(readers)
    }

    /// The records of a partition from `offset` on, which lies within it; see [`Cursor::read`]. After an error of Kafka's
    /// the next read begins anew.
    pub(super) async fn read(
        &self,
        place: &Place,
        offset: u64,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Result<Vec<crate::Record>, KafkaError>, LogError> {
        loop {
            let cursor = match self.cursor(place, offset)? {
                Chosen::Cursor(cursor) => cursor,
                Chosen::Ask(number, consumer) => {
                    self.introduce(number, consumer, &place.0).await?;
                    continue;
                }
            };
            match cursor.read(offset, max_bytes, deadline).await {
                Found::Records(records) => return Ok(Ok(records)),
                Found::Nothing => return Ok(Ok(Vec::new())),
                Found::Failed(error) => {
                    self.give_up(place, |open| open.cursor.has_failed());
                    return Ok(Err(error));
                }
                Found::Elsewhere => {}
            }
        }
    }

    /// Whether a read at `offset` goes on where one has been.
    pub(super) fn is_known(&self, place: &Place, offset: u64) -> bool {
        let cursors = self.cursors.lock();
        cursors.get(place).is_some_and(|open| open.iter().any(|open| open.cursor.covers(offset)))
    }

    /// Lets a consumer ask who leads the partitions of a topic. If nobody answers it finds out later by itself.
    async fn introduce(
        &self,
        number: usize,
        consumer: Arc<BaseConsumer<Events>>,
        topic: &Arc<str>,
    ) -> Result<(), LogError> {
        let name = Arc::clone(topic);
        let asked = tokio::task::spawn_blocking(move || consumer.fetch_metadata(Some(&name), ASK).map(drop));
        let asked = asked.await.map_err(|error| LogError::Storage(format!("asking about {topic}: {error}")))?;
        if let Err(error) = asked {
            tracing::debug!(%topic, %error, "nobody says who leads it");
        }
        self.consumers.lock()[number].topics.insert(Arc::clone(topic));
        Ok(())
    }

    fn cursor(&self, place: &Place, offset: u64) -> Result<Chosen, LogError> {
        let mut cursors = self.cursors.lock();
        let open = cursors.entry(place.clone()).or_default();
        if let Some(known) = open.iter().find(|open| open.cursor.covers(offset)) {
            return Ok(Chosen::Cursor(Arc::clone(&known.cursor)));
        }
        let mut consumers = self.consumers.lock();
        let free = consumers.iter().position(|assigned| !assigned.places.contains(place));
        let consumer = match free {
            Some(consumer) => consumer,
            None => {
                let new = BaseConsumer::from_config_and_context(&self.options.consumer(), Events);
                let consumer = Arc::new(new.map_err(|error| storage("a consumer", &error))?);
                consumers.push(Assigned { consumer, places: HashSet::new(), topics: HashSet::new() });
                consumers.len() - 1
            }
        };
        let assigned = &mut consumers[consumer];
        let (topic, partition) = place;
        if !assigned.topics.contains(topic) {
            return Ok(Chosen::Ask(consumer, Arc::clone(&assigned.consumer)));
        }
        let cursor = Cursor::new(&assigned.consumer, topic, *partition, offset);
        let cursor = cursor.ok_or_else(|| LogError::Storage(format!("{topic}/{partition} has no queue")))?;
        let at = i64::try_from(offset).unwrap_or(i64::MAX);
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(topic, *partition, rdkafka::Offset::Offset(at));
        let assign = added.and_then(|()| assigned.consumer.incremental_assign(&list));
        assign.map_err(|error| storage(&format!("reading {topic}/{partition}"), &error))?;
        assigned.places.insert(place.clone());
        let cursor = Arc::new(cursor);
        open.push(Open { cursor: Arc::clone(&cursor), consumer });
        Ok(Chosen::Cursor(cursor))
    }

    /// Gives up the cursors that nobody reads.
    fn sweep(&self) {
        let places: Vec<Place> = self.cursors.lock().keys().cloned().collect();
        for place in places {
            self.give_up(&place, |open| Arc::strong_count(&open.cursor) == 1 && open.cursor.idle() >= IDLE);
        }
    }

    /// Gives up those cursors of a partition that are done with.
    fn give_up(&self, place: &Place, done: impl Fn(&Open) -> bool) {
        let mut cursors = self.cursors.lock();
        let Some(open) = cursors.get_mut(place) else { return };
        for open in open.extract_if(.., |open| done(open)) {
            self.unassign(place, open.consumer);
        }
        if open.is_empty() {
            cursors.remove(place);
        }
    }

    fn unassign(&self, place: &Place, consumer: usize) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&place.0, place.1);
        let assigned = &mut self.consumers.lock()[consumer];
        if let Err(error) = assigned.consumer.incremental_unassign(&list) {
            tracing::warn!(topic = %place.0, partition = place.1, %error, "a partition is still read by nobody");
        }
        assigned.places.remove(place);
    }

    /// The records of a partition before `start` have been removed.
    pub(super) fn forget_before(&self, place: &Place, start: u64) {
        for open in self.cursors.lock().get(place).into_iter().flatten() {
            open.cursor.forget_before(start);
        }
    }
}

/// Serves events of consumers and gives up idle cursors, as long as there is a log.
fn look_after(readers: &Weak<Readers>) {
    let mut turn = 0_u32;
    while let Some(readers) = readers.upgrade() {
        let consumers: Vec<_> =
            readers.consumers.lock().iter().map(|assigned| Arc::clone(&assigned.consumer)).collect();
        for consumer in &consumers {
            if let Some(Err(error)) = consumer.poll(Duration::ZERO) {
                tracing::warn!(%error, "Kafka");
            }
        }
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(10) {
            readers.sweep();
        }
        drop((readers, consumers));
        std::thread::sleep(TURN);
    }
}
