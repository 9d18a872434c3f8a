//! A record of a newer program: money stops at it, statistics put it with the dead letters and go on.

use std::process::Command;

use sluice_log::Partition;
use sluice_proto::v1::{Coordinates, Envelope, SliceEnd};
use sluice_proto::{Body, EventTime, SCHEMA, encode, hash64};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::common::{SLUICE, Setup, open_log, pool, wait};

fn letters(pool: &PoolProcess, setup: &Setup<'_>, args: &[&str]) -> String {
    let mut command = Command::new(SLUICE);
    command.current_dir(pool.dir()).arg("dead-letters").args(args).envs(setup.environment());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn p1_a_record_of_a_newer_program_stops_money_and_is_a_dead_letter_of_statistics() {
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let setup = Setup::simulated(&node, 5, "1");
    let mut pool = pool(&setup);
    pool.start().unwrap();
    assert!(pool.stop().unwrap().0.success());

    let log = open_log(pool.dir());
    let from = Coordinates { task: hash64("of a newer program"), epoch: 1, source_offset: 1, ..Coordinates::default() };
    let newer = Envelope::new(EventTime::now(), from, Body::SliceEnd(SliceEnd::default()));
    let newer = encode(&Envelope { schema: SCHEMA + 1, ..newer });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = runtime.block_on(log.append(&Partition::new("share.tallies", 0), vec![newer])).unwrap();
    drop(log);

    pool.spawn().unwrap();
    assert_eq!(pool.wait_exit().unwrap().code(), Some(1));
    let output = pool.output().unwrap();
    assert!(output.contains(&format!("task ledger stopped: share.tallies/0 offset {place}")), "{output}");
    assert!(output.contains("run the newer program"), "{output}");

    let mut pool = pool.arg("--only").arg("stats");
    pool.start().unwrap();
    let shown = wait("the letter", || Some(letters(&pool, &setup, &["ls"])).filter(|lines| !lines.is_empty()));
    assert!(shown.contains(&format!("share.tallies/0 offset {place}  stats: record of schema version")), "{shown}");
    assert!(pool.stop().unwrap().0.success(), "statistics have gone on");

    let told = letters(&pool, &setup, &["redrive", "--all"]);
    assert!(told.starts_with("1 letters"), "{told}");
    pool.start().unwrap();
    let shown = wait("the answer to the redriven letter", || {
        Some(letters(&pool, &setup, &["ls"])).filter(|lines| lines.lines().count() == 2)
    });
    assert!(shown.lines().next().unwrap().ends_with("redriven"), "{shown}");
    assert!(pool.stop().unwrap().0.success());
}
