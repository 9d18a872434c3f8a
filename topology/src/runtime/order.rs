//! The order in which a task reads its inputs, written down (docs/adr/0014, invariant S2).
//!
//! What a task with several inputs makes may depend on which of them it reads first, and that is a matter of timing. So
//! it writes down whose turn it was, durable before anything it made of it: whoever makes it again, from whatever state,
//! takes the same turns, and makes the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluice_log::{LogError, Partition, Retention, SharedLog, TopicSpec};
use sluice_proto::v1::{Envelope, Turn};
use sluice_proto::{Body, Epoch, EventTime, Offset, decode, encode};
use sluice_state::{StateError, Tables};

use super::error::TaskError;
use super::lanes::{Lane, LaneTail};
use super::persist;
use super::plan::StoredInput;
use super::reader::{READ_BYTES, ReadError};

/// The topic of turns: one partition, kept for ever, since a state may be made again from the start. Only tasks write to
/// it that read several inputs and write to stored topics, one record of about 80 bytes for each batch.
pub const ORDER_TOPIC: &str = "sluice.order";

/// The turns of one task.
pub(crate) struct Order {
    log: SharedLog,
    partition: Partition,
    task: u64,
    epoch: Epoch,
    tail: LaneTail,
    /// Topic and partition of each input.
    inputs: Vec<Partition>,
    /// Turns that were taken before, behind what is committed: the next ones of them.
    again: VecDeque<Taken>,
    /// Where the ones behind these stand: the offset to read on from, the newest epoch before it, and where they end.
    unread: (Offset, Epoch, Offset),
    /// The turn at hand, to be written.
    turn: Option<(usize, Offset)>,
    /// Offset behind the last turn that has come to its end, and the epoch it was taken in.
    done: (Offset, Epoch),
}

/// A turn that was taken: the input, the offset it was read to, and the offset of the turn's own record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    input: usize,
    until: Offset,
    at: Offset,
    epoch: Epoch,
}

impl Order {
    /// The topic of turns, for whoever creates the topics of a log.
    pub(crate) fn topic() -> TopicSpec {
        TopicSpec { name: ORDER_TOPIC.to_owned(), partitions: 1, retention: Retention::default() }
    }

    /// The order in which the task with this hash reads `inputs`, as far as its state has it.
    pub(crate) fn load(
        inputs: &[StoredInput],
        task: u64,
        log: &SharedLog,
        tables: &Tables,
    ) -> Result<Self, StateError> {
        Ok(Self::behind(inputs, task, log, persist::order(tables)?.unwrap_or_default()))
    }

    fn behind(inputs: &[StoredInput], task: u64, log: &SharedLog, done: (Offset, Epoch)) -> Self {
        let inputs = inputs.iter().map(|input| Partition::new(Arc::clone(&input.topic), input.partition));
        Self {
            log: log.clone(),
            partition: Partition::new(ORDER_TOPIC, 0),
            task,
            epoch: Epoch::default(),
            tail: LaneTail::default(),
            inputs: inputs.collect(),
            again: VecDeque::new(),
            unread: Default::default(),
            turn: None,
            done,
        }
    }

    /// Where its fence goes.
    pub(crate) fn partition(&self) -> Partition {
        self.partition.clone()
    }

    /// Begins an epoch, whose fence is durable.
    pub(crate) async fn begin(&mut self, epoch: Epoch) -> Result<(), TaskError> {
        (self.epoch, self.tail) = (epoch, LaneTail::default());
        self.repeat().await
    }

    /// Repeats the turns that were taken behind what is committed, up to the end of the log as it is now.
    pub(crate) async fn repeat(&mut self) -> Result<(), TaskError> {
        self.again.clear();
        let (next, newest) = self.done;
        let end = match self.log.bounds(&self.partition).await {
            Ok(bounds) => bounds.next,
            // Nobody has written any.
            Err(LogError::Unknown(_)) => next,
            Err(error) => return Err(self.log_error(next, error).into()),
        };
        self.unread = (next, newest, end);
        Ok(())
    }

    /// Reads on, one read's worth: a task that has lost its state repeats all turns it ever took.
    async fn read_on(&mut self) -> Result<(), TaskError> {
        let (next, mut newest, end) = self.unread;
        let read = self.log.read(&self.partition, next, READ_BYTES, Duration::ZERO).await;
        let records = read.map_err(|error| self.log_error(next, error))?;
        let next = records.last().map_or(end, |last| last.offset.next());
        for record in records {
            let (partition, offset) = (self.partition.clone(), record.offset);
            let envelope = decode(record.value).map_err(|error| ReadError::Decode { partition, offset, error })?;
            let Some(from) = envelope.from.filter(|from| from.task == self.task) else { continue };
            // Turns of an owner that was replaced are void behind the fence of the next one.
            let by = Epoch::new(from.epoch);
            if by < newest {
                continue;
            }
            newest = by;
            if let Some(Body::Turn(turn)) = envelope.body {
                self.again.push_back(self.taken(&turn, (offset, by))?);
            }
        }
        self.unread = (next, newest, end);
        Ok(())
    }

    fn taken(&self, turn: &Turn, (at, epoch): (Offset, Epoch)) -> Result<Taken, TaskError> {
        let of = |input: &Partition| *input.topic == *turn.topic && input.number == turn.partition;
        match self.inputs.iter().position(of) {
            Some(input) => Ok(Taken { input, until: Offset::new(turn.until), at, epoch }),
            None => Err(TaskError::Turn { at, input: Partition::new(turn.topic.as_str(), turn.partition) }),
        }
    }

