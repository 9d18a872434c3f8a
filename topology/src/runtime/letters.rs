//! Dead letters: records that a task of statistics could not process, and those that it is to process once more
//! (docs/adr/0022).
//!
//! A letter is an output of the task like any other, at the place of the record it is about: a crash neither doubles nor
//! loses it. A redriven letter comes back by an input of its own, so that a replay meets it at the same place.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sluice_log::{LogError, Partition, Retention, SharedLog, TopicSpec};
use sluice_proto::v1::{DeadLetter, Envelope, Redriven};
use sluice_proto::{Body, Epoch, EventTime, Offset, decode};
use sluice_state::Tables;

use super::persist;
use super::plan::{Plan, PortRef, StoredInput, TaskSpec};
use super::producer::Producer;
use super::reader::{ReadError, TopicReader};

/// The topic of the letters.
pub const DEAD_LETTERS: &str = "sluice.dead_letters";
/// The topic of letters that are to be processed once more.
pub const REDRIVEN: &str = "sluice.redriven";

/// Name under which [`redrive`] writes: it names a source of records, and takes epochs as one.
pub const REDRIVE_SOURCE: &str = "sluice.redrive";

/// What a task of statistics adds to its inputs.
pub(super) fn redriven_input() -> StoredInput {
    StoredInput { topic: REDRIVEN.into(), partition: 0, partitions: 1, generation: 1, priority: false, to: Vec::new() }
}

/// The topics that the tasks of `plan` need for letters: small, and kept until somebody has looked at them.
pub(super) fn topics(plan: &Plan) -> Vec<TopicSpec> {
    let spec = |name: &str| TopicSpec { name: name.to_owned(), partitions: 1, retention: Retention::default() };
    let needed = plan.tasks.iter().any(TaskSpec::is_statistics);
    [DEAD_LETTERS, REDRIVEN].into_iter().filter(|_| needed).map(spec).collect()
}

/// How a task of statistics writes and reads letters.
pub(super) struct Letters {
    task: String,
    /// The topic of letters among the task's outputs.
    pub(super) topic: usize,
    /// The input of redriven letters.
    pub(super) redriven: usize,
    /// Every input port of the task's operators, with the operator's identity.
    ports: Vec<(String, PortRef)>,
    /// Letters written since the start.
    pub(super) written: u64,
}

/// What could not be processed, and where.
pub(super) struct Refused<'a> {
    /// The operator that refused it and its port; `None` where nothing could be made of it.
    pub(super) by: Option<(&'a str, &'a str)>,
    /// Where it, or the record it was made from, was read.
    pub(super) partition: &'a Partition,
    /// Its offset.
    pub(super) offset: Offset,
    /// Why.
    pub(super) cause: String,
    /// Its bytes.
    pub(super) record: Bytes,
}

/// A redriven letter that is for this task and can be processed now.
pub(super) struct Opened {
    /// The record.
    pub(super) envelope: Envelope,
    /// Where it goes; `None`: to every port of the input it was read from.
    pub(super) port: Option<PortRef>,
}

impl Letters {
    pub(super) fn new(spec: &TaskSpec, topic: usize, redriven: usize) -> Self {
        let ports = spec.operators.iter().enumerate().flat_map(|(operator, it)| {
            it.kind.inputs.iter().map(move |input| (it.name.clone(), PortRef { operator, port: input.name }))
        });
        Self { task: spec.name.clone(), topic, redriven, ports: ports.collect(), written: 0 }
    }

    /// Identity of the operator that has this port: letters keep it, so that the operator may be renamed.
    pub(super) fn operator(&self, port: PortRef) -> Option<&str> {
        self.ports.iter().find(|(_, known)| *known == port).map(|(operator, _)| operator.as_str())
    }

    /// The letter about what was refused, and the event time it gets: that of the record, 0 where it has none, so that
    /// writing it once more writes the same.
    pub(super) fn write(&mut self, refused: Refused<'_>) -> (EventTime, Arc<Body>) {
        let Refused { by, partition, offset, cause, record } = refused;
        self.written += 1;
        tracing::warn!(
            task = self.task, %partition, %offset, cause, "a record of statistics cannot be processed and is put with the dead letters"
        );
        let event_time = Envelope::decode(record.clone()).map_or(0, |envelope| envelope.event_time_ns);
        let (operator, port) = by.unwrap_or_default();
        let letter = DeadLetter {
            task: self.task.clone(),
            operator: operator.to_owned(),
            port: port.to_owned(),
            topic: partition.topic.to_string(),
            partition: partition.number,
            offset: offset.get(),
            cause,
            record,
        };
        (EventTime::from_nanos(event_time), Arc::new(Body::DeadLetter(letter)))
    }

