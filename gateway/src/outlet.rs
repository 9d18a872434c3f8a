//! The way of shares into the log: written down as they are judged, appended together in rounds, answered when they are
//! durable.

use std::rc::Rc;

use futures::future::BoxFuture;
use sluice_log::{LogError, Partition};
use sluice_proto::v1::{Reason, Tick};
use sluice_proto::{Body, EventTime, Offset, Share};
use sluice_topology::runtime::Writer;

use crate::connection::Connection;
use crate::status::REASONS;

/// An append to the block lane under way.
pub(crate) type BlockAppend = BoxFuture<'static, Result<Offset, LogError>>;

/// What is to be appended, by partition.
pub(crate) type Batches = Vec<(Partition, Vec<bytes::Bytes>)>;

/// Where a session's shares go as they are judged.
pub(crate) trait Intake {
    /// Takes in a share of a session of `partition`, received at `received`.
    fn take_in(&mut self, partition: u32, received: EventTime, share: &Share<'_>, reason: Reason);
}

/// The answers to shares that become durable together, by connections of type `C`.
pub(crate) struct Round<C = Connection> {
    /// The answers of one connection after the other.
    pub(crate) groups: Vec<Group<C>>,
    /// All answers.
    pub(crate) answers: Vec<u8>,
    /// How many shares, by the number of their reason.
    pub(crate) counts: [u32; REASONS.len()],
}

impl<C> Default for Round<C> {
    fn default() -> Self {
        Self { groups: Vec::new(), answers: Vec::new(), counts: Default::default() }
    }
}

/// Answers of one connection.
pub(crate) struct Group<C = Connection> {
    pub(crate) connection: Rc<C>,
    /// Where its answers end.
    pub(crate) end: usize,
    /// Shares among them.
    pub(crate) shares: usize,
}

/// The way of a worker's shares into its partitions.
pub(crate) struct Outlet<C = Connection> {
    /// Of the partitions `number`, `number + workers`, and so on.
    writers: Vec<Writer>,
    /// Workers there are.
    workers: u32,
    /// Appends to the block lane that shares of the round have brought.
    blocks: Vec<BlockAppend>,
    /// What is being collected.
    round: Round<C>,
    /// A round that is over: its memory is used again.
    spare: Round<C>,
}

impl<C> Outlet<C> {
    /// The way into every partition of one of `workers`, in order.
    pub(crate) fn new(writers: Vec<Writer>, workers: u32) -> Self {
        let (round, spare) = Default::default();
        Self { writers, workers: workers.max(1), blocks: Vec::new(), round, spare }
    }

    /// Takes in the answers to `shares` that were taken in before, for a connection.
    pub(crate) fn answer(&mut self, connection: &Rc<C>, shares: usize, answers: &[u8]) {
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

    /// Takes in an append to the block lane: what is answered with the round waits for it too.
    pub(crate) fn add_block(&mut self, append: BlockAppend) {
        self.blocks.push(append);
    }

    /// Takes in a tick at `now` for each partition: all that was received before is in front of it.
    pub(crate) fn tick(&mut self, now: EventTime, tick: Tick) {
        self.writers.iter_mut().for_each(|writer| writer.put(now, Body::Tick(tick)));
    }

    /// Nothing has been taken in since the last round.
    pub(crate) fn is_empty(&self) -> bool {
        self.round.groups.is_empty() && self.blocks.is_empty() && self.writers.iter().all(Writer::is_empty)
    }

    /// Ends the round: its answers, what is to be appended before they are given, and what is being appended.
    pub(crate) fn take(&mut self) -> (Round<C>, Batches, Vec<BlockAppend>) {
        let round = std::mem::replace(&mut self.round, std::mem::take(&mut self.spare));
        let batches = self.writers.iter_mut().filter(|writer| !writer.is_empty()).map(Writer::take).collect();
        (round, batches, std::mem::take(&mut self.blocks))
    }

    /// Gives back a round that has been answered.
    pub(crate) fn give_back(&mut self, mut round: Round<C>) {
        round.groups.clear();
        round.answers.clear();
        round.counts = Default::default();
        self.spare = round;
    }
}

impl<C> Intake for Outlet<C> {
    fn take_in(&mut self, partition: u32, received: EventTime, share: &Share<'_>, reason: Reason) {
        if let Some(writer) = self.writers.get_mut((partition / self.workers) as usize) {
            writer.put_share(received, share);
        }
        if let Some(counter) = self.round.counts.get_mut(reason as usize) {
            *counter += 1;
        }
    }
}
