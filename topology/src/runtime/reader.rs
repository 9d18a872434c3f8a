//! Reading a partition: decoded records, each once, in order, with nothing missing (DESIGN 5, invariants S1 and P1).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use sluice_log::{LogError, Partition, Record, SharedLog};
use sluice_proto::v1::{Coordinates, Envelope};
use sluice_proto::{Body, DecodeError, EventTime, Offset, ShareRecord, decode};

use super::lanes::{Admission, LaneError, Watermarks};
use super::rescale;

/// Most bytes of records that one read asks for.
pub(crate) const READ_BYTES: usize = 256 << 10;

/// Why a partition cannot be read on. Every one of these stops the task (invariant P1).
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log could not be read, or the position does not fit it.
    #[error("cannot read {partition} from offset {offset} on: {error}")]
    Log {
        /// The partition.
        partition: Partition,
        /// Position of the reader.
        offset: Offset,
        /// What the log said.
        error: LogError,
    },
    /// A record that is none, or is of a newer program.
    #[error("{partition} offset {offset}: {error}")]
    Decode {
        /// The partition.
        partition: Partition,
        /// Offset of the record.
        offset: Offset,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A record that does not follow the one before it.
    #[error("{partition} offset {offset}: {error}")]
    Lane {
        /// The partition.
        partition: Partition,
        /// Offset of the record.
        offset: Offset,
        /// What is wrong with it.
        error: LaneError,
    },
    /// A record that does not say who wrote it.
    #[error("{partition} offset {offset}: the record has no producer coordinates")]
    NoCoordinates {
        /// The partition.
        partition: Partition,
        /// Offset of the record.
        offset: Offset,
    },
    /// The partition begins with the genesis record of another one.
    #[error(
        "{partition} is not what it should be: its genesis record names {found}; the log was mixed up or recreated"
    )]
    Genesis {
        /// The partition.
        partition: Partition,
        /// What the genesis record says.
        found: String,
    },
}

/// A record that has passed the watermark.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) offset: Offset,
    pub(crate) raw: Bytes,
    pub(crate) envelope: Envelope,
}

/// The gate that every record read from a partition goes through: genesis and fence records are taken out, repeated
/// ones dropped and counted, missing ones noticed.
pub(crate) struct Gate {
    pub(crate) partition: Partition,
    pub(crate) watermarks: Watermarks,
    log_uuid: [u8; 16],
    /// Repeated, void and forgotten records dropped so far.
    pub(crate) dropped: u64,
    /// The record let through last was processed in the generation before: see [`rescale::is_history`].
    pub(crate) history: bool,
}

impl Gate {
    pub(crate) fn new(partition: Partition, log_uuid: [u8; 16], watermarks: Watermarks) -> Self {
        Self { partition, watermarks, log_uuid, dropped: 0, history: false }
    }

    /// As [`Gate::pass`], for who needs a record's time and body only: it spares moving the rest of a submission about.
    pub(crate) fn pass_body(&mut self, record: Record) -> Result<Option<(EventTime, Arc<Body>)>, ReadError> {
        let Some(submission) = ShareRecord::parse(&record.value) else {
            let admitted = self.pass(record)?;
            // The gate lets nothing through that has no body.
            return Ok(admitted.and_then(|Admitted { envelope, .. }| {
                let time = envelope.event_time();
                envelope.body.map(|body| (time, Arc::new(body)))
            }));
        };
        self.history = rescale::is_copied(&submission.from);
        let new = self.is_new(record.offset, &submission.from)?;
        Ok(new.then(|| (submission.event_time, Arc::new(Body::Submission(submission.share.into())))))
    }

    /// Decodes and judges one record; `None` where there is nothing to process.
    pub(crate) fn pass(&mut self, record: Record) -> Result<Option<Admitted>, ReadError> {
        let Record { offset, value: raw } = record;
        let envelope = decode(raw.clone()).map_err(|error| ReadError::Decode {
            partition: self.partition.clone(),
            offset,
            error,
        })?;
        if self.heed(&envelope)? { Ok(None) } else { self.judge(offset, raw, envelope) }
    }

