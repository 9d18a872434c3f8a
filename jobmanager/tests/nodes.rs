//! Blocks to nodes (invariant B1): all at once, preferred over a rival, and honest about what became of them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sluice_jobmanager::Nodes;
use sluice_mining::Chain;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_testkit::simnode::{EVERY_METHOD, Refusal, SimNode, SimNodeConfig};
use sluice_testkit::work::solve_block;
use support::{GUARD, NEVER, bytes, sim};

fn node() -> SimNode {
    SimNode::start(SimNodeConfig { mempool: 5, ..SimNodeConfig::default() }).unwrap()
}

/// A block on a node's tip, of the first height, and its hash.
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

/// A block of the first height, to be preferred.
fn first(hash: [u8; 32], block: &Bytes) -> SentBlock {
    SentBlock { hash, height: 1, bytes: block.clone(), prefer: true }
}

#[test]
fn trap_15_a_rival_of_the_same_height_that_came_first_is_replaced() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    let rival = node.mine(1).unwrap()[0];
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    let results = nodes.submit(&first(hash, &block));
    assert!(results[0].accepted, "{results:?}");
    assert_eq!((results[0].answer.as_str(), results[0].preferred, results[0].active), ("inconclusive", true, true));
    assert_eq!(bytes(node.tip()), hash);
    let rival = bytes(rival).try_into().unwrap();
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Active { confirmations: 1 });
    assert_eq!(nodes.status(rival, 1).unwrap(), ChainStatus::Inactive { rival_confirmations: 1 });
    assert_eq!(nodes.status([7; 32], 1).unwrap(), ChainStatus::Unknown);
    let again = nodes.submit(&first(hash, &block));
    assert!(again[0].accepted && again[0].answer == "duplicate", "submission is idempotent: {again:?}");
}

#[test]
fn a_block_that_comes_too_late_is_kept_but_not_accepted() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    node.mine(2).unwrap();
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    let results = nodes.submit(&first(hash, &block));
    assert!(!results[0].accepted && results[0].reached && !results[0].active, "{results:?}");
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Inactive { rival_confirmations: 2 });
    assert_eq!(node.height(), 2);
}

/// The second of two blocks of ours at one height: the node keeps it beside the first.
#[test]
fn trap_15_a_block_whose_rival_is_ours_replaces_nothing() {
    let node = node();
    let ((ours, one), (hash, two)) = (block_on(&node, 1), block_on(&node, 2));
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    assert!(nodes.submit(&first(ours, &one))[0].active);
    for answer in ["inconclusive", "duplicate"] {
        let results = nodes.submit(&SentBlock { prefer: false, ..first(hash, &two) });
        assert_eq!((results[0].answer.as_str(), results[0].preferred, results[0].active), (answer, false, false));
        assert_eq!(bytes(node.tip()), ours);
    }
    assert_eq!(node.view().calls["preciousblock"], 1);
}

/// What became of a block is recorded with how long it took.
#[test]
fn results_carry_latencies_in_order() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    node.faults().delay("submitblock", Duration::from_millis(3));
    node.faults().delay("preciousblock", Duration::from_millis(3));
    let before = sluice_proto::EventTime::now().nanos();
    let result = Nodes::new(&[sim("a", &node)]).unwrap().submit(&first(hash, &block)).remove(0);
    assert!(result.accepted && result.preferred && result.active, "{result:?}");
    assert!(result.micros >= 3_000 && result.settled_micros >= result.micros + 3_000, "{result:?}");
    assert!((before..=sluice_proto::EventTime::now().nanos()).contains(&result.sent_ns));
    node.faults().refuse_blocks(Some("bad-txns"));
    let refused = Nodes::new(&[sim("a", &node)]).unwrap().submit(&first(hash, &block)).remove(0);
    assert_eq!((refused.settled_micros, refused.active, refused.accepted), (0, false, false));
}

