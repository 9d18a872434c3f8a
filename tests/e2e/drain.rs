//! Signals: certificates are read again, and a stop gives miners time to go elsewhere.

use std::process::Command;

use sluice_mining::{Difficulty, Target};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::stratum::{Notify, StratumClient, Subscription};

use crate::common::{Setup, address, pool};

const DIFFICULTY: &str = "0.000001";

fn signal(pool: &PoolProcess, name: &str) {
    let id = pool.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

/// Finds a share of `job` that is no block, and hands it in.
fn submit(miner: &mut StratumClient, user: &str, job: &Notify, to: &Subscription, number: u64) -> bool {
    let share = Difficulty::parse_wire(DIFFICULTY).unwrap().floor_to_allowed().to_target();
    let network = Target::from_compact(job.nbits).unwrap();
    let fits = |hash: &[u8; 32]| share.is_met_by(hash) && !network.is_met_by(hash);
    let params = job.submission(user, to, number, fits).unwrap();
    miner.request("mining.submit", &params).unwrap().as_bool().unwrap()
}

#[test]
fn a_drain_asks_miners_to_connect_elsewhere_and_answers_them_until_they_go() {
    let node = SimNode::start(SimNodeConfig { nbits: 0x1e00_ffff, ..SimNodeConfig::default() }).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, DIFFICULTY))
        .arg("--set=operators.stratumd.drain=250s")
        .arg("--set=operators.stratumd.drain_to=127.0.0.1:1");
    pool.start().unwrap();
    let (stratum, user) = (pool.address("stratumd").unwrap(), address("regtest", 1));
    let mut miner = StratumClient::connect(&stratum).unwrap();
    let subscription = miner.log_in(&user).unwrap();
    let job = miner.notify().unwrap();
    signal(&pool, "HUP");
    assert!(submit(&mut miner, &user, &job, &subscription, 1), "a hang-up only reads certificates again");

    signal(&pool, "TERM");
    let to = miner.call("client.reconnect").unwrap();
    assert_eq!((to[0].get(), to[1].get()), ("\"127.0.0.1\"", "1"));
    assert!(submit(&mut miner, &user, &job, &subscription, 2), "it is served until it goes");
    assert!(StratumClient::connect(&stratum).is_err(), "nobody else is let in");
    drop(miner);
    assert!(pool.wait_exit().unwrap().success(), "and with the last miner it ends");
}
