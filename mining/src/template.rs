//! Block templates of a node (BIP22, BIP23) and the jobs made of them.

use bitcoin::absolute::LockTime;
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use bytes::Bytes;
use serde::Deserialize;
use sluice_proto::v1::{Job, TemplateBody};

use crate::block::{BlockError, BlockTx, COMMITMENT, witness_commitment};
use crate::{Chain, EXTRANONCE1_SIZE, EXTRANONCE2_SIZE, Sats, Target, TargetError, merkle, wire};

/// A template: what a block on top of a tip may hold.
#[derive(Clone, Debug)]
pub struct Template {
    /// Height of the block.
    pub height: u32,
    /// Hash of the tip.
    pub prev_hash: [u8; 32],
    /// Block version.
    pub version: u32,
    /// Compact target.
    pub nbits: u32,
    /// The node's time, seconds.
    pub cur_time: u32,
    /// Smallest block time, seconds.
    pub min_time: u32,
    /// Subsidy and fees.
    pub coinbase_value: Sats,
    /// The coinbase must commit to the witnesses: as recomputed from the transactions.
    pub commitment: Option<[u8; 32]>,
    /// Transactions in block order, without the coinbase.
    pub transactions: Vec<BlockTx>,
}

/// What a job is made of besides its template.
#[derive(Clone, Debug)]
pub struct JobParams<'a> {
    /// Id of the job.
    pub job_id: u64,
    /// Id of the template in `mining.templates`; 0 without transactions.
    pub template_id: u64,
    /// Offset of the template's last chunk.
    pub template_clock: u64,
    /// Script that the coinbase pays.
    pub payout: ScriptBuf,
    /// Text of the pool in the coinbase.
    pub tag: &'a [u8],
    /// Unique per source of jobs and per job, so that no two sources ever give out the same work.
    pub source_tag: [u8; 8],
    /// Version bits that miners may roll.
    pub version_mask: u32,
    /// Grace for shares of the old tip, milliseconds.
    pub stale_grace_ms: u32,
    /// Life of a job after the next one, milliseconds.
    pub keep_ms: u32,
    /// A new tip.
    pub clean: bool,
    /// The chain.
    pub chain: Chain,
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Not what getblocktemplate answers.
    #[error("the node's template cannot be read: {0}")]
    Malformed(String),
    /// Its target is none.
    #[error("the node's template: {0}")]
    Target(#[from] TargetError),
    /// A transaction in it is none.
    #[error("the node's template, transaction {0}: {1}")]
    Transaction(usize, BlockError),
    /// A transaction's id is not that of its data.
    #[error("the node's template, transaction {0}: its data has another id than it says")]
    TransactionId(usize),
    /// Its witness commitment is not that of its transactions.
    #[error("the node's template: its witness commitment does not fit its transactions")]
    Commitment,
    /// The script of the coinbase would be longer than 100 bytes.
    #[error("the coinbase's script would have {0} bytes, at most 100 are allowed: shorten the pool's tag")]
    ScriptSize(usize),
}

#[derive(Deserialize)]
struct Gbt {
    version: u32,
    previousblockhash: String,
    transactions: Vec<GbtTx>,
    coinbasevalue: u64,
    mintime: u32,
    curtime: u32,
    bits: String,
    height: u32,
    default_witness_commitment: Option<String>,
}

#[derive(Deserialize)]
struct GbtTx {
    data: String,
    txid: String,
    hash: String,
}

