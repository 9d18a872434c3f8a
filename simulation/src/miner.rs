//! A miner: speaks Stratum with a gateway, and remembers what it was answered.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_mining::wire::{job_id, word};
use sluice_proto::v1::{Reason, Submission};

const SUBSCRIBE: u64 = 1;
const AUTHORIZE: u64 = 2;

/// What a share is known by: job, extranonces, time, nonce. Two shares of one key have the same header.
pub type Key = (u64, u32, u64, u32, u32);

/// The key of a share.
pub fn key(share: &Submission) -> Key {
    (share.job_id, share.extranonce1, share.extranonce2, share.ntime, share.nonce)
}

/// A share that was sent, and what was answered.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its key.
    pub key: Key,
    /// Code of the answer, 0 for `true`; `None` where none came.
    pub answer: Option<u64>,
}

/// The code that a verdict is answered with.
pub fn code(reason: Reason) -> u64 {
    match reason {
        Reason::Accepted => 0,
        Reason::Stale | Reason::JobNotFound => 21,
        Reason::Duplicate => 22,
        Reason::LowDifficulty => 23,
        _ => 20,
    }
}

/// A miner.
pub struct Miner {
    user: String,
    /// The process of its gateway, and the connection there.
    pub at: Option<(u64, u64)>,
    extranonce1: Option<u32>,
    token: Option<String>,
    /// Jobs that it was given on this session, oldest first.
    pub jobs: Vec<u64>,
    requests: u64,
    /// Places in `sent` of shares that wait for their answers, by request.
    waiting: BTreeMap<u64, usize>,
    /// All it has sent.
    pub sent: Vec<Sent>,
    shares: Vec<Submission>,
    extranonce2: u64,
}

impl Miner {
    /// A miner with this user name.
    pub fn new(user: String) -> Self {
        Self {
            user,
            at: None,
            extranonce1: None,
            token: None,
            jobs: Vec::new(),
            requests: AUTHORIZE,
            waiting: BTreeMap::new(),
            sent: Vec::new(),
            shares: Vec::new(),
            extranonce2: 0,
        }
    }

    /// What it says first on a connection; it goes on with its session where `resume` says so.
    pub fn login(&mut self, resume: bool) -> Vec<u8> {
        let mut subscribe = vec![json!("simulation")];
        subscribe.extend(self.token.as_ref().filter(|_| resume).map(|token| json!(token)));
        if !resume {
            self.jobs.clear();
        }
        self.extranonce1 = None;
        self.waiting.clear();
        let mut lines = line(SUBSCRIBE, "mining.subscribe", json!(subscribe));
        lines.extend(line(AUTHORIZE, "mining.authorize", json!([self.user, "x"])));
        lines
    }

    /// It can mine: it knows its extranonce1 and has a job.
    pub fn work(&self) -> Option<(u32, &[u64])> {
        self.extranonce1.filter(|_| !self.jobs.is_empty()).map(|one| (one, self.jobs.as_slice()))
    }

    /// The next second extranonce.
    pub fn next_extranonce2(&mut self) -> u64 {
        self.extranonce2 += 1;
        self.extranonce2
    }

    /// Shares that it has found so far.
    pub fn shares(&self) -> &[Submission] {
        &self.shares
    }

    /// The line that submits a share.
    pub fn submit(&mut self, share: Submission) -> Vec<u8> {
        self.requests += 1;
        self.waiting.insert(self.requests, self.sent.len());
        self.sent.push(Sent { key: key(&share), answer: None });
        let extranonce2 = format!("{:016x}", share.extranonce2);
        let params = json!([self.user, job_id(share.job_id), extranonce2, word(share.ntime), word(share.nonce)]);
        self.shares.push(share);
        line(self.requests, "mining.submit", params)
    }

    /// Takes in what the gateway has sent.
    ///
    /// # Errors
    /// If it is not what a gateway says.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<()> {
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let message: Value = serde_json::from_slice(line)?;
            match (message["id"].as_u64(), message["method"].as_str()) {
                (Some(SUBSCRIBE), _) => self.subscribed(&message["result"])?,
                (Some(AUTHORIZE), _) => anyhow::ensure!(message["result"] == true, "{message}"),
                (Some(id), _) => self.answered(id, &message)?,
                (None, Some("mining.notify")) => {
                    let job = message["params"][0].as_str().context("no job id")?;
                    let job = u64::from_str_radix(job, 16)?;
                    // A job is told again to who connects again.
                    self.jobs.retain(|known| *known != job);
                    self.jobs.push(job);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn subscribed(&mut self, result: &Value) -> Result<()> {
        let one = u32::from_str_radix(result[1].as_str().context("no extranonce1")?, 16)?;
        self.token = result[0][0][1].as_str().map(str::to_owned);
        self.extranonce1 = Some(one);
        Ok(())
    }

    fn answered(&mut self, id: u64, message: &Value) -> Result<()> {
        let place = self.waiting.remove(&id).with_context(|| format!("an answer to nothing: {message}"))?;
        let code = if message["result"] == true { Some(0) } else { message["error"][0].as_u64() };
        self.sent[place].answer = Some(code.with_context(|| format!("no answer: {message}"))?);
        Ok(())
    }
}

fn line(id: u64, method: &str, params: Value) -> Vec<u8> {
    format!("{}\n", json!({ "id": id, "method": method, "params": params })).into_bytes()
}
