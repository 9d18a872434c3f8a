//! A session's windows, and what they ask for.

use sluice_mining::Difficulty;
use sluice_proto::EventTime;
use sluice_topology::OperatorError;

use super::Rules;
use crate::codec::damaged;

/// Length of a slot, nanoseconds.
const SLOT: u64 = 20_000_000_000;
/// Slots kept: the longest window is 4 minutes.
const SLOTS: usize = 12;
/// Windows that are compared, in whole slots besides the one still running.
const WINDOWS: [usize; 5] = [0, 2, 5, 8, SLOTS - 1];
/// Bytes of a row.
const SIZE: usize = 4 + 8 + 8 + 8 + 8 + 1 + 16 * SLOTS;

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Its gateway.
    pub(super) gateway: u32,
    /// Difficulty decided last, in units of 2^-24.
    pub(super) difficulty: u64,
    /// When the windows began: at the first share, or the last decision.
    since: EventTime,
    /// When the newest slot began.
    slot: EventTime,
    /// Newest share.
    pub(super) last_share: EventTime,
    /// The session has had an accepted share.
    proven: bool,
    /// Sums of difficulty per slot, newest first, in units.
    sums: [u128; SLOTS],
}

impl Session {
    /// A session first heard of at `time`, working at `difficulty`.
    pub(super) fn new(gateway: u32, difficulty: u64, time: EventTime) -> Self {
        let difficulty = difficulty.max(1);
        Self { gateway, difficulty, since: time, slot: time, last_share: time, proven: false, sums: [0; SLOTS] }
    }

    /// Counts an accepted share of `difficulty`.
    pub(super) fn add(&mut self, time: EventTime, difficulty: u64) {
        self.roll(time);
        self.proven = true;
        self.last_share = self.last_share.max(time);
        self.sums[0] = self.sums[0].saturating_add(u128::from(difficulty));
    }

    /// Begins again at a new difficulty.
    pub(super) fn restart(&mut self, difficulty: u64, time: EventTime) {
        self.difficulty = difficulty;
        self.since = time;
        self.slot = time;
        self.sums = [0; SLOTS];
    }

    /// Moves on to the slot that `time` is in.
    fn roll(&mut self, time: EventTime) {
        let passed = time.nanos_since(self.slot) / SLOT;
        if passed == 0 {
            return;
        }
        let shift = usize::try_from(passed).unwrap_or(SLOTS).min(SLOTS);
        self.sums.rotate_right(shift);
        self.sums[..shift].fill(0);
        self.slot = EventTime::from_nanos(self.slot.nanos() + passed * SLOT);
    }

    /// The difficulty the windows ask for, if it is another one.
    pub(super) fn wanted(&mut self, rules: &Rules, time: EventTime) -> Option<u64> {
        self.roll(time);
        let unproven = !self.proven && expected_milli(rules, time.nanos_since(self.since)) >= 2_000;
        let measured = if unproven { Some(u128::from(self.difficulty / 16)) } else { self.measured(rules, time) };
        let measured = u64::try_from(measured?).unwrap_or(u64::MAX).max(1);
        let allowed = Difficulty::from_units(measured)?.floor_to_allowed().clamp(rules.min, rules.max).units();
        (allowed != self.difficulty).then_some(allowed)
    }

    /// The difficulty at which the share rate would be the wanted one, where the difference is no chance.
    fn measured(&self, rules: &Rules, time: EventTime) -> Option<u128> {
        let running = time.nanos_since(self.slot);
        WINDOWS.iter().find_map(|slots| {
            let whole = (*slots as u64).saturating_mul(SLOT).min(self.slot.nanos_since(self.since));
            let elapsed = whole + running;
            let sum: u128 = self.sums[..=*slots].iter().fold(0, |sum, slot| sum.saturating_add(*slot));
            // Shares at the difficulty decided last, and how many there should be, in thousandths.
            let shares = sum.saturating_mul(1000) / u128::from(self.difficulty);
            let expected = expected_milli(rules, elapsed);
            let difference = shares.abs_diff(expected);
            let by_chance = difference.saturating_mul(difference) <= 11_000 * expected.max(1_000);
            let slight = difference * 4 <= expected;
            let few = shares < 6_000 && expected < 6_000;
            if by_chance || slight || few {
                return None;
            }
            // No share at all: as if one were just about to come.
            let sum = sum.max(u128::from(self.difficulty));
            Some(sum.saturating_mul(1000) / expected.max(1))
        })
    }

    pub(super) fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&self.gateway.to_be_bytes());
        let times = [self.difficulty, self.since.nanos(), self.slot.nanos(), self.last_share.nanos()];
        for (to, value) in bytes[4..36].chunks_mut(8).zip(times) {
            to.copy_from_slice(&value.to_be_bytes());
        }
        bytes[36] = u8::from(self.proven);
        for (to, sum) in bytes[37..].chunks_mut(16).zip(self.sums) {
            to.copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    pub(super) fn read(row: &[u8]) -> Result<Self, OperatorError> {
        let bytes: &[u8; SIZE] = row.try_into().map_err(|_| damaged(row))?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let mut sums = [0; SLOTS];
        for (number, sum) in sums.iter_mut().enumerate() {
            let at = 37 + 16 * number;
            *sum = (u128::from(word(at)) << 64) | u128::from(word(at + 8));
        }
        Ok(Self {
            gateway: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            difficulty: word(4).max(1),
            since: EventTime::from_nanos(word(12)),
            slot: EventTime::from_nanos(word(20)),
            last_share: EventTime::from_nanos(word(28)),
            proven: bytes[36] != 0,
            sums,
        })
    }
}

/// Thousandths of a share expected in `elapsed` nanoseconds at the wanted rate.
fn expected_milli(rules: &Rules, elapsed: u64) -> u128 {
    u128::from(elapsed) * rules.per_minute / 60_000_000
}
