//! Slots of extranonce1 (DESIGN 7): which 24-bit numbers are in use, and when one may be given out again.
//!
//! Two sessions with one extranonce1 would do the same work: what the second finds would be a duplicate of the first,
//! or, where their sets of accepted headers differ, counted twice (invariant S1). So a slot is used again only once
//! every job that was given out with it can no longer be cited, and not before [`QUARANTINE`] has passed.
//!
//! The set of accepted headers is in memory, so a gateway that starts again knows nothing of the shares of the one
//! before, whose jobs are still live. Its slots therefore begin elsewhere: at the epoch's multiple of the golden ratio
//! of 2^24. Multiples of the golden ratio keep apart as far as can be: between the starts of any 100 consecutive epochs
//! lie at least 60,000 slots, so two starts of a gateway collide only if one of them gives out more than that within
//! the life of a job.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use sluice_proto::Epoch;

/// A slot rests at least this long.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(600);
/// Bits of a slot.
pub(crate) const SLOT_BITS: u32 = 24;
/// 2^24 / golden ratio, odd, so that every epoch has a start of its own.
const GOLDEN: u32 = 0x9e_3779;

/// Slots in use, slots at rest, and where to look next.
#[derive(Debug)]
pub(crate) struct Slots {
    next: u32,
    mask: u32,
    /// In use or at rest.
    taken: HashSet<u32>,
    /// In the order in which they were freed.
    resting: VecDeque<Resting>,
}

#[derive(Debug)]
struct Resting {
    slot: u32,
    freed: Instant,
    /// Newest job given out with it.
    last_job: u64,
}

impl Slots {
    /// All slots free, beginning where `epoch` begins.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self::with_bits(SLOT_BITS, first_slot(epoch))
    }

    fn with_bits(bits: u32, first: u32) -> Self {
        let mask = (1_u32 << bits) - 1;
        Self { next: first & mask, mask, taken: HashSet::new(), resting: VecDeque::new() }
    }

    /// The next free slot; `None` if all are in use or at rest. Jobs before `live_from` can no longer be cited.
    pub(crate) fn take(&mut self, now: Instant, live_from: u64) -> Option<u32> {
        while let Some(first) = self.resting.front()
            && now.saturating_duration_since(first.freed) >= QUARANTINE
            && first.last_job < live_from
        {
            self.taken.remove(&first.slot);
            self.resting.pop_front();
        }
        if self.taken.len() > self.mask as usize {
            return None;
        }
        while self.taken.contains(&self.next) {
            self.next = (self.next + 1) & self.mask;
        }
        let slot = self.next;
        self.next = (self.next + 1) & self.mask;
        self.taken.insert(slot);
        Some(slot)
    }

    /// Gives a slot back. `last_job` is the newest job given out with it; `None` if there was none: then it need not
    /// rest.
    pub(crate) fn release(&mut self, slot: u32, last_job: Option<u64>, now: Instant) {
        match last_job {
            Some(last_job) => self.resting.push_back(Resting { slot, freed: now, last_job }),
            None => drop(self.taken.remove(&slot)),
        }
    }
}

/// Where the slots of `epoch` begin.
fn first_slot(epoch: Epoch) -> u32 {
    epoch.get().wrapping_mul(GOLDEN) & ((1 << SLOT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_used_again_only_after_their_jobs_have_expired() {
        let (start, mut slots) = (Instant::now(), Slots::with_bits(2, 3));
        let taken: Vec<_> = (0..4).map(|_| slots.take(start, 0).unwrap()).collect();
        assert_eq!(taken, [3, 0, 1, 2], "they count up from the start and around");
        assert_eq!(slots.take(start, 0), None, "all in use");
        slots.release(1, Some(50), start);
        let rested = start + QUARANTINE;
        assert_eq!(slots.take(rested - Duration::from_millis(1), 51), None, "not before the quarantine is over");
        assert_eq!(slots.take(rested, 50), None, "not while job 50 can be cited");
        assert_eq!(slots.take(rested, 51), Some(1));
        assert_eq!(slots.take(rested, 51), None);
    }

    #[test]
    fn a_slot_without_jobs_need_not_rest() {
        let (start, mut slots) = (Instant::now(), Slots::with_bits(1, 0));
        assert_eq!((slots.take(start, 0), slots.take(start, 0)), (Some(0), Some(1)));
        slots.release(0, None, start);
        assert_eq!(slots.take(start, 0), Some(0));
    }

    #[test]
    fn all_slots_can_be_in_use_and_then_no_more() {
        let (now, mut slots) = (Instant::now(), Slots::with_bits(12, 4_000));
        let all: HashSet<u32> = (0..4096).map(|_| slots.take(now, 0).unwrap()).collect();
        assert_eq!(all.len(), 4096);
        assert_eq!(slots.take(now, 0), None);
    }

    proptest! {
        /// S1: after a restart the slots lie far from those whose jobs are still live.
        #[test]
        fn restarts_begin_far_from_each_other(epoch in 0_u32..(1 << 24)) {
            let newest = first_slot(Epoch::new(epoch + 100));
            for earlier in epoch..epoch + 100 {
                let ahead = newest.wrapping_sub(first_slot(Epoch::new(earlier))) & 0xff_ffff;
                let distance = ahead.min(0x100_0000 - ahead);
                prop_assert!(distance > 60_000, "epochs {earlier} and {}: {distance}", epoch + 100);
            }
        }
    }
}
