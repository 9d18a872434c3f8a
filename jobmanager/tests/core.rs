//! The jobmanager against Bitcoin Core: its notices, its templates, its end and its return.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_jobmanager::{JobManagerConfig, NodeConfig, NodeState, Nodes};
use sluice_mining::Chain;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::work::solve_block;
use support::{NEVER, Reader, bytes, config, log, start, status_until, until_heard};

fn core(name: &str, node: &Bitcoind) -> NodeConfig {
    let (rpc, auth) = (node.rpc_url(), node.auth().to_owned());
    NodeConfig { name: name.into(), rpc, auth, zmq: Some(node.zmq()) }
}

/// A script that pays no one in particular.
fn script() -> bitcoin::ScriptBuf {
    config(Chain::Regtest, Vec::new()).payout
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_follow_the_notices_of_bitcoin_core_and_become_its_blocks() {
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    node.generate(3, &script()).unwrap();
    let log = log().await;
    let settings = JobManagerConfig { poll: NEVER, ..config(Chain::Regtest, vec![core("core", &node)]) };
    let manager = start(&log, settings, 1).await;
    let mut reader = Reader::new(&log);
    let job = reader.job().await;
    assert_eq!((job.height, job.prev_hash.to_vec(), job.clean), (4, bytes(node.tip().unwrap()), true));
    until_heard(&manager, "core", || drop(node.generate(1, &script()).unwrap())).await;
    // Only a full job has a witness commitment; with it, nothing is under way any more.
    let heard = bytes(node.tip().unwrap());
    reader.job_until(|job| job.prev_hash == heard && job.segwit).await;
    let tip = bytes(node.generate(1, &script()).unwrap()[0]);
    let empty = reader.job_until(|job| job.prev_hash == tip).await;
    assert!(empty.clean && !empty.segwit && empty.template_id == 0);
    let full = reader.job().await;
    assert!(!full.clean && full.segwit && full.prev_hash == tip && full.height == empty.height);
    assert_eq!(full.min_ntime, empty.min_ntime);
    // Either job becomes a block: first the empty one, then one of the next.
    let nodes = Nodes::new(&[core("core", &node)]).unwrap();
    nodes.keep_warm(NEVER).unwrap();
    let block = Bytes::from(solve_block(&empty, 7, &[]).unwrap());
    let hash = sluice_mining::double_sha256(&block[..80]);
    let send = |hash, height, bytes: &Bytes| {
        let block = SentBlock { hash, height, bytes: bytes.clone(), prefer: true };
        tokio::task::block_in_place(|| nodes.submit(&block))
    };
    let results = send(hash, empty.height, &block);
    assert!(results[0].accepted && results[0].preferred && results[0].active, "{results:?}");
    assert_eq!(bytes(node.tip().unwrap()), hash);
    let next = reader.job_until(|job| job.prev_hash == hash[..] && job.segwit).await;
    let rival = Bytes::from(solve_block(&next, 7, &[]).unwrap());
    let rival_hash = sluice_mining::double_sha256(&rival[..80]);
    node.generate(1, &script()).unwrap();
    // Core has a block of that height: ours comes second and is preferred.
    let results = send(rival_hash, next.height, &rival);
    assert!(results[0].accepted && results[0].answer == "inconclusive", "{results:?}");
    assert_eq!(bytes(node.tip().unwrap()), rival_hash);
    let status = tokio::task::block_in_place(|| nodes.status(hash, empty.height)).unwrap();
    assert_eq!(status, ChainStatus::Active { confirmations: 2 });
    assert!(results.iter().all(|result| result.reached));
    let again = send(rival_hash, next.height, &rival);
    assert!(again[0].accepted && again[0].answer == "duplicate", "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_of_bitcoin_core_gives_a_clean_job() {
    let mut node = Bitcoind::start(Chain::Regtest).unwrap();
    node.generate(5, &script()).unwrap();
    let log = log().await;
    let manager = start(&log, config(Chain::Regtest, vec![core("core", &node)]), 1).await;
    let mut reader = Reader::new(&log);
    let first = reader.job().await;
    let old = node.tip().unwrap();
    node.call("invalidateblock", json!([old.to_string()])).unwrap();
    let back = reader.job_until(|job| job.height == first.height - 1).await;
    assert!(back.clean && back.prev_hash == bytes(node.tip().unwrap()));
    // Another script: another block of the same height.
    let other = node.generate(1, &bitcoin::ScriptBuf::from_bytes(vec![0x51])).unwrap()[0];
    let job = reader.job_until(|job| job.prev_hash == bytes(other)).await;
    assert_eq!((job.height, job.clean), (first.height, true));
    status_until(&manager, |status| status.height == first.height).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_used_again_when_it_is_back() {
    let mut node = Bitcoind::start(Chain::Signet).unwrap();
    let log = log().await;
    let manager = start(&log, config(Chain::Signet, vec![core("core", &node)]), 1).await;
    let mut reader = Reader::new(&log);
    assert_eq!(reader.job().await.network, "signet");
    node.kill().unwrap();
    let status = status_until(&manager, |status| matches!(status.nodes[0].state, NodeState::Failed { .. })).await;
    let NodeState::Failed { error, .. } = &status.nodes[0].state else { panic!("{status:?}") };
    assert!(error.contains("core") && !error.contains(node.auth()), "{error}");
    node.launch().unwrap();
    let tip = bytes(node.generate(1, &script()).unwrap()[0]);
    let job = reader.job_until(|job| job.prev_hash == tip && job.segwit).await;
    assert_eq!(job.height, 2);
    status_until(&manager, |status| status.nodes[0].state == NodeState::Ok).await;
    let block = solve_block(&job, 3, &[]).unwrap();
    assert_eq!(node.call("submitblock", json!([hex::encode(&block)])).unwrap(), Value::Null);
    node.stop().unwrap();
}
