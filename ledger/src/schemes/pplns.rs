//! PPLNS: by work in the last N expected blocks.

use ruint::aliases::U256;
use sluice_mining::Sats;

use super::{Part, Reward, solo};
use crate::error::{LedgerError, Result};
use crate::rules::BasisPoints;
use crate::split::largest_remainder;

/// Shares the reward, less the fee, out by the weights of the accounts in the window.
///
/// The weights are normalised: a window that is not full yet pays its whole reward to those who are in it. Where
/// nobody is (the block's own share was counted in a later slice, and no other share before it), the finder gets it.
///
/// # Errors
/// If the amounts are out of range.
pub fn pplns(value: Sats, fee: BasisPoints, mut weights: Vec<(String, U256)>, finder: &str) -> Result<Reward> {
    weights.retain(|(_, weight)| !weight.is_zero());
    if weights.is_empty() {
        return solo(value, fee, finder);
    }
    weights.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let fee = fee.of(value);
    let miners = value.checked_sub(fee).ok_or(LedgerError::Overflow("a fee"))?;
    let amounts = largest_remainder(miners.get(), &weights).ok_or(LedgerError::Overflow("the weights of a window"))?;
    let parts = weights.into_iter().zip(amounts).map(|((account, weight), amount)| {
        let amount = Sats::new(amount).ok_or(LedgerError::Overflow("a part of a reward"))?;
        Ok(Part { account, weight, amount })
    });
    Ok(Reward { value, fee, parts: parts.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    #[test]
    fn an_empty_window_pays_the_finder() {
        let (value, fee) = (Sats::new(1000).unwrap(), BasisPoints::new(100).unwrap());
        let reward = pplns(value, fee, vec![("a".into(), U256::ZERO)], "finder").unwrap();
        assert_eq!(reward, solo(value, fee, "finder").unwrap());
    }

    proptest! {
        /// M1: credits plus fee equal the reward to the satoshi, whatever the fee and the weights.
        #[test]
        fn parts_and_fee_sum_to_the_value(
            value in 0..=2_100_000_000_000_000_u64,
            fee in 0..=10_000_u64,
            weights in btree_map("[a-z0-9]{1,8}", any::<u128>(), 0..30),
        ) {
            let weights: Vec<_> = weights.into_iter().map(|(name, weight)| (name, U256::from(weight))).collect();
            let (value, fee) = (Sats::new(value).unwrap(), BasisPoints::new(fee).unwrap());
            let reward = pplns(value, fee, weights.clone(), "finder").unwrap();
            reward.check().unwrap();
            prop_assert_eq!(reward.fee.get(), value.get() / 10_000 * u64::from(fee.get())
                + value.get() % 10_000 * u64::from(fee.get()) / 10_000);
            let reversed = weights.into_iter().rev().collect();
            prop_assert_eq!(pplns(value, fee, reversed, "finder").unwrap(), reward);
        }
    }
}
