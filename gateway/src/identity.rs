//! Who a session is: its id, its extranonce1, its partition.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_proto::{Epoch, partition_of};

use crate::extranonce::{SLOT_BITS, Slots};

/// Who a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Session id, unique across gateways and starts: gateway (8 bits), epoch (24 bits), number (32 bits).
    pub(crate) session: u64,
    /// Extranonce1: gateway (8 bits), slot (24 bits).
    pub(crate) extranonce1: u32,
    /// Partition of `share.submissions`.
    pub(crate) partition: u32,
}

/// Why a session gets no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    /// All slots of extranonce1 are in use, or rest because of jobs that can still be cited.
    #[error("all 2^24 slots of extranonce1 are in use or rest: add a gateway with another id")]
    Slots,
    /// All session numbers of this start are used up.
    #[error("all 2^32 session numbers of this start are used up: restart the gateway")]
    Numbers,
}

/// Identities of a gateway, drawn by all its workers.
#[derive(Debug)]
pub(crate) struct Identities {
    id: u8,
    epoch: Epoch,
    partitions: u32,
    workers: u32,
    next: AtomicU64,
    slots: Mutex<Slots>,
    /// Live sessions that began at another gateway or start.
    adopted: Mutex<HashSet<u64>>,
}

impl Identities {
    /// Identities of the gateway `id` in `epoch`, for sessions in this many partitions served by this many workers.
    pub(crate) fn new(id: u8, epoch: Epoch, partitions: u32, workers: u32) -> Self {
        let slots = Mutex::new(Slots::new(epoch));
        Self { id, epoch, partitions, workers, next: AtomicU64::new(1), slots, adopted: Mutex::default() }
    }

    /// Identities of which none is left.
    #[cfg(test)]
    pub(crate) fn exhausted() -> Self {
        let none = Self::new(0, Epoch::default(), 1, 1);
        none.next.store(1 << 32, Ordering::Relaxed);
        none
    }

    /// The worker that a partition belongs to.
    pub(crate) fn worker_of(&self, partition: u32) -> u32 {
        partition % self.workers
    }

    /// The worker that serves a session if it is here: that of the session's partition.
    pub(crate) fn home_of(&self, session: u64) -> u32 {
        self.worker_of(self.partition(session))
    }

    /// The worker of a session that may be live here: one of this start, or one that was adopted.
    pub(crate) fn worker_of_session(&self, session: u64) -> Option<u32> {
        let ours = self.began_here(session) || self.adopted.lock().contains(&session);
        ours.then(|| self.home_of(session))
    }

    fn began_here(&self, session: u64) -> bool {
        session >> 32 == self.prefix() >> 32
    }

    fn prefix(&self) -> u64 {
        (u64::from(self.id) << 56) | (u64::from(self.epoch.get() & 0xff_ffff) << 32)
    }

    fn partition(&self, session: u64) -> u32 {
        partition_of(&session.to_be_bytes(), self.partitions)
    }

    /// An identity in one of the partitions of `worker`. Jobs before `live_from` can no longer be cited.
    pub(crate) fn take(&self, worker: u32, live_from: u64) -> Result<Identity, Exhausted> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number > u64::from(u32::MAX) {
                return Err(Exhausted::Numbers);
            }
            let session = self.prefix() | number;
            if self.home_of(session) == worker {
                return self.identity(session, live_from);
            }
        }
    }

    /// An identity for a session that began at another gateway or start: its id, and with it its partition, but an
    /// extranonce1 of this gateway's.
    pub(crate) fn adopt(&self, session: u64, live_from: u64) -> Result<Identity, Exhausted> {
        let identity = self.identity(session, live_from)?;
        self.come(session);
        Ok(identity)
    }

    /// `session` with a fresh extranonce1.
    pub(crate) fn identity(&self, session: u64, live_from: u64) -> Result<Identity, Exhausted> {
        let slot = self.slots.lock().take(session, Instant::now(), live_from).ok_or(Exhausted::Slots)?;
        let extranonce1 = (u32::from(self.id) << SLOT_BITS) | slot;
        Ok(Identity { session, extranonce1, partition: self.partition(session) })
    }

    /// Takes an identity back that was released; false if its slot is no longer kept for it.
    pub(crate) fn revive(&self, identity: Identity) -> bool {
        let revived = self.slots.lock().revive(slot_of(identity.extranonce1), identity.session);
        if revived {
            self.come(identity.session);
        }
        revived
    }

    fn come(&self, session: u64) {
        if !self.began_here(session) {
            self.adopted.lock().insert(session);
        }
    }

    /// The session that an extranonce1 of this gateway is or was last of, while it is in use or rests.
    pub(crate) fn session_of(&self, extranonce1: u32) -> Option<u64> {
        let ours = extranonce1 >> SLOT_BITS == u32::from(self.id);
        if ours { self.slots.lock().session_of(slot_of(extranonce1)) } else { None }
    }

    /// Gives an extranonce1 back, with which `last_job` was the newest job issued.
    pub(crate) fn release_slot(&self, extranonce1: u32, last_job: Option<u64>) {
        self.slots.lock().release(slot_of(extranonce1), last_job, Instant::now());
    }

    /// Gives an identity back; `last_job` is the newest job that was issued to it.
    pub(crate) fn release(&self, identity: Identity, last_job: Option<u64>) {
        if !self.began_here(identity.session) {
            self.adopted.lock().remove(&identity.session);
        }
        self.release_slot(identity.extranonce1, last_job);
    }
}