impl Template {
    /// Reads the result of `getblocktemplate`. Ids and commitment are computed from the transactions' data and
    /// compared with what the node says.
    ///
    /// # Errors
    /// If the text is no template or contradicts itself.
    pub fn from_gbt(json: &str) -> Result<Self, TemplateError> {
        let malformed = |what: &dyn std::fmt::Display| TemplateError::Malformed(what.to_string());
        let gbt: Gbt = serde_json::from_str(json).map_err(|error| malformed(&error))?;
        let nbits = u32::from_str_radix(&gbt.bits, 16).map_err(|error| malformed(&error))?;
        Target::from_compact(nbits)?;
        let transactions = gbt.transactions.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let commitment = match &gbt.default_witness_commitment {
            Some(said) => Some(checked_commitment(said, &transactions)?),
            None if transactions.iter().any(|tx| tx.txid != tx.wtxid) => return Err(TemplateError::Commitment),
            None => None,
        };
        Ok(Self {
            height: gbt.height,
            prev_hash: wire::parse_display_hash(&gbt.previousblockhash)
                .ok_or_else(|| malformed(&"previousblockhash is not 32 bytes of hex"))?,
            version: gbt.version,
            nbits,
            cur_time: gbt.curtime,
            min_time: gbt.mintime,
            coinbase_value: Sats::new(gbt.coinbasevalue).ok_or_else(|| malformed(&"coinbasevalue above all money"))?,
            commitment,
            transactions,
        })
    }

    /// A template without transactions on top of the tip `tip`, whose block has this template's height: for the first
    /// moments of a new tip, before the node has made a template. `None` where the target may change at that height.
    pub fn empty_on(&self, chain: Chain, tip: [u8; 32], now: u32) -> Option<Self> {
        let height = self.height.checked_add(1)?;
        if !chain.keeps_target_at(height) {
            return None;
        }
        // The new tip's median time is not known yet; the clock is above it, or the node would not have taken the tip.
        let now = now.max(self.min_time);
        Some(Self {
            height,
            prev_hash: tip,
            version: self.version,
            nbits: self.nbits,
            cur_time: now,
            min_time: now,
            coinbase_value: subsidy(chain, height),
            commitment: chain.always_commits().then(|| witness_commitment([])),
            transactions: Vec::new(),
        })
    }

    /// The transactions as `mining.templates` carries them; those for which `known` holds only by their id.
    pub fn body(&self, known: impl Fn(&[u8; 32]) -> bool) -> TemplateBody {
        let wtxids: Vec<u8> = self.transactions.iter().flat_map(|tx| tx.wtxid).collect();
        let fresh = self.transactions.iter().filter(|tx| !known(&tx.wtxid)).map(|tx| tx.data.clone()).collect();
        TemplateBody { wtxids: wtxids.into(), new_transactions: fresh }
    }
}

fn read((number, tx): (usize, &GbtTx)) -> Result<BlockTx, TemplateError> {
    let data = const_hex::decode(&tx.data)
        .map_err(|error| TemplateError::Transaction(number, BlockError::Transaction(error.to_string())))?;
    let parsed = BlockTx::parse(data.into()).map_err(|error| TemplateError::Transaction(number, error))?;
    let said = (wire::parse_display_hash(&tx.txid), wire::parse_display_hash(&tx.hash));
    if said == (Some(parsed.txid), Some(parsed.wtxid)) { Ok(parsed) } else { Err(TemplateError::TransactionId(number)) }
}

/// The commitment of the transactions, if it is the one in the script that the node gives in hex.
fn checked_commitment(script: &str, transactions: &[BlockTx]) -> Result<[u8; 32], TemplateError> {
    let ours = witness_commitment(transactions.iter().map(|tx| tx.wtxid));
    let script = hex::decode(script).map_err(|error| TemplateError::Malformed(error.to_string()))?;
    let said = script.strip_prefix(&COMMITMENT).and_then(|rest| rest.get(..32));
    if said == Some(&ours) { Ok(ours) } else { Err(TemplateError::Commitment) }
}

/// New coins of a block at `height`.
pub fn subsidy(chain: Chain, height: u32) -> Sats {
    let halvings = height / chain.halving_interval();
    let sats = if halvings >= 64 { 0 } else { (50 * 100_000_000_u64) >> halvings };
    Sats::new(sats).unwrap_or(Sats::ZERO)
}

