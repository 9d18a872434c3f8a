//! Appends: in the order of their calls into librdkafka, which sends them, and answered when all of a batch is durable.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use sluice_proto::Offset;
use tokio::sync::oneshot;

use super::settings::KafkaOptions;
use super::{report, storage};
use crate::metrics::{Counters, count};
use crate::{LogError, LogMetrics, Partition};

/// How often answers are looked for at least, and what waits for room is tried again.
const TURN: Duration = Duration::from_millis(50);
/// The same, while something waits for room.
const CLOGGED_TURN: Duration = Duration::from_millis(1);

/// What an append resolves to.
pub(super) type Answer = Result<Offset, LogError>;

/// The one producer of the log.
pub(super) struct Appends {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    producer: BaseProducer<Deliveries>,
    health: Arc<Health>,
    /// Partitions with batches that wait for room in librdkafka's queue.
    clogged: Mutex<Vec<Arc<Slot>>>,
    closing: AtomicBool,
}

/// What is known of all appends. Whether the log still takes some: once one has failed, none may become durable behind it.
#[derive(Default)]
struct Health {
    stopped: OnceLock<Arc<str>>,
    counters: Counters,
    /// Bytes of records that are not durable yet.
    queued: AtomicU64,
}

impl Health {
    /// The first cause stays.
    fn stop(&self, cause: impl Into<Arc<str>>) {
        let cause = cause.into();
        if self.stopped.set(Arc::clone(&cause)).is_ok() {
            count(&self.counters.stopped, 1);
            tracing::error!(%cause, "the log has stopped: nothing is appended any more");
        }
    }

    /// It was asked to end: no news.
    fn close(&self) {
        let _ = self.stopped.set("it was closed".into());
    }

    fn error(&self) -> Option<LogError> {
        self.stopped.get().map(|cause| LogError::Stopped(Arc::clone(cause)))
    }
}

/// A partition as appends know it.
pub(super) struct Slot {
    /// Name of the topic on the brokers.
    topic: String,
    partition: i32,
    at: Partition,
    /// Batches in the order of the calls, the first of them perhaps in parts with librdkafka.
    waiting: Mutex<VecDeque<Pending>>,
}

struct Pending {
    batch: Vec<Bytes>,
    sent: usize,
    ticket: Arc<Ticket>,
}

impl Slot {
    pub(super) fn new(topic: String, partition: i32, at: Partition) -> Arc<Self> {
        Arc::new(Self { topic, partition, at, waiting: Mutex::default() })
    }
}

/// What is known of a batch until all of it is durable.
pub(super) struct Ticket {
    left: AtomicUsize,
    /// Offset of its first record: the least, whichever is told first.
    first: AtomicU64,
    health: Arc<Health>,
    records: u64,
    bytes: u64,
    called: Instant,
    done: Mutex<Option<oneshot::Sender<Answer>>>,
}

impl Ticket {
    fn answer(&self, answer: Answer) {
        if let Some(done) = self.done.lock().take() {
            let counters = &self.health.counters;
            self.health.queued.fetch_sub(self.bytes, Ordering::Relaxed);
            if answer.is_ok() {
                count(&counters.records, self.records);
                count(&counters.bytes, self.bytes);
                counters.append_took(self.called.elapsed());
            }
            // A caller that has given up needs no answer.
            let _ = done.send(answer);
        }
    }

    fn fail(&self) {
        if let Some(error) = self.health.error() {
            self.answer(Err(error));
        }
    }
}

struct Deliveries {
    health: Arc<Health>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.health.stop(format!("Kafka's client: {reason}")),
            _ => tracing::warn!(%error, reason, "Kafka"),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Ticket>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, ticket: Arc<Ticket>) {
        match delivered {
            Ok(message) => {
                let offset = u64::try_from(message.offset()).unwrap_or(u64::MAX);
                ticket.first.fetch_min(offset, Ordering::Relaxed);
            }
            Err((error, message)) => {
                self.health.stop(format!("{}/{}: {error}", message.topic(), message.partition()));
                ticket.fail();
            }
        }
        if ticket.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            ticket.answer(Ok(Offset::new(ticket.first.load(Ordering::Relaxed))));
        }
    }
}

