//! State of tasks (DESIGN 5): named tables of bytes, read-your-writes, committed in one atomic step together with the
//! positions of the inputs that led to it.
//!
//! ```text
//! operators --> Tables (overlay of uncommitted changes, digests) --commit--> Backend (RocksDB, or memory in tests)
//! ```
//!
//! The log is the durable truth: state can always be made again from it. So a commit is written but not synced; a kill
//! of the process loses nothing of it, a loss of power may lose the last commits, all of a commit or none of it, and
//! the task then repeats the batches behind the last commit that is left ([`Backend::sync`] makes all of them durable).

pub mod checkpoint;
mod commits;
mod digest;
mod env;
mod lineage;
mod memory;
mod rocks;
mod stored;
mod tables;
mod types;
mod upgrade;

pub use digest::row_hash;
pub use env::{MemoryLimits, OpenBackend, StateEnv, is_occupied, state_directory, state_now};
pub use lineage::{Fit, Lineage, LineageError, StoredLineage, TableVersion};
pub use memory::MemoryBackend;
pub use rocks::RocksBackend;
pub use stored::{StoredState, StoredTable, states_in};
pub use tables::Tables;
pub use types::{Digest, StateError, Stepped, TableSpec, TableStep};

use bytes::Bytes;

/// Name of the table that every back end adds behind those it is opened with.
pub const SYSTEM_TABLE: &str = "sluice.system";

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key of a table.
    Put {
        /// Index of the table among the specs the back end was opened with.
        table: usize,
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Removes a key of a table.
    Delete {
        /// Index of the table.
        table: usize,
        /// Key.
        key: Bytes,
    },
    /// Removes all keys in `from..to` of a table.
    DeleteRange {
        /// Index of the table.
        table: usize,
        /// First key removed.
        from: Bytes,
        /// First key kept.
        to: Bytes,
    },
}

impl Change {
    /// Index of the table it changes.
    pub fn table(&self) -> usize {
        match self {
            Self::Put { table, .. } | Self::Delete { table, .. } | Self::DeleteRange { table, .. } => *table,
        }
    }
}

/// Where committed state lives. One per task. [`Tables`] puts the overlay and the digests above it.
///
/// A back end opened with `n` table specs has `n + 1` tables: the last one, [`SYSTEM_TABLE`], is where [`Tables`] keeps
/// lineage, digests, and what the runtime commits along with the rows.
pub trait Backend: Send {
    /// Committed value of `key`.
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Calls `visit` with each committed key and value in `from..to` (`None`: to the end) in key order, until it
    /// returns `false`.
    fn scan(
        &self,
        table: usize,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError>;

    /// Applies all changes, in order, or none of them.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StateError>;

    /// Makes all commits durable.
    fn sync(&mut self) -> Result<(), StateError>;

    /// A handle that reads the committed state from other threads.
    fn reader(&self) -> std::sync::Arc<dyn Reader>;
}

/// Reads the committed state of a task from any thread: for the API and for checkpoints, never for operators.
pub trait Reader: Send + Sync {
    /// Committed value of `key` of the table with this name.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// As [`Backend::scan`], by table name.
    fn scan(
        &self,
        table: &str,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError>;
    /// Copies the committed state to the directory `into`, which must not exist, as a database of its own; files that
    /// never change are hard links. The task goes on meanwhile.
    fn checkpoint(&self, into: &std::path::Path) -> Result<(), StateError> {
        Err(StateError::Storage(format!("no checkpoint {}: the state is not on disk", into.display())))
    }
}
