//! A part of a topology in a process, and a look into the log of a running pool.

use std::process::Command;

use sluice_testkit::miner::{CpuMiner, CpuMinerConfig};
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::common::{PATIENCE, SLUICE, Setup, address, pool, wait};

#[test]
fn a_process_runs_the_parts_it_is_told_to() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.000001")).arg("--only=stratumd,jobmanager");
    pool.start().unwrap();
    let health = pool.get_json("/health").unwrap();
    assert_eq!(health["tasks"].as_array().unwrap().len(), 0, "{health}");
    let parts: Vec<&str> = health["parts"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(parts, ["log", "node node", "jobmanager", "stratumd"]);
    assert_eq!(pool.get("/api/v1/pool").unwrap().0, 404, "the apiserver is another process's");
    let metrics = pool.get("/metrics").unwrap().1;
    assert!(metrics.contains("sluice_gateway_connections{service=\"stratumd\"} 0"), "{metrics}");
    let (status, _) = pool.stop().unwrap();
    assert!(status.success());
}

#[test]
fn a_name_that_the_topology_has_not_is_refused() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.000001")).arg("--only=stratum");
    pool.spawn().unwrap();
    assert!(!pool.wait_exit().unwrap().success());
    let output = pool.output().unwrap();
    assert!(output.contains("no operator \"stratum\"") && output.contains("stratumd"), "{output}");
}

#[test]
fn a_node_that_is_away_is_told_and_comes_back() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    node.faults().refuse(sluice_testkit::simnode::EVERY_METHOD, Some(sluice_testkit::simnode::Refusal::Close));
    let setup = Setup::simulated(&node, 5, "0.000001");
    let mut pool = pool(&setup);
    pool.spawn().unwrap();
    pool.wait_address("http").unwrap();
    let part = |pool: &sluice_testkit::harness::PoolProcess| {
        let health = pool.get_json("/health").ok()?;
        health["parts"].as_array().unwrap().iter().find(|part| part["name"] == "node node").cloned()
    };
    let failing = wait("the node's failure to be told", || part(&pool).filter(|it| it["condition"] == "degraded"));
    assert!(failing["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{failing}");
    assert_eq!(pool.get("/ready").unwrap().0, 503, "without work it is not ready");
    node.faults().clear();
    pool.wait_ready().unwrap();
    wait("the node to be well again", || part(&pool).filter(|it| it["condition"] == "ok"));
}

#[test]
fn a_running_pool_can_be_tapped() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let setup = Setup::simulated(&node, 5, "0.000001");
    let mut pool = pool(&setup);
    pool.start().unwrap();
    let miner = CpuMiner::start(CpuMinerConfig {
        address: pool.address("stratumd").unwrap(),
        user: format!("{}.tapped", address("regtest", 1)),
        hash_rate: 50_000,
        ..CpuMinerConfig::default()
    })
    .unwrap();
    miner.wait_until(PATIENCE, |stats| stats.accepted >= 3).unwrap();
    drop(miner);
    let tap = |args: &[&str]| {
        let output = Command::new(SLUICE)
            .arg("tap")
            .args(args)
            .current_dir(pool.dir())
            .envs(setup.environment())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = tap(&["share.submissions", "--stop", "--json"]);
    let records: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shares = records.iter().filter(|it| it["record"]["body"]["submission"]["worker"] == "tapped");
    assert!(shares.count() >= 3, "{lines}");
    // The jobmanager's fence stands before its first job.
    let first = tap(&["mining.jobs", "--from", "2", "--count", "1"]);
    assert!(first.starts_with("mining.jobs/0 2  ") && first.contains(" job "), "{first}");
    assert_eq!(first.lines().count(), 1);
    assert!(pool.stop().unwrap().0.success());
}

/// Invariant P1: a ledger that has lost what it was given stops the process, which says what and where.
#[test]
fn p1_a_task_that_fails_stops_the_process_with_its_cause() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.000001"));
    pool.start().unwrap();
    wait("the ledger to be fed", || {
        let health = pool.get_json("/health").ok()?;
        let ledger = health["tasks"].as_array()?.iter().find(|task| task["name"] == "ledger")?.clone();
        (ledger["processed"].as_u64()? > 0 && ledger["lag_records"] == 0).then_some(())
    });
    assert!(pool.stop().unwrap().0.success());
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        std::fs::remove_file(pool.dir().join(file)).ok();
    }
    pool.spawn().unwrap();
    let status = pool.wait_exit().unwrap();
    assert_eq!(status.code(), Some(1));
    let output = pool.output().unwrap();
    assert!(output.contains("task ledger stopped"), "{output}");
}
