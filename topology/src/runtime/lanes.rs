//! Lanes: telling what is new from what is repeated, and noticing what is missing (DESIGN 5, invariants S1 and P1).
//!
//! A lane is what one producer makes from one of its inputs; of a source, which reads none, all it makes. A task whose
//! outputs depend on answers from outside counts as a source (docs/adr/0010): repeating its input does not repeat them.
//! Along a lane, in one partition, positions only grow and
//! each record names the one before it. A producer that repeats what it had already written (it crashed before it
//! could remember) is found out by position; a record that is missing, by the name of its predecessor.
//!
//! Everything here is pure; `reader` feeds it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sluice_proto::v1::{Coordinates, Fence};
use sluice_proto::{Epoch, Position};

/// A lane within one partition: the producer and the input that its records were made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Hash of the producing task's name.
    pub task: u64,
    /// Hash of the source topic's name; 0 for a source: a service, or a task with a [`crate::Role::World`] operator.
    pub source_topic: u32,
    /// Partition of the source topic; 0 for a source.
    pub source_partition: u32,
}

impl Lane {
    /// The lane of the source with this task hash.
    pub fn source(task: u64) -> Self {
        Self { task, source_topic: 0, source_partition: 0 }
    }

    /// The lane of a record with these coordinates.
    pub fn of(from: &Coordinates) -> Self {
        Self { task: from.task, source_topic: from.source_topic, source_partition: from.source_partition }
    }

    /// The producer is a source: it counts its own records, from 1 again in each epoch.
    pub fn is_source(&self) -> bool {
        self.source_topic == 0
    }

    /// 16 bytes, big-endian, in the order of the fields.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let number =
            (u128::from(self.task) << 64) | (u128::from(self.source_topic) << 32) | u128::from(self.source_partition);
        number.to_be_bytes()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { task: (number >> 64) as u64, source_topic: (number >> 32) as u32, source_partition: number as u32 })
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
}

/// A record that cannot be the next one of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The record names another predecessor than the last record of its lane.
    #[error(
        "a record of task {task:016x} epoch {epoch} at {at:?} follows {names:?}, but the last one read was {last:?}: \
         records are missing in between"
    )]
    Broken {
        /// Hash of the producing task's name.
        task: u64,
        /// Its epoch.
        epoch: Epoch,
        /// Where the record stands.
        at: Position,
        /// The predecessor it names.
        names: Option<Position>,
        /// The last record of the lane that was read.
        last: Option<Position>,
    },
    /// The record does not say which source record it was made from.
    #[error("a record of task {task:016x} has no position on its lane")]
    NoPosition {
        /// Hash of the producing task's name.
        task: u64,
    },
}

/// How far each lane of one partition has been read.
#[derive(Clone, Debug, Default)]
pub struct Watermarks {
    marks: BTreeMap<Lane, Mark>,
    fences: BTreeMap<u64, Epoch>,
    /// The reader began in the middle: the first record of a lane may have predecessors.
    mid_stream: bool,
    /// Records that could not be read and were passed over: as many lanes may have a gap.
    forgiven: u32,
    changed: BTreeSet<Lane>,
    changed_fences: BTreeSet<u64>,
    changed_forgiven: bool,
}

impl Watermarks {
    /// For a reader that begins with the first record of the partition.
    pub fn from_the_start() -> Self {
        Self::default()
    }

