//! The simulated node: blocks that `sluice-mining` makes are taken, each kind of wrong one is refused as Bitcoin Core
//! refuses it, chains reorganise, and what is on disk is found again.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash;
use bitcoin::{Amount, Block, BlockHash, OutPoint, ScriptBuf, Transaction, Txid};
use serde_json::{Value, json};
use sluice_mining::Chain;
use sluice_mining::block::{BlockTx, witness_commitment};
use sluice_testkit::rpc::Rpc;
use sluice_testkit::simnode::{EVERY_METHOD, Refusal, SimNode, SimNodeConfig};
use support::{block_of, mine_again, refusal, submit};

const GUARD: Duration = Duration::from_secs(60);

fn node(mempool: usize) -> SimNode {
    SimNode::start(SimNodeConfig { mempool, ..SimNodeConfig::default() }).unwrap()
}

/// A subscriber to a node's notices; they reach it once this returns.
fn subscriber(node: &SimNode) -> zmq::Socket {
    let socket = zmq::Context::new().socket(zmq::SUB).unwrap();
    socket.set_subscribe(b"").unwrap();
    socket.connect(node.zmq()).unwrap();
    // A subscription takes its time: blocks are made until the first one is heard of.
    let deadline = Instant::now() + GUARD;
    socket.set_rcvtimeo(50).unwrap();
    while socket.recv_multipart(0).is_err() {
        assert!(Instant::now() < deadline, "no notice at all");
        node.mine(1).unwrap();
    }
    while socket.recv_multipart(0).is_ok() {}
    socket.set_rcvtimeo(60_000).unwrap();
    socket
}

/// The next notice of a topic: body and number.
fn notice(socket: &zmq::Socket, topic: &[u8]) -> (Vec<u8>, u32) {
    loop {
        let parts = socket.recv_multipart(0).unwrap();
        assert_eq!(parts.len(), 3);
        if parts[0] == topic {
            return (parts[1].clone(), u32::from_le_bytes(parts[2][..].try_into().unwrap()));
        }
    }
}

fn shown(hash: BlockHash) -> Vec<u8> {
    let mut bytes = hash.to_byte_array().to_vec();
    bytes.reverse();
    bytes
}

#[test]
fn a_block_made_from_its_template_is_the_new_tip() {
    let node = node(40);
    let rpc = node.rpc();
    let (template, block) = block_of(&rpc, Chain::Regtest, 1);
    assert_eq!(template.transactions.len(), 40);
    let witnesses = template.transactions.iter().filter(|tx| tx.txid != tx.wtxid).count();
    assert!(witnesses > 10 && witnesses < 40, "some with and some without witness: {witnesses}");
    assert_eq!(submit(&rpc, &block), Value::Null);
    assert_eq!((node.tip(), node.height()), (block.block_hash(), 1));
    assert_eq!(node.block(&block.block_hash()).unwrap().as_ref(), &block);
    let accepted = node.accepted_blocks();
    assert_eq!((accepted.len(), accepted[0].hash, accepted[0].active), (1, block.block_hash(), true));
    assert_eq!(submit(&rpc, &block), json!("duplicate"));
    assert_eq!(node.view().mempool, 0, "what is in a block waits no longer");
    let (next, block) = block_of(&rpc, Chain::Regtest, 2);
    assert!(next.transactions.is_empty() && next.height == 2);
    assert_eq!(submit(&rpc, &block), Value::Null);
}

#[test]
fn a_template_says_what_it_holds() {
    let node = node(60);
    let template = node.rpc().call("getblocktemplate", &json!([{ "rules": ["segwit"] }])).unwrap();
    let transactions = template["transactions"].as_array().unwrap();
    let mut fees = 0;
    let mut dependent = 0;
    for (place, entry) in transactions.iter().enumerate() {
        let bytes = hex::decode(entry["data"].as_str().unwrap()).unwrap();
        let transaction: Transaction = bitcoin::consensus::deserialize(&bytes).unwrap();
        assert_eq!(entry["txid"], json!(transaction.compute_txid().to_string()));
        assert_eq!(entry["hash"], json!(transaction.compute_wtxid().to_string()));
        assert_eq!(entry["weight"], json!(transaction.weight().to_wu()));
        fees += entry["fee"].as_u64().unwrap();
        for parent in entry["depends"].as_array().unwrap() {
            let parent = parent.as_u64().unwrap() as usize;
            assert!(parent <= place, "parents come first, counted from 1");
            let txid: Txid = transactions[parent - 1]["txid"].as_str().unwrap().parse().unwrap();
            assert!(transaction.input.iter().any(|input| input.previous_output.txid == txid));
            dependent += 1;
        }
    }
    assert!(dependent > 0, "some spend from others");
    assert_eq!(template["coinbasevalue"], json!(50 * 100_000_000 + fees));
    for field in ["longpollid", "mintime", "curtime", "vbavailable", "sigoplimit", "default_witness_commitment"] {
        assert!(!template[field].is_null(), "{field}");
    }
    assert_eq!(refusal(&node.rpc(), "getblocktemplate", json!([{}])).0, -8);
    assert_eq!(refusal(&node.rpc(), "getblocktemplate", json!([])).0, -8);
}

