//! Goka's side: the Go program beside this file, and its topics.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::broker::Broker;

/// Where Goka reads its shares.
pub fn input(group: &str) -> String {
    format!("{group}-checked")
}

/// Where it writes a verdict for each.
pub fn verdicts(group: &str) -> String {
    format!("{group}-judged")
}

/// Where it writes what vardiff decides.
pub fn decisions(group: &str) -> String {
    format!("{group}-targets")
}

/// Builds the program, outside of the checkout; `None` if there is no Go.
pub fn build() -> Result<Option<PathBuf>> {
    if Command::new("go").arg("version").output().is_err() {
        return Ok(None);
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("goka");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/goka");
    let status = Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(&source)
        .status()
        .context("running go build")?;
    ensure!(status.success(), "go build in {} failed", source.display());
    Ok(Some(program))
}

/// Makes the topics of a group.
pub async fn create_topics(broker: &Broker, group: &str) -> Result<()> {
    let (input, verdicts, decisions) = (input(group), verdicts(group), decisions(group));
    // Goka names the topic of a group's table so.
    let table = format!("{group}-table");
    broker.create(&[(&input, false), (&verdicts, false), (&decisions, false), (&table, true)]).await
}

/// The command that runs the group on this state until all of its input is worked off.
pub fn command(program: &Path, broker: &str, group: &str, state: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([broker, group, &input(group), &verdicts(group), &decisions(group)]).arg(state);
    command
}
