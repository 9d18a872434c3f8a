//! Records of Sluice's topics (DESIGN 2): the generated types, the envelope around them, and the small types that
//! every crate shares: offsets, epochs, event time, the partition of a key.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod envelope;
mod json;
mod parse;
mod partition;
mod share;
mod types;
mod upgrade;

pub use envelope::{DecodeError, Head, RecordKind, decode, encode, encode_into};
pub use parse::{ShareRecord, peek_share};
pub use partition::{hash32, hash64, partition_of};
pub use share::{Share, encode_share_into};
pub use types::{Epoch, EventTime, Offset, Position};
pub use upgrade::SCHEMA;

/// Types generated from `sluice/v1/sluice.proto`; the comments there are their documentation.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/sluice.v1.rs"));
}

pub use v1::envelope::Body;
