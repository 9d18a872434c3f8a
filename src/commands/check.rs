//! `sluice check`: all mistakes of a file at once, without touching anything.

use std::process::ExitCode;

use crate::cli::{CheckArgs, Common};
use crate::{logging, registry, topology_file};

/// Runs it: code 0 where the file has no mistake, else 1.
pub(crate) fn run(args: &CheckArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let mut environment = topology_file::environment(&args.file.set);
    if args.without_secrets {
        environment = environment.secrets_later();
    }
    match sluice_topology::load(&topology_file::read(&args.file)?, &registry::registry(), &environment) {
        Ok(graph) => {
            let operators = graph.nodes.iter().filter(|node| !node.is_service()).count();
            let tasks: usize = graph.groups.iter().map(|group| group.partitions.len()).sum();
            println!(
                "{}: no mistakes; {operators} operators in {tasks} tasks, {} services, {} stored topics",
                args.file.file.display(),
                graph.services().count(),
                graph.stored_topics().count(),
            );
            graph.config.log.warnings().iter().for_each(|warning| println!("warning: {warning}"));
            Ok(ExitCode::SUCCESS)
        }
        Err(report) => {
            eprint!("{}", topology_file::shown(&report, args.plain));
            eprintln!("{}", topology_file::counted(&report, &args.file));
            Ok(ExitCode::FAILURE)
        }
    }
}
