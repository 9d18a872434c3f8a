//! Sessions that go on after their connection, their gateway's start, or at another gateway (docs/adr/0012).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_cache::{Cache, Entry, MemoryCache};
use sluice_gateway::GatewayIo;
use sluice_log::{MemoryLog, SharedLog};
use sluice_mining::Difficulty;
use sluice_proto::v1::Job;

use crate::jobs::{ADDRESS, HARD, job, solve};
use crate::pool::{Miner, Pool, config, io};

/// A miner that has subscribed with `claim`, authorized, and had its first job; its token.
async fn resume(pool: &Pool, claim: Option<&str>) -> (Miner, String) {
    let mut miner = pool.connect().await;
    let token = log_in(&mut miner, claim).await;
    assert_eq!(miner.next().await["method"], "mining.set_difficulty");
    let notify = miner.next().await;
    assert_eq!((&notify["method"], &notify["params"][8]), (&json!("mining.notify"), &json!(true)));
    (miner, token)
}

async fn log_in(miner: &mut Miner, claim: Option<&str>) -> String {
    let token = subscribe(miner, claim).await;
    authorize(miner).await;
    token
}

async fn subscribe(miner: &mut Miner, claim: Option<&str>) -> String {
    let params = claim.map_or_else(|| json!(["cgminer/4.11.1"]), |claim| json!(["cgminer/4.11.1", claim]));
    let answer = miner.ask("mining.subscribe", params).await;
    miner.extranonce1 = u32::from_str_radix(answer["result"][1].as_str().unwrap(), 16).unwrap();
    answer["result"][0][1][1].as_str().unwrap().to_owned()
}

async fn authorize(miner: &mut Miner) {
    assert_eq!(miner.ask("mining.authorize", json!([format!("{ADDRESS}.rig"), "x"])).await["result"], true);
}

fn code(answer: &Value) -> i64 {
    answer["error"][0].as_i64().unwrap_or(0)
}

/// Waits until the gateway has taken ended connections away.
async fn connections(pool: &Pool, count: u64) {
    pool.until(|status| status.connections == count).await;
}

async fn sessions(pool: &Pool) -> Vec<u64> {
    let mut sessions: Vec<u64> = pool.submissions().await.iter().map(|share| share.session).collect();
    sessions.sort_unstable();
    sessions.dedup();
    sessions
}

/// What cgminer does after a lost connection: it shows the session's id and sends its last shares again.
#[tokio::test]
async fn quirk_cgminer_resumes_by_session_id_and_resends_its_shares() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let (mut miner, token) = resume(&pool, None).await;
    let (share, one) = (miner.share(&first, true, 0), miner.extranonce1);
    assert_eq!(miner.submit(&share).await["result"], true);
    drop(miner);
    connections(&pool, 0).await;
    let (mut miner, again) = resume(&pool, Some(&token)).await;
    assert_eq!((miner.extranonce1, &again), (one, &token));
    assert_eq!(code(&miner.submit(&share).await), 22, "the set of accepted headers outlives the connection");
    let late = miner.share(&first, true, share.nonce + 1);
    assert_eq!(miner.submit(&late).await["result"], true, "what was found meanwhile counts");
    assert_eq!((sessions(&pool).await.len(), pool.gateway.status().sessions_resumed), (1, 1));
}

/// Trap 6, and the connection moves to the worker of its session's partition: a new connection lands where there are fewest.
#[tokio::test]
async fn a_token_takes_the_session_from_a_connection_that_hangs_and_brings_it_to_its_worker() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let (mut hanging, token) = resume(&pool, None).await;
    let share = hanging.share(&first, true, 0);
    assert_eq!(hanging.submit(&share).await["result"], true);
    // The second worker has no connection yet: this one comes to it, and all its lines in one segment.
    let mut miner = pool.connect().await;
    let lines = [
        json!({"id": 1, "method": "mining.configure", "params": [["version-rolling"], {}]}),
        json!({"id": 2, "method": "mining.subscribe", "params": ["cgminer/4.11.1", token]}),
        json!({"id": 3, "method": "mining.authorize", "params": [format!("{ADDRESS}.rig"), "x"]}),
    ];
    miner.send(lines.map(|line| format!("{line}\n")).concat().as_bytes()).await;
    for id in 1..=3 {
        assert_eq!(miner.next().await["id"], id, "in order, across the move");
    }
    assert_eq!(miner.next().await["method"], "mining.set_difficulty");
    assert_eq!(miner.next().await["method"], "mining.notify");
    assert!(hanging.end().await.is_empty(), "the old connection is ended");
    miner.extranonce1 = hanging.extranonce1;
    let again = sluice_proto::v1::Submission { version_mask: 0x1fff_e000, ..share.clone() };
    assert_eq!(code(&miner.submit(&again).await), 22);
    let next = miner.share(&first, true, share.nonce + 1);
    assert_eq!(miner.submit(&next).await["result"], true);
    let status = pool.gateway.status();
    assert_eq!((status.connections, status.sessions_authorized), (1, 1));
    assert_eq!(status.listeners[0].connections, 1);
    assert_eq!((status.sessions_resumed, status.connections_moved), (1, 1));
    assert_eq!(sessions(&pool).await.len(), 1);
}

