//! TLS: miners on it, certificates that change under them, and strangers.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use sluice_gateway::{GatewayConfig, TlsFiles};
use sluice_log::MemoryLog;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::jobs::{ADDRESS, HARD, job};
use crate::listeners::with;
use crate::pool::{Miner, Pool, config};

/// Certificate files, and who trusts them.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> (Self, CertificateDer<'static>) {
        let files = Self { dir: TempDir::new().unwrap() };
        let cert = files.renew();
        (files, cert)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tls(&self) -> TlsFiles {
        TlsFiles { cert: self.path("cert.pem"), key: self.path("key.pem") }
    }

    /// Writes another certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, key_pair } = generate_simple_self_signed(vec!["pool.test".into()]).unwrap();
        std::fs::write(self.path("cert.pem"), cert.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key_pair.serialize_pem()).unwrap();
        cert.der().clone()
    }

    fn config(&self) -> GatewayConfig {
        with(config(), |listener| listener.tls = Some(self.tls()))
    }
}

/// Connects to the pool, sends `first` in the clear, and then speaks TLS if the pool's certificate is `trusted`.
async fn connect(pool: &Pool, trusted: &CertificateDer<'static>, first: &[u8]) -> std::io::Result<Miner> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut stream = TcpStream::connect(pool.gateway.addresses()[0]).await.unwrap();
    stream.write_all(first).await.unwrap();
    let name = ServerName::try_from("pool.test").unwrap();
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Miner::on(reader, writer))
}

#[tokio::test]
async fn a_miner_on_tls_mines_like_any_other() {
    let (files, cert) = Files::new();
    let pool = Pool::with(files.config()).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = connect(&pool, &cert, b"").await.unwrap();
    miner.log_in().await;
    assert_eq!(miner.next().await["method"], "mining.set_difficulty");
    assert_eq!(miner.next().await["method"], "mining.notify");
    let share = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    // Lines larger than a record of TLS, and lines in pieces.
    let long = format!("{{\"id\":1,\"method\":\"mining.ping\",\"x\":\"{}\"}}\n", "y".repeat(8000));
    miner.send(long.repeat(4).as_bytes()).await;
    for piece in long.as_bytes().chunks(1000) {
        miner.send(piece).await;
    }
    for _ in 0..5 {
        assert_eq!(miner.next().await["result"], "pong");
    }
    assert_eq!(miner.try_send(&[b'x'; 8193]).await.ok(), Some(()));
    // A goodbye of TLS, not a cut: otherwise reading would fail.
    assert!(miner.end().await.is_empty());
    assert_eq!(pool.gateway.status().lines_oversized, 1);
}

#[tokio::test]
async fn a_certificate_changes_and_connections_go_on() {
    let (files, old) = Files::new();
    let pool = Pool::with(files.config()).await;
    let mut before = connect(&pool, &old, b"").await.unwrap();
    before.log_in().await;
    let new = files.renew();
    pool.gateway.reload().unwrap();
    assert_eq!(before.ask("mining.ping", json!([])).await["result"], "pong");
    assert!(connect(&pool, &old, b"").await.is_err(), "the old certificate is gone");
    connect(&pool, &new, b"").await.unwrap().log_in().await;
    // Files that cannot be used change nothing.
    std::fs::write(files.path("cert.pem"), "no certificate").unwrap();
    assert!(pool.gateway.reload().unwrap_err().to_string().contains("cert.pem"));
    files.renew();
    std::fs::write(files.path("key.pem"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(pool.gateway.reload().unwrap_err().to_string().contains("it is not of the key"));
    connect(&pool, &new, b"").await.unwrap().log_in().await;
    assert_eq!(before.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn who_speaks_no_tls_is_let_go() {
    let (files, _) = Files::new();
    let pool = Pool::with(files.config()).await;
    let mut stranger = pool.connect().await;
    stranger.try_send(b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n").await.unwrap();
    pool.until(|status| status.tls_failed > 0).await;
    // What it is told is an alert of TLS, which is no line.
    pool.until(|status| status.connections == 0).await;
}

#[tokio::test]
async fn a_load_balancers_header_comes_in_front_of_tls() {
    let (files, cert) = Files::new();
    let mut config = files.config();
    config.listeners[0].proxy_from = vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()];
    let pool = Pool::with(config).await;
    let mut miner = connect(&pool, &cert, b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n").await.unwrap();
    miner.log_in().await;
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
}

#[tokio::test]
async fn a_miner_on_tls_that_does_not_read_is_evicted() {
    let (files, cert) = Files::new();
    let pool = Pool::with(files.config()).await;
    let (mut good, mut deaf) = (connect(&pool, &cert, b"").await.unwrap(), connect(&pool, &cert, b"").await.unwrap());
    deaf.never_read().await;
    assert_eq!(pool.gateway.status().evicted, 1);
    assert_eq!(good.ask("mining.ping", json!([])).await["result"], "pong");
}

/// A session that goes on on another thread takes its TLS with it.
#[tokio::test]
async fn a_connection_on_tls_moves_between_workers() {
    let (files, cert) = Files::new();
    let pool = Pool::with(files.config()).await;
    let mut first = connect(&pool, &cert, b"").await.unwrap();
    let subscribed = first.ask("mining.subscribe", json!(["x"])).await;
    let token = subscribed["result"][0][1][1].as_str().unwrap().to_owned();
    assert_eq!(first.ask("mining.authorize", json!([ADDRESS])).await["result"], true);
    // The other worker has fewer connections, so this one comes to it.
    let mut second = connect(&pool, &cert, b"").await.unwrap();
    let again = second.ask("mining.subscribe", json!(["x", token])).await;
    assert_eq!(again["result"][1], subscribed["result"][1]);
    assert_eq!(second.ask("mining.ping", json!([])).await["result"], "pong");
    assert_eq!(pool.gateway.status().connections_moved, 1);
    assert!(first.end().await.is_empty());
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_no_start() {
    let (files, _) = Files::new();
    let mut config = files.config();
    config.listeners[0].tls = Some(TlsFiles { cert: files.path("none.pem"), key: files.path("key.pem") });
    let error = Pool::try_on(MemoryLog::new(), 1, config).await.err().unwrap().to_string();
    assert!(error.contains("none.pem") && error.contains("PEM"), "{error}");
}
