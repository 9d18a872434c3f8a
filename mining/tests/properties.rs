//! Properties of jobs and blocks over templates of all shapes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use common::{Frame, assembled, block_txs, commitment, gbt};
use proptest::prelude::*;
use sluice_mining::block::{self, BlockError, BlockTx};
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_mining::{Chain, JobTable, double_sha256, merkle, wire};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};

/// A target that every second hash meets, as on regtest.
const EASY: u32 = 0x207f_ffff;

fn transaction() -> impl Strategy<Value = Transaction> {
    let script = prop::collection::vec(any::<u8>(), 0..40);
    let witness = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3);
    let inputs = prop::collection::vec((any::<[u8; 32]>(), any::<u32>(), script.clone(), witness), 1..3);
    let outputs = prop::collection::vec((0..=21_000_000_u64, script), 1..3);
    (inputs, outputs, any::<u32>()).prop_map(|(inputs, outputs, lock)| Transaction {
        version: Version::TWO,
        lock_time: LockTime::from_consensus(lock),
        input: inputs
            .into_iter()
            .map(|(txid, vout, script, witness)| TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array(txid), vout },
                script_sig: ScriptBuf::from_bytes(script),
                sequence: Sequence::MAX,
                witness: Witness::from_slice(&witness),
            })
            .collect(),
        output: outputs
            .into_iter()
            .map(|(sats, script)| TxOut { value: Amount::from_sat(sats), script_pubkey: ScriptBuf::from_bytes(script) })
            .collect(),
    })
}

/// Transactions of a block, 0 to 70: every shape of tree up to 7 levels.
fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    (0..=70_usize).prop_flat_map(|count| prop::collection::vec(transaction(), count))
}

fn has_witness(transactions: &[Transaction]) -> bool {
    transactions.iter().any(|tx| tx.input.iter().any(|input| !input.witness.is_empty()))
}

/// A template with these transactions; `segwit` may be false only where no transaction has a witness.
fn template(transactions: &[Transaction], height: u32, tip: [u8; 32], version: u32, segwit: bool) -> Template {
    let frame = Frame {
        height,
        prev_hash: wire::display_hash(&tip),
        version,
        nbits: EASY,
        time: 1_700_000_000,
        coinbase_value: 5_000_000_123,
    };
    let commitment = segwit.then(|| commitment(transactions));
    Template::from_gbt(&gbt(&frame, transactions, commitment).to_string()).unwrap()
}

fn params(tag: &[u8], source_tag: [u8; 8]) -> JobParams<'_> {
    JobParams {
        job_id: 1,
        template_id: 1,
        template_clock: 1,
        payout: ScriptBuf::from_bytes(vec![0x51]),
        tag,
        source_tag,
        version_mask: 0x1fff_e000,
        stale_grace_ms: 2_000,
        keep_ms: 600_000,
        clean: true,
        chain: Chain::Regtest,
    }
}

fn judged(job: &Job, submission: &Submission) -> (bool, [u8; 32], [u8; 80]) {
    let mut table = JobTable::new();
    table.apply(Offset::new(1), EventTime::from_millis(0), job.clone()).unwrap();
    let judgement = table.judge(submission, EventTime::from_millis(1));
    (judgement.is_block, judgement.hash.unwrap(), judgement.job.unwrap().header(submission))
}

