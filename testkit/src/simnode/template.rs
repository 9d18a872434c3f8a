//! Block templates as Bitcoin Core gives them, and blocks as other miners make them.

use std::collections::HashMap;

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::script::{Builder, PushBytes};
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut,
    Txid, Witness,
};
use serde_json::{Value, json};
use sluice_mining::template::subsidy;
use sluice_mining::{Chain as Network, Target};

use super::chain::Chain;
use super::mempool::{Mempool, Waiting};
use super::validate::{MAX_SIGOPS, MAX_WEIGHT, commitment_output};

/// Weight and cost of signature operations that a template leaves to the coinbase.
const RESERVED_WEIGHT: u64 = 8000;
const RESERVED_SIGOPS: usize = 400;
/// Text in the coinbases of other miners.
const FOREIGN_TAG: &[u8; 16] = b"/another miner/ ";

/// Waiting transactions that fit a block, in order: none before one that it spends from.
pub(super) fn select(mempool: &Mempool) -> Vec<&Waiting> {
    let (mut weight, mut sigops) = (RESERVED_WEIGHT, RESERVED_SIGOPS);
    let mut left_out: Vec<Txid> = Vec::new();
    let mut chosen = Vec::new();
    for waiting in mempool.iter() {
        let of_one_left_out =
            waiting.transaction.input.iter().any(|input| left_out.contains(&input.previous_output.txid));
        let with = (weight + waiting.transaction.weight().to_wu(), sigops + waiting.sigops);
        if of_one_left_out || with.0 > MAX_WEIGHT || with.1 > MAX_SIGOPS {
            left_out.push(waiting.txid);
            continue;
        }
        (weight, sigops) = with;
        chosen.push(waiting);
    }
    chosen
}

/// Subsidy and fees of a block at a height.
fn reward(network: Network, height: u32, chosen: &[&Waiting]) -> Amount {
    let fees: Amount = chosen.iter().map(|waiting| waiting.fee).sum();
    Amount::from_sat(subsidy(network, height).get()) + fees
}

/// What `longpollid` stands for.
pub(super) fn longpoll_id(chain: &Chain, mempool: &Mempool) -> String {
    format!("{}{}", chain.tip(), mempool.updates)
}

/// The result of `getblocktemplate`.
pub(super) fn template(chain: &Chain, mempool: &Mempool, now: u64) -> Value {
    let chosen = select(mempool);
    let places: HashMap<Txid, usize> = chosen.iter().zip(1..).map(|(waiting, place)| (waiting.txid, place)).collect();
    let transactions: Vec<Value> = chosen.iter().map(|waiting| entry(waiting, &places)).collect();
    let height = chain.height() + 1;
    let min_time = chain.median_time(&chain.tip()) + 1;
    let commitment = commitment_output(chosen.iter().map(|waiting| &waiting.transaction)).script_pubkey;
    let target = Target::from_compact(chain.nbits()).map(|target| shown(target.to_le_bytes())).unwrap_or_default();
    let signet = chain.network() == Network::Signet;
    let rules =
        if signet { json!(["csv", "!segwit", "!signet", "taproot"]) } else { json!(["csv", "!segwit", "taproot"]) };
    let mut template = json!({
        "capabilities": ["proposal"],
        "version": 0x2000_0000,
        "rules": rules,
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": chain.tip().to_string(),
        "transactions": transactions,
        "coinbaseaux": {},
        "coinbasevalue": reward(chain.network(), height, &chosen).to_sat(),
        "longpollid": longpoll_id(chain, mempool),
        "target": target,
        "mintime": min_time,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": MAX_SIGOPS,
        "sizelimit": MAX_WEIGHT,
        "weightlimit": MAX_WEIGHT,
        "curtime": now.max(u64::from(min_time)),
        "bits": format!("{:08x}", chain.nbits()),
        "height": height,
        "default_witness_commitment": commitment.to_hex_string(),
    });
    if signet {
        template["signet_challenge"] = json!("51");
    }
    template
}

fn entry(waiting: &Waiting, places: &HashMap<Txid, usize>) -> Value {
    let inputs = waiting.transaction.input.iter();
    let depends: Vec<usize> = inputs.filter_map(|input| places.get(&input.previous_output.txid).copied()).collect();
    json!({
        "data": bitcoin::consensus::encode::serialize_hex(&waiting.transaction),
        "txid": waiting.txid.to_string(),
        "hash": waiting.transaction.compute_wtxid().to_string(),
        "depends": depends,
        "fee": waiting.fee.to_sat(),
        "sigops": waiting.sigops,
        "weight": waiting.transaction.weight().to_wu(),
    })
}

/// What an unsolved block of another miner is made of.
pub(super) struct Plan {
    pub(super) parent: BlockHash,
    /// Of the block, one above the parent's.
    pub(super) height: u32,
    /// Of the block, seconds.
    pub(super) time: u32,
    /// Makes the coinbase another than that of every other block.
    pub(super) unique: u64,
}

/// A block that is not solved yet.
pub(super) fn unsolved(chain: &Chain, plan: &Plan, chosen: &[&Waiting], payout: &ScriptBuf) -> Block {
    let others: Vec<Transaction> = chosen.iter().map(|waiting| waiting.transaction.clone()).collect();
    let script_sig = Builder::new()
        .push_int(i64::from(plan.height))
        .push_slice(FOREIGN_TAG)
        .push_slice(<&PushBytes>::from(&plan.unique.to_be_bytes()))
        .into_script();
    let value = reward(chain.network(), plan.height, chosen);
    let coinbase = Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig,
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[[0_u8; 32]]),
        }],
        output: vec![TxOut { value, script_pubkey: payout.clone() }, commitment_output(&others)],
    };
    let header = Header {
        version: Version::from_consensus(0x2000_0000),
        prev_blockhash: plan.parent,
        merkle_root: TxMerkleNode::all_zeros(),
        time: plan.time,
        bits: CompactTarget::from_consensus(chain.nbits()),
        nonce: 0,
    };
    let mut block = Block { header, txdata: std::iter::once(coinbase).chain(others).collect() };
    block.header.merkle_root = block.compute_merkle_root().unwrap_or_else(TxMerkleNode::all_zeros);
    block
}

fn shown(mut bytes: [u8; 32]) -> String {
    bytes.reverse();
    hex::encode(bytes)
}
