//! What the jobmanager notices by itself: nodes that stand still, notices that do not come, fees that grow.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, SystemTime};

use sluice_jobmanager::{JobManager, JobManagerConfig, NodeConfig, NodeState, NodeStatus};
use sluice_mining::Chain;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::simnode::{EVERY_METHOD, Refusal, SimNode};
use support::{GUARD, NEVER, Reader, bytes, config, log, node, relay, sim, start, status_until, until_heard};

/// Above the whole second by which the time of a template may seem to be late.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Without a ZMQ endpoint.
fn deaf(name: &str, node: &SimNode) -> NodeConfig {
    NodeConfig { zmq: None, ..sim(name, node) }
}

fn of(manager: &JobManager, name: &str) -> NodeStatus {
    manager.status().nodes.into_iter().find(|node| node.name == name).unwrap()
}

fn is_stuck(node: &NodeStatus) -> bool {
    matches!(node.state, NodeState::Stuck { .. })
}

/// Its tip stays behind: it is told, and not chosen even where no other node answers, until it has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_node_is_noticed_and_not_chosen() {
    let (first, second, log) = (node(4), node(8), log().await);
    first.stick(true).unwrap();
    let nodes = vec![sim("first", &first), sim("second", &second)];
    let settings = JobManagerConfig { stuck_after: STUCK_AFTER, ..config(Chain::Regtest, nodes) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    let tip = *second.reorg(0).unwrap().last().unwrap();
    reader.job_until(|job| job.prev_hash == bytes(tip) && job.segwit).await;
    status_until(&manager, |status| is_stuck(&status.nodes[0])).await;
    let status = of(&manager, "first");
    let NodeState::Stuck { why, .. } = &status.state else { panic!("{status:?}") };
    assert_eq!(why, "its tip has height 0, others have 1");
    assert_eq!((status.stuck, status.chosen, status.height), (1, false, 0));
    assert!(of(&manager, "second").chosen);
    second.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    status_until(&manager, |status| matches!(status.nodes[1].state, NodeState::Failed { .. })).await;
    assert!(!of(&manager, "first").chosen, "its blocks would be worth nothing");
    first.stick(false).unwrap();
    relay(&second, &first);
    status_until(&manager, |status| status.nodes[0].state == NodeState::Ok && status.nodes[0].chosen).await;
    let next = *first.reorg(0).unwrap().last().unwrap();
    let job = reader.job_until(|job| job.prev_hash == bytes(next)).await;
    assert_eq!((job.height, job.clean), (3, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_templates_stand_still_is_noticed_and_left() {
    let (first, second, log) = (node(4), node(8), log().await);
    let nodes = vec![sim("first", &first), sim("second", &second)];
    let hour_ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 3600;
    first.faults().stop_clock(Some(hour_ago));
    let refresh = Duration::from_millis(30);
    let settings = JobManagerConfig { refresh, stuck_after: STUCK_AFTER, ..config(Chain::Regtest, nodes) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    let job = reader.job_until(|job| job.merkle_branch.len() == 4).await;
    assert_eq!(reader.transactions(&job).await.len(), 8, "of the second node");
    let status = status_until(&manager, |status| is_stuck(&status.nodes[0])).await;
    let NodeState::Stuck { why, .. } = &status.nodes[0].state else { panic!("{status:?}") };
    assert!(why.contains(&format!("keep the time {hour_ago}")), "{why}");
    first.faults().clear();
    reader.job_until(|job| job.merkle_branch.len() == 3).await;
    status_until(&manager, |status| status.nodes[0].state == NodeState::Ok).await;
}

/// The next jobs are an empty one on this tip and then a full one.
async fn empty_then_full(reader: &mut Reader, tip: Vec<u8>) {
    let empty = reader.job_until(|job| job.prev_hash == tip).await;
    let full = reader.job_until(|job| job.segwit).await;
    assert!(empty.clean && !empty.segwit && !full.clean && full.prev_hash == tip);
}

/// The node answers the longpoll; the poll never comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_longpoll_tells_of_a_new_tip_where_there_is_no_zmq() {
    let (node, log) = (node(0), log().await);
    let settings = JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, vec![deaf("a", &node)]) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    for _ in 0..3 {
        empty_then_full(&mut reader, bytes(node.mine(1).unwrap()[0])).await;
    }
    let status = of(&manager, "a");
    assert!(status.longpoll && status.notices == 0);
    let latency = manager.status().tip_latency;
    assert_eq!((latency.count(), manager.status().tips), (4, 4));
}

/// A template may come before its node tells the tip it is on. That is no reason either not to hear the other nodes.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_template_does_not_decide_for_nodes_that_have_said_nothing_yet() {
    let (quick, slow, log) = (node(0), node(0), log().await);
    quick.mine(1).unwrap();
    relay(&quick, &slow);
    slow.mine(1).unwrap();
    quick.faults().delay("getbestblockhash", Duration::from_millis(100));
    slow.faults().delay(EVERY_METHOD, Duration::from_millis(600));
    let nodes = vec![deaf("quick", &quick), sim("slow", &slow)];
    let _manager = start(&log, JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, nodes) }, 1).await;
    assert_eq!(Reader::new(&log).job().await.prev_hash, bytes(slow.tip()), "the chain with the most work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longpoll_of_bitcoin_core_tells_of_a_new_tip() {
    let script = config(Chain::Regtest, Vec::new()).payout;
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    node.generate(2, &script).unwrap();
    let log = log().await;
    let core = NodeConfig { name: "core".into(), rpc: node.rpc_url(), auth: node.auth().to_owned(), zmq: None };
    let settings = JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, vec![core]) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    for _ in 0..3 {
        empty_then_full(&mut reader, bytes(node.generate(1, &script).unwrap()[0])).await;
    }
    assert!(of(&manager, "core").longpoll);
}

