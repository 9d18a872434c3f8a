//! Stratum V1 from the miner's side: messages, and a small blocking client for tests.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sluice_mining::wire::word;
use sluice_mining::{Difficulty, double_sha256, merkle, wire};

use crate::miner::units::big_endian;
use crate::work::Work;

/// Longest line that is read.
const LINE: u64 = 1 << 20;
/// How long a client waits for a line before it gives up, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// An error that a server answered with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct StratumError {
    /// Its code: 21 for an unknown job, 22 for a duplicate, 23 for a low difficulty, and so on.
    pub code: i64,
    /// Its text.
    pub message: String,
}

/// What a server sends.
#[derive(Clone, Debug)]
pub enum Message {
    /// An answer to a request.
    Reply {
        /// Id of the request.
        id: u64,
        /// The result, or the error.
        outcome: Result<Value, StratumError>,
    },
    /// A notification, or a request of the server.
    Call {
        /// Its id, where it wants an answer.
        id: Option<Value>,
        /// Its method.
        method: String,
        /// Its parameters, each as it was written: numbers keep all their digits.
        params: Vec<Box<RawValue>>,
    },
}

#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    method: Option<String>,
    #[serde(default)]
    params: Vec<Box<RawValue>>,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Value,
}

impl Message {
    /// Reads a line.
    ///
    /// # Errors
    /// If it is no message of a Stratum server.
    pub fn parse(text: &str) -> Result<Self> {
        let line: Line = serde_json::from_str(text).with_context(|| format!("not a Stratum message: {text:?}"))?;
        if let Some(method) = line.method {
            return Ok(Self::Call { id: line.id.filter(|id| !id.is_null()), method, params: line.params });
        }
        let id =
            line.id.as_ref().and_then(Value::as_u64).with_context(|| format!("neither id nor method: {text:?}"))?;
        let outcome = match line.error {
            Value::Null => Ok(line.result),
            error => Err(StratumError {
                code: error.get(0).or(error.get("code")).and_then(Value::as_i64).unwrap_or_default(),
                message: match error.get(1).or(error.get("message")).and_then(Value::as_str) {
                    Some(message) => message.to_owned(),
                    None => error.to_string(),
                },
            }),
        };
        Ok(Self::Reply { id, outcome })
    }
}

/// A parameter of a call as a type.
///
/// # Errors
/// If it is missing or of another type.
pub fn param<T: for<'a> Deserialize<'a>>(params: &[Box<RawValue>], place: usize) -> Result<T> {
    let raw = params.get(place).with_context(|| format!("parameter {place} is missing"))?;
    serde_json::from_str(raw.get()).with_context(|| format!("parameter {place}: {}", raw.get()))
}

/// The difficulty of a `mining.set_difficulty`, from the digits on the wire.
///
/// # Errors
/// If it is no number above zero.
pub fn difficulty(params: &[Box<RawValue>]) -> Result<Difficulty> {
    let raw = params.first().context("no difficulty")?.get();
    Difficulty::parse_wire(raw).with_context(|| format!("not a difficulty: {raw}"))
}

/// A job as `mining.notify` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Its id, to be sent back as it is.
    pub job: String,
    /// Hash of the block it builds on, internal order.
    pub prev_hash: [u8; 32],
    /// Coinbase up to extranonce1.
    pub coinbase1: Vec<u8>,
    /// Coinbase after extranonce2.
    pub coinbase2: Vec<u8>,
    /// Merkle branch of the coinbase, internal order.
    pub branch: Vec<[u8; 32]>,
    /// Block version.
    pub version: u32,
    /// Compact network target.
    pub nbits: u32,
    /// Block time to start from, seconds.
    pub ntime: u32,
    /// Earlier jobs are worth nothing any more.
    pub clean: bool,
}

