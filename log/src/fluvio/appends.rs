//! Appends: one producer a partition, one request of it under way at a time.
//!
//! ```text
//! append --> line of the partition --> what waits, as one batch --> the leader --> acknowledged by all copies
//! ```
//!
//! What is not acknowledged may be there all the same, so it is sent again until it is: a record may then be there twice,
//! never behind a later one. The client's own producer is not used (docs/adr/0025).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{Batch, RawRecords, RecordSet};
use fluvio_spu_schema::Isolation;
use fluvio_spu_schema::produce::{DefaultPartitionRequest, DefaultProduceRequest, DefaultTopicRequest};
use parking_lot::Mutex;
use sluice_proto::Offset;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::cluster::{Cluster, Place, offsets};
use super::link::{ASK, Fault, Link, check};
use super::wire;
use crate::metrics::{Counters, count};
use crate::{LogError, LogMetrics, Partition};

/// Bytes of records that are sent at once, or one record that is larger; and how many records.
const FLIGHT_BYTES: u64 = 256 << 10;
const FLIGHT_RECORDS: usize = 10_000;
/// How long an SPU waits for the other copies before it says that they have not come; it may miss that they have.
const COPIES: Duration = Duration::from_millis(500);
/// How often it is asked then.
const POLL: Duration = Duration::from_millis(50);
/// Between two tries, at first and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is said that appends wait.
const TELL: Duration = Duration::from_secs(30);

/// What an append resolves to.
pub(super) type Answer = Result<Offset, LogError>;

/// All producers of the log.
pub(super) struct Appends {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    cluster: Arc<Cluster>,
    stopped: OnceLock<Arc<str>>,
    counters: Counters,
    /// Bytes of records that are not acknowledged yet, and how many appends.
    queued: AtomicU64,
    open: AtomicU64,
}

/// A partition as appends know it.
pub(super) struct Slot {
    place: Place,
    at: Partition,
    line: Mutex<Line>,
    /// The producer's connection, for whoever runs.
    link: tokio::sync::Mutex<Option<Link>>,
}

#[derive(Default)]
struct Line {
    /// In the order of the calls.
    waiting: VecDeque<Pending>,
    /// Whether there is a producer at it.
    runs: bool,
}

struct Pending {
    batch: Vec<Bytes>,
    bytes: u64,
    called: Instant,
    done: oneshot::Sender<Answer>,
}

impl Slot {
    pub(super) fn new(place: Place, at: Partition) -> Arc<Self> {
        Arc::new(Self { place, at, line: Mutex::default(), link: tokio::sync::Mutex::default() })
    }

    /// The partition, as the log names it.
    pub(super) fn at(&self) -> &Partition {
        &self.at
    }

    /// What goes next, in the order of the calls; where nothing waits, the producer ends.
    fn next_flight(&self) -> Vec<Pending> {
        let mut line = self.line.lock();
        let (mut flight, mut bytes, mut records) = (Vec::new(), 0, 0);
        while let Some(next) = line.waiting.front() {
            (bytes, records) = (bytes + next.bytes, records + next.batch.len());
            if !flight.is_empty() && (bytes > FLIGHT_BYTES || records > FLIGHT_RECORDS) {
                break;
            }
            flight.extend(line.waiting.pop_front());
        }
        line.runs = !flight.is_empty();
        flight
    }
}

impl Shared {
    /// The first cause stays.
    fn stop(&self, cause: String) {
        let cause: Arc<str> = cause.into();
        if self.stopped.set(Arc::clone(&cause)).is_ok() {
            count(&self.counters.stopped, 1);
            tracing::error!(%cause, "the log has stopped: nothing is appended any more");
        }
    }

    fn error(&self) -> Option<LogError> {
        self.stopped.get().map(|cause| LogError::Stopped(Arc::clone(cause)))
    }

