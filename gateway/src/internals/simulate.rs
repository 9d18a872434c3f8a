//! A gateway without sockets and threads: sessions, judging, rounds of appends and feeds are the real ones, and whoever
//! holds it decides what happens when, by what clock, and what a crash leaves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use sluice_log::{Partition, SharedLog};
use sluice_mining::Difficulty;
use sluice_proto::v1::{Envelope, Tick};
use sluice_proto::{Body, EventTime, Offset};
use sluice_topology::runtime::{Producer, TopicReader};

use super::fuzz::Sessions;
use crate::gateway::partitions;
use crate::history::History;
use crate::identity::Identities;
use crate::jobs::{JobBatch, JobFeed, Rendered};
use crate::judge::Judge;
use crate::outlet::{Outlet, Round};
use crate::protocol::lines::{Line, Lines};
use crate::resume::Tokens;
use crate::rounds::Rounds;
use crate::session::{Desk, Flow, Session, Turn};
use crate::stamps::Stamps;
use crate::status::Counters;
use crate::{GatewayConfig, GatewayError, GatewayIo};

/// How long a read of a feed waits, which has no end of its own here.
const WAIT: Duration = Duration::from_secs(3600);

/// A connection of a [`SimGateway`].
struct Wire {
    session: RefCell<Session>,
    /// To the miner.
    out: RefCell<Vec<u8>>,
    in_flight: Cell<usize>,
    open: Cell<bool>,
}

type JobsRead = LocalBoxFuture<'static, Result<(JobFeed, std::sync::Arc<JobBatch>), GatewayError>>;
type TargetsRead = LocalBoxFuture<'static, Result<(TopicReader, Vec<(Offset, Envelope)>), GatewayError>>;

/// A gateway of one worker.
pub struct SimGateway {
    config: GatewayConfig,
    log: SharedLog,
    judge: Judge,
    latest: Option<std::sync::Arc<Rendered>>,
    sessions: Sessions,
    history: History,
    counters: Counters,
    stamps: Stamps,
    outlet: Outlet<Wire>,
    rounds: Rounds<Wire>,
    candidates: Producer,
    jobs: JobsRead,
    targets: Vec<TargetsRead>,
    wires: BTreeMap<u64, Rc<Wire>>,
    connected: u64,
}

impl SimGateway {
    /// Opens it as [`crate::Gateway::start`] does.
    ///
    /// # Errors
    /// As there.
    pub async fn open(config: GatewayConfig, io: GatewayIo, clock: EventTime) -> Result<Self, GatewayError> {
        let config = config.checked()?;
        let count = partitions(&config, &io, &io.shares).await?;
        let producer = |topic: &str, count| Producer::new(io.log.clone(), topic, count, &io.producer, io.epoch);
        let (feed, batches) = JobFeed::open(io.log.clone(), &io.jobs, &config.name, config.chain, None).await?;
        let mut targets = Vec::new();
        if let Some(topic) = &io.targets {
            for number in 0..partitions(&config, &io, topic).await? {
                let reader = TopicReader::new(io.log.clone(), Partition::new(topic.as_str(), number), Offset::ZERO);
                targets.push(read_targets(reader, config.name.clone()));
            }
        }
        let mut this = Self {
            judge: Judge::default(),
            latest: None,
            sessions: Sessions::new(Identities::new(config.id, io.epoch, count, 1), Tokens::new(io.log.uuid())),
            history: History::default(),
            counters: Counters::default(),
            stamps: Stamps::default(),
            outlet: Outlet::new(producer(&io.shares, count).into_writers(), 1),
            rounds: Rounds::default(),
            candidates: producer(&io.candidates, 1),
            jobs: read_jobs(feed),
            targets,
            wires: BTreeMap::new(),
            connected: 0,
            log: io.log,
            config,
        };
        for batch in batches {
            this.take_jobs(&batch, clock)
                .map_err(|problem| GatewayError::Job { name: this.config.name.clone(), problem })?;
        }
        Ok(this)
    }

    /// A miner connects; the number of its connection.
    pub fn connect(&mut self) -> u64 {
        self.connected += 1;
        let session = RefCell::new(Session::new(&self.config));
        let wire = Wire { session, out: RefCell::default(), in_flight: Cell::new(0), open: Cell::new(true) };
        self.wires.insert(self.connected, Rc::new(wire));
        self.connected
    }

    /// The miner of a connection has gone: nothing more reaches it, and it may go on with its session.
    pub fn disconnect(&mut self, connection: u64) {
        let Some(wire) = self.wires.remove(&connection) else { return };
        wire.open.set(false);
        let past = wire.session.borrow_mut().surrender(&self.config);
        if let Some((identity, plan)) = past {
            self.sessions.end(identity, plan);
        }
    }

