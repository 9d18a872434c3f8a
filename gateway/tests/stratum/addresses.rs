//! What one address may do, and what it may not; and time limits.

use std::time::Duration;

use serde_json::json;
use sluice_gateway::GatewayConfig;
use sluice_proto::v1::Submission;

use crate::jobs::{HARD, job};
use crate::pool::{Miner, Pool, config};

/// Settings where loopback has limits like any other address.
pub fn limited() -> GatewayConfig {
    let mut config = config();
    config.limits.unlimited.clear();
    config
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_gets_them_back() {
    let mut config = limited();
    config.limits.connections = 2;
    let pool = Pool::with(config).await;
    let (one, mut two) = (pool.miner(false).await, pool.miner(false).await);
    assert!(pool.connect().await.end().await.is_empty());
    assert_eq!(two.ask("mining.ping", json!([])).await["result"], "pong");
    let status = pool.gateway.status();
    assert_eq!((status.connections, status.connections_refused, status.limits.refused_many), (2, 1, 1));
    drop(one);
    pool.until(|status| status.connections <= 1).await;
    pool.miner(false).await;
}

#[tokio::test]
async fn an_address_connects_so_often() {
    let mut config = limited();
    // One comes back per minute.
    config.limits.connects = 1;
    let pool = Pool::with(config).await;
    let mut miner = pool.miner(false).await;
    assert!(pool.connect().await.end().await.is_empty());
    assert_eq!(pool.gateway.status().limits.refused_often, 1);
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn addresses_without_limits_have_none() {
    let mut config = config();
    (config.limits.connects, config.limits.connections, config.limits.messages) = (1, 1, 1);
    let pool = Pool::with(config).await;
    let mut miners = [pool.miner(false).await, pool.miner(false).await, pool.miner(false).await];
    for _ in 0..100 {
        for miner in &mut miners {
            assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
        }
    }
    assert_eq!(pool.gateway.status().limits, Default::default());
}

/// What comes faster is read more slowly, and none of it is lost.
#[tokio::test]
async fn messages_beyond_the_rate_wait_and_are_answered() {
    let mut config = limited();
    config.limits.messages = 500;
    let pool = Pool::with(config).await;
    let mut miner = pool.miner(false).await;
    let mut sent = 0;
    while pool.gateway.status().limits.throttled == 0 {
        for _ in 0..100 {
            miner.send(format!("{{\"id\":{sent},\"method\":\"mining.ping\"}}\n").as_bytes()).await;
            sent += 1;
        }
        for id in sent - 100..sent {
            assert_eq!(miner.next().await["id"], id);
        }
    }
    assert!(sent >= 4900, "those of 10 s come at once, but for a batch: {sent}");
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
}

/// Settings that ban soon.
fn strict() -> GatewayConfig {
    let mut config = limited();
    (config.limits.ban_count, config.limits.ban_percent) = (32, 90);
    config
}

/// Submits shares without waiting for their answers; how many of them were answered.
async fn flood(miner: &mut Miner, shares: impl Iterator<Item = Submission>) -> usize {
    for (id, share) in shares.enumerate() {
        if miner.try_send(Miner::submit_line(&share, id as u64).as_bytes()).await.is_err() {
            break;
        }
    }
    miner.end().await.len()
}

#[tokio::test]
async fn an_address_with_a_flood_of_invalid_shares_is_banned() {
    let pool = Pool::with(strict()).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let (mut bad, mut good) = (pool.miner(true).await, pool.miner(true).await);
    let share = bad.share(&job, true, 0);
    assert_eq!(bad.submit(&share).await["result"], true);
    flood(&mut bad, std::iter::repeat_n(share, 10_000)).await;
    let limits = pool.gateway.status().limits;
    assert_eq!((limits.bans, limits.banned), (1, 1));
    assert!(pool.connect().await.end().await.is_empty());
    assert!(pool.gateway.status().limits.refused_banned >= 1);
    // Who shares the address with it, and does nothing wrong, stays.
    let share = good.share(&job, true, 0);
    assert_eq!(good.submit(&share).await["result"], true);
}

#[tokio::test]
async fn an_address_with_lines_that_are_no_requests_is_banned() {
    let pool = Pool::with(strict()).await;
    for _ in 0..4 {
        let mut noisy = pool.connect().await;
        noisy.try_send(b"x\ny\nz\n1\n2\n3\n4\n5\n6\n7\n").await.unwrap();
        noisy.end().await;
    }
    // The last of them may be counted behind its end.
    pool.until(|status| status.limits.bans > 0).await;
    assert!(pool.connect().await.end().await.is_empty());
}

/// A miner far away is late at each new block, and cannot help it.
#[tokio::test]
async fn stale_shares_ban_nobody() {
    let pool = Pool::with(strict()).await;
    let old = job(0x100, 1, HARD);
    pool.publish(&old).await;
    let mut miner = pool.miner(true).await;
    pool.publish(&job(0x101, 2, HARD)).await;
    assert_eq!(miner.next().await["method"], "mining.notify");
    let mut nonce = 0;
    for _ in 0..100 {
        let share = miner.share(&old, true, nonce);
        nonce = share.nonce + 1;
        assert_eq!(miner.submit(&share).await["error"][0], 21);
    }
    assert_eq!(pool.gateway.status().limits.bans, 0);
}

#[tokio::test]
async fn who_does_not_log_in_is_let_go() {
    let mut config = config();
    config.login_timeout = Duration::from_secs(1);
    let pool = Pool::with(config).await;
    let mut miner = pool.miner(false).await;
    let mut late = pool.connect().await;
    assert_eq!(late.ask("mining.subscribe", json!([])).await["error"], json!(null));
    assert!(late.end().await.is_empty());
    assert_eq!(pool.gateway.status().timed_out_login, 1);
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn a_silent_session_is_let_go() {
    let mut config = config();
    config.idle_timeout = Duration::from_secs(1);
    let pool = Pool::with(config).await;
    let mut miner = pool.miner(false).await;
    assert!(miner.end().await.is_empty());
    assert_eq!(pool.gateway.status().timed_out_idle, 1);
}

#[tokio::test]
async fn without_limits_of_time_silence_is_no_matter() {
    let mut config = config();
    (config.idle_timeout, config.login_timeout) = (Duration::ZERO, Duration::ZERO);
    let pool = Pool::with(config).await;
    let (mut quiet, mut miner) = (pool.connect().await, pool.miner(false).await);
    // Long enough for every connection to be looked after once.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    for miner in [&mut quiet, &mut miner] {
        assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
    }
}