/// Makes a job of a template.
///
/// # Errors
/// If the coinbase's script would be too long or the template's target is none.
pub fn build_job(template: &Template, params: &JobParams<'_>) -> Result<Job, TemplateError> {
    Target::from_compact(template.nbits)?;
    let (coinbase1, coinbase2) = coinbase_parts(template, params)?;
    let branch = merkle::branch(template.transactions.iter().map(|tx| tx.txid));
    Ok(Job {
        job_id: params.job_id,
        template_id: params.template_id,
        template_clock: params.template_clock,
        height: template.height,
        prev_hash: Bytes::copy_from_slice(&template.prev_hash),
        version: template.version,
        version_mask: params.version_mask,
        nbits: template.nbits,
        ntime: template.cur_time,
        min_ntime: template.min_time,
        max_ntime: template.cur_time.saturating_add(7200),
        coinbase1: coinbase1.into(),
        coinbase2: coinbase2.into(),
        merkle_branch: branch.iter().map(|hash| Bytes::copy_from_slice(hash)).collect(),
        coinbase_value: template.coinbase_value.get(),
        segwit: template.commitment.is_some(),
        clean: params.clean,
        stale_grace_ms: params.stale_grace_ms,
        keep_ms: params.keep_ms,
        network: params.chain.as_str().to_owned(),
    })
}

/// Size of a job's coinbase transaction without witness, with both extranonces in it, bytes: what miners hash, and what
/// their firmware limits.
pub fn coinbase_size(job: &Job) -> usize {
    job.coinbase1.len() + EXTRANONCE1_SIZE + EXTRANONCE2_SIZE + job.coinbase2.len()
}

/// The coinbase transaction without witness, cut around the extranonces.
fn coinbase_parts(template: &Template, params: &JobParams<'_>) -> Result<(Vec<u8>, Vec<u8>), TemplateError> {
    let extranonce = EXTRANONCE1_SIZE + EXTRANONCE2_SIZE;
    let script = Builder::new()
        .push_int(i64::from(template.height))
        .push_slice(push(params.tag)?)
        .push_slice(params.source_tag)
        .push_slice(push(&vec![0; extranonce])?)
        .into_script();
    if script.len() > 100 {
        return Err(TemplateError::ScriptSize(script.len()));
    }
    let script_end = script.len();
    let mut outputs =
        vec![TxOut { value: Amount::from_sat(template.coinbase_value.get()), script_pubkey: params.payout.clone() }];
    if let Some(commitment) = template.commitment {
        let script = [&COMMITMENT[..], &commitment[..]].concat();
        outputs.push(TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(script) });
    }
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: script,
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: outputs,
    };
    let bytes = bitcoin::consensus::serialize(&transaction);
    // Version (4), number of inputs (1), outpoint (36), length of the script (1, since it is at most 100).
    let end = 4 + 1 + 36 + 1 + script_end;
    Ok((bytes[..end - extranonce].to_vec(), bytes[end..].to_vec()))
}

