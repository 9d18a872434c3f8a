//! Another number of partitions of the shares, on the program itself (docs/adr/0018).

use std::os::unix::process::ExitStatusExt;

use sluice_failpoints::VARIABLE;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{Sent, close, sent_by};
use crate::common::{PATIENCE, Setup, pool};
use crate::crash::{NBITS, miner};

const TOPOLOGY: &str = include_str!("topology.yaml");
const SHARES: &str = "share.submissions:  { partitions: 2,";

/// S1, B1, M1: shares before and behind the change are each counted once, blocks of both are credited, and the ledger
/// says what the log says. The change dies behind each of its appends and commits in turn.
#[test]
fn s1_shares_and_blocks_survive_another_number_of_partitions() {
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 50, ..SimNodeConfig::default() }).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000005"));
    let mut sent = Vec::new();
    pool.start().unwrap();
    mine(&pool, &mut sent);
    // Not in peace: what was not committed has to be read again by the old tasks.
    pool.kill().unwrap();

    let after = TOPOLOGY.replace(SHARES, "share.submissions:  { partitions: 5, generation: 2,");
    assert_ne!(after, TOPOLOGY);
    pool.set_topology(&after).unwrap();
    refused(&mut pool, "run `sluice rescale`");
    let mut deaths = 0;
    for point in ["append::after", "commit::after"].iter().cycle() {
        // Later and later, whatever an attempt does again before it goes on.
        let setting = format!("{point}=abort@{}", 1 + deaths / 2);
        let output = pool.command(&["--log-format", "json", "rescale"]).env(VARIABLE, setting).output().unwrap();
        if output.status.success() {
            break;
        }
        assert!(output.status.signal().is_some(), "{}", String::from_utf8_lossy(&output.stderr));
        deaths += 1;
    }
    assert!(deaths > 4, "it died {deaths} times only");
    let told = pool.command(&["--log-format", "json", "rescale"]).output().unwrap();
    assert!(told.status.success() && told.stdout.starts_with(b"nothing to do"), "{told:?}");
    pool.set_topology(TOPOLOGY).unwrap();
    refused(&mut pool, "generation 2");
    // Nor does it follow the partitions that have ended.
    let standby = pool.command(&["run", "--standby"]).output().unwrap();
    let said = [standby.stdout, standby.stderr].concat();
    assert!(!standby.status.success() && String::from_utf8_lossy(&said).contains("generation 2"), "{said:?}");
    pool.set_topology(&after).unwrap();

    pool.start().unwrap();
    mine(&pool, &mut sent);
    let accepted = close(&mut pool, &node, &mut sent);
    assert!(accepted > 20, "{accepted}");

    // S2: what the log says of both generations is what their tasks make again.
    replayed(&pool, &["replay", "--verify"]);
    pool.set_topology(TOPOLOGY).unwrap();
    replayed(&pool, &["replay", "--verify", "--only", "verify"]);
}

/// Lets miners work until each has found a block and shares.
fn mine(pool: &PoolProcess, sent: &mut Vec<Sent>) {
    let stratum = pool.address("stratumd").unwrap();
    let miners: Vec<CpuMiner> = (1..=4).map(|number| miner(&stratum, number)).collect();
    for miner in &miners {
        miner.wait_until(PATIENCE, |stats| stats.accepted > 5 && stats.blocks > 0).unwrap();
    }
    sent.extend(miners.into_iter().flat_map(sent_by));
}

/// A replay finds no difference.
fn replayed(pool: &PoolProcess, args: &[&str]) {
    let output = pool.command(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
}

/// The pool does not start, and says so.
fn refused(pool: &mut PoolProcess, because: &str) {
    pool.spawn().unwrap();
    assert!(!pool.wait_exit().unwrap().success());
    let output = pool.output().unwrap();
    assert!(output.contains(because), "{output}");
}
