//! A private signet on real Bitcoin Core, and a miner that nobody here wrote.

use serde_json::json;
use sluice_mining::Chain;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::foreign::ForeignMiner;

use crate::common::{Setup, address, blocks, pool, wait};

#[test]
fn a_foreign_miner_finds_blocks_that_bitcoin_core_accepts() {
    let node = Bitcoind::start(Chain::Signet).unwrap();
    let mut pool = pool(&Setup {
        network: "signet",
        rpc: node.rpc_url(),
        auth: node.auth().to_owned(),
        zmq: node.zmq(),
        ledger: "sqlite:./ledger.db",
        maturity: 100,
        difficulty: "0.0001",
    });
    pool.start().unwrap();
    let user = format!("{}.foreign", address("signet", 1));
    let mut miner = ForeignMiner::start(&pool.address("stratumd").unwrap(), &user, 2).unwrap();
    let found = wait("five credited blocks that others stand on", || {
        assert!(miner.is_running().unwrap(), "{}", miner.output().unwrap());
        let mut credited: Vec<_> = blocks(&pool).into_iter().filter(|block| block["credited"] == true).collect();
        // A miner may find two blocks of one height; of those one stays. What another block stands on has stayed.
        credited.retain(|block| {
            let seen = node.call("getblock", json!([block["hash"], 1])).unwrap();
            seen["confirmations"].as_i64().unwrap() >= 2
        });
        (credited.len() >= 5).then_some(credited)
    });
    drop(miner);
    let (mut rewards, mut fees) = (0, 0);
    for block in &found {
        assert_eq!(block["worker"], "foreign");
        let seen = node.call("getblock", json!([block["hash"], 2])).unwrap();
        assert!(seen["confirmations"].as_i64().unwrap() >= 1, "in the node's best chain: {seen}");
        assert_eq!(seen["height"], block["height"]);
        let coinbase = &seen["tx"][0];
        let first = &coinbase["vout"][0];
        assert_eq!(first["scriptPubKey"]["address"], address("signet", 0), "the coinbase pays the pool");
        let paid: u64 = coinbase["vout"].as_array().unwrap().iter().map(|out| sats(&out["value"])).sum();
        assert_eq!(paid, block["reward_sats"].as_u64().unwrap());
        assert_eq!(paid, sats(&first["value"]), "all of it goes to the pool");
        rewards += paid;
        fees += block["fee_sats"].as_u64().unwrap();
    }
    assert_eq!(fees, found.len() as u64 * (5_000_000_000 * 150 / 10_000), "1.5 % of each");
    // Blocks found since are credited meanwhile: what the miner is owed grows with them.
    let miner = pool.get_json(&format!("/api/v1/miners/{}", address("signet", 1))).unwrap();
    assert!(miner["pending_sats"].as_u64().unwrap() >= rewards - fees, "{miner}");
    assert!(miner["shares"]["accepted"].as_u64().unwrap() > 0);
    let (status, _) = pool.stop().unwrap();
    assert!(status.success(), "SIGTERM is no failure: {}", pool.output().unwrap());
}

/// A number of bitcoins as JSON has it, in satoshis.
fn sats(value: &serde_json::Value) -> u64 {
    let text = value.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{fraction:0<8}").parse().unwrap()
}