fn push(bytes: &[u8]) -> Result<PushBytesBuf, TemplateError> {
    PushBytesBuf::try_from(bytes.to_vec()).map_err(|_| TemplateError::ScriptSize(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(height: u32) -> Template {
        Template {
            height,
            prev_hash: [1; 32],
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            cur_time: 1_700_000_000,
            min_time: 1_699_999_000,
            coinbase_value: Sats::new(5_000_000_000).unwrap(),
            commitment: None,
            transactions: Vec::new(),
        }
    }

    fn params(tag: &[u8]) -> JobParams<'_> {
        JobParams {
            job_id: 7,
            template_id: 0,
            template_clock: 0,
            payout: ScriptBuf::from_bytes(vec![0x51]),
            tag,
            source_tag: *b"12345678",
            version_mask: 0x1fff_e000,
            stale_grace_ms: 0,
            keep_ms: 0,
            clean: true,
            chain: Chain::Regtest,
        }
    }

    /// The coinbase's script up to the extranonces, without its length.
    fn script(height: u32, tag: &[u8]) -> Vec<u8> {
        let job = build_job(&template(height), &params(tag)).unwrap();
        let script = &job.coinbase1[41..];
        assert_eq!(usize::from(script[0]), script.len() - 1 + EXTRANONCE1_SIZE + EXTRANONCE2_SIZE);
        script[1..].to_vec()
    }

    /// BIP34 asks for the height as a script number in its shortest form; a set top bit needs one more byte.
    #[test]
    fn trap_13_heights_are_pushed_in_their_shortest_form() {
        for (height, push) in [
            (1, "51"),
            (2, "52"),
            (16, "60"),
            (17, "0111"),
            (0x7f, "017f"),
            (0x80, "028000"),
            (0xff, "02ff00"),
            (0x100, "020001"),
            (0x7fff, "02ff7f"),
            (0x8000, "03008000"),
            (0xffff, "03ffff00"),
            (951_658, "036a850e"),
            (0x7f_ffff, "03ffff7f"),
            (0x80_0000, "0400008000"),
            (0xff_ffff, "04ffffff00"),
            (0x7fff_ffff, "04ffffff7f"),
            (0x8000_0000, "050000008000"),
        ] {
            assert!(script(height, b"/tag/").starts_with(&hex::decode(push).unwrap()), "{height:#x}: {push}");
        }
    }

    #[test]
    fn trap_08_the_script_holds_tag_source_and_room_for_extranonces() {
        assert_eq!(hex::encode(script(17, b"/tag/")), "0111052f7461672f0831323334353637380c");
    }

    #[test]
    fn trap_13_a_tag_may_fill_the_script_up_to_100_bytes_and_no_further() {
        // Height (4), source tag (9), extranonces (13); a tag takes one byte more than it has.
        let longest = vec![b'x'; 100 - 4 - 9 - 13 - 1];
        assert_eq!(script(951_658, &longest).len() + EXTRANONCE1_SIZE + EXTRANONCE2_SIZE, 100);
        let longer = [&longest[..], b"x"].concat();
        let refused = build_job(&template(951_658), &params(&longer));
        assert_eq!(refused, Err(TemplateError::ScriptSize(101)));
        let huge = vec![b'x'; 70_000];
        assert!(matches!(build_job(&template(1), &params(&huge)), Err(TemplateError::ScriptSize(70_000..))));
    }

    /// On a new regtest chain without a tag: two bytes at least, and no push that another length would shorten.
    #[test]
    fn trap_13_the_shortest_script_is_well_above_two_bytes() {
        assert_eq!(hex::encode(script(1, b"")), "51000831323334353637380c");
    }

    /// The S21 takes about 2.25 kB, Whatsminer 6.5 kB, NiceHash less than either: the largest coinbase of one output that
    /// can be made is far below.
    #[test]
    fn quirk_coinbases_stay_within_what_known_firmware_takes() {
        let committing = Template { commitment: Some([7; 32]), ..template(0x7fff_ffff) };
        let widest = ScriptBuf::from_bytes(vec![0x51; 42]);
        let params = JobParams { payout: widest, ..params(&[b'x'; 72]) };
        let job = build_job(&committing, &params).unwrap();
        let script = usize::from(job.coinbase1[41]);
        let zeros = [0; EXTRANONCE1_SIZE + EXTRANONCE2_SIZE];
        let whole = [&job.coinbase1[..], &zeros, &job.coinbase2].concat();
        assert_eq!((script, coinbase_size(&job)), (100, whole.len()));
        let coinbase: Transaction = bitcoin::consensus::deserialize(&whole).unwrap();
        assert_eq!(coinbase.output.len(), 2);
        assert!(whole.len() < 300, "{} bytes", whole.len());
    }

    #[test]
    fn times_and_rules_reach_the_job() {
        let job = build_job(&template(5), &params(b"")).unwrap();
        assert_eq!((job.ntime, job.min_ntime, job.max_ntime), (1_700_000_000, 1_699_999_000, 1_700_007_200));
        assert_eq!((job.version, job.version_mask, job.nbits), (0x2000_0000, 0x1fff_e000, 0x1d00_ffff));
        assert_eq!((job.coinbase_value, job.segwit, job.clean), (5_000_000_000, false, true));
        assert_eq!((job.job_id, job.network.as_str()), (7, "regtest"));
        let late = Template { cur_time: u32::MAX, ..template(5) };
        assert_eq!(build_job(&late, &params(b"")).unwrap().max_ntime, u32::MAX);
    }

    #[test]
    fn the_subsidy_halves() {
        for (chain, height, sats) in [
            (Chain::Main, 0, 5_000_000_000),
            (Chain::Main, 209_999, 5_000_000_000),
            (Chain::Main, 210_000, 2_500_000_000),
            (Chain::Main, 420_000, 1_250_000_000),
            (Chain::Main, 630_000, 625_000_000),
            (Chain::Main, 840_000, 312_500_000),
            (Chain::Main, 32 * 210_000, 1),
            (Chain::Main, 33 * 210_000, 0),
            (Chain::Main, u32::MAX, 0),
            (Chain::Regtest, 149, 5_000_000_000),
            (Chain::Regtest, 150, 2_500_000_000),
            (Chain::Regtest, 64 * 150, 0),
            (Chain::Signet, 210_000, 2_500_000_000),
        ] {
            assert_eq!(subsidy(chain, height).get(), sats, "{chain} {height}");
        }
    }

    /// All subsidies together: just below 21 million bitcoin.
    #[test]
    fn all_coins_there_will_be() {
        let total: u64 = (0..64).map(|halving| 210_000 * subsidy(Chain::Main, halving * 210_000).get()).sum();
        assert_eq!(total, 2_099_999_997_690_000);
    }

    #[test]
    fn an_empty_template_follows_a_tip_unless_the_target_may_change() {
        let old = Template { commitment: Some([1; 32]), ..template(1_999) };
        let empty = old.empty_on(Chain::Main, [2; 32], 1_700_000_500).unwrap();
        assert_eq!((empty.height, empty.prev_hash, empty.commitment), (2_000, [2; 32], None));
        let signet = old.empty_on(Chain::Signet, [2; 32], 1_700_000_500).unwrap();
        assert_eq!(signet.commitment, Some(witness_commitment([])), "a signet takes no block without one");
        assert_eq!((empty.cur_time, empty.min_time, empty.nbits), (1_700_000_500, 1_700_000_500, 0x1d00_ffff));
        assert_eq!((empty.coinbase_value.get(), empty.transactions.len()), (5_000_000_000, 0));
        let early = old.empty_on(Chain::Main, [2; 32], 5).unwrap();
        assert_eq!(early.min_time, old.min_time, "a clock that runs behind the chain does not count");
        assert!(template(2_015).empty_on(Chain::Main, [2; 32], 0).is_none(), "the next block's target may change");
        assert!(template(2_016).empty_on(Chain::Main, [2; 32], 0).is_some());
        assert!(template(2_015).empty_on(Chain::Regtest, [2; 32], 0).is_some());
        assert!(template(5).empty_on(Chain::Test, [2; 32], 0).is_none(), "blocks of minimal difficulty");
        assert!(template(u32::MAX).empty_on(Chain::Regtest, [2; 32], 0).is_none());
        let halving = template(209_999).empty_on(Chain::Signet, [2; 32], 0).unwrap();
        assert_eq!(halving.coinbase_value.get(), 2_500_000_000);
    }

    #[test]
    fn a_body_carries_only_what_is_not_known() {
        let tx = |id: u8| BlockTx { txid: [id; 32], wtxid: [id; 32], base_size: 1, data: vec![id].into() };
        let template = Template { transactions: vec![tx(1), tx(2), tx(3)], ..template(5) };
        let body = template.body(|id| id == &[2; 32]);
        assert_eq!(body.wtxids, [[1; 32], [2; 32], [3; 32]].concat());
        assert_eq!(body.new_transactions, [vec![1], vec![3]]);
    }
}
