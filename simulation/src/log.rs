//! A log whose batches become durable when the schedule says so, and of which a crash loses what is not.

use std::collections::{BTreeMap, VecDeque};
use std::future::{poll_fn, ready};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluice_log::{Bounds, Log, LogError, Partition, Record, SharedLog, TopicInfo, TopicSpec, genesis_record};
use sluice_proto::{Body, Offset, decode};

use crate::fuse::{DIED, Fuse, Point};
use crate::records::Random;

/// Records that one read returns at most; how many it does is drawn.
const READ: u64 = 8;

/// What all processes' logs share: the topics.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Core>>);

struct Core {
    uuid: [u8; 16],
    topics: BTreeMap<Arc<str>, TopicInfo>,
    partitions: BTreeMap<Partition, Stored>,
    random: Random,
    /// Offsets are left out now and then.
    holes: bool,
    /// Batches become durable at once, and reads return all there is.
    instant: bool,
}

struct Stored {
    records: Vec<Record>,
    next: u64,
    written: VecDeque<Written>,
    readers: Vec<Waker>,
}

/// A batch that is written and not durable.
struct Written {
    owner: u64,
    batch: Vec<Bytes>,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    first: Option<Offset>,
    waker: Option<Waker>,
}

impl Disk {
    /// Without topics. Offsets have holes where `holes` says so.
    pub fn new(seed: u64, holes: bool) -> Self {
        Self::with(seed, holes, false)
    }

    /// Where everything is durable at once.
    pub fn instant() -> Self {
        Self::with(0, false, true)
    }

    fn with(seed: u64, holes: bool, instant: bool) -> Self {
        let (topics, partitions) = Default::default();
        let random = Random::new(seed);
        Self(Arc::new(Mutex::new(Core { uuid: [0x51; 16], topics, partitions, random, holes, instant })))
    }

    /// The log as the process `owner` has it.
    pub fn open(&self, owner: u64, fuse: &Fuse) -> SharedLog {
        Arc::new(SimLog { core: Arc::clone(&self.0), owner, fuse: fuse.clone() })
    }

    /// Partitions with something written and not durable, in order.
    pub fn written(&self) -> Vec<Partition> {
        let core = self.0.lock();
        let waiting = core.partitions.iter().filter(|(_, stored)| !stored.written.is_empty());
        waiting.map(|(partition, _)| partition.clone()).collect()
    }

    /// The next batch of a partition becomes durable.
    pub fn sync(&self, partition: &Partition) {
        self.0.lock().sync(partition);
    }

    /// The process `owner` has gone. Of what it had written to a partition and was not durable, the log has got some
    /// first batches, and not the others. Those that it has got become durable yet, at their time.
    pub fn lose(&self, owner: u64, random: &mut Random) {
        for stored in self.0.lock().partitions.values_mut() {
            let is_its = |written: &Written| written.owner == owner;
            let mut left = random.below(1 + stored.written.iter().filter(|batch| is_its(batch)).count() as u64);
            stored.written.retain(|batch| !is_its(batch) || left.checked_sub(1).map(|rest| left = rest).is_some());
        }
    }

    /// All processes have gone, the log's too: some first batches of each partition are durable, the others are lost.
    pub fn lose_all(&self, random: &mut Random) {
        let mut core = self.0.lock();
        let partitions: Vec<Partition> = core.partitions.keys().cloned().collect();
        for partition in partitions {
            let written = core.partitions.get(&partition).map_or(0, |stored| stored.written.len());
            (0..random.below(written as u64 + 1)).for_each(|_| core.sync(&partition));
            core.partitions.entry(partition).and_modify(|stored| stored.written.clear());
        }
    }

    /// All partitions.
    pub fn partitions(&self) -> Vec<Partition> {
        self.0.lock().partitions.keys().cloned().collect()
    }

    /// The durable records of a partition, as they stand.
    pub fn records(&self, of: &Partition) -> Vec<Record> {
        self.0.lock().partitions.get(of).map_or_else(Vec::new, |stored| stored.records.clone())
    }

    /// Puts records behind those of a partition, at the offsets that they have.
    pub fn put(&self, to: &Partition, records: &[Record]) {
        let mut core = self.0.lock();
        let Some(stored) = core.partitions.get_mut(to) else { return };
        stored.records.extend_from_slice(records);
        stored.next = stored.records.last().map_or(stored.next, |last| last.offset.get() + 1);
        stored.readers.drain(..).for_each(Waker::wake);
    }
}

impl Core {
    fn sync(&mut self, partition: &Partition) {
        let Some(stored) = self.partitions.get_mut(partition) else { return };
        let Some(Written { batch, answer, .. }) = stored.written.pop_front() else { return };
        if self.holes && self.random.one_in(8) {
            stored.next += 1 + self.random.below(3);
        }
        let first = stored.push(batch);
        let mut answer = answer.lock();
        answer.first = Some(first);
        answer.waker.take().into_iter().for_each(Waker::wake);
    }

