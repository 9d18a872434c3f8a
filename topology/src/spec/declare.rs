//! The wiring as the file declares it: topics, tables and operators, checked one by one.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Spanned;
use super::config::{self, Config, Facts, TOPIC_SETTINGS};
use super::fields::{Fields, Located, Reader};
use super::log::LogConfig;
use super::node::{Entry, Node, Value};
use super::problem::{nearest, quoted_list};
use super::source::Span;
use crate::kind::{Kind, Parallel, Registry, SettingType, TableKind};

/// What a file declares. Parts with problems are left out, or lack what was wrong.
#[derive(Default)]
pub(crate) struct Declarations {
    /// Everything but the wiring, unless it has problems.
    pub config: Option<Config>,
    /// What checks ask of it, whether or not it has problems.
    pub facts: Facts,
    /// Topics.
    pub topics: Vec<TopicDecl>,
    /// Tables.
    pub tables: Vec<TableDecl>,
    /// Operators and services.
    pub operators: Vec<OperatorDecl>,
    /// Topics named in places that could not be understood: what writes and reads them is not known.
    pub doubtful: Vec<String>,
}

/// A topic.
pub(crate) struct TopicDecl {
    pub name: Spanned<String>,
    pub located: Located,
}

/// A broadcast table.
pub(crate) struct TableDecl {
    pub name: Spanned<String>,
    pub was: Option<Spanned<String>>,
    pub kind: Option<&'static TableKind>,
    pub from: Option<Spanned<String>>,
    pub located: Located,
}

/// An operator or service.
pub(crate) struct OperatorDecl {
    pub name: Spanned<String>,
    pub was: Option<Spanned<String>>,
    pub kind: &'static Kind,
    pub inputs: Vec<PortDecl>,
    pub outputs: Vec<PortDecl>,
    pub tables: Vec<Spanned<String>>,
    pub partitions: Option<Spanned<RangeInclusive<u32>>>,
    /// `partitions` is there, but could not be read.
    pub partitions_unclear: bool,
    pub located: Located,
    /// Ports that must be wired and are not.
    pub missing_inputs: Vec<usize>,
    pub missing_outputs: Vec<usize>,
}

impl TableDecl {
    /// What its state is called: by the name it was first known by.
    pub(crate) fn identity(&self) -> &str {
        self.was.as_ref().map_or(&self.name.value, |was| &was.value)
    }
}

impl OperatorDecl {
    /// What everything it has stored is called: by the name it was first known by.
    pub(crate) fn identity(&self) -> &str {
        self.was.as_ref().map_or(&self.name.value, |was| &was.value)
    }
}

/// A port wired to a topic: index in the kind's list.
pub(crate) struct PortDecl {
    pub port: usize,
    pub topic: Spanned<String>,
}

/// Reads the whole file.
pub(crate) fn declarations(root: Option<&Node>, registry: &Registry, reader: &mut Reader<'_>) -> Declarations {
    let Some(root) = root else { return Declarations::default() };
    let Some(top) = Fields::of(root, "a topology", reader) else { return Declarations::default() };
    let start = top.entries().first().map_or(Span::default(), |entry| entry.key.span);
    let mut top = top.at(start);
    version(&mut top, reader);
    let (config, facts) = config::read(&mut top, reader);
    let mut out = Declarations { config, facts, ..Declarations::default() };
    out.topics = entries(&mut top, "topics", true, reader).iter().filter_map(|it| topic(it, reader)).collect();
    mix_logs(&mut out, reader);
    for entry in entries(&mut top, "tables", false, reader) {
        out.tables.extend(table(entry, registry, reader, &mut out.doubtful));
    }
    for entry in entries(&mut top, "operators", true, reader) {
        out.operators.extend(operator(entry, registry, reader, &mut out.doubtful));
    }
    out.operators.iter().for_each(|operator| caches(operator, &out.facts.caches, reader));
    top.finish(reader);
    out
}

/// Puts topics on the logs that they name, which are in the file.
fn mix_logs(out: &mut Declarations, reader: &mut Reader<'_>) {
    let known = &out.facts.logs;
    let mut topics = BTreeMap::new();
    for topic in &out.topics {
        let (settings, name) = (&topic.located.settings, topic.located.settings.text("log"));
        let span = topic.located.span("log", topic.name.span);
        if name.is_empty() {
            continue;
        }
        if settings.flag("direct") {
            let message = format!("topic `{}` is direct and on no log", topic.name.value);
            reader.problems.add("setting.unused", span, message, "remove `log`");
        } else if !known.iter().any(|log| log == name) {
            let hint = match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add `{name}: {{ kind: ... }}` to `logs`, or remove it: then the main `log` stores it"),
            };
            let message = format!("topic `{}` names a log `{name}` that does not exist", topic.name.value);
            reader.problems.add("log.unknown", span, message, hint);
        } else {
            topics.insert(topic.name.value.clone(), name.to_owned());
        }
    }
    let Some(named) = out.facts.named_logs.take().filter(|named| !named.is_empty()) else { return };
    if let Some(config) = &mut out.config {
        let main = Box::new(config.log.clone());
        config.log = LogConfig::Mixed { main, named, topics };
    }
}

