//! The Stratum V1 gateway (DESIGN 7): miners' connections on one side, topics on the other.
//!
//! ```text
//! mining.jobs -------> job feed --(rendered once)--> worker 0 --> share.submissions, its partitions
//! difficulty.targets > target feeds ---------------> worker 1 --> block.candidates, at once
//! TCP ---------------> acceptor ------------------->   ...
//! ```
//!
//! - A **worker** is a thread with connections, a table of jobs and a set of accepted headers of its own, so there is
//!   no lock on the way of a share. It judges with the function that `verify` uses, as of the job clock that it writes
//!   into the submission, so that its answer is the later verdict (invariant S2).
//! - Every partition of `share.submissions` belongs to one worker. A session's id is drawn until it falls into a
//!   partition of its worker, so one worker writes a partition and stamps in it never go backwards. A connection that
//!   goes on with an earlier session (docs/adr/0012) is handed over to that session's worker.
//! - Submissions of one turn of a worker's loop are appended together. A share is answered once its append is durable
//!   (invariant S1), in the order of the session's submits.
//! - A share that makes a block goes to the block lane before anything else is done with it (invariant B1).
//! - What stands in front of a session is a connection's own: the load balancer's header, TLS, and the limits of the
//!   miner's address. None of it is asked where a listener does not have it.
//!
//! # Queues
//! A session has at most `in_flight` unanswered shares, and a worker 65,536: beyond either the gateway stops reading
//! from the miner, and TCP holds it back. What a miner does not read is kept up to `output_limit` bytes; beyond it the
//! miner is disconnected, counted and logged.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod acceptor;
mod cached;
mod config;
mod connection;
mod duplicates;
mod error;
mod extranonce;
mod gateway;
mod history;
mod identity;
#[doc(hidden)]
pub mod internals;
mod jobs;
mod judge;
mod kind;
mod limits;
mod listener;
mod outlet;
mod plan;
mod protocol;
mod proxy;
mod resume;
mod rounds;
mod session;
mod shared;
mod stamps;
mod status;
mod targets;
#[cfg(test)]
mod testing;
mod tls;
mod users;
mod worker;

pub use config::GatewayConfig;
pub use error::GatewayError;
pub use gateway::{Gateway, GatewayIo};
pub use kind::KIND;
pub use limits::{LimitConfig, LimitStatus};
pub use listener::{ListenerConfig, TlsFiles};
pub use status::{GatewayStatus, LatestJob, ListenerStatus};
