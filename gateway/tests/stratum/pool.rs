//! A gateway with its topics, and miners on real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_gateway::{Gateway, GatewayConfig, GatewayError, GatewayIo, GatewayStatus};
use sluice_log::{MemoryLog, Partition, SharedLog, TopicSpec};
use sluice_mining::{Chain, Difficulty};
use sluice_proto::v1::{DifficultyTarget, Envelope, Job, Submission};
use sluice_proto::{Body, Epoch, EventTime, Offset};
use sluice_topology::runtime::Producer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::jobs::{ADDRESS, solve};
use crate::logs::records;

/// Partitions of the topic of shares.
pub const PARTITIONS: u32 = 4;
/// No test waits longer for anything; it only keeps a broken one from hanging.
pub const GUARD: Duration = Duration::from_secs(120);

/// A gateway with its topics.
pub struct Pool {
    pub log: SharedLog,
    pub gateway: Gateway,
    jobs: Producer,
    targets: Producer,
}

/// Creates the topics that a gateway needs.
pub async fn create_topics(log: &SharedLog) {
    for (name, partitions) in [("jobs", 1), ("shares", PARTITIONS), ("candidates", 1), ("targets", 2)] {
        let spec = TopicSpec { name: name.into(), partitions, retention: Default::default() };
        log.create_topic(&spec).await.unwrap();
    }
}

/// What a gateway reads and writes in tests.
pub fn io(log: &SharedLog, epoch: u32) -> GatewayIo {
    GatewayIo {
        log: log.clone(),
        producer: "stratumd".into(),
        jobs: "jobs".into(),
        targets: Some("targets".into()),
        shares: "shares".into(),
        candidates: "candidates".into(),
        epoch: Epoch::new(epoch),
        cache: None,
    }
}

/// Settings of tests: the lowest difficulty, a free port.
pub fn config() -> GatewayConfig {
    let mut config = GatewayConfig::new("stratumd", Chain::Regtest);
    config.listen = vec!["127.0.0.1:0".into()];
    config.difficulty = Difficulty::MIN;
    config.id = 3;
    config.workers = 2;
    config
}

impl Pool {
    /// A gateway on a log in memory.
    pub async fn start() -> Self {
        Self::with(config()).await
    }

    /// A gateway with these settings, on a log in memory.
    pub async fn with(config: GatewayConfig) -> Self {
        Self::on(MemoryLog::new(), 1, config).await
    }

    /// A gateway on `log`.
    pub async fn on(log: SharedLog, epoch: u32, config: GatewayConfig) -> Self {
        Self::try_on(log, epoch, config).await.unwrap()
    }

    /// The same, if it can start.
    pub async fn try_on(log: SharedLog, epoch: u32, config: GatewayConfig) -> Result<Self, GatewayError> {
        let io = io(&log, epoch);
        Self::try_with(log, epoch, config, io).await
    }

    /// A gateway that reads and writes what `io` says.
    pub async fn try_with(
        log: SharedLog,
        epoch: u32,
        config: GatewayConfig,
        io: GatewayIo,
    ) -> Result<Self, GatewayError> {
        create_topics(&log).await;
        let gateway = Gateway::start(config, io).await?;
        let producer =
            |topic: &str, count, task: &str| Producer::new(log.clone(), topic, count, task, Epoch::new(epoch));
        let (jobs, targets) = (producer("jobs", 1, "jobmanager"), producer("targets", 2, "vardiff"));
        Ok(Self { log, gateway, jobs, targets })
    }

