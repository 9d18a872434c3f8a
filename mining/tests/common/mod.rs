//! What the integration tests share: templates as a node would give them.

#![allow(dead_code)] // each test binary uses its part

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash;
use bitcoin::{Block, Transaction};
use serde_json::{Value, json};
use sluice_mining::block::{self, BlockTx};

/// Header fields of a template.
pub struct Frame {
    pub height: u32,
    /// As explorers show it.
    pub prev_hash: String,
    pub version: u32,
    pub nbits: u32,
    pub time: u32,
    pub coinbase_value: u64,
}

/// What `getblocktemplate` would have answered with these transactions (the coinbase is not among them).
pub fn gbt(frame: &Frame, transactions: &[Transaction], commitment: Option<[u8; 32]>) -> Value {
    let listed: Vec<Value> = transactions
        .iter()
        .map(|tx| {
            let (txid, hash) = (tx.compute_txid().to_string(), tx.compute_wtxid().to_string());
            json!({"data": serialize_hex(tx), "txid": txid, "hash": hash, "depends": [], "fee": 0, "sigops": 1})
        })
        .collect();
    let mut template = json!({
        "capabilities": ["proposal"],
        "version": frame.version,
        "rules": ["csv", "!segwit", "taproot"],
        "previousblockhash": frame.prev_hash,
        "transactions": listed,
        "coinbasevalue": frame.coinbase_value,
        "mintime": frame.time.saturating_sub(1800),
        "curtime": frame.time,
        "bits": format!("{:08x}", frame.nbits),
        "height": frame.height,
    });
    if let Some(commitment) = commitment {
        template["default_witness_commitment"] = format!("6a24aa21a9ed{}", hex::encode(commitment)).into();
    }
    template
}

/// The witness commitment of a block with these transactions behind its coinbase, by the bitcoin crate's own tree.
pub fn commitment(transactions: &[Transaction]) -> [u8; 32] {
    let ids = std::iter::once([0; 32]).chain(transactions.iter().map(|tx| tx.compute_wtxid().to_byte_array()));
    let leaves = ids.map(bitcoin::WitnessMerkleNode::from_byte_array);
    let root = bitcoin::merkle_tree::calculate_root(leaves).expect("a coinbase");
    Block::compute_witness_commitment(&root, &[0; 32]).to_byte_array()
}

/// The transactions as assembly takes them.
pub fn block_txs(transactions: &[Transaction]) -> Vec<BlockTx> {
    let parse = |tx| BlockTx::parse(bitcoin::consensus::serialize(tx).into()).unwrap();
    transactions.iter().map(parse).collect()
}

/// Assembles, then reads the block with the bitcoin crate, which must find it sound.
pub fn assembled(header: &[u8; 80], coinbase: &[u8], segwit: bool, transactions: &[BlockTx]) -> Block {
    let bytes = block::assemble(header, coinbase, segwit, transactions).unwrap();
    let block: Block = bitcoin::consensus::deserialize(&bytes).unwrap();
    assert!(block.check_merkle_root());
    assert!(block.check_witness_commitment());
    assert_eq!(bitcoin::consensus::serialize(&block), bytes);
    block
}
