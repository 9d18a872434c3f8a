//! Targets: 256-bit integers that a hash must not exceed.

use std::fmt;

use ruint::aliases::U256;

use crate::Work;

/// A target, at least 2^128, so that its work fits 128 bits (that is 2^96 times the difficulty of 2009).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(U256);

/// Why a number is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A compact target with the sign bit set.
    #[error("compact target {0:08x} is negative")]
    Negative(u32),
    /// A compact target beyond 256 bits.
    #[error("compact target {0:08x} exceeds 256 bits")]
    Overflow(u32),
    /// Below 2^128.
    #[error("a target below 2^128 is harder than anything that can be mined")]
    TooSmall,
}

impl Target {
    /// From the compact form of block headers (`nBits`).
    ///
    /// # Errors
    /// If it is negative, beyond 256 bits, or below 2^128.
    pub fn from_compact(nbits: u32) -> Result<Self, TargetError> {
        let exponent = (nbits >> 24) as usize;
        let mantissa = U256::from(nbits & 0x007f_ffff);
        if nbits & 0x0080_0000 != 0 && !mantissa.is_zero() {
            return Err(TargetError::Negative(nbits));
        }
        if exponent <= 3 {
            return Self::checked(mantissa >> (8 * (3 - exponent)));
        }
        let shift = 8 * (exponent - 3);
        if mantissa.bit_len() + shift > 256 && !mantissa.is_zero() {
            return Err(TargetError::Overflow(nbits));
        }
        Self::checked(if shift >= 256 { U256::ZERO } else { mantissa << shift })
    }

    /// The compact form; bits below the 24 it holds are lost.
    pub fn to_compact(self) -> u32 {
        let mut size = self.0.bit_len().div_ceil(8);
        let mut mantissa: u32 = if size <= 3 {
            (self.0 << (8 * (3 - size))).wrapping_to()
        } else {
            (self.0 >> (8 * (size - 3))).wrapping_to()
        };
        if mantissa & 0x0080_0000 != 0 {
            mantissa >>= 8;
            size += 1;
        }
        mantissa | ((size as u32) << 24)
    }

    /// From 32 bytes, least significant first.
    ///
    /// # Errors
    /// If it is below 2^128.
    pub fn from_le_bytes(bytes: [u8; 32]) -> Result<Self, TargetError> {
        Self::checked(U256::from_le_bytes(bytes))
    }

    /// 32 bytes, least significant first.
    pub fn to_le_bytes(self) -> [u8; 32] {
        self.0.to_le_bytes()
    }

    pub(crate) const fn from_u256(value: U256) -> Self {
        Self(value)
    }

    pub(crate) const fn to_u256(self) -> U256 {
        self.0
    }

    fn checked(value: U256) -> Result<Self, TargetError> {
        if value.bit_len() > 128 { Ok(Self(value)) } else { Err(TargetError::TooSmall) }
    }

    /// Whether a hash (internal order: least significant byte first) does not exceed the target.
    pub fn is_met_by(&self, hash: &[u8; 32]) -> bool {
        U256::from_le_bytes(*hash) <= self.0
    }

    /// Expected number of hashes to meet it: floor(2^256 / (target + 1)).
    pub fn work(self) -> Work {
        // 2^256 does not fit: (2^256 - 1 - t) / (t + 1) + 1 is the same number, as in Bitcoin Core's GetBlockProof.
        match self.0.checked_add(U256::from(1)) {
            Some(above) => Work::new(((!self.0) / above + U256::from(1)).wrapping_to()),
            None => Work::new(1),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({:#066x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn compact_forms_of_real_blocks() {
        for nbits in [0x1d00_ffff, 0x1b04_04cb, 0x207f_ffff, 0x1e03_77ae, 0x1701_e2a0] {
            assert_eq!(Target::from_compact(nbits).unwrap().to_compact(), nbits);
        }
        assert_eq!(Target::from_compact(0x1d00_ffff).unwrap().work().get(), 0x1_0001_0001);
        assert_eq!(Target::from_compact(0x207f_ffff).unwrap().work().get(), 2);
    }

    #[test]
    fn impossible_compact_forms_are_refused() {
        assert_eq!(Target::from_compact(0x1d80_ffff), Err(TargetError::Negative(0x1d80_ffff)));
        assert_eq!(Target::from_compact(0xff00_ffff), Err(TargetError::Overflow(0xff00_ffff)));
        assert_eq!(Target::from_compact(0), Err(TargetError::TooSmall));
        assert_eq!(Target::from_compact(0x0300_ffff), Err(TargetError::TooSmall));
    }

    #[test]
    fn trap_01_a_hash_equal_to_the_target_meets_it() {
        let target = Target::from_compact(0x1d00_ffff).unwrap();
        let mut hash = target.to_le_bytes();
        assert!(target.is_met_by(&hash));
        hash[0] += 1;
        assert!(!target.is_met_by(&hash), "one above does not");
    }

    proptest! {
        #[test]
        fn compact_and_back(nbits: u32) {
            if let Ok(target) = Target::from_compact(nbits) {
                let again = Target::from_compact(target.to_compact()).unwrap();
                prop_assert_eq!(again, target);
                let core = bitcoin::Target::from_compact(bitcoin::CompactTarget::from_consensus(nbits));
                prop_assert_eq!(core.to_le_bytes(), target.to_le_bytes(), "as the bitcoin crate reads it");
                prop_assert_eq!(core.to_work().to_le_bytes()[..16].to_vec(), target.work().get().to_le_bytes().to_vec());
            }
        }
    }
}
