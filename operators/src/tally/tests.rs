use crate::testing::Sent;
use proptest::prelude::*;
use sluice_proto::v1::{Cut, Reason, SliceEnd, Tally, Verdict};
use sluice_proto::{Body, EventTime};
use sluice_topology::{Key, SettingValue};

use super::*;
use crate::testing::Rig;
use crate::testing::records::{NBITS, Random, START, at, tick, verdict};

/// Number of the slice that the tests begin in.
const FIRST: u64 = START / 10;
/// Work of a share of the tests.
const WORK: u64 = 0x1_0001_0001;

/// A share of `session` at gateway 0, received at `millis`.
fn share(rig: &mut Rig, session: u64, millis: u64) -> Vec<Sent> {
    let verdict = Verdict { gateway: 0, ..verdict(session, millis, Reason::Accepted) };
    rig.give("in", at(millis), Body::Verdict(verdict))
}

fn tick_of(rig: &mut Rig, gateway: u32, millis: u64) -> Vec<Sent> {
    rig.give("in", at(millis), Body::Tick(tick(gateway, 1)))
}

/// Slices, from the first, whose end was written.
fn ended(out: &[Sent]) -> Vec<u64> {
    let ends = out.iter().filter_map(|emission| match &emission.body {
        Body::SliceEnd(end) => Some(end.slice - FIRST),
        _ => None,
    });
    ends.collect()
}

fn tallies(out: &[Sent]) -> Vec<Tally> {
    let tallies = out.iter().filter_map(|emission| match &emission.body {
        Body::Tally(tally) => Some(tally.clone()),
        _ => None,
    });
    tallies.collect()
}

/// Slice (from the first), account, worker and accepted shares.
fn counts(out: &[Sent]) -> Vec<(u64, String, String, u64)> {
    let all = tallies(out).into_iter();
    let shares = |tally: &Tally| tally.accepted.iter().map(|at| at.shares).sum();
    all.map(|tally| (tally.slice - FIRST, tally.account.clone(), tally.worker.clone(), shares(&tally))).collect()
}

#[test]
fn trap_05_a_slice_sums_accepted_work_and_only_counts_rejects() {
    let mut rig = Rig::new(&KIND);
    for session in [1, 1, 6, 1] {
        assert_eq!(share(&mut rig, session, 1_000), []);
    }
    for (nbits, reason) in
        [(NBITS + 1, Reason::Accepted), (NBITS, Reason::Stale), (0, Reason::JobNotFound), (NBITS, Reason::Stale)]
    {
        let verdict = Verdict { nbits, gateway: 0, ..verdict(1, 7, reason) };
        rig.give("in", at(9_999), Body::Verdict(verdict));
    }
    let out = tick_of(&mut rig, 0, 10_000);
    let expected_key = |account: &'static str| Key::Bytes(account.into());
    assert_eq!(
        out.iter().map(|emission| emission.key.clone()).collect::<Vec<_>>(),
        [expected_key("account1"), expected_key("account1"), Key::Every]
    );
    assert!(out.iter().all(|emission| emission.port == "out" && emission.event_time == at(10_000)));
    let [first, second] = &tallies(&out)[..] else { panic!("{out:?}") };
    let work_at = |nbits, shares: u64| WorkAt { nbits, work_hi: 0, work_lo: WORK * shares, shares };
    let rejected =
        |reason: Reason, shares: u64| ReasonCount { reason: reason.into(), shares, work_hi: 0, work_lo: WORK * shares };
    let expected = Tally {
        slice: FIRST,
        slice_ms: 10_000,
        partition: 0,
        account: "account1".into(),
        worker: "rig1".into(),
        accepted: vec![work_at(NBITS, 3), work_at(NBITS + 1, 1)],
        rejected: vec![rejected(Reason::Stale, 2), rejected(Reason::JobNotFound, 1)],
        generation: 0,
    };
    assert_eq!(*first, expected);
    assert_eq!((&*second.worker, second.accepted[0].shares), ("rig6", 1));
    let end =
        SliceEnd { slice: FIRST, slice_ms: 10_000, partition: 0, partitions: 1, generation: 0, next_partitions: 0 };
    assert_eq!(out[2].body, Body::SliceEnd(end));
    assert_eq!(rig.rows("sums"), 0, "what is written is forgotten");
}

