//! A miner's session: what each message does. No I/O: lines in, bytes and shares out.

use sluice_mining::Difficulty;
use sluice_proto::v1::{Candidate, Reason};
use sluice_proto::{EventTime, Share};

use crate::GatewayConfig;
use crate::history::History;
use crate::identity::{Exhausted, Identity};
use crate::jobs::Rendered;
use crate::judge::Judge;
use crate::outlet::Intake;
use crate::plan::{Origin, Plan};
use crate::protocol::configure::Configure;
use crate::protocol::password::Wishes;
use crate::protocol::reply::{self, Fault};
use crate::protocol::request::{Id, Request};
use crate::protocol::submit::SubmitParams;
use crate::status::{Counters, add};
use crate::users::{User, Users};

/// Lines that are no request before the connection is ended.
const MAX_MALFORMED: u8 = 10;
/// How the user agent of NiceHash begins, in small letters.
const NICEHASH: &str = "nicehash";
/// Version bits of BIP320, until the first job says which ones may be rolled.
const BIP320_MASK: u32 = 0x1fff_e000;

/// What a session needs of its worker.
pub(crate) struct Desk<'a> {
    /// Settings.
    pub(crate) config: &'a GatewayConfig,
    /// Jobs and accepted headers.
    pub(crate) judge: &'a mut Judge,
    /// The newest job.
    pub(crate) latest: Option<&'a Rendered>,
    /// Who sessions are.
    pub(crate) registrar: &'a mut dyn Registrar,
    /// What is remembered of workers and sessions that are gone.
    pub(crate) history: &'a History,
    /// Counters of the worker.
    pub(crate) counters: &'a Counters,
    /// Takes shares in, in order.
    pub(crate) intake: &'a mut dyn Intake,
    /// When the lines at hand were received.
    pub(crate) now: EventTime,
}

/// Where sessions get from who they are.
pub(crate) trait Registrar {
    /// An identity for a new session; jobs before `live_from` can no longer be cited.
    fn open(&mut self, live_from: u64) -> Result<Identity, Exhausted>;

    /// The session that a miner claims to go on with, by what it sent as the id of its last subscription.
    fn resume(&mut self, claim: &str, live_from: u64) -> Result<Resumed, Exhausted>;

    /// What the miner is to show when it wants to go on with `session` later.
    fn token(&self, session: u64) -> String;
}

/// What becomes of a claim to a session.
#[derive(Debug)]
pub(crate) enum Resumed {
    /// It goes on where it ended: its jobs keep their terms.
    Here(Identity, Box<Plan>),
    /// It began at another gateway or start: it goes on under its id, with another extranonce1.
    Adopted(Identity),
    /// The worker of this number serves it.
    Elsewhere(u32),
    /// There is nothing to go on with.
    Nothing,
}

/// What the lines at hand have brought.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// To be written at once.
    pub(crate) replies: Vec<u8>,
    /// Answers to submits, to be written once the shares are durable.
    pub(crate) answers: Vec<u8>,
    /// Shares that were taken in.
    pub(crate) shares: usize,
    /// Those that were accepted.
    pub(crate) good: u32,
    /// Those that were invalid, what was no share, and lines that were no request. A stale share is nobody's fault.
    pub(crate) bad: u32,
    /// A block, to be sent before anything else.
    pub(crate) candidate: Option<Candidate>,
}

/// Whether to go on with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on.
    Continue,
    /// Hand it over to the worker of this number, with the line at hand: nothing has been done for it yet.
    Move(u32),
    /// End it, for this reason.
    End(&'static str),
}

/// A miner's session.
#[derive(Debug)]
pub(crate) struct Session {
    identity: Option<Identity>,
    users: Users,
    plan: Plan,
    malformed: u8,
    /// It takes another extranonce1 while it is connected.
    takes_extranonce: bool,
    /// It has had a job on this connection.
    served: bool,
}

