//! What a worker knows: its jobs, its connections, its partitions. Nothing here waits.

mod entrance;
mod mail;

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use sluice_mining::JobError;
use sluice_proto::v1::{Candidate, Tick};
use sluice_proto::{Body, EventTime};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::connection::{Connection, Ended, Link, State};
use crate::jobs::{JobBatch, Rendered};
use crate::judge::Judge;
use crate::limits::Visitor;
use crate::outlet::{BlockAppend, Outlet, Round};
use crate::protocol::lines::{Line, Lines};
use crate::proxy::MAX_HEADER;
use crate::rounds::Rounds;
use crate::session::{Desk, Flow, Session, Turn};
use crate::shared::Shared;
use crate::stamps::Stamps;
use crate::status::{Counters, add, take_one};
use crate::targets::Decision;

use super::sessions::Sessions;

/// Bytes read from a connection at once.
const READ: usize = 64 << 10;
/// Unanswered shares of the worker beyond which it reads from nobody.
const MAX_OUTSTANDING: usize = 1 << 16;

/// How far the system's clock may go back before it is worth a warning, nanoseconds.
const CLOCK_SLACK: u64 = 1_000_000_000;

/// What came of polling a connection.
pub(super) enum Polled {
    /// It has ended.
    Ended(Ended),
    /// The worker of this number goes on with it.
    Moves(u32),
    /// Lines were taken.
    Took,
}