    /// Takes a redriven letter: `None` if it is another task's or has been processed again before, which is remembered
    /// with the next commit.
    ///
    /// # Errors
    /// The cause, if it cannot be processed this time either.
    pub(super) fn open(
        &self,
        redriven: &Redriven,
        tables: &mut Tables,
    ) -> Result<Option<Result<Opened, String>>, sluice_state::StateError> {
        let Some(letter) = redriven.letter.as_ref().filter(|letter| letter.task == self.task) else { return Ok(None) };
        let number = Offset::new(redriven.letter_offset);
        if persist::was_redriven(tables, number)? {
            tracing::warn!(task = self.task, letter = %number, "a dead letter was redriven once more, which changes nothing");
            return Ok(None);
        }
        persist::save_redriven(tables, number);
        Ok(Some(self.opened(letter)))
    }

    fn opened(&self, letter: &DeadLetter) -> Result<Opened, String> {
        let envelope = decode(letter.record.clone()).map_err(|error| error.to_string())?;
        if letter.operator.is_empty() {
            return Ok(Opened { envelope, port: None });
        }
        let found = self.ports.iter().find(|(name, to)| *name == letter.operator && to.port == letter.port);
        match found {
            Some((_, port)) => Ok(Opened { envelope, port: Some(*port) }),
            None => Err(format!("the task has no input {} of an operator {} any more", letter.port, letter.operator)),
        }
    }
}

/// A letter as it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundLetter {
    /// Its offset in [`DEAD_LETTERS`].
    pub offset: Offset,
    /// Event time of the record it is about; 0 where that is not known.
    pub event_time: EventTime,
    /// The letter.
    pub letter: DeadLetter,
    /// It has been redriven.
    pub redriven: bool,
}

/// All letters of the log, oldest first; none if it has no topic of letters.
///
/// # Errors
/// If the topics cannot be read.
pub async fn dead_letters(log: &SharedLog) -> Result<Vec<FoundLetter>, ReadError> {
    let mut letters = Vec::new();
    for (offset, envelope) in all(log, DEAD_LETTERS).await? {
        let event_time = envelope.event_time();
        if let Some(Body::DeadLetter(letter)) = envelope.body {
            letters.push(FoundLetter { offset, event_time, letter, redriven: false });
        }
    }
    for (_, envelope) in all(log, REDRIVEN).await? {
        if let Some(Body::Redriven(again)) = envelope.body {
            let of = letters.iter_mut().filter(|found| found.offset.get() == again.letter_offset);
            of.for_each(|found| found.redriven = true);
        }
    }
    Ok(letters)
}

async fn all(log: &SharedLog, topic: &str) -> Result<Vec<(Offset, Envelope)>, ReadError> {
    let partition = Partition::new(topic, 0);
    let end = match log.bounds(&partition).await {
        Ok(bounds) => bounds.next,
        Err(LogError::Unknown(_)) => return Ok(Vec::new()),
        Err(error) => return Err(ReadError::Log { partition, offset: Offset::ZERO, error }),
    };
    let mut reader = TopicReader::from_oldest(log.clone(), partition).await?;
    let mut records = Vec::new();
    while reader.position() < end {
        records.extend(reader.next_batch(std::time::Duration::from_secs(1)).await?);
    }
    Ok(records)
}

/// Appends `letters` to the topic of redriven ones, in the source's next `epoch`; durable when it returns. The tasks
/// that they are about process them then, each letter once.
///
/// # Errors
/// As [`sluice_log::Log::append`].
pub async fn redrive(log: &SharedLog, epoch: Epoch, letters: Vec<FoundLetter>) -> Result<(), LogError> {
    let again = |found: FoundLetter| {
        let body = Redriven { letter_offset: found.offset.get(), letter: Some(found.letter) };
        (found.event_time, Body::Redriven(body))
    };
    let producer = Producer::new(log.clone(), REDRIVEN, 1, REDRIVE_SOURCE, epoch);
    producer.append(0, letters.into_iter().map(again).collect()).await.map(drop)
}