    fn answer(&self, pending: Pending, answer: Answer) {
        self.queued.fetch_sub(pending.bytes, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
        if answer.is_ok() {
            count(&self.counters.records, pending.batch.len() as u64);
            count(&self.counters.bytes, pending.bytes);
            self.counters.append_took(pending.called.elapsed());
        }
        // A caller that has given up needs no answer.
        let _ = pending.done.send(answer);
    }

    /// The producer of a partition, until nothing waits.
    async fn run(self: Arc<Self>, slot: Arc<Slot>) {
        let guard = Ends { shared: &self, slot: &slot };
        let mut link = slot.link.lock().await;
        loop {
            let flight = slot.next_flight();
            if flight.is_empty() {
                break;
            }
            let records: Vec<Bytes> = flight.iter().flat_map(|pending| pending.batch.iter().cloned()).collect();
            let first = self.deliver(&slot, &mut link, &records).await;
            if let Err(error) = &first {
                self.stop(match error {
                    LogError::Stopped(cause) => cause.to_string(),
                    error => error.to_string(),
                });
            }
            let mut next = first;
            for pending in flight {
                let following = next.clone().map(|first| Offset::new(first.get() + pending.batch.len() as u64));
                let answer = next.map_err(|error| self.error().unwrap_or(error));
                self.answer(pending, answer);
                next = following;
            }
        }
        std::mem::forget(guard);
    }

    /// Sends records until they are acknowledged: the offset of the first. Ends without only where the log has stopped, or an
    /// SPU refuses them.
    async fn deliver(&self, slot: &Slot, link: &mut Option<Link>, records: &[Bytes]) -> Answer {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        let batch = wire::batch(records, i64::try_from(now).unwrap_or(i64::MAX));
        let (mut pause, mut told) = (PAUSE, None);
        loop {
            if let Some(error) = self.error() {
                return Err(error);
            }
            let fault = match self.send(slot, link, &batch, records.len() as u64).await {
                Ok(first) => return Ok(first),
                Err(fault) => fault,
            };
            *link = None;
            self.cluster.forget_leader(&slot.place);
            if matches!(fault, Fault::Refused(_)) {
                return Err(super::cluster::storage(&format!("appending to {}", slot.at), &fault));
            }
            self.tell(&slot.at, fault.told(), &mut told);
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// That appends wait is said at once, and then from time to time.
    fn tell(&self, at: &Partition, why: &str, told: &mut Option<Instant>) {
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(%at, why, "Fluvio has not acknowledged an append: it is sent again until it has");
        }
    }

    async fn send(
        &self,
        slot: &Slot,
        link: &mut Option<Link>,
        batch: &Batch<RawRecords>,
        records: u64,
    ) -> Result<Offset, Fault> {
        let link = match link {
            Some(link) => link,
            None => link.insert(self.cluster.connect(&slot.place).await?),
        };
        let (topic, partition) = &slot.place;
        let answer = link.ask(request(topic, *partition, batch), COPIES + ASK).await?;
        let Some(answer) = answer.find_partition_response(topic, *partition) else {
            return Err(Fault::Passing(format!("{} says nothing of {}", link.address(), slot.at)));
        };
        let first = u64::try_from(answer.base_offset).unwrap_or(0);
        match &answer.error_code {
            // It is written by the leader, which goes on waiting for the other copies.
            ErrorCode::RequestTimedOut { .. } => self.copies(slot, link, first + records).await?,
            code => check(code)?,
        }
        Ok(Offset::new(first))
    }

    /// Waits until all copies have what stands before `end`, as long as the connection to the leader holds: sending it again
    /// would only write it twice.
    async fn copies(&self, slot: &Slot, link: &Link, end: u64) -> Result<(), Fault> {
        // Those of a topic that has just been made need some seconds.
        let mut told = Some(Instant::now());
        while offsets(link, &slot.place).await??.next.get() < end {
            if let Some(error) = self.error() {
                return Err(Fault::Passing(error.to_string()));
            }
            self.tell(&slot.at, "not all copies of the partition have written it", &mut told);
            sleep(POLL).await;
        }
        Ok(())
    }
}

fn request(topic: &Arc<str>, partition: u32, batch: &Batch<RawRecords>) -> DefaultProduceRequest {
    let records = RecordSet { batches: vec![batch.clone()] };
    let of_partition = DefaultPartitionRequest { partition_index: partition, records };
    let partitions = vec![of_partition];
    let of_topic = DefaultTopicRequest { name: topic.to_string(), partitions, ..Default::default() };
    // Acknowledged by all copies.
    let isolation = Isolation::ReadCommitted;
    DefaultProduceRequest { isolation, timeout: COPIES, topics: vec![of_topic], ..Default::default() }
}

/// Where a producer ends that should not have, by a panic of the client or with its runtime: nobody is to wait for it.
struct Ends<'a> {
    shared: &'a Shared,
    slot: &'a Slot,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.shared.stop(format!("the producer of {} has ended", self.slot.at));
        let waiting = std::mem::take(&mut self.slot.line.lock().waiting);
        for pending in waiting {
            if let Some(error) = self.shared.error() {
                self.shared.answer(pending, Err(error));
            }
        }
    }
}