/// Each change of a good block, and what Bitcoin Core says to it.
#[test]
fn wrong_blocks_are_refused_with_the_reason_that_bitcoin_core_gives() {
    let node = node(30);
    node.mine(3).unwrap();
    node.add_transactions(30);
    let rpc = node.rpc();
    let (_, good) = block_of(&rpc, Chain::Regtest, 1);
    let parent = node.block(&node.tip()).unwrap().header;
    let refused = |what: &str, change: &dyn Fn(&mut Block), merkle: bool, reason: &str| {
        let mut block = good.clone();
        change(&mut block);
        mine_again(&mut block, merkle);
        assert_eq!(submit(&rpc, &block), json!(reason), "{what}");
        assert_eq!(node.height(), 3, "{what}");
    };
    refused("more than subsidy and fees", &|b| b.txdata[0].output[0].value += Amount::ONE_SAT, true, "bad-cb-amount");
    refused("a header for other transactions", &|b| drop(b.txdata.pop()), false, "bad-txnmrklroot");
    refused("no commitment", &|b| drop(b.txdata[0].output.pop()), true, "unexpected-witness");
    refused("the last transaction is missing", &|b| drop(b.txdata.pop()), true, "bad-witness-merkle-match");
    let other_witness = |b: &mut Block| {
        let tx = b.txdata.iter_mut().skip(1).find(|tx| !tx.input[0].witness.is_empty()).unwrap();
        tx.input[0].witness.push([1]);
    };
    refused("a changed witness", &other_witness, true, "bad-witness-merkle-match");
    let reserved = |b: &mut Block| b.txdata[0].input[0].witness.push([0; 32]);
    refused("two reserved values", &reserved, true, "bad-witness-nonce-size");
    let height = |b: &mut Block| {
        let script = [&[0x55], &b.txdata[0].input[0].script_sig.as_bytes()[1..]].concat();
        b.txdata[0].input[0].script_sig = ScriptBuf::from_bytes(script);
    };
    refused("another height", &height, true, "bad-cb-height");
    refused("no coinbase", &|b| drop(b.txdata.remove(0)), true, "bad-cb-missing");
    refused("two coinbases", &|b| b.txdata.push(b.txdata[0].clone()), true, "bad-cb-multiple");
    refused("an unknown parent", &|b| b.header.prev_blockhash = BlockHash::all_zeros(), true, "prev-blk-not-found");
    refused("too early", &|b| b.header.time = parent.time - 3600, true, "time-too-old");
    refused("too late", &|b| b.header.time = parent.time + 3 * 3600, true, "time-too-new");
    let version = |b: &mut Block| b.header.version = bitcoin::block::Version::from_consensus(3);
    refused("an old version", &version, true, "bad-version(0x00000003)");
    let bits = |b: &mut Block| b.header.bits = bitcoin::CompactTarget::from_consensus(0x207f_fffe);
    refused("another target", &bits, true, "bad-diffbits");
    let locked = |b: &mut Block| {
        b.txdata[0].lock_time = bitcoin::absolute::LockTime::from_height(4).unwrap();
        b.txdata[0].input[0].sequence = bitcoin::Sequence::ZERO;
    };
    refused("locked until the next block", &locked, true, "bad-txns-nonfinal");
    let mut unsolved = good.clone();
    while unsolved.header.validate_pow(unsolved.header.target()).is_ok() {
        unsolved.header.nonce += 1;
    }
    assert_eq!(submit(&rpc, &unsolved), json!("high-hash"));
    assert_eq!(refusal(&rpc, "submitblock", json!(["00"])), (-22, "Block decode failed".into()));
    // A refused height counts against the hash; a refused witness does not.
    let mut wrong = good.clone();
    height(&mut wrong);
    mine_again(&mut wrong, true);
    assert_eq!(submit(&rpc, &wrong), json!("duplicate-invalid"));
    assert_eq!(submit(&rpc, &good), Value::Null, "and the good one is still taken");
}

