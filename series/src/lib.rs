//! Time series (DESIGN 9): points that people draw charts from, written to a server of InfluxDB.
//!
//! A [`Point`] holds the *absolute totals* of a cell of event time, at the time the cell begins. Its identity is its
//! measurement, tags and time: written again, it replaces what was there. So nothing is counted twice whatever is repeated,
//! and whoever writes may begin anew at any time.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod influxdb;
mod memory;

use std::time::Duration;

pub use influxdb::{InfluxDb, InfluxOptions};
pub use memory::MemorySeries;

/// Totals of one cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What is measured.
    pub measurement: &'static str,
    /// Whose it is, by name. What InfluxDB cannot hold in a value (line breaks, a backslash at its end, nothing) is
    /// replaced when it is written.
    pub tags: Vec<(&'static str, String)>,
    /// The totals, at least one.
    pub fields: Vec<(&'static str, Field)>,
    /// When the cell begins, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field {
    /// A number of things; InfluxDB's integers end at 2^63.
    Count(u64),
    /// Expected hashes. No type of InfluxDB holds them whole, so what is written is the nearest float: for charts, and
    /// nothing is ever computed from it here.
    Work(u128),
}

/// A place for time series.
pub trait SeriesStore: Send + Sync {
    /// Writes points; returns once the server has said that it has all of them. A server that is away, or refuses, is asked
    /// again for as long as it takes: the caller lags, and loses nothing.
    ///
    /// # Errors
    /// [`SeriesError::Interrupted`] after [`SeriesStore::interrupt`]; some of the points may have been written.
    fn write(&self, points: &[Point]) -> Result<(), SeriesError>;

    /// Ends writes that wait, now and later: for the end of the program.
    fn interrupt(&self);

    /// How it is.
    fn health(&self) -> SeriesHealth;
}

/// How a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesHealth {
    /// Points that the server has taken.
    pub written: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// For how long the current points have been refused, and what the server or the system said last; `None` if nothing
    /// waits.
    pub waiting: Option<(Duration, String)>,
}

/// Why points were not written.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// The program is stopping.
    #[error("stopped while the time series waited for their server")]
    Interrupted,
    /// What was configured cannot be used.
    #[error("time series: {0}")]
    Options(String),
}
