//! Following (docs/adr/0015): what a task makes is compared with what stands in the log, instead of being appended.
//!
//! ```text
//! task --> made --------.
//!                        compare, position by position of each lane --> commit
//! log  --> recorded ----'
//! ```
//!
//! One mechanism for verification, standby and rebuilding in place. They differ in what happens at the end of what is
//! recorded ([`AtEnd`]) and in what a difference means ([`Rule`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_log::{Partition, Record, SharedLog};
use sluice_proto::{DecodeError, Epoch, Head, Offset, Position, decode};
use tokio::sync::watch;

use super::error::TaskError;
use super::lanes::{Admission, Lane, Mark, Watermarks};
use super::reader::{READ_BYTES, ReadError};

/// How many offsets of a partition are looked at first, from its end, for the place where a task's state left off;
/// twice as many each time it was not among them.
const FIRST_LOOK: u64 = 256;
/// How long a read waits for records that another owner will write.
const WAIT: Duration = Duration::from_secs(1);
/// Most bytes of recorded outputs that wait for their input to be processed. A task of one input needs those of one
/// read; with several, those of another input that was read further.
const MAX_WAITING: usize = 256 << 20;

/// What a task does where the log has no more of what it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEnd {
    /// Waits for the owner to write it.
    Wait,
    /// Stops, before the record that it was made from.
    Stop,
    /// Appends it: the task is the owner.
    Append,
}

/// What a difference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It stops the task (invariant S2).
    Strict,
    /// What is recorded stands; it is counted, and the first one is logged. So it is where a task that has lost its
    /// state, and may have got other settings since, makes it again.
    Lenient,
}

/// An output that is not what was recorded (invariant S2).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{task} {what} {output}{}, made from {input} offset {source_offset}", place(*.offset))]
pub struct Difference {
    /// The task that made the output again.
    pub task: String,
    /// Partition of the output.
    pub output: Partition,
    /// Offset of the recorded one; `None` if there is none.
    pub offset: Option<Offset>,
    /// Partition that it was made from.
    pub input: Partition,
    /// Offset there.
    pub source_offset: Offset,
    /// How they differ.
    pub what: Differs,
    /// The record in the log.
    pub recorded: Option<Bytes>,
    /// The record made again.
    pub made: Option<Bytes>,
}

fn place(offset: Option<Offset>) -> String {
    offset.map_or_else(String::new, |offset| format!(" offset {offset}"))
}

/// How an output differs from what was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// Both are there, with different contents.
    Content,
    /// The log does not have what was made again, although it has later ones of the same lane.
    Missing,
    /// The log has what was not made again.
    Unexpected,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Content => "makes another record than the one at",
            Self::Missing => "makes a record that is missing in",
            Self::Unexpected => "does not make the record at",
        })
    }
}

/// What following has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Outputs found in the log as they were made.
    pub same: u64,
    /// Outputs made whose place in the log has been trimmed away.
    pub trimmed: u64,
    /// Differences that were let pass.
    pub different: u64,
}

/// An output, as made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) input: usize,
    pub(crate) at: Position,
    pub(crate) raw: Bytes,
}

/// An output, as recorded.
#[derive(Clone, Debug)]
struct Past {
    offset: Offset,
    mark: Mark,
    raw: Bytes,
}

/// What a comparison needs to know of its task.
pub(crate) struct Follower {
    pub(crate) log: SharedLog,
    pub(crate) task: String,
    /// Of each input: its partition and the lane of what is made from it.
    pub(crate) inputs: Vec<(Partition, Lane)>,
    pub(crate) at_end: AtEnd,
    pub(crate) rule: Rule,
    /// Says `true` once the task is to become the owner.
    pub(crate) promoted: Option<watch::Receiver<bool>>,
    pub(crate) compared: Compared,
}

/// What came of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// All of it is recorded.
    All,
    /// What is left is not: it is for the task to append.
    Rest,
    /// The task is to become the owner before it goes on.
    Promoted,
}

/// The recorded outputs of one task in one partition, read along with what it makes.
pub(crate) struct Recorded {
    partition: Partition,
    next: Offset,
    /// Records before it have been trimmed, and the reader began behind them.
    start: Option<Offset>,
    watermarks: Watermarks,
    /// Of each input: read and not yet compared.
    waiting: Vec<VecDeque<Past>>,
    /// Of each input: the last one that was passed.
    last: Vec<Option<Mark>>,
    /// Of each input: the first record that the log still has has been seen.
    begun: Vec<bool>,
    bytes: usize,
}

