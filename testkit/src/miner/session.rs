//! One connection of a miner to a pool.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sluice_mining::wire::word;
use sluice_mining::{Difficulty, Target};

use super::units::{NONCES, Unit, Units};
use super::{CpuMinerConfig, MinerStats, Outcome, Share};
use crate::login::{self, AUTHORIZE, CONFIGURE, SUBSCRIBE, VERSION_MASK, request};
use crate::stratum::{Message, Notify, StratumError, Subscription, difficulty, param};

const SUGGEST: u64 = 4;
const EXTRANONCE: u64 = 5;
/// Ids from here on are shares.
const FIRST_SHARE: u64 = 10;

/// How a connection ends.
pub(super) enum Ending {
    /// The miner is stopped.
    Stop,
    /// It broke, or the pool said something that makes no sense.
    Broken(String),
    /// The pool sends the miner to this address (or the same one), after a pause.
    Moved(Option<String>, Duration),
}

/// What follows from a line of the pool.
#[derive(Default)]
pub(super) struct Heard {
    /// A share whose outcome is known now.
    pub(super) share: Option<Share>,
    pub(super) ending: Option<Ending>,
}

/// A job being mined.
struct Mining {
    job: Notify,
    network_target: Target,
    subscription: Subscription,
    difficulty: Difficulty,
    mask: Option<u32>,
    unit: Option<Unit>,
}

pub(super) struct Session {
    stream: TcpStream,
    user: String,
    pub(super) authorized: bool,
    subscription: Option<Subscription>,
    /// For the next job; the current one keeps its own, as firmware does.
    difficulty: Difficulty,
    /// Version bits that the pool grants.
    mask: Option<u32>,
    mining: Option<Mining>,
    next_id: u64,
    waiting: HashMap<u64, Share>,
    jobs: u64,
}

impl Session {
    pub(super) fn new(stream: TcpStream, user: &str) -> Self {
        Self {
            stream,
            user: user.to_owned(),
            authorized: false,
            subscription: None,
            // What Stratum V1 has before the first mining.set_difficulty.
            difficulty: Difficulty::ONE,
            mask: None,
            mining: None,
            next_id: FIRST_SHARE,
            waiting: HashMap::new(),
            jobs: 0,
        }
    }

    /// Sends what a miner begins with, in one piece as firmware does.
    pub(super) fn greet(&mut self, config: &CpuMinerConfig) -> Result<()> {
        let mut lines = login::requests(&config.agent, &config.user, &config.password, config.version_rolling);
        if let Some(difficulty) = config.suggest_difficulty {
            let number: Value = serde_json::from_str(&difficulty.to_string()).context("a difficulty is a number")?;
            lines.push(request(SUGGEST, "mining.suggest_difficulty", json!([number])));
        }
        lines.push(request(EXTRANONCE, "mining.extranonce.subscribe", json!([])));
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.send(&text)
    }

    pub(super) fn has_work(&self) -> bool {
        self.authorized && self.mining.is_some()
    }

    /// Tries nonces and sends the first share found; how many were tried.
    pub(super) fn hash(&mut self, count: u64, units: &mut Units) -> Result<u64> {
        let Some(mining) = &mut self.mining else { return Ok(0) };
        let unit = mining.unit.get_or_insert_with(|| units.next(&mining.job, &mining.subscription, mining.mask));
        let (target, first) = (mining.difficulty.to_target(), unit.tried);
        let count = count.min(NONCES - first);
        let found = unit.work.search(target, u32::try_from(first)?, count);
        let tried = found.map_or(count, |(nonce, _)| u64::from(nonce) - first + 1);
        unit.tried += tried;
        let share = found.map(|(nonce, hash)| Share {
            job: mining.job.job.clone(),
            extranonce1: mining.subscription.extranonce1.clone(),
            extranonce2: unit.extranonce2.clone(),
            ntime: mining.job.ntime,
            nonce,
            version_bits: unit.version_bits,
            difficulty: mining.difficulty,
            hash,
            is_block: mining.network_target.is_met_by(&hash),
            outcome: Outcome::Unanswered,
        });
        if unit.tried == NONCES {
            mining.unit = None;
        }
        if let Some(share) = share {
            self.submit(share)?;
        }
        Ok(tried)
    }

