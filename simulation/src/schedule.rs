//! A schedule: one thing after the other, drawn from the seed.

use sluice_proto::v1::Submission;

use crate::fuse::Point;
use crate::records::Hash;
use crate::world::{Violation, World};

type Done = anyhow::Result<Result<(), Violation>>;

impl World<'_> {
    /// The next thing that happens.
    ///
    /// # Errors
    /// If the simulation itself does not work; a violation is its result.
    pub(crate) fn step(&mut self) -> Done {
        self.clock += self.random.below(400);
        if !self.orphans.is_empty() && self.random.one_in(6) {
            self.come_back()?;
        }
        for number in 0..self.setup.gateways {
            if self.random.one_in(8) && !self.has_gateway(number) {
                self.start_gateway(number);
            }
        }
        let done = match self.random.below(100) {
            0..30 => {
                self.sync_one();
                Ok(())
            }
            30..60 => self.poll_one().map(drop),
            60..78 => self.mine(),
            78..86 => self.run_gateway(),
            86..89 => {
                self.tick();
                Ok(())
            }
            89..93 => {
                self.issue();
                Ok(())
            }
            93..95 => {
                self.turn_clock();
                Ok(())
            }
            95..97 => {
                self.doom();
                Ok(())
            }
            97 => {
                self.replace()?;
                Ok(())
            }
            _ => {
                self.die();
                Ok(())
            }
        };
        Ok(done)
    }

    /// One of the tasks that nobody runs is started again: on its state, on an older copy of it, or on none.
    fn come_back(&mut self) -> anyhow::Result<()> {
        let places: Vec<usize> = self.orphans.keys().copied().collect();
        let place = places[self.random.below(places.len() as u64) as usize];
        let store = &self.orphans[&place];
        let left = match self.random.below(8) {
            0 => store.copy(0),
            1 => store.copy(self.random.below(store.commits() as u64 + 1) as usize),
            _ => store.clone(),
        };
        self.orphans.insert(place, left);
        self.adopt(place)
    }

    /// A gateway appends what it has taken in, and does what else there is.
    fn run_gateway(&mut self) -> Result<(), Violation> {
        let Some(place) = self.some_gateway() else { return Ok(()) };
        let appended = self.gateways[place].open().is_some_and(|open| open.append());
        let id = self.gateways[place].id;
        self.note(|| format!("process {id} appends: {appended}"));
        self.poll_gateway(place)
    }

    /// A gateway that is not paused.
    fn some_gateway(&mut self) -> Option<usize> {
        let count = self.gateways.len() as u64;
        let place = self.random.below(count) as usize;
        self.gateways.get(place).filter(|it| !it.paused).map(|_| place)
    }

    fn tick(&mut self) {
        let Some(place) = self.some_gateway() else { return };
        let clock = self.clock_of(place);
        if let Some(open) = self.gateways[place].open() {
            open.tick(clock);
        }
    }

    /// A miner does something.
    fn mine(&mut self) -> Result<(), Violation> {
        let number = self.random.below(self.miners.len() as u64) as usize;
        self.hear(number)?;
        let Some((process, connection)) = self.miners[number].at else {
            self.connect(number);
            return Ok(());
        };
        let Some(place) = self.gateways.iter().position(|it| it.id == process) else { return Ok(()) };
        let paused = self.gateways[place].paused;
        if paused && self.random.one_in(2) {
            return Ok(());
        }
        if paused || self.random.one_in(24) {
            self.note(|| format!("miner {number} goes away"));
            self.miners[number].at = None;
            if let Some(open) = self.gateways[place].open() {
                open.disconnect(connection);
            }
            return Ok(());
        }
        let mut lines = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            if let Some(share) = self.find(number) {
                self.note(|| format!("miner {number} sends {:?}", crate::miner::key(&share)));
                lines.extend(self.miners[number].submit(share));
            }
        }
        let clock = self.clock_of(place);
        let goes_on = self.gateways[place].open().is_none_or(|open| open.receive(connection, &lines, clock));
        if goes_on { Ok(()) } else { Err(Violation::new("S1", format!("miner {number} was disconnected"))) }
    }

    fn connect(&mut self, number: usize) {
        let Some(place) = self.some_gateway() else { return };
        let (id, clock) = (self.gateways[place].id, self.clock_of(place));
        let login = self.miners[number].login(!self.random.one_in(4));
        let Some(open) = self.gateways[place].open() else { return };
        let connection = open.connect();
        open.receive(connection, &login, clock);
        self.miners[number].at = Some((id, connection));
        self.note(|| format!("miner {number} connects to process {id}"));
    }

    /// What a miner finds next: a share, a block, something wrong, or what it has sent before.
    fn find(&mut self, number: usize) -> Option<Submission> {
        let (extranonce1, jobs) = self.miners[number].work()?;
        let newest = jobs.len() as u64 - 1;
        let back = if self.random.one_in(3) { self.random.below(jobs.len() as u64) } else { 0 };
        let job = jobs[(newest - back) as usize];
        let wanted = match self.random.below(20) {
            0..2 => Hash::Block,
            2..4 => Hash::Above,
            4..6 => {
                let shares = self.miners[number].shares();
                let again = self.random.below(shares.len() as u64) as usize;
                return shares.get(again).filter(|share| share.extranonce1 == extranonce1).cloned();
            }
            _ => Hash::Share,
        };
        let extranonce2 = self.miners[number].next_extranonce2();
        let share = self.work.share(job, extranonce1, extranonce2, wanted);
        let late = self.random.one_in(24);
        Some(if late { Submission { ntime: share.ntime + 100_000, ..share } } else { share })
    }

    /// The clock of the world or of a gateway jumps, forwards or back, or stands still for a while.
    fn turn_clock(&mut self) {
        let jump = self.random.below(90_000);
        let place = self.random.below(self.gateways.len() as u64 + 1) as usize;
        match (self.gateways.get_mut(place), self.random.below(2)) {
            (Some(gateway), 0) => gateway.skew = jump as i64 - 45_000,
            (Some(gateway), _) => gateway.skew = 0,
            (None, 0) => self.clock += jump / 2,
            (None, _) => self.clock -= jump / 4,
        }
        let clock = self.clock;
        self.note(|| format!("the clock is {clock}, gateway {place} of it has its own"));
    }

    /// A process gets a place where it will die.
    fn doom(&mut self) {
        let times = self.random.below(3);
        let point = Point::ALL.get(self.random.below(Point::ALL.len() as u64 + 1) as usize).copied();
        let place = self.random.below((self.tasks.len() + self.gateways.len()) as u64) as usize;
        let id = if let Some(task) = self.tasks.get(place) {
            task.doom(point, times);
            task.id
        } else {
            let Some(gateway) = self.gateways.get(place - self.tasks.len()) else { return };
            gateway.fuse.arm(point.unwrap_or(Point::Durable), times);
            gateway.id
        };
        self.note(|| format!("process {id} will die at {point:?} after {times}"));
    }

    /// Something dies where it stands, or everything.
    fn die(&mut self) {
        match self.random.below(12) {
            0..5 if !self.tasks.is_empty() => {
                let place = self.random.below(self.tasks.len() as u64) as usize;
                self.bury_task(place);
            }
            5..8 if !self.gateways.is_empty() => {
                let place = self.random.below(self.gateways.len() as u64) as usize;
                let number = self.gateways[place].gateway;
                self.bury_gateway(place);
                self.start_gateway(number);
            }
            8 => {
                let id = self.manager.id;
                self.disk.lose(id, &mut self.random);
                self.start_manager();
            }
            9 => self.all_die(false),
            10 => self.all_die(true),
            _ => self.wake_up(),
        }
    }

    /// A process stands still, and another one takes its place.
    fn replace(&mut self) -> anyhow::Result<()> {
        let place = self.random.below((self.tasks.len() + self.gateways.len()) as u64) as usize;
        if let Some(task) = self.tasks.get_mut(place) {
            task.paused = true;
            let (id, spec, commits) = (task.id, task.spec, task.store.commits() as u64);
            let kept = [0, self.random.below(commits + 1), commits][self.random.below(3) as usize];
            let copy = self.tasks[place].store.copy(kept as usize);
            self.note(|| format!("process {id} stands still"));
            let successor = self.start_task(spec, copy)?;
            self.tasks.push(successor);
        } else if let Some(gateway) = self.gateways.get_mut(place - self.tasks.len()) {
            let (id, number, first) = (gateway.id, gateway.gateway, !gateway.superseded);
            (gateway.paused, gateway.superseded) = (true, true);
            self.note(|| format!("process {id} stands still"));
            if first {
                self.start_gateway(number);
            }
        }
        Ok(())
    }

    /// Processes that stood still go on.
    fn wake_up(&mut self) {
        self.note(|| "who stood still goes on".into());
        self.tasks.iter_mut().for_each(|task| task.paused = false);
        self.gateways.iter_mut().for_each(|gateway| gateway.paused = false);
    }

    /// The machine with everything on it stops; where the power was lost, the last commits of each state may be too.
    fn all_die(&mut self, power: bool) {
        self.note(|| if power { "the power is lost".into() } else { "everything is killed".to_owned() });
        self.disk.lose_all(&mut self.random);
        while !self.tasks.is_empty() {
            self.bury_task(0);
        }
        let numbers: Vec<u8> = self.gateways.iter().map(|it| it.gateway).collect();
        while !self.gateways.is_empty() {
            self.bury_gateway(0);
        }
        if power {
            for store in self.orphans.values_mut() {
                let (durable, commits) = (store.durable() as u64, store.commits() as u64);
                *store = store.copy((durable + self.random.below(commits - durable + 1)) as usize);
            }
        }
        numbers.into_iter().for_each(|number| self.start_gateway(number));
        self.start_manager();
    }
}
