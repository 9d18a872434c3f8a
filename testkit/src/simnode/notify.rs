//! Notices by ZMQ, as Bitcoin Core publishes them.

use anyhow::{Context as _, Result, anyhow};
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Txid};

/// The publishing end: topics `hashblock` and `sequence` on one endpoint.
pub(super) struct Publisher {
    socket: zmq::Socket,
    endpoint: String,
    /// Messages so far, by topic.
    counts: [u32; 2],
    /// Messages are counted but not sent.
    pub(super) lossy: bool,
    /// Changes of the mempool so far, which Bitcoin Core numbers from 1.
    mempool: u64,
}

impl Publisher {
    /// Listens on the loopback; port 0 means a free one.
    ///
    /// # Errors
    /// If the port is in use.
    pub(super) fn bind(port: u16) -> Result<Self> {
        let socket = zmq::Context::new().socket(zmq::PUB).context("a ZMQ socket")?;
        socket.set_linger(0)?;
        let port = if port == 0 { "*".to_owned() } else { port.to_string() };
        socket.bind(&format!("tcp://127.0.0.1:{port}")).with_context(|| format!("ZMQ on port {port}"))?;
        let endpoint = socket.get_last_endpoint()?.map_err(|_| anyhow!("ZMQ has no endpoint"))?;
        Ok(Self {
            socket,
            endpoint: endpoint.trim_end_matches('\0').to_owned(),
            counts: [0; 2],
            lossy: false,
            mempool: 0,
        })
    }

    /// `tcp://127.0.0.1:PORT`.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A new tip.
    pub(super) fn tip(&mut self, hash: BlockHash) {
        self.send(0, b"hashblock", shown(hash.to_byte_array()).to_vec());
    }

    /// A block was connected to or disconnected from the best chain.
    pub(super) fn block(&mut self, hash: BlockHash, connected: bool) {
        let label = if connected { b'C' } else { b'D' };
        self.send(1, b"sequence", [&shown(hash.to_byte_array())[..], &[label]].concat());
    }

    /// A transaction came to wait.
    pub(super) fn waiting(&mut self, txid: Txid) {
        self.mempool += 1;
        let body = [&shown(txid.to_byte_array())[..], b"A", &self.mempool.to_le_bytes()].concat();
        self.send(1, b"sequence", body);
    }

    fn send(&mut self, topic: usize, name: &[u8], body: Vec<u8>) {
        let count = self.counts[topic];
        self.counts[topic] = count.wrapping_add(1);
        if self.lossy {
            return;
        }
        // A publisher never blocks: what a subscriber cannot take is dropped, and the count shows the gap.
        if let Err(error) = self.socket.send_multipart([name.to_vec(), body, count.to_le_bytes().to_vec()], 0) {
            tracing::warn!(%error, "a notice was not published");
        }
    }
}

/// Hashes are published as explorers show them.
fn shown(mut hash: [u8; 32]) -> [u8; 32] {
    hash.reverse();
    hash
}
