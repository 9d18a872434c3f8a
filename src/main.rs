//! The `sluice` program: commands only. What they do lives in the crates of this workspace.

mod cli;
mod commands;
mod logging;
mod pool;
mod registry;
mod topology_file;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match sluice_failpoints::arm_from_environment() {
        Ok(None) => {}
        Ok(Some(armed)) => eprintln!("sluice: {} is set: {armed}", sluice_failpoints::VARIABLE),
        Err(error) => {
            eprintln!("sluice: {error}");
            return ExitCode::FAILURE;
        }
    }
    let result = match &cli.command {
        Command::Run(args) => commands::run::run(args, &cli.common),
        Command::Checkpoint(args) => commands::checkpoint::run(args, &cli.common),
        Command::State(args) => commands::state::run(args, &cli.common),
        Command::Check(args) => commands::check::run(args, &cli.common),
        Command::Graph(args) => commands::graph::run(args, &cli.common),
        Command::Kinds(args) => commands::kinds::run(args),
        Command::Plan(args) => commands::plan::run(args, &cli.common),
        Command::Tap(args) => commands::tap::run(args, &cli.common),
        Command::DeadLetters(args) => commands::dead_letters::run(args, &cli.common),
        Command::Replay(args) => commands::replay::run(args, &cli.common),
        Command::Rescale(args) => commands::rescale::run(args, &cli.common),
        Command::Demo(args) => commands::demo::run(args, &cli.common),
        Command::Swarm(args) => commands::swarm::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
