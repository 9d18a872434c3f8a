//! What a worker does because another one, or the gateway's owner, asks for it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use tokio::net::tcp::OwnedWriteHalf;

use super::{BlockAppend, Core, counters};
use crate::connection::{Connection, Moved, State};
use crate::status::add;

impl Core {
    /// Takes a connection of another worker in, with what could not be written yet.
    pub(in crate::worker) fn add_moved(&mut self, peer: SocketAddr, state: State) -> Rc<Connection> {
        let counters = counters(&self.shared, self.number);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        add(&counters.connections_moved, 1);
        self.place(peer, state)
    }

    /// Takes a connection away that another worker goes on with.
    pub(in crate::worker) fn detach(&mut self, connection: &Connection) -> Option<(OwnedWriteHalf, Moved)> {
        counters(&self.shared, self.number).connections.fetch_sub(1, Ordering::Relaxed);
        self.connections[connection.place] = None;
        self.free.push(connection.place);
        connection.state.borrow_mut().detach(&self.shared.config)
    }

    /// Takes the lines that another worker had read.
    pub(in crate::worker) fn take_begun(&mut self, connection: &Rc<Connection>, begun: &[u8]) -> Option<BlockAppend> {
        let mut state = connection.state.borrow_mut();
        self.take_lines(connection, &mut state, begun)
    }

    /// Sends a line to a session, or to all that get jobs.
    pub(in crate::worker) fn tell(&mut self, to: Option<u64>, line: &[u8]) {
        let limit = self.shared.config.output_limit;
        match to {
            Some(session) => match self.sessions.connection(session) {
                Some(connection) => connection.state.borrow_mut().send(line, limit),
                None => tracing::debug!(session, "a message for a session that is gone"),
            },
            None => {
                for connection in self.connections.iter().flatten() {
                    let mut state = connection.state.borrow_mut();
                    if state.session.is_ready() {
                        state.send(line, limit);
                    }
                }
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
