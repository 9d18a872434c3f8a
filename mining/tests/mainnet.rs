//! The mining code against blocks of the main chain: what miners found once must come out again, to the byte.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bitcoin::hashes::Hash;
use bitcoin::{Block, ScriptBuf, Transaction};
use common::{Frame, assembled, block_txs, commitment, gbt};
use sluice_mining::block::{self, BlockError, BlockTx};
use sluice_mining::template::{JobParams, Template, TemplateError, build_job, subsidy};
use sluice_mining::{
    Chain, Difficulty, EXTRANONCE1_SIZE, EXTRANONCE2_SIZE, Extranonce, JobTable, PreparedJob, Target, double_sha256,
    header_hash, merkle, wire,
};
use sluice_proto::v1::{Job, Reason, Submission};
use sluice_proto::{EventTime, Offset};

/// Bits that BIP320 gives to miners.
const ROLLED: u32 = 0x1fff_e000;
const EXTRANONCE: usize = EXTRANONCE1_SIZE + EXTRANONCE2_SIZE;

/// A block and what is known of it from elsewhere (`data/README.md`).
struct Known {
    height: u32,
    hash: &'static str,
    count: usize,
    segwit: bool,
    rolled: bool,
    nbits: u32,
    /// Whole part of the network difficulty.
    difficulty: u64,
    work: u128,
    compressed: &'static [u8],
}

macro_rules! known {
    ($height:literal, $hash:literal, $count:literal, $segwit:literal, $rolled:literal, $nbits:literal, $difficulty:literal, $work:literal) => {
        Known {
            height: $height,
            hash: $hash,
            count: $count,
            segwit: $segwit,
            rolled: $rolled,
            nbits: $nbits,
            difficulty: $difficulty,
            work: $work,
            compressed: include_bytes!(concat!("data/", $height, ".zst")),
        }
    };
}

#[rustfmt::skip] // a table
const BLOCKS: [Known; 9] = [
    known!(0, "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f", 1, false, false, 0x1d00ffff, 1, 0x1_0001_0001),
    known!(170, "00000000d1145790a8694403d4063f323d499e655c83426834d4ce2f8dd4a2ee", 2, false, false, 0x1d00ffff, 1, 0x1_0001_0001),
    known!(99960, "0000000000032d10c9c3fe953772e3e0b0e3b7553aad593384a6ccf30f1c9c27", 3, false, false, 0x1b04864c, 14_484, 0x3894_6224_e37e),
    known!(99993, "00000000000306f827d8cc344b91a2a74074e3e1800e523ead74a20a915db27c", 4, false, false, 0x1b04864c, 14_484, 0x3894_6224_e37e),
    known!(100000, "000000000003ba27aa200b1cecaad478d2b00432346c3f1f3986da1afd33e506", 4, false, false, 0x1b04864c, 14_484, 0x3894_6224_e37e),
    known!(250000, "000000000000003887df1f29024b06fc2200b55f8af8f35453d7be294df2d214", 156, false, false, 0x1972dbf2, 37_392_766, 0x23a_93b8_b6a8_b5e7),
    known!(330000, "00000000000000000faabab19f17c0178c754dbed023e6c871dcaf74159c5f02", 81, false, false, 0x181bc330, 39_603_666_252, 0x9_3899_35e5_a102_d6bc),
    known!(625007, "000000000000000000007b2561b9d69cccbb06df8faed054432f63b96ee7d3dc", 3083, true, true, 0x171320bc, 14_715_214_060_656, 0xd62_347d_90ee_1852_4ed3),
    known!(951658, "00000000000000000001cbe4b4add61d60d9a470e0958f1b4024f202db9ca628", 374, true, true, 0x1702068f, 138_955_357_012_247, 0x7e61_8f13_502a_9c44_8d32),
];

/// A block, read.
struct Mined {
    known: &'static Known,
    bytes: Vec<u8>,
    block: Block,
}

impl Mined {
    fn all() -> impl Iterator<Item = Self> {
        BLOCKS.iter().map(|known| {
            let bytes = zstd::stream::decode_all(known.compressed).unwrap();
            let block: Block = bitcoin::consensus::deserialize(&bytes).unwrap();
            assert_eq!(block.txdata.len(), known.count, "block {}", known.height);
            Self { known, bytes, block }
        })
    }

