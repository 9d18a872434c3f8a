//! PostgreSQL's NUMERIC in binary, for whole numbers of 128 bits: four 16-bit words (digits, weight of the first, sign,
//! scale), then digits of base 10000, most significant first, trailing zeros left out (`numeric_send` in PostgreSQL).

use tokio_postgres::types::private::BytesMut;

const BASE: u128 = 10_000;

/// Appends `value`.
pub(super) fn encode(value: u128, out: &mut BytesMut) {
    let mut digits = Vec::with_capacity(10);
    let mut rest = value;
    while rest > 0 {
        digits.push((rest % BASE) as u16);
        rest /= BASE;
    }
    let weight = digits.len().saturating_sub(1) as u16;
    let trailing = digits.iter().take_while(|digit| **digit == 0).count();
    let kept = digits.get(trailing..).unwrap_or_default();
    for word in [kept.len() as u16, weight, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for digit in kept.iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// Reads a whole number that is not negative.
pub(super) fn decode(raw: &[u8]) -> Result<u128, &'static str> {
    let (words, []) = raw.as_chunks::<2>() else { return Err("a numeric of odd length") };
    let [count, weight, sign, _scale, digits @ ..] = words else { return Err("a numeric without its head") };
    if i16::from_be_bytes(*sign) != 0 {
        return Err("a numeric that is negative or no number");
    }
    let weight = i16::from_be_bytes(*weight);
    if usize::from(u16::from_be_bytes(*count)) != digits.len() {
        return Err("a numeric of the wrong length");
    }
    let fraction = |index: usize| i64::from(weight) < index as i64;
    let mut value: u128 = 0;
    let mut places = 0;
    for (index, digit) in digits.iter().enumerate() {
        let digit = u16::from_be_bytes(*digit);
        if fraction(index) {
            return Err("a numeric with a fraction");
        }
        value =
            value.checked_mul(BASE).and_then(|value| value.checked_add(digit.into())).ok_or("a numeric too large")?;
        places += 1;
    }
    if value > 0 {
        for _ in places..=i64::from(weight) {
            value = value.checked_mul(BASE).ok_or("a numeric too large")?;
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(value: u128) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode(value, &mut out);
        out.to_vec()
    }

    #[test]
    fn looks_as_the_server_sends_it() {
        assert_eq!(encoded(0), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded(12_345), [0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0x09, 0x29]);
        assert_eq!(encoded(10_000), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1], "trailing zeros are left out");
    }

    #[test]
    fn what_is_no_whole_number_is_refused() {
        assert!(decode(&[0, 1, 0, 0, 0x40, 0, 0, 0, 0, 1]).is_err(), "-1");
        assert!(decode(&[0, 1, 0xff, 0xff, 0, 0, 0, 4, 0, 1]).is_err(), "0.0001");
        assert!(decode(&[0, 0, 0, 0, 0xc0, 0, 0, 0]).is_err(), "NaN");
        assert!(decode(&[0, 1, 0, 10, 0, 0, 0, 0, 0, 1]).is_err(), "10^40");
        assert!(decode(&[0, 1, 0]).is_err() && decode(&[]).is_err() && decode(&[0, 9, 0, 0, 0, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in prop_oneof![any::<u128>(), 0..100_000_u128, Just(u128::MAX)]) {
            prop_assert_eq!(decode(&encoded(value)), Ok(value));
        }

        #[test]
        fn garbage_never_panics(raw: Vec<u8>) {
            let _ = decode(&raw);
        }
    }
}
