//! Directories that released versions have written (`tests/released`): today's program goes on with each of them, also
//! where its operators have been renamed since.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_log::{LogFollower, Partition, SharedLog};
use sluice_proto::v1::Reason;
use sluice_proto::{Body, EventTime};
use sluice_state::{StoredState, states_in};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::{CpuMiner, CpuMinerConfig};
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::common::{PATIENCE, SLUICE, Setup, address, blocks, open_log, read_topic, wait};

/// Some 131,000 hashes a block.
const NBITS: u32 = 0x1f00_8000;
const MINERS: u8 = 3;
/// What an archive holds of a pool's directory.
const KEPT: [&str; 6] = ["topology.yaml", "log", "state", "node", "ledger.db", "ledger.db-wal"];
/// Files of RocksDB that only tell how it was opened.
const LEFT_OUT: [&str; 3] = ["LOG", "LOCK", "LOG.old"];

/// What a released directory holds, as the program that wrote it saw it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Expected {
    /// Digests by task and table, 32 hex digits.
    digests: BTreeMap<String, BTreeMap<String, String>>,
    /// Accepted verdicts in the log.
    accepted: u64,
    /// Available and pending satoshis by account.
    balances: BTreeMap<String, (u64, u64)>,
    /// Status by hash.
    blocks: BTreeMap<String, String>,
    /// The next offset by partition.
    log: BTreeMap<String, u64>,
}

fn released() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released")
}

/// A pool and its node, which keeps its chain in the pool's directory.
fn start(exe: &str, topology: &str, fill: impl FnOnce(&Path)) -> (PoolProcess, SimNode) {
    let pool = PoolProcess::new(exe, topology).unwrap();
    fill(pool.dir());
    let dir = Some(pool.dir().join("node"));
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, dir, ..SimNodeConfig::default() }).unwrap();
    let setup = Setup::simulated(&node, 5, "0.0000005");
    let pool = setup.environment().into_iter().fold(pool, |pool, (name, value)| pool.env(name, value));
    (pool, node)
}

/// Lets miners work until there are this many blocks more; shares answered `true`, and those that were not answered.
fn mine(pool: &PoolProcess, gateway: &str, found: usize) -> (u64, u64) {
    let (stratum, before) = (pool.address(gateway).unwrap(), blocks(pool).len());
    let miner = |number| {
        CpuMiner::start(CpuMinerConfig {
            address: stratum.clone(),
            user: format!("{}.w{number}", address("regtest", number)),
            hash_rate: 60_000,
            ..CpuMinerConfig::default()
        })
        .unwrap()
    };
    let miners: Vec<CpuMiner> = (1..=MINERS).map(miner).collect();
    for miner in &miners {
        miner.wait_until(PATIENCE, |stats| stats.accepted >= 10).unwrap();
    }
    wait("blocks", || (blocks(pool).len() >= before + found).then_some(()));
    miners
        .into_iter()
        .map(CpuMiner::stop)
        .fold((0, 0), |(accepted, unanswered), (stats, _)| (accepted + stats.accepted, unanswered + stats.unanswered))
}

/// Waits until the slices of all shares are closed and every block that is deep enough is settled.
fn settle(pool: &PoolProcess) {
    let now = EventTime::now().millis();
    let log: SharedLog = LogFollower::open(pool.dir().join("log")).unwrap();
    wait("the slices of the last shares to close", || {
        let records = read_topic(&log, "share.tallies");
        let closed = records.iter().filter_map(|read| match read.body() {
            Body::SliceEnd(end) if end.slice * u64::from(end.slice_ms) >= now => Some((end.partition, end.partitions)),
            _ => None,
        });
        let closed: BTreeSet<(u32, u32)> = closed.collect();
        closed.iter().any(|(_, of)| closed.len() == *of as usize).then_some(())
    });
    wait("every block to be credited", || {
        let credited = |block: &serde_json::Value| block["credited"] == true || block["status"] == "orphaned";
        let tasks = pool.get_json("/health").unwrap()["tasks"].as_array().unwrap().clone();
        let idle = tasks.iter().all(|task| task["lag_records"].as_u64().unwrap() <= 2);
        (blocks(pool).iter().all(credited) && idle).then_some(())
    });
}

