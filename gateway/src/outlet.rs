//! The way of shares into the log: written down as they are judged, appended together in rounds, answered when they are
//! durable.

use std::rc::Rc;

use sluice_log::Partition;
use sluice_proto::v1::{Reason, Tick};
use sluice_proto::{Body, EventTime, Share};
use sluice_topology::runtime::Writer;

use crate::connection::Connection;
use crate::status::REASONS;

/// Where a session's shares go as they are judged.
pub(crate) trait Intake {
    /// Takes in a share of a session of `partition`, received at `received`.
    fn take_in(&mut self, partition: u32, received: EventTime, share: &Share<'_>, reason: Reason);
}

/// The answers to shares that become durable together.
#[derive(Default)]
pub(crate) struct Round {
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

/// The way of a worker's shares into its partitions.
pub(crate) struct Outlet {
    /// Of the partitions `number`, `number + workers`, and so on.
    writers: Vec<Writer>,
    /// Workers there are.
    workers: u32,
    /// What is being collected.
    round: Round,
    /// A round that is over: its memory is used again.
    spare: Round,
}

impl Outlet {
    /// The way into every partition of one of `workers`, in order.
    pub(crate) fn new(writers: Vec<Writer>, workers: u32) -> Self {
        Self { writers, workers: workers.max(1), round: Round::default(), spare: Round::default() }
    }

    /// Takes in the answers to `shares` that were taken in before, for a connection.
    pub(crate) fn answer(&mut self, connection: &Rc<Connection>, shares: usize, answers: &[u8]) {
        let Round { groups, answers: all, .. } = &mut self.round;
        all.extend_from_slice(answers);
        let end = all.len();
        match groups.last_mut() {
            Some(last) if Rc::ptr_eq(&last.connection, connection) => {
                last.end = end;
                last.shares += shares;
            }
            _ => groups.push(Group { connection: Rc::clone(connection), end, shares }),
        }
    }

    /// Takes in a tick at `now` for each partition: all that was received before is in front of it.
    pub(crate) fn tick(&mut self, now: EventTime, tick: Tick) {
        self.writers.iter_mut().for_each(|writer| writer.put(now, Body::Tick(tick)));
    }

    /// Nothing has been taken in since the last round.
    pub(crate) fn is_empty(&self) -> bool {
        self.round.groups.is_empty() && self.writers.iter().all(Writer::is_empty)
    }

    /// Ends the round: its answers, and what is to be appended before they are given.
    pub(crate) fn take(&mut self) -> (Round, Vec<(Partition, Vec<bytes::Bytes>)>) {
        let round = std::mem::replace(&mut self.round, std::mem::take(&mut self.spare));
        (round, self.writers.iter_mut().filter(|writer| !writer.is_empty()).map(Writer::take).collect())
    }

    /// Gives back a round that has been answered.
    pub(crate) fn give_back(&mut self, mut round: Round) {
        round.groups.clear();
        round.answers.clear();
        round.counts = Default::default();
        self.spare = round;
    }
}

impl Intake for Outlet {
    fn take_in(&mut self, partition: u32, received: EventTime, share: &Share<'_>, reason: Reason) {
        if let Some(writer) = self.writers.get_mut((partition / self.workers) as usize) {
            writer.put_share(received, share);
        }
        if let Some(counter) = self.round.counts.get_mut(reason as usize) {
            *counter += 1;
        }
    }
}
