//! What a log counts, for the API to export.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, in microseconds; one more bucket holds what took longer.
pub const LATENCY_BOUNDS_US: [u64; 12] =
    [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000];

/// The log's counters at one moment. They count from the opening of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogMetrics {
    /// Records made durable.
    pub records: u64,
    /// Bytes of records made durable, without any overhead.
    pub bytes: u64,
    /// Calls of `append` that became durable.
    pub appends: u64,
    /// Group commits of the embedded log, each with one sync.
    pub syncs: u64,
    /// Nanoseconds they took in all: writing, syncing, filling the memtables.
    pub commit_ns: u64,
    /// How many appends took at most as long as [`LATENCY_BOUNDS_US`] says, from the call to durable; the last one took
    /// longer. Not cumulative.
    pub latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// Nanoseconds that all appends took.
    pub latency_sum_ns: u64,
    /// Bytes of records that wait for their commit.
    pub queued_bytes: u64,
    /// Appends that were called while more bytes were waiting than there is room for.
    pub queue_full: u64,
    /// Reads answered from memory.
    pub tail_reads: u64,
    /// Reads answered from disk, or by a broker.
    pub disk_reads: u64,
    /// Records removed by trimming or retention.
    pub trimmed: u64,
    /// 1 once an error has stopped the writer.
    pub stopped: u64,
}

impl LogMetrics {
    /// Of two logs together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let mut latency = self.latency;
        latency.iter_mut().zip(other.latency).for_each(|(sum, more)| *sum += more);
        Self {
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
            appends: self.appends + other.appends,
            syncs: self.syncs + other.syncs,
            commit_ns: self.commit_ns + other.commit_ns,
            latency,
            latency_sum_ns: self.latency_sum_ns + other.latency_sum_ns,
            queued_bytes: self.queued_bytes + other.queued_bytes,
            queue_full: self.queue_full + other.queue_full,
            tail_reads: self.tail_reads + other.tail_reads,
            disk_reads: self.disk_reads + other.disk_reads,
            trimmed: self.trimmed + other.trimmed,
            stopped: self.stopped.max(other.stopped),
        }
    }
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) appends: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) commit_ns: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_ns: AtomicU64,
    pub(crate) queue_full: AtomicU64,
    pub(crate) tail_reads: AtomicU64,
    pub(crate) disk_reads: AtomicU64,
    pub(crate) trimmed: AtomicU64,
    pub(crate) stopped: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A duration in nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Counters {
    /// Counts an append that took `latency` from its call to durable.
    pub(crate) fn append_took(&self, latency: Duration) {
        let micros = nanos(latency).div_ceil(1_000);
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < micros);
        if let Some(counter) = self.latency.get(bucket) {
            count(counter, 1);
        }
        count(&self.latency_sum_ns, nanos(latency));
        count(&self.appends, 1);
    }

    /// All of them now.
    pub(crate) fn read(&self, queued_bytes: u64) -> LogMetrics {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogMetrics {
            records: of(&self.records),
            bytes: of(&self.bytes),
            appends: of(&self.appends),
            syncs: of(&self.syncs),
            commit_ns: of(&self.commit_ns),
            latency: std::array::from_fn(|i| self.latency.get(i).map_or(0, of)),
            latency_sum_ns: of(&self.latency_sum_ns),
            queued_bytes,
            queue_full: of(&self.queue_full),
            tail_reads: of(&self.tail_reads),
            disk_reads: of(&self.disk_reads),
            trimmed: of(&self.trimmed),
            stopped: of(&self.stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let counters = Counters::default();
        for (nanos, bucket) in [(1, 0), (100_000, 0), (100_001, 1), (2_000_000_000, LATENCY_BOUNDS_US.len())] {
            let before = counters.read(0).latency[bucket];
            counters.append_took(Duration::from_nanos(nanos));
            assert_eq!(counters.read(0).latency[bucket], before + 1, "{nanos} ns");
        }
        assert_eq!(counters.read(0).appends, 4);
    }
}
