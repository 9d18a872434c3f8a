//! Runs simulated schedules.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use sluice_simulation::{STEPS, Simulator};

/// Simulates the pool by seeds: what happens when, what becomes durable, who dies where.
#[derive(Parser)]
struct Options {
    /// Run this seed only, and tell what happened.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many seeds.
    #[arg(long, default_value_t = 1_000)]
    schedules: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// In so many threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Things that happen in a schedule.
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
    /// Print what happens, thing by thing.
    #[arg(long)]
    trace: bool,
}

/// Lines of a trace that are shown of a schedule that failed.
const SHOWN: usize = 60;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.seed {
        Some(seed) => one(seed, &options),
        None => many(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn one(seed: u64, options: &Options) -> Result<()> {
    let report = Simulator::new()?.run(seed, options.steps, options.trace)?;
    report.trace.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: {} shares sent, {} answered true", report.shares.0, report.shares.1);
    match report.violation {
        None => Ok(()),
        Some(violation) => bail!("seed {seed} violates {}: {}", violation.invariant, violation.what),
    }
}

fn many(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let (next, end) = (AtomicU64::new(options.from), options.from.saturating_add(options.schedules));
    let worst = AtomicU64::new(u64::MAX);
    let (shares, accepted) = (AtomicU64::new(0), AtomicU64::new(0));
    let worker = || -> Result<()> {
        let mut simulator = Simulator::new()?;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || worst.load(Ordering::Relaxed) < seed {
                return Ok(());
            }
            let report = simulator.run(seed, options.steps, false)?;
            shares.fetch_add(report.shares.0 as u64, Ordering::Relaxed);
            accepted.fetch_add(report.shares.1 as u64, Ordering::Relaxed);
            if report.violation.is_some() {
                worst.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a thread of the simulation panicked"),
        })
    })?;
    let worst = worst.into_inner();
    if worst < u64::MAX {
        return failed(worst, worst - options.from + 1, options);
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} schedules, {} shares sent, {} answered true: nothing violated, in {seconds:.1} s ({:.0} schedules/s)",
        options.schedules,
        shares.into_inner(),
        accepted.into_inner(),
        options.schedules as f64 / seconds,
    );
    Ok(())
}

/// Shows the schedule of a seed that failed, as short as it can be.
fn failed(seed: u64, schedules: u64, options: &Options) -> Result<()> {
    let (steps, report) = Simulator::new()?.shorten(seed, options.steps)?;
    let from = report.trace.len().saturating_sub(SHOWN);
    if from > 0 {
        println!("({from} lines before; all by --trace)");
    }
    report.trace[from..].iter().for_each(|line| println!("{line}"));
    println!("again by: cargo run --release -p sluice-simulation -- --seed {seed} --steps {steps} --trace");
    match report.violation {
        Some(violation) => bail!(
            "seed {seed} violates {} after {schedules} schedules, with {steps} steps of it: {}",
            violation.invariant,
            violation.what
        ),
        None => bail!("seed {seed} violated something that it does not violate now: it is not deterministic"),
    }
}
