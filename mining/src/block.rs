//! Putting blocks together (DESIGN 6, assemble).

use bitcoin::consensus::{Decodable, Encodable};
use bitcoin::hashes::Hash;
use bitcoin::{Transaction, VarInt};
use bytes::Bytes;
use sluice_proto::Share;
use sluice_proto::v1::{Candidate, Job};

use crate::hash::double_sha256;
use crate::job::Judgement;
use crate::merkle;

/// Largest weight of a block (BIP141).
pub const MAX_WEIGHT: usize = 4_000_000;
/// What marks the witness commitment among the coinbase's outputs (BIP141).
pub(crate) const COMMITMENT: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
/// The witness reserved value of every coinbase of ours (BIP141).
pub(crate) const RESERVED: [u8; 32] = [0; 32];

/// A transaction of a block, parsed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTx {
    /// Transaction id.
    pub txid: [u8; 32],
    /// Transaction id with witness.
    pub wtxid: [u8; 32],
    /// Size without witness, bytes.
    pub base_size: usize,
    /// Serialised with witness.
    pub data: Bytes,
}

impl BlockTx {
    /// Parses a serialised transaction.
    ///
    /// # Errors
    /// If it is none, or bytes follow it.
    pub fn parse(data: Bytes) -> Result<Self, BlockError> {
        let transaction = transaction(&data)?;
        Ok(Self {
            txid: transaction.compute_txid().to_byte_array(),
            wtxid: transaction.compute_wtxid().to_byte_array(),
            base_size: transaction.base_size(),
            data,
        })
    }
}

/// Why a block cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Bytes that are no transaction.
    #[error("not a transaction: {0}")]
    Transaction(String),
    /// The transactions are not those the header commits to.
    #[error("the transactions do not give the header's merkle root: the template is another one")]
    MerkleRoot,
    /// The witnesses are not those the coinbase commits to.
    #[error("the coinbase's witness commitment does not fit the transactions")]
    WitnessCommitment,
    /// Above the largest weight.
    #[error("block of weight {0}, above {MAX_WEIGHT}")]
    Weight(usize),
}

/// The coinbase transaction of a job with these extranonces, without witness.
pub fn coinbase_bytes(job: &Job, extranonce1: u32, extranonce2: u64) -> Vec<u8> {
    [&job.coinbase1[..], &extranonce1.to_be_bytes(), &extranonce2.to_be_bytes(), &job.coinbase2[..]].concat()
}

/// What the priority lane carries of a share that makes a block; `None` if its job is unknown.
pub fn candidate<'a>(share: impl Into<Share<'a>>, judgement: &Judgement<'_>) -> Option<Candidate> {
    let share = share.into();
    let prepared = judgement.job?;
    let (header, job) = (prepared.header(share), prepared.job());
    Some(Candidate {
        header: Bytes::copy_from_slice(&header),
        coinbase: coinbase_bytes(job, share.extranonce1, share.extranonce2).into(),
        segwit: job.segwit,
        template_id: job.template_id,
        template_clock: job.template_clock,
        job_id: job.job_id,
        height: job.height,
        coinbase_value: job.coinbase_value,
        nbits: job.nbits,
        account: share.account.to_owned(),
        worker: share.worker.to_owned(),
        gateway: share.gateway,
        session: share.session,
    })
}

/// The whole block: header, coinbase (given without witness; the reserved value is added where `segwit` asks for it),
/// and the other transactions in block order. Merkle root, witness commitment and weight are checked first.
///
/// # Errors
/// If a check fails: the block would be refused.
pub fn assemble(
    header: &[u8; 80],
    coinbase: &[u8],
    segwit: bool,
    transactions: &[BlockTx],
) -> Result<Vec<u8>, BlockError> {
    let mut first = transaction(coinbase)?;
    let ids = std::iter::once(double_sha256(coinbase)).chain(transactions.iter().map(|tx| tx.txid));
    if merkle::root(ids) != header[36..68] {
        return Err(BlockError::MerkleRoot);
    }
    check_commitment(&first, segwit, transactions)?;
    if segwit && let Some(input) = first.input.first_mut() {
        input.witness.push(RESERVED);
    }
    let count = VarInt((transactions.len() + 1) as u64);
    let base = 80 + count.size() + coinbase.len() + transactions.iter().map(|tx| tx.base_size).sum::<usize>();
    let total = 80 + count.size() + first.total_size() + transactions.iter().map(|tx| tx.data.len()).sum::<usize>();
    if 3 * base + total > MAX_WEIGHT {
        return Err(BlockError::Weight(3 * base + total));
    }
    let mut block = Vec::with_capacity(total);
    block.extend_from_slice(header);
    let failed = |error: std::io::Error| BlockError::Transaction(error.to_string());
    count.consensus_encode(&mut block).map_err(|error| failed(error.into()))?;
    first.consensus_encode(&mut block).map_err(|error| failed(error.into()))?;
    transactions.iter().for_each(|tx| block.extend_from_slice(&tx.data));
    Ok(block)
}

/// The witness commitment of a block whose other transactions have these ids with witness (BIP141).
pub fn witness_commitment(wtxids: impl IntoIterator<Item = [u8; 32]>) -> [u8; 32] {
    let root = merkle::root(std::iter::once([0; 32]).chain(wtxids));
    let mut both = [0_u8; 64];
    both[..32].copy_from_slice(&root);
    both[32..].copy_from_slice(&RESERVED);
    double_sha256(&both)
}

/// Checks the coinbase's commitment: it must fit where there is one, and be there where a transaction has a witness.
fn check_commitment(coinbase: &Transaction, segwit: bool, transactions: &[BlockTx]) -> Result<(), BlockError> {
    let committed = coinbase
        .output
        .iter()
        .rev()
        .map(|output| output.script_pubkey.as_bytes())
        .find(|script| script.len() >= 38 && script[..6] == COMMITMENT)
        .map(|script| &script[6..38]);
    let fits = match committed {
        Some(committed) => segwit && committed == witness_commitment(transactions.iter().map(|tx| tx.wtxid)),
        None => !segwit && transactions.iter().all(|tx| tx.txid == tx.wtxid),
    };
    if fits { Ok(()) } else { Err(BlockError::WitnessCommitment) }
}

/// Parses a transaction that fills all of `data`.
pub(crate) fn transaction(data: &[u8]) -> Result<Transaction, BlockError> {
    let mut rest = data;
    let transaction =
        Transaction::consensus_decode(&mut rest).map_err(|error| BlockError::Transaction(error.to_string()))?;
    if rest.is_empty() {
        Ok(transaction)
    } else {
        Err(BlockError::Transaction(format!("{} bytes follow it", rest.len())))
    }
}
