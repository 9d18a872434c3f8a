//! A pool with a long history that is killed, and started again: on its states, and from its checkpoints.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::stratum::StratumClient;
use sluice_testkit::swarm::{self, Load, Plan};

use crate::pools::{Pool, STATES};

/// Shares of the history, unless `BENCH_SHARES` says how many.
const SHARES: u64 = 1_000_000;
/// How long it may take to be accepted: a guard, not a measure.
const GUARD: Duration = Duration::from_secs(1_200);

/// How long a start takes, from the program's to the first job that a miner gets, and to `GET /ready`.
pub fn restart() -> Result<Vec<String>> {
    let shares = std::env::var("BENCH_SHARES").map_or(Ok(SHARES), |text| text.parse());
    let shares = shares.context("BENCH_SHARES is a whole number")?;
    let mut pool = Pool::sluice()?;
    let plan = Plan {
        connections: 32,
        load: Load::Closed(16),
        stock: usize::try_from(shares)? + 32 * 16,
        shares: Some(shares),
        duration: GUARD,
        ..Plan::new(pool.stratum, pool.user.as_str())
    };
    let outcome = swarm::run(&plan, |_| Ok(()))?;
    ensure!(outcome.mismatches == 0 && outcome.verdicts.accepted() >= shares, "{outcome}");
    pool.catch_up()?;
    let size = pool.states()?;
    let user = pool.user.clone();
    let process = pool.sluice_process()?;
    let made = process.command(&["checkpoint", "create"]).output()?;
    ensure!(made.status.success(), "no checkpoints: {}", String::from_utf8_lossy(&made.stderr));

    process.kill()?;
    let live = Served::again(process, &user)?;
    process.kill()?;
    for state in sluice_state::states_in(&process.dir().join(STATES))? {
        std::fs::remove_dir_all(state)?;
    }
    let restored = Served::again(process, &user)?;
    let told = process.output()?;
    ensure!(told.contains("it was restored from a checkpoint"), "nothing was restored: {told}");
    Ok(vec![
        format!("{shares} shares, {} MiB of states", size >> 20),
        format!("killed, on its states: {live}"),
        format!("killed, from checkpoints: {restored}"),
    ])
}

/// How long after its start a pool was of use.
struct Served {
    job: Duration,
    ready: Duration,
}

impl Served {
    fn again(pool: &mut PoolProcess, user: &str) -> Result<Self> {
        let begun = Instant::now();
        pool.spawn()?;
        let mut miner = StratumClient::connect(&pool.wait_address("stratumd")?)?;
        miner.log_in(user)?;
        miner.notify()?;
        let job = begun.elapsed();
        pool.wait_ready()?;
        Ok(Self { job, ready: begun.elapsed() })
    }
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "first job after {:.2} s, ready after {:.2} s", self.job.as_secs_f64(), self.ready.as_secs_f64())
    }
}
