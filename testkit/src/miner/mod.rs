//! A CPU miner that speaks Stratum V1: real hashes at a chosen rate, and a record of every share.

mod session;
pub(crate) mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use parking_lot::{Condvar, Mutex};
use sluice_mining::Difficulty;

use crate::stratum::StratumError;
use session::{Ending, Session};
use units::Units;

/// First and longest pause before the pool is connected to again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Hashes between looks at what the pool says.
const BATCH: u64 = 1 << 14;
/// How long a miner with a limit sleeps where it is ahead of it.
const NAP: Duration = Duration::from_millis(20);

/// Settings of a miner.
#[derive(Clone, Debug)]
pub struct CpuMinerConfig {
    /// `HOST:PORT` of the pool.
    pub address: String,
    /// User name: payout address, and a worker's name after a dot.
    pub user: String,
    /// Password.
    pub password: String,
    /// What it says it is when it subscribes.
    pub agent: String,
    /// Hashes per second at most; 0 for as many as it can.
    pub hash_rate: u64,
    /// Asks for version rolling with all bits that BIP320 allows, and uses what the pool grants.
    pub version_rolling: bool,
    /// Asks for this difficulty.
    pub suggest_difficulty: Option<Difficulty>,
    /// Keeps every share for [`CpuMiner::shares`]: for tests, which end. The counts are kept in any case.
    pub keep_shares: bool,
}

impl Default for CpuMinerConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            user: String::new(),
            password: "x".into(),
            agent: "sluice-testkit/0.1".into(),
            hash_rate: 0,
            version_rolling: true,
            suggest_difficulty: None,
            keep_shares: true,
        }
    }
}

/// What the pool said to a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `true`: it counts (invariant S1).
    Accepted,
    /// An error, or a result other than `true`.
    Rejected(StratumError),
    /// Nothing before the connection ended: it may count or not.
    Unanswered,
}

/// A share, exactly as it was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Id of its job, as the pool gave it.
    pub job: String,
    /// Extranonce1 of the session.
    pub extranonce1: Vec<u8>,
    /// Extranonce2.
    pub extranonce2: Vec<u8>,
    /// Block time, seconds.
    pub ntime: u32,
    /// Nonce.
    pub nonce: u32,
    /// Version bits; `None` where version rolling is off.
    pub version_bits: Option<u32>,
    /// Difficulty it was mined at.
    pub difficulty: Difficulty,
    /// Hash of its header, internal order.
    pub hash: [u8; 32],
    /// Its hash makes a block.
    pub is_block: bool,
    /// What the pool said.
    pub outcome: Outcome,
}

/// What a miner has done so far.
#[derive(Clone, Debug, Default)]
pub struct MinerStats {
    /// Hashes tried.
    pub hashes: u64,
    /// Shares sent.
    pub submitted: u64,
    /// Shares answered with `true`.
    pub accepted: u64,
    /// Shares refused, by code and message.
    pub rejected: BTreeMap<String, u64>,
    /// Shares without an answer when their connection ended.
    pub unanswered: u64,
    /// Shares whose hash makes a block.
    pub blocks: u64,
    /// Connections made.
    pub connections: u64,
    /// Jobs received.
    pub jobs: u64,
    /// The pool has authorized it on the connection that is open now.
    pub authorized: bool,
    /// Difficulty of the current job.
    pub difficulty: Option<Difficulty>,
    /// Why the last connection ended, or could not be made.
    pub last_error: Option<String>,
}

/// Called with every share once its outcome is known.
pub type Observer = Box<dyn Fn(&Share) + Send>;

/// What the miner's thread shares with its owner.
struct Shared {
    stats: Mutex<MinerStats>,
    changed: Condvar,
    shares: Mutex<Vec<Share>>,
    hash_rate: AtomicU64,
}

enum Event {
    /// A line of the connection with this number.
    Line(u64, String),
    /// That connection has ended.
    Closed(u64, String),
    Stop,
}

