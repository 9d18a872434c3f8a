//! The log (DESIGN 4): topics of partitions of records, durable, ordered, read by offset.
//!
//! One trait, several back ends, one conformance suite ([`conformance`]). The log knows nothing of what records mean:
//! it stores bytes. Position belongs to the reader's state, never to the log.
//!
//! Two words are never mixed up here: *written* means handed to the operating system, *durable* means it survives the
//! loss of power (or, on a replicated log, of a broker). An append resolves when it is durable; on Fluvio, which syncs nothing,
//! when all copies have written it ([`FluvioLog`]).

#![cfg_attr(test, allow(clippy::panic, clippy::unwrap_used))]

mod chunk;
pub mod conformance;
mod embedded;
mod fluvio;
mod genesis;
mod kafka;
mod memory;
mod metrics;
mod mixed;
pub mod moving;
mod registry;
mod switch;
mod tail;
mod types;

pub use embedded::{EmbeddedLog, EmbeddedOptions, LogFollower, is_written};
pub use fluvio::{FluvioLog, FluvioOptions};
pub use genesis::{check_genesis, genesis_record, new_uuid, show_uuid};
pub use kafka::{KafkaLog, KafkaOptions, Membership};
pub use memory::MemoryLog;
pub use metrics::{LATENCY_BOUNDS_US, LogMetrics};
pub use mixed::MixedLog;
pub use switch::{SwitchLog, read_only};
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
/// - Dropping the future does not take the batch back: only the answer is lost.
/// - Once an append has failed for another reason than its arguments, every later append fails too: nothing may become
///   durable behind a hole. The log is opened again to go on.
/// - A reader sees durable records only, in order, each once. On brokers a record that was sent again may be there twice,
///   never behind a later one of its writer.
/// - Offset 0 of each partition is a genesis record, written when the topic is created. A reader at offset 0 gets it, and
///   in the same list what comes next, even if the records behind it were trimmed.
/// - The newest record of a partition is never removed, neither by [`Log::trim`] nor by retention: so a reader at
///   offset 0 always finds where to go on. Brokers of Kafka do remove it, once it is too old: there a reader at offset 0
///   that waits gets nothing until there is a record.
///
/// The futures are to be polled inside a tokio runtime with time.
pub trait Log: Send + Sync + 'static {
    /// Identity of the log, made when it was created.
    fn uuid(&self) -> [u8; 16];

    /// Creates a topic, or changes the retention of one that exists. Idempotent.
    ///
    /// # Errors
    /// [`LogError::PartitionCount`] if it exists with another number of partitions.
    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>>;

    /// As [`Log::create_topic`] for each of `specs`, in their order or, where it takes long, all at once.
    fn create_topics<'a>(&'a self, specs: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<TopicInfo>, LogError>> {
        Box::pin(async move {
            let mut infos = Vec::with_capacity(specs.len());
            for spec in specs {
                infos.push(self.create_topic(spec).await?);
            }
            Ok(infos)
        })
    }

    /// All topics, by name.
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>>;

    /// Appends `batch` to a partition; resolves to the offset of its first record once all of it is durable.
    /// An empty batch resolves at once to the partition's next offset.
    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>>;

    /// Appends to several partitions at once; resolves once all of it is durable. To each partition, this is an append
    /// like [`Log::append`] in the order of the calls; not all of it need become durable at one moment.
    ///
    /// A log that can do it does it in one commit, with one answer: a caller that writes to many partitions is woken
    /// once.
    ///
    /// # Errors
    /// The first error; what else was appended becomes durable or not, as it does when the future is dropped.
    fn append_all(&self, batches: Vec<(Partition, Vec<Bytes>)>) -> BoxFuture<'static, Result<(), LogError>> {
        let appends: Vec<_> = batches.into_iter().map(|(to, batch)| self.append(&to, batch)).collect();
        Box::pin(async move { futures::future::try_join_all(appends).await.map(drop) })
    }

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

    /// Removes the records before `before`, except the newest one. The genesis record stays readable by offset 0.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] if `before` lies beyond the next offset.
    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>>;
}

/// A log shared by everything in the process.
pub type SharedLog = Arc<dyn Log>;

/// Largest record there may be, in bytes. A full block with its envelope is below a tenth of it.
pub const MAX_RECORD: usize = 64 << 20;

/// Checks the arguments of an append.
pub(crate) fn check_batch(to: &Partition, batch: &[Bytes]) -> Result<(), LogError> {
    match batch.iter().map(Bytes::len).find(|&bytes| bytes > MAX_RECORD) {
        Some(bytes) => Err(LogError::TooLarge { partition: to.clone(), bytes, limit: MAX_RECORD }),
        None => Ok(()),
    }
}

/// Where a partition with these bounds starts once it is trimmed to `before`; `None` if that changes nothing.
pub(crate) fn trim_to(of: &Partition, bounds: Bounds, before: Offset) -> Result<Option<u64>, LogError> {
    if before > bounds.next {
        let Bounds { start, next } = bounds;
        return Err(LogError::OutOfRange { partition: of.clone(), asked: before, start, next });
    }
    let newest = bounds.next.get().saturating_sub(1);
    let start = before.get().min(newest);
    // Without the record at 0, which stays, a partition that starts at 1 is one that starts at 0.
    Ok((start > bounds.start.get().max(1)).then_some(start))
}

/// Whether a reader behind the genesis record may be at `asked` in a partition with these bounds (invariant P1).
pub(crate) fn check_range(at: &Partition, asked: Offset, Bounds { start, next }: Bounds) -> Result<(), LogError> {
    if (start.max(Offset::new(1))..=next).contains(&asked) {
        return Ok(());
    }
    Err(LogError::OutOfRange { partition: at.clone(), asked, start, next })
}