fn slot_of(extranonce1: u32) -> u32 {
    extranonce1 & ((1 << SLOT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_of_its_gateway_its_start_and_its_worker() {
        let identities = Identities::new(7, Epoch::new(0x0100_0002), 8, 3);
        let mut seen = std::collections::HashSet::new();
        for round in 0..300 {
            let identity = identities.take(round % 3, 0).unwrap();
            assert!(seen.insert(identity.session) && seen.insert(u64::from(identity.extranonce1)));
            assert_eq!(identity.session >> 32, 0x0700_0002);
            assert_eq!(identity.extranonce1 >> 24, 7);
            assert_eq!(identity.partition, partition_of(&identity.session.to_be_bytes(), 8));
            assert_eq!(identity.partition % 3, round % 3);
            assert_eq!(identities.worker_of_session(identity.session), Some(round % 3));
        }
        assert_eq!(identities.worker_of_session(0x0700_0003_0000_0001), None, "of another start");
        assert_eq!(identities.worker_of_session(0x0600_0002_0000_0001), None, "of another gateway");
    }

    #[test]
    fn numbers_run_out_once_and_for_all() {
        let identities = Identities::new(0, Epoch::new(1), 1, 1);
        identities.next.store(u64::from(u32::MAX), Ordering::Relaxed);
        assert!(identities.take(0, 0).is_ok());
        assert_eq!(identities.take(0, 0), Err(Exhausted::Numbers));
        assert_eq!(identities.take(0, 0), Err(Exhausted::Numbers));
    }

    /// Trap 7: whatever sessions two gateways give each other, no extranonce1 is given out by both.
    #[test]
    fn trap_07_two_gateways_never_give_out_one_extranonce1_adopted_sessions_included() {
        let one = Identities::new(1, Epoch::new(9), 8, 2);
        let two = Identities::new(2, Epoch::new(9), 8, 3);
        let mut seen = HashSet::new();
        for round in 0..500 {
            let (ours, theirs) = (one.take(round % 2, 0).unwrap(), two.take(round % 3, 0).unwrap());
            let (here, there) = (one.adopt(theirs.session, 0).unwrap(), two.adopt(ours.session, 0).unwrap());
            assert!([ours, theirs, here, there].iter().all(|identity| seen.insert(identity.extranonce1)));
            assert_eq!((here.extranonce1 >> 24, there.extranonce1 >> 24), (1, 2));
            assert_eq!((here.session, here.partition), (theirs.session, theirs.partition), "it stays in its partition");
            assert_eq!(one.worker_of_session(theirs.session), Some(theirs.partition % 2), "it is served here");
            one.release(here, Some(1));
            assert_eq!(one.worker_of_session(theirs.session), None);
        }
    }

    #[test]
    fn a_session_takes_back_what_rests_for_it() {
        let identities = Identities::new(1, Epoch::new(9), 8, 1);
        let identity = identities.take(0, 0).unwrap();
        assert_eq!(identities.session_of(identity.extranonce1), Some(identity.session));
        assert_eq!(identities.session_of(identity.extranonce1 ^ (3 << 24)), None, "of another gateway");
        identities.release(identity, Some(4));
        assert!(!identities.revive(Identity { session: identity.session + 1, ..identity }));
        assert!(identities.revive(identity));
        identities.release(identity, None);
        assert!(!identities.revive(identity), "without a job it did not rest");
    }
}