    /// For a reader that begins anywhere: the first record it sees of a lane is taken as it is.
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
        let last = self.marks.get(&lane).copied();
        if last.is_some_and(|last| is_repeated(lane, mark, last)) {
            return Ok(Admission::Repeated);
        }
        if !self.follows(lane, mark.epoch, from.predecessor(), last) && !self.is_forgiven(lane) {
            return Err(LaneError::Broken {
                task: lane.task,
                epoch: mark.epoch,
                at: mark.position,
                names: from.predecessor(),
                last: last.map(|last| last.position),
            });
        }
        self.marks.insert(lane, mark);
        self.changed.insert(lane);
        Ok(Admission::New)
    }

    fn follows(&self, lane: Lane, epoch: Epoch, names: Option<Position>, last: Option<Mark>) -> bool {
        match last {
            None => names.is_none() || self.mid_stream,
            Some(last) if lane.is_source() && epoch > last.epoch => names.is_none(),
            Some(last) => names == Some(last.position),
        }
    }

    /// A record was passed over that could not be read: its lane, whichever it is, has a gap.
    pub(crate) fn forgive(&mut self) {
        self.forgiven = self.forgiven.saturating_add(1);
        self.changed_forgiven = true;
    }

    fn is_forgiven(&mut self, lane: Lane) -> bool {
        let Some(left) = self.forgiven.checked_sub(1) else { return false };
        tracing::warn!(
            task = format!("{:016x}", lane.task),
            "a gap in a lane, where a record that could not be read was passed over"
        );
        (self.forgiven, self.changed_forgiven) = (left, true);
        true
    }

    /// Takes in how many gaps were still to come.
    pub(crate) fn restore_forgiven(&mut self, count: u32) {
        self.forgiven = count;
    }

    /// How many gaps may still come, if that has changed since the last call.
    pub(crate) fn take_changed_forgiven(&mut self) -> Option<u32> {
        std::mem::take(&mut self.changed_forgiven).then_some(self.forgiven)
    }

    /// From here on, records of lower epochs of the task are void.
    pub fn fence(&mut self, fence: &Fence) {
        let epoch = Epoch::new(fence.epoch);
        let known = self.fences.entry(fence.task).or_default();
        if epoch > *known {
            *known = epoch;
            self.changed_fences.insert(fence.task);
        }
    }

    /// The mark of a lane.
    pub fn mark(&self, lane: Lane) -> Option<Mark> {
        self.marks.get(&lane).copied()
    }

    /// Takes in a mark that was stored.
    pub(crate) fn restore(&mut self, lane: Lane, mark: Mark) {
        self.marks.insert(lane, mark);
    }

    /// Takes in a fence that was stored.
    pub(crate) fn restore_fence(&mut self, task: u64, epoch: Epoch) {
        self.fences.insert(task, epoch);
    }

    /// The marks that moved since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<(Lane, Mark)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|lane| Some((lane, *self.marks.get(&lane)?))).collect()
    }

    /// The fences that moved since the last call.
    pub(crate) fn take_changed_fences(&mut self) -> Vec<(u64, Epoch)> {
        let changed = std::mem::take(&mut self.changed_fences);
        changed.into_iter().filter_map(|task| Some((task, *self.fences.get(&task)?))).collect()
    }
}

/// At or below the mark. A task makes the same records again in whatever epoch; a source counts anew in each.
fn is_repeated(lane: Lane, record: Mark, last: Mark) -> bool {
    if lane.is_source() {
        (record.epoch, record.position) <= (last.epoch, last.position)
    } else {
        record.position <= last.position
    }
}

/// The end of one lane in one destination partition, on the producer's side: gives each record its coordinates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneTail {
    last: Option<Position>,
}

impl LaneTail {
    /// A lane that ends with `last`.
    pub fn after(last: Option<Position>) -> Self {
        Self { last }
    }

    /// The last record of the lane.
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// Coordinates of the next record of the source `lane`: it is counted from the last one on, or from 1.
    pub fn next_of_source(&mut self, lane: Lane, epoch: Epoch) -> Coordinates {
        let number = self.last.map_or(1, |last| last.offset.saturating_add(1));
        self.next(lane, epoch, number)
    }

