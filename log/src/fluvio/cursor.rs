//! A place in a partition from which records come in, and the newest of those that came.
//!
//! An SPU pushes what is new and then waits to be told how far that was read: so a reader who waits asks nobody, and one that
//! reads nothing is sent nothing. Each cursor has a connection of its own, since the client lets a stream that is not read
//! hold up everything else on its connection.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fluvio::dataplane::record::{RawRecords, RecordSet};
use fluvio_spu_schema::Isolation;
use fluvio_spu_schema::fetch::FetchablePartitionResponse;
use fluvio_spu_schema::server::stream_fetch::DefaultStreamFetchRequest;
use fluvio_spu_schema::server::update_offset::{OffsetUpdate, UpdateOffsetsRequest};
use futures::StreamExt;
use parking_lot::Mutex;
use sluice_proto::Offset;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::cluster::{Cluster, Place};
use super::link::{ASK, Fault, Link, check};
use super::settings::MAX_RECORD;
use super::wire::{self, Content};
use crate::Record;

/// Bytes of records that a cursor keeps for readers who come a little later, and that it has ahead of them.
const KEPT: usize = 1 << 20;
/// Records share memory, this many bytes at a time.
const PIECE: usize = 64 << 10;
/// Most bytes that an SPU sends at once; and where a batch is larger than that.
const CHUNK: usize = 1 << 20;
const LARGEST_CHUNK: usize = MAX_RECORD + (64 << 10);

/// What a cursor has for a reader.
#[derive(Debug)]
pub(super) enum Found {
    Records(Vec<Record>),
    /// Nothing came in time.
    Nothing,
    /// The place is not one of this cursor's any more.
    Elsewhere,
    /// The stream has ended: the position does not fit, or the SPU is gone.
    Failed(Fault),
}

/// One stream of a partition, shared by all who read at about the same place.
pub(super) struct Cursor {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    state: Mutex<State>,
    /// Something came in.
    came: Notify,
    /// Something was read.
    room: Notify,
}

struct State {
    records: VecDeque<Record>,
    bytes: usize,
    /// Bytes of those that nobody has been given yet.
    ahead: usize,
    /// From where on records are here.
    first: u64,
    /// The next one to be given for the first time is at this offset, or behind it.
    read: u64,
    /// The next one to come is at this offset, or behind it.
    next: u64,
    failed: Option<Fault>,
    used: Instant,
    piece: BytesMut,
}

impl Shared {
    /// Of a cursor from offset `from` on.
    fn new(from: u64) -> Arc<Self> {
        let state = State {
            records: VecDeque::new(),
            bytes: 0,
            ahead: 0,
            first: from,
            read: from,
            next: from,
            failed: None,
            used: Instant::now(),
            piece: BytesMut::new(),
        };
        Arc::new(Self { state: Mutex::new(state), came: Notify::new(), room: Notify::new() })
    }
}

impl Cursor {
    /// A cursor on a partition, from offset `from` on.
    pub(super) fn new(cluster: Arc<Cluster>, runtime: &Handle, place: Place, from: u64) -> Self {
        let shared = Shared::new(from);
        let of_task = Arc::clone(&shared);
        let task = runtime.spawn(async move {
            // A panic of the client's, on what comes from outside, ends the task: who reads is told.
            let ends = Ends(of_task);
            let fault = stream(&cluster, &ends.0, &place, from).await;
            cluster.forget_leader(&place);
            ends.0.fail(fault);
        });
        Self { shared, task: task.abort_handle() }
    }

    /// Whether a reader at `offset` finds its records here.
    pub(super) fn covers(&self, offset: u64) -> bool {
        let state = self.shared.state.lock();
        state.failed.is_none() && (state.first..=state.next).contains(&offset)
    }

