//! Who a session is: its id, its extranonce1, its partition.

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
}

impl Identities {
    /// Identities of the gateway `id` in `epoch`, for sessions in this many partitions served by this many workers.
    pub(crate) fn new(id: u8, epoch: Epoch, partitions: u32, workers: u32) -> Self {
        let slots = Mutex::new(Slots::new(epoch));
        Self { id, epoch, partitions, workers, next: AtomicU64::new(1), slots }
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

    /// The worker of one of this start's sessions; `None` for a session of another gateway or start.
    pub(crate) fn worker_of_session(&self, session: u64) -> Option<u32> {
        let ours = session >> 32 == self.prefix() >> 32;
        ours.then(|| self.worker_of(self.partition(session)))
    }

    fn prefix(&self) -> u64 {
        (u64::from(self.id) << 56) | (u64::from(self.epoch.get() & 0xff_ffff) << 32)
    }

    fn partition(&self, session: u64) -> u32 {
        partition_of(&session.to_be_bytes(), self.partitions)
    }

    /// An identity in one of the partitions of `worker`. Jobs before `live_from` can no longer be cited.
    pub(crate) fn take(&self, worker: u32, live_from: u64) -> Result<Identity, Exhausted> {
        let slot = self.slots.lock().take(Instant::now(), live_from).ok_or(Exhausted::Slots)?;
        let extranonce1 = (u32::from(self.id) << SLOT_BITS) | slot;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number > u64::from(u32::MAX) {
                self.slots.lock().release(slot, None, Instant::now());
                return Err(Exhausted::Numbers);
            }
            let session = self.prefix() | number;
            let partition = self.partition(session);
            if self.worker_of(partition) == worker {
                return Ok(Identity { session, extranonce1, partition });
            }
        }
    }

    /// Gives an identity back; `last_job` is the newest job that was issued to it.
    pub(crate) fn release(&self, identity: Identity, last_job: Option<u64>) {
        let slot = identity.extranonce1 & ((1 << SLOT_BITS) - 1);
        self.slots.lock().release(slot, last_job, Instant::now());
    }
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
}
