//! Which instance works on which partitions: each partition has exactly one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::wiring::Wiring;
use crate::spec::{Problems, Span, Spanned};

/// Instances of the same kind that read and write the same stored topics: they share out the partitions, once one of
/// them says `partitions`.
type Clusters = BTreeMap<(String, BTreeSet<usize>, BTreeSet<usize>), Vec<usize>>;

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    for group in &wiring.groups {
        agree_within(wiring, group, problems);
    }
    for ((_, inputs, _), members) in clusters(wiring) {
        let shares = members.iter().any(|&group| range(wiring, group).is_some());
        let unclear = |&group: &usize| wiring.groups[group].iter().any(|&it| wiring.operator(it).partitions_unclear);
        let count = inputs.first().and_then(|&topic| wiring.partitions(topic));
        if members.iter().any(unclear) {
            continue;
        }
        if let (true, Some(count)) = (shares, count) {
            covered(wiring, &members, count, problems);
        }
    }
}

/// Whether operators `a` and `b` belong to instances that share out the partitions of their inputs.
pub(crate) fn share_out(wiring: &Wiring<'_>, a: usize, b: usize) -> bool {
    let group_index = |operator| wiring.groups.iter().position(|group| group.contains(&operator));
    let (Some(a), Some(b)) = (group_index(a), group_index(b)) else { return false };
    let together = |members: &Vec<usize>| members.contains(&a) && members.contains(&b);
    let says = |group: usize| {
        wiring.groups[group].iter().any(|&it| {
            let operator = wiring.operator(it);
            operator.partitions.is_some() || operator.partitions_unclear
        })
    };
    a != b && (says(a) || says(b)) && clusters(wiring).values().any(together)
}

/// Groups that run once per partition, by what tells instances of the same thing.
fn clusters(wiring: &Wiring<'_>) -> Clusters {
    let mut out = Clusters::new();
    for (index, group) in wiring.groups.iter().enumerate() {
        if !group.iter().all(|&operator| wiring.per_partition(operator)) {
            continue;
        }
        let kinds: Vec<&str> = group.iter().map(|&operator| wiring.operator(operator).kind.name).collect();
        let key = (kinds.join("+"), wiring.stored_inputs(group), wiring.stored_outputs(group));
        out.entry(key).or_default().push(index);
    }
    out
}

/// The partitions that a group says it works on.
fn range<'a>(wiring: &Wiring<'a>, group: usize) -> Option<&'a Spanned<RangeInclusive<u32>>> {
    wiring.groups[group].iter().find_map(|&operator| wiring.operator(operator).partitions.as_ref())
}

/// Fused operators work on the same partitions.
fn agree_within(wiring: &Wiring<'_>, group: &[usize], problems: &mut Problems) {
    let mut given = group.iter().filter_map(|&operator| {
        let declared = wiring.operator(operator);
        declared.partitions.as_ref().map(|range| (&declared.name.value, range))
    });
    let Some((first, wanted)) = given.next() else { return };
    for (name, range) in given.filter(|(_, range)| range.value != wanted.value) {
        let message = format!("`{name}` runs in one task with `{first}`, but on other partitions");
        let hint = "give `partitions` on one operator of the task only";
        problems.add("partitions.fused", range.span, message, hint).note(wanted.span, format!("those of `{first}`"));
    }
}

/// Each of `count` partitions belongs to exactly one of the instances.
fn covered(wiring: &Wiring<'_>, members: &[usize], count: u32, problems: &mut Problems) {
    let mut owners: BTreeMap<u32, (usize, Span)> = BTreeMap::new();
    let mut twice = BTreeSet::new();
    for &group in members {
        let (range, span) = assigned(wiring, group, count);
        if *range.end() >= count {
            let message = format!("there are partitions 0 to {} only, not {}", count - 1, range.end());
            let hint = "correct the range, or the topic's number of partitions";
            problems.add("partitions.range", span, message, hint);
        }
        for partition in range.into_iter().take_while(|&partition| partition < count) {
            let Some((other, first)) = owners.insert(partition, (group, span)) else { continue };
            if twice.insert((other, group)) {
                let message = format!(
                    "partition {partition} is assigned to `{}` and `{}`",
                    head(wiring, other),
                    head(wiring, group)
                );
                let hint = "let the ranges of `partitions` not overlap";
                problems.add("partitions.twice", span, message, hint).note(first, "assigned here too");
            }
        }
    }
    let free: Vec<String> = (0..count).filter(|it| !owners.contains_key(it)).map(|it| it.to_string()).collect();
    if let (false, Some(&first)) = (free.is_empty(), members.first()) {
        let (_, span) = assigned(wiring, first, count);
        let (noun, verb) = if free.len() == 1 { ("partition", "is") } else { ("partitions", "are") };
        let message = format!("{noun} {} of {count} {verb} assigned to nobody", free.join(", "));
        let hint = format!("widen `partitions` of `{}`, or add an instance for them", head(wiring, first));
        problems.add("partitions.unassigned", span, message, hint);
    }
}

/// The partitions of a group and where the file says so; all, where it does not.
fn assigned(wiring: &Wiring<'_>, group: usize, count: u32) -> (RangeInclusive<u32>, Span) {
    match range(wiring, group) {
        Some(range) => (range.value.clone(), range.span),
        None => (0..=count.saturating_sub(1), head_span(wiring, group)),
    }
}

fn head<'a>(wiring: &Wiring<'a>, group: usize) -> &'a str {
    wiring.groups[group].first().map_or("?", |&operator| wiring.operator(operator).name.value.as_str())
}

fn head_span(wiring: &Wiring<'_>, group: usize) -> Span {
    wiring.groups[group].first().map_or(Span::default(), |&operator| wiring.operator(operator).name.span)
}