/// Core adds the reserved value where a submitted block lacks it.
#[test]
fn a_coinbase_without_reserved_value_is_completed() {
    let node = node(5);
    let (_, mut block) = block_of(&node.rpc(), Chain::Regtest, 1);
    let complete = block.clone();
    block.txdata[0].input[0].witness.clear();
    assert_eq!(submit(&node.rpc(), &block), Value::Null);
    assert_eq!(node.block(&node.tip()).unwrap().as_ref(), &complete);
}

#[test]
fn transactions_are_spent_once() {
    let node = node(10);
    let rpc = node.rpc();
    let (_, first) = block_of(&rpc, Chain::Regtest, 1);
    assert_eq!(submit(&rpc, &first), Value::Null);
    let block_with = |transactions: &[Transaction], number: u64| {
        let mut template = support::template(&rpc, Chain::Regtest);
        let parse = |tx: &Transaction| BlockTx::parse(bitcoin::consensus::serialize(tx).into()).unwrap();
        template.transactions = transactions.iter().map(parse).collect();
        template.commitment = Some(witness_commitment(template.transactions.iter().map(|tx| tx.wtxid)));
        let block = support::solve(&support::job(&template, Chain::Regtest, number), &template.transactions);
        bitcoin::consensus::deserialize::<Block>(&block).unwrap()
    };
    let again = block_with(&first.txdata[1..], 2);
    assert_eq!(submit(&rpc, &again), json!("bad-txns-inputs-missingorspent"));
    let mut spending = first.txdata[1].clone();
    let coinbase = OutPoint { txid: first.txdata[0].compute_txid(), vout: 0 };
    spending.input[0].previous_output = coinbase;
    let young = block_with(std::slice::from_ref(&spending), 3);
    assert_eq!(submit(&rpc, &young), json!("bad-txns-premature-spend-of-coinbase"));
    spending.output[0].value = Amount::from_sat(51 * 100_000_000);
    node.mine(98).unwrap();
    let young = block_with(std::slice::from_ref(&spending), 4);
    assert_eq!(submit(&rpc, &young), json!("bad-txns-premature-spend-of-coinbase"), "100 are too few by one");
    node.mine(1).unwrap();
    let greedy = block_with(std::slice::from_ref(&spending), 5);
    assert_eq!(submit(&rpc, &greedy), json!("bad-txns-in-belowout"));
    spending.output[0].value = Amount::from_sat(49 * 100_000_000);
    let good = block_with(std::slice::from_ref(&spending), 6);
    assert_eq!(submit(&rpc, &good), Value::Null);
    assert_eq!(node.height(), 101);
}

#[test]
fn a_longer_chain_wins_and_a_rival_of_the_same_height_does_not() {
    let node = node(20);
    let rpc = node.rpc();
    let (_, ours) = block_of(&rpc, Chain::Regtest, 1);
    let (_, rival) = block_of(&rpc, Chain::Regtest, 2);
    assert_eq!(submit(&rpc, &ours), Value::Null);
    assert_eq!(submit(&rpc, &rival), json!("inconclusive"));
    assert_eq!(node.tip(), ours.block_hash());
    let header = |hash: BlockHash| rpc.call("getblockheader", &json!([hash.to_string()])).unwrap();
    assert_eq!(header(ours.block_hash())["confirmations"], json!(1));
    assert_eq!(header(rival.block_hash())["confirmations"], json!(-1));
    assert_eq!(rpc.call("preciousblock", &json!([rival.block_hash().to_string()])).unwrap(), Value::Null);
    assert_eq!(node.tip(), rival.block_hash());
    assert_eq!(rpc.call("preciousblock", &json!([ours.block_hash().to_string()])).unwrap(), Value::Null);
    assert_eq!(node.tip(), ours.block_hash());
    let mined = node.mine(2).unwrap();
    assert_eq!(header(ours.block_hash())["nextblockhash"], json!(mined[0].to_string()));
    let longer = node.reorg(3).unwrap();
    assert_eq!((node.height(), node.tip(), longer.len()), (4, longer[3], 4));
    assert_eq!(header(ours.block_hash())["confirmations"], json!(-1));
    assert!(!node.accepted_blocks()[0].active);
    assert_eq!(node.view().mempool, 20, "the transactions of the blocks that left wait again");
    let before = node.tip();
    let replaced = node.replace_tip().unwrap();
    assert_eq!((node.height(), node.tip()), (4, replaced));
    assert_ne!(before, replaced);
    assert_eq!(refusal(&rpc, "getblockhash", json!([5])), (-8, "Block height out of range".into()));
    assert_eq!(refusal(&rpc, "getblockheader", json!(["00".repeat(32)])), (-5, "Block not found".into()));
    assert_eq!(refusal(&rpc, "getwalletinfo", json!([])), (-32601, "Method not found".into()));
    assert!(node.reorg(5).is_err(), "there is nothing below the genesis block");
}

