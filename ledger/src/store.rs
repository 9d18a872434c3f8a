//! The ledger as the rest of the program sees it.

use std::collections::BTreeMap;

use sluice_mining::Sats;
use sluice_proto::EventTime;

use crate::batch::{Applied, LedgerBatch, NextOffset};
use crate::block::{ChainState, CreditState};
use crate::error::Result;
use crate::rules::RuleVersion;
use crate::score::Score;
use crate::window::Window;

/// A ledger. Its methods block; call them from a thread that may (not from an asynchronous task).
pub trait LedgerStore: Send + Sync {
    /// Applies a batch in one transaction, together with its positions. What the positions stored already cover is
    /// ignored. While the database is down it waits and tries again: the ledger lags, it loses nothing. Where the
    /// outcome of a commit is unknown, the positions found at the next attempt tell.
    ///
    /// # Errors
    /// If a record cannot be right or is missing (invariant P1), the database refuses for good, or [`Self::interrupt`] was called.
    fn apply(&self, batch: &LedgerBatch) -> Result<Applied>;

    /// Binds the ledger to the log with this UUID; the first call stores it. Call it before the first batch: in
    /// another log the stored positions would hide new records.
    ///
    /// # Errors
    /// If the ledger belongs to another log.
    fn bind_log(&self, uuid: [u8; 16]) -> Result<()>;

    /// How far each topic partition is in the ledger.
    ///
    /// # Errors
    /// If the database does not answer. So it is with all methods below that read.
    fn positions(&self) -> Result<Vec<NextOffset>>;

    /// Up to `limit` blocks found before `before`, newest first.
    fn blocks(&self, before: Option<BlockCursor>, limit: u32) -> Result<Vec<BlockRow>>;

    /// The block with this hash (internal order).
    fn block(&self, hash: [u8; 32]) -> Result<Option<BlockRow>>;

    /// What `account` is owed; `None` if the ledger has never heard of it.
    fn balance(&self, account: &str) -> Result<Option<Balance>>;

    /// Up to `limit` accounts after the name `after`, in order of name.
    fn balances(&self, after: &str, limit: u32) -> Result<Vec<(String, Balance)>>;

    /// Up to `limit` credits of `account` for blocks found before `before`, newest first.
    fn credits(&self, account: &str, before: Option<BlockCursor>, limit: u32) -> Result<Vec<CreditRow>>;

    /// Sums over the whole pool.
    fn totals(&self) -> Result<PoolTotals>;

    /// Sums of all debits and credits, from the balances and from the transfers.
    fn trial_balance(&self) -> Result<TrialBalance>;

    /// Digest of the money tables and of the stored work, whatever the order of their rows; equal contents give equal
    /// digests on every back end.
    fn digest(&self) -> Result<LedgerDigest>;

    /// Positions, digest and rules as of one moment: what another ledger that is made of the same records must come to.
    fn snapshot(&self) -> Result<Snapshot>;

    /// Gives this ledger, which has nothing yet, the rules that another one had, so that it shares out the same.
    ///
    /// # Errors
    /// If it has rules already.
    fn adopt_rules(&self, versions: &[RuleVersion]) -> Result<()>;

    /// Recomputes every credit whose work is still stored, compares credits with postings, and balances with transfers.
    fn verify(&self) -> Result<Verification>;

    /// Makes a write that waits for the database return [`crate::LedgerError::Interrupted`], now and from now on. One
    /// that finds the database there is done as ever, so it may be called as soon as the program is told to stop.
    fn interrupt(&self);
}

/// Where a page of blocks goes on: the last block of the page before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCursor {
    /// When it was found.
    pub found: EventTime,
    /// Its hash, internal order.
    pub hash: [u8; 32],
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    /// Hash, internal order.
    pub hash: [u8; 32],
    /// Height.
    pub height: u32,
    /// Sum of the coinbase's outputs.
    pub value: Sats,
    /// Compact network target.
    pub nbits: u32,
    /// Account of the finder.
    pub finder: String,
    /// Worker of the finder.
    pub worker: String,
    /// When the gateway received the share.
    pub found: EventTime,
    /// What the chain says of it.
    pub chain: ChainState,
    /// Event time of the outcome that said so.
    pub chain_since: EventTime,
    /// Confirmations at that outcome.
    pub confirmations: u32,
    /// What the nodes answered to the submission: `name: answer`, separated by `; `.
    pub answers: String,
    /// What the ledger has done about it.
    pub credit: CreditState,
    /// How its reward was shared out, once it was.
    pub reward: Option<RewardRow>,
}

impl BlockRow {
    /// Cursor of the page that goes on behind this block.
    pub fn cursor(&self) -> BlockCursor {
        BlockCursor { found: self.found, hash: self.hash }
    }
}

/// How a block's reward was shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewardRow {
    /// Version of the rules.
    pub rules: u32,
    /// The pool's fee.
    pub fee: Sats,
    /// The work it was shared out by; with score 0 where the finder got it.
    pub window: Window,
}

/// What an account is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Credits of blocks that are not mature.
    pub pending: Sats,
    /// Owed and not yet paid.
    pub available: Sats,
    /// Paid so far.
    pub paid: Sats,
}

/// What an account got of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreditRow {
    /// The block, with its state.
    pub block: BlockRow,
    /// The account's score in the window, rounded down.
    pub score: Score,
    /// What it got.
    pub amount: Sats,
}

/// Sums over the whole pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolTotals {
    /// Number of blocks by what the chain says of them.
    pub blocks: BTreeMap<ChainState, u64>,
    /// Owed to miners for blocks that are not mature.
    pub pending: Sats,
    /// Owed to miners and not yet paid.
    pub available: Sats,
    /// Paid to miners.
    pub paid: Sats,
    /// Fees of blocks that are not mature.
    pub fee_pending: Sats,
    /// Fees.
    pub fee_available: Sats,
    /// Rewards of blocks credited and not mature.
    pub coinbase_immature: Sats,
    /// Rewards of mature blocks.
    pub coinbase_mature: Sats,
    /// Accounts that ever had work or money.
    pub accounts: u64,
    /// The newest slice that is closed in every partition.
    pub closed_through: Option<u64>,
}

/// Sums of all debits and credits, in satoshis. All four are equal in a sound ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrialBalance {
    /// Debits of all accounts.
    pub debits: u128,
    /// Credits of all accounts.
    pub credits: u128,
    /// Sum of all transfers.
    pub transfers: u128,
    /// Accounts whose debits or credits are not the sum of their transfers, or whose balance is negative.
    pub wrong_accounts: u64,
}

impl TrialBalance {
    /// Everything adds up.
    pub fn is_sound(&self) -> bool {
        self.debits == self.credits && self.debits == self.transfers && self.wrong_accounts == 0
    }
}

/// Digests of a ledger's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerDigest {
    /// Blocks, credits, entries, transfers, balances, rules.
    pub money: [u8; 32],
    /// Work in slices that are still kept. Differs where one ledger has removed old slices and the other not yet.
    pub slices: [u8; 32],
}

/// A ledger at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// How far each topic partition is in it.
    pub positions: Vec<NextOffset>,
    /// Digests of its contents.
    pub digest: LedgerDigest,
    /// All versions of its rules, oldest first.
    pub rules: Vec<RuleVersion>,
}

/// Result of [`LedgerStore::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Blocks whose credits were recomputed from stored work.
    pub recomputed: u64,
    /// Blocks whose work is no longer stored: only their sums and postings were checked.
    pub only_sums: u64,
    /// What is wrong, in plain words. Empty in a sound ledger.
    pub findings: Vec<String>,
}
