//! A load generator for Stratum V1 pools (`sluice swarm`): many connections on few threads, shares found ahead of time,
//! latencies from the intended send, and a verdict of its own for every share.
//!
//! It knows of a pool what any miner is told: extranonces, version mask, difficulty, jobs. What it costs itself is
//! measured, since it runs beside the pool on the same cores: a share is a line patched in place, one write for all that
//! is due on a connection, and a scan of the answer.
//!
//! Every share is hashed: it meets its target (or, where that is asked for, does not), and it is no block unless blocks
//! are allowed. With [`Plan::stock`] the shares are found before the measured window begins.

mod desk;
mod engine;
mod lines;
mod session;
mod tally;
mod work;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;

use engine::Engine;
use tally::Tally;
pub use tally::{Answers, Counts, Latency, Outcome, Spread, Verdicts};

/// How shares are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// None: connections log in and stay.
    Idle,
    /// Each connection keeps this many shares unanswered.
    Closed(usize),
    /// This many shares a second over all connections, however fast the pool is; latencies count from when a share was
    /// due.
    Open {
        /// Shares a second.
        rate: f64,
        /// At random times (a Poisson process), as those of miners are; else evenly.
        poisson: bool,
    },
}

/// What a swarm does. [`Plan::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The pool.
    pub target: SocketAddr,
    /// Connections.
    pub connections: usize,
    /// How shares are sent.
    pub load: Load,
    /// The measured window.
    pub duration: Duration,
    /// Ends it early, when as many shares were sent and answered.
    pub shares: Option<u64>,
    /// How long shares are sent before it.
    pub warm_up: Duration,
    /// Threads; each has connections of its own.
    pub threads: usize,
    /// User of the login; `{n}` in it is the connection's number.
    pub user: String,
    /// Password of the login.
    pub password: String,
    /// New connections a second; `None` for as fast as the pool takes them.
    pub connect_rate: Option<f64>,
    /// Of 100 shares these many repeat one that was accepted.
    pub duplicates: f64,
    /// Of 100 shares these many are for a job that there is not (any more).
    pub stales: f64,
    /// Of 100 shares these many miss their target.
    pub lows: f64,
    /// Of 100 connections these many read 256 bytes a second.
    pub slow_readers: f64,
    /// Shares to find before the first is sent, over all connections. Where they run out, the others are found when they
    /// are due, and counted.
    pub stock: usize,
    /// Whether to ask for version rolling, and roll.
    pub version_rolling: bool,
    /// Whether shares may be blocks.
    pub blocks: bool,
    /// Gets a line for each share that was answered `true`: job, extranonce1, extranonce2, ntime, nonce, version bits, user.
    pub record: Option<PathBuf>,
    /// Seed of what is random.
    pub seed: u64,
}

impl Plan {
    /// One connection with one share in flight for 10 s.
    pub fn new(target: SocketAddr, user: impl Into<String>) -> Self {
        Self {
            target,
            connections: 1,
            load: Load::Closed(1),
            duration: Duration::from_secs(10),
            shares: None,
            warm_up: Duration::ZERO,
            threads: 1,
            user: user.into(),
            password: "x".into(),
            connect_rate: None,
            duplicates: 0.0,
            stales: 0.0,
            lows: 0.0,
            slow_readers: 0.0,
            stock: 0,
            version_rolling: true,
            blocks: false,
            record: None,
            seed: 1,
        }
    }

    fn check(&self) -> Result<()> {
        let percentages = [self.duplicates, self.stales, self.lows, self.slow_readers];
        if percentages.iter().any(|percent| !(0.0..=100.0).contains(percent)) {
            bail!("percentages are from 0 to 100");
        }
        if self.duplicates + self.stales + self.lows > 100.0 {
            bail!("duplicates, stales and lows are more than all shares");
        }
        let is_rate = |rate: f64| rate > 0.0 && rate.is_finite();
        match self.load {
            Load::Closed(0) => bail!("with no share in flight nothing happens"),
            Load::Open { rate, .. } if !is_rate(rate) => bail!("a rate is a number above 0"),
            _ if !self.connect_rate.is_none_or(is_rate) => bail!("a rate of connections is a number above 0"),
            _ if self.connections == 0 || self.threads == 0 => bail!("a swarm has a connection and a thread at least"),
            _ => Ok(()),
        }
    }
}

/// What a run is at; see [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All connections have their first job (or have failed). Nothing was sent yet.
    Ready,
    /// The measured window begins.
    Begin,
    /// It has ended.
    End,
}

/// What the threads do.
const CONNECT: u8 = 0;
const FIND: u8 = 1;
const RUN: u8 = 2;
const DRAIN: u8 = 3;

/// What a thread tells.
enum Report {
    /// It has done what the stage asks for.
    Done,
    /// It has ended: with an error, or since no connection is left.
    Ended,
}

