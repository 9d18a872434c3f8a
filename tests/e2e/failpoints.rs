//! The program dies, fails, stalls and waits at each failpoint (docs/adr/0020), and its disk runs full; then count.

use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use sluice_failpoints::{Point, VARIABLE};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::swarm::{Load, Outcome, Plan, run};

use crate::books::{Sent, answered_to_a_swarm, close, sent_by};
use crate::common::{PATIENCE, SLUICE, Setup, address, metric, pool, wait};
use crate::crash::{NBITS, miner, new_record};

const DIFFICULTY: &str = "0.0000001";
const MINERS: u8 = 4;
/// Signal of `abort`.
const SIGABRT: i32 = 6;

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 50, ..SimNodeConfig::default() }).unwrap()
}

/// S1, B1, M1: the program ends at each point in turn, at one of its first passes. What was answered is counted once.
#[test]
fn s1_a_crash_at_any_failpoint_loses_and_doubles_nothing() {
    let points = Point::ALL.iter().copied();
    lives(points, "abort", |point, status, output| {
        assert_eq!(status.signal(), Some(SIGABRT), "{point:?}: {output}");
    });
}

/// P1: an error at any stage ends the program with its cause, and what was answered is counted once.
#[test]
fn p1_an_error_at_any_failpoint_stops_the_pool_and_loses_nothing() {
    let points = Point::ALL.iter().copied().filter(|point| point.can_fail());
    lives(points, "error", |point, status, output| {
        let cause = format!("an error was injected at the failpoint {}", point.name());
        assert!(output.contains(&cause), "{point:?}: {output}");
        // An error while it stops is told; the state is repeated from the log either way.
        let code = if at_its_end(point) { 0 } else { 1 };
        assert_eq!(status.code(), Some(code), "{point:?}: {output}");
    });
}

/// One life for each point, in one pool; then counts.
fn lives(points: impl Iterator<Item = Point>, action: &str, check: impl Fn(Point, ExitStatus, &str)) {
    let seed: u64 =
        std::env::var("SLUICE_SEED").map_or_else(|_| RandomState::new().hash_one(0), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, DIFFICULTY)).arg("--set=state.checkpoints.every=1s");
    let mut sent = Vec::new();
    for (number, point) in points.enumerate() {
        let pass = 1 + (seed >> number) % usual_passes(point);
        pool.set_env(VARIABLE, Some(format!("{}={action}@{pass}", point.name())));
        let (status, shares) = life(&mut pool, point);
        sent.extend(shares);
        let output = pool.output().unwrap();
        assert!(output.contains(&format!("\"point\":\"{}\"", point.name())), "{point:?} did not act: {output}");
        check(point, status, &output);
    }
    pool.set_env(VARIABLE, None);
    pool.start().unwrap();
    let accepted = close(&mut pool, &node, &mut sent);
    println!("{accepted} shares answered true, all counted once");
    assert!(accepted > 100, "there was load: {accepted}");
}

/// The program works under load until the point ends it.
fn life(pool: &mut PoolProcess, point: Point) -> (ExitStatus, Vec<Sent>) {
    pool.spawn().unwrap();
    // It may end before it listens.
    let stratum = pool.wait_address("stratumd").ok();
    let miners: Vec<CpuMiner> = stratum.iter().flat_map(|to| (1..=MINERS).map(|number| miner(to, number))).collect();
    let status = if at_its_end(point) {
        for miner in &miners {
            miner.wait_until(PATIENCE, |stats| stats.accepted > 0).unwrap();
        }
        pool.stop().unwrap().0
    } else {
        pool.wait_exit().unwrap()
    };
    (status, miners.into_iter().flat_map(sent_by).collect())
}

/// Passed only by a program that is told to stop.
fn at_its_end(point: Point) -> bool {
    matches!(point, Point::SyncBefore | Point::SyncAfter)
}

/// How often a point is passed within a second or so.
fn usual_passes(point: Point) -> u64 {
    match point {
        Point::JobBefore | Point::JobAfter | Point::SubmitBefore | Point::SubmitAfter => 2,
        Point::FenceBefore | Point::FenceAfter | Point::CheckpointBefore | Point::CheckpointAfter => 3,
        Point::SyncBefore | Point::SyncAfter | Point::LedgerBefore | Point::LedgerAfter => 3,
        _ => 60,
    }
}

