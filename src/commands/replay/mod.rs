//! `sluice replay`: states made again from the topics, and what is recorded checked against them (docs/adr/0015).

mod args;
mod bring;
mod ledger;
mod live;
mod place;
mod progress;
mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use sluice_log::{Partition, SharedLog, read_only};
use sluice_proto::Offset;
use sluice_state::StateEnv;
use sluice_state::checkpoint::{Checkpoints, Manifest, restore};
use sluice_topology::runtime::replay::{Check, Progress, Replay, Until};
use sluice_topology::runtime::{Plan, TaskSpec};
use sluice_topology::{Config, Externals, Graph};

pub(crate) use args::ReplayArgs;
use args::UntilArg;
use ledger::LiveLedger;
use live::Live;
use place::Place;
use progress::Meter;
use report::Report;

use crate::cli::{Common, FileArgs};
use crate::commands::checkpoint::differs;
use crate::commands::run::Signals;
use crate::pool::log::{OpenLog, open_to_read, wait_for};
use crate::pool::memory;
use crate::{logging, topology_file};

/// Code of a program that a signal ended, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs it: code 1 if something differs or could not be replayed.
pub(crate) fn run(args: &ReplayArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let graph = topology_file::load(&args.file)?;
    if let Some(old) = &args.from_log {
        bring::bring(&topology_file::load(&FileArgs { file: old.clone(), set: Vec::new() })?, &graph)?;
    }
    let job = Job::new(args, &graph)?;
    let place = job.place()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let progress = Arc::new(Progress::default());
        let job = Arc::new((job, place));
        let working = tokio::task::spawn_blocking({
            let (job, progress) = (Arc::clone(&job), Arc::clone(&progress));
            move || job.0.work(&job.1, &progress)
        });
        let mut meter = Meter::new();
        let mut ticks = tokio::time::interval(progress::TICK);
        tokio::pin!(working);
        let report = loop {
            tokio::select! {
                report = &mut working => break report??,
                _ = ticks.tick() => meter.show(&progress),
                name = signals.next() => {
                    tracing::info!(signal = name, "stopped; nothing was replaced");
                    // The temporary directory goes here: the threads end with the process, wherever they are.
                    if let Place::Temporary(dir) = &job.1 {
                        let _ = std::fs::remove_dir_all(dir.path());
                    }
                    std::process::exit(INTERRUPTED.into());
                }
            }
        };
        meter.end();
        let good = report.is_good();
        if job.0.in_place && good {
            job.1.install(&job.0.names())?;
        }
        let mut out = std::io::stdout().lock();
        if args.json {
            writeln!(out, "{}", report.json())?;
        } else {
            write!(out, "{}", report.text())?;
            if job.0.in_place {
                writeln!(out, "{}", if good { "the new states are in place" } else { "nothing was replaced" })?;
            }
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// What is to be done.
struct Job {
    config: Config,
    plan: Plan,
    tasks: Vec<TaskSpec>,
    skipped: Vec<(String, String)>,
    ledger: Option<TaskSpec>,
    until: Option<UntilArg>,
    to: Option<std::path::PathBuf>,
    from_checkpoint: Option<std::path::PathBuf>,
    in_place: bool,
    verify: bool,
    /// Held while states are replaced: a pool cannot start.
    locked: Option<SharedLog>,
}

impl Job {
    fn new(args: &ReplayArgs, graph: &Graph) -> anyhow::Result<Self> {
        let plan = graph.plan(&[])?;
        let chosen = choose(&plan, &args.only, graph)?;
        let (mut tasks, mut skipped, mut ledger) = (Vec::new(), Vec::new(), None);
        for task in chosen {
            match task.acts_outside() {
                None => tasks.push(task),
                Some((operator, why)) => {
                    let is_ledger = task.operators.iter().any(|operator| operator.kind.name == "ledger");
                    let recomputed = is_ledger && args.verify && args.until.is_none();
                    let how = if recomputed { "; made again in a database of its own" } else { "" };
                    skipped.push((task.shown.clone(), format!("its operator {operator} acts outside: {why}{how}")));
                    if recomputed {
                        ledger = Some(task);
                    }
                }
            }
        }
        let locked = if args.in_place {
            let log = wait_for(OpenLog::open_to_change(&graph.config.log));
            let log = log.context("states can only be replaced while no pool runs on this log")?;
            Some(read_only(log.shared()))
        } else {
            None
        };
        let (to, from_checkpoint) = (args.to.clone(), args.from_checkpoint.clone());
        let (until, in_place, verify) = (args.until, args.in_place, args.verify);
        let config = graph.config.clone();
        Ok(Self { config, plan, tasks, skipped, ledger, until, to, from_checkpoint, in_place, verify, locked })
    }

    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.name.clone()).collect()
    }

    /// Where the states are made.
    fn place(&self) -> anyhow::Result<Place> {
        match &self.to {
            Some(dir) => Place::kept(dir),
            None if self.in_place => Place::live(&self.config.state.dir),
            None => Place::temporary(),
        }
    }

    fn work(&self, place: &Place, progress: &Progress) -> anyhow::Result<Report> {
        let mut report = Report { skipped: self.skipped.clone(), ..Report::default() };
        // What the pool has comes first: the log, opened later, has all that it was made from.
        let lives = self.tasks.iter().map(|task| self.live(task)).collect::<anyhow::Result<Vec<_>>>()?;
        let live_ledger = self.ledger.as_ref().map(|_| LiveLedger::open(&self.config)).transpose()?;
        let log = match &self.locked {
            Some(log) => Arc::clone(log),
            None => wait_for(open_to_read(&self.config.log))?,
        };
        if let Some(from) = &self.from_checkpoint {
            self.tasks.iter().try_for_each(|task| self.restore(task, from, place.dir(), log.uuid()))?;
        }
        let replay = Replay {
            log: Arc::clone(&log),
            env: StateEnv::scratch(place.dir(), memory(&self.config))?,
            externals: Arc::new(Externals::default()),
            network: self.plan.network.clone(),
            check: match (self.verify, self.in_place) {
                (true, _) => Check::Verify,
                (false, true) => Check::Count,
                (false, false) => Check::Forget,
            },
        };
        let until = |(task, live): (&TaskSpec, &Option<Live>)| (task.clone(), self.until(task, live.as_ref()));
        let tasks: Vec<_> = self.tasks.iter().zip(&lives).map(until).collect();
        let mut results = replay.run(&tasks, progress);
        if self.in_place && self.verify && results.iter().all(Result::is_ok) {
            // Compared where the old states stand; the new ones are to be as far as the log.
            report.tasks = results.into_iter().zip(lives).collect();
            if !report.is_good() {
                return Ok(report);
            }
            let tasks: Vec<_> = self.tasks.iter().map(|task| (task.clone(), Until::End)).collect();
            results = replay.run(&tasks, progress);
            let failed = results.into_iter().filter(Result::is_err).map(|result| (result, None));
            report.tasks.extend(failed);
        } else {
            report.tasks = results.into_iter().zip(lives).collect();
        }
        if let (Some(spec), Some(live)) = (&self.ledger, &live_ledger) {
            let dir = tempfile::tempdir().context("no temporary directory for the ledger")?;
            let task = (spec.clone(), &self.plan);
            report.ledger = Some(live.compare(task, &self.config, &log, dir.path(), progress)?);
        }
        Ok(report)
    }

    /// The pool's state of the task, where it is to be compared.
    fn live(&self, task: &TaskSpec) -> anyhow::Result<Option<Live>> {
        if self.verify && self.until.is_none() { Live::read(&self.config.state.dir, &task.name) } else { Ok(None) }
    }

    /// How far the task is replayed.
    fn until(&self, task: &TaskSpec, live: Option<&Live>) -> Until {
        match (self.until, live) {
            (Some(UntilArg::Time(time)), _) => Until::Time(time),
            (Some(UntilArg::Offset(offset)), _) => {
                let inputs = task.inputs.iter().map(|it| Partition::new(Arc::clone(&it.topic), it.partition));
                Until::Positions(inputs.map(|input| (input, Offset::new(offset))).collect::<BTreeMap<_, _>>())
            }
            (None, Some(live)) => Until::Positions(live.positions().clone()),
            (None, None) => Until::End,
        }
    }

    /// Puts the newest checkpoint of the task that is in order where it will be gone on from.
    fn restore(&self, task: &TaskSpec, from: &Path, into: &Path, log_uuid: [u8; 16]) -> anyhow::Result<()> {
        let checkpoints = if from == Path::new("latest") {
            Checkpoints::of(&self.config.state.dir, &task.name)
        } else {
            Checkpoints::below(from, &task.name)
        };
        let fits = |found: &Manifest| differs(task, log_uuid, found);
        let restored =
            restore(&checkpoints, None, into, fits).with_context(|| format!("a checkpoint of {}", task.shown))?;
        tracing::info!(task = task.shown, sequence = restored.manifest.sequence, "goes on from a checkpoint");
        Ok(())
    }
}

/// The tasks of these names and those that hold operators of these names; all where none is named.
fn choose(plan: &Plan, only: &[String], graph: &Graph) -> anyhow::Result<Vec<TaskSpec>> {
    let is_task = |name: &String| plan.tasks.iter().any(|task| task.shown == *name);
    let operators: Vec<String> = only.iter().filter(|name| !is_task(name)).cloned().collect();
    let of_operators = graph.plan(&operators)?.tasks;
    let wanted = |task: &&TaskSpec| {
        only.is_empty()
            || only.contains(&task.shown)
            || (!operators.is_empty() && of_operators.iter().any(|other| other.name == task.name))
    };
    Ok(plan.tasks.iter().filter(wanted).cloned().collect())
}
