//! A ledger made of the topics again, compared with the pool's (invariant M1).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};
use sluice_ledger::{BlockRow, LedgerStore, Snapshot, TrialBalance, Verification};
use sluice_log::{Partition, SharedLog};
use sluice_operators::ledger::{LedgerRules, rules};
use sluice_state::StateEnv;
use sluice_topology::runtime::replay::{Check, Progress, Replay, Until};
use sluice_topology::runtime::{Plan, TaskSpec};
use sluice_topology::{Config, Externals};

/// Accounts or blocks that one look asks for.
const PAGE: u32 = 1000;
/// Differences that are told; how many there are is told besides.
const TOLD: usize = 10;

/// What was found.
pub(super) struct LedgerReport {
    task: String,
    records: u64,
    blocks: usize,
    accounts: usize,
    /// Digest of the money in the pool's ledger, and in the new one.
    money: [[u8; 32]; 2],
    /// What is wrong, in plain words.
    findings: Vec<String>,
}

impl LedgerReport {
    /// Nothing is wrong.
    pub(super) fn is_good(&self) -> bool {
        self.findings.is_empty() && self.money[0] == self.money[1]
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let [live, again] = self.money.map(hex::encode);
        let mut text = format!(
            "{}: made again of {} records: {} accounts, {} blocks, money {}",
            self.task,
            self.records,
            self.accounts,
            self.blocks,
            if live == again {
                format!("{live} as in the pool")
            } else {
                format!("DIFFERS: {live} in the pool, {again} of the log")
            }
        );
        text.push('\n');
        for finding in self.findings.iter().take(TOLD) {
            let _ = writeln!(text, "  {finding}");
        }
        if self.findings.len() > TOLD {
            let _ = writeln!(text, "  and {} more", self.findings.len() - TOLD);
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "task": self.task,
            "good": self.is_good(),
            "records": self.records,
            "accounts": self.accounts,
            "blocks": self.blocks,
            "money": hex::encode(self.money[0]),
            "money_of_the_log": hex::encode(self.money[1]),
            "findings": self.findings,
        })
    }
}

/// The pool's ledger at one moment: taken before the log is opened, so that the log has all that it has.
pub(super) struct LiveLedger {
    store: Arc<dyn LedgerStore>,
    snapshot: Snapshot,
}

impl LiveLedger {
    /// Opens it, and remembers how it stands.
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let url = config.ledger.url.reveal().context("the ledger's url")?;
        let store = sluice_ledger::open(&url).context("the ledger")?;
        let snapshot = store.snapshot()?;
        Ok(Self { store, snapshot })
    }

    /// Makes a ledger of the topics up to where the pool's stands, in a database of its own in `dir`, and compares.
    pub(super) fn compare(
        &self,
        (spec, plan): (TaskSpec, &Plan),
        config: &Config,
        log: &SharedLog,
        dir: &Path,
        progress: &Progress,
    ) -> anyhow::Result<LedgerReport> {
        let again = sluice_ledger::open_sqlite(&dir.join("ledger.db"))?;
        again.bind_log(log.uuid())?;
        again.adopt_rules(&self.snapshot.rules)?;
        let in_force = match self.snapshot.rules.last() {
            Some(version) => version.rules,
            None => rules(&config.ledger)?,
        };
        let mut externals = Externals::default();
        externals.insert::<Arc<dyn LedgerStore>>(again.clone());
        externals.insert(LedgerRules(in_force));
        let mut until: BTreeMap<_, _> = spec
            .inputs
            .iter()
            .map(|input| (Partition::new(Arc::clone(&input.topic), input.partition), sluice_proto::Offset::ZERO))
            .collect();
        until
            .extend(self.snapshot.positions.iter().map(|it| (Partition::new(it.topic.clone(), it.partition), it.next)));
        let replay = Replay {
            log: Arc::clone(log),
            env: StateEnv::in_memory(),
            externals: Arc::new(externals),
            network: plan.network.clone(),
            check: Check::Forget,
        };
        let task = spec.shown.clone();
        let replayed =
            replay.run(&[(spec, Until::Positions(until))], progress).into_iter().next().context("no task")??;
        let mut findings = Vec::new();
        sound(self.store.as_ref(), "the pool's ledger", &mut findings)?;
        sound(again.as_ref(), "the new ledger", &mut findings)?;
        let money = [self.snapshot.digest.money, again.digest()?.money];
        let (blocks, accounts) = (all_blocks(again.as_ref())?, all_balances(again.as_ref())?);
        if money[0] != money[1] {
            differences("account", &all_balances(self.store.as_ref())?, &accounts, &mut findings);
            differences("block", &all_blocks(self.store.as_ref())?, &blocks, &mut findings);
            if self.store.snapshot()?.positions != self.snapshot.positions {
                let later =
                    "the pool has gone on meanwhile: its rows are later ones than its digest, and more may differ";
                findings.push(later.to_owned());
            }
            if findings.is_empty() {
                findings.push("balances and blocks agree, but not the postings, credits or rules".to_owned());
            }
        }
        Ok(LedgerReport {
            task,
            records: replayed.records,
            blocks: blocks.len(),
            accounts: accounts.len(),
            money,
            findings,
        })
    }
}

/// What a ledger says against itself.
fn sound(store: &dyn LedgerStore, name: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let balance: TrialBalance = store.trial_balance()?;
    if !balance.is_sound() {
        findings.push(format!("{name} does not add up: {balance:?}"));
    }
    let verified: Verification = store.verify()?;
    findings.extend(verified.findings.into_iter().map(|finding| format!("{name}: {finding}")));
    Ok(())
}

fn all_blocks(store: &dyn LedgerStore) -> anyhow::Result<BTreeMap<String, String>> {
    let (mut all, mut before) = (BTreeMap::new(), None);
    loop {
        let page: Vec<BlockRow> = store.blocks(before, PAGE)?;
        before = page.last().map(BlockRow::cursor);
        all.extend(page.iter().map(|row| (hex::encode(row.hash), format!("{row:?}"))));
        if page.len() < PAGE as usize {
            return Ok(all);
        }
    }
}

fn all_balances(store: &dyn LedgerStore) -> anyhow::Result<BTreeMap<String, String>> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let page = store.balances(&after, PAGE)?;
        let full = page.len() == PAGE as usize;
        after = page.last().map(|(name, _)| name.clone()).unwrap_or_default();
        all.extend(page.into_iter().map(|(name, balance)| (name, format!("{balance:?}"))));
        if !full {
            return Ok(all);
        }
    }
}

fn differences(
    what: &str,
    live: &BTreeMap<String, String>,
    again: &BTreeMap<String, String>,
    findings: &mut Vec<String>,
) {
    let nothing = "nothing".to_owned();
    let names: std::collections::BTreeSet<_> = live.keys().chain(again.keys()).collect();
    for name in names {
        let (in_pool, of_log) = (live.get(name).unwrap_or(&nothing), again.get(name).unwrap_or(&nothing));
        if in_pool != of_log {
            findings.push(format!("{what} {name}: {in_pool} in the pool, {of_log} of the log"));
        }
    }
}
