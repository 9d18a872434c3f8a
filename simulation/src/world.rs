//! The simulated world: who is there, and what each may do next.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use anyhow::Result;
use futures::FutureExt;
use sluice_ledger::LedgerStore;
use sluice_log::Partition;
use sluice_mining::node::BlockNodes;
use sluice_proto::{Body, Epoch, EventTime};
use sluice_topology::runtime::{Plan, TaskError, topics_of};

use crate::fuse::Fuse;
use crate::log::Disk;
use crate::miner::Miner;
use crate::nodes::SimNodes;
use crate::process::{Around, GatewayProcess, Manager, TaskProcess};
use crate::records::{GRACE_MS, Random, START};
use crate::state::Store;
use crate::work::{TIPS, Work};

/// What the ledger says to the owner that another one has replaced.
const LEDGER_REPLACED: &str = "the ledger is written by another process";
/// Turns after which a world that is left alone should have come to rest.
const REST: u32 = 200_000;

/// What must never be, and how it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant of DESIGN 1.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// A violation.
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

/// What a seed decides once, for the whole schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The share processor is in four tasks instead of one.
    pub split: bool,
    /// Offsets have holes.
    pub holes: bool,
    /// Gateways there are.
    pub gateways: u8,
    /// Miners there are.
    pub miners: u64,
    /// A partition that becomes durable more slowly than the others, by its number among those that wait.
    pub slow: u64,
}

impl Setup {
    /// Drawn from `random`.
    pub fn draw(random: &mut Random) -> Self {
        Self {
            split: random.one_in(4),
            holes: random.one_in(3),
            gateways: 1 + random.below(2) as u8,
            miners: 1 + random.below(4),
            slow: random.below(16),
        }
    }
}

/// Everything there is.
pub struct World<'a> {
    pub(crate) setup: Setup,
    pub(crate) random: Random,
    pub(crate) work: &'a mut Work,
    pub(crate) plan: &'a Plan,
    pub(crate) disk: Disk,
    pub(crate) ledger: Arc<dyn LedgerStore>,
    pub(crate) nodes: Arc<SimNodes>,
    pub(crate) tasks: Vec<TaskProcess>,
    /// Tasks that nobody runs, by their place in the plan, and what is left of their states.
    pub(crate) orphans: BTreeMap<usize, Store>,
    pub(crate) gateways: Vec<GatewayProcess>,
    pub(crate) manager: Manager,
    pub(crate) miners: Vec<Miner>,
    /// Milliseconds since the Unix epoch, as the world has it.
    pub(crate) clock: u64,
    /// The next job to issue, and whether its tip is new since the last one that was issued.
    pub(crate) next_job: u64,
    pub(crate) last_tip: u64,
    processes: u64,
    epochs: BTreeMap<u8, u32>,
    trace: Option<RefCell<Vec<String>>>,
}

impl<'a> World<'a> {
    /// A world in which everything has been told to start.
    pub(crate) fn new(
        seed: u64,
        (work, plans): (&'a mut Work, &'a [Plan; 2]),
        ledger: Arc<dyn LedgerStore>,
        trace: bool,
    ) -> Result<Self> {
        let mut random = Random::new(seed);
        let setup = Setup::draw(&mut random);
        let plan = &plans[usize::from(setup.split)];
        let disk = Disk::new(random.next(), setup.holes);
        create_topics(&disk, plan)?;
        let miners = (0..setup.miners).map(|number| {
            let account = sluice_testkit::addresses::address(bitcoin::Network::Regtest, 1 + (number % 3) as u8)?;
            Ok(Miner::new(format!("{account}.rig{number}")))
        });
        let mut world = Self {
            setup,
            work,
            plan,
            ledger,
            nodes: SimNodes::new(),
            tasks: Vec::new(),
            orphans: (0..plan.tasks.len()).map(|place| (place, Store::default())).collect(),
            gateways: Vec::new(),
            manager: Manager::new(1, &disk),
            miners: miners.collect::<Result<_>>()?,
            clock: START * 1000 + 1_000,
            next_job: 1,
            last_tip: 0,
            processes: 1,
            epochs: BTreeMap::new(),
            trace: trace.then(RefCell::default),
            random,
            disk,
        };
        world.ledger.bind_log(world.disk.open(0, &Fuse::default()).uuid())?;
        (0..plan.tasks.len()).try_for_each(|place| world.adopt(place))?;
        (0..setup.gateways).for_each(|number| world.start_gateway(number));
        Ok(world)
    }

