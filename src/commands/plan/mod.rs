//! `sluice plan`: a topology file against the log and the states on disk, before anything is touched.

use std::process::ExitCode;

use clap::Args;
use sluice_topology::disk::{LogFacts, States, judge};

use crate::cli::{Common, FileArgs};
use crate::pool::log::find_to_read;
use crate::{logging, topology_file};

/// Code where `sluice run` would refuse.
const UNSAFE: u8 = 2;

/// `sluice plan`.
#[derive(Args)]
#[command(after_help = "\
For each task: new, kept, upgraded (its tables get the version of this program), rebuilt (its state was made from something
else, or is damaged), refused. For each topic: new, kept, changed (its retention), refused (its partitions), orphaned.
Nothing is touched, and the pool may run. The code is 0 if `sluice run` would start, 2 if it would refuse.

Examples:
  sluice plan                      of ./topology.yaml
  sluice plan -f new.yaml --json   of another file, for programs")]
pub(crate) struct PlanArgs {
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs it.
pub(crate) fn run(args: &PlanArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let graph = topology_file::load(&args.file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // In this order: what a running pool does meanwhile puts the log ahead of the states, never behind them.
    let states = States::read(&graph, &[], &graph.config.state.dir)?;
    let facts = runtime.block_on(async {
        match find_to_read(&graph.config.log).await? {
            Some(log) => anyhow::Ok(Some(LogFacts::of(&log, &graph).await?)),
            None => Ok(None),
        }
    })?;
    let judgement = judge(&graph, &states, facts.as_ref());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&judgement)?);
    } else {
        print!("{judgement}");
    }
    Ok(if judgement.is_safe(false) { ExitCode::SUCCESS } else { ExitCode::from(UNSAFE) })
}
