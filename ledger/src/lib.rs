//! What miners are owed (DESIGN 9, invariant M1).
//!
//! ```text
//! share.tallies  --\
//!                   LedgerBatch --apply, one transaction--> slices, blocks, credits, postings, positions
//! block.outcomes --/                                        (SQLite or PostgreSQL, one code above both)
//! ```
//!
//! - Work is stored as [`Score`]s by [slice](batch) of event time and account. Sums do not care in which order
//!   partitions arrive.
//! - A block is credited once every partition has closed the slice of the block's share, by the [`window`] that ends
//!   with that slice, under the [`Rules`] that were in force in that slice.
//! - Money moves only by double [entry](posting): pending until the block is confirmed, then available; reversed by
//!   mirrored transfers if it is orphaned. Each entry has a key that the database takes once.
//! - The positions of the inputs are part of each transaction: what they cover is never applied again.
//!
//! The pure parts are [`score`], [`window`], [`split`], [`schemes`], [`posting`] and [`block`]; they do no I/O.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod batch;
pub mod block;
pub mod error;
pub mod posting;
pub mod rules;
pub mod schemes;
pub mod score;
pub mod split;
pub mod store;
pub mod window;

mod backoff;
mod postgres;
mod sql;
mod sqlite;

pub use batch::{Applied, BatchOwner, LedgerBatch, LedgerEvent, LedgerRecord, NextOffset, RecordSource};
pub use block::{ChainState, CreditState, Step};
pub use error::LedgerError;
pub use postgres::open_postgres;
pub use rules::{BasisPoints, RuleVersion, Rules, Scheme};
pub use score::Score;
pub use sqlite::open_sqlite;
pub use store::{
    Balance, BlockCursor, BlockRow, CreditRow, LedgerDigest, LedgerStore, PoolTotals, RewardRow, Snapshot,
    TrialBalance, Verification,
};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long [`open`] waits for a database that is not there yet.
pub const OPEN_WAIT: Duration = Duration::from_secs(30);

/// Opens the ledger at `url`, creates or migrates its tables: `sqlite:PATH` (or `sqlite://PATH`), or
/// `postgres://USER:PASSWORD@HOST/DATABASE` and the other forms of libpq's connection strings.
///
/// # Errors
/// If the address is not understood, the database cannot be opened, does not answer for [`OPEN_WAIT`], or was
/// written by a newer program. No error shows the password.
pub fn open(url: &str) -> Result<Arc<dyn LedgerStore>, LedgerError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(LedgerError::Url("the path of the SQLite file is missing".into()));
        }
        return open_sqlite(Path::new(path));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return open_postgres(url, OPEN_WAIT);
    }
    let scheme = url.split(':').next().unwrap_or_default();
    Err(LedgerError::Url(format!("'{scheme}:' is no kind of database")))
}