    fn header(&self) -> &[u8; 80] {
        self.bytes.first_chunk().unwrap()
    }

    fn hash(&self) -> [u8; 32] {
        wire::parse_display_hash(self.known.hash).unwrap()
    }

    fn version(&self) -> u32 {
        u32::from_le_bytes(*self.header().first_chunk().unwrap())
    }

    /// The transactions behind the coinbase.
    fn others(&self) -> &[Transaction] {
        &self.block.txdata[1..]
    }

    /// The real coinbase, without witness.
    fn coinbase(&self) -> Vec<u8> {
        let mut coinbase = self.block.txdata[0].clone();
        coinbase.input[0].witness.clear();
        bitcoin::consensus::serialize(&coinbase)
    }

    /// Sum of the coinbase's outputs.
    fn reward(&self) -> u64 {
        self.block.txdata[0].output.iter().map(|output| output.value.to_sat()).sum()
    }

    /// The commitment in the real coinbase.
    fn committed(&self) -> Option<[u8; 32]> {
        let outputs = self.block.txdata[0].output.iter().rev();
        let scripts = outputs.map(|output| output.script_pubkey.as_bytes());
        scripts.filter_map(|script| script.strip_prefix(&[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed])).next()?.try_into().ok()
    }

    /// The template a node could have given for this block.
    fn template(&self) -> Template {
        let header = &self.block.header;
        let frame = Frame {
            height: self.known.height,
            prev_hash: header.prev_blockhash.to_string(),
            version: if self.known.rolled { self.version() & !ROLLED } else { self.version() },
            nbits: header.bits.to_consensus(),
            time: header.time,
            coinbase_value: self.reward(),
        };
        let commitment = self.known.segwit.then(|| commitment(self.others()));
        Template::from_gbt(&gbt(&frame, self.others(), commitment).to_string()).unwrap()
    }

    /// A job whose coinbase is the real one, cut in two, and the submission that found the block with it.
    ///
    /// What lies between the two parts becomes the extranonces: the last 12 bytes of the coinbase's script, where it has
    /// as many. The scripts of 2009 are shorter; there the 12 bytes reach over what follows. Judging only joins bytes.
    fn own_job(&self) -> (Job, Submission) {
        let coinbase = self.coinbase();
        let script_end = 42 + self.block.txdata[0].input[0].script_sig.len();
        let (before, rest) = coinbase.split_at(script_end.saturating_sub(EXTRANONCE).max(42));
        let (extranonce, after) = rest.split_at(EXTRANONCE);
        let mut job = build_job(&self.template(), &params(&ScriptBuf::new())).unwrap();
        job.coinbase1 = before.to_vec().into();
        job.coinbase2 = after.to_vec().into();
        let submission = Submission {
            job_id: job.job_id,
            extranonce1: u32::from_be_bytes(*extranonce.first_chunk().unwrap()),
            extranonce2: u64::from_be_bytes(*extranonce.last_chunk().unwrap()),
            ntime: self.block.header.time,
            nonce: self.block.header.nonce,
            version_bits: if self.known.rolled { self.version() & ROLLED } else { 0 },
            has_version_bits: self.known.rolled,
            version_mask: ROLLED,
            difficulty: Difficulty::ONE.units(),
            account: "finder".into(),
            job_clock: 1,
            ..Submission::default()
        };
        (job, submission)
    }
}

fn params(payout: &ScriptBuf) -> JobParams<'static> {
    JobParams {
        job_id: 0x6a,
        template_id: 9,
        template_clock: 8,
        payout: payout.clone(),
        tag: b"/sluice/",
        source_tag: *b"source01",
        version_mask: ROLLED,
        stale_grace_ms: 2_000,
        keep_ms: 600_000,
        clean: true,
        chain: Chain::Main,
    }
}

fn table(job: Job) -> JobTable {
    let mut table = JobTable::new();
    table.apply(Offset::new(1), EventTime::from_millis(1_000), job).unwrap();
    table
}

const RECEIVED: EventTime = EventTime::from_millis(2_000);

