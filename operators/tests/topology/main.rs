//! Every operator in the real runtime, on real logs: the same bytes and the same state, whatever happens to the task
//! (invariant S2), and the share processor fused and split.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../src/testing/nodes.rs"]
mod nodes;
#[path = "../../src/testing/records.rs"]
mod records;
#[path = "../../src/testing/store.rs"]
mod store;

mod determinism;
mod faults;
mod folders;
mod harness;
mod pool;
mod rescale;
mod scenarios;
mod shares;
