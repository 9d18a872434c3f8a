//! `sluice-mining` against Bitcoin Core: what it makes of a real template, Core takes; and what the simulated node says
//! to a wrong block, Core says too.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::opcodes::all::OP_PUSHNUM_1;
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::transaction::Version;
use bitcoin::{Amount, Block, BlockHash, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use serde_json::{Value, json};
use sluice_mining::Chain;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::rpc::Rpc;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use support::{block_of, job, mine_again, refusal, solve, submit};

/// A script that anyone may spend.
fn anyone() -> ScriptBuf {
    Builder::new().push_opcode(OP_PUSHNUM_1).into_script()
}

fn p2wsh() -> ScriptBuf {
    anyone().to_p2wsh()
}

fn p2sh() -> ScriptBuf {
    anyone().to_p2sh()
}

/// Spends an output that pays [`p2wsh`] or [`p2sh`], to `outputs`; the rest is the fee.
fn spend(previous: (OutPoint, &TxOut), outputs: Vec<(Amount, ScriptBuf)>) -> Transaction {
    let (script_sig, witness) = if previous.1.script_pubkey.is_p2wsh() {
        (ScriptBuf::new(), Witness::from_slice(&[anyone().as_bytes()]))
    } else {
        let push = PushBytesBuf::try_from(anyone().into_bytes()).unwrap();
        (Builder::new().push_slice(push).into_script(), Witness::new())
    };
    let input = TxIn { previous_output: previous.0, script_sig, sequence: Sequence::MAX, witness };
    let output = outputs.into_iter().map(|(value, script_pubkey)| TxOut { value, script_pubkey }).collect();
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output }
}

fn send(rpc: &Rpc, transaction: &Transaction) {
    let hex = bitcoin::consensus::encode::serialize_hex(transaction);
    rpc.call("sendrawtransaction", &json!([hex])).unwrap();
}

/// A regtest node with 105 blocks, and transactions that wait: with and without witness, and some that spend others.
fn busy_regtest(chains: usize) -> Bitcoind {
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    let mined = node.generate(100 + chains, &p2wsh()).unwrap();
    let rpc = node.rpc();
    for hash in &mined[..chains] {
        let coinbase = block(&rpc, hash).txdata.remove(0);
        let coin = OutPoint { txid: coinbase.compute_txid(), vout: 0 };
        let half = Amount::from_sat(24_9999_0000);
        let first = spend((coin, &coinbase.output[0]), vec![(half, p2sh()), (half, p2wsh())]);
        send(&rpc, &first);
        for vout in 0..2 {
            let coin = OutPoint { txid: first.compute_txid(), vout };
            let paid = Amount::from_sat(24_9998_0000);
            send(&rpc, &spend((coin, &first.output[vout as usize]), vec![(paid, p2wsh())]));
        }
    }
    node
}

