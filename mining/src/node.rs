//! What the pool asks of Bitcoin nodes about blocks. The clients live in `jobmanager/`; operators know this trait.

use bytes::Bytes;
use sluice_proto::v1::NodeResult;

/// A block on its way to the nodes.
#[derive(Clone, Debug)]
pub struct SentBlock {
    /// Its hash, internal order.
    pub hash: [u8; 32],
    /// Its height.
    pub height: u32,
    /// The whole block, serialised with witness.
    pub bytes: Bytes,
    /// Nodes that take it are asked to prefer it over a rival of the same height. Not where the rival is ours.
    pub prefer: bool,
}

/// Nodes that take blocks.
pub trait BlockNodes: Send + Sync {
    /// Sends a block to all nodes at once and waits for their answers; where one took it, asks it to prefer the block
    /// over a rival of the same height, and which block it has at that height then. A node that has the block already
    /// has accepted it. One result per node; a node that is much later than one that took the block is not waited for.
    fn submit(&self, block: &SentBlock) -> Vec<NodeResult>;

    /// Where a block stands.
    ///
    /// # Errors
    /// If no node answers; the text says why, without credentials.
    fn status(&self, hash: [u8; 32], height: u32) -> Result<ChainStatus, String>;
}

/// Where a block stands in the best chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainStatus {
    /// In the best chain; 1 confirmation is the tip.
    Active {
        /// Blocks from it to the tip, both included.
        confirmations: u32,
    },
    /// Known, but another block has its height in the best chain.
    Inactive {
        /// Confirmations of that other block; 0 if the best chain is shorter.
        rival_confirmations: u32,
    },
    /// The node does not know it.
    Unknown,
}
