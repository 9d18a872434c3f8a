//! Replaying tasks (docs/adr/0015): the same operators over the same records, into a state of their own, at full speed.
//!
//! Nothing is written to the log. What tasks make is compared with what the log has, or forgotten.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use sluice_log::{Partition, Record, SharedLog};
use sluice_proto::{EventTime, Head, Offset};
use sluice_state::{Digest, StateEnv};

use super::error::TaskError;
use super::follow::{Compared, Outputs};
use super::handle::{RuntimeOptions, TaskFailure, panic_message};
use super::owners::Owners;
use super::plan::TaskSpec;
use super::task::{Surroundings, Task};
use crate::operator::Externals;

/// Records to process before a commit, about: it costs the same however many there are.
const COMMIT: u64 = 32_768;

/// How far a task is replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the end of the log as it is at the beginning.
    End,
    /// Up to, in each input, the first record with a later event time.
    Time(EventTime),
    /// Up to these offsets of its inputs; inputs that are not named, to their end.
    Positions(BTreeMap<Partition, Offset>),
}

/// What is done with outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// They are forgotten.
    Forget,
    /// They are compared with the log; the first difference ends the task (invariant S2). Where the log has no more of
    /// them, the replay ends before the record that they were made from.
    Verify,
    /// As [`Check::Verify`], but differences are counted, and what is recorded stands.
    Count,
}

/// What all tasks of a replay share.
pub struct Replay {
    /// The log, which nothing is appended to.
    pub log: SharedLog,
    /// Where the states are made: empty, or copies to go on from.
    pub env: StateEnv,
    /// What operators are lent.
    pub externals: Arc<Externals>,
    /// Chain of the topology.
    pub network: String,
    /// What is done with outputs.
    pub check: Check,
}

/// How far a replay is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Records to be processed, as far as that is known.
    pub total: AtomicU64,
    /// Records processed.
    pub done: AtomicU64,
}

/// A task that has been replayed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Its name.
    pub task: String,
    /// Records of its inputs that were read.
    pub records: u64,
    /// How long it took.
    pub took: Duration,
    /// Where it stands: the next offset of each input.
    pub positions: Vec<(Partition, Offset)>,
    /// Name, digest and number of rows of each state table.
    pub tables: Vec<(String, Digest, u64)>,
    /// What was compared.
    pub compared: Compared,
    /// Why it ended before it was told to: the first output that the log does not have.
    pub unrecorded: Option<String>,
}

impl Replay {
    /// Replays the tasks, each in a thread of its own; returns when all have ended. Blocks.
    pub fn run(&self, tasks: &[(TaskSpec, Until)], progress: &Progress) -> Vec<Result<Replayed, TaskFailure>> {
        let around = Surroundings {
            log: Arc::clone(&self.log),
            env: self.env.clone(),
            externals: Arc::clone(&self.externals),
            // Nobody is replaced by a replay: it claims nothing.
            owners: Owners::new(self.log.clone(), [0; 16]),
            network: self.network.clone(),
            options: RuntimeOptions::default(),
            outputs: match self.check {
                Check::Forget => Outputs::Discard,
                Check::Verify => Outputs::Compare,
                Check::Count => Outputs::Rebuild,
            },
        };
        std::thread::scope(|scope| {
            let around = &around;
            let threads: Vec<_> = tasks
                .iter()
                .map(|(spec, until)| (spec, scope.spawn(move || replay_caught(spec, until, around, progress))))
                .collect();
            let join = |(spec, thread): (&TaskSpec, std::thread::ScopedJoinHandle<'_, Result<Replayed, TaskError>>)| {
                let result = thread.join().unwrap_or_else(|panic| Err(TaskError::Panic(panic_message(panic.as_ref()))));
                result.map_err(|error| TaskFailure { task: spec.shown.clone(), error: Arc::new(error) })
            };
            threads.into_iter().map(join).collect()
        })
    }
}

fn replay_caught(
    spec: &TaskSpec,
    until: &Until,
    around: &Surroundings,
    progress: &Progress,
) -> Result<Replayed, TaskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| TaskError::Panic(format!("no event loop: {error}")))?;
    let replay = AssertUnwindSafe(|| runtime.block_on(replay(spec, until, around, progress)));
    std::panic::catch_unwind(replay).unwrap_or_else(|panic| Err(TaskError::Panic(panic_message(panic.as_ref()))))
}

