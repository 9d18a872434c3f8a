//! Share difficulty (docs/adr/0005).

use std::fmt;
use std::time::Duration;

use ruint::aliases::U256;

use crate::{Target, Work};

/// Bits behind the point.
const FRACTION: u32 = 24;
/// Difficulty 1 in units.
const ONE: u64 = 1 << FRACTION;
/// How long a session works at a difficulty without its first share before the next job is easier (DESIGN 6): vardiff
/// knows of a session only from its shares.
pub const SILENCE: Duration = Duration::from_secs(20);
/// By how much: two steps lead from 1024 to what suits 1 MH/s, and are made within 70 s where jobs come every 30 s. Who
/// had half a chance of a share in this time gets about 200 a second until the job after.
const EASED_BY: u64 = 2_048;
/// But not below 2^-13, a share a second at 0.5 MH/s: a machine that wakes up later must not flood the pool.
const EASIEST: u64 = ONE >> 13;

/// A difficulty ("bdiff": difficulty 1 is the target 0xffff * 2^208), as a number of 2^-24, never zero.
///
/// What the pool hands out is *allowed*: a whole number from 1 up, or below 1 one of the four steps from a power of two to
/// the next (4, 5, 6 or 7 times a power of two). Those print exactly, and every float of a firmware holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difficulty(u64);

impl Difficulty {
    /// The smallest: 2^-24, about 256 hashes a share.
    pub const MIN: Self = Self(1);
    /// Difficulty 1: about 2^32 hashes a share.
    pub const ONE: Self = Self(ONE);
    /// The largest allowed, about 1.1 * 10^12.
    pub const MAX: Self = Self(u64::MAX - (ONE - 1));

    /// From a number of 2^-24; `None` for zero.
    pub const fn from_units(units: u64) -> Option<Self> {
        if units == 0 { None } else { Some(Self(units)) }
    }

    /// The number of 2^-24.
    pub const fn units(self) -> u64 {
        self.0
    }

    /// A whole number; `None` for zero and above [`Difficulty::MAX`].
    pub const fn from_integer(value: u64) -> Option<Self> {
        match value.checked_mul(ONE) {
            Some(units) => Self::from_units(units),
            None => None,
        }
    }

    /// From this difficulty to the next allowed one, in units, where it is allowed itself.
    const fn step(self) -> u64 {
        if self.0 >= ONE { ONE } else { 1 << 61_u32.saturating_sub(self.0.leading_zeros()) }
    }

    /// The largest allowed difficulty not above this one.
    #[must_use]
    pub const fn floor_to_allowed(self) -> Self {
        Self(self.0 & !(self.step() - 1))
    }

    /// The nearest allowed difficulty, by ratio; the higher one of two that are as near.
    #[must_use]
    pub fn round_to_allowed(self) -> Self {
        let below = self.floor_to_allowed();
        let above = Self(below.0.saturating_add(below.step())).min(Self::MAX);
        let squared = u128::from(self.0) * u128::from(self.0);
        if squared >= u128::from(below.0) * u128::from(above.0) { above } else { below }
    }

    /// What comes after [`SILENCE`] at this difficulty without a session's first share.
    #[must_use]
    pub const fn eased(self) -> Self {
        let eased = if self.0 / EASED_BY > EASIEST { self.0 / EASED_BY } else { EASIEST };
        if eased < self.0 { Self(eased).floor_to_allowed() } else { self }
    }

    /// Reads a decimal as miners and people write it (`1000`, `0.00015`, `1e-3`), rounded down to an allowed
    /// difficulty and into the range from [`Difficulty::MIN`] to [`Difficulty::MAX`]. `None` if it is no number above 0.
    pub fn parse_wire(text: &str) -> Option<Self> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        if whole.is_empty() || !digits().all(|digit| digit.is_ascii_digit()) || digits().count() > 40 {
            return None;
        }
        let mantissa = digits().fold(U256::ZERO, |sum, digit| sum * U256::from(10) + U256::from(digit - b'0'));
        if mantissa.is_zero() {
            return None;
        }
        let scale = exponent.saturating_sub(i32::try_from(fraction.len()).ok()?);
        let units = match usize::try_from(scale.unsigned_abs()).ok()? {
            power if power > 60 => {
                if scale > 0 {
                    U256::MAX
                } else {
                    U256::ZERO
                }
            }
            power => {
                let power = U256::from(10).pow(U256::from(power));
                let shifted = mantissa << FRACTION as usize;
                if scale > 0 { shifted.saturating_mul(power) } else { shifted / power }
            }
        };
        let units = u64::try_from(units).unwrap_or(u64::MAX).max(1);
        Some(Self(units).floor_to_allowed().min(Self::MAX))
    }

    /// The target a hash must not exceed: floor(0xffff * 2^208 / difficulty).
    pub fn to_target(self) -> Target {
        Target::from_u256((U256::from(0xffff) << (208 + FRACTION as usize)) / U256::from(self.0))
    }

    /// Expected hashes of a share.
    pub fn work(self) -> Work {
        self.to_target().work()
    }

    /// The largest difficulty whose target is not below `target`.
    pub fn of_target(target: Target) -> Self {
        let units = (U256::from(0xffff) << (208 + FRACTION as usize)) / target.to_u256();
        Self(u64::try_from(units).unwrap_or(u64::MAX).max(1))
    }
}

/// A difficulty as shares are issued with it, and what judging them divides for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The difficulty.
    pub difficulty: Difficulty,
    /// The target that a share's hash must not exceed.
    pub target: Target,
    /// Work of a share.
    pub work: Work,
}

