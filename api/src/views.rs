//! What the API shows. Amounts are whole satoshis, times are milliseconds since the Unix epoch, hash rates are
//! hashes a second as floating-point numbers (they are estimates), work is expected hashes as a decimal string.

use poem_openapi::{Enum, Object};

/// State of a part or of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum Condition {
    /// As it should be.
    Ok,
    /// Works, but not as it should.
    Degraded,
    /// Does not work.
    Failed,
}

/// One part of the process and how it is.
#[derive(Clone, Debug, Object)]
pub struct Part {
    /// Its name: an operator, a task, a node, the log, the ledger.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    /// What is wrong, or what it does.
    pub detail: String,
}

/// How the process is.
#[derive(Clone, Debug, Object)]
pub struct Health {
    /// The worst condition of any part.
    pub condition: Condition,
    /// Serves miners: there is a job to work on, and all tasks run.
    pub ready: bool,
    /// Version of the program.
    pub version: String,
    /// Chain the pool mines on.
    pub network: String,
    /// All parts.
    pub parts: Vec<Part>,
    /// Tasks and how far they are.
    pub tasks: Vec<Task>,
}

/// A task of the topology.
#[derive(Clone, Debug, Object)]
pub struct Task {
    /// Name: first operator and partition.
    pub name: String,
    /// Records of its inputs that it has not yet read.
    pub lag_records: u64,
    /// Records processed since the start.
    pub processed: u64,
    /// Records dropped as repeated since the start.
    pub repeated: u64,
    /// Records written since the start.
    pub emitted: u64,
}

/// Estimated hash rates over windows of event time, in hashes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Object)]
pub struct Hashrate {
    /// Over the last minute.
    pub m1: f64,
    /// Over the last 10 minutes.
    pub m10: f64,
    /// Over the last hour.
    pub h1: f64,
    /// Over the last day.
    pub d1: f64,
}

/// Shares by outcome since the statistics began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Object)]
pub struct Shares {
    /// Accepted shares.
    pub accepted: u64,
    /// Work of accepted shares: expected hashes, a decimal string.
    pub work: String,
    /// Shares not accepted, by reason.
    pub rejected: Vec<Rejected>,
}

/// Shares not accepted for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Object)]
pub struct Rejected {
    /// The reason: `stale`, `job_not_found`, `duplicate`, `low_difficulty`, `ntime_too_old`, `ntime_too_new`, `version_mask`.
    pub reason: String,
    /// How many.
    pub shares: u64,
}

/// The pool as a whole.
#[derive(Clone, Debug, Object)]
pub struct Pool {
    /// Chain: main, test, testnet4, signet or regtest.
    pub network: String,
    /// Height being mined.
    pub height: u32,
    /// Network difficulty, as a decimal string.
    pub network_difficulty: String,
    /// Estimated hash rates.
    pub hashrate: Hashrate,
    /// Open connections of miners.
    pub connections: u64,
    /// Accounts seen in the last 10 minutes.
    pub active_accounts: u64,
    /// Workers seen in the last 10 minutes.
    pub active_workers: u64,
    /// Shares by outcome.
    pub shares: Shares,
    /// Blocks by status.
    pub blocks: BlockCounts,
    /// Sum of what miners own and can be paid, satoshis.
    pub available_sats: u64,
    /// Sum of what miners own of blocks that have not matured, satoshis.
    pub pending_sats: u64,
    /// Fees the pool has earned (matured), satoshis.
    pub fee_sats: u64,
    /// Where miners connect.
    pub stratum: Vec<String>,
    /// Workers with the highest hash rates, at most 50.
    pub workers: Vec<Worker>,
}

/// How many blocks there are of each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Object)]
pub struct BlockCounts {
    /// Taken by a node, not matured.
    pub pending: u64,
    /// Matured.
    pub confirmed: u64,
    /// Lost to a rival block.
    pub orphaned: u64,
    /// Refused by every node.
    pub refused: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Object)]
pub struct Worker {
    /// Account: the payout address.
    pub account: String,
    /// Name; empty where the miner gave none.
    pub worker: String,
    /// Estimated hash rates.
    pub hashrate: Hashrate,
    /// Shares by outcome.
    pub shares: Shares,
    /// Event time of the last slice with an accepted share, milliseconds since the Unix epoch; 0 if there is none.
    pub last_share_ms: u64,
}

/// A miner: everything under one payout address.
#[derive(Clone, Debug, Object)]
pub struct Miner {
    /// Payout address.
    pub address: String,
    /// Estimated hash rates.
    pub hashrate: Hashrate,
    /// Shares by outcome.
    pub shares: Shares,
    /// Can be paid, satoshis.
    pub available_sats: u64,
    /// Of blocks that have not matured, satoshis.
    pub pending_sats: u64,
    /// Paid so far, satoshis.
    pub paid_sats: u64,
    /// Workers, by name.
    pub workers: Vec<Worker>,
    /// Newest credits first, at most 100.
    pub credits: Vec<Credit>,
}

/// What a miner got of a block.
#[derive(Clone, Debug, PartialEq, Eq, Object)]
pub struct Credit {
    /// Hash of the block, as usually shown.
    pub block: String,
    /// Height of the block.
    pub height: u32,
    /// Satoshis.
    pub sats: u64,
    /// Status of the block.
    pub status: String,
}

/// A block the pool found.
#[derive(Clone, Debug, PartialEq, Eq, Object)]
pub struct Block {
    /// Hash, as usually shown.
    pub hash: String,
    /// Height.
    pub height: u32,
    /// `accepted`, `inactive`, `confirmed`, `orphaned` or `refused`.
    pub status: String,
    /// Sum of its coinbase's outputs, satoshis.
    pub reward_sats: u64,
    /// The pool's fee on it, satoshis; 0 until it is credited.
    pub fee_sats: u64,
    /// It has been credited to miners.
    pub credited: bool,
    /// Account that found it.
    pub account: String,
    /// Worker that found it.
    pub worker: String,
    /// When, milliseconds since the Unix epoch.
    pub found_ms: u64,
}