impl Notify {
    /// From the parameters of the call.
    ///
    /// # Errors
    /// If one is missing or malformed.
    pub fn from_params(params: &[Box<RawValue>]) -> Result<Self> {
        let text = |place| param::<String>(params, place);
        let bytes = |place| Ok::<_, anyhow::Error>(hex::decode(text(place)?)?);
        let word = |place| Ok::<_, anyhow::Error>(u32::from_str_radix(&text(place)?, 16)?);
        let node = |text: &String| {
            let bytes = hex::decode(text)?;
            <[u8; 32]>::try_from(bytes).map_err(|_| anyhow!("a merkle branch of another size: {text}"))
        };
        Ok(Self {
            job: text(0)?,
            prev_hash: wire::parse_prev_hash(&text(1)?).context("the previous hash")?,
            coinbase1: bytes(2)?,
            coinbase2: bytes(3)?,
            branch: param::<Vec<String>>(params, 4)?.iter().map(node).collect::<Result<_>>()?,
            version: word(5)?,
            nbits: word(6)?,
            ntime: word(7)?,
            clean: param(params, 8)?,
        })
    }

    /// Work on this job with these extranonces, time and version.
    pub fn work(&self, extranonce1: &[u8], extranonce2: &[u8], ntime: u32, version: u32) -> Work {
        let coinbase = [&self.coinbase1[..], extranonce1, extranonce2, &self.coinbase2[..]].concat();
        let root = merkle::root_from_branch(double_sha256(&coinbase), &self.branch);
        let mut header = [0_u8; 80];
        header[..4].copy_from_slice(&version.to_le_bytes());
        header[4..36].copy_from_slice(&self.prev_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.nbits.to_le_bytes());
        Work::new(header)
    }
}

impl Notify {
    /// The parameters of a `mining.submit` whose header hash fits: a share of the subscription with `number` as its
    /// extranonce2, in the job's own time and version.
    ///
    /// # Errors
    /// If no nonce fits.
    pub fn submission(
        &self,
        user: &str,
        to: &Subscription,
        number: u64,
        fits: impl Fn(&[u8; 32]) -> bool,
    ) -> Result<Value> {
        let extranonce2 = big_endian(number, to.extranonce2_size);
        let work = self.work(&to.extranonce1, &extranonce2, self.ntime, self.version);
        let nonce = (0..=u32::MAX).find(|nonce| fits(&work.hash(*nonce))).context("no nonce fits")?;
        Ok(json!([user, self.job, hex::encode(extranonce2), word(self.ntime), word(nonce)]))
    }
}

/// What `mining.subscribe` gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Bytes between the parts of the coinbase, before extranonce2.
    pub extranonce1: Vec<u8>,
    /// Size of extranonce2, bytes.
    pub extranonce2_size: usize,
}

impl Subscription {
    /// From the result of `mining.subscribe`.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn from_result(result: &Value) -> Result<Self> {
        let one = result.get(1).and_then(Value::as_str).and_then(|one| hex::decode(one).ok());
        let size = result.get(2).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        match (one, size) {
            (Some(extranonce1), Some(extranonce2_size)) if (1..=16).contains(&extranonce2_size) => {
                Ok(Self { extranonce1, extranonce2_size })
            }
            _ => bail!("not the result of a subscription: {result}"),
        }
    }

    /// From the parameters of `mining.set_extranonce`.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn from_params(params: &[Box<RawValue>]) -> Result<Self> {
        Self::from_result(&json!([null, param::<Value>(params, 0)?, param::<Value>(params, 1)?]))
    }
}

/// A connection to a Stratum V1 server. What the server sends on its own is kept until it is asked for.
pub struct StratumClient {
    reader: BufReader<TcpStream>,
    next_id: u64,
    backlog: VecDeque<Message>,
    patience: Duration,
}

