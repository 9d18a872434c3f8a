//! The fuzz targets over their corpus, on any compiler (`fuzz/README.md`).

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use targets::Target;

/// How many places of a file are changed, and how many times it is cut short, at most.
const VARIANTS: usize = 300;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The input of which a target panics must be told: the panic alone does not show it.
fn run(target: Target, data: &[u8], what: &str) {
    let caught = std::panic::catch_unwind(|| target(data));
    assert!(caught.is_ok(), "{what}: {:?}", data.escape_ascii().to_string());
}

/// Runs a target on `data`, on beginnings of it, and on copies with one byte changed: always the same ones.
fn replay(target: Target, data: &[u8], name: &str) {
    run(target, data, name);
    let step = data.len().div_ceil(VARIANTS).max(1);
    for at in (0..data.len()).step_by(step) {
        run(target, &data[..at], name);
        let mut changed = data.to_vec();
        for bits in [0x01, 0x80, 0xff] {
            changed[at] = data[at] ^ bits;
            run(target, &changed, name);
        }
    }
}

fn corpus(name: &str) {
    let (_, target) = targets::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
    let files = files(&fuzz().join("corpus").join(name));
    assert!(!files.is_empty());
    for file in files {
        replay(target, &std::fs::read(&file).unwrap(), &file.display().to_string());
    }
}

#[test]
fn difficulty() {
    corpus("difficulty");
}

#[test]
fn getblocktemplate() {
    corpus("getblocktemplate");
}

#[test]
fn record() {
    corpus("record");
}

#[test]
fn template_body() {
    corpus("template_body");
}

#[test]
fn topology() {
    corpus("topology");
    // The file that comes with the program is the best seed, and is only kept once.
    let shipped = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("topology.yaml")).unwrap();
    targets::checked(&shipped).unwrap();
    replay(targets::topology, shipped.as_bytes(), "topology.yaml");
}

/// Nothing is fuzzed without being replayed, and the other way round.
#[test]
fn targets_corpus_and_binaries_are_the_same() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let files = files(&fuzz().join(folder));
        files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let known: BTreeSet<String> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(stems("corpus"), known);
    assert_eq!(stems("fuzz_targets"), known);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in known {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} has no [[bin]]");
    }
}

/// The seeds reach what they are meant to reach: each target's parser takes at least one of them.
#[test]
fn seeds_are_sound() {
    let read =
        |name: &str| files(&fuzz().join("corpus").join(name)).into_iter().map(|file| std::fs::read(file).unwrap());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_default();
    let templates = read("getblocktemplate").map(text);
    assert!(templates.filter(|json| sluice_mining::template::Template::from_gbt(json).is_ok()).count() >= 2);
    assert!(read("difficulty").map(text).filter_map(|text| sluice_mining::Difficulty::parse_wire(&text)).count() >= 3);
    let records = read("record").filter_map(|bytes| sluice_proto::decode(bytes.into()).ok());
    let kinds: BTreeSet<_> =
        records.filter_map(|record| record.body).map(|body| sluice_proto::RecordKind::of(&body)).collect();
    assert!(kinds.len() >= 13, "every kind of record: {kinds:?}");
}
