//! What a task tells about itself while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_log::{Partition, SharedLog};
use sluice_proto::{EventTime, Offset};
use sluice_state::{Digest, Tables};
use tokio::sync::watch;

use super::feed::Feed;
use super::nodes::Node;
use super::plan::TaskSpec;

/// How long the log may take to say how far it goes: brokers may be away.
const ASK: Duration = Duration::from_secs(1);

/// How a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Its thread reads and writes.
    Running,
    /// It was told to stop, has committed everything and is gone.
    Stopped,
    /// It stopped by itself: see [`TaskStatus::error`].
    Failed,
}

/// A task as it was last committed.
#[derive(Clone, Debug)]
pub struct TaskStatus {
    /// Its name.
    pub name: String,
    /// The partition it works on.
    pub partition: u32,
    /// How it is doing.
    pub state: TaskState,
    /// What it reads: inputs, then broadcast tables.
    pub inputs: Vec<InputStatus>,
    /// Its operators, in the order of the plan.
    pub operators: Vec<OperatorStatus>,
    /// Records appended to the log since the start.
    pub appended: u64,
    /// Records put with the dead letters since the start.
    pub dead_letters: u64,
    /// Batches committed since the start.
    pub batches: u64,
    /// Name and digest of each state table, as of the positions of `inputs`.
    pub digests: Vec<(String, Digest)>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How far a task has read an input.
#[derive(Clone, Debug)]
pub struct InputStatus {
    /// The partition.
    pub partition: Partition,
    /// Kind of the broadcast table it feeds; `None` for an input of operators.
    pub table: Option<&'static str>,
    /// Next offset to read, as committed.
    pub position: Offset,
    /// End of the log; `None` if it could not be asked.
    pub end: Option<Offset>,
    /// Records between position and end (offsets with holes make it larger).
    pub lag: u64,
    /// How far behind now the last record was that it read; zero where nothing is left to read.
    pub lag_time: Duration,
    /// Event time of the last record that was read since the start.
    pub event_time: Option<EventTime>,
    /// Records processed since the start.
    pub processed: u64,
    /// Repeated records dropped since the start.
    pub dropped: u64,
}

/// What an operator has done since the start.
#[derive(Clone, Debug)]
pub struct OperatorStatus {
    /// Name in the YAML.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Records it was given.
    pub processed: u64,
    /// Records it sent.
    pub emitted: u64,
    /// Time it has used, from a sample of the records.
    pub busy: Duration,
}

/// Counters that the task's thread writes and others read.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) partition: u32,
    pub(crate) feeds: Vec<FeedCounters>,
    pub(crate) operators: Vec<OperatorCounters>,
    pub(crate) appended: AtomicU64,
    pub(crate) letters: AtomicU64,
    pub(crate) batches: AtomicU64,
    /// Positions (as the feeds) and digests of the same commit.
    pub(crate) committed: Mutex<(Vec<Offset>, Vec<Digest>)>,
    pub(crate) tables: Vec<String>,
    pub(crate) state: Mutex<(TaskState, Option<String>)>,
    /// The task owns its outputs: it is no standby, or not any more.
    pub(crate) owner: watch::Sender<bool>,
}

pub(crate) struct FeedCounters {
    pub(crate) partition: Partition,
    pub(crate) table: Option<&'static str>,
    pub(crate) event_time: AtomicU64,
    pub(crate) processed: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

pub(crate) struct OperatorCounters {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) processed: AtomicU64,
    pub(crate) emitted: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
}

impl FeedCounters {
    pub(crate) fn new(partition: Partition, table: Option<&'static str>) -> Self {
        Self {
            partition,
            table,
            event_time: AtomicU64::new(0),
            processed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl OperatorCounters {
    pub(crate) fn new(name: &str, kind: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            processed: AtomicU64::new(0),
            emitted: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// Of a task that reads `feeds` (of broadcast tables with their kind), with nothing counted yet.
    pub(crate) fn new(
        spec: &TaskSpec,
        feeds: &[(&Feed, Option<&'static str>)],
        nodes: &[Node],
        tables: &Tables,
    ) -> Self {
        let operators = nodes.iter().zip(&spec.operators);
        Self {
            name: spec.shown.clone(),
            partition: spec.partition,
            operators: operators.map(|(node, it)| OperatorCounters::new(&node.name, it.kind.name)).collect(),
            appended: AtomicU64::default(),
            batches: AtomicU64::default(),
            letters: AtomicU64::default(),
            committed: Mutex::new((
                feeds.iter().map(|(feed, _)| feed.next).collect(),
                tables.table_digests().collect(),
            )),
            tables: tables.specs().map(|spec| spec.name.clone()).collect(),
            feeds: feeds.iter().map(|(feed, kind)| FeedCounters::new(feed.partition().clone(), *kind)).collect(),
            state: Mutex::new((TaskState::Running, None)),
            owner: watch::Sender::new(false),
        }
    }

    /// The task's status, with the log's ends as of now.
    pub(crate) async fn status(self: &Arc<Self>, log: &SharedLog) -> TaskStatus {
        let (positions, digests) = self.committed.lock().clone();
        let (state, error) = self.state.lock().clone();
        let inputs = self.feeds.iter().zip(positions).map(|(feed, position)| async move {
            let bounds = tokio::time::timeout(ASK, log.bounds(&feed.partition)).await;
            feed.status(position, bounds.ok().and_then(Result::ok).map(|bounds| bounds.next))
        });
        let inputs = futures::future::join_all(inputs).await;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let operators = self.operators.iter().map(|operator| OperatorStatus {
            name: operator.name.clone(),
            kind: operator.kind,
            processed: load(&operator.processed),
            emitted: load(&operator.emitted),
            busy: Duration::from_nanos(load(&operator.busy_ns)),
        });
        TaskStatus {
            name: self.name.clone(),
            partition: self.partition,
            state,
            inputs,
            operators: operators.collect(),
            appended: load(&self.appended),
            dead_letters: load(&self.letters),
            batches: load(&self.batches),
            digests: self.tables.iter().cloned().zip(digests).collect(),
            error,
        }
    }
}

impl FeedCounters {
    fn status(&self, position: Offset, end: Option<Offset>) -> InputStatus {
        let lag = end.map_or(0, |end| end.get().saturating_sub(position.get()));
        let seen = self.event_time.load(Ordering::Relaxed);
        let event_time = (seen != 0).then(|| EventTime::from_nanos(seen));
        let lag_time = match event_time {
            Some(event_time) if lag > 0 => Duration::from_nanos(EventTime::now().nanos_since(event_time)),
            _ => Duration::ZERO,
        };
        InputStatus {
            partition: self.partition.clone(),
            table: self.table,
            position,
            end,
            lag,
            lag_time,
            event_time,
            processed: self.processed.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}
