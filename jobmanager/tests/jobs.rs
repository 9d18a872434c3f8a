//! The jobmanager against simulated nodes: jobs follow tips, templates and time; nodes fail and come back.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_jobmanager::{JobManager, NodeState, Nodes};
use sluice_log::{Log, Partition};
use sluice_mining::Chain;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_proto::v1::{Coordinates, Envelope, Job};
use sluice_proto::{Body, Epoch, EventTime};
use sluice_testkit::simnode::{EVERY_METHOD, Refusal};
use sluice_testkit::work::solve_block;
use sluice_topology::runtime::Owners;
use support::{GUARD, NEVER, Reader, bytes, config, log, node, relay, sim, start, status_until, until_heard};

fn ready(manager: &JobManager, name: &str) -> bool {
    manager.status().nodes.iter().any(|node| node.name == name && node.state == NodeState::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_job_is_the_nodes_template_and_makes_a_block_that_the_node_takes() {
    let (node, log) = (node(50), log().await);
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    let mut reader = Reader::new(&log);
    let job = reader.job().await;
    assert_eq!((job.height, job.prev_hash.to_vec(), job.clean), (1, bytes(node.tip()), true));
    assert_eq!((job.version_mask, job.stale_grace_ms, job.keep_ms), (0x1fff_e000, 2_000, 300_000));
    assert_eq!(job.network, "regtest");
    let template = node.rpc().call("getblocktemplate", &json!([{ "rules": ["segwit"] }])).unwrap();
    assert_eq!(json!(job.coinbase_value), template["coinbasevalue"]);
    let transactions = reader.transactions(&job).await;
    let hex: Vec<Value> = transactions.iter().map(|tx| json!(hex::encode(&tx.data))).collect();
    let said: Vec<Value> = template["transactions"].as_array().unwrap().iter().map(|tx| tx["data"].clone()).collect();
    assert_eq!(hex, said, "the chunks hold the template's transactions, in its order");
    let block = Bytes::from(solve_block(&job, 0x0100_0001, &transactions).unwrap());
    let hash = sluice_mining::double_sha256(&block[..80]);
    let (config, nodes) = (sim("a", &node), Nodes::new(&[sim("a", &node)]).unwrap());
    let sent = SentBlock { hash, height: 1, bytes: block, prefer: true };
    let results = tokio::task::block_in_place(|| nodes.submit(&sent));
    assert!(results[0].accepted && results[0].reached && results[0].node == config.name, "{results:?}");
    assert_eq!(bytes(node.tip()), hash);
    let status = tokio::task::block_in_place(|| nodes.status(hash, 1)).unwrap();
    assert_eq!(status, ChainStatus::Active { confirmations: 1 });
    let status = status_until(&manager, |status| status.height == 2).await;
    assert_eq!(status.nodes[0].state, NodeState::Ok);
    assert_eq!((status.nbits, status.tips), (0x207f_ffff, 2));
}

/// With a poll that never comes, only the notice can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_notice_gives_an_empty_job_at_once_and_then_the_full_one() {
    let (node, log) = (node(0), log().await);
    let settings = config(Chain::Regtest, vec![sim("a", &node)]);
    let manager = start(&log, sluice_jobmanager::JobManagerConfig { poll: NEVER, ..settings }, 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    until_heard(&manager, "a", || drop(node.mine(1).unwrap())).await;
    // Only a full job has a witness commitment; with it, nothing is under way any more.
    let tip = bytes(node.tip());
    reader.job_until(|job| job.prev_hash == tip && job.segwit).await;
    node.add_transactions(30);
    // A block without transactions, so that the thirty go on waiting.
    let tip = *node.reorg(0).unwrap().last().unwrap();
    let empty = reader.job_until(|job| job.prev_hash == bytes(tip)).await;
    assert_eq!((empty.prev_hash.to_vec(), empty.height, empty.clean), (bytes(tip), node.height() + 1, true));
    assert_eq!((empty.template_id, empty.template_clock, empty.merkle_branch.len()), (0, 0, 0));
    assert!(!empty.segwit);
    let full = reader.job().await;
    assert_eq!((full.prev_hash.to_vec(), full.height, full.clean), (bytes(tip), node.height() + 1, false));
    assert_eq!(reader.transactions(&full).await.len(), 30);
    assert!(full.job_id > empty.job_id && full.coinbase_value > empty.coinbase_value);
    assert!(empty.min_ntime >= node.block(&tip).unwrap().header.time.min(full.min_ntime));
    assert_eq!(empty.min_ntime, full.min_ntime, "the median time is the node's");
    // The empty job is as good as the full one.
    let block = solve_block(&empty, 0x0100_0001, &[]).unwrap();
    assert_eq!(node.rpc().call("submitblock", &json!([hex::encode(block)])).unwrap(), Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_finds_a_tip_whose_notice_was_lost() {
    let (node, log) = (node(10), log().await);
    node.faults().silence_zmq(true);
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    let tip = node.mine(1).unwrap()[0];
    let job = reader.job().await;
    assert_eq!((job.prev_hash.to_vec(), job.clean, job.template_id), (bytes(tip), true, 0));
    assert_eq!(manager.status().nodes[0].notices, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timer_brings_new_transactions_and_sends_each_once() {
    let (node, log) = (node(20), log().await);
    let settings = config(Chain::Regtest, vec![sim("a", &node)]);
    let refresh = Duration::from_millis(30);
    let _manager = start(&log, sluice_jobmanager::JobManagerConfig { refresh, ..settings }, 1).await;
    let mut reader = Reader::new(&log);
    let first = reader.job().await;
    let (chunks, fresh) = reader.chunks(&first).await;
    assert!(chunks[0].full && fresh == 20);
    let second = reader.job().await;
    assert!(!second.clean && second.prev_hash == first.prev_hash);
    assert_eq!(second.template_id, first.template_id, "nothing new: the same template");
    assert_ne!(second.coinbase1, first.coinbase1, "but other work");
    node.add_transactions(5);
    let third = reader.job_until(|job| job.template_id != first.template_id).await;
    let (chunks, fresh) = reader.chunks(&third).await;
    assert!(!chunks[0].full && fresh <= 5, "{fresh} were sent anew");
    let all = reader.job_until(|job| job.merkle_branch.len() == 5).await;
    assert_eq!(reader.transactions(&all).await.len(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_shows_in_the_status_until_it_answers_again() {
    let (node, log) = (node(3), log().await);
    node.faults().refuse(EVERY_METHOD, Some(Refusal::Error(-28, "Loading block index…".into())));
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    let error = |state: &NodeState| match state {
        NodeState::Failed { error, .. } => error.clone(),
        _ => String::new(),
    };
    status_until(&manager, |status| error(&status.nodes[0].state).contains("Loading block index")).await;
    assert_eq!(manager.status().jobs, 0);
    node.faults().clear();
    let mut reader = Reader::new(&log);
    reader.job().await;
    status_until(&manager, |status| status.nodes[0].state == NodeState::Ok).await;
    // Answers about the tip do not hide that there are no templates.
    node.faults().refuse("getblocktemplate", Some(Refusal::Http(503)));
    let tip = node.mine(1).unwrap()[0];
    let empty = reader.job().await;
    assert_eq!((empty.prev_hash.to_vec(), empty.template_id), (bytes(tip), 0), "the empty job needs no template");
    status_until(&manager, |status| error(&status.nodes[0].state).contains("503")).await;
    let asked = node.view().calls["getblocktemplate"];
    node.wait_until(GUARD, |view| view.calls["getblocktemplate"] > asked).unwrap();
    assert_ne!(manager.status().nodes[0].state, NodeState::Ok);
    node.faults().refuse("getblocktemplate", Some(Refusal::Close));
    status_until(&manager, |status| error(&status.nodes[0].state).contains("does not answer")).await;
    node.faults().clear();
    let full = reader.job().await;
    assert_eq!((full.prev_hash.to_vec(), full.clean), (bytes(tip), false), "at once, not at the next refresh");
    status_until(&manager, |status| status.nodes[0].state == NodeState::Ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_node_steps_in_and_the_first_takes_over_again() {
    let (first, second, log) = (node(4), node(8), log().await);
    let settings = config(Chain::Regtest, vec![sim("first", &first), sim("second", &second)]);
    let refresh = Duration::from_millis(30);
    let manager = start(&log, sluice_jobmanager::JobManagerConfig { refresh, ..settings }, 1).await;
    let mut reader = Reader::new(&log);
    let job = reader.job().await;
    assert_eq!(reader.transactions(&job).await.len(), 4, "of the first node");
    status_until(&manager, |_| ready(&manager, "second")).await;
    first.faults().refuse(EVERY_METHOD, Some(Refusal::Close));
    let job = reader.job_until(|job| job.merkle_branch.len() == 4).await;
    assert_eq!(reader.transactions(&job).await.len(), 8, "of the second node");
    assert!(!job.clean, "the tip is the same");
    status_until(&manager, |_| !ready(&manager, "first") && ready(&manager, "second")).await;
    let tip = *second.reorg(0).unwrap().last().unwrap();
    let job = reader.job_until(|job| job.clean).await;
    assert_eq!(job.prev_hash.to_vec(), bytes(tip), "a tip that only the second node knows");
    first.faults().clear();
    relay(&second, &first);
    reader.job_until(|job| job.merkle_branch.len() == 3).await;
    status_until(&manager, |_| ready(&manager, "first")).await;
}

/// A node that answers but has fallen behind is worse than one that has not.
#[tokio::test(flavor = "multi_thread")]
async fn templates_come_from_the_chain_with_the_most_work() {
    let (first, second, log) = (node(4), node(8), log().await);
    let manager = start(&log, config(Chain::Regtest, vec![sim("first", &first), sim("second", &second)]), 1).await;
    let mut reader = Reader::new(&log);
    assert_eq!(reader.job().await.prev_hash, bytes(first.tip()));
    first.stick(true).unwrap();
    second.reorg(0).unwrap();
    let tip = *second.reorg(0).unwrap().last().unwrap();
    let job = reader.job_until(|job| job.prev_hash == bytes(tip) && job.template_id != 0).await;
    assert_eq!(reader.transactions(&job).await.len(), 8);
    status_until(&manager, |status| status.height == 3).await;
    // The first is ahead again, with blocks of its own.
    first.mine(3).unwrap();
    first.stick(false).unwrap();
    let job = reader.job_until(|job| job.prev_hash == bytes(first.tip())).await;
    assert_eq!((job.height, job.clean), (4, true));
    status_until(&manager, |_| ready(&manager, "first") && ready(&manager, "second")).await;
}

/// Two jobmanagers on one node, and two starts of one: miners with equal extranonces never do the same work.
#[tokio::test(flavor = "multi_thread")]
async fn trap_08_no_two_sources_and_starts_make_one_coinbase() {
    let node = node(0);
    let (one, two) = (log().await, log().await);
    let mut readers = [Reader::new(&one), Reader::new(&two)];
    let mut coinbases = std::collections::HashSet::new();
    for (log, reader, epoch) in [(&one, 0, 1), (&one, 0, 2), (&two, 1, 1)] {
        let manager = start(log, config(Chain::Regtest, vec![sim("a", &node)]), epoch).await;
        let mut jobs = vec![readers[reader].job().await];
        manager.stop();
        while readers[reader].has_job().await {
            jobs.push(readers[reader].job().await);
        }
        for job in jobs {
            assert_eq!(job.height, 1, "the same block");
            assert!(coinbases.insert((job.coinbase1, job.coinbase2)), "epoch {epoch}: one coinbase twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_16_another_tip_of_the_same_height_is_a_new_tip() {
    let (node, log) = (node(0), log().await);
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    let mut reader = Reader::new(&log);
    reader.job().await;
    let old = node.mine(1).unwrap()[0];
    reader.job_until(|job| job.prev_hash == bytes(old) && job.segwit).await;
    node.add_transactions(6);
    let new = node.replace_tip().unwrap();
    let job = reader.job_until(|job| job.prev_hash != bytes(old)).await;
    assert_eq!((job.prev_hash.to_vec(), job.height, job.clean), (bytes(new), 2, true));
    assert_eq!(reader.transactions(&job).await.len(), 6, "no empty job: what our tip knows does not hold for it");
    let longer = node.reorg(1).unwrap();
    let job = reader.job_until(|job| job.prev_hash == bytes(longer[1])).await;
    assert_eq!((job.height, job.clean), (3, true));
    status_until(&manager, |status| status.height == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quirk_job_ids_go_on_growing_on_the_same_tip_after_a_restart() {
    let (node, log) = (node(7), log().await);
    let settings = config(Chain::Regtest, vec![sim("a", &node)]);
    let mut reader = Reader::new(&log);
    let manager = start(&log, settings.clone(), 1).await;
    let first = reader.job().await;
    manager.stop();
    assert!(!reader.has_job().await);
    // A job of a clock that was ahead, and a record behind it that is no job.
    let ahead = Job { job_id: first.job_id + 86_400_000, ..first.clone() };
    for body in [Body::Job(ahead.clone()), Body::Tick(Default::default())] {
        let envelope = Envelope::new(EventTime::now(), Coordinates::default(), body);
        let mut bytes = bytes::BytesMut::new();
        sluice_proto::encode_into(&envelope, &mut bytes);
        log.append(&Partition::new("mining.jobs", 0), vec![bytes.freeze()]).await.unwrap();
    }
    assert_eq!(reader.job().await, ahead);
    let manager = start(&log, settings.clone(), 2).await;
    let second = reader.job().await;
    assert_eq!(second.job_id, ahead.job_id + 1, "ids grow whatever the clock says");
    assert!(!second.clean && second.prev_hash == first.prev_hash, "shares of the job before are not stale");
    let (chunks, fresh) = reader.chunks(&second).await;
    assert!(chunks[0].full && fresh == 7, "a new start does not rest on what an earlier one sent");
    manager.stop();
    node.mine(1).unwrap();
    let _manager = start(&log, settings, 3).await;
    let third = reader.job().await;
    assert!(third.clean && third.job_id > second.job_id && third.height == 2);
    let tag = |job: &Job| job.coinbase1[job.coinbase1.len() - 13..].to_vec();
    assert!(tag(&first) != tag(&second) && tag(&second) != tag(&third), "no two starts give out the same work");
}

/// The records of one start are numbered from 1 in its epoch, each with its predecessor.
#[tokio::test(flavor = "multi_thread")]
async fn records_carry_the_coordinates_of_their_start() {
    let (node, log) = (node(0), log().await);
    let settings = config(Chain::Regtest, vec![sim("a", &node)]);
    for epoch in [4, 5] {
        let manager = start(&log, settings.clone(), epoch).await;
        status_until(&manager, |status| status.jobs > 0).await;
        node.mine(1).unwrap();
        status_until(&manager, |status| status.height == node.height() + 1).await;
    }
    let records =
        log.read(&Partition::new("mining.jobs", 0), sluice_proto::Offset::new(1), 1 << 20, GUARD).await.unwrap();
    let records = records.into_iter().map(|record| sluice_proto::decode(record.value).unwrap());
    let jobs = records.filter(|record| matches!(record.body, Some(sluice_proto::Body::Job(_))));
    let from: Vec<Coordinates> = jobs.map(|record| record.from.unwrap()).collect();
    for epoch in [4, 5] {
        let of_epoch: Vec<&Coordinates> = from.iter().filter(|from| from.epoch == epoch).collect();
        assert!(of_epoch.len() >= 2);
        for (number, from) in (1..).zip(of_epoch) {
            assert_eq!((from.source_offset, from.prev_offset), (number, number - 1));
        }
    }
}

/// A process that was paused while another one took over wakes up: it writes no job any more. What it had on its way does
/// not count for the one after.
#[tokio::test(flavor = "multi_thread")]
async fn s1_a_jobmanager_that_was_replaced_writes_no_job() {
    let (node, log) = (node(0), log().await);
    let settings = config(Chain::Regtest, vec![sim("a", &node)]);
    let claim = || async { Owners::new(log.clone(), [9; 16]).claim("jobmanager", Epoch::default()).await.unwrap() };
    let old = claim().await;
    let replaced = start(&log, settings.clone(), old.get()).await;
    let mut reader = Reader::new(&log);
    let first = reader.job().await;
    let new = claim().await;
    node.mine(1).unwrap();
    let cause = tokio::time::timeout(GUARD, replaced.failed()).await.expect("it goes on");
    assert!(cause.contains("jobmanager") && cause.contains(&new.to_string()), "{cause}");
    assert!(!reader.has_job().await, "a job of who was replaced");

    let manager = start(&log, settings.clone(), new.get()).await;
    let second = reader.job().await;
    assert!(second.job_id > first.job_id && second.height == 2);
    manager.stop();
    // It was written, but not yet in the log.
    let ahead = Job { job_id: second.job_id + 86_400_000, prev_hash: first.prev_hash.clone(), ..second.clone() };
    let task = sluice_proto::hash64("jobmanager");
    let from = Coordinates { task, epoch: old.get(), source_offset: 2, prev_offset: 1, ..Coordinates::default() };
    let late = sluice_proto::encode(&Envelope::new(EventTime::now(), from, Body::Job(ahead.clone())));
    log.append(&Partition::new("mining.jobs", 0), vec![late]).await.unwrap();
    assert_eq!(reader.job().await, ahead);
    let _manager = start(&log, settings, claim().await.get()).await;
    let third = reader.job().await;
    assert!(third.job_id > second.job_id && third.job_id < ahead.job_id, "ids go on behind what counts");
    assert!(!third.clean, "of the same tip as the last one that counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_node_that_hangs() {
    let (node, log) = (node(0), log().await);
    node.faults().delay("getblocktemplate", GUARD);
    let manager = start(&log, config(Chain::Regtest, vec![sim("a", &node)]), 1).await;
    node.wait_until(GUARD, |view| view.calls.contains_key("getblocktemplate")).unwrap();
    let begun = Instant::now();
    tokio::task::block_in_place(|| manager.stop());
    assert!(begun.elapsed() < Duration::from_secs(15), "the node would answer after 60 s");
    drop(node);
    assert!(!Reader::new(&log).has_job_after_genesis().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_work_are_errors() {
    let log = log().await;
    let wrong = |rpc: &str, auth: &str| {
        let node = sluice_jobmanager::NodeConfig { name: "a".into(), rpc: rpc.into(), auth: auth.into(), zmq: None };
        config(Chain::Regtest, vec![node])
    };
    for settings in [wrong("http://127.0.0.1:1", "no-colon"), wrong("ftp://127.0.0.1:1", "a:b")] {
        let io = sluice_jobmanager::JobManagerIo {
            log: log.clone(),
            producer: "jobmanager".into(),
            jobs: "mining.jobs".into(),
            templates: "mining.templates".into(),
            epoch: sluice_proto::Epoch::new(1),
            owners: sluice_topology::runtime::Owners::new(log.clone(), [0; 16]),
        };
        let error = JobManager::start(settings, io).await.err().unwrap().to_string();
        assert!(error.contains("node a") && !error.contains("no-colon"), "{error}");
    }
    let node = node(0);
    let mut settings = config(Chain::Regtest, vec![sim("a", &node)]);
    settings.tag = "x".repeat(90);
    let manager = start(&log, settings, 1).await;
    let cause = tokio::time::timeout(GUARD, manager.failed()).await.unwrap();
    assert!(cause.contains("shorten the pool's tag"), "{cause}");
}
