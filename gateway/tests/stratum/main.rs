//! The gateway over real sockets and real logs: what miners see, and what the topics hold afterwards.

#![allow(clippy::unwrap_used, clippy::panic)]

mod addresses;
mod drain;
mod jobs;
mod limits;
mod listeners;
mod logs;
mod pool;
mod replay;
mod restart;
mod resume;
mod shares;
mod tls;
mod transcripts;
