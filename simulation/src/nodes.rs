//! Nodes that take every block; what becomes of it in the chain is in its hash, so that it is the same in every run.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_proto::v1::NodeResult;

/// The nodes of the simulated world.
#[derive(Default)]
pub struct SimNodes(Mutex<Chain>);

#[derive(Default)]
struct Chain {
    /// Height of the best chain.
    height: u32,
    /// Blocks that were sent, and how often.
    blocks: BTreeMap<[u8; 32], (u32, Bytes)>,
}

impl SimNodes {
    /// Without blocks.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The best chain has grown to this height.
    pub fn grow(&self, height: u32) {
        let mut chain = self.0.lock();
        chain.height = chain.height.max(height);
    }

    /// A block that was sent.
    pub fn block(&self, hash: &[u8; 32]) -> Option<Bytes> {
        self.0.lock().blocks.get(hash).map(|(_, bytes)| bytes.clone())
    }
}

impl BlockNodes for SimNodes {
    fn submit(&self, block: &SentBlock) -> Vec<NodeResult> {
        let mut chain = self.0.lock();
        let (times, _) = chain.blocks.entry(block.hash).or_insert_with(|| (0, block.bytes.clone()));
        *times += 1;
        // One in four is not reached at first.
        let reached = *times > 1 || block.hash[0] >= 64;
        let (accepted, preferred) = (reached, reached && block.prefer);
        vec![NodeResult { node: "node".into(), accepted, reached, preferred, ..NodeResult::default() }]
    }

    fn status(&self, hash: [u8; 32], height: u32) -> Result<ChainStatus, String> {
        let deep = self.0.lock().height.saturating_sub(height) + 1;
        Ok(match hash[1] {
            0..=31 if deep < 3 => return Err("no node answers".into()),
            0..=95 => ChainStatus::Inactive { rival_confirmations: deep },
            _ => ChainStatus::Active { confirmations: deep },
        })
    }
}
