//! Sluice's side: `dedupe` and `vardiff` fused into a task for each partition, state in RocksDB, in a process of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_log::{KafkaLog, Log as _, Partition};
use sluice_operators::{KINDS, TABLES};
use sluice_proto::RecordKind;
use sluice_state::{MemoryLimits, StateEnv};
use sluice_topology::runtime::{RuntimeHandle, RuntimeOptions, TopologyRuntime};
use sluice_topology::{
    Environment, FileText, Graph, InputSpec, Keyed, Kind, OutputSpec, Parallel, Registry, Role, load,
};

use crate::broker::options;
use crate::{CHECKED, PARTITIONS, process};

/// First argument of a child.
pub const CHILD: &str = "sluice-child";
/// How often the child looks whether it is done.
const LOOK: Duration = Duration::from_millis(50);

const TOPOLOGY: &str = "version: 1
bitcoin: { network: regtest, payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080, nodes: [ { rpc: 'http://127.0.0.1:18443', auth: '${RPC_AUTH}' } ] }
topics:
  share.checked: { partitions: PARTITIONS }
  share.judged: { direct: true }
  share.valid: { partitions: PARTITIONS, archive: true }
  share.rejected: { partitions: PARTITIONS, archive: true }
  difficulty.targets: { partitions: PARTITIONS }
operators:
  pool: { kind: pool, checked: share.checked, targets: difficulty.targets }
  dedupe: { kind: dedupe, in: share.checked, out: share.judged, valid: share.valid, rejected: share.rejected }
  vardiff: { kind: vardiff, in: share.judged, out: difficulty.targets }
";

/// What stands on either side of the two operators.
static POOL: Kind = Kind {
    name: "pool",
    summary: "Gateway and verify of the bench.",
    inputs: &[InputSpec {
        name: "targets",
        accepts: &[RecordKind::DifficultyTarget],
        optional: false,
        priority: false,
    }],
    outputs: &[OutputSpec { name: "checked", writes: &[RecordKind::Verdict], optional: false, keyed: Keyed::Session }],
    lookups: &[],
    settings: &[],
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};

/// What leaves the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// As the pool runs it: rejected shares and decisions. Accepted ones stay in the task, where `tally` sums them.
    Rejected,
    /// A verdict for each share, as with Goka.
    All,
}

impl Leaves {
    /// As an argument, and in names of topics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::All => "all",
        }
    }

    fn named(name: &str) -> Result<Self> {
        let known = [Self::Rejected, Self::All].into_iter().find(|leaves| leaves.name() == name);
        known.with_context(|| format!("{name} is neither `rejected` nor `all`"))
    }
}

/// The topology.
pub fn graph(leaves: Leaves) -> Result<Graph> {
    let mut text = TOPOLOGY.replace("PARTITIONS", &PARTITIONS.to_string());
    if leaves == Leaves::Rejected {
        text = text.replace(" valid: share.valid,", "");
        text = text.lines().filter(|line| !line.contains("share.valid")).map(|line| format!("{line}\n")).collect();
    }
    let mut kinds: Vec<&'static Kind> = KINDS.iter().copied().chain([&POOL]).collect();
    kinds.sort_by_key(|kind| kind.name);
    let registry = Registry { kinds, tables: TABLES.to_vec() };
    let environment = Environment::new([("RPC_AUTH", "user:password")]);
    load(&FileText::new("topology.yaml", &text), &registry, &environment).map_err(|report| anyhow::anyhow!("{report}"))
}

/// The command that runs the tasks on this state until all of `share.checked` is worked off.
pub fn command(broker: &str, prefix: &str, state: &Path, leaves: Leaves) -> Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe().context("this program")?);
    command.args([CHILD, broker, prefix, leaves.name()]).arg(state);
    Ok(command)
}

/// The child, with the arguments that [`command`] gave it.
pub fn child(args: &[String]) -> Result<()> {
    let [broker, prefix, leaves, state] = args else { bail!("{CHILD} takes a broker, a prefix, what leaves, a state") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(broker, prefix, Leaves::named(leaves)?, state.into()))
}

async fn run(broker: &str, prefix: &str, leaves: Leaves, state: PathBuf) -> Result<()> {
    let log = KafkaLog::open(options(broker, prefix)).await?;
    let mut left = 0;
    for partition in 0..PARTITIONS {
        left += log.bounds(&Partition::new(CHECKED, partition)).await?.next.get();
    }
    ensure!(left > 0, "share.checked is empty");
    let env = StateEnv::on_disk(state, MemoryLimits::default())?;
    let plan = graph(leaves)?.plan(&["dedupe".to_owned()])?;
    process::say(process::BEGUN);
    let handle = TopologyRuntime::start(plan, log.clone(), env, Arc::default(), RuntimeOptions::default()).await?;
    work_off(&handle).await?;
    process::say(process::DONE);
    handle.stop(Duration::from_secs(60)).await?;
    Ok(log.close()?)
}

/// Returns once everything is processed, its outputs are durable and the state is committed.
async fn work_off(handle: &RuntimeHandle) -> Result<()> {
    loop {
        if let Some(failure) = handle.failure() {
            return Err(failure.into());
        }
        let status = handle.status().await;
        if status.iter().flat_map(|task| &task.inputs).all(|input| input.end.is_some() && input.lag == 0) {
            if std::env::var_os("OPERATORS").is_some() {
                report(&status);
            }
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the operators took, by their own account, to the error output.
fn report(tasks: &[sluice_topology::runtime::TaskStatus]) {
    for task in tasks {
        let read: u64 = task.inputs.iter().map(|input| input.processed).sum();
        eprintln!("{}: {read} records in {} batches, {} appended", task.name, task.batches, task.appended);
        for operator in &task.operators {
            let each = operator.busy.as_nanos() / u128::from(operator.processed.max(1));
            eprintln!("  {}: {each} ns", operator.name);
        }
    }
}
