//! Slots of extranonce1 (DESIGN 7): which 24-bit numbers are in use, and when one may be given out again.
//!
//! Two sessions with one extranonce1 would do the same work: what the second finds would be a duplicate of the first,
//! or, where their sets of accepted headers differ, counted twice (invariant S1). So a slot is used again only once
//! every job that was given out with it can no longer be cited, and not before [`QUARANTINE`] has passed. Until then it
//! is kept for its session, which may come back (docs/adr/0012).
//!
//! The set of accepted headers is in memory, so a gateway that starts again knows nothing of the shares of the one
//! before, whose jobs are still live. Its slots therefore begin elsewhere: at the epoch's multiple of the golden ratio
//! of 2^24. Multiples of the golden ratio keep apart as far as can be: between the starts of any 100 consecutive epochs
//! lie at least 60,000 slots, so two starts of a gateway collide only if one of them gives out more than that within
//! the life of a job.

use std::collections::{HashMap, VecDeque};
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
    /// In use or at rest, and the session that each belongs to.
    taken: HashMap<u32, u64>,
    /// In the order in which they were freed.
    resting: VecDeque<Resting>,
    /// How many of the entries of `resting` are void, because their sessions have come back.
    revived: HashMap<u32, u32>,
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
        let (taken, resting, revived) = Default::default();
        Self { next: first & mask, mask, taken, resting, revived }
    }

    /// The next free slot, for `session`; `None` if all are in use or at rest. Jobs before `live_from` can no longer be
    /// cited.
    pub(crate) fn take(&mut self, session: u64, now: Instant, live_from: u64) -> Option<u32> {
        self.wake(now, live_from);
        if self.taken.len() > self.mask as usize {
            return None;
        }
        while self.taken.contains_key(&self.next) {
            self.next = (self.next + 1) & self.mask;
        }
        let slot = self.next;
        self.next = (self.next + 1) & self.mask;
        self.taken.insert(slot, session);
        Some(slot)
    }

    /// Frees what has rested long enough.
    fn wake(&mut self, now: Instant, live_from: u64) {
        while let Some(first) = self.resting.front()
            && now.saturating_duration_since(first.freed) >= QUARANTINE
            && first.last_job < live_from
        {
            match self.revived.get_mut(&first.slot) {
                Some(1) => drop(self.revived.remove(&first.slot)),
                Some(void) => *void -= 1,
                None => drop(self.taken.remove(&first.slot)),
            }
            self.resting.pop_front();
        }
    }

    /// Gives a slot back. `last_job` is the newest job given out with it; `None` if there was none: then it need not
    /// rest.
    pub(crate) fn release(&mut self, slot: u32, last_job: Option<u64>, now: Instant) {
        match last_job {
            Some(last_job) => self.resting.push_back(Resting { slot, freed: now, last_job }),
            None => drop(self.taken.remove(&slot)),
        }
    }

    /// Gives a resting slot back to the session it was of; false if it is no longer kept for it.
    pub(crate) fn revive(&mut self, slot: u32, session: u64) -> bool {
        let kept = self.session_of(slot) == Some(session);
        if kept {
            *self.revived.entry(slot).or_default() += 1;
        }
        kept
    }

    /// The session that a slot is or was last of, while it is in use or rests.
    pub(crate) fn session_of(&self, slot: u32) -> Option<u64> {
        self.taken.get(&slot).copied()
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
    use std::collections::HashSet;

    #[test]
    fn trap_07_slots_are_used_again_only_after_their_jobs_have_expired() {
        let (start, mut slots) = (Instant::now(), Slots::with_bits(2, 3));
        let taken: Vec<_> = (0..4).map(|session| slots.take(session, start, 0).unwrap()).collect();
        assert_eq!(taken, [3, 0, 1, 2], "they count up from the start and around");
        assert_eq!(slots.take(9, start, 0), None, "all in use");
        slots.release(1, Some(50), start);
        let rested = start + QUARANTINE;
        assert_eq!(slots.take(9, rested - Duration::from_millis(1), 51), None, "not before the quarantine is over");
        assert_eq!(slots.take(9, rested, 50), None, "not while job 50 can be cited");
        assert_eq!(slots.take(9, rested, 51), Some(1));
        assert_eq!(slots.take(9, rested, 51), None);
    }

    #[test]
    fn a_slot_without_jobs_need_not_rest() {
        let (start, mut slots) = (Instant::now(), Slots::with_bits(1, 0));
        assert_eq!((slots.take(1, start, 0), slots.take(2, start, 0)), (Some(0), Some(1)));
        slots.release(0, None, start);
        assert_eq!(slots.take(3, start, 0), Some(0));
    }

    #[test]
    fn a_resting_slot_goes_back_to_its_own_session_only_and_rests_again_after_it() {
        let (start, mut slots) = (Instant::now(), Slots::with_bits(1, 0));
        assert_eq!((slots.take(7, start, 0), slots.take(8, start, 0)), (Some(0), Some(1)));
        slots.release(0, Some(5), start);
        assert!(!slots.revive(0, 8), "it is not that session's");
        assert!(slots.revive(0, 7));
        let later = start + QUARANTINE;
        assert_eq!(slots.take(9, later, 99), None, "in use again, whatever its first rest says");
        slots.release(0, Some(6), later);
        assert!(slots.revive(0, 7));
        slots.release(0, Some(7), later);
        assert_eq!(slots.take(9, later + QUARANTINE - Duration::from_millis(1), 99), None);
        assert_eq!(slots.take(9, later + QUARANTINE, 99), Some(0), "after its last rest");
        assert!(!slots.revive(0, 7), "it is another's now");
        assert!(slots.revived.is_empty() && slots.resting.is_empty());
    }

    #[test]
    fn all_slots_can_be_in_use_and_then_no_more() {
        let (now, mut slots) = (Instant::now(), Slots::with_bits(12, 4_000));
        let all: HashSet<u32> = (0..4096).map(|session| slots.take(session, now, 0).unwrap()).collect();
        assert_eq!(all.len(), 4096);
        assert_eq!(slots.take(4096, now, 0), None);
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

        /// Whatever sessions come, go and come back: no slot is ever two sessions', and none is used again before its rest.
        #[test]
        fn no_slot_is_two_sessions(steps in prop::collection::vec((0..3_u8, any::<prop::sample::Index>()), 1..80)) {
            let (mut now, mut slots) = (Instant::now(), Slots::with_bits(3, 5));
            let mut live: Vec<(u64, u32)> = Vec::new();
            let mut past: Vec<(u64, u32, Instant)> = Vec::new();
            for (session, (step, pick)) in steps.into_iter().enumerate() {
                let session = session as u64;
                now += QUARANTINE / 5;
                match step {
                    0 => if let Some(slot) = slots.take(session, now, 1) {
                        prop_assert!(live.iter().all(|(_, used)| *used != slot));
                        let rested = |freed: &Instant| now.duration_since(*freed) >= QUARANTINE;
                        prop_assert!(past.iter().all(|(_, used, freed)| *used != slot || rested(freed)));
                        live.push((session, slot));
                    },
                    1 if !live.is_empty() => {
                        let (session, slot) = live.remove(pick.index(live.len()));
                        slots.release(slot, Some(0), now);
                        past.push((session, slot, now));
                    }
                    2 if !past.is_empty() => {
                        let (session, slot, _) = past[pick.index(past.len())];
                        if slots.revive(slot, session) {
                            prop_assert!(live.iter().all(|(_, used)| *used != slot));
                            live.push((session, slot));
                            past.retain(|(ended, _, _)| *ended != session);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