#[test]
fn headers_meet_their_targets() {
    for mined in Mined::all() {
        let Known { height, nbits, difficulty, work, .. } = *mined.known;
        let target = Target::from_compact(nbits).unwrap();
        assert_eq!(mined.block.header.bits.to_consensus(), nbits);
        assert_eq!(target.to_compact(), nbits);
        assert_eq!(wire::display_hash(&header_hash(mined.header())), mined.known.hash);
        assert!(target.is_met_by(&mined.hash()), "block {height}");
        assert_eq!(target.work().get(), work, "block {height}");
        match Difficulty::from_integer(difficulty) {
            Some(whole) => assert_eq!(Difficulty::of_target(target).units() >> 24, whole.units() >> 24),
            None => assert!(difficulty > Difficulty::MAX.units() >> 24, "only above what shares may have"),
        }
        let mut other = *mined.header();
        other[76] ^= 1;
        assert!(!target.is_met_by(&header_hash(&other)), "the nonce matters");
    }
}

#[test]
fn the_coinbase_and_its_branch_give_the_root() {
    for mined in Mined::all() {
        let ids = mined.others().iter().map(|tx| tx.compute_txid().to_byte_array());
        let branch = merkle::branch(ids.clone());
        let coinbase = double_sha256(&mined.coinbase());
        assert_eq!(merkle::root_from_branch(coinbase, &branch), mined.header()[36..68]);
        assert_eq!(merkle::root(std::iter::once(coinbase).chain(ids)), mined.header()[36..68]);
        assert_eq!(1 << branch.len(), mined.known.count.next_power_of_two(), "block {}", mined.known.height);
    }
}

#[test]
fn the_commitment_is_the_coinbases() {
    for mined in Mined::all() {
        let ours = block::witness_commitment(block_txs(mined.others()).iter().map(|tx| tx.wtxid));
        assert_eq!(mined.committed(), mined.known.segwit.then_some(ours), "block {}", mined.known.height);
    }
}

#[test]
fn no_block_paid_more_than_subsidy_and_fees() {
    for mined in Mined::all() {
        let subsidy = subsidy(Chain::Main, mined.known.height).get();
        // Every reward here was claimed in full, so it is never below the subsidy; fees were below 2 bitcoin.
        assert!((subsidy..subsidy + 200_000_000).contains(&mined.reward()), "block {}", mined.known.height);
    }
}

/// A template of the block's transactions, a job of it, a share on it: a block that the bitcoin crate finds sound.
#[test]
fn a_template_becomes_a_job_becomes_a_block() {
    let payout = ScriptBuf::from_hex("0014e8df018c7e326cc253faac7e46cdc51e68542c42").unwrap();
    for mined in Mined::all() {
        let (template, height) = (mined.template(), mined.known.height);
        let job = build_job(&template, &params(&payout)).unwrap();
        assert_eq!((job.segwit, job.height, job.nbits), (mined.known.segwit, height, mined.known.nbits));
        let prepared = PreparedJob::new(Offset::new(1), RECEIVED, job.clone()).unwrap();
        let submission = Submission { extranonce1: 0x0100_000a, extranonce2: 7, ntime: job.ntime, ..own(&mined) };
        let header = prepared.header(&submission);
        let coinbase = block::coinbase_bytes(&job, submission.extranonce1, submission.extranonce2);
        assert_eq!(double_sha256(&coinbase), prepared.coinbase_txid(Extranonce::of(&submission)));

        let block = assembled(&header, &coinbase, job.segwit, &template.transactions);
        assert_eq!(block.header.prev_blockhash, mined.block.header.prev_blockhash);
        assert_eq!(&block.txdata[1..], mined.others());
        let ours = &block.txdata[0];
        assert!(ours.is_coinbase());
        assert_eq!((ours.output[0].value.to_sat(), &ours.output[0].script_pubkey), (mined.reward(), &payout));
        assert_eq!(ours.output.len(), 1 + usize::from(job.segwit));
        if block.header.version.to_consensus() >= 2 {
            assert_eq!(block.bip34_block_height().unwrap(), u64::from(height));
        }
    }
}

fn own(mined: &Mined) -> Submission {
    mined.own_job().1
}

