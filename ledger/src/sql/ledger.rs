//! [`LedgerStore`] on any [`Database`].

use sluice_failpoints::Point;

use super::{Database, Sql, apply, digest, read, rules, verify};
use crate::batch::{Applied, LedgerBatch, NextOffset};
use crate::error::{LedgerError, Result};
use crate::rules::RuleVersion;
use crate::store::{
    Balance, BlockCursor, BlockRow, CreditRow, LedgerDigest, LedgerStore, PoolTotals, Snapshot, TrialBalance,
    Verification,
};

/// A ledger on a database.
pub(crate) struct Ledger<D>(pub(crate) D);

impl<D: Database> Ledger<D> {
    fn writing<R: Send>(&self, work: impl Fn(&mut dyn Sql) -> Result<R> + Send + Sync) -> Result<R> {
        let mut result = None;
        self.0.write(&mut |sql| {
            result = Some(work(sql)?);
            Ok(())
        })?;
        result.ok_or_else(no_result)
    }

    fn reading<R: Send>(&self, work: impl Fn(&mut dyn Sql) -> Result<R> + Send + Sync) -> Result<R> {
        let mut result = None;
        self.0.read(&mut |sql| {
            result = Some(work(sql)?);
            Ok(())
        })?;
        result.ok_or_else(no_result)
    }
}

fn no_result() -> LedgerError {
    LedgerError::Inconsistent("a transaction ended without a result".into())
}

impl<D: Database> LedgerStore for Ledger<D> {
    fn apply(&self, batch: &LedgerBatch) -> Result<Applied> {
        let applied = self.writing(|sql| {
            let applied = apply::apply(sql, batch)?;
            sluice_failpoints::check(Point::LedgerBefore)?;
            Ok(applied)
        })?;
        sluice_failpoints::check(Point::LedgerAfter)?;
        Ok(applied)
    }

    fn bind_log(&self, uuid: [u8; 16]) -> Result<()> {
        self.writing(|sql| read::bind_log(sql, uuid))
    }

    fn positions(&self) -> Result<Vec<NextOffset>> {
        self.reading(read::positions)
    }

    fn blocks(&self, before: Option<BlockCursor>, limit: u32) -> Result<Vec<BlockRow>> {
        self.reading(|sql| read::blocks(sql, before, limit))
    }

    fn block(&self, hash: [u8; 32]) -> Result<Option<BlockRow>> {
        self.reading(|sql| super::money::load_block(sql, &hash))
    }

    fn balance(&self, account: &str) -> Result<Option<Balance>> {
        self.reading(|sql| read::balance(sql, account))
    }

    fn balances(&self, after: &str, limit: u32) -> Result<Vec<(String, Balance)>> {
        self.reading(|sql| read::balances(sql, after, limit))
    }

    fn credits(&self, account: &str, before: Option<BlockCursor>, limit: u32) -> Result<Vec<CreditRow>> {
        self.reading(|sql| read::credits(sql, account, before, limit))
    }

    fn totals(&self) -> Result<PoolTotals> {
        self.reading(read::totals)
    }

    fn trial_balance(&self) -> Result<TrialBalance> {
        self.reading(verify::trial_balance)
    }

    fn digest(&self) -> Result<LedgerDigest> {
        self.reading(digest::digest)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        self.reading(|sql| {
            let (positions, rules) = (read::positions(sql)?, rules::load(sql)?);
            Ok(Snapshot { positions, digest: digest::digest(sql)?, rules })
        })
    }

    fn adopt_rules(&self, versions: &[RuleVersion]) -> Result<()> {
        self.writing(|sql| rules::adopt(sql, versions))
    }

    fn verify(&self) -> Result<Verification> {
        self.reading(verify::verify)
    }

    fn interrupt(&self) {
        self.0.interrupt();
    }
}
