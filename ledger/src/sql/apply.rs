//! One batch, in one transaction.

use std::collections::BTreeMap;

use sluice_mining::Sats;
use sluice_proto::EventTime;
use sluice_proto::v1::{BlockOutcome, BlockStatus};

use super::facts::{Closed, Facts};
use super::intake::{Intake, check_account};
use super::{Sql, Value, money, owners, prune, rules, settle, work};
use crate::batch::{Applied, LedgerBatch, LedgerRecord, NextOffset};
use crate::block::{ChainState, CreditState, Step};
use crate::error::{LedgerError, Result};
use crate::store::BlockRow;

/// Next offset by topic and partition.
pub(super) type Positions = BTreeMap<(String, u32), u64>;

pub(super) fn load_positions(sql: &mut dyn Sql) -> Result<Positions> {
    let rows = sql.query(r#"SELECT topic, "partition", next FROM positions"#, &[])?;
    rows.iter().map(|row| Ok(((row.text(0)?.to_owned(), row.u32(1)?), row.u64(2)?))).collect()
}

/// Applies `batch`; repeating it, whole or cut differently, changes nothing.
pub(super) fn apply(sql: &mut dyn Sql, batch: &LedgerBatch) -> Result<Applied> {
    let mut applied = Applied::default();
    if let Some(owner) = &batch.owner {
        owners::hold(sql, owner)?;
    }
    let positions = load_positions(sql)?;
    check_after(&positions, &batch.after)?;
    let (facts, closed) = (Facts::load(sql)?, Closed::load(sql)?);
    let mut versions = rules::load(sql)?;
    let newest = newest_slice(sql, &closed)?;
    rules::put_in_force(sql, &mut versions, &batch.rules, newest, facts.pruned_below)?;

    let mut intake = Intake::new(facts.clone(), closed.clone());
    for record in &batch.records {
        let source = &record.source;
        let known = positions.get(&(source.topic.to_string(), source.partition)).copied().unwrap_or(0);
        if source.offset.get() < known {
            applied.repeats += 1;
        } else {
            applied.records += 1;
            intake.take(record)?;
        }
    }
    work::add(sql, &intake.work)?;
    intake.closed.save(&closed, sql)?;
    for (record, outcome) in &intake.outcomes {
        let stepped = take_outcome(sql, record, outcome, &mut applied);
        stepped.map_err(|error| match error {
            LedgerError::Record(text) => LedgerError::Record(format!("{}: {text}", record.source)),
            other => other,
        })?;
    }
    settle::settle(sql, &intake.facts, &intake.closed, &versions, &mut applied)?;
    prune::prune(sql, &mut intake.facts, &intake.closed, batch, &mut applied)?;
    intake.facts.save(&facts, sql)?;
    save_positions(sql, &positions, &batch.positions)?;
    Ok(applied)
}

/// What the reader has handed over before is here.
fn check_after(stored: &Positions, after: &[NextOffset]) -> Result<()> {
    for given in after {
        let known = stored.get(&(given.topic.to_string(), given.partition)).copied().unwrap_or(0);
        if known < given.next.get() {
            return Err(LedgerError::Behind {
                topic: given.topic.to_string(),
                partition: given.partition,
                stored: known,
                given: given.next.get(),
            });
        }
    }
    Ok(())
}

/// The newest slice the ledger has seen in any partition.
fn newest_slice(sql: &mut dyn Sql, closed: &Closed) -> Result<Option<u64>> {
    let row = sql.query_first("SELECT slice FROM slice_totals ORDER BY slice DESC LIMIT 1", &[])?;
    let stored = row.map(|row| row.u64(0)).transpose()?;
    Ok(stored.max(closed.newest()))
}

/// Positions only grow: a batch repeated from further back does not take them back.
fn save_positions(sql: &mut dyn Sql, stored: &Positions, read: &[NextOffset]) -> Result<()> {
    let mut rows = Vec::new();
    for position in read {
        let known = stored.get(&(position.topic.to_string(), position.partition)).copied();
        if known.is_none_or(|known| known < position.next.get()) {
            let next = Value::int(position.next.get())?;
            rows.push(vec![Value::text(&position.topic), position.partition.into(), next]);
        }
    }
    sql.execute_many(
        r#"INSERT INTO positions (topic, "partition", next) VALUES ($1, $2, $3)
           ON CONFLICT (topic, "partition") DO UPDATE SET next = excluded.next"#,
        &rows,
    )
}

/// Text for people, as every database can store it.
fn shown(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn described(record: &LedgerRecord, outcome: &BlockOutcome) -> Result<BlockRow> {
    let wrong = |what: String| LedgerError::Record(format!("outcome of a block with {what}"));
    let hash =
        outcome.hash.as_ref().try_into().map_err(|_| wrong(format!("a hash of {} bytes", outcome.hash.len())))?;
    let value = Sats::new(outcome.coinbase_value).ok_or_else(|| wrong(format!("{} sats", outcome.coinbase_value)))?;
    let answers: Vec<String> = outcome.nodes.iter().map(|node| format!("{}: {}", node.node, node.answer)).collect();
    check_account(&outcome.account)?;
    Ok(BlockRow {
        hash,
        height: outcome.height,
        value,
        nbits: outcome.nbits,
        finder: outcome.account.clone(),
        worker: shown(&outcome.worker),
        found: EventTime::from_nanos(outcome.found_ns),
        chain: ChainState::Refused,
        chain_since: record.event_time,
        confirmations: outcome.confirmations,
        answers: shown(&answers.join("; ")),
        credit: CreditState::Waiting,
        reward: None,
    })
}

/// A step in a block's life.
fn take_outcome(sql: &mut dyn Sql, record: &LedgerRecord, outcome: &BlockOutcome, applied: &mut Applied) -> Result<()> {
    let mut block = described(record, outcome)?;
    let stored = money::load_block(sql, &block.hash)?;
    if let Some(stored) = &stored {
        let (a, b) = ((stored.height, stored.value, stored.nbits), (block.height, block.value, block.nbits));
        if a != b {
            return Err(LedgerError::Record(format!(
                "height, value and network target of the block {} were {a:?} and now are {b:?}",
                hex::encode(block.hash)
            )));
        }
    }
    let status = BlockStatus::try_from(outcome.status).ok();
    let step = status.and_then(|status| ChainState::step(stored.as_ref().map(|block| block.chain), status));
    let step = step.ok_or_else(|| LedgerError::Record(format!("a block outcome of status {}", outcome.status)))?;
    match (step, stored) {
        (Step::To(chain), None) => {
            block.chain = chain;
            money::insert_block(sql, &block)
        }
        (Step::To(chain), Some(mut stored)) => {
            stored.chain = chain;
            stored.chain_since = block.chain_since;
            stored.confirmations = block.confirmations;
            if !block.answers.is_empty() {
                stored.answers = block.answers;
            }
            money::update_chain(sql, &stored)
        }
        (Step::Conflict, Some(stored)) => {
            applied.conflicts += 1;
            tracing::error!(
                block = %hex::encode(block.hash), height = block.height, state = stored.chain.name(),
                outcome = ?status, source = %record.source,
                "a final block changed on the chain; its money stays where it is: check the nodes"
            );
            Ok(())
        }
        (Step::Stay | Step::Conflict, _) => Ok(()),
    }
}
