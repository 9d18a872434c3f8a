//! The paths, codes and forms of answers, over a real socket.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_api::views::{Block, BlockCounts, Condition, Hashrate, Health, Miner, Part, Pool, Shares};
use sluice_api::{ApiServer, PoolView, ViewError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A pool with one miner and three blocks, whose ledger can be down.
#[derive(Default)]
struct Fixed {
    ready: AtomicBool,
    failed: AtomicBool,
    ledger_down: AtomicBool,
}

impl PoolView for Fixed {
    fn health(&self) -> Health {
        let failed = self.failed.load(Ordering::Relaxed);
        let condition = if failed { Condition::Failed } else { Condition::Ok };
        Health {
            condition,
            ready: self.ready.load(Ordering::Relaxed),
            version: "0".into(),
            network: "regtest".into(),
            parts: vec![Part { name: "node".into(), condition: Condition::Degraded, detail: "no answer".into() }],
            tasks: vec![],
        }
    }

    fn metrics(&self) -> String {
        "sluice_up 1\n".into()
    }

    fn pool(&self) -> Result<Pool, ViewError> {
        Ok(Pool {
            network: "regtest".into(),
            height: 7,
            network_difficulty: "1".into(),
            hashrate: Hashrate { m1: 1e18, ..Hashrate::default() },
            connections: 2,
            active_accounts: 1,
            active_workers: 2,
            shares: Shares::default(),
            blocks: BlockCounts::default(),
            available_sats: 2_100_000_000_000_000,
            pending_sats: 1,
            fee_sats: 0,
            stratum: vec![],
            workers: vec![],
        })
    }

    fn miner(&self, address: &str) -> Result<Option<Miner>, ViewError> {
        if self.ledger_down.load(Ordering::Relaxed) {
            return Err(ViewError("the ledger does not answer".into()));
        }
        Ok((address == "bcrt1qknown").then(|| Miner {
            address: address.into(),
            hashrate: Hashrate::default(),
            shares: Shares::default(),
            available_sats: 5,
            pending_sats: 6,
            paid_sats: 0,
            workers: vec![],
            credits: vec![],
        }))
    }

    fn blocks(&self, before: Option<&str>, limit: u32) -> Result<Option<Vec<Block>>, ViewError> {
        let block = |height: u32| Block {
            hash: format!("{height:02}"),
            height,
            status: "accepted".into(),
            reward_sats: 5_000_000_000,
            fee_sats: 0,
            credited: false,
            account: String::new(),
            worker: String::new(),
            found_ms: 0,
        };
        let blocks: Vec<Block> = (1..=3).rev().map(block).collect();
        let first = match before {
            None => 0,
            Some(hash) => match blocks.iter().position(|block| block.hash == hash) {
                Some(at) => at + 1,
                None => return Ok(None),
            },
        };
        Ok(Some(blocks.into_iter().skip(first).take(limit as usize).collect()))
    }
}

/// Status code and body of a GET.
async fn get(server: &ApiServer, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() {
    let view = Arc::new(Fixed::default());
    let server = ApiServer::start("127.0.0.1:0", true, view.clone()).await.unwrap();
    assert_eq!(get(&server, "/health").await.0, 200, "working, though not ready");
    let (code, body) = get(&server, "/ready").await;
    assert_eq!(code, 503);
    assert!(body.contains("node: no answer"), "says what it waits for: {body}");
    view.ready.store(true, Ordering::Relaxed);
    assert_eq!(get(&server, "/ready").await.0, 200);
    view.failed.store(true, Ordering::Relaxed);
    let (code, body) = get(&server, "/health").await;
    assert_eq!(code, 503);
    assert!(body.contains("\"failed\""), "{body}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn numbers_arrive_exactly() {
    let server = ApiServer::start("127.0.0.1:0", true, Arc::new(Fixed::default())).await.unwrap();
    let (code, body) = get(&server, "/api/v1/pool").await;
    assert_eq!(code, 200);
    assert!(body.contains("\"available_sats\":2100000000000000"), "{body}");
    assert_eq!(get(&server, "/metrics").await, (200, "sluice_up 1\n".into()));
    let (code, body) = get(&server, "/api/v1/openapi.json").await;
    assert_eq!(code, 200);
    assert!(body.contains("/miners/{address}"), "{body}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn unknown_miners_and_failed_stores_are_told_apart() {
    let view = Arc::new(Fixed::default());
    let server = ApiServer::start("127.0.0.1:0", true, view.clone()).await.unwrap();
    assert_eq!(get(&server, "/api/v1/miners/bcrt1qknown").await.0, 200);
    assert_eq!(get(&server, "/api/v1/miners/bcrt1qother").await.0, 404);
    view.ledger_down.store(true, Ordering::Relaxed);
    let (code, body) = get(&server, "/api/v1/miners/bcrt1qknown").await;
    assert_eq!(code, 503);
    assert!(body.contains("the ledger does not answer"), "{body}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn blocks_are_paged() {
    let server = ApiServer::start("127.0.0.1:0", true, Arc::new(Fixed::default())).await.unwrap();
    let (code, body) = get(&server, "/api/v1/blocks?before=03&limit=1").await;
    assert_eq!(code, 200);
    assert!(
        body.contains("\"height\":2") && !body.contains("\"height\":1,") && !body.contains("\"height\":3"),
        "{body}"
    );
    assert_eq!(get(&server, "/api/v1/blocks?before=04").await.0, 404, "no such block");
    assert_eq!(get(&server, "/api/v1/blocks?limit=x").await.0, 400);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_process_without_apiserver_serves_health_and_metrics_only() {
    let server = ApiServer::start("127.0.0.1:0", false, Arc::new(Fixed::default())).await.unwrap();
    assert_eq!(get(&server, "/health").await.0, 200);
    assert_eq!(get(&server, "/metrics").await.0, 200);
    assert_eq!(get(&server, "/api/v1/pool").await.0, 404);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let server = ApiServer::start("127.0.0.1:0", true, Arc::new(Fixed::default())).await.unwrap();
    let taken = server.address().to_string();
    let Err(error) = ApiServer::start(&taken, true, Arc::new(Fixed::default())).await else { panic!("bound twice") };
    assert!(error.to_string().contains(&taken), "{error}");
    server.stop().await.unwrap();
}
