//! The sessions of a worker: those that live, and those that have ended and may be gone on with (docs/adr/0012).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::connection::{Connection, Ended};
use crate::identity::{Exhausted, Identity};
use crate::plan::Plan;
use crate::resume::EndedSessions;
use crate::session::{Registrar, Resumed};
use crate::shared::Shared;
use crate::status::{Counters, add, take_one};

/// The sessions of a worker.
pub(super) struct Sessions {
    shared: Arc<Shared>,
    number: u32,
    live: HashMap<u64, Rc<Connection>>,
    ended: EndedSessions,
}

impl Sessions {
    /// No sessions, of worker `number`.
    pub(super) fn new(shared: Arc<Shared>, number: u32) -> Self {
        Self { shared, number, live: HashMap::new(), ended: EndedSessions::new() }
    }

    /// The connection of a live session.
    pub(super) fn connection(&self, session: u64) -> Option<&Rc<Connection>> {
        self.live.get(&session)
    }

    /// A session has begun on `connection`.
    pub(super) fn begin(&mut self, session: u64, connection: Rc<Connection>) {
        self.live.insert(session, connection);
    }

    /// A session has ended with its connection: it is kept as long as its extranonce1 rests.
    pub(super) fn end(&mut self, identity: Identity, plan: Plan) {
        self.live.remove(&identity.session);
        self.ended.end(&self.shared.identities, identity, plan);
    }

    /// Takes a live session away from its connection, which ends: whoever has the token is the miner.
    fn take_live(&mut self, session: u64) -> Option<(Identity, Plan)> {
        let connection = self.live.remove(&session)?;
        let mut state = connection.state.borrow_mut();
        let was_ready = state.session.is_ready();
        let taken = state.session.surrender(&self.shared.config)?;
        if was_ready {
            take_one(&self.counters().sessions);
        }
        state.end(Ended::Refused("its session goes on on another connection"));
        Some(taken)
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.number as usize]
    }
}

impl Registrar for Sessions {
    fn open(&mut self, live_from: u64) -> Result<Identity, Exhausted> {
        self.shared.identities.take(self.number, live_from)
    }

    fn resume(&mut self, claim: &str, live_from: u64) -> Result<Resumed, Exhausted> {
        let identities = &self.shared.identities;
        let claim = self.shared.tokens.read(claim).and_then(|claim| claim.session(identities));
        let Some((session, proven)) = claim else { return Ok(Resumed::Nothing) };
        let home = identities.home_of(session);
        if home != self.number {
            return Ok(Resumed::Elsewhere(home));
        }
        let live = if proven { self.take_live(session) } else { None };
        let resumed = self.ended.resume(&self.shared.identities, (session, proven), live, live_from)?;
        if matches!(resumed, Resumed::Adopted(_)) && self.shared.history.session(session).is_none() {
            self.shared.recall(session);
        }
        if !matches!(resumed, Resumed::Nothing) {
            add(&self.counters().sessions_resumed, 1);
        }
        Ok(resumed)
    }

    fn token(&self, session: u64) -> String {
        self.shared.tokens.write(session)
    }
}
