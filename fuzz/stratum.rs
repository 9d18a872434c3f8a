//! What a miner or a load balancer sends to the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use sluice_gateway::internals::fuzz::{Brought, LineReader, SessionFuzz, read_request};
use sluice_gateway::internals::{ParsedProxy, parse_proxy};
use sluice_mining::{Difficulty, JobTable};
use sluice_proto::v1::{Job, Reason};
use sluice_proto::{EventTime, Offset};

/// Lines, however they are cut: the first byte says how, the second how long a line may be.
pub fn line_reader(data: &[u8]) {
    let [cut, limit, stream @ ..] = data else { return };
    let limit = usize::from(*limit) + 1;
    let mut whole = Vec::new();
    let mut rest = stream;
    let right = loop {
        let end = rest.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(rest.len()) > limit {
            break false;
        }
        let Some(end) = end else { break true };
        whole.push(&rest[..end]);
        rest = &rest[end + 1..];
    };
    let (mut reader, mut lines, mut pieces) = (LineReader::new(limit), Vec::new(), stream);
    let mut size = usize::from(*cut);
    let read = loop {
        // Pieces of many sizes, empty ones too; one piece where the byte is 0.
        size = if *cut == 0 { pieces.len() } else { (size * 5 + 1) % (usize::from(*cut) + 1) };
        let (piece, left) = pieces.split_at(size.min(pieces.len()));
        let went_on = reader.read(piece, |line| {
            lines.push(line.to_vec());
            true
        });
        assert!(reader.kept() <= limit, "no more is kept than a line may have");
        pieces = left;
        if !went_on || pieces.is_empty() {
            break went_on;
        }
    };
    assert_eq!(lines, whole, "the same lines, wherever they were cut");
    assert_eq!(read, right);
}

/// A line of a miner, as any request there is.
pub fn request(data: &[u8]) {
    let Some(read) = read_request(data) else { return };
    if let Some(id) = &read.id {
        let stands_there = data.windows(id.len()).any(|part| part == id.as_bytes());
        assert!(stands_there && is_json(id.as_bytes()), "an id is echoed as it stands there: {id}");
    }
    for difficulty in &read.difficulties {
        assert!((Difficulty::MIN..=Difficulty::MAX).contains(&difficulty.floor_to_allowed()), "{difficulty}");
    }
    if let Some(answer) = &read.configured {
        assert!(answer.starts_with('{') && is_json(answer.as_bytes()), "{answer}");
        assert!(answer.len() <= 64 + 8 * data.len(), "an answer is not much longer than what was asked");
    }
    // Numbers beyond a double are fine as ids, and unknown fields are skipped whatever they hold: neither is a `Value`.
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        assert_eq!(value["method"].as_str(), read.method.as_deref());
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// The header that a load balancer puts before a connection.
pub fn proxy_header(data: &[u8]) {
    let parsed = parse_proxy(data);
    match parsed {
        ParsedProxy::Header(header) => {
            assert!((8..=data.len().min(4_112)).contains(&header.length));
            assert_eq!(parse_proxy(&data[..header.length]), parsed, "what follows does not matter");
            for end in [0, 1, header.length / 2, header.length - 1] {
                assert_eq!(parse_proxy(&data[..end]), ParsedProxy::Incomplete, "it was not whole before");
            }
        }
        ParsedProxy::Incomplete => assert!(data.len() < 4_112, "so many bytes are enough"),
        ParsedProxy::Invalid(why) => assert!(!why.is_empty()),
    }
    if parsed != ParsedProxy::Incomplete {
        assert_eq!(parse_proxy(&[data, b"more"].concat()), parsed, "it stays what it is");
    }
}

/// Steps of an input that are taken: a session is not made longer than that by repeating.
const STEPS: usize = 64;

/// A session: steps with zero bytes between them, whose first byte says what they are.
///
/// - `r`: what follows is read from the miner.
/// - `j`, `t`: a job, on the same tip and on a new one.
/// - `d`: vardiff decides on the difficulty that follows as text.
/// - `w`: so many seconds pass as the next byte says.
/// - `x`: the connection ends, another one begins; `b`: and goes on with the session.
pub fn session(data: &[u8]) {
    play(data);
}

/// What has come up in a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Shares by what was answered.
    pub accepted: usize,
    pub duplicates: usize,
    pub stale: usize,
    /// Blocks.
    pub blocks: usize,
    /// Times that a session was gone on with.
    pub resumed: usize,
    /// Difficulties told.
    pub difficulties: usize,
    /// The gateway ended a connection.
    pub ended: usize,
}

/// Plays a session.
pub fn play(data: &[u8]) -> Seen {
    let mut miner = Miner::new();
    for step in data.split(|byte| *byte == 0).take(STEPS) {
        let Some((kind, rest)) = step.split_first() else { continue };
        match kind {
            b'r' => miner.send(rest),
            b'j' => miner.job(false),
            b't' => miner.job(true),
            b'd' => {
                let text = std::str::from_utf8(rest).unwrap_or_default();
                miner.gateway.decide(Difficulty::parse_wire(text).unwrap_or(Difficulty::ONE));
            }
            b'w' => miner.gateway.wait(Duration::from_secs(rest.first().map_or(1, |byte| u64::from(*byte)))),
            b'x' | b'b' => miner.connect_again(*kind == b'b'),
            _ => {}
        }
        miner.is_sound();
    }
    miner.seen
}

/// A miner that takes the gateway at its word.
struct Miner {
    gateway: SessionFuzz,
    /// Judges again.
    jobs: JobTable,
    applied: u64,
    tip: u8,
    /// What the connection was told last, and whether its job has come.
    difficulty: Option<Difficulty>,
    told: bool,
    /// What each job was announced with.
    announced: BTreeMap<u64, Difficulty>,
    accepted: BTreeSet<(u64, Vec<u8>)>,
    seen: Seen,
}