    fn log_error(&self, offset: Offset, error: LogError) -> ReadError {
        ReadError::Log { partition: self.partition.clone(), offset, error }
    }

    /// The turn that was taken next, if there is one; `position` tells how far an input has been read.
    pub(crate) async fn next(
        &mut self,
        position: impl Fn(usize) -> Offset,
    ) -> Result<Option<(usize, Offset)>, TaskError> {
        loop {
            while let Some(taken) = self.again.front().copied() {
                if position(taken.input) < taken.until {
                    return Ok(Some((taken.input, taken.until)));
                }
                self.done = (taken.at.next(), taken.epoch);
                self.again.pop_front();
            }
            let (next, _, end) = self.unread;
            if next >= end {
                return Ok(None);
            }
            self.read_on().await?;
        }
    }

    /// The task reads `input` up to `until` now.
    pub(crate) fn take(&mut self, input: usize, until: Offset) {
        self.turn = Some((input, until));
    }

    /// Writes the turn at hand down; returns once it is durable.
    pub(crate) async fn append(&mut self) -> Result<(), TaskError> {
        let Some((input, until)) = self.turn.take() else { return Ok(()) };
        let Partition { topic, number } = &self.inputs[input];
        let turn = Turn { topic: topic.to_string(), partition: *number, until: until.get() };
        let from = self.tail.next_of_source(Lane::source(self.task, self.epoch), self.epoch);
        // Nobody asks when it was: what a task writes knows no clock.
        let record = encode(&Envelope::new(EventTime::from_nanos(0), from, Body::Turn(turn)));
        let at = self.log.append(&self.partition, vec![record]).await;
        let at = at.map_err(|error| TaskError::Append { partition: self.partition.clone(), error })?;
        self.done = (at.next(), self.epoch);
        Ok(())
    }

    /// Puts how far the turns have been taken into the next commit. A turn that has only come to a part of its end is
    /// taken up again.
    pub(crate) fn save(&self, tables: &mut Tables) {
        persist::save_order(tables, self.done);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use futures::FutureExt;
    use sluice_log::{Log, MemoryLog};

    use super::super::task::Task;
    use super::super::tests::{around, at, new_log, producer, share, stored, with_priority};
    use super::*;
    use sluice_state::StateEnv;

    const TASK: u64 = 7;

    async fn append(log: &MemoryLog, task: u64, turns: impl Iterator<Item = (&str, u64)>) {
        log.create_topic(&Order::topic()).await.unwrap();
        let mut tail = LaneTail::default();
        let record = |(topic, until): (&str, u64)| {
            let from = tail.next_of_source(Lane::source(task, Epoch::new(1)), Epoch::new(1));
            let turn = Turn { topic: topic.to_owned(), partition: 0, until };
            encode(&Envelope::new(EventTime::from_nanos(0), from, Body::Turn(turn)))
        };
        log.append(&Partition::new(ORDER_TOPIC, 0), turns.map(record).collect()).await.unwrap();
    }

    /// P1: a task that has lost its state repeats all its turns, in order, and holds a part of them at a time.
    #[tokio::test]
    async fn p1_turns_are_repeated_without_being_held_all_at_once() {
        const TURNS: u64 = 20_000;
        let log = MemoryLog::new();
        append(&log, TASK, (1..=TURNS).map(|until| ("b", until))).await;
        let inputs = ["a", "b"].map(|topic| stored(topic, 0, "in", false));
        let log: SharedLog = log;
        let mut order = Order::behind(&inputs, TASK, &log, Default::default());
        order.repeat().await.unwrap();
        let (mut at, mut most) = (0, 0);
        while let Some((input, until)) = order.next(|_| Offset::new(at)).await.unwrap() {
            assert_eq!((input, until.get()), (1, at + 1));
            at = until.get();
            most = most.max(order.again.len() as u64);
        }
        assert_eq!(at, TURNS);
        assert!(most < TURNS / 2, "{most}");
    }

    /// While another input than the one whose turn it is has records, the task waits.
    #[tokio::test]
    async fn a_task_waits_for_the_input_whose_turn_it_is() {
        let (log, env) = (new_log().await, StateEnv::in_memory());
        let spec = with_priority();
        append(&log, sluice_proto::hash64(&spec.name), [("share.submissions", 2)].into_iter()).await;
        producer(&log, "share.urgent", 1).append(0, vec![(at(1), share(1, 1, 1, 0))]).await.unwrap();
        let mut task = Task::open(&spec, &around(&log, &env)).await.unwrap();
        // The genesis record is part of the turn.
        task.wait().await.unwrap();
        task.apply_tables().unwrap();
        let (input, records) = task.next_batch().await.unwrap().unwrap();
        assert_eq!((input, records.len()), (0, 1));
        task.process(input, records).await.unwrap();
        for _ in 0..100 {
            assert!(task.wait().now_or_never().is_none(), "share.urgent is ready, and it is not its turn");
        }
        producer(&log, "share.submissions", 1).append(0, vec![(at(1), share(2, 1, 2, 0))]).await.unwrap();
        task.wait().await.unwrap();
        let (input, records) = task.next_batch().await.unwrap().unwrap();
        assert_eq!((input, records.len()), (0, 1));
    }
}
