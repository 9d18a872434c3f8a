//! Blocks, credits and postings as rows.

use std::collections::{BTreeMap, BTreeSet};

use super::work::miner_ids;
use super::{Row, Sql, Value};
use crate::block::{ChainState, CreditState};
use crate::error::{LedgerError, Result};
use crate::posting::{Account, AccountKind, Entry, EntryKind, Transfer};
use crate::schemes::Reward;
use crate::store::{BlockRow, RewardRow};
use crate::window::{Edge, Window, score_of_weight};

/// Columns of a block, in the order [`block_row`] reads them; `b` is the table.
macro_rules! block_columns {
    () => {
        "b.hash, b.height, b.value, b.nbits, b.finder, b.worker, b.found_ns, b.chain, b.chain_ns, b.confirmations, \
         b.answers, b.credit, b.rules, b.fee, b.window_from, b.window_to, b.window_score, b.edge_taken, b.edge_total"
    };
}
pub(super) use block_columns;

/// Number of columns in `block_columns!()`.
pub(super) const BLOCK_COLUMNS: usize = 19;

/// Reads a block.
pub(super) fn block_row(row: &Row) -> Result<BlockRow> {
    let unknown = |what: &str| LedgerError::Inconsistent(format!("a block with the unknown state '{what}'"));
    Ok(BlockRow {
        hash: row.bytes(0)?,
        height: row.u32(1)?,
        value: row.sats(2)?,
        nbits: row.u32(3)?,
        finder: row.text(4)?.to_owned(),
        worker: row.text(5)?.to_owned(),
        found: row.time(6)?,
        chain: ChainState::from_name(row.text(7)?).ok_or_else(|| unknown("chain"))?,
        chain_since: row.time(8)?,
        confirmations: row.u32(9)?,
        answers: row.text(10)?.to_owned(),
        credit: CreditState::from_name(row.text(11)?).ok_or_else(|| unknown("credit"))?,
        reward: if row.is_null(12) { None } else { Some(reward_row(row)?) },
    })
}

fn reward_row(row: &Row) -> Result<RewardRow> {
    let edge = if row.is_null(17) { None } else { Some(Edge { taken: row.score(17)?, total: row.score(18)? }) };
    let window = Window { from: row.u64(14)?, to: row.u64(15)?, score: row.score(16)?, edge };
    Ok(RewardRow { rules: row.u32(12)?, fee: row.sats(13)?, window })
}

/// The block with this hash.
pub(super) fn load_block(sql: &mut dyn Sql, hash: &[u8; 32]) -> Result<Option<BlockRow>> {
    let row = sql
        .query_first(concat!("SELECT ", block_columns!(), " FROM blocks b WHERE b.hash = $1"), &[Value::hash(hash)])?;
    row.as_ref().map(block_row).transpose()
}

/// Stores a block that was not heard of before.
pub(super) fn insert_block(sql: &mut dyn Sql, block: &BlockRow) -> Result<()> {
    sql.execute(
        "INSERT INTO blocks (hash, height, value, nbits, finder, worker, found_ns, chain, chain_ns, confirmations, \
         answers, credit) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        &[
            Value::hash(&block.hash),
            block.height.into(),
            block.value.into(),
            block.nbits.into(),
            Value::text(&block.finder),
            Value::text(&block.worker),
            Value::time(block.found)?,
            Value::text(block.chain.name()),
            Value::time(block.chain_since)?,
            block.confirmations.into(),
            Value::text(&block.answers),
            Value::text(block.credit.name()),
        ],
    )?;
    Ok(())
}

/// Stores what the chain says of a block now.
pub(super) fn update_chain(sql: &mut dyn Sql, block: &BlockRow) -> Result<()> {
    sql.execute(
        "UPDATE blocks SET chain = $2, chain_ns = $3, confirmations = $4, answers = $5 WHERE hash = $1",
        &[
            Value::hash(&block.hash),
            Value::text(block.chain.name()),
            Value::time(block.chain_since)?,
            block.confirmations.into(),
            Value::text(&block.answers),
        ],
    )?;
    Ok(())
}

/// Stores what the ledger has done about a block.
pub(super) fn update_credit(sql: &mut dyn Sql, hash: &[u8; 32], credit: CreditState) -> Result<()> {
    sql.execute("UPDATE blocks SET credit = $2 WHERE hash = $1", &[Value::hash(hash), Value::text(credit.name())])?;
    Ok(())
}

