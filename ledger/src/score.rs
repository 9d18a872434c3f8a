//! Scores: what a share is worth to its miner, whatever the difficulty was.

use std::fmt;

use ruint::aliases::U256;
use sluice_mining::{Target, Work};
use sluice_proto::v1::{Tally, WorkAt};

use crate::error::{LedgerError, Result};

/// Work in units of expected blocks: 2^64 is the work of one block at the network target of the share's own job.
///
/// A share of work w at network work W scores floor(w * 2^64 / W). A window measured in scores pays w/W of a reward
/// for it in expectation, also across a change of difficulty; a window of raw work does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(u128);

impl Score {
    /// No score.
    pub const ZERO: Self = Self(0);

    /// The score with this number of 2^-64 expected blocks.
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// The score of `count` expected blocks.
    pub const fn blocks(count: u32) -> Self {
        Self((count as u128) << 64)
    }

    /// Score of `work` where a block takes `network` hashes; `None` if it is 2^64 blocks or more, or `network` is 0.
    pub fn of(work: Work, network: Work) -> Option<Self> {
        let scaled = U256::from(work.get()) << 64_usize;
        let score = scaled.checked_div(U256::from(network.get()))?;
        u128::try_from(score).ok().map(Self)
    }

    /// Number of 2^-64 expected blocks.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// Sum, if it is in range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Difference, if it is not negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

/// In expected blocks with six decimals, for people.
impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = ((self.0 & u128::from(u64::MAX)) * 1_000_000) >> 64;
        write!(f, "{}.{fraction:06}", self.0 >> 64)
    }
}

/// Score of all accepted work in `tally`.
///
/// # Errors
/// If a network target is no valid one, or the sum is out of range.
pub fn tally_score(tally: &Tally) -> Result<Score> {
    tally.accepted.iter().try_fold(Score::ZERO, |sum, part| {
        sum.checked_add(work_score(part)?).ok_or(LedgerError::Overflow("the score of a tally"))
    })
}

fn work_score(part: &WorkAt) -> Result<Score> {
    let target = Target::from_compact(part.nbits)
        .map_err(|error| LedgerError::Record(format!("tally with network target {:08x}: {error}", part.nbits)))?;
    Score::of(Work::from_parts(part.work_hi, part.work_lo), target.work())
        .ok_or(LedgerError::Overflow("the score of a tally"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn work(value: u128) -> Work {
        Work::from_parts((value >> 64) as u64, value as u64)
    }

    #[test]
    fn the_work_of_a_block_scores_one_block() {
        let network = Target::from_compact(0x1d00_ffff).unwrap().work();
        assert_eq!(Score::of(network, network), Some(Score::blocks(1)));
        assert_eq!(Score::of(work(1), work(0)), None);
        assert_eq!(Score::of(work(u128::MAX), work(1)), None, "2^192 does not fit");
    }

    #[test]
    fn a_tally_sums_its_targets() {
        let genesis = Target::from_compact(0x1d00_ffff).unwrap().work();
        let (work_hi, work_lo) = genesis.to_parts();
        let one = WorkAt { nbits: 0x1d00_ffff, work_hi, work_lo, shares: 1 };
        let regtest = WorkAt { nbits: 0x207f_ffff, work_hi: 0, work_lo: 2, shares: 1 };
        let tally = Tally { accepted: vec![one, regtest], ..Tally::default() };
        assert_eq!(tally_score(&tally).unwrap(), Score::blocks(2));
        let bad = Tally { accepted: vec![WorkAt::default()], ..Tally::default() };
        assert!(matches!(tally_score(&bad), Err(LedgerError::Record(_))));
    }

    #[test]
    fn people_read_blocks() {
        assert_eq!(Score::new((1 << 64) | (1 << 63)).to_string(), "1.500000");
    }

    proptest! {
        #[test]
        fn is_the_floor_of_the_exact_quotient(w in any::<u64>(), network in 1_u128..) {
            let score = Score::of(work(u128::from(w)), work(network)).unwrap().get();
            let exact = u128::from(w) << 64;
            prop_assert!(score <= exact / network && score + 1 > exact / network);
        }
    }
}