impl Follower {
    /// Finds the recorded outputs of the task in `partition` behind `tails`: where its state left off.
    pub(crate) async fn open(&self, partition: &Partition, tails: &[Option<Mark>]) -> Result<Recorded, TaskError> {
        let bounds = self.log.bounds(partition).await;
        let bounds = bounds.map_err(|error| read_error(partition, Offset::ZERO, error))?;
        // Right behind the genesis record nothing has been trimmed yet.
        let trimmed = bounds.start > Offset::new(1);
        let next = if tails.iter().all(Option::is_none) {
            if trimmed { bounds.start } else { Offset::ZERO }
        } else {
            self.left_off(partition, (bounds.start, bounds.next), tails).await?
        };
        let from_the_start = next == Offset::ZERO;
        Ok(Recorded {
            partition: partition.clone(),
            next,
            start: (trimmed && next <= bounds.start).then_some(bounds.start),
            watermarks: if from_the_start { Watermarks::from_the_start() } else { Watermarks::mid_stream() },
            waiting: vec![VecDeque::new(); self.inputs.len()],
            last: tails.to_vec(),
            begun: tails.iter().map(Option::is_some).collect(),
            bytes: 0,
        })
    }

    /// An offset at or before all outputs behind `tails`: looks back from the end until, of each lane that has a tail,
    /// a record at or before it shows up. One of an earlier owner than wrote the tail does not count: it may be void.
    async fn left_off(
        &self,
        partition: &Partition,
        (start, end): (Offset, Offset),
        tails: &[Option<Mark>],
    ) -> Result<Offset, TaskError> {
        let (mut to, mut look) = (end.get(), FIRST_LOOK);
        let mut found: Vec<bool> = tails.iter().map(Option::is_none).collect();
        while to > start.get() && found.iter().any(|found| !found) {
            let from = to.saturating_sub(look).max(start.get());
            let mut next = Offset::new(from);
            while next.get() < to {
                let records = self.read(partition, next, Duration::ZERO).await?;
                let Some(last) = records.last() else { break };
                next = last.offset.next();
                for record in records {
                    if let Some((input, mark)) = self.own(partition, &record)?.0
                        && tails[input].is_some_and(|tail| mark.position <= tail.position && mark.epoch >= tail.epoch)
                    {
                        found[input] = true;
                    }
                }
            }
            (to, look) = (from, look.saturating_mul(2));
        }
        Ok(if to <= 1 { Offset::ZERO } else { Offset::new(to) })
    }

    async fn read(&self, partition: &Partition, next: Offset, wait: Duration) -> Result<Vec<Record>, TaskError> {
        let read = self.log.read(partition, next, READ_BYTES, wait).await;
        read.map_err(|error| read_error(partition, next, error))
    }

    /// The input and the mark of a record, if it is the task's own; and its head.
    fn own(&self, partition: &Partition, record: &Record) -> Result<(Option<(usize, Mark)>, Head), TaskError> {
        let offset = record.offset;
        let head = Head::read(&record.value).map_err(|error| damaged(partition, offset, error))?;
        let input = head.from.as_ref().and_then(|from| {
            let lane = Lane::of(from);
            let input = self.inputs.iter().position(|(_, own)| *own == lane)?;
            Some((input, Mark { epoch: Epoch::new(from.epoch), position: from.position() }))
        });
        Ok((input.filter(|_| head.fence.is_none()), head))
    }

    /// Compares `made` with what is recorded, in order; removes what was passed. `ends` are the offsets up to which the
    /// inputs were processed to make it.
    pub(crate) async fn follow(
        &mut self,
        recorded: &mut Recorded,
        made: &mut VecDeque<Made>,
        ends: &[Offset],
    ) -> Result<Followed, TaskError> {
        while let Some(first) = made.front() {
            let (input, at) = (first.input, first.at);
            if recorded.waiting[input].is_empty() {
                match self.fill(recorded, input).await? {
                    Filled::More => continue,
                    Filled::Promoted => return Ok(Followed::Promoted),
                    Filled::End if self.at_end == AtEnd::Append => {
                        self.leftover(recorded, ends)?;
                        return Ok(Followed::Rest);
                    }
                    // Nothing of the lane is left where records were trimmed.
                    Filled::End if self.rule == Rule::Strict && recorded.start.is_some() && !recorded.begun[input] => {
                        self.compared.trimmed += 1;
                        made.pop_front();
                        continue;
                    }
                    Filled::End => {
                        let (input, _) = &self.inputs[input];
                        return Err(TaskError::Unrecorded {
                            output: recorded.partition.clone(),
                            input: input.clone(),
                            offset: Offset::new(at.offset),
                        });
                    }
                }
            }
            self.compare(recorded, made)?;
        }
        Ok(Followed::All)
    }

