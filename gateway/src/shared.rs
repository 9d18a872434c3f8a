//! What the threads of a gateway share. None of it is touched on the way of a share, but for counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use parking_lot::Mutex;
use sluice_cache::Cache;
use sluice_log::SharedLog;
use sluice_proto::Offset;
use sluice_topology::runtime::Producer;
use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, watch};

use crate::GatewayConfig;
use crate::cached::Cached;
use crate::history::History;
use crate::identity::Identities;
use crate::jobs::JobBatch;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::protocol::reply;
use crate::resume::Tokens;
use crate::status::{Counters, GatewayStatus, LatestJob, value};
use crate::tls::Tls;
use crate::worker::Mail;

/// What the threads of a gateway share.
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) identities: Identities,
    pub(crate) tokens: Tokens,
    pub(crate) history: History,
    /// What is shared with other gateways.
    pub(crate) cached: Option<Cached>,
    /// The listeners, in the order of the settings.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) limits: Limits,
    /// What asks a miner to connect again when the gateway lets go of it.
    pub(crate) farewell: Vec<u8>,
    /// To each worker.
    pub(crate) mail: Vec<Sender<Mail>>,
    /// The log.
    pub(crate) log: SharedLog,
    /// Writes to the block lane.
    pub(crate) candidates: Producer,
    /// One per worker.
    pub(crate) workers: Vec<Counters>,
    pub(crate) connections_total: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) latest: Mutex<Option<LatestJob>>,
    started: Instant,
    /// Seconds since then, as the workers' sweeps have noted them.
    seconds: AtomicU32,
    failure: watch::Sender<Option<String>>,
    drain: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    gone: Notify,
}

impl Shared {
    pub(crate) fn new(
        config: GatewayConfig,
        listeners: Vec<Listener>,
        identities: Identities,
        (log, cache): (SharedLog, Option<Arc<dyn Cache>>),
        candidates: Producer,
        mail: Vec<Sender<Mail>>,
    ) -> Self {
        let cached = cache.map(|cache| Cached::new(cache, log.uuid()));
        Self {
            limits: Limits::new(config.limits.clone(), config.max_connections, cached.clone()),
            farewell: reply::reconnect(config.drain_to.as_deref()),
            config,
            listeners,
            identities,
            tokens: Tokens::new(log.uuid()),
            history: History::default(),
            cached,
            log,
            candidates,
            workers: mail.iter().map(|_| Counters::default()).collect(),
            mail,
            connections_total: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            latest: Mutex::new(None),
            started: Instant::now(),
            seconds: AtomicU32::new(0),
            failure: watch::Sender::new(None),
            drain: watch::Sender::new(false),
            gone: Notify::new(),
            stop: watch::Sender::new(false),
        }
    }

