//! Ports and topics: record types, missing and doubled wiring, direct topics.

use std::collections::BTreeSet;

use sluice_proto::RecordKind;

use super::wiring::{End, TopicUse, Wiring};
use crate::kind::Keyed;
use crate::spec::{Problems, TopicDecl};

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    for (index, (topic, ends)) in wiring.topics().enumerate() {
        record_types(wiring, index, problems);
        unwired(wiring, index, problems);
        writers(wiring, topic, ends, problems);
        doubled_readers(wiring, topic, ends, problems);
        single_partition(wiring, index, problems);
        if topic.direct() {
            direct(wiring, topic, ends, problems);
        }
    }
}

/// `tick and submission`, in a fixed order.
fn names(kinds: &BTreeSet<RecordKind>) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Readers and tables must take whatever the writers write.
fn record_types(wiring: &Wiring<'_>, index: usize, problems: &mut Problems) {
    let (topic, ends) = (&wiring.decl.topics[index], &wiring.uses[index]);
    let carried = wiring.records(index);
    let name = &topic.name.value;
    let mut mismatch = |span, who: String, accepts: &[RecordKind]| {
        let accepts: BTreeSet<_> = accepts.iter().copied().collect();
        let foreign: BTreeSet<_> = carried.difference(&accepts).copied().collect();
        if foreign.is_empty() {
            return;
        }
        let message = format!("{who} takes {}, but `{name}` carries {}", names(&accepts), names(&carried));
        let hint = format!("wire it to a topic of {} only", names(&accepts));
        let problem = problems.add("port.record_type", span, message, hint);
        for writer in &ends.writers {
            let output = wiring.output(writer);
            let kinds: BTreeSet<_> = output.writes.iter().copied().collect();
            if !kinds.is_disjoint(&foreign) {
                let operator = &wiring.operator(writer.operator).name.value;
                problem.note(writer.span, format!("`{operator}` writes {} here", names(&kinds)));
            }
        }
    };
    for reader in &ends.readers {
        let (port, operator) = (wiring.input(reader), &wiring.operator(reader.operator).name.value);
        mismatch(reader.span, format!("`{}` of `{operator}`", port.name), port.accepts);
    }
    for &table in &ends.feeds {
        let table = &wiring.decl.tables[table];
        if let (Some(kind), Some(from)) = (table.kind, &table.from) {
            mismatch(from.span, format!("table `{}`", table.name.value), kind.accepts);
        }
    }
}

/// Topics that nobody writes or reads.
fn unwired(wiring: &Wiring<'_>, index: usize, problems: &mut Problems) {
    let (topic, ends) = (&wiring.decl.topics[index], &wiring.uses[index]);
    if ends.doubtful {
        return;
    }
    let name = &topic.name.value;
    let read = !ends.readers.is_empty() || !ends.feeds.is_empty();
    let written = !ends.writers.is_empty();
    match (written, read) {
        (false, false) => {
            let message = format!("nobody writes or reads topic `{name}`");
            problems.add("topic.unused", topic.name.span, message, "wire it to an operator, or remove it");
        }
        (false, true) if !may_be_written(wiring, ends) => {
            let message = format!("nobody writes topic `{name}`, so its readers would wait for ever");
            let problem = problems.add(
                "topic.unwritten",
                topic.name.span,
                message,
                "wire an output to it, or remove its readers",
            );
            for reader in &ends.readers {
                problem.note(reader.span, format!("`{}` reads it", wiring.operator(reader.operator).name.value));
            }
        }
        (true, false) if !archived(topic) && !may_be_read(wiring, index) => {
            let message = format!("nobody reads topic `{name}`");
            let hint = if topic.direct() {
                "wire an input to it, or leave the output port out"
            } else {
                "wire an input to it, leave the output port out, or say `archive: true` to keep it for readers outside"
            };
            problems.add("topic.unread", topic.name.span, message, hint);
        }
        _ => {}
    }
}

fn archived(topic: &TopicDecl) -> bool {
    topic.located.settings.flag("archive")
}