    /// Heeds a record that is about the partition and not on a lane, if it is one: checks a genesis, applies a fence.
    fn heed(&mut self, envelope: &Envelope) -> Result<bool, ReadError> {
        match &envelope.body {
            Some(Body::Genesis(genesis)) => {
                let same = genesis.log_uuid.as_ref() == self.log_uuid
                    && *genesis.topic == *self.partition.topic
                    && genesis.partition == self.partition.number;
                if same { Ok(true) } else { Err(self.wrong_genesis(genesis)) }
            }
            Some(Body::Fence(fence)) => {
                self.watermarks.fence(fence);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Passes over a record that [`Gate::pass`] could not decode; tells whether it is to be put with the dead letters,
    /// which it is not if it had been read before, or is a fence or genesis record of a newer program: those are heeded
    /// as ever. Where not even its coordinates can be read, its lane will have a gap.
    ///
    /// # Errors
    /// If its coordinates can be read, and records are missing before it.
    pub(crate) fn pass_over(&mut self, offset: Offset, raw: Bytes) -> Result<bool, ReadError> {
        let envelope = Envelope::decode(raw).unwrap_or_default();
        if self.heed(&envelope)? {
            return Ok(false);
        }
        let Some(from) = envelope.from else {
            self.watermarks.forgive();
            return Ok(true);
        };
        let admission = self.watermarks.admit(&from);
        let new = admission.map_err(|error| ReadError::Lane { partition: self.partition.clone(), offset, error })?
            == Admission::New;
        self.dropped += u64::from(!new);
        Ok(new)
    }

    fn judge(&mut self, offset: Offset, raw: Bytes, envelope: Envelope) -> Result<Option<Admitted>, ReadError> {
        let Some(from) = &envelope.from else {
            return Err(ReadError::NoCoordinates { partition: self.partition.clone(), offset });
        };
        self.history = rescale::is_history(&envelope);
        Ok(self.is_new(offset, from)?.then_some(Admitted { offset, raw, envelope }))
    }

    /// Whether the record at `offset` is the next one of its lane, not a repeated or void one.
    fn is_new(&mut self, offset: Offset, from: &Coordinates) -> Result<bool, ReadError> {
        match self.watermarks.admit(from) {
            Ok(Admission::New) => Ok(true),
            Ok(Admission::Forgotten) => {
                self.dropped += 1;
                tracing::error!(
                    partition = %self.partition, %offset, epoch = from.epoch,
                    "dropped a record of a process that has had too many successors to tell whether it was read: \
                     find out which process still runs, and stop it"
                );
                Ok(false)
            }
            Ok(admission) => {
                self.dropped += 1;
                tracing::debug!(partition = %self.partition, %offset, ?admission, "dropped a record that was read before or does not count");
                Ok(false)
            }
            Err(error) => Err(ReadError::Lane { partition: self.partition.clone(), offset, error }),
        }
    }

    fn wrong_genesis(&self, genesis: &sluice_proto::v1::Genesis) -> ReadError {
        let uuid: String = genesis.log_uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = format!("{}/{} of log {uuid}", genesis.topic, genesis.partition);
        ReadError::Genesis { partition: self.partition.clone(), found }
    }

    pub(crate) fn log_error(&self, offset: Offset, error: LogError) -> ReadError {
        ReadError::Log { partition: self.partition.clone(), offset, error }
    }
}

/// Reads one partition for a service: the gateway its jobs and targets, a sink its input. The position is the
/// caller's to remember; watermarks begin anew with each reader.
pub struct TopicReader {
    log: SharedLog,
    gate: Gate,
    next: Offset,
}

impl TopicReader {
    /// A reader of `partition` that begins with the record at `from` (offset 0: with the first).
    pub fn new(log: SharedLog, partition: Partition, from: Offset) -> Self {
        let watermarks = if from == Offset::ZERO { Watermarks::from_the_start() } else { Watermarks::mid_stream() };
        let gate = Gate::new(partition, log.uuid(), watermarks);
        Self { log, gate, next: from }
    }

    /// A reader that begins with the oldest record that the log still has.
    ///
    /// # Errors
    /// If the log has no such partition or fails.
    pub async fn from_oldest(log: SharedLog, partition: Partition) -> Result<Self, ReadError> {
        let bounds = log.bounds(&partition).await.map_err(|error| ReadError::Log {
            partition: partition.clone(),
            offset: Offset::ZERO,
            error,
        })?;
        // Right behind the genesis record nothing has been trimmed yet.
        let from = if bounds.start <= Offset::new(1) { Offset::ZERO } else { bounds.start };
        Ok(Self::new(log, partition, from))
    }

    /// The next records with their offsets, as soon as there are any; an empty list if there were none for `wait`, or
    /// none that had not been read before.
    ///
    /// Dropping the future loses nothing: the next call reads on from the same place.
    ///
    /// # Errors
    /// See [`ReadError`]; the reader stays where it is.
    pub async fn next_batch(&mut self, wait: Duration) -> Result<Vec<(Offset, Envelope)>, ReadError> {
        let read = self.log.read(&self.gate.partition, self.next, READ_BYTES, wait).await;
        let records = read.map_err(|error| self.gate.log_error(self.next, error))?;
        let mut batch = Vec::with_capacity(records.len());
        for record in records {
            let next = record.offset.next();
            if let Some(admitted) = self.gate.pass(record)? {
                batch.push((admitted.offset, admitted.envelope));
            }
            self.next = next;
        }
        Ok(batch)
    }

    /// Offset of the next record to be read.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// How many repeated records were dropped.
    pub fn dropped(&self) -> u64 {
        self.gate.dropped
    }
}
