//! Hash rates, shares, blocks and balances, out of the statistics' state and the ledger.

use std::fmt::Display;

use sluice_api::ViewError;
use sluice_api::views::{Block, BlockCounts, Credit, Hashrate, Miner, Pool, Rejected, Shares, Worker};
use sluice_ledger::{BlockRow, ChainState, CreditState, LedgerStore};
use sluice_mining::wire::{display_hash, parse_display_hash};
use sluice_mining::{Difficulty, Target};
use sluice_operators::stats::Subject;
use sluice_operators::stats::query::{Rate, Stats, Totals};
use sluice_proto::EventTime;
use sluice_proto::v1::Reason;

use super::View;

/// A worker or account counts as active for this long after its last share, milliseconds.
const ACTIVE_MS: u64 = 600_000;
/// Workers that the pool's page shows.
const TOP_WORKERS: usize = 50;
/// Credits that a miner's page shows.
const CREDITS: u32 = 100;

fn failed(error: impl Display) -> ViewError {
    ViewError(error.to_string())
}

fn stats(view: &View) -> Result<Stats<'_>, ViewError> {
    let (name, table) = view
        .stats
        .as_ref()
        .ok_or_else(|| ViewError("this process does not run the statistics: ask the one that does".into()))?;
    Ok(Stats::new(table.reader.as_ref(), name))
}

pub(super) fn pool(view: &View) -> Result<Pool, ViewError> {
    let (stats, now) = (stats(view)?, EventTime::now());
    let totals = view.ledger()?.totals().map_err(failed)?;
    let mut workers = active_workers(&stats, None, now)?;
    let active_workers = workers.len() as u64;
    let mut accounts: Vec<&str> = workers.iter().map(|worker| worker.account.as_str()).collect();
    accounts.dedup();
    let active_accounts = accounts.len() as u64;
    workers.sort_by(|a, b| b.hashrate.m10.total_cmp(&a.hashrate.m10));
    workers.truncate(TOP_WORKERS);
    let (height, nbits) = work_on(view);
    let count = |state| totals.blocks.get(&state).copied().unwrap_or(0);
    Ok(Pool {
        network: view.network.clone(),
        height,
        network_difficulty: Target::from_compact(nbits)
            .map_or_else(|_| "0".to_owned(), |target| Difficulty::of_target(target).to_string()),
        hashrate: hashrate(&stats, Subject::Pool, now)?,
        connections: view.services.gateways().map(|(_, gateway)| gateway.status().connections).sum(),
        active_accounts,
        active_workers,
        shares: shares(&stats.totals(Subject::Pool).map_err(failed)?),
        blocks: BlockCounts {
            pending: count(ChainState::Accepted) + count(ChainState::Inactive),
            confirmed: count(ChainState::Confirmed),
            orphaned: count(ChainState::Orphaned),
            refused: count(ChainState::Refused),
        },
        available_sats: totals.available.get(),
        pending_sats: totals.pending.get(),
        fee_sats: totals.fee_available.get(),
        stratum: view
            .services
            .gateways()
            .flat_map(|(_, gateway)| gateway.addresses())
            .map(|at| at.to_string())
            .collect(),
        workers,
    })
}

/// Height and compact network target of the work of the moment.
fn work_on(view: &View) -> (u32, u32) {
    let jobs = view.services.gateways().filter_map(|(_, gateway)| gateway.status().latest_job);
    let newest = jobs.map(|job| (job.height, job.nbits)).max_by_key(|(height, _)| *height);
    let made = view.services.jobmanagers().map(|(_, jobmanager)| jobmanager.status());
    let made = made.map(|status| (status.height, status.nbits)).max_by_key(|(height, _)| *height);
    newest.or(made).unwrap_or_default()
}