/// Some firmware keeps extranonce1 instead of the session's id. That is no proof: a live session is not given away for it.
#[tokio::test]
async fn an_extranonce1_resumes_a_session_that_has_ended_and_no_other() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let (mut miner, _) = resume(&pool, None).await;
    let (one, share) = (format!("{:08x}", miner.extranonce1), miner.share(&first, true, 0));
    assert_eq!(miner.submit(&share).await["result"], true);
    let (other, _) = resume(&pool, Some(&one)).await;
    assert_ne!(format!("{:08x}", other.extranonce1), one);
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong", "it is not disturbed");
    drop((miner, other));
    connections(&pool, 0).await;
    let (mut again, _) = resume(&pool, Some(&one)).await;
    assert_eq!(format!("{:08x}", again.extranonce1), one);
    assert_eq!(code(&again.submit(&share).await), 22);
    for nonsense in ["", "01ad557d", "0000000000000000", "ffffffffffffffffffffffffffffffff"] {
        let (fresh, _) = resume(&pool, Some(nonsense)).await;
        assert!(format!("{:08x}", fresh.extranonce1) != one && fresh.extranonce1 >> 24 == 3, "{nonsense}");
    }
    assert_eq!(pool.gateway.status().sessions_resumed, 1);
}

/// S1: the set of accepted headers is gone with the process, so the session goes on under another extranonce1: no header of
/// before can come again. Its id, its partition and its difficulty stay.
#[tokio::test]
async fn s1_a_session_goes_on_after_a_restart_and_at_another_gateway_under_another_extranonce1() {
    let log: SharedLog = MemoryLog::new();
    let pool = Pool::on(log.clone(), 8, config()).await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let (mut miner, token) = resume(&pool, None).await;
    let (share, mut used) = (miner.share(&first, true, 0), vec![miner.extranonce1]);
    assert_eq!(miner.submit(&share).await["result"], true);
    let session = sessions(&pool).await[0];
    pool.decide(session, Difficulty::from_units(2).unwrap()).await;
    pool.gateway.stop().await;
    let mut other = config();
    other.id = 4;
    for (epoch, config, prefix) in [(9, config(), 3), (10, other, 4)] {
        let pool = Pool::on(log.clone(), epoch, config).await;
        let mut miner = pool.connect().await;
        log_in(&mut miner, Some(&token)).await;
        let told = miner.next().await;
        assert_eq!(told["params"], json!([2.0_f64.powi(-23)]), "vardiff's last decision, read back from its topic");
        assert_eq!(miner.next().await["method"], "mining.notify");
        assert!(miner.extranonce1 >> 24 == prefix && !used.contains(&miner.extranonce1));
        assert_ne!(miner.submit(&share).await["result"], true, "a nonce of before is worth nothing");
        let fresh = solve(&first, miner.share(&first, true, 0), Difficulty::from_units(2).unwrap(), true);
        assert_eq!(miner.submit(&fresh).await["result"], true);
        used.push(miner.extranonce1);
        assert_eq!(sessions(&pool).await, [session], "one session, one partition");
        // A decision for a session that began elsewhere reaches it.
        pool.decide(session, Difficulty::from_units(2).unwrap()).await;
        pool.until(|status| status.targets > 0).await;
        pool.gateway.stop().await;
    }
}

