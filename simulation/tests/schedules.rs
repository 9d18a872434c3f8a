//! Schedules of the simulation that run with every `cargo test`: the found ones, and as many others as fit in a while.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_simulation::{STEPS, Simulator};

/// Seeds beside the found ones.
const SCHEDULES: u64 = 1_500;
/// The bugs that `planted.sh` plants.
const BUGS: [&str; 5] = [
    "ack-before-durable",
    "commit-before-append",
    "fence-skipped",
    "wall-clock-in-operator",
    "watermark-not-persisted",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the seeds that `next` draws in two threads; nothing is violated. Returns the shares that were answered `true`.
fn run(next: impl Fn() -> Option<u64> + Sync) -> u64 {
    let accepted = AtomicU64::new(0);
    let worker = || {
        let mut simulator = Simulator::new().unwrap();
        while let Some(seed) = next() {
            let report = simulator.run(seed, STEPS, false).unwrap();
            assert_eq!(report.violation, None, "cargo run --release -p sluice-simulation -- --seed {seed} --trace");
            accepted.fetch_add(report.shares.1 as u64, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| (0..2).map(|_| scope.spawn(worker)).for_each(|_| {}));
    accepted.into_inner()
}

/// S1, S2, B1, M1, P1: whoever dies where, whatever becomes durable in what order, whatever the clocks say.
#[test]
fn s1_random_schedules_of_crashes_violate_nothing() {
    let drawn = AtomicU64::new(0);
    let accepted = run(|| Some(drawn.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < SCHEDULES));
    assert!(accepted > 5 * SCHEDULES, "{accepted} shares were accepted: the schedules show nothing");
}

/// Seeds that have found something stay. A seed is another schedule once the schedule draws something more: then what it
/// found is told by the test of the bug itself, named beside it.
#[test]
fn s1_found_seeds_violate_nothing() {
    let text = std::fs::read_to_string(root().join("seeds.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seeds: Vec<u64> = lines.map(|line| line.split_once(' ').unwrap().0.parse().unwrap()).collect();
    let place = AtomicU64::new(0);
    run(|| seeds.get(place.fetch_add(1, Ordering::Relaxed) as usize).copied());
}

#[test]
fn a_seed_is_one_schedule() {
    let (mut one, mut other) = (Simulator::new().unwrap(), Simulator::new().unwrap());
    for seed in 0..20 {
        let (first, second) = (one.run(seed, STEPS, true).unwrap(), other.run(seed, STEPS, true).unwrap());
        assert!(first.trace.len() > 100);
        assert_eq!(first, second, "seed {seed}");
        assert_eq!(one.run(seed, STEPS, true).unwrap(), first, "seed {seed}, once more");
    }
}

/// A patch that does not apply any more shows nothing.
#[test]
fn planted_bugs_can_still_be_planted() {
    let found = std::fs::read_dir(root().join("bugs")).unwrap().map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> = found.collect();
    patches.sort();
    let names: Vec<_> = patches.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, BUGS);
    for patch in patches {
        let mut git = Command::new("git");
        let output = git.args(["apply", "--check"]).arg(&patch).current_dir(root().parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
