//! The reference of kinds and settings as Markdown, and the check of a registry against its own rules.

use std::fmt::Write;

use sluice_proto::RecordKind;

use crate::kind::{Keyed, Kind, Parallel, Registry, Role, SettingSpec, SettingType, TableKind};
use crate::spec::{default_value, expected, top_level_reference};

/// Keys of an operator that no port or setting may be called.
const RESERVED: [&str; 4] = ["kind", "tables", "partitions", "was"];

/// All sections of the file, kinds of operators, services and tables, with ports and settings, as Markdown.
pub fn reference(registry: &Registry) -> String {
    let mut out = String::from("# The topology file\n\n## Sections\n");
    for (section, settings) in top_level_reference() {
        let _ = write!(out, "\n### `{section}`\n\n");
        settings_table(&mut out, settings);
        if section == "ledger" {
            out.push_str(
                "\n`url`: `sqlite:PATH` or `postgres://USER@HOST/DATABASE`, default `sqlite:./data/ledger.db`; a \
                 password in it comes from a variable or a file.\n",
            );
        }
        if section == "caches.NAME" {
            out.push_str("\n`url` of one in Redis: `redis://[USER@]HOST:PORT[/DATABASE]`; a password likewise.\n");
        }
    }
    out.push_str(
        "\n## Operators and services\n\nEach may also have `was`, the name it was first known by: renamed so, it goes on with \
         its state, and what it writes goes on where it was. The line stays as long as the state does.\n",
    );
    registry.kinds.iter().for_each(|kind| kind_section(&mut out, kind));
    out.push_str("\n## Tables\n\nEach may also have `was`, the name it was first known by.\n");
    registry.tables.iter().for_each(|kind| table_section(&mut out, kind));
    out
}

/// The kinds with one line each, for a terminal.
pub fn overview(registry: &Registry) -> String {
    let rows = registry.kinds.iter().map(|kind| (kind.name, role(kind), kind.summary));
    let tables = registry.tables.iter().map(|kind| (kind.name, "table", kind.summary));
    let rows: Vec<_> = rows.chain(tables).collect();
    let width = rows.iter().map(|(name, _, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, role, summary)| format!("{name:width$}  {role:8}  {summary}\n")).collect()
}

/// What is wrong with a registry: a program that fails this has a mistake in one of its kinds.
pub fn registry_faults(registry: &Registry) -> Vec<String> {
    let mut faults = Vec::new();
    sorted(registry.kinds.iter().map(|kind| kind.name), "kinds", &mut faults);
    sorted(registry.tables.iter().map(|kind| kind.name), "tables", &mut faults);
    for kind in &registry.kinds {
        let ports = kind.inputs.iter().map(|port| port.name).chain(kind.outputs.iter().map(|port| port.name));
        let keys: Vec<&str> = ports.chain(kind.settings.iter().map(|setting| setting.name)).collect();
        for (at, key) in keys.iter().enumerate() {
            if RESERVED.contains(key) || keys[..at].contains(key) {
                faults.push(format!("kind {}: the key {key} is taken", kind.name));
            }
        }
        for lookup in kind.lookups {
            if registry.table(lookup).is_none() {
                faults.push(format!("kind {}: there is no table kind {lookup}", kind.name));
            }
        }
        if kind.role.build().is_some() && !kind.inputs.iter().any(|input| !input.optional) {
            faults.push(format!("kind {}: an operator needs an input that is not optional", kind.name));
        }
        defaults(kind.name, kind.settings, &mut faults);
    }
    for kind in &registry.tables {
        if kind.settings.iter().any(|setting| matches!(setting.name, "from" | "kind" | "was")) {
            faults.push(format!("table kind {}: a setting is called like a key of every table", kind.name));
        }
        defaults(kind.name, kind.settings, &mut faults);
    }
    faults
}

fn sorted<'a>(names: impl Iterator<Item = &'a str> + Clone, what: &str, faults: &mut Vec<String>) {
    for (first, second) in names.clone().zip(names.skip(1)) {
        if first >= second {
            faults.push(format!("{what}: {second} must not follow {first}"));
        }
    }
}

fn defaults(kind: &str, settings: &[SettingSpec], faults: &mut Vec<String>) {
    for setting in settings {
        let given = setting.default.filter(|default| !default.is_empty());
        match setting.ty {
            SettingType::Entries(inner) => {
                if setting.default != Some("") {
                    faults.push(format!("kind {kind}: {} is a list of mappings, always optional", setting.name));
                }
                defaults(kind, inner, faults);
            }
            ty if given.is_some_and(|default| default_value(ty, default).is_none()) => {
                faults.push(format!("kind {kind}: the default of {} is not {}", setting.name, expected(ty)));
            }
            _ => {}
        }
    }
}

fn role(kind: &Kind) -> &'static str {
    match kind.role {
        Role::Operator(_) | Role::World(_) | Role::Statistics(_) | Role::Effects(_) | Role::Export(_) => "operator",
        Role::Service => "service",
    }
}

