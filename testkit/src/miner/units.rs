//! Which headers a miner tries: units of one extranonce2 and one set of version bits, never the same twice.

use crate::stratum::{Notify, Subscription};
use crate::work::Work;

/// Nonces of a unit.
pub(super) const NONCES: u64 = 1 << 24;

/// Counts units.
#[derive(Debug, Default)]
pub(super) struct Units(u64);

/// A unit.
pub(super) struct Unit {
    pub(super) extranonce2: Vec<u8>,
    /// `None` where version rolling is off.
    pub(super) version_bits: Option<u32>,
    pub(super) work: Work,
    /// Nonces tried.
    pub(super) tried: u64,
}

impl Units {
    /// The next unit of a job.
    pub(super) fn next(&mut self, job: &Notify, subscription: &Subscription, mask: Option<u32>) -> Unit {
        let count = self.0;
        self.0 = self.0.wrapping_add(1);
        let extranonce2 = big_endian(count, subscription.extranonce2_size);
        let version_bits = mask.map(|mask| spread(count, mask));
        let version = match (mask, version_bits) {
            (Some(mask), Some(bits)) => (job.version & !mask) | bits,
            _ => job.version,
        };
        let work = job.work(&subscription.extranonce1, &extranonce2, job.ntime, version);
        Unit { extranonce2, version_bits, work, tried: 0 }
    }
}

/// The lowest bytes of a number, most significant first.
pub(crate) fn big_endian(number: u64, size: usize) -> Vec<u8> {
    let wide = [[0; 8], number.to_be_bytes()].concat();
    wide[16 - size.min(16)..].to_vec()
}

/// The lowest bits of a number, put where the mask has bits.
fn spread(number: u64, mask: u32) -> u32 {
    let places = (0..32).filter(|place| mask >> place & 1 == 1);
    places.zip(0..64).fold(0, |bits, (place, from)| bits | ((number >> from & 1) as u32) << place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_go_where_the_mask_has_them() {
        assert_eq!(spread(0b101, 0x1fff_e000), 0b101 << 13);
        assert_eq!(spread(0b111, 0x8000_0011), 0x8000_0011);
        assert_eq!(spread(u64::MAX, 0x1fff_e000), 0x1fff_e000);
        assert_eq!(spread(5, 0), 0);
    }

    #[test]
    fn extranonce2_has_the_size_that_the_pool_asks_for() {
        assert_eq!(big_endian(0x0102, 4), [0, 0, 1, 2]);
        assert_eq!(big_endian(0x0102_0304_0506, 2), [5, 6]);
        assert_eq!(big_endian(1, 10), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