fn balances(pool: &PoolProcess) -> BTreeMap<String, (u64, u64)> {
    let of = |number| {
        let account = address("regtest", number);
        let miner = pool.get_json(&format!("/api/v1/miners/{account}")).unwrap();
        (account, (miner["available_sats"].as_u64().unwrap(), miner["pending_sats"].as_u64().unwrap()))
    };
    (1..=MINERS).map(of).collect()
}

fn statuses(pool: &PoolProcess) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    blocks(pool).iter().map(|block| (text(&block["hash"]), text(&block["status"]))).collect()
}

/// Digests of all states below a directory.
fn digests(dir: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let states = states_in(&dir.join("state")).unwrap().into_iter().map(|path| {
        let state = StoredState::open(&path).unwrap();
        let digests = state.tables().iter().map(|table| (table.spec.name.clone(), table.digest.to_string()));
        (path.file_name().unwrap().to_string_lossy().into_owned(), digests.collect())
    });
    states.collect()
}

/// Accepted verdicts, and the ends of all partitions.
fn log_of(dir: &Path) -> (u64, BTreeMap<String, u64>) {
    let log = open_log(dir);
    let is_accepted = |body: &Body| matches!(body, Body::Verdict(verdict) if verdict.reason() == Reason::Accepted);
    let accepted = read_topic(&log, "share.valid").iter().filter(|read| is_accepted(read.body())).count() as u64;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ends = runtime.block_on(async {
        let mut ends = BTreeMap::new();
        for topic in log.topics().await.unwrap() {
            for number in 0..topic.partitions {
                let place = Partition::new(topic.name.clone(), number);
                ends.insert(place.to_string(), log.bounds(&place).await.unwrap().next.get());
            }
        }
        ends
    });
    (accepted, ends)
}

#[test]
#[ignore = "makes an archive of a release: see tests/released/README.md"]
fn record_a_release() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let (exe, version) = (variable("SLUICE_RELEASE_EXE"), variable("SLUICE_RELEASE"));
    let (mut pool, node) = start(&exe, include_str!("topology.yaml"), |_| ());
    pool.start().unwrap();
    mine(&pool, "stratumd", 3);
    settle(&pool);
    // Confirmed blocks and, behind them, one that is not.
    node.mine(5).unwrap();
    wait("blocks to be confirmed", || statuses(&pool).values().any(|status| status == "confirmed").then_some(()));
    mine(&pool, "stratumd", 1);
    settle(&pool);
    let (balances, blocks) = (balances(&pool), statuses(&pool));
    assert!(pool.stop().unwrap().0.success());
    drop(node);
    let (accepted, log) = log_of(pool.dir());
    let expected = Expected { digests: digests(pool.dir()), accepted, balances, blocks, log };
    assert!(expected.balances.values().any(|(available, _)| *available > 0), "{expected:#?}");
    assert!(expected.balances.values().any(|(_, pending)| *pending > 0), "{expected:#?}");
    let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
    fs::write(released().join(format!("{version}.json")), text).unwrap();
    pack(pool.dir(), &released().join(format!("{version}.tar.zst")));
}

fn pack(dir: &Path, archive: &Path) {
    let mut tar = tar::Builder::new(zstd::Encoder::new(File::create(archive).unwrap(), 19).unwrap());
    tar.mode(tar::HeaderMode::Deterministic);
    let mut waiting: Vec<PathBuf> = KEPT.iter().map(PathBuf::from).collect();
    while let Some(name) = waiting.pop() {
        let path = dir.join(&name);
        let last = name.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| name.join(entry.unwrap().file_name())));
        } else if path.exists() && !LEFT_OUT.iter().any(|it| last == *it || last.starts_with("LOG.old")) {
            tar.append_path_with_name(&path, &name).unwrap();
        }
    }
    tar.into_inner().unwrap().finish().unwrap();
}

