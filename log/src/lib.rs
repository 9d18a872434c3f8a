//! The log (DESIGN 4): topics of partitions of records, durable, ordered, read by offset.
//!
//! One trait, several back ends, one conformance suite ([`conformance`]). The log knows nothing of what records mean:
//! it stores bytes. Position belongs to the reader's state, never to the log.
//!
//! Two words are never mixed up here: *written* means handed to the operating system, *durable* means it survives the
//! loss of power (or, on a replicated log, of a broker). An append resolves when it is durable.

mod types;

pub use types::{Bounds, LogError, Partition, Record, Retention, TopicInfo, TopicSpec};

use bytes::Bytes;
use futures::future::BoxFuture;
use sluice_proto::Offset;
use std::sync::Arc;
use std::time::Duration;

/// A log of topics.
///
/// # What every back end holds to
/// - Appends to one partition become durable in the order of the calls to [`Log::append`]; the order is fixed by the
///   call, not by the first poll of the future.
/// - A future of `append` that resolves to `Ok` means that the whole batch is durable and has been given consecutive
///   places in the partition's order; offsets grow but may have holes.
/// - Once an append has failed for another reason than its arguments, every later append fails too: nothing may become
///   durable behind a hole. The log is opened again to go on.
/// - A reader sees durable records only, in order, each once.
/// - Offset 0 of each partition is a genesis record, written when the topic is created.
pub trait Log: Send + Sync + 'static {
    /// Identity of the log, made when it was created.
    fn uuid(&self) -> [u8; 16];

    /// Creates a topic, or changes the retention of one that exists. Idempotent.
    ///
    /// # Errors
    /// [`LogError::PartitionCount`] if it exists with another number of partitions.
    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>>;

    /// All topics, by name.
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>>;

    /// Appends `batch` to a partition; resolves to the offset of its first record once all of it is durable.
    /// An empty batch resolves at once to the partition's next offset.
    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>>;

    /// Records of a partition from offset `from` on, at most about `max_bytes` of them but at least one if there is
    /// any. Where there is none yet, waits up to `wait` for one to become durable, then returns an empty list.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] if `from` has been trimmed away or lies beyond the next offset: a reader's position
    /// that does not fit the log is never reset silently (invariant P1).
    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>>;

    /// First offset that is still there and the offset the next record will get.
    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>>;

    /// Removes the records before `before`. The genesis record stays readable by offset 0.
    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>>;
}

/// A log shared by everything in the process.
pub type SharedLog = Arc<dyn Log>;
