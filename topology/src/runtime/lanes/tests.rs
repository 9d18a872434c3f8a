#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use proptest::prelude::*;

const TASK: Lane = Lane { task: 7, source_topic: 3, source_partition: 1, epoch: Epoch::new(0) };
const SOURCE: u64 = 9;

/// Coordinates of the first `count` records of an epoch of a source.
fn sent(epoch: u32, count: u64) -> Vec<Coordinates> {
    let (epoch, mut tail) = (Epoch::new(epoch), LaneTail::default());
    (0..count).map(|_| tail.next_of_source(Lane::source(SOURCE, epoch), epoch)).collect()
}

/// Coordinates of what a task makes from source records 1, 2, ...: `counts` records of each.
fn outputs(counts: &[u32], tail: &mut LaneTail, first: u64) -> Vec<Coordinates> {
    let epoch = Epoch::new(1);
    let sources = counts.iter().zip(first..);
    sources.flat_map(|(count, offset)| vec![offset; *count as usize]).map(|o| tail.next(TASK, epoch, o)).collect()
}

/// S1: what a gateway answered counts, whichever of its processes wrote it and in whatever order they did.
#[test]
fn s1_each_epoch_of_a_source_is_a_lane_of_its_own() {
    let mut marks = Watermarks::from_the_start();
    let (old, new) = (sent(1, 3), sent(2, 2));
    for coordinates in old[..1].iter().chain(&new).chain(&old[1..]) {
        assert_eq!(marks.admit(coordinates), Ok(Admission::New));
    }
    for coordinates in old.iter().chain(&new) {
        assert_eq!(marks.admit(coordinates), Ok(Admission::Repeated));
    }
    assert!(matches!(marks.admit(&sent(3, 3)[2]), Err(LaneError::Broken { .. })), "it lost its first ones");
}

/// P1: the number of epochs that are remembered is bounded; what is forgotten is neither read twice nor unnoticed.
#[test]
fn p1_epochs_of_a_source_are_forgotten_in_order() {
    let mut marks = Watermarks::from_the_start();
    let last = REMEMBERED as u32 + 2;
    for epoch in 1..=last {
        assert_eq!(marks.admit(&sent(epoch * 2, 1)[0]), Ok(Admission::New));
    }
    assert_eq!(marks.forgotten(SOURCE), Some(Epoch::new(4)));
    for (epoch, expected) in [
        (2, Admission::Forgotten),
        (3, Admission::Forgotten),
        (5, Admission::Forgotten),
        (6, Admission::Repeated),
        (7, Admission::New),
        (6, Admission::Forgotten),
    ] {
        assert_eq!(marks.admit(&sent(epoch, 1)[0]), Ok(expected), "{epoch}");
    }
    assert_eq!(marks.epochs(SOURCE).count(), REMEMBERED);
    let removed = marks.take_changes().marks.into_iter().filter(|lane| marks.mark(*lane).is_none()).count();
    assert_eq!(removed, 3);
}

/// A mark that an earlier program stored: what it took for repeated stays so.
#[test]
fn s1_a_mark_without_an_epoch_still_counts() {
    let mut marks = Watermarks::from_the_start();
    let stored = Mark { epoch: Epoch::new(5), position: Position { offset: 2, ordinal: 0 } };
    let lane = Lane::from_bytes(&Lane::source(SOURCE, Epoch::default()).to_bytes()[..16]).unwrap();
    marks.restore(lane, stored);
    for (epoch, number, expected) in [
        (4, 1, Admission::Forgotten),
        (5, 2, Admission::Repeated),
        (5, 3, Admission::New),
        (6, 1, Admission::New),
        (5, 4, Admission::New),
    ] {
        assert_eq!(marks.admit(&sent(epoch, number)[number as usize - 1]), Ok(expected), "{epoch}, {number}");
    }
    let changes = marks.take_changes();
    assert_eq!(changes.outdated, BTreeSet::from([lane]));
    assert_eq!(changes.marks.len(), 2);
    assert_eq!(marks.forgotten(SOURCE), Some(Epoch::new(4)));
}

#[test]
fn a_reader_from_the_middle_takes_lower_epochs_of_a_source_for_void() {
    let mut marks = Watermarks::mid_stream();
    let (old, new) = (sent(4, 9), sent(5, 4));
    assert_eq!(marks.admit(&old[3]), Ok(Admission::New));
    assert_eq!(marks.admit(&new[1]), Ok(Admission::New), "its beginning may lie before the reader's");
    assert_eq!(marks.admit(&old[4]), Ok(Admission::Void));
    marks.fence(&Fence { task: SOURCE, epoch: 6, ..Fence::default() });
    assert!(marks.admit(&sent(6, 2)[1]).is_err(), "behind its fence it begins with its first");
}

/// What an owner that was replaced wrote behind the fence, and the reader's beginning lies between: it neither stops
/// the reader at what the new owner wrote, nor counts beside it.
#[test]
fn s1_a_reader_from_the_middle_goes_on_with_the_newest_owner_of_a_task() {
    let mut marks = Watermarks::mid_stream();
    let made = outputs(&[1; 8], &mut LaneTail::default(), 1);
    let of = |epoch: u32, number: usize| Coordinates { epoch, ..made[number] };
    assert_eq!(marks.admit(&of(1, 2)), Ok(Admission::New), "nothing tells that it is void");
    assert_eq!(marks.admit(&of(2, 4)), Ok(Admission::New), "what is before it lies before the reader's beginning");
    assert_eq!(marks.admit(&of(1, 5)), Ok(Admission::Void));
    assert_eq!(marks.admit(&of(2, 5)), Ok(Admission::New));
    assert!(marks.admit(&of(2, 7)).is_err(), "one is missing");
    let mut marks = Watermarks::mid_stream();
    assert_eq!(marks.admit(&of(1, 5)), Ok(Admission::New));
    assert_eq!(marks.admit(&of(2, 4)), Ok(Admission::Repeated));
    assert_eq!(marks.admit(&of(1, 6)), Ok(Admission::Void));
    assert_eq!(marks.admit(&of(2, 5)), Ok(Admission::Repeated));
    assert_eq!(marks.admit(&of(2, 6)), Ok(Admission::New));
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
    marks.fence(&Fence { task: TASK.task, epoch: 2, ..Fence::default() });
    assert_eq!(marks.admit(&made[1]), Ok(Admission::Void));
    let of_new_owner = Coordinates { epoch: 2, ..made[1] };
    assert_eq!(marks.admit(&of_new_owner), Ok(Admission::New));
    assert_eq!(marks.take_changes().fences, BTreeSet::from([TASK.task]));
    assert_eq!(marks.fenced(TASK.task), Some(Epoch::new(2)));
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
        let epoch = Epoch::new(ordinal);
        for lane in [Lane::input(task, source_topic.max(1), source_partition), Lane::source(task, epoch)] {
            prop_assert_eq!(Lane::from_bytes(&lane.to_bytes()), Some(lane));
        }
        let mark = Mark { epoch: Epoch::new(source_topic), position: Position { offset, ordinal } };
        prop_assert_eq!(Mark::from_bytes(&mark.to_bytes()), Some(mark));
    }
}
