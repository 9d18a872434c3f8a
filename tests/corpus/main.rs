//! The fuzz targets over their corpus, on any compiler (`fuzz/README.md`).

#![allow(clippy::unwrap_used, clippy::panic)]

mod mutate;
#[path = "../../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mutate::Mutator;
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
fn run(target: Target, data: &[u8], what: &dyn std::fmt::Display) {
    let caught = std::panic::catch_unwind(|| target(data));
    assert!(caught.is_ok(), "{what}: {:?}", data.escape_ascii().to_string());
}

/// Runs a target on `data`, on beginnings of it, and on copies with one byte changed: always the same ones.
fn replay(target: Target, data: &[u8], name: &str) {
    run(target, data, &name);
    let step = data.len().div_ceil(VARIANTS).max(1);
    for at in (0..data.len()).step_by(step) {
        run(target, &data[..at], &name);
        let mut changed = data.to_vec();
        for bits in [0x01, 0x80, 0xff] {
            changed[at] = data[at] ^ bits;
            run(target, &changed, &name);
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
fn line_reader() {
    corpus("line_reader");
}

#[test]
fn proxy_header() {
    corpus("proxy_header");
}

#[test]
fn record() {
    corpus("record");
}

#[test]
fn request() {
    corpus("request");
}

#[test]
fn session() {
    corpus("session");
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

/// Inputs of one target made of its corpus, as many as `SLUICE_FUZZ_RUNS` says (10 million). The same ones in each run,
/// unless `SLUICE_FUZZ_SEED` is another number.
fn fuzzed(name: &str, runs: u64) {
    let (_, target) = targets::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
    let seeds = files(&fuzz().join("corpus").join(name)).into_iter().map(|file| std::fs::read(file).unwrap()).collect();
    let mut mutator = Mutator::new(number("SLUICE_FUZZ_SEED", 1), seeds);
    let (begun, mut bytes) = (std::time::Instant::now(), 0);
    for run_number in 0..runs {
        let input = mutator.next_input();
        bytes += input.len() as u64;
        run(target, input, &format_args!("{name} input {run_number}"));
    }
    let (took, peak) = (begun.elapsed().as_secs(), peak_memory());
    println!("{name}: {runs} inputs, {bytes} bytes, {took} s, at most {} MiB resident", peak >> 20);
    assert!(peak < MEMORY, "{name}: {} MiB were resident", peak >> 20);
}

/// No target may make the process larger than this, bytes.
const MEMORY: u64 = 512 << 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// The most that was ever resident, bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Ten million inputs for the target that `SLUICE_FUZZ_TARGET` names, else for each of them (fuzz/README.md).
#[test]
#[ignore = "takes minutes a target"]
fn ten_million_inputs() {
    let wanted = std::env::var("SLUICE_FUZZ_TARGET").ok();
    let mut names = targets::ALL.map(|(name, _)| name).to_vec();
    names.retain(|name| wanted.as_ref().is_none_or(|wanted| wanted == name));
    assert!(!names.is_empty(), "no target is called {wanted:?}");
    for name in names {
        fuzzed(name, number("SLUICE_FUZZ_RUNS", 10_000_000));
    }
}

/// The first inputs of that run, in every run of the tests.
#[test]
fn mutations_of_what_miners_send() {
    for name in ["line_reader", "proxy_header", "request", "session"] {
        fuzzed(name, 2_000);
    }
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
    let seen: Vec<_> = read("session").map(|bytes| targets::play(&bytes)).collect();
    for (what, times) in [
        ("accepted shares", seen.iter().map(|seen| seen.accepted).sum::<usize>()),
        ("duplicates", seen.iter().map(|seen| seen.duplicates).sum()),
        ("stale shares", seen.iter().map(|seen| seen.stale).sum()),
        ("blocks", seen.iter().map(|seen| seen.blocks).sum()),
        ("sessions gone on with", seen.iter().map(|seen| seen.resumed).sum()),
        ("changes of difficulty", seen.iter().map(|seen| seen.difficulties.saturating_sub(1)).sum()),
        ("connections ended", seen.iter().map(|seen| seen.ended).sum()),
    ] {
        assert!(times > 0, "no session has {what}: {seen:?}");
    }
}
