//! One miner of the swarm: its login, its jobs, the shares it has found and those that wait for an answer.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sluice_mining::Difficulty;

use super::Plan;
use super::lines::{FIRST_ID, IDS};
use super::tally::Verdict;
use super::work::{Miner, Mining, Share, Wanted};
use crate::login::{self, AUTHORIZE, CONFIGURE, SUBSCRIBE};
use crate::stratum::{Message, Notify, Subscription, difficulty, param};

/// Accepted shares that a duplicate is chosen from.
const RECENT: usize = 8;
/// A job is stale beyond doubt this long after a clean one has followed it, nanoseconds: pools may grant grace.
const GRACE: u64 = 10_000_000_000;

/// A share on its way.
struct Sent {
    intended: u64,
    share: Share,
    expected: Verdict,
    /// Jobs that had been mined before it was sent.
    mined: u32,
    /// Clean jobs that had come before it was sent.
    clean: u32,
    answered: bool,
    /// What it takes to find it in the pool's books, where that is wanted.
    record: Option<Box<str>>,
}

/// An answer to a share.
pub(super) struct Answered {
    pub(super) intended: u64,
    pub(super) expected: Verdict,
    /// A clean job came between share and answer.
    pub(super) overtaken: bool,
    /// What it takes to find the share in the pool's books, where that is wanted.
    pub(super) record: Option<Box<str>>,
}

/// A miner.
pub(super) struct Session {
    user: String,
    subscription: Option<Subscription>,
    authorized: bool,
    mask: Option<u32>,
    /// For the next job.
    difficulty: Difficulty,
    latest: Option<(Arc<Notify>, Difficulty)>,
    mining: Option<Mining>,
    /// Jobs that have been mined.
    mined: u32,
    /// Found ahead, for `mining`.
    stock: VecDeque<Share>,
    sent: VecDeque<Sent>,
    /// Number of the front of `sent`, from 0.
    first: u64,
    pub(super) unanswered: usize,
    recent: VecDeque<Share>,
    clean: u32,
    /// A job that a clean one has followed, and when.
    stale: Option<(String, u64)>,
}

impl Session {
    pub(super) fn new(user: String) -> Self {
        Self {
            user,
            subscription: None,
            authorized: false,
            mask: None,
            // What Stratum V1 has before the first mining.set_difficulty.
            difficulty: Difficulty::ONE,
            latest: None,
            mining: None,
            mined: 0,
            stock: VecDeque::new(),
            sent: VecDeque::new(),
            first: 0,
            unanswered: 0,
            recent: VecDeque::new(),
            clean: 0,
            stale: None,
        }
    }

    /// What it begins with, in one piece as firmware does.
    pub(super) fn greeting(&self, plan: &Plan) -> String {
        let requests = login::requests("sluice-swarm", &self.user, &plan.password, plan.version_rolling);
        requests.iter().map(|request| format!("{request}\n")).collect()
    }

    /// It is logged in and has a job.
    pub(super) fn is_ready(&self) -> bool {
        self.authorized && self.subscription.is_some() && self.latest.is_some()
    }

