//! What a replay has found, for people and as JSON.

use std::fmt::Write;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_proto::decode;
use sluice_topology::runtime::replay::Replayed;
use sluice_topology::runtime::{Difference, TaskError, TaskFailure};

use super::ledger::LedgerReport;
use super::live::Live;
use super::progress::rate;

/// Longest value of a field that is shown whole.
const SHOWN: usize = 40;

/// All that a replay has found.
#[derive(Default)]
pub(super) struct Report {
    /// Tasks, each with the state of the pool to compare with.
    pub(super) tasks: Vec<(Result<Replayed, TaskFailure>, Option<Live>)>,
    /// Tasks that are not replayed, and why.
    pub(super) skipped: Vec<(String, String)>,
    /// The ledger.
    pub(super) ledger: Option<LedgerReport>,
}

/// How a state compares with the pool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Same,
    Differs,
    /// They do not stand at the same place.
    Elsewhere,
    NotAsked,
}

impl Compared {
    fn name(self) -> &'static str {
        match self {
            Self::Same => "as in the pool",
            Self::Differs => "DIFFERS from the pool",
            Self::Elsewhere => "not comparable: the pool's state stands elsewhere",
            Self::NotAsked => "",
        }
    }
}

fn compare(replayed: &Replayed, live: Option<&Live>, table: &str, digest: &str) -> Compared {
    let Some(live) = live else { return Compared::NotAsked };
    if !live.stands_at(&replayed.positions) {
        return Compared::Elsewhere;
    }
    if live.digest(table).is_some_and(|known| known == digest) { Compared::Same } else { Compared::Differs }
}

impl Report {
    /// Nothing differs, and nothing failed.
    pub(super) fn is_good(&self) -> bool {
        let tasks = self.tasks.iter().all(|(result, live)| match result {
            Err(_) => false,
            Ok(replayed) => replayed.tables.iter().all(|(table, digest, _)| {
                compare(replayed, live.as_ref(), table, &digest.to_string()) != Compared::Differs
            }),
        });
        tasks && self.ledger.as_ref().is_none_or(LedgerReport::is_good)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (result, live) in &self.tasks {
            match result {
                Ok(replayed) => write_task(&mut text, replayed, live.as_ref()),
                Err(failure) => write_failure(&mut text, failure),
            }
        }
        for (task, why) in &self.skipped {
            let _ = writeln!(text, "{task}: not replayed, {why}");
        }
        if let Some(ledger) = &self.ledger {
            text.push_str(&ledger.text());
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let skipped = self.skipped.iter().map(|(task, why)| json!({ "task": task, "reason": why }));
        json!({
            "good": self.is_good(),
            "tasks": self.tasks.iter().map(|(result, live)| task_json(result, live.as_ref())).collect::<Vec<_>>(),
            "skipped": skipped.collect::<Vec<_>>(),
            "ledger": self.ledger.as_ref().map(LedgerReport::json),
        })
    }
}

fn write_task(text: &mut String, replayed: &Replayed, live: Option<&Live>) {
    let Replayed { task, records, took, .. } = replayed;
    let places: Vec<String> =
        replayed.positions.iter().map(|(partition, next)| format!("{partition} {next}")).collect();
    let seconds = took.as_millis() as f64 / 1000.0;
    let _ = writeln!(
        text,
        "{task}: {records} records in {seconds:.1} s ({}/s), up to {}",
        rate(*records, *took),
        places.join(", ")
    );
    for (table, digest, rows) in &replayed.tables {
        let compared = compare(replayed, live, table, &digest.to_string()).name();
        let _ = writeln!(text, "  {table:24} {digest} {rows:>9} rows  {compared}");
    }
    let compared = replayed.compared;
    if compared != Default::default() {
        let _ = write!(text, "  outputs: {} as recorded", compared.same);
        if compared.trimmed > 0 {
            let _ = write!(text, ", {} trimmed from their topics", compared.trimmed);
        }
        if compared.different > 0 {
            let _ = write!(text, ", {} DIFFERENT: what is recorded stands", compared.different);
        }
        text.push('\n');
    }
    if let Some(unrecorded) = &replayed.unrecorded {
        let _ = writeln!(text, "  ended early: {unrecorded}");
    }
}

fn write_failure(text: &mut String, failure: &TaskFailure) {
    let TaskError::Differs(difference) = &*failure.error else {
        let _ = writeln!(text, "{}: FAILED: {}", failure.task, failure.error);
        return;
    };
    let _ = writeln!(text, "{difference}");
    let rows = side_by_side(difference);
    let width = rows.iter().map(|(field, ..)| field.len()).max().unwrap_or_default();
    let recorded_width = rows.iter().map(|(_, recorded, _)| short(recorded).len()).max().unwrap_or_default().max(8);
    let _ = writeln!(text, "    {:width$}  {:recorded_width$}  made again", "field", "recorded");
    for (field, recorded, made) in &rows {
        let mark = if recorded == made { ' ' } else { '*' };
        let _ = writeln!(text, "  {mark} {field:width$}  {:recorded_width$}  {}", short(recorded), short(made));
    }
}

fn short(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// Fields of both records, with their values; empty where a record does not have one.
fn side_by_side(difference: &Difference) -> Vec<(String, String, String)> {
    let fields = |raw: Option<&Bytes>| {
        let mut fields = Vec::new();
        if let Some(raw) = raw {
            match decode(raw.clone()).map(|envelope| serde_json::to_value(envelope).unwrap_or_default()) {
                Ok(value) => flatten("", &value, &mut fields),
                Err(error) => fields.push(("unreadable".to_owned(), format!("{error}: {}", hex::encode(raw)))),
            }
        }
        fields
    };
    let (recorded, made) = (fields(difference.recorded.as_ref()), fields(difference.made.as_ref()));
    let value = |fields: &[(String, String)], name: &str| {
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let only_made = made.iter().filter(|(name, _)| !recorded.iter().any(|(known, _)| known == name));
    let names = recorded.iter().chain(only_made).map(|(name, _)| name.clone());
    // The epoch is its owner's, and is not compared.
    let names = names.filter(|name| name != "from.epoch");
    names.map(|name| (name.clone(), value(&recorded, &name), value(&made, &name))).collect()
}

fn flatten(path: &str, value: &Value, into: &mut Vec<(String, String)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(&below(name), value, into)),
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(index, value)| flatten(&below(&index.to_string()), value, into));
        }
        Value::String(text) => into.push((path.to_owned(), text.clone())),
        other => into.push((path.to_owned(), other.to_string())),
    }
}

