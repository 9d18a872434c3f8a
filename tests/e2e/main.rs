//! End-to-end tests: the real program, real Bitcoin Core, PostgreSQL and Kafka, miners over TCP.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod books;
mod checkpoints;
mod cluster;
mod commands;
mod common;
mod crash;
mod dead_letters;
mod demo;
mod drain;
mod failpoints;
mod kafka;
mod maturity;
mod moved;
mod parts;
mod released;
mod replay;
mod rescale;
mod signet;
mod stores;
mod swarm;
