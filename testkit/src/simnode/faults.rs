//! Faults that a simulated node can be made to show.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

/// How calls fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// With a JSON-RPC error of this code and message.
    Error(i32, String),
    /// With this HTTP status and no body (503 is what a node answers whose queue is full).
    Http(u16),
    /// By closing the connection without an answer.
    Close,
}

#[derive(Clone, Debug, Default)]
struct Method {
    delay: Duration,
    refusal: Option<Refusal>,
}

/// Switches of a running node. All are off at the start.
#[derive(Debug, Default)]
pub struct Faults {
    methods: Mutex<HashMap<String, Method>>,
    blocks: Mutex<Option<String>>,
    silent: Mutex<bool>,
    lossy: Mutex<bool>,
    clock: Mutex<Option<u64>>,
}

/// Stands for every method in [`Faults::delay`] and [`Faults::refuse`].
pub const EVERY_METHOD: &str = "*";

impl Faults {
    /// Answers calls of `method` (or [`EVERY_METHOD`]) after this pause; zero ends the fault.
    pub fn delay(&self, method: &str, pause: Duration) {
        self.methods.lock().entry(method.to_owned()).or_default().delay = pause;
    }

    /// Refuses calls of `method` (or [`EVERY_METHOD`]); `None` ends the fault.
    pub fn refuse(&self, method: &str, refusal: Option<Refusal>) {
        self.methods.lock().entry(method.to_owned()).or_default().refusal = refusal;
    }

    /// Answers `submitblock` with this reason and takes no block; `None` ends the fault.
    pub fn refuse_blocks(&self, reason: Option<&str>) {
        *self.blocks.lock() = reason.map(str::to_owned);
    }

    /// Publishes nothing by ZMQ while set. What was not published is not made up for.
    pub fn silence_zmq(&self, silent: bool) {
        *self.silent.lock() = silent;
    }

    /// Loses what is published by ZMQ while set: subscribers see a gap in the numbers.
    pub fn lose_zmq(&self, lost: bool) {
        *self.lossy.lock() = lost;
    }

    /// Lets the clock of templates stand still at this time, seconds since the Unix epoch; `None` ends the fault.
    pub fn stop_clock(&self, at: Option<u64>) {
        *self.clock.lock() = at;
    }

    /// Ends all faults of this list.
    pub fn clear(&self) {
        self.methods.lock().clear();
        self.blocks.lock().take();
        self.silence_zmq(false);
        self.lose_zmq(false);
        self.stop_clock(None);
    }

    pub(super) fn pause_before(&self, method: &str) -> Duration {
        let methods = self.methods.lock();
        let delay = |name| methods.get(name).map_or(Duration::ZERO, |method: &Method| method.delay);
        delay(method).max(delay(EVERY_METHOD))
    }

    pub(super) fn refusal_of(&self, method: &str) -> Option<Refusal> {
        let methods = self.methods.lock();
        let refusal = |name| methods.get(name).and_then(|method: &Method| method.refusal.clone());
        refusal(method).or_else(|| refusal(EVERY_METHOD))
    }

    pub(super) fn block_refusal(&self) -> Option<String> {
        self.blocks.lock().clone()
    }

    pub(super) fn stopped_clock(&self) -> Option<u64> {
        *self.clock.lock()
    }

    pub(super) fn zmq_is_lossy(&self) -> bool {
        *self.lossy.lock()
    }

    pub(super) fn zmq_is_silent(&self) -> bool {
        *self.silent.lock()
    }
}
