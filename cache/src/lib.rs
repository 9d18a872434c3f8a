//! What gateways of one pool share beside the log (DESIGN 9): where the newest job stands, difficulties of sessions, how
//! often an address has connected, bans. In Redis, or in memory for the gateways of one process.
//!
//! Nothing here is the truth of anything: it may be gone, old, or away at any time, and nobody may be paid or judged by it.
//! So nothing here fails. What cannot be read is not there; what cannot be written is counted and forgotten; and both are
//! told at once, since no miner waits for a cache.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod memory;
mod redis;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use self::memory::MemoryCache;
pub use self::redis::{RedisCache, RedisOptions};

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which of two values is newer: the one with the greater number.
    pub version: u64,
    /// The value.
    pub value: Bytes,
}

/// How often something may happen: `count` times in `window`, all of them at once if need be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many times; 0 never.
    pub count: u64,
    /// In this time.
    pub window: Duration,
}

/// What became of a request for a share of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was taken.
    Granted,
    /// The rate is used up; nothing was taken. There is one more after this time.
    Exceeded(Duration),
    /// The cache does not answer: who asks must decide alone.
    Unknown,
}

/// A place to share values of any process of a pool.
pub trait Cache: Send + Sync {
    /// Keeps a value for `ttl`, unless a newer one is there. Returns at once; whether it was kept is not told.
    fn put(&self, key: &str, entry: Entry, ttl: Duration);

    /// The value of a key. `None` if there is none or the cache does not answer, within a quarter of a second in any case.
    fn get(&self, key: &str) -> BoxFuture<'static, Option<Entry>>;

    /// Takes one of a rate that all who ask with this key share. Answers as soon as [`Cache::get`] does.
    fn take(&self, key: &str, rate: Rate) -> BoxFuture<'static, Taken>;

    /// How it is.
    fn health(&self) -> CacheHealth;
}

/// How a cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheHealth {
    /// Requests that were answered, and values that were handed over.
    pub served: u64,
    /// Requests that were not answered, and values that were not kept, since the cache was away or too much waited.
    pub lost: u64,
    /// For how long it has been away, and why; `None` if it is there.
    pub away: Option<(Duration, String)>,
}
