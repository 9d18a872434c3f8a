//! What sessions cost, over real sockets and the embedded log: memory of an idle one, time of a notify to all of them,
//! CPU of a share from its socket to its durable answer. Prints one line a figure; the miners' own CPU is not counted,
//! since threads are told apart by name.
//!
//! Beside each load stands its floor: the same load on a server that only reads and answers.
//!
//! `SESSIONS` sets how many sessions are idle (8,000; each takes two file descriptors here).

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sluice_gateway::{Gateway, GatewayConfig, GatewayIo};
use sluice_log::{EmbeddedLog, EmbeddedOptions, SharedLog, TopicSpec};
use sluice_mining::Chain;
use sluice_proto::{Body, Epoch, EventTime};
use sluice_topology::runtime::Producer;
use support::{USER, job};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of a notify with 12 merkle levels.
const LINE: usize = 1_500;
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

/// A miner of the load: its socket, the lines it sends next, and what it has heard.
struct Miner {
    stream: tokio::net::TcpStream,
    sent: u64,
    answered: u64,
}

impl Miner {
    /// Sends shares with `in_flight` unanswered until the time is over; how many were answered.
    async fn mine(mut self, in_flight: u64, until: Instant) -> u64 {
        let (mut out, mut bytes) = (String::new(), vec![0; 1 << 14]);
        while Instant::now() < until {
            out.clear();
            while self.sent - self.answered < in_flight {
                self.sent += 1;
                let (sent, nonce) = (self.sent, self.sent as u32);
                writeln!(
                    out,
                    "{{\"id\":{sent},\"method\":\"mining.submit\",\"params\":[\"{USER}\",\"2\",\"{sent:016x}\",\
                     \"6553f101\",\"{nonce:08x}\"]}}"
                )
                .unwrap();
            }
            self.stream.write_all(out.as_bytes()).await.unwrap();
            // All that has come is taken, then as many are sent; no job comes meanwhile.
            let read = self.stream.read(&mut bytes).await.unwrap();
            assert!(read > 0, "the gateway has closed the connection");
            self.answered += bytes[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.answered
    }
}

/// Load of `connections` miners on one thread, which is not counted; how many shares were answered.
fn load(streams: Vec<TcpStream>, in_flight: u64, until: Instant) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let miner = |stream: TcpStream| {
            stream.set_nonblocking(true).unwrap();
            Miner { stream: tokio::net::TcpStream::from_std(stream).unwrap(), sent: 0, answered: 0 }
        };
        let miners: Vec<_> =
            streams.into_iter().map(|s| tokio::task::spawn_local(miner(s).mine(in_flight, until))).collect();
        let mut answered = 0;
        for miner in miners {
            answered += miner.await.unwrap();
        }
        answered
    })
}

/// The floor: a server on two threads that reads, and writes an answer for each line, and does nothing else.
fn echo_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for number in 0..2 {
        let listener = listener.try_clone().unwrap();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::task::spawn_local(echo(stream));
                }
            });
        };
        std::thread::Builder::new().name(format!("echo-{number}")).spawn(serve).unwrap();
    }
    address
}

async fn echo(mut stream: tokio::net::TcpStream) {
    const ANSWER: &[u8] = b"{\"id\":1234567,\"result\":true,\"error\":null}\n";
    stream.set_nodelay(true).unwrap();
    let (mut bytes, mut out) = (vec![0; 1 << 16], Vec::new());
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        out.clear();
        for _ in bytes[..read].iter().filter(|byte| **byte == b'\n') {
            out.extend_from_slice(ANSWER);
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// The floor of a notify: two threads that write a line as long to the same number of connections, and do nothing else.
fn notify_floor(count: usize) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let line = vec![b'x'; LINE];
    let pairs: Vec<(TcpStream, TcpStream)> = (0..count)
        .map(|_| (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0))
        .collect();
    let began = Instant::now();
    let used: Duration = std::thread::scope(|scope| {
        let write = |half: &[(TcpStream, TcpStream)]| {
            half.iter().for_each(|(_, stream)| {
                let mut stream = stream;
                stream.write_all(&line).unwrap()
            });
            let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
        };
        let (one, two) = pairs.split_at(count / 2);
        let other = scope.spawn(move || write(one));
        let used = scope.spawn(move || write(two)).join().unwrap();
        used + other.join().unwrap()
    });
    let took = began.elapsed();
    println!(
        "floor of a notify: {count} lines of {LINE} bytes written in {took:?}, {:?} of CPU each",
        used / count as u32
    );
}

/// The shapes of load: connections, and shares in flight on each. `SHAPES=32x16,1000x1` sets others.
fn shapes() -> Vec<(usize, u64)> {
    let text = std::env::var("SHAPES").unwrap_or_else(|_| "32x16,200x1,1000x1".into());
    text.split(',')
        .map(|shape| {
            let (connections, in_flight) = shape.split_once('x').unwrap();
            (connections.parse().unwrap(), in_flight.parse().unwrap())
        })
        .collect()
}

/// Prints the rate under a load, and the CPU a share of the threads with each of these names.
fn measure(what: &str, names: &[&str], streams: Vec<TcpStream>, in_flight: u64) {
    let cpus = || names.iter().map(|name| cpu(&[name])).collect::<Vec<_>>();
    let (began, before) = (Instant::now(), cpus());
    let shares = std::thread::spawn(move || load(streams, in_flight, began + MEASURE)).join().unwrap();
    let took = began.elapsed().as_secs_f64();
    let used =
        cpus().into_iter().zip(before).zip(names).map(|((now, before), name)| {
            format!("{:.2} us in {name}", (now - before).as_secs_f64() * 1e6 / shares as f64)
        });
    println!("{what}: {:.0}/s, CPU each {}", shares as f64 / took, used.collect::<Vec<_>>().join(", "));
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
        // One address sends it all, and shares without work.
        config.limits.unlimited = vec!["127.0.0.0/8".parse().unwrap()];
        let io = GatewayIo {
            log: shared.clone(),
            producer: "bench".into(),
            jobs: "jobs".into(),
            targets: None,
            shares: "shares".into(),
            candidates: "candidates".into(),
            epoch: Epoch::new(1),
            cache: None,
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
    notify_floor(count);

    publish(2);
    let echo = echo_server();
    for (connections, in_flight) in shapes() {
        let ready = |to, greet: &dyn Fn(TcpStream) -> TcpStream| -> Vec<TcpStream> {
            (0..connections).map(|_| greet(log_in(to))).collect()
        };
        let name = format!("{connections} x {in_flight} in flight");
        let streams = ready(to, &|stream| {
            read_until(&mut BufReader::with_capacity(8 << 10, &stream), "\"mining.notify\",\"params\":[\"2\"");
            stream
        });
        measure(&format!("shares, {name}"), &["gateway", "log-append"], streams, in_flight);
        let streams = ready(echo, &|stream| {
            let mut reader = BufReader::with_capacity(8 << 10, &stream);
            (0..2).for_each(|_| read_until(&mut reader, "result"));
            stream
        });
        measure(&format!("floor, {name}"), &["echo"], streams, in_flight);
    }
    runtime.block_on(gateway.stop());
    log.close().unwrap();
}
