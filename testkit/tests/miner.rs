//! The CPU miner against a pool that is scripted line by line.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_mining::{Difficulty, PreparedJob, Target, header_hash, wire};
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{EventTime, Offset};
use sluice_testkit::miner::{CpuMiner, CpuMinerConfig, Outcome};

const GUARD: Duration = Duration::from_secs(60);
const USER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080.rig";

/// A pool's end of one connection.
struct Pool {
    lines: std::io::Lines<BufReader<TcpStream>>,
    stream: TcpStream,
}

impl Pool {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Self { lines: BufReader::new(stream.try_clone().unwrap()).lines(), stream }
    }

    fn hear(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }

    fn say(&mut self, line: &Value) {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn answer(&mut self, request: &Value, result: Value) {
        self.say(&json!({ "id": request["id"], "result": result, "error": null }));
    }

    fn refuse(&mut self, request: &Value, code: i64, message: &str) {
        self.say(&json!({ "id": request["id"], "result": null, "error": [code, message, null] }));
    }

    fn call(&mut self, method: &str, params: Value) {
        self.say(&json!({ "id": null, "method": method, "params": params }));
    }

    fn notify(&mut self, job: &Job, clean: bool) {
        let params: Value = serde_json::from_str(&wire::notify_params(job, clean)).unwrap();
        self.call("mining.notify", params);
    }

    /// Answers configure, subscribe, authorize and extranonce.subscribe.
    fn greet(&mut self, extranonce1: &str) {
        for method in ["mining.configure", "mining.subscribe", "mining.authorize", "mining.extranonce.subscribe"] {
            let request = self.hear();
            assert_eq!(request["method"], json!(method));
            let result = match method {
                "mining.configure" => json!({ "version-rolling": true, "version-rolling.mask": "00ffe000" }),
                "mining.subscribe" => json!([[["mining.notify", "1"]], extranonce1, 8]),
                _ => json!(true),
            };
            self.answer(&request, result);
        }
    }

    /// The next share, as the pool would record it.
    fn share(&mut self, extranonce1: u32, mask: u32) -> (Value, String, Submission) {
        let request = self.hear();
        assert_eq!(request["method"], json!("mining.submit"), "{request}");
        let text = |place: usize| request["params"][place].as_str().unwrap_or_default().to_owned();
        let word = |place: usize| u32::from_str_radix(&text(place), 16).unwrap();
        assert_eq!(text(0), USER);
        let submission = Submission {
            extranonce1,
            extranonce2: u64::from_str_radix(&text(2), 16).unwrap(),
            ntime: word(3),
            nonce: word(4),
            version_bits: word(5),
            has_version_bits: true,
            version_mask: mask,
            ..Default::default()
        };
        (request.clone(), text(1), submission)
    }
}

fn job(id: u64) -> Job {
    Job {
        job_id: id,
        prev_hash: vec![id as u8; 32].into(),
        version: 0x2000_0000,
        version_mask: 0x1fff_e000,
        nbits: 0x1e00_ffff,
        ntime: 1_700_000_000 + id as u32,
        coinbase1: vec![1; 42].into(),
        coinbase2: vec![2; 60].into(),
        merkle_branch: vec![vec![3; 32].into()],
        ..Default::default()
    }
}

/// Hash of a share of a job, as the pool recomputes it.
fn hash(job: &Job, submission: &Submission) -> [u8; 32] {
    let prepared = PreparedJob::new(Offset::new(1), EventTime::now(), job.clone()).unwrap();
    header_hash(&prepared.header(submission))
}

fn start(listener: &TcpListener, hash_rate: u64) -> CpuMiner {
    let address = listener.local_addr().unwrap().to_string();
    CpuMiner::start(CpuMinerConfig { address, user: USER.into(), hash_rate, ..CpuMinerConfig::default() }).unwrap()
}

fn easy() -> Difficulty {
    Difficulty::from_units(4).unwrap()
}

#[test]
fn shares_meet_the_target_they_were_given_and_are_recorded_with_their_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let miner = start(&listener, 0);
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000a");
    pool.call("mining.set_difficulty", json!([serde_json::from_str::<Value>(&easy().to_string()).unwrap()]));
    pool.notify(&job(0x6a), true);
    let mut seen = std::collections::HashSet::new();
    let mut sent = Vec::new();
    for number in 0..6 {
        let (request, id, submission) = pool.share(0x0100_000a, 0x00ff_e000);
        let hash = hash(&job(0x6a), &submission);
        assert_eq!(id, "6a");
        assert!(easy().to_target().is_met_by(&hash), "a share below the difficulty");
        assert_eq!(submission.version_bits & !0x00ff_e000, 0, "only bits that the pool grants");
        assert!(seen.insert(hash), "the same header twice");
        sent.push((hash, submission));
        match number {
            4 => pool.refuse(&request, 21, "Job not found (=stale)"),
            5 => pool.answer(&request, json!(false)),
            _ => pool.answer(&request, json!(true)),
        }
    }
    let stats = miner.wait_until(GUARD, |stats| stats.accepted + stats.rejected.len() as u64 == 6).unwrap();
    assert_eq!((stats.accepted, stats.connections, stats.jobs, stats.authorized), (4, 1, 1, true));
    assert_eq!(stats.difficulty, Some(easy()));
    assert_eq!(stats.rejected["Job not found (=stale) (code 21)"], 1);
    assert_eq!(stats.rejected["answered false (code 20)"], 1);
    let (stats, shares) = miner.stop();
    assert_eq!(stats.submitted, shares.len() as u64);
    for ((hash, submission), share) in sent.iter().zip(&shares) {
        assert_eq!(&share.hash, hash);
        assert_eq!(share.extranonce1, submission.extranonce1.to_be_bytes());
        assert_eq!(share.extranonce2, submission.extranonce2.to_be_bytes());
        let version_bits = Some(submission.version_bits);
        assert_eq!((share.ntime, share.nonce, share.version_bits), (submission.ntime, submission.nonce, version_bits));
        assert_eq!(share.is_block, Target::from_compact(0x1e00_ffff).unwrap().is_met_by(hash));
    }
    let accepted = shares.iter().filter(|share| share.outcome == Outcome::Accepted).count() as u64;
    let unanswered = shares.iter().filter(|share| share.outcome == Outcome::Unanswered).count() as u64;
    assert_eq!((accepted, unanswered), (4, stats.unanswered));
}