impl StratumClient {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// If nothing listens there.
    pub fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream), next_id: 1, backlog: VecDeque::new(), patience: PATIENCE })
    }

    /// Sets how long [`Self::message`] and what builds on it wait.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.reader.get_mut().write_all(bytes).context("sending to the Stratum server")
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        self.send_raw(format!("{line}\n").as_bytes())
    }

    /// Sends a request and does not wait; its id.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send(&mut self, method: &str, params: &Value) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        self.send_line(&json!({ "id": id, "method": method, "params": params }).to_string())?;
        Ok(id)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// If the connection breaks, no answer comes, or the answer is an error (then the cause is a [`StratumError`]).
    pub fn request(&mut self, method: &str, params: &Value) -> Result<Value> {
        let id = self.send(method, params)?;
        self.reply(id)?.with_context(|| format!("{method} was refused"))
    }

    /// Waits for the answer to a request.
    ///
    /// # Errors
    /// If the connection breaks or no answer comes in time.
    pub fn reply(&mut self, id: u64) -> Result<Result<Value, StratumError>> {
        let found = self.find(|message| matches!(message, Message::Reply { id: its, .. } if *its == id));
        match found.with_context(|| format!("waiting for the answer to request {id}"))? {
            Message::Reply { outcome, .. } => Ok(outcome),
            Message::Call { .. } => bail!("a call is no answer"),
        }
    }

    /// Waits for a call of the server, also one that came before; its parameters.
    ///
    /// # Errors
    /// If the connection breaks or none comes in time.
    pub fn call(&mut self, method: &str) -> Result<Vec<Box<RawValue>>> {
        let found = self.find(|message| matches!(message, Message::Call { method: its, .. } if its == method));
        match found.with_context(|| format!("waiting for {method}"))? {
            Message::Call { params, .. } => Ok(params),
            Message::Reply { .. } => bail!("an answer is no call"),
        }
    }

    /// Waits for a `mining.notify`, also one that came before.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn notify(&mut self) -> Result<Notify> {
        Notify::from_params(&self.call("mining.notify")?)
    }

    /// Waits for the next message, whatever it is; `None` where the server has closed the connection.
    ///
    /// # Errors
    /// If the connection breaks, nothing comes in time, or it is no message.
    pub fn message(&mut self) -> Result<Option<Message>> {
        match self.backlog.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.next_line()?.map(|line| Message::parse(&line)).transpose(),
        }
    }

    /// Waits for the next line; `None` where the server has closed the connection. Ignores what was kept.
    ///
    /// # Errors
    /// If the connection breaks or nothing comes in time.
    pub fn next_line(&mut self) -> Result<Option<String>> {
        self.reader.get_ref().set_read_timeout(Some(self.patience))?;
        let mut line = String::new();
        let read = self.reader.by_ref().take(LINE).read_line(&mut line);
        let waited = self.patience.as_secs();
        match read.with_context(|| format!("no line of the Stratum server within {waited} s"))? {
            0 => Ok(None),
            _ if line.ends_with('\n') => Ok(Some(line.trim_end().to_owned())),
            _ => bail!("the Stratum server closed the connection within a line: {line:?}"),
        }
    }

    /// Waits until the server closes the connection.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn closed(&mut self) -> Result<()> {
        self.backlog.clear();
        let deadline = Instant::now() + self.patience;
        loop {
            match self.next_line() {
                Ok(None) => return Ok(()),
                // A connection that is reset is closed as well.
                Err(error) if reset(&error) => return Ok(()),
                Err(error) => return Err(error),
                Ok(Some(line)) if Instant::now() > deadline => bail!("the Stratum server goes on: {line:?}"),
                Ok(Some(_)) => {}
            }
        }
    }

    /// Subscribes and authorizes, as a miner does.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn log_in(&mut self, user: &str) -> Result<Subscription> {
        let subscription = self.request("mining.subscribe", &json!(["testkit"]))?;
        let subscription = Subscription::from_result(&subscription)?;
        let authorized = self.request("mining.authorize", &json!([user, "x"]))?;
        if authorized != json!(true) {
            bail!("{user} was not authorized: {authorized}");
        }
        Ok(subscription)
    }

    fn find(&mut self, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        if let Some(place) = self.backlog.iter().position(&wanted) {
            return self.backlog.remove(place).context("the backlog");
        }
        let deadline = Instant::now() + self.patience;
        loop {
            let line = self.next_line()?.context("the Stratum server closed the connection")?;
            let message = Message::parse(&line)?;
            if wanted(&message) {
                return Ok(message);
            }
            self.backlog.push_back(message);
            if Instant::now() > deadline {
                bail!("not within {} s", self.patience.as_secs());
            }
        }
    }
}

