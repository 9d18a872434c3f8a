//! What Bitcoin Core checks of a block before it looks at what its transactions spend, in Core's order and words.

use std::collections::HashSet;

use bitcoin::consensus::Encodable;
use bitcoin::hashes::Hash;
use bitcoin::opcodes::all::OP_RETURN;
use bitcoin::script::Builder;
use bitcoin::{Block, Transaction, TxOut};
use sluice_mining::{Target, double_sha256};

/// What makes an output the witness commitment (BIP141): OP_RETURN, 36 bytes, the marker.
const COMMITMENT: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
/// Largest weight and largest cost of signature operations of a block (BIP141).
pub(super) const MAX_WEIGHT: u64 = 4_000_000;
/// Largest cost of signature operations of a block (BIP141).
pub(super) const MAX_SIGOPS: usize = 80_000;
/// How far a block's time may be ahead of the clock, seconds.
const MAX_AHEAD: u64 = 7200;

/// Where a block stands in the chain it wants to extend.
pub(super) struct Context {
    /// Its height.
    pub(super) height: u32,
    /// Median time of the block before it and the ten before that one.
    pub(super) median_time: u32,
    /// The compact target that all blocks of the chain have.
    pub(super) nbits: u32,
    /// The node's clock, seconds.
    pub(super) now: u64,
}

/// Checks that need nothing but the block (CheckBlock).
///
/// # Errors
/// The reason as Bitcoin Core gives it.
pub(super) fn alone(block: &Block) -> Result<(), String> {
    let target = Target::from_compact(block.header.bits.to_consensus()).map_err(|_| "high-hash")?;
    let hash = block.block_hash().to_byte_array();
    check(target.is_met_by(&hash), "high-hash")?;
    check(block.check_merkle_root(), "bad-txnmrklroot")?;
    check(!has_doubled_tail(block), "bad-txns-duplicate")?;
    let base: usize = 80 + block.txdata.iter().map(Transaction::base_size).sum::<usize>();
    check(!block.txdata.is_empty() && 4 * base as u64 <= MAX_WEIGHT, "bad-blk-length")?;
    check(block.txdata.first().is_some_and(Transaction::is_coinbase), "bad-cb-missing")?;
    check(!block.txdata[1..].iter().any(Transaction::is_coinbase), "bad-cb-multiple")?;
    block.txdata.iter().try_for_each(transaction)
}

/// Whether two neighbours in the merkle tree are the same: then the block without the second has the same root
/// (CVE-2012-2459).
fn has_doubled_tail(block: &Block) -> bool {
    let mut row: Vec<[u8; 32]> = block.txdata.iter().map(|tx| tx.compute_txid().to_byte_array()).collect();
    while row.len() > 1 {
        if row.as_chunks::<2>().0.iter().any(|[left, right]| left == right) {
            return true;
        }
        let pair = |both: &[[u8; 32]]| double_sha256(&[both[0], both[both.len() - 1]].concat());
        row = row.chunks(2).map(pair).collect();
    }
    false
}

fn transaction(tx: &Transaction) -> Result<(), String> {
    check(!tx.input.is_empty(), "bad-txns-vin-empty")?;
    check(!tx.output.is_empty(), "bad-txns-vout-empty")?;
    super::coins::output_sum(tx)?;
    let mut seen = HashSet::new();
    check(tx.input.iter().all(|input| seen.insert(input.previous_output)), "bad-txns-inputs-duplicate")?;
    if tx.is_coinbase() {
        check((2..=100).contains(&tx.input[0].script_sig.len()), "bad-cb-length")
    } else {
        check(!tx.input.iter().any(|input| input.previous_output.is_null()), "bad-txns-prevout-null")
    }
}

/// Checks of the header against the chain (ContextualCheckBlockHeader).
///
/// # Errors
/// The reason as Bitcoin Core gives it.
pub(super) fn header(block: &Block, context: &Context) -> Result<(), String> {
    let header = &block.header;
    check(header.bits.to_consensus() == context.nbits, "bad-diffbits")?;
    check(header.time > context.median_time, "time-too-old")?;
    check(u64::from(header.time) <= context.now.saturating_add(MAX_AHEAD), "time-too-new")?;
    let version = header.version.to_consensus();
    if version < 4 { Err(format!("bad-version(0x{version:08x})")) } else { Ok(()) }
}

