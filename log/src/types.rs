//! What goes in and out of a log.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::Offset;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Number of the partition, from 0.
    pub number: u32,
}

impl Partition {
    /// Partition `number` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, number: u32) -> Self {
        Self { topic: topic.into(), number }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// For how long records are kept; whichever bound is reached first removes the oldest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Age of the oldest record; `None` keeps them for ever.
    pub age: Option<Duration>,
    /// Bytes of records per partition; `None` means no bound.
    pub bytes: Option<u64>,
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Number of partitions, at least 1.
    pub partitions: u32,
    /// For how long records are kept.
    pub retention: Retention,
}

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Number of partitions.
    pub partitions: u32,
    /// For how long records are kept.
    pub retention: Retention,
}

impl TopicSpec {
    /// Checks the name and the number of partitions.
    ///
    /// # Errors
    /// [`LogError::Name`] or [`LogError::NoPartitions`].
    pub fn check(&self) -> Result<(), LogError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > 200 || !self.name.chars().all(fits) {
            return Err(LogError::Name(self.name.clone()));
        }
        if self.partitions == 0 {
            return Err(LogError::NoPartitions(self.name.clone()));
        }
        Ok(())
    }

    /// The topic as it will be.
    pub fn info(&self) -> TopicInfo {
        TopicInfo { name: self.name.as_str().into(), partitions: self.partitions, retention: self.retention }
    }
}

impl TopicInfo {
    /// Checks that this topic has as many partitions as `spec` asks for.
    ///
    /// # Errors
    /// [`LogError::PartitionCount`] if it has not.
    pub fn check_count(&self, spec: &TopicSpec) -> Result<(), LogError> {
        if self.partitions == spec.partitions {
            return Ok(());
        }
        Err(LogError::PartitionCount { topic: self.name.to_string(), has: self.partitions, wanted: spec.partitions })
    }

    /// Its partitions.
    pub fn all(&self) -> impl Iterator<Item = Partition> + '_ {
        (0..self.partitions).map(|number| Partition::new(self.name.clone(), number))
    }
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub offset: Offset,
    /// Its bytes.
    pub value: Bytes,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// First offset that can be read; greater than 0 once records were trimmed (the genesis record stays at 0).
    pub start: Offset,
    /// The offset the next durable record will get, or less than it where offsets have holes.
    pub next: Offset,
}

/// Why the log could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// No such topic or partition.
    #[error("{0} does not exist in the log; create the topic or correct the partition number")]
    Unknown(Partition),
    /// The topic exists with another number of partitions.
    #[error(
        "topic {topic} has {has} partitions, {wanted} were asked for: to change the count, give the topic the next \
         `generation` in the file and run `sluice rescale`"
    )]
    PartitionCount {
        /// The topic.
        topic: String,
        /// Partitions it has.
        has: u32,
        /// Partitions asked for.
        wanted: u32,
    },
    /// The name of a topic that cannot be one.
    #[error("{0:?} cannot name a topic: use letters, digits, '.', '_' and '-', at most 200 of them")]
    Name(String),
    /// A topic without partitions.
    #[error("topic {0:?} was asked for with 0 partitions; it needs at least 1")]
    NoPartitions(String),
    /// A record that is too large. Nothing of its batch was appended; the log goes on.
    #[error("a record of {bytes} bytes for {partition}; a record has at most {limit}")]
    TooLarge {
        /// Where it should have gone.
        partition: Partition,
        /// Its size.
        bytes: usize,
        /// The largest size there may be.
        limit: usize,
    },
    /// The log was opened to be read only.
    #[error("this log was opened to be read only; open it for writing, in one process at a time")]
    ReadOnly,
    /// Another process has the log.
    #[error("{0} is in use by another process; stop that one first, or give this one a directory of its own")]
    Locked(String),
    /// A read position that does not fit the log.
    #[error(
        "{partition} holds offsets {start} to {next}, not {asked}: the records were trimmed, or the log is another one"
    )]
    OutOfRange {
        /// The partition.
        partition: Partition,
        /// Offset asked for.
        asked: Offset,
        /// First offset there is.
        start: Offset,
        /// Next offset to be written.
        next: Offset,
    },
    /// The log has stopped after an I/O error: nothing is appended any more until it is opened again.
    #[error(
        "the log has stopped: {0}; free the disk or mend what failed, then start again (what was acknowledged is safe)"
    )]
    Stopped(Arc<str>),
    /// What is on disk is damaged or of another program.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// What brokers have is not what the file asks for.
    #[error("{0}; change it on the brokers, or what the file asks for")]
    Unfit(String),
    /// Any other error of the storage.
    #[error("log storage: {0}")]
    Storage(String),
}
