//! Listeners with settings of their own, and load balancers in front of them.

use std::time::Duration;

use serde_json::json;
use sluice_gateway::{GatewayConfig, ListenerConfig};
use sluice_log::MemoryLog;
use sluice_mining::Difficulty;

use crate::addresses::limited;
use crate::jobs::{ADDRESS, HARD, job};
use crate::pool::{Miner, Pool, config};

/// `config` with one listener of its own, and no other.
pub fn with(mut config: GatewayConfig, change: impl FnOnce(&mut ListenerConfig)) -> GatewayConfig {
    let mut listener = ListenerConfig::plain("127.0.0.1:0");
    change(&mut listener);
    config.listen.clear();
    config.listeners = vec![listener];
    config
}

#[tokio::test]
async fn each_listener_has_its_difficulty_its_limit_and_its_name() {
    let mut config = with(config(), |listener| {
        listener.name = "farms".into();
        listener.min_difficulty = Difficulty::from_integer(65_536);
        listener.max_connections = Some(1);
    });
    config.listen = vec!["127.0.0.1:0".into()];
    let pool = Pool::with(config).await;
    pool.publish(&job(0x100, 1, HARD)).await;
    let addresses = pool.gateway.addresses();
    let mut first = Vec::new();
    let mut miners = Vec::new();
    for address in &addresses {
        let mut miner = Miner::connect(*address).await;
        miner.log_in().await;
        first.push(miner.next().await["params"][0].as_f64().unwrap());
        assert_eq!(miner.next().await["method"], "mining.notify");
        miners.push(miner);
    }
    assert!(first[0] < 1.0 && first[1] == 65_536.0, "{first:?}");
    assert!(Miner::connect(addresses[1]).await.end().await.is_empty());
    pool.miner(true).await;
    let status = pool.gateway.status();
    assert_eq!((status.connections_refused, status.listeners.len()), (1, 2));
    assert_eq!((status.listeners[1].name.as_str(), status.listeners[1].connections), ("farms", 1));
    // What vardiff decides is bound by the listener, too.
    let session = pool.session_of(&mut miners[1]).await;
    pool.decide(session, Difficulty::ONE).await;
    pool.until(|status| status.targets > 0).await;
    pool.publish(&job(0x101, 1, HARD)).await;
    loop {
        let line = miners[1].next().await;
        assert_ne!(line["method"], "mining.set_difficulty", "{line}");
        if line["method"] == "mining.notify" && line["params"][0] == "101" {
            break;
        }
    }
}

/// A listener behind load balancers of loopback; other addresses have limits.
fn behind_balancers() -> GatewayConfig {
    let mut config = limited();
    config.limits.connections = 1;
    with(config, |listener| listener.proxy_from = vec!["127.0.0.0/8".parse().unwrap()])
}

const SUBSCRIBE: &[u8] = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n";

#[tokio::test]
async fn a_load_balancers_header_says_whose_limits_hold() {
    let pool = Pool::with(behind_balancers()).await;
    let v1 = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 5555 3333\r\n").into_bytes();
    let mut one = pool.connect().await;
    one.send(&[&v1("192.0.2.1")[..], SUBSCRIBE].concat()).await;
    assert_eq!(one.next().await["id"], 1, "header and lines in one segment");
    // Version 2, byte by byte.
    let mut two = pool.connect().await;
    let v2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &[192, 0, 2, 2, 127, 0, 0, 1, 0, 1, 0, 2]].concat();
    for byte in [&v2[..], SUBSCRIBE].concat() {
        two.send(&[byte]).await;
    }
    assert_eq!(two.next().await["id"], 1);
    for taken in ["192.0.2.1", "192.0.2.2"] {
        let mut more = pool.connect().await;
        more.send(&v1(taken)).await;
        assert!(more.end().await.is_empty(), "{taken} has its connection");
    }
    assert_eq!(pool.gateway.status().limits.refused_many, 2);
    // Where the header names nobody there is nobody to limit.
    for unknown in [b"PROXY UNKNOWN\r\n".as_slice(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut other = pool.connect().await;
        other.send(&[unknown, SUBSCRIBE].concat()).await;
        assert_eq!(other.next().await["id"], 1);
    }
    for miner in [&mut one, &mut two] {
        assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
    }
}

#[tokio::test]
async fn who_comes_through_a_load_balancer_mines_like_any_other() {
    let pool = Pool::with(behind_balancers()).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.connect().await;
    miner.send(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n").await;
    miner.log_in().await;
    assert_eq!(miner.next().await["method"], "mining.set_difficulty");
    assert_eq!(miner.next().await["method"], "mining.notify");
    let share = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
}

#[tokio::test]
async fn a_load_balancer_must_send_a_header_in_time_and_nobody_else_may() {
    let mut config = behind_balancers();
    config.handshake_timeout = Duration::from_secs(1);
    let pool = Pool::with(config).await;
    let mut bare = pool.connect().await;
    bare.send(SUBSCRIBE).await;
    assert!(bare.end().await.is_empty());
    assert_eq!(pool.gateway.status().headers_refused, 1);
    let mut slow = pool.connect().await;
    slow.send(b"PROXY TCP4 192.0.2.1").await;
    assert!(slow.end().await.is_empty());
    assert_eq!(pool.gateway.status().timed_out_handshake, 1);

    let elsewhere = |listener: &mut ListenerConfig| listener.proxy_from = vec!["192.0.2.0/24".parse().unwrap()];
    let pool = Pool::with(with(limited(), elsewhere)).await;
    assert!(pool.connect().await.end().await.is_empty(), "not a load balancer");
    assert_eq!(pool.gateway.status().connections_refused, 1);

    let direct = with(limited(), |listener| {
        elsewhere(listener);
        listener.proxy_others = true;
    });
    let pool = Pool::with(direct).await;
    let mut direct = pool.miner(false).await;
    assert_eq!(direct.ask("mining.ping", json!([])).await["result"], "pong");
    let mut liar = pool.connect().await;
    liar.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await;
    assert_eq!(liar.next().await["error"][0], 20, "to those that may not send one it is no header");
}

/// Where the settings do not fit, the gateway says so before it listens.
#[tokio::test]
async fn a_listener_that_cannot_work_is_no_start() {
    let twisted = with(config(), |listener| {
        listener.min_difficulty = Difficulty::from_integer(8);
        listener.difficulty = Some(Difficulty::ONE);
    });
    let error = Pool::try_on(MemoryLog::new(), 1, twisted).await.err().unwrap().to_string();
    assert!(error.contains("127.0.0.1:0 must lie between"), "{error} for {ADDRESS}");
    // Where it says nothing of the first difficulty, none fits in.
    let upside_down = with(config(), |listener| {
        listener.min_difficulty = Difficulty::from_integer(8);
        listener.max_difficulty = Difficulty::from_integer(4);
    });
    let beyond = with(config(), |listener| listener.min_difficulty = Some(Difficulty::MAX));
    for config in [upside_down, beyond] {
        let error = Pool::try_on(MemoryLog::new(), 1, config).await.err().unwrap().to_string();
        assert!(error.contains("127.0.0.1:0 must lie between"), "{error}");
    }
}
