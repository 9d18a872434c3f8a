//! Removing old records: on request, and by age and size in the background.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sluice_proto::{EventTime, Offset};

use super::slot::Slot;
use super::store::{ChunkInfo, Store};
use crate::metrics::{Counters, count};
use crate::{LogError, Retention, trim_to};

/// Removes the records of a partition before `before`, except the newest. The new start is durable and readers are
/// held to it before anything is removed.
pub(super) fn trim(store: &Store, slot: &Slot, before: Offset, counters: &Counters) -> Result<(), LogError> {
    let _trimming = slot.trimming.lock();
    let bounds = slot.tail.bounds();
    let Some(start) = trim_to(slot.partition(), bounds, before)? else { return Ok(()) };
    store.put_start(slot.partition(), start)?;
    slot.tail.trim(start);
    count(&counters.trimmed, start - bounds.start.get().max(1));
    store.remove_before(slot.partition(), start)
}

/// Removes what `retention` no longer keeps, in whole chunks.
pub(super) fn retain(
    store: &Store,
    slot: &Slot,
    retention: &Retention,
    now: EventTime,
    counters: &Counters,
) -> Result<(), LogError> {
    let oldest_ms =
        retention.age.map(|age| now.millis().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    let end = slot.head.lock().position;
    let expired = |chunk: &ChunkInfo| {
        oldest_ms.is_some_and(|oldest| chunk.time_ms < oldest)
            || retention.bytes.is_some_and(|most| end.saturating_sub(chunk.position) > most)
    };
    let bounds = slot.tail.bounds();
    let first = bounds.start.get().max(1);
    let newest = bounds.next.get().saturating_sub(1);
    let kept = first_kept(store, slot, first, newest, &expired)?;
    if kept <= first {
        return Ok(());
    }
    tracing::debug!(partition = %slot.partition(), from = first, to = kept, "removing records beyond retention");
    trim(store, slot, Offset::new(kept), counters)
}

/// The first offset from `low` to `high` whose chunk has not expired, or `high`. Chunks expire in order, so halving finds it.
fn first_kept(
    store: &Store,
    slot: &Slot,
    mut low: u64,
    mut high: u64,
    expired: &dyn Fn(&ChunkInfo) -> bool,
) -> Result<u64, LogError> {
    // Most passes find nothing to do: look at the oldest chunk first.
    let mut at = low;
    while low < high {
        let chunk = store.chunk_at(slot.partition(), at)?.ok_or_else(|| {
            LogError::Corrupt(format!("{}: offset {at} of {} is missing", store.dir().display(), slot.partition()))
        })?;
        if expired(&chunk) {
            low = chunk.end.min(high);
        } else {
            high = chunk.first.clamp(low, high);
        }
        at = low + (high - low) / 2;
    }
    Ok(low)
}

/// When the background pass runs next, and that it ends.
#[derive(Debug, Default)]
pub(super) struct Pace {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Pace {
    /// Waits for `interval`; false if the log is being closed.
    pub(super) fn wait(&self, interval: Duration) -> bool {
        let mut ended = self.ended.lock();
        if !*ended {
            self.changed.wait_for(&mut ended, interval);
        }
        !*ended
    }

    /// Ends the background pass.
    pub(super) fn end(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }
}

/// One pass over all partitions. A partition that fails is reported and does not keep the others from their turn.
pub(super) fn pass(store: &Store, slots: &[(Arc<Slot>, Retention)], counters: &Counters) -> Result<(), LogError> {
    let mut result = Ok(());
    for (slot, retention) in slots.iter().filter(|(_, r)| r.age.is_some() || r.bytes.is_some()) {
        if let Err(error) = retain(store, slot, retention, EventTime::now(), counters) {
            tracing::error!(partition = %slot.partition(), %error, "old records could not be removed");
            result = Err(error);
        }
    }
    result
}