#[test]
fn a_slice_ends_even_if_it_is_empty_and_one_marker_ends_several() {
    let mut rig = Rig::new(&KIND);
    assert_eq!(tick_of(&mut rig, 0, 0), []);
    assert_eq!(tick_of(&mut rig, 0, 9_999), []);
    assert_eq!(ended(&tick_of(&mut rig, 0, 10_000)), [0]);
    assert_eq!(ended(&tick_of(&mut rig, 0, 20_001)), [1]);
    share(&mut rig, 1, 25_000);
    let out = tick_of(&mut rig, 0, 70_000);
    assert_eq!((counts(&out).len(), ended(&out)), (1, vec![6]), "all slices up to this one");
    assert_eq!(tallies(&out)[0].slice - FIRST, 2);
}

#[test]
fn the_slowest_gateway_holds_the_time_of_a_partition() {
    let mut rig = Rig::new(&KIND);
    tick_of(&mut rig, 1, 5_000);
    assert_eq!(ended(&tick_of(&mut rig, 0, 12_000)), [0_u64; 0]);
    // A share of the faster one belongs to its own slice, although the one before is still open.
    share(&mut rig, 1, 13_000);
    assert_eq!(ended(&tick_of(&mut rig, 1, 11_000)), [0]);
    let out = tick_of(&mut rig, 0, 21_000);
    assert_eq!(ended(&out), [0_u64; 0]);
    let out = tick_of(&mut rig, 1, 20_000);
    assert_eq!((counts(&out), ended(&out)), (vec![(1, "account1".into(), "rig1".into(), 1)], vec![1]));
}

#[test]
fn a_silent_gateway_holds_it_back_for_30_seconds() {
    let mut rig = Rig::new(&KIND);
    tick_of(&mut rig, 1, 5_000);
    for millis in [10_000, 20_000, 35_000, 35_999] {
        assert_eq!(tick_of(&mut rig, 0, millis), [], "{millis}");
    }
    assert_eq!(ended(&tick_of(&mut rig, 0, 36_000)), [2]);
    // What it sends later counts in the slice then open, and does not hold it back again.
    let late = Verdict { gateway: 1, ..verdict(2, 1, Reason::Accepted) };
    assert_eq!(rig.give("in", at(6_000), Body::Verdict(late)), []);
    let out = tick_of(&mut rig, 0, 40_000);
    assert_eq!((counts(&out), ended(&out)), (vec![(3, "account2".into(), "rig2".into(), 1)], vec![3]));
    // Back within 30 s of the others, it counts again.
    tick_of(&mut rig, 1, 41_000);
    assert_eq!(ended(&tick_of(&mut rig, 0, 60_000)), [0_u64; 0]);
    assert_eq!(ended(&tick_of(&mut rig, 1, 59_000)), [4]);
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let mut rig = Rig::new(&KIND);
    tick_of(&mut rig, 0, 15_000);
    assert_eq!(tick_of(&mut rig, 0, 3_000), []);
    share(&mut rig, 1, 4_000);
    let out = tick_of(&mut rig, 0, 20_000);
    assert_eq!((counts(&out)[0].0, ended(&out)), (1, vec![1]), "the share counts in the open slice");
}

#[test]
fn settings_change_slices_and_silence() {
    let millis = |ms| SettingValue::Duration(std::time::Duration::from_millis(ms));
    let settings = [("slice", millis(500)), ("silence", millis(2_000))];
    let mut rig = Rig::with(&KIND, &settings, Default::default());
    tick_of(&mut rig, 1, 0);
    tick_of(&mut rig, 0, 1_000);
    assert_eq!(tick_of(&mut rig, 0, 2_049), []);
    let out = tick_of(&mut rig, 0, 2_050);
    let Body::SliceEnd(end) = &out[0].body else { panic!("{out:?}") };
    assert_eq!((end.slice_ms, end.slice), (500, START * 2 + 3));
    let none = crate::testing::settings_of(&KIND, &[("slice", millis(0))]);
    assert!(crate::testing::build(&KIND, &none, &Default::default()).is_err());
}

