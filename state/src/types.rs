//! Tables, digests, errors.

use std::fmt;

/// Brings one row (key, value) of a table from one version to the next; `None` drops it. Two rows must not become one.
///
/// # Errors
/// What is wrong with the row, in words.
pub type TableStep = fn(&[u8], &[u8]) -> Stepped;

/// A row of the next version as key and value; `None` if it has no such row; or why the row cannot be right.
pub type Stepped = Result<Option<(Vec<u8>, Vec<u8>)>, String>;

/// A table of a task's state.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Its name, unique in the task: `operator.table`.
    pub name: String,
    /// Length of the key prefix that groups rows which expire together, in bytes; `None` where rows go one by one.
    pub group_prefix: Option<usize>,
    /// What brings rows of version 1 to version 2, from there to version 3, and so on.
    pub steps: &'static [TableStep],
}

impl TableSpec {
    /// A table whose rows are removed one by one.
    pub fn plain(name: impl Into<String>) -> Self {
        Self { name: name.into(), group_prefix: None, steps: &[] }
    }

    /// A table whose rows expire by ranges of their first `prefix` bytes.
    pub fn grouped(name: impl Into<String>, prefix: usize) -> Self {
        Self { name: name.into(), group_prefix: Some(prefix), steps: &[] }
    }

    /// Version of the rows that this program writes: one more than there are steps.
    pub fn version(&self) -> u32 {
        self.steps.len() as u32 + 1
    }
}

/// Order-independent digest of a table's rows: the sum, modulo 2^128, of a 128-bit hash of each row. It is kept up to
/// date change by change; equal tables have equal digests, however they came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// The digest with this number.
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    /// Its number.
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// With a row hash added.
    #[must_use]
    pub const fn plus(self, row: u128) -> Self {
        Self(self.0.wrapping_add(row))
    }

    /// With a row hash taken away.
    #[must_use]
    pub const fn minus(self, row: u128) -> Self {
        Self(self.0.wrapping_sub(row))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Why state could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// A table name that the state was not opened with.
    #[error("the state has no table {0:?}")]
    NoTable(String),
    /// A call that the table's kind does not allow: a mistake in the program.
    #[error("internal error in state table {table}: {what}")]
    Misuse {
        /// The table.
        table: String,
        /// What was asked of it.
        what: &'static str,
    },
    /// What is on disk was written by another topology or program.
    #[error("state {path}: {what}")]
    Foreign {
        /// Directory of the state.
        path: String,
        /// What does not fit.
        what: String,
    },
    /// What is on disk was written by a newer program.
    #[error("state {path}: {what}")]
    Newer {
        /// Directory of the state.
        path: String,
        /// What this program cannot read.
        what: String,
    },
    /// What is on disk is damaged.
    #[error(
        "the state in {path} is damaged: {what}; restore a checkpoint (`sluice checkpoint restore`), or let it be made \
         again (`sluice run --rebuild`)"
    )]
    Damaged {
        /// Directory of the state.
        path: String,
        /// What was found.
        what: String,
    },
    /// A checkpoint is damaged, or of another topology or log.
    #[error("checkpoint {path} cannot be used: {what}")]
    Checkpoint {
        /// Its directory.
        path: String,
        /// Why.
        what: String,
    },
    /// The storage failed.
    #[error("state storage: {0}")]
    Storage(String),
}
