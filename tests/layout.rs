//! The layout of the repository (DESIGN 11, docs/adr/0001): which crate may know which, and what each must hold to.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates in levels: each may depend on the levels above its own, never on its own or a lower one.
const LEVELS: [&[&str]; 6] = [
    &["sluice-proto", "sluice-failpoints", "sluice-rocks"],
    &["sluice-mining"],
    &["sluice-log", "sluice-state", "sluice-ledger", "sluice-series", "sluice-cache"],
    &["sluice-topology"],
    &["sluice-operators", "sluice-gateway", "sluice-jobmanager", "sluice-api"],
    &["sluice"],
];

/// Not in the levels: simulated parts. Whatever it needs, it may only know the two innermost crates, and only the binary
/// (whose commands `demo` and `swarm` run on it) and tests may know it.
const TESTKIT: &str = "sluice-testkit";

/// Not in the levels either: it runs parts of all levels against simulated ones, and nobody knows it.
const SIMULATION: &str = "sluice-simulation";

/// Crates that do no I/O of their own, and what would give it to them.
const PURE: [&str; 2] = ["sluice-mining", "sluice-operators"];
const IO_CRATES: [&str; 12] = [
    "bitcoincore-rpc",
    "crossterm",
    "mio",
    "poem",
    "redis",
    "reqwest",
    "rocksdb",
    "rusqlite",
    "socket2",
    "tokio",
    "tokio-postgres",
    "zmq",
];
const IO_CALLS: [&str; 10] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "EventTime::now",
    "rand::",
    "getrandom",
    "println!",
];

/// What lies at the top of the repository, beside the crates' folders.
const FOLDERS: [&str; 7] = ["benches", "deploy", "docs", "fuzz", "migrations", "src", "tests"];
const FILES: [&str; 11] = [
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "clippy.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "topology.yaml",
];

/// Lines of a source file before its tests: 500, and a tenth for the last function.
const LINES: usize = 550;

/// A member of the workspace, as cargo reads it.
struct Member {
    name: String,
    folder: PathBuf,
    description: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// Used by tests and benches only.
    dev: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn members() -> Vec<Member> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let members: Vec<Member> = metadata["packages"].as_array().unwrap().iter().map(member).collect();
    assert!(members.len() > LEVELS.len());
    members
}

fn member(package: &Value) -> Member {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let dependency = |found: &Value| Dependency { name: text(&found["name"]), dev: found["kind"] == "dev" };
    Member {
        name: text(&package["name"]),
        folder: Path::new(&text(&package["manifest_path"])).parent().unwrap().to_owned(),
        description: text(&package["description"]),
        dependencies: package["dependencies"].as_array().unwrap().iter().map(dependency).collect(),
    }
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&name))
}

/// What is wrong with a dependency of one crate of ours on another; `None` if nothing is.
fn fault(from: &str, to: &Dependency) -> Option<String> {
    let allowed = match (level(from), level(&to.name)) {
        (Some(from), Some(to)) => to < from,
        // The testkit is for tests, and for two commands of the binary.
        (Some(_), None) => to.name == TESTKIT && (to.dev || from == "sluice"),
        (None, Some(to)) => (from == TESTKIT && to < 2) || from == SIMULATION,
        (None, None) => from == SIMULATION && to.name == TESTKIT,
    };
    (!allowed).then(|| format!("{from} may not depend on {}", to.name))
}

#[test]
fn dependencies_point_one_way() {
    let members = members();
    let faults: Vec<String> = members
        .iter()
        .flat_map(|member| member.dependencies.iter().map(move |to| (member, to)))
        .filter(|(_, to)| to.name.starts_with("sluice"))
        .filter_map(|(member, to)| fault(&member.name, to))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}\nmove what is shared inwards, or lend it through a trait (docs/adr/0001)");
    let named: BTreeSet<&str> =
        LEVELS.iter().flat_map(|level| level.iter().copied()).chain([TESTKIT, SIMULATION]).collect();
    let found: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(found, named, "a crate without a level, or a level without its crate");
}

