//! `sluice checkpoint`: checkpoints made, listed, verified, copied away and taken back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_state::checkpoint::{self, Checkpointer, Checkpoints, Found, Manifest};
use sluice_state::{Lineage, states_in};
use sluice_topology::Graph;
use sluice_topology::runtime::{TaskSpec, describe, state_tables};

use crate::cli::{Common, FileArgs};
use crate::pool::control;
use crate::pool::log::{open_to_read, wait_for};
use crate::{logging, topology_file};

/// `sluice checkpoint`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice checkpoint create                              of every task, also while the pool runs
  sluice checkpoint ls
  sluice checkpoint verify verify.3 --sequence 17
  sluice checkpoint copy --to /backup/pool              the newest one of each task, verified on both sides
  sluice checkpoint restore --from /backup/pool         with the pool stopped; what is replaced is kept aside

A pool that finds no state takes its newest checkpoint by itself: restore is for state that is there and not wanted.")]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make one now: of the running pool, or of its state where none runs.
    Create(Target),
    /// List them, newest first.
    Ls(Target),
    /// Read every byte and every row of them; code 1 if one is not in order.
    Verify {
        /// Which ones.
        #[command(flatten)]
        target: Target,
        /// Only the one with this number.
        #[arg(long, value_name = "N")]
        sequence: Option<u64>,
    },
    /// Copy them to another directory as plain files.
    Copy {
        /// Which ones.
        #[command(flatten)]
        target: Target,
        /// The directory; it is created.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// The one with this number instead of the newest.
        #[arg(long, value_name = "N")]
        sequence: Option<u64>,
    },
    /// Make one of them the state of its task.
    Restore {
        /// Which ones.
        #[command(flatten)]
        target: Target,
        /// Where they were copied to; else those beside the state.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        /// The one with this number instead of the newest that is in order.
        #[arg(long, value_name = "N")]
        sequence: Option<u64>,
    },
}

/// Which tasks, of which topology.
#[derive(Args)]
struct Target {
    /// The task; `all` for every one.
    #[arg(default_value = "all")]
    task: String,
    /// The topology.
    #[command(flatten)]
    file: FileArgs,
    /// JSON instead of lines for people.
    #[arg(long)]
    json: bool,
}

/// What happened to one checkpoint or task.
struct Done {
    task: String,
    outcome: Result<Manifest, String>,
    note: Option<String>,
}

