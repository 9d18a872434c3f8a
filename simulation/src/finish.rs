//! The end of a schedule: faults are over, everything runs to its end; and the same once more from the sources alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use anyhow::{Result, bail};
use sluice_ledger::LedgerStore;
use sluice_log::Partition;
use sluice_mining::node::BlockNodes;
use sluice_topology::runtime::Plan;

use crate::fuse::Fuse;
use crate::log::Disk;
use crate::nodes::SimNodes;
use crate::pool;
use crate::process::{Around, TaskProcess};
use crate::state::Store;
use crate::work::{TIPS, Work};
use crate::world::{Violation, World, create_topics};

/// Times a task may die yet of what was to befall it.
const DEATHS: usize = 16;
/// Milliseconds between the last ticks: more than a slice, and more than a gateway may be silent.
const LAST_TICKS: u64 = 60_000;
/// By how much the chain grows in the end.
const LAST_BLOCKS: u32 = 10;

/// What a run has left.
pub struct Remains {
    /// The topics.
    pub disk: Disk,
    /// States by the task's name.
    pub stores: BTreeMap<String, Store>,
    /// The ledger.
    pub ledger: Arc<dyn LedgerStore>,
    /// The nodes.
    pub nodes: Arc<SimNodes>,
}

/// How long each partition of the sources was when the last tips came.
type Marks = BTreeMap<Partition, usize>;

impl World<'_> {
    /// Lets everything run to its end.
    ///
    /// # Errors
    /// If the simulation itself does not work; a violation is its result.
    pub(crate) fn finish(&mut self) -> Result<Result<Marks, Violation>> {
        self.note(|| "faults are over".into());
        self.random = crate::records::Random::new(self.random.next());
        for death in 0.. {
            self.heal()?;
            if let Err(violation) = self.rest() {
                return Ok(Err(violation));
            }
            if self.manager.is_replaced() {
                self.start_manager();
                continue;
            }
            if let Some(task) = self.tasks.iter().find(|task| self.owners_of(task.spec) > 1) {
                let what = format!("task {} is run by two owners, and both go on", self.name(task.spec));
                return Ok(Err(Violation::new("S1", what)));
            }
            if self.orphans.is_empty() && (0..self.setup.gateways).all(|number| self.has_gateway(number)) {
                break;
            }
            if death > DEATHS {
                bail!("tasks die although nothing is to befall them");
            }
        }
        let marks: Marks = sources().map(|it| (it.clone(), self.disk.records(&it).len())).collect();
        if let Err(violation) = self.last_things() {
            return Ok(Err(violation));
        }
        self.note(|| "tasks are told to stop".into());
        self.tasks.iter().for_each(TaskProcess::stop);
        self.tasks.iter().for_each(|task| task.bell.ring());
        Ok(self.rest().map(|()| marks))
    }

    fn owners_of(&self, place: usize) -> usize {
        self.tasks.iter().filter(|task| task.spec == place).count()
    }

    /// Nothing befalls anybody any more, and everything is there.
    fn heal(&mut self) -> Result<()> {
        for task in &mut self.tasks {
            task.spare();
            task.paused = false;
        }
        for gateway in &mut self.gateways {
            gateway.fuse.disarm();
            (gateway.paused, gateway.skew) = (false, 0);
        }
        let orphans: Vec<usize> = self.orphans.keys().copied().collect();
        orphans.into_iter().try_for_each(|place| self.adopt(place))?;
        for number in 0..self.setup.gateways {
            if !self.has_gateway(number) {
                self.start_gateway(number);
            }
        }
        Ok(())
    }

    /// Two more tips, at which all blocks are settled, and ticks that close all slices.
    fn last_things(&mut self) -> Result<(), Violation> {
        self.nodes.grow(self.work.height(2 * TIPS) + LAST_BLOCKS);
        for _ in 0..2 {
            self.next_job = 2 * self.last_tip + 1;
            self.issue();
            self.rest()?;
        }
        for _ in 0..4 {
            self.clock += 2 * LAST_TICKS;
            for place in 0..self.gateways.len() {
                let clock = self.clock_of(place);
                if let Some(open) = self.gateways[place].open() {
                    open.tick(clock);
                }
            }
            self.rest()?;
        }
        (0..self.miners.len()).try_for_each(|number| self.hear(number))
    }

    /// What the world leaves, once its tasks have stopped.
    pub(crate) fn remains(&self) -> Remains {
        let stores = self.orphans.iter().map(|(place, store)| (self.name(*place).to_owned(), store.clone()));
        Remains {
            disk: self.disk.clone(),
            stores: stores.collect(),
            ledger: Arc::clone(&self.ledger),
            nodes: Arc::clone(&self.nodes),
        }
    }
}

/// The partitions that sources write.
fn sources() -> impl Iterator<Item = Partition> {
    pool::SOURCES.into_iter().flat_map(pool::partitions)
}

/// What the tasks of `plan` make of what the sources have written to `disk`, without any fault: first of what stood
/// before the last tips, then of the rest.
///
/// # Errors
/// If a task stops, or the simulation does not work.
pub fn run_again(
    disk: &Disk,
    marks: &Marks,
    plan: &Plan,
    work: &Work,
    ledger: Arc<dyn LedgerStore>,
) -> Result<Result<Remains, Violation>> {
    let (again, nodes) = (Disk::instant(), SimNodes::new());
    create_topics(&again, plan)?;
    ledger.bind_log(again.open(0, &Fuse::default()).uuid())?;
    let lent: Arc<dyn BlockNodes> = nodes.clone();
    let around = Around { disk: &again, ledger: &ledger, nodes: &lent, network: &plan.network };
    let mut tasks = Vec::new();
    for (id, spec) in plan.tasks.iter().enumerate() {
        tasks.push(TaskProcess::start(id as u64 + 1, (id, spec), Store::default(), &around, false)?);
    }
    let stores: Vec<Store> = tasks.iter().map(|task| task.store.clone()).collect();
    for last in [false, true] {
        for (partition, mark) in marks {
            let records = disk.records(partition);
            // Its genesis is there already.
            again.put(partition, if last { &records[*mark..] } else { &records[1..*mark] });
        }
        if let Err(violation) = work_off(&mut tasks, plan) {
            return Ok(Err(violation));
        }
        nodes.grow(work.height(2 * TIPS) + LAST_BLOCKS);
    }
    for task in &tasks {
        task.stop();
        task.bell.ring();
    }
    if let Err(violation) = work_off(&mut tasks, plan) {
        return Ok(Err(violation));
    }
    let names = plan.tasks.iter().map(|task| task.name.clone());
    Ok(Ok(Remains { disk: again, stores: names.zip(stores).collect(), ledger, nodes }))
}

/// Lets tasks work until none has anything to do; those that have ended are taken away.
fn work_off(tasks: &mut Vec<TaskProcess>, plan: &Plan) -> Result<(), Violation> {
    while tasks.iter().any(|task| task.bell.rings()) {
        for place in (0..tasks.len()).rev().filter(|place| tasks[*place].bell.rings()).collect::<Vec<_>>() {
            match tasks[place].poll() {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => drop(tasks.remove(place)),
                Poll::Ready(Err(error)) => {
                    let name = &plan.tasks[tasks[place].spec].name;
                    return Err(Violation::new("S2", format!("task {name} stopped in the clean run: {error}")));
                }
            }
        }
    }
    Ok(())
}