#[test]
fn names_that_look_alike_stay_apart() {
    let mut rig = Rig::new(&KIND);
    for (account, worker) in [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")] {
        let verdict =
            Verdict { account: account.into(), worker: worker.into(), gateway: 0, ..verdict(1, 1, Reason::Accepted) };
        rig.give("in", at(1), Body::Verdict(verdict));
    }
    let out = tick_of(&mut rig, 0, 10_000);
    let mut names: Vec<_> =
        counts(&out).into_iter().map(|(_, account, worker, shares)| (account, worker, shares)).collect();
    names.sort();
    let expected = [("", "abc", 1), ("a", "bc", 1), ("ab", "c", 1), ("abc", "", 1)];
    assert_eq!(names, expected.map(|(account, worker, shares)| (account.to_owned(), worker.to_owned(), shares)));
}

#[test]
fn p1_a_sum_that_leaves_its_range_stops_it() {
    let mut rig = Rig::new(&KIND);
    let huge = Verdict { work_hi: u64::MAX, work_lo: u64::MAX, ..verdict(1, 1, Reason::Accepted) };
    rig.give("in", at(1), Body::Verdict(huge.clone()));
    let error = rig.give_of("in", (0, 1), at(1), Body::Verdict(huge)).unwrap_err();
    assert!(error.to_string().contains("128 bits"), "{error}");
}

