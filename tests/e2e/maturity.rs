//! Regtest on real Bitcoin Core, the ledger in real PostgreSQL: what becomes of a reward until it can be paid out.

use bitcoin::Amount;
use serde_json::json;
use sluice_mining::Chain;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::miner::{CpuMiner, CpuMinerConfig};
use sluice_testkit::postgres::Postgres;

use crate::common::{PATIENCE, Setup, address, blocks, pool, wait};

/// Invariant M1: once they are mature, balances and fee together are the rewards, to the satoshi.
#[test]
fn m1_after_maturity_balances_and_fee_are_the_rewards() {
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    // The node gives no templates on its genesis block alone.
    node.generate(1, &sluice_testkit::addresses::script(9)).unwrap();
    let postgres = Postgres::shared().unwrap();
    let ledger = postgres.create_database().unwrap();
    let mut pool = pool(&Setup {
        network: "regtest",
        rpc: node.rpc_url(),
        auth: node.auth().to_owned(),
        zmq: node.zmq(),
        ledger: &ledger,
        maturity: 100,
        difficulty: "0.0000001",
    });
    pool.start().unwrap();
    let miners: Vec<CpuMiner> = (1..=3)
        .map(|number| {
            CpuMiner::start(CpuMinerConfig {
                address: pool.address("stratumd").unwrap(),
                user: format!("{}.w{number}", address("regtest", number)),
                hash_rate: 200 * u64::from(number),
                ..CpuMinerConfig::default()
            })
            .unwrap()
        })
        .collect();
    for miner in &miners {
        miner.wait_until(PATIENCE, |stats| stats.blocks >= 2).unwrap();
    }
    miners.into_iter().for_each(|miner| drop(miner.stop()));
    // On regtest nearly every share is a block; those that lost against one another stay behind.
    wait("the blocks that were found to be credited", || {
        let all = blocks(&pool);
        (all.len() >= 6 && all.iter().all(|block| block["credited"] == true || block["status"] != "accepted"))
            .then_some(())
    });
    node.generate(100, &sluice_testkit::addresses::script(9)).unwrap();
    let settled = wait("every block to be settled", || {
        let all = blocks(&pool);
        // A block may be buried before the slice of its share has closed: then it is credited a moment later.
        let settled = |block: &serde_json::Value| match block["status"].as_str().unwrap() {
            "confirmed" => block["credited"] == true,
            status => status == "orphaned" || status == "refused",
        };
        all.iter().all(settled).then_some(all)
    });
    let confirmed: Vec<_> = settled.iter().filter(|block| block["status"] == "confirmed").collect();
    assert!(confirmed.len() >= 2, "{settled:#?}");
    let (mut rewards, mut fees) = (0, 0);
    for block in &confirmed {
        let seen = node.call("getblock", json!([block["hash"], 2])).unwrap();
        assert!(seen["confirmations"].as_i64().unwrap() >= 100, "{seen}");
        let outputs = seen["tx"][0]["vout"].as_array().unwrap();
        let paid: Amount = outputs.iter().map(|out| Amount::from_btc(out["value"].as_f64().unwrap()).unwrap()).sum();
        assert_eq!(Some(paid.to_sat()), block["reward_sats"].as_u64());
        rewards += paid.to_sat();
        fees += block["fee_sats"].as_u64().unwrap();
    }
    let (mut available, mut pending) = (0, 0);
    for number in 1..=3 {
        let miner = pool.get_json(&format!("/api/v1/miners/{}", address("regtest", number))).unwrap();
        available += miner["available_sats"].as_u64().unwrap();
        pending += miner["pending_sats"].as_u64().unwrap();
    }
    assert_eq!(available + fees, rewards, "balances and fee are the rewards");
    assert_eq!(pending, 0, "nothing hangs");
    let totals = pool.get_json("/api/v1/pool").unwrap();
    assert_eq!(totals["available_sats"], available);
    assert_eq!(totals["fee_sats"], fees);
    let (status, _) = pool.stop().unwrap();
    assert!(status.success());
    let store = sluice_ledger::open(&ledger).unwrap();
    assert!(store.trial_balance().unwrap().is_sound());
    let verified = store.verify().unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    assert!(verified.recomputed >= confirmed.len() as u64);
}