/// A swarm of 50 that sends so many shares and waits for the answers.
fn shares(pool: &PoolProcess, shares: u64) -> Plan {
    let to = pool.address("stratumd").unwrap();
    let mut plan = Plan::new(to.parse().unwrap(), format!("{}.swarm{{n}}", address("regtest", 1)));
    (plan.connections, plan.load, plan.duration, plan.shares) = (50, Load::Closed(4), PATIENCE, Some(shares));
    plan.record = Some(new_record(pool));
    plan
}

/// Shares of a swarm until it has ended, all answered as it expects.
fn all_answered(plan: &Plan) -> Outcome {
    let outcome = run(plan, |_| Ok(())).unwrap();
    assert_eq!((outcome.mismatches, outcome.counts.unanswered, outcome.counts.closed), (0, 0, 0), "{outcome}");
    outcome
}

/// S1: on a slow disk answers come late, and none is lost.
#[test]
fn s1_a_slow_disk_makes_answers_late_and_loses_none() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, DIFFICULTY)).env(VARIABLE, "append::before=sleep(40)");
    pool.start().unwrap();
    let plan = shares(&pool, 2_000);
    let outcome = all_answered(&plan);
    assert!(outcome.latency.p50_us >= 40_000.0, "an answer before its share was durable: {outcome}");
    let mut sent = answered_to_a_swarm(plan.record.as_ref().unwrap());
    assert!(close(&mut pool, &node, &mut sent) >= 2_000);
}

/// S1: while the disk stands still nothing is answered; when it moves again everything is.
#[test]
fn s1_nothing_is_answered_while_the_disk_stands_still() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, DIFFICULTY));
    let go = pool.dir().join("go");
    // Late enough for the login and the first answers, which are appends of their own.
    pool.set_env(VARIABLE, Some(format!("append::before=pause({})@150", go.display())));
    pool.start().unwrap();
    // With one share a miner in flight no group has more than 50.
    let mut plan = shares(&pool, 8_000);
    plan.load = Load::Closed(1);
    let outcome = std::thread::scope(|scope| {
        let swarm = scope.spawn(|| all_answered(&plan));
        wait("the disk to stand still", || pool.output().unwrap().contains("a failpoint acts").then_some(()));
        let in_flight = || metric(&pool, "sluice_gateway_shares_in_flight", "service").values().sum::<u64>();
        wait("everybody to wait", || (in_flight() == 50).then_some(()));
        let accepted = || metric(&pool, "sluice_gateway_shares_total", "reason")["accepted"];
        assert!(accepted() < 8_000);
        assert_eq!(in_flight(), 50, "a share was answered that is not durable");
        std::fs::write(&go, "").unwrap();
        swarm.join().unwrap()
    });
    assert_eq!(outcome.verdicts.accepted(), 8_000);
}

/// S1, P1: a disk that is full (no file may grow beyond a limit) ends the answers `true` and the pool, with its cause; with
/// room again it goes on, and what was answered is counted once.
#[test]
fn s1_a_full_disk_ends_the_answers_and_loses_none() {
    let node = node();
    let dir = tempfile::tempdir().unwrap();
    let limited = dir.path().join("sluice");
    // Blocks of 512 bytes. The signal that comes with it is ignored, so that writing fails with EFBIG.
    let script = format!("#!/bin/sh\ntrap '' XFSZ\nulimit -f ${{BLOCKS:-unlimited}}\nexec {SLUICE} \"$@\"\n");
    std::fs::write(&limited, script).unwrap();
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).unwrap();
    let setup = Setup::simulated(&node, 5, DIFFICULTY);
    let full = PoolProcess::new(limited, include_str!("topology.yaml")).unwrap().env("BLOCKS", "6000");
    let mut pool = setup.environment().into_iter().fold(full, |pool, (name, value)| pool.env(name, value));
    pool.start().unwrap();
    let mut plan = shares(&pool, 0);
    plan.shares = None;
    let outcome = run(&plan, |_| Ok(())).unwrap();
    assert_eq!((outcome.counts.closed, outcome.mismatches), (50, 0), "{outcome}");
    let status = pool.wait_exit().unwrap();
    let output = pool.output().unwrap();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("free the disk") && output.contains("File too large"), "{output}");
    let mut sent = answered_to_a_swarm(plan.record.as_ref().unwrap());
    pool.set_env("BLOCKS", None);
    pool.start().unwrap();
    assert!(close(&mut pool, &node, &mut sent) > 1_000);
}