/// Shares and ticks of three gateways whose stamps drift against each other; one of them falls silent at times.
fn stream(seed: u64, length: usize) -> Vec<(EventTime, Body)> {
    let mut random = Random::new(seed);
    let mut clocks = [0_u64; 3];
    let mut now = 0;
    let mut records = Vec::new();
    for number in 0..length as u64 {
        now += random.below(1_500);
        let gateway = random.below(if now / 60_000 % 2 == 0 { 3 } else { 2 });
        let clock = &mut clocks[gateway as usize];
        *clock = (*clock).max(now.saturating_sub(random.below(3_000)));
        let reason = [Reason::Accepted, Reason::Accepted, Reason::Stale, Reason::Duplicate][random.below(4) as usize];
        let body = match random.below(4) {
            0 => Body::Tick(tick(gateway as u32, 1)),
            _ => Body::Verdict(Verdict { gateway: gateway as u32, ..verdict(random.below(9), number, reason) }),
        };
        records.push((at(*clock), body));
    }
    records
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// S2: slices do not depend on where batches end and crashes fall; every share is in exactly one tally.
    #[test]
    fn s2_a_replay_cuts_the_same_slices(seed: u64, length in 1..300_usize, cuts in proptest::collection::vec((0..300_usize, any::<bool>()), 0..5)) {
        let records = stream(seed, length);
        let mut undisturbed = Rig::new(&KIND);
        let expected: Vec<_> = records.iter().flat_map(|(time, body)| undisturbed.give("in", *time, body.clone())).collect();

        let mut rig = Rig::new(&KIND);
        let mut out = Vec::new();
        let (mut done, mut cuts) = (0, cuts);
        cuts.sort_unstable();
        for (cut, crash) in cuts {
            let until = cut.min(length);
            if until <= done {
                continue;
            }
            let sent: Vec<_> = records[done..until].iter().flat_map(|(time, body)| rig.give("in", *time, body.clone())).collect();
            if crash {
                // Nothing was committed: the batch comes again, and its outputs are the same.
                rig.restart(&[]);
                let again: Vec<_> = records[done..until].iter().flat_map(|(time, body)| rig.give("in", *time, body.clone())).collect();
                prop_assert_eq!(&again, &sent);
            }
            rig.commit();
            rig.restart(&[]);
            out.extend(sent);
            done = until;
        }
        out.extend(records[done..].iter().flat_map(|(time, body)| rig.give("in", *time, body.clone())));
        prop_assert_eq!(&out, &expected);

        // Time moves on: then everything has been written, and nothing twice.
        out.extend(tick_of(&mut rig, 0, 10_000_000));
        let counted: u64 = tallies(&out).iter().map(|tally| {
            tally.accepted.iter().map(|at| at.shares).sum::<u64>() + tally.rejected.iter().map(|count| count.shares).sum::<u64>()
        }).sum();
        let shares = records.iter().filter(|(_, body)| matches!(body, Body::Verdict(_))).count();
        prop_assert_eq!(counted, shares as u64);
        let ends = ended(&out);
        prop_assert!(ends.windows(2).all(|pair| pair[0] < pair[1]));
        let mut closed = None;
        for emission in &out {
            match &emission.body {
                Body::Tally(tally) => prop_assert!(closed.is_none_or(|closed| tally.slice > closed), "behind its end"),
                Body::SliceEnd(end) => closed = Some(end.slice),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

#[test]
fn a_cut_ends_a_generation_with_all_that_is_open() {
    let mut rig = Rig::new(&KIND);
    tick_of(&mut rig, 1, 5_000);
    share(&mut rig, 1, 6_000);
    share(&mut rig, 1, 12_000);
    share(&mut rig, 6, 23_000);
    // The newest record of any partition was in the fourth slice.
    let cut = || Body::Cut(Cut { generation: 2, partitions: 8 });
    let out = rig.give("in", at(34_000), cut());
    let expected = |slice, worker: &str| (slice, "account1".to_owned(), worker.to_owned(), 1);
    assert_eq!(counts(&out), [expected(0, "rig1"), expected(1, "rig1"), expected(2, "rig6")]);
    let Body::SliceEnd(end) = &out[out.len() - 1].body else { panic!("{out:?}") };
    assert_eq!((end.slice, end.generation, end.partitions, end.next_partitions), (FIRST + 3, 0, 1, 8));
    assert_eq!(rig.rows("sums"), 0, "nothing is left to be counted");
}

/// A share from the future is counted, in the slice that the generation ends with.
#[test]
fn a_cut_leaves_nothing_behind_its_own_slice() {
    let mut rig = Rig::new(&KIND);
    tick_of(&mut rig, 1, 5_000);
    share(&mut rig, 1, 96_000);
    let out = rig.give("in", at(34_000), Body::Cut(Cut { generation: 2, partitions: 8 }));
    assert_eq!((counts(&out).len(), ended(&out)), (1, vec![9]));
}

#[test]
fn a_generation_begins_behind_the_slice_of_its_cut() {
    let mut rig = Rig::new(&KIND);
    rig.generation = 2;
    // The history: what operators send because of it goes nowhere.
    tick_of(&mut rig, 0, 5_000);
    share(&mut rig, 1, 31_000);
    let out = rig.give("in", at(34_000), Body::Cut(Cut { generation: 2, partitions: 1 }));
    assert_eq!((counts(&out).len(), ended(&out)), (0, vec![3]), "it was counted in the generation before");
    let Body::SliceEnd(end) = &out[0].body else { panic!("{out:?}") };
    assert_eq!((end.generation, end.next_partitions), (2, 0));
    assert_eq!(rig.rows("sums"), 0);
    rig.commit();
    rig.restart(&[("in", 0, 4)]);
    // Received in the slice of the cut, but behind it.
    assert_eq!(share(&mut rig, 1, 35_000), []);
    assert_eq!(tick_of(&mut rig, 0, 41_000), []);
    let out = tick_of(&mut rig, 0, 50_000);
    assert_eq!((counts(&out), ended(&out)), (vec![(4, "account1".into(), "rig1".into(), 1)], vec![4]));
    assert_eq!(tallies(&out)[0].generation, 2);
}