/// Why [`body`] refuses a block.
pub(super) struct Refusal {
    /// The reason as Bitcoin Core gives it.
    pub(super) reason: &'static str,
    /// The header may belong to a good block whose witnesses were changed on the way: it is not held against it.
    pub(super) mutated: bool,
}

/// Checks of the transactions against the chain (ContextualCheckBlock).
///
/// # Errors
/// The reason as Bitcoin Core gives it.
pub(super) fn body(block: &Block, context: &Context) -> Result<(), Refusal> {
    let invalid = |reason| Refusal { reason, mutated: false };
    let mutated = |reason| Refusal { reason, mutated: true };
    // The lock must be below the block's height or the median time, not just at it (IsFinalTx).
    let height = bitcoin::absolute::Height::from_consensus(context.height.saturating_sub(1));
    let time = bitcoin::absolute::Time::from_consensus(context.median_time.saturating_sub(1));
    let (Ok(height), Ok(time)) = (height, time) else { return Err(invalid("bad-txns-nonfinal")) };
    if !block.txdata.iter().all(|tx| tx.is_absolute_timelock_satisfied(height, time)) {
        return Err(invalid("bad-txns-nonfinal"));
    }
    let coinbase = &block.txdata[0];
    let expected = Builder::new().push_int(i64::from(context.height)).into_script();
    if !coinbase.input[0].script_sig.as_bytes().starts_with(expected.as_bytes()) {
        return Err(invalid("bad-cb-height"));
    }
    if let Some(commitment) = commitment(coinbase) {
        let reserved: Vec<&[u8]> = coinbase.input[0].witness.iter().collect();
        let [reserved] = reserved[..] else { return Err(mutated("bad-witness-nonce-size")) };
        let Ok(reserved) = <[u8; 32]>::try_from(reserved) else { return Err(mutated("bad-witness-nonce-size")) };
        let root = block.witness_root().ok_or_else(|| mutated("bad-witness-merkle-match"))?;
        if Block::compute_witness_commitment(&root, &reserved).as_byte_array()[..] != *commitment {
            return Err(mutated("bad-witness-merkle-match"));
        }
    } else if block.txdata.iter().any(|tx| tx.input.iter().any(|input| !input.witness.is_empty())) {
        return Err(mutated("unexpected-witness"));
    }
    if block.weight().to_wu() > MAX_WEIGHT { Err(invalid("bad-blk-weight")) } else { Ok(()) }
}

/// The commitment in a coinbase: of several, the last counts.
fn commitment(coinbase: &Transaction) -> Option<&[u8]> {
    let scripts = coinbase.output.iter().rev().map(|output| output.script_pubkey.as_bytes());
    scripts.filter(|script| script.len() >= 38 && script.starts_with(&COMMITMENT)).map(|script| &script[6..38]).next()
}

/// Adds the witness reserved value of 32 zero bytes to a coinbase that commits to witnesses but has none, as Bitcoin
/// Core does with submitted blocks (UpdateUncommittedBlockStructures).
pub(super) fn complete(block: &mut Block) {
    if let Some(coinbase) = block.txdata.first_mut()
        && commitment(coinbase).is_some()
        && let Some(input) = coinbase.input.first_mut()
        && input.witness.is_empty()
    {
        input.witness.push([0_u8; 32]);
    }
}

/// The output that commits to these other transactions with the usual reserved value.
pub(super) fn commitment_output<'a>(others: impl IntoIterator<Item = &'a Transaction>) -> TxOut {
    let wtxids = others.into_iter().map(|tx| tx.compute_wtxid().to_byte_array());
    let leaves = std::iter::once([0_u8; 32]).chain(wtxids);
    let leaves = leaves.map(bitcoin::hashes::sha256d::Hash::from_byte_array);
    let root = bitcoin::merkle_tree::calculate_root(leaves).unwrap_or_else(bitcoin::hashes::sha256d::Hash::all_zeros);
    let root = bitcoin::WitnessMerkleNode::from_raw_hash(root);
    let commitment = Block::compute_witness_commitment(&root, &[0; 32]);
    let mut script = vec![OP_RETURN.to_u8(), 36];
    script.extend_from_slice(&COMMITMENT[2..]);
    script.extend_from_slice(commitment.as_byte_array());
    TxOut { value: bitcoin::Amount::ZERO, script_pubkey: script.into() }
}

/// A block's bytes.
pub(super) fn bytes(block: &Block) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(block.total_size());
    // Writing to memory does not fail.
    block.consensus_encode(&mut bytes).ok();
    bytes
}

fn check(holds: bool, reason: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason.to_owned()) }
}
