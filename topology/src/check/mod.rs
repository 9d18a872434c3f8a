//! The checks of a topology (DESIGN 3): all without I/O, all problems at once.

mod assign;
mod build;
mod copartition;
mod cycles;
mod generations;
mod keep;
mod names;
mod overrides;
mod ports;
mod tables;
mod wiring;

use crate::graph::Graph;
use crate::kind::Registry;
use crate::spec::{Environment, FileText, Problems, Reader, Report, declarations, parse};

/// Reads and checks a topology file.
///
/// Nothing outside is touched: no file, no network. Secrets in files are read when they are used.
///
/// # Errors
/// A [`Report`] of everything that is wrong with the file.
pub fn load(source: &FileText, registry: &Registry, env: &Environment) -> Result<Graph, Report> {
    let mut problems = Problems::default();
    let mut root = parse(source, &mut problems);
    if root.is_none() && problems.is_empty() {
        let hint = "write `version: 1`, `bitcoin`, `topics` and `operators`; the README explains them";
        problems.add("yaml.empty", crate::spec::Span::default(), "the file is empty", hint);
    }
    if let Some(root) = &mut root {
        overrides::apply(root, env.overrides(), &mut problems);
    }
    let mut reader = Reader { source, env, problems: &mut problems };
    let declared = declarations(root.as_ref(), registry, &mut reader);
    let wiring = wiring::Wiring::resolve(&declared, &mut problems);
    ports::check(&wiring, &mut problems);
    tables::check(&wiring, &mut problems);
    copartition::check(&wiring, &mut problems);
    generations::check(&wiring, &mut problems);
    cycles::check(&wiring, &mut problems);
    assign::check(&wiring, &mut problems);
    keep::check(&wiring, &mut problems);
    names::check(&wiring, &mut problems);
    let graph = if problems.is_empty() { build::graph(&wiring) } else { None };
    match graph {
        Some(graph) => Ok(graph),
        None => {
            if problems.is_empty() {
                let hint = "report this file to the makers of Sluice";
                problems.add("internal", crate::spec::Span::default(), "the graph cannot be built", hint);
            }
            Err(problems.into_report(source))
        }
    }
}

#[cfg(test)]
mod tests;
