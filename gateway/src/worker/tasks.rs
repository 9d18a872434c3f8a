//! What a worker waits for: one small task per source, and one per connection.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use sluice_log::LogError;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::time::MissedTickBehavior;

use super::core::{BlockAppend, Polled};
use super::{Handover, Mail, Worker};
use crate::connection::{Connection, Ended};
use crate::jobs::JobBatch;
use crate::outlet::Batch;
use crate::targets::Decision;

impl Worker {
    /// Serves the connections that the acceptor hands over.
    pub(super) async fn accept_all(self: Rc<Self>, mut connections: Receiver<(TcpStream, SocketAddr)>) {
        while let Some((stream, peer)) = connections.recv().await {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => {
                    let (reader, writer) = stream.into_split();
                    let connection = self.core.borrow_mut().add(peer, writer);
                    self.spawn(Rc::clone(&self).serve(connection, reader));
                }
                Err(error) => {
                    self.core.borrow().lost_connection();
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
                Mail::Tell(to, line) => self.core.borrow_mut().tell(to, &line),
                Mail::ChangeExtranonce(session) => self.core.borrow_mut().change_extranonce(session),
            }
        }
    }

    /// Goes on serving a connection of another worker.
    fn take_over(self: &Rc<Self>, handover: Handover) {
        let Handover { stream, peer, session, out, begun } = handover;
        match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                let connection = self.core.borrow_mut().add_moved(peer, writer, session, out);
                let block = self.core.borrow_mut().take_begun(&connection, &begun);
                self.took(block);
                self.spawn(Rc::clone(self).serve(connection, reader));
            }
            Err(error) => tracing::warn!(%peer, %error, "a connection could not be taken over"),
        }
    }

    /// Gives a connection to worker `to`, which serves the session it goes on with.
    async fn hand_over(&self, to: u32, connection: &Connection, reader: OwnedReadHalf) {
        let parts = self.core.borrow_mut().detach(connection);
        let peer = connection.peer;
        let Some((session, writer, out, begun)) = parts else { return };
        let stream = match reader.reunite(writer).map_err(|error| error.to_string()) {
            Ok(stream) => stream.into_std().map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match stream {
            Ok(stream) => {
                let handover = Handover { stream, peer, session, out, begun };
                if let Some(sender) = self.shared.mail.get(to as usize)
                    && sender.send(Mail::Serve(Box::new(handover))).await.is_err()
                {
                    tracing::debug!(%peer, "a connection was to be handed over after the stop");
                }
            }
            Err(error) => tracing::warn!(%peer, error, "a connection could not be handed over"),
        }
    }

    /// What is left to do once lines were taken.
    fn took(self: &Rc<Self>, block: Option<BlockAppend>) {
        if let Some(append) = block {
            self.spawn(Rc::clone(self).confirm(append));
        }
        self.flush.notify_one();
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
                Polled::Took(block) => self.took(block),
            }
        };
        self.core.borrow_mut().remove(&connection, &why);
        self.removed.notify_one();
        if why == Ended::Stopped {
            tracing::debug!(peer = %connection.peer, "closed, all answered");
        }
    }

    /// Waits until a block is in the lane.
    async fn confirm(self: Rc<Self>, append: BlockAppend) {
        if let Err(error) = append.await {
            self.fail("a block could not be appended", &error);
        }
    }

    /// Appends the shares of each turn: woken by the connections of a turn, it runs behind all of them.
    pub(super) async fn flush_always(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            self.core.borrow_mut().flush();
        }
    }

    /// Answers the shares of one partition as they become durable, in order.
    pub(super) async fn answer_all(self: Rc<Self>, outlet: usize, mut batches: UnboundedReceiver<Batch>) {
        while let Some(mut batch) = batches.recv().await {
            if let Some(done) = batch.done.take()
                && let Err(error) = done.await
            {
                return self.fail("shares could not be appended", &error);
            }
            self.core.borrow_mut().answer(outlet, batch);
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
        }
    }

    /// Applies jobs as they come; those that wait together are sent as one.
    pub(super) async fn apply_all(self: Rc<Self>, mut jobs: Receiver<Arc<JobBatch>>) {
        let mut batches = Vec::new();
        while let Some(first) = jobs.recv().await {
            batches.push(first);
            while let Ok(next) = jobs.try_recv() {
                batches.push(next);
            }
            self.take_jobs(&batches);
            batches.clear();
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