/// The test above can fail.
#[test]
fn a_dependency_the_wrong_way_is_noticed() {
    let on = |name: &str, dev| Dependency { name: name.to_owned(), dev };
    assert!(fault("sluice-mining", &on("sluice-log", false)).is_some());
    assert!(fault("sluice-log", &on("sluice-state", false)).is_some(), "neighbours do not know each other");
    assert!(fault("sluice-topology", &on("sluice-operators", true)).is_some(), "not even in tests");
    assert!(fault("sluice-gateway", &on(TESTKIT, false)).is_some());
    assert!(fault("sluice-gateway", &on(SIMULATION, true)).is_some());
    assert!(fault(TESTKIT, &on("sluice-log", false)).is_some());
    assert!(fault("sluice-other", &on("sluice-proto", false)).is_some());
    assert!(fault("sluice-gateway", &on(TESTKIT, true)).is_none());
    assert!(fault("sluice", &on(TESTKIT, false)).is_none());
}

#[test]
fn every_crate_is_described_and_inherits_the_lints() {
    for member in members() {
        let manifest = std::fs::read_to_string(member.folder.join("Cargo.toml")).unwrap();
        let mut lines = manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.find(|line| *line == "[lints]").unwrap_or_else(|| panic!("{} has no [lints]", member.name));
        assert_eq!(lines.next(), Some("workspace = true"), "{} does not inherit the workspace's lints", member.name);
        assert!(member.description.split(' ').count() >= 3, "{}: {:?}", member.name, member.description);
    }
}

#[test]
fn pure_crates_do_no_io() {
    for member in members().iter().filter(|member| PURE.contains(&member.name.as_str())) {
        let used = member.dependencies.iter().filter(|to| !to.dev).map(|to| to.name.as_str());
        let io: Vec<&str> = used.filter(|name| IO_CRATES.contains(name)).collect();
        assert!(io.is_empty(), "{} depends on {io:?}", member.name);
        for file in sources(&member.folder.join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = || text.lines().take(code_lines(&text)).filter(|line| !line.trim_start().starts_with("//"));
            let found: Vec<&str> = IO_CALLS.into_iter().filter(|call| code().any(|line| line.contains(call))).collect();
            assert!(found.is_empty(), "{} uses {found:?}: operators know records only (invariant S2)", file.display());
        }
    }
}

#[test]
fn every_folder_at_the_top_is_a_known_one() {
    let crates: BTreeSet<PathBuf> = members().into_iter().map(|member| member.folder).collect();
    let ignored = std::fs::read_to_string(root().join(".gitignore")).unwrap();
    let ignored: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('/')).collect();
    for entry in std::fs::read_dir(root()).unwrap().map(Result::unwrap) {
        let (name, path) = (entry.file_name().into_string().unwrap(), entry.path());
        let known = if path.is_dir() {
            crates.contains(&path) || FOLDERS.contains(&name.as_str())
        } else {
            FILES.contains(&name.as_str())
        };
        assert!(
            known || name.starts_with('.') || ignored.contains(&name.as_str()),
            "{name} has no place in the layout; if it belongs there, say so in this test and in ARCHITECTURE.md"
        );
    }
}

#[test]
fn no_source_file_is_too_long() {
    let files: Vec<PathBuf> = members().iter().flat_map(|member| sources(&member.folder.join("src"))).collect();
    assert!(files.len() > 50, "only {} source files were found", files.len());
    let lines = |file: &PathBuf| code_lines(&std::fs::read_to_string(file).unwrap());
    let long: Vec<_> = files.iter().map(|file| (file, lines(file))).filter(|(_, lines)| *lines > LINES).collect();
    assert!(long.is_empty(), "above {LINES} lines before their tests, split them: {long:#?}");
}

/// Rust files below `folder`, without those that hold nothing but tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_test = |path: &Path| path.file_stem().is_some_and(|stem| stem == "tests" || stem == "testing");
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let below = folders.iter().filter(|folder| !is_test(folder)).flat_map(|folder| sources(folder));
    files.iter().filter(|path| rust(path) && !is_test(path)).cloned().chain(below).collect()
}