/// One node hangs up, one refuses, one is slow: the good one has the block, and the slow one is not waited for.
#[test]
fn a_bad_node_does_not_hold_back_the_others() {
    let (good, slow, refusing, dead) = (node(), node(), node(), node());
    let (hash, block) = block_on(&good, 1);
    refusing.faults().refuse_blocks(Some("rejected"));
    dead.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    let configs = [sim("dead", &dead), sim("refusing", &refusing), sim("good", &good)];
    let nodes = Nodes::new(&configs).unwrap().waiting(GUARD);
    nodes.keep_warm(NEVER).unwrap();
    good.wait_until(GUARD, |view| view.calls.contains_key("uptime")).unwrap();
    let results = nodes.submit(&first(hash, &block));
    let names: Vec<(&str, bool, bool)> =
        results.iter().map(|result| (result.node.as_str(), result.reached, result.accepted)).collect();
    let expected = [("dead", false, false), ("refusing", true, false), ("good", true, true)];
    assert_eq!(names, expected, "{results:?}");
    assert_eq!(results[1].answer, "rejected");
    assert_eq!(nodes.status(hash, 1).unwrap(), ChainStatus::Active { confirmations: 1 });
    slow.faults().delay("submitblock", GUARD);
    let with_slow = [sim("slow", &slow), sim("good", &good)];
    let with_slow = Nodes::new(&with_slow).unwrap().waiting(Duration::from_millis(10));
    // Nor does the next block wait for the call that hangs.
    for calls in 1..=2 {
        let results = with_slow.submit(&first(hash, &block));
        assert_eq!(
            (&*results[0].answer, results[0].reached, &*results[1].answer),
            ("no answer yet", false, "duplicate")
        );
        slow.wait_until(GUARD, |view| view.calls.get("submitblock") == Some(&calls)).unwrap();
    }
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
    nodes.keep_warm(NEVER).unwrap();
    node.wait_until(GUARD, |view| view.calls.contains_key("uptime")).unwrap();
    let (hash, block) = block_on(&node, 1);
    // Long past the limit: the kept connection is closed.
    std::thread::sleep(idle * 20);
    let results = nodes.submit(&first(hash, &block));
    assert!(results[0].accepted, "{results:?}");
    assert_eq!(node.view().calls["submitblock"], 1);
}

/// Complaint 8: getblocktemplate held submitblock back on the one connection there was.
#[tokio::test(flavor = "multi_thread")]
async fn submitblock_does_not_wait_for_getblocktemplate() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    node.faults().delay("getblocktemplate", GUARD);
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    let log = support::log().await;
    let manager = support::start(&log, support::config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    node.wait_until(GUARD, |view| view.calls["getblocktemplate"] == 2).unwrap();
    let results = tokio::task::block_in_place(|| nodes.submit(&first(hash, &block)));
    assert!(results[0].active, "{results:?}");
    assert_eq!(manager.status().jobs, 0, "the template is still awaited");
}

/// The first block after hours goes out on a connection that is open.
#[test]
fn connections_for_blocks_are_kept_warm() {
    let node = node();
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    nodes.keep_warm(Duration::from_millis(5)).unwrap();
    node.wait_until(GUARD, |view| view.calls.get("uptime").is_some_and(|calls| *calls >= 5)).unwrap();
    assert_eq!(node.connections(), 1, "one connection for all of them");
}

#[test]
fn a_question_that_keeps_a_connection_warm_holds_no_block_back() {
    let node = node();
    let (hash, block) = block_on(&node, 1);
    node.faults().delay("uptime", GUARD);
    let nodes = Nodes::new(&[sim("a", &node)]).unwrap();
    nodes.keep_warm(Duration::from_millis(5)).unwrap();
    node.wait_until(GUARD, |view| view.calls.contains_key("uptime")).unwrap();
    assert!(nodes.submit(&first(hash, &block))[0].active);
    assert_eq!(node.view().calls["uptime"], 1, "it still hangs");
}
