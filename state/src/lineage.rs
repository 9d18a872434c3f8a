//! What a state was made from, as it is stored beside the rows, and whether that is what the topology asks for.

use std::fmt::Write;

use crate::types::{StateError, TableSpec};

/// What a task's state was made from. State is only ever used again by a task that would have made the same: with
/// another log, other inputs or other tables its positions and rows mean nothing (DESIGN 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Name of the task.
    pub task: String,
    /// UUID of the log it reads and writes.
    pub log_uuid: [u8; 16],
    /// How its operators are wired, as text: equal text, equal meaning of the state.
    pub wiring: String,
}

impl Lineage {
    /// Why a task of this lineage with these tables cannot go on from a state with the lineage `found`, as text; `None` if
    /// it can, once older tables are upgraded.
    pub fn differs(&self, tables: &[TableSpec], found: &str) -> Option<String> {
        match StoredLineage::parse(found).map(|found| found.fit(&self.with_tables(tables))) {
            Ok(Fit::Same | Fit::Older(_)) => None,
            Ok(Fit::Foreign(what) | Fit::Newer(what)) => Some(what),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The lineage of a state with these tables, in their order and in their newest versions.
    pub fn with_tables(&self, tables: &[TableSpec]) -> StoredLineage {
        let table = |spec: &TableSpec| TableVersion {
            name: spec.name.clone(),
            group_prefix: spec.group_prefix,
            version: spec.version(),
        };
        StoredLineage { lineage: self.clone(), tables: tables.iter().map(table).collect() }
    }
}

/// A lineage together with the tables of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLineage {
    /// What the state was made from.
    pub lineage: Lineage,
    /// Its tables, in order.
    pub tables: Vec<TableVersion>,
}

/// A table as a lineage names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableVersion {
    /// Name.
    pub name: String,
    /// See [`TableSpec::group_prefix`].
    pub group_prefix: Option<usize>,
    /// Version of its rows.
    pub version: u32,
}

/// How a state that is there compares with what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can be used.
    Same,
    /// It can be used after these tables were upgraded: each with the version of its rows and the one wanted.
    Older(Vec<(String, u32, u32)>),
    /// It was made from something else: the first difference.
    Foreign(String),
    /// A newer program has written it.
    Newer(String),
}

/// Why the text of a lineage was not understood.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// A newer program has written it.
    #[error("{0}")]
    Newer(String),
    /// It is no lineage.
    #[error("{0}")]
    Unclear(String),
}

impl LineageError {
    /// As the error of the state in `path`.
    pub(crate) fn at(self, path: &str) -> StateError {
        let path = path.to_owned();
        match self {
            Self::Newer(what) => StateError::Newer { path, what },
            Self::Unclear(what) => StateError::Foreign { path, what },
        }
    }
}

/// Format of the text, in its first line. Format 1 (0.1.0) had no versions: all tables were in version 1.
const FORMAT: u32 = 2;

impl StoredLineage {
    /// As it is stored: one fact a line, with the tables in order.
    pub fn to_text(&self) -> String {
        let mut text = format!("format {FORMAT}\n");
        for fact in self.facts() {
            let _ = writeln!(text, "{fact}");
        }
        for table in &self.tables {
            let _ = writeln!(text, "{} {}", table.fact(), table.version);
        }
        text
    }

    /// Reads the text of this or an earlier format.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, LineageError> {
        let unclear = |what: String| LineageError::Unclear(what);
        let mut lines = text.lines();
        let format = lines.next().and_then(|line| line.strip_prefix("format ")?.parse::<u32>().ok());
        let versioned = match format {
            Some(1) => false,
            Some(FORMAT) => true,
            Some(other) => {
                let what = format!("its format is {other}, this program reads 1 to {FORMAT}; run the newer program");
                return Err(LineageError::Newer(what));
            }
            None => {
                return Err(unclear("its lineage cannot be read: it is damaged, or no state of this program".into()));
            }
        };
        let (mut task, mut log_uuid) = (None, None);
        let (mut wiring, mut tables) = (String::new(), Vec::new());
        for line in lines {
            let unclear = || unclear(format!("its lineage cannot be read at \"{line}\""));
            match line.split_once(' ').ok_or_else(unclear)? {
                ("task", name) => task = Some(name.to_owned()),
                ("log", uuid) => log_uuid = Some(uuid_from(uuid).ok_or_else(unclear)?),
                ("wiring", fact) => wiring.extend([fact, "\n"]),
                ("table", table) => tables.push(TableVersion::parse(table, versioned).ok_or_else(unclear)?),
                _ => return Err(unclear()),
            }
        }
        match (task, log_uuid) {
            (Some(task), Some(log_uuid)) => Ok(Self { lineage: Lineage { task, log_uuid, wiring }, tables }),
            _ => Err(unclear("its lineage lacks the task or the log".into())),
        }
    }

    /// How this one, which was found, fits what is `wanted`.
    pub fn fit(&self, wanted: &Self) -> Fit {
        let lines = |lineage: &Self| -> Vec<String> {
            lineage.facts().into_iter().chain(lineage.tables.iter().map(TableVersion::fact)).collect()
        };
        if let Some(what) = first_difference(&lines(self), &lines(wanted)) {
            return Fit::Foreign(what);
        }
        let mut older = Vec::new();
        for (found, wanted) in self.tables.iter().zip(&wanted.tables) {
            if found.version > wanted.version {
                return Fit::Newer(format!(
                    "table {} has rows of version {}, this program reads versions up to {}; run the newer program",
                    found.name, found.version, wanted.version
                ));
            }
            if found.version < wanted.version {
                older.push((found.name.clone(), found.version, wanted.version));
            }
        }
        if older.is_empty() { Fit::Same } else { Fit::Older(older) }
    }

    /// Everything but the tables.
    fn facts(&self) -> Vec<String> {
        let Lineage { task, log_uuid, wiring } = &self.lineage;
        let log = log_uuid.iter().fold(String::from("log "), |text, byte| text + &format!("{byte:02x}"));
        let wiring = wiring.lines().map(|line| format!("wiring {line}"));
        [format!("task {task}"), log].into_iter().chain(wiring).collect()
    }
}