/// What the threads share.
struct Shared {
    stage: AtomicU8,
    /// The measured window, nanoseconds since the start.
    begin: AtomicU64,
    end: AtomicU64,
    started: Instant,
    record: Option<Mutex<BufWriter<File>>>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn write(&self, record: &str) -> Result<()> {
        if let Some(file) = &self.record {
            writeln!(file.lock(), "{record}").context("writing the record of shares")?;
        }
        Ok(())
    }
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Runs a swarm to its end and calls `watch` at each phase, so that the pool can be looked at meanwhile. Connections are
/// served while `watch` runs.
///
/// # Errors
/// If the plan makes no sense, no connection gets a job, the pool's shares cannot be told from blocks, the system gives no
/// sockets, or `watch` fails.
pub fn run(plan: &Plan, mut watch: impl FnMut(Phase) -> Result<()>) -> Result<Outcome> {
    plan.check()?;
    let create = |path: &PathBuf| File::create(path).with_context(|| format!("creating {}", path.display()));
    let record = plan.record.as_ref().map(create).transpose()?;
    let shared = Shared {
        stage: AtomicU8::new(CONNECT),
        begin: AtomicU64::new(u64::MAX),
        end: AtomicU64::new(u64::MAX),
        started: Instant::now(),
        record: record.map(|file| Mutex::new(BufWriter::new(file))),
    };
    let threads = plan.threads.min(plan.connections);
    let (tell, reports) = channel();
    let (window, tallies) = std::thread::scope(|scope| -> Result<_> {
        let mut running = Vec::new();
        for number in 0..threads {
            // The first threads have one more where they do not come out even.
            let first = plan.connections * number / threads;
            let count = plan.connections * (number + 1) / threads - first;
            let (shared, tell): (_, Sender<Report>) = (&shared, tell.clone());
            let body = move || {
                let tally = Engine::new(plan, shared, first, count, threads).and_then(|engine| engine.run(&tell));
                // Whoever waits for more of this thread has to know.
                tell.send(Report::Ended).ok();
                tally
            };
            let thread = std::thread::Builder::new().name(format!("swarm-{number}"));
            running.push(thread.spawn_scoped(scope, body).context("a thread for the swarm")?);
        }
        let window = conduct(plan, &shared, &reports, threads, &mut watch);
        shared.stage.store(DRAIN, Ordering::Release);
        let joined = running.into_iter().map(|thread| thread.join());
        let tallies: Vec<Tally> = joined
            .map(|tally| tally.unwrap_or_else(|_| bail!("a thread of the swarm panicked")))
            .collect::<Result<_>>()?;
        Ok((window?, tallies))
    })?;
    if let Some(file) = &shared.record {
        file.lock().flush().context("writing the record of shares")?;
    }
    let mut all = Tally::new()?;
    tallies.iter().try_for_each(|tally| all.add(tally))?;
    if all.counts.ready == 0 {
        let refusal = all.counts.refusal.as_deref().unwrap_or("no connection got a job");
        bail!("{}: {refusal}", plan.target);
    }
    Ok(Outcome::new(window, all))
}

/// Leads the threads through the stages; how long the window was.
fn conduct(
    plan: &Plan,
    shared: &Shared,
    reports: &Receiver<Report>,
    threads: usize,
    watch: &mut impl FnMut(Phase) -> Result<()>,
) -> Result<Duration> {
    if !all_done(reports, threads)? {
        return Ok(Duration::ZERO);
    }
    watch(Phase::Ready)?;
    if plan.load != Load::Idle && plan.stock > 0 {
        shared.stage.store(FIND, Ordering::Release);
        if !all_done(reports, threads)? {
            return Ok(Duration::ZERO);
        }
    }
    shared.stage.store(RUN, Ordering::Release);
    let mut left = threads;
    pass(reports, plan.warm_up, &mut left)?;
    watch(Phase::Begin)?;
    let begun = Instant::now();
    shared.begin.store(shared.now(), Ordering::Release);
    pass(reports, plan.duration, &mut left)?;
    shared.end.store(shared.now(), Ordering::Release);
    let window = begun.elapsed();
    watch(Phase::End)?;
    Ok(window)
}

/// Waits until all threads have done what the stage asks for; false if one has ended.
fn all_done(reports: &Receiver<Report>, threads: usize) -> Result<bool> {
    for _ in 0..threads {
        if matches!(reports.recv().context("the swarm's threads")?, Report::Ended) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets time pass as long as there is a thread.
fn pass(reports: &Receiver<Report>, time: Duration, left: &mut usize) -> Result<()> {
    let until = Instant::now() + time;
    while *left > 0 {
        match reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Report::Ended) => *left -= 1,
            Ok(Report::Done) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => bail!("the swarm's threads are gone"),
        }
    }
    Ok(())
}