/// A running miner. Dropping it stops it.
pub struct CpuMiner {
    user: String,
    shared: Arc<Shared>,
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for CpuMiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuMiner").field("user", &self.user).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl CpuMiner {
    /// Starts a miner. It connects as soon as the pool can be reached, and again whenever it was cut off.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(config: CpuMinerConfig) -> Result<Self> {
        Self::launch(config, None)
    }

    /// As [`Self::start`]; `observer` is called on the miner's thread with every share whose outcome is known.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn observed(config: CpuMinerConfig, observer: Observer) -> Result<Self> {
        Self::launch(config, Some(observer))
    }

    fn launch(config: CpuMinerConfig, observer: Option<Observer>) -> Result<Self> {
        let shared = Arc::new(Shared {
            stats: Mutex::default(),
            changed: Condvar::new(),
            shares: Mutex::default(),
            hash_rate: AtomicU64::new(config.hash_rate),
        });
        let (events, received) = channel();
        let user = config.user.clone();
        let mut worker = Worker {
            config,
            shared: shared.clone(),
            observer,
            events: events.clone(),
            received,
            connection: 0,
            units: Units::default(),
        };
        let thread = std::thread::Builder::new().name("cpu-miner".into()).spawn(move || worker.run());
        Ok(Self { user, shared, events, thread: Some(thread.context("starting a miner")?) })
    }

    /// Its user name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What it has done so far.
    pub fn stats(&self) -> MinerStats {
        self.shared.stats.lock().clone()
    }

    /// The shares whose outcome is known, in that order; empty unless it keeps them.
    pub fn shares(&self) -> Vec<Share> {
        self.shared.shares.lock().clone()
    }

    /// Changes how many hashes per second it does at most; 0 for as many as it can.
    pub fn set_hash_rate(&self, hash_rate: u64) {
        self.shared.hash_rate.store(hash_rate, Ordering::Relaxed);
    }

    /// Waits until something holds of it; `guard` is for how long at most.
    ///
    /// # Errors
    /// If it does not hold in time; the error shows what holds instead.
    pub fn wait_until(&self, guard: Duration, mut holds: impl FnMut(&MinerStats) -> bool) -> Result<MinerStats> {
        let deadline = Instant::now() + guard;
        let mut stats = self.shared.stats.lock();
        while !holds(&stats) {
            if self.shared.changed.wait_until(&mut stats, deadline).timed_out() {
                bail!("the miner {} did not get there in {} s: {stats:?}", self.user, guard.as_secs());
            }
        }
        Ok(stats.clone())
    }

    /// Stops it; shares that are not answered yet become [`Outcome::Unanswered`].
    pub fn stop(mut self) -> (MinerStats, Vec<Share>) {
        self.halt();
        (self.stats(), std::mem::take(&mut *self.shared.shares.lock()))
    }

    fn halt(&mut self) {
        self.events.send(Event::Stop).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(user = self.user, "the miner's thread had panicked");
        }
    }
}

impl Drop for CpuMiner {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The miner's thread.
struct Worker {
    config: CpuMinerConfig,
    shared: Arc<Shared>,
    observer: Option<Observer>,
    /// Lent to the threads that read.
    events: Sender<Event>,
    received: Receiver<Event>,
    /// Number of the connection.
    connection: u64,
    /// Over all connections, so that nothing is hashed twice where the pool resumes a session.
    units: Units,
}

impl Worker {
    fn run(&mut self) {
        let mut address = self.config.address.clone();
        let mut pause = PAUSES.0;
        loop {
            let (ending, served) = match self.connect(&address) {
                Ok(stream) => self.serve(stream),
                Err(error) => (Ending::Broken(format!("{error:#}")), false),
            };
            pause = if served { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            let (reason, wait) = match ending {
                Ending::Stop => return,
                Ending::Broken(reason) => {
                    address.clone_from(&self.config.address);
                    (reason, pause)
                }
                Ending::Moved(to, wait) => {
                    let reason = format!("the pool sends it to {}", to.as_deref().unwrap_or("the same address"));
                    address = to.unwrap_or(address);
                    (reason, wait)
                }
            };
            tracing::debug!(user = self.config.user, reason, "the miner is not connected");
            self.update(|stats| {
                stats.authorized = false;
                stats.last_error = Some(reason);
            });
            if self.stopped_within(wait) {
                return;
            }
        }
    }

    fn connect(&mut self, address: &str) -> Result<TcpStream> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        self.connection += 1;
        let (events, number, reading) = (self.events.clone(), self.connection, stream.try_clone()?);
        let reader = move || {
            let mut reason = "the pool closed the connection".to_owned();
            for line in BufReader::new(reading).lines() {
                match line.map(|line| events.send(Event::Line(number, line))) {
                    Ok(Ok(())) => {}
                    // The miner is gone.
                    Ok(Err(_)) => return,
                    Err(error) => {
                        reason = error.to_string();
                        break;
                    }
                }
            }
            events.send(Event::Closed(number, reason)).ok();
        };
        std::thread::Builder::new().name("cpu-miner-read".into()).spawn(reader)?;
        self.update(|stats| stats.connections += 1);
        Ok(stream)
    }

