//! The foreign miner is found, started and ended.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::time::Duration;

use sluice_testkit::foreign::ForeignMiner;

#[test]
fn the_foreign_miner_connects_and_speaks_stratum() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut miner = ForeignMiner::start(&address, "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080.w", 1).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(miner.is_running().unwrap(), "{}", miner.output().unwrap()),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let first = BufReader::new(&stream).lines().next().unwrap().unwrap();
    assert!(first.contains("mining.configure") || first.contains("mining.subscribe"), "{first}");
    assert!(miner.is_running().unwrap(), "{}", miner.output().unwrap());
    drop(miner);
    let mut rest = BufReader::new(&stream).lines();
    while let Some(Ok(_)) = rest.next() {}
}
