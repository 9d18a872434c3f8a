//! `sluice kinds`: what a topology may be made of.

use std::process::ExitCode;

use sluice_topology::reference::{overview, reference};

use crate::cli::KindsArgs;
use crate::registry::registry;

/// Runs it.
pub(crate) fn run(args: &KindsArgs) -> anyhow::Result<ExitCode> {
    let registry = registry();
    print!("{}", if args.reference { reference(&registry) } else { overview(&registry) });
    Ok(ExitCode::SUCCESS)
}
