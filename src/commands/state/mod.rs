//! `sluice state`: what tasks have stored, also while they run, and in checkpoints.

mod diff;
mod open;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_state::StoredState;
use sluice_state::checkpoint::Facts;
use sluice_topology::runtime::describe;

use crate::cli::{Common, FileArgs};
use crate::{logging, topology_file};

use open::{Opened, opened};

/// `sluice state`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice state ls
  sluice state scan vardiff.sessions --limit 20
  sluice state get stats.totals 0x00000001
  sluice state digest --dir data/state/checkpoints/verify.3/00000017
  sluice state diff data/state /backup/state
  sluice state verify

It reads beside a running pool. --dir names a directory of states, one state, or a checkpoint. Keys are text, or hex
digits after 0x.")]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// The states with their tables, rows, digests, positions and sizes.
    Ls(Target),
    /// One row.
    Get {
        /// The table, OPERATOR.TABLE.
        table: String,
        /// The key.
        #[arg(value_parser = parse_key)]
        key: Key,
        /// Where.
        #[command(flatten)]
        target: Target,
    },
    /// The rows of a table in the order of their keys.
    Scan {
        /// The table, OPERATOR.TABLE.
        table: String,
        /// Only keys that begin with this.
        #[arg(long, default_value = "", value_parser = parse_key)]
        prefix: Key,
        /// End after this many rows of each task.
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Where.
        #[command(flatten)]
        target: Target,
    },
    /// A line for each table: task, table, rows, digest.
    Digest(Target),
    /// The first rows in which two directories differ, table by table; code 1 if they do.
    Diff {
        /// The one.
        one: PathBuf,
        /// The other.
        other: PathBuf,
        /// Rows shown of each table.
        #[arg(long, default_value_t = 3, value_name = "N")]
        limit: usize,
        /// JSON instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Read every row and compare what they add up to with the digests; code 1 if a state is damaged.
    Verify(Target),
}

/// Which states.
#[derive(Args)]
struct Target {
    /// The topology.
    #[command(flatten)]
    file: FileArgs,
    /// A directory of states, one state, or a checkpoint, instead of the topology's state.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The state of this task only.
    #[arg(long)]
    task: Option<String>,
    /// JSON instead of lines for people.
    #[arg(long)]
    json: bool,
}

/// Bytes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(Vec<u8>);

fn parse_key(text: &str) -> Result<Key, String> {
    match text.strip_prefix("0x") {
        Some(digits) => hex::decode(digits).map(Key).map_err(|error| format!("`{digits}` is not hex: {error}")),
        None => Ok(Key(text.as_bytes().to_vec())),
    }
}

impl Target {
    /// The states that are meant, each with its name; those that cannot be opened with the reason.
    fn states(&self) -> anyhow::Result<Vec<Opened>> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => topology_file::load(&self.file)?.config.state.dir,
        };
        let mut states = opened(&dir)?;
        if let Some(task) = &self.task {
            states.retain(|it| it.name == *task);
        }
        if states.is_empty() {
            bail!("there is no such state in {}", dir.display());
        }
        Ok(states)
    }

    /// The states that have a table.
    fn having(&self, table: &str) -> anyhow::Result<Vec<(String, StoredState)>> {
        let mut having = Vec::new();
        let mut known = Vec::new();
        for it in self.states()? {
            let state = it.state?;
            if state.tables().iter().any(|known| known.spec.name == table) {
                having.push((it.name, state));
            } else {
                known.extend(state.tables().iter().map(|table| table.spec.name.clone()));
            }
        }
        if having.is_empty() {
            known.sort();
            known.dedup();
            bail!("no state has a table {table}; there are {}", known.join(", "));
        }
        Ok(having)
    }
}

/// Runs it.
pub(crate) fn run(args: &StateArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    match &args.action {
        Action::Ls(target) => ls(target),
        Action::Get { table, key, target } => get(target, table, key),
        Action::Scan { table, prefix, limit, target } => scan(target, table, prefix, *limit),
        Action::Digest(target) => digest(target),
        Action::Diff { one, other, limit, json } => diff::run(one, other, *limit, *json),
        Action::Verify(target) => verify(target),
    }
}

