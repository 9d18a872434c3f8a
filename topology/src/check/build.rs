//! From a wiring without problems to the graph.

use std::collections::BTreeSet;

use sluice_log::Retention;

use super::cycles::operator_edges;
use super::wiring::Wiring;
use crate::graph::{Graph, Group, Node, Table, Topic, Wire};
use crate::kind::Parallel;
use crate::settings::SettingValue;
use crate::spec::PortDecl;

/// The graph; `None` if the wiring has problems after all.
pub(crate) fn graph(wiring: &Wiring<'_>) -> Option<Graph> {
    let config = wiring.decl.config.clone()?;
    let mut topics = (0..wiring.decl.topics.len()).map(|index| topic(wiring, index)).collect::<Option<Vec<_>>>()?;
    let tables = wiring.decl.tables.iter().map(|table| {
        Some(Table {
            name: table.name.value.clone(),
            identity: table.identity().to_owned(),
            kind: table.kind?,
            topic: wiring.log_name(&table.from.as_ref()?.value),
            settings: table.located.settings.clone(),
        })
    });
    let tables = tables.collect::<Option<Vec<_>>>()?;
    let order = order(wiring)?;
    let nodes = order.iter().map(|&index| node(wiring, index)).collect();
    let groups = groups(wiring, &order, &topics)?;
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    Some(Graph { config, topics, tables, nodes, groups })
}

fn topic(wiring: &Wiring<'_>, index: usize) -> Option<Topic> {
    let declared = &wiring.decl.topics[index];
    let bytes = match declared.located.settings.get("retention_bytes") {
        Some(SettingValue::Integer(bytes)) => Some(*bytes),
        _ => None,
    };
    Some(Topic {
        name: declared.log_name(),
        generation: declared.generation(),
        partitions: wiring.partitions(index)?,
        retention: Retention { age: declared.retention(), bytes },
        direct: declared.direct(),
        records: wiring.records(index),
        keyed: wiring.keyed(index)?,
    })
}

/// Topological order: of those that nothing holds back, the first of the file.
fn order(wiring: &Wiring<'_>) -> Option<Vec<usize>> {
    let count = wiring.decl.operators.len();
    let mut incoming = vec![BTreeSet::new(); count];
    for (from, targets) in operator_edges(wiring).iter().enumerate() {
        for &to in targets {
            incoming[to].insert(from);
        }
    }
    let mut left: BTreeSet<usize> = (0..count).collect();
    let mut order = Vec::with_capacity(count);
    while !left.is_empty() {
        let next = left.iter().copied().find(|&it| incoming[it].is_disjoint(&left))?;
        left.remove(&next);
        order.push(next);
    }
    Some(order)
}

fn node(wiring: &Wiring<'_>, index: usize) -> Node {
    let operator = wiring.operator(index);
    let kind = operator.kind;
    let wires = |ports: &[PortDecl], name: &dyn Fn(usize) -> &'static str| {
        let wire = |port: &PortDecl| Wire { port: name(port.port), topic: wiring.log_name(&port.topic.value) };
        ports.iter().map(wire).collect()
    };
    Node {
        name: operator.name.value.clone(),
        identity: operator.identity().to_owned(),
        kind,
        inputs: wires(&operator.inputs, &|port| kind.inputs[port].name),
        outputs: wires(&operator.outputs, &|port| kind.outputs[port].name),
        tables: operator.tables.iter().map(|table| table.value.clone()).collect(),
        settings: operator.located.settings.clone(),
    }
}

/// Groups of operators in the order of their first ones; `topics` are in the order of the declarations.
fn groups(wiring: &Wiring<'_>, order: &[usize], topics: &[Topic]) -> Option<Vec<Group>> {
    let mut out: Vec<Group> = Vec::new();
    let mut seen = BTreeSet::new();
    for (place, &operator) in order.iter().enumerate() {
        if wiring.is_service(operator) || seen.contains(&operator) {
            continue;
        }
        let members = wiring.group_of(operator);
        seen.extend(members.iter().copied());
        let rest = order.iter().enumerate().skip(place);
        let operators = rest.filter(|(_, it)| members.contains(it)).map(|(place, _)| place).collect();
        let parallel = wiring.operator(operator).kind.parallel;
        let stored = |&member: &usize| {
            let inputs = wiring.inputs_of(member);
            inputs.into_iter().map(|(topic, _)| topic).find(|&topic| !topics[topic].direct)
        };
        let in_order = order.iter().filter(|it| members.contains(it));
        let of = in_order.filter_map(stored).map(|topic| topics[topic].partitions).next().unwrap_or(1);
        let range = members.iter().find_map(|&member| wiring.operator(member).partitions.as_ref());
        let partitions = match (parallel, range) {
            (Parallel::Single, _) => vec![0],
            (Parallel::PerPartition, Some(range)) => range.value.clone().collect(),
            (Parallel::PerPartition, None) => (0..of).collect(),
        };
        let first = wiring.operator(operator);
        let (name, identity) = (first.name.value.clone(), first.identity().to_owned());
        out.push(Group {
            name,
            identity,
            operators,
            parallel,
            partitions,
            of,
            generation: wiring.generation_of(members),
        });
    }
    Some(out)
}
