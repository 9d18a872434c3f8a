//! What becomes of a record that a task of statistics cannot process (docs/adr/0022).

use std::sync::Arc;

use sluice_log::{Partition, Record};
use sluice_proto::v1::{DeadLetter, Envelope};
use sluice_proto::{Body, EventTime, Offset, encode};
use sluice_state::Tables;

use super::{Task, Work};
use crate::operator::{Key, Source};
use crate::runtime::error::TaskError;
use crate::runtime::letters::{DEAD_LETTERS, Letters, Opened, Refused};
use crate::runtime::outbox::Outbox;
use crate::runtime::plan::{PortRef, TaskSpec};
use crate::runtime::reader::ReadError;

impl Task {
    /// Lets a record through that is new. One that cannot be read stops the task, or goes to the dead letters.
    pub(super) fn admit(&mut self, index: usize, record: Record) -> Result<Option<(EventTime, Arc<Body>)>, TaskError> {
        let (offset, raw) = (record.offset, self.letters.as_ref().map(|_| record.value.clone()));
        let gate = &mut self.inputs[index].feed.gate;
        match (gate.pass_body(record), raw) {
            (Err(ReadError::Decode { error, partition, .. }), Some(raw)) => {
                if gate.pass_over(offset, raw.clone())? {
                    let cause = error.to_string();
                    self.refuse(index, Refused { by: None, partition: &partition, offset, cause, record: raw })?;
                }
                Ok(None)
            }
            (admitted, _) => Ok(admitted?),
        }
    }

    /// Puts a record with the dead letters.
    fn refuse(&mut self, index: usize, refused: Refused<'_>) -> Result<(), TaskError> {
        let Some(letters) = &mut self.letters else { return Ok(()) };
        let (topic, (event_time, letter)) = (letters.topic, letters.write(refused));
        self.store(index, topic, &Key::Partition(0), event_time, letter)
    }

    /// Puts what an operator refused with the dead letters.
    pub(super) fn refuse_at(
        &mut self,
        index: usize,
        to: PortRef,
        event_time: EventTime,
        record: &Body,
        cause: String,
    ) -> Result<(), TaskError> {
        let Source { topic, partition, offset, .. } = self.inputs[index].source.clone();
        let partition = Partition::new(topic, partition);
        let record = encode(&Envelope::new(event_time, Default::default(), record.clone()));
        let operator = self.letters.as_ref().and_then(|letters| letters.operator(to)).map(str::to_owned);
        let by = operator.as_deref().map(|operator| (operator, to.port));
        self.refuse(index, Refused { by, partition: &partition, offset, cause, record })
    }

    /// Puts to work what a redriven letter holds, as if it had come from where it was read once.
    pub(super) fn redrive(&mut self, index: usize, body: &Body) -> Result<(), TaskError> {
        let (Body::Redriven(redriven), Some(letters)) = (body, &self.letters) else { return Ok(()) };
        let Some(opened) = letters.open(redriven, &mut self.tables)? else { return Ok(()) };
        let Some(letter) = &redriven.letter else { return Ok(()) };
        let partition = Partition::new(letter.topic.as_str(), letter.partition);
        let offset = Offset::new(letter.offset);
        let Some(from) = self.inputs.iter().find(|input| *input.feed.partition() == partition) else {
            let cause = format!("the task does not read {partition} any more");
            return self.refuse(index, refused_again(letter, &partition, cause));
        };
        let Opened { envelope, port } = match opened {
            Ok(opened) => opened,
            Err(cause) => return self.refuse(index, refused_again(letter, &partition, cause)),
        };
        let time = envelope.event_time();
        let Some(record) = envelope.body.map(Arc::new) else { return Ok(()) };
        let to = port.map_or_else(|| from.to.clone(), |port| vec![port]);
        let source = Source { offset, history: false, ..from.source.clone() };
        self.work.extend(to.iter().rev().map(|port| Work::Deliver(*port, time, Arc::clone(&record))));
        self.inputs[index].source = source;
        Ok(())
    }
}

/// How a task of statistics writes and reads letters; no other has any.
pub(super) fn open_letters(
    spec: &TaskSpec,
    tables: &Tables,
    outbox: &mut Outbox,
) -> Result<Option<Letters>, TaskError> {
    if !spec.is_statistics() {
        return Ok(None);
    }
    let topic = outbox.topic(tables, &DEAD_LETTERS.into(), 1)?;
    Ok(Some(Letters::new(spec, topic, spec.inputs.len())))
}

/// A letter that cannot be processed this time either.
fn refused_again<'a>(letter: &'a DeadLetter, partition: &'a Partition, cause: String) -> Refused<'a> {
    let offset = Offset::new(letter.offset);
    let by = Some((letter.operator.as_str(), letter.port.as_str()));
    Refused { by, partition, offset, cause, record: letter.record.clone() }
}