fn ls(target: &Target) -> anyhow::Result<ExitCode> {
    let mut all = Vec::new();
    for it in target.states()? {
        let bytes = it.bytes();
        let Opened { name, path, state } = it;
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                all.push(json!({ "task": name, "path": path, "error": error.to_string() }));
                continue;
            }
        };
        let mut facts = Facts::default();
        let mut described = Ok(());
        state.entries(&mut |key, value| {
            if described.is_ok() {
                described = describe(key, value, &mut facts);
            }
        })?;
        described?;
        let tables: Vec<Value> = state.tables().iter().map(table).collect();
        all.push(json!({ "task": name, "path": path, "bytes": bytes, "facts": facts, "tables": tables }));
    }
    if target.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        all.iter().for_each(print_state);
    }
    Ok(ExitCode::SUCCESS)
}

fn table(table: &sluice_state::StoredTable) -> Value {
    json!({ "table": table.spec.name, "rows": table.rows, "digest": table.digest.to_string() })
}

fn print_state(state: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(error) = state["error"].as_str() {
        println!("{}  {error}", text(&state["task"]));
        return;
    }
    println!("{}  {} bytes in {}", text(&state["task"]), state["bytes"], text(&state["path"]));
    for (input, next) in state["facts"]["positions"].as_object().into_iter().flatten() {
        println!("    {input} up to {next}");
    }
    for table in state["tables"].as_array().into_iter().flatten() {
        println!(
            "    {:<24} {:>10} rows  {}",
            text(&table["table"]),
            table["rows"].to_string(),
            text(&table["digest"])
        );
    }
}

fn digest(target: &Target) -> anyhow::Result<ExitCode> {
    let mut all = Vec::new();
    for it in target.states()? {
        let state = it.state?;
        all.extend(state.tables().iter().map(|table| (it.name.clone(), table.clone())));
    }
    if target.json {
        let all: Vec<Value> = all
            .iter()
            .map(|(task, table)| {
                json!({ "task": task, "table": table.spec.name, "rows": table.rows, "digest": table.digest.to_string() })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        all.iter().for_each(|(task, table)| println!("{task} {} {} {}", table.spec.name, table.rows, table.digest));
    }
    Ok(ExitCode::SUCCESS)
}

fn get(target: &Target, table: &str, key: &Key) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for (task, state) in target.having(table)? {
        if let Some(value) = state.reader().get(table, &key.0)? {
            found.push((task, key.0.clone(), value.to_vec()));
        }
    }
    print_rows(&found, target.json)?;
    Ok(if found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn scan(target: &Target, table: &str, prefix: &Key, limit: usize) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for (task, state) in target.having(table)? {
        let begin = found.len();
        state.reader().scan(table, &prefix.0, None, &mut |key, value| {
            let inside = key.starts_with(&prefix.0) && found.len() - begin < limit;
            if inside {
                found.push((task.clone(), key.to_vec(), value.to_vec()));
            }
            inside
        })?;
    }
    print_rows(&found, target.json)?;
    Ok(ExitCode::SUCCESS)
}

fn print_rows(rows: &[(String, Vec<u8>, Vec<u8>)], json: bool) -> anyhow::Result<()> {
    for (task, key, value) in rows {
        if json {
            println!("{}", json!({ "task": task, "key": hex::encode(key), "value": hex::encode(value) }));
        } else {
            println!("{task}  {}  {}", shown(key), shown(value));
        }
    }
    Ok(())
}

/// Bytes as people read them: text where they are text.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => format!("{text:?}"),
        _ => format!("0x{}", hex::encode(bytes)),
    }
}

fn verify(target: &Target) -> anyhow::Result<ExitCode> {
    let mut results = Vec::new();
    for it in target.states()? {
        let faults = it.check();
        results.push((it.name, faults));
    }
    let damaged = results.iter().any(|(_, faults)| !faults.is_empty());
    if target.json {
        let all: Vec<Value> = results.iter().map(|(task, faults)| json!({ "task": task, "faults": faults })).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for (task, faults) in &results {
            let result = if faults.is_empty() { "in order".to_owned() } else { faults.join("; ") };
            println!("{task}  {result}");
        }
    }
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_text_or_hex() {
        assert_eq!(parse_key("0x00ff"), Ok(Key(vec![0, 255])));
        assert_eq!(parse_key("alice.rig"), Ok(Key(b"alice.rig".to_vec())));
        assert!(parse_key("0x0").is_err());
        assert_eq!(shown(b"alice"), "\"alice\"");
        assert_eq!(shown(&[0, 255]), "0x00ff");
        assert_eq!(shown(b""), "0x");
    }
}