fn block(rpc: &Rpc, hash: &BlockHash) -> Block {
    let hex = rpc.call("getblock", &json!([hash.to_string(), 0])).unwrap();
    bitcoin::consensus::deserialize(&hex::decode(hex.as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn bitcoin_core_takes_blocks_made_from_its_templates_on_regtest() {
    // 0, 3, 6, 15 transactions: odd and even rows of the merkle tree.
    for chains in [0, 1, 2, 5] {
        let node = busy_regtest(chains);
        let rpc = node.rpc();
        let (template, block) = block_of(&rpc, Chain::Regtest, 1);
        assert_eq!(template.transactions.len(), 3 * chains);
        let witnesses = template.transactions.iter().filter(|tx| tx.txid != tx.wtxid).count();
        assert_eq!(witnesses, 2 * chains, "a third is without witness");
        assert_eq!(submit(&rpc, &block), Value::Null);
        assert_eq!(node.tip().unwrap(), block.block_hash());
        assert_eq!(submit(&rpc, &block), json!("duplicate"));
        let paid = block.txdata[0].output[0].value.to_sat();
        assert_eq!(paid, 50 * 100_000_000 + 40_000 * chains as u64, "subsidy and fees");
        let info = rpc.call("getrawmempool", &json!([])).unwrap();
        assert_eq!(info, json!([]), "all of them are in the block");
        let (next, block) = block_of(&rpc, Chain::Regtest, 2);
        assert_eq!((next.height as usize, next.transactions.len()), (100 + chains + 2, 0));
        assert_eq!(submit(&rpc, &block), Value::Null);
    }
}

/// The height in the coinbase is pushed in another way at 1, 17, 128 (BIP34), and every block below is ours.
#[test]
fn bitcoin_core_takes_the_first_blocks_of_a_chain() {
    let node = Bitcoind::start(Chain::Regtest).unwrap();
    let rpc = node.rpc();
    for height in 1..=130 {
        let (template, block) = block_of(&rpc, Chain::Regtest, height);
        assert_eq!(u64::from(template.height), height);
        assert_eq!(submit(&rpc, &block), Value::Null, "height {height}");
    }
}

/// The same rules as production: a target that is not trivial, the signet rule, no peers.
#[test]
fn bitcoin_core_takes_blocks_on_a_private_signet() {
    let mut node = Bitcoind::start(Chain::Signet).unwrap();
    let rpc = node.rpc();
    let (template, block) = block_of(&rpc, Chain::Signet, 1);
    assert_eq!((template.height, template.nbits), (1, 0x1e03_77ae));
    assert_eq!(submit(&rpc, &block), Value::Null);
    let mined = node.generate(1, &p2wsh()).unwrap();
    assert_eq!((node.height().unwrap(), node.tip().unwrap()), (2, mined[0]));
    let (_, block) = block_of(&rpc, Chain::Signet, 2);
    assert_eq!(submit(&rpc, &block), Value::Null);
    let (code, message) = refusal(&rpc, "getblocktemplate", json!([{ "rules": ["segwit"] }]));
    assert!(code == -8 && message.contains("signet rule set"), "{message}");
}

/// What is mined in the first moments of a new tip, before the node's own template: a signet takes no block without a
/// witness commitment, also where there is nothing to commit to (BIP325).
#[test]
fn bitcoin_core_takes_blocks_of_jobs_without_transactions() {
    for chain in [Chain::Regtest, Chain::Signet] {
        let node = Bitcoind::start(chain).unwrap();
        let rpc = node.rpc();
        let (template, first) = block_of(&rpc, chain, 1);
        assert_eq!(submit(&rpc, &first), Value::Null);
        let tip = first.block_hash().to_byte_array();
        let empty = template.empty_on(chain, tip, first.header.time + 1).unwrap();
        let block = solve(&job(&empty, chain, 2), &[]);
        assert_eq!(submit(&rpc, &bitcoin::consensus::deserialize(&block).unwrap()), Value::Null, "{chain}");
        assert_eq!(node.height().unwrap(), 2);
    }
}

/// A block of either node, changed in the same way: the same answer.
#[test]
fn the_simulated_node_says_what_bitcoin_core_says() {
    let core = busy_regtest(3);
    let sim = SimNode::start(SimNodeConfig { mempool: 9, ..SimNodeConfig::default() }).unwrap();
    sim.mine(103).unwrap();
    sim.add_transactions(9);
    let good = [&core.rpc(), &sim.rpc()].map(|rpc| (rpc.clone(), block_of(rpc, Chain::Regtest, 1).1));
    type Change<'a> = &'a dyn Fn(&mut Block);
    let changes: [(&str, Change<'_>, bool); 13] = [
        ("too much", &|b| b.txdata[0].output[0].value += Amount::from_sat(1), true),
        ("another merkle root", &|b| drop(b.txdata.pop()), false),
        ("a transaction is missing", &|b| drop(b.txdata.pop()), true),
        ("no commitment", &|b| drop(b.txdata[0].output.pop()), true),
        ("two reserved values", &|b| b.txdata[0].input[0].witness.push([0; 32]), true),
        ("no coinbase", &|b| drop(b.txdata.remove(0)), true),
        ("two coinbases", &|b| b.txdata.push(with_other_script(&b.txdata[0])), true),
        ("a doubled tail", &|b| b.txdata.extend_from_within(8..), true),
        ("a transaction twice", &|b| b.txdata.extend(b.txdata.last().cloned()), true),
        ("an unknown parent", &|b| b.header.prev_blockhash = BlockHash::from_byte_array([9; 32]), true),
        ("too early", &|b| b.header.time -= 86_400, true),
        ("too late", &|b| b.header.time += 4 * 3600, true),
        ("another target", &|b| b.header.bits = bitcoin::CompactTarget::from_consensus(0x207f_fffe), true),
    ];
    for (what, change, merkle) in changes {
        let answers = good.each_ref().map(|(rpc, good)| {
            let mut block = good.clone();
            change(&mut block);
            mine_again(&mut block, merkle);
            submit(rpc, &block)
        });
        assert_eq!(answers[0], answers[1], "{what}: Bitcoin Core, then the simulated node");
        assert!(answers[0].is_string(), "{what}: {}", answers[0]);
    }
    let heights: [Change<'_>; 2] = [&|b| b.txdata[0] = with_other_script(&b.txdata[0]), &|_| ()];
    for change in heights {
        let answers = good.each_ref().map(|(rpc, good)| {
            let mut block = good.clone();
            change(&mut block);
            mine_again(&mut block, true);
            [submit(rpc, &block), submit(rpc, &block)]
        });
        assert_eq!(answers[0], answers[1]);
    }
    // Side chains, then preference.
    let tips = good.each_ref().map(|(rpc, _)| {
        let (_, rival) = block_of(rpc, Chain::Regtest, 7);
        let parent = rpc.call("getblockhash", &json!([102])).unwrap();
        let mut side = rival;
        side.header.prev_blockhash = parent.as_str().unwrap().parse().unwrap();
        let script = side.txdata[0].input[0].script_sig.to_bytes();
        // The height of the tip, one less than that of the template.
        let height = Builder::new().push_int(104).into_script().len();
        let lower = Builder::new().push_int(104).into_script().into_bytes();
        side.txdata[0].input[0].script_sig = ScriptBuf::from_bytes([&lower[..], &script[height..]].concat());
        mine_again(&mut side, true);
        submit(rpc, &side)
    });
    assert_eq!(tips[0], tips[1]);
    for (rpc, _) in &good {
        let unknown = "07".repeat(32);
        assert_eq!(refusal(rpc, "preciousblock", json!([unknown])), (-5, "Block not found".into()));
        assert_eq!(refusal(rpc, "getblockheader", json!([unknown])), (-5, "Block not found".into()));
        assert_eq!(refusal(rpc, "getblockhash", json!([9999])), (-8, "Block height out of range".into()));
        assert_eq!(refusal(rpc, "submitblock", json!(["00"])).0, -22);
        assert_eq!(refusal(rpc, "nothing", json!([])), (-32601, "Method not found".into()));
        assert_eq!(refusal(rpc, "getblockheader", json!(["07"])).0, -8);
    }
}

/// A coinbase for another height.
fn with_other_script(coinbase: &Transaction) -> Transaction {
    let mut other = coinbase.clone();
    let mut script = other.input[0].script_sig.to_bytes();
    script[1] ^= 1;
    other.input[0].script_sig = ScriptBuf::from_bytes(script);
    other
}

/// Every field that the simulated node's answers have, Core's have too, and the other way round where it matters.
#[test]
fn the_simulated_nodes_answers_have_the_fields_of_bitcoin_cores() {
    let core = busy_regtest(1);
    let sim = SimNode::start(SimNodeConfig { mempool: 3, ..SimNodeConfig::default() }).unwrap();
    sim.mine(101).unwrap();
    sim.add_transactions(3);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<String>>();
    let ask = |method: &str, params: &Value| [&core.rpc(), &sim.rpc()].map(|rpc| rpc.call(method, params).unwrap());
    let [real, simulated] = ask("getblocktemplate", &json!([{ "rules": ["segwit"] }]));
    assert_eq!(keys(&real), keys(&simulated));
    assert_eq!(keys(&real["transactions"][0]), keys(&simulated["transactions"][0]));
    for field in ["version", "sigoplimit", "sizelimit", "weightlimit", "noncerange", "mutable", "bits", "target"] {
        assert_eq!(real[field], simulated[field], "{field}");
    }
    for height in [0, 50, 101] {
        let headers = [&core.rpc(), &sim.rpc()].map(|rpc| {
            let hash = rpc.call("getblockhash", &json!([height])).unwrap();
            rpc.call("getblockheader", &json!([hash])).unwrap()
        });
        let known: Vec<String> = keys(&headers[1]);
        for key in &known {
            assert!(headers[0].get(key).is_some(), "{key} is no field of Bitcoin Core's");
        }
        for field in ["confirmations", "height", "chainwork", "bits", "versionHex"] {
            assert_eq!(headers[0][field], headers[1][field], "{field} at {height}");
        }
    }
    for method in ["getblockchaininfo", "getnetworkinfo", "getmempoolinfo"] {
        let [real, simulated] = ask(method, &json!([]));
        for key in keys(&simulated) {
            assert!(real.get(&key).is_some(), "{method}: {key} is no field of Bitcoin Core's");
        }
    }
    let [real, simulated] = ask("getblockcount", &json!([]));
    assert_eq!(real, simulated);
}
