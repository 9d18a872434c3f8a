//! Names and places that must differ: instances' ids, listening addresses, hashes.

use std::collections::BTreeMap;
use std::fmt::LowerHex;

use sluice_proto::{hash32, hash64};

use super::wiring::Wiring;
use crate::graph::task_name;
use crate::kind::Parallel;
use crate::settings::SettingValue;
use crate::spec::{HostPort, Problems, Span, Spanned};

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    ids(wiring, problems);
    listeners(wiring, problems);
    let operators = wiring.decl.operators.iter().map(|it| (&it.name, it.was.as_ref()));
    renamed(&operators.collect::<Vec<_>>(), "operator", problems);
    let tables = wiring.decl.tables.iter().map(|it| (&it.name, it.was.as_ref()));
    renamed(&tables.collect::<Vec<_>>(), "table", problems);
    let topics = wiring.decl.topics.iter().map(|topic| (topic.log_name().to_string(), topic.name.span));
    reserved(wiring, problems);
    collisions(topics, hash32, "topics", problems);
    collisions(task_names(wiring).into_iter(), hash64, "tasks", problems);
}

/// Names of the runtime's own topics (operators' names have no dots).
fn reserved(wiring: &Wiring<'_>, problems: &mut Problems) {
    for topic in wiring.decl.topics.iter().filter(|topic| topic.name.value.starts_with("sluice.")) {
        let message = format!("topic `{}` has a name that is kept for Sluice's own records", topic.name.value);
        problems.add("name.reserved", topic.name.span, message, "choose one that does not begin with `sluice.`");
    }
}

/// A setting called `id` is unique among the instances of a kind: extranonces are made of it.
fn ids(wiring: &Wiring<'_>, problems: &mut Problems) {
    let mut seen: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for (index, operator) in wiring.decl.operators.iter().enumerate() {
        let id = match operator.located.settings.get("id") {
            Some(SettingValue::Integer(id)) => *id,
            _ => continue,
        };
        let span = |index: usize| {
            let operator = wiring.operator(index);
            operator.located.span("id", operator.name.span)
        };
        if let Some(&first) = seen.get(&(operator.kind.name, id)) {
            let message = format!(
                "`{}` and `{}` both have `id` {id}: their sessions would share work",
                operator.name.value,
                wiring.operator(first).name.value
            );
            let hint = format!("give each {} its own `id`", operator.kind.name);
            problems.add("id.duplicate", span(index), message, hint).note(span(first), "the other one");
        } else {
            seen.insert((operator.kind.name, id), index);
        }
    }
}

/// What is stored goes by the name that `was` says: it must be nobody else's.
fn renamed(all: &[(&Spanned<String>, Option<&Spanned<String>>)], what: &str, problems: &mut Problems) {
    for (index, (name, was)) in all.iter().enumerate() {
        let Some(was) = was else { continue };
        if was.value == name.value {
            let message = format!("{what} `{}` says that it was called the same", name.value);
            problems.add("was.same", was.span, message, "remove `was`");
            continue;
        }
        if let Some((other, _)) = all.iter().find(|(other, _)| other.value == was.value) {
            let message = format!("`{}` was not `{}`: there is {what} `{}`", name.value, was.value, was.value);
            let hint = format!("remove `was`, or rename the other {what}: the state of `{}` is its own", was.value);
            problems.add("was.taken", was.span, message, hint).note(other.span, "the other one");
        }
        let same = |said: &&Spanned<String>| said.value == was.value;
        let before = all[..index].iter().find_map(|(other, said)| Some((other, said.filter(same)?)));
        if let Some((other, first)) = before {
            let message = format!("`{}` and `{}` both say that they were `{}`", other.value, name.value, was.value);
            let hint = format!("let one of them go on with what `{}` has stored; the other one begins anew", was.value);
            problems.add("was.twice", was.span, message, hint).note(first.span, "the other one");
        }
    }
}

/// Settings called `listen`, and the HTTP endpoint, are places of their own.
fn listeners(wiring: &Wiring<'_>, problems: &mut Problems) {
    let mut seen: Vec<(HostPort, String, Span)> = Vec::new();
    let mut all: Vec<(String, String, Span)> = Vec::new();
    if let Some(listen) = &wiring.decl.facts.listen {
        all.push((listen.value.clone(), "`http`".to_owned(), listen.span));
    }
    for operator in &wiring.decl.operators {
        let owner = format!("`{}`", operator.name.value);
        for located in std::iter::once(&operator.located).chain(operator.located.entries.values().flatten()) {
            let spans = located.spans.get("listen");
            let span = |at: usize| spans.and_then(|spans| spans.get(at)).copied().unwrap_or(operator.name.span);
            match located.settings.get("listen") {
                Some(SettingValue::Text(one)) => all.push((one.clone(), owner.clone(), span(0))),
                Some(SettingValue::List(many)) => {
                    all.extend(many.iter().enumerate().map(|(at, one)| (one.clone(), owner.clone(), span(at))));
                }
                _ => {}
            }
        }
    }
    for (text, owner, span) in all {
        let Some(at) = HostPort::parse(&text) else { continue };
        if let Some((_, other, first)) = seen.iter().find(|(other, _, _)| other.clashes_with(&at)) {
            let message = format!("{owner} cannot listen on `{text}`: {other} listens there");
            let problem = problems.add("listen.clash", span, message, "choose another port");
            problem.note(*first, "the other listener");
        }
        seen.push((at, owner, span));
    }
}

/// Names of all tasks and sources, as records' coordinates have them, in short.
fn task_names(wiring: &Wiring<'_>) -> Vec<(String, Span)> {
    let mut out = Vec::new();
    for operator in 0..wiring.decl.operators.len() {
        let (name, span) = (wiring.operator(operator).identity(), wiring.operator(operator).name.span);
        out.push((name.to_owned(), span));
        let count = wiring.inputs_of(operator).first().and_then(|(topic, _)| wiring.partitions(*topic));
        if wiring.per_partition(operator) {
            let generation = wiring.generation_of(wiring.group_of(operator));
            let task = |it| task_name(name, Parallel::PerPartition, generation, it);
            out.extend((0..count.unwrap_or(0)).map(|it| (task(it), span)));
        }
    }
    out
}

/// Records name topics and tasks by hashes: those must differ.
fn collisions<H: Ord + LowerHex>(
    names: impl Iterator<Item = (String, Span)>,
    hash: impl Fn(&str) -> H,
    what: &str,
    problems: &mut Problems,
) {
    let mut seen: BTreeMap<H, (String, Span)> = BTreeMap::new();
    for (name, span) in names {
        let hash = hash(&name);
        match seen.get(&hash) {
            Some((other, first)) if *other != name => {
                let message = format!("the {what} `{name}` and `{other}` have the same hash {hash:x} in records");
                problems.add("name.collision", span, message, "rename one of them").note(*first, "the other one");
            }
            _ => {
                seen.insert(hash, (name, span));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::FileText;

    #[test]
    fn equal_hashes_of_different_names_are_found() {
        let names = ["verify.0", "dedupe.0", "verify.0", "tally"];
        let mut problems = Problems::default();
        let spanned = names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), Span::new(at, 1)));
        collisions(spanned, |name: &str| name.len() as u64, "tasks", &mut problems);
        let report = problems.into_report(&FileText::new("t", "abcd"));
        assert_eq!(report.problems().len(), 1);
        assert!(report.problems()[0].message.contains("`dedupe.0` and `verify.0`"));
    }
}