pub(super) fn miner(view: &View, address: &str) -> Result<Option<Miner>, ViewError> {
    let (stats, now, ledger) = (stats(view)?, EventTime::now(), view.ledger()?);
    let balance = ledger.balance(address).map_err(failed)?;
    let totals = stats.totals(Subject::Account(address)).map_err(failed)?;
    if balance.is_none() && totals == Totals::default() {
        return Ok(None);
    }
    let balance = balance.unwrap_or_default();
    let credits = ledger.credits(address, None, CREDITS).map_err(failed)?;
    let names = stats.workers(Some(address)).map_err(failed)?;
    let workers = names.into_iter().map(|(account, worker, last)| self::worker(&stats, account, worker, last, now));
    Ok(Some(Miner {
        address: address.to_owned(),
        hashrate: hashrate(&stats, Subject::Account(address), now)?,
        shares: shares(&totals),
        available_sats: balance.available.get(),
        pending_sats: balance.pending.get(),
        paid_sats: balance.paid.get(),
        workers: workers.collect::<Result<_, _>>()?,
        credits: credits
            .iter()
            .map(|credit| Credit {
                block: display_hash(&credit.block.hash),
                height: credit.block.height,
                sats: credit.amount.get(),
                status: credit.block.chain.name().to_owned(),
            })
            .collect(),
    }))
}

pub(super) fn blocks(view: &View, before: Option<&str>, limit: u32) -> Result<Option<Vec<Block>>, ViewError> {
    let ledger = view.ledger()?;
    let cursor = match before {
        None => None,
        Some(hash) => match find(ledger, hash)? {
            Some(block) => Some(block.cursor()),
            None => return Ok(None),
        },
    };
    let rows = ledger.blocks(cursor, limit).map_err(failed)?;
    Ok(Some(rows.iter().map(block).collect()))
}

fn find(ledger: &dyn LedgerStore, hash: &str) -> Result<Option<BlockRow>, ViewError> {
    match parse_display_hash(hash) {
        Some(hash) => ledger.block(hash).map_err(failed),
        None => Ok(None),
    }
}

fn block(row: &BlockRow) -> Block {
    Block {
        hash: display_hash(&row.hash),
        height: row.height,
        status: row.chain.name().to_owned(),
        reward_sats: row.value.get(),
        fee_sats: row.reward.map_or(0, |reward| reward.fee.get()),
        credited: matches!(row.credit, CreditState::Pending | CreditState::Available),
        account: row.finder.clone(),
        worker: row.worker.clone(),
        found_ms: row.found.millis(),
    }
}

/// Workers with a share in the last minutes, by account and name.
fn active_workers(stats: &Stats<'_>, account: Option<&str>, now: EventTime) -> Result<Vec<Worker>, ViewError> {
    let all = stats.workers(account).map_err(failed)?;
    let active = all.into_iter().filter(|(_, _, last)| now.millis().saturating_sub(*last) < ACTIVE_MS);
    active.map(|(account, name, last)| worker(stats, account, name, last, now)).collect()
}

fn worker(
    stats: &Stats<'_>,
    account: String,
    worker: String,
    last_share_ms: u64,
    now: EventTime,
) -> Result<Worker, ViewError> {
    let subject = Subject::Worker(&account, &worker);
    let hashrate = hashrate(stats, subject, now)?;
    let shares = shares(&stats.totals(subject).map_err(failed)?);
    Ok(Worker { account, worker, hashrate, shares, last_share_ms })
}

fn hashrate(stats: &Stats<'_>, subject: Subject<'_>, now: EventTime) -> Result<Hashrate, ViewError> {
    let rate = |window_ms| stats.rate(subject, window_ms, now).map(per_second).map_err(failed);
    Ok(Hashrate { m1: rate(60_000)?, m10: rate(600_000)?, h1: rate(3_600_000)?, d1: rate(86_400_000)? })
}

/// An estimate to look at: floating point is right here, and nowhere near money.
fn per_second(rate: Rate) -> f64 {
    rate.work as f64 * 1000.0 / rate.over_ms as f64
}

/// A reason as the API and the metrics call it.
pub(crate) fn reason_name(reason: Reason) -> String {
    reason.as_str_name().trim_start_matches("REASON_").to_lowercase()
}

fn shares(totals: &Totals) -> Shares {
    let rejected =
        totals.rejected.iter().map(|(reason, shares)| Rejected { reason: reason_name(*reason), shares: *shares });
    Shares { accepted: totals.accepted, work: totals.work.to_string(), rejected: rejected.collect() }
}