#[test]
fn notices_follow_the_tip() {
    let node = node(0);
    let socket = subscriber(&node);
    let mined = node.mine(2).unwrap();
    let (hash, first) = notice(&socket, b"hashblock");
    assert_eq!(hash, shown(mined[0]));
    let (hash, second) = notice(&socket, b"hashblock");
    assert_eq!((hash, second), (shown(mined[1]), first + 1));
    node.faults().silence_zmq(true);
    node.mine(1).unwrap();
    node.faults().clear();
    let longer = node.reorg(1).unwrap();
    let (left, _) = notice(&socket, b"sequence");
    assert_eq!(left[32], b'D', "the block that was not announced leaves the chain");
    assert_eq!(notice(&socket, b"hashblock").0, shown(longer[1]));
    node.add_transactions(1);
    let (added, _) = notice(&socket, b"sequence");
    assert_eq!((added.len(), added[32]), (41, b'A'));
}

#[test]
fn a_long_poll_ends_with_the_next_tip() {
    let node = node(3);
    let rpc = node.rpc();
    let ask = |id: Option<&Value>| {
        let mut request = json!({ "rules": ["segwit"] });
        request["longpollid"] = id.cloned().unwrap_or_default();
        rpc.call("getblocktemplate", &json!([request])).unwrap()
    };
    let first = ask(None);
    let next = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(Some(&first["longpollid"])));
        node.wait_until(GUARD, |view| view.calls["getblocktemplate"] == 2).unwrap();
        node.mine(1).unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(next["previousblockhash"], json!(node.tip().to_string()));
}

#[test]
fn a_chain_on_disk_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        SimNodeConfig { dir: Some(dir.path().to_owned()), mempool: 12, nbits: 0x2007_ffff, ..SimNodeConfig::default() };
    let (tip, ours) = {
        let node = SimNode::start(config.clone()).unwrap();
        node.mine(2).unwrap();
        let (_, ours) = block_of(&node.rpc(), Chain::Regtest, 1);
        assert_eq!(submit(&node.rpc(), &ours), Value::Null);
        assert!(SimNode::start(config.clone()).is_err(), "one node at a time");
        (node.replace_tip().unwrap(), ours.block_hash())
    };
    let file = dir.path().join("blocks.dat");
    {
        let node = SimNode::start(config.clone()).unwrap();
        assert_eq!((node.height(), node.tip()), (3, tip));
        let accepted = node.accepted_blocks();
        assert_eq!((accepted.len(), accepted[0].hash, accepted[0].active), (1, ours, false));
        let (_, block) = block_of(&node.rpc(), Chain::Regtest, 2);
        assert_eq!(submit(&node.rpc(), &block), Value::Null);
        assert_eq!(node.height(), 4);
    }
    // A crash in the middle of a record.
    let whole = std::fs::read(&file).unwrap();
    for torn in [1, 5, 13, 100] {
        OpenOptions::new().append(true).open(&file).unwrap().write_all(&whole[..torn]).unwrap();
        let node = SimNode::start(config.clone()).unwrap();
        assert_eq!(node.height(), 4);
        drop(node);
        assert_eq!(std::fs::read(&file).unwrap(), whole, "cut off");
    }
    let other = SimNodeConfig { nbits: 0x207f_ffff, ..config.clone() };
    let error = format!("{:#}", SimNode::start(other).err().unwrap());
    assert!(error.contains("other settings") && error.contains("bad-diffbits"), "{error}");
    let mut damaged = whole;
    damaged[40] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let error = format!("{:#}", SimNode::start(config).err().unwrap());
    assert!(error.contains("damaged") && error.contains("checksum"), "{error}");
}

