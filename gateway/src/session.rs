//! A miner's session: what each message does. No I/O: lines in, bytes and shares out.

use sluice_mining::Difficulty;
use sluice_proto::EventTime;
use sluice_proto::v1::{Candidate, Reason, Submission};

use crate::GatewayConfig;
use crate::identity::{Exhausted, Identity};
use crate::jobs::Rendered;
use crate::judge::Judge;
use crate::plan::Plan;
use crate::protocol::configure::Configure;
use crate::protocol::reply::{self, Fault};
use crate::protocol::request::{Id, Request};
use crate::protocol::submit::SubmitParams;
use crate::status::{Counters, add};
use crate::users::{User, Users};

/// Lines that are no request before the connection is ended.
const MAX_MALFORMED: u8 = 10;
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
    /// Draws an identity; jobs before the number can no longer be cited.
    pub(crate) identities: &'a dyn Fn(u64) -> Result<Identity, Exhausted>,
    /// Counters of the worker.
    pub(crate) counters: &'a Counters,
    /// When the lines at hand were received.
    pub(crate) now: EventTime,
}

/// What the lines at hand have brought.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// To be written at once.
    pub(crate) replies: Vec<u8>,
    /// Answers to submits, to be written once the shares are durable.
    pub(crate) answers: Vec<u8>,
    /// Shares to append, in order.
    pub(crate) shares: Vec<(Submission, Reason)>,
    /// A block, to be sent before anything else.
    pub(crate) candidate: Option<Candidate>,
}

/// Whether to go on with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on.
    Continue,
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
}

impl Session {
    /// The session of a new connection.
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        Self { identity: None, users: Users::default(), plan: Plan::new(config), malformed: 0 }
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
                self.malformed(desk)
            }
        }
    }

    fn malformed(&mut self, desk: &Desk<'_>) -> Flow {
        add(&desk.counters.lines_malformed, 1);
        self.malformed += 1;
        if self.malformed < MAX_MALFORMED { Flow::Continue } else { Flow::End("10 lines that were no request") }
    }

    fn carry_out(&mut self, request: &Request<'_>, desk: &mut Desk<'_>, turn: &mut Turn) -> Flow {
        // An answer to something the gateway never asked is not answered.
        let Some(method) = &request.method else { return self.malformed(desk) };
        if &**method == "mining.submit" {
            self.submit(request, desk, turn);
            return Flow::Continue;
        }
        let (out, id) = (&mut turn.replies, request.id);
        match &**method {
            "mining.subscribe" => return self.subscribe(id, desk, out),
            "mining.authorize" => self.authorize(request, desk, out),
            "mining.configure" => self.configure(request, desk, out),
            "mining.suggest_difficulty" => self.suggest(request.first_difficulty(), id, desk, out),
            "mining.suggest_target" => self.suggest(request.first_target(), id, desk, out),
            "mining.extranonce.subscribe" | "mining.multi_version" => reply::result(out, id, "true"),
            "mining.ping" => reply::result(out, id, "\"pong\""),
            "mining.get_transactions" => reply::error(out, id, reply::NO_TRANSACTIONS),
            _ => reply::error(out, id, reply::UNKNOWN_METHOD),
        }
        Flow::Continue
    }

    fn subscribe(&mut self, id: Id<'_>, desk: &Desk<'_>, out: &mut Vec<u8>) -> Flow {
        let identity = match self.identity {
            Some(identity) => identity,
            None => match (desk.identities)(desk.judge.live_from()) {
                Ok(identity) => *self.identity.insert(identity),
                Err(error) => {
                    add(&desk.counters.sessions_refused, 1);
                    tracing::error!(%error, "a miner was refused");
                    reply::error(out, id, reply::NO_ROOM);
                    return Flow::End("no identity is free");
                }
            },
        };
        let one = format!("{:08x}", identity.extranonce1);
        let size = sluice_mining::EXTRANONCE2_SIZE;
        let result =
            format!("[[[\"mining.set_difficulty\",\"{one}\"],[\"mining.notify\",\"{one}\"]],\"{one}\",{size}]");
        reply::result(out, id, &result);
        Flow::Continue
    }

    fn authorize(&mut self, request: &Request<'_>, desk: &Desk<'_>, out: &mut Vec<u8>) {
        // Whatever follows the name, the password above all, means nothing: an address needs no password.
        let Some(name) = request.first_text() else { return reply::error(out, request.id, reply::BAD_PARAMS) };
        let added = User::parse(desk.config.chain, &name).and_then(|user| self.users.add(user));
        match added {
            Ok(()) => reply::result(out, request.id, "true"),
            Err(error) => {
                add(&desk.counters.users_refused, 1);
                tracing::debug!(name = &*name, text = error.text(), "a user was refused");
                reply::error(out, request.id, (24, error.text()));
            }
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
        match self.submission(request, desk) {
            Ok(submission) => {
                let outcome = desk.judge.judge(&submission, desk.now);
                turn.candidate = outcome.candidate;
                self.plan.hear();
                reply::verdict(&mut turn.answers, request.id, outcome.reason);
                turn.shares.push((submission, outcome.reason));
            }
            Err(fault) => {
                add(&desk.counters.submits_refused, 1);
                reply::error(&mut turn.answers, request.id, fault);
            }
        }
    }

    /// The record of a share, with all that is needed to judge it again.
    fn submission(&self, request: &Request<'_>, desk: &Desk<'_>) -> Result<Submission, Fault> {
        let identity = self.identity.ok_or(reply::NOT_SUBSCRIBED)?;
        let params: SubmitParams<'_> = request.params().ok_or(reply::BAD_PARAMS)?;
        let user = self.users.get(&params.user).ok_or(reply::UNAUTHORIZED)?;
        let share = params.share()?;
        let terms = self.plan.terms(share.job);
        Ok(Submission {
            job_id: share.job,
            extranonce1: identity.extranonce1,
            extranonce2: share.extranonce2,
            ntime: share.ntime,
            nonce: share.nonce,
            version_bits: share.version_bits.unwrap_or(0),
            has_version_bits: share.version_bits.is_some(),
            version_mask: terms.mask,
            difficulty: terms.difficulty.units(),
            session: identity.session,
            account: (*user.account).to_owned(),
            worker: (*user.worker).to_owned(),
            gateway: u32::from(desk.config.id),
            job_clock: desk.judge.clock().get(),
        })
    }

    /// Sends the newest job to a session that has just become ready. To be called once the lines at hand have been
    /// taken, so that a difficulty suggested right behind the authorization counts.
    pub(crate) fn settle(&mut self, desk: &Desk<'_>, out: &mut Vec<u8>) -> bool {
        match desk.latest {
            Some(job) if self.is_ready() && self.plan.last_job().is_none() => {
                self.notify(job, true, desk.judge.live_from(), desk.now, desk.config, out)
            }
            _ => false,
        }
    }

    /// Writes `job`, after what must be said before it; false if the session does not get jobs yet. The first job of a
    /// session is always clean.
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
        let clean = clean || self.plan.last_job().is_none();
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