    /// Waits until the gateway `is` so.
    pub async fn until(&self, is: impl Fn(&GatewayStatus) -> bool) {
        let wait = async {
            while !is(&self.gateway.status()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GUARD, wait).await.expect("the gateway does not get there");
    }

    /// The session of a miner that has not submitted a share yet.
    pub async fn session_of(&self, miner: &mut Miner) -> u64 {
        let stale = Submission { job_id: 0xdead, extranonce1: miner.extranonce1, ..Submission::default() };
        assert_eq!(miner.submit(&stale).await["error"][0], 21);
        self.submissions().await.iter().find(|share| share.extranonce1 == miner.extranonce1).unwrap().session
    }

    /// Publishes a job.
    pub async fn publish(&self, job: &Job) {
        self.jobs.append(0, vec![(EventTime::now(), Body::Job(job.clone()))]).await.unwrap();
    }

    /// Publishes a decision of vardiff.
    pub async fn decide(&self, session: u64, difficulty: Difficulty) {
        let target = DifficultyTarget { session, difficulty: difficulty.units(), gateway: 3 };
        self.targets.append(1, vec![(EventTime::now(), Body::DifficultyTarget(target))]).await.unwrap();
    }

    /// A connection of a miner.
    pub async fn connect(&self) -> Miner {
        Miner::connect(self.gateway.addresses()[0]).await
    }

    /// A miner that has subscribed and authorized, and has had its first job if there is one.
    pub async fn miner(&self, has_job: bool) -> Miner {
        let mut miner = self.connect().await;
        miner.log_in().await;
        if has_job {
            assert_eq!(miner.next().await["method"], "mining.set_difficulty");
            assert_eq!(miner.next().await["method"], "mining.notify");
        }
        miner
    }

    /// All that the topic of shares holds, partition by partition.
    pub async fn share_records(&self) -> Vec<(u32, Offset, Envelope)> {
        let mut all = Vec::new();
        for number in 0..PARTITIONS {
            let found = records(&*self.log, &Partition::new("shares", number)).await;
            all.extend(found.into_iter().map(|(offset, envelope)| (number, offset, envelope)));
        }
        all
    }

    /// The submissions in the topic of shares.
    pub async fn submissions(&self) -> Vec<Submission> {
        let bodies = self.share_records().await.into_iter().filter_map(|(_, _, envelope)| envelope.body);
        let shares = bodies.filter_map(|body| match body {
            Body::Submission(submission) => Some(submission),
            _ => None,
        });
        shares.collect()
    }
}

/// A miner on a socket.
pub struct Miner {
    lines: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub extranonce1: u32,
    next_id: u64,
}

impl Miner {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).await.unwrap())
    }

    /// Connects with a small receive buffer.
    pub async fn connect_narrow(to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::of(socket.connect(to).await.unwrap())
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let (reader, writer) = stream.into_split();
        Self::on(reader, writer)
    }

    /// A miner on any stream.
    pub fn on(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { lines: BufReader::new(Box::new(reader)), writer: Box::new(writer), extranonce1: 0, next_id: 100 }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
    }

    /// Sends bytes, if the connection still takes them.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        tokio::time::timeout(GUARD, self.writer.write_all(bytes)).await.expect("the pool does not read")
    }

    /// Asks and never reads, until the pool ends the connection.
    pub async fn never_read(&mut self) {
        let line = format!("{{\"id\":\"{}\",\"method\":\"mining.ping\",\"params\":[]}}\n", "x".repeat(4000));
        // The system takes some megabytes before the gateway's own bound counts.
        let mut sent = 0;
        while self.try_send(line.as_bytes()).await.is_ok() {
            sent += line.len();
            assert!(sent < 256 << 20, "still connected after {sent} bytes");
        }
    }

    /// Sends no more.
    pub async fn shut_down(&mut self) {
        self.writer.shutdown().await.unwrap();
    }

    /// The next line; `None` at the end of the connection.
    pub async fn line(&mut self) -> Option<Value> {
        let line = self.raw_line().await;
        if line.is_empty() { None } else { Some(serde_json::from_str(&line).unwrap()) }
    }

    /// The next line as it is, without its end; empty at the end of the connection.
    pub async fn raw_line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(GUARD, self.lines.read_line(&mut line)).await.expect("the pool is silent");
        // The pool may close with bytes of ours unread: then the system says "reset".
        if read.is_err() { String::new() } else { line.trim_end_matches('\n').to_owned() }
    }

    /// The next line.
    pub async fn next(&mut self) -> Value {
        self.line().await.expect("the pool has closed the connection")
    }

    /// Skips what is left until the connection ends.
    pub async fn end(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        lines
    }

    /// Sends a request and takes the next line for its answer.
    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let request = json!({"id": self.next_id, "method": method, "params": params});
        self.send(format!("{request}\n").as_bytes()).await;
        let answer = self.next().await;
        assert_eq!(answer["id"], self.next_id, "{answer}");
        answer
    }

    /// Subscribes and authorizes.
    pub async fn log_in(&mut self) {
        let subscribed = self.ask("mining.subscribe", json!(["test/1"])).await;
        self.extranonce1 = u32::from_str_radix(subscribed["result"][1].as_str().unwrap(), 16).unwrap();
        let authorized = self.ask("mining.authorize", json!([format!("{ADDRESS}.rig"), "x"])).await;
        assert_eq!(authorized["result"], true, "{authorized}");
    }

    /// A share of `job` that meets the lowest difficulty, or does not, with a nonce from `first` on.
    pub fn share(&self, job: &Job, meets: bool, first: u32) -> Submission {
        let share = Submission {
            job_id: job.job_id,
            extranonce1: self.extranonce1,
            extranonce2: 5,
            ntime: job.ntime,
            nonce: first,
            ..Submission::default()
        };
        solve(job, share, Difficulty::MIN, meets)
    }

    /// The line that submits a share.
    pub fn submit_line(share: &Submission, id: u64) -> String {
        let (job, two) = (share.job_id, share.extranonce2);
        let mut params = json!([
            format!("{ADDRESS}.rig"),
            format!("{job:x}"),
            format!("{two:016x}"),
            format!("{:08x}", share.ntime),
            format!("{:08x}", share.nonce),
        ]);
        if share.has_version_bits {
            params.as_array_mut().unwrap().push(json!(format!("{:08x}", share.version_bits)));
        }
        format!("{}\n", json!({"id": id, "method": "mining.submit", "params": params}))
    }

    /// Submits a share; the answer.
    pub async fn submit(&mut self, share: &Submission) -> Value {
        self.next_id += 1;
        self.send(Self::submit_line(share, self.next_id).as_bytes()).await;
        let answer = self.next().await;
        assert_eq!(answer["id"], self.next_id, "{answer}");
        answer
    }
}
