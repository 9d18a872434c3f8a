//! What can go wrong in the ledger.

use sluice_proto::Epoch;

/// Why the ledger could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The `ledger:` address in the topology cannot be used.
    #[error("ledger address: {0}; use sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Url(String),
    /// A record that cannot be right. The task stops (invariant P1).
    #[error("{0}")]
    Record(String),
    /// The database does not answer at the moment. Writing waits and tries again; reading reports it.
    #[error("the ledger's database is not available: {0}")]
    Unavailable(String),
    /// The database gave another transaction precedence. Writing tries again.
    #[error("the ledger's database asks to repeat the transaction: {0}")]
    Conflict(String),
    /// The database refused, and would refuse again.
    #[error("ledger database: {0}")]
    Database(String),
    /// A test wants it to fail (docs/adr/0020).
    #[error(transparent)]
    Injected(#[from] sluice_failpoints::Injected),
    /// What is stored contradicts itself or what is being written.
    #[error("the ledger is inconsistent: {0}")]
    Inconsistent(String),
    /// A sum left the range of its type.
    #[error("the ledger cannot add up {0}: the sum is out of range")]
    Overflow(&'static str),
    /// The ledger was filled from another log (invariant P1).
    #[error(
        "the ledger was filled from the log {stored}, and the log now is {found}: \
         give the ledger a new database, or bring back its log"
    )]
    OtherLog {
        /// UUID of the log the ledger was filled from, hex.
        stored: String,
        /// UUID of the log it is given now, hex.
        found: String,
    },
    /// The ledger does not hold what was handed to it before (invariant P1).
    #[error(
        "the ledger holds {topic}/{partition} up to offset {stored}, but was given it up to {given}: its database is a \
         new one or an old copy; remove the state of the ledger's task, so that it reads its topics again from the \
         start (what the ledger holds is not counted again)"
    )]
    Behind {
        /// Topic.
        topic: String,
        /// Partition.
        partition: u32,
        /// Next offset that the ledger needs.
        stored: u64,
        /// Offset behind the last record that the reader has handed over.
        given: u64,
    },
    /// Another process has the task that writes the ledger.
    #[error(
        "the ledger is written by another process: {task} runs in epoch {by} there, and this process holds epoch {own}; \
         nothing was written, let one of the two run"
    )]
    Replaced {
        /// The task.
        task: String,
        /// The epoch that this process holds.
        own: Epoch,
        /// The highest epoch that has written.
        by: u64,
    },
    /// The work of a block's window is no longer stored.
    #[error(
        "block {block} needs slices from {needed} on, but slices below {pruned} were removed: \
         raise the ledger's `keep` and rebuild it from the log into a new database"
    )]
    Pruned {
        /// Hash of the block, as people write it.
        block: String,
        /// Oldest slice that was to be looked at.
        needed: u64,
        /// Oldest slice there still may be.
        pruned: u64,
    },
    /// [`crate::LedgerStore::interrupt`] was called while a write waited for the database. Nothing was written, or
    /// all of it: repeating the batch finds out.
    #[error("the program is stopping while the ledger's database is not available")]
    Interrupted,
}

/// Result with a [`LedgerError`].
pub type Result<T> = std::result::Result<T, LedgerError>;
