//! Blocks to nodes (invariant B1): all at once, preferred over a rival, and honest about what became of them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sluice_jobmanager::Nodes;
use sluice_mining::Chain;
use sluice_mining::node::{BlockNodes, ChainStatus};
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_testkit::simnode::{EVERY_METHOD, Refusal, SimNode, SimNodeConfig};
use sluice_testkit::work::solve_block;
use support::{GUARD, bytes, sim};

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { mempool: 5, ..SimNodeConfig::default() }).unwrap()
}

/// A block on a node's tip, and its hash.
fn block_on(node: &SimNode, number: u64) -> ([u8; 32], Bytes) {
    let template = node.rpc().call("getblocktemplate", &json!([{ "rules": ["segwit"] }])).unwrap();
    let template = Template::from_gbt(&template.to_string()).unwrap();
    let params = JobParams {
        job_id: number,
        template_id: 1,
        template_clock: 1,
        payout: support::config(Chain::Regtest, Vec::new()).payout,
        tag: b"/sluice test/",
        source_tag: number.to_be_bytes(),
        version_mask: 0x1fff_e000,
        stale_grace_ms: 0,
        keep_ms: 0,
        clean: true,
        chain: Chain::Regtest,
    };
    let job = build_job(&template, &params).unwrap();
    let block = solve_block(&job, 1, &template.transactions).unwrap();
    (sluice_mining::double_sha256(&block[..80]), block.into())
}

#[test]
fn a_rival_of_the_same_height_that_came_first_is_replaced() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    let rival = node.mine(1).unwrap()[0];
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    let results = nodes.submit(hash, &block);
    assert!(results[0].accepted, "{results:?}");
    assert_eq!(results[0].answer, "inconclusive");
    assert_eq!(bytes(node.tip()), hash);
    let rival = bytes(rival).try_into().unwrap();
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Active { confirmations: 1 });
    assert_eq!(nodes.status(rival, 1).unwrap(), ChainStatus::Inactive { rival_confirmations: 1 });
    assert_eq!(nodes.status([7; 32], 1).unwrap(), ChainStatus::Unknown);
    let again = nodes.submit(hash, &block);
    assert!(again[0].accepted && again[0].answer == "duplicate", "submission is idempotent: {again:?}");
}

#[test]
fn a_block_that_comes_too_late_is_kept_but_not_accepted() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    node.mine(2).unwrap();
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    let results = nodes.submit(hash, &block);
    assert!(!results[0].accepted && results[0].reached, "{results:?}");
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Inactive { rival_confirmations: 2 });
    assert_eq!(node.height(), 2);
}

/// One node hangs up, one refuses, one is slow: the good one has the block before the slow one has answered.
#[test]
fn a_bad_node_does_not_hold_back_the_others() {
    let (good, slow, refusing, dead) = (node(), node(), node(), node());
    let (hash, block) = block_on(&good, 1);
    slow.faults().delay("submitblock", GUARD);
    refusing.faults().refuse_blocks(Some("rejected"));
    dead.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    let configs = [sim("dead", &dead), sim("slow", &slow), sim("refusing", &refusing), sim("good", &good)];
    let nodes = Nodes::new(&configs).unwrap();
    nodes.warm();
    let results = std::thread::scope(|scope| {
        let sent = scope.spawn(|| nodes.submit(hash, &block));
        slow.wait_until(GUARD, |view| view.calls.contains_key("submitblock")).unwrap();
        good.wait_until(GUARD, |view| view.accepted == 1).unwrap();
        assert!(!sent.is_finished(), "the slow node has not answered");
        slow.faults().clear();
        drop(slow);
        sent.join().unwrap()
    });
    let names: Vec<(&str, bool, bool)> =
        results.iter().map(|result| (result.node.as_str(), result.reached, result.accepted)).collect();
    let expected = [("dead", false, false), ("slow", false, false), ("refusing", true, false), ("good", true, true)];
    assert_eq!(names, expected, "{results:?}");
    assert_eq!(results[2].answer, "rejected");
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Active { confirmations: 1 });
    good.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    refusing.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    let error = nodes.status(hash, 1).unwrap_err();
    assert!(error.contains("good") && !error.contains("simulated"), "never the credentials: {error}");
}

/// A node closes connections that are idle; the first block after that still goes out.
#[test]
fn a_connection_that_the_node_has_closed_is_made_again() {
    let idle = Duration::from_millis(10);
    let node = SimNode::start(SimNodeConfig { idle, mempool: 2, ..SimNodeConfig::default() }).unwrap();
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    nodes.warm();
    let (hash, block) = block_on(&node, 1);
    // Long past the limit: the kept connection is closed.
    std::thread::sleep(idle * 20);
    let results = nodes.submit(hash, &block);
    assert!(results[0].accepted, "{results:?}");
    assert_eq!(node.view().calls["submitblock"], 1);
}
