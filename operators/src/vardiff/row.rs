//! A session's windows, and what they ask for.
//!
//! Shares are summed by their own difficulty, so that sums stay right while a decision waits for the next job. Three
//! rules, in this order:
//!
//! - *Unproven*: a session that has been heard of but has had no accepted share is lowered by 16 every two shares that
//!   it should have had.
//! - *Settling*: the first 12 shares give a first estimate, a quarter more a better one, and so on to about a
//!   hundred: each replaces the one before.
//! - *Change*: a window whose work is off by more than a quarter, and by more than chance explains, becomes the new
//!   beginning of what is known of the session; settling starts again from it. Of several such windows it is the one
//!   that chance explains least.
//!
//! docs/VARDIFF.md tells what became of other rules.

use sluice_mining::Difficulty;
use sluice_proto::EventTime;
use sluice_topology::OperatorError;

use super::Rules;
use crate::codec::damaged;
use crate::rows::Row;

/// Length of a slot, nanoseconds.
const SLOT: u64 = 30_000_000_000;
/// Slots kept: the longest window is 8 minutes.
const SLOTS: usize = 16;
/// Windows that are compared, in whole slots besides the one still running.
const WINDOWS: [usize; 7] = [1, 2, 3, 4, 6, 9, SLOTS - 1];
/// Shares of the first estimate. The next one waits for this part more.
const FIRST: u32 = 12;
const BETTER: u32 = 4;
/// An estimate from this many shares is good to 10 %: only a change replaces it.
const SETTLED: u32 = 100;
/// Squares of the standard deviations that chance explains: more above than below, where it has the longer tail.
const CHANCE_ABOVE: u128 = 16;
const CHANCE_BELOW: u128 = 7;
/// An estimate over less than this, nanoseconds, is at most [`LEAP`] times what is in force: shares also come in bursts.
const HASTY: u64 = 5_000_000_000;
pub(super) const LEAP: u64 = 16;
/// Silence lowers a difficulty to no less than this part of the one that the newest share came at: most who fall silent
/// are switched off, and come back as they were.
pub(super) const PAUSE: u64 = 256;
/// A difficulty that is off by no more than this part of it stays.
const SLIGHT: u64 = 16;
/// Bytes of a slot in a row: a sum and a count.
const SLOT_SIZE: usize = 16 + 4;
/// Bytes of a row before its slots.
const HEAD: usize = 4 + 6 * 8 + 4 + 1;

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Its gateway.
    pub(super) gateway: u32,
    /// Difficulty decided last, in units of 2^-24.
    pub(super) difficulty: u64,
    /// What that was rounded from: the difficulty that its shares asked for.
    measured: u64,
    /// Difficulty of its newest share: what is in force.
    issued: u64,
    /// When the windows began: at the first share, or where a change was found.
    since: EventTime,
    /// When the newest slot began.
    slot: EventTime,
    /// Newest share.
    pub(super) last_share: EventTime,
    /// Shares that the last decision was based on.
    based_on: u32,
    /// The session has had an accepted share.
    proven: bool,
    /// Newest first.
    slots: [Slot; SLOTS],
}

/// What came in a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// Sum of the shares' difficulties, in units.
    sum: u128,
    shares: u32,
}

/// A stretch of time up to now.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Whole slots besides the one still running.
    whole: usize,
    /// Nanoseconds.
    elapsed: u64,
    total: Slot,
}

impl Session {
    /// A session first heard of at `time`, working at `difficulty`.
    pub(super) fn new(gateway: u32, difficulty: u64, time: EventTime) -> Self {
        let difficulty = difficulty.max(1);
        Self {
            gateway,
            difficulty,
            measured: difficulty,
            issued: difficulty,
            since: time,
            slot: time,
            last_share: time,
            based_on: 0,
            proven: false,
            slots: [Slot::default(); SLOTS],
        }
    }

    /// Counts an accepted share of `difficulty`.
    pub(super) fn add(&mut self, time: EventTime, difficulty: u64) {
        self.roll(time);
        self.last_share = self.last_share.max(time);
        // The clock starts with the first share; what came at a far lower difficulty may have been held up by the link.
        let much_harder = difficulty / LEAP >= self.issued;
        self.issued = difficulty.max(1);
        if !self.proven || much_harder {
            self.proven = true;
            self.begin(time);
            return;
        }
        self.slots[0].sum = self.slots[0].sum.saturating_add(u128::from(difficulty));
        self.slots[0].shares = self.slots[0].shares.saturating_add(1);
    }

    /// Begins the windows anew.
    fn begin(&mut self, time: EventTime) {
        self.since = time;
        self.slot = time;
        self.slots = [Slot::default(); SLOTS];
    }

