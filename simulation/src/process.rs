//! Processes: tasks, gateways, the jobmanager. Each is driven by hand; dropping it is its death.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use sluice_gateway::internals::simulate::SimGateway;
use sluice_gateway::{GatewayConfig, GatewayError, GatewayIo};
use sluice_ledger::LedgerStore;
use sluice_log::{LogError, Partition, SharedLog};
use sluice_mining::node::BlockNodes;
use sluice_mining::{Chain, Difficulty};
use sluice_proto::v1::Job;
use sluice_proto::{Body, Epoch, EventTime, hash64};
use sluice_topology::runtime::{OwnerError, Owners, Producer, RuntimeOptions, TaskError, TaskSpec, run_task};
use tokio::sync::watch;

use crate::fuse::{Fuse, Point};
use crate::log::Disk;
use crate::pool;
use crate::state::Store;
use crate::store::{Fate, FatefulStore};

/// For ever, as far as a schedule goes: what ends a wait here is an event, never the time.
const EVER: Duration = Duration::from_secs(1 << 20);

/// Whether something has happened that a process waits for.
#[derive(Debug)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What wakes a process.
#[derive(Clone, Debug)]
pub struct Bell(Arc<Flag>);

impl Default for Bell {
    fn default() -> Self {
        Self(Arc::new(Flag(AtomicBool::new(true))))
    }
}

impl Bell {
    /// It has something to do.
    pub fn rings(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Gives it something to do.
    pub fn ring(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }

    fn answer(&self) -> Waker {
        self.0.0.store(false, Ordering::Relaxed);
        Waker::from(Arc::clone(&self.0))
    }
}

/// What a task runs with.
pub struct Around<'a> {
    /// The topics.
    pub disk: &'a Disk,
    /// The ledger's database.
    pub ledger: &'a Arc<dyn LedgerStore>,
    /// The nodes.
    pub nodes: &'a Arc<dyn BlockNodes>,
    /// The chain.
    pub network: &'a str,
}

/// The owners of tasks as the process `id` knows them.
fn owners(id: u64, disk: &Disk, fuse: &Fuse) -> Arc<Owners> {
    Owners::new(disk.open(id, fuse), u128::from(id).to_be_bytes())
}

/// A task, run by one owner.
pub struct TaskProcess {
    /// Number of the process.
    pub id: u64,
    /// Place of the task in the plan.
    pub spec: usize,
    /// Its state.
    pub store: Store,
    /// It stands still.
    pub paused: bool,
    /// Where it dies.
    pub fuse: Fuse,
    /// Wakes it.
    pub bell: Bell,
    ledger: Arc<FatefulStore>,
    stop: watch::Sender<bool>,
    run: LocalBoxFuture<'static, Result<(), TaskError>>,
}

impl TaskProcess {
    /// Begins to open the task `spec` on `store`. It lets batches that write nothing wait for the next, where `lingers`
    /// says so.
    ///
    /// # Errors
    /// Never: its fee is one that may be.
    pub fn start(
        id: u64,
        (place, spec): (usize, &TaskSpec),
        store: Store,
        around: &Around<'_>,
        lingers: bool,
    ) -> anyhow::Result<Self> {
        let fuse = Fuse::default();
        let (stop, stopped) = watch::channel(false);
        let ledger = FatefulStore::new(Arc::clone(around.ledger));
        let externals = pool::externals(ledger.clone(), Arc::clone(around.nodes))?;
        let linger = if lingers { EVER } else { Duration::ZERO };
        let options = RuntimeOptions { starvation_bound: 2, table_timeout: EVER, linger };
        let (owners, env) = (owners(id, around.disk, &fuse), store.env(&fuse));
        let run = run_task(spec.clone(), around.network.to_owned(), owners, env, externals, options, stopped);
        let (bell, run) = (Bell::default(), Box::pin(run));
        Ok(Self { id, spec: place, store, paused: false, fuse, bell, ledger, stop, run })
    }