/// What a worker knows.
pub(super) struct Core {
    shared: Arc<Shared>,
    number: u32,
    judge: Judge,
    latest: Option<Arc<Rendered>>,
    connections: Vec<Option<Rc<Connection>>>,
    free: Vec<usize>,
    sessions: Sessions,
    outlet: Outlet,
    stamps: Stamps,
    /// What is being read; shared by all connections.
    buffer: Vec<u8>,
    /// What TLS made of it.
    plain: Vec<u8>,
    turn: Turn,
    /// Shares that wait for their append.
    outstanding: usize,
    /// Connections that are not read from until shares are answered.
    paused: Vec<Rc<Connection>>,
    stopping: bool,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, number: u32, outlet: Outlet) -> Self {
        Self {
            buffer: vec![0; shared.config.line_limit.max(MAX_HEADER) + READ],
            plain: Vec::new(),
            sessions: Sessions::new(Arc::clone(&shared), number),
            outlet,
            shared,
            number,
            judge: Judge::default(),
            latest: None,
            connections: Vec::new(),
            free: Vec::new(),
            stamps: Stamps::default(),
            turn: Turn::default(),
            outstanding: 0,
            paused: Vec::new(),
            stopping: false,
        }
    }

    /// The worker's number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Connections there are.
    pub(super) fn connections(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    /// Takes a connection in.
    pub(super) fn add(&mut self, peer: SocketAddr, link: Link, writer: OwnedWriteHalf) -> Rc<Connection> {
        let session = Session::new(&self.shared.listeners[link.listener].config);
        self.place(peer, State::new(session, link, writer, Vec::new()))
    }

    /// Takes a connection in that is as far as `state` says.
    pub(super) fn place(&mut self, peer: SocketAddr, state: State) -> Rc<Connection> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let connection = Rc::new(Connection { peer: Cell::new(peer), place, state: state.into() });
        self.connections[place] = Some(Rc::clone(&connection));
        connection
    }

    /// Takes a connection away, and gives its identity back.
    pub(super) fn remove(&mut self, connection: &Connection, why: &Ended) {
        let mut state = connection.state.borrow_mut();
        let counters = counters(&self.shared, self.number);
        counters.connections.fetch_sub(1, Ordering::Relaxed);
        if state.session.is_ready() {
            take_one(&counters.sessions);
        }
        if let (Some(user), Some(difficulty)) = (state.session.only_user(), state.session.plan().proven()) {
            self.shared.history.note_worker(user, difficulty);
        }
        if let Some((identity, plan)) = state.session.surrender(&self.shared.config) {
            self.sessions.end(identity, plan);
        }
        self.connections[connection.place] = None;
        self.free.push(connection.place);
        self.shared.listeners[state.link.listener].connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(visitor) = &mut state.link.visitor {
            visitor.settle(&self.shared.limits, Instant::now());
        }
        if !matches!(why, Ended::Failed(_) | Ended::Evicted) {
            state.say_goodbye();
        }
        self.shared.has_gone();
        let peer = connection.peer.get();
        match why {
            Ended::Evicted => {
                add(&counters.evicted, 1);
                tracing::warn!(%peer, "a miner that does not read was disconnected");
            }
            Ended::Refused(why) => tracing::info!(%peer, why, "a miner was disconnected"),
            Ended::ByPeer | Ended::Failed(_) | Ended::Stopped => tracing::debug!(%peer, ?why, "a connection has ended"),
        }
    }

    /// The time, never before the last one.
    fn now(&mut self) -> EventTime {
        self.stamps.at(EventTime::now())
    }

    /// Drives a connection: writes what is kept, and reads once if it may.
    pub(super) fn poll(
        &mut self,
        connection: &Rc<Connection>,
        reader: &mut OwnedReadHalf,
        cx: &mut Context<'_>,
    ) -> Poll<Polled> {
        {
            let mut state = connection.state.borrow_mut();
            state.poll_drain(cx);
            if let Some(why) = state.ended() {
                return Poll::Ready(Polled::Ended(why.clone()));
            }
            if let Some(to) = state.moves {
                return Poll::Ready(Polled::Moves(to));
            }
            state.listen(cx);
            if state.half_closed || self.stopping {
                let why = if state.half_closed { Ended::ByPeer } else { Ended::Stopped };
                return if state.is_done() { Poll::Ready(Polled::Ended(why)) } else { Poll::Pending };
            }
            if state.in_flight >= self.shared.config.in_flight {
                // Answers wake it.
                return Poll::Pending;
            }
            if state.link.visitor.as_mut().is_some_and(|visitor| !visitor.may_read(&self.shared.limits)) {
                // The sweep wakes it.
                return Poll::Pending;
            }
        }
        if self.outstanding >= MAX_OUTSTANDING {
            self.paused.push(Rc::clone(connection));
            return Poll::Pending;
        }
        self.poll_read(connection, reader, cx)
    }

    fn poll_read(
        &mut self,
        connection: &Rc<Connection>,
        reader: &mut OwnedReadHalf,
        cx: &mut Context<'_>,
    ) -> Poll<Polled> {
        let mut state = connection.state.borrow_mut();
        // Room is left in front for the beginning of the line, which is put there only if something came.
        let begun = if state.keeps_bytes() { state.begun.len() } else { 0 };
        let mut into = ReadBuf::new(&mut self.buffer[begun..]);
        let read = match ready!(Pin::new(reader).poll_read(cx, &mut into)) {
            Ok(()) => into.filled().len(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Poll::Ready(Polled::Ended(Ended::ByPeer));
            }
            Err(error) => return Poll::Ready(Polled::Ended(Ended::Failed(error.kind()))),
        };
        if read == 0 {
            state.half_closed = true;
            let done = state.is_done();
            return Poll::Ready(if done { Polled::Ended(Ended::ByPeer) } else { Polled::Took });
        }
        if begun > 0 {
            self.buffer[..begun].copy_from_slice(&state.begun);
            state.begun = Vec::new();
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.take_bytes(connection, &mut state, &buffer[..begun + read]);
        self.buffer = buffer;
        Poll::Ready(Polled::Took)
    }

    /// Takes the lines of `bytes`, in order.
    fn take_lines(&mut self, connection: &Rc<Connection>, state: &mut State, bytes: &[u8]) {
        let now = self.now();
        let shared = &*self.shared;
        let counters = counters(shared, self.number);
        let (was_known, was_ready) = (state.session.identity().is_some(), state.session.is_ready());
        let mut turn = std::mem::take(&mut self.turn);
        state.link.heard = shared.seconds();
        let mut desk = Desk {
            config: &shared.listeners[state.link.listener].config,
            judge: &mut self.judge,
            latest: self.latest.as_deref(),
            registrar: &mut self.sessions,
            history: &shared.history,
            counters,
            intake: &mut self.outlet,
            now,
        };
        let mut blocks = Vec::new();
        let mut lines = Lines::new(bytes, shared.config.line_limit);
        let flow = loop {
            let rest = lines.rest();
            match lines.next_line() {
                Line::Whole(line) => {
                    state.link.visitor.iter_mut().for_each(Visitor::message);
                    let flow = state.session.receive(line, &mut desk, &mut turn);
                    if let Some(candidate) = turn.candidate.take() {
                        blocks.push(send_block(shared, counters, now, candidate));
                    }
                    match flow {
                        Flow::Continue => continue,
                        Flow::Move(_) => state.begun.extend_from_slice(rest),
                        Flow::End(_) => {}
                    }
                    break flow;
                }
                Line::Begun(rest) => {
                    state.begun.extend_from_slice(rest);
                    break Flow::Continue;
                }
                Line::TooLong => {
                    add(&counters.lines_oversized, 1);
                    break Flow::End("a line beyond line_limit");
                }
            }
        };
        if state.session.settle(&desk, &mut turn.replies) {
            add(&counters.notifies, 1);
        }
        blocks.into_iter().for_each(|block| self.outlet.add_block(block));
        if let Some(identity) = state.session.identity().filter(|_| !was_known) {
            self.sessions.begin(identity.session, Rc::clone(connection));
        }
        if !was_ready && state.session.is_ready() {
            add(&counters.sessions, 1);
            if shared.is_draining() {
                // Its turn to be sent away may have passed while it logged in.
                turn.replies.extend_from_slice(&shared.farewell);
            }
        }
        if !entrance::count(shared, state, &mut turn) {
            state.end(Ended::Refused(entrance::BANNED));
        }
        self.deliver(connection, state, &mut turn);
        self.turn = turn;
        match flow {
            Flow::Continue => {}
            Flow::Move(to) => state.moves = Some(to),
            Flow::End(why) => state.end(Ended::Refused(why)),
        }
    }

    /// Writes replies at once, and gives shares with their answers to the partition.
    fn deliver(&mut self, connection: &Rc<Connection>, state: &mut State, turn: &mut Turn) {
        let limit = self.shared.config.output_limit;
        let shares = std::mem::take(&mut turn.shares);
        // An answer without a share waits for those before it, so that answers keep the order of the submits.
        let waits = shares > 0 || (state.in_flight > 0 && !turn.answers.is_empty());
        if waits {
            self.outlet.answer(connection, shares, &turn.answers);
            state.in_flight += shares;
            self.outstanding += shares;
            add(&counters(&self.shared, self.number).in_flight, shares as u64);
        } else {
            // Nothing is in flight that these answers would overtake.
            turn.replies.extend_from_slice(&turn.answers);
        }
        state.send(&turn.replies, limit);
        turn.replies.clear();
        turn.answers.clear();
    }

    /// There is something to append or to answer.
    pub(super) fn is_filled(&self) -> bool {
        !self.outlet.is_empty()
    }

    /// Appends what has been taken in since the last round.
    pub(super) fn begin_round(&mut self, rounds: &mut Rounds) {
        rounds.begin(&mut self.outlet, &self.shared.log);
    }

    /// Puts the time behind all that was received before now, in each partition.
    pub(super) fn tick(&mut self) {
        let behind = self.stamps.ahead_of(EventTime::now());
        if behind > CLOCK_SLACK {
            tracing::warn!(
                seconds = behind / 1_000_000_000,
                "the system's clock went back; shares keep the last stamp"
            );
        }
        let now = self.now();
        let tick = Tick { gateway: u32::from(self.shared.config.id), job_clock: self.judge.clock().get() };
        self.outlet.tick(now, tick);
    }

    /// The shares of a round are durable: answers them.
    pub(super) fn answer(&mut self, round: Round) {
        let counters = counters(&self.shared, self.number);
        for (counter, count) in counters.shares.iter().zip(round.counts).filter(|(_, count)| *count > 0) {
            add(counter, u64::from(count));
        }
        // Before the answers, so that who has one finds it counted.
        let answered: usize = round.groups.iter().map(|group| group.shares).sum();
        self.outstanding -= answered;
        counters.in_flight.fetch_sub(answered as u64, Ordering::Relaxed);
        let mut start = 0;
        for group in &round.groups {
            let mut state = group.connection.state.borrow_mut();
            state.send(&round.answers[start..group.end], self.shared.config.output_limit);
            let was_full = state.in_flight >= self.shared.config.in_flight;
            state.in_flight -= group.shares;
            if was_full || state.half_closed || self.stopping {
                state.wake();
            }
            start = group.end;
        }
        if self.outstanding < MAX_OUTSTANDING / 2 {
            self.paused.drain(..).for_each(|connection| connection.state.borrow().wake());
        }
        self.outlet.give_back(round);
    }

    /// Applies jobs, and sends the newest to all sessions: one write each.
    pub(super) fn take_jobs(&mut self, batches: &[Arc<JobBatch>]) -> Result<(), JobError> {
        let Some(last) = batches.last() else { return Ok(()) };
        for (offset, issued, job) in batches.iter().flat_map(|batch| &batch.jobs) {
            self.judge.apply(*offset, *issued, job.clone())?;
        }
        self.latest = Some(Arc::clone(&last.rendered));
        let clean = batches.iter().any(|batch| batch.clean);
        let (now, live_from) = (self.now(), self.judge.live_from());
        let (shared, mut out) = (&self.shared, Vec::new());
        let counters = counters(shared, self.number);
        for connection in self.connections.iter().flatten() {
            let mut state = connection.state.borrow_mut();
            let config = &shared.listeners[state.link.listener].config;
            if state.session.notify(&last.rendered, clean, live_from, now, config, &mut out) {
                add(&counters.notifies, 1);
                state.send(&out, config.output_limit);
                out.clear();
            }
        }
        let took = u64::try_from(last.read.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counters.last_notify.store(took, Ordering::Relaxed);
        Ok(())
    }

    /// Takes in a decision of vardiff.
    pub(super) fn decide(&mut self, (session, difficulty): Decision) {
        let Some(connection) = self.sessions.connection(session) else {
            tracing::debug!(session, "a difficulty for a session that is gone");
            return;
        };
        add(&counters(&self.shared, self.number).targets, 1);
        let state = &mut *connection.state.borrow_mut();
        state.session.decide(difficulty, &self.shared.listeners[state.link.listener].config);
    }

    /// Reads no more; connections end once they are answered.
    pub(super) fn stop_reading(&mut self) {
        self.stopping = true;
        self.connections.iter().flatten().for_each(|connection| connection.state.borrow().wake());
    }

    /// A connection that is counted here could not be served, or not be handed over.
    pub(super) fn lost_connection(&self, link: &Link) {
        self.shared.listeners[link.listener].connections.fetch_sub(1, Ordering::Relaxed);
        counters(&self.shared, self.number).connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.has_gone();
    }
}

/// Sends a block ahead of everything else (invariant B1).
fn send_block(shared: &Shared, counters: &Counters, now: EventTime, candidate: Candidate) -> BlockAppend {
    add(&counters.candidates, 1);
    let (height, account) = (candidate.height, candidate.account.clone());
    let append = shared.candidates.append(0, vec![(now, Body::Candidate(candidate))]);
    tracing::info!(height, account, "a share makes a block");
    append
}

/// The counters of a worker.
fn counters(shared: &Shared, number: u32) -> &Counters {
    &shared.workers[number as usize]
}
