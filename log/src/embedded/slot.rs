//! A partition of the open log.

use parking_lot::Mutex;

use super::mark::Marked;
use super::store::Found;
use crate::Partition;
use crate::chunk::Head;
use crate::tail::Tail;

/// A partition of the open log.
#[derive(Debug)]
pub(super) struct Slot {
    /// Where the appender puts the next record; nobody else moves it.
    pub(super) head: Mutex<Head>,
    /// What readers see.
    pub(super) tail: Tail,
    /// Hash of its name, which stands for it in the log's mark.
    pub(super) name_hash: u64,
    /// Held while records are removed.
    pub(super) trimming: Mutex<()>,
}

impl Slot {
    /// The slot of a partition as it was found, with at most `tail_bytes` of it in memory.
    pub(super) fn new(found: Found, tail_bytes: usize) -> Self {
        let Found { partition, genesis, start, head } = found;
        let name_hash = Marked::name(&partition);
        let tail = Tail::new(partition, genesis, start, head.next, tail_bytes);
        Self { head: Mutex::new(head), tail, name_hash, trimming: Mutex::new(()) }
    }

    /// Which partition it is.
    pub(super) fn partition(&self) -> &Partition {
        self.tail.partition()
    }
}
