//! Records for tests and benches, made from small numbers and a seed: jobs, templates, mined shares, verdicts, tallies.
//!
//! Shares are really mined, at the smallest difficulty (256 hashes a share); one in 16 of them makes a block.

#![allow(dead_code)] // each test binary uses its part of it

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use bytes::Bytes;
use prost::Message;
use sluice_mining::block::{self, BlockTx};
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_mining::{Chain, Difficulty, JobTable, PreparedJob, Sats, Target, header_hash};
use sluice_proto::v1::{
    BlockOutcome, BlockStatus, Candidate, Job, Reason, SliceEnd, SolvedBlock, Submission, Tally, TemplateChunk, Tick,
    Verdict, WorkAt,
};
use sluice_proto::{EventTime, Offset};

/// Network target of the tests: 1 in 16 shares of the smallest difficulty makes a block.
pub const NBITS: u32 = 0x1f0f_ffff;
/// Seconds since the Unix epoch at which tests begin; a whole slice, minute and 10 minutes.
pub const START: u64 = 1_700_000_400;
/// Version bits that jobs leave to miners.
pub const MASK: u32 = 0x1fff_e000;
/// Grace for shares of the old tip, milliseconds.
pub const GRACE_MS: u32 = 1_000;
/// Life of a job after the next one, milliseconds.
pub const KEEP_MS: u32 = 120_000;

/// `millis` after the tests' beginning.
pub const fn at(millis: u64) -> EventTime {
    EventTime::from_millis(START * 1000 + millis)
}

/// SplitMix64: the same numbers from the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in one of `times` cases.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A transaction that no other number gives, with a witness where `witness` says so.
pub fn transaction(number: u64, witness: bool) -> BlockTx {
    let mut spent = [7; 32];
    spent[..8].copy_from_slice(&number.to_be_bytes());
    let txid = bitcoin::consensus::deserialize(&spent).unwrap();
    let input = TxIn {
        previous_output: OutPoint { txid, vout: 0 },
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: if witness { Witness::from_slice(&[[number as u8; 64]]) } else { Witness::new() },
    };
    let output =
        TxOut { value: Amount::from_sat(1_000 + number), script_pubkey: ScriptBuf::from_bytes(vec![0x51; 22]) };
    let transaction =
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output: vec![output] };
    BlockTx::parse(bitcoin::consensus::serialize(&transaction).into()).unwrap()
}

/// A template on the tip number `tip`.
pub fn template(tip: u8, transactions: Vec<BlockTx>, segwit: bool) -> Template {
    Template {
        height: 100 + u32::from(tip),
        prev_hash: [tip; 32],
        version: 0x2000_0000,
        nbits: NBITS,
        cur_time: START as u32,
        min_time: START as u32 - 600,
        coinbase_value: Sats::new(5_000_000_000).unwrap(),
        commitment: segwit.then(|| block::witness_commitment(transactions.iter().map(|tx| tx.wtxid))),
        transactions,
    }
}

/// The job `id` of `template`, whose transactions are the template of the same id, known at `template_clock`.
pub fn job_of(template: &Template, id: u64, template_clock: u64, clean: bool) -> Job {
    let params = JobParams {
        job_id: id,
        template_id: if template.transactions.is_empty() { 0 } else { id },
        template_clock,
        payout: ScriptBuf::from_bytes(vec![0x51; 22]),
        tag: b"/test/",
        source_tag: id.to_be_bytes(),
        version_mask: MASK,
        stale_grace_ms: GRACE_MS,
        keep_ms: KEEP_MS,
        clean,
        chain: Chain::Regtest,
    };
    build_job(template, &params).unwrap()
}

/// The job `id` without transactions on the tip number `tip`.
pub fn job(id: u64, tip: u8) -> Job {
    job_of(&template(tip, Vec::new(), true), id, 0, false)
}

/// The template `id` in chunks of `size` bytes; transactions for which `known` holds only by their id.
pub fn chunks(
    template: &Template,
    id: u64,
    full: bool,
    size: usize,
    known: impl Fn(&[u8; 32]) -> bool,
) -> Vec<TemplateChunk> {
    let body = template.body(known).encode_to_vec();
    let data = zstd::bulk::compress(&body, 1).unwrap();
    let count = data.chunks(size).count() as u32;
    let pieces = data.chunks(size).zip(0..);
    pieces
        .map(|(data, index)| TemplateChunk { template_id: id, index, count, full, data: Bytes::copy_from_slice(data) })
        .collect()
}

/// What a mined header is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// A share and no block.
    Share,
    /// A block.
    Block,
    /// Above the share target.
    Above,
}

