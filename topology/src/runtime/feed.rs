//! A partition as a task reads it: long polls, a bounded prefetch, a position in the state.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use sluice_log::{LogError, Partition, Record, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Head, Offset};

use super::error::TaskError;
use super::lanes::Watermarks;
use super::reader::{Gate, READ_BYTES, ReadError, TopicReader};

/// Reads that may wait for their turn: one is worked on, the others are ahead. A reader does not ask for more.
const PREFETCH: usize = 2;

/// How long one read waits for records.
const WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Feed {
    log: SharedLog,
    pub(crate) gate: Gate,
    /// Offset of the next record to be processed: what is committed.
    pub(crate) next: Offset,
    /// Offset of the next record to ask the log for.
    fetch: Offset,
    in_flight: Option<BoxFuture<'static, Result<Vec<Record>, LogError>>>,
    ready: VecDeque<Vec<Record>>,
}

impl Feed {
    pub(crate) fn new(log: SharedLog, partition: Partition, next: Offset, watermarks: Watermarks) -> Self {
        let gate = Gate::new(partition, log.uuid(), watermarks);
        Self { log, gate, next, fetch: next, in_flight: None, ready: VecDeque::new() }
    }

    /// Event time of the next record, as far as it has been read.
    pub(crate) fn next_time(&self) -> Option<u64> {
        let record = self.ready.front()?.first()?;
        // One that cannot be read comes first, to be told as soon as possible.
        Some(Head::read(&record.value).map_or(0, |head| head.event_time_ns))
    }

    pub(crate) fn partition(&self) -> &Partition {
        &self.gate.partition
    }

    /// Records have been read and wait to be processed.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads on as far as the prefetch allows; wakes the task once there is more.
    pub(crate) fn poll_fetch(&mut self, cx: &mut Context<'_>) -> Result<(), ReadError> {
        while self.ready.len() < PREFETCH {
            let (log, partition, from) = (&self.log, &self.gate.partition, self.fetch);
            let read = self.in_flight.get_or_insert_with(|| log.read(partition, from, READ_BYTES, WAIT));
            let Poll::Ready(result) = read.as_mut().poll(cx) else { return Ok(()) };
            self.in_flight = None;
            let records = result.map_err(|error| self.gate.log_error(self.fetch, error))?;
            match records.last() {
                Some(last) => {
                    self.fetch = last.offset.next();
                    self.ready.push_back(records);
                }
                // The wait is over: ask again when the task comes round, so that a log which never waits cannot keep
                // it here.
                None => {
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes the oldest records that were read, but none at or behind `until`. Offsets may have holes: if there are only
    /// later ones, the position is at `until` then.
    pub(crate) fn take(&mut self, until: Option<Offset>) -> Vec<Record> {
        let Some(mut records) = self.ready.pop_front() else { return Vec::new() };
        if let Some(until) = until {
            let split = records.partition_point(|record| record.offset < until);
            let rest = records.split_off(split);
            if !rest.is_empty() {
                if records.is_empty() {
                    self.next = self.next.max(until);
                }
                self.ready.push_front(rest);
            }
        }
        records
    }

    /// The records from `from` to `to`, once more; the position stays where it is. Fewer where the log has fewer.
    pub(crate) async fn read_again(&self, from: Offset, to: Offset) -> Result<Vec<(Offset, Envelope)>, ReadError> {
        let mut reader = TopicReader::new(self.log.clone(), self.gate.partition.clone(), from);
        let mut again = Vec::new();
        while reader.position() <= to {
            let before = reader.position();
            let records = reader.next_batch(Duration::ZERO).await?;
            again.extend(records.into_iter().filter(|(offset, _)| *offset <= to));
            if reader.position() == before {
                break;
            }
        }
        Ok(again)
    }

    /// The position must lie within the log.
    ///
    /// # Errors
    /// [`TaskError::Regressed`] if the log ends before it.
    pub(crate) async fn check_position(&self) -> Result<(), TaskError> {
        let (position, next) = (self.next, self.end_of_log().await?);
        if position <= next {
            return Ok(());
        }
        Err(TaskError::Regressed { partition: self.partition().clone(), position, next })
    }

    /// Where the log begins.
    pub(crate) async fn start_of_log(&self) -> Result<Offset, ReadError> {
        let bounds = self.log.bounds(&self.gate.partition).await;
        bounds.map(|bounds| bounds.start).map_err(|error| self.gate.log_error(self.next, error))
    }

    /// The log's end.
    pub(crate) async fn end_of_log(&self) -> Result<Offset, ReadError> {
        let bounds = self.log.bounds(&self.gate.partition).await;
        bounds.map(|bounds| bounds.next).map_err(|error| self.gate.log_error(self.next, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_log::MemoryLog;

    #[test]
    fn a_hole_in_the_offsets_is_passed() {
        let partition = Partition::new("share.urgent", 0);
        let mut feed = Feed::new(MemoryLog::new(), partition, Offset::new(3), Watermarks::from_the_start());
        assert!(feed.take(Some(Offset::new(5))).is_empty());
        assert_eq!(feed.next, Offset::new(3), "what may still come is not passed");
        feed.ready.push_back(vec![Record { offset: Offset::new(7), value: Default::default() }]);
        assert!(feed.take(Some(Offset::new(5))).is_empty());
        assert_eq!((feed.next, feed.is_ready()), (Offset::new(5), true));
        assert_eq!(feed.take(Some(Offset::new(8))).len(), 1);
    }
}
