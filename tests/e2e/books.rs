//! What must be true of a pool's books after crashes: counted from what miners were answered, against the log and the
//! ledger (invariants S1, B1, M1, P1).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use bitcoin::hashes::Hash;
use sluice_log::SharedLog;
use sluice_proto::v1::{Reason, Submission, Verdict};
use sluice_proto::{Body, EventTime, hash32, hash64};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::{CpuMiner, Outcome, Share};
use sluice_testkit::simnode::SimNode;

use crate::common::{PATIENCE, Read, follow_log, open_log, read_topic, wait};
use crate::crash::miner;

/// As many blocks at least are found before the books are closed.
const BLOCKS: u64 = 3;

/// What tells a share apart from all others.
type Key = (u64, u32, u64, u32, u32, Option<u32>);

/// What a miner knows of a share that it sent.
#[derive(Debug)]
pub struct Sent {
    key: Key,
    /// The user that it mined as.
    user: String,
    outcome: Outcome,
}

/// All that a miner has sent; it is stopped.
pub fn sent_by(miner: CpuMiner) -> Vec<Sent> {
    let user = miner.user().to_owned();
    let (_, shares) = miner.stop();
    let sent = |share: Share| Sent { key: key_of_share(&share), user: user.clone(), outcome: share.outcome };
    shares.into_iter().map(sent).collect()
}

/// Lets a miner find some blocks: without them there is no money to compare. Returns what it has sent.
fn blocks_found(stratum: &str) -> Vec<Sent> {
    let miner = miner(stratum, 1);
    miner.wait_until(PATIENCE, |stats| stats.blocks >= BLOCKS).unwrap();
    sent_by(miner)
}

/// What a swarm was answered `true`, from its record (`Plan::record`).
pub fn answered_to_a_swarm(record: &Path) -> Vec<Sent> {
    let text = std::fs::read_to_string(record).unwrap();
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [job, one, two, ntime, nonce, bits, user] = words[..] else { panic!("{line:?}") };
            let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
            let short = |word: &str| u32::from_str_radix(word, 16).unwrap();
            let bits = (bits != "-").then(|| short(bits));
            let key = (hex(job), short(one), hex(two), short(ntime), short(nonce), bits);
            Sent { key, user: user.to_owned(), outcome: Outcome::Accepted }
        })
        .collect()
}

/// Lets a miner find some blocks, waits until all is counted that was sent before now, stops the pool and compares
/// everything with everything; how many of `sent` were accepted. The node's chain grows until every block is buried.
pub fn close(pool: &mut PoolProcess, node: &SimNode, sent: &mut Vec<Sent>) -> usize {
    let stratum = pool.address("stratumd").unwrap();
    close_parts(pool, &stratum, node, sent, || ())
}

/// As [`close`], of a pool in several processes: `pool` has ledger and API, `stratum` is a gateway's. `stop_others` ends the
/// other processes and brings their states to those of `pool`.
pub fn close_parts(
    pool: &mut PoolProcess,
    stratum: &str,
    node: &SimNode,
    sent: &mut Vec<Sent>,
    stop_others: impl FnOnce(),
) -> usize {
    sent.extend(blocks_found(stratum));
    settle(pool, node);
    let (status, _) = pool.stop().unwrap();
    assert!(status.success(), "{}", pool.output().unwrap());
    stop_others();
    let log = open_log(pool.dir());
    let valid = counted_once(&log, sent);
    tallied(&log, &valid);
    let found = blocks_are_all_there(&log, node);
    drop(log);
    database_agrees(pool.dir(), found);
    replayed(pool);
    sent.iter().filter(|sent| sent.outcome == Outcome::Accepted).count()
}

/// S2, M1: outputs, states and the ledger of a stopped pool are what the program makes of the topics again. Returns what
/// it says.
pub fn replayed(pool: &PoolProcess) -> serde_json::Value {
    let output = pool.command(&["replay", "--verify", "--json"]).output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "S2: {said}\n{log}");
    serde_json::from_str(&said).unwrap()
}

