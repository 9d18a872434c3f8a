//! The load generator against the real pool: both count the same, and what was answered is in the log.

use std::process::Command;
use std::time::Duration;

use sluice_testkit::harness::PoolProcess;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::swarm::{Load, Phase, Plan, run};

use crate::common::{PATIENCE, SLUICE, Setup, address, metric, pool, wait};

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