    /// Moves on to the slot that `time` is in.
    fn roll(&mut self, time: EventTime) {
        let passed = time.nanos_since(self.slot) / SLOT;
        if passed == 0 {
            return;
        }
        let shift = usize::try_from(passed).unwrap_or(SLOTS).min(SLOTS);
        self.slots.rotate_right(shift);
        self.slots[..shift].fill(Slot::default());
        self.slot = EventTime::from_nanos(self.slot.nanos() + passed * SLOT);
    }

    /// Decides on another difficulty, if the windows ask for one.
    pub(super) fn decide(&mut self, rules: &Rules, time: EventTime) -> Option<u64> {
        self.roll(time);
        if !self.proven {
            let silent = expected_milli(rules, time.nanos_since(self.since)) >= 2_000;
            let lower = silent.then_some(self.measured / 16)?;
            self.begin(time);
            return self.move_to(lower, rules);
        }
        let all = self.window(SLOTS - 1, time);
        let settling = self.based_on < SETTLED && all.total.shares >= FIRST.max(self.based_on + self.based_on / BETTER);
        let window = if settling { all } else { self.changed(rules, time)? };
        let estimate = self.estimate(&window, rules);
        self.based_on = window.total.shares;
        match window.total.shares {
            // The silence has had its answer: another one must be as long.
            0 => self.begin(time),
            _ => self.forget_before(&window, time),
        }
        self.move_to(estimate.max(self.issued / PAUSE), rules)
    }

    /// Of the windows that are off by more than chance explains, the one that chance explains least: it begins nearest to
    /// the change.
    fn changed(&self, rules: &Rules, time: EventTime) -> Option<Window> {
        let lived = time.nanos_since(self.since);
        // Each is the one before and the slots between.
        let mut last: Option<Window> = None;
        let windows = WINDOWS.into_iter().map(|whole| {
            let window = match last {
                Some(last) => Window { total: self.sum(last.total, last.whole + 1, whole), ..self.spread(whole, time) },
                None => self.window(whole, time),
            };
            *last.insert(window)
        });
        let off = windows
            .filter(|window| window.elapsed >= SLOT.min(lived))
            .filter_map(|window| Some((self.is_off(&window, rules)?, window)));
        off.fold(None, |most: Option<(u128, Window)>, next| match most {
            Some(most) if most.0 >= next.0 => Some(most),
            _ => Some(next),
        })
        .map(|(_, window)| window)
    }

    /// Compares the shares of a window, counted at the difficulty they came at, with how many there should be. The square
    /// of the standard deviations between them, in thousandths, if chance does not explain them.
    fn is_off(&self, window: &Window, rules: &Rules) -> Option<u128> {
        let shares = u128::from(window.total.shares);
        let each = match window.total.sum {
            _ if shares == 0 => self.difficulty,
            // As nearly always: all of them came at the difficulty in force.
            sum if sum == shares * u128::from(self.issued) => self.issued,
            sum => u64::try_from(divide(sum, shares)).unwrap_or(u64::MAX).max(1),
        };
        // In thousandths of a share, of which each counts `each`.
        let due = times(expected_milli(rules, window.elapsed), self.measured);
        // Off by no more than a quarter: most windows end here, before the divisions.
        if due >= times(800 * shares, each) && due < times(4_000 * shares / 3 + 1, each) {
            return None;
        }
        // In thousandths of a share.
        let came = shares * 1_000;
        let expected = divide(due, u128::from(each));
        let difference = came.abs_diff(expected);
        let (enough, chance) = if came > expected {
            (came >= u128::from(FIRST) * 1_000, CHANCE_ABOVE)
        } else {
            (expected >= CHANCE_BELOW * 1_000, CHANCE_BELOW)
        };
        if !enough || difference.saturating_mul(4) <= expected {
            return None;
        }
        let square = divide(difference.saturating_mul(difference), expected.max(1));
        (square > chance * 1_000).then_some(square)
    }

    /// The difficulty at which the share rate of a window would be the wanted one.
    fn estimate(&self, window: &Window, rules: &Rules) -> u64 {
        // No share at all: as if one were just about to come.
        let mut sum = window.total.sum.max(u128::from(self.difficulty));
        if self.based_on < SETTLED {
            // Half a share less: a window ends where it says most, and what is too easy is soon known better.
            sum -= sum / (2 * u128::from(window.total.shares.max(1)));
        }
        let measured = sum.saturating_mul(1_000) / expected_milli(rules, window.elapsed).max(1);
        let measured = u64::try_from(measured).unwrap_or(u64::MAX);
        if window.elapsed < HASTY { measured.min(self.issued.saturating_mul(LEAP)) } else { measured }
    }

