//! Time series on a real server of InfluxDB.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_series::{Field, InfluxDb, InfluxOptions, MemorySeries, Point, SeriesError, SeriesStore};
use sluice_testkit::influxdb::InfluxServer;

fn store(server: &InfluxServer, token: &str) -> Arc<InfluxDb> {
    let options =
        InfluxOptions { url: server.url(), bucket: "sluice/autogen".into(), org: "any".into(), token: token.into() };
    Arc::new(InfluxDb::new(options).unwrap())
}

fn point(worker: &str, minute: u64, count: u64) -> Point {
    Point {
        measurement: "shares",
        tags: vec![("miner_address", "bc1q".into()), ("worker_name", worker.into()), ("status", "accepted".into())],
        fields: vec![("count", Field::Count(count)), ("work", Field::Work(u128::from(count) << 32))],
        time_ms: 1_700_000_000_000 + minute * 60_000,
    }
}

/// Waits until something holds; a guard against hanging, not a measure.
fn wait(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Written again, or as a newer total, a point replaces the one before: on the server as in memory.
#[test]
fn totals_replace_each_other() {
    let (server, memory) = (InfluxServer::start().unwrap(), MemorySeries::default());
    let influx = store(&server, &server.token());
    // More than one request takes; names that a miner may think of.
    let names = ["rig1", "", "a b,c=d", "tr\u{e4}in\\", "line\nbreak,status=x count=1"];
    let first: Vec<Point> =
        (0..5_000).flat_map(|minute| names.map(|name| point(name, minute, minute + 1))).take(10_000).collect();
    for store in [&*influx as &dyn SeriesStore, &memory] {
        store.write(&first).unwrap();
        store.write(&first[..100]).unwrap();
        store.write(&[point("rig1", 0, 41), point("rig1", 0, 42)]).unwrap();
        assert_eq!((store.health().written, store.health().waiting), (10_102, None));
    }
    let expected = 5 * (1..=2_000_u64).sum::<u64>() + 41;
    assert_eq!(server.sum("count", "shares", "status = 'accepted'").unwrap(), expected as f64);
    let points = memory.points();
    let in_memory = points.iter().map(|point| match point.fields[0].1 {
        Field::Count(count) => count,
        Field::Work(_) => 0,
    });
    assert_eq!(in_memory.sum::<u64>(), expected);
    let at = "time = 1700000000000ms AND worker_name = 'rig1'";
    assert_eq!(server.sum("count", "shares", at).unwrap(), 42.0);
    assert_eq!(server.sum("work", "shares", at).unwrap(), 42.0 * 4_294_967_296.0);
    let workers = server.ask("SHOW TAG VALUES FROM shares WITH KEY = worker_name").unwrap();
    assert_eq!(workers[0]["values"].as_array().unwrap().len(), names.len(), "{workers}");
}

/// A server that is away is waited for: the write returns once it is back and has everything.
#[test]
fn a_server_that_dies_is_waited_for() {
    let mut server = InfluxServer::start().unwrap();
    let influx = store(&server, &server.token());
    influx.write(&[point("rig1", 0, 1)]).unwrap();
    server.kill().unwrap();
    let writer = Arc::clone(&influx);
    let waiting = std::thread::spawn(move || writer.write(&[point("rig1", 1, 2)]));
    wait("the failure to be told", || influx.health().waiting.is_some());
    assert!(influx.health().failures > 0 && !waiting.is_finished());
    server.launch().unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(influx.health().waiting, None);
    assert_eq!(server.sum("count", "shares", "status = 'accepted'").unwrap(), 3.0);
}

/// What the server refuses waits too, says what is wrong, and can be ended.
#[test]
fn a_refusal_waits_and_says_why() {
    let server = InfluxServer::start().unwrap();
    let gone = InfluxOptions { url: server.url(), bucket: "nothing".into(), org: String::new(), token: server.token() };
    for (influx, cause) in [
        (store(&server, "sluice:wrong"), "is `token` right?"),
        (Arc::new(InfluxDb::new(gone).unwrap()), "do `bucket` and `org` exist there?"),
    ] {
        let writer = Arc::clone(&influx);
        let waiting = std::thread::spawn(move || writer.write(&[point("rig1", 0, 1)]));
        let told = || influx.health().waiting.is_some_and(|(_, told)| told.contains(cause) && !told.contains("wrong"));
        wait(cause, told);
        influx.interrupt();
        assert!(matches!(waiting.join().unwrap(), Err(SeriesError::Interrupted)));
        assert!(matches!(influx.write(&[point("rig1", 0, 1)]), Err(SeriesError::Interrupted)), "now and later");
    }
}
