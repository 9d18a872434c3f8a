//! The load generator against the real pool: both count the same, and what was answered is in the log.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use sluice_proto::Body;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::swarm::{Load, Phase, Plan, run};

use crate::common::{PATIENCE, SLUICE, Setup, address, open_log, pool, read_topic, wait};

/// Some 131,000 hashes a block: shares of the lowest difficulty are rarely blocks, and those a swarm does not send.
const NBITS: u32 = 0x1f00_8000;

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { nbits: NBITS, ..SimNodeConfig::default() }).unwrap()
}

fn plan(pool: &PoolProcess, connections: usize) -> Plan {
    let mut plan =
        Plan::new(pool.address("stratumd").unwrap().parse().unwrap(), format!("{}.w{{n}}", address("regtest", 1)));
    plan.connections = connections;
    plan.duration = PATIENCE;
    plan
}

/// Numbers of a metric by the value of its label.
fn metric(pool: &PoolProcess, name: &str, label: &str) -> BTreeMap<String, u64> {
    let (status, page) = pool.get("/metrics").unwrap();
    assert_eq!(status, 200);
    let lines = page.lines().filter(|line| line.starts_with(name));
    let value = |line: &str| {
        let (labels, number) = line.rsplit_once(' ')?;
        let of = labels.split_once(&format!("{label}=\"")).map_or("", |(_, rest)| rest.split('"').next().unwrap());
        Some((of.to_owned(), number.parse::<f64>().ok()? as u64))
    };
    lines.filter_map(value).collect()
}

/// Every kind of share, answered as the swarm expects, and counted by the pool as the swarm counts.
#[test]
fn a_swarm_and_the_pool_count_the_same() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000001"));
    pool.start().unwrap();
    let mut plan = plan(&pool, 8);
    plan.load = Load::Closed(4);
    plan.threads = 2;
    plan.shares = Some(2_000);
    (plan.duplicates, plan.stales, plan.lows) = (10.0, 10.0, 10.0);
    let outcome = run(&plan, |_| Ok(())).unwrap();
    let verdicts = outcome.verdicts;
    assert_eq!(outcome.mismatches, 0, "{outcome}");
    assert_eq!((verdicts.answered(), outcome.counts.unanswered), (2_000, 0));
    for (expected, answered) in [
        (verdicts.duplicate, verdicts.duplicate.duplicate),
        (verdicts.stale, verdicts.stale.stale),
        (verdicts.low, verdicts.low.low),
    ] {
        assert!(answered > 50, "{outcome}");
        assert_eq!(expected.total(), answered, "{outcome}");
    }
    let shares = metric(&pool, "sluice_gateway_shares_total", "reason");
    assert_eq!(shares["accepted"], verdicts.accepted(), "{shares:?}");
    assert_eq!(shares["duplicate"], verdicts.duplicate.duplicate, "{shares:?}");
    assert_eq!(shares["low_difficulty"], verdicts.low.low, "{shares:?}");
    assert_eq!(shares["job_not_found"] + shares["stale"], verdicts.stale.stale, "{shares:?}");
    // And as money does: by the tallies of closed slices.
    let miner = format!("/api/v1/miners/{}", address("regtest", 1));
    let counted = || {
        let (status, body) = pool.get(&miner).unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).ok().filter(|_| status == 200)?;
        (body["shares"]["accepted"] == verdicts.accepted()).then_some(())
    };
    wait("the tallies to have every share", counted);
}

/// S1: kill -9 under load; every share that the swarm was answered `true` is in the log.
#[test]
fn s1_what_a_swarm_was_answered_survives_kill_9() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000001"));
    pool.start().unwrap();
    let mut plan = plan(&pool, 16);
    plan.load = Load::Closed(8);
    let record = pool.dir().join("record");
    plan.record = Some(record.clone());
    let outcome = std::thread::scope(|scope| {
        let swarm = scope.spawn(|| run(&plan, |_| Ok(())));
        wait("shares in flight", || {
            metric(&pool, "sluice_gateway_shares_total", "reason")
                .get("accepted")
                .filter(|count| **count > 500)
                .copied()
        });
        pool.kill().unwrap();
        swarm.join().unwrap().unwrap()
    });
    assert_eq!((outcome.counts.closed, outcome.mismatches), (16, 0), "{outcome}");
    let log = open_log(pool.dir());
    let mut written: BTreeMap<String, u32> = BTreeMap::new();
    for read in read_topic(&log, "share.submissions") {
        if let Body::Submission(it) = read.body() {
            let (job, one, two) = (it.job_id, it.extranonce1, it.extranonce2);
            let line =
                format!("{job:x} {one:08x} {two:016x} {:08x} {:08x} {:08x}", it.ntime, it.nonce, it.version_bits);
            *written.entry(line).or_default() += 1;
        }
    }
    let record = std::fs::read_to_string(record).unwrap();
    assert_eq!(record.lines().count() as u64, outcome.verdicts.accepted());
    let lost: Vec<&str> = record.lines().filter(|line| written.get(*line) != Some(&1)).collect();
    assert!(lost.is_empty(), "answered, but not once in the log: {lost:?}");
}

/// A new block reaches every idle connection, slow readers among the others.
#[test]
fn a_swarm_hears_of_a_new_block_everywhere() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000001"));
    pool.start().unwrap();
    let mut plan = plan(&pool, 100);
    plan.load = Load::Idle;
    plan.duration = Duration::ZERO;
    plan.connect_rate = Some(2_000.0);
    let outcome = run(&plan, |phase| {
        if phase == Phase::Ready {
            let before = metric(&pool, "sluice_gateway_notifies_total", "gateway").values().sum::<u64>();
            node.mine(1)?;
            wait("the pool to have told everybody", || {
                let now = metric(&pool, "sluice_gateway_notifies_total", "gateway").values().sum::<u64>();
                (now >= before + 100).then_some(())
            });
        }
        Ok(())
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.counts.ready, 100);
    let [spread] = &outcome.spreads[..] else { panic!("{outcome}") };
    assert_eq!(spread.heard, 100);
    assert!(spread.last >= spread.first);
}

/// The command itself: JSON, and an exit code that tells.
#[test]
fn the_command_tells_its_result() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000001"));
    pool.start().unwrap();
    let (target, user) = (pool.address("stratumd").unwrap(), address("regtest", 1));
    let swarm = |more: &[&str]| {
        let mut command = Command::new(SLUICE);
        command.args(["swarm", "--target", &target, "--user", &user, "--shares", "200", "--duration", "300"]);
        command.args(["--warm-up", "0"]).args(more).output().unwrap()
    };
    let output =
        swarm(&["--json", "--connections", "4", "--rate", "2000", "--duplicates", "20", "--slow-readers", "50"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["mismatches"], 0, "{result}");
    let shares = result["verdicts"]["good"]["accepted"].as_u64().unwrap();
    let repeated = result["verdicts"]["duplicate"]["duplicate"].as_u64().unwrap();
    assert!(repeated > 0 && shares + repeated <= 200, "{result}");
    let refused = Command::new(SLUICE).args(["swarm", "--target", "192.0.2.1:3333", "--user", &user]).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--allow-remote"));
}
