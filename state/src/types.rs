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

/// What a task's state was made from. State is only ever used again by a task that would have made the same: with
/// another log, other inputs or other tables its positions and rows mean nothing (DESIGN 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Name of the task.
    pub task: String,
    /// UUID of the log it reads and writes.
    pub log_uuid: [u8; 16],
    /// How its operators are wired, as text: equal text, equal meaning of the state.
    pub wiring: String,
}

impl Lineage {
    /// Why a state with the lineage `found`, as text, is not one of this task with these tables; `None` if it is.
    pub fn differs(&self, tables: &[TableSpec], found: &str) -> Option<String> {
        first_difference(found, &self.describe(tables))
    }

    /// As it is stored: one fact a line, with the tables in order.
    pub(crate) fn describe(&self, tables: &[TableSpec]) -> String {
        let mut text = format!("format 1\ntask {}\nlog ", self.task);
        for byte in self.log_uuid {
            text.push_str(&format!("{byte:02x}"));
        }
        text.push('\n');
        for line in self.wiring.lines() {
            text.push_str(&format!("wiring {line}\n"));
        }
        for table in tables {
            let group = table.group_prefix.map_or_else(|| "-".to_owned(), |prefix| prefix.to_string());
            text.push_str(&format!("table {} {group}\n", table.name));
        }
        text
    }
}

/// First difference between the lineage that was `found` in a state and the one that is `wanted`, in words.
pub(crate) fn first_difference(found: &str, wanted: &str) -> Option<String> {
    let mut wanted_lines = wanted.lines();
    for line in found.lines() {
        match wanted_lines.next() {
            Some(other) if other == line => {}
            Some(other) => return Some(format!("it was made with \"{line}\", the topology says \"{other}\"")),
            None => return Some(format!("it was made with \"{line}\", which the topology does not have")),
        }
    }
    wanted_lines.next().map(|line| format!("it was made without \"{line}\""))
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