/// The proof: judging what the finder would have submitted gives the hash that all nodes know, and assembly the block
/// that all nodes have.
#[test]
fn the_finders_share_is_the_block() {
    for mined in Mined::all() {
        let (job, submission) = mined.own_job();
        let table = table(job);
        let judgement = table.judge(&submission, RECEIVED);
        assert_eq!(judgement.reason, Reason::Accepted, "block {}", mined.known.height);
        assert!(judgement.is_block);
        assert_eq!(wire::display_hash(&judgement.hash.unwrap()), mined.known.hash);
        assert_eq!(&judgement.job.unwrap().header(&submission), mined.header());

        let candidate = block::candidate(&submission, &judgement).unwrap();
        let header: &[u8; 80] = candidate.header.as_ref().try_into().unwrap();
        let transactions = block_txs(mined.others());
        let bytes = block::assemble(header, &candidate.coinbase, candidate.segwit, &transactions).unwrap();
        assert!(bytes == mined.bytes, "block {}: not the bytes of the chain", mined.known.height);
        assert_eq!((candidate.height, candidate.account.as_str()), (mined.known.height, "finder"));
    }
}

/// Any other value in any field of the submission is no block.
#[test]
fn trap_18_every_field_of_the_share_counts() {
    for mined in Mined::all() {
        let (job, found) = mined.own_job();
        let table = table(job);
        let mut others = vec![
            Submission { nonce: found.nonce ^ 1, ..found.clone() },
            Submission { ntime: found.ntime + 1, ..found.clone() },
            Submission { extranonce1: found.extranonce1 ^ 1, ..found.clone() },
            Submission { extranonce2: found.extranonce2 ^ 1, ..found.clone() },
        ];
        if mined.known.rolled {
            others.push(Submission { version_bits: found.version_bits ^ 0x2000, ..found.clone() });
            others.push(Submission { has_version_bits: false, ..found.clone() });
        }
        for other in others {
            let judgement = table.judge(&other, RECEIVED);
            assert!(!judgement.is_block);
            assert_eq!(judgement.reason, Reason::LowDifficulty);
            assert_ne!(judgement.hash, Some(mined.hash()));
        }
    }
}

/// The block test comes before every other (invariant B1): what is refused as a share is a block all the same.
#[test]
fn a_refused_share_is_still_the_block() {
    for mined in Mined::all() {
        let (job, found) = mined.own_job();
        let late = EventTime::from_millis(1_000_000);
        let next = Job { job_id: job.job_id + 1, prev_hash: vec![0xab; 32].into(), ..job.clone() };
        let refusals = [
            (Job { min_ntime: found.ntime + 1, ..job.clone() }, found.clone(), Reason::NtimeTooOld),
            (Job { max_ntime: found.ntime - 1, ..job.clone() }, found.clone(), Reason::NtimeTooNew),
            (job.clone(), Submission { difficulty: u64::MAX, ..found.clone() }, Reason::LowDifficulty),
            (Job { keep_ms: u32::MAX, ..job.clone() }, Submission { job_clock: 2, ..found.clone() }, Reason::Stale),
            (job.clone(), Submission { job_clock: 2, ..found.clone() }, Reason::JobNotFound),
        ];
        for (job, submission, reason) in refusals {
            let mut table = table(job);
            table.apply(Offset::new(2), RECEIVED, next.clone()).unwrap();
            let judgement = table.judge(&submission, late);
            if reason == Reason::LowDifficulty && mined.known.difficulty > Difficulty::MAX.units() >> 24 {
                assert_eq!(judgement.reason, Reason::Accepted, "harder than any share");
            } else {
                assert_eq!(judgement.reason, reason, "block {}", mined.known.height);
            }
            assert!(judgement.is_block, "{reason:?}");
            assert_eq!(judgement.hash, Some(mined.hash()));
            assert!(block::candidate(&submission, &judgement).is_some());
        }
    }
}

/// A miner knows only what is on the wire: with `mining.notify` and its own numbers it must hash the same header.
#[test]
fn trap_12_a_miner_that_follows_the_wire_hashes_the_same_header() {
    for mined in Mined::all() {
        let (job, found) = mined.own_job();
        let params: Vec<serde_json::Value> = serde_json::from_str(&wire::notify_params(&job, true)).unwrap();
        let bytes = |at: usize| hex::decode(params[at].as_str().unwrap()).unwrap();
        let number = |at: usize| u32::from_str_radix(params[at].as_str().unwrap(), 16).unwrap();
        assert_eq!((params.len(), params[0].as_str(), params[8].as_bool()), (9, Some("6a"), Some(true)));

        let extranonce = format!("{:08x}{:016x}", found.extranonce1, found.extranonce2);
        let coinbase = [bytes(2), hex::decode(extranonce).unwrap(), bytes(3)].concat();
        let root = params[4].as_array().unwrap().iter().fold(double_sha256(&coinbase), |node, sibling| {
            double_sha256(&[&node[..], &hex::decode(sibling.as_str().unwrap()).unwrap()].concat())
        });
        let prev_hash: Vec<u8> = bytes(1).chunks(4).flat_map(|word| word.iter().rev().copied()).collect();
        let version =
            (number(5) & !ROLLED) | if found.has_version_bits { found.version_bits } else { number(5) & ROLLED };
        assert_eq!(number(7), found.ntime, "the template's time is the block's");
        let words = [found.ntime.to_le_bytes(), number(6).to_le_bytes(), found.nonce.to_le_bytes()].concat();
        let header = [&version.to_le_bytes()[..], &prev_hash, &root, &words].concat();
        assert_eq!(wire::display_hash(&double_sha256(&header)), mined.known.hash);
    }
}