    /// Compares the first of `made` with the first that is recorded of its lane.
    fn compare(&mut self, recorded: &mut Recorded, made: &mut VecDeque<Made>) -> Result<(), TaskError> {
        let Some(first) = made.front() else { return Ok(()) };
        let input = first.input;
        let Some(past) = recorded.waiting[input].front() else { return Ok(()) };
        if past.mark.position < first.at {
            return self.unexpected(recorded, input);
        }
        let lost = past.mark.position > first.at && !recorded.begun[input] && recorded.start.is_some();
        if lost {
            self.compared.trimmed += 1;
        } else if past.mark.position > first.at {
            self.differ(&recorded.partition, Differs::Missing, (input, first.at), None, Some(first))?;
        } else {
            if past.raw == first.raw || same(&past.raw, &first.raw) {
                self.compared.same += 1;
            } else {
                self.differ(&recorded.partition, Differs::Content, (input, first.at), Some(past), Some(first))?;
            }
            recorded.pass(input);
        }
        made.pop_front();
        Ok(())
    }

    /// The first recorded output of `input` was not made again.
    fn unexpected(&mut self, recorded: &mut Recorded, input: usize) -> Result<(), TaskError> {
        if let Some(past) = recorded.waiting[input].front() {
            let at = past.mark.position;
            self.differ(&recorded.partition, Differs::Unexpected, (input, at), Some(past), None)?;
        }
        recorded.pass(input);
        Ok(())
    }

    /// Notices outputs that are recorded of what has been processed, and were not made again.
    pub(crate) fn leftover(&mut self, recorded: &mut Recorded, ends: &[Offset]) -> Result<(), TaskError> {
        for (input, end) in ends.iter().enumerate() {
            while recorded.waiting[input].front().is_some_and(|past| past.mark.position.offset < end.get()) {
                self.unexpected(recorded, input)?;
            }
        }
        Ok(())
    }

    /// Reads on to the end of the log, or to the first output of each input beyond what was processed.
    pub(crate) async fn read_behind(&mut self, recorded: &mut Recorded, ends: &[Offset]) -> Result<(), TaskError> {
        for (input, end) in ends.iter().enumerate() {
            while recorded.waiting[input].back().is_none_or(|past| past.mark.position.offset < end.get()) {
                let records = self.read(&recorded.partition, recorded.next, Duration::ZERO).await?;
                if records.is_empty() {
                    break;
                }
                self.take(recorded, records)?;
            }
        }
        self.leftover(recorded, ends)
    }

    fn differ(
        &mut self,
        output: &Partition,
        what: Differs,
        (input, at): (usize, Position),
        recorded: Option<&Past>,
        made: Option<&Made>,
    ) -> Result<(), TaskError> {
        let difference = Difference {
            task: self.task.clone(),
            output: output.clone(),
            offset: recorded.map(|past| past.offset),
            input: self.inputs[input].0.clone(),
            source_offset: Offset::new(at.offset),
            what,
            recorded: recorded.map(|past| past.raw.clone()),
            made: made.map(|made| made.raw.clone()),
        };
        self.compared.different += 1;
        match self.rule {
            Rule::Strict => Err(TaskError::Differs(Box::new(difference))),
            Rule::Lenient => {
                if self.compared.different == 1 {
                    tracing::warn!(%difference, "what was recorded differs from what is made now, and stands");
                }
                Ok(())
            }
        }
    }

    /// Reads on until an output of `input` is there.
    async fn fill(&mut self, recorded: &mut Recorded, input: usize) -> Result<Filled, TaskError> {
        let wait = if self.at_end == AtEnd::Wait { WAIT } else { Duration::ZERO };
        while recorded.waiting[input].is_empty() {
            let records = match &mut self.promoted {
                Some(promoted) if self.at_end == AtEnd::Wait => tokio::select! {
                    biased;
                    Ok(_) = promoted.wait_for(|promoted| *promoted) => return Ok(Filled::Promoted),
                    read = self.log.read(&recorded.partition, recorded.next, READ_BYTES, wait) =>
                        read.map_err(|error| read_error(&recorded.partition, recorded.next, error))?,
                },
                _ => self.read(&recorded.partition, recorded.next, wait).await?,
            };
            if records.is_empty() && self.at_end != AtEnd::Wait {
                return Ok(Filled::End);
            }
            self.take(recorded, records)?;
            if recorded.bytes > MAX_WAITING {
                let partition = recorded.partition.clone();
                return Err(TaskError::TooFarAhead { partition, bytes: recorded.bytes });
            }
        }
        Ok(Filled::More)
    }

