//! The pool on real brokers of Kafka (docs/adr/0023).

use std::time::Duration;

use sluice_testkit::harness::PoolProcess;
use sluice_testkit::kafka::Kafka;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{Sent, close, close_parts, sent_by};
use crate::common::{PATIENCE, Setup, on_kafka, partly_on_kafka, pool};
use crate::crash::{NBITS, miner, survives};

/// S1, B1, M1, P1, S2: as on an embedded log, with six kills of the program.
#[test]
fn s1_accepted_shares_and_blocks_survive_kill_9_on_kafka() {
    let kafka = Kafka::shared().unwrap();
    survives(6, |pool| on_kafka(pool, &kafka));
}

/// S1, M1: shares in an embedded log, what money is made of on brokers; kills of the program.
#[test]
fn s1_topics_on_several_logs_survive_kill_9() {
    let kafka = Kafka::shared().unwrap();
    survives(4, |pool| partly_on_kafka(pool, &kafka));
}

/// S1: brokers die one after the other under load. Miners are answered late, and nothing is lost; the pool goes on.
#[test]
fn s1_accepted_shares_and_blocks_survive_brokers_that_die() {
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 20, ..SimNodeConfig::default() }).unwrap();
    let mut kafka = Kafka::start(3).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000005"));
    on_kafka(&pool, &kafka);
    pool.start().unwrap();
    let stratum = pool.address("stratumd").unwrap();
    let miners: Vec<CpuMiner> = [1, 2].map(|number| miner(&stratum, number)).into();
    let all = || miners.iter().for_each(|miner| more(miner, 20));
    for killed in 0..3 {
        all();
        kafka.kill(killed).unwrap();
        all();
        std::thread::sleep(Duration::from_secs(2));
        kafka.restart(killed).unwrap();
    }
    all();
    assert!(pool.is_running().unwrap(), "{}", pool.output().unwrap());
    let mut sent: Vec<Sent> = miners.into_iter().flat_map(sent_by).collect();
    close(&mut pool, &node, &mut sent);
}

/// What runs in each process: the sources, what counts shares, what makes blocks, money and statistics.
const PARTS: [&str; 4] =
    ["jobmanager,stratumd", "verify,dedupe,vardiff,tally", "assemble,submit", "ledger,stats,apiserver"];

/// S1, B1, M1, S2: the services run in processes of their own, and each dies under load, twice.
#[test]
fn s1_services_in_processes_of_their_own_lose_nothing() {
    let kafka = Kafka::shared().unwrap();
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 20, ..SimNodeConfig::default() }).unwrap();
    let part = |only: &str| pool(&Setup::simulated(&node, 5, "0.0000005")).arg("--only").arg(only);
    let mut parts = PARTS.map(part);
    on_kafka(&parts[3], &kafka);
    let topology = std::fs::read_to_string(parts[3].dir().join("topology.yaml")).unwrap();
    for part in &mut parts {
        part.set_topology(&topology).unwrap();
        part.start().unwrap();
    }
    let mut sent = Vec::new();
    for killed in [1, 0, 3, 2, 1, 0, 3, 2] {
        let miners = mining(&parts[0]);
        parts[killed].kill().unwrap();
        // Where the gateway lives on, it goes on answering.
        if killed != 0 {
            miners.iter().for_each(|miner| more(miner, 20));
        }
        parts[killed].start().unwrap();
        sent.extend(miners.into_iter().flat_map(sent_by));
    }
    sent.extend(mining(&parts[0]).into_iter().flat_map(sent_by));
    let [sources, shares, blocks, money] = &mut parts;
    let stratum = sources.address("stratumd").unwrap();
    let states = money.dir().join("state");
    close_parts(money, &stratum, &node, &mut sent, || {
        for part in [sources, shares, blocks] {
            assert!(part.stop().unwrap().0.success(), "{}", part.output().unwrap());
            bring_states(part, &states);
        }
    });
}

/// Two miners that have each had some shares accepted.
fn mining(gateway: &PoolProcess) -> Vec<CpuMiner> {
    let stratum = gateway.address("stratumd").unwrap();
    let miners: Vec<CpuMiner> = [1, 2].map(|number| miner(&stratum, number)).into();
    miners.iter().for_each(|miner| more(miner, 20));
    miners
}

/// Waits until a miner has had more shares accepted.
pub fn more(miner: &CpuMiner, shares: u64) {
    let before = miner.stats().accepted;
    miner.wait_until(PATIENCE, |stats| stats.accepted >= before + shares).unwrap();
}

/// Moves a part's states to those of another.
pub fn bring_states(part: &PoolProcess, to: &std::path::Path) {
    for entry in std::fs::read_dir(part.dir().join("state")).unwrap() {
        let entry = entry.unwrap();
        let at = to.join(entry.file_name());
        if entry.path().join("CURRENT").exists() {
            std::fs::rename(entry.path(), at).unwrap();
        }
    }
}