impl Issued {
    /// That of this many units; [`Difficulty::MIN`] for zero, which nobody issues.
    pub fn of(units: u64) -> Self {
        let difficulty = Difficulty::from_units(units).unwrap_or(Difficulty::MIN);
        let target = difficulty.to_target();
        Self { difficulty, target, work: target.work() }
    }
}

/// Difficulties that shares came with, each divided for once while it is in use: many sessions share few of them.
#[derive(Clone, Debug)]
pub struct IssuedCache(Box<[Issued; IssuedCache::PLACES]>);

impl IssuedCache {
    /// 16 KiB.
    const PLACES: usize = 256;

    /// That of this many units, as [`Issued::of`].
    pub fn of(&mut self, units: u64) -> Issued {
        let place = &mut self.0[(units.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize];
        if place.difficulty.0 != units {
            *place = Issued::of(units);
        }
        *place
    }
}

impl Default for IssuedCache {
    fn default() -> Self {
        Self(Box::new([Issued::of(Difficulty::MIN.0); Self::PLACES]))
    }
}

/// The exact decimal: what goes on the wire.
impl fmt::Display for Difficulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 >> FRACTION)?;
        let mut rest = self.0 & (ONE - 1);
        if rest != 0 {
            f.write_str(".")?;
        }
        while rest != 0 {
            rest *= 10;
            write!(f, "{}", rest >> FRACTION)?;
            rest &= ONE - 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> String {
        Difficulty::parse_wire(text).map_or("none".into(), |difficulty| difficulty.to_string())
    }

    #[test]
    fn trap_11_difficulty_one_is_bdiff() {
        assert_eq!(Difficulty::ONE.to_target(), Target::from_compact(0x1d00_ffff).unwrap());
        assert_eq!(Difficulty::ONE.work().get(), 0x1_0001_0001);
    }

    #[test]
    fn trap_11_wire_numbers_are_rounded_down_to_what_prints_exactly() {
        for (text, wire) in [
            ("1", "1"),
            ("931.1", "931"),
            ("16384", "16384"),
            ("0.00015", "0.0001220703125"),
            ("1e-3", "0.0009765625"),
            ("2.5E3", "2500"),
            ("1e300", "1099511627775"),
            ("0.000000000000001", "0.000000059604644775390625"),
            ("0", "none"),
            ("0.0", "none"),
            ("-5", "none"),
            ("", "none"),
            (".5", "none"),
            ("0x10", "none"),
            ("nan", "none"),
        ] {
            assert_eq!(parse(text), wire, "{text:?}");
        }
    }

    #[test]
    fn a_difficulty_divided_for_before_is_the_same() {
        let mut cache = IssuedCache::default();
        for units in (0..2_000).chain([ONE, u64::MAX]).chain(0..2_000) {
            assert_eq!(cache.of(units), Issued::of(units));
        }
        assert_eq!(cache.of(0).difficulty, Difficulty::MIN);
    }

    #[test]
    fn below_1_there_are_four_steps_to_a_power_of_two() {
        let allowed = |range: std::ops::Range<u64>| {
            let all: std::collections::BTreeSet<u64> =
                range.map(|units| Difficulty::from_units(units).unwrap().floor_to_allowed().units()).collect();
            all.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(allowed(1..20), [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]);
        assert_eq!(allowed(ONE / 2..ONE * 5 / 4), [ONE / 2, ONE / 8 * 5, ONE / 8 * 6, ONE / 8 * 7, ONE]);
        let rounded = |units: u64| Difficulty::from_units(units).unwrap().round_to_allowed().units();
        assert_eq!([17, 18, 19].map(rounded), [16, 20, 20], "by ratio");
        assert_eq!([141, 142].map(|hundredths| rounded(ONE / 100 * hundredths)), [ONE, 2 * ONE]);
        assert_eq!(rounded(u64::MAX), Difficulty::MAX.units());
    }

    #[test]
    fn silence_leads_from_the_default_to_a_hobby_miner_in_two_steps() {
        let steps = [1024, 1].map(|whole| {
            let mut at = Difficulty::from_integer(whole).unwrap();
            [(); 3].map(|()| {
                let shown = at.to_string();
                at = at.eased();
                shown
            })
        });
        assert_eq!(steps[0], ["1024", "0.5", "0.000244140625"]);
        assert_eq!(steps[1], ["1", "0.00048828125", "0.0001220703125"]);
        let low = Difficulty::from_units(EASIEST).unwrap();
        assert_eq!((low.eased(), Difficulty::MIN.eased()), (low, Difficulty::MIN), "never harder");
    }

    proptest! {
        #[test]
        fn target_and_back(units in 1..=u64::MAX) {
            let difficulty = Difficulty::from_units(units).unwrap();
            let back = Difficulty::of_target(difficulty.to_target());
            prop_assert!(back >= difficulty, "a target rounded down is at least as hard");
            // Above 2^-24 the target has far more bits than the difficulty: nothing is lost.
            prop_assert_eq!(back, difficulty);
        }

        #[test]
        fn an_allowed_difficulty_survives_the_wire(units in 1..=u64::MAX) {
            let allowed = Difficulty::from_units(units).unwrap().floor_to_allowed();
            prop_assert!(allowed.units() <= units);
            prop_assert_eq!(Difficulty::parse_wire(&allowed.to_string()), Some(allowed));
        }

        #[test]
        fn harder_means_a_lower_target_and_more_work(a in 1..=u64::MAX, b in 1..=u64::MAX) {
            let (a, b) = (Difficulty::from_units(a).unwrap(), Difficulty::from_units(b).unwrap());
            if a < b {
                prop_assert!(a.to_target() >= b.to_target());
                prop_assert!(a.work() <= b.work());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Difficulty::parse_wire(&text);
        }
    }
}
