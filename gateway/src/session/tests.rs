//! Sessions without sockets: every quirk of miners that concerns what a line means, and what no miner should send.

use std::cell::RefCell;

use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_mining::Chain;
use sluice_proto::v1::{Reason, Submission};
use sluice_proto::{Epoch, Offset};

use super::*;
use crate::identity::Identities;
use crate::internals::Single;
use crate::protocol::lines::{Line, Lines};
use crate::testing::{EASY, HARD, job, nonce};

const USER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080.w1";

struct Case {
    config: GatewayConfig,
    judge: Judge,
    latest: Option<Rendered>,
    identities: RefCell<Identities>,
    history: History,
    counters: Counters,
    session: Session,
    turn: Turn,
    shares: Vec<(Submission, Reason)>,
    now: EventTime,
    offset: u64,
    candidates: Vec<Candidate>,
}

impl Case {
    fn new() -> Self {
        let mut config = GatewayConfig::new("stratumd", Chain::Regtest);
        config.id = 1;
        config.difficulty = Difficulty::MIN;
        Self {
            session: Session::new(&config),
            config,
            judge: Judge::default(),
            latest: None,
            identities: RefCell::new(Identities::new(1, Epoch::new(5), 4, 1)),
            history: History::default(),
            counters: Counters::default(),
            turn: Turn::default(),
            shares: Vec::new(),
            now: EventTime::from_millis(1_700_000_000_000),
            offset: 0,
            candidates: Vec::new(),
        }
    }

