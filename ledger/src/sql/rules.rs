//! Versions of the rules.

use super::{Row, Sql, Value};
use crate::error::{LedgerError, Result};
pub(super) use crate::rules::RuleVersion;
use crate::rules::{BasisPoints, Rules, Scheme};

const COLUMNS: &str =
    r#"SELECT version, scheme, "window", fee_bps, from_slice, floor_slice FROM rules ORDER BY version"#;

/// All versions, oldest first.
pub(super) fn load(sql: &mut dyn Sql) -> Result<Vec<RuleVersion>> {
    sql.query(COLUMNS, &[])?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<RuleVersion> {
    let fee = BasisPoints::new(row.u64(3)?).ok_or_else(|| {
        LedgerError::Inconsistent(format!("a stored fee of {} basis points", row.u64(3).unwrap_or(0)))
    })?;
    let rules = Rules { scheme: Scheme::new(row.text(1)?, row.u64(2)?)?, fee };
    Ok(RuleVersion { version: row.u32(0)?, rules, from_slice: row.u64(4)?, floor: row.u64(5)? })
}

/// The version for blocks found in `slice`.
pub(super) fn for_slice(versions: &[RuleVersion], slice: u64) -> Result<&RuleVersion> {
    let found = versions.iter().rev().find(|version| version.from_slice <= slice);
    found.ok_or_else(|| LedgerError::Inconsistent(format!("no rules for slice {slice}")))
}

/// Makes `rules` the ones in force: adds a version where they are not, valid from the slice behind all that the ledger
/// has seen (`newest`).
pub(super) fn put_in_force(
    sql: &mut dyn Sql,
    versions: &mut Vec<RuleVersion>,
    rules: &Rules,
    newest: Option<u64>,
    pruned_below: u64,
) -> Result<()> {
    if versions.last().is_some_and(|last| last.rules == *rules) {
        return Ok(());
    }
    let last = versions.last().map_or(0, |last| last.version);
    let version = last.checked_add(1).ok_or(LedgerError::Overflow("versions of the rules"))?;
    let from_slice = match (versions.is_empty(), newest) {
        (false, Some(newest)) => newest.saturating_add(1),
        _ => 0,
    };
    let added = RuleVersion { version, rules: *rules, from_slice, floor: pruned_below };
    insert(sql, &added)?;
    if !versions.is_empty() {
        tracing::info!(version, from_slice, scheme = rules.scheme.name(), fee = %rules.fee, "new rules of rewards");
    }
    versions.push(added);
    Ok(())
}

fn insert(sql: &mut dyn Sql, added: &RuleVersion) -> Result<()> {
    let values = [
        added.version.into(),
        Value::text(added.rules.scheme.name()),
        added.rules.scheme.window().into(),
        added.rules.fee.get().into(),
        Value::int(added.from_slice)?,
        Value::int(added.floor)?,
    ];
    let insert = r#"INSERT INTO rules (version, scheme, "window", fee_bps, from_slice, floor_slice)
                    VALUES ($1, $2, $3, $4, $5, $6)"#;
    sql.execute(insert, &values).map(drop)
}

/// Gives a ledger that has nothing yet the versions of another one.
pub(super) fn adopt(sql: &mut dyn Sql, versions: &[RuleVersion]) -> Result<()> {
    if !load(sql)?.is_empty() {
        return Err(LedgerError::Inconsistent("a ledger that has rules cannot take those of another one".into()));
    }
    versions.iter().try_for_each(|version| insert(sql, version))
}
