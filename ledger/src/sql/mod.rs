//! The part of the store that is the same on every database: all rules, all statements.
//!
//! ```text
//! Ledger<D: Database> -- apply, settle, read, verify, digest: written once, on trait Sql
//!            D        -- transactions, retries, types: sqlite/, postgres/
//! ```
//!
//! Statements use what SQLite and PostgreSQL have in common, with parameters `$1`, `$2`, ... Sums over scores, which
//! need 128 bits, are made here and not in the database.

mod apply;
mod digest;
mod facts;
mod intake;
mod ledger;
mod money;
mod owners;
mod prune;
mod read;
mod rules;
mod settle;
mod value;
mod verify;
mod work;

pub(crate) use ledger::Ledger;
pub(crate) use value::{Row, Value};

use crate::error::Result;

/// What a unit of work does inside a transaction; called again when the transaction must be repeated.
pub(crate) type Work<'a> = &'a mut (dyn FnMut(&mut dyn Sql) -> Result<()> + Send);

/// A database that runs transactions.
pub(crate) trait Database: Send + Sync {
    /// Runs `work` in a serialisable transaction that may write, and repeats it, for as long as it takes, while the
    /// database is not available or asks to repeat.
    fn write(&self, work: Work<'_>) -> Result<()>;

    /// Runs `work` on one consistent state of the database. Does not wait for a database that is down.
    fn read(&self, work: Work<'_>) -> Result<()>;

    /// Ends the waiting of [`Self::write`], now and from now on.
    fn interrupt(&self);
}

/// Statements inside a transaction.
pub(crate) trait Sql {
    /// Runs a statement; returns how many rows it changed.
    fn execute(&mut self, sql: &'static str, params: &[Value]) -> Result<u64>;

    /// Runs a statement once for each of `rows`. They must not depend on each other: their order is open.
    fn execute_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<()>;

    /// Calls `visit` with each row of a query as it comes.
    fn query_each(
        &mut self,
        sql: &'static str,
        params: &[Value],
        visit: &mut dyn FnMut(&Row) -> Result<()>,
    ) -> Result<()>;

    /// Runs a query once for each of `rows`; returns the first row of each answer, in the order of `rows`.
    fn query_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<Vec<Option<Row>>>;
}

impl dyn Sql + '_ {
    /// All rows of a query.
    pub(crate) fn query(&mut self, sql: &'static str, params: &[Value]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        self.query_each(sql, params, &mut |row| {
            rows.push(row.clone());
            Ok(())
        })?;
        Ok(rows)
    }

    /// First row of a query.
    pub(crate) fn query_first(&mut self, sql: &'static str, params: &[Value]) -> Result<Option<Row>> {
        Ok(self.query(sql, params)?.into_iter().next())
    }
}
