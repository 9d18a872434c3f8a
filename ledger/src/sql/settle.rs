//! Credits blocks, matures them, reverses them.

use super::facts::{Closed, Facts};
use super::rules::{RuleVersion, for_slice};
use super::{Sql, money, work};
use crate::batch::Applied;
use crate::block::{ChainState, CreditState};
use crate::error::{LedgerError, Result};
use crate::posting::{self, EntryKind};
use crate::rules::Scheme;
use crate::schemes::{Reward, pplns, solo};
use crate::score::Score;
use crate::store::BlockRow;
use crate::window::Window;

/// Does for each open block what its state and the closed slices allow.
///
/// The result does not depend on whether outcomes or tallies came first: a block that was orphaned before its slice
/// closed is credited and reversed, as it would have been the other way round.
pub(super) fn settle(
    sql: &mut dyn Sql,
    facts: &Facts,
    closed: &Closed,
    versions: &[RuleVersion],
    applied: &mut Applied,
) -> Result<()> {
    let rows = sql.query(
        concat!(
            "SELECT ",
            money::block_columns!(),
            " FROM blocks b WHERE b.credit IN ('waiting', 'pending') AND b.chain <> 'refused' \
             AND (b.credit = 'waiting' OR b.chain IN ('confirmed', 'orphaned')) ORDER BY b.found_ns, b.hash"
        ),
        &[],
    )?;
    for row in &rows {
        let mut block = money::block_row(row)?;
        if block.credit == CreditState::Waiting {
            let slice = facts.slice_of(block.found.nanos());
            match (slice, closed.through(facts)) {
                (Some(slice), Some(through)) if slice <= through => {
                    credit(sql, &block, slice, facts, versions)?;
                    block.credit = CreditState::Pending;
                    applied.credited += 1;
                }
                _ => continue,
            }
        }
        match block.chain {
            ChainState::Confirmed => {
                mature(sql, &block)?;
                applied.matured += 1;
            }
            ChainState::Orphaned => {
                reverse(sql, &block)?;
                applied.reversed += 1;
            }
            ChainState::Accepted | ChainState::Inactive | ChainState::Refused => {}
        }
    }
    Ok(())
}

/// Shares out the reward of a block found in `slice`: the window and the parts.
pub(super) fn share_out(
    sql: &mut dyn Sql,
    block: &BlockRow,
    slice: u64,
    rule: &RuleVersion,
    pruned_below: u64,
) -> Result<(Window, Reward)> {
    match rule.rules.scheme {
        Scheme::Solo => {
            let window = Window { from: slice, to: slice, score: Score::ZERO, edge: None };
            Ok((window, solo(block.value, rule.rules.fee, &block.finder)?))
        }
        Scheme::Pplns { .. } => {
            let window = work::window(sql, &block.hash, slice, rule, pruned_below)?;
            let weights = work::weights(sql, &window)?;
            Ok((window, pplns(block.value, rule.rules.fee, weights, &block.finder)?))
        }
    }
}

fn credit(sql: &mut dyn Sql, block: &BlockRow, slice: u64, facts: &Facts, versions: &[RuleVersion]) -> Result<()> {
    let rule = for_slice(versions, slice)?;
    let (window, reward) = share_out(sql, block, slice, rule, facts.pruned_below)?;
    let entry = posting::credit(block.hash, block.found, &reward)?;
    money::insert_credits(sql, &block.hash, rule.version, &window, &reward)?;
    money::post(sql, &entry)?;
    tracing::info!(
        block = %hex::encode(block.hash), height = block.height, value = %reward.value, fee = %reward.fee,
        accounts = reward.parts.len(), window = %window.score, "block credited"
    );
    Ok(())
}

/// What a block's credit posted; checked against its value before money moves on.
fn credited(sql: &mut dyn Sql, block: &BlockRow) -> Result<Vec<posting::Transfer>> {
    let transfers = money::transfers(sql, &block.hash, EntryKind::Credit)?;
    let sum: u128 = transfers.iter().map(|transfer| u128::from(transfer.amount.get())).sum();
    if sum != u128::from(block.value.get()) {
        let hash = hex::encode(block.hash);
        return Err(LedgerError::Inconsistent(format!("{sum} sats credited for the block {hash} of {}", block.value)));
    }
    Ok(transfers)
}

fn mature(sql: &mut dyn Sql, block: &BlockRow) -> Result<()> {
    let transfers = credited(sql, block)?;
    money::post(sql, &posting::mature(block.hash, block.chain_since, &transfers)?)?;
    money::update_credit(sql, &block.hash, CreditState::Available)
}

fn reverse(sql: &mut dyn Sql, block: &BlockRow) -> Result<()> {
    let transfers = credited(sql, block)?;
    money::post(sql, &posting::reverse(block.hash, block.chain_since, &transfers))?;
    money::update_credit(sql, &block.hash, CreditState::Reversed)
}
