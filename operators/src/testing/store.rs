//! A ledger that a test can make fail at a chosen moment: a real one behind a switch.

#![allow(dead_code)] // each test binary uses its part of it

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sluice_ledger::{
    Applied, Balance, BlockCursor, BlockRow, CreditRow, LedgerBatch, LedgerDigest, LedgerError, LedgerStore,
    NextOffset, PoolTotals, RuleVersion, Snapshot, TrialBalance, Verification,
};

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is applied.
    Applied,
    /// It is not applied, and the caller hears that the wait was interrupted.
    Interrupted,
    /// It is applied, and the caller hears nothing of it: the process dies.
    Unheard,
}

/// A ledger whose next batches meet their fates; those behind them are applied.
pub struct FatefulStore {
    inner: Arc<dyn LedgerStore>,
    fates: Mutex<VecDeque<Fate>>,
    pruned: AtomicU64,
}

impl FatefulStore {
    /// Around `inner`.
    pub fn new(inner: Arc<dyn LedgerStore>) -> Arc<Self> {
        Arc::new(Self { inner, fates: Mutex::default(), pruned: AtomicU64::new(0) })
    }

    /// Slices removed so far.
    pub fn pruned(&self) -> u64 {
        self.pruned.load(Ordering::Relaxed)
    }

    /// The fates of the next batches.
    pub fn then(&self, fates: &[Fate]) {
        self.fates.lock().unwrap().extend(fates);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.fates.lock().unwrap().clear();
    }
}

impl LedgerStore for FatefulStore {
    fn apply(&self, batch: &LedgerBatch) -> Result<Applied, LedgerError> {
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Applied);
        if fate == Fate::Interrupted {
            return Err(LedgerError::Interrupted);
        }
        let applied = self.inner.apply(batch)?;
        self.pruned.fetch_add(applied.pruned, Ordering::Relaxed);
        if fate == Fate::Unheard {
            return Err(LedgerError::Database("the process died here".into()));
        }
        Ok(applied)
    }

    fn bind_log(&self, uuid: [u8; 16]) -> Result<(), LedgerError> {
        self.inner.bind_log(uuid)
    }

    fn positions(&self) -> Result<Vec<NextOffset>, LedgerError> {
        self.inner.positions()
    }

    fn blocks(&self, before: Option<BlockCursor>, limit: u32) -> Result<Vec<BlockRow>, LedgerError> {
        self.inner.blocks(before, limit)
    }

    fn block(&self, hash: [u8; 32]) -> Result<Option<BlockRow>, LedgerError> {
        self.inner.block(hash)
    }

    fn balance(&self, account: &str) -> Result<Option<Balance>, LedgerError> {
        self.inner.balance(account)
    }

    fn balances(&self, after: &str, limit: u32) -> Result<Vec<(String, Balance)>, LedgerError> {
        self.inner.balances(after, limit)
    }

    fn credits(&self, account: &str, before: Option<BlockCursor>, limit: u32) -> Result<Vec<CreditRow>, LedgerError> {
        self.inner.credits(account, before, limit)
    }

    fn totals(&self) -> Result<PoolTotals, LedgerError> {
        self.inner.totals()
    }

    fn trial_balance(&self) -> Result<TrialBalance, LedgerError> {
        self.inner.trial_balance()
    }

    fn digest(&self) -> Result<LedgerDigest, LedgerError> {
        self.inner.digest()
    }

    fn snapshot(&self) -> Result<Snapshot, LedgerError> {
        self.inner.snapshot()
    }

    fn adopt_rules(&self, versions: &[RuleVersion]) -> Result<(), LedgerError> {
        self.inner.adopt_rules(versions)
    }

    fn verify(&self) -> Result<Verification, LedgerError> {
        self.inner.verify()
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }
}
