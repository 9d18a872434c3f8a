//! Sessions as firmware really has them (`tests/transcripts`), replayed byte by byte.
//!
//! A line begins with what it is: `>` the miner says this (lines that follow each other arrive in one segment), `<` the pool
//! says exactly this, `=` a setting of the pool, `!` something happens (a job, a decision of vardiff, a lost connection),
//! `#` a remark. What only the test can know stands in braces: the session's token and extranonce1, the parameters of a
//! job, its time, and a nonce that meets the job's difficulty.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use sluice_mining::{Difficulty, wire};
use sluice_proto::v1::{Job, Submission};

use crate::jobs::{HARD, job, solve};
use crate::pool::{Miner, Pool, config};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

/// A replay under way.
struct Replay {
    pool: Pool,
    miner: Miner,
    /// Jobs, and the difficulty the miner has for each.
    jobs: HashMap<u64, (Job, Difficulty)>,
    difficulty: Difficulty,
    mask: u32,
    token: String,
    extranonce1: String,
    decisions: u64,
    pending: String,
}

impl Replay {
    async fn run(name: &str) {
        let text = std::fs::read_to_string(folder().join(format!("{name}.txt"))).unwrap();
        let mut config = config();
        config.workers = 1;
        let mut lines = text.lines().filter(|line| !line.starts_with('#')).peekable();
        while let Some(setting) = lines.next_if(|line| line.starts_with('=')) {
            match setting.split(' ').collect::<Vec<_>>()[..] {
                ["=", "difficulty", value] => config.difficulty = Difficulty::parse_wire(value).unwrap(),
                _ => panic!("{name}: {setting}"),
            }
        }
        let pool = Pool::with(config).await;
        let miner = pool.connect().await;
        let (jobs, token, extranonce1, pending) = Default::default();
        let (difficulty, mask, decisions) = (Difficulty::MIN, 0, 0);
        let mut replay = Self { pool, miner, jobs, difficulty, mask, token, extranonce1, decisions, pending };
        for line in lines {
            replay.step(line).await.unwrap_or_else(|problem| panic!("{name}: {line}\n{problem}"));
        }
        // Nothing more was said than what stands there.
        let end = r#"> {"id":"end","method":"mining.ping"}"#;
        replay.step(end).await.unwrap();
        replay.step(r#"< {"id":"end","result":"pong","error":null}"#).await.unwrap();
    }

    async fn step(&mut self, line: &str) -> Result<(), String> {
        let (kind, rest) = line.split_at_checked(2).ok_or("no such line")?;
        if kind != "> " && !self.pending.is_empty() {
            let segment = std::mem::take(&mut self.pending);
            self.miner.send(segment.as_bytes()).await;
        }
        match kind {
            "> " => self.pending += &format!("{}\n", self.filled_in(rest)),
            "< " => return self.expect(rest).await,
            "! " => self.happen(rest).await,
            _ => return Err("no such line".to_owned()),
        }
        Ok(())
    }

    async fn happen(&mut self, what: &str) {
        match what.split(' ').collect::<Vec<_>>()[..] {
            ["job", id, tip, kind] => self.publish(id, tip, kind, "1fffe000").await,
            ["job", id, tip, kind, mask] => self.publish(id, tip, kind, mask).await,
            ["decide", value] => {
                self.decisions += 1;
                self.pool.decide(self.session(), Difficulty::parse_wire(value).unwrap()).await;
                self.pool.until(|status| status.targets >= self.decisions).await;
            }
            ["extranonce"] => {
                assert!(self.pool.gateway.change_extranonce(self.session()).await);
                // The worker takes its letters in order: once the miner is shown a message, it has changed.
                assert!(self.pool.gateway.show_message_to(self.session(), "changed").await);
                assert!(self.miner.raw_line().await.contains("changed"));
                self.extranonce1.clear();
            }
            ["reconnect"] => self.pool.gateway.reconnect().await,
            ["lost"] => {
                self.miner.shut_down().await;
                assert!(self.miner.raw_line().await.is_empty());
                self.pool.until(|status| status.connections == 0).await;
                self.miner = self.pool.connect().await;
            }
            _ => panic!("{what}"),
        }
    }

    async fn publish(&mut self, id: &str, tip: &str, kind: &str, mask: &str) {
        let (id, mask) = (u64::from_str_radix(id, 16).unwrap(), u32::from_str_radix(mask, 16).unwrap());
        let clean = kind == "clean";
        assert!(clean || kind == "refresh", "{kind}");
        let job = Job { clean, version_mask: mask, ..job(id, tip.parse().unwrap(), HARD) };
        self.pool.publish(&job).await;
        self.jobs.insert(id, (job, self.difficulty));
    }

    /// The session's id, out of its token.
    fn session(&self) -> u64 {
        u64::from_str_radix(&self.token[..16], 16).unwrap()
    }

    /// A line of the miner.
    fn filled_in(&self, line: &str) -> String {
        let line = line.replace("{token}", &self.token);
        if !line.contains("mining.submit") {
            return line;
        }
        let shape: Value = serde_json::from_str(&line).unwrap();
        let text = |at: usize| shape["params"][at].as_str();
        let known = self.jobs.get(&u64::from_str_radix(text(1).unwrap(), 16).unwrap());
        let Some((job, difficulty)) = known else { return line.replace("{ntime}", "00000000") };
        let share = Submission {
            job_id: job.job_id,
            extranonce1: u32::from_str_radix(&self.extranonce1, 16).unwrap(),
            extranonce2: u64::from_str_radix(text(2).unwrap(), 16).unwrap(),
            ntime: job.ntime,
            has_version_bits: text(5).is_some(),
            version_bits: text(5).map_or(0, |bits| u32::from_str_radix(bits, 16).unwrap()),
            version_mask: self.mask,
            ..Submission::default()
        };
        let nonce = if line.contains("nonce}") { solve(job, share, *difficulty, true).nonce } else { 0 };
        let line = line.replace("{ntime}", &format!("{:08x}", job.ntime)).replace("{nonce}", &format!("{nonce:08x}"));
        line.replace("{bare nonce}", &format!("{nonce:x}"))
    }

    /// The next line of the pool is `line`.
    async fn expect(&mut self, line: &str) -> Result<(), String> {
        let got = self.miner.raw_line().await;
        self.learn(&serde_json::from_str(&got).map_err(|error| format!("{got}: {error}"))?);
        let mut wanted = line.replace("{token}", &self.token).replace("{extranonce1}", &self.extranonce1);
        if let Some((before, rest)) = line.split_once("{job ") {
            let (what, after) = rest.split_once('}').unwrap();
            let (id, clean) = what.split_once(' ').unwrap();
            let (job, difficulty) = self.jobs.get_mut(&u64::from_str_radix(id, 16).unwrap()).unwrap();
            *difficulty = self.difficulty;
            wanted = format!("{before}{}{after}", wire::notify_params(job, clean == "true"));
        }
        if got == wanted { Ok(()) } else { Err(format!("the pool says  {got}\ninstead of     {wanted}")) }
    }

    /// Takes in what a miner would.
    fn learn(&mut self, got: &Value) {
        if let Some(token) = got["result"][0][1][1].as_str() {
            let one = got["result"][1].as_str().unwrap();
            assert!(
                self.token.is_empty() || (&*self.token, &*self.extranonce1) == (token, one),
                "another session: {got}"
            );
            (self.token, self.extranonce1) = (token.to_owned(), one.to_owned());
        }
        let mask = |text: &Value| text.as_str().map(|mask| u32::from_str_radix(mask, 16).unwrap());
        self.mask = mask(&got["result"]["version-rolling.mask"]).unwrap_or(self.mask);
        match got["method"].as_str() {
            Some("mining.set_difficulty") => {
                self.difficulty = Difficulty::parse_wire(&got["params"][0].to_string()).unwrap();
            }
            Some("mining.set_version_mask") => self.mask = mask(&got["params"][0]).unwrap(),
            Some("mining.set_extranonce") => self.extranonce1 = got["params"][0].as_str().unwrap().to_owned(),
            _ => {}
        }
    }
}

/// One test per file.
macro_rules! transcripts {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                Replay::run($file).await;
            }
        )*

        #[test]
        fn every_transcript_is_replayed() {
            let mut files: Vec<String> = std::fs::read_dir(folder())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            assert_eq!(files, [$(concat!($file, ".txt")),*]);
        }
    };
}

transcripts! {
    transcript_avalon: "avalon",
    transcript_bmminer: "bmminer",
    transcript_braiins_os: "braiins-os",
    transcript_cgminer: "cgminer",
    transcript_esp_miner: "esp-miner",
    transcript_nerdminer: "nerdminer",
    transcript_nicehash: "nicehash",
    transcript_whatsminer: "whatsminer",
}
