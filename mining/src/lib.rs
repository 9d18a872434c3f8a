//! The Bitcoin domain, pure (DESIGN 8): targets, difficulty and work as exact integers, templates to jobs, judging
//! shares, putting blocks together. No I/O, no clock.
//!
//! Hashes are in internal byte order (as hashed) unless a name says `wire` or `hex`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod amount;
pub mod block;
mod chain;
mod difficulty;
mod hash;
pub mod job;
pub mod merkle;
pub mod node;
mod table;
mod target;
pub mod template;
pub mod wire;

pub use amount::{Sats, Work};
pub use chain::{AddressError, Chain, payout_script};
pub use difficulty::{Difficulty, Issued, IssuedCache, SILENCE};
pub use hash::{double_sha256, header_hash};
pub use job::{Extranonce, JobError, Judgement, PreparedJob, Rolled};
pub use table::{JobTable, Known};
pub use target::{Target, TargetError};

/// Size of extranonce1, in bytes (DESIGN 7).
pub const EXTRANONCE1_SIZE: usize = 4;
/// Size of extranonce2, in bytes: 4 + 8 is what all firmware takes.
pub const EXTRANONCE2_SIZE: usize = 8;
