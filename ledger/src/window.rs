//! Which work a block pays for: the window, in whole slices, the oldest one in part (DESIGN 6).

use ruint::aliases::U256;

use crate::error::{LedgerError, Result};
use crate::score::Score;

/// The work a block's reward is shared out by: stored with each credit, so that an auditor can repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Oldest slice with work in the window.
    pub from: u64,
    /// The slice of the block's share: the newest one, counted whole.
    pub to: u64,
    /// Score in the window: its full length, or less where there was not more work (then it is normalised).
    pub score: Score,
    /// How much of the slice `from` counts, where not all of it does.
    pub edge: Option<Edge>,
}

/// Part of a slice: each score in it counts `taken / total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Score that still fitted into the window.
    pub taken: Score,
    /// Score of the whole slice.
    pub total: Score,
}

/// Finds a window by walking back from the block's slice.
#[derive(Debug)]
pub struct Walk {
    length: Score,
    window: Window,
    full: bool,
}

impl Walk {
    /// A walk back from the slice `to` until `length` is full.
    pub fn new(to: u64, length: Score) -> Self {
        Self { length, window: Window { from: to, to, score: Score::ZERO, edge: None }, full: length == Score::ZERO }
    }

    /// The next older slice that has work, and its whole score. Tells whether the walk must go on.
    ///
    /// # Errors
    /// If the sum is out of range.
    pub fn step(&mut self, slice: u64, total: Score) -> Result<bool> {
        if self.full || total == Score::ZERO {
            return Ok(!self.full);
        }
        let window = &mut self.window;
        let room = self.length.checked_sub(window.score).unwrap_or(Score::ZERO);
        let taken = total.min(room);
        window.from = slice;
        window.score = window.score.checked_add(taken).ok_or(LedgerError::Overflow("the score of a window"))?;
        window.edge = (taken < total).then_some(Edge { taken, total });
        self.full = window.score == self.length;
        Ok(!self.full)
    }

    /// The window as far as it has been walked, and whether it is full.
    pub fn finish(self) -> (Window, bool) {
        (self.window, self.full)
    }
}

/// Score of one account in a window: in whole slices, and in the slice of the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    whole: Score,
    edge: Score,
}

impl Holding {
    /// Adds the account's score in one slice of `window`.
    ///
    /// # Errors
    /// If the sum is out of range.
    pub fn add(&mut self, window: &Window, slice: u64, score: Score) -> Result<()> {
        let at_edge = window.edge.is_some() && slice == window.from;
        let part = if at_edge { &mut self.edge } else { &mut self.whole };
        *part = part.checked_add(score).ok_or(LedgerError::Overflow("the score of an account"))?;
        Ok(())
    }

    /// Exact weight, as a multiple of the same unit for all accounts of `window`: whole * total + edge * taken, which
    /// is the account's score times the edge's total. Nothing is rounded before the satoshis are.
    ///
    /// # Errors
    /// If the sum is out of range.
    pub fn weight(&self, window: &Window) -> Result<U256> {
        let (taken, total) = window.edge.map_or((0, 1), |edge| (edge.taken.get(), edge.total.get()));
        let whole = U256::from(self.whole.get()) * U256::from(total);
        let edge = U256::from(self.edge.get()) * U256::from(taken);
        whole.checked_add(edge).ok_or(LedgerError::Overflow("the weight of an account"))
    }
}

/// The score that `weight` stands for, rounded down: for statements, never for money.
pub fn score_of_weight(window: &Window, weight: U256) -> Score {
    let total = window.edge.map_or(1, |edge| edge.total.get());
    let score = weight.checked_div(U256::from(total)).unwrap_or(U256::ZERO);
    Score::new(u128::try_from(score).unwrap_or(u128::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn walk(to: u64, length: u128, totals: &[(u64, u128)]) -> (Window, bool) {
        let mut walk = Walk::new(to, Score::new(length));
        for (slice, total) in totals {
            if !walk.step(*slice, Score::new(*total)).unwrap() {
                break;
            }
        }
        walk.finish()
    }

    #[test]
    fn the_oldest_slice_counts_in_part() {
        let (window, full) = walk(9, 100, &[(9, 30), (8, 50), (5, 80), (2, 10)]);
        assert!(full);
        let edge = Edge { taken: Score::new(20), total: Score::new(80) };
        assert_eq!(window, Window { from: 5, to: 9, score: Score::new(100), edge: Some(edge) });
    }

    #[test]
    fn a_slice_that_fits_exactly_has_no_edge() {
        let (window, full) = walk(9, 80, &[(9, 30), (8, 50), (5, 80)]);
        assert!(full);
        assert_eq!(window, Window { from: 8, to: 9, score: Score::new(80), edge: None });
    }

    #[test]
    fn an_unfilled_window_says_so() {
        let (window, full) = walk(9, 1000, &[(9, 30), (5, 80)]);
        assert!(!full);
        assert_eq!(window, Window { from: 5, to: 9, score: Score::new(110), edge: None });
        assert_eq!(walk(9, 5, &[]).0.score, Score::ZERO);
    }

    proptest! {
        /// The weights of all accounts sum to the window's score in the same unit: no work is lost or counted twice.
        #[test]
        fn weights_sum_to_the_window(rows in vec((0..6_u64, 0..4_usize, 0..1000_u128), 1..60), length in 1..5000_u128) {
            let mut totals = std::collections::BTreeMap::new();
            for (slice, _, score) in &rows {
                *totals.entry(*slice).or_insert(0) += score;
            }
            let newest_first: Vec<_> = totals.into_iter().rev().collect();
            let (window, full) = walk(6, length, &newest_first);
            let mut holdings = [Holding::default(); 4];
            for (slice, account, score) in &rows {
                if *slice >= window.from {
                    holdings[*account].add(&window, *slice, Score::new(*score)).unwrap();
                }
            }
            let sum: U256 = holdings.iter().map(|holding| holding.weight(&window).unwrap()).sum();
            let unit = window.edge.map_or(1, |edge| edge.total.get());
            prop_assert_eq!(sum, U256::from(window.score.get()) * U256::from(unit));
            prop_assert_eq!(full, window.score.get() == length);
        }
    }
}
