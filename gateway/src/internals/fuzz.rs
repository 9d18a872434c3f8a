//! A session and its readers, driven by hand: what the fuzz targets call.

use std::mem;
use std::time::Duration;

use sluice_mining::{Chain, Difficulty, JobError};
use sluice_proto::v1::{Candidate, Job, Reason, Submission};
use sluice_proto::{Epoch, EventTime, Offset, Share};

use crate::GatewayConfig;
use crate::history::History;
use crate::identity::{Exhausted, Identities, Identity};
use crate::jobs::Rendered;
use crate::judge::Judge;
use crate::outlet::Intake;
use crate::plan::Plan;
use crate::protocol::configure::Configure;
use crate::protocol::lines::{Line, Lines};
use crate::protocol::password::Wishes;
use crate::protocol::request::Request;
use crate::protocol::submit::SubmitParams;
use crate::resume::{EndedSessions, Tokens};
use crate::session::{Desk, Flow, Registrar, Resumed, Session, Turn};
use crate::status::Counters;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Its id, as it stands there.
    pub id: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// The first parameter as a difficulty and as a target, and what the second asks for as a password.
    pub difficulties: Vec<Difficulty>,
    /// The answer, if the parameters are those of `mining.configure`.
    pub configured: Option<String>,
    /// The parameters are those of a `mining.submit`.
    pub is_submit: bool,
}

/// Reads a line as any request there is; `None` if it is none.
pub fn read_request(line: &[u8]) -> Option<ReadRequest> {
    let request = Request::parse(line).ok()?;
    let wishes = request.two_texts().1.map_or_else(Wishes::default, |password| Wishes::parse(&password));
    let asked = [request.first_difficulty(), request.first_target(), wishes.difficulty, wishes.minimum];
    let submit = request.params::<SubmitParams<'_>>();
    Some(ReadRequest {
        id: request.id.0.map(|id| id.get().to_owned()),
        method: request.method.as_deref().map(str::to_owned),
        difficulties: asked.into_iter().flatten().collect(),
        configured: Configure::parse(&request).map(|configure| configure.answer(0x1fff_e000)),
        is_submit: submit.is_some_and(|params| params.share().is_ok()),
    })
}

/// Cuts what comes piece by piece into lines, keeping the beginning of a line as a connection does.
#[derive(Debug)]
pub struct LineReader {
    begun: Vec<u8>,
    limit: usize,
}

impl LineReader {
    /// A reader of lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { begun: Vec::new(), limit }
    }

    /// Takes a piece. `take` is called with each line until it says that it wants no more; false if it did, or if a line
    /// is too long.
    pub fn read(&mut self, piece: &[u8], mut take: impl FnMut(&[u8]) -> bool) -> bool {
        let mut bytes = mem::take(&mut self.begun);
        bytes.extend_from_slice(piece);
        let mut lines = Lines::new(&bytes, self.limit);
        loop {
            match lines.next_line() {
                Line::Whole(line) if take(line) => {}
                Line::Whole(_) | Line::TooLong => return false,
                Line::Begun(rest) => {
                    self.begun = rest.to_vec();
                    return true;
                }
            }
        }
    }

    /// Bytes kept of a line that has begun.
    pub fn kept(&self) -> usize {
        self.begun.len()
    }
}

/// What a step has brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// To the miner.
    pub output: Vec<u8>,
    /// Shares with what was answered, in order.
    pub shares: Vec<(Submission, Reason)>,
    /// Blocks.
    pub candidates: Vec<Candidate>,
    /// Lines read.
    pub lines: usize,
}

impl Intake for Vec<(Submission, Reason)> {
    fn take_in(&mut self, _: u32, _: EventTime, share: &Share<'_>, reason: Reason) {
        self.push(((*share).into(), reason));
    }
}

/// One miner's sessions, one after the other, at a gateway of one worker; time stands still unless it is told.
pub struct SessionFuzz {
    config: GatewayConfig,
    judge: Judge,
    latest: Option<Rendered>,
    sessions: Sessions,
    history: History,
    counters: Counters,
    session: Session,
    lines: LineReader,
    now: EventTime,
    applied: u64,
    open: bool,
}

impl SessionFuzz {
    /// A gateway of regtest with the lowest first difficulty, and a connection.
    pub fn new(now: EventTime) -> Self {
        let mut config = GatewayConfig::new("fuzz", Chain::Regtest);
        config.difficulty = config.min_difficulty;
        Self {
            session: Session::new(&config),
            lines: LineReader::new(config.line_limit),
            config,
            judge: Judge::default(),
            latest: None,
            sessions: Sessions::new(Identities::new(1, Epoch::new(5), 4, 1), Tokens::new([7; 16])),
            history: History::default(),
            counters: Counters::default(),
            now,
            applied: 0,
            open: true,
        }
    }