impl TableVersion {
    fn fact(&self) -> String {
        let group = self.group_prefix.map_or_else(|| "-".to_owned(), |prefix| prefix.to_string());
        format!("table {} {group}", self.name)
    }

    fn parse(text: &str, versioned: bool) -> Option<Self> {
        let mut words = text.split(' ');
        let name = words.next()?.to_owned();
        let group_prefix = match words.next()? {
            "-" => None,
            prefix => Some(prefix.parse().ok()?),
        };
        let version = if versioned { words.next()?.parse().ok().filter(|version| *version > 0)? } else { 1 };
        words.next().is_none().then_some(Self { name, group_prefix, version })
    }
}

fn uuid_from(hex: &str) -> Option<[u8; 16]> {
    (hex.len() == 32 && hex.is_ascii()).then_some(())?;
    Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())
}

/// First difference between what was `found` and what is `wanted`, in words.
fn first_difference(found: &[String], wanted: &[String]) -> Option<String> {
    let mut wanted = wanted.iter();
    for line in found {
        match wanted.next() {
            Some(other) if other == line => {}
            Some(other) => return Some(format!("it was made with \"{line}\", the topology says \"{other}\"")),
            None => return Some(format!("it was made with \"{line}\", which the topology does not have")),
        }
    }
    wanted.next().map(|line| format!("it was made without \"{line}\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lineage() -> StoredLineage {
        let lineage =
            Lineage { task: "verify.0".into(), log_uuid: [7; 16], wiring: "input a/0 of 1 > v.in\nb\n".into() };
        lineage.with_tables(&[TableSpec::plain("verify.clock"), TableSpec::grouped("dedupe.headers", 8)])
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        assert_eq!(StoredLineage::parse(&lineage().to_text()).unwrap(), lineage());
        assert_eq!(lineage().fit(&lineage()), Fit::Same);
    }

    #[test]
    fn format_1_has_tables_of_version_1() {
        let text = "format 1\ntask verify.0\nlog 07070707070707070707070707070707\nwiring input a/0 of 1 > v.in\nwiring b\n\
                    table verify.clock -\ntable dedupe.headers 8\n";
        assert_eq!(StoredLineage::parse(text).unwrap(), lineage());
    }

    #[test]
    fn versions_say_what_is_to_be_done() {
        let (mut found, mut wanted) = (lineage(), lineage());
        wanted.tables[1].version = 3;
        assert_eq!(found.fit(&wanted), Fit::Older(vec![("dedupe.headers".into(), 1, 3)]));
        found.tables[1].version = 4;
        assert!(
            matches!(found.fit(&wanted), Fit::Newer(what) if what.contains("version 4") && what.contains("newer program"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let good = lineage().to_text();
        let spoilt = [
            (String::new(), "damaged"),
            (good.replace("format 2", "format 3"), "newer program"),
            (good.replace("log 07", "log x7"), "log x7"),
            (good.replace("task verify.0\n", ""), "lacks"),
            (good.replace("headers 8 1", "headers 8"), "headers 8"),
            (good.replace("headers 8 1", "headers 8 0"), "headers 8 0"),
        ];
        for (text, says) in spoilt {
            let error = StoredLineage::parse(&text).unwrap_err();
            assert_eq!(matches!(error, LineageError::Newer(_)), says == "newer program");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
