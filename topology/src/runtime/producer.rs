//! How a source (gateway, jobmanager) writes to a topic: each record gets its coordinates (DESIGN 5).

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluice_log::{LogError, Partition, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Epoch, EventTime, Offset, Share, encode_into, encode_share_into, hash64, partition_of};

use super::lanes::{Lane, LaneTail};

/// Writes records of a source to one topic. A source counts its records from 1 in each partition, anew in each epoch,
/// so that readers notice a missing one and drop a repeated one. Shared by reference between threads; who writes from
/// one thread a partition takes the writers out of it.
///
/// There must be one producer for a task name and topic in an epoch: take the epoch from [`super::Owners::claim`].
pub struct Producer {
    partitions: Vec<Mutex<Writer>>,
    log: SharedLog,
    topic: Arc<str>,
}

/// Writes records of a source to one partition: collects them, encoded where they will stay, and appends them together.
/// Collecting allocates nothing but the growth of a batch beyond the one before it.
pub struct Writer {
    partition: Partition,
    lane: Lane,
    epoch: Epoch,
    tail: LaneTail,
    /// The records, one behind the other.
    buffer: BytesMut,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Writer {
    /// Puts a record behind those that wait.
    pub fn put(&mut self, event_time: EventTime, body: Body) {
        let from = self.tail.next_of_source(self.lane, self.epoch);
        encode_into(&Envelope::new(event_time, from, body), &mut self.buffer);
        self.ends.push(self.buffer.len());
    }

    /// Puts a submission behind the records that wait, as [`Writer::put`] does.
    pub fn put_share(&mut self, event_time: EventTime, share: &Share<'_>) {
        let from = self.tail.next_of_source(self.lane, self.epoch);
        encode_share_into(event_time, &from, share, &mut self.buffer);
        self.ends.push(self.buffer.len());
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The records that wait, for [`sluice_log::Log::append`]: to be appended before those of the next call. All of them share one
    /// piece of memory.
    pub fn take(&mut self) -> (Partition, Vec<Bytes>) {
        // The next batch will be about as large.
        let next = BytesMut::with_capacity(self.buffer.len() + self.buffer.len() / 8);
        let whole = std::mem::replace(&mut self.buffer, next).freeze();
        let mut start = 0;
        let record = |end| whole.slice(std::mem::replace(&mut start, end)..end);
        (self.partition.clone(), self.ends.drain(..).map(record).collect())
    }
}

impl Producer {
    /// A producer to `topic`, which has this many partitions, for the source `task_name` in its `epoch`.
    pub fn new(log: SharedLog, topic: &str, partitions: u32, task_name: &str, epoch: Epoch) -> Self {
        let topic: Arc<str> = topic.into();
        let lane = Lane::source(hash64(task_name), epoch);
        let writer = |number| Writer {
            partition: Partition::new(Arc::clone(&topic), number),
            lane,
            epoch,
            tail: LaneTail::default(),
            buffer: BytesMut::new(),
            ends: Vec::new(),
        };
        Self { partitions: (0..partitions).map(|number| Mutex::new(writer(number))).collect(), log, topic }
    }

    /// Number of partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    /// The partition that `key` belongs to.
    pub fn partition_of(&self, key: &[u8]) -> u32 {
        partition_of(key, self.partitions())
    }

    /// One writer for each partition, in order.
    pub fn into_writers(self) -> Vec<Writer> {
        self.partitions.into_iter().map(Mutex::into_inner).collect()
    }

    /// Appends `records` to a partition, in this order and behind those of earlier calls: the order is fixed by the
    /// call, not by when the future is polled. Resolves to the offset of the first once all are durable.
    ///
    /// # Errors
    /// As [`sluice_log::Log::append`]. An append that failed leaves a gap behind it on purpose: the log has stopped, and
    /// whatever would be written later must not look complete.
    pub fn append(
        &self,
        partition: u32,
        records: Vec<(EventTime, Body)>,
    ) -> BoxFuture<'static, Result<Offset, LogError>> {
        let Some(writer) = self.partitions.get(partition as usize) else {
            let unknown = Partition::new(Arc::clone(&self.topic), partition);
            return Box::pin(std::future::ready(Err(LogError::Unknown(unknown))));
        };
        let mut writer = writer.lock();
        for (event_time, body) in records {
            writer.put(event_time, body);
        }
        let (partition, batch) = writer.take();
        // Still under the lock: two calls for one partition reach the log in the order of their numbers.
        self.log.append(&partition, batch)
    }
}

/// Why a source could not take an epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The file that holds the last epoch cannot be read or written.
    #[error("cannot take an epoch for {task}: {path}: {error}")]
    Io {
        /// Name of the source.
        task: String,
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "cannot take an epoch for {task}: {path} holds {found:?} and not a number below 2^32 - 1; repair it by hand"
    )]
    Damaged {
        /// Name of the source.
        task: String,
        /// The file.
        path: String,
        /// What it holds.
        found: String,
    },
}