/// A released version: its directory is made in `dir`.
fn unpack(version: &str, dir: &Path) {
    let archive = File::open(released().join(format!("{version}.tar.zst"))).unwrap();
    tar::Archive::new(zstd::Decoder::new(archive).unwrap()).unpack(dir).unwrap();
}

fn versions() -> Vec<String> {
    let names = fs::read_dir(released()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let versions: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".tar.zst")?.to_owned())).collect();
    assert!(!versions.is_empty());
    versions
}

/// What operators, services and tables are called, and could be called.
const RENAMED: [(&str, &str); 7] = [
    ("  verify:     { kind: verify,", "  check:      { kind: verify, was: verify,"),
    ("  tally:      { kind: tally,", "  count:      { kind: tally, was: tally,"),
    ("  ledger:     { kind: ledger,", "  payoutd:    { kind: ledger, was: ledger,"),
    ("  stats:      { kind: stats,", "  figures:    { kind: stats, was: stats,"),
    ("  stratumd:   { kind: gateway,", "  door:       { kind: gateway, was: stratumd,"),
    ("  jobs:      { from: mining.jobs,", "  work:      { was: jobs, from: mining.jobs,"),
    ("tables: [jobs]", "tables: [work]"),
];

#[test]
fn s1_every_released_directory_is_gone_on_with() {
    for version in versions() {
        goes_on(&version, |topology| topology, "stratumd");
    }
}

#[test]
fn s1_a_renamed_topology_goes_on_with_every_released_directory() {
    let renamed = |topology: String| {
        RENAMED.iter().fold(topology, |text, (is, shall)| {
            assert_eq!(text.matches(is).count(), 1, "{is}");
            text.replace(is, shall)
        })
    };
    for version in versions() {
        goes_on(&version, renamed, "door");
    }
}

fn expected(version: &str) -> Expected {
    serde_json::from_slice(&fs::read(released().join(format!("{version}.json"))).unwrap()).unwrap()
}

/// `sluice plan`: its code and what it says.
fn plan(pool: &PoolProcess) -> (i32, serde_json::Value) {
    let output = pool.command(&["plan", "--json"]).output().unwrap();
    let planned = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), planned.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// How a task or topic of a plan stands.
fn standing<'a>(planned: &'a serde_json::Value, section: &str, name: &str) -> &'a str {
    let all = planned[section].as_array().unwrap();
    all.iter().find(|one| one["name"] == name).unwrap()["standing"].as_str().unwrap()
}

/// What does not fit is refused by `plan` and by `run`, and nothing is touched; what can be made again is, if it is told.
#[test]
fn p1_a_topology_that_does_not_fit_the_disk_is_refused_before_anything_is_touched() {
    let version = &versions()[0];
    let expected = expected(version);
    let (mut pool, _node) = start(SLUICE, "", |dir| unpack(version, dir));
    let good = fs::read_to_string(pool.dir().join("topology.yaml")).unwrap();
    let changed = |is: &str, shall: &str| {
        assert_eq!(good.matches(is).count(), 1, "{is}");
        good.replace(is, shall)
    };
    let untouched = |pool: &PoolProcess| {
        assert_eq!(log_of(pool.dir()), (expected.accepted, expected.log.clone()));
        assert_eq!(digests(pool.dir()), expected.digests);
    };
    let mut refused = |topology: &str, says: &[&str]| {
        pool.set_topology(topology).unwrap();
        let (code, planned) = plan(&pool);
        assert_eq!(code, 2, "{planned:#}");
        pool.spawn().unwrap();
        assert_eq!(pool.wait_exit().unwrap().code(), Some(1));
        let output = pool.output().unwrap();
        assert!(says.iter().all(|text| output.contains(text)), "{output}");
        planned
    };
    let planned =
        refused(&changed("share.tallies:      {}", "share.tallies:      { partitions: 2 }"), &["generation:"]);
    assert_eq!(standing(&planned, "topics", "share.tallies"), "partitions_changed");
    let split = changed("share.checked:      { direct: true }", "share.checked:      { partitions: 2, retention: 7d }");
    let planned = refused(&split, &["verify.0", "counted twice"]);
    assert_eq!(standing(&planned, "topics", "share.checked"), "new");
    assert_eq!(standing(&planned, "tasks", "verify.1"), "rebuilt");
    assert_eq!(standing(&planned, "tasks", "dedupe.1"), "refused");
    assert_eq!(standing(&planned, "tasks", "stats"), "kept");
    untouched(&pool);

    let pointer = pool.dir().join("state/stats/CURRENT");
    fs::write(&pointer, "MANIFEST-999999\n").unwrap();
    pool.set_topology(&good).unwrap();
    let (code, planned) = plan(&pool);
    assert_eq!((code, standing(&planned, "tasks", "stats")), (2, "rebuilt"), "{planned:#}");
    pool.spawn().unwrap();
    assert_eq!(pool.wait_exit().unwrap().code(), Some(1));
    let mut pool = pool.arg("--rebuild");
    pool.start().unwrap();
    wait("statistics to be made again", || {
        let shown = pool.get_json("/api/v1/pool").unwrap()["shares"]["accepted"].as_u64().unwrap();
        assert!(shown <= expected.accepted, "each share once: {shown}");
        (shown == expected.accepted).then_some(())
    });
    assert_eq!((balances(&pool), statuses(&pool)), (expected.balances, expected.blocks));
    let (code, planned) = plan(&pool);
    assert_eq!((code, standing(&planned, "tasks", "stats")), (0, "kept"), "beside the running pool: {planned:#}");
    let aside = |orphan: &serde_json::Value| orphan["path"] == "stats%aside-1";
    assert!(planned["orphans"].as_array().unwrap().iter().any(aside), "{planned:#}");
    assert!(pool.stop().unwrap().0.success());
}

