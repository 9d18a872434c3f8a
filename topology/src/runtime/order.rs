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
    /// Turns that were taken before, behind what is committed.
    again: VecDeque<Taken>,
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
        let inputs = inputs.iter().map(|input| Partition::new(Arc::clone(&input.topic), input.partition));
        Ok(Self {
            log: log.clone(),
            partition: Partition::new(ORDER_TOPIC, 0),
            task,
            epoch: Epoch::default(),
            tail: LaneTail::default(),
            inputs: inputs.collect(),
            again: VecDeque::new(),
            turn: None,
            done: persist::order(tables)?.unwrap_or_default(),
        })
    }

    /// Where its fence goes.
    pub(crate) fn partition(&self) -> Partition {
        self.partition.clone()
    }

    /// Begins an epoch, whose fence is durable.
    pub(crate) async fn begin(&mut self, epoch: Epoch) -> Result<(), TaskError> {
        (self.epoch, self.tail) = (epoch, LaneTail::default());
        self.read().await
    }

    /// Reads the turns that were taken behind what is committed.
    pub(crate) async fn read(&mut self) -> Result<(), TaskError> {
        self.again.clear();
        let (mut next, mut newest) = self.done;
        let end = match self.log.bounds(&self.partition).await {
            Ok(bounds) => bounds.next,
            // Nobody has written any.
            Err(LogError::Unknown(_)) => return Ok(()),
            Err(error) => return Err(self.log_error(next, error).into()),
        };
        while next < end {
            let read = self.log.read(&self.partition, next, READ_BYTES, Duration::ZERO).await;
            let records = read.map_err(|error| self.log_error(next, error))?;
            let Some(last) = records.last() else { break };
            next = last.offset.next();
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
        }
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
    pub(crate) fn again(&mut self, position: impl Fn(usize) -> Offset) -> Option<(usize, Offset)> {
        while let Some(taken) = self.again.front().copied() {
            if position(taken.input) < taken.until {
                return Some((taken.input, taken.until));
            }
            self.done = (taken.at.next(), taken.epoch);
            self.again.pop_front();
        }
        None
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
