//! State of tasks (DESIGN 5): named tables of bytes, read-your-writes, committed in one atomic step together with the
//! positions of the inputs that led to it.
//!
//! ```text
//! operators --> Tables (overlay of uncommitted changes, digests) --commit--> Backend (RocksDB, or memory in tests)
//! ```

mod types;

pub use types::{Digest, StateError, TableSpec};

use bytes::Bytes;

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

/// Where committed state lives. One per task. [`Tables`] puts the overlay and the digests above it.
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

    /// A handle that reads the committed state from other threads.
    fn reader(&self) -> std::sync::Arc<dyn Reader>;
}

/// Reads the committed state of a task from any thread: for the API, never for operators.
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
}