    /// The gateway has failed for good: nothing more is answered. The first cause stays.
    pub(crate) fn fail(&self, cause: String) {
        tracing::error!(gateway = self.config.name, cause, "the gateway has failed");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(cause);
            first
        });
    }

    /// `task`, but a panic in it fails the gateway: tasks catch panics, and half of a worker must not look alive.
    pub(crate) async fn guarded(self: Arc<Self>, task: impl Future<Output = ()>) {
        let guard = FailOnPanic(self);
        task.await;
        drop(guard);
    }

    /// Resolves with the cause once the gateway has failed.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(cause) = failure.borrow_and_update().clone() {
                return cause;
            }
            if failure.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Seconds since the start, as of the last sweep: what time limits of seconds need, without asking a clock.
    pub(crate) fn seconds(&self) -> u32 {
        self.seconds.load(Ordering::Relaxed)
    }

    /// Notes the time.
    pub(crate) fn set_seconds(&self) {
        let seconds = self.started.elapsed().as_secs();
        self.seconds.store(u32::try_from(seconds).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Tells all threads to let go of the miners.
    pub(crate) fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Resolves once the gateway is to let go of its miners.
    pub(crate) async fn draining(&self) {
        // As in `stopped`.
        let _ = self.drain.subscribe().wait_for(|drain| *drain).await;
    }

    /// Whether the gateway lets go of its miners.
    pub(crate) fn is_draining(&self) -> bool {
        *self.drain.borrow()
    }

    /// A connection has gone.
    pub(crate) fn has_gone(&self) {
        if self.is_draining() {
            self.gone.notify_one();
        }
    }

    /// Resolves once no connection is left, while the gateway lets go of them. One caller at a time.
    pub(crate) async fn empty(&self) {
        while self.connections() > 0 {
            self.gone.notified().await;
        }
    }

    /// Connections there are. Counted by listener: no connection changes that, while a sum over the workers would miss
    /// one that moves between them meanwhile.
    pub(crate) fn connections(&self) -> usize {
        self.listeners.iter().map(|listener| listener.connections.load(Ordering::Relaxed)).sum()
    }

    /// The certificates of its listeners.
    pub(crate) fn tls(&self) -> impl Iterator<Item = &Tls> {
        self.listeners.iter().filter_map(|listener| listener.tls.as_ref())
    }

    /// Tells all threads to stop.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves once the gateway is to stop.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`: the wait can only end with the value.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Notes the newest job of a batch.
    pub(crate) fn note(&self, batch: &JobBatch) {
        let newest = batch.jobs.last().map(|(offset, issued, job)| LatestJob {
            job_id: job.job_id,
            height: job.height,
            nbits: job.nbits,
            offset: offset.get(),
            issued: UNIX_EPOCH + Duration::from_nanos(issued.nanos()),
        });
        if let (Some(newest), Some(cached)) = (newest, &self.cached) {
            cached.note_job(Offset::new(newest.offset), newest.job_id);
        }
        let mut latest = self.latest.lock();
        *latest = newest.or(*latest);
    }

    /// A session goes on here that has been elsewhere, and nothing is remembered of it: what the cache knows comes to the worker
    /// as if vardiff had decided it just now.
    pub(crate) fn recall(self: &Arc<Self>, session: u64) {
        let Some(asked) = self.cached.as_ref().map(|cached| cached.session(session)) else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let Some(difficulty) = asked.await else { return };
            shared.history.note_session(session, difficulty);
            let worker = shared.identities.home_of(session);
            if shared.mail[worker as usize].send(Mail::Decide((session, difficulty))).await.is_err() {
                tracing::debug!(session, "a difficulty after the stop");
            }
        });
    }

    /// The gateway in numbers.
    pub(crate) fn status(&self) -> GatewayStatus {
        let mut status = GatewayStatus {
            limits: self.limits.status(Instant::now()),
            listeners: self.listeners.iter().map(Listener::status).collect(),
            connections_total: value(&self.connections_total),
            connections_refused: value(&self.connections_refused),
            accept_errors: value(&self.accept_errors),
            latest_job: *self.latest.lock(),
            failure: self.failure.borrow().clone(),
            ..GatewayStatus::default()
        };
        self.workers.iter().for_each(|worker| worker.add_to(&mut status));
        status
    }
}

/// What ends by a bug must not leave a gateway that looks alive.
pub(crate) struct FailOnPanic(pub(crate) Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(format!("{}: a thread has failed by a bug, see the log", self.0.config.name));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ListenerConfig;
    use sluice_log::MemoryLog;
    use sluice_mining::Chain;
    use sluice_proto::Epoch;

    /// Of a gateway with one listener, and one worker that takes no mail.
    pub(crate) fn shared() -> Arc<Shared> {
        let log: SharedLog = MemoryLog::new();
        let candidates = Producer::new(log.clone(), "candidates", 1, "stratumd", Epoch::new(1));
        let identities = Identities::new(0, Epoch::new(1), 1, 1);
        let config = GatewayConfig::new("stratumd", Chain::Regtest);
        let listeners = vec![Listener::new(&config, &ListenerConfig::plain("127.0.0.1:0")).unwrap()];
        let mail = vec![tokio::sync::mpsc::channel(1).0];
        Arc::new(Shared::new(config, listeners, identities, (log, None), candidates, mail))
    }

    #[tokio::test]
    async fn a_panic_in_a_task_fails_the_gateway_and_its_end_does_not() {
        let shared = shared();
        tokio::spawn(Arc::clone(&shared).guarded(async {})).await.unwrap();
        assert_eq!(shared.status().failure, None);
        assert!(tokio::spawn(Arc::clone(&shared).guarded(async { panic!("a bug") })).await.is_err());
        assert!(shared.failed().await.contains("by a bug"));
    }

    #[tokio::test]
    async fn the_first_cause_stays() {
        let shared = shared();
        shared.fail("the first".into());
        shared.fail("another".into());
        assert_eq!(shared.failed().await, "the first");
        assert_eq!(shared.status().failure.as_deref(), Some("the first"));
    }
}