impl Appends {
    pub(super) fn open(options: &KafkaOptions) -> Result<Self, LogError> {
        let health = Arc::new(Health::default());
        let context = Deliveries { health: Arc::clone(&health) };
        let producer = BaseProducer::from_config_and_context(&options.producer(), context);
        let producer = producer.map_err(|error| storage("a producer", &error))?;
        let shared = Shared { producer, health, clogged: Mutex::default(), closing: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kafka-append".into()).spawn(move || of_thread.run());
        let thread = thread.map_err(|error| LogError::Storage(format!("a thread for appends: {error}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Appends a batch of at least one record, behind those of earlier calls.
    pub(super) fn append(&self, slot: &Arc<Slot>, batch: Vec<Bytes>) -> oneshot::Receiver<Answer> {
        let (done, answer) = oneshot::channel();
        let (health, bytes) = (&self.shared.health, batch.iter().map(|record| record.len() as u64).sum());
        let ticket = Arc::new(Ticket {
            left: AtomicUsize::new(batch.len()),
            first: AtomicU64::new(u64::MAX),
            health: Arc::clone(health),
            records: batch.len() as u64,
            bytes,
            called: Instant::now(),
            done: Mutex::new(Some(done)),
        });
        health.queued.fetch_add(bytes, Ordering::Relaxed);
        let mut waiting = slot.waiting.lock();
        waiting.push_back(Pending { batch, sent: 0, ticket });
        // Behind batches that wait for room this one waits, too.
        if waiting.len() == 1 && !self.shared.send(slot, &mut waiting) {
            count(&health.counters.queue_full, 1);
            self.shared.clogged.lock().push(Arc::clone(slot));
        }
        answer
    }

    /// Its counters, for reads and trims, too.
    pub(super) fn counters(&self) -> &Counters {
        &self.shared.health.counters
    }

    /// What was counted.
    pub(super) fn metrics(&self) -> LogMetrics {
        let health = &self.shared.health;
        health.counters.read(health.queued.load(Ordering::Relaxed))
    }

    /// Ends the producer, once what was appended is durable, or after `patience`.
    pub(super) fn close(&self, patience: Duration) -> Result<(), LogError> {
        let Some(thread) = self.thread.lock().take() else { return Ok(()) };
        let flushed = self.shared.producer.flush(patience);
        self.shared.health.close();
        self.shared.closing.store(true, Ordering::Release);
        let ended = thread.join();
        flushed.map_err(|error| storage("the last appends", &error))?;
        ended.map_err(|_| LogError::Storage("the thread of appends had panicked".into()))
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
    }
}

impl Shared {
    /// Gives what waits to librdkafka; `false` if that has no room now.
    fn send(&self, slot: &Slot, waiting: &mut VecDeque<Pending>) -> bool {
        while let Some(pending) = waiting.front_mut() {
            if self.health.stopped.get().is_some() {
                waiting.drain(..).for_each(|pending| pending.ticket.fail());
                return true;
            }
            while let Some(record) = pending.batch.get(pending.sent) {
                let message = BaseRecord::with_opaque_to(&slot.topic, Arc::clone(&pending.ticket))
                    .partition(slot.partition)
                    .payload(&record[..])
                    .key(&[][..]);
                match self.producer.send::<[u8], [u8]>(message) {
                    Ok(()) => pending.sent += 1,
                    Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => return false,
                    Err((error, _)) => {
                        self.health.stop(format!("{}: {error}", slot.at));
                        break;
                    }
                }
            }
            if pending.sent == pending.batch.len() {
                waiting.pop_front();
            }
        }
        true
    }

    fn run(&self) {
        while !self.closing.load(Ordering::Acquire) {
            let clogged = std::mem::take(&mut *self.clogged.lock());
            self.producer.poll(if clogged.is_empty() { TURN } else { CLOGGED_TURN });
            for slot in clogged {
                if !self.send(&slot, &mut slot.waiting.lock()) {
                    self.clogged.lock().push(slot);
                }
            }
            if self.health.stopped.get().is_some() {
                // Whoever waits is told. What is on its way to a broker may still become durable, as at a crash.
                self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
            }
        }
    }
}