/// Caches that an operator names are in the file.
fn caches(operator: &OperatorDecl, known: &[String], reader: &mut Reader<'_>) {
    for spec in operator.kind.settings.iter().filter(|spec| spec.ty == SettingType::Cache) {
        let name = operator.located.settings.text(spec.name);
        if name.is_empty() || known.iter().any(|cache| cache == name) {
            continue;
        }
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("add `{name}: {{ kind: memory }}` to `caches`"),
        };
        let span = operator.located.span(spec.name, operator.name.span);
        let message = format!("operator `{}` names a cache `{name}` that does not exist", operator.name.value);
        reader.problems.add("cache.unknown", span, message, hint);
    }
}

fn version(top: &mut Fields<'_>, reader: &mut Reader<'_>) {
    let hint = "write `version: 1`";
    let Some(node) = top.get("version") else {
        top.lacks("version", "setting.missing", "a topology lacks `version`".to_owned(), hint.to_owned());
        return;
    };
    if let Some(version) = reader.text(node, "`version`")
        && version.value != "1"
    {
        let shown = reader.shown(version.span, &version.value);
        let message = format!("version `{shown}` of the topology file is not known to this program");
        reader.problems.add("version", version.span, message, hint);
    }
}

/// The entries of a section that maps names to things.
pub(super) fn entries<'n>(
    top: &mut Fields<'n>,
    name: &'static str,
    needed: bool,
    reader: &mut Reader<'_>,
) -> &'n [Entry] {
    match top.get(name) {
        Some(node) => Fields::of(node, format!("`{name}`"), reader).map_or(&[], |fields| fields.entries()),
        None => {
            if needed {
                let message = format!("a topology lacks `{name}`");
                top.lacks(name, "setting.missing", message, format!("add `{name}:` with at least one entry"));
            }
            &[]
        }
    }
}

fn topic(entry: &Entry, reader: &mut Reader<'_>) -> Option<TopicDecl> {
    let name = &entry.key;
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.value.is_empty() || name.value.len() > 200 || !name.value.bytes().all(valid) {
        let hint = "use letters, digits, `.`, `_` and `-`, at most 200 of them";
        reader.problems.add("name.invalid", name.span, format!("`{}` cannot name a topic", name.value), hint);
    }
    let mut fields = Fields::of(&entry.value, format!("topic `{}`", name.value), reader)?.at(name.span);
    let located = reader.settings(&mut fields, TOPIC_SETTINGS);
    fields.finish(reader);
    Some(TopicDecl { name: name.clone(), located })
}

/// Names of operators and tables go into the names of tasks and state tables: no dots there.
fn check_name(name: &Spanned<String>, what: &str, reader: &mut Reader<'_>) {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if name.value.is_empty() || name.value.len() > 100 || !name.value.bytes().all(valid) {
        let hint = "use letters, digits, `_` and `-`, at most 100 of them";
        reader.problems.add("name.invalid", name.span, format!("`{}` cannot name {what}", name.value), hint);
    }
}

/// `was: NAME`, the name that something was first known by.
fn was(fields: &mut Fields<'_>, what: &str, reader: &mut Reader<'_>) -> Option<Spanned<String>> {
    let node = fields.get("was")?;
    let was = reader.name(node, &format!("`was` of {}", fields.owner))?;
    check_name(&was, what, reader);
    Some(was)
}

fn table(entry: &Entry, registry: &Registry, reader: &mut Reader<'_>, doubtful: &mut Vec<String>) -> Option<TableDecl> {
    let name = entry.key.clone();
    check_name(&name, "a table", reader);
    let mut fields = Fields::of(&entry.value, format!("table `{}`", name.value), reader)?.at(name.span);
    let was = was(&mut fields, "a table", reader);
    let from = match fields.get("from") {
        Some(node) => reader.name(node, &format!("`from` of table `{}`", name.value)),
        None => {
            let message = format!("table `{}` lacks `from`", name.value);
            fields.lacks("from", "setting.missing", message, "add `from: TOPIC`, the topic it is made from".to_owned());
            None
        }
    };
    let known = registry.tables.iter().map(|kind| kind.name);
    let kind = kind_name(&mut fields, known, reader).and_then(|kind| registry.table(&kind));
    let Some(kind) = kind else {
        doubtful.extend(mentioned(&entry.value));
        return Some(TableDecl { name, was, kind: None, from, located: Located::default() });
    };
    let located = reader.settings(&mut fields, kind.settings);
    fields.finish(reader);
    Some(TableDecl { name, was, kind: Some(kind), from, located })
}