/// Every number of transactions up to a tree of 7 levels, once.
#[test]
fn the_branch_of_every_size_of_tree() {
    for count in 1..=130_u32 {
        let ids: Vec<[u8; 32]> = (0..count).map(|n| double_sha256(&n.to_le_bytes())).collect();
        let branch = merkle::branch(ids[1..].iter().copied());
        let leaves = ids.iter().map(|id| Txid::from_byte_array(*id));
        let full = bitcoin::merkle_tree::calculate_root(leaves).unwrap();
        assert_eq!(merkle::root_from_branch(ids[0], &branch), full.to_byte_array(), "{count} transactions");
        assert_eq!(merkle::root(ids), full.to_byte_array(), "{count} transactions");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_share_on_any_job_assembles_into_a_sound_block(
        transactions in transactions(),
        height in 1..10_000_000_u32,
        tip: [u8; 32],
        version in 0x2000_0000..0x4000_0000_u32,
        tag in prop::collection::vec(any::<u8>(), 0..=60),
        source_tag: [u8; 8],
        extranonce: (u32, u64),
        rolled: Option<u32>,
        nonce: u32,
        ask_segwit: bool,
    ) {
        let segwit = ask_segwit || has_witness(&transactions);
        let template = template(&transactions, height, tip, version, segwit);
        let job = build_job(&template, &params(&tag, source_tag)).unwrap();
        let submission = Submission {
            job_id: 1,
            extranonce1: extranonce.0,
            extranonce2: extranonce.1,
            ntime: job.ntime,
            nonce,
            version_bits: rolled.unwrap_or(0) & 0x1fff_e000,
            has_version_bits: rolled.is_some(),
            version_mask: 0x1fff_e000,
            job_clock: 1,
            ..Submission::default()
        };
        let (is_block, hash, header) = judged(&job, &submission);
        let coinbase = block::coinbase_bytes(&job, extranonce.0, extranonce.1);
        let block = assembled(&header, &coinbase, job.segwit, &block_txs(&transactions));

        prop_assert_eq!(block.block_hash().to_byte_array(), hash);
        prop_assert_eq!(is_block, block.header.validate_pow(block.header.target()).is_ok());
        prop_assert_eq!(block.header.prev_blockhash.to_byte_array(), tip);
        prop_assert_eq!(block.header.nonce, nonce);
        prop_assert_eq!(block.header.time, job.ntime);
        prop_assert_eq!(block.bip34_block_height().unwrap(), u64::from(height));
        prop_assert_eq!(&block.txdata[1..], &transactions[..]);

        let ours = &block.txdata[0];
        prop_assert!(ours.is_coinbase());
        prop_assert_eq!(ours.output[0].value.to_sat(), job.coinbase_value);
        prop_assert_eq!(ours.output.len(), 1 + usize::from(segwit));
        let script = ours.input[0].script_sig.as_bytes();
        prop_assert!((2..=100).contains(&script.len()));
        let end = [&extranonce.0.to_be_bytes()[..], &extranonce.1.to_be_bytes()].concat();
        prop_assert!(script.ends_with(&end), "the extranonces are what the script ends with");
        // A tag of one byte below 17 has a shorter push, which nobody asks for in a coinbase.
        let pushes: Vec<_> = ours.input[0].script_sig.instructions().map(|push| push.unwrap()).collect();
        prop_assert_eq!(pushes[1].push_bytes().unwrap().as_bytes(), &tag[..]);
        prop_assert_eq!(pushes[2].push_bytes().unwrap().as_bytes(), source_tag);
        prop_assert_eq!(pushes.len(), 4);
    }

    /// Two sources, or two jobs, never give out the same coinbase, whatever else they share.
    #[test]
    fn the_source_tag_makes_coinbases_differ(a: [u8; 8], b: [u8; 8], extranonce: (u32, u64)) {
        prop_assume!(a != b);
        let template = template(&[], 100, [7; 32], 0x2000_0000, true);
        let coinbase = |source_tag| {
            let job = build_job(&template, &params(b"/sluice/", source_tag)).unwrap();
            block::coinbase_bytes(&job, extranonce.0, extranonce.1)
        };
        prop_assert_ne!(coinbase(a), coinbase(b));
    }

    /// Whatever one transaction is exchanged for, and wherever, the block is not assembled.
    #[test]
    fn a_changed_transaction_is_noticed(
        mut transactions in prop::collection::vec(transaction(), 1..20),
        other in transaction(),
        at: prop::sample::Index,
    ) {
        let segwit = true;
        let template = template(&transactions, 100, [7; 32], 0x2000_0000, segwit);
        let job = build_job(&template, &params(b"", [1; 8])).unwrap();
        let submission = Submission { job_id: 1, job_clock: 1, ntime: job.ntime, ..Submission::default() };
        let (_, _, header) = judged(&job, &submission);
        let coinbase = block::coinbase_bytes(&job, 0, 0);
        let at = at.index(transactions.len());
        prop_assume!(transactions[at] != other);
        let same_id = transactions[at].compute_txid() == other.compute_txid();
        transactions[at] = other;
        let expected = if same_id { BlockError::WitnessCommitment } else { BlockError::MerkleRoot };
        prop_assert_eq!(block::assemble(&header, &coinbase, segwit, &block_txs(&transactions)), Err(expected));
    }

    /// The same transaction with another witness has the same id: only the commitment tells.
    #[test]
    fn a_changed_witness_is_noticed(
        mut transactions in prop::collection::vec(transaction(), 1..20),
        at: prop::sample::Index,
    ) {
        let template = template(&transactions, 100, [7; 32], 0x2000_0000, true);
        let job = build_job(&template, &params(b"", [1; 8])).unwrap();
        let submission = Submission { job_id: 1, job_clock: 1, ntime: job.ntime, ..Submission::default() };
        let (_, _, header) = judged(&job, &submission);
        let at = at.index(transactions.len());
        transactions[at].input[0].witness.push([0x5c]);
        let coinbase = block::coinbase_bytes(&job, 0, 0);
        let refused = block::assemble(&header, &coinbase, true, &block_txs(&transactions));
        prop_assert_eq!(refused, Err(BlockError::WitnessCommitment));
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>, text: String, header: Vec<u8>) {
        let _ = BlockTx::parse(bytes.clone().into());
        let _ = Template::from_gbt(&text);
        if let Some(header) = header.first_chunk() {
            let _ = block::assemble(header, &bytes, true, &[]);
        }
    }
}

/// An empty template of a chain with segwit commits to nothing but the coinbase; one without, to nothing at all.
#[test]
fn empty_templates_make_blocks() {
    for segwit in [true, false] {
        let template = template(&[], 5, [9; 32], 0x2000_0000, segwit);
        let job = build_job(&template, &params(b"/sluice/", [3; 8])).unwrap();
        assert!(job.merkle_branch.is_empty());
        let submission = Submission { job_id: 1, job_clock: 1, ntime: job.ntime, ..Submission::default() };
        let (_, _, header) = judged(&job, &submission);
        let block = assembled(&header, &block::coinbase_bytes(&job, 0, 0), segwit, &[]);
        assert_eq!(block.txdata[0].input[0].witness.len(), usize::from(segwit));
        assert_eq!(block.txdata[0].output.len(), 1 + usize::from(segwit));
    }
}

#[test]
fn a_block_above_the_largest_weight_is_refused() {
    let heavy = |witness: usize| {
        let tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array([1; 32]), vout: 0 },
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::from_slice(&[vec![0; witness]]),
            }],
            output: vec![],
        };
        let transactions = [tx];
        let template = template(&transactions, 100, [7; 32], 0x2000_0000, true);
        let job = build_job(&template, &params(b"", [1; 8])).unwrap();
        let submission = Submission { job_id: 1, job_clock: 1, ntime: job.ntime, ..Submission::default() };
        let (_, _, header) = judged(&job, &submission);
        block::assemble(&header, &block::coinbase_bytes(&job, 0, 0), true, &template.transactions)
    };
    let room = block::MAX_WEIGHT
        - bitcoin::consensus::deserialize::<bitcoin::Block>(&heavy(100_000).unwrap()).unwrap().weight().to_wu()
            as usize;
    let full = heavy(100_000 + room).unwrap();
    assert_eq!(bitcoin::consensus::deserialize::<bitcoin::Block>(&full).unwrap().weight().to_wu() as usize, 4_000_000);
    assert_eq!(heavy(100_001 + room), Err(BlockError::Weight(4_000_001)));
}
