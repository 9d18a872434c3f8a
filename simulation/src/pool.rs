//! The topology of a simulated pool: the share path and the block lane as in `topology.yaml`, with fewer partitions and
//! all verdicts stored.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use sluice_ledger::{BasisPoints, LedgerStore, Rules, Scheme};
use sluice_log::Partition;
use sluice_mining::node::BlockNodes;
use sluice_operators::ledger::LedgerRules;
use sluice_operators::submit::Maturity;
use sluice_operators::{KINDS, TABLES};
use sluice_topology::runtime::Plan;
use sluice_topology::{Environment, Externals, FileText, Registry, load};

/// Partitions of the shares and of what is made of them.
pub const PARTITIONS: u32 = 2;
/// Confirmations that settle a block.
pub const MATURITY: u32 = 3;

/// Topics that sources write: what a run is a function of.
pub const SOURCES: [&str; 4] = ["mining.jobs", "mining.templates", "share.submissions", "block.candidates"];
/// Topics with verdicts.
pub const VERDICTS: [&str; 3] = ["share.valid", "share.rejected", "share.stale"];
/// What tasks make of the shares, whatever their shape.
pub const OUTPUTS: [&str; 5] = ["share.valid", "share.rejected", "share.stale", "share.tallies", "difficulty.targets"];

const HEAD: &str = "version: 1
bitcoin:
  network: regtest
  payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080
  nodes: [ { rpc: http://127.0.0.1:18443, auth: '${RPC_AUTH}' } ]
topics:
  mining.jobs: {}
  mining.templates: {}
  share.submissions: { partitions: 2 }
  share.valid: { partitions: 2, archive: true }
  share.rejected: { partitions: 2, archive: true }
  share.stale: { partitions: 2, archive: true }
  share.tallies: { partitions: 2 }
  difficulty.targets: { partitions: 2 }
  block.candidates: {}
  block.solved: {}
  block.outcomes: {}
";
const OPERATORS: &str = "tables:
  jobs: { from: mining.jobs, kind: job_table }
  templates: { from: mining.templates, kind: template_table }
operators:
  jobmanager: { kind: jobmanager, jobs: mining.jobs, templates: mining.templates }
  stratumd: { kind: gateway, jobs: mining.jobs, targets: difficulty.targets, shares: share.submissions, candidates: block.candidates }
  verify: { kind: verify, in: share.submissions, tables: [jobs], out: share.checked }
  dedupe: { kind: dedupe, in: share.checked, out: share.judged, valid: share.valid, rejected: share.rejected, stale: share.stale }
  vardiff: { kind: vardiff, in: share.judged, out: difficulty.targets }
  tally: { kind: tally, in: share.judged, out: share.tallies }
  assemble: { kind: assemble, in: block.candidates, tables: [templates], out: block.solved }
  submit: { kind: submit, in: block.solved, tips: mining.jobs, out: block.outcomes }
  ledger: { kind: ledger, tallies: share.tallies, outcomes: block.outcomes }
  stats: { kind: stats, in: share.tallies }
";
const FUSED: &str =
    "  share.checked: { partitions: 2, direct: true }\n  share.judged: { partitions: 2, direct: true }\n";
const SPLIT: &str = "  share.checked: { partitions: 2 }\n  share.judged: { partitions: 2 }\n";

/// The tasks of the pool; the share processor in one task for each partition, or `split` into four.
///
/// # Errors
/// If the topology is wrong.
pub fn plan(split: bool) -> Result<Plan> {
    let text = [HEAD, if split { SPLIT } else { FUSED }, OPERATORS].concat();
    let services = [&sluice_gateway::KIND, &sluice_jobmanager::KIND];
    let mut kinds: Vec<_> = KINDS.iter().copied().chain(services).collect();
    kinds.sort_by_key(|kind| kind.name);
    let registry = Registry { kinds, tables: TABLES.to_vec() };
    let environment = Environment::new([("RPC_AUTH", "user:password")]);
    let graph = load(&FileText::new("simulation.yaml", text), &registry, &environment);
    Ok(graph.map_err(|report| anyhow!("{report}"))?.plan(&[])?)
}

/// Partitions of a topic.
pub fn partitions(topic: &str) -> impl Iterator<Item = Partition> {
    let single = topic.starts_with("mining.") || topic.starts_with("block.");
    let topic: Arc<str> = topic.into();
    (0..if single { 1 } else { PARTITIONS }).map(move |number| Partition::new(topic.clone(), number))
}

/// What tasks are lent.
///
/// # Errors
/// Never: the fee is one that may be.
pub fn externals(ledger: Arc<dyn LedgerStore>, nodes: Arc<dyn BlockNodes>) -> Result<Arc<Externals>> {
    let fee = BasisPoints::new(150).ok_or_else(|| anyhow!("a wrong fee"))?;
    let mut externals = Externals::default();
    externals.insert::<Arc<dyn LedgerStore>>(ledger);
    externals.insert(LedgerRules(Rules { scheme: Scheme::Pplns { window: 2 }, fee }));
    externals.insert::<Arc<dyn BlockNodes>>(nodes);
    externals.insert(Maturity(MATURITY));
    Ok(Arc::new(externals))
}