async fn replay(
    spec: &TaskSpec,
    until: &Until,
    around: &Surroundings,
    progress: &Progress,
) -> Result<Replayed, TaskError> {
    if spec.is_world() {
        let what = "what it writes depends on answers from outside: it cannot be replayed".to_owned();
        return Err(TaskError::Plan { task: spec.shown.clone(), what });
    }
    let begun = Instant::now();
    let mut ends = ends(spec, until, around).await?;
    let mut unrecorded = None;
    let mut records = 0;
    loop {
        let mut task = Task::open(spec, around).await?;
        task.check_starts().await?;
        task.repeat_order().await?;
        let left: u64 =
            task.inputs.iter().zip(&ends).map(|(input, end)| end.get().saturating_sub(input.feed.next.get())).sum();
        progress.total.fetch_add(left, Ordering::Relaxed);
        let mut counts = Counts { progress, records: 0, committed: 0 };
        let time = if let Until::Time(time) = until { Some(*time) } else { None };
        let result = task.replay(&mut ends, time, &mut counts).await;
        records += counts.committed;
        // What was not processed, or will be processed again, is not left.
        progress.total.fetch_sub(left.saturating_sub(counts.committed), Ordering::Relaxed);
        progress.done.fetch_sub(counts.records - counts.committed, Ordering::Relaxed);
        match result {
            Ok(()) => return Ok(task.replayed(spec, records, begun.elapsed(), unrecorded)),
            // Once more from the last commit, up to the record whose outputs the log does not have.
            Err(TaskError::Unrecorded { output, input, offset }) => {
                let at = task.inputs.iter().position(|known| *known.feed.partition() == input);
                let error = TaskError::Unrecorded { output, input, offset };
                match at.and_then(|at| ends.get_mut(at)).filter(|end| offset < **end) {
                    Some(end) => *end = offset,
                    None => return Err(error),
                }
                unrecorded = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the record is of a later time. Those of the log and of owners (genesis, fences) have no time of the pool's.
fn is_later(record: &Record, time: EventTime) -> bool {
    let Ok(head) = Head::read(&record.value) else { return false };
    head.event_time_ns > time.nanos() && head.from.is_some_and(|from| from.source_offset > 0)
}

/// How many records have been processed and committed.
struct Counts<'a> {
    progress: &'a Progress,
    records: u64,
    committed: u64,
}

/// Where the inputs of a task end.
async fn ends(spec: &TaskSpec, until: &Until, around: &Surroundings) -> Result<Vec<Offset>, TaskError> {
    let inputs = spec.all_inputs();
    let mut ends = Vec::with_capacity(inputs.len());
    for input in &inputs {
        let partition = Partition::new(Arc::clone(&input.topic), input.partition);
        let bounds = around.log.bounds(&partition).await;
        let end = bounds.map_err(|error| super::ReadError::Log {
            partition: partition.clone(),
            offset: Offset::ZERO,
            error,
        })?;
        ends.push(match until {
            Until::Positions(positions) => {
                positions.get(&partition).map_or(end.next, |position| end.next.min(*position))
            }
            _ => end.next,
        });
    }
    Ok(ends)
}

impl Task {
    /// An input that begins at its start must still have it (invariant P1).
    async fn check_starts(&self) -> Result<(), TaskError> {
        for input in &self.inputs {
            let start = input.feed.start_of_log().await?;
            if input.feed.next < start && start > Offset::new(1) {
                let (partition, position) = (input.feed.partition().clone(), input.feed.next);
                return Err(TaskError::Trimmed { partition, position, start });
            }
        }
        Ok(())
    }

    /// Processes the inputs up to `ends`, or to the first record of each that is later than `time`.
    async fn replay(
        &mut self,
        ends: &mut [Offset],
        time: Option<EventTime>,
        counts: &mut Counts<'_>,
    ) -> Result<(), TaskError> {
        loop {
            self.gather(ends).await?;
            let turn = self.turn().await?.or_else(|| Some((self.earliest(ends)?, Offset::new(u64::MAX))));
            let Some((input, until)) = turn else { break };
            if self.inputs[input].feed.next >= ends[input] {
                break;
            }
            let mut records = self.inputs[input].feed.take(Some(ends[input].min(until)));
            if let Some(time) = time
                && let Some(first) = records.iter().position(|record| is_later(record, time))
            {
                ends[input] = records[first].offset;
                records.truncate(first);
            }
            let count = records.len() as u64;
            self.process(input, records).await?;
            counts.records += count;
            counts.progress.done.fetch_add(count, Ordering::Relaxed);
            if counts.records - counts.committed >= COMMIT {
                self.finish().await?;
                counts.committed = counts.records;
            }
        }
        self.finish().await?;
        counts.committed = counts.records;
        self.compare_rest().await?;
        self.tables.sync()?;
        Ok(())
    }

    /// Waits until every input that has not reached its end has something to read: then which one comes next does not
    /// depend on how fast they are read.
    async fn gather(&mut self, ends: &[Offset]) -> Result<(), TaskError> {
        poll_fn(|cx| {
            let mut all = true;
            for (input, end) in self.inputs.iter_mut().zip(ends) {
                if input.feed.next < *end {
                    if let Err(error) = input.feed.poll_fetch(cx) {
                        return Poll::Ready(Err(error.into()));
                    }
                    all &= input.feed.is_ready();
                }
            }
            if all { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Of the inputs that have not reached their end, the one whose next record is the oldest.
    fn earliest(&self, ends: &[Offset]) -> Option<usize> {
        let open = self.inputs.iter().zip(ends).enumerate().filter(|(_, (input, end))| input.feed.next < **end);
        open.min_by_key(|(_, (input, _))| input.feed.next_time()).map(|(index, _)| index)
    }

    fn replayed(&self, spec: &TaskSpec, records: u64, took: Duration, unrecorded: Option<String>) -> Replayed {
        let rows = (0..).map_while(|table| self.tables.rows(table).ok());
        let tables = self.tables.digests().into_iter().zip(rows);
        Replayed {
            task: spec.shown.clone(),
            records,
            took,
            positions: self.inputs.iter().map(|input| (input.feed.partition().clone(), input.feed.next)).collect(),
            tables: tables.map(|((name, digest), rows)| (name, digest, rows)).collect(),
            compared: self.outbox.compared(),
            unrecorded,
        }
    }
}