/// Lines of a file before its tests.
fn code_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_inline = |line: &str| line.starts_with("mod ") && line.ends_with('{');
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && is_inline(pair[1]));
    tests.unwrap_or(lines.len())
}

#[test]
fn tests_are_not_counted_as_code() {
    assert_eq!(code_lines("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    assert_eq!(code_lines("a\n#[cfg(test)]\nmod tests;\nc\n"), 4);
    let operators = sources(&root().join("operators/src"));
    assert!(operators.iter().any(|path| path.ends_with("verify/mod.rs")));
    assert!(!operators.iter().any(|path| path.ends_with("verify/tests.rs")));
}

/// Names in backquotes that begin like those of the invariants' tests.
fn tests_named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let invariant =
        |name: &&str| ["s1_", "s2_", "b1_", "m1_", "m2_", "p1_"].iter().any(|start| name.starts_with(start));
    quoted.filter(invariant).map(str::to_owned).collect()
}

/// All Rust files below `folder`, those of tests included.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let (folders, files): (Vec<_>, Vec<_>) = entries.filter(|path| !is_hidden(path)).partition(|path| path.is_dir());
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}

/// The names that `is_there` in no Rust file.
fn without(mut names: BTreeSet<String>, is_there: impl Fn(&str, &str) -> bool) -> BTreeSet<String> {
    for file in rust_files(root()) {
        let text = std::fs::read_to_string(&file).unwrap();
        names.retain(|name| !is_there(&text, name));
    }
    names
}

fn is_test(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}("))
}

/// The rows of the tables of a text, without their heads.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    let is_row =
        |line: &&str| line.starts_with("| ") && !line.starts_with("| | trap") && !line.starts_with("| quirk |");
    text.lines().filter(is_row)
}

/// Each trap and each quirk has a test that is named after it, or says plainly that it is not this pool's yet.
#[test]
fn every_trap_and_quirk_has_its_tests() {
    let text = std::fs::read_to_string(root().join("docs/QUIRKS.md")).unwrap();
    let mut missing: BTreeSet<String> = BTreeSet::new();
    for row in rows(&text) {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
        let names: Vec<&str> = names.into_iter().filter(|name| !name.starts_with("mining.")).collect();
        let number = row.split('|').nth(1).and_then(|cell| cell.trim().parse::<u32>().ok());
        let kind = number.map_or("quirk_".to_owned(), |number| format!("trap_{number:02}_"));
        let named = names.iter().any(|name| name.contains(&kind)) || row.contains("| not yet");
        assert!(named, "no test is named after it: {row}");
        missing.extend(names.into_iter().map(str::to_owned));
    }
    let traps = rows(&text).filter(|row| row[2..].starts_with(char::is_numeric));
    assert_eq!(traps.count(), 20, "all traps are listed");
    let is_there = |text: &str, name: &str| is_test(text, name) || text.contains(&format!("{name}: \""));
    let missing = without(missing, is_there);
    assert!(missing.is_empty(), "docs/QUIRKS.md tells of tests that there are not: {missing:?}");
}

/// Each invariant has tests that name it, and ARCHITECTURE.md tells them by names that exist.
#[test]
fn every_invariant_has_its_tests() {
    let named = tests_named(&std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap());
    for invariant in ["s1_", "s2_", "b1_", "m1_", "p1_"] {
        assert!(named.iter().any(|name| name.starts_with(invariant)), "{invariant} is in ARCHITECTURE.md");
    }
    let missing = without(named, is_test);
    assert!(missing.is_empty(), "ARCHITECTURE.md tells of tests that there are not: {missing:?}");
}

/// Each failpoint stands in the code, in one place.
#[test]
fn every_failpoint_stands_in_one_place() {
    let files: Vec<PathBuf> = members().iter().flat_map(|member| sources(&member.folder.join("src"))).collect();
    let texts: Vec<String> = files
        .iter()
        .filter(|path| !path.starts_with(root().join("failpoints")))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for point in sluice_failpoints::Point::ALL {
        let used: usize = texts.iter().map(|text| text.matches(&format!("(Point::{point:?})")).count()).sum();
        assert_eq!(used, 1, "{point:?} stands in {used} places");
    }
}
