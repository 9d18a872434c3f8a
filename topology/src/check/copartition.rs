//! Co-partitioning: what one task reads must be cut alike, by count and by key. The hash is always Sluice's own.

use super::ports::key_name;
use super::wiring::Wiring;
use crate::spec::{Problems, Span};

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    for operator in 0..wiring.decl.operators.len() {
        if wiring.per_partition(operator) {
            inputs(wiring, operator, problems);
            direct_outputs(wiring, operator, problems);
        }
    }
    for group in wiring.groups.iter().filter(|group| group.len() > 1) {
        stored_inputs(wiring, group, problems);
    }
    declared_counts(wiring, problems);
}

/// The inputs of one operator.
fn inputs(wiring: &Wiring<'_>, operator: usize, problems: &mut Problems) {
    let inputs = wiring.inputs_of(operator);
    let name = &wiring.operator(operator).name.value;
    let Some(((first, first_port), rest)) = inputs.split_first() else { return };
    for (topic, port) in rest {
        compare(wiring, name, (*first, first_port.topic.span), (*topic, port.topic.span), problems);
    }
}

/// Compares two topics that one task reads.
fn compare(wiring: &Wiring<'_>, who: &str, first: (usize, Span), other: (usize, Span), problems: &mut Problems) {
    let name = |topic: usize| &wiring.decl.topics[topic].name.value;
    let (Some(count), Some(wanted)) = (wiring.partitions(other.0), wiring.partitions(first.0)) else { return };
    if count != wanted {
        let message = format!(
            "`{who}` reads `{}` with {count} partitions next to `{}` with {wanted}: records that belong together would not meet",
            name(other.0),
            name(first.0)
        );
        let hint = format!("give both the same number of `partitions` under `topics`, such as {wanted}");
        problems.add("copartition.count", other.1, message, hint).note(first.1, format!("{wanted} partitions"));
        return;
    }
    if count == 1 {
        return;
    }
    let (Some(key), Some(wanted)) = (wiring.keyed(other.0), wiring.keyed(first.0)) else { return };
    if key != wanted {
        let message = format!(
            "`{who}` reads `{}`, partitioned by {}, next to `{}`, partitioned by {}",
            name(other.0),
            key_name(key),
            name(first.0),
            key_name(wanted)
        );
        let hint = "read topics with the same key in one operator, or give both one partition";
        problems.add("copartition.key", other.1, message, hint).note(first.1, format!("by {}", key_name(wanted)));
    }
}

/// A record handed over directly stays in the partition: its key must be that of the input.
fn direct_outputs(wiring: &Wiring<'_>, operator: usize, problems: &mut Problems) {
    let Some((source, source_port)) = wiring.inputs_of(operator).first().copied() else { return };
    let (Some(key), Some(count)) = (wiring.keyed(source), wiring.partitions(source)) else { return };
    for (topic, port) in wiring.outputs_of(operator) {
        let declared = &wiring.decl.topics[topic];
        let written = wiring.operator(operator).kind.outputs[port.port].keyed;
        if declared.direct() && written != key && count > 1 {
            let message = format!(
                "`{}` cannot be direct: `{}` writes it by {}, but reads by {}, so its records belong to other partitions",
                declared.name.value,
                wiring.operator(operator).name.value,
                key_name(written),
                key_name(key)
            );
            let hint = "store the topic: remove `direct: true`";
            problems
                .add("copartition.direct", port.topic.span, message, hint)
                .note(source_port.topic.span, "read here");
        }
    }
}

/// What the operators of a fused task read from the log.
fn stored_inputs(wiring: &Wiring<'_>, group: &[usize], problems: &mut Problems) {
    if !group.iter().all(|&operator| wiring.per_partition(operator)) {
        return;
    }
    let mut first: Option<(usize, Span, usize)> = None;
    for &operator in group {
        for (topic, port) in wiring.inputs_of(operator) {
            if wiring.decl.topics[topic].direct() {
                continue;
            }
            match first {
                None => first = Some((topic, port.topic.span, operator)),
                Some((_, _, by)) if by == operator => {}
                Some((other, span, _)) => {
                    let name = &wiring.operator(operator).name.value;
                    compare(wiring, name, (other, span), (topic, port.topic.span), problems);
                }
            }
        }
    }
}

/// A count declared for a direct topic must be that of its tasks.
fn declared_counts(wiring: &Wiring<'_>, problems: &mut Problems) {
    for (index, topic) in wiring.decl.topics.iter().enumerate().filter(|(_, topic)| topic.direct()) {
        let (Some(declared), Some(count)) = (topic.partitions(), wiring.partitions(index)) else { continue };
        if declared != count {
            let message =
                format!("`{}` is direct inside tasks of {count} partitions, not {declared}", topic.name.value);
            let hint = format!("remove `partitions`, or set it to {count}");
            problems.add("copartition.count", topic.span("partitions"), message, hint);
        }
    }
}
