//! Checkpoints of a real pool: made by command while it runs, taken back when its state is gone, refused when damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{Sent, close, sent_by};
use crate::common::{PATIENCE, SLUICE, Setup, pool};
use crate::crash::{NBITS, miner};

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 50, ..SimNodeConfig::default() }).unwrap()
}

/// Runs a command of the program in the pool's directory, on its topology.
fn sluice(pool: &PoolProcess, setup: &Setup<'_>, args: &[&str]) -> Output {
    Command::new(SLUICE).args(args).current_dir(pool.dir()).envs(setup.environment()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As [`sluice`], with code 0 and JSON as the answer.
fn json(pool: &PoolProcess, setup: &Setup<'_>, args: &[&str]) -> Value {
    let output = sluice(pool, setup, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {} {}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Lets miners work until each has had some shares accepted.
fn work(pool: &PoolProcess, sent: &mut Vec<Sent>) {
    let stratum = pool.address("stratumd").unwrap();
    let miners: Vec<_> = (1..=2).map(|number| miner(&stratum, number)).collect();
    for miner in miners {
        miner.wait_until(PATIENCE, |stats| stats.accepted >= 20).unwrap();
        sent.extend(sent_by(miner));
    }
}

/// The live states of the pool.
fn live(pool: &PoolProcess) -> Vec<PathBuf> {
    let states = sluice_state::states_in(&pool.dir().join("state")).unwrap();
    assert!(states.len() >= 3, "{states:?}");
    states
}

/// The directories of all checkpoints, by task, the newest first.
fn checkpoints(pool: &PoolProcess) -> Vec<Vec<PathBuf>> {
    let all = sluice_state::checkpoint::Checkpoints::all_of(&pool.dir().join("state")).unwrap();
    all.iter().map(|of| of.list().unwrap().into_iter().map(|found| found.path).collect()).collect()
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(file, bytes).unwrap();
}

/// S1: a pool that is killed and whose state is gone counts every share once: from its newest checkpoint, from an older one
/// where the newest is damaged, from the topics where all are.
#[test]
fn s1_state_that_is_lost_is_made_again_and_every_share_counted_once() {
    let node = node();
    let setup = Setup::simulated(&node, 5, "0.0000005");
    let mut pool = pool(&setup);
    let mut sent = Vec::new();
    pool.start().unwrap();
    for _ in 0..2 {
        work(&pool, &mut sent);
        let made = json(&pool, &setup, &["checkpoint", "create"]);
        assert!(made.as_array().unwrap().iter().all(|made| made["manifest"]["files"][0]["hash"].is_string()), "{made}");
    }
    work(&pool, &mut sent);
    pool.kill().unwrap();

    for newest in checkpoints(&pool) {
        assert_eq!(newest.len(), 2);
        flip(&newest[0].join("db").join("CURRENT"));
    }
    live(&pool).iter().for_each(|state| fs::remove_dir_all(state).unwrap());
    pool.start().unwrap();
    let told = pool.output().unwrap();
    assert!(told.contains("a checkpoint is passed over") && told.contains("CURRENT has other bytes"), "{told}");
    assert!(told.contains("it was restored from a checkpoint"), "{told}");
    work(&pool, &mut sent);
    let accepted = close(&mut pool, &node, &mut sent);
    assert!(accepted >= 120, "there was work: {accepted}");

    for task in checkpoints(&pool) {
        task.iter().for_each(|path| flip(&path.join("manifest.json")));
    }
    live(&pool).iter().for_each(|state| fs::remove_dir_all(state).unwrap());
    pool.start().unwrap();
    let told = pool.output().unwrap();
    assert!(!told.contains("it was restored from a checkpoint"), "{told}");
    assert!(close(&mut pool, &node, &mut sent) >= accepted);
}

/// State of another log is refused; a start that is told to makes it again and keeps what was there.
#[test]
fn state_of_another_log_is_refused() {
    let node = node();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000005"));
    pool.start().unwrap();
    assert!(pool.stop().unwrap().0.success());
    fs::rename(pool.dir().join("log"), pool.dir().join("other-log")).unwrap();
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        fs::remove_file(pool.dir().join(file)).ok();
    }
    pool.spawn().unwrap();
    assert_eq!(pool.wait_exit().unwrap().code(), Some(1));
    let told = pool.output().unwrap();
    assert!(told.contains("it was made with") && told.contains("log "), "{told}");
    let before = live(&pool);
    let mut pool = pool.arg("--rebuild");
    pool.start().unwrap();
    assert!(pool.stop().unwrap().0.success());
    for state in before {
        assert!(PathBuf::from(format!("{}%aside-1", state.display())).exists(), "{}", state.display());
    }
}

/// The commands beside a running pool, and on what it leaves.
#[test]
fn states_and_checkpoints_are_handled_by_command() {
    let node = node();
    let setup = Setup::simulated(&node, 5, "0.0000005");
    let mut pool = pool(&setup);
    pool.start().unwrap();
    let mut sent = Vec::new();
    work(&pool, &mut sent);
    let states = json(&pool, &setup, &["state", "ls"]);
    let tasks: Vec<&str> = states.as_array().unwrap().iter().map(|state| state["task"].as_str().unwrap()).collect();
    assert!(tasks.contains(&"ledger") && states[0]["facts"]["positions"].is_object(), "{states}");
    assert!(sluice(&pool, &setup, &["state", "verify"]).status.success());
    let table = states.as_array().unwrap().iter().find_map(|state| state["tables"][0]["table"].as_str()).unwrap();
    assert!(sluice(&pool, &setup, &["state", "scan", table, "--limit", "3"]).status.success());
    let unknown = sluice(&pool, &setup, &["state", "scan", "no.table"]);
    assert!(!unknown.status.success() && text(&unknown.stderr).contains(table), "{}", text(&unknown.stderr));

    assert_eq!(json(&pool, &setup, &["checkpoint", "create", "ledger"]).as_array().unwrap().len(), 1);
    json(&pool, &setup, &["checkpoint", "create"]);
    json(&pool, &setup, &["checkpoint", "verify"]);
    json(&pool, &setup, &["checkpoint", "copy", "--to", "away"]);
    let refused = sluice(&pool, &setup, &["checkpoint", "restore", "--from", "away"]);
    assert!(text(&refused.stderr).contains("the pool runs"), "{}", text(&refused.stderr));
    let metrics = pool.get("/metrics").unwrap().1;
    assert!(metrics.contains("sluice_checkpoints_total{task=\"ledger\"} 2"), "{metrics}");
    assert!(pool.stop().unwrap().0.success());

    let diff = sluice(&pool, &setup, &["state", "diff", "state", "state"]);
    assert!(diff.status.success() && text(&diff.stdout).contains("no difference"), "{}", text(&diff.stderr));
    json(&pool, &setup, &["checkpoint", "create", "ledger"]);
    fs::rename(pool.dir().join("log"), pool.dir().join("log-away")).unwrap();
    let refused = sluice(&pool, &setup, &["checkpoint", "restore", "--from", "away"]);
    assert!(!refused.status.success(), "without its log nothing can be said of a checkpoint");
    fs::rename(pool.dir().join("log-away"), pool.dir().join("log")).unwrap();
    let restored = json(&pool, &setup, &["checkpoint", "restore", "--from", "away"]);
    assert!(restored[0]["note"].as_str().unwrap().contains("%aside-1"), "{restored}");
    pool.start().unwrap();
    work(&pool, &mut sent);
    close(&mut pool, &node, &mut sent);
}
