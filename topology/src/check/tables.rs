//! Tables: each operator names one of each kind it needs, and each table is used.

use super::wiring::Wiring;
use crate::spec::{Problems, nearest, quoted_list};

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    for operator in 0..wiring.decl.operators.len() {
        lookups(wiring, operator, problems);
    }
    for group in &wiring.groups {
        one_of_each_kind(wiring, group, problems);
    }
    unused(wiring, problems);
}

fn lookups(wiring: &Wiring<'_>, index: usize, problems: &mut Problems) {
    let operator = wiring.operator(index);
    let name = &operator.name.value;
    let mut found: Vec<(&str, crate::spec::Span)> = Vec::new();
    let mut doubtful = false;
    for table in &operator.tables {
        let Some(declared) = wiring.table(&table.value).map(|at| &wiring.decl.tables[at]) else {
            let names = || wiring.decl.tables.iter().map(|table| table.name.value.as_str());
            let hint = match nearest(&table.value, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("declare it under `tables`; declared are {}", quoted_list(names())),
            };
            problems.add("table.unknown", table.span, format!("table `{}` is not declared", table.value), hint);
            doubtful = true;
            continue;
        };
        let Some(kind) = declared.kind else {
            doubtful = true;
            continue;
        };
        if !operator.kind.lookups.contains(&kind.name) {
            let message = format!("`{name}` has no use for table `{}` of kind `{}`", table.value, kind.name);
            let hint = format!("name tables of kind {} only", quoted_list(operator.kind.lookups.iter().copied()));
            problems.add("table.kind", table.span, message, hint);
        }
        if let Some((_, first)) = found.iter().find(|(other, _)| *other == kind.name) {
            let message = format!("`{name}` names two tables of kind `{}`", kind.name);
            problems.add("table.doubled", table.span, message, "keep one").note(*first, "the other one");
        }
        found.push((kind.name, table.span));
    }
    for lookup in operator.kind.lookups {
        if doubtful || found.iter().any(|(kind, _)| kind == lookup) {
            continue;
        }
        let fitting = wiring.decl.tables.iter().find(|table| table.kind.is_some_and(|kind| kind.name == *lookup));
        let hint = match fitting {
            Some(table) => format!("add `tables: [{}]`", table.name.value),
            None => format!("declare a table with `kind: {lookup}` under `tables` and name it in `tables: [...]`"),
        };
        let message = format!("`{name}` needs a table of kind `{lookup}`");
        problems.add("table.missing", operator.name.span, message, hint);
    }
}

/// Fused operators share their tables: one of each kind in a task.
fn one_of_each_kind(wiring: &Wiring<'_>, group: &[usize], problems: &mut Problems) {
    let mut first: Vec<(&str, usize, usize)> = Vec::new();
    let all = group.iter().flat_map(|&operator| wiring.operator(operator).tables.iter().map(move |it| (operator, it)));
    for (operator, reference) in all {
        let Some(index) = wiring.table(&reference.value) else { continue };
        let Some(kind) = wiring.decl.tables[index].kind else { continue };
        match first.iter().find(|(name, _, _)| *name == kind.name) {
            None => first.push((kind.name, index, operator)),
            Some((_, other, by)) if *other != index && *by != operator => {
                let other = &wiring.decl.tables[*other].name;
                let message = format!(
                    "`{}` and `{}` are both of kind `{}`, and used in one task",
                    reference.value, other.value, kind.name
                );
                let hint = "let the fused operators name the same table, or store the direct topic between them";
                problems.add("table.doubled", reference.span, message, hint).note(other.span, "the other table");
            }
            Some(_) => {}
        }
    }
}

fn unused(wiring: &Wiring<'_>, problems: &mut Problems) {
    let mentioned = |name: &str| wiring.decl.doubtful.iter().any(|it| it == name);
    for table in &wiring.decl.tables {
        let name = table.name.value.as_str();
        let mut operators = wiring.decl.operators.iter();
        let named = |it: &crate::spec::OperatorDecl| it.tables.iter().any(|used| used.value == name);
        // Where a name could not be resolved, this table may have been meant; there is a problem already.
        let misspelt = |it: &crate::spec::OperatorDecl| {
            let lacks = table.kind.is_some_and(|kind| it.kind.lookups.contains(&kind.name));
            lacks && it.tables.iter().all(|used| wiring.table(&used.value).is_none())
        };
        if table.kind.is_some() && !mentioned(name) && !operators.any(|it| named(it) || misspelt(it)) {
            let message = format!("nobody looks anything up in table `{name}`");
            problems.add("table.unused", table.name.span, message, "name it in an operator's `tables`, or remove it");
        }
    }
}
