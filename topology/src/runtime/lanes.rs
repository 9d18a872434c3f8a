//! Lanes: telling what is new from what is repeated, and noticing what is missing (DESIGN 5, invariants S1 and P1).
//!
//! A lane is what one producer makes from one of its inputs, in whatever epoch: a new owner makes the same again. Of a
//! source, which reads no input, it is what it makes in one epoch. A task whose outputs depend on answers from outside
//! counts as a source (docs/adr/0010): repeating its input does not repeat them.
//!
//! Along a lane, in one partition, positions only grow and
//! each record names the one before it. A producer that repeats what it had already written (it crashed before it
//! could remember) is found out by position; a record that is missing, by the name of its predecessor. Behind a fence,
//! what owners of lower epochs still write is void (docs/adr/0014).
//!
//! Everything here is pure; `reader` feeds it.

mod error;
mod tail;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sluice_proto::v1::{Coordinates, Fence};
use sluice_proto::{Epoch, Position};

/// Epochs of a source that are remembered in a partition. Only gateways have more than a few, since they do not fence:
/// what an old process of one was still to write counts. One that wakes up after this many later starts is not heard any
/// more: what it writes is dropped, counted and logged.
const REMEMBERED: usize = 1024;

pub use error::LaneError;
pub use tail::LaneTail;

/// A lane within one partition: the producer and the input that its records were made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Hash of the producing task's name.
    pub task: u64,
    /// Hash of the source topic's name; 0 for a source: a service, or a task with a [`crate::Role::World`] operator.
    pub source_topic: u32,
    /// Partition of the source topic; 0 for a source.
    pub source_partition: u32,
    /// Epoch of a source; 0 for a task, whose lanes go on from epoch to epoch.
    pub epoch: Epoch,
}

impl Lane {
    /// The lane of the source with this task hash, in this epoch.
    pub fn source(task: u64, epoch: Epoch) -> Self {
        Self { task, source_topic: 0, source_partition: 0, epoch }
    }

    /// The lane of the task with this hash from partition `source_partition` of the topic with the hash `source_topic`.
    pub fn input(task: u64, source_topic: u32, source_partition: u32) -> Self {
        Self { task, source_topic, source_partition, epoch: Epoch::default() }
    }

    /// The lane of a record with these coordinates.
    pub fn of(from: &Coordinates) -> Self {
        match from.source_topic {
            0 => Self::source(from.task, Epoch::new(from.epoch)),
            topic => Self::input(from.task, topic, from.source_partition),
        }
    }

    /// The producer is a source: it counts its own records, from 1 again in each epoch.
    pub fn is_source(&self) -> bool {
        self.source_topic == 0
    }

    /// Its fields in order, big-endian: 16 bytes for a task, and 4 of epoch for a source.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let number =
            (u128::from(self.task) << 64) | (u128::from(self.source_topic) << 32) | u128::from(self.source_partition);
        let mut bytes = number.to_be_bytes().to_vec();
        if self.is_source() {
            bytes.extend_from_slice(&self.epoch.get().to_be_bytes());
        }
        bytes
    }

    /// What [`Lane::to_bytes`] made. A source without an epoch was stored when all its epochs were one lane.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (lane, epoch) = bytes.split_first_chunk::<16>()?;
        let number = u128::from_be_bytes(*lane);
        let (source_topic, source_partition) = ((number >> 32) as u32, number as u32);
        let epoch = match epoch {
            [] => 0,
            epoch => u32::from_be_bytes(epoch.try_into().ok()?),
        };
        Some(Self { task: (number >> 64) as u64, source_topic, source_partition, epoch: Epoch::new(epoch) })
    }
}

/// How far a lane has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Epoch of the last record.
    pub epoch: Epoch,
    /// Its position.
    pub position: Position,
}

impl Mark {
    /// 4 bytes of epoch, 8 of offset, 4 of ordinal, big-endian.
    pub(crate) fn to_bytes(self) -> Bytes {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&self.epoch.get().to_be_bytes());
        bytes.extend_from_slice(&self.position.offset.to_be_bytes());
        bytes.extend_from_slice(&self.position.ordinal.to_be_bytes());
        bytes.into()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self {
            epoch: Epoch::new((number >> 96) as u32),
            position: Position { offset: (number >> 32) as u64, ordinal: number as u32 },
        })
    }
}

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one of its lane.
    New,
    /// It has been read before: drop it.
    Repeated,
    /// Its producer had lost the partition to a later epoch when it was written: drop it.
    Void,
    /// So many later epochs of its source have written since that nobody knows whether it was read: drop it.
    Forgotten,
}

