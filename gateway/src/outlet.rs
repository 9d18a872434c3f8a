//! The way of shares into one partition: collected during a turn, appended together, answered when they are durable.

use std::rc::Rc;

use futures::future::BoxFuture;
use sluice_log::LogError;
use sluice_proto::v1::{Reason, Submission, Tick};
use sluice_proto::{Body, EventTime, Offset};
use sluice_topology::runtime::Producer;
use tokio::sync::mpsc::UnboundedSender;

use crate::connection::Connection;
use crate::status::REASONS;

/// Appends of one partition under way at once. While there are so many, shares are collected for the next: under load
/// appends become larger instead of more.
const MAX_APPENDS: usize = 2;

/// Shares that are appended together, and the answers to them.
pub(crate) struct Batch {
    /// Resolves when they are durable; `None` if there are answers only.
    pub(crate) done: Option<BoxFuture<'static, Result<Offset, LogError>>>,
    /// The answers of one connection after the other.
    pub(crate) groups: Vec<Group>,
    /// All answers.
    pub(crate) answers: Vec<u8>,
    /// How many shares, by the number of their reason.
    pub(crate) counts: [u32; REASONS.len()],
}

/// Answers of one connection.
pub(crate) struct Group {
    pub(crate) connection: Rc<Connection>,
    /// Where its answers end.
    pub(crate) end: usize,
    /// Shares among them.
    pub(crate) shares: usize,
}

/// The way of shares into one partition.
pub(crate) struct Outlet {
    partition: u32,
    records: Vec<(EventTime, Body)>,
    groups: Vec<Group>,
    answers: Vec<u8>,
    counts: [u32; REASONS.len()],
    /// Appends under way.
    appends: usize,
    /// To the task that waits for appends, in their order.
    waiting: UnboundedSender<Batch>,
}

impl Outlet {
    pub(crate) fn new(partition: u32, waiting: UnboundedSender<Batch>) -> Self {
        Self {
            partition,
            records: Vec::new(),
            groups: Vec::new(),
            answers: Vec::new(),
            counts: [0; REASONS.len()],
            appends: 0,
            waiting,
        }
    }

    /// Takes in shares of a connection that were received at `now`, and the answers to them.
    pub(crate) fn push(
        &mut self,
        connection: &Rc<Connection>,
        now: EventTime,
        shares: impl ExactSizeIterator<Item = (Submission, Reason)>,
        answers: &[u8],
    ) {
        let count = shares.len();
        for (submission, reason) in shares {
            if let Some(counter) = self.counts.get_mut(reason as usize) {
                *counter += 1;
            }
            self.records.push((now, Body::Submission(submission)));
        }
        self.answers.extend_from_slice(answers);
        let end = self.answers.len();
        match self.groups.last_mut() {
            Some(last) if Rc::ptr_eq(&last.connection, connection) => {
                last.end = end;
                last.shares += count;
            }
            _ => self.groups.push(Group { connection: Rc::clone(connection), end, shares: count }),
        }
    }

    /// Takes in a tick at `now`: all that was received before is in front of it.
    pub(crate) fn tick(&mut self, now: EventTime, tick: Tick) {
        self.records.push((now, Body::Tick(tick)));
    }

    /// Appends what has been taken in, unless enough appends are under way.
    pub(crate) fn flush(&mut self, producer: &Producer) {
        if self.appends >= MAX_APPENDS || (self.records.is_empty() && self.groups.is_empty()) {
            return;
        }
        self.appends += 1;
        let records = std::mem::take(&mut self.records);
        let done = (!records.is_empty()).then(|| producer.append(self.partition, records));
        let batch = Batch {
            done,
            groups: std::mem::take(&mut self.groups),
            answers: std::mem::take(&mut self.answers),
            counts: std::mem::take(&mut self.counts),
        };
        if self.waiting.send(batch).is_err() {
            // The worker is on its way out; what was appended stays, unanswered.
            tracing::debug!(partition = self.partition, "an append after the stop");
        }
    }

    /// One append has ended; appends what was collected meanwhile.
    pub(crate) fn appended(&mut self, producer: &Producer) {
        self.appends = self.appends.saturating_sub(1);
        self.flush(producer);
    }
}
