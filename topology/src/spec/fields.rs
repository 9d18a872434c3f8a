//! Reading mappings field by field, with every problem collected.

use std::collections::BTreeMap;

use super::Spanned;
use super::environment::{Environment, Unresolved};
use super::node::{Entry, Node, Value};
use super::problem::{Problems, nearest, quoted_list};
use super::secret::{Part, Secret};
use super::source::{FileText, Span};
use super::value::{expected, parse_scalar};
use crate::kind::{SettingSpec, SettingType};
use crate::settings::{SettingValue, Settings};

/// What reading needs: the environment, and where problems go.
pub(crate) struct Reader<'a> {
    /// The file.
    pub source: &'a FileText,
    /// Variables and overrides.
    pub env: &'a Environment,
    /// Problems so far.
    pub problems: &'a mut Problems,
}

/// A mapping that is being read: what was asked for is valid, the rest is not.
pub(crate) struct Fields<'n> {
    /// What the mapping is, for messages: "operator `verify`".
    pub owner: String,
    /// Where it is, or its key.
    pub span: Span,
    entries: &'n [Entry],
    known: Vec<&'n str>,
    missing: Vec<Missing>,
}

/// A field that must be there and is not.
struct Missing {
    name: &'static str,
    code: &'static str,
    message: String,
    hint: String,
}

/// Settings with the places of those that the file has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Located {
    /// The values, defaults included.
    pub settings: Settings,
    /// Where each is written; for a list, where each item is.
    pub spans: BTreeMap<&'static str, Vec<Span>>,
    /// The mappings of each list of mappings.
    pub entries: BTreeMap<&'static str, Vec<Located>>,
}

impl Located {
    /// Where `name` is written, or `owner` where its default holds.
    pub(crate) fn span(&self, name: &str, owner: Span) -> Span {
        self.spans.get(name).and_then(|spans| spans.first()).copied().unwrap_or(owner)
    }
}

impl<'n> Fields<'n> {
    /// The fields of `node`, which is `owner`; nothing at all counts as an empty mapping.
    pub(crate) fn of(node: &'n Node, owner: impl Into<String>, reader: &mut Reader<'_>) -> Option<Self> {
        let owner = owner.into();
        match &node.value {
            Value::Map(entries) => {
                Some(Self { owner, span: node.span, entries, known: Vec::new(), missing: Vec::new() })
            }
            Value::Null => Some(Self { owner, span: node.span, entries: &[], known: Vec::new(), missing: Vec::new() }),
            _ => {
                let message = format!("{owner} must be a mapping, not {}", node.shape());
                reader.problems.add("type", node.span, message, "write `{ name: value, ... }` or indented lines");
                None
            }
        }
    }

    /// Says that its problems are to point at `span` where no better place is known.
    pub(crate) fn at(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// The value of `name`, if it is there and not empty.
    pub(crate) fn get(&mut self, name: &'n str) -> Option<&'n Node> {
        self.known.push(name);
        let entry = self.entries.iter().find(|entry| entry.key.value == name)?;
        (entry.value.value != Value::Null).then_some(&entry.value)
    }

    /// All entries.
    pub(crate) fn entries(&self) -> &'n [Entry] {
        self.entries
    }

    /// Notes that `name` must be there and is not.
    pub(crate) fn lacks(&mut self, name: &'static str, code: &'static str, message: String, hint: String) {
        self.missing.push(Missing { name, code, message, hint });
    }

    /// Reports the keys nobody asked for, and what is missing: a field that was misspelt is reported once.
    pub(crate) fn finish(self, reader: &mut Reader<'_>) {
        let mut misspelt = Vec::new();
        for entry in self.entries {
            let name = entry.key.value.as_str();
            if self.known.contains(&name) {
                continue;
            }
            let near = nearest(name, self.known.iter().copied());
            misspelt.extend(near);
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None if self.known.is_empty() => "remove it; nothing can be set here".to_owned(),
                None => format!("remove it; known here: {}", quoted_list(self.known.iter().copied())),
            };
            let message = format!("{} has no `{name}`", self.owner);
            reader.problems.add("key.unknown", entry.key.span, message, hint);
        }
        for missing in self.missing.into_iter().filter(|missing| !misspelt.contains(&missing.name)) {
            reader.problems.add(missing.code, self.span, missing.message, missing.hint);
        }
    }
}