/// ZMQ that is there but silent: the poll finds that out.
#[tokio::test(flavor = "multi_thread")]
async fn a_longpoll_steps_in_for_silent_zmq_until_that_speaks_again() {
    let (node, log) = (node(0), log().await);
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    until_heard(&manager, "a", || drop(node.mine(1).unwrap())).await;
    status_until(&manager, |status| !status.nodes[0].longpoll && status.height == node.height() + 1).await;
    node.faults().silence_zmq(true);
    node.mine(1).unwrap();
    status_until(&manager, |status| status.nodes[0].longpoll).await;
    node.faults().silence_zmq(false);
    node.mine(1).unwrap();
    status_until(&manager, |status| !status.nodes[0].longpoll).await;
}

/// `sequence` numbers show what is missing; the tip is asked for at once, since the poll never comes.
#[tokio::test(flavor = "multi_thread")]
async fn p1_lost_notices_are_counted_and_made_up_for() {
    let (node, log) = (node(0), log().await);
    let settings = JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, vec![sim("a", &node)]) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    until_heard(&manager, "a", || drop(node.mine(1).unwrap())).await;
    // Both topics are subscribed to by now, so that this block is heard of by both.
    let tip = node.mine(1).unwrap()[0];
    reader.job_until(|job| job.prev_hash == bytes(tip) && job.segwit).await;
    assert_eq!(of(&manager, "a").lost, 0);
    node.faults().lose_zmq(true);
    let tip = node.mine(1).unwrap()[0];
    node.faults().clear();
    assert_eq!(manager.status().height, node.height(), "nobody has told");
    // A transaction is told by `sequence` too, and its number is not the next one.
    node.add_transactions(1);
    let job = reader.job_until(|job| job.prev_hash == bytes(tip)).await;
    assert_eq!(job.height, node.height() + 1);
    assert_eq!(of(&manager, "a").lost, 1);
}