#[test]
fn a_block_with_other_transactions_is_refused() {
    for mined in Mined::all().filter(|mined| mined.known.count > 2) {
        let (coinbase, segwit) = (mined.coinbase(), mined.known.segwit);
        let transactions = block_txs(mined.others());
        let assemble =
            |transactions: &[BlockTx], segwit| block::assemble(mined.header(), &coinbase, segwit, transactions);
        let mut swapped = transactions.clone();
        swapped.swap(0, 1);
        assert_eq!(assemble(&swapped, segwit), Err(BlockError::MerkleRoot));
        assert_eq!(assemble(&transactions[1..], segwit), Err(BlockError::MerkleRoot));
        assert_eq!(assemble(&transactions, !segwit), Err(BlockError::WitnessCommitment));
        let stripped: Vec<BlockTx> = transactions.iter().map(without_witness).collect();
        let expected = if segwit { Err(BlockError::WitnessCommitment) } else { Ok(mined.bytes.clone()) };
        assert!(assemble(&stripped, segwit) == expected, "block {}", mined.known.height);
    }
}

fn without_witness(tx: &BlockTx) -> BlockTx {
    let mut parsed: Transaction = bitcoin::consensus::deserialize(&tx.data).unwrap();
    parsed.input.iter_mut().for_each(|input| input.witness.clear());
    BlockTx::parse(bitcoin::consensus::serialize(&parsed).into()).unwrap()
}

#[test]
fn a_template_that_contradicts_itself_is_refused() {
    let mined = Mined::all().find(|mined| mined.known.height == 951_658).unwrap();
    let frame = Frame {
        height: 951_658,
        prev_hash: mined.block.header.prev_blockhash.to_string(),
        version: 0x2000_0000,
        nbits: mined.known.nbits,
        time: mined.block.header.time,
        coinbase_value: mined.reward(),
    };
    let right = gbt(&frame, mined.others(), Some(commitment(mined.others())));
    assert!(Template::from_gbt(&right.to_string()).is_ok());
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut template = right.clone();
        change(&mut template);
        Template::from_gbt(&template.to_string()).unwrap_err()
    };
    let other = "00".repeat(32);
    assert_eq!(refused(&|t| t["transactions"][5]["txid"] = other.clone().into()), TemplateError::TransactionId(5));
    assert_eq!(refused(&|t| t["transactions"][6]["hash"] = other.clone().into()), TemplateError::TransactionId(6));
    assert_eq!(refused(&|t| _ = t["transactions"].as_array_mut().unwrap().pop()), TemplateError::Commitment);
    assert_eq!(refused(&|t| t["transactions"].as_array_mut().unwrap().swap(0, 1)), TemplateError::Commitment);
    assert_eq!(refused(&|t| t["default_witness_commitment"] = serde_json::Value::Null), TemplateError::Commitment);
    let cut = refused(&|t| t["transactions"][7]["data"] = "0200".into());
    assert!(matches!(cut, TemplateError::Transaction(7, _)), "{cut}");
    for (field, wrong) in [("bits", "1dff"), ("bits", "zz"), ("previousblockhash", "00"), ("coinbasevalue", "1")] {
        let error = refused(&|t| t[field] = wrong.into());
        assert!(matches!(error, TemplateError::Malformed(_) | TemplateError::Target(_)), "{field}: {error}");
    }
    let too_much = refused(&|t| t["coinbasevalue"] = 2_100_000_000_000_001_u64.into());
    assert!(matches!(too_much, TemplateError::Malformed(_)), "{too_much}");
}