    /// Takes on the nearest difficulty that may be given out, if it is another one.
    fn move_to(&mut self, measured: u64, rules: &Rules) -> Option<u64> {
        self.measured = measured.max(1);
        let allowed = Difficulty::from_units(self.measured)?.round_to_allowed().clamp(rules.min, rules.max).units();
        if allowed.abs_diff(self.difficulty) <= self.difficulty / SLIGHT {
            return None;
        }
        self.difficulty = allowed;
        Some(allowed)
    }

    /// The last `whole` slots and the running one, as far as the session is known.
    fn window(&self, whole: usize, time: EventTime) -> Window {
        Window { total: self.sum(Slot::default(), 0, whole), ..self.spread(whole, time) }
    }

    /// A window with nothing in it yet.
    fn spread(&self, whole: usize, time: EventTime) -> Window {
        let known = (whole as u64).saturating_mul(SLOT).min(self.slot.nanos_since(self.since));
        Window { whole, elapsed: known + time.nanos_since(self.slot), total: Slot::default() }
    }

    /// `total` with the slots from `first` to `last`.
    fn sum(&self, total: Slot, first: usize, last: usize) -> Slot {
        self.slots[first..=last].iter().fold(total, |total, slot| Slot {
            sum: total.sum.saturating_add(slot.sum),
            shares: total.shares.saturating_add(slot.shares),
        })
    }

    /// Forgets what came before a window.
    fn forget_before(&mut self, window: &Window, time: EventTime) {
        self.since = EventTime::from_nanos(time.nanos().saturating_sub(window.elapsed));
        self.slots[window.whole + 1..].fill(Slot::default());
    }
}

impl Row for Session {
    fn read(row: &[u8]) -> Result<Self, OperatorError> {
        let (head, rest) = row.split_first_chunk::<HEAD>().ok_or_else(|| damaged(row))?;
        let (stored, []) = rest.as_chunks::<SLOT_SIZE>() else { return Err(damaged(row)) };
        if stored.len() > SLOTS {
            return Err(damaged(row));
        }
        let mut slots = [Slot::default(); SLOTS];
        for (slot, stored) in slots.iter_mut().zip(stored) {
            *slot = Slot { sum: u128::from_be_bytes(part(stored, 0)), shares: u32::from_be_bytes(part(stored, 16)) };
        }
        let word = |at: usize| u64::from_be_bytes(part(head, at));
        Ok(Self {
            gateway: u32::from_be_bytes(part(head, 0)),
            difficulty: word(4).max(1),
            measured: word(12).max(1),
            issued: word(20).max(1),
            since: EventTime::from_nanos(word(28)),
            slot: EventTime::from_nanos(word(36)),
            last_share: EventTime::from_nanos(word(44)),
            based_on: u32::from_be_bytes(part(head, 52)),
            proven: head[56] != 0,
            slots,
        })
    }

    /// Empty slots at the end are left out.
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.gateway.to_be_bytes());
        let times = [self.since, self.slot, self.last_share].map(EventTime::nanos);
        for word in [self.difficulty, self.measured, self.issued].into_iter().chain(times) {
            to.extend_from_slice(&word.to_be_bytes());
        }
        to.extend_from_slice(&self.based_on.to_be_bytes());
        to.push(u8::from(self.proven));
        let used = self.slots.iter().rposition(|slot| *slot != Slot::default()).map_or(0, |last| last + 1);
        for slot in &self.slots[..used] {
            to.extend_from_slice(&slot.sum.to_be_bytes());
            to.extend_from_slice(&slot.shares.to_be_bytes());
        }
    }
}

/// The `N` bytes of a row from `at` on.
fn part<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&row[at..at + N]);
    part
}

/// Thousandths of a share expected in `elapsed` nanoseconds at the wanted rate.
fn expected_milli(rules: &Rules, elapsed: u64) -> u128 {
    divide(u128::from(elapsed) * rules.per_minute, 60_000_000)
}

/// `of * by`, in 64 bits and 128 where they are enough, as nearly always.
fn times(of: u128, by: u64) -> u128 {
    match u64::try_from(of) {
        Ok(of) => u128::from(of) * u128::from(by),
        _ => of.saturating_mul(u128::from(by)),
    }
}

/// `of / by`, in 64 bits where they are enough, as nearly always: every share has a dozen such divisions.
fn divide(of: u128, by: u128) -> u128 {
    match (u64::try_from(of), u64::try_from(by)) {
        (Ok(of), Ok(by)) => u128::from(of / by),
        _ => of / by,
    }
}