    /// Nothing more comes.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.state.lock().failed.is_some()
    }

    /// For how long nobody has read here.
    pub(super) fn idle(&self) -> Duration {
        self.shared.state.lock().used.elapsed()
    }

    /// The records from `offset` on, about `max_bytes` of them; waits for one until `deadline`.
    pub(super) async fn read(&self, offset: u64, max_bytes: usize, deadline: Instant) -> Found {
        loop {
            // Listens before it looks, so that what comes in between is not missed.
            let mut came = pin!(self.shared.came.notified());
            came.as_mut().enable();
            let found = self.look(offset, max_bytes);
            if !matches!(found, Found::Nothing) || Instant::now() >= deadline {
                return found;
            }
            if tokio::time::timeout_at(deadline, came).await.is_err() {
                return self.look(offset, max_bytes);
            }
        }
    }

    fn look(&self, offset: u64, max_bytes: usize) -> Found {
        let mut state = self.shared.state.lock();
        state.used = Instant::now();
        if offset < state.first || offset > state.next {
            return Found::Elsewhere;
        }
        let at = state.records.partition_point(|record| record.offset.get() < offset);
        let (mut found, mut bytes): (Vec<Record>, usize) = (Vec::new(), 0);
        for record in state.records.range(at..) {
            if bytes + record.value.len() > max_bytes && !found.is_empty() {
                break;
            }
            bytes += record.value.len();
            found.push(record.clone());
        }
        let Some(last) = found.last() else {
            return state.failed.clone().map_or(Found::Nothing, Found::Failed);
        };
        state.give_to(last.offset.get() + 1);
        self.shared.room.notify_one();
        Found::Records(found)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fail(Fault::Passing("the stream has ended".into()));
    }
}

impl Shared {
    /// The first fault stays.
    fn fail(&self, fault: Fault) {
        self.state.lock().failed.get_or_insert(fault);
        self.came.notify_waiters();
    }

    fn next(&self) -> u64 {
        self.state.lock().next
    }

    /// Waits until readers have been given most of what is here.
    async fn has_room(&self) {
        loop {
            // It holds a permit if there was room in between.
            let room = self.room.notified();
            if self.state.lock().ahead < KEPT {
                return;
            }
            room.await;
        }
    }

    /// Takes in what came: whether it was anything.
    fn take(&self, answer: &FetchablePartitionResponse<RecordSet<RawRecords>>) -> Result<bool, Fault> {
        let mut state = self.state.lock();
        let before = state.next;
        for batch in &answer.records.batches {
            match wire::content(batch).map_err(Fault::Refused)? {
                Content::Values(values) => {
                    let base = u64::try_from(batch.base_offset).unwrap_or(0);
                    values.iter().zip(base..).for_each(|(value, offset)| state.keep(offset, value));
                }
                Content::CutOff => break,
            }
        }
        state.forget_read();
        let came = state.next > before;
        drop(state);
        if came {
            self.came.notify_waiters();
        }
        Ok(came)
    }
}

impl State {
    /// Keeps a record, if it is not from before the place where the stream was to begin.
    fn keep(&mut self, offset: u64, value: &[u8]) {
        if offset < self.next {
            return;
        }
        if self.piece.capacity() - self.piece.len() < value.len() {
            self.piece = BytesMut::with_capacity(PIECE.max(value.len()));
        }
        self.piece.extend_from_slice(value);
        let value = self.piece.split().freeze();
        self.bytes += value.len();
        self.ahead += value.len();
        self.records.push_back(Record { offset: Offset::new(offset), value });
        self.next = offset + 1;
    }

    /// Somebody has been given what stands before `end`.
    fn give_to(&mut self, end: u64) {
        if end > self.read {
            let from = self.records.partition_point(|record| record.offset.get() < self.read);
            let to = self.records.partition_point(|record| record.offset.get() < end);
            self.ahead -= self.records.range(from..to).map(|record| record.value.len()).sum::<usize>();
            self.read = end;
        }
    }

    /// Of what was read, the newest is kept.
    fn forget_read(&mut self) {
        while self.bytes > KEPT && self.records.front().is_some_and(|oldest| oldest.offset.get() < self.read) {
            let Some(oldest) = self.records.pop_front() else { return };
            self.bytes -= oldest.value.len();
            self.first = oldest.offset.get() + 1;
        }
    }
}

/// Takes in what an SPU sends, until there is a fault.
async fn stream(cluster: &Cluster, shared: &Shared, place: &Place, from: u64) -> Fault {
    let (mut from, mut chunk) = (from, CHUNK);
    loop {
        match stream_once(cluster, shared, place, from, chunk).await {
            // A batch that is larger than what is sent at once.
            Ok(()) if chunk < LARGEST_CHUNK => (from, chunk) = (shared.next(), LARGEST_CHUNK),
            Ok(()) => return Fault::Refused("a batch that is too large, or damaged".into()),
            Err(fault) => return fault,
        }
    }
}

