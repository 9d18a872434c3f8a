//! The folders, the list of kinds and the README say the same.

use std::path::Path;

use sluice_operators::{KINDS, TABLES};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn each_folder_is_a_registered_operator() {
    let folders = std::fs::read_dir(here().join("src")).unwrap().map(Result::unwrap);
    let mut folders: Vec<String> = folders
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name != "tables" && name != "testing")
        .collect();
    folders.sort();
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, folders, "the list is sorted by name and has every folder once");
    for folder in &folders {
        let tests = std::fs::read_to_string(here().join("src").join(folder).join("tests.rs")).unwrap();
        assert!(tests.contains("#[test]"), "{folder} has no tests");
    }
}

#[test]
fn each_table_has_its_file() {
    let files = std::fs::read_dir(here().join("src/tables")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut files: Vec<String> = files.map(|name| name.into_string().unwrap().replace(".rs", "")).collect();
    files.retain(|name| name != "mod");
    files.sort();
    assert_eq!(TABLES.iter().map(|table| table.name).collect::<Vec<_>>(), files);
}

/// Each kind has one line in the README: its name, its ports, and what it does, as the code says it.
#[test]
fn the_readme_lists_every_kind() {
    let readme = std::fs::read_to_string(here().join("README.md")).unwrap();
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `")).collect();
    let ports = |names: Vec<&str>| match names.is_empty() {
        true => "-".to_owned(),
        false => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    let kinds = KINDS.iter().map(|kind| {
        let inputs = ports(kind.inputs.iter().map(|port| port.name).collect());
        let outputs = ports(kind.outputs.iter().map(|port| port.name).collect());
        format!("| `{}` | {inputs} | {outputs} | {} |", kind.name, kind.summary)
    });
    let tables = TABLES.iter().map(|table| format!("| `{}` | {} |", table.name, table.summary));
    assert_eq!(rows, kinds.chain(tables).collect::<Vec<_>>());
}