fn task_json(result: &Result<Replayed, TaskFailure>, live: Option<&Live>) -> Value {
    match result {
        Ok(replayed) => {
            let tables = replayed.tables.iter().map(|(table, digest, rows)| {
                let digest = digest.to_string();
                let compared = match compare(replayed, live, table, &digest) {
                    Compared::Same => json!(true),
                    Compared::Differs => json!(false),
                    Compared::Elsewhere | Compared::NotAsked => Value::Null,
                };
                json!({ "table": table, "digest": digest, "rows": rows, "as_in_pool": compared })
            });
            let positions =
                replayed.positions.iter().map(|(place, next)| json!({ "partition": place.to_string(), "next": next }));
            json!({
                "task": replayed.task,
                "records": replayed.records,
                "seconds": replayed.took.as_secs_f64(),
                "records_per_second": rate(replayed.records, replayed.took),
                "positions": positions.collect::<Vec<_>>(),
                "tables": tables.collect::<Vec<_>>(),
                "outputs_same": replayed.compared.same,
                "outputs_trimmed": replayed.compared.trimmed,
                "outputs_different": replayed.compared.different,
                "ended_early": replayed.unrecorded,
            })
        }
        Err(failure) => {
            let difference = match &*failure.error {
                TaskError::Differs(difference) => Some(difference),
                _ => None,
            };
            json!({
                "task": failure.task,
                "error": failure.error.to_string(),
                "difference": difference.map(|it| json!({
                    "partition": it.output.to_string(),
                    "offset": it.offset,
                    "input": it.input.to_string(),
                    "input_offset": it.source_offset,
                    "recorded": it.recorded.clone().and_then(|raw| decode(raw).ok()),
                    "made": it.made.clone().and_then(|raw| decode(raw).ok()),
                })),
            })
        }
    }
}