/// Stores how a block's reward was shared out, and what each account got.
pub(super) fn insert_credits(
    sql: &mut dyn Sql,
    hash: &[u8; 32],
    version: u32,
    window: &Window,
    reward: &Reward,
) -> Result<()> {
    let edge = |part: fn(&Edge) -> crate::Score| window.edge.as_ref().map_or(Value::Null, |edge| part(edge).into());
    sql.execute(
        "UPDATE blocks SET credit = 'pending', rules = $2, fee = $3, window_from = $4, window_to = $5, \
         window_score = $6, edge_taken = $7, edge_total = $8 WHERE hash = $1",
        &[
            Value::hash(hash),
            version.into(),
            reward.fee.into(),
            Value::int(window.from)?,
            Value::int(window.to)?,
            window.score.into(),
            edge(|edge| edge.taken),
            edge(|edge| edge.total),
        ],
    )?;
    let ids = miner_ids(sql, &reward.parts.iter().map(|part| part.account.as_str()).collect())?;
    let rows: Vec<Vec<Value>> = reward
        .parts
        .iter()
        .map(|part| {
            let id = ids.get(&part.account).copied().unwrap_or_default();
            let score = score_of_weight(window, part.weight);
            vec![Value::hash(hash), Value::Int(id), score.into(), part.amount.into()]
        })
        .collect();
    sql.execute_many("INSERT INTO credits (block, miner, score, amount) VALUES ($1, $2, $3, $4)", &rows)
}

/// Posts an entry: its transfers, and the balances they change. The database takes each key once.
pub(super) fn post(sql: &mut dyn Sql, entry: &Entry) -> Result<()> {
    let accounts = || entry.transfers.iter().flat_map(|transfer| [&transfer.debit, &transfer.credit]);
    let owners: BTreeSet<&str> = accounts().map(|account| account.owner.as_str()).collect();
    let ids = miner_ids(sql, &owners)?;
    let key = |account: &Account| {
        let id = ids.get(&account.owner).copied().unwrap_or_default();
        [Value::text(account.kind.name()), Value::Int(id)]
    };
    let id = sql.query_first(
        "INSERT INTO entries (key, kind, block, time_ns) VALUES ($1, $2, $3, $4) RETURNING id",
        &[
            Value::Text(entry.key()),
            Value::text(entry.kind.name()),
            Value::hash(&entry.block),
            Value::time(entry.time)?,
        ],
    )?;
    let id = id.ok_or_else(|| LedgerError::Inconsistent(format!("the entry {} got no number", entry.key())))?.i64(0)?;

    let opened: BTreeSet<&Account> = accounts().collect();
    let rows: Vec<_> = opened.iter().map(|account| key(account).to_vec()).collect();
    sql.execute_many(
        "INSERT INTO accounts (kind, owner, debits, credits) VALUES ($1, $2, 0, 0) \
         ON CONFLICT (kind, owner) DO NOTHING",
        &rows,
    )?;
    let mut rows = Vec::with_capacity(entry.transfers.len());
    let mut changes: BTreeMap<&Account, (u64, u64)> = BTreeMap::new();
    for (leg, transfer) in entry.transfers.iter().enumerate() {
        let mut row = vec![Value::Int(id), Value::int(leg as u64)?];
        row.extend(key(&transfer.debit));
        row.extend(key(&transfer.credit));
        row.push(transfer.amount.into());
        rows.push(row);
        let (amount, overflow) = (transfer.amount.get(), LedgerError::Overflow("the transfers of an entry"));
        let debits = &mut changes.entry(&transfer.debit).or_default().0;
        *debits = debits.checked_add(amount).ok_or(overflow)?;
        let credits = &mut changes.entry(&transfer.credit).or_default().1;
        *credits = credits.checked_add(amount).ok_or(LedgerError::Overflow("the transfers of an entry"))?;
    }
    sql.execute_many(
        "INSERT INTO transfers (entry, leg, debit_kind, debit_owner, credit_kind, credit_owner, amount) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &rows,
    )?;
    let mut rows = Vec::with_capacity(changes.len());
    for (account, (debits, credits)) in changes {
        let mut row = key(account).to_vec();
        row.extend([Value::int(debits)?, Value::int(credits)?]);
        rows.push(row);
    }
    sql.execute_many(
        "UPDATE accounts SET debits = debits + $3, credits = credits + $4 WHERE kind = $1 AND owner = $2",
        &rows,
    )
}

/// The transfers of a block's entry of this kind, in order.
pub(super) fn transfers(sql: &mut dyn Sql, hash: &[u8; 32], kind: EntryKind) -> Result<Vec<Transfer>> {
    let rows = sql.query(
        "SELECT t.debit_kind, d.name, t.credit_kind, c.name, t.amount \
         FROM entries e JOIN transfers t ON t.entry = e.id \
         JOIN miners d ON d.id = t.debit_owner JOIN miners c ON c.id = t.credit_owner \
         WHERE e.block = $1 AND e.kind = $2 ORDER BY t.leg",
        &[Value::hash(hash), Value::text(kind.name())],
    )?;
    rows.iter().map(transfer).collect()
}

fn transfer(row: &Row) -> Result<Transfer> {
    let account = |column: usize| {
        let name = row.text(column)?;
        let kind = AccountKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| LedgerError::Inconsistent(format!("a transfer with the account '{name}'")))?;
        Ok::<_, LedgerError>(Account { kind, owner: row.text(column + 1)?.to_owned() })
    };
    Ok(Transfer { debit: account(0)?, credit: account(2)?, amount: row.sats(4)? })
}
