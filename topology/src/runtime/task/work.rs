//! What a task does with each record: through its operators, in order, into the outbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_log::Record;
use sluice_proto::{Body, EventTime, Offset, peek_share};

use super::{Task, TaskInput};
use crate::operator::{Emission, Input, Key, OperatorError, is_same};
use crate::runtime::error::TaskError;
use crate::runtime::nodes::Route;
use crate::runtime::plan::PortRef;

/// One in this many records has its operators' time taken.
const TIMED_ONE_IN: u64 = 64;

/// What is left to do for the record at hand; the last one is done first.
pub(super) enum Work {
    /// Give a record to a port.
    Deliver(PortRef, EventTime, Arc<Body>),
    /// Put a record into the outbox, for the topic with this index.
    Store(usize, Key, EventTime, Arc<Body>),
}

impl Work {
    /// What is to be done with a record on this way.
    fn on(route: Route, emission: Emission) -> Self {
        let Emission { key, event_time, body, .. } = emission;
        match route {
            Route::Stored(topic) => Self::Store(topic, key, event_time, body),
            Route::Direct(port) => Self::Deliver(port, event_time, body),
        }
    }
}

impl Task {
    /// Runs the operators on each record; what they send to topics waits in the outbox.
    pub(in crate::runtime) async fn process(&mut self, input: usize, records: Vec<Record>) -> Result<(), TaskError> {
        self.foresee(input, &records);
        for record in records {
            let next = record.offset.next();
            self.inputs[input].at = record.offset;
            if let Some(admitted) = self.admit(input, record)? {
                self.process_one(input, admitted).await?;
            }
            self.inputs[input].feed.next = next;
        }
        self.inputs[input].moved = true;
        Ok(())
    }

    /// Tells the operators that read an input which shares come.
    fn foresee(&mut self, input: usize, records: &[Record]) {
        for share in records.iter().filter_map(|record| peek_share(&record.value)) {
            for port in &self.inputs[input].to {
                self.nodes[port.operator].operator.foresee(&share);
            }
        }
    }

    async fn process_one(&mut self, index: usize, (time, body): (EventTime, Arc<Body>)) -> Result<(), TaskError> {
        let input = &mut self.inputs[index];
        input.source.offset = input.at;
        input.source.history = input.feed.gate.history;
        input.processed += 1;
        let timed = input.processed.is_multiple_of(TIMED_ONE_IN).then_some(TIMED_ONE_IN);
        self.shared.feeds[index].event_time.store(time.nanos(), Ordering::Relaxed);
        if self.letters.as_ref().is_some_and(|letters| letters.redriven == index) {
            self.redrive(index, &body)?;
        }
        self.work.extend(self.inputs[index].to.iter().rev().map(|port| Work::Deliver(*port, time, Arc::clone(&body))));
        drop(body);
        self.work_off(index, timed).await
    }

    /// Does what is left to do for the record at hand.
    async fn work_off(&mut self, index: usize, timed: Option<u64>) -> Result<(), TaskError> {
        while let Some(work) = self.work.pop() {
            match work {
                Work::Deliver(port, time, record) => {
                    if let Some((kind, offset)) = self.nodes[port.operator].operator.requires(&record) {
                        self.require(index, port.operator, kind, offset).await?;
                    }
                    self.deliver(index, port, (time, record), timed)?;
                }
                // It was written when the generation before was processed.
                Work::Store(..) if self.inputs[index].source.history => {}
                Work::Store(topic, key, time, record) => self.store(index, topic, &key, time, record)?,
            }
        }
        Ok(())
    }

    /// Gives a record to an operator; what it sends goes on the pile so that it is dealt with in the order it was sent,
    /// each with all that follows from it before the next one.
    fn deliver(
        &mut self,
        input: usize,
        to: PortRef,
        (event_time, record): (EventTime, Arc<Body>),
        timed: Option<u64>,
    ) -> Result<(), TaskError> {
        let node = &mut self.nodes[to.operator];
        let given = Input { port: to.port, event_time, record: &record, source: &self.inputs[input].source };
        let processed = node.process(&given, &mut self.tables, &self.lookups, &mut self.emissions, timed);
        if let Err(error) = processed {
            return match *error {
                OperatorError::Record(cause) if self.letters.is_some() => {
                    self.emissions.clear();
                    self.refuse_at(input, to, event_time, &record, cause)
                }
                error => Err(operator_error(&node.name, &self.inputs[input], error)),
            };
        }
        drop(record);
        for emission in self.emissions.drain(..).rev() {
            let routes = node.routes(&emission);
            let routes = routes.map_err(|error| operator_error(&node.name, &self.inputs[input], error))?;
            let Some((first, others)) = routes.split_first() else { continue };
            self.work.extend(others.iter().rev().map(|route| Work::on(*route, emission.clone())));
            self.work.push(Work::on(*first, emission));
        }
        Ok(())
    }

    async fn require(&mut self, input: usize, operator: usize, kind: &str, offset: Offset) -> Result<(), TaskError> {
        let name = &self.nodes[operator].name;
        let Some(broadcast) = self.broadcasts.iter_mut().find(|broadcast| is_same(broadcast.kind, kind)) else {
            let bug = crate::OperatorError::Bug(format!("it needs a table of kind {kind}, which it does not have"));
            return Err(operator_error(name, &self.inputs[input], bug));
        };
        if broadcast.has_reached(offset)
            || broadcast.reach(offset, self.table_timeout, &mut self.lookups, &mut self.tables).await?
        {
            return broadcast.recall(offset, &mut self.lookups).await;
        }
        Err(broadcast.behind(name, offset, self.table_timeout))
    }

    /// Adds an output to the batch, made from the record at hand of this input.
    pub(super) fn store(
        &mut self,
        input: usize,
        topic: usize,
        key: &Key,
        event_time: EventTime,
        body: Arc<Body>,
    ) -> Result<(), TaskError> {
        let stored = self.outbox.store(topic, (input, self.inputs[input].at), key, event_time, body);
        stored.map_err(|what| operator_error(&self.name, &self.inputs[input], crate::OperatorError::Bug(what)))
    }
}

fn operator_error(operator: &str, input: &TaskInput, error: crate::OperatorError) -> TaskError {
    let (partition, offset) = (input.feed.partition().clone(), input.at);
    TaskError::Operator { operator: operator.to_owned(), partition, offset, error }
}
