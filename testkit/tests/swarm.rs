//! The swarm against a pool of a few lines that says `true` to everything, or cannot even do that: what a pool gets
//! wrong has to be seen.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::swarm::{Load, Phase, Plan, run};

/// A guard against hanging, not a measure.
const GUARD: Duration = Duration::from_secs(120);

/// What a pool does with a line.
type Answer = fn(&Value) -> Vec<Value>;

/// A pool on a free port; it lives as long as the test's process.
fn pool(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(&stream, answer));
        }
    });
    address
}

fn serve(stream: &TcpStream, answer: Answer) {
    let mut lines = BufReader::new(stream).lines();
    let mut out = stream;
    while let Some(Ok(line)) = lines.next() {
        let request: Value = serde_json::from_str(&line).unwrap();
        for message in answer(&request) {
            if writeln!(out, "{message}").is_err() {
                return;
            }
        }
    }
}

/// Logs in everybody and gives out a job that is hard to make a block of.
fn log_in(request: &Value) -> Vec<Value> {
    let id = &request["id"];
    // Another order of keys than Sluice's own, and spaces nowhere or everywhere: that is up to the pool.
    let reply = |result: Value| json!({ "error": null, "result": result, "id": id });
    let call = |method: &str, params: Value| json!({ "params": params, "id": null, "method": method });
    match request["method"].as_str().unwrap() {
        "mining.configure" => vec![reply(json!({ "version-rolling": true, "version-rolling.mask": "1fffe000" }))],
        "mining.subscribe" => vec![reply(json!([[["mining.notify", "1"]], "00ab", 4]))],
        "mining.authorize" => vec![
            reply(json!(true)),
            call("mining.set_difficulty", json!([0.000_000_1])),
            call("client.show_message", json!(["hello"])),
            call(
                "mining.notify",
                json!(["5", "0".repeat(64), "01", "02", [], "20000000", "1d00ffff", "69338fc9", true]),
            ),
        ],
        _ => vec![],
    }
}

fn plan(target: SocketAddr) -> Plan {
    let mut plan = Plan::new(target, "miner.{n}");
    plan.duration = GUARD;
    plan.connections = 3;
    plan.load = Load::Closed(4);
    plan.shares = Some(300);
    plan
}

/// Says `true` to everything.
fn yes(request: &Value) -> Vec<Value> {
    match request["method"] == "mining.submit" {
        true => vec![json!({ "id": request["id"], "result": true, "error": null })],
        false => log_in(request),
    }
}

#[test]
fn a_pool_that_accepts_everything_is_found_out() {
    let mut plan = plan(pool(yes));
    (plan.duplicates, plan.stales, plan.lows) = (20.0, 20.0, 20.0);
    plan.threads = 2;
    let mut phases = Vec::new();
    let outcome = run(&plan, |phase| {
        phases.push(phase);
        Ok(())
    });
    let outcome = outcome.unwrap();
    assert_eq!(phases, [Phase::Ready, Phase::Begin, Phase::End]);
    let verdicts = outcome.verdicts;
    assert_eq!(verdicts.answered(), 300);
    assert_eq!(verdicts.accepted(), 300, "whatever was expected");
    for wrong in [verdicts.duplicate, verdicts.stale, verdicts.low] {
        assert!(wrong.accepted > 10, "{verdicts:?}");
        assert_eq!(wrong.total(), wrong.accepted);
    }
    assert_eq!(outcome.mismatches, 300 - verdicts.good.accepted);
    assert_eq!((outcome.counts.ready, outcome.counts.unanswered), (3, 0));
    assert_eq!(outcome.counts.unknown_calls, 3, "the message shown to each");
    assert!(outcome.counts.cpu_ns > 0, "also where the last share ends it before the window does");
    assert!(outcome.counts.surprise.as_ref().is_some_and(|said| said.contains("true")), "{outcome}");
    let shown = outcome.to_string();
    assert!(shown.contains(&format!("mismatches   {}", outcome.mismatches)), "{shown}");
    let json = serde_json::to_value(&outcome).unwrap();
    assert_eq!(json["verdicts"]["good"]["accepted"], verdicts.good.accepted);
}