    /// What has come from the miner in one read; nothing is done once the gateway has ended the connection.
    pub fn receive(&mut self, bytes: &[u8]) -> Brought {
        let mut brought = Brought::default();
        if !self.open {
            return brought;
        }
        let mut turn = Turn::default();
        let mut desk = Desk {
            config: &self.config,
            judge: &mut self.judge,
            latest: self.latest.as_ref(),
            registrar: &mut self.sessions,
            history: &self.history,
            counters: &self.counters,
            intake: &mut brought.shares,
            now: self.now,
        };
        let (session, lines, candidates) = (&mut self.session, &mut brought.lines, &mut brought.candidates);
        self.open = self.lines.read(bytes, |line| {
            *lines += 1;
            let flow = session.receive(line, &mut desk, &mut turn);
            candidates.extend(turn.candidate.take());
            flow == Flow::Continue
        });
        session.settle(&desk, &mut turn.replies);
        brought.output = turn.replies;
        brought.output.extend_from_slice(&turn.answers);
        brought
    }

    /// The next job, under the next offset.
    ///
    /// # Errors
    /// If it is no job that a gateway takes.
    pub fn issue(&mut self, job: Job) -> Result<Brought, JobError> {
        let (rendered, clean) = (Rendered::new(&job), job.clean);
        self.judge.apply(Offset::new(self.applied + 1), self.now, job)?;
        self.applied += 1;
        let mut brought = Brought::default();
        if self.open {
            let (live_from, output) = (self.judge.live_from(), &mut brought.output);
            self.session.notify(&rendered, clean, live_from, self.now, &self.config, output);
        }
        self.latest = Some(rendered);
        Ok(brought)
    }

    /// Vardiff decides.
    pub fn decide(&mut self, difficulty: Difficulty) {
        if let Some(identity) = self.session.identity() {
            self.history.note_session(identity.session, difficulty);
            self.session.decide(difficulty, &self.config);
        }
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        let passed = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.now = EventTime::from_nanos(self.now.nanos().saturating_add(passed));
    }

    /// When the next line is received.
    pub fn now(&self) -> EventTime {
        self.now
    }

    /// The connection ends, and another one begins. Returns what the ended session may be gone on with by.
    pub fn reconnect(&mut self) -> Option<String> {
        let past = self.session.surrender(&self.config);
        let token = past.as_ref().map(|(identity, _)| self.sessions.token(identity.session));
        if let Some((identity, plan)) = past {
            self.sessions.end(identity, plan);
        }
        (self.session, self.open) = (Session::new(&self.config), true);
        self.lines = LineReader::new(self.config.line_limit);
        token
    }

    /// Sessions that hold an extranonce1, and whether the connection's session is one of them.
    pub fn held(&self) -> (usize, bool) {
        (self.sessions.held, self.session.identity().is_some())
    }

    /// Bytes kept of a line that has begun.
    pub fn kept(&self) -> usize {
        self.lines.kept()
    }

    /// The connection has not been ended by the gateway.
    pub fn is_open(&self) -> bool {
        self.open
    }
}

/// Identities and ended sessions, as the only worker of a gateway keeps them.
pub(super) struct Sessions {
    pub(super) identities: Identities,
    tokens: Tokens,
    ended: EndedSessions,
    held: usize,
}

impl Sessions {
    pub(super) fn new(identities: Identities, tokens: Tokens) -> Self {
        Self { identities, tokens, ended: EndedSessions::new(), held: 0 }
    }

    pub(super) fn end(&mut self, identity: Identity, plan: Plan) {
        self.ended.end(&self.identities, identity, plan);
        self.held -= 1;
    }
}

impl Registrar for Sessions {
    fn open(&mut self, live_from: u64) -> Result<Identity, Exhausted> {
        self.held += 1;
        self.identities.take(0, live_from)
    }

    fn resume(&mut self, claim: &str, live_from: u64) -> Result<Resumed, Exhausted> {
        let claim = self.tokens.read(claim).and_then(|claim| claim.session(&self.identities));
        let Some(claim) = claim else { return Ok(Resumed::Nothing) };
        let resumed = self.ended.resume(&self.identities, claim, None, live_from)?;
        self.held += usize::from(!matches!(resumed, Resumed::Nothing));
        Ok(resumed)
    }

    fn token(&self, session: u64) -> String {
        self.tokens.write(session)
    }
}