/// How far each lane of one partition has been read.
#[derive(Clone, Debug, Default)]
pub struct Watermarks {
    marks: BTreeMap<Lane, Mark>,
    fences: BTreeMap<u64, Epoch>,
    /// By source: whose epochs up to this one are forgotten.
    forgotten: BTreeMap<u64, Epoch>,
    /// The reader began in the middle: the first record of a lane may have predecessors.
    mid_stream: bool,
    /// Records that could not be read and were passed over: as many lanes may have a gap.
    forgiven: u32,
    changes: Changes,
}

/// What is to be stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Lanes whose marks moved or are gone.
    pub(crate) marks: BTreeSet<Lane>,
    /// How many gaps may still come has changed.
    pub(crate) forgiven: bool,
    /// Tasks whose fences moved.
    pub(crate) fences: BTreeSet<u64>,
    /// Sources of which more was forgotten.
    pub(crate) forgotten: BTreeSet<u64>,
    /// Marks of sources as they were stored when all epochs were one lane.
    pub(crate) outdated: BTreeSet<Lane>,
    /// The one of `marks` that was put there last.
    newest: Option<Lane>,
}

impl Changes {
    /// The mark of `lane` has moved: it was most likely the last one that did.
    fn mark(&mut self, lane: Lane) {
        if self.newest != Some(lane) {
            self.marks.insert(lane);
            self.newest = Some(lane);
        }
    }
}

impl Watermarks {
    /// For a reader that begins with the first record of the partition.
    pub fn from_the_start() -> Self {
        Self::default()
    }

    /// For a reader that begins anywhere: the first record it sees of a lane, or of a lane in a later epoch, is taken as it
    /// is. The fences before it are not known to it, so it takes a record for void that is of a lower epoch than one it
    /// has seen of the task. So only topics are read from the middle whose sources fence, as all do but gateways.
    pub fn mid_stream() -> Self {
        Self { mid_stream: true, ..Self::default() }
    }

    /// The reader began in the middle: to be stored, for [`Watermarks::restore_mid_stream`].
    pub(crate) fn is_mid_stream(&self) -> bool {
        self.mid_stream
    }

    /// Takes in that the reader began in the middle.
    pub(crate) fn restore_mid_stream(&mut self) {
        self.mid_stream = true;
    }

    /// Judges a record by its coordinates and, if it is new, moves its lane's mark to it.
    ///
    /// # Errors
    /// If the record is neither a repetition nor the next one: something is missing (invariant P1).
    pub fn admit(&mut self, from: &Coordinates) -> Result<Admission, LaneError> {
        if from.source_offset == 0 {
            return Err(LaneError::NoPosition { task: from.task });
        }
        let (lane, mark) = (Lane::of(from), Mark { epoch: Epoch::new(from.epoch), position: from.position() });
        if self.fences.get(&lane.task).is_some_and(|fence| mark.epoch < *fence) {
            return Ok(Admission::Void);
        }
        let last = match self.marks.get_mut(&lane) {
            // The next one of the same owner, as nearly all are.
            Some(last) if last.epoch == mark.epoch && from.predecessor() == Some(last.position) => {
                if mark.position <= last.position {
                    return Ok(Admission::Repeated);
                }
                *last = mark;
                self.changes.mark(lane);
                return Ok(Admission::New);
            }
            last => last.map(|last| *last),
        };
        // Whose fence lies before the reader's beginning: what was seen of earlier epochs may have been void.
        let unfenced = self.mid_stream && self.fences.get(&lane.task).is_none_or(|fence| mark.epoch > *fence);
        if last.is_some_and(|last| mark.position <= last.position) {
            if unfenced {
                self.void_below(lane.task, mark.epoch);
            }
            return Ok(Admission::Repeated);
        }
        if last.is_none() && lane.is_source() && self.is_forgotten(lane) {
            return Ok(Admission::Forgotten);
        }
        let before = last.filter(|last| !unfenced || last.epoch >= mark.epoch);
        if !self.follows(lane, from.predecessor(), before, unfenced) && !self.is_forgiven(lane) {
            return Err(LaneError::Broken {
                task: lane.task,
                epoch: mark.epoch,
                at: mark.position,
                names: from.predecessor(),
                last: last.map(|last| last.position),
            });
        }
        self.marks.insert(lane, mark);
        self.changes.mark(lane);
        if last.is_none() && lane.is_source() {
            self.forget_oldest(lane.task);
        }
        if unfenced {
            self.void_below(lane.task, mark.epoch);
        }
        Ok(Admission::New)
    }