impl Reader<'_> {
    /// A text with its references replaced; `None`, with a problem, if it is none.
    pub(crate) fn text(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        let raw = self.raw(node, what)?;
        match self.env.expand(raw) {
            Ok(text) => Some(Spanned::new(text, node.span)),
            Err(unresolved) => self.unresolved(&unresolved, node.span),
        }
    }

    /// The name of something in the file. It cannot come from a variable: problems show names.
    pub(crate) fn name(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        let raw = self.raw(node, what)?;
        if raw.contains("${") {
            let message = format!("{what} is a name and cannot come from a variable");
            self.problems.add("variable.name", node.span, message, "write the name itself");
            return None;
        }
        Some(Spanned::new(raw.to_owned(), node.span))
    }

    /// A list of names; one name alone counts as a list of it.
    pub(crate) fn names(&mut self, node: &Node, what: &str) -> Option<Vec<Spanned<String>>> {
        match &node.value {
            Value::List(items) => items.iter().map(|item| self.name(item, &format!("an item of {what}"))).collect(),
            _ => self.name(node, what).map(|name| vec![name]),
        }
    }

    /// `value` as problems may show it: what a variable holds is not shown, it may be a secret in the wrong place.
    pub(crate) fn shown<'v>(&'v self, span: Span, value: &'v str) -> &'v str {
        let written = self.source.slice(span);
        if written.contains("${") { written } else { value }
    }

    /// A list of texts; one text alone counts as a list of it.
    pub(crate) fn texts(&mut self, node: &Node, what: &str) -> Option<Vec<Spanned<String>>> {
        match &node.value {
            Value::List(items) => items.iter().map(|item| self.text(item, &format!("an item of {what}"))).collect(),
            _ => self.text(node, what).map(|text| vec![text]),
        }
    }

    /// A secret: from the environment or a file.
    pub(crate) fn secret(&mut self, node: &Node, what: &str) -> Option<Secret> {
        let secret = self.maybe_secret(node, what)?;
        if !secret.comes_from_outside() {
            let message = format!("{what} is a secret, written in the file");
            let hint =
                "write `${VARIABLE}` and set that variable, or `${file:PATH}`; and change the secret, it is known now";
            self.problems.add("secret.inline", node.span, message, hint);
            return None;
        }
        if secret.known_now().is_some_and(|text| text.is_empty()) {
            let message = format!("{what} is empty");
            self.problems.add("secret.empty", node.span, message, "give the variable a value");
            return None;
        }
        Some(secret)
    }

    /// A text that may hold a secret.
    pub(crate) fn maybe_secret(&mut self, node: &Node, what: &str) -> Option<Secret> {
        let raw = self.raw(node, what)?;
        let parts: Result<Vec<Part>, Unresolved> = self.env.secret_parts(raw);
        match parts {
            Ok(parts) => Some(Secret::from_parts(parts)),
            Err(unresolved) => self.unresolved(&unresolved, node.span),
        }
    }

    /// The settings of `specs` in `fields`.
    pub(crate) fn settings<'n>(&mut self, fields: &mut Fields<'n>, specs: &'static [SettingSpec]) -> Located {
        let mut values = Vec::new();
        let mut spans = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for spec in specs {
            if let SettingType::Entries(inner) = spec.ty {
                let items = self.mappings(fields, spec.name, inner);
                let settings = items.iter().map(|item| item.settings.clone()).collect();
                values.push((spec.name.to_owned(), SettingValue::Entries(settings)));
                entries.insert(spec.name, items);
            } else if let Some((value, at)) = self.setting(fields, spec) {
                values.push((spec.name.to_owned(), value));
                if !at.is_empty() {
                    spans.insert(spec.name, at);
                }
            }
        }
        Located { settings: Settings::new(values), spans, entries }
    }

    /// The mappings of the list `name`; none where it is absent.
    fn mappings(&mut self, fields: &mut Fields<'_>, name: &'static str, specs: &'static [SettingSpec]) -> Vec<Located> {
        let Some(node) = fields.get(name) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            let message = format!("`{name}` of {} must be a list, not {}", fields.owner, node.shape());
            let example = specs.first().map_or("name", |spec| spec.name);
            self.problems.add("type", node.span, message, format!("write `{name}: [ {{ {example}: ... }} ]`"));
            return Vec::new();
        };
        let mut out = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let owner = format!("`{name}[{at}]` of {}", fields.owner);
            let Some(mut inner) = Fields::of(item, owner, self) else { continue };
            out.push(self.settings(&mut inner, specs));
            inner.finish(self);
        }
        out
    }

    fn setting(&mut self, fields: &mut Fields<'_>, spec: &'static SettingSpec) -> Option<(SettingValue, Vec<Span>)> {
        let what = format!("`{}` of {}", spec.name, fields.owner);
        if let Some(node) = fields.get(spec.name) {
            let empty = matches!(&node.value, Value::Text(raw) if self.env.expand(raw).as_deref() == Ok(""));
            if !empty || spec.default.is_none() {
                return self.given(node, spec, &what);
            }
        }
        match spec.default {
            Some("") => None,
            Some(default) => default_value(spec.ty, default).map(|value| (value, Vec::new())),
            None => {
                let hint = format!("add `{}: ...`, {} ({})", spec.name, expected(spec.ty), spec.doc);
                let message = format!("{} lacks `{}`", fields.owner, spec.name);
                fields.lacks(spec.name, "setting.missing", message, hint);
                None
            }
        }
    }

    fn given(&mut self, node: &Node, spec: &SettingSpec, what: &str) -> Option<(SettingValue, Vec<Span>)> {
        match spec.ty {
            SettingType::Secret => self.secret(node, what).map(|it| (SettingValue::Secret(it), vec![node.span])),
            SettingType::Addresses | SettingType::Networks => {
                let texts = self.texts(node, what)?;
                let spans = texts.iter().map(|text| text.span).collect();
                let items: Vec<_> = texts.iter().map(|text| self.scalar(text, spec.ty, what)).collect();
                let items = items.into_iter().map(|item| match item {
                    Some(SettingValue::Text(text)) => Some(text),
                    _ => None,
                });
                Some((SettingValue::List(items.collect::<Option<_>>()?), spans))
            }
            ty => {
                let text = self.text(node, what)?;
                self.scalar(&text, ty, what).map(|value| (value, vec![node.span]))
            }
        }
    }

    fn scalar(&mut self, text: &Spanned<String>, ty: SettingType, what: &str) -> Option<SettingValue> {
        match parse_scalar(ty, &text.value) {
            Ok(value) => Some(value),
            Err(wanted) => {
                let near = match ty {
                    SettingType::Word(words) => nearest(&text.value, words.iter().copied()),
                    _ => None,
                };
                let hint = match near {
                    Some(near) => format!("did you mean `{near}`? It must be {wanted}"),
                    None => format!("write {wanted}"),
                };
                let message = format!("{what} cannot be `{}`", self.shown(text.span, &text.value));
                self.problems.add("setting.type", text.span, message, hint);
                None
            }
        }
    }

    fn raw<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        if let Value::Text(raw) = &node.value {
            return Some(raw);
        }
        let message = format!("{what} must be text, not {}", node.shape());
        self.problems.add("type", node.span, message, "write a single value here");
        None
    }

    fn unresolved<T>(&mut self, unresolved: &Unresolved, span: Span) -> Option<T> {
        let (code, message, hint) = unresolved.explain();
        self.problems.add(code, span, message, hint);
        None
    }
}

/// The value that a spec's default stands for; `None` if the spec is wrong.
pub(crate) fn default_value(ty: SettingType, default: &str) -> Option<SettingValue> {
    match ty {
        SettingType::Secret | SettingType::Entries(_) => None,
        SettingType::Addresses | SettingType::Networks => {
            let inner = default.trim().trim_start_matches('[').trim_end_matches(']');
            let items = inner.split(',').map(|item| item.trim().trim_matches('"').to_owned());
            let items: Vec<String> = items.filter(|item| !item.is_empty()).collect();
            let valid = items.iter().all(|item| parse_scalar(ty, item).is_ok());
            valid.then_some(SettingValue::List(items))
        }
        _ => parse_scalar(ty, default).ok(),
    }
}