fn goes_on(version: &str, change: impl Fn(String) -> String, gateway: &str) {
    let expected = expected(version);
    let (mut pool, node) = start(SLUICE, "", |dir| {
        unpack(version, dir);
        let topology = dir.join("topology.yaml");
        fs::write(&topology, change(fs::read_to_string(&topology).unwrap())).unwrap();
    });
    let (code, planned) = plan(&pool);
    let goes_on = |task: &serde_json::Value| task["standing"] == "kept" || task["standing"] == "upgraded";
    assert!(code == 0 && planned["tasks"].as_array().unwrap().iter().all(goes_on), "{version}: {planned:#}");
    assert_eq!(digests(pool.dir()), expected.digests, "{version}: the rows are read as they were written");
    assert_eq!(log_of(pool.dir()), (expected.accepted, expected.log), "{version}");

    pool.start().unwrap();
    assert_eq!((balances(&pool), statuses(&pool)), (expected.balances, expected.blocks.clone()), "{version}");
    let (accepted, unanswered) = mine(&pool, gateway, 1);
    settle(&pool);
    node.mine(6).unwrap();
    let old = expected.blocks.keys().collect::<BTreeSet<_>>();
    wait("all blocks to be settled", || {
        let now = statuses(&pool);
        assert!(now.len() > old.len() && old.iter().all(|hash| now.contains_key(*hash)), "{version}: {now:?}");
        now.values().all(|status| status == "confirmed" || status == "orphaned").then_some(())
    });
    let shown = pool.get_json("/api/v1/pool").unwrap()["shares"]["accepted"].as_u64().unwrap();
    assert!(pool.stop().unwrap().0.success(), "{}", pool.output().unwrap());

    // Read from the first record on, over both programs: a gap or a broken lane is an error.
    let (counted, _) = log_of(pool.dir());
    let more = counted - expected.accepted;
    assert!((accepted..=accepted + unanswered).contains(&more), "{version}: {more} of {accepted} and {unanswered}");
    assert_eq!(shown, counted, "{version}: statistics count each share once");
    let tasks: BTreeSet<String> = digests(pool.dir()).into_keys().collect();
    assert_eq!(tasks, expected.digests.into_keys().collect(), "{version}: no state began anew");
    let store = sluice_ledger::open(&format!("sqlite:{}", pool.dir().join("ledger.db").display())).unwrap();
    assert!(store.trial_balance().unwrap().is_sound());
    assert!(store.verify().unwrap().findings.is_empty(), "{version}");
}