/// The same, until what came held no batch.
async fn stream_once(cluster: &Cluster, shared: &Shared, place: &Place, from: u64, chunk: usize) -> Result<(), Fault> {
    let link = cluster.connect(place).await?;
    let mut answers = link.stream(request(place, from, chunk)?).await?;
    loop {
        // Nothing may come for as long as nobody appends: whether the SPU is still there is asked by who waits.
        let answer = match answers.next().await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(Fault::Passing(format!("{}: {error}", link.address()))),
            None => return Err(Fault::Passing(format!("{} has ended the stream", link.address()))),
        };
        let came = shared.take(&answer.partition)?;
        check(&answer.partition.error_code)?;
        if !came {
            return Ok(());
        }
        shared.has_room().await;
        acknowledge(&link, answer.stream_id, shared.next()).await?;
    }
}

fn request((topic, partition): &Place, from: u64, chunk: usize) -> Result<DefaultStreamFetchRequest, Fault> {
    let request = DefaultStreamFetchRequest::builder()
        .topic(topic.to_string())
        .partition(*partition)
        .fetch_offset(i64::try_from(from).unwrap_or(i64::MAX))
        .max_bytes(i32::try_from(chunk).unwrap_or(i32::MAX))
        // What all copies have.
        .isolation(Isolation::ReadCommitted)
        .build();
    request.map_err(|error| Fault::Refused(error.to_string()))
}

/// Asks for what stands at `next` and behind it. No offset is kept there.
async fn acknowledge(link: &Link, session_id: u32, next: u64) -> Result<(), Fault> {
    let offset = i64::try_from(next).unwrap_or(i64::MAX);
    let answer = link.ask(UpdateOffsetsRequest::new(vec![OffsetUpdate { offset, session_id }]), ASK).await?;
    answer.status.iter().try_for_each(|status| check(&status.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// `count` records of `bytes`, the first at `base`, as they come.
    fn answer(base: i64, count: usize, bytes: usize) -> FetchablePartitionResponse<RecordSet<RawRecords>> {
        use fluvio::dataplane::record::Batch;
        use fluvio::dataplane::{Decoder, Encoder};
        let mut batch = wire::batch(&vec![Bytes::from(vec![7; bytes]); count], 0);
        batch.base_offset = base;
        let mut encoded = Vec::new();
        batch.encode(&mut encoded, 0).unwrap();
        let batch = Batch::decode_from(&mut &encoded[..], 0).unwrap();
        FetchablePartitionResponse { records: RecordSet { batches: vec![batch] }, ..Default::default() }
    }

    fn cursor(shared: &Arc<Shared>) -> Cursor {
        Cursor { shared: Arc::clone(shared), task: tokio::spawn(std::future::pending::<()>()).abort_handle() }
    }

    fn offsets(found: Found) -> Vec<u64> {
        let Found::Records(records) = found else { panic!("{found:?}") };
        records.iter().map(|record| record.offset.get()).collect()
    }

    #[tokio::test]
    async fn what_comes_is_given_from_the_place_on() {
        let shared = Shared::new(12);
        let cursor = cursor(&shared);
        assert!(matches!(cursor.look(12, 100), Found::Nothing));
        // The batch that holds the place begins before it.
        assert!(shared.take(&answer(10, 5, 10)).unwrap());
        assert_eq!(offsets(cursor.look(12, 1_000)), [12, 13, 14]);
        assert_eq!(offsets(cursor.look(12, 1)), [12]);
        assert_eq!(offsets(cursor.look(13, 20)), [13, 14]);
        assert!(matches!(cursor.look(11, 1), Found::Elsewhere));
        assert!(matches!(cursor.look(16, 1), Found::Elsewhere));
        assert!(!shared.take(&answer(10, 5, 10)).unwrap(), "it has been here");
        shared.fail(Fault::Passing("gone".into()));
        assert_eq!(offsets(cursor.look(14, 20)), [14]);
        assert!(matches!(cursor.look(15, 20), Found::Failed(_)));
    }

    /// What nobody has read stays, and nothing more is asked for; of what was read, the newest MiB stays.
    #[tokio::test]
    async fn what_was_not_read_is_kept_and_bounded() {
        let shared = Shared::new(0);
        let cursor = cursor(&shared);
        let record = 1 << 16;
        shared.take(&answer(0, 40, record)).unwrap();
        assert_eq!(shared.state.lock().ahead, 40 * record);
        let full = tokio::time::timeout(Duration::from_millis(20), shared.has_room()).await;
        assert!(full.is_err(), "it is full");
        assert_eq!(offsets(cursor.look(0, 30 * record)).len(), 30);
        shared.has_room().await;
        shared.take(&answer(40, 1, record)).unwrap();
        let state = shared.state.lock();
        assert_eq!((state.first, state.ahead, state.bytes), (25, 11 * record, KEPT));
    }
}