/// A difficulty, an extranonce and a mask count from the next job on.
#[test]
fn what_the_pool_changes_counts_from_the_next_job_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let miner = start(&listener, 0);
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000a");
    pool.call("mining.set_difficulty", json!([serde_json::from_str::<Value>(&easy().to_string()).unwrap()]));
    pool.notify(&job(1), true);
    let (request, ..) = pool.share(0x0100_000a, 0x00ff_e000);
    pool.answer(&request, json!(true));
    let harder = Difficulty::from_units(1 << 8).unwrap();
    pool.call("mining.set_difficulty", json!([serde_json::from_str::<Value>(&harder.to_string()).unwrap()]));
    pool.call("mining.set_extranonce", json!(["0200000b", 8]));
    pool.call("mining.set_version_mask", json!(["00006000"]));
    pool.say(&json!({ "id": 77, "method": "mining.ping", "params": [] }));
    // Shares of the old job go on until the answer shows that the miner has read all of this.
    loop {
        let line = pool.hear();
        if line["id"] == json!(77) {
            assert_eq!(line["result"], json!("pong"));
            break;
        }
    }
    let (_, id, submission) = pool.share(0x0100_000a, 0x00ff_e000);
    assert_eq!(id, "1");
    assert!(easy().to_target().is_met_by(&hash(&job(1), &submission)));
    assert_eq!(miner.stats().difficulty, Some(easy()));
    pool.notify(&job(2), false);
    miner.wait_until(GUARD, |stats| stats.difficulty == Some(harder)).unwrap();
    let (_, submission) = std::iter::repeat_with(|| pool.share(0x0200_000b, 0x6000))
        .map(|(_, id, submission)| (id, submission))
        .find(|(id, _)| id == "2")
        .unwrap();
    assert!(harder.to_target().is_met_by(&hash(&job(2), &submission)));
    assert_eq!(submission.version_bits & !0x6000, 0);
}

#[test]
fn a_miner_comes_back_and_goes_where_it_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let miner = start(&listener, 0);
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000a");
    pool.call("mining.set_difficulty", json!([serde_json::from_str::<Value>(&easy().to_string()).unwrap()]));
    pool.notify(&job(1), true);
    pool.share(0x0100_000a, 0x00ff_e000);
    drop(pool);
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000c");
    let stats = miner.wait_until(GUARD, |stats| stats.connections == 2 && stats.authorized).unwrap();
    assert!(stats.unanswered > 0 && stats.submitted == stats.unanswered, "{stats:?}");
    assert!(stats.last_error.is_some());
    pool.call("client.reconnect", json!(["127.0.0.1", elsewhere.local_addr().unwrap().port(), 0]));
    let mut pool = Pool::accept(&elsewhere);
    for _ in 0..2 {
        let request = pool.hear();
        pool.answer(&request, json!([[], "00", 8]));
    }
    let request = pool.hear();
    assert_eq!(request["method"], json!("mining.authorize"));
    pool.refuse(&request, 24, "Unauthorized worker");
    let refused = |error: &String| error.contains("Unauthorized worker (code 24)");
    miner.wait_until(GUARD, |stats| stats.last_error.as_ref().is_some_and(refused)).unwrap();
    let mut pool = Pool::accept(&listener);
    assert_eq!(pool.hear()["method"], json!("mining.configure"), "back to the first address");
}

#[test]
fn a_miner_keeps_to_its_rate() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let miner = start(&listener, 5_000);
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000a");
    pool.notify(&job(1), true);
    let stats = miner.wait_until(GUARD, |stats| stats.hashes >= 2_000).unwrap();
    let most = begun.elapsed().as_secs_f64() * 5_000.0;
    assert!(stats.hashes as f64 <= most + 1.0, "{} hashes, {most} at most", stats.hashes);
    // Without a limit it goes on at once.
    miner.set_hash_rate(0);
    miner.wait_until(GUARD, |now| now.hashes > stats.hashes + 100_000).unwrap();
}

#[test]
fn an_observer_hears_of_every_share() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = CpuMinerConfig { address, user: USER.into(), keep_shares: false, ..CpuMinerConfig::default() };
    let (heard, shares) = channel();
    let miner = CpuMiner::observed(config, Box::new(move |share| heard.send(share.clone()).unwrap())).unwrap();
    let mut pool = Pool::accept(&listener);
    pool.greet("0100000a");
    pool.call("mining.set_difficulty", json!([serde_json::from_str::<Value>(&easy().to_string()).unwrap()]));
    pool.notify(&job(1), true);
    let (request, ..) = pool.share(0x0100_000a, 0x00ff_e000);
    pool.answer(&request, json!(true));
    assert_eq!(shares.recv_timeout(GUARD).unwrap().outcome, Outcome::Accepted);
    let (stats, kept) = miner.stop();
    assert!(kept.is_empty());
    assert_eq!(stats.submitted, 1 + shares.iter().count() as u64);
}
