//! For benches, fuzzing and the simulation only: the way of a share through the gateway without its sockets, and parsers.

use bytes::Bytes;
use sluice_log::{MemoryLog, SharedLog};
use sluice_mining::Chain;
use sluice_proto::v1::{Job, Reason};
use sluice_proto::{Epoch, EventTime, Offset};
use sluice_topology::runtime::Producer;

use crate::GatewayConfig;
use crate::history::History;
use crate::identity::{Exhausted, Identities, Identity};
use crate::jobs::Rendered;
use crate::judge::Judge;
use crate::outlet::Outlet;
use crate::protocol::lines::{Line, Lines};
use crate::session::{Desk, Registrar, Resumed, Session, Turn};
use crate::status::Counters;

pub mod fuzz;
pub mod simulate;

pub use crate::proxy::{Header as ProxyHeader, Parsed as ParsedProxy, parse as parse_proxy};

/// A session that mines one job.
pub struct ShareBench {
    config: GatewayConfig,
    judge: Judge,
    rendered: Rendered,
    identities: Identities,
    history: History,
    counters: Counters,
    outlet: Outlet,
    session: Session,
    turn: Turn,
    accepted: u64,
}

impl ShareBench {
    /// A session that has subscribed and authorized `user`, at the lowest difficulty, on `job` (of regtest).
    ///
    /// # Panics
    /// If the job is wrong.
    #[allow(clippy::panic)]
    pub fn new(job: &Job, user: &str) -> Self {
        let mut config = GatewayConfig::new("bench", Chain::Regtest);
        config.difficulty = config.min_difficulty;
        let mut judge = Judge::default();
        if let Err(error) = judge.apply(Offset::new(1), EventTime::now(), job.clone()) {
            panic!("the bench's job: {error}");
        }
        let log: SharedLog = MemoryLog::new();
        let mut bench = Self {
            session: Session::new(&config),
            config,
            judge,
            rendered: Rendered::new(job),
            identities: Identities::new(0, Epoch::new(1), 1, 1),
            history: History::default(),
            counters: Counters::default(),
            outlet: Outlet::new(Producer::new(log, "shares", 1, "bench", Epoch::new(1)).into_writers(), 1),
            turn: Turn::default(),
            accepted: 0,
        };
        bench.take(b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n");
        bench.take(format!("{{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"{user}\"]}}\n").as_bytes());
        bench
    }

    /// Takes lines as a worker does: cuts, parses, judges and renders. Returns the bytes of the answers.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut desk = Desk {
            config: &self.config,
            judge: &mut self.judge,
            latest: Some(&self.rendered),
            registrar: &mut Single(&self.identities),
            history: &self.history,
            counters: &self.counters,
            intake: &mut self.outlet,
            now: EventTime::now(),
        };
        let mut lines = Lines::new(bytes, self.config.line_limit);
        while let Line::Whole(line) = lines.next_line() {
            self.session.receive(line, &mut desk, &mut self.turn);
        }
        let answered = self.turn.answers.len();
        self.turn.answers.clear();
        self.turn.replies.clear();
        answered
    }

    /// Extranonce1 of the session.
    pub fn extranonce1(&self) -> u32 {
        self.session.identity().map_or(0, |identity| identity.extranonce1)
    }

    /// Shares that were accepted and have gone to the log.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The records of the shares taken since the last call, as they go to the log.
    pub fn records(&mut self) -> Vec<Bytes> {
        let (round, batches, _) = self.outlet.take();
        self.accepted += u64::from(round.counts[Reason::Accepted as usize]);
        self.outlet.give_back(round);
        batches.into_iter().flat_map(|(_, records)| records).collect()
    }
}

/// Sessions of one worker that go on with nothing.
pub(crate) struct Single<'a>(pub(crate) &'a Identities);

impl Registrar for Single<'_> {
    fn open(&mut self, live_from: u64) -> Result<Identity, Exhausted> {
        self.0.take(0, live_from)
    }

    fn resume(&mut self, _: &str, _: u64) -> Result<Resumed, Exhausted> {
        Ok(Resumed::Nothing)
    }

    fn token(&self, session: u64) -> String {
        format!("{session:032x}")
    }
}
