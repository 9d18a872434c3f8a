//! `sluice graph`: a picture of a topology, on stdout.

use std::process::ExitCode;

use anyhow::bail;
use sluice_topology::draw::{Format, draw};

use crate::cli::{Common, GraphArgs};
use crate::{logging, registry, topology_file};

/// Runs it.
pub(crate) fn run(args: &GraphArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let format: Format = args.format.parse()?;
    let environment = topology_file::environment(&args.file.set).secrets_later();
    match sluice_topology::load(&topology_file::read(&args.file)?, &registry::registry(), &environment) {
        Ok(graph) => {
            print!("{}", draw(&graph, format));
            Ok(ExitCode::SUCCESS)
        }
        Err(report) => {
            eprint!("{}", topology_file::shown(&report, false));
            bail!("{}", topology_file::counted(&report, &args.file))
        }
    }
}
