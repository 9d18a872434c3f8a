//! Real and simulated parts for tests and the demo.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod miner;
pub mod postgres;
pub mod rpc;
pub mod simnode;
pub mod stratum;
pub mod work;
