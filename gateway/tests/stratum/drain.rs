//! Letting go of miners: they are asked to connect elsewhere, and nothing that they send meanwhile is lost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::jobs::{HARD, job};
use crate::pool::{Pool, config};

#[tokio::test]
async fn draining_miners_are_sent_away_and_served_until_they_go() {
    let mut config = config();
    config.drain = Duration::from_secs(600);
    config.drain_to = Some("pool.example:3334".into());
    // Miners are told over half of this time; the first of each worker is told at once.
    let pool = Pool::with(config).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let (mut miner, address) = (pool.miner(true).await, pool.gateway.addresses()[0]);
    let gateway = Arc::new(pool.gateway);
    let drain = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.drain().await }
    });
    let line = miner.next().await;
    assert_eq!((&line["method"], &line["params"]), (&json!("client.reconnect"), &json!(["pool.example", 3334, 0])));
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let share = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true, "it is still served");
    drop(miner);
    drain.await.unwrap();
    assert_eq!(gateway.status().connections, 0);
    gateway.stop().await;
}

#[tokio::test]
async fn who_logs_in_during_a_drain_is_sent_away_as_well() {
    let mut config = config();
    config.workers = 1;
    config.drain = Duration::from_secs(600);
    let pool = Pool::with(config).await;
    let mut late = pool.connect().await;
    assert_eq!(late.ask("mining.ping", json!([])).await["result"], "pong");
    let mut miner = pool.miner(false).await;
    let gateway = Arc::new(pool.gateway);
    let drain = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.drain().await }
    });
    // Who came first would have been told first.
    assert_eq!(miner.next().await["method"], "client.reconnect");
    late.log_in().await;
    assert_eq!(late.next().await["method"], "client.reconnect");
    drop((late, miner));
    drain.await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn who_does_not_go_is_answered_and_closed_when_the_time_is_over() {
    let mut config = config();
    config.drain = Duration::from_millis(100);
    let pool = Pool::with(config).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.miner(true).await;
    pool.gateway.drain().await;
    let line = miner.next().await;
    assert_eq!((&line["method"], &line["params"]), (&json!("client.reconnect"), &json!([])));
    let share = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    pool.gateway.stop().await;
    assert!(miner.end().await.is_empty());
}

#[tokio::test]
async fn without_a_time_for_it_nobody_is_sent_away() {
    let pool = Pool::start().await;
    let mut miner = pool.miner(false).await;
    pool.gateway.drain().await;
    pool.miner(false).await;
    pool.gateway.stop().await;
    assert!(miner.end().await.is_empty());
}