impl Appends {
    pub(super) fn new(cluster: Arc<Cluster>, runtime: Handle) -> Self {
        let shared = Shared {
            cluster,
            stopped: OnceLock::new(),
            counters: Counters::default(),
            queued: AtomicU64::new(0),
            open: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), runtime }
    }

    /// Appends a batch of at least one record, behind those of earlier calls.
    pub(super) fn append(&self, slot: &Arc<Slot>, batch: Vec<Bytes>) -> oneshot::Receiver<Answer> {
        let (done, answer) = oneshot::channel();
        let bytes = batch.iter().map(|record| record.len() as u64).sum();
        let pending = Pending { batch, bytes, called: Instant::now(), done };
        self.shared.queued.fetch_add(bytes, Ordering::Relaxed);
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        let mut line = slot.line.lock();
        // Looked at under the lock: behind a producer that has ended nobody may wait.
        if let Some(error) = self.shared.error() {
            drop(line);
            self.shared.answer(pending, Err(error));
            return answer;
        }
        line.waiting.push_back(pending);
        if !std::mem::replace(&mut line.runs, true) {
            drop(line);
            self.runtime.spawn(Arc::clone(&self.shared).run(Arc::clone(slot)));
        }
        answer
    }

    /// Its counters, for reads and trims, too.
    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What was counted.
    pub(super) fn metrics(&self) -> LogMetrics {
        self.shared.counters.read(self.shared.queued.load(Ordering::Relaxed))
    }

    /// Takes no more, once what was appended is acknowledged, or after `patience`.
    pub(super) fn close(&self, patience: Duration) -> Result<(), LogError> {
        let begun = Instant::now();
        let is_open = || self.shared.open.load(Ordering::Relaxed) > 0 && self.shared.error().is_none();
        while is_open() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
        let late = is_open();
        let _ = self.shared.stopped.set("it was closed".into());
        if late { Err(LogError::Storage("the last appends were not acknowledged by Fluvio".into())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FluvioOptions;

    fn numbers(count: usize, bytes: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![7; bytes]); count]
    }

    #[test]
    fn a_flight_is_what_waits_in_order_and_bounded() {
        let slot = Slot::new(("shares".into(), 0), Partition::new("shares", 0));
        let sizes = [(3, 10), (1, 1_000_000), (1, 10), (9_998, 1), (2, 1), (1, 1)];
        for (count, bytes) in sizes {
            let (done, _) = oneshot::channel();
            let (batch, bytes) = (numbers(count, bytes), (count * bytes) as u64);
            slot.line.lock().waiting.push_back(Pending { batch, bytes, called: Instant::now(), done });
        }
        let flight = || slot.next_flight().iter().map(|pending| pending.batch.len()).collect::<Vec<_>>();
        assert_eq!([flight(), flight(), flight(), flight()], [vec![3], vec![1], vec![1, 9_998], vec![2, 1]]);
        assert!(flight().is_empty() && !slot.line.lock().runs);
    }

    /// Without a cluster appends wait, until the log is closed: then everyone is told.
    #[test]
    fn whoever_waits_when_the_log_is_closed_is_told() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let nobody = {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            port.local_addr().unwrap().to_string()
        };
        let appends = Appends::new(Cluster::new(FluvioOptions::new(nobody)), runtime.handle().clone());
        let slot = Slot::new(("shares".into(), 0), Partition::new("shares", 0));
        let answers: Vec<_> = (0..3).map(|_| appends.append(&slot, numbers(1, 1))).collect();
        assert!(appends.close(Duration::from_millis(50)).is_err());
        let behind = appends.append(&slot, numbers(1, 1));
        for answer in answers.into_iter().chain([behind]) {
            let answer = answer.blocking_recv().unwrap();
            assert!(matches!(answer, Err(LogError::Stopped(_))), "{answer:?}");
        }
        assert_eq!(appends.metrics().queued_bytes, 0);
    }
}