impl Miner {
    fn new() -> Self {
        Self {
            gateway: SessionFuzz::new(EventTime::from_millis(1_700_000_000_000)),
            jobs: JobTable::new(),
            applied: 0,
            tip: 1,
            difficulty: None,
            told: false,
            announced: BTreeMap::new(),
            accepted: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let (received, was_open) = (self.gateway.now(), self.gateway.is_open());
        let brought = self.gateway.receive(bytes);
        self.seen.ended += usize::from(was_open && !self.gateway.is_open());
        self.seen.blocks += brought.candidates.len();
        let (out, lines) = (brought.output.len(), brought.lines);
        // A line is answered with one line, and the first job of a connection takes three.
        assert!(out <= 8 * bytes.len() + 8 * 8_192 + 256 * lines + 2_048, "{out} bytes for {} in {lines}", bytes.len());
        assert!(brought.output.iter().filter(|byte| **byte == b'\n').count() <= lines + 4);
        assert!(brought.shares.len() <= lines && brought.candidates.len() <= brought.shares.len());
        for (share, reason) in &brought.shares {
            let judged = self.jobs.judge(share, received);
            let new = judged.reason != Reason::Accepted
                || judged.hash.is_none_or(|hash| self.accepted.insert((share.job_id, hash.to_vec())));
            let right = if new { judged.reason } else { Reason::Duplicate };
            assert_eq!(*reason, right, "the answer is the verdict");
            match reason {
                Reason::Accepted => self.seen.accepted += 1,
                Reason::Duplicate => self.seen.duplicates += 1,
                Reason::Stale => self.seen.stale += 1,
                _ => {}
            }
            assert_eq!(share.job_clock, self.applied);
            // A job that can no longer be cited has no terms any more, and no hash.
            if let Some(announced) = self.announced.get(&share.job_id).filter(|_| judged.hash.is_some()) {
                assert_eq!(share.difficulty, announced.units(), "a share counts as its job was announced");
            }
        }
        self.hear(&brought);
    }

    fn job(&mut self, clean: bool) {
        self.tip = if clean { self.tip.wrapping_add(1) } else { self.tip };
        let job = job(self.applied + 1, self.tip, clean);
        self.applied += 1;
        self.jobs.apply(Offset::new(self.applied), self.gateway.now(), job.clone()).expect("a job of ours is sound");
        let brought = self.gateway.issue(job).expect("a job of ours is sound");
        self.hear(&brought);
    }

    fn connect_again(&mut self, resume: bool) {
        let token = self.gateway.reconnect();
        assert_eq!(self.gateway.held(), (0, false), "a session that ended holds nothing");
        (self.difficulty, self.told) = (None, false);
        match token.filter(|_| resume) {
            Some(token) => {
                let line = format!("{{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"x\",\"{token}\"]}}\n");
                self.send(line.as_bytes());
                self.seen.resumed += usize::from(self.gateway.held().1);
            }
            None => self.announced.clear(),
        }
    }

    /// Takes in what the gateway says, as firmware does.
    fn hear(&mut self, brought: &Brought) {
        for line in brought.output.split_inclusive(|byte| *byte == b'\n') {
            assert!(line.ends_with(b"\n") && is_json(line), "{:?}", line.escape_ascii().to_string());
            if !line.starts_with(b"{\"id\":null,\"method\"") {
                continue;
            }
            let value: Value = serde_json::from_slice(line).expect("the gateway's own lines are plain");
            match value["method"].as_str() {
                Some("mining.set_difficulty") => {
                    assert!(!self.told, "one difficulty per job");
                    // As written: a `Value` would make a double of it.
                    let written = std::str::from_utf8(line).unwrap_or_default();
                    let exact = written.split(['[', ']']).nth(1).and_then(Difficulty::parse_wire);
                    assert!(exact.is_some(), "{written}");
                    (self.difficulty, self.told) = (exact, true);
                    self.seen.difficulties += 1;
                }
                Some("mining.notify") => {
                    let id = value["params"][0].as_str().and_then(|id| u64::from_str_radix(id, 16).ok());
                    let difficulty = self.difficulty.expect("no job before its difficulty");
                    self.announced.insert(id.expect("job ids are hex"), difficulty);
                    self.told = false;
                }
                Some("mining.set_version_mask" | "mining.set_extranonce") => {}
                other => panic!("{other:?} is nothing that a gateway says by itself"),
            }
        }
    }

    fn is_sound(&self) {
        let (held, has) = self.gateway.held();
        assert_eq!(held, usize::from(has), "one extranonce1 for one session");
        assert!(self.gateway.kept() <= 8_192, "no more is kept than a line may have");
    }
}

/// A job that every other header makes a block of, and that is a share for one in 256.
fn job(job_id: u64, tip: u8, clean: bool) -> Job {
    Job {
        job_id,
        height: 100 + u32::from(tip),
        prev_hash: vec![tip; 32].into(),
        version: 0x2000_0000,
        version_mask: if job_id.is_multiple_of(5) { 0x00ff_e000 } else { 0x1fff_e000 },
        nbits: 0x207f_ffff,
        ntime: 1_700_000_000,
        min_ntime: 1_699_999_000,
        max_ntime: 1_700_007_200,
        coinbase1: vec![1; 60].into(),
        coinbase2: vec![2; 60].into(),
        merkle_branch: vec![vec![3; 32].into()],
        coinbase_value: 5_000_000_000,
        clean,
        stale_grace_ms: 1_000,
        keep_ms: 60_000,
        network: "regtest".to_owned(),
        ..Job::default()
    }
}
