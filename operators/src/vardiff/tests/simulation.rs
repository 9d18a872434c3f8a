//! One miner in event time: shares at random with the rate that its hash rate gives, a gateway that issues jobs and lets a
//! difficulty take effect with the next one, a link that carries so many shares and no more, and the operator.

use std::collections::VecDeque;

use sluice_mining::{Difficulty, SILENCE};
use sluice_proto::Body;
use sluice_proto::v1::{Reason, Verdict};
use sluice_topology::{Key, SettingValue};

use super::super::KIND;
use crate::testing::Rig;
use crate::testing::records::{Random, at, tick, verdict};

/// Seconds between shares at the default rate of 20 a minute.
const TARGET: f64 = 3.0;
/// Seconds between ticks: the operator looks at silent sessions every 10 s.
const TICKS: f64 = 5.0;
/// Seconds between jobs, as the jobmanager refreshes them.
const REFRESH: f64 = 30.0;
/// Mean seconds between new tips.
const TIPS: f64 = 600.0;
/// Shares a second that a miner's link carries at most.
const LINK: f64 = 500.0;
/// Hashes of a share of difficulty 1.
const HASHES: f64 = 4_295_032_833.0;
/// Units of difficulty 1.
const ONE: f64 = (1_u64 << 24) as f64;

/// A difficulty, exactly where it is a whole number of units.
pub(super) fn units(difficulty: f64) -> Difficulty {
    Difficulty::from_units((difficulty * ONE) as u64).unwrap()
}

/// A gateway's part: what is in force, and what comes with the next job (gateway/src/plan.rs).
struct Gateway {
    /// Difficulty in force, in units.
    issued: u64,
    /// Difficulty from the next job on, in units.
    wanted: u64,
    /// The miner's own minimum, in units.
    minimum: u64,
    /// When the difficulty last changed, seconds.
    since: f64,
    /// A share has come.
    heard: bool,
}

impl Gateway {
    /// Issues a job. A session without a share is made easier.
    fn job(&mut self, now: f64) {
        if !self.heard && now - self.since >= SILENCE.as_secs_f64() && self.wanted == self.issued {
            let eased = Difficulty::from_units(self.issued).unwrap().eased().units();
            self.wanted = eased.max(self.minimum);
        }
        if self.issued != self.wanted {
            (self.issued, self.since) = (self.wanted, now);
        }
    }
}

/// A miner of one session, its gateway, and the operator that watches it.
pub(super) struct Simulation {
    rig: Rig,
    random: Random,
    gateway: Gateway,
    /// Seconds since the first job.
    pub(super) now: f64,
    next_tick: f64,
    next_job: f64,
    next_tip: f64,
    pub(super) hash_rate: f64,
    /// Difficulty that the miner works at, in units: behind the gateway's while the link stands still.
    works_at: u64,
    /// The link stands still.
    stalled: bool,
    /// Difficulties of shares that wait for the link.
    held: VecDeque<u64>,
    next_held: f64,
    /// Shares found.
    shares: u64,
    /// Shares that reached the pool.
    received: u64,
    pub(super) decisions: u64,
    /// Difficulty decided last, in units.
    pub(super) decided: u64,
}

impl Simulation {
    /// A miner of this hash rate, in hashes a second, whose first job has the difficulty `first`, in units.
    pub(super) fn new(seed: u64, hash_rate: f64, first: u64) -> Self {
        let mut simulation = Self {
            rig: Rig::new(&KIND),
            random: Random::new(seed),
            gateway: Gateway { issued: first, wanted: first, minimum: 1, since: 0.0, heard: false },
            now: 0.0,
            next_tick: TICKS,
            next_job: 0.0,
            next_tip: 0.0,
            hash_rate,
            works_at: first,
            stalled: false,
            held: VecDeque::new(),
            next_held: f64::INFINITY,
            shares: 0,
            received: 0,
            decisions: 0,
            decided: first,
        };
        // It connects at any time between two jobs.
        simulation.next_job = REFRESH * simulation.uniform();
        simulation.next_tip = simulation.wait(1.0 / TIPS);
        simulation
    }

    /// A miner at the difficulty that a gateway begins with.
    pub(super) fn started(seed: u64, hash_rate: f64) -> Self {
        Self::new(seed, hash_rate, 1_024 << 24)
    }