    /// Takes in the task's own records, those of them that are neither repeated nor void.
    fn take(&self, recorded: &mut Recorded, records: Vec<Record>) -> Result<(), TaskError> {
        for record in records {
            recorded.next = record.offset.next();
            let (own, head) = self.own(&recorded.partition, &record)?;
            if let Some(fence) = &head.fence {
                recorded.watermarks.fence(fence);
            }
            let (Some((input, mark)), Some(from)) = (own, &head.from) else { continue };
            // Void, though its fence lies before the reader's beginning.
            let replaced = recorded.last[input].is_some_and(|last| mark.epoch < last.epoch);
            if replaced && recorded.watermarks.is_mid_stream() {
                continue;
            }
            let admission = recorded.watermarks.admit(from).map_err(|error| ReadError::Lane {
                partition: recorded.partition.clone(),
                offset: record.offset,
                error,
            })?;
            let known = recorded.last[input].is_some_and(|last| mark.position <= last.position);
            if admission == Admission::New && !known {
                recorded.bytes += record.value.len();
                recorded.waiting[input].push_back(Past { offset: record.offset, mark, raw: record.value });
            }
        }
        Ok(())
    }
}

/// What reading on has brought.
enum Filled {
    More,
    End,
    Promoted,
}

impl Recorded {
    /// Passes the first recorded output of `input`.
    fn pass(&mut self, input: usize) {
        if let Some(past) = self.waiting[input].pop_front() {
            self.bytes = self.bytes.saturating_sub(past.raw.len());
            self.last[input] = Some(past.mark);
            self.begun[input] = true;
        }
    }

    /// The last recorded output of `input` that was passed.
    pub(crate) fn last(&self, input: usize) -> Option<Mark> {
        self.last[input]
    }

    /// The task has gone on behind what is recorded.
    pub(crate) fn appended(&mut self, input: usize, mark: Mark) {
        self.last[input] = Some(mark);
        self.begun[input] = true;
    }

    /// The partition.
    pub(crate) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// All that is recorded has been passed.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }
}

/// Whether two records are the same but for the epoch of their producer.
fn same(recorded: &Bytes, made: &Bytes) -> bool {
    let (Ok(recorded), Ok(mut made)) = (decode(recorded.clone()), decode(made.clone())) else { return false };
    if let (Some(from), Some(other)) = (&mut made.from, &recorded.from) {
        from.epoch = other.epoch;
    }
    made.schema = recorded.schema;
    recorded == made
}

fn read_error(partition: &Partition, offset: Offset, error: sluice_log::LogError) -> TaskError {
    ReadError::Log { partition: partition.clone(), offset, error }.into()
}

pub(crate) fn damaged(partition: &Partition, offset: Offset, error: DecodeError) -> TaskError {
    ReadError::Decode { partition: partition.clone(), offset, error }.into()
}

/// Who follows what, for tasks that do not append: shared by the tasks of a process.
#[derive(Clone, Default)]
pub(crate) enum Outputs {
    /// The task owns its outputs: what it made before and has not committed is found in the log and not repeated.
    #[default]
    Own,
    /// It waits for the owner to write them, and becomes the owner once told so.
    Standby(watch::Receiver<bool>),
    /// They are compared with the log, up to its end.
    Compare,
    /// As [`Outputs::Compare`], but what is recorded stands where it differs.
    Rebuild,
    /// They are made and forgotten.
    Discard,
}

impl Outputs {
    /// Says `true` once the task is to own its outputs.
    pub(crate) fn promoted(&self) -> watch::Receiver<bool> {
        match self {
            Self::Standby(promoted) => promoted.clone(),
            _ => watch::channel(true).1,
        }
    }

    /// How a task of these `inputs` follows; `None` if its outputs are discarded.
    pub(crate) fn follower(&self, log: &SharedLog, task: &str, inputs: Vec<(Partition, Lane)>) -> Option<Follower> {
        let (at_end, rule, promoted) = match self {
            Self::Own => (AtEnd::Append, Rule::Lenient, None),
            Self::Standby(promoted) => (AtEnd::Wait, Rule::Strict, Some(promoted.clone())),
            Self::Compare => (AtEnd::Stop, Rule::Strict, None),
            Self::Rebuild => (AtEnd::Stop, Rule::Lenient, None),
            Self::Discard => return None,
        };
        let (log, task, compared) = (Arc::clone(log), task.to_owned(), Compared::default());
        Some(Follower { log, task, inputs, at_end, rule, promoted, compared })
    }
}