/// Start of the count of minutes that a source without a stored epoch begins with: 2025-01-01, seconds since the Unix
/// epoch.
const FIRST_EPOCH_BASE: u64 = 1_735_689_600;

/// The next epoch of the source `task_name`: one more than the last, which is kept in `state_dir`; durable before it is
/// returned, so that no epoch is ever given twice.
///
/// Where none is kept, the count begins with the minutes since 2025: should the directory be lost while the log is
/// kept, the new epochs are still above the old ones (at up to one start a minute), and readers do not take the new
/// records for repeated ones. Epochs stay below 2^24 until 2056.
///
/// # Errors
/// If the file cannot be read or made durable, or is damaged.
pub fn source_epoch(state_dir: &Path, task_name: &str) -> Result<Epoch, EpochError> {
    let dir = state_dir.join("epochs");
    let path = dir.join(format!("{:016x}", hash64(task_name)));
    let io = |error| EpochError::Io { task: task_name.to_owned(), path: path.display().to_string(), error };
    let damaged = |found: &str| EpochError::Damaged {
        task: task_name.to_owned(),
        path: path.display().to_string(),
        found: found.to_owned(),
    };
    let next = match std::fs::read_to_string(&path) {
        Ok(text) => {
            let (last, name) = text.trim_end().split_once(' ').ok_or_else(|| damaged(&text))?;
            let last: u32 = last.parse().map_err(|_| damaged(&text))?;
            if name != task_name {
                return Err(damaged(&text));
            }
            Epoch::new(last).next().ok_or_else(|| damaged(&text))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let minutes = EventTime::now().secs().saturating_sub(FIRST_EPOCH_BASE) / 60;
            Epoch::new(u32::try_from(minutes).unwrap_or(1).max(1))
        }
        Err(error) => return Err(io(error)),
    };
    std::fs::create_dir_all(&dir).map_err(io)?;
    write_durably(&dir, &path, format!("{next} {task_name}\n").as_bytes()).map_err(io)?;
    Ok(next)
}

/// Replaces the file at `path` in `dir`: after a crash or a loss of power either the old content is there or the new.
fn write_durably(dir: &Path, path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_by_one_from_call_to_call_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = source_epoch(dir.path(), "stratumd").unwrap();
        assert!((1..1 << 24).contains(&first.get()), "{first}");
        for later in 1..4 {
            assert_eq!(source_epoch(dir.path(), "stratumd").unwrap().get(), first.get() + later);
        }
        assert!(source_epoch(dir.path(), "jobmanager").unwrap() >= first);
    }

    #[test]
    fn a_damaged_epoch_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        source_epoch(dir.path(), "stratumd").unwrap();
        let file = std::fs::read_dir(dir.path().join("epochs")).unwrap().next().unwrap().unwrap().path();
        for content in ["", "x stratumd", "7 other", "4294967295 stratumd"] {
            std::fs::write(&file, content).unwrap();
            assert!(matches!(source_epoch(dir.path(), "stratumd"), Err(EpochError::Damaged { .. })), "{content}");
        }
    }
}
