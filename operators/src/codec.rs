//! Small fixed-size values in state rows, big-endian.

use sluice_topology::OperatorError;

use crate::rows::Row;

/// A sum of work and a number of shares: 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Expected hashes.
    pub(crate) work: u128,
    /// Shares.
    pub(crate) shares: u64,
}

impl Sum {
    /// Adds, or says that a sum has left its range: never wraps, never clips.
    pub(crate) fn add(self, other: Self) -> Result<Self, OperatorError> {
        let too_large = || OperatorError::Record("a sum of work beyond 128 bits".into());
        Ok(Self {
            work: self.work.checked_add(other.work).ok_or_else(too_large)?,
            shares: self.shares.checked_add(other.shares).ok_or_else(too_large)?,
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.work.to_be_bytes());
        bytes[16..].copy_from_slice(&self.shares.to_be_bytes());
        bytes
    }

    /// Reads what [`Sum::to_bytes`] writes; zero if there is no row.
    pub(crate) fn read(row: Option<&[u8]>) -> Result<Self, OperatorError> {
        let Some(row) = row else { return Ok(Self::default()) };
        let Some((work, shares)) = row.split_first_chunk::<16>() else { return Err(damaged(row)) };
        Ok(Self { work: u128::from_be_bytes(*work), shares: read_u64(Some(shares))? })
    }
}

impl Row for Sum {
    fn read(row: &[u8]) -> Result<Self, OperatorError> {
        Self::read(Some(row))
    }

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_bytes());
    }
}

/// A number of 8 bytes; 0 if there is no row.
pub(crate) fn read_u64(row: Option<&[u8]>) -> Result<u64, OperatorError> {
    match row {
        None => Ok(0),
        Some(row) => row.try_into().map(u64::from_be_bytes).map_err(|_| damaged(row)),
    }
}

/// A row that no version of this operator has written.
pub(crate) fn damaged(row: &[u8]) -> OperatorError {
    OperatorError::Record(format!("a state row of {} bytes that cannot be read: the state is damaged", row.len()))
}

/// Appends a text with its length (2 bytes) before it, so that no text can look like two.
pub(crate) fn push_text(key: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

/// Splits off a text that [`push_text`] appended.
pub(crate) fn split_text(key: &[u8]) -> Result<(&str, &[u8]), OperatorError> {
    let (length, rest) = key.split_first_chunk::<2>().ok_or_else(|| damaged(key))?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or_else(|| damaged(key))?;
    Ok((std::str::from_utf8(text).map_err(|_| damaged(key))?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_and_texts_survive(work: u128, shares: u64, one in ".{0,90}", two in ".{0,90}") {
            let sum = Sum { work, shares };
            prop_assert_eq!(Sum::read(Some(&sum.to_bytes())).unwrap(), sum);
            let mut key = Vec::new();
            push_text(&mut key, &one);
            push_text(&mut key, &two);
            let (first, rest) = split_text(&key).unwrap();
            let (second, rest) = split_text(rest).unwrap();
            prop_assert_eq!((first, second, rest.len()), (one.as_str(), two.as_str(), 0));
        }

        #[test]
        fn damaged_rows_are_errors(row: Vec<u8>) {
            let _ = split_text(&row);
            prop_assert_eq!(Sum::read(Some(&row)).is_ok(), row.len() == 24);
        }
    }
}
