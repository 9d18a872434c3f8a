//! Single rules and rows here; what DESIGN 6 promises in `promises`, with miners simulated in event time.

mod figures;
mod promises;
mod simulation;

use proptest::prelude::*;
use sluice_proto::Body;
use sluice_proto::v1::{DifficultyTarget, Reason, Verdict};
use sluice_topology::SettingValue;

use super::row::{LEAP, PAUSE};
use super::*;
use crate::rows::Row;
use crate::testing::Rig;
use crate::testing::records::{at, tick, verdict};
use simulation::Simulation;

/// A stall of the network hands over many shares at once: that is no hash rate.
#[test]
fn a_burst_after_a_silence_is_no_hash_rate() {
    for seed in 0..60 {
        let mut miner = Simulation::started(seed, 1e14);
        miner.run_until(900.0);
        let decided = miner.decided;
        miner.receive_at_once(8);
        assert!(miner.decided < decided * 3, "{} after {decided}", miner.decided);
    }
}

/// Shares that come within seconds say little, however often they are asked: their estimates do not build on each other.
#[test]
fn a_burst_of_any_length_raises_a_difficulty_once() {
    for seed in 0..60 {
        let mut miner = Simulation::new(seed, 1.0, Difficulty::ONE.units());
        miner.receive_at_once(2_000);
        assert!(miner.decided <= LEAP << 24, "{}", miner.decided);
    }
}

/// Whoever is switched off for long comes back as it was: its difficulty must not have become a flood.
#[test]
fn silence_lowers_a_difficulty_only_so_far() {
    let mut miner = Simulation::started(5, 1e14);
    miner.run_until(900.0);
    let before = miner.decided;
    miner.hash_rate = 1.0;
    miner.run_until(3_000.0);
    assert!((before / PAUSE / 2..=before / PAUSE * 2).contains(&miner.decided), "{before}, then {}", miner.decided);
}

/// Difficulties decided by a session that is asked every second for `seconds`, with a verdict every so many.
fn decided(rig: &mut Rig, seconds: u64, every: u64, verdict_of: impl Fn(u64) -> Verdict) -> Vec<u64> {
    let mut all = Vec::new();
    for second in 0..seconds {
        let mut out = Vec::new();
        if second.is_multiple_of(every) {
            out.extend(rig.give("in", at(second * 1_000), Body::Verdict(verdict_of(second))));
        }
        out.extend(rig.give("in", at(second * 1_000), Body::Tick(tick(1, 1))));
        all.extend(out.into_iter().map(|emission| match emission.body {
            Body::DifficultyTarget(DifficultyTarget { difficulty, .. }) => difficulty,
            other => panic!("{other:?}"),
        }));
    }
    all
}

/// A session heard of without an accepted share works at a difficulty far above it.
#[test]
fn a_session_without_a_share_is_lowered_until_it_has_one() {
    let mut rig = Rig::new(&KIND);
    let first = 1_024 << 24;
    let wrong = |number| Verdict { difficulty: first, ..verdict(4, number, Reason::LowDifficulty) };
    let all = decided(&mut rig, 95, 30, wrong);
    assert_eq!(all[..3], [first / 16, first / 256, first / 4_096]);
    assert_eq!(*all.last().unwrap(), 1, "the pool's minimum in a minute and a half");
    let still = decided(&mut rig, 10, 60, |number| Verdict { difficulty: 1, ..verdict(4, number, Reason::Stale) });
    assert_eq!(still, [0_u64; 0]);
}

#[test]
fn a_session_that_falls_silent_is_lowered_step_by_step() {
    let mut miner = Simulation::started(1, 1e14);
    miner.run_until(900.0);
    let before = miner.decided;
    miner.hash_rate = 1.0;
    miner.run_until(1_000.0);
    assert!((before / 2_000..before / 5).contains(&miner.decided), "{before}, then {}", miner.decided);
}

#[test]
fn bounds_are_kept() {
    let text = |text: &str| SettingValue::Text(text.into());
    let settings = [
        ("min_difficulty", text("0.5")),
        ("max_difficulty", text("4096")),
        ("shares_per_minute", SettingValue::Integer(60)),
    ];
    for (hash_rate, bound) in [(1e18, 4_096_u64 << 24), (0.5e6, 1 << 23)] {
        let mut miner = Simulation::started(3, hash_rate).with(&settings);
        for second in 1..600 {
            miner.run_until(f64::from(second));
            assert!((1 << 23..=4_096 << 24).contains(&miner.decided) || miner.decisions == 0, "{}", miner.decided);
        }
        assert_eq!(miner.decided, bound);
    }
    for (min, max) in [("5", "4"), ("0", "4"), ("1", "many")] {
        let settings =
            crate::testing::settings_of(&KIND, &[("min_difficulty", text(min)), ("max_difficulty", text(max))]);
        assert!(crate::testing::build(&KIND, &settings, &Default::default()).is_err(), "{min} {max}");
    }
}

#[test]
fn rejected_shares_are_no_work() {
    let mut rig = Rig::new(&KIND);
    let accepted = |number| Verdict { difficulty: 1 << 24, ..verdict(4, number, Reason::Accepted) };
    decided(&mut rig, 300, 3, accepted);
    let difficulty = |rig: &Rig| {
        Session::read(&rig.reader().get("vardiff.sessions", &4_u64.to_be_bytes()).unwrap().unwrap()).unwrap()
    };
    rig.commit();
    let before = difficulty(&rig);
    for number in 0..500 {
        let reason = [Reason::Duplicate, Reason::Stale, Reason::LowDifficulty][number as usize % 3];
        let out =
            rig.give("in", at(300_000), Body::Verdict(Verdict { difficulty: 1 << 24, ..verdict(4, number, reason) }));
        assert_eq!(out, []);
    }
    rig.commit();
    assert_eq!(difficulty(&rig).last_share, before.last_share);
    assert_eq!(difficulty(&rig).difficulty, before.difficulty);
}

#[test]
fn a_session_is_forgotten_an_hour_after_its_last_share() {
    let mut rig = Rig::new(&KIND);
    let _ = decided(&mut rig, 60, 3, |number| Verdict { difficulty: 1, ..verdict(4, number, Reason::Accepted) });
    assert_eq!(rig.rows("sessions"), 1);
    rig.give("in", at(3_600_000), Body::Tick(tick(1, 1)));
    assert_eq!(rig.rows("sessions"), 1);
    rig.give("in", at(3_660_000), Body::Tick(tick(1, 1)));
    assert_eq!(rig.rows("sessions"), 0);
}

proptest! {
    #[test]
    fn rows_are_read_back(gateway: u32, difficulty: u64, shares in proptest::collection::vec((0..100_u64, 1..=u64::MAX), 0..60)) {
        let mut session = Session::new(gateway, difficulty, at(0));
        let mut now = 0;
        for (wait, difficulty) in shares {
            now += wait;
            session.add(at(now * 1_000), difficulty);
        }
        let mut row = Vec::new();
        session.write(&mut row);
        prop_assert_eq!(Session::read(&row).unwrap(), session);
    }

    #[test]
    fn damaged_rows_are_errors(row in proptest::collection::vec(any::<u8>(), 0..400)) {
        // 57 bytes, and up to 16 slots of 20.
        let slots = row.len().checked_sub(57).filter(|rest| rest % 20 == 0).map(|rest| rest / 20);
        prop_assert_eq!(Session::read(&row).is_ok(), slots.is_some_and(|slots| slots <= 16));
    }
}