    /// Mines on a connection to its end; also whether the pool authorized it.
    fn serve(&mut self, stream: TcpStream) -> (Ending, bool) {
        let mut session = Session::new(stream, &self.config.user);
        let ending = match session.greet(&self.config) {
            Ok(()) => self.mine(&mut session),
            Err(error) => Ending::Broken(format!("{error:#}")),
        };
        for share in session.end() {
            self.note(share);
        }
        (ending, session.authorized)
    }

    fn mine(&mut self, session: &mut Session) -> Ending {
        let mut pace = Pace::new();
        loop {
            let batch = pace.allowed(self.shared.hash_rate.load(Ordering::Relaxed)).min(BATCH);
            let busy = session.has_work() && batch > 0;
            if busy {
                match session.hash(batch, &mut self.units) {
                    Ok(hashes) => {
                        pace.done(hashes);
                        self.shared.stats.lock().hashes += hashes;
                    }
                    Err(error) => return Ending::Broken(format!("{error:#}")),
                }
            }
            let mut wait = if busy { Duration::ZERO } else { NAP };
            loop {
                let event = match self.received.recv_timeout(wait) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ending::Stop,
                };
                wait = Duration::ZERO;
                if let Some(ending) = self.hear(session, event) {
                    return ending;
                }
            }
            self.update(|stats| session.report(stats));
        }
    }

    fn hear(&mut self, session: &mut Session, event: Event) -> Option<Ending> {
        match event {
            Event::Line(number, line) if number == self.connection => match session.hear(&line, &self.config) {
                Ok(heard) => {
                    if let Some(share) = heard.share {
                        self.note(share);
                    }
                    heard.ending
                }
                Err(error) => Some(Ending::Broken(format!("{error:#}"))),
            },
            Event::Closed(number, reason) if number == self.connection => Some(Ending::Broken(reason)),
            // Of a connection that is no more.
            Event::Line(..) | Event::Closed(..) => None,
            Event::Stop => Some(Ending::Stop),
        }
    }

    /// A share's outcome is known.
    fn note(&mut self, share: Share) {
        if let Some(observer) = &self.observer {
            observer(&share);
        }
        let (outcome, is_block) = (share.outcome.clone(), share.is_block);
        if self.config.keep_shares {
            self.shared.shares.lock().push(share);
        }
        self.update(|stats| {
            stats.submitted += 1;
            stats.blocks += u64::from(is_block);
            match outcome {
                Outcome::Accepted => stats.accepted += 1,
                Outcome::Rejected(error) => *stats.rejected.entry(error.to_string()).or_default() += 1,
                Outcome::Unanswered => stats.unanswered += 1,
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut MinerStats)) {
        change(&mut self.shared.stats.lock());
        self.shared.changed.notify_all();
    }

    /// Waits; true if the miner is to stop.
    fn stopped_within(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        loop {
            match self.received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

/// Keeps a miner to its rate.
struct Pace {
    begun: Instant,
    rate: u64,
    done: u64,
}

impl Pace {
    fn new() -> Self {
        Self { begun: Instant::now(), rate: 0, done: 0 }
    }

    /// Hashes that may be done now. What was not done for a fifth of a second is not made up for.
    fn allowed(&mut self, rate: u64) -> u64 {
        if rate != self.rate {
            *self = Self { begun: Instant::now(), rate, done: 0 };
        }
        if rate == 0 {
            return u64::MAX;
        }
        let due = self.begun.elapsed().as_micros().saturating_mul(u128::from(rate)) / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        self.done = self.done.max(due.saturating_sub(rate.div_ceil(5)));
        due.saturating_sub(self.done)
    }

    fn done(&mut self, hashes: u64) {
        self.done = self.done.saturating_add(hashes);
    }
}