/// Whether a port that is missing elsewhere, or wired to records that it does not take, should read the topic: that
/// is a problem of its own already.
fn may_be_read(wiring: &Wiring<'_>, index: usize) -> bool {
    let carried = wiring.records(index);
    let misfits = |operator: usize, port: usize| {
        let spec = &wiring.operator(operator).kind.inputs[port];
        let of_port = wiring.inputs_of(operator).into_iter().filter(|(_, wired)| wired.port == port);
        of_port.into_iter().any(|(topic, _)| wiring.records(topic).iter().any(|kind| !spec.accepts.contains(kind)))
    };
    wiring.decl.operators.iter().enumerate().any(|(at, operator)| {
        let mut ports = operator.kind.inputs.iter().enumerate();
        ports.any(|(port, spec)| {
            let astray = operator.missing_inputs.contains(&port) || misfits(at, port);
            astray && carried.iter().all(|kind| spec.accepts.contains(kind))
        })
    })
}

/// Whether a port that is missing elsewhere may be what should write the topic.
fn may_be_written(wiring: &Wiring<'_>, ends: &TopicUse) -> bool {
    wiring.decl.operators.iter().any(|operator| {
        let ports = operator.missing_outputs.iter().map(|&port| &operator.kind.outputs[port]);
        ports.into_iter().any(|port| {
            let fits = |end: &End| port.writes.iter().all(|kind| wiring.input(end).accepts.contains(kind));
            ends.readers.iter().all(fits)
        })
    })
}

/// One operator writes a topic; only services, and instances that share out the partitions, may do so together.
fn writers(wiring: &Wiring<'_>, topic: &TopicDecl, ends: &TopicUse, problems: &mut Problems) {
    let name = &topic.name.value;
    for (at, writer) in ends.writers.iter().enumerate() {
        let earlier = &ends.writers[..at];
        if let Some(same) = earlier.iter().find(|it| it.operator == writer.operator && it.port == writer.port) {
            let message = format!("the port is wired to `{name}` twice");
            problems.add("topic.doubled", writer.span, message, "name it once").note(same.span, "named here");
            continue;
        }
        let other = earlier.iter().find(|other| !may_share(wiring, other.operator, writer.operator));
        if let Some(other) = other {
            let (first, second) = (wiring.operator(other.operator), wiring.operator(writer.operator));
            let message = format!(
                "`{}` writes `{name}`, which `{}` writes already: readers could not rely on the order",
                second.name.value, first.name.value
            );
            let hint =
                "give each its own topic; only services, and instances that share out partitions, write together";
            problems.add("topic.doubled", writer.span, message, hint).note(other.span, "written here too");
        }
    }
    keys_agree(wiring, topic, ends, problems);
}

/// Whether two operators may write the same topic.
fn may_share(wiring: &Wiring<'_>, a: usize, b: usize) -> bool {
    a == b || (wiring.is_service(a) && wiring.is_service(b)) || super::assign::share_out(wiring, a, b)
}

/// All writers must pick the partition by the same thing.
fn keys_agree(wiring: &Wiring<'_>, topic: &TopicDecl, ends: &TopicUse, problems: &mut Problems) {
    let Some((first, rest)) = ends.writers.split_first() else { return };
    let keyed = wiring.output(first).keyed;
    if topic.partitions().unwrap_or(1) == 1 && !topic.direct() {
        return;
    }
    for writer in rest.iter().filter(|writer| wiring.output(writer).keyed != keyed) {
        let message = format!(
            "`{}` picks the partitions of `{}` by {}, but another writer by {}",
            wiring.operator(writer.operator).name.value,
            topic.name.value,
            key_name(wiring.output(writer).keyed),
            key_name(keyed)
        );
        let hint = "give each its own topic, or one partition to the topic";
        problems.add("copartition.key", writer.span, message, hint).note(first.span, "the other writer");
    }
}

/// What picks a partition, in words.
pub(crate) fn key_name(keyed: Keyed) -> &'static str {
    match keyed {
        Keyed::Session => "session",
        Keyed::Account => "account",
        Keyed::BlockHash => "block hash",
        Keyed::Single => "nothing (it expects one partition)",
    }
}

