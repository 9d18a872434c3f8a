//! Sharing out an amount in whole satoshis (invariant M1).

use ruint::Uint;
use ruint::aliases::U256;

/// Room for an amount (64 bits) times a weight (256 bits).
type Product = Uint<320, 5>;

/// Shares `amount` out in proportion to the weights, by largest remainder: each gets the floor of its exact share, and
/// what is left goes one by one to the largest remainders, ties in order of name. The parts sum to `amount` exactly,
/// each is less than 1 off its exact share, and the order of `weights` changes nothing.
///
/// Returns the parts in the order of `weights`, or `None` where no weight is above 0 or their sum is out of range.
pub fn largest_remainder<N: Ord>(amount: u64, weights: &[(N, U256)]) -> Option<Vec<u64>> {
    let sum = weights.iter().try_fold(U256::ZERO, |sum, (_, weight)| sum.checked_add(*weight))?;
    if sum.is_zero() {
        return None;
    }
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = amount;
    for (index, (name, weight)) in weights.iter().enumerate() {
        let (part, remainder) = (Product::from(amount) * Product::from(*weight)).div_rem(Product::from(sum));
        let part = u64::try_from(part).ok()?;
        left = left.checked_sub(part)?;
        parts.push(part);
        remainders.push((remainder, name, index));
    }
    remainders.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    for (_, _, index) in remainders {
        if left == 0 {
            break;
        }
        *parts.get_mut(index)? += 1;
        left -= 1;
    }
    (left == 0).then_some(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn split(amount: u64, weights: &[(&str, u64)]) -> Vec<u64> {
        let weights: Vec<_> = weights.iter().map(|(name, weight)| (*name, U256::from(*weight))).collect();
        largest_remainder(amount, &weights).unwrap()
    }

    #[test]
    fn the_largest_remainder_gets_what_is_left() {
        assert_eq!(split(10, &[("a", 1), ("b", 1), ("c", 1)]), [4, 3, 3], "a tie goes by name");
        assert_eq!(split(10, &[("c", 1), ("b", 1), ("a", 1)]), [3, 3, 4], "whatever the order");
        assert_eq!(split(100, &[("a", 1), ("b", 2)]), [33, 67]);
        assert_eq!(split(1, &[("a", 0), ("b", 5)]), [0, 1], "no weight, no part");
        assert_eq!(split(0, &[("a", 3), ("b", 5)]), [0, 0]);
    }

    #[test]
    fn nobody_to_pay_is_told() {
        assert_eq!(largest_remainder::<&str>(5, &[]), None);
        assert_eq!(largest_remainder(5, &[("a", U256::ZERO)]), None);
        assert_eq!(largest_remainder(5, &[("a", U256::MAX), ("b", U256::MAX)]), None);
    }

    #[test]
    fn the_widest_numbers_fit() {
        let half = U256::MAX >> 1_usize;
        assert_eq!(largest_remainder(u64::MAX, &[("a", half), ("b", half)]).unwrap(), [1 << 63, (1 << 63) - 1]);
    }

    fn weights() -> impl Strategy<Value = Vec<(u32, U256)>> {
        let weight = prop_oneof![Just(0_u128), 0..4_u128, any::<u128>()];
        vec((weight, any::<u64>()), 1..40).prop_map(|list| {
            let wide =
                |(index, (weight, factor))| (index as u32, U256::from::<u128>(weight) * U256::from::<u64>(factor));
            list.into_iter().enumerate().map(wide).collect()
        })
    }

    proptest! {
        /// M1: the parts sum to the amount, and none is a satoshi or more off its exact share.
        #[test]
        fn sums_exactly_and_is_fair(amount in 0..=2_100_000_000_000_000_u64, weights in weights()) {
            let sum: U256 = weights.iter().map(|(_, weight)| *weight).sum();
            let parts = largest_remainder(amount, &weights);
            prop_assert_eq!(parts.is_none(), sum.is_zero());
            let parts = parts.unwrap_or_default();
            prop_assert_eq!(parts.iter().sum::<u64>(), if sum.is_zero() { 0 } else { amount });
            for (part, (_, weight)) in parts.iter().zip(&weights) {
                let exact = Product::from(amount) * Product::from(*weight);
                let paid = Product::from(*part) * Product::from(sum);
                let off = if exact > paid { exact - paid } else { paid - exact };
                prop_assert!(off < Product::from(sum));
                prop_assert!(*part == 0 || !weight.is_zero());
            }
        }

        /// M1: who is listed first gains nothing by it.
        #[test]
        fn order_changes_nothing(amount: u64, weights in weights(), seed: u64) {
            let mut shuffled: Vec<usize> = (0..weights.len()).collect();
            shuffled.sort_by_key(|index| (*index as u64).wrapping_add(1).wrapping_mul(seed | 1));
            let reordered: Vec<_> = shuffled.iter().map(|index| weights[*index]).collect();
            let (plain, other) = (largest_remainder(amount, &weights), largest_remainder(amount, &reordered));
            prop_assert_eq!(plain.is_some(), other.is_some());
            for (place, index) in shuffled.iter().enumerate() {
                prop_assert_eq!(plain.as_ref().map(|p| p[*index]), other.as_ref().map(|o| o[place]));
            }
        }
    }
}