/// A submission of `session` for `job`, not mined yet.
pub fn submission(job: &Job, clock: u64, session: u64) -> Submission {
    Submission {
        job_id: job.job_id,
        extranonce1: session as u32,
        extranonce2: 0,
        ntime: job.ntime,
        nonce: 0,
        version_bits: 0,
        has_version_bits: false,
        version_mask: MASK,
        difficulty: Difficulty::MIN.units(),
        session,
        account: format!("account{}", session % 5),
        worker: format!("rig{}", session % 7),
        gateway: (session % 3) as u32,
        job_clock: clock,
    }
}

/// `submission` with the first nonce from its own on that makes its header what is `wanted`.
pub fn mined(job: &PreparedJob, submission: &Submission, wanted: Hash) -> Submission {
    let mut header = job.header(submission);
    let share = Difficulty::from_units(submission.difficulty).unwrap().to_target();
    let fits = |hash: &[u8; 32]| match (share.is_met_by(hash), job.network_target().is_met_by(hash)) {
        (_, true) => wanted == Hash::Block,
        (true, false) => wanted == Hash::Share,
        (false, false) => wanted == Hash::Above,
    };
    for nonce in submission.nonce..=u32::MAX {
        header[76..80].copy_from_slice(&nonce.to_le_bytes());
        if fits(&header_hash(&header)) {
            return Submission { nonce, ..submission.clone() };
        }
    }
    panic!("no nonce does it");
}

/// A job as it stands at `offset` of its topic.
pub fn prepared(job: &Job, offset: u64, issued: EventTime) -> PreparedJob {
    PreparedJob::new(Offset::new(offset), issued, job.clone()).unwrap()
}

/// The candidate of a submission that makes a block.
pub fn candidate(jobs: &JobTable, submission: &Submission, received: EventTime) -> Candidate {
    let judgement = jobs.judge(submission, received);
    assert!(judgement.is_block);
    block::candidate(submission, &judgement).unwrap()
}

/// A tick of a gateway.
pub fn tick(gateway: u32, job_clock: u64) -> Tick {
    Tick { gateway, job_clock }
}

/// A verdict on a share of `session` for job 1, its header hash made of `number`.
pub fn verdict(session: u64, number: u64, reason: Reason) -> Verdict {
    let difficulty = Difficulty::ONE;
    let (work_hi, work_lo) = difficulty.work().to_parts();
    let mut hash = [0x5a; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    Verdict {
        reason: reason.into(),
        session,
        account: format!("account{}", session % 5),
        worker: format!("rig{}", session % 7),
        job_id: 1,
        nbits: NBITS,
        difficulty: difficulty.units(),
        work_hi,
        work_lo,
        header_hash: Bytes::copy_from_slice(&hash),
        origin_partition: 0,
        origin_offset: number,
        gateway: (session % 3) as u32,
        live_from_job: 1,
        is_block: false,
    }
}

/// Work of one worker in a slice, in thousandths of the work of a block.
pub fn tally(partition: u32, slice: u64, account: &str, worker: &str, milliblocks: u64) -> Tally {
    let block = Target::from_compact(NBITS).unwrap().work().get();
    let work = block * u128::from(milliblocks) / 1000;
    let accepted =
        vec![WorkAt { nbits: NBITS, work_hi: (work >> 64) as u64, work_lo: work as u64, shares: milliblocks }];
    let (account, worker) = (account.to_owned(), worker.to_owned());
    Tally { slice, slice_ms: 10_000, partition, account, worker, accepted, rejected: Vec::new(), generation: 0 }
}

/// The end of a slice of one of `partitions` partitions.
pub fn slice_end(partition: u32, partitions: u32, slice: u64) -> SliceEnd {
    SliceEnd { slice, slice_ms: 10_000, partition, partitions, generation: 0, next_partitions: 0 }
}

/// A solved block, no real one: its hash is made of `number`.
pub fn solved(number: u8, found: EventTime) -> SolvedBlock {
    SolvedBlock {
        hash: Bytes::copy_from_slice(&[number; 32]),
        block: Bytes::copy_from_slice(&[number; 200]),
        height: 100 + u32::from(number),
        coinbase_value: 5_000_000_007,
        nbits: NBITS,
        account: format!("account{}", number % 5),
        worker: "rig".into(),
        found_ns: found.nanos(),
    }
}

/// A step in the life of the block of that number.
pub fn outcome(block: &SolvedBlock, status: BlockStatus) -> BlockOutcome {
    BlockOutcome {
        hash: block.hash.clone(),
        status: status.into(),
        height: block.height,
        coinbase_value: block.coinbase_value,
        nbits: block.nbits,
        account: block.account.clone(),
        worker: block.worker.clone(),
        found_ns: block.found_ns,
        nodes: Vec::new(),
        confirmations: 0,
    }
}