#[test]
fn an_open_loop_sends_what_is_due() {
    for poisson in [true, false] {
        let mut plan = plan(pool(yes));
        plan.load = Load::Open { rate: 2_000.0, poisson };
        plan.stock = 300;
        let outcome = run(&plan, |_| Ok(())).unwrap();
        assert_eq!(outcome.verdicts.good.accepted, 300);
        assert_eq!(outcome.counts.found_late, 0, "all were found ahead");
        assert_eq!(outcome.mismatches, 0);
        assert!(outcome.latency.p50_us > 0.0 && outcome.latency.max_us >= outcome.latency.p99_us);
    }
}

#[test]
fn a_refused_login_is_told() {
    let no: Answer = |request| match request["method"] == "mining.authorize" {
        true => vec![json!({ "id": request["id"], "result": null, "error": [24, "Unauthorized worker", null] })],
        false => log_in(request),
    };
    let error = format!("{:#}", run(&plan(pool(no)), |_| Ok(())).unwrap_err());
    assert!(error.contains("Unauthorized worker"), "{error}");
}

#[test]
fn a_pool_that_goes_away_ends_the_run() {
    // Nothing listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(run(&plan(gone), |_| Ok(())).is_err());

    // The answer to the hundredth share of the process never comes: the connection ends instead.
    static SHARES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let dies: Answer = |request| {
        let submit = request["method"] == "mining.submit";
        if submit && SHARES.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 100 {
            panic!("this pool dies");
        }
        yes(request)
    };
    let mut plan = plan(pool(dies));
    plan.shares = None;
    plan.record = Some(tempfile::NamedTempFile::new().unwrap().path().to_owned());
    let outcome = run(&plan, |_| Ok(())).unwrap();
    assert_eq!(outcome.verdicts.accepted(), 100);
    assert_eq!(outcome.counts.closed, 3);
    assert_eq!(outcome.counts.unanswered, 12, "all that were in flight");
    let record = std::fs::read_to_string(plan.record.unwrap()).unwrap();
    assert_eq!(record.lines().count(), 100);
    assert!(record.lines().all(|line| line.starts_with("5 00ab ") && line.split(' ').count() == 7), "{record}");
}

#[test]
fn a_share_that_must_be_a_block_is_not_sent() {
    let easy: Answer = |request| {
        let text = json!(log_in(request)).to_string().replace("1d00ffff", "207fffff");
        serde_json::from_str(&text).unwrap()
    };
    let error = format!("{:#}", run(&plan(pool(easy)), |_| Ok(())).unwrap_err());
    assert!(error.contains("would be a block"), "{error}");
}

/// A pool at the difficulty of real miners.
#[test]
fn a_share_that_takes_for_ever_is_not_looked_for() {
    let hard: Answer = |request| {
        let text = json!(log_in(request)).to_string().replace("1d00ffff", "1701e2a0").replace("[1e-7]", "[1024]");
        serde_json::from_str(&text).unwrap()
    };
    let error = format!("{:#}", run(&plan(pool(hard)), |_| Ok(())).unwrap_err());
    assert!(error.contains("2^32 hashes"), "{error}");
}

#[test]
fn a_plan_without_sense_is_refused() {
    let target = "127.0.0.1:1".parse().unwrap();
    let refused = |change: fn(&mut Plan)| {
        let mut plan = plan(target);
        change(&mut plan);
        run(&plan, |_| Ok(())).unwrap_err().to_string()
    };
    assert!(refused(|plan| plan.duplicates = 101.0).contains("0 to 100"));
    assert!(refused(|plan| (plan.stales, plan.lows) = (60.0, 50.0)).contains("more than all"));
    assert!(refused(|plan| plan.load = Load::Closed(0)).contains("in flight"));
    assert!(refused(|plan| plan.load = Load::Open { rate: 0.0, poisson: true }).contains("above 0"));
    assert!(refused(|plan| plan.connections = 0).contains("a connection"));
}