    /// With other settings of the operator.
    pub(super) fn with(mut self, settings: &[(&str, SettingValue)]) -> Self {
        self.rig = Rig::with(&KIND, settings, Default::default());
        self
    }

    /// With a minimum of the miner's own, in units, which only the gateway knows.
    pub(super) fn with_minimum(mut self, minimum: u64) -> Self {
        self.gateway.minimum = minimum;
        self.works_at = self.works_at.max(minimum);
        (self.gateway.issued, self.gateway.wanted) = (self.works_at, self.works_at);
        self
    }

    /// From 0 up to 1.
    fn uniform(&mut self) -> f64 {
        (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Seconds to the next event of a rate.
    fn wait(&mut self, rate: f64) -> f64 {
        -(1.0 - self.uniform()).ln() / rate
    }

    /// Lets time pass, to `seconds` after the beginning.
    pub(super) fn run_until(&mut self, seconds: f64) {
        while self.now < seconds {
            // What does not fit the link is not worked on: firmware keeps to what it can send.
            let rate = (self.hash_rate * ONE / (self.works_at as f64 * HASHES)).min(LINK);
            let share = self.now + self.wait(rate);
            let others = [self.next_tick, self.next_job, self.next_tip, self.next_held, seconds];
            let next = others.into_iter().fold(share, f64::min);
            self.now = next;
            if next == share {
                self.find();
            } else if next == self.next_tick {
                self.next_tick += TICKS;
                self.give(Body::Tick(tick(1, 1)));
            } else if next == self.next_job {
                self.job();
            } else if next == self.next_tip {
                self.next_tip += self.wait(1.0 / TIPS);
                self.job();
            } else if next == self.next_held {
                self.deliver();
            }
        }
    }

    fn job(&mut self) {
        self.next_job = self.now + REFRESH;
        self.gateway.job(self.now);
        if !self.stalled {
            self.works_at = self.gateway.issued;
        }
    }

    /// The miner finds a share, which waits behind those that the link still holds.
    fn find(&mut self) {
        self.shares += 1;
        if self.stalled || !self.held.is_empty() {
            self.held.push_back(self.works_at);
        } else {
            self.receive(self.works_at);
        }
    }

    fn deliver(&mut self) {
        if let Some(difficulty) = self.held.pop_front() {
            self.receive(difficulty);
        }
        self.next_held = if self.held.is_empty() { f64::INFINITY } else { self.now + 1.0 / LINK };
    }

    fn receive(&mut self, difficulty: u64) {
        self.received += 1;
        self.gateway.heard = true;
        self.give(Body::Verdict(Verdict { difficulty, ..verdict(4, self.received, Reason::Accepted) }));
    }

    fn give(&mut self, body: Body) {
        for emission in self.rig.give("in", at((self.now * 1000.0) as u64), body) {
            let Body::DifficultyTarget(target) = emission.body else { panic!("{emission:?}") };
            assert_eq!((emission.port, emission.key, target.session), ("out", Key::session(4), 4));
            let allowed = Difficulty::from_units(target.difficulty).unwrap();
            assert_eq!(allowed.floor_to_allowed(), allowed, "what is given out prints exactly");
            self.decisions += 1;
            self.decided = target.difficulty;
            self.gateway.wanted = target.difficulty.max(self.gateway.minimum);
        }
    }

    /// The link stands still from now on, until [`Simulation::resume`].
    pub(super) fn stall(&mut self) {
        self.stalled = true;
    }

    /// The link hands over what it has held.
    pub(super) fn resume(&mut self) {
        self.stalled = false;
        self.works_at = self.gateway.issued;
        self.next_held = self.now;
    }

    /// So many shares come at once.
    pub(super) fn receive_at_once(&mut self, shares: u64) {
        (0..shares).for_each(|_| self.receive(self.works_at));
    }

    /// Difficulty in force, in units.
    pub(super) fn in_force(&self) -> u64 {
        self.gateway.issued
    }

    /// Difficulty in force, as a multiple of the one at which `hash_rate` would give the target rate.
    pub(super) fn ratio(&self, hash_rate: f64) -> f64 {
        self.gateway.issued as f64 / ONE / (hash_rate * TARGET / HASHES)
    }

    /// The share rate over the next `seconds`, as a multiple of the target rate.
    pub(super) fn rate(&mut self, seconds: f64) -> f64 {
        let before = self.shares;
        self.run_until(self.now + seconds);
        (self.shares - before) as f64 * TARGET / seconds
    }
}