    /// Whether a record that names this predecessor comes next behind `last`. Behind a fence that was seen, a source
    /// begins with its first record.
    fn follows(&self, lane: Lane, names: Option<Position>, last: Option<Mark>, unfenced: bool) -> bool {
        match last {
            Some(last) => names == Some(last.position),
            None => names.is_none() || unfenced || (self.mid_stream && !lane.is_source()),
        }
    }

    /// A record was passed over that could not be read: its lane, whichever it is, has a gap.
    pub(crate) fn forgive(&mut self) {
        self.forgiven = self.forgiven.saturating_add(1);
        self.changes.forgiven = true;
    }

    fn is_forgiven(&mut self, lane: Lane) -> bool {
        let Some(left) = self.forgiven.checked_sub(1) else { return false };
        tracing::warn!(
            task = format!("{:016x}", lane.task),
            "a gap in a lane, where a record that could not be read was passed over"
        );
        (self.forgiven, self.changes.forgiven) = (left, true);
        true
    }

    /// Takes in how many gaps were still to come.
    pub(crate) fn restore_forgiven(&mut self, count: u32) {
        self.forgiven = count;
    }

    /// How many gaps may still come.
    pub(crate) fn forgiven(&self) -> u32 {
        self.forgiven
    }

    /// The remembered epochs of a source, in order.
    fn epochs(&self, task: u64) -> impl DoubleEndedIterator<Item = Lane> {
        let all = Lane::source(task, Epoch::default())..=Lane::source(task, Epoch::new(u32::MAX));
        self.marks.range(all).map(|(lane, _)| *lane)
    }

    fn is_forgotten(&self, lane: Lane) -> bool {
        self.forgotten.get(&lane.task).is_some_and(|until| lane.epoch <= *until)
            || (self.epochs(lane.task).next().is_some_and(|oldest| lane.epoch < oldest.epoch)
                && self.epochs(lane.task).count() >= REMEMBERED)
    }

    fn forget_oldest(&mut self, task: u64) {
        let oldest = self.epochs(task).next();
        let Some(oldest) = oldest.filter(|_| self.epochs(task).count() > REMEMBERED) else { return };
        self.marks.remove(&oldest);
        self.changes.marks.insert(oldest);
        self.forgotten.insert(task, oldest.epoch);
        self.changes.forgotten.insert(task);
    }

    /// From here on, records of lower epochs of the task are void.
    pub fn fence(&mut self, fence: &Fence) {
        self.void_below(fence.task, Epoch::new(fence.epoch));
    }

    fn void_below(&mut self, task: u64, epoch: Epoch) {
        let known = self.fences.entry(task).or_default();
        if epoch <= *known {
            return;
        }
        *known = epoch;
        self.changes.fences.insert(task);
        // How far epochs were read that are void is of no use any more.
        let void: Vec<Lane> = self.epochs(task).take_while(|lane| lane.epoch < epoch).collect();
        for lane in void {
            self.marks.remove(&lane);
            self.changes.marks.insert(lane);
        }
    }

    /// The mark of a lane.
    pub fn mark(&self, lane: Lane) -> Option<Mark> {
        self.marks.get(&lane).copied()
    }

    /// The epoch below which records of the task with this hash are void.
    pub fn fenced(&self, task: u64) -> Option<Epoch> {
        self.fences.get(&task).copied()
    }

    /// Up to which epoch nothing is known any more of the source with this hash.
    pub(crate) fn forgotten(&self, task: u64) -> Option<Epoch> {
        self.forgotten.get(&task).copied()
    }

    /// Takes in a mark that was stored. When all epochs of a source were one lane, a record of a lower epoch than the last
    /// was taken for repeated: so it stays.
    pub(crate) fn restore(&mut self, mut lane: Lane, mark: Mark) {
        if lane.is_source() && lane.epoch == Epoch::default() {
            self.changes.outdated.insert(lane);
            lane.epoch = mark.epoch;
            if let Some(before) = mark.epoch.get().checked_sub(1) {
                self.restore_forgotten(lane.task, Epoch::new(before));
                self.changes.forgotten.insert(lane.task);
            }
            self.changes.marks.insert(lane);
        }
        self.marks.insert(lane, mark);
    }

    /// Takes in a fence that was stored.
    pub(crate) fn restore_fence(&mut self, task: u64, epoch: Epoch) {
        self.fences.insert(task, epoch);
    }

    /// Takes in up to where epochs of a source were forgotten.
    pub(crate) fn restore_forgotten(&mut self, task: u64, until: Epoch) {
        self.forgotten.insert(task, until);
    }

    /// What has changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }
}