    /// Lets it work until it waits for something; ready when it has ended.
    pub fn poll(&mut self) -> Poll<Result<(), TaskError>> {
        let waker = self.bell.answer();
        self.run.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Lets it die at `point` once more than `times`, or behind its next transaction of the ledger.
    pub fn doom(&self, point: Option<Point>, times: u64) {
        match point {
            Some(point) => self.fuse.arm(point, times),
            None => self.ledger.then(&[Fate::Unheard]),
        }
    }

    /// Nothing is to befall it any more.
    pub fn spare(&self) {
        self.fuse.disarm();
        self.ledger.heal();
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// A gateway's process.
pub struct GatewayProcess {
    /// Number of the process.
    pub id: u64,
    /// Number of the gateway.
    pub gateway: u8,
    /// How far its clock is ahead of the world's, milliseconds; may be negative.
    pub skew: i64,
    /// It stands still.
    pub paused: bool,
    /// Another one has taken its place.
    pub superseded: bool,
    /// Where it dies.
    pub fuse: Fuse,
    /// Wakes it.
    pub bell: Bell,
    place: Place,
}

enum Place {
    Opening(LocalBoxFuture<'static, Result<SimGateway, GatewayError>>),
    Open(Box<SimGateway>),
}

impl GatewayProcess {
    /// Begins to open the gateway of this number in `epoch`.
    pub fn start(id: u64, gateway: u8, epoch: Epoch, disk: &Disk, clock: EventTime) -> Self {
        let fuse = Fuse::default();
        let io = GatewayIo {
            log: disk.open(id, &fuse),
            jobs: "mining.jobs".into(),
            targets: Some("difficulty.targets".into()),
            shares: "share.submissions".into(),
            candidates: "block.candidates".into(),
            producer: format!("gateway{gateway}"),
            epoch,
            cache: None,
        };
        let mut config = GatewayConfig::new(&format!("gateway{gateway}"), Chain::Regtest);
        config.id = gateway;
        config.difficulty = Difficulty::MIN;
        config.min_difficulty = Difficulty::MIN;
        config.max_difficulty = Difficulty::MIN;
        let place = Place::Opening(Box::pin(SimGateway::open(config, io, clock)));
        Self { id, gateway, skew: 0, paused: false, superseded: false, fuse, bell: Bell::default(), place }
    }

    /// The gateway, once it is open.
    pub fn open(&mut self) -> Option<&mut SimGateway> {
        match &mut self.place {
            Place::Open(gateway) => Some(gateway),
            Place::Opening(_) => None,
        }
    }

    /// Lets it work until it waits for something; ready with its cause when it has failed.
    pub fn poll(&mut self, clock: EventTime) -> Poll<String> {
        let waker = self.bell.answer();
        let mut cx = Context::from_waker(&waker);
        loop {
            match &mut self.place {
                Place::Open(gateway) => return gateway.poll(clock, &mut cx),
                Place::Opening(opening) => match opening.as_mut().poll(&mut cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(gateway)) => self.place = Place::Open(Box::new(gateway)),
                    Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                },
            }
        }
    }
}

/// Writes templates and jobs, as the jobmanager does: in an epoch of its own, a job once its template is durable, and
/// nothing once another one has begun.
pub struct Manager {
    /// Number of the process.
    pub id: u64,
    /// Wakes it.
    pub bell: Bell,
    log: SharedLog,
    owners: Arc<Owners>,
    at_work: Option<LocalBoxFuture<'static, Result<Option<Desk>, ManagerError>>>,
    /// What it writes with, once it has an epoch and is not at work.
    desk: Option<Desk>,
    /// Another one has begun.
    replaced: bool,
}

/// Name of the jobmanager.
const MANAGER: &str = "jobmanager";

/// Why the jobmanager cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// What it writes is not appended.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It gets no epoch.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

struct Desk {
    epoch: Epoch,
    jobs: Producer,
    templates: Producer,
}

/// What the manager is to write: the records of the template, and the job by the offset that makes it known.
pub type Issue = (Vec<(EventTime, Body)>, Box<dyn FnOnce(u64) -> (EventTime, Job)>);

impl Manager {
    /// With nothing to do.
    pub fn new(id: u64, disk: &Disk) -> Self {
        let fuse = Fuse::default();
        let (log, owners) = (disk.open(id, &fuse), owners(id, disk, &fuse));
        Self { id, bell: Bell::default(), log, owners, at_work: None, desk: None, replaced: false }
    }

    /// It can be given something to do.
    pub fn is_idle(&self) -> bool {
        self.at_work.is_none()
    }

    /// Another one has begun: this one does nothing any more.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Begins to write a template and its job.
    pub fn issue(&mut self, issue: Issue) {
        let (log, owners, desk) = (self.log.clone(), Arc::clone(&self.owners), self.desk.take());
        self.bell = Bell::default();
        self.at_work = Some(Box::pin(async move {
            let desk = match desk {
                Some(desk) => desk,
                None => Desk::open(&log, &owners).await?,
            };
            if owners.later(hash64(MANAGER), desk.epoch).await?.is_some() {
                return Ok(None);
            }
            desk.write(issue).await?;
            Ok(Some(desk))
        }));
    }

    /// Lets it work until it waits for something.
    ///
    /// # Errors
    /// If the log fails.
    pub fn poll(&mut self) -> Result<(), ManagerError> {
        let waker = self.bell.answer();
        let Some(work) = &mut self.at_work else { return Ok(()) };
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => Ok(()),
            Poll::Ready(done) => {
                self.at_work = None;
                self.desk = done?;
                self.replaced = self.desk.is_none();
                Ok(())
            }
        }
    }
}

impl Desk {
    async fn open(log: &SharedLog, owners: &Owners) -> Result<Self, ManagerError> {
        let epoch = owners.claim(MANAGER, Epoch::default()).await?;
        let topics = ["mining.jobs", "mining.templates"];
        owners.fence(MANAGER, epoch, topics.into_iter().map(|topic| Partition::new(topic, 0)).collect()).await?;
        let [jobs, templates] = topics.map(|topic| Producer::new(log.clone(), topic, 1, MANAGER, epoch));
        Ok(Self { epoch, jobs, templates })
    }

    async fn write(&self, (chunks, job): Issue) -> Result<(), LogError> {
        let count = chunks.len() as u64;
        let clock = if count == 0 { 0 } else { self.templates.append(0, chunks).await?.get() + count - 1 };
        let (time, job) = job(clock);
        self.jobs.append(0, vec![(time, Body::Job(job))]).await.map(drop)
    }
}
