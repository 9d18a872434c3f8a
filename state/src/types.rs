//! Tables, digests, errors.

use std::fmt;

/// A table of a task's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name, unique in the task: `operator.table`.
    pub name: String,
    /// Length of the key prefix that groups rows which expire together, in bytes; `None` where rows go one by one.
    pub group_prefix: Option<usize>,
}

impl TableSpec {
    /// A table whose rows are removed one by one.
    pub fn plain(name: impl Into<String>) -> Self {
        Self { name: name.into(), group_prefix: None }
    }

    /// A table whose rows expire by ranges of their first `prefix` bytes.
    pub fn grouped(name: impl Into<String>, prefix: usize) -> Self {
        Self { name: name.into(), group_prefix: Some(prefix) }
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
    /// What is on disk is damaged, or was written by another topology or program.
    #[error("state {path}: {what}")]
    Foreign {
        /// Directory of the state.
        path: String,
        /// What does not fit.
        what: String,
    },
    /// The storage failed.
    #[error("state storage: {0}")]
    Storage(String),
}
