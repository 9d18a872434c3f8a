//! What the outputs must be: the same rules once more, as plainly as they can be told, over shares in memory.
//!
//! Nothing here is shared with the operators. `dedupe` is a set; `vardiff` is the rules of docs/VARDIFF.md, without the short
//! cuts that make them cheap.

use std::collections::{BTreeMap, HashMap, HashSet};

use sluice_mining::Difficulty;

use crate::input::Share;

const SLOT: u64 = 30_000_000_000;
const SLOTS: usize = 16;
const WINDOWS: [usize; 7] = [1, 2, 3, 4, 6, 9, 15];
/// The settings' defaults: 20 shares a minute, from 1e-7 to 1e12.
const PER_MINUTE: u128 = 20;
const MINIMUM: &str = "0.0000001";
const MAXIMUM: &str = "1000000000000";

/// A decision of vardiff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    pub time: u64,
    pub difficulty: u64,
}

/// What is to come out.
#[derive(Default)]
pub struct Truth {
    /// By number of the share, from 1: whether it repeats an earlier one.
    pub duplicate: Vec<bool>,
    /// By session, in their order.
    pub decisions: HashMap<u64, Vec<Decision>>,
}

impl Truth {
    /// Of these shares, which are in the order of their time.
    pub fn of(shares: &[Share]) -> Self {
        let (mut seen, mut sessions) = (BTreeMap::<u64, HashSet<&[u8]>>::new(), HashMap::<u64, Session>::new());
        let mut truth = Self { duplicate: vec![false], decisions: HashMap::new() };
        for Share { time, verdict } in shares {
            seen = seen.split_off(&verdict.live_from_job);
            let new = seen.entry(verdict.job_id).or_default().insert(&verdict.header_hash);
            truth.duplicate.push(!new);
            let session =
                sessions.entry(verdict.session).or_insert_with(|| Session::new(verdict.difficulty, time.nanos()));
            if new {
                session.add(time.nanos(), verdict.difficulty);
            }
            if let Some(difficulty) = session.decide(time.nanos()) {
                let decisions = truth.decisions.entry(verdict.session).or_default();
                decisions.push(Decision { time: time.nanos(), difficulty });
            }
        }
        truth
    }

    /// How many shares repeat others.
    pub fn duplicates(&self) -> u64 {
        self.duplicate.iter().filter(|duplicate| **duplicate).count() as u64
    }

    /// How many decisions there are.
    pub fn decided(&self) -> u64 {
        self.decisions.values().map(|of| of.len() as u64).sum()
    }
}

/// What is known of a session.
struct Session {
    decided: u64,
    measured: u64,
    issued: u64,
    since: u64,
    slot: u64,
    based_on: u128,
    proven: bool,
    /// Sum of difficulties and number of shares, newest first.
    slots: [(u128, u128); SLOTS],
}

/// The newest slots together.
struct Window {
    whole: usize,
    elapsed: u64,
    sum: u128,
    shares: u128,
}

impl Session {
    fn new(difficulty: u64, time: u64) -> Self {
        let (decided, measured, issued) = (difficulty, difficulty, difficulty);
        let slots = [(0, 0); SLOTS];
        Self { decided, measured, issued, since: time, slot: time, based_on: 0, proven: false, slots }
    }

    fn roll(&mut self, time: u64) {
        while time.saturating_sub(self.slot) >= SLOT {
            self.slots.rotate_right(1);
            self.slots[0] = (0, 0);
            self.slot += SLOT;
        }
    }

    fn begin(&mut self, time: u64) {
        (self.since, self.slot, self.slots) = (time, time, [(0, 0); SLOTS]);
    }

    fn add(&mut self, time: u64, difficulty: u64) {
        self.roll(time);
        let much_harder = difficulty / 16 >= self.issued;
        self.issued = difficulty;
        if !self.proven || much_harder {
            self.proven = true;
            self.begin(time);
        } else {
            self.slots[0].0 += u128::from(difficulty);
            self.slots[0].1 += 1;
        }
    }

    fn window(&self, whole: usize, time: u64) -> Window {
        let known = (whole as u64 * SLOT).min(self.slot - self.since);
        let (sum, shares) = self.slots[..=whole].iter().fold((0, 0), |all, slot| (all.0 + slot.0, all.1 + slot.1));
        Window { whole, elapsed: known + time.saturating_sub(self.slot), sum, shares }
    }

    fn decide(&mut self, time: u64) -> Option<u64> {
        self.roll(time);
        if !self.proven {
            if expected_milli(time.saturating_sub(self.since)) < 2_000 {
                return None;
            }
            self.begin(time);
            return self.move_to(self.measured / 16);
        }
        let all = self.window(SLOTS - 1, time);
        let settling = self.based_on < 100 && all.shares >= (self.based_on + self.based_on / 4).max(12);
        let window = if settling { all } else { self.most_off(time)? };
        let estimate = self.estimate(&window);
        self.based_on = window.shares;
        if window.shares == 0 {
            self.begin(time);
        } else {
            self.since = time - window.elapsed;
            self.slots[window.whole + 1..].fill((0, 0));
        }
        self.move_to(estimate.max(self.issued / 256))
    }

    /// The first of the windows that chance explains least, if there is one that it does not explain.
    fn most_off(&self, time: u64) -> Option<Window> {
        let least = SLOT.min(time.saturating_sub(self.since));
        let windows = WINDOWS.into_iter().map(|whole| self.window(whole, time));
        let off = windows.filter(|window| window.elapsed >= least).filter_map(|it| Some((self.off(&it)?, it)));
        off.reduce(|most, next| if next.0 > most.0 { next } else { most }).map(|(_, window)| window)
    }

    fn off(&self, window: &Window) -> Option<u128> {
        let each = window.sum.checked_div(window.shares).map_or(u128::from(self.decided), |each| each.max(1));
        let expected = expected_milli(window.elapsed) * u128::from(self.measured) / each;
        let came = window.shares * 1_000;
        let difference = came.abs_diff(expected);
        let (enough, chance) = if came > expected { (came >= 12_000, 16_000) } else { (expected >= 7_000, 7_000) };
        let square = difference * difference / expected.max(1);
        (enough && difference * 4 > expected && square > chance).then_some(square)
    }

    fn estimate(&self, window: &Window) -> u64 {
        let mut sum = window.sum.max(u128::from(self.decided));
        if self.based_on < 100 {
            sum -= sum / (2 * window.shares.max(1));
        }
        let measured = (sum * 1_000 / expected_milli(window.elapsed).max(1)) as u64;
        if window.elapsed < 5_000_000_000 { measured.min(self.issued * 16) } else { measured }
    }

    fn move_to(&mut self, measured: u64) -> Option<u64> {
        self.measured = measured.max(1);
        let limit = |text| Difficulty::parse_wire(text);
        let nearest = Difficulty::from_units(self.measured)?.round_to_allowed();
        let allowed = nearest.clamp(limit(MINIMUM)?, limit(MAXIMUM)?).units();
        if allowed.abs_diff(self.decided) <= self.decided / 16 {
            return None;
        }
        self.decided = allowed;
        Some(allowed)
    }
}

/// Thousandths of a share that are wanted in this time.
fn expected_milli(elapsed: u64) -> u128 {
    u128::from(elapsed) * PER_MINUTE / 60_000_000
}