/// The `kind` of a table or operator: one of `known`, or a problem.
fn kind_name<'a>(
    fields: &mut Fields<'_>,
    known: impl Iterator<Item = &'a str> + Clone,
    reader: &mut Reader<'_>,
) -> Option<String> {
    let all = quoted_list(known.clone());
    let Some(node) = fields.get("kind") else {
        let message = format!("{} lacks `kind`", fields.owner);
        let hint = format!("add `kind:` with one of {all}");
        reader.problems.add("kind.missing", fields.span, message, hint);
        return None;
    };
    let kind = reader.name(node, &format!("`kind` of {}", fields.owner))?;
    if known.clone().any(|name| name == kind.value) {
        return Some(kind.value);
    }
    let hint = match nearest(&kind.value, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known kinds: {all}"),
    };
    let message = format!("{} is of a kind `{}` that does not exist", fields.owner, kind.value);
    reader.problems.add("kind.unknown", kind.span, message, hint);
    None
}

/// All texts in `node`: what it may have meant to wire.
fn mentioned(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Null => Vec::new(),
        Value::Text(text) => vec![text.clone()],
        Value::List(items) => items.iter().flat_map(mentioned).collect(),
        Value::Map(entries) => entries.iter().flat_map(|entry| mentioned(&entry.value)).collect(),
    }
}

fn operator(
    entry: &Entry,
    registry: &Registry,
    reader: &mut Reader<'_>,
    doubtful: &mut Vec<String>,
) -> Option<OperatorDecl> {
    let name = entry.key.clone();
    check_name(&name, "an operator", reader);
    let mut fields = Fields::of(&entry.value, format!("operator `{}`", name.value), reader)?.at(name.span);
    let was = was(&mut fields, "an operator", reader);
    let known = registry.kinds.iter().map(|kind| kind.name);
    let Some(kind) = kind_name(&mut fields, known, reader).and_then(|kind| registry.kind(&kind)) else {
        doubtful.extend(mentioned(&entry.value));
        return None;
    };
    let mut out = OperatorDecl {
        name,
        was,
        kind,
        inputs: Vec::new(),
        outputs: Vec::new(),
        tables: Vec::new(),
        partitions: None,
        partitions_unclear: false,
        located: Located::default(),
        missing_inputs: Vec::new(),
        missing_outputs: Vec::new(),
    };
    ports(&mut out, &mut fields, reader);
    if !kind.lookups.is_empty()
        && let Some(node) = fields.get("tables")
    {
        out.tables = reader.names(node, &format!("`tables` of {}", fields.owner)).unwrap_or_default();
    }
    if kind.parallel == Parallel::PerPartition
        && kind.role.build().is_some()
        && let Some(node) = fields.get("partitions")
    {
        out.partitions = partitions(node, &fields.owner, reader);
        out.partitions_unclear = out.partitions.is_none();
    }
    out.located = reader.settings(&mut fields, kind.settings);
    let before = reader.problems.len();
    fields.finish(reader);
    if reader.problems.len() > before {
        doubtful.extend(mentioned(&entry.value));
    }
    Some(out)
}

fn ports(out: &mut OperatorDecl, fields: &mut Fields<'_>, reader: &mut Reader<'_>) {
    let inputs = out.kind.inputs.iter().map(|port| (port.name, port.optional, "reads"));
    let outputs = out.kind.outputs.iter().map(|port| (port.name, port.optional, "writes"));
    for (index, (port, optional, verb)) in inputs.chain(outputs).enumerate() {
        let Some(node) = fields.get(port) else {
            if !optional {
                let message = format!("{} lacks `{port}`, a topic that it {verb}", fields.owner);
                fields.lacks(port, "port.missing", message, format!("add `{port}: TOPIC`"));
                match index.checked_sub(out.kind.inputs.len()) {
                    None => out.missing_inputs.push(index),
                    Some(port) => out.missing_outputs.push(port),
                }
            }
            continue;
        };
        for topic in reader.names(node, &format!("`{port}` of {}", fields.owner)).unwrap_or_default() {
            match index.checked_sub(out.kind.inputs.len()) {
                None => out.inputs.push(PortDecl { port: index, topic }),
                Some(port) => out.outputs.push(PortDecl { port, topic }),
            }
        }
    }
}

/// Reads `0-3` or `2`.
fn partitions(node: &Node, owner: &str, reader: &mut Reader<'_>) -> Option<Spanned<RangeInclusive<u32>>> {
    let text = reader.text(node, &format!("`partitions` of {owner}"))?;
    let (first, last) = text.value.split_once('-').unwrap_or((&text.value, &text.value));
    let number = |part: &str| {
        let part = part.trim();
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u32>().ok()).flatten()
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Some(Spanned::new(first..=last, text.span)),
        _ => {
            let shown = reader.shown(text.span, &text.value);
            let message = format!("`partitions` of {owner} cannot be `{shown}`");
            reader.problems.add("setting.type", text.span, message, "write the first and the last one, such as `0-3`");
            None
        }
    }
}
