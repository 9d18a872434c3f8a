//! Money and work: integers with checked arithmetic.

use std::fmt;

/// An amount of satoshis, at most 21 million bitcoin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sats(u64);

impl Sats {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All there will ever be: 21 million bitcoin.
    pub const MAX_MONEY: Self = Self(21_000_000 * 100_000_000);

    /// This many satoshis; `None` above [`Sats::MAX_MONEY`].
    pub const fn new(sats: u64) -> Option<Self> {
        if sats <= Self::MAX_MONEY.0 { Some(Self(sats)) } else { None }
    }

    /// The number of satoshis.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum; `None` above [`Sats::MAX_MONEY`].
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }

    /// The difference; `None` below zero.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }
}

impl fmt::Display for Sats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Work: an expected number of hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work(u128);

impl Work {
    /// No work.
    pub const ZERO: Self = Self(0);

    /// This many expected hashes.
    pub const fn new(hashes: u128) -> Self {
        Self(hashes)
    }

    /// From upper and lower 64 bits, as records carry it.
    pub const fn from_parts(hi: u64, lo: u64) -> Self {
        Self(((hi as u128) << 64) | lo as u128)
    }

    /// Upper and lower 64 bits.
    pub const fn to_parts(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }

    /// The number of expected hashes.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// The sum; `None` from 2^128 on.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; `None` below zero.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_never_exceeds_its_limit_or_goes_below_zero() {
        let one = Sats::new(1).unwrap();
        assert_eq!(Sats::MAX_MONEY.checked_add(one), None);
        assert_eq!(Sats::new(Sats::MAX_MONEY.get() + 1), None);
        assert_eq!(Sats::ZERO.checked_sub(one), None);
        assert_eq!(one.checked_add(one).unwrap().get(), 2);
    }

    #[test]
    fn work_keeps_its_parts() {
        let work = Work::new(u128::MAX - 5);
        let (hi, lo) = work.to_parts();
        assert_eq!(Work::from_parts(hi, lo), work);
        assert_eq!(work.checked_add(Work::new(6)), None);
    }
}