/// Waits until every slice with a share is closed, every found block is confirmed or orphaned and everything is read.
fn settle(pool: &PoolProcess, node: &SimNode) {
    let now = EventTime::now().millis();
    let log = follow_log(pool.dir());
    wait("the slices of the last shares to close", || {
        let records = read_topic(&log, "share.tallies");
        let closed = records.iter().filter_map(|read| match read.body() {
            Body::SliceEnd(end) if end.slice * u64::from(end.slice_ms) >= now => Some((end.partition, end.partitions)),
            _ => None,
        });
        let closed: BTreeSet<(u32, u32)> = closed.collect();
        closed.iter().any(|(_, of)| closed.len() == *of as usize).then_some(())
    });
    drop(log);
    // As many blocks on top as maturity asks for, of a miner elsewhere.
    node.mine(6).unwrap();
    wait("every block to be settled and credited", || {
        let blocks = crate::common::blocks(pool);
        let settled = |block: &serde_json::Value| match block["status"].as_str().unwrap() {
            "confirmed" => block["credited"] == true,
            status => status == "orphaned" || status == "refused",
        };
        let tasks = pool.get_json("/health").unwrap()["tasks"].as_array().unwrap().clone();
        let idle = tasks.iter().all(|task| task["name"] != "ledger" || task["lag_records"] == 0);
        (!blocks.is_empty() && blocks.iter().all(settled) && idle).then_some(())
    });
}

fn key_of_share(share: &Share) -> Key {
    let word = |bytes: &[u8]| bytes.iter().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    let job = u64::from_str_radix(&share.job, 16).unwrap();
    let extranonce1 = u32::try_from(word(&share.extranonce1)).unwrap();
    (job, extranonce1, word(&share.extranonce2), share.ntime, share.nonce, share.version_bits)
}

fn key_of_submission(it: &Submission) -> Key {
    let bits = it.has_version_bits.then_some(it.version_bits);
    (it.job_id, it.extranonce1, it.extranonce2, it.ntime, it.nonce, bits)
}

/// Where a submission stands: hash of the topic, partition, offset.
type Place = (u32, u32, u64);

/// The topics of the shares, one for each generation.
fn generations(log: &SharedLog) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let topics = runtime.block_on(log.topics()).unwrap();
    let names = topics.iter().map(|topic| topic.name.to_string());
    names.filter(|name| name.starts_with("share.submissions")).collect()
}

/// S1: each share answered `true` stands in the log once and has one verdict, which is "accepted" and names the worker
/// that sent it. Returns all accepted verdicts.
fn counted_once(log: &SharedLog, sent: &[Sent]) -> Vec<Read> {
    let mut at: HashMap<Key, Vec<Place>> = HashMap::new();
    for topic in generations(log) {
        for read in read_topic(log, &topic) {
            let copied = read.envelope.from.unwrap().task == hash64("sluice.rescale");
            if let (Body::Submission(submission), false) = (read.body(), copied) {
                let place = (hash32(&topic), read.partition, read.offset.get());
                at.entry(key_of_submission(submission)).or_default().push(place);
            }
        }
    }
    let valid = read_topic(log, "share.valid");
    let mut verdicts: HashMap<Place, &Verdict> = HashMap::new();
    for read in &valid {
        let verdict = verdict(read);
        assert_eq!(verdict.reason(), Reason::Accepted);
        let topic = read.envelope.from.unwrap().source_topic;
        let before = verdicts.insert((topic, verdict.origin_partition, verdict.origin_offset), verdict);
        assert!(before.is_none(), "S1: a share is counted twice, answered or not: {verdict:?}");
    }
    for sent in sent {
        let places = at.get(&sent.key).map(Vec::as_slice).unwrap_or_default();
        match sent.outcome {
            Outcome::Accepted => {
                let [place] = places else {
                    panic!("S1: a share answered true stands in the log {} times: {sent:?}", places.len())
                };
                let verdict = verdicts.get(place);
                let verdict = verdict.unwrap_or_else(|| panic!("S1: a share answered true is not counted: {sent:?}"));
                assert_eq!(
                    user(&verdict.account, &verdict.worker),
                    sent.user,
                    "S1: it counts for another one: {sent:?}"
                );
            }
            Outcome::Rejected(_) => {
                assert!(places.iter().all(|place| !verdicts.contains_key(place)), "refused and counted: {sent:?}");
            }
            // It may count or not.
            Outcome::Unanswered => {}
        }
    }
    valid
}