    /// Coordinates of the next record of `lane`, made from the source record `source_offset`. The ordinal counts the
    /// records from one source record to this partition alone, so that it does not depend on where else they go.
    pub fn next(&mut self, lane: Lane, epoch: Epoch, source_offset: u64) -> Coordinates {
        let ordinal = match self.last {
            Some(last) if last.offset == source_offset => last.ordinal.saturating_add(1),
            _ => 0,
        };
        let previous = self.last.unwrap_or_default();
        self.last = Some(Position { offset: source_offset, ordinal });
        Coordinates {
            task: lane.task,
            epoch: epoch.get(),
            source_topic: lane.source_topic,
            source_partition: lane.source_partition,
            source_offset,
            ordinal,
            prev_offset: previous.offset,
            prev_ordinal: previous.ordinal,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TASK: Lane = Lane { task: 7, source_topic: 3, source_partition: 1 };
    const SOURCE: Lane = Lane { task: 9, source_topic: 0, source_partition: 0 };

    /// Coordinates of what a task makes from source records 1, 2, ...: `counts` records of each.
    fn outputs(counts: &[u32], tail: &mut LaneTail, first: u64) -> Vec<Coordinates> {
        let epoch = Epoch::new(1);
        let sources = counts.iter().zip(first..);
        sources.flat_map(|(count, offset)| vec![offset; *count as usize]).map(|o| tail.next(TASK, epoch, o)).collect()
    }

    #[test]
    fn a_source_may_begin_again_in_a_higher_epoch_only() {
        let mut marks = Watermarks::from_the_start();
        let mut first = LaneTail::default();
        let old: Vec<_> = (1..=3).map(|n| first.next(SOURCE, Epoch::new(1), n)).collect();
        let mut second = LaneTail::default();
        let new: Vec<_> = (1..=2).map(|n| second.next(SOURCE, Epoch::new(2), n)).collect();
        for coordinates in old.iter().chain(&new) {
            assert_eq!(marks.admit(coordinates), Ok(Admission::New));
        }
        for coordinates in old.iter().chain(&new) {
            assert_eq!(marks.admit(coordinates), Ok(Admission::Repeated));
        }
        let mut third = LaneTail::after(Some(Position { offset: 2, ordinal: 0 }));
        let lost_its_first = third.next(SOURCE, Epoch::new(3), 3);
        assert!(matches!(marks.admit(&lost_its_first), Err(LaneError::Broken { .. })));
    }

    #[test]
    fn a_task_is_known_by_its_position_in_any_epoch() {
        let mut marks = Watermarks::from_the_start();
        let made = outputs(&[1, 1], &mut LaneTail::default(), 1);
        for coordinates in &made {
            assert_eq!(marks.admit(coordinates), Ok(Admission::New));
        }
        let again = Coordinates { epoch: 5, ..made[0] };
        assert_eq!(marks.admit(&again), Ok(Admission::Repeated));
    }

    #[test]
    fn behind_a_fence_lower_epochs_are_void() {
        let mut marks = Watermarks::from_the_start();
        let made = outputs(&[1, 1], &mut LaneTail::default(), 1);
        assert_eq!(marks.admit(&made[0]), Ok(Admission::New));
        marks.fence(&Fence { task: TASK.task, epoch: 2 });
        assert_eq!(marks.admit(&made[1]), Ok(Admission::Void));
        let of_new_owner = Coordinates { epoch: 2, ..made[1] };
        assert_eq!(marks.admit(&of_new_owner), Ok(Admission::New));
        assert_eq!(marks.take_changed_fences(), [(TASK.task, Epoch::new(2))]);
    }

    #[test]
    fn a_reader_that_starts_in_the_middle_is_strict_from_its_second_record_on() {
        let made = outputs(&[1; 5], &mut LaneTail::default(), 1);
        assert!(Watermarks::from_the_start().admit(&made[1]).is_err());
        let mut marks = Watermarks::mid_stream();
        assert_eq!(marks.admit(&made[1]), Ok(Admission::New));
        assert_eq!(marks.admit(&made[2]), Ok(Admission::New));
        assert!(marks.admit(&made[4]).is_err());
    }

    proptest! {
        /// S1: however often a producer crashes and repeats itself from its last commit, each record is read once.
        #[test]
        fn s1_repetitions_are_dropped(
            counts in proptest::collection::vec(0u32..4, 1..30),
            crashes in proptest::collection::vec((0usize..30, 0usize..30), 0..8),
        ) {
            let all = outputs(&counts, &mut LaneTail::default(), 1);
            let mut log = Vec::new();
            let (mut committed, mut tail) = (0usize, LaneTail::default());
            for (appended, commit) in crashes.into_iter().chain([(counts.len(), 0)]) {
                // Appends up to source record `appended`, then commits up to `commit` at most, then crashes.
                let until = committed.max(appended.min(counts.len()));
                let mut ahead = tail;
                log.extend(outputs(&counts[committed..until], &mut ahead, committed as u64 + 1));
                let kept = committed.max(commit.min(until));
                outputs(&counts[committed..kept], &mut tail, committed as u64 + 1);
                committed = kept;
            }
            let mut marks = Watermarks::from_the_start();
            let mut read = Vec::new();
            for coordinates in &log {
                if marks.admit(coordinates).unwrap() == Admission::New {
                    read.push(*coordinates);
                }
            }
            prop_assert_eq!(read, all);
        }

        /// P1: a record that is lost is noticed at the next one of its lane.
        #[test]
        fn p1_a_missing_record_is_noticed(counts in proptest::collection::vec(1u32..4, 2..20), lost: prop::sample::Index) {
            let mut log = outputs(&counts, &mut LaneTail::default(), 1);
            let lost = lost.index(log.len() - 1);
            log.remove(lost);
            let mut marks = Watermarks::from_the_start();
            for (index, coordinates) in log.iter().enumerate() {
                prop_assert_eq!(marks.admit(coordinates).is_err(), index >= lost);
            }
        }

        #[test]
        fn marks_and_lanes_are_stored_and_read(task: u64, source_topic: u32, source_partition: u32, offset: u64, ordinal: u32) {
            let lane = Lane { task, source_topic, source_partition };
            prop_assert_eq!(Lane::from_bytes(&lane.to_bytes()), Some(lane));
            let mark = Mark { epoch: Epoch::new(source_topic), position: Position { offset, ordinal } };
            prop_assert_eq!(Mark::from_bytes(&mark.to_bytes()), Some(mark));
        }
    }
}
