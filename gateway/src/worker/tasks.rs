//! What a worker waits for: one small task per source, and one per connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sluice_failpoints::Point;
use sluice_log::LogError;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, MissedTickBehavior};

use super::core::Polled;
use super::{Handover, Mail, Worker};
use crate::acceptor::Arrival;
use crate::connection::{Connection, Ended, Moved, State};
use crate::jobs::{Handed, JobBatch};
use crate::rounds::Rounds;
use crate::targets::Decision;

/// Rounds of appends begin this far apart at least, so that under load they become larger instead of more: a round
/// costs about as much as ten shares, in the log and in waking threads. A share that comes alone does not wait.
const PACE: Duration = Duration::from_millis(1);
/// How often each connection is looked after.
const SWEEP: Duration = Duration::from_secs(1);
/// Parts in which that is done.
const SLICES: u32 = 8;
/// Between groups of miners that are sent away.
const AWAY_STEP: Duration = Duration::from_millis(50);

impl Worker {
    /// Serves the connections that the acceptor hands over.
    pub(super) async fn accept_all(self: Rc<Self>, mut connections: Receiver<Arrival>) {
        while let Some(Arrival { stream, peer, link }) = connections.recv().await {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => {
                    let (reader, writer) = stream.into_split();
                    let connection = self.core.borrow_mut().add(peer, link, writer);
                    self.spawn(Rc::clone(&self).serve(connection, reader));
                }
                Err(error) => {
                    self.core.borrow().lost_connection(&link);
                    tracing::warn!(%peer, %error, "a connection could not be served");
                }
            }
        }
    }

    /// Does what others ask for.
    pub(super) async fn take_mail(self: Rc<Self>, mut mail: Receiver<Mail>) {
        while let Some(letter) = mail.recv().await {
            match letter {
                Mail::Serve(handover) => self.take_over(*handover),
                Mail::Tell(to, line) => self.core.borrow().tell(to, &line),
                Mail::Decide(decision) => self.core.borrow_mut().decide(decision),
                Mail::ChangeExtranonce(session) => self.core.borrow_mut().change_extranonce(session),
            }
        }
    }

    /// Goes on serving a connection of another worker.
    fn take_over(self: &Rc<Self>, handover: Handover) {
        let Handover { stream, peer, moved, from } = handover;
        let Moved { session, link, out, begun } = moved;
        self.core.borrow().count_moved(from);
        match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                let connection = self.core.borrow_mut().place(peer, State::new(session, link, writer, out));
                self.core.borrow_mut().take_begun(&connection, &begun);
                self.note_filled();
                self.spawn(Rc::clone(self).serve(connection, reader));
            }
            Err(error) => {
                self.core.borrow().lost_connection(&link);
                tracing::warn!(%peer, %error, "a connection could not be taken over");
            }
        }
    }

    /// Gives a connection to worker `to`, which serves the session it goes on with.
    async fn hand_over(&self, to: u32, connection: &Connection, reader: OwnedReadHalf) {
        let parts = self.core.borrow_mut().detach(connection);
        let peer = connection.peer.get();
        let Some((writer, moved)) = parts else { return };
        let stream = match reader.reunite(writer).map_err(|error| error.to_string()) {
            Ok(stream) => stream.into_std().map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match (stream, self.shared.mail[to as usize].reserve().await) {
            (Ok(stream), Ok(room)) => {
                let from = self.core.borrow().number();
                room.send(Mail::Serve(Box::new(Handover { stream, peer, moved, from })));
            }
            (Err(error), _) => {
                self.core.borrow().lost_connection(&moved.link);
                tracing::warn!(%peer, error, "a connection could not be handed over");
            }
            (Ok(_), Err(_)) => {
                self.core.borrow().lost_connection(&moved.link);
                tracing::debug!(%peer, "a connection was to be handed over after the stop");
            }
        }
    }

    /// Serves one connection until it ends.
    async fn serve(self: Rc<Self>, connection: Rc<Connection>, mut reader: OwnedReadHalf) {
        let why = loop {
            match poll_fn(|cx| self.core.borrow_mut().poll(&connection, &mut reader, cx)).await {
                Polled::Ended(why) => break why,
                Polled::Moves(to) => {
                    self.hand_over(to, &connection, reader).await;
                    return self.removed.notify_one();
                }
                Polled::Took => self.note_filled(),
            }
        };
        self.core.borrow_mut().remove(&connection, &why);
        self.removed.notify_one();
        if why == Ended::Stopped {
            tracing::debug!(peer = %connection.peer.get(), "closed, all answered");
        }
    }

    /// Wakes [`Worker::append_always`] if there is something for it.
    fn note_filled(&self) {
        if self.core.borrow().is_filled() {
            self.filled.notify_one();
        }
    }

    /// Resolves once there is something to append and the last round, which began at `last`, is long enough ago.
    /// Woken by the connections of a turn of the event loop, it goes on behind all of them.
    async fn filled(&self, last: Option<Instant>) {
        while !self.core.borrow().is_filled() {
            self.filled.notified().await;
        }
        if let Some(last) = last {
            tokio::time::sleep_until(last + PACE).await;
        }
    }

    /// Appends shares in rounds, and answers them as they become durable, in order.
    pub(super) async fn append_always(self: Rc<Self>) {
        let mut rounds = Rounds::default();
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                done = rounds.durable() => match done {
                    Ok(round) => {
                        sluice_failpoints::pass(Point::GatewayBefore);
                        self.core.borrow_mut().answer(round);
                        sluice_failpoints::pass(Point::GatewayAfter);
                    }
                    Err(error) => return self.fail("shares or blocks could not be appended", &error),
                },
                () = self.filled(last), if rounds.have_room() => {
                    last = Some(Instant::now());
                    self.core.borrow_mut().begin_round(&mut rounds);
                }
            }
        }
    }

    fn fail(&self, what: &str, error: &LogError) {
        self.shared.fail(format!("{}: {what}: {error}", self.shared.config.name));
    }

    /// Tells every partition the time.
    pub(super) async fn tick_always(self: Rc<Self>) {
        let mut interval = tokio::time::interval(self.shared.config.tick);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.core.borrow_mut().tick();
            self.note_filled();
        }
    }

    /// Looks after all connections, an eighth of them at a time.
    pub(super) async fn sweep_always(self: Rc<Self>) {
        let mut interval = tokio::time::interval(SWEEP / SLICES);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for slice in (0..SLICES as usize).cycle() {
            interval.tick().await;
            self.core.borrow().sweep(slice, SLICES as usize);
        }
    }

    /// Once the gateway lets go of its miners, asks them to connect again, spread over half of the time there is for it.
    pub(super) async fn send_away(self: Rc<Self>) {
        self.shared.draining().await;
        let slices = (self.shared.config.drain / 2).as_millis().div_ceil(AWAY_STEP.as_millis()).max(1) as usize;
        let mut interval = tokio::time::interval(AWAY_STEP);
        for slice in 0..slices {
            interval.tick().await;
            self.core.borrow().tell_slice(&self.shared.farewell, slice, slices);
        }
    }

    /// Applies jobs as they come.
    pub(super) async fn apply_all(self: Rc<Self>, mut jobs: Receiver<Handed>) {
        while let Some(Handed { batch, sending }) = jobs.recv().await {
            self.take_jobs(&[batch]);
            drop(sending);
        }
    }

    /// Applies jobs and sends the newest.
    pub(super) fn take_jobs(&self, batches: &[Arc<JobBatch>]) {
        if let Err(error) = self.core.borrow_mut().take_jobs(batches) {
            self.shared.fail(format!("{}: {error}", self.shared.config.name));
        }
    }

    /// Takes in decisions of vardiff.
    pub(super) async fn decide_all(self: Rc<Self>, mut targets: Receiver<Decision>) {
        while let Some(decision) = targets.recv().await {
            self.core.borrow_mut().decide(decision);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::Ordering;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::connection::Link;
    use crate::outlet::Outlet;
    use crate::shared::tests::shared;
    use crate::worker::core::Core;

    /// A drain would wait for it until its time is over.
    #[tokio::test]
    async fn a_connection_that_cannot_be_handed_over_is_not_waited_for() {
        let shared = shared();
        shared.workers[0].connections.store(1, Ordering::Relaxed);
        shared.listeners[0].connections.store(1, Ordering::Relaxed);
        let core = RefCell::new(Core::new(Arc::clone(&shared), 0, Outlet::new(Vec::new(), 1)));
        let worker = Worker { core, filled: Notify::new(), removed: Notify::new(), shared: Arc::clone(&shared) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _miner = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (reader, writer) = stream.into_split();
        let connection = worker.core.borrow_mut().add(peer, Link::default(), writer);
        shared.drain();
        // The first of them waits already when the second begins.
        let both = async { tokio::join!(shared.empty(), worker.hand_over(0, &connection, reader)) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("nobody was told that it has gone");
        assert_eq!((worker.core.borrow().connections(), shared.status().connections), (0, 0));
    }
}