    /// With a subscription, an authorized user and a job.
    fn mining(nbits: u32) -> Self {
        let mut case = Self::new();
        case.give(job(0x6a, 7, nbits));
        case.send(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
        case.send(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","x"]}}"#));
        case
    }

    fn desk<T>(&mut self, run: impl FnOnce(&mut Session, &mut Desk<'_>, &mut Turn) -> T) -> T {
        let identities = self.identities.borrow();
        let mut desk = Desk {
            config: &self.config,
            judge: &mut self.judge,
            latest: self.latest.as_ref(),
            registrar: &mut Single(&identities),
            history: &self.history,
            counters: &self.counters,
            intake: &mut self.shares,
            now: self.now,
        };
        run(&mut self.session, &mut desk, &mut self.turn)
    }

    /// Hands a job to the session; what it is told.
    fn give(&mut self, job: Job) -> Vec<Value> {
        self.offset += 1;
        let (rendered, clean) = (Rendered::new(&job), job.clean);
        self.judge.apply(Offset::new(self.offset), self.now, job).unwrap();
        let (live_from, now) = (self.judge.live_from(), self.now);
        let mut out = Vec::new();
        self.session.notify(&rendered, clean, live_from, now, &self.config, &mut out);
        self.latest = Some(rendered);
        values(&out)
    }

    /// A read that brought these bytes.
    fn read(&mut self, bytes: &[u8]) -> Flow {
        let mut lines = Lines::new(bytes, 8192);
        let mut blocks = Vec::new();
        let flow = self.desk(|session, desk, turn| {
            let flow = loop {
                let Line::Whole(line) = lines.next_line() else { break Flow::Continue };
                let flow = session.receive(line, desk, turn);
                blocks.extend(turn.candidate.take());
                if flow != Flow::Continue {
                    break flow;
                }
            };
            session.settle(desk, &mut turn.replies);
            flow
        });
        self.candidates.extend(blocks);
        flow
    }

    /// Sends one line; everything that comes back, answers to submits last.
    fn send(&mut self, line: &str) -> Vec<Value> {
        self.read(format!("{line}\n").as_bytes());
        self.taken()
    }

    fn taken(&mut self) -> Vec<Value> {
        let replies = std::mem::take(&mut self.turn.replies);
        values(&replies).into_iter().chain(values(&std::mem::take(&mut self.turn.answers))).collect()
    }

    /// Sends a line that is answered with one line.
    fn ask(&mut self, line: &str) -> Value {
        let answers = self.send(line);
        assert_eq!(answers.len(), 1, "{line}: {answers:?}");
        answers[0].clone()
    }

    /// A submission of the session for job 6a, with a nonce that meets the lowest difficulty, or does not.
    fn share(&self, nbits: u32, meets: bool, first: u32) -> Submission {
        let identity = self.session.identity().unwrap();
        let mut share = Submission {
            job_id: 0x6a,
            extranonce1: identity.extranonce1,
            extranonce2: 0xabc,
            ntime: 1_700_000_001,
            ..Submission::default()
        };
        share.nonce = nonce(&job(0x6a, 7, nbits), &share, Difficulty::MIN, meets, first);
        share
    }

    fn submit(&mut self, share: &Submission) -> Value {
        let line = submit_line(USER, share);
        self.ask(&line)
    }
}

use sluice_proto::v1::Job;

fn submit_line(user: &str, share: &Submission) -> String {
    let bits = if share.has_version_bits { format!(",\"{:08x}\"", share.version_bits) } else { String::new() };
    format!(
        r#"{{"id":6,"method":"mining.submit","params":["{user}","{:x}","{:016x}","{:08x}","{:08x}"{bits}]}}"#,
        share.job_id, share.extranonce2, share.ntime, share.nonce
    )
}

fn values(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn methods(values: &[Value]) -> Vec<&str> {
    values.iter().map(|value| value["method"].as_str().unwrap_or("answer")).collect()
}

fn code(answer: &Value) -> i64 {
    assert!(answer["result"].is_null(), "{answer}");
    answer["error"][0].as_i64().unwrap()
}

#[test]
fn quirk_subscribe_gives_4_bytes_of_extranonce1_and_8_of_extranonce2() {
    let mut case = Case::new();
    let answer = case.ask(r#"{"id":2,"method":"mining.subscribe","params":["bitaxe/BM1370/v2.x"]}"#);
    let one = answer["result"][1].as_str().unwrap().to_owned();
    assert_eq!((one.len(), &one[..2], &answer["result"][2]), (8, "01", &json!(8)));
    let token = answer["result"][0][1][1].as_str().unwrap();
    assert_eq!(answer["result"][0], json!([["mining.set_difficulty", token], ["mining.notify", token]]));
    assert!(token.len() <= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "what it may show later");
    let again = case.ask(r#"{"id":3,"method":"mining.subscribe","params":["cgminer/4.11.1","01ad557d"]}"#);
    assert_eq!(again["result"][1], *one, "a second subscription is the same one");
}

#[test]
fn quirk_esp_miner_configures_subscribes_authorizes_and_suggests_in_one_segment() {
    let mut case = Case::new();
    case.config.difficulty = Difficulty::from_integer(1024).unwrap();
    case.session = Session::new(&case.config);
    case.give(job(0x6a, 7, HARD));
    let segment = [
        r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"ffffffff"}]}"#,
        r#"{"id":2,"method":"mining.subscribe","params":["bitaxe/BM1370/v2.x"]}"#,
        &format!(r#"{{"id":3,"method":"mining.authorize","params":["{USER}","x"]}}"#),
        r#"{"id":4,"method":"mining.suggest_difficulty","params":[1000]}"#,
        r#"{"id":5,"method":"mining.extranonce.subscribe","params":[]}"#,
        "",
    ]
    .join("\n");
    case.read(segment.as_bytes());
    let got = case.taken();
    let ids: Vec<_> = got[..5].iter().map(|answer| answer["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5], "strictly in order");
    assert_eq!(got[0]["result"], json!({"version-rolling": true, "version-rolling.mask": "1fffe000"}));
    assert!(got[2..5].iter().all(|answer| answer["result"] == json!(true)));
    assert_eq!(methods(&got[5..]), ["mining.set_difficulty", "mining.notify"]);
    assert_eq!(got[5]["params"], json!([1000]), "what was suggested in the same segment counts");
    assert_eq!(got[6]["params"][8], json!(true), "the first job is clean");
}

#[test]
fn quirk_error_null_is_there_in_every_answer_and_ids_are_echoed_verbatim() {
    for id in ["7", "\"seven\"", "null", "18446744073709551616123", "\"\\u00e9\""] {
        let mut case = Case::new();
        for (method, params) in
            [("mining.subscribe", "[]"), ("mining.ping", "[]"), ("mining.configure", "[[],{}]"), ("x", "[]")]
        {
            case.read(format!("{{\"id\":{id},\"method\":\"{method}\",\"params\":{params}}}\n").as_bytes());
            let text = String::from_utf8(std::mem::take(&mut case.turn.replies)).unwrap();
            assert!(text.starts_with(&format!("{{\"id\":{id},\"result\":")), "{text}");
            assert!(text.contains("\"error\":null}\n") || text.contains("\"error\":[20,"), "{text}");
        }
    }
}

#[test]
fn quirk_nerdminer_suggests_without_an_id_and_whatsminer_before_it_subscribes() {
    let mut case = Case::new();
    case.config.difficulty = Difficulty::ONE;
    assert!(case.send(r#"{"method":"mining.suggest_difficulty","params":[0.00015]}"#).is_empty());
    case.send(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    case.give(job(1, 7, HARD));
    let got = case.send(&format!(r#"{{"id":3587156,"method":"mining.authorize","params":["{USER}",""],"ttl":2}}"#));
    assert_eq!(methods(&got), ["answer", "mining.set_difficulty", "mining.notify"]);
    assert_eq!(got[1]["params"], json!([0.0001220703125]));
    for _ in 0..3 {
        assert!(case.send(r#"{"method":"mining.suggest_difficulty","params":[0.00015]}"#).is_empty());
    }
}

#[test]
fn quirk_suggest_target_multi_version_ping_and_extranonce_subscribe_are_tolerated() {
    let mut case = Case::new();
    let target = format!("{:0>8}{:0<56}", "", "ffff");
    let answer = case.ask(&format!(r#"{{"id":1,"method":"mining.suggest_target","params":["{target}"]}}"#));
    assert_eq!(answer["result"], json!(true));
    assert_eq!(case.session.plan().terms(0).difficulty, Difficulty::ONE);
    for (method, result) in [
        ("mining.multi_version", json!(true)),
        ("mining.extranonce.subscribe", json!(true)),
        ("mining.ping", json!("pong")),
    ] {
        assert_eq!(case.ask(&format!(r#"{{"id":1,"method":"{method}","params":[4]}}"#))["result"], result);
    }
    assert_eq!(code(&case.ask(r#"{"id":1,"method":"mining.get_transactions","params":["6a"]}"#)), 20);
    assert_eq!(code(&case.ask(r#"{"id":1,"method":"mining.unheard_of","params":[]}"#)), 20);
    assert_eq!(code(&case.ask(r#"{"id":1,"method":"mining.suggest_difficulty","params":["x"]}"#)), 20);
}

#[test]
fn quirk_cgminer_sends_spaces_and_params_first() {
    let mut case = Case::new();
    case.ask(r#"{ "params" : ["cgminer/4.11.1", "01ad557d"] , "id" : 1, "method": "mining.subscribe" }"#);
    let password = "a \\\"quoted\\\" word";
    let line = format!(r#"{{"params": ["{USER}", "{password}"], "id": 2, "method": "mining.authorize"}}"#);
    assert_eq!(case.ask(&line)["result"], json!(true));
    assert_eq!(case.session.plan().terms(0).difficulty, Difficulty::MIN);
    assert_eq!(
        case.ask(&format!(r#"{{"id":3,"method":"mining.authorize","params":["{USER}"]}}"#))["result"],
        json!(true)
    );
}

/// The difficulty that a session is given with its first job.
fn first_difficulty(lines: &[&str], prepare: impl FnOnce(&mut Case)) -> Value {
    let mut case = Case::new();
    case.config.difficulty = Difficulty::from_integer(1024).unwrap();
    case.session = Session::new(&case.config);
    prepare(&mut case);
    let authorize = format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","x"]}}"#);
    let subscribe = r#"{"id":1,"method":"mining.subscribe","params":["x/1"]}"#;
    let lines = lines.iter().map(|line| match *line {
        "subscribe" => subscribe,
        "authorize" => &authorize,
        line => line,
    });
    for line in lines.collect::<Vec<_>>() {
        case.send(line);
    }
    let got = case.give(job(1, 7, HARD));
    assert_eq!(methods(&got), ["mining.set_difficulty", "mining.notify"]);
    got[0]["params"][0].clone()
}

/// In the order of the issue: suggestion, resume, worker history, default. A resume is offered here as `sessions` does.
#[test]
fn the_first_difficulty_is_that_of_the_strongest_origin() {
    let whole = |value| Difficulty::from_integer(value).unwrap();
    let suggest = r#"{"id":3,"method":"mining.suggest_difficulty","params":[16]}"#;
    let usual = ["subscribe", "authorize"];
    let known = |case: &mut Case| case.history.note_worker(USER, whole(64));
    assert_eq!(first_difficulty(&usual, |_| ()), json!(1024));
    assert_eq!(first_difficulty(&usual, known), json!(64));
    let resumed = |case: &mut Case| {
        known(case);
        case.session.plan.offer(Origin::Resumed, whole(128), &case.config);
    };
    assert_eq!(first_difficulty(&usual, resumed), json!(128));
    for place in 0..3 {
        let mut lines = usual.to_vec();
        lines.insert(place, suggest);
        assert_eq!(first_difficulty(&lines, resumed), json!(16), "wherever it comes: {lines:?}");
    }
    assert_eq!(
        first_difficulty(&["subscribe", "authorize"], |case| {
            case.history.note_worker(USER, whole(64));
            case.send(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}2","x"]}}"#));
        }),
        json!(1024),
        "with several users nobody's history counts"
    );
}

#[test]
fn passwords_may_suggest_a_difficulty_and_a_minimum() {
    let authorize =
        |password: &str| format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","{password}"]}}"#);
    for (password, first) in
        [("d=2048", 2048), ("d=16,md=512", 512), ("x;md=4096", 4096), ("md=4 d=64", 64), ("d=x", 1024), ("hello", 1024)]
    {
        assert_eq!(first_difficulty(&["subscribe", &authorize(password)], |_| ()), json!(first), "{password}");
    }
    let mut case = Case::mining(HARD);
    case.send(&authorize("md=512"));
    case.session.decide(Difficulty::from_integer(2).unwrap(), &case.config);
    assert_eq!(case.give(job(0x6b, 7, HARD))[0]["params"], json!([512]), "vardiff does not go below it either");
}

/// NiceHash refuses a pool that gives out less than its minimum, whatever else asks for less.
#[test]
fn quirk_nicehash_gets_at_least_its_minimum() {
    for agent in ["NiceHash/1.0.0", "nicehash/2"] {
        let mut case = Case::new();
        case.send(&format!(r#"{{"id":1,"method":"mining.subscribe","params":["{agent}"]}}"#));
        case.send(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","d=5"]}}"#));
        case.send(
            r#"{"id":3,"method":"mining.configure","params":[["minimum-difficulty"],{"minimum-difficulty.value":8}]}"#,
        );
        assert_eq!(case.give(job(1, 7, HARD))[0]["params"], json!([500_000]), "{agent}");
        case.session.decide(Difficulty::ONE, &case.config);
        assert_eq!(methods(&case.give(job(2, 7, HARD))), ["mining.notify"]);
        case.session.decide(Difficulty::from_integer(1 << 20).unwrap(), &case.config);
        assert_eq!(case.give(job(3, 7, HARD))[0]["params"], json!([1 << 20]));
    }
}

/// A new extranonce1 is announced right before the next job, whose shares count with it; those of jobs before it count with
/// the old one.
#[test]
fn a_changed_extranonce1_holds_from_the_next_job_on() {
    let mut case = Case::mining(HARD);
    let old = case.session.identity().unwrap();
    let fresh = case.identities.borrow().identity(old.session, 0).unwrap();
    assert!(!case.session.change_extranonce(fresh), "not before the miner has subscribed to it");
    case.ask(r#"{"id":5,"method":"mining.extranonce.subscribe","params":[]}"#);
    let share = case.share(HARD, true, 0);
    assert!(case.session.change_extranonce(fresh));
    assert_eq!(case.submit(&share)["result"], json!(true), "the job of before");
    let got = case.give(Job { clean: false, ..job(0x6b, 7, HARD) });
    assert_eq!(methods(&got), ["mining.set_extranonce", "mining.notify"]);
    assert_eq!(got[0]["params"], json!([format!("{:08x}", fresh.extranonce1), 8]));
    let late = Submission { extranonce1: old.extranonce1, ..share.clone() };
    let late = Submission { nonce: nonce(&job(0x6a, 7, HARD), &late, Difficulty::MIN, true, share.nonce + 1), ..late };
    assert_eq!(case.submit(&late)["result"], json!(true), "still");
    let mut next = Submission { job_id: 0x6b, extranonce1: fresh.extranonce1, ..share };
    next.nonce = nonce(&job(0x6b, 7, HARD), &next, Difficulty::MIN, true, 0);
    assert_eq!(case.submit(&next)["result"], json!(true));
    let used: Vec<_> = case.shares.iter().map(|(share, _)| share.extranonce1).collect();
    assert_eq!(used, [old.extranonce1, old.extranonce1, fresh.extranonce1]);
    assert_eq!(methods(&case.give(job(0x6c, 8, HARD))), ["mining.notify"], "said once");
}

#[test]
fn user_names_are_checked_and_several_share_a_connection() {
    let mut case = Case::mining(HARD);
    for bad in ["worker", "", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", &format!("{USER}{}", "w".repeat(100))] {
        let line = format!(r#"{{"id":3,"method":"mining.authorize","params":["{bad}","x"]}}"#);
        assert_eq!(code(&case.ask(&line)), 24, "{bad}");
    }
    let other = USER.replace("w1", "w2");
    let share = case.share(HARD, true, 0);
    assert_eq!(code(&case.ask(&submit_line(&other, &share))), 24);
    case.ask(&format!(r#"{{"id":3,"method":"mining.authorize","params":["{other}","x"]}}"#));
    assert_eq!(case.ask(&submit_line(&other, &share))["result"], json!(true));
    let second = case.share(HARD, true, share.nonce + 1);
    assert_eq!(case.submit(&second)["result"], json!(true));
    let workers: Vec<_> = case.shares.iter().map(|(share, _)| share.worker.as_str()).collect();
    assert_eq!(workers, ["w2", "w1"]);
    assert!(case.shares.iter().all(|(share, _)| share.account == USER.split('.').next().unwrap()));
}

#[test]
fn submits_need_a_subscription_and_a_user() {
    let mut case = Case::new();
    let share = Submission::default();
    assert_eq!(code(&case.submit(&share)), 25);
    case.send(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    assert_eq!(code(&case.submit(&share)), 24);
    assert!(case.shares.is_empty(), "neither is written");
}

#[test]
fn trap_06_a_share_is_the_same_in_any_form_of_hex() {
    let mut case = Case::mining(HARD);
    let share = case.share(HARD, true, 0);
    assert_eq!(case.submit(&share)["result"], json!(true));
    let forms = [
        format!("\"6A\",\"{:016X}\",\"{:08X}\",\"{:08X}\"", share.extranonce2, share.ntime, share.nonce),
        format!("\"0x6a\",\"0x{:016x}\",\"0x{:x}\",\"0x{:x}\"", share.extranonce2, share.ntime, share.nonce),
        format!("\"000000000000006a\",\"{:016x}\",\"{:x}\",\"{:x}\"", share.extranonce2, share.ntime, share.nonce),
    ];
    for form in forms {
        let line = format!(r#"{{"id":6,"method":"mining.submit","params":["{USER}",{form}]}}"#);
        assert_eq!(code(&case.ask(&line)), 22, "{form}");
    }
    assert_eq!(case.shares.len(), 4, "rejected shares are written too");
}

#[test]
fn trap_06_other_version_bits_are_another_header() {
    let mut case = Case::mining(HARD);
    case.ask(r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{}]}"#);
    let mut share = Submission { version_mask: 0x1fff_e000, has_version_bits: true, ..case.share(HARD, true, 0) };
    // A nonce that is good for both versions.
    let rolled = Submission { version_bits: 0x2000, ..share.clone() };
    let next = |share: &Submission, first| nonce(&job(0x6a, 7, HARD), share, Difficulty::MIN, true, first);
    let mut nonces = std::iter::successors(Some(next(&share, 0)), |last| Some(next(&share, last + 1)));
    let both = nonces.find(|found| next(&rolled, *found) == *found).unwrap();
    share.nonce = both;
    let rolled = Submission { nonce: both, ..rolled };
    for share in [&share, &rolled] {
        assert_eq!(case.submit(share)["result"], json!(true));
        assert_eq!(code(&case.submit(share)), 22);
    }
}

#[test]
fn each_fault_of_a_share_has_its_code() {
    let mut case = Case::mining(HARD);
    let low = case.share(HARD, false, 0);
    assert_eq!(code(&case.submit(&low)), 23);
    let good = case.share(HARD, true, 0);
    let with = |change: &dyn Fn(&mut Submission)| {
        let mut share = good.clone();
        change(&mut share);
        share
    };
    assert_eq!(code(&case.submit(&with(&|share| share.job_id = 0x6b))), 21);
    let old = case.submit(&with(&|share| share.ntime = 1));
    assert_eq!((code(&old), old["error"][1].as_str().unwrap()), (20, "Time too old"));
    let new = case.submit(&with(&|share| share.ntime = u32::MAX));
    assert_eq!((code(&new), new["error"][1].as_str().unwrap()), (20, "Time too new"));
    let bits = case.submit(&with(&|share| (share.has_version_bits, share.version_bits) = (true, 0x2000)));
    assert_eq!((code(&bits), bits["error"][1].as_str().unwrap()), (20, "Invalid version mask"));
    for (params, expected) in [("[\"u\"]", 20), ("[]", 20), ("{}", 20), ("null", 20)] {
        let line = format!(r#"{{"id":1,"method":"mining.submit","params":{params}}}"#);
        assert_eq!(code(&case.ask(&line)), expected, "{params}");
    }
    let foreign =
        format!(r#"{{"id":1,"method":"mining.submit","params":["{USER}","job.7","0000000000000001","1","1"]}}"#);
    assert_eq!(code(&case.ask(&foreign)), 21, "a job of another pool");
    let short = format!(r#"{{"id":1,"method":"mining.submit","params":["{USER}","6a","01","1","1"]}}"#);
    assert_eq!(code(&case.ask(&short)), 20);
}

#[test]
fn versions_roll_within_what_both_sides_agreed_on() {
    let mut case = Case::mining(HARD);
    case.ask(
        r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"00ffe000"}]}"#,
    );
    let mut share = case.share(HARD, true, 0);
    (share.has_version_bits, share.version_bits, share.version_mask) = (true, 0x00e2_a000, 0x00ff_e000);
    share.nonce = nonce(&job(0x6a, 7, HARD), &share, Difficulty::MIN, true, 0);
    assert_eq!(case.submit(&share)["result"], json!(true));
    share.version_bits = 0x1000_0000;
    assert_eq!(code(&case.submit(&share)), 20, "the pool would allow it, the miner did not ask for it");
}

#[test]
fn b1_a_block_is_found_whatever_the_share_is_and_sent_once() {
    let mut case = Case::mining(EASY);
    let share = case.share(EASY, true, 0);
    case.now = EventTime::from_millis(case.now.millis() + 5_000);
    case.give(job(0x6b, 8, EASY));
    case.now = EventTime::from_millis(case.now.millis() + 5_000);
    let stale = case.submit(&share);
    assert_eq!((code(&stale), case.candidates.len()), (21, 1), "stale, and yet a block");
    let candidate = &case.candidates[0];
    assert_eq!((candidate.job_id, candidate.account.as_str()), (0x6a, USER.split('.').next().unwrap()));
    case.submit(&share);
    assert_eq!(case.candidates.len(), 1, "not again");
}

#[test]
fn quirk_set_difficulty_comes_right_before_its_notify_and_never_twice() {
    let mut case = Case::mining(HARD);
    case.session.decide(Difficulty::from_integer(2).unwrap(), &case.config);
    case.session.decide(Difficulty::from_integer(4).unwrap(), &case.config);
    let got = case.give(job(0x6b, 7, HARD));
    assert_eq!(methods(&got), ["mining.set_difficulty", "mining.notify"]);
    assert_eq!(got[0]["params"], json!([4]));
    assert_eq!(methods(&case.give(job(0x6c, 7, HARD))), ["mining.notify"], "it has not changed");
}

#[test]
fn clean_jobs_says_what_the_job_says_but_for_the_first() {
    let mut case = Case::new();
    case.send(r#"{"id":1,"method":"mining.subscribe","params":[]}"#);
    case.send(&format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","x"]}}"#));
    let refresh = |id| Job { clean: false, ..job(id, 7, HARD) };
    assert_eq!(case.give(refresh(1))[1]["params"][8], json!(true));
    assert_eq!(case.give(refresh(2))[0]["params"][8], json!(false));
    assert_eq!(case.give(job(3, 8, HARD))[0]["params"][8], json!(true));
}

#[test]
fn answers_of_miners_are_not_answered_and_noise_ends_the_connection() {
    let mut case = Case::new();
    assert!(case.send(r#"{"id":1,"result":true,"error":null}"#).is_empty());
    assert!(case.send("   ").is_empty());
    for _ in 0..8 {
        assert_eq!(code(&case.ask("GET / HTTP/1.1\r")), 20);
    }
    assert_eq!(case.read(b"{]\n"), Flow::End("10 lines that were no request"));
}

#[test]
fn when_no_identity_is_free_the_miner_is_told_and_sent_away() {
    let mut case = Case::new();
    case.identities = RefCell::new(Identities::exhausted());
    assert_eq!(
        case.read(b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n"),
        Flow::End("no identity is free")
    );
    assert_eq!(code(&case.taken()[0]), 20);
}

/// A stream of requests as miners send them, good and bad.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(r#"{"id":1,"method":"mining.subscribe","params":[]}"#.to_owned()),
        Just(format!(r#"{{"id":2,"method":"mining.authorize","params":["{USER}","x"]}}"#)),
        Just(r#"{"id":3,"method":"mining.configure","params":[["version-rolling"],{}]}"#.to_owned()),
        Just("{\"id\":4,\"method\":\"mining.ping\"}\r".to_owned()),
        (0_u32..600).prop_map(|nonce| submit_line(
            USER,
            &Submission { job_id: 0x6a, ntime: 1_700_000_000, nonce, ..Submission::default() }
        )),
        "\\PC{0,40}",
    ];
    prop::collection::vec(line, 0..20)
        .prop_map(|lines| lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
}

/// What a session says to `pieces`, cut into lines as a worker does it.
fn says(pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>, usize) {
    let mut case = Case::new();
    case.judge.apply(Offset::new(1), case.now, job(0x6a, 7, HARD)).unwrap();
    let mut begun: Vec<u8> = Vec::new();
    for piece in pieces {
        begun.extend_from_slice(piece);
        let end = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = begun.split_off(end);
        if case.read(&begun) != Flow::Continue {
            break;
        }
        begun = rest;
    }
    (case.turn.replies, case.turn.answers, case.shares.len())
}

proptest! {
    #[test]
    fn a_split_stream_says_the_same_as_one_piece(stream in stream(), cuts: Vec<prop::sample::Index>) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        prop_assert_eq!(says(&pieces), says(&[&stream]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let mut case = Case::mining(EASY);
        case.read(&bytes);
        case.read(b"\n");
    }

    #[test]
    fn arbitrary_params_never_panic(
        method in "(subscribe|authorize|configure|submit|suggest_difficulty|suggest_target|ping)",
        params in "[\\[\\]\\{\\},:\"a-f0-9x. -]{0,60}",
    ) {
        let mut case = Case::mining(EASY);
        case.read(format!("{{\"id\":1,\"method\":\"mining.{method}\",\"params\":{params}}}\n").as_bytes());
    }
}