impl Session {
    /// The session of a new connection.
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        let (identity, users, plan) = (None, Users::default(), Plan::new(config));
        Self { identity, users, plan, malformed: 0, takes_extranonce: false, served: false }
    }

    /// Who it is, once it has subscribed.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Difficulty and version mask.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// It gets jobs: it has subscribed, and a user is authorized.
    pub(crate) fn is_ready(&self) -> bool {
        self.identity.is_some() && !self.users.is_empty()
    }

    /// The one user there is; `None` if there are none or several, whose work cannot be told apart.
    pub(crate) fn only_user(&self) -> Option<&str> {
        self.users.only()
    }

    /// Gives up who it is: from now on another connection is this session.
    pub(crate) fn surrender(&mut self, config: &GatewayConfig) -> Option<(Identity, Plan)> {
        let identity = self.identity.take()?;
        Some((identity, std::mem::replace(&mut self.plan, Plan::new(config))))
    }

    /// Changes its extranonce1 to that of `identity`, from the next job on; false if the miner does not take another.
    pub(crate) fn change_extranonce(&mut self, identity: Identity) -> bool {
        if self.takes_extranonce {
            self.plan.change_extranonce1(identity.extranonce1);
            self.identity = Some(identity);
        }
        self.takes_extranonce
    }

    /// Takes a line.
    pub(crate) fn receive(&mut self, line: &[u8], desk: &mut Desk<'_>, turn: &mut Turn) -> Flow {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Flow::Continue;
        }
        match Request::parse(line) {
            Ok(request) => self.carry_out(&request, desk, turn),
            Err(error) => {
                tracing::debug!(%error, "a line that is no request");
                reply::error_to(&mut turn.replies, "null", reply::NOT_A_REQUEST);
                self.malformed(desk, turn)
            }
        }
    }

    fn malformed(&mut self, desk: &Desk<'_>, turn: &mut Turn) -> Flow {
        add(&desk.counters.lines_malformed, 1);
        turn.bad += 1;
        self.malformed += 1;
        if self.malformed < MAX_MALFORMED { Flow::Continue } else { Flow::End("10 lines that were no request") }
    }

    fn carry_out(&mut self, request: &Request<'_>, desk: &mut Desk<'_>, turn: &mut Turn) -> Flow {
        // An answer to something the gateway never asked is not answered.
        let Some(method) = &request.method else { return self.malformed(desk, turn) };
        if &**method == "mining.submit" {
            self.submit(request, desk, turn);
            return Flow::Continue;
        }
        let (out, id) = (&mut turn.replies, request.id);
        match &**method {
            "mining.subscribe" => return self.subscribe(request, desk, out),
            "mining.authorize" => self.authorize(request, desk, out),
            "mining.configure" => self.configure(request, desk, out),
            "mining.suggest_difficulty" => self.suggest(request.first_difficulty(), id, desk, out),
            "mining.suggest_target" => self.suggest(request.first_target(), id, desk, out),
            "mining.extranonce.subscribe" => {
                self.takes_extranonce = true;
                reply::result(out, id, "true");
            }
            "mining.multi_version" => reply::result(out, id, "true"),
            "mining.ping" => reply::result(out, id, "\"pong\""),
            "mining.get_transactions" => reply::error(out, id, reply::NO_TRANSACTIONS),
            _ => reply::error(out, id, reply::UNKNOWN_METHOD),
        }
        Flow::Continue
    }

    fn subscribe(&mut self, request: &Request<'_>, desk: &mut Desk<'_>, out: &mut Vec<u8>) -> Flow {
        let identity = match self.identify(request, desk) {
            Ok(Ok(identity)) => identity,
            Ok(Err(elsewhere)) => return elsewhere,
            Err(error) => {
                add(&desk.counters.sessions_refused, 1);
                tracing::error!(%error, "a miner was refused");
                reply::error(out, request.id, reply::NO_ROOM);
                return Flow::End("no identity is free");
            }
        };
        let (token, one) = (desk.registrar.token(identity.session), identity.extranonce1);
        let size = sluice_mining::EXTRANONCE2_SIZE;
        let result =
            format!("[[[\"mining.set_difficulty\",\"{token}\"],[\"mining.notify\",\"{token}\"]],\"{one:08x}\",{size}]");
        reply::result(out, request.id, &result);
        Flow::Continue
    }

    /// Who the session is from its subscription on, or where it has to go first.
    fn identify(&mut self, request: &Request<'_>, desk: &mut Desk<'_>) -> Result<Result<Identity, Flow>, Exhausted> {
        let (agent, claim) = request.two_texts();
        if agent.is_some_and(|agent| agent.to_ascii_lowercase().starts_with(NICEHASH)) {
            self.plan.set_floor(desk.config.nicehash_min_difficulty, desk.config);
        }
        if let Some(identity) = self.identity {
            return Ok(Ok(identity));
        }
        let live_from = desk.judge.live_from();
        let resumed = match claim {
            Some(claim) => desk.registrar.resume(&claim, live_from)?,
            None => Resumed::Nothing,
        };
        let identity = match resumed {
            Resumed::Elsewhere(worker) => return Ok(Err(Flow::Move(worker))),
            Resumed::Here(identity, past) => {
                self.plan.resume(*past, desk.config);
                identity
            }
            Resumed::Adopted(identity) => {
                if let Some(difficulty) = desk.history.session(identity.session) {
                    self.plan.offer(Origin::Resumed, difficulty, desk.config);
                }
                self.plan.subscribe(identity.extranonce1);
                identity
            }
            Resumed::Nothing => {
                let identity = desk.registrar.open(live_from)?;
                self.plan.subscribe(identity.extranonce1);
                identity
            }
        };
        Ok(Ok(*self.identity.insert(identity)))
    }

    fn authorize(&mut self, request: &Request<'_>, desk: &Desk<'_>, out: &mut Vec<u8>) {
        let (Some(name), password) = request.two_texts() else {
            return reply::error(out, request.id, reply::BAD_PARAMS);
        };
        let added = User::parse(desk.config.chain, &name).and_then(|user| self.users.add(user));
        match added {
            Ok(()) => {
                if let Some(difficulty) = desk.history.worker(&name).filter(|_| self.users.only().is_some()) {
                    self.plan.offer(Origin::History, difficulty, desk.config);
                }
                self.grant(&password.map_or_else(Wishes::default, |password| Wishes::parse(&password)), desk.config);
                reply::result(out, request.id, "true");
            }
            Err(error) => {
                add(&desk.counters.users_refused, 1);
                tracing::debug!(name = &*name, text = error.text(), "a user was refused");
                reply::error(out, request.id, (24, error.text()));
            }
        }
    }

    fn grant(&mut self, wishes: &Wishes, config: &GatewayConfig) {
        if let Some(minimum) = wishes.minimum {
            self.plan.set_minimum(Some(minimum), config);
        }
        if let Some(difficulty) = wishes.difficulty {
            self.plan.suggest(difficulty, config);
        }
    }

    fn configure(&mut self, request: &Request<'_>, desk: &Desk<'_>, out: &mut Vec<u8>) {
        let Some(configure) = Configure::parse(request) else {
            return reply::error(out, request.id, reply::BAD_PARAMS);
        };
        let pool = desk.latest.map_or(BIP320_MASK, |job| job.version_mask);
        let mask = configure.version_mask().map_or(0, |rollable| self.plan.configure_mask(rollable, pool));
        if let Some(minimum) = configure.minimum() {
            self.plan.set_minimum(minimum, desk.config);
        }
        self.takes_extranonce |= configure.takes_extranonce();
        reply::result(out, request.id, &configure.answer(mask));
    }

    fn suggest(&mut self, suggested: Option<Difficulty>, id: Id<'_>, desk: &Desk<'_>, out: &mut Vec<u8>) {
        match suggested {
            Some(difficulty) => {
                self.plan.suggest(difficulty, desk.config);
                reply::result(out, id, "true");
            }
            None => reply::error(out, id, reply::BAD_PARAMS),
        }
    }

    fn submit(&mut self, request: &Request<'_>, desk: &mut Desk<'_>, turn: &mut Turn) {
        match self.share(request, desk) {
            Ok((partition, share)) => {
                let outcome = desk.judge.judge(&share, desk.now);
                turn.candidate = outcome.candidate;
                reply::verdict(&mut turn.answers, request.id, outcome.reason);
                desk.intake.take_in(partition, desk.now, &share, outcome.reason);
                turn.shares += 1;
                match outcome.reason {
                    Reason::Accepted => turn.good += 1,
                    Reason::Stale => {}
                    _ => turn.bad += 1,
                }
                self.plan.hear();
            }
            Err(fault) => {
                add(&desk.counters.submits_refused, 1);
                turn.bad += 1;
                reply::error(&mut turn.answers, request.id, fault);
            }
        }
    }

    /// A share, with all that is needed to judge it again, and the partition it goes to.
    fn share(&self, request: &Request<'_>, desk: &Desk<'_>) -> Result<(u32, Share<'_>), Fault> {
        let identity = self.identity.ok_or(reply::NOT_SUBSCRIBED)?;
        let params: SubmitParams<'_> = request.params().ok_or(reply::BAD_PARAMS)?;
        let user = self.users.get(&params.user).ok_or(reply::UNAUTHORIZED)?;
        let share = params.share()?;
        let terms = self.plan.terms(share.job);
        let share = Share {
            job_id: share.job,
            extranonce1: terms.extranonce1,
            extranonce2: share.extranonce2,
            ntime: share.ntime,
            nonce: share.nonce,
            version_bits: share.version_bits.unwrap_or(0),
            has_version_bits: share.version_bits.is_some(),
            version_mask: terms.mask,
            difficulty: terms.difficulty.units(),
            session: identity.session,
            account: &user.account,
            worker: &user.worker,
            gateway: u32::from(desk.config.id),
            job_clock: desk.judge.clock().get(),
        };
        Ok((identity.partition, share))
    }

    /// Sends the newest job to a session that has just become ready. To be called once the lines at hand have been
    /// taken, so that a difficulty suggested right behind the authorization counts.
    pub(crate) fn settle(&mut self, desk: &Desk<'_>, out: &mut Vec<u8>) -> bool {
        match desk.latest {
            Some(job) if self.is_ready() && !self.served => {
                self.notify(job, true, desk.judge.live_from(), desk.now, desk.config, out)
            }
            _ => false,
        }
    }

    /// Writes `job`, after what must be said before it; false if the session does not get jobs yet. The first job of a
    /// connection is always clean.
    pub(crate) fn notify(
        &mut self,
        job: &Rendered,
        clean: bool,
        live_from: u64,
        now: EventTime,
        config: &GatewayConfig,
        out: &mut Vec<u8>,
    ) -> bool {
        if !self.is_ready() {
            return false;
        }
        let clean = clean || !self.served;
        self.served = true;
        self.plan.issue(job.job_id, job.version_mask, live_from, now, config, out);
        out.extend_from_slice(if clean { &job.clean } else { &job.plain });
        true
    }

    /// Vardiff's decision, for the next job.
    pub(crate) fn decide(&mut self, difficulty: Difficulty, config: &GatewayConfig) {
        self.plan.decide(difficulty, config);
    }
}

#[cfg(test)]
mod tests;
