//! When things are received, by a clock that may jump.

use sluice_proto::EventTime;

/// Stamps of a worker: what the clock says, but never before the last one. Along a partition time never goes back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamps(EventTime);

impl Stamps {
    /// The stamp of what comes when the clock says `clock`.
    pub(crate) fn at(&mut self, clock: EventTime) -> EventTime {
        self.0 = self.0.max(clock);
        self.0
    }

    /// How far the last stamp is ahead of `clock`, which has gone back; nanoseconds.
    pub(crate) fn ahead_of(&self, clock: EventTime) -> u64 {
        self.0.nanos_since(clock)
    }
}