    /// Takes an answer to a request of the login, or a call that is no job; whether it was known.
    ///
    /// # Errors
    /// If the pool refuses the miner, or says what makes no sense.
    pub(super) fn hear(&mut self, message: Message) -> Result<bool> {
        match message {
            Message::Reply { id, outcome } => {
                self.logged_in(id, outcome.map_err(|error| error.to_string())).map(|()| true)
            }
            Message::Call { method, params, .. } => {
                match method.as_str() {
                    "mining.set_difficulty" => self.difficulty = difficulty(&params)?,
                    "mining.set_version_mask" => {
                        let mask = login::mask(&param::<String>(&params, 0)?)?;
                        self.mask = self.mask.map(|_| mask);
                    }
                    "mining.set_extranonce" => {
                        self.subscription = Some(Subscription::from_params(&params)?);
                        self.drop_work();
                    }
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    }

    fn logged_in(&mut self, id: u64, outcome: Result<Value, String>) -> Result<()> {
        match (id, outcome) {
            (CONFIGURE, outcome) => self.mask = login::granted_mask(&outcome.unwrap_or_default())?,
            (SUBSCRIBE, Ok(result)) => self.subscription = Some(Subscription::from_result(&result)?),
            (AUTHORIZE, Ok(Value::Bool(true))) => self.authorized = true,
            (AUTHORIZE, Ok(result)) => bail!("the pool refused the login: {result}"),
            (SUBSCRIBE | AUTHORIZE, Err(error)) => bail!("the pool refused the login: {error}"),
            (id, _) => bail!("an answer to request {id}, which was never sent"),
        }
        Ok(())
    }

    /// Takes a job; whether it builds on another block than the one before it.
    pub(super) fn job(&mut self, job: &Arc<Notify>, now: u64) -> bool {
        let moved = self.latest.as_ref().is_some_and(|(known, _)| known.prev_hash != job.prev_hash);
        if job.clean {
            self.clean += 1;
            if let Some((old, _)) = self.latest.take() {
                self.stale = Some((old.job.clone(), now));
            }
            self.drop_work();
        }
        self.latest = Some((Arc::clone(job), self.difficulty));
        moved
    }

    fn drop_work(&mut self) {
        self.mining = None;
        self.stock.clear();
        self.recent.clear();
    }

    /// Shares found ahead.
    pub(super) fn stock(&self) -> usize {
        self.stock.len()
    }

    /// Finds `count` shares ahead.
    ///
    /// # Errors
    /// As [`Mining::new`].
    pub(super) fn find_ahead(&mut self, plan: &Plan, count: usize) -> Result<()> {
        let mining = self.mining(plan)?;
        let found: Vec<Share> = (0..count).map(|_| mining.find(Wanted::Share)).collect();
        self.stock.extend(found);
        Ok(())
    }

    /// The job being mined: one job as long as there are shares of it, then the newest.
    fn mining(&mut self, plan: &Plan) -> Result<&mut Mining> {
        let (job, difficulty) = self.latest.as_ref().context("no job")?;
        let outdated =
            self.mining.as_ref().is_none_or(|mining| self.stock.is_empty() && !Arc::ptr_eq(&mining.job, job));
        if outdated {
            self.recent.clear();
            self.mined += 1;
            let miner = Miner {
                user: &self.user,
                subscription: self.subscription.as_ref().context("no subscription")?,
                mask: self.mask,
                difficulty: *difficulty,
                blocks: plan.blocks,
                // Jobs may differ in nothing that a hash sees.
                first_extranonce2: self.mining.as_ref().map_or(0, Mining::next_extranonce2),
            };
            self.mining = Some(Mining::new(Arc::clone(job), &miner)?);
        }
        self.mining.as_mut().context("no job")
    }

    /// Writes the next share, to be sent at `intended`; whether it had been found ahead.
    ///
    /// # Errors
    /// As [`Mining::new`].
    pub(super) fn submit(&mut self, plan: &Plan, wanted: Verdict, intended: u64, out: &mut Vec<u8>) -> Result<bool> {
        self.mining(plan)?;
        let Some(mining) = &mut self.mining else { bail!("no job") };
        let again = self.recent.pop_front_if(|_| wanted == Verdict::Duplicate);
        let expected = if wanted == Verdict::Duplicate && again.is_none() { Verdict::Accepted } else { wanted };
        let mut ahead = true;
        let share = match again {
            Some(share) => share,
            None if expected == Verdict::Low => mining.find(Wanted::TooLow),
            None => self.stock.pop_front().unwrap_or_else(|| {
                ahead = false;
                mining.find(Wanted::Share)
            }),
        };
        let id = FIRST_ID + (self.first + self.sent.len() as u64) % IDS;
        if expected == Verdict::Stale {
            let known = self.stale.as_ref().filter(|(_, since)| intended.saturating_sub(*since) > GRACE);
            let job = known.map_or_else(|| invented(&mining.job.job), |(job, _)| job.clone());
            mining.stale_line(&self.user, &job).render(id, share.extranonce2, share.nonce, out);
        } else {
            mining.line.render(id, share.extranonce2, share.nonce, out);
        }
        let record = plan.record.is_some().then(|| mining.describe(&self.user, share).into_boxed_str());
        let (mined, clean) = (self.mined, self.clean);
        self.sent.push_back(Sent { intended, share, expected, mined, clean, answered: false, record });
        self.unanswered += 1;
        Ok(ahead)
    }

    /// Takes the answer to the submit of this id; `None` if there is none that waits for one.
    pub(super) fn answer(&mut self, id: u64, answered: Verdict) -> Option<Answered> {
        let place = (id.checked_sub(FIRST_ID)? + IDS - self.first % IDS) % IDS;
        let sent = self.sent.get_mut(usize::try_from(place).ok()?).filter(|sent| !sent.answered)?;
        sent.answered = true;
        let (overtaken, record) = (sent.clean != self.clean, sent.record.take());
        let (intended, expected) = (sent.intended, sent.expected);
        // What a duplicate can be made of.
        if answered == Verdict::Accepted && sent.mined == self.mined && self.mining.is_some() {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(sent.share);
        }
        self.unanswered -= 1;
        while self.sent.front().is_some_and(|sent| sent.answered) {
            self.sent.pop_front();
            self.first += 1;
        }
        Some(Answered { intended, expected, overtaken, record })
    }
}

/// An id that looks like the pool's own and is none.
fn invented(id: &str) -> String {
    format!("7{}", "f".repeat(id.len().max(8) - 1))
}
