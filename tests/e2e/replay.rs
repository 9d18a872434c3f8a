//! States made again from the topics, and a standby that takes over (docs/adr/0015).

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{Sent, close, replayed, sent_by};
use crate::common::{PATIENCE, Setup, blocks, pool, wait};
use crate::crash::{NBITS, miner};

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 20, ..SimNodeConfig::default() }).unwrap()
}

/// Mines until each of two miners has this many shares accepted and a block was found.
pub fn mine(pool: &PoolProcess, shares: u64) -> Vec<Sent> {
    let stratum = pool.address("stratumd").unwrap();
    let (before, miners) = (blocks(pool).len(), [1, 2].map(|number| miner(&stratum, number)));
    for miner in &miners {
        miner.wait_until(PATIENCE, |stats| stats.accepted >= shares).unwrap();
    }
    wait("a block", || (blocks(pool).len() > before).then_some(()));
    miners.into_iter().flat_map(sent_by).collect()
}

/// Digest of each table of each task.
pub fn digests(report: &Value) -> BTreeMap<(String, String), String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let tasks = report["tasks"].as_array().unwrap().iter();
    let tables = tasks.flat_map(|task| {
        let tables = task["tables"].as_array().unwrap().iter();
        tables.map(move |table| {
            assert_eq!(table["as_in_pool"], true, "{task}");
            ((text(&task["task"]), text(&table["table"])), text(&table["digest"]))
        })
    });
    tables.collect()
}

/// S2: what the pool had written, decided and credited comes out of the topics again, and a pool goes on with it.
#[test]
fn s2_all_state_is_made_again_from_the_topics() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000005"));
    pool.start().unwrap();
    let mut sent = mine(&pool, 150);
    close(&mut pool, &node, &mut sent);
    let before = replayed(&pool);
    assert!(before["ledger"]["blocks"].as_u64().unwrap() > 0 && before["ledger"]["good"] == true, "{before}");
    let skipped: Vec<&str> =
        before["skipped"].as_array().unwrap().iter().map(|it| it["task"].as_str().unwrap()).collect();
    assert_eq!(skipped, ["submit", "ledger"]);

    let state = pool.dir().join("state");
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        // The epochs of services are no state: they are only ever counted up.
        if path.is_dir() && !path.ends_with("epochs") {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    let output = pool.command(&["replay", "--in-place"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("the new states are in place"), "{output:?}");
    assert!(!state.join("%replay").exists());
    assert_eq!(digests(&replayed(&pool)), digests(&before));

    pool.start().unwrap();
    // Beside a running pool nothing is replaced.
    let refused = pool.command(&["replay", "--in-place"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no pool runs"), "{refused:?}");
    let beside = pool.command(&["replay", "--only", "verify", "--verify"]).output().unwrap();
    assert!(beside.status.success(), "{beside:?}");
    sent.extend(mine(&pool, 50));
    close(&mut pool, &node, &mut sent);
}

/// S1, S2: the pool is killed under load; the standby has everything that was answered, and goes on.
#[test]
fn s1_a_standby_takes_over_from_a_pool_that_is_killed() {
    let node = node();
    let setup = Setup::simulated(&node, 5, "0.0000005");
    let mut primary = pool(&setup);
    primary.start().unwrap();
    let mut standby = pool(&setup).arg("--standby");
    for shared in ["log", "ledger.db"] {
        symlink(primary.dir().join(shared), standby.dir().join(shared)).unwrap();
    }
    standby.spawn().unwrap();
    wait("the standby to follow", || standby.output().unwrap().contains("standby: following").then_some(()));
    let mut sent = mine(&primary, 100);
    let stratum = primary.address("stratumd").unwrap();
    let miners: Vec<CpuMiner> = [1, 2].map(|number| miner(&stratum, number)).into();
    for miner in &miners {
        miner.wait_until(PATIENCE, |stats| stats.accepted > 20).unwrap();
    }
    assert!(standby.is_running().unwrap(), "{}", standby.output().unwrap());
    let died = Instant::now();
    primary.kill().unwrap();
    standby.wait_address("stratumd").unwrap();
    let served = died.elapsed();
    standby.wait_ready().unwrap();
    println!("served {served:?} and ready {:?} after the pool was killed", died.elapsed());
    assert!(served < Duration::from_secs(60), "a guard against hanging");
    sent.extend(miners.into_iter().flat_map(sent_by));
    sent.extend(mine(&standby, 50));
    close(&mut standby, &node, &mut sent);
}