#[test]
fn faults_come_and_go() {
    let node = node(0);
    let rpc = node.rpc();
    let tip = |rpc: &Rpc| rpc.call("getbestblockhash", &json!([])).map_err(|error| format!("{error:#}"));
    node.faults().refuse("getbestblockhash", Some(Refusal::Error(-28, "Loading block index…".into())));
    assert!(tip(&rpc).unwrap_err().contains("-28"));
    node.faults().refuse("getbestblockhash", Some(Refusal::Close));
    assert!(tip(&rpc).unwrap_err().contains("without an answer"));
    node.faults().refuse("getbestblockhash", None);
    node.faults().refuse(EVERY_METHOD, Some(Refusal::Http(503)));
    assert!(tip(&rpc).unwrap_err().contains("503"));
    node.faults().clear();
    let begun = Instant::now();
    node.faults().delay("getbestblockhash", Duration::from_millis(80));
    assert!(tip(&rpc).is_ok() && begun.elapsed() >= Duration::from_millis(80));
    let (_, block) = block_of(&rpc, Chain::Regtest, 1);
    node.faults().refuse_blocks(Some("rejected"));
    assert_eq!(submit(&rpc, &block), json!("rejected"));
    assert_eq!(node.height(), 0);
    node.faults().clear();
    node.stick(true).unwrap();
    node.mine(2).unwrap();
    node.reorg(0).unwrap();
    assert_eq!(node.height(), 0, "nothing arrives");
    assert_eq!(submit(&rpc, &block), Value::Null, "but it takes blocks on its old tip");
    node.stick(false).unwrap();
    assert_eq!(node.height(), 2, "the others were ahead");
    let wrong = Rpc::new(node.rpc_address(), "sluice:wrong");
    assert!(format!("{:#}", wrong.call("getblockcount", &json!([])).unwrap_err()).contains("401"));
}

#[test]
fn other_miners_and_transactions_come_by_themselves() {
    let config = SimNodeConfig {
        network: Chain::Signet,
        mempool: 4,
        arrivals: Some(Duration::from_millis(1)),
        foreign: Some(Duration::from_millis(1)),
        ..SimNodeConfig::default()
    };
    let node = SimNode::start(config).unwrap();
    node.wait_until(GUARD, |view| view.height >= 5).unwrap();
    let hash = (1..=node.height()).filter_map(|height| node.block_hash(height));
    let transactions: usize = hash.map(|hash| node.block(&hash).unwrap().txdata.len() - 1).sum();
    assert!(transactions >= 4);
    let rules = json!([{ "rules": ["segwit"] }]);
    assert!(refusal(&node.rpc(), "getblocktemplate", rules).1.contains("signet rule set"));
    let info = node.rpc().call("getblockchaininfo", &json!([])).unwrap();
    assert_eq!((&info["chain"], &info["initialblockdownload"]), (&json!("signet"), &json!(false)));
}

/// Several calls on one connection, in one piece and in many.
#[test]
fn connections_are_kept_alive() {
    use std::io::Read;
    let node = node(0);
    let body = r#"{"jsonrpc":"2.0","id":7,"method":"getblockcount","params":[]}"#;
    let token = "c2x1aWNlOnNpbXVsYXRlZA==";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(node.rpc_address()).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.write_all(request.repeat(3).as_bytes()).unwrap();
    for byte in request.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    stream
        .write_all(b"GET / HTTP/1.1\r\nAuthorization: Basic c2x1aWNlOnNpbXVsYXRlZA==\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 4, "{answers}");
    assert_eq!(answers.matches(r#"{"id":7,"jsonrpc":"2.0","result":0}"#).count(), 4, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 405").count(), 1, "{answers}");
    let batch = json!([{ "id": 1, "method": "getblockcount" }, { "id": 2, "method": "nothing" }]);
    let head = format!(
        "Authorization: Basic {token}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        batch.to_string().len()
    );
    let mut stream = std::net::TcpStream::connect(node.rpc_address()).unwrap();
    stream.write_all(format!("POST / HTTP/1.1\r\n{head}{batch}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let list: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&list[0]["result"], &list[1]["error"]["code"]), (&json!(0), &json!(-32601)));
    assert_eq!(serialize_hex(&node.block(&node.tip()).unwrap().header).len(), 160);
}
