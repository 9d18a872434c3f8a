//! Where a process dies.

use std::sync::Arc;

use parking_lot::Mutex;

/// A place where a process may die between two awaits. Those behind the ledger's transaction stand in [`crate::store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the log has been handed a batch: `outputs::before` of the failpoints.
    Append,
    /// A batch is durable, and the process does not hear of it: `outputs::after`.
    Durable,
    /// Before a commit of the state: `commit::before`.
    Commit,
    /// Behind one: `commit::after`.
    Committed,
    /// A fence is durable, and the process does not hear of it.
    Fence,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Append, Self::Durable, Self::Commit, Self::Committed, Self::Fence];
}

/// What a process that died hears from whatever it still asks.
pub const DIED: &str = "the process dies here";

/// The fuse of a process: blows when it has passed a place so many times, and nothing works behind it.
#[derive(Clone, Debug, Default)]
pub struct Fuse(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    armed: Option<(Point, u64)>,
    blown: bool,
}

impl Fuse {
    /// Lets the process die when it comes to `point` once more than `times`.
    pub fn arm(&self, point: Point, times: u64) {
        self.0.lock().armed = Some((point, times));
    }

    /// Nothing is going to happen any more.
    pub fn disarm(&self) {
        self.0.lock().armed = None;
    }

    /// The process has died.
    pub fn is_blown(&self) -> bool {
        self.0.lock().blown
    }

    /// The process comes to `point`; false if it dies there, or has died before.
    pub fn passes(&self, point: Point) -> bool {
        let mut state = self.0.lock();
        if let Some((armed, times)) = &mut state.armed
            && *armed == point
        {
            match times.checked_sub(1) {
                Some(left) => *times = left,
                None => state.blown = true,
            }
        }
        !state.blown
    }
}
