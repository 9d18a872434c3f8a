//! The producer's side of a lane.

use sluice_proto::v1::Coordinates;
use sluice_proto::{Epoch, Position};

use super::Lane;

/// The end of one lane in one destination partition, on the producer's side: gives each record its coordinates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneTail {
    last: Option<Position>,
}

impl LaneTail {
    /// A lane that ends with `last`.
    pub fn after(last: Option<Position>) -> Self {
        Self { last }
    }

    /// The last record of the lane.
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// Coordinates of the next record of the source `lane`: it is counted from the last one on, or from 1.
    pub fn next_of_source(&mut self, lane: Lane, epoch: Epoch) -> Coordinates {
        let number = self.last.map_or(1, |last| last.offset.saturating_add(1));
        self.next(lane, epoch, number)
    }

    /// Coordinates of the next record of `lane`, made from the source record `source_offset`. The ordinal counts the
    /// records from one source record to this partition alone, so that it does not depend on where else they go.
    pub fn next(&mut self, lane: Lane, epoch: Epoch, source_offset: u64) -> Coordinates {
        let ordinal = match self.last {
            Some(last) if last.offset == source_offset => last.ordinal.saturating_add(1),
            _ => 0,
        };
        let previous = self.last.unwrap_or_default();
        self.last = Some(Position { offset: source_offset, ordinal });
        Coordinates {
            task: lane.task,
            epoch: epoch.get(),
            source_topic: lane.source_topic,
            source_partition: lane.source_partition,
            source_offset,
            ordinal,
            prev_offset: previous.offset,
            prev_ordinal: previous.ordinal,
        }
    }
}
