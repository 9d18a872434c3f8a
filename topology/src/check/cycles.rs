//! Cycles: operators must not feed each other in a circle. Services may: that is how difficulty reaches the gateway.

use std::collections::{BTreeSet, VecDeque};

use super::wiring::Wiring;
use crate::spec::Problems;

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    let edges = operator_edges(wiring);
    let circles = circles(&edges);
    for circle in &circles {
        report(wiring, circle, problems);
    }
    if !circles.is_empty() {
        return;
    }
    for circle in self::circles(&group_edges(wiring, &edges)) {
        let operators: Vec<usize> = circle.iter().filter_map(|&group| wiring.groups[group].first().copied()).collect();
        report_tasks(wiring, &operators, problems);
    }
}

/// For each operator, the operators that read what it writes, services left out.
pub(crate) fn operator_edges(wiring: &Wiring<'_>) -> Vec<BTreeSet<usize>> {
    let mut edges = vec![BTreeSet::new(); wiring.decl.operators.len()];
    for ends in &wiring.uses {
        let table_names = ends.feeds.iter().map(|&table| &wiring.decl.tables[table].name.value);
        let names: BTreeSet<&String> = table_names.collect();
        let lookups = wiring.decl.operators.iter().enumerate();
        let lookups = lookups.filter(|(_, operator)| operator.tables.iter().any(|table| names.contains(&table.value)));
        let readers: BTreeSet<usize> =
            ends.readers.iter().map(|end| end.operator).chain(lookups.map(|(index, _)| index)).collect();
        for writer in ends.writers.iter().map(|end| end.operator).filter(|&writer| !wiring.is_service(writer)) {
            edges[writer].extend(readers.iter().filter(|&&reader| !wiring.is_service(reader)));
        }
    }
    edges
}

/// The same between groups of fused operators; edges inside a group left out.
fn group_edges(wiring: &Wiring<'_>, edges: &[BTreeSet<usize>]) -> Vec<BTreeSet<usize>> {
    let mut group_of = vec![0; edges.len()];
    for (index, group) in wiring.groups.iter().enumerate() {
        group.iter().for_each(|&operator| group_of[operator] = index);
    }
    let mut out = vec![BTreeSet::new(); wiring.groups.len()];
    for (from, targets) in edges.iter().enumerate() {
        let targets = targets.iter().map(|&to| group_of[to]).filter(|&to| to != group_of[from]);
        out[group_of[from]].extend(targets);
    }
    out
}

/// A shortest circle through the first member of each knot of nodes that reach each other.
fn circles(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let mut done = BTreeSet::new();
    let mut out = Vec::new();
    let on_circles = tangled(edges);
    for &start in &on_circles {
        if done.contains(&start) {
            continue;
        }
        let Some(circle) = shortest_circle(edges, start) else { continue };
        let reached = reachable(edges, start);
        done.extend(reached.into_iter().filter(|&node| reachable(edges, node).contains(&start)));
        out.push(circle);
    }
    out
}

/// Nodes left once those without a way in are taken away again and again: those on circles, and those behind them.
fn tangled(edges: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut incoming = vec![0_usize; edges.len()];
    edges.iter().flatten().for_each(|&to| incoming[to] += 1);
    let mut free: Vec<usize> = (0..edges.len()).filter(|&node| incoming[node] == 0).collect();
    let mut left: BTreeSet<usize> = (0..edges.len()).collect();
    while let Some(node) = free.pop() {
        left.remove(&node);
        for &to in &edges[node] {
            incoming[to] -= 1;
            if incoming[to] == 0 {
                free.push(to);
            }
        }
    }
    left.into_iter().collect()
}

fn reachable(edges: &[BTreeSet<usize>], start: usize) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(node) = open.pop() {
        open.extend(edges[node].iter().filter(|&&to| seen.insert(to)));
    }
    seen
}

fn shortest_circle(edges: &[BTreeSet<usize>], start: usize) -> Option<Vec<usize>> {
    let mut from = vec![None; edges.len()];
    let mut open = VecDeque::from([start]);
    while let Some(node) = open.pop_front() {
        for &to in &edges[node] {
            if to == start {
                let mut path = vec![node];
                while let Some(before) = path.last().and_then(|&last| from[last]) {
                    path.push(before);
                }
                path.reverse();
                return Some(path);
            }
            if from[to].is_none() {
                from[to] = Some(node);
                open.push_back(to);
            }
        }
    }
    None
}

fn report(wiring: &Wiring<'_>, circle: &[usize], problems: &mut Problems) {
    let names: Vec<&str> = circle.iter().map(|&at| wiring.operator(at).name.value.as_str()).collect();
    let (Some(&first), Some(&last)) = (circle.first(), circle.last()) else { return };
    let path = format!("{} -> {}", names.join(" -> "), names.first().copied().unwrap_or_default());
    let closing = wiring
        .inputs_of(first)
        .into_iter()
        .find(|(topic, _)| wiring.uses[*topic].writers.iter().any(|end| end.operator == last));
    let span = closing.map_or(wiring.operator(first).name.span, |(_, port)| port.topic.span);
    let hint = "re-point one of the inputs: operators must not wait for what follows from their own output";
    problems.add("cycle", span, format!("the operators feed each other in a circle: {path}"), hint);
}

fn report_tasks(wiring: &Wiring<'_>, operators: &[usize], problems: &mut Problems) {
    let Some(&first) = operators.first() else { return };
    let names: Vec<&str> = operators.iter().map(|&at| wiring.operator(at).name.value.as_str()).collect();
    let message = format!(
        "the tasks that begin with these operators feed each other in a circle: {} -> {}",
        names.join(" -> "),
        wiring.operator(first).name.value
    );
    let hint = "store the direct topics that fuse the operators of one of them, or make the topics between them direct";
    problems.add("cycle.tasks", wiring.operator(first).name.span, message, hint);
}