/// An operator reads a topic once.
fn doubled_readers(wiring: &Wiring<'_>, topic: &TopicDecl, ends: &TopicUse, problems: &mut Problems) {
    for (at, reader) in ends.readers.iter().enumerate() {
        let Some(first) = ends.readers[..at].iter().find(|other| other.operator == reader.operator) else { continue };
        let operator = &wiring.operator(reader.operator).name.value;
        let message = format!("`{operator}` reads `{}` twice", topic.name.value);
        problems.add("topic.doubled", reader.span, message, "wire it to one port").note(first.span, "read here too");
    }
}

/// Broadcast topics have one partition.
fn single_partition(wiring: &Wiring<'_>, index: usize, problems: &mut Problems) {
    let (topic, ends) = (&wiring.decl.topics[index], &wiring.uses[index]);
    let count = topic.partitions().unwrap_or(1);
    if topic.direct() || count == 1 {
        return;
    }
    let writer = ends.writers.iter().find(|end| wiring.output(end).keyed == Keyed::Single);
    let why = match (writer, ends.feeds.first()) {
        (Some(writer), _) => format!("`{}` writes to one partition only", wiring.operator(writer.operator).name.value),
        (None, Some(&table)) => format!("table `{}` is made from it", wiring.decl.tables[table].name.value),
        (None, None) => return,
    };
    let message = format!("`{}` has {count} partitions, but {why}", topic.name.value);
    problems.add("topic.broadcast", topic.span("partitions"), message, "set `partitions: 1`, or leave it out");
}

/// A direct topic leads from one operator to operators of the same task.
fn direct(wiring: &Wiring<'_>, topic: &TopicDecl, ends: &TopicUse, problems: &mut Problems) {
    let name = &topic.name.value;
    for setting in ["retention", "retention_bytes"] {
        if topic.located.settings.get(setting).is_some() {
            let message = format!("`{name}` is direct, so nothing of it is kept: `{setting}` has no meaning");
            let hint = format!("remove `{setting}`, or `direct: true` to store the topic");
            problems.add("direct.retention", topic.span(setting), message, hint);
        }
    }
    if archived(topic) {
        let message = format!("`{name}` is direct, so nothing of it is kept: `archive` has no meaning");
        problems.add("direct.retention", topic.span("archive"), message, "remove `archive`, or `direct: true`");
    }
    let service = ends.writers.iter().chain(&ends.readers).filter(|end| wiring.is_service(end.operator));
    for end in service {
        let operator = wiring.operator(end.operator);
        let message = format!("`{name}` is direct, but `{}` is a service and not part of a task", operator.name.value);
        let problem = problems.add("direct.service", end.span, message, "store the topic: remove `direct: true`");
        problem.note(topic.span("direct"), "direct");
    }
    for &table in &ends.feeds {
        let Some(from) = &wiring.decl.tables[table].from else { continue };
        let message =
            format!("`{name}` is direct, but table `{}` is made from it", wiring.decl.tables[table].name.value);
        let hint = "store the topic: remove `direct: true`";
        problems.add("direct.table", from.span, message, hint).note(topic.span("direct"), "direct");
    }
    let Some(writer) = ends.writers.first().filter(|end| !wiring.is_service(end.operator)) else { return };
    for reader in ends.readers.iter().filter(|end| !wiring.is_service(end.operator)) {
        let (from, to) = (wiring.per_partition(writer.operator), wiring.per_partition(reader.operator));
        if from != to {
            let how = |per_partition| if per_partition { "one task for each partition" } else { "one task for all" };
            let message = format!(
                "`{name}` cannot be direct: `{}` runs as {}, `{}` as {}",
                wiring.operator(writer.operator).name.value,
                how(from),
                wiring.operator(reader.operator).name.value,
                how(to)
            );
            let hint = "store the topic: remove `direct: true`";
            problems.add("direct.parallel", reader.span, message, hint).note(topic.span("direct"), "direct");
        }
    }
}
