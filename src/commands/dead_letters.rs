//! `sluice dead-letters`: records that tasks of statistics could not process; shows them, and lets them be processed
//! once more by a program that can.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use sluice_log::{SharedLog, new_uuid};
use sluice_proto::Offset;
use sluice_topology::runtime::Owners;
use sluice_topology::runtime::letters::{FoundLetter, REDRIVE_SOURCE, dead_letters, redrive};

use crate::cli::{Common, FileArgs};
use crate::pool::log::{OpenLog, open_to_read};
use crate::{logging, topology_file};

/// `sluice dead-letters`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice dead-letters ls                   all letters with their causes
  sluice dead-letters ls --json            with their bytes
  sluice dead-letters redrive 17 18        process these two once more
  sluice dead-letters redrive --all        all that have not been redriven yet

A record that statistics cannot process (it is of a newer program, or damaged) goes to the topic sluice.dead_letters; on
a path that money depends on it stops the task. Redriving needs a stopped pool: its tasks process the letters at the next
start, each letter once, however often it is redriven.")]
pub(crate) struct DeadLettersArgs {
    /// What to do.
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the letters, also while the pool runs.
    Ls {
        /// The topology.
        #[command(flatten)]
        file: FileArgs,
        /// One JSON object a line, with the record's bytes in hex.
        #[arg(long)]
        json: bool,
    },
    /// Let letters be processed once more.
    Redrive {
        /// The topology.
        #[command(flatten)]
        file: FileArgs,
        /// Letters, by the number that `ls` shows.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        letters: Vec<u64>,
        /// All that have not been redriven yet.
        #[arg(long)]
        all: bool,
    },
}

/// Runs it.
pub(crate) fn run(args: &DeadLettersArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &args.action {
        Action::Ls { file, json } => {
            let log = runtime.block_on(open_to_read(&topology_file::load(file)?.config.log))?;
            let letters = runtime.block_on(dead_letters(&log))?;
            let mut out = BufWriter::new(std::io::stdout().lock());
            letters.iter().try_for_each(|letter| show(&mut out, letter, *json))?;
            out.flush()?;
        }
        Action::Redrive { file, letters, all } => {
            let config = topology_file::load(file)?.config;
            let log = runtime.block_on(OpenLog::open_to_change(&config.log)).context("the pool must be stopped")?;
            let shared = log.shared();
            let chosen = (!all).then_some(letters.as_slice());
            let redriven = runtime.block_on(redrive_chosen(&shared, &config.state.dir, chosen))?;
            drop(shared);
            log.close()?;
            println!("{redriven} letters will be processed at the next start");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Redrives these letters, or all that have not been; returns how many.
async fn redrive_chosen(log: &SharedLog, state_dir: &Path, chosen: Option<&[u64]>) -> anyhow::Result<usize> {
    let mut letters = dead_letters(log).await?;
    if let Some(unknown) = chosen.iter().copied().flatten().find(|number| !letters.iter().any(|it| is(it, **number))) {
        bail!("there is no dead letter {unknown}; `sluice dead-letters ls` shows those there are");
    }
    letters.retain(|it| match chosen {
        Some(numbers) => numbers.iter().any(|number| is(it, *number)),
        None => !it.redriven,
    });
    let count = letters.len();
    if count > 0 {
        let owners = Owners::new(log.clone(), new_uuid());
        let epoch = owners.claim_source(REDRIVE_SOURCE, state_dir).await?;
        redrive(log, epoch, letters).await?;
    }
    Ok(count)
}

fn is(found: &FoundLetter, number: u64) -> bool {
    found.offset == Offset::new(number)
}

fn show(out: &mut impl Write, found: &FoundLetter, json: bool) -> std::io::Result<()> {
    let FoundLetter { offset, event_time, letter, redriven } = found;
    if json {
        let line = serde_json::json!({
            "number": offset.get(),
            "event_time_ns": event_time.nanos(),
            "redriven": redriven,
            "letter": letter,
        });
        return writeln!(out, "{line}");
    }
    let by = if letter.operator.is_empty() { String::new() } else { format!(" ({}.{})", letter.operator, letter.port) };
    let mark = if *redriven { "  redriven" } else { "" };
    writeln!(
        out,
        "{offset}  {}/{} offset {}  {}{by}: {}{mark}",
        letter.topic, letter.partition, letter.offset, letter.task, letter.cause
    )
}