    /// Takes whole lines of a connection, received when the clock says `clock`. False once the gateway ends it.
    pub fn receive(&mut self, connection: u64, bytes: &[u8], clock: EventTime) -> bool {
        let Some(wire) = self.wires.get(&connection).cloned() else { return false };
        let (now, mut turn) = (self.stamps.at(clock), Turn::default());
        let mut desk = Desk {
            config: &self.config,
            judge: &mut self.judge,
            latest: self.latest.as_deref(),
            registrar: &mut self.sessions,
            history: &self.history,
            counters: &self.counters,
            intake: &mut self.outlet,
            now,
        };
        let mut session = wire.session.borrow_mut();
        let mut lines = Lines::new(bytes, self.config.line_limit);
        let (mut goes_on, mut blocks) = (true, Vec::new());
        while let Line::Whole(line) = lines.next_line() {
            let flow = session.receive(line, &mut desk, &mut turn);
            if let Some(candidate) = turn.candidate.take() {
                blocks.push(self.candidates.append(0, vec![(now, Body::Candidate(candidate))]));
            }
            if flow != Flow::Continue {
                goes_on = false;
                break;
            }
        }
        session.settle(&desk, &mut turn.replies);
        blocks.into_iter().for_each(|block| self.outlet.add_block(block));
        // In the order of the submits, as a worker does it.
        if turn.shares > 0 || (wire.in_flight.get() > 0 && !turn.answers.is_empty()) {
            self.outlet.answer(&wire, turn.shares, &turn.answers);
            wire.in_flight.set(wire.in_flight.get() + turn.shares);
        } else {
            turn.replies.extend_from_slice(&turn.answers);
        }
        wire.out.borrow_mut().extend_from_slice(&turn.replies);
        goes_on
    }

    /// What the miner of a connection has been sent since the last call.
    pub fn sent(&mut self, connection: u64) -> Vec<u8> {
        self.wires.get(&connection).map_or_else(Vec::new, |wire| mem::take(&mut wire.out.borrow_mut()))
    }

    /// Tells every partition the time.
    pub fn tick(&mut self, clock: EventTime) {
        let tick = Tick { gateway: u32::from(self.config.id), job_clock: self.judge.clock().get() };
        self.outlet.tick(self.stamps.at(clock), tick);
    }

    /// Appends what was taken in since the last round, unless there is nothing or too many rounds are under way.
    pub fn append(&mut self) -> bool {
        let may = !self.outlet.is_empty() && self.rounds.have_room();
        if may {
            self.rounds.begin(&mut self.outlet, &self.log);
        }
        may
    }

    /// Answers what is durable, applies jobs and decisions. Ready with its cause once the gateway has failed.
    pub fn poll(&mut self, clock: EventTime, cx: &mut Context<'_>) -> Poll<String> {
        match self.poll_all(clock, cx) {
            Ok(()) => Poll::Pending,
            Err(cause) => Poll::Ready(cause),
        }
    }

    fn poll_all(&mut self, clock: EventTime, cx: &mut Context<'_>) -> Result<(), String> {
        while let Poll::Ready(read) = self.jobs.poll_unpin(cx) {
            let (feed, batch) = read.map_err(|error| error.to_string())?;
            self.jobs = read_jobs(feed);
            self.take_jobs(&batch, clock)?;
        }
        for number in 0..self.targets.len() {
            while let Poll::Ready(read) = self.targets[number].poll_unpin(cx) {
                let (reader, records) = read.map_err(|error| error.to_string())?;
                self.targets[number] = read_targets(reader, self.config.name.clone());
                self.decide(records);
            }
        }
        loop {
            let done = pin!(self.rounds.durable()).poll(cx);
            match done {
                Poll::Pending => return Ok(()),
                Poll::Ready(round) => self.answer(round.map_err(|error| error.to_string())?),
            }
        }
    }

    fn answer(&mut self, round: Round<Wire>) {
        let mut start = 0;
        for group in &round.groups {
            group.connection.in_flight.set(group.connection.in_flight.get() - group.shares);
            group.connection.out.borrow_mut().extend_from_slice(&round.answers[start..group.end]);
            start = group.end;
        }
        self.outlet.give_back(round);
    }

    fn take_jobs(&mut self, batch: &JobBatch, clock: EventTime) -> Result<(), String> {
        for (offset, issued, job) in &batch.jobs {
            self.judge.apply(*offset, *issued, job.clone()).map_err(|error| error.to_string())?;
        }
        self.latest = Some(batch.rendered.clone());
        let (now, live_from) = (self.stamps.at(clock), self.judge.live_from());
        for wire in self.wires.values() {
            let (mut session, mut out) = (wire.session.borrow_mut(), wire.out.borrow_mut());
            session.notify(&batch.rendered, batch.clean, live_from, now, &self.config, &mut out);
        }
        Ok(())
    }

    fn decide(&mut self, records: Vec<(Offset, Envelope)>) {
        for (_, envelope) in records {
            let Some(Body::DifficultyTarget(target)) = envelope.body else { continue };
            let difficulty = Difficulty::from_units(target.difficulty).unwrap_or(Difficulty::MIN);
            self.history.note_session(target.session, difficulty);
            for wire in self.wires.values() {
                let mut session = wire.session.borrow_mut();
                if session.identity().is_some_and(|identity| identity.session == target.session) {
                    session.decide(difficulty, &self.config);
                }
            }
        }
    }
}

fn read_jobs(mut feed: JobFeed) -> JobsRead {
    async move {
        let batch = feed.next_batch().await?;
        Ok((feed, batch))
    }
    .boxed_local()
}

fn read_targets(mut reader: TopicReader, name: String) -> TargetsRead {
    async move {
        let records = reader.next_batch(WAIT).await;
        let records = records.map_err(|error| GatewayError::Read { name, error: Box::new(error) })?;
        Ok((reader, records))
    }
    .boxed_local()
}
