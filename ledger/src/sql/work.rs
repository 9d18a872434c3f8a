//! Stored work: scores by slice and account, and the windows over them.

use std::collections::{BTreeMap, BTreeSet};

use ruint::aliases::U256;

use super::rules::RuleVersion;
use super::{Row, Sql, Value};
use crate::error::{LedgerError, Result};
use crate::score::Score;
use crate::window::{Holding, Walk, Window};

/// How many slices a walk reads at a time.
const PAGE: i64 = 4096;

/// Numbers of miners by name.
pub(super) type MinerIds = BTreeMap<String, i64>;

/// The numbers of `names`; new names get one.
pub(super) fn miner_ids(sql: &mut dyn Sql, names: &BTreeSet<&str>) -> Result<MinerIds> {
    const SELECT: &str = "SELECT id FROM miners WHERE name = $1";
    let keys: Vec<Vec<Value>> = names.iter().map(|name| vec![Value::text(name)]).collect();
    let mut found = sql.query_many(SELECT, &keys)?;
    let new: Vec<_> = keys.iter().zip(&found).filter(|(_, row)| row.is_none()).map(|(key, _)| key.clone()).collect();
    if !new.is_empty() {
        sql.execute_many("INSERT INTO miners (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", &new)?;
        found = sql.query_many(SELECT, &keys)?;
    }
    let id = |(name, row): (&&str, Option<Row>)| match row {
        Some(row) => Ok(((*name).to_owned(), row.i64(0)?)),
        None => Err(LedgerError::Inconsistent(format!("the account {name} was not stored"))),
    };
    names.iter().zip(found).map(id).collect()
}

/// Adds work by slice and account, to the accounts and to the sums of the slices.
pub(super) fn add(sql: &mut dyn Sql, work: &BTreeMap<(u64, &str), Score>) -> Result<()> {
    if work.is_empty() {
        return Ok(());
    }
    let ids = miner_ids(sql, &work.keys().map(|(_, name)| *name).collect())?;
    let mut rows = Vec::with_capacity(work.len());
    let mut totals: BTreeMap<u64, Score> = BTreeMap::new();
    for ((slice, name), score) in work {
        let id = ids.get(*name).copied().unwrap_or_default();
        rows.push((vec![Value::int(*slice)?, Value::Int(id)], *score));
        let total = totals.entry(*slice).or_default();
        *total = total.checked_add(*score).ok_or(LedgerError::Overflow("the score of a slice"))?;
    }
    add_scores(
        sql,
        "SELECT score FROM slices WHERE slice = $1 AND miner = $2",
        "INSERT INTO slices (slice, miner, score) VALUES ($1, $2, $3) \
         ON CONFLICT (slice, miner) DO UPDATE SET score = excluded.score",
        rows,
    )?;
    let totals = totals.into_iter().map(|(slice, score)| Ok((vec![Value::int(slice)?], score)));
    add_scores(
        sql,
        "SELECT score FROM slice_totals WHERE slice = $1",
        "INSERT INTO slice_totals (slice, score) VALUES ($1, $2) \
         ON CONFLICT (slice) DO UPDATE SET score = excluded.score",
        totals.collect::<Result<_>>()?,
    )
}

fn add_scores(
    sql: &mut dyn Sql,
    select: &'static str,
    upsert: &'static str,
    rows: Vec<(Vec<Value>, Score)>,
) -> Result<()> {
    let keys: Vec<Vec<Value>> = rows.iter().map(|(key, _)| key.clone()).collect();
    let stored = sql.query_many(select, &keys)?;
    let mut sums = Vec::with_capacity(rows.len());
    for ((mut key, score), row) in rows.into_iter().zip(stored) {
        let before = row.map_or(Ok(Score::ZERO), |row| row.score(0))?;
        key.push(before.checked_add(score).ok_or(LedgerError::Overflow("the score of a slice"))?.into());
        sums.push(key);
    }
    sql.execute_many(upsert, &sums)
}

/// Walks back from slice `to` over the sums of the slices, not below `floor`, until `length` is full.
pub(super) fn walk(sql: &mut dyn Sql, to: u64, floor: u64, length: Score) -> Result<(Window, bool)> {
    let mut walk = Walk::new(to, length);
    let mut below = to.checked_add(1);
    while let Some(end) = below.take() {
        let rows = sql.query(
            "SELECT slice, score FROM slice_totals WHERE slice < $1 AND slice >= $2 ORDER BY slice DESC LIMIT $3",
            &[Value::int(end)?, Value::int(floor)?, Value::Int(PAGE)],
        )?;
        for row in &rows {
            let slice = row.u64(0)?;
            let more = walk.step(slice, row.score(1)?)?;
            below = more.then_some(slice);
        }
        if rows.is_empty() {
            break;
        }
    }
    Ok(walk.finish())
}

/// The window of a block found in `slice` under `rule`.
///
/// # Errors
/// [`LedgerError::Pruned`] if work that belongs to it may be gone.
pub(super) fn window(
    sql: &mut dyn Sql,
    block: &[u8; 32],
    slice: u64,
    rule: &RuleVersion,
    pruned: u64,
) -> Result<Window> {
    let (window, full) = walk(sql, slice, rule.floor, Score::blocks(rule.rules.scheme.window()))?;
    let gone = if full { window.from < pruned } else { rule.floor < pruned };
    if gone {
        let mut shown = *block;
        shown.reverse();
        let needed = if full { window.from } else { rule.floor };
        return Err(LedgerError::Pruned { block: hex::encode(shown), needed, pruned });
    }
    Ok(window)
}

/// Weights of all accounts in `window`, in order of their name.
pub(super) fn weights(sql: &mut dyn Sql, window: &Window) -> Result<Vec<(String, U256)>> {
    let mut holdings: BTreeMap<i64, Holding> = BTreeMap::new();
    sql.query_each(
        "SELECT miner, slice, score FROM slices WHERE slice >= $1 AND slice <= $2",
        &[Value::int(window.from)?, Value::int(window.to)?],
        &mut |row| holdings.entry(row.i64(0)?).or_default().add(window, row.u64(1)?, row.score(2)?),
    )?;
    let keys: Vec<_> = holdings.keys().map(|id| vec![Value::Int(*id)]).collect();
    let names = sql.query_many("SELECT name FROM miners WHERE id = $1", &keys)?;
    let mut weights = Vec::with_capacity(holdings.len());
    for (holding, name) in holdings.values().zip(names) {
        let name = name.ok_or_else(|| LedgerError::Inconsistent("work of an account that is not stored".into()))?;
        weights.push((name.text(0)?.to_owned(), holding.weight(window)?));
    }
    weights.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(weights)
}
