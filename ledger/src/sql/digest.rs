//! Digests of the ledger's contents: the sum, modulo 2^256, of the SHA-256 of each row, with names in place of the
//! database's own numbers. So neither the order of rows nor the database shows in them.

use ruint::aliases::U256;
use sha2::{Digest as _, Sha256};

use super::{Row, Sql, Value};
use crate::error::Result;
use crate::store::LedgerDigest;

/// Name of a table and the query of its rows.
type Table = (&'static str, &'static str);

const MONEY: [Table; 5] = [
    (
        "blocks",
        "SELECT hash, height, value, nbits, finder, worker, found_ns, chain, chain_ns, confirmations, answers, credit, \
         rules, fee, window_from, window_to, window_score, edge_taken, edge_total FROM blocks",
    ),
    ("credits", "SELECT c.block, m.name, c.amount, c.score FROM credits c JOIN miners m ON m.id = c.miner"),
    ("accounts", "SELECT a.kind, m.name, a.debits, a.credits FROM accounts a JOIN miners m ON m.id = a.owner"),
    (
        "transfers",
        "SELECT e.key, e.kind, e.block, e.time_ns, t.leg, t.debit_kind, d.name, t.credit_kind, c.name, t.amount \
         FROM entries e JOIN transfers t ON t.entry = e.id \
         JOIN miners d ON d.id = t.debit_owner JOIN miners c ON c.id = t.credit_owner",
    ),
    ("rules", r#"SELECT version, scheme, "window", fee_bps, from_slice, floor_slice FROM rules"#),
];

const SLICES: Table = ("slices", "SELECT s.slice, m.name, s.score FROM slices s JOIN miners m ON m.id = s.miner");

pub(super) fn digest(sql: &mut dyn Sql) -> Result<LedgerDigest> {
    let mut money = U256::ZERO;
    for table in &MONEY {
        money = money.wrapping_add(digest_of(sql, table)?);
    }
    let slices = digest_of(sql, &SLICES)?;
    Ok(LedgerDigest { money: money.to_be_bytes(), slices: slices.to_be_bytes() })
}

fn digest_of(sql: &mut dyn Sql, (name, query): &Table) -> Result<U256> {
    let mut sum = U256::ZERO;
    sql.query_each(query, &[], &mut |row| {
        sum = sum.wrapping_add(digest_of_row(name, row));
        Ok(())
    })?;
    Ok(sum)
}

/// Each value with its type and length, so that no two rows look alike. A score is 16 bytes in SQLite and a number in
/// PostgreSQL: both count as the same 16 bytes.
fn digest_of_row(table: &str, row: &Row) -> U256 {
    let mut hash = Sha256::new();
    let mut add = |tag: u8, bytes: &[u8]| {
        hash.update([tag]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    add(b'r', table.as_bytes());
    for value in &row.0 {
        match value {
            Value::Null => add(b'n', &[]),
            Value::Int(value) => add(b'i', &value.to_be_bytes()),
            Value::Text(text) => add(b't', text.as_bytes()),
            Value::Bytes(bytes) => add(b'b', bytes),
            Value::Wide(value) => add(b'b', &value.to_be_bytes()),
        }
    }
    U256::from_be_bytes::<32>(hash.finalize().into())
}
