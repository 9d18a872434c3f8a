//! What a worker does because another one, or the gateway's owner, asks for it.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use tokio::net::tcp::OwnedWriteHalf;

use super::{Core, counters};
use crate::connection::{Connection, Moved};
use crate::status::add;

impl Core {
    /// A connection has come from the worker `from`: from now on it is counted here.
    pub(in crate::worker) fn count_moved(&self, from: u32) {
        let here = counters(&self.shared, self.number);
        here.connections.fetch_add(1, Ordering::Relaxed);
        counters(&self.shared, from).connections.fetch_sub(1, Ordering::Relaxed);
        add(&here.connections_moved, 1);
    }

    /// Takes a connection away that another worker goes on with. It is counted here until that one has it.
    pub(in crate::worker) fn detach(&mut self, connection: &Connection) -> Option<(OwnedWriteHalf, Moved)> {
        self.connections[connection.place] = None;
        self.free.push(connection.place);
        connection.state.borrow_mut().detach(&self.shared.config)
    }

    /// Takes the lines that another worker had read.
    pub(in crate::worker) fn take_begun(&mut self, connection: &Rc<Connection>, begun: &[u8]) {
        let mut state = connection.state.borrow_mut();
        self.take_lines(connection, &mut state, begun);
    }

    /// Sends a line to a session, or to all that get jobs.
    pub(in crate::worker) fn tell(&self, to: Option<u64>, line: &[u8]) {
        match to {
            Some(session) => match self.sessions.connection(session) {
                Some(connection) => connection.state.borrow_mut().send(line, self.shared.config.output_limit),
                None => tracing::debug!(session, "a message for a session that is gone"),
            },
            None => self.tell_slice(line, 0, 1),
        }
    }

    /// Sends a line to those of one of `slices` that get jobs.
    pub(in crate::worker) fn tell_slice(&self, line: &[u8], slice: usize, slices: usize) {
        let limit = self.shared.config.output_limit;
        for connection in self.connections.iter().skip(slice).step_by(slices).flatten() {
            let mut state = connection.state.borrow_mut();
            if state.session.is_ready() {
                state.send(line, limit);
            }
        }
    }

    /// Gives a session another extranonce1, if its miner takes one; the old one rests.
    pub(in crate::worker) fn change_extranonce(&mut self, session: u64) {
        let Some(connection) = self.sessions.connection(session) else {
            return tracing::debug!(session, "another extranonce1 for a session that is gone");
        };
        let identities = &self.shared.identities;
        let fresh = match identities.identity(session, self.judge.live_from()) {
            Ok(fresh) => fresh,
            Err(error) => return tracing::warn!(session, %error, "a session keeps its extranonce1"),
        };
        let mut state = connection.state.borrow_mut();
        let old = state.session.identity().map(|identity| identity.extranonce1);
        if state.session.change_extranonce(fresh) {
            let last_job = state.session.plan().last_job();
            old.into_iter().for_each(|old| identities.release_slot(old, last_job));
            tracing::info!(session, "the session gets another extranonce1 with the next job");
        } else {
            identities.release_slot(fresh.extranonce1, None);
            tracing::warn!(session, peer = %connection.peer.get(), "the miner did not subscribe to changes of its extranonce1");
        }
    }
}
