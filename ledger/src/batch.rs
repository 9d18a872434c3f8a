//! What the ledger is fed with: records of topics in the order they were read, and how far that was.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::{BlockOutcome, SliceEnd, Tally};
use sluice_proto::{Epoch, EventTime, Offset};

use crate::rules::Rules;

/// How long slices are kept at least behind the newest window, where nothing else is said.
pub const DEFAULT_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Records that go into the ledger in one transaction, together with the positions behind them.
///
/// Records that the stored positions already cover are ignored, so a batch that is repeated after a crash, cut
/// differently or not, changes nothing.
#[derive(Clone, Debug)]
pub struct LedgerBatch {
    /// The rules in force. A change is stored as a new version, valid from the next slice on.
    pub rules: Rules,
    /// For how much event time slices are kept behind the newest window that a block may need.
    pub keep: Duration,
    /// The records, in the order of their offsets within each topic partition.
    pub records: Vec<LedgerRecord>,
    /// For each topic partition that was read: the next offset. Covers all of `records`.
    pub positions: Vec<NextOffset>,
    /// Where the reader says it has already handed records over: everything before these offsets. A ledger that knows
    /// less has lost it and refuses the batch (invariant P1). Empty: nothing is said.
    pub after: Vec<NextOffset>,
    /// Who writes it. `None`: whoever asks; only tests and tools write so.
    pub owner: Option<BatchOwner>,
}

/// Which owner of the ledger's task writes a batch (docs/adr/0014).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOwner {
    /// Name of the task, the same for all its owners.
    pub task: String,
    /// Its epoch. Once a higher one has written, the ledger refuses a lower one.
    pub epoch: Epoch,
}

impl LedgerBatch {
    /// An empty batch.
    pub fn new(rules: Rules) -> Self {
        Self { rules, keep: DEFAULT_KEEP, records: Vec::new(), positions: Vec::new(), after: Vec::new(), owner: None }
    }

    /// True if it holds no record and no position.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.positions.is_empty()
    }
}

/// A record and where it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerRecord {
    /// Where it was read.
    pub source: RecordSource,
    /// When the event happened.
    pub event_time: EventTime,
    /// What it says.
    pub event: LedgerEvent,
}

/// Where a record was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSource {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition of the topic.
    pub partition: u32,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Offset in the partition.
    pub offset: Offset,
}

impl fmt::Display for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// What a record tells the ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum LedgerEvent {
    /// Work of one worker in one slice of one partition of the shares.
    Tally(Tally),
    /// A slice of one partition of the shares is complete.
    SliceEnd(SliceEnd),
    /// A step in a block's life.
    Outcome(BlockOutcome),
}

/// How far a topic partition has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextOffset {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: u32,
    /// The next offset to read: everything before it is in the ledger.
    pub next: Offset,
}

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Records that were new.
    pub records: u64,
    /// Records that the ledger already had.
    pub repeats: u64,
    /// Blocks credited.
    pub credited: u64,
    /// Blocks whose credits became available.
    pub matured: u64,
    /// Blocks whose credits were reversed.
    pub reversed: u64,
    /// Outcomes that contradict a block's final state (an orphan after its confirmation, or the other way round):
    /// recorded in the log of the program, and for a person to look at; money stays where it is.
    pub conflicts: u64,
    /// Slices removed because no window can reach them any more.
    pub pruned: u64,
}