fn kind_section(out: &mut String, kind: &Kind) {
    let _ = write!(out, "\n### `{}`\n\n{}\n\n", kind.name, kind.summary);
    let runs = match (&kind.role, kind.parallel) {
        (Role::Service, _) => "A service.",
        (_, Parallel::PerPartition) => "An operator; one task for each partition of its inputs.",
        (_, Parallel::Single) => "An operator; one task for all partitions of its inputs.",
    };
    out.push_str(runs);
    if kind.role.is_world() {
        out.push_str(" What it writes depends on answers from outside, so a replay does not repeat it.");
    }
    out.push('\n');
    if !kind.inputs.is_empty() || !kind.outputs.is_empty() {
        out.push_str("\n| port | | records | |\n|---|---|---|---|\n");
    }
    for port in kind.inputs {
        let notes = [(port.optional, "optional"), (port.priority, "priority")];
        let notes: Vec<&str> = notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| *note).collect();
        let _ = writeln!(out, "| `{}` | reads | {} | {} |", port.name, records(port.accepts), notes.join(", "));
    }
    for port in kind.outputs {
        let optional = if port.optional { "optional; " } else { "" };
        let _ =
            writeln!(out, "| `{}` | writes | {} | {optional}{} |", port.name, records(port.writes), keyed(port.keyed));
    }
    if !kind.lookups.is_empty() {
        let names: Vec<String> = kind.lookups.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(out, "\nLooks up in `tables` of kind {}.", names.join(", "));
    }
    if !kind.settings.is_empty() {
        out.push('\n');
        settings_table(out, kind.settings);
    }
    if !kind.state.is_empty() {
        let names: Vec<String> = kind.state.iter().map(|table| format!("`NAME.{}`", table.name)).collect();
        let _ = writeln!(out, "\nState: {}.", names.join(", "));
    }
}

fn table_section(out: &mut String, kind: &TableKind) {
    let _ =
        write!(out, "\n### `{}`\n\n{}\n\nMade `from` a topic of {}.\n", kind.name, kind.summary, records(kind.accepts));
    if !kind.settings.is_empty() {
        out.push('\n');
        settings_table(out, kind.settings);
    }
}

fn records(kinds: &[RecordKind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}

fn keyed(keyed: Keyed) -> &'static str {
    match keyed {
        Keyed::Session => "by session",
        Keyed::Account => "by account",
        Keyed::BlockHash => "by block hash",
        Keyed::Single => "one partition",
    }
}

fn settings_table(out: &mut String, settings: &[SettingSpec]) {
    out.push_str("| setting | value | default | meaning |\n|---|---|---|---|\n");
    for setting in settings {
        let default = match setting.default {
            None => "required".to_owned(),
            Some("") => "-".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let doc = setting.doc.replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {} | {default} | {doc} |", setting.name, expected(setting.ty));
    }
    for setting in settings {
        if let SettingType::Entries(inner) = setting.ty {
            let _ = write!(out, "\nEach of `{}`:\n\n", setting.name);
            settings_table(out, inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::registry;

    #[test]
    fn every_kind_port_and_setting_is_in_the_reference() {
        let (text, registry) = (reference(&registry()), registry());
        for kind in &registry.kinds {
            let ports = kind.inputs.iter().map(|port| port.name).chain(kind.outputs.iter().map(|port| port.name));
            for name in ports.chain(kind.settings.iter().map(|setting| setting.name)).chain([kind.name]) {
                assert!(text.contains(&format!("`{name}`")), "{name} of {} is missing", kind.name);
            }
        }
        for part in [
            "Each of `doors`:",
            "| `cert` | text",
            "### `bitcoin.nodes[]`",
            "`fee_bps`",
            "`NAME.seen`",
            "### `job_table`",
            "| `keep` |",
        ] {
            assert!(text.contains(part), "{part} is missing");
        }
        assert_eq!(overview(&registry).lines().count(), registry.kinds.len() + registry.tables.len());
    }

    #[test]
    fn the_test_kinds_have_no_faults_and_faults_are_found() {
        assert_eq!(registry_faults(&registry()), Vec::<String>::new());
        static LISTED: &[SettingSpec] =
            &[SettingSpec { name: "n", ty: SettingType::Networks, default: Some("[::1/200]"), doc: "A bad one." }];
        static WRONG: &[SettingSpec] = &[
            SettingSpec { name: "tables", ty: SettingType::Flag, default: Some("yes"), doc: "Wrong twice." },
            SettingSpec { name: "in", ty: SettingType::Addresses, default: Some("[127.0.0.1:1, here]"), doc: "Too." },
            SettingSpec { name: "list", ty: SettingType::Entries(LISTED), default: Some("[]"), doc: "Twice again." },
        ];
        let good = registry();
        let Some(verify) = good.kind("verify") else { unreachable!("it is there") };
        let wrong: &'static Kind = Box::leak(Box::new(Kind {
            name: "a",
            summary: "",
            inputs: verify.inputs,
            outputs: verify.outputs,
            lookups: &["nothing"],
            settings: WRONG,
            state: &[],
            parallel: Parallel::Single,
            role: Role::Service,
        }));
        let faults = registry_faults(&Registry { kinds: vec![verify, wrong], tables: Vec::new() });
        // Order, two keys, two tables (of `verify` too), two defaults, a list that is not optional and a default in it.
        assert_eq!(faults.len(), 9, "{faults:#?}");
    }
}
