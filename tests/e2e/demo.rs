//! The demo, as a person runs it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{SLUICE, open_log, read_topic};
use sluice_ledger::PoolTotals;
use sluice_proto::Body;
use sluice_testkit::rpc::http;

use crate::common::wait;

/// A running demo on free ports.
struct Demo(std::process::Child);

impl Demo {
    fn start(dir: &Path) -> Self {
        let args = ["--simulated", "--plain", "--http", "127.0.0.1:0", "--stratum", "127.0.0.1:0"];
        let mut command = Command::new(SLUICE);
        command.args(["--log-format", "json", "demo", "--dir"]).arg(dir).args(args);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// SIGTERM, as Ctrl-C does it.
    fn stop(mut self) {
        let killed = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(killed.success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The API's address of the newest start, from the demo's log file.
fn api(dir: &Path, starts: usize) -> String {
    wait("the demo to listen", || {
        let text = std::fs::read_to_string(dir.join("demo.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut listening =
            lines.filter(|line| line["message"] == "listening" && line["service"] == "http").skip(starts - 1);
        listening.next().map(|line| line["address"].as_str().unwrap().to_owned())
    })
}

fn totals(dir: &Path) -> PoolTotals {
    let store = sluice_ledger::open(&format!("sqlite:{}", dir.join("ledger.db").display())).unwrap();
    assert!(store.trial_balance().unwrap().is_sound());
    store.totals().unwrap()
}

#[test]
fn the_demo_finds_blocks_and_goes_on_with_the_same_balances() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let demo = Demo::start(dir);
    let address = api(dir, 1);
    let blocks = |address: &str| -> Vec<serde_json::Value> {
        let (status, body) = http("GET", address, "/api/v1/blocks", "", &[]).unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    wait("a credited block", || blocks(&address).iter().any(|block| block["credited"] == true).then_some(()));
    demo.stop();
    let before = totals(dir);
    assert!(before.pending.get() + before.available.get() > 0);
    let known: Vec<_> = read_topic(&open_log(dir), "block.solved")
        .iter()
        .filter_map(|read| match read.body() {
            Body::SolvedBlock(block) => Some(sluice_mining::wire::display_hash(&block.hash)),
            _ => None,
        })
        .collect();

    let demo = Demo::start(dir);
    let address = api(dir, 2);
    let shown = blocks(&address);
    for hash in &known {
        assert!(shown.iter().any(|block| block["hash"] == hash.as_str()), "{hash} is still there: {shown:#?}");
    }
    wait("one more block", || (blocks(&address).len() > known.len()).then_some(()));
    demo.stop();
    let after = totals(dir);
    let owed = |totals: &PoolTotals| totals.pending.get() + totals.available.get();
    assert!(owed(&after) >= owed(&before), "what was owed is still owed");
}