/// Runs it: code 1 if one of them failed.
pub(crate) fn run(args: &CheckpointArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let target = match &args.action {
        Action::Create(target) | Action::Ls(target) => target,
        Action::Verify { target, .. } | Action::Copy { target, .. } | Action::Restore { target, .. } => target,
    };
    let graph = topology_file::load(&target.file)?;
    let tasks = Tasks::new(&graph, &target.task)?;
    let done = match &args.action {
        Action::Create(_) => create(&tasks)?,
        Action::Ls(_) => list(&tasks, None)?.iter().map(|found| tasks.done(found, found.manifest.clone())).collect(),
        Action::Verify { sequence, .. } => {
            let verified = |found: &Found| checkpoint::verify(found).map_err(|faults| faults.join("; "));
            list(&tasks, *sequence)?.iter().map(|found| tasks.done(found, verified(found))).collect()
        }
        Action::Copy { to, sequence, .. } => copy(&tasks, to, *sequence)?,
        Action::Restore { from, sequence, .. } => restore(&graph, &tasks, from.as_deref(), *sequence)?,
    };
    show(&done, target.json)?;
    let failed = done.iter().any(|it| it.outcome.is_err());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The tasks that were asked for, by the names of their states and as people see them.
struct Tasks {
    state: PathBuf,
    named: Vec<(String, String)>,
    all: bool,
}

impl Tasks {
    fn new(graph: &Graph, asked: &str) -> anyhow::Result<Self> {
        let plan = graph.plan(&[])?;
        let all = asked == "all";
        let named: Vec<(String, String)> = plan.tasks.into_iter().map(|task| (task.name, task.shown)).collect();
        let state = graph.config.state.dir.clone();
        if all {
            return Ok(Self { state, named, all });
        }
        let Some(task) = named.iter().find(|(name, shown)| shown == asked || name == asked) else {
            let known: Vec<&str> = named.iter().map(|(_, shown)| shown.as_str()).collect();
            bail!("there is no task {asked}; there are {}", known.join(", "));
        };
        Ok(Self { state, named: vec![task.clone()], all })
    }

    fn shown(&self, name: &str) -> String {
        let known = self.named.iter().find(|(known, _)| known == name);
        known.map_or(name, |(_, shown)| shown).to_owned()
    }

    fn done(&self, found: &Found, outcome: Result<Manifest, String>) -> Done {
        let dir = found.path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let name = outcome.as_ref().map_or_else(|_| dir.clone().into_owned(), |manifest| manifest.task.clone());
        let outcome = outcome.map_err(|reason| format!("{}: {reason}", found.path.display()));
        Done { task: self.shown(&name), outcome, note: None }
    }

    /// Their checkpoints, below `from` or beside the state.
    fn checkpoints(&self, from: Option<&Path>) -> Vec<(String, Checkpoints)> {
        let of = |(name, shown): &(String, String)| {
            let checkpoints = match from {
                Some(from) => Checkpoints::below(from, name),
                None => Checkpoints::of(&self.state, name),
            };
            (shown.clone(), checkpoints)
        };
        self.named.iter().map(of).collect()
    }
}

fn list(tasks: &Tasks, sequence: Option<u64>) -> anyhow::Result<Vec<Found>> {
    let mut all = Vec::new();
    for (_, checkpoints) in tasks.checkpoints(None) {
        all.extend(checkpoints.list()?.into_iter().filter(|it| sequence.is_none_or(|only| only == it.sequence)));
    }
    if let (Some(sequence), true) = (sequence, all.is_empty()) {
        bail!("there is no checkpoint {sequence}");
    }
    Ok(all)
}

/// By the running pool; without one, of the states as they lie.
fn create(tasks: &Tasks) -> anyhow::Result<Vec<Done>> {
    let request = match tasks.named.as_slice() {
        [(_, shown)] if !tasks.all => format!("checkpoint {shown}"),
        _ => "checkpoint".to_owned(),
    };
    if let Some(Value::Array(made)) = control::ask(&tasks.state, &request)? {
        return made.into_iter().map(from_pool).collect();
    }
    let mut done = Vec::new();
    for path in states_in(&tasks.state)? {
        let name = match sluice_state::StoredState::open_beside(&path) {
            Ok(stored) => stored.task().to_owned(),
            Err(_) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        if tasks.all || tasks.named.iter().any(|(known, _)| *known == name) {
            let made = Checkpointer::of_stopped(&path, describe).and_then(|it| it.create());
            done.push(Done { task: tasks.shown(&name), outcome: made.map_err(|error| error.to_string()), note: None });
        }
    }
    if done.is_empty() {
        bail!("there is no state in {}", tasks.state.display());
    }
    Ok(done)
}

fn from_pool(mut made: Value) -> anyhow::Result<Done> {
    let task = made["task"].as_str().unwrap_or_default().to_owned();
    let outcome = match made.get_mut("manifest") {
        Some(manifest) => Ok(serde_json::from_value(manifest.take())?),
        None => Err(made["error"].as_str().unwrap_or("the pool gives no reason").to_owned()),
    };
    Ok(Done { task, outcome, note: None })
}

fn copy(tasks: &Tasks, to: &Path, sequence: Option<u64>) -> anyhow::Result<Vec<Done>> {
    let mut done = Vec::new();
    for (name, shown) in &tasks.named {
        let from = Checkpoints::of(&tasks.state, name);
        let newest = from.list()?.into_iter().find(|found| match sequence {
            Some(only) => only == found.sequence,
            None => found.manifest.is_ok(),
        });
        let target = Checkpoints::below(to, name);
        let outcome = match newest {
            Some(found) => from.copy_to(found.sequence, &target).map_err(|error| error.to_string()),
            None => Err(format!("{} has no such checkpoint", from.dir().display())),
        };
        done.push(Done { task: shown.clone(), outcome, note: Some(format!("copied to {}", target.dir().display())) });
    }
    Ok(done)
}

fn restore(graph: &Graph, tasks: &Tasks, from: Option<&Path>, sequence: Option<u64>) -> anyhow::Result<Vec<Done>> {
    if control::ask(&tasks.state, "status")?.is_some() {
        bail!("the pool runs: stop it before its state is replaced");
    }
    let log = wait_for(open_to_read(&graph.config.log))?.uuid();
    let plan = graph.plan(&[])?;
    let mut done = Vec::new();
    for (shown, checkpoints) in tasks.checkpoints(from) {
        let Some(task) = plan.tasks.iter().find(|task| task.shown == shown) else { continue };
        let fits = |found: &Manifest| differs(task, log, found);
        let restored = checkpoint::restore(&checkpoints, sequence, &tasks.state, fits);
        let aside = restored.as_ref().ok().and_then(|restored| restored.aside.clone());
        let note = aside.map(|aside| format!("what was there is in {}", aside.display()));
        let outcome = restored.map(|restored| restored.manifest).map_err(|error| error.to_string());
        done.push(Done { task: shown, outcome, note });
    }
    Ok(done)
}

/// Why a checkpoint is not one of this task; it would be refused at the start.
pub(crate) fn differs(task: &TaskSpec, log_uuid: [u8; 16], found: &Manifest) -> Option<String> {
    let lineage = Lineage { task: task.name.clone(), log_uuid, wiring: task.wiring() };
    lineage.differs(&state_tables(task), &found.lineage)
}

fn show(done: &[Done], json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<Value> = done
            .iter()
            .map(|it| match &it.outcome {
                Ok(manifest) => json!({ "task": it.task, "manifest": manifest, "note": it.note }),
                Err(error) => json!({ "task": it.task, "error": error }),
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    for it in done {
        match &it.outcome {
            Ok(manifest) => println!("{}", line(it, manifest)),
            Err(error) => println!("{:<16} not in order: {error}", it.task),
        }
    }
    Ok(())
}

fn line(done: &Done, manifest: &Manifest) -> String {
    let now = sluice_proto::EventTime::now().millis();
    let age = now.saturating_sub(manifest.time_ms) / 1_000;
    let positions: Vec<String> =
        manifest.facts.positions.iter().map(|(input, next)| format!("{input}@{next}")).collect();
    let rows: u64 = manifest.tables.iter().map(|table| table.rows).sum();
    let note = done.note.as_ref().map(|note| format!("  {note}")).unwrap_or_default();
    format!(
        "{:<16} {:>8}  {age:>7} s old  {rows} rows, {} bytes  {}{note}",
        done.task,
        manifest.sequence,
        manifest.bytes(),
        positions.join(" ")
    )
}
