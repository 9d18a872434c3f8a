//! The nodes as takers of blocks (DESIGN 6, submit; invariant B1).

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_mining::node::{BlockNodes, ChainStatus};
use sluice_mining::wire::display_hash;
use sluice_proto::v1::NodeResult;

use crate::node::{NodeClient, NodeConfig, NodeError};

/// A submission is given up after this long.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A question about a block is given up after this long.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// All nodes, each with one connection for blocks and one for questions.
pub struct Nodes {
    nodes: Vec<(NodeClient, NodeClient)>,
}

impl Nodes {
    /// Clients of these nodes; nothing is connected yet.
    ///
    /// # Errors
    /// If a node's settings cannot be used.
    pub fn new(configs: &[NodeConfig]) -> Result<Self, NodeError> {
        let client =
            |config: &NodeConfig| Ok((NodeClient::new(config, SUBMIT_TIMEOUT)?, NodeClient::new(config, ASK_TIMEOUT)?));
        Ok(Self { nodes: configs.iter().map(client).collect::<Result<_, _>>()? })
    }

    /// Makes the connections that blocks will go out on, so that the first block does not wait for it.
    pub fn warm(&self) {
        for (submit, _) in &self.nodes {
            if let Err(error) = submit.best_hash() {
                tracing::warn!(%error, "a node for blocks does not answer yet");
            }
        }
    }
}

impl BlockNodes for Nodes {
    fn submit(&self, hash: [u8; 32], block: &Bytes) -> Vec<NodeResult> {
        std::thread::scope(|scope| {
            let sent: Vec<_> =
                self.nodes.iter().map(|(node, _)| (node, scope.spawn(move || submit_to(node, &hash, block)))).collect();
            let failed = |node: &NodeClient| NodeResult {
                node: node.name().to_owned(),
                answer: "the submission failed inside the pool".into(),
                ..NodeResult::default()
            };
            sent.into_iter().map(|(node, thread)| thread.join().unwrap_or_else(|_| failed(node))).collect()
        })
    }

    fn status(&self, hash: [u8; 32], height: u32) -> Result<ChainStatus, String> {
        let mut unknown = false;
        let mut errors = Vec::new();
        for (_, node) in &self.nodes {
            match node.status(&hash, height) {
                Ok(ChainStatus::Unknown) => unknown = true,
                Ok(status) => return Ok(status),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if unknown { Ok(ChainStatus::Unknown) } else { Err(errors.join("; ")) }
    }
}

fn submit_to(node: &NodeClient, hash: &[u8; 32], block: &[u8]) -> NodeResult {
    let begun = Instant::now();
    let answer = node.submit(block);
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (reached, accepted, answer) = match answer {
        Ok(None) => (true, prefer(node, hash), "accepted".to_owned()),
        Ok(Some(reason)) if reason == "duplicate" => (true, prefer(node, hash), reason),
        // A rival of the same height came first: the node keeps ours beside it, and may change over to it.
        Ok(Some(reason)) if reason == "inconclusive" => (true, prefer(node, hash) && is_active(node, hash), reason),
        Ok(Some(reason)) => (true, false, reason),
        Err(error) => (error.reached(), false, error.to_string()),
    };
    let shown = display_hash(hash);
    tracing::info!(node = node.name(), block = %shown, accepted, %answer, micros, "block sent");
    NodeResult { node: node.name().to_owned(), accepted, answer, micros, reached }
}

/// Asks a node that has a block to prefer it over a rival. It has the block whatever it says to that.
fn prefer(node: &NodeClient, hash: &[u8; 32]) -> bool {
    if let Err(error) = node.prefer(hash) {
        tracing::warn!(%error, block = %display_hash(hash), "the node was not asked to prefer our block");
    }
    true
}

/// Whether a node has a block in its best chain.
fn is_active(node: &NodeClient, hash: &[u8; 32]) -> bool {
    match node.header(hash) {
        Ok(header) => header.is_some_and(|header| header.confirmations > 0),
        Err(error) => {
            tracing::warn!(%error, block = %display_hash(hash), "the node did not say whether it prefers our block");
            false
        }
    }
}
