//! The whole topology under load: the real program with every operator of `topology.yaml` and durable answers, on a
//! private signet of real Bitcoin Core, with `sluice swarm`'s generator on the same cores. Prints a row of a table for
//! each scenario.
//!
//! `cargo bench --bench whole` runs all scenarios, `-- NAME...` those that are named; `-- --list` names them.
//! `BENCH_SECONDS` sets the measured window (8); `PERF=FILE` has perf record the pool's process within it. What each figure is
//! stands in docs/BENCHMARKS.md.

#![allow(missing_docs)]

mod blocks;
mod pools;
mod restart;

use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testkit::kafka::Kafka;
use sluice_testkit::swarm::{self, Load, Outcome, Phase, Plan};

use pools::Pool;

/// Name, what is measured, and how: figures by their names.
type Scenario = (&'static str, &'static str, fn() -> Result<Vec<String>>);

const SCENARIOS: &[Scenario] = &[
    ("in-flight", "32 connections x 16 in flight", || shares(&Pool::sluice()?, 32, Load::Closed(16), 160_000)),
    ("one", "1,000 connections x 1 in flight", || shares(&Pool::sluice()?, 1_000, Load::Closed(1), 110_000)),
    ("mixed", "500 connections, 20,000 shares/s, 2 % duplicates, 2 % stales, 1 % slow readers", mixed),
    ("idle", "15,000 idle connections", idle),
    ("notify", "a new block to 10,000 idle connections", blocks::notify),
    ("submit", "share line to submitblock", || blocks::submit(None)),
    ("restart", "a start after a kill, with BENCH_SHARES (1,000,000) shares of history", restart::restart),
    ("scale-2000", "20,000 shares/s over 2,000 connections", || scale(2_000)),
    ("scale-6000", "20,000 shares/s over 6,000 connections", || scale(6_000)),
    ("scale-18000", "20,000 shares/s over 18,000 connections", || scale(18_000)),
    ("kafka-in-flight", "32 x 16, log on one broker", || shares(&Pool::on_kafka()?, 32, Load::Closed(16), 160_000)),
    ("kafka-one", "1,000 x 1, log on one broker", || shares(&Pool::on_kafka()?, 1_000, Load::Closed(1), 110_000)),
    ("kafka-submit", "share line to submitblock, log on one broker", || blocks::submit(Some(Kafka::start(1)?))),
    ("para-in-flight", "para pool: 32 x 16", || shares(&Pool::para()?, 32, Load::Closed(16), 160_000)),
    ("para-one", "para pool: 1,000 x 1", || shares(&Pool::para()?, 1_000, Load::Closed(1), 110_000)),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if wanted.iter().any(|arg| arg == "--list") {
        SCENARIOS.iter().for_each(|(name, what, _)| println!("{name:<16} {what}"));
        return Ok(());
    }
    let known = |name: &String| SCENARIOS.iter().any(|(known, ..)| known == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        anyhow::bail!("there is no scenario {unknown}: --list names them");
    }
    for (name, what, measure) in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|arg| arg == name) {
            let figures = measure().with_context(|| format!("scenario {name}"))?;
            println!("| {name} | {what} | {} |", figures.join(" | "));
        }
    }
    Ok(())
}

/// The measured window.
fn window() -> Result<Duration> {
    let seconds =
        std::env::var("BENCH_SECONDS").map_or(Ok(8), |text| text.parse()).context("BENCH_SECONDS is a whole number")?;
    Ok(Duration::from_secs(seconds))
}

/// What a run of shares has cost the pool.
struct Cost {
    outcome: Outcome,
    /// CPU time from the first share until every operator had read the last one.
    cpu: Duration,
    /// How long after the last answer that was.
    behind: Duration,
}

/// Puts a plan's load on a pool and measures what its process uses for it. There is no warm-up: what every share costs
/// in the end is counted, and so is every share.
fn cost(pool: &Pool, plan: &Plan) -> Result<Cost> {
    let mut before = Duration::ZERO;
    let outcome = swarm::run(plan, |phase| {
        if phase == Phase::Begin {
            pool.profile(plan.duration)?;
            before = pool.cpu()?;
        }
        Ok(())
    })?;
    let behind = pool.catch_up()?;
    eprint!("{outcome}");
    Ok(Cost { outcome, cpu: pool.cpu()? - before, behind })
}

impl Cost {
    fn figures(&self, pool: &Pool) -> Result<Vec<String>> {
        let Self { outcome, cpu, behind } = self;
        let latency = outcome.latency;
        Ok(vec![
            format!("{:.0} accepted/s", outcome.accepted_per_second),
            format!("{:.2} us of CPU a share", cpu.as_secs_f64() * 1e6 / outcome.verdicts.accepted().max(1) as f64),
            format!("p50 {:.2} ms, p99 {:.2} ms", latency.p50_us / 1e3, latency.p99_us / 1e3),
            format!("generator {:.2} us a share", outcome.generator_us_per_share()),
            format!("all read {} ms later", behind.as_millis()),
            format!("{} MiB resident", pool.resident()? >> 20),
            format!("{} mismatches", outcome.mismatches),
        ])
    }
}

/// A closed loop; `most` is how many shares a second the stock is to last for.
fn shares(pool: &Pool, connections: usize, load: Load, most: usize) -> Result<Vec<String>> {
    let duration = window()?;
    let stock = most * usize::try_from(duration.as_secs())?;
    let plan = Plan { connections, load, stock, duration, ..Plan::new(pool.stratum, pool.user.as_str()) };
    cost(pool, &plan)?.figures(pool)
}

/// Shares that do not need to be accepted, and miners that do not read.
fn mixed() -> Result<Vec<String>> {
    let pool = Pool::sluice()?;
    let mut plan = open(&pool, 500)?;
    (plan.duplicates, plan.stales, plan.slow_readers) = (2.0, 2.0, 1.0);
    cost(&pool, &plan)?.figures(&pool)
}

/// The same rate, whatever the number of connections.
fn scale(connections: usize) -> Result<Vec<String>> {
    let pool = Pool::sluice()?;
    cost(&pool, &open(&pool, connections)?)?.figures(&pool)
}

fn open(pool: &Pool, connections: usize) -> Result<Plan> {
    const RATE: u32 = 20_000;
    let duration = window()?;
    // One more for each: shares go to connections in turn, and times are random.
    let stock = (f64::from(RATE) * duration.as_secs_f64() * 1.05) as usize + connections;
    let load = Load::Open { rate: f64::from(RATE), poisson: true };
    Ok(Plan { connections, load, stock, duration, ..Plan::new(pool.stratum, pool.user.as_str()) })
}

fn idle() -> Result<Vec<String>> {
    const CONNECTIONS: usize = 15_000;
    let pool = Pool::sluice()?;
    let before = pool.resident()?;
    let mut grown = 0;
    let plan = Plan {
        connections: CONNECTIONS,
        load: Load::Idle,
        duration: window()?,
        ..Plan::new(pool.stratum, pool.user.as_str())
    };
    let outcome = swarm::run(&plan, |phase| {
        if phase == Phase::End {
            grown = pool.resident()?.saturating_sub(before);
        }
        Ok(())
    })?;
    eprint!("{outcome}");
    Ok(vec![
        format!("{:.2} kB resident each", grown as f64 / 1e3 / CONNECTIONS as f64),
        format!("{} ready", outcome.counts.ready),
        format!("first job p99 {:.1} ms", outcome.first_job.p99_us / 1e3),
    ])
}
