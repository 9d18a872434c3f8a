//! Proves the ledger from what is stored: credits from work, balances from transfers.

use std::collections::BTreeMap;

use super::facts::Facts;
use super::money::{self, block_row};
use super::rules::RuleVersion;
use super::{Sql, Value, rules, settle};
use crate::block::CreditState;
use crate::error::{LedgerError, Result};
use crate::posting::{self, AccountKind, EntryKind};
use crate::store::{BlockRow, RewardRow, TrialBalance, Verification};
use crate::window::score_of_weight;

/// Sum of the transfers by kind and owner of the account they debit or credit.
type Sums = BTreeMap<(String, i64), u128>;

fn transfer_sums(sql: &mut dyn Sql, query: &'static str) -> Result<Sums> {
    let rows = sql.query(query, &[])?;
    rows.iter().map(|row| Ok(((row.text(0)?.to_owned(), row.i64(1)?), row.u64(2)?.into()))).collect()
}

pub(super) fn trial_balance(sql: &mut dyn Sql) -> Result<TrialBalance> {
    let mut debited = transfer_sums(
        sql,
        "SELECT debit_kind, debit_owner, SUM(amount) FROM transfers GROUP BY debit_kind, debit_owner",
    )?;
    let mut credited = transfer_sums(
        sql,
        "SELECT credit_kind, credit_owner, SUM(amount) FROM transfers GROUP BY credit_kind, credit_owner",
    )?;
    let mut sums = TrialBalance { transfers: debited.values().sum(), ..TrialBalance::default() };
    sql.query_each("SELECT kind, owner, debits, credits FROM accounts", &[], &mut |row| {
        let key = (row.text(0)?.to_owned(), row.i64(1)?);
        let (debits, credits) = (u128::from(row.u64(2)?), u128::from(row.u64(3)?));
        let asset = AccountKind::ALL.into_iter().any(|kind| kind.is_asset() && kind.name() == key.0);
        let negative = if asset { debits < credits } else { credits < debits };
        let by_transfers = (debited.remove(&key).unwrap_or(0), credited.remove(&key).unwrap_or(0));
        sums.debits += debits;
        sums.credits += credits;
        sums.wrong_accounts += u64::from(negative || by_transfers != (debits, credits));
        Ok(())
    })?;
    // Transfers of accounts that are not there.
    sums.wrong_accounts += (debited.len() + credited.len()) as u64;
    Ok(sums)
}

pub(super) fn verify(sql: &mut dyn Sql) -> Result<Verification> {
    let mut result = Verification::default();
    let facts = Facts::load(sql)?;
    let versions = rules::load(sql)?;
    let rows =
        sql.query(concat!("SELECT ", money::block_columns!(), " FROM blocks b ORDER BY b.found_ns, b.hash"), &[])?;
    for row in &rows {
        let block = block_row(row)?;
        let hash = hex::encode(block.hash);
        let mut findings = Vec::new();
        match block.reward {
            Some(reward) => verify_block(sql, &facts, &versions, &block, &reward, &mut result, &mut findings)?,
            None if block.credit == CreditState::Waiting => {}
            None => findings.push("is credited without a reward".into()),
        }
        result.findings.extend(findings.into_iter().map(|finding| format!("block {hash} {finding}")));
    }
    let sums = trial_balance(sql)?;
    if !sums.is_sound() {
        result.findings.push(format!("debits, credits and transfers do not balance: {sums:?}"));
    }
    Ok(result)
}

fn verify_block(
    sql: &mut dyn Sql,
    facts: &Facts,
    versions: &[RuleVersion],
    block: &BlockRow,
    stored: &RewardRow,
    result: &mut Verification,
    findings: &mut Vec<String>,
) -> Result<()> {
    let credits = stored_credits(sql, block)?;
    let sum: u128 = credits.iter().map(|(_, _, amount)| u128::from(*amount)).sum();
    if sum + u128::from(stored.fee.get()) != u128::from(block.value.get()) {
        findings.push(format!("has credits of {sum} and a fee of {} for a reward of {}", stored.fee, block.value));
    }
    verify_postings(sql, block, stored, &credits, findings)?;
    let rule = versions.iter().find(|version| version.version == stored.rules);
    let (Some(rule), Some(slice)) = (rule, facts.slice_of(block.found.nanos())) else {
        findings.push(format!("was credited by the unknown rules {}", stored.rules));
        return Ok(());
    };
    match settle::share_out(sql, block, slice, rule, facts.pruned_below) {
        Ok((window, reward)) => {
            result.recomputed += 1;
            let parts = reward.parts.iter();
            let expected: Vec<_> = parts
                .map(|part| (part.account.clone(), score_of_weight(&window, part.weight).get(), part.amount.get()))
                .collect();
            if window != stored.window || reward.fee != stored.fee || expected != credits {
                findings.push("was credited otherwise than its work says".into());
            }
        }
        Err(LedgerError::Pruned { .. }) => result.only_sums += 1,
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Account, score and amount of each credit of a block, in order of account.
fn stored_credits(sql: &mut dyn Sql, block: &BlockRow) -> Result<Vec<(String, u128, u64)>> {
    let rows = sql.query(
        "SELECT m.name, c.score, c.amount FROM credits c JOIN miners m ON m.id = c.miner WHERE c.block = $1 \
         ORDER BY m.name",
        &[Value::hash(&block.hash)],
    )?;
    rows.iter().map(|row| Ok((row.text(0)?.to_owned(), row.score(1)?.get(), row.u64(2)?))).collect()
}

/// The block's entries are those that its state says, with the amounts of its credits.
fn verify_postings(
    sql: &mut dyn Sql,
    block: &BlockRow,
    stored: &RewardRow,
    credits: &[(String, u128, u64)],
    findings: &mut Vec<String>,
) -> Result<()> {
    let posted = money::transfers(sql, &block.hash, EntryKind::Credit)?;
    let fee = std::iter::once(("", stored.fee.get()));
    let expected = fee.chain(credits.iter().map(|(name, _, amount)| (name.as_str(), *amount)));
    let found = posted.iter().map(|transfer| (transfer.credit.owner.as_str(), transfer.amount.get()));
    if !expected.filter(|(_, amount)| *amount > 0).eq(found) {
        findings.push("has postings that are not its credits".into());
    }
    let after = |kind| match (kind, block.credit) {
        (EntryKind::Mature, CreditState::Available) => {
            posting::mature(block.hash, block.chain_since, &posted).map(|entry| entry.transfers)
        }
        (EntryKind::Reverse, CreditState::Reversed) => {
            Ok(posting::reverse(block.hash, block.chain_since, &posted).transfers)
        }
        _ => Ok(Vec::new()),
    };
    for kind in [EntryKind::Mature, EntryKind::Reverse] {
        if after(kind)? != money::transfers(sql, &block.hash, kind)? {
            findings.push(format!("has wrong postings of kind '{kind}'"));
        }
    }
    Ok(())
}
