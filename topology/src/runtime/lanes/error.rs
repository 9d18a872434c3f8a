//! What is wrong with a record's place on its lane.

use sluice_proto::{Epoch, Position};

/// A record that cannot be the next one of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The record names another predecessor than the last record of its lane.
    #[error(
        "a record of task {task:016x} epoch {epoch} at {at:?} follows {names:?}, but the last one read was {last:?}: \
         records are missing in between"
    )]
    Broken {
        /// Hash of the producing task's name.
        task: u64,
        /// Its epoch.
        epoch: Epoch,
        /// Where the record stands.
        at: Position,
        /// The predecessor it names.
        names: Option<Position>,
        /// The last record of the lane that was read.
        last: Option<Position>,
    },
    /// The record does not say which source record it was made from.
    #[error("a record of task {task:016x} has no position on its lane")]
    NoPosition {
        /// Hash of the producing task's name.
        task: u64,
    },
}
