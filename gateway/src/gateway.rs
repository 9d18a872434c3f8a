//! Starting and stopping.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_cache::Cache;
use sluice_log::{Partition, SharedLog};
use sluice_proto::Epoch;
use sluice_topology::runtime::{Producer, Writer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::acceptor::{Acceptor, Arrival};
use crate::identity::Identities;
use crate::jobs::{Handed, JobBatch, JobFeed};
use crate::listener::{Listener, listen};
use crate::protocol::reply;
use crate::shared::{FailOnPanic, Shared};
use crate::targets::{Decision, TargetFeed};
use crate::worker::{Inbox, Mail, Worker};
use crate::{GatewayConfig, GatewayError, GatewayStatus};

/// Connections, jobs or decisions that wait for a worker; the thread that hands them over waits beyond it.
const INBOX: usize = 1024;

/// How often addresses that left are forgotten, and certificates looked at.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// What a gateway reads and writes.
#[derive(Clone)]
pub struct GatewayIo {
    /// The log.
    pub log: SharedLog,
    /// Name of the producer of its records: its identity, which stays the same when it is renamed.
    pub producer: String,
    /// Topic of jobs; one partition.
    pub jobs: String,
    /// Topic of vardiff's decisions, if there is one.
    pub targets: Option<String>,
    /// Topic of submissions and ticks.
    pub shares: String,
    /// Topic of block candidates; one partition.
    pub candidates: String,
    /// Epoch of this start: see [`sluice_topology::runtime::Owners::claim_source`].
    pub epoch: Epoch,
    /// What is shared with other gateways of the pool, beside the log.
    pub cache: Option<Arc<dyn Cache>>,
}

/// A running gateway. Dropping it stops it without waiting.
pub struct Gateway {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The ways from the main thread to the workers.
#[derive(Default)]
struct Outward {
    connections: Vec<Sender<Arrival>>,
    jobs: Vec<Sender<Handed>>,
    targets: Vec<Sender<Decision>>,
}

impl Gateway {
    /// Starts it. It listens when this returns; miners get work as soon as there is a job.
    ///
    /// # Errors
    /// If a setting cannot be used, an address is taken, a topic is missing or cannot be read, or the system gives no
    /// thread.
    pub async fn start(config: GatewayConfig, io: GatewayIo) -> Result<Self, GatewayError> {
        let config = config.checked()?;
        let partitions = partitions(&config, &io, &io.shares).await?;
        partitions_of_one(&config, &io, &io.candidates).await?;
        let workers = workers(&config, partitions);
        let producer = |topic: &str, count| Producer::new(Arc::clone(&io.log), topic, count, &io.producer, io.epoch);
        let identities = Identities::new(config.id, io.epoch, partitions, workers);
        let shares = Self::writers(producer(&io.shares, partitions), &identities, workers);
        let candidates = producer(&io.candidates, 1);
        let (mail, letters): (Vec<_>, Vec<_>) = (0..workers).map(|_| channel(INBOX)).unzip();
        let beside = (Arc::clone(&io.log), io.cache.clone());
        let doors = config.doors();
        let listeners: Result<Vec<_>, _> = doors.iter().map(|door| Listener::new(&config, door)).collect();
        let shared = Shared::new(config.clone(), listeners?, identities, beside, candidates, mail);
        let shared = Arc::new(shared);
        let hint = match &shared.cached {
            Some(cached) => cached.newest_job().await,
            None => None,
        };
        let (feed, jobs) = JobFeed::open(Arc::clone(&io.log), &io.jobs, &config.name, config.chain, hint).await?;
        jobs.last().into_iter().for_each(|batch| shared.note(batch));
        let mut listeners = Vec::new();
        for door in &doors {
            listeners.push(listen(&config, &door.listen).await?);
        }
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let mut gateway = Self { shared, addresses, threads: Mutex::default() };
        let mut outward = Outward::default();
        for ((number, mail), writers) in (0..).zip(letters).zip(shares) {
            gateway.spawn_worker(number, writers, jobs.clone(), mail, &mut outward)?;
        }
        let targets = gateway.target_feeds(&io, &outward).await?;
        gateway.spawn_main(listeners, feed, targets, outward)?;
        tracing::info!(gateway = config.name, addresses = ?gateway.addresses, workers, partitions, "miners can connect");
        Ok(gateway)
    }

    /// The writers of each worker: each partition is written by one worker only.
    fn writers(shares: Producer, identities: &Identities, workers: u32) -> Vec<Vec<Writer>> {
        let mut of_workers: Vec<Vec<Writer>> = (0..workers).map(|_| Vec::new()).collect();
        for (partition, writer) in (0..).zip(shares.into_writers()) {
            of_workers[identities.worker_of(partition) as usize].push(writer);
        }
        of_workers
    }

    fn spawn_worker(
        &mut self,
        number: u32,
        writers: Vec<Writer>,
        jobs: Vec<Arc<JobBatch>>,
        mail: Receiver<Mail>,
        outward: &mut Outward,
    ) -> Result<(), GatewayError> {
        let (connections, connections_in) = channel(INBOX);
        let (jobs_out, jobs_in) = channel(INBOX);
        let (targets, targets_in) = channel(INBOX);
        outward.connections.push(connections);
        outward.jobs.push(jobs_out);
        outward.targets.push(targets);
        let inbox = Inbox { writers, connections: connections_in, jobs: jobs_in, targets: targets_in, mail };
        self.spawn(&format!("gateway-{number}"), move |shared| Worker::run(shared, number, jobs, inbox))
    }

    /// Feeds of all partitions of vardiff's decisions.
    async fn target_feeds(&self, io: &GatewayIo, outward: &Outward) -> Result<Vec<TargetFeed>, GatewayError> {
        let Some(topic) = &io.targets else { return Ok(Vec::new()) };
        let mut feeds = Vec::new();
        for number in 0..partitions(&self.shared.config, io, topic).await? {
            let (shared, workers) = (Arc::clone(&self.shared), outward.targets.clone());
            let partition = Partition::new(topic.as_str(), number);
            feeds.push(TargetFeed::open(shared, workers, Arc::clone(&io.log), partition).await?);
        }
        Ok(feeds)
    }

    /// The thread that takes connections, jobs and decisions, and hands them to the workers.
    fn spawn_main(
        &mut self,
        listeners: Vec<std::net::TcpListener>,
        feed: JobFeed,
        targets: Vec<TargetFeed>,
        outward: Outward,
    ) -> Result<(), GatewayError> {
        self.spawn("gateway-main", move |shared| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                for (place, listener) in listeners.into_iter().enumerate() {
                    let acceptor = Acceptor::new(Arc::clone(&shared), place, outward.connections.clone());
                    let listener = TcpListener::from_std(listener)?;
                    tokio::spawn(Arc::clone(&shared).guarded(acceptor.run(listener)));
                }
                for feed in targets {
                    tokio::spawn(Arc::clone(&shared).guarded(feed.run()));
                }
                tokio::spawn(Arc::clone(&shared).guarded(look_after(Arc::clone(&shared))));
                let jobs = feed_jobs(Arc::clone(&shared), feed, outward.jobs);
                tokio::spawn(Arc::clone(&shared).guarded(jobs));
                tokio::select! {
                    () = shared.stopped() => {}
                    _ = shared.failed() => {}
                }
                Ok(())
            })
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(Arc<Shared>) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), GatewayError> {
        let shared = Arc::clone(&self.shared);
        let guard = FailOnPanic(Arc::clone(&shared));
        let body = move || {
            let guard = guard;
            if let Err(error) = run(shared) {
                guard.0.fail(format!("{}: no event loop: {error}", guard.0.config.name));
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let failed = |error| GatewayError::Thread { name: self.shared.config.name.clone(), error };
        self.threads.get_mut().push(thread.map_err(failed)?);
        Ok(())
    }

    /// Addresses it listens on, in the order of the settings.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// What it does, in numbers.
    pub fn status(&self) -> GatewayStatus {
        self.shared.status()
    }

    /// Shows a text to all miners that get jobs (`client.show_message`). What a miner does with it is its own affair.
    pub async fn show_message(&self, text: &str) {
        self.tell_all(reply::show_message(text)).await;
    }

    /// Shows a text to the miner of one session; false if the session is not this gateway's.
    pub async fn show_message_to(&self, session: u64, text: &str) -> bool {
        self.ask(session, Mail::Tell(Some(session), reply::show_message(text).into())).await
    }

    /// Asks all miners that get jobs to connect again (`client.reconnect`), to the address that they know.
    pub async fn reconnect(&self) {
        self.tell_all(reply::RECONNECT).await;
    }

    /// Gives a session another extranonce1 with the next job (`mining.set_extranonce`), if its miner has subscribed to such
    /// changes; false if the session is not this gateway's.
    pub async fn change_extranonce(&self, session: u64) -> bool {
        self.ask(session, Mail::ChangeExtranonce(session)).await
    }

    async fn tell_all(&self, line: impl Into<Bytes>) {
        let line = line.into();
        for worker in &self.shared.mail {
            if worker.send(Mail::Tell(None, line.clone())).await.is_err() {
                tracing::debug!("a message after the stop");
            }
        }
    }

    async fn ask(&self, session: u64, letter: Mail) -> bool {
        let worker = self.shared.identities.worker_of_session(session);
        match worker.and_then(|worker| self.shared.mail.get(worker as usize)) {
            Some(worker) => worker.send(letter).await.is_ok(),
            None => false,
        }
    }

    /// Reads all certificates again; those of connections that are there stay with them.
    ///
    /// # Errors
    /// [`GatewayError::Certificate`] for the first that cannot be used: the one before stays in use, and so for the
    /// others.
    pub fn reload(&self) -> Result<(), GatewayError> {
        let mut first = Ok(());
        for tls in self.shared.tls() {
            if let Err(problem) = tls.reload() {
                let error = GatewayError::Certificate { name: self.shared.config.name.clone(), problem };
                tracing::error!(%error, "a certificate stays as it is");
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Lets go of the miners, if there is a time for it: takes no more connections, asks miners to connect again
    /// (elsewhere, if there is a place), and serves those that are there until they have gone or the time is over.
    pub async fn drain(&self) {
        let time = self.shared.config.drain;
        if time.is_zero() {
            return;
        }
        let connections = self.shared.connections();
        tracing::info!(gateway = self.shared.config.name, connections, ?time, "miners are asked to connect again");
        self.shared.drain();
        let gone = async {
            tokio::select! {
                () = self.shared.empty() => {}
                // It closes its connections by itself.
                _ = self.shared.failed() => {}
            }
        };
        if tokio::time::timeout(time, gone).await.is_err() {
            let left = self.shared.connections();
            tracing::info!(gateway = self.shared.config.name, left, "some miners are still there");
        }
    }

    /// Resolves with the cause when it has failed for good. From then on nothing is answered.
    pub async fn failed(&self) -> String {
        self.shared.failed().await
    }

    /// Stops it: takes no more connections and reads no more, answers what is in flight, and closes. Takes 2 s at most.
    pub async fn stop(&self) {
        self.shared.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().filter_map(|t| t.join().err()).count());
        match joined.await {
            Ok(0) => tracing::info!(gateway = self.shared.config.name, "the gateway has stopped"),
            Ok(_) | Err(_) => tracing::error!(gateway = self.shared.config.name, "a thread of the gateway had failed"),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Forgets addresses that left, and reads certificates that have changed.
async fn look_after(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(LOOK_AFTER);
    loop {
        interval.tick().await;
        shared.limits.prune(Instant::now());
        let shared = Arc::clone(&shared);
        let read = tokio::task::spawn_blocking(move || {
            for tls in shared.tls() {
                if tls.has_changed()
                    && let Err(problem) = tls.reload()
                {
                    // A half-written pair of files is read again at the next look.
                    tracing::warn!(problem, "a changed certificate is not used");
                }
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "certificates could not be looked at");
        }
    }
}

/// Hands jobs to all workers until the topic cannot be read any more.
///
/// The next jobs wait until all workers have sent the last ones. Else a worker that is through with a new tip's empty job
/// goes on to the full one, and takes the cores from those whose miners still work on the old tip.
async fn feed_jobs(shared: Arc<Shared>, mut feed: JobFeed, workers: Vec<Sender<Handed>>) {
    loop {
        match feed.next_batch().await {
            Ok(batch) => {
                shared.note(&batch);
                let (sending, mut sent) = channel(1);
                for worker in &workers {
                    let handed = Handed { batch: Arc::clone(&batch), sending: sending.clone() };
                    if worker.send(handed).await.is_err() {
                        tracing::debug!("a job after the stop");
                    }
                }
                drop(sending);
                // Nothing is ever sent: it ends when the last worker has dropped its end.
                let _ = sent.recv().await;
            }
            Err(error) => return shared.fail(error.to_string()),
        }
    }
}

/// Number of partitions of a topic.
pub(crate) async fn partitions(config: &GatewayConfig, io: &GatewayIo, topic: &str) -> Result<u32, GatewayError> {
    let name = || config.name.clone();
    let topics = io.log.topics().await.map_err(|error| GatewayError::Log { name: name(), error })?;
    let found = topics.iter().find(|info| *info.name == *topic).map(|info| info.partitions);
    found.ok_or_else(|| GatewayError::NoTopic { name: name(), topic: topic.to_owned() })
}

/// Checks that a topic has one partition.
async fn partitions_of_one(config: &GatewayConfig, io: &GatewayIo, topic: &str) -> Result<(), GatewayError> {
    let count = partitions(config, io, topic).await?;
    let problem = format!("the topic {topic} has {count} partitions, it must have one: correct the topology");
    if count == 1 { Ok(()) } else { Err(GatewayError::Setting { name: config.name.clone(), problem }) }
}

/// Number of worker threads: each needs a partition of its own.
fn workers(config: &GatewayConfig, partitions: u32) -> u32 {
    let wanted = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, partitions.max(1))
}