/// The label `D` of `sequence`: with the poll that never comes, a tip that is taken back is known by it alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_is_heard() {
    let script = config(Chain::Regtest, Vec::new()).payout;
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    node.generate(3, &script).unwrap();
    let log = log().await;
    let core =
        NodeConfig { name: "core".into(), rpc: node.rpc_url(), auth: node.auth().to_owned(), zmq: Some(node.zmq()) };
    let manager = start(&log, JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, vec![core]) }, 1).await;
    let mut reader = Reader::new(&log);
    until_heard(&manager, "core", || drop(node.generate(1, &script).unwrap())).await;
    // Both topics are subscribed to by now.
    let tip = node.generate(1, &script).unwrap()[0];
    let height = node.height().unwrap();
    reader.job_until(|job| job.prev_hash == bytes(tip) && job.segwit).await;
    node.call("invalidateblock", serde_json::json!([tip.to_string()])).unwrap();
    let back = reader.job_until(|job| job.prev_hash != bytes(tip)).await;
    assert_eq!((back.height, back.clean), (height, true));
    assert_eq!(of(&manager, "core").disconnected, 1);
}

/// A job comes before its time once the fees have grown enough, not before.
#[tokio::test(flavor = "multi_thread")]
async fn grown_fees_bring_a_new_job() {
    let (node, log) = (node(100), log().await);
    let nodes = vec![deaf("a", &node)];
    let fee_poll = Duration::from_millis(10);
    let settings = JobManagerConfig { refresh_fees: 20, fee_poll, ..config(Chain::Regtest, nodes) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    let first = reader.job().await;
    let fees = |job: &sluice_proto::v1::Job| job.coinbase_value - 5_000_000_000;
    node.add_transactions(1);
    let asked = node.view().calls["getblocktemplate"];
    node.wait_until(GUARD, |view| view.calls["getblocktemplate"] >= asked + 3).unwrap();
    assert!(!reader.has_job().await, "one in a hundred is not worth a job");
    node.add_transactions(60);
    let job = reader.job().await;
    assert!(!job.clean && job.prev_hash == first.prev_hash);
    assert!(fees(&job) * 100 >= fees(&first) * 120, "{} after {}", fees(&job), fees(&first));
    assert_eq!(reader.transactions(&job).await.len(), 161);
    status_until(&manager, |status| status.fee_jobs >= 1).await;
}

/// Firmware limits the coinbase: no job is better than one that miners cannot take.
#[tokio::test(flavor = "multi_thread")]
async fn quirk_a_coinbase_above_the_limit_is_refused() {
    let (node, log) = (node(0), log().await);
    let settings = JobManagerConfig { coinbase_limit: 100, ..config(Chain::Regtest, vec![sim("a", &node)]) };
    let manager = start(&log, settings, 1).await;
    let cause = tokio::time::timeout(GUARD, manager.failed()).await.unwrap();
    assert!(cause.contains("coinbase_limit is 100"), "{cause}");
    assert!(!Reader::new(&log).has_job_after_genesis().await);
}

/// No call to a node stands between a notice and the empty job but the one for its header: a template that hangs holds
/// back the full job only.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_hangs_does_not_hold_back_the_empty_job() {
    let (node, log) = (node(0), log().await);
    let refresh = Duration::from_millis(20);
    let settings = JobManagerConfig { poll: NEVER, refresh, ..config(Chain::Regtest, vec![sim("a", &node)]) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    until_heard(&manager, "a", || drop(node.mine(1).unwrap())).await;
    let tip = bytes(node.tip());
    reader.job_until(|job| job.prev_hash == tip && job.segwit).await;
    node.faults().delay("getblocktemplate", GUARD);
    let asked = node.view().calls["getblocktemplate"];
    node.wait_until(GUARD, |view| view.calls["getblocktemplate"] > asked).unwrap();
    let tip = bytes(node.mine(1).unwrap()[0]);
    let empty = reader.job_until(|job| job.prev_hash == tip).await;
    assert!(empty.clean && !empty.segwit);
}
