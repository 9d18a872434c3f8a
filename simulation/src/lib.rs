//! Deterministic simulation of Sluice (docs/adr/0019): a log, tasks, gateways, nodes and miners in one thread, driven by
//! a seed.
//!
//! ```text
//! seed --> schedule: who does what next, what becomes durable, who dies where, what its clock says
//!            |
//!   miners --lines--> SimGateway (real sessions, judge, rounds) --> SimLog --> run_task (real tasks and operators)
//!            |                                                                   '--> SQLite ledger, SimNodes
//!            '--> then everything runs to its end, and once more from the sources alone: S1, S2, B1, M1, P1
//! ```
//!
//! What runs is the product's own code, but for sockets, threads, disks and nodes. What is durable, what a crash loses and
//! what time it is are the schedule's to say. The same seed is the same schedule.

mod check;
mod finish;
mod fuse;
mod ledgers;
mod log;
mod miner;
mod nodes;
mod pool;
mod process;
mod schedule;
mod state;
mod work;
mod world;

#[allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]
#[path = "../../operators/src/testing/records.rs"]
mod records;
#[allow(clippy::unwrap_used, unreachable_pub)]
#[path = "../../operators/src/testing/store.rs"]
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use sluice_topology::runtime::Plan;

use ledgers::Ledgers;
use work::Work;
use world::World;

pub use world::Violation;

/// Things that happen in a schedule before everything runs to its end.
pub const STEPS: u64 = 400;

/// Runs schedules, one after the other. One for each thread.
pub struct Simulator {
    runtime: tokio::runtime::Runtime,
    plans: [Plan; 2],
    work: Work,
    ledgers: Ledgers,
}

/// What a schedule has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The first thing that must not be.
    pub violation: Option<Violation>,
    /// Shares that were sent, and those that were answered `true`.
    pub shares: (usize, usize),
    /// What happened, if it was asked for.
    pub trace: Vec<String>,
}

impl Simulator {
    /// A simulator.
    ///
    /// # Errors
    /// If its topology is wrong, or a ledger cannot be made.
    pub fn new() -> Result<Self> {
        // Tasks ask for it when they begin to wait. It is never run: time does not pass for them.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let plans = [pool::plan(false)?, pool::plan(true)?];
        Ok(Self { runtime, plans, work: Work::new(), ledgers: Ledgers::new()? })
    }

    /// Runs the schedule of `seed`: `steps` of it, then everything to its end.
    ///
    /// # Errors
    /// If the simulation itself does not work.
    pub fn run(&mut self, seed: u64, steps: u64, trace: bool) -> Result<Report> {
        let (ledger, again) = (self.ledgers.make()?, self.ledgers.make()?);
        let _entered = self.runtime.enter();
        let mut world = World::new(seed, (&mut self.work, &self.plans), ledger.store.clone(), trace)?;
        let ran = catch_unwind(AssertUnwindSafe(|| run(&mut world, steps, again.store.clone())));
        let violation = match ran {
            Ok(done) => done?.err(),
            Err(panic) => Some(Violation::new("P1", format!("panic: {}", text_of(panic.as_ref())))),
        };
        let sent = || world.miners.iter().flat_map(|miner| &miner.sent);
        let shares = (sent().count(), sent().filter(|sent| sent.answer == Some(0)).count());
        Ok(Report { violation, shares, trace: world.take_trace() })
    }

    /// The smallest number of steps with which the schedule of `seed` still violates something, and what it does then.
    ///
    /// # Errors
    /// If the simulation itself does not work.
    pub fn shorten(&mut self, seed: u64, steps: u64) -> Result<(u64, Report)> {
        for fewer in 0..steps {
            let report = self.run(seed, fewer, true)?;
            if report.violation.is_some() {
                return Ok((fewer, report));
            }
        }
        Ok((steps, self.run(seed, steps, true)?))
    }
}

fn run(
    world: &mut World<'_>,
    steps: u64,
    again: std::sync::Arc<dyn sluice_ledger::LedgerStore>,
) -> Result<Result<(), Violation>> {
    for _ in 0..steps {
        if let violated @ Err(_) = world.step()? {
            return Ok(violated);
        }
    }
    let marks = match world.finish()? {
        Ok(marks) => marks,
        Err(violation) => return Ok(Err(violation)),
    };
    let remains = world.remains();
    match finish::run_again(&remains.disk, &marks, world.plan, world.work, again)? {
        Ok(again) => check::all(&world.miners, &remains, &again),
        Err(violation) => Ok(Err(violation)),
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