    fn stored(&mut self, of: &Partition) -> Result<&mut Stored, LogError> {
        self.partitions.get_mut(of).ok_or_else(|| LogError::Unknown(of.clone()))
    }

    fn create(&mut self, spec: &TopicSpec) -> Result<TopicInfo, LogError> {
        spec.check()?;
        if let Some(info) = self.topics.get(spec.name.as_str()) {
            info.check_count(spec)?;
            return Ok(info.clone());
        }
        let info = spec.info();
        for partition in info.all() {
            let genesis = genesis_record(self.uuid, &partition, info.partitions);
            let mut stored = Stored { records: Vec::new(), next: 0, written: VecDeque::new(), readers: Vec::new() };
            stored.push(vec![genesis]);
            self.partitions.insert(partition, stored);
        }
        self.topics.insert(info.name.clone(), info.clone());
        Ok(info)
    }

    /// What a read finds; `None` if it has to wait.
    fn read(&mut self, from: &Partition, offset: Offset) -> Result<Option<Vec<Record>>, LogError> {
        let most = if self.instant { u64::MAX } else { 1 + self.random.below(READ) };
        let stored = self.stored(from)?;
        if offset.get() > stored.next {
            let (start, next) = (Offset::ZERO, Offset::new(stored.next));
            return Err(LogError::OutOfRange { partition: from.clone(), asked: offset, start, next });
        }
        let begin = stored.records.partition_point(|record| record.offset < offset);
        let found = stored.records[begin..].iter().take(most as usize);
        let found: Vec<Record> = found.cloned().collect();
        Ok((!found.is_empty()).then_some(found))
    }
}

impl Stored {
    fn push(&mut self, batch: Vec<Bytes>) -> Offset {
        let first = Offset::new(self.next);
        for value in batch {
            self.records.push(Record { offset: Offset::new(self.next), value });
            self.next += 1;
        }
        self.readers.drain(..).for_each(Waker::wake);
        first
    }
}

/// The log in the hands of one process.
struct SimLog {
    core: Arc<Mutex<Core>>,
    owner: u64,
    fuse: Fuse,
}

fn dead() -> LogError {
    LogError::Stopped(DIED.into())
}

fn is_fence(batch: &[Bytes]) -> bool {
    batch
        .iter()
        .any(|record| decode(record.clone()).is_ok_and(|envelope| matches!(envelope.body, Some(Body::Fence(_)))))
}

impl SimLog {
    fn write(&self, to: &Partition, batch: Vec<Bytes>) -> Result<Arc<Mutex<Answer>>, LogError> {
        let mut core = self.core.lock();
        let instant = core.instant;
        let stored = core.stored(to)?;
        let answer = Arc::new(Mutex::new(Answer::default()));
        if batch.is_empty() {
            answer.lock().first = Some(Offset::new(stored.next));
            return Ok(answer);
        }
        stored.written.push_back(Written { owner: self.owner, batch, answer: Arc::clone(&answer) });
        if instant {
            core.sync(to);
        }
        Ok(answer)
    }
}

impl Log for SimLog {
    fn uuid(&self) -> [u8; 16] {
        self.core.lock().uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        ready(self.core.lock().create(spec)).boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        ready(Ok(self.core.lock().topics.values().cloned().collect())).boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        if !self.fuse.passes(Point::Append) {
            return ready(Err(dead())).boxed();
        }
        let point = if is_fence(&batch) { Point::Fence } else { Point::Durable };
        let answer = match self.write(to, batch) {
            Ok(answer) => answer,
            Err(error) => return ready(Err(error)).boxed(),
        };
        let fuse = self.fuse.clone();
        poll_fn(move |cx| poll_answer(&answer, cx))
            .map(move |first| if fuse.passes(point) { Ok(first) } else { Err(dead()) })
            .boxed()
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        _: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        let (core, from, fuse) = (Arc::clone(&self.core), from.clone(), self.fuse.clone());
        poll_fn(move |cx| {
            if fuse.is_blown() {
                return Poll::Ready(Err(dead()));
            }
            let mut core = core.lock();
            match core.read(&from, offset) {
                Ok(Some(records)) => Poll::Ready(Ok(records)),
                Ok(None) if wait.is_zero() => Poll::Ready(Ok(Vec::new())),
                Ok(None) => {
                    core.stored(&from)?.readers.push(cx.waker().clone());
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        let next = self.core.lock().stored(of).map(|stored| stored.next);
        ready(next.map(|next| Bounds { start: Offset::ZERO, next: Offset::new(next) })).boxed()
    }

    fn trim(&self, of: &Partition, _: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        // A log may keep more than it has to, and checks read from the start.
        ready(self.core.lock().stored(of).map(drop)).boxed()
    }
}

fn poll_answer(answer: &Mutex<Answer>, cx: &mut Context<'_>) -> Poll<Offset> {
    let mut answer = answer.lock();
    match answer.first {
        Some(first) => Poll::Ready(first),
        None => {
            answer.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }
}