    /// Writes down what happens, where that is wanted.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(what());
        }
    }

    /// What has happened.
    pub(crate) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().map_or_else(Vec::new, RefCell::into_inner)
    }

    /// A number for the next process.
    pub(crate) fn process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    /// The name of a task by its place in the plan.
    pub(crate) fn name(&self, place: usize) -> &str {
        &self.plan.tasks[place].name
    }

    /// Starts the orphaned task at `place` on what is left of its state.
    pub(crate) fn adopt(&mut self, place: usize) -> Result<()> {
        let Some(store) = self.orphans.remove(&place) else { return Ok(()) };
        let process = self.start_task(place, store)?;
        self.tasks.push(process);
        Ok(())
    }

    /// An owner of the task at `place`, on this state.
    pub(crate) fn start_task(&mut self, place: usize, store: Store) -> Result<TaskProcess> {
        let (id, lingers) = (self.process(), self.random.one_in(3));
        let nodes: Arc<dyn BlockNodes> = self.nodes.clone();
        let around = Around { disk: &self.disk, ledger: &self.ledger, nodes: &nodes, network: &self.plan.network };
        let process = TaskProcess::start(id, (place, &self.plan.tasks[place]), store, &around, lingers)?;
        self.note(|| {
            format!("process {id} opens {}, {} commits", self.plan.tasks[place].name, process.store.commits())
        });
        Ok(process)
    }

    /// Somebody is the gateway `number`.
    pub(crate) fn has_gateway(&self, number: u8) -> bool {
        self.gateways.iter().any(|it| it.gateway == number && !it.superseded)
    }

    /// Starts the gateway `number` in its next epoch.
    pub(crate) fn start_gateway(&mut self, number: u8) {
        let epoch = self.epochs.entry(number).or_default();
        *epoch += 1;
        let (epoch, id) = (Epoch::new(*epoch), self.process());
        let clock = EventTime::from_millis(self.clock);
        self.gateways.push(GatewayProcess::start(id, number, epoch, &self.disk, clock));
        self.note(|| format!("process {id} is gateway {number} in epoch {epoch}"));
    }

    /// Another jobmanager begins.
    pub(crate) fn start_manager(&mut self) {
        let id = self.process();
        self.manager = Manager::new(id, &self.disk);
        // What the last one was about may be in the topic or not: a new tip is right in either case.
        self.next_job = (self.next_job | 1).max(2 * self.last_tip + 1);
        self.note(|| format!("process {id} is the jobmanager"));
    }

    /// The next job, if there is one and the jobmanager has time for it.
    pub(crate) fn issue(&mut self) {
        let id = self.next_job;
        if !self.manager.is_idle() || id > 2 * TIPS {
            return;
        }
        self.next_job += 1;
        let (tip, time) = (Work::tip_of(id), EventTime::from_millis(self.clock));
        let clean = tip != self.last_tip;
        self.last_tip = tip;
        self.nodes.grow(self.work.height(id) - 1);
        let chunks = self.work.chunks(id).into_iter().map(|chunk| (time, Body::TemplateChunk(chunk))).collect();
        let job = self.work.job(id, 0, clean);
        let known_at = move |template_clock| (time, sluice_proto::v1::Job { template_clock, ..job });
        self.manager.issue((chunks, Box::new(known_at)));
        self.note(|| format!("job {id} on tip {tip}"));
        // The grace of the tip before goes by with the time.
        self.clock += u64::from(GRACE_MS) / 4;
    }

    /// A partition with something that is not durable becomes durable, as far as its first batch; false if all are.
    pub(crate) fn sync_one(&mut self) -> bool {
        let written = self.disk.written();
        let Some(last) = written.len().checked_sub(1) else { return false };
        let mut chosen = self.random.below(written.len() as u64);
        if chosen == self.setup.slow % written.len() as u64 && !self.random.one_in(8) {
            chosen = self.random.below(written.len() as u64);
        }
        let partition: &Partition = &written[(chosen as usize).min(last)];
        self.disk.sync(partition);
        self.note(|| format!("durable: {partition}"));
        true
    }

    /// Lets a process work that has something to do; false if none has.
    pub(crate) fn poll_one(&mut self) -> Result<bool, Violation> {
        let tasks = self.tasks.iter().filter(|task| task.bell.rings() && !task.paused).map(|task| task.id);
        let gateways = self.gateways.iter().filter(|it| it.bell.rings() && !it.paused).map(|it| it.id);
        let manager = Some(self.manager.id).filter(|_| self.manager.bell.rings() && !self.manager.is_idle());
        let ready: Vec<u64> = tasks.chain(gateways).chain(manager).collect();
        if ready.is_empty() {
            return Ok(false);
        }
        let id = ready[self.random.below(ready.len() as u64) as usize];
        if id == self.manager.id {
            self.note(|| format!("process {id} works: jobmanager"));
            self.manager.poll().map_err(|error| Violation::new("P1", format!("the jobmanager: {error}")))?;
        } else if let Some(place) = self.tasks.iter().position(|task| task.id == id) {
            self.poll_task(place)?;
        } else if let Some(place) = self.gateways.iter().position(|it| it.id == id) {
            self.poll_gateway(place)?;
        }
        Ok(true)
    }

    fn poll_task(&mut self, place: usize) -> Result<(), Violation> {
        let (id, spec) = (self.tasks[place].id, self.tasks[place].spec);
        self.note(|| format!("process {id} works: {}", self.plan.tasks[spec].name));
        let Poll::Ready(ended) = self.tasks[place].poll() else { return Ok(()) };
        match ended {
            Ok(()) => {}
            Err(error) if is_death(&error) => self.note(|| format!("process {id} ends: {error}")),
            Err(error) => return Err(Violation::new("P1", format!("task {} stopped: {error}", self.name(spec)))),
        }
        self.bury_task(place);
        Ok(())
    }

    pub(crate) fn poll_gateway(&mut self, place: usize) -> Result<(), Violation> {
        let clock = self.clock_of(place);
        let gateway = &mut self.gateways[place];
        let (id, number) = (gateway.id, gateway.gateway);
        let polled = gateway.poll(clock);
        self.note(|| format!("process {id} works: gateway {number}"));
        match polled {
            Poll::Ready(_) if self.gateways[place].fuse.is_blown() => {
                self.bury_gateway(place);
                Ok(())
            }
            Poll::Ready(cause) => Err(Violation::new("P1", format!("gateway {number} failed: {cause}"))),
            Poll::Pending => Ok(()),
        }
    }

    /// The clock of a gateway.
    pub(crate) fn clock_of(&self, place: usize) -> EventTime {
        EventTime::from_millis(self.clock.saturating_add_signed(self.gateways[place].skew))
    }

    /// A gateway has died: what it had written to its miners has come, or not.
    pub(crate) fn bury_gateway(&mut self, place: usize) {
        let mut gateway = self.gateways.swap_remove(place);
        let id = gateway.id;
        self.note(|| format!("process {id} dies"));
        for number in 0..self.miners.len() {
            let Some((_, connection)) = self.miners[number].at.filter(|(process, _)| *process == id) else { continue };
            let comes = self.random.one_in(2);
            if let Some(open) = gateway.open().filter(|_| comes) {
                let said = open.sent(connection);
                // It is dead already: what it said wrongly has been found where it was said.
                let _ = self.miners[number].hear(&said);
            }
            self.miners[number].at = None;
        }
        self.disk.lose(id, &mut self.random);
    }

    /// A task's owner has died; unless another one is there, nobody runs it.
    pub(crate) fn bury_task(&mut self, place: usize) {
        let task = self.tasks.swap_remove(place);
        let (id, spec) = (task.id, task.spec);
        self.note(|| format!("process {id} is gone"));
        if self.tasks.iter().all(|other| other.spec != spec) {
            self.orphans.insert(spec, task.store);
        }
        self.disk.lose(id, &mut self.random);
    }

    /// A miner hears what its gateway has written to it.
    pub(crate) fn hear(&mut self, number: usize) -> Result<(), Violation> {
        let Some((process, connection)) = self.miners[number].at else { return Ok(()) };
        let Some(gateway) = self.gateways.iter_mut().find(|it| it.id == process) else { return Ok(()) };
        let said = gateway.open().map_or_else(Vec::new, |open| open.sent(connection));
        let heard = self.miners[number].hear(&said);
        heard.map_err(|error| Violation::new("S1", format!("miner {number} was told: {error}")))
    }

    /// Lets everything go on until nothing is left to do.
    pub(crate) fn rest(&mut self) -> Result<(), Violation> {
        for _ in 0..REST {
            let polled = if self.random.one_in(2) { self.poll_one()? } else { false };
            if polled || self.sync_one() || self.poll_one()? {
                continue;
            }
            let begun = self.gateways.iter_mut().filter_map(GatewayProcess::open).map(|open| open.append());
            // Not `any`: each is to begin.
            if begun.filter(|begun| *begun).count() == 0 {
                return Ok(());
            }
        }
        Err(Violation::new("P1", "the pool does not come to rest"))
    }
}

/// The topics of the plan.
pub(crate) fn create_topics(disk: &Disk, plan: &Plan) -> Result<()> {
    let log = disk.open(0, &Fuse::default());
    for topic in &topics_of(plan) {
        log.create_topic(topic).now_or_never().transpose()?;
    }
    Ok(())
}

/// The end of a process that was to die, or that another one has replaced.
fn is_death(error: &TaskError) -> bool {
    let text = error.to_string();
    let is_replaced = matches!(error, TaskError::Fenced { .. }) || text.contains(LEDGER_REPLACED);
    is_replaced || text.contains(crate::fuse::DIED) || text.contains("the process died here")
}
