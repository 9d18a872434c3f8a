//! Hostile and broken miners: each is dealt with, none harms another.

use serde_json::json;
use sluice_log::{Log, Partition, SharedLog};
use sluice_proto::Offset;

use crate::jobs::{ADDRESS, HARD, job};
use crate::logs::GatedLog;
use crate::pool::{Miner, PARTITIONS, Pool, config};

#[tokio::test]
async fn quirk_messages_may_be_merged_and_split_anywhere() {
    let pool = Pool::start().await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let user = format!("{ADDRESS}.rig");
    let handshake = format!(
        "{{\"id\":1,\"method\":\"mining.configure\",\"params\":[[\"version-rolling\"],{{}}]}}\r\n\
         {{\"id\": 2, \"method\": \"mining.subscribe\", \"params\": [\"x\"]}}\n\n\
         {{\"params\":[\"{user}\",\"x\"],\"id\":\"three\",\"method\":\"mining.authorize\"}}\n"
    );
    let mut miner = pool.connect().await;
    miner.send(handshake.as_bytes()).await;
    for id in [json!(1), json!(2), json!("three"), json!(null), json!(null)] {
        assert_eq!(miner.next().await["id"], id);
    }
    let mut slow = pool.connect().await;
    for byte in handshake.as_bytes() {
        slow.send(&[*byte]).await;
    }
    for id in [json!(1), json!(2), json!("three"), json!(null), json!(null)] {
        assert_eq!(slow.next().await["id"], id);
    }
}

#[tokio::test]
async fn an_oversized_line_ends_the_connection_and_no_other() {
    let pool = Pool::start().await;
    let mut good = pool.miner(false).await;
    let mut bad = pool.connect().await;
    let fits = format!("{{\"id\":1,\"method\":\"mining.ping\",\"x\":\"{}\"}}", "y".repeat(8192 - 38));
    assert_eq!(fits.len(), 8192);
    bad.send(format!("{fits}\n").as_bytes()).await;
    assert_eq!(bad.next().await["result"], "pong");
    // One byte more, whether its end comes or not.
    bad.try_send(&[b'x'; 8193]).await.unwrap();
    assert!(bad.end().await.is_empty());
    assert_eq!(pool.gateway.status().lines_oversized, 1);
    assert_eq!(good.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn noise_ends_the_connection_and_no_other() {
    let pool = Pool::start().await;
    let mut good = pool.miner(false).await;
    let mut bad = pool.connect().await;
    let mut seed = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(7_000)
    .collect();
    bad.send(&noise).await;
    let answers = bad.end().await;
    assert!(answers.iter().all(|answer| answer["error"][0] == 20));
    assert_eq!(pool.gateway.status().lines_malformed, 10);
    assert_eq!(good.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn a_miner_that_does_not_read_is_evicted() {
    let pool = Pool::start().await;
    let mut good = pool.miner(false).await;
    let mut deaf = Miner::connect_narrow(pool.gateway.addresses()[0]).await;
    deaf.never_read().await;
    assert_eq!(pool.gateway.status().evicted, 1);
    assert_eq!(good.ask("mining.ping", json!([])).await["result"], "pong");
    assert_eq!(pool.gateway.status().connections, 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let mut narrow = config();
    narrow.max_connections = 2;
    let pool = Pool::with(narrow).await;
    let (mut one, _two) = (pool.miner(false).await, pool.miner(false).await);
    assert!(pool.connect().await.end().await.is_empty());
    let status = pool.gateway.status();
    assert_eq!((status.connections, status.connections_total, status.connections_refused), (2, 2, 1));
    assert_eq!(one.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn a_miner_that_sends_no_more_still_gets_its_answers() {
    let pool = Pool::start().await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.miner(true).await;
    let share = miner.share(&job, true, 0);
    miner.send(Miner::submit_line(&share, 6).as_bytes()).await;
    miner.shut_down().await;
    let rest = miner.end().await;
    assert_eq!((rest.len(), &rest[0]["result"]), (1, &json!(true)));
}

/// Beyond `in_flight` unanswered shares the gateway reads no more from a session, and goes on when they are answered.
#[tokio::test]
async fn shares_in_flight_are_bounded() {
    let log = GatedLog::new();
    let shared: SharedLog = log.clone();
    let mut narrow = config();
    narrow.in_flight = 2;
    // A tick would take one of the places of appends under way: only the first ones, which are waited for.
    narrow.tick = std::time::Duration::from_secs(3600);
    let pool = Pool::on(shared, 1, narrow).await;
    for number in 0..PARTITIONS {
        let wait = std::time::Duration::from_secs(60);
        let tick = log.read(&Partition::new("shares", number), Offset::new(1), 1, wait).await.unwrap();
        assert_eq!(tick.len(), 1);
    }
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.miner(true).await;
    log.set_open(false);
    for id in 0..2 {
        miner.send(Miner::submit_line(&miner.share(&job, true, id * 10_000), id.into()).as_bytes()).await;
        log.called(2 + id as usize).await;
    }
    miner.send(Miner::submit_line(&miner.share(&job, true, 90_000), 2).as_bytes()).await;
    let mut other = pool.miner(true).await;
    assert_eq!(other.ask("mining.ping", json!([])).await["result"], "pong");
    assert_eq!(pool.gateway.status().in_flight, 2);
    log.set_open(true);
    for id in 0..3 {
        let answer = miner.next().await;
        assert_eq!((&answer["id"], &answer["result"]), (&json!(id), &json!(true)));
    }
    assert_eq!(pool.gateway.status().in_flight, 0);
}
