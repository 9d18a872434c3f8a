//! Real and simulated parts for tests and the demo.
//!
//! Real: [`bitcoind`], [`postgres`], [`kafka`], [`influxdb`], [`redis`], [`foreign`] (a miner and a pool that nobody here wrote), [`harness`] (the program itself as a
//! process). Simulated: [`simnode`] for the demo and for faults, [`miner`] with real hashes, [`stratum`] for tests that
//! speak to the gateway line by line, [`swarm`] for load: many miners at once, on any pool.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod addresses;
pub mod bitcoind;
pub mod foreign;
pub mod harness;
pub mod influxdb;
pub mod kafka;
mod login;
pub mod miner;
pub mod postgres;
mod programs;
pub mod redis;
pub mod rpc;
pub mod simnode;
pub mod stratum;
pub mod swarm;
pub mod work;

pub use programs::free_port;
