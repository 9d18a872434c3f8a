//! The other commands of the program.

use std::process::{Command, Output};

use crate::common::{SLUICE, address};

/// Runs the program in a directory, with a topology file there.
fn sluice(topology: &str, args: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("topology.yaml"), topology).unwrap();
    let mut command = Command::new(SLUICE);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command.current_dir(dir.path()).args(args).env("POOL_ADDRESS", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq");
    (command.output().unwrap(), dir)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const DEFAULT: &str = include_str!("../../topology.yaml");

#[test]
fn the_topology_that_we_ship_has_no_mistake() {
    let (output, _dir) = sluice(DEFAULT, &["check", "--without-secrets"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("no mistakes"), "{}", text(&output.stdout));
}

#[test]
fn ten_mistakes_are_told_at_once_each_with_its_line_and_column() {
    let changes = [
        // (what stands there, what shall, what the message must say)
        ("version: 1", "version: 7", "version"),
        ("scheme: pplns ", "scheme: ppnls ", "ppnls"),
        ("window: 2 ", "window: many ", "window"),
        ("kind: verify,", "kind: verfiy,", "verfiy"),
        ("in: share.checked, out: share.judged,", "in: share.cheked, out: share.judged,", "share.cheked"),
        ("listen: [ \"${SLUICE_STRATUM:-0.0.0.0:3333}\" ]", "listen: [ \"nowhere\" ]", "nowhere"),
        ("share.tallies:      { partitions: 1 }", "share.tallies:      { partitions: 0 }", "partitions"),
        ("tips: mining.jobs, out: block.outcomes", "tips: mining.templates, out: block.outcomes", "mining.templates"),
        ("auth: \"${BITCOIN_RPC_AUTH}\"", "auth: \"pool:hunter2\"", "auth"),
        ("kind: stats, in: share.tallies", "kind: stats, in: share.tallies, colour: red", "colour"),
    ];
    let mut topology = DEFAULT.to_owned();
    for (is, shall, _) in changes {
        assert_eq!(topology.matches(is).count(), 1, "{is}");
        topology = topology.replace(is, shall);
    }
    let (output, _dir) = sluice(&topology, &["check", "--plain"]);
    assert!(!output.status.success());
    let told = text(&output.stderr);
    for (_, shall, says) in changes {
        // The line of the mistake, counted here.
        let line = topology.lines().position(|line| line.contains(shall)).unwrap() + 1;
        let place = format!("topology.yaml:{line}:");
        let found = told.lines().any(|text| text.starts_with(&place) && text.contains(says));
        assert!(found, "no mistake at {place} that says {says}:\n{told}");
    }
    let places: Vec<&str> = told.lines().filter(|line| line.starts_with("topology.yaml:")).collect();
    assert_eq!(places.len(), changes.len(), "ten mistakes, and nothing that only follows from one:\n{told}");
    for line in places {
        let column = line.split(':').nth(2).unwrap();
        assert!(column.parse::<u32>().unwrap() > 0, "{line}");
    }
    assert!(!told.contains("hunter2"), "a secret is never printed");
}

#[test]
fn graphs_are_drawn_in_every_format() {
    for (format, sign) in [("mermaid", "flowchart"), ("dot", "digraph"), ("svg", "<svg")] {
        let (output, _dir) = sluice(DEFAULT, &["graph", "--format", format]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let drawn = text(&output.stdout);
        assert!(drawn.contains(sign) && drawn.contains("share.submissions"), "{drawn}");
    }
    let (output, _dir) = sluice(DEFAULT, &["graph", "--format", "png"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("mermaid, dot or svg"));
}

#[test]
fn settings_come_from_flags_and_variables_too() {
    let set = ["check", "--without-secrets", "--set", "ledger.scheme=sole"];
    let (output, _dir) = sluice(DEFAULT, &set);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("sole"), "{}", text(&output.stderr));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("topology.yaml"), DEFAULT).unwrap();
    let mut command = Command::new(SLUICE);
    command.current_dir(dir.path()).args(["check", "--without-secrets", "--plain"]);
    command.env("POOL_ADDRESS", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq").env("SLUICE__LEDGER__FEE_BPS", "20000");
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("20000"), "{}", text(&output.stderr));
}

#[test]
fn help_has_examples_and_kinds_are_listed() {
    let (output, _dir) = sluice(DEFAULT, &["--help"]);
    assert!(text(&output.stdout).contains("Examples:"));
    let (output, _dir) = sluice(DEFAULT, &["kinds"]);
    for kind in [
        "assemble",
        "dedupe",
        "gateway",
        "influxdb",
        "jobmanager",
        "ledger",
        "stats",
        "submit",
        "tally",
        "vardiff",
        "verify",
    ] {
        assert!(text(&output.stdout).lines().any(|line| line.starts_with(kind)), "{kind}");
    }
    let (output, _dir) = sluice(DEFAULT, &["kinds", "--reference"]);
    assert!(text(&output.stdout).contains("shares_per_minute"));
}

#[test]
fn what_cannot_be_read_or_found_is_named() {
    let (output, _dir) = sluice(DEFAULT, &["check", "-f", "nothing.yaml"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("nothing.yaml"));
    let topology = include_str!("topology.yaml");
    let (output, _dir) = sluice(topology, &["tap", "mining.jobs"]);
    assert!(!output.status.success(), "its variables are not set");
}

/// What is there for running a pool elsewhere has topologies without mistakes.
#[test]
fn the_topologies_of_deploy_hold() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let values = [
        ("POOL_ADDRESS", address("signet", 0)),
        ("BITCOIN_NETWORK", "signet".into()),
        ("REDIS_URL", "redis://redis:6379".into()),
        ("INFLUX_URL", "http://influx:8086".into()),
        ("INFLUX_BUCKET", "sluice".into()),
        ("INFLUX_TOKEN", "token".into()),
        ("BITCOIN_RPC", "http://node:38332".into()),
        ("BITCOIN_ZMQ", "tcp://node:28332".into()),
        ("LEDGER_HOST", "postgres".into()),
        ("KAFKA_0", "kafka:9092".into()),
        ("KAFKA_1", "kafka:9092".into()),
        ("KAFKA_2", "kafka:9092".into()),
        ("KAFKA_PREFIX", "pool.".into()),
    ];
    for file in ["compose/topology.yaml", "kubernetes/topology.yaml"] {
        let check =
            Command::new(SLUICE).args(["check", "-f"]).arg(root.join(file)).envs(values.clone()).output().unwrap();
        let (said, faults) = (String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
        assert!(check.status.success(), "{file}: {said}\n{faults}");
    }
}