fn reset(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(line: &str) -> Vec<Box<RawValue>> {
        match Message::parse(line).unwrap() {
            Message::Call { params, .. } => params,
            Message::Reply { .. } => panic!("a reply"),
        }
    }

    #[test]
    fn answers_and_errors_are_told_apart() {
        let parse = |line: &str| match Message::parse(line).unwrap() {
            Message::Reply { id, outcome } => (id, outcome.map_err(|error| (error.code, error.message))),
            Message::Call { .. } => panic!("a call"),
        };
        assert_eq!(parse(r#"{"id":7,"result":true,"error":null}"#), (7, Ok(json!(true))));
        assert_eq!(
            parse(r#"{"id":9,"result":null,"error":[21,"Job not found (=stale)",null]}"#),
            (9, Err((21, "Job not found (=stale)".into())))
        );
        assert!(Message::parse(r#"{"result":true}"#).is_err());
        assert!(Message::parse("x").is_err());
    }

    #[test]
    fn a_difficulty_keeps_all_its_digits() {
        let line = |digits: &str| format!(r#"{{"id":null,"method":"mining.set_difficulty","params":[{digits}]}}"#);
        for units in [1, 2, 1 << 10, 1 << 23, 3 << 24, 1_099_511_627_775 << 24] {
            let sent = Difficulty::from_units(units).unwrap();
            assert_eq!(difficulty(&params(&line(&sent.to_string()))).unwrap(), sent);
        }
        assert!(difficulty(&params(&line("0"))).is_err());
    }

    #[test]
    fn a_job_off_the_wire_gives_the_header_that_the_pool_expects() {
        let job = sluice_proto::v1::Job {
            job_id: 0x6a,
            prev_hash: (0..32).collect::<Vec<u8>>().into(),
            version: 0x2000_0000,
            nbits: 0x207f_ffff,
            ntime: 1_700_000_000,
            coinbase1: vec![1; 42].into(),
            coinbase2: vec![2; 60].into(),
            merkle_branch: vec![vec![3; 32].into(), vec![4; 32].into()],
            version_mask: 0x1fff_e000,
            ..Default::default()
        };
        let line = format!(r#"{{"id":null,"method":"mining.notify","params":{}}}"#, wire::notify_params(&job, true));
        let notify = Notify::from_params(&params(&line)).unwrap();
        let (offset, issued) = (sluice_proto::Offset::new(1), sluice_proto::EventTime::now());
        let prepared = sluice_mining::PreparedJob::new(offset, issued, job).unwrap();
        let submission = sluice_proto::v1::Submission {
            extranonce1: 0x0102_0304,
            extranonce2: 0x0506_0708_090a_0b0c,
            ntime: 1_700_000_001,
            nonce: 0xdead_beef,
            version_bits: 0x0002_0000,
            has_version_bits: true,
            version_mask: 0x1fff_e000,
            ..Default::default()
        };
        let work = notify.work(&[1, 2, 3, 4], &[5, 6, 7, 8, 9, 10, 11, 12], 1_700_000_001, 0x2002_0000);
        assert_eq!(notify.job, "6a");
        assert!(notify.clean);
        assert_eq!(work.header(0xdead_beef), prepared.header(&submission));
    }
}
