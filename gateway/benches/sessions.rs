//! What sessions cost, over real sockets and the embedded log: memory of an idle one, time of a notify to all of them,
//! CPU of a share from its socket to its durable answer. Prints one line a figure; the miners' own CPU is not counted,
//! since threads are told apart by name.
//!
//! `SESSIONS` sets how many sessions are idle (8,000; each takes two file descriptors here).

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sluice_gateway::{Gateway, GatewayConfig, GatewayIo};
use sluice_log::{EmbeddedLog, EmbeddedOptions, SharedLog, TopicSpec};
use sluice_mining::Chain;
use sluice_proto::{Body, Epoch, EventTime};
use sluice_topology::runtime::Producer;
use support::{USER, job};

const MEASURE: Duration = Duration::from_secs(3);

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// CPU time of the threads whose name begins with one of `names`.
fn cpu(names: &[&str]) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let times = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        names
            .iter()
            .any(|start| name.starts_with(start))
            .then(|| stat.split(' ').next().unwrap().parse::<u64>().unwrap())
    });
    Duration::from_nanos(times.sum())
}

fn log_in(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    let lines = format!(
        "{{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}}\n\
         {{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"{USER}\",\"x\"]}}\n"
    );
    stream.write_all(lines.as_bytes()).unwrap();
    stream
}

/// Reads lines until one holds `text`.
fn read_until(reader: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the gateway has closed the connection");
    }
}

/// Sends shares with `in_flight` unanswered until the time is over; how many were answered.
fn mine(stream: TcpStream, in_flight: u64, until: Instant) -> u64 {
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::with_capacity(1 << 16, stream));
    let (mut sent, mut answered, mut line) = (0_u64, 0_u64, String::new());
    while Instant::now() < until {
        let mut out = String::new();
        while sent - answered < in_flight {
            sent += 1;
            out += &format!(
                "{{\"id\":{sent},\"method\":\"mining.submit\",\"params\":[\"{USER}\",\"2\",\"{sent:016x}\",\
                 \"6553f101\",\"{:08x}\"]}}\n",
                sent as u32
            );
        }
        writer.write_all(out.as_bytes()).unwrap();
        loop {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the gateway has closed the connection");
            answered += u64::from(!line.starts_with("{\"id\":null"));
            // All that has come is taken, then as many are sent.
            if !reader.buffer().contains(&b'\n') {
                break;
            }
        }
    }
    answered
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let count: usize = std::env::var("SESSIONS").map_or(8_000, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
    let shared: SharedLog = log.clone();
    let (gateway, jobs) = runtime.block_on(async {
        for (name, partitions) in [("jobs", 1), ("shares", 8), ("candidates", 1)] {
            let spec = TopicSpec { name: name.into(), partitions, retention: Default::default() };
            shared.create_topic(&spec).await.unwrap();
        }
        let mut config = GatewayConfig::new("bench", Chain::Regtest);
        config.listen = vec!["127.0.0.1:0".into()];
        let io = GatewayIo {
            log: shared.clone(),
            jobs: "jobs".into(),
            targets: None,
            shares: "shares".into(),
            candidates: "candidates".into(),
            epoch: Epoch::new(1),
        };
        let gateway = Gateway::start(config, io).await.unwrap();
        (gateway, Producer::new(shared.clone(), "jobs", 1, "jobmanager", Epoch::new(1)))
    });
    let publish = |id| runtime.block_on(jobs.append(0, vec![(EventTime::now(), Body::Job(job(id)))])).unwrap();
    let to = gateway.addresses()[0];

    let before = resident();
    let mut idle: Vec<TcpStream> = (0..count).map(|_| log_in(to)).collect();
    let mut bytes = [0; 512];
    for stream in &mut idle {
        let mut read = 0;
        while bytes[..read].iter().filter(|byte| **byte == b'\n').count() < 2 {
            read += stream.read(&mut bytes[read..]).unwrap();
        }
    }
    println!("idle session: {} bytes resident ({count} sessions)", (resident() - before) / count as u64);

    let (published, used) = (Instant::now(), cpu(&["gateway"]));
    publish(1);
    for stream in &idle {
        read_until(&mut BufReader::with_capacity(8 << 10, stream), "\"method\":\"mining.notify\"");
    }
    let heard = published.elapsed();
    let written = gateway.status().last_notify;
    let used = (cpu(&["gateway"]) - used) / count as u32;
    println!("notify: {count} sessions, written {written:?} after the job was read, {used:?} of CPU each");
    println!("notify: heard by all {heard:?} after the job was published");
    drop(idle);

    publish(2);
    let cpus = || [cpu(&["gateway"]), cpu(&["log-append"])];
    for (connections, in_flight) in [(32, 16), (200, 1)] {
        let ready = (0..connections).map(|_| {
            let stream = log_in(to);
            read_until(&mut BufReader::with_capacity(1, &stream), "\"method\":\"mining.notify\"");
            stream
        });
        let ready: Vec<TcpStream> = ready.collect();
        let (began, used) = (Instant::now(), cpus());
        let until = began + MEASURE;
        let miners: Vec<_> =
            ready.into_iter().map(|stream| std::thread::spawn(move || mine(stream, in_flight, until))).collect();
        let shares: u64 = miners.into_iter().map(|miner| miner.join().unwrap()).sum();
        let took = began.elapsed();
        let each = |used: Duration| used.as_secs_f64() * 1e6 / shares as f64;
        let [in_gateway, in_log] = cpus();
        println!(
            "shares, {connections} x {in_flight} in flight: {:.0}/s, CPU each {:.2} us in the gateway, {:.2} us in the log",
            shares as f64 / took.as_secs_f64(),
            each(in_gateway - used[0]),
            each(in_log - used[1]),
        );
    }
    runtime.block_on(gateway.stop());
    log.close().unwrap();
}
