//! The sessions of a worker: those that live, and those that have ended and may be gone on with (docs/adr/0012).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use hashlink::LruCache;

use crate::connection::{Connection, Ended};
use crate::identity::{Exhausted, Identity};
use crate::plan::Plan;
use crate::resume::Claim;
use crate::session::{Registrar, Resumed};
use crate::shared::Shared;
use crate::status::{Counters, add, take_one};

/// Ended sessions that a worker keeps, a few hundred bytes each; the one that ended first goes.
const ENDED: usize = 1 << 14;

/// The sessions of a worker.
pub(super) struct Sessions {
    shared: Arc<Shared>,
    number: u32,
    live: HashMap<u64, Rc<Connection>>,
    ended: LruCache<u64, (Identity, Box<Plan>)>,
}

impl Sessions {
    /// No sessions, of worker `number`.
    pub(super) fn new(shared: Arc<Shared>, number: u32) -> Self {
        Self { shared, number, live: HashMap::new(), ended: LruCache::new(ENDED) }
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
        let last_job = plan.last_job();
        self.shared.identities.release(identity, last_job);
        if last_job.is_some() {
            self.ended.insert(identity.session, (identity, Box::new(plan)));
        }
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

    /// Takes an ended session back, with its extranonce1.
    fn take_ended(&mut self, session: u64) -> Option<(Identity, Plan)> {
        let (identity, plan) = self.ended.remove(&session)?;
        self.shared.identities.revive(identity).then_some((identity, *plan))
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
        let (session, proven) = match self.shared.tokens.read(claim) {
            Some(Claim::Session(session)) => (session, true),
            Some(Claim::Extranonce1(one)) => match self.shared.identities.session_of(one) {
                Some(session) => (session, false),
                None => return Ok(Resumed::Nothing),
            },
            None => return Ok(Resumed::Nothing),
        };
        let home = self.shared.identities.home_of(session);
        if home != self.number {
            return Ok(Resumed::Elsewhere(home));
        }
        let live = if proven { self.take_live(session) } else { None };
        let resumed = match live.or_else(|| self.take_ended(session)) {
            Some((identity, plan)) => Resumed::Here(identity, Box::new(plan)),
            None if proven => Resumed::Adopted(self.shared.identities.adopt(session, live_from)?),
            None => return Ok(Resumed::Nothing),
        };
        add(&self.counters().sessions_resumed, 1);
        Ok(resumed)
    }

    fn token(&self, session: u64) -> String {
        self.shared.tokens.write(session)
    }
}