fn user(account: &str, worker: &str) -> String {
    if worker.is_empty() { account.to_owned() } else { format!("{account}.{worker}") }
}

fn verdict(read: &Read) -> &Verdict {
    match read.body() {
        Body::Verdict(verdict) => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

/// Tallies hold exactly the accepted verdicts, worker by worker: number and work.
fn tallied(log: &SharedLog, valid: &[Read]) {
    let mut expected: BTreeMap<(String, String), (u64, u128)> = BTreeMap::new();
    for read in valid {
        let verdict = verdict(read);
        let sum = expected.entry((verdict.account.clone(), verdict.worker.clone())).or_default();
        sum.0 += 1;
        sum.1 += (u128::from(verdict.work_hi) << 64) | u128::from(verdict.work_lo);
    }
    let mut counted: BTreeMap<(String, String), (u64, u128)> = BTreeMap::new();
    for read in read_topic(log, "share.tallies") {
        if let Body::Tally(tally) = read.body() {
            let sum = counted.entry((tally.account.clone(), tally.worker.clone())).or_default();
            for at in &tally.accepted {
                sum.0 += at.shares;
                sum.1 += (u128::from(at.work_hi) << 64) | u128::from(at.work_lo);
            }
        }
    }
    assert_eq!(counted, expected);
}

/// B1: each candidate became a block, each block was sent, and the node knows each. Returns the blocks that it took.
fn blocks_are_all_there(log: &SharedLog, node: &SimNode) -> BTreeSet<[u8; 32]> {
    let hashes = |topic: &str, of: fn(&Body) -> Option<[u8; 32]>| -> BTreeSet<[u8; 32]> {
        read_topic(log, topic).iter().filter_map(|read| of(read.body())).collect()
    };
    let candidates = hashes("block.candidates", |body| match body {
        Body::Candidate(it) => Some(sluice_mining::header_hash(it.header[..].try_into().unwrap())),
        _ => None,
    });
    let solved = hashes("block.solved", |body| match body {
        Body::SolvedBlock(it) => Some(it.hash[..].try_into().unwrap()),
        _ => None,
    });
    let outcomes = hashes("block.outcomes", |body| match body {
        Body::BlockOutcome(it) => Some(it.hash[..].try_into().unwrap()),
        _ => None,
    });
    assert!(candidates.len() as u64 >= BLOCKS, "there were blocks: {}", candidates.len());
    assert_eq!(candidates, solved, "B1: each candidate is made a block");
    assert_eq!(candidates, outcomes, "B1: each block is sent and followed");
    let known: BTreeSet<[u8; 32]> = node.accepted_blocks().iter().map(|block| block.hash.to_byte_array()).collect();
    assert_eq!(candidates, known, "B1: the node has each block");
    known
}

/// M1: the ledger is sound, has each block once, and is what a new ledger makes of the log.
fn database_agrees(dir: &Path, found: BTreeSet<[u8; 32]>) {
    let store = sluice_ledger::open(&format!("sqlite:{}", dir.join("ledger.db").display())).unwrap();
    assert!(store.trial_balance().unwrap().is_sound());
    let verified = store.verify().unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    let rows = store.blocks(None, 10_000).unwrap();
    assert_eq!(rows.iter().map(|row| row.hash).collect::<BTreeSet<_>>(), found);
    assert_eq!(rows.len(), found.len(), "no block twice");
}