/// At a gateway that has never heard of the session, the cache knows what vardiff had found; and where the newest job stands,
/// which the gateway believes once the log has it there.
#[tokio::test]
async fn a_session_goes_on_with_what_the_cache_knows() {
    let log: SharedLog = MemoryLog::new();
    let cache: Arc<dyn Cache> = Arc::new(MemoryCache::default());
    let shared = |epoch| GatewayIo { cache: Some(Arc::clone(&cache)), targets: None, ..io(&log, epoch) };
    let first = GatewayIo { targets: Some("targets".into()), ..shared(8) };
    let pool = Pool::try_with(log.clone(), 8, config(), first).await.unwrap();
    let second = job(0x101, 2, HARD);
    for job in [&job(0x100, 1, HARD), &second] {
        pool.publish(job).await;
    }
    pool.until(|status| status.latest_job.is_some_and(|job| job.job_id == 0x101)).await;
    let (mut miner, token) = resume(&pool, None).await;
    let share = miner.share(&second, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    pool.decide(sessions(&pool).await[0], Difficulty::from_units(2).unwrap()).await;
    pool.until(|status| status.targets > 0).await;
    pool.gateway.stop().await;
    // A hint that is wrong: another job stands there.
    let wrong: Arc<dyn Cache> = Arc::new(MemoryCache::default());
    let uuid: String = log.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("{{{uuid}}}/job");
    let value = bytes::Bytes::copy_from_slice(&0x101_u64.to_be_bytes());
    wrong.put(&key, Entry { version: 1, value }, Duration::from_secs(60));
    for (epoch, cache) in [(9, &cache), (10, &wrong)] {
        let mut other = config();
        other.id = 4;
        let io = GatewayIo { cache: Some(Arc::clone(cache)), ..shared(epoch) };
        let pool = Pool::try_with(log.clone(), epoch, other, io).await.unwrap();
        assert_eq!(pool.gateway.status().latest_job.unwrap().job_id, 0x101);
        let mut miner = pool.connect().await;
        subscribe(&mut miner, Some(&token)).await;
        if epoch == 9 {
            pool.until(|status| status.targets > 0).await;
        }
        authorize(&mut miner).await;
        let told = miner.next().await;
        let expected = if epoch == 9 { 2.0_f64.powi(-23) } else { 2.0_f64.powi(-24) };
        assert_eq!(told["params"], json!([expected]));
        pool.gateway.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_comes_back_begins_where_it_was() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let mut miner = pool.miner(true).await;
    let share = miner.share(&first, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    let session = sessions(&pool).await[0];
    pool.decide(session, Difficulty::from_units(4).unwrap()).await;
    pool.until(|status| status.targets > 0).await;
    drop(miner);
    connections(&pool, 0).await;
    let mut miner = pool.connect().await;
    miner.log_in().await;
    assert_eq!(miner.next().await["params"], json!([2.0_f64.powi(-22)]));
}

#[tokio::test]
async fn the_pool_can_show_messages_ask_to_reconnect_and_change_an_extranonce1() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let (mut one, mut two, mut silent) = (pool.miner(true).await, pool.miner(true).await, pool.connect().await);
    assert_eq!(silent.ask("mining.ping", json!([])).await["result"], "pong");
    let share = one.share(&first, true, 0);
    assert_eq!(one.submit(&share).await["result"], true);
    let session = sessions(&pool).await[0];
    pool.gateway.show_message("down at \"noon\"").await;
    for miner in [&mut one, &mut two] {
        let shown = miner.next().await;
        assert_eq!((&shown["id"], &shown["method"]), (&Value::Null, &json!("client.show_message")));
        assert_eq!(shown["params"], json!(["down at \"noon\""]));
    }
    assert!(pool.gateway.show_message_to(session, "hello").await);
    assert_eq!(one.next().await["params"], json!(["hello"]));
    assert!(!pool.gateway.show_message_to(session ^ (1 << 60), "hello").await, "not here");
    assert_eq!(one.ask("mining.extranonce.subscribe", json!([])).await["result"], true);
    assert!(pool.gateway.change_extranonce(session).await);
    pool.gateway.reconnect().await;
    for miner in [&mut one, &mut two] {
        assert_eq!(miner.next().await, json!({"id": null, "method": "client.reconnect", "params": []}));
    }
    let next = Job { clean: false, ..job(0x101, 1, HARD) };
    pool.publish(&next).await;
    let told = one.next().await;
    assert_eq!(told["method"], "mining.set_extranonce");
    let old =
        std::mem::replace(&mut one.extranonce1, u32::from_str_radix(told["params"][0].as_str().unwrap(), 16).unwrap());
    assert!(old != one.extranonce1 && old >> 24 == one.extranonce1 >> 24);
    assert_eq!(one.next().await["method"], "mining.notify");
    assert_eq!(two.next().await["method"], "mining.notify", "others keep theirs");
    let share = one.share(&next, true, 0);
    assert_eq!(one.submit(&share).await["result"], true);
    assert_eq!(silent.ask("mining.ping", json!([])).await["result"], "pong", "who gets no jobs is told nothing");
}
