//! SOLO: the finder takes all.

use ruint::aliases::U256;
use sluice_mining::Sats;

use super::{Part, Reward};
use crate::error::{LedgerError, Result};
use crate::rules::BasisPoints;

/// Gives the reward, less the fee, to the finder.
///
/// # Errors
/// If the amounts are out of range.
pub fn solo(value: Sats, fee: BasisPoints, finder: &str) -> Result<Reward> {
    let fee = fee.of(value);
    let amount = value.checked_sub(fee).ok_or(LedgerError::Overflow("a fee"))?;
    let part = Part { account: finder.to_owned(), weight: U256::ZERO, amount };
    Ok(Reward { value, fee, parts: vec![part] })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fee_and_finder_sum_to_the_value() {
        let reward = solo(Sats::new(312_500_001).unwrap(), BasisPoints::new(150).unwrap(), "bc1q").unwrap();
        assert_eq!(reward.fee.get(), 4_687_500, "rounded down");
        assert_eq!(reward.parts[0].amount.get(), 307_812_501);
        reward.check().unwrap();
    }
}
