//! `sluice state diff`: the first rows in which two states differ.

use std::cmp::Ordering;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_state::{Reader, StateError, StoredState};

use super::open::opened;
use super::shown;

/// Rows read from one side at a time.
const PAGE: usize = 1_000;

/// A row that is not the same on both sides.
struct Difference {
    key: Vec<u8>,
    values: [Option<Vec<u8>>; 2],
}

/// Runs it: code 1 if something differs.
pub(super) fn run(one: &Path, other: &Path, limit: usize, json: bool) -> anyhow::Result<ExitCode> {
    let mut differ = Vec::new();
    let mut others = opened(other)?;
    for it in opened(one)? {
        let Some(at) = others.iter().position(|known| known.name == it.name) else {
            differ.push(json!({ "task": it.name, "only_in": one }));
            continue;
        };
        let twin = others.remove(at);
        states(&it.name, &it.state?, &twin.state?, limit, &mut differ)?;
    }
    differ.extend(others.iter().map(|it| json!({ "task": it.name, "only_in": other })));
    if json {
        println!("{}", serde_json::to_string_pretty(&differ)?);
    } else {
        differ.iter().for_each(print);
        if differ.is_empty() {
            println!("no difference");
        }
    }
    Ok(if differ.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn states(
    task: &str,
    one: &StoredState,
    other: &StoredState,
    limit: usize,
    differ: &mut Vec<Value>,
) -> Result<(), StateError> {
    for table in one.tables() {
        let name = &table.spec.name;
        let Some(twin) = other.tables().iter().find(|twin| twin.spec.name == *name) else {
            differ.push(json!({ "task": task, "table": name, "only_in": "the first" }));
            continue;
        };
        if (twin.rows, twin.digest) == (table.rows, table.digest) {
            continue;
        }
        let rows = rows([one.reader(), other.reader()], name, limit)?;
        let encoded = |value: &Option<Vec<u8>>| value.as_ref().map(hex::encode);
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                let [one, other] = &row.values;
                json!({ "key": hex::encode(&row.key), "first": encoded(one), "second": encoded(other) })
            })
            .collect();
        differ.push(json!({ "task": task, "table": name, "rows": [table.rows, twin.rows], "differences": rows }));
    }
    let only = other.tables().iter().filter(|twin| !one.tables().iter().any(|table| table.spec.name == twin.spec.name));
    differ.extend(only.map(|twin| json!({ "task": task, "table": twin.spec.name, "only_in": "the second" })));
    Ok(())
}

/// The first `limit` differences of a table, by key.
fn rows(readers: [Arc<dyn Reader>; 2], table: &str, limit: usize) -> Result<Vec<Difference>, StateError> {
    let [mut one, mut other] = readers.map(|reader| Rows::new(reader, table));
    let mut found = Vec::new();
    while found.len() < limit {
        let order = match (one.peek()?, other.peek()?) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let left = if order.is_le() { one.take() } else { None };
        let right = if order.is_ge() { other.take() } else { None };
        if left != right {
            let key = left.as_ref().or(right.as_ref()).map(|(key, _)| key.clone()).unwrap_or_default();
            found.push(Difference { key, values: [left.map(|(_, value)| value), right.map(|(_, value)| value)] });
        }
    }
    Ok(found)
}

/// Key and value.
type Row = (Vec<u8>, Vec<u8>);

/// The rows of a table, a page at a time.
struct Rows<'t> {
    reader: Arc<dyn Reader>,
    table: &'t str,
    /// The next ones, the first one last.
    page: Vec<Row>,
    from: Option<Vec<u8>>,
}

impl<'t> Rows<'t> {
    fn new(reader: Arc<dyn Reader>, table: &'t str) -> Self {
        Self { reader, table, page: Vec::new(), from: Some(Vec::new()) }
    }

    fn peek(&mut self) -> Result<Option<&Row>, StateError> {
        if self.page.is_empty()
            && let Some(from) = self.from.take()
        {
            let page = &mut self.page;
            self.reader.scan(self.table, &from, None, &mut |key, value| {
                page.push((key.to_vec(), value.to_vec()));
                page.len() < PAGE
            })?;
            if page.len() == PAGE {
                // The first key behind the last one.
                self.from = page.last().map(|(key, _)| [key.as_slice(), &[0]].concat());
            }
            page.reverse();
        }
        Ok(self.page.last())
    }

    fn take(&mut self) -> Option<Row> {
        self.page.pop()
    }
}

fn print(difference: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let place = format!("{} {}", text(&difference["task"]), text(&difference["table"]));
    if let Some(only) = difference["only_in"].as_str() {
        println!("{place} is only in {only}");
        return;
    }
    println!("{place}: {} and {} rows", difference["rows"][0], difference["rows"][1]);
    let bytes = |value: &Value| match value.as_str() {
        Some(digits) => shown(&hex::decode(digits).unwrap_or_default()),
        None => "no row".to_owned(),
    };
    for row in difference["differences"].as_array().into_iter().flatten() {
        println!("    {}: {} and {}", bytes(&row["key"]), bytes(&row["first"]), bytes(&row["second"]));
    }
}
