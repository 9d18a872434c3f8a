//! Reading the topology file with its environment.

use std::io::IsTerminal;

use anyhow::{Context, bail};
use sluice_topology::{Environment, FileText, Graph, Override, Report};

use crate::cli::FileArgs;
use crate::registry::registry;

/// Variables that replace settings begin with this; `__` stands for the dots of the path.
const PREFIX: &str = "SLUICE__";

/// The file's text.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read(args: &FileArgs) -> anyhow::Result<FileText> {
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read the topology file {name}; name another with -f"))?;
    Ok(FileText::new(name, text))
}

/// The environment of this process, with the settings that variables and flags replace; flags come last.
pub(crate) fn environment(set: &[Override]) -> Environment {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    variables.sort();
    let from_variables = variables.into_iter().filter_map(|(name, value)| {
        let path = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
        Some(Override { path, value })
    });
    from_variables.chain(set.iter().cloned()).fold(Environment::of_process(), Environment::with_override)
}

/// The checked graph of the file.
///
/// # Errors
/// If it cannot be read or has mistakes, all of which are told.
pub(crate) fn load(args: &FileArgs) -> anyhow::Result<Graph> {
    match sluice_topology::load(&read(args)?, &registry(), &environment(&args.set)) {
        Ok(graph) => Ok(graph),
        Err(report) => {
            eprint!("{}", shown(&report, false));
            bail!("{}", counted(&report, args))
        }
    }
}

/// A report for stderr: with the lines of the file where that is a terminal.
pub(crate) fn shown(report: &Report, plain: bool) -> String {
    if plain || !std::io::stderr().is_terminal() {
        return report.plain();
    }
    let width = crossterm::terminal::size().map_or(100, |(width, _)| usize::from(width));
    report.fancy(std::env::var_os("NO_COLOR").is_none(), width)
}

/// How many mistakes there are.
pub(crate) fn counted(report: &Report, args: &FileArgs) -> String {
    let count = report.problems().len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    format!("{} has {count} {noun}", args.file.display())
}