    fn submit(&mut self, share: Share) -> Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        let mut params = vec![
            json!(self.user),
            json!(share.job),
            json!(hex::encode(&share.extranonce2)),
            json!(word(share.ntime)),
            json!(word(share.nonce)),
        ];
        params.extend(share.version_bits.map(|bits| json!(word(bits))));
        let line = json!({ "id": id, "method": "mining.submit", "params": params });
        // Before it is sent: a share that breaks off in the middle may have arrived.
        self.waiting.insert(id, share);
        self.send(&format!("{line}\n"))
    }

    /// Takes a line of the pool.
    pub(super) fn hear(&mut self, line: &str, config: &CpuMinerConfig) -> Result<Heard> {
        match Message::parse(line)? {
            Message::Reply { id, outcome } => self.reply(id, outcome, config),
            Message::Call { id, method, params } => self.call(id, &method, &params),
        }
    }

    fn reply(&mut self, id: u64, outcome: Result<Value, StratumError>, config: &CpuMinerConfig) -> Result<Heard> {
        match id {
            CONFIGURE => {
                self.mask = login::granted_mask(&outcome.unwrap_or_default())?.map(|mask| mask & VERSION_MASK);
            }
            SUBSCRIBE => {
                let result = outcome.context("the pool refuses the subscription")?;
                self.subscription = Some(Subscription::from_result(&result)?);
            }
            AUTHORIZE => {
                if outcome.with_context(|| format!("the pool does not authorize {}", config.user))? != Value::Bool(true)
                {
                    bail!("the pool does not authorize {}", config.user);
                }
                self.authorized = true;
            }
            SUGGEST | EXTRANONCE => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, id, "the pool refuses what it need not grant");
                }
            }
            _ => return self.verdict(id, outcome),
        }
        Ok(Heard::default())
    }

    fn verdict(&mut self, id: u64, outcome: Result<Value, StratumError>) -> Result<Heard> {
        let mut share = self.waiting.remove(&id).with_context(|| format!("an answer to {id}, which was not asked"))?;
        share.outcome = match outcome {
            Ok(Value::Bool(true)) => Outcome::Accepted,
            Ok(other) => Outcome::Rejected(StratumError { code: 20, message: format!("answered {other}") }),
            Err(error) => Outcome::Rejected(error),
        };
        Ok(Heard { share: Some(share), ending: None })
    }

    fn call(&mut self, id: Option<Value>, method: &str, params: &[Box<RawValue>]) -> Result<Heard> {
        match method {
            "mining.set_difficulty" => self.difficulty = difficulty(params)?,
            "mining.notify" => self.notify(Notify::from_params(params)?)?,
            "mining.set_version_mask" => {
                self.mask = Some(login::mask(&param::<String>(params, 0)?)? & VERSION_MASK);
            }
            "mining.set_extranonce" => {
                self.subscription = Some(Subscription::from_params(params)?);
            }
            "client.reconnect" => return Ok(Heard { share: None, ending: Some(moved(params)) }),
            "mining.ping" => self.answer(id, &json!("pong"))?,
            "client.get_version" => self.answer(id, &json!("sluice-testkit"))?,
            "client.show_message" => {
                tracing::info!(message = param::<String>(params, 0).unwrap_or_default(), "the pool says");
            }
            other => tracing::debug!(method = other, "the pool calls what the miner does not know"),
        }
        Ok(Heard::default())
    }

    /// A new job. It is mined at once, whether it is clean or not: shares of the one before are on their way.
    fn notify(&mut self, job: Notify) -> Result<()> {
        let subscription = self.subscription.clone().context("a job before the subscription")?;
        let network_target = Target::from_compact(job.nbits).context("the job's network target")?;
        let (difficulty, mask) = (self.difficulty, self.mask);
        self.mining = Some(Mining { job, network_target, subscription, difficulty, mask, unit: None });
        self.jobs += 1;
        Ok(())
    }

    fn answer(&mut self, id: Option<Value>, result: &Value) -> Result<()> {
        match id {
            Some(id) => self.send(&format!("{}\n", json!({ "id": id, "result": result, "error": null }))),
            None => Ok(()),
        }
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).context("sending to the pool")
    }

    /// What the owner may know, added to what is known from before.
    pub(super) fn report(&mut self, stats: &mut MinerStats) {
        stats.authorized = self.authorized;
        stats.jobs += std::mem::take(&mut self.jobs);
        stats.difficulty = self.mining.as_ref().map(|mining| mining.difficulty);
    }

    /// Closes the connection; the shares that have no answer.
    pub(super) fn end(&mut self) -> Vec<Share> {
        self.stream.shutdown(Shutdown::Both).ok();
        let mut waiting: Vec<(u64, Share)> = self.waiting.drain().collect();
        waiting.sort_unstable_by_key(|(id, _)| *id);
        waiting.into_iter().map(|(_, share)| share).collect()
    }
}

/// Where `client.reconnect` sends a miner: host, port and seconds to wait, each of which may be missing.
fn moved(params: &[Box<RawValue>]) -> Ending {
    let host: Option<String> = param(params, 0).ok().filter(|host: &String| !host.is_empty());
    let port = param::<Value>(params, 1).ok().and_then(|port| match port {
        Value::String(port) => port.parse::<u16>().ok(),
        port => port.as_u64().and_then(|port| u16::try_from(port).ok()),
    });
    let wait = param::<u64>(params, 2).unwrap_or_default();
    let address = host.zip(port).map(|(host, port)| format!("{host}:{port}"));
    Ending::Moved(address, Duration::from_secs(wait.min(600)))
}
