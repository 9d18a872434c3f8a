//! What the API and people ask.

use sluice_mining::Sats;
use sluice_proto::{EventTime, Offset};

use super::apply::load_positions;
use super::facts::{Closed, Facts};
use super::money::{self, BLOCK_COLUMNS, block_row};
use super::{Row, Sql, Value};
use crate::batch::NextOffset;
use crate::block::ChainState;
use crate::error::{LedgerError, Result};
use crate::posting::AccountKind;
use crate::store::{Balance, BlockCursor, BlockRow, CreditRow, PoolTotals};

/// Cursor of the first page.
const NEWEST: BlockCursor = BlockCursor { found: EventTime::from_nanos(i64::MAX as u64), hash: [0xff; 32] };

pub(super) fn bind_log(sql: &mut dyn Sql, uuid: [u8; 16]) -> Result<()> {
    let stored = sql.query_first("SELECT bytes FROM facts WHERE name = 'log' AND bytes IS NOT NULL", &[])?;
    match stored {
        Some(row) if row.bytes::<16>(0)? == uuid => Ok(()),
        Some(row) => Err(LedgerError::OtherLog { stored: hex::encode(row.bytes::<16>(0)?), found: hex::encode(uuid) }),
        None => {
            let bytes = Value::Bytes(uuid.to_vec());
            sql.execute("INSERT INTO facts (name, bytes) VALUES ('log', $1)", &[bytes])?;
            Ok(())
        }
    }
}

pub(super) fn positions(sql: &mut dyn Sql) -> Result<Vec<NextOffset>> {
    let positions = load_positions(sql)?.into_iter();
    let next = |((topic, partition), next): ((String, u32), u64)| NextOffset {
        topic: topic.into(),
        partition,
        next: Offset::new(next),
    };
    Ok(positions.map(next).collect())
}

fn page(before: Option<BlockCursor>, limit: u32) -> Result<[Value; 3]> {
    let before = before.unwrap_or(NEWEST);
    Ok([Value::time(before.found)?, Value::hash(&before.hash), limit.into()])
}

pub(super) fn blocks(sql: &mut dyn Sql, before: Option<BlockCursor>, limit: u32) -> Result<Vec<BlockRow>> {
    let rows = sql.query(
        concat!(
            "SELECT ",
            money::block_columns!(),
            " FROM blocks b WHERE (b.found_ns, b.hash) < ($1, $2) ORDER BY b.found_ns DESC, b.hash DESC LIMIT $3"
        ),
        &page(before, limit)?,
    )?;
    rows.iter().map(block_row).collect()
}

/// Name, pending credits less debits, available credits less debits, and what was paid: the debits of what was
/// available. `m` is the table of miners.
macro_rules! balance_query {
    ($rest:literal) => {
        concat!(
            "SELECT m.name, COALESCE(p.credits - p.debits, 0), COALESCE(a.credits - a.debits, 0), \
             COALESCE(a.debits, 0) FROM miners m \
             LEFT JOIN accounts p ON p.kind = 'miner_pending' AND p.owner = m.id \
             LEFT JOIN accounts a ON a.kind = 'miner_available' AND a.owner = m.id WHERE m.id <> 0 ",
            $rest
        )
    };
}

fn balance_row(row: &Row) -> Result<Balance> {
    Ok(Balance { pending: row.sats(1)?, available: row.sats(2)?, paid: row.sats(3)? })
}

pub(super) fn balance(sql: &mut dyn Sql, account: &str) -> Result<Option<Balance>> {
    if account.contains('\0') {
        return Ok(None);
    }
    let row = sql.query_first(balance_query!("AND m.name = $1"), &[Value::text(account)])?;
    row.as_ref().map(balance_row).transpose()
}

pub(super) fn balances(sql: &mut dyn Sql, after: &str, limit: u32) -> Result<Vec<(String, Balance)>> {
    let after = after.replace('\0', "");
    let rows =
        sql.query(balance_query!("AND m.name > $1 ORDER BY m.name LIMIT $2"), &[Value::Text(after), limit.into()])?;
    rows.iter().map(|row| Ok((row.text(0)?.to_owned(), balance_row(row)?))).collect()
}

pub(super) fn credits(
    sql: &mut dyn Sql,
    account: &str,
    before: Option<BlockCursor>,
    limit: u32,
) -> Result<Vec<CreditRow>> {
    if account.contains('\0') {
        return Ok(Vec::new());
    }
    let [found, hash, limit] = page(before, limit)?;
    let rows = sql.query(
        concat!(
            "SELECT ",
            money::block_columns!(),
            ", c.score, c.amount FROM credits c JOIN blocks b ON b.hash = c.block JOIN miners m ON m.id = c.miner \
             WHERE m.name = $1 AND (b.found_ns, b.hash) < ($2, $3) ORDER BY b.found_ns DESC, b.hash DESC LIMIT $4"
        ),
        &[Value::text(account), found, hash, limit],
    )?;
    let credit = |row: &Row| {
        let (score, amount) = (row.score(BLOCK_COLUMNS)?, row.sats(BLOCK_COLUMNS + 1)?);
        Ok(CreditRow { block: block_row(row)?, score, amount })
    };
    rows.iter().map(credit).collect()
}

pub(super) fn totals(sql: &mut dyn Sql) -> Result<PoolTotals> {
    let mut totals = PoolTotals::default();
    for row in sql.query("SELECT chain, COUNT(*) FROM blocks GROUP BY chain", &[])? {
        if let Some(chain) = ChainState::from_name(row.text(0)?) {
            totals.blocks.insert(chain, row.u64(1)?);
        }
    }
    for row in sql.query("SELECT kind, SUM(debits), SUM(credits) FROM accounts GROUP BY kind", &[])? {
        let (debits, credits) = (row.i64(1)?, row.i64(2)?);
        let sats = |amount: i64| {
            let sum = u64::try_from(amount).ok().and_then(Sats::new);
            sum.ok_or_else(|| LedgerError::Inconsistent(format!("a sum of {amount} sats over accounts of one kind")))
        };
        match row.text(0)? {
            name if name == AccountKind::CoinbaseImmature.name() => totals.coinbase_immature = sats(debits - credits)?,
            name if name == AccountKind::CoinbaseMature.name() => totals.coinbase_mature = sats(debits - credits)?,
            name if name == AccountKind::MinerPending.name() => totals.pending = sats(credits - debits)?,
            name if name == AccountKind::FeePending.name() => totals.fee_pending = sats(credits - debits)?,
            name if name == AccountKind::FeeAvailable.name() => totals.fee_available = sats(credits - debits)?,
            name if name == AccountKind::MinerAvailable.name() => {
                totals.available = sats(credits - debits)?;
                totals.paid = sats(debits)?;
            }
            name => return Err(LedgerError::Inconsistent(format!("unknown accounts '{name}'; run the newer program"))),
        }
    }
    let accounts = sql.query_first("SELECT COUNT(*) FROM miners WHERE id <> 0", &[])?;
    totals.accounts = accounts.map_or(Ok(0), |row| row.u64(0))?;
    totals.closed_through = Closed::load(sql)?.through(&Facts::load(sql)?);
    Ok(totals)
}
