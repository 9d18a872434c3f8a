//! How fast a task works when it has much to do: what a replay of its inputs would take, for `sluice plan`.

use std::time::Duration;

use sluice_state::Tables;

use super::persist;

/// Records of a batch that is as long as reading gives, not as long as there is.
const LONG: usize = 512;
/// Records in long batches after which the rate is worth keeping.
const ENOUGH: u64 = 16_384;

/// Records and time of long batches. It is beside the state, not in it: no digest depends on it.
#[derive(Default)]
pub(crate) struct Pace {
    records: u64,
    time: Duration,
}

impl Pace {
    /// Counts a batch of so many records that took this long, and puts the rate into the next commit once it is known.
    pub(crate) fn count(&mut self, records: usize, time: Duration, tables: &mut Tables) {
        if records < LONG {
            return;
        }
        self.records += records as u64;
        self.time += time;
        let micros = self.time.as_micros().max(1);
        if self.records >= ENOUGH {
            let rate = u128::from(self.records) * 1_000_000 / micros;
            persist::save_rate(tables, u64::try_from(rate).unwrap_or(u64::MAX));
            *self = Self::default();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sluice_state::MemoryBackend;

    #[test]
    fn only_long_batches_tell_the_rate() {
        let mut tables = Tables::new(Box::new(MemoryBackend::new(&[])), Vec::new()).unwrap();
        let mut pace = Pace::default();
        for _ in 0..1_000 {
            pace.count(LONG - 1, Duration::from_secs(1), &mut tables);
        }
        assert_eq!(tables.meta(b"rate").unwrap(), None);
        for _ in 0..16 {
            pace.count(1_024, Duration::from_millis(1), &mut tables);
        }
        let kept = tables.meta(b"rate").unwrap().unwrap();
        assert_eq!(persist::rate_of(b"rate", &kept), Some(1_024_000));
        assert_eq!(persist::rate_of(b"epoch", &kept), None);
    }
}
