//! The pool on real brokers of Kafka (docs/adr/0023).

use std::time::Duration;

use sluice_testkit::kafka::Kafka;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{close, sent_by};
use crate::common::{PATIENCE, Setup, on_kafka, pool};
use crate::crash::{NBITS, miner, survives};

/// S1, B1, M1, P1, S2: as on an embedded log, with six kills of the program.
#[test]
fn s1_accepted_shares_and_blocks_survive_kill_9_on_kafka() {
    let kafka = Kafka::shared().unwrap();
    survives(6, |pool| on_kafka(pool, &kafka));
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
    let more = |shares: u64| {
        for miner in &miners {
            let before = miner.stats().accepted;
            miner.wait_until(PATIENCE, |stats| stats.accepted >= before + shares).unwrap();
        }
    };
    for killed in 0..3 {
        more(20);
        kafka.kill(killed).unwrap();
        more(20);
        std::thread::sleep(Duration::from_secs(2));
        kafka.restart(killed).unwrap();
    }
    more(20);
    assert!(pool.is_running().unwrap(), "{}", pool.output().unwrap());
    let mut sent = miners.into_iter().flat_map(sent_by).collect();
    close(&mut pool, &node, &mut sent);
}
