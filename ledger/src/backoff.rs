//! Waiting for a database: longer each time, and ended by an interrupt.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// First wait.
const FIRST: Duration = Duration::from_millis(50);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// Set once, when the program stops; wakes those who wait.
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    set: Mutex<bool>,
    wake: Condvar,
}

impl Interrupt {
    pub(crate) fn set(&self) {
        *self.set.lock() = true;
        self.wake.notify_all();
    }

    /// Waits; tells whether the wait was cut short by the interrupt.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let mut set = self.set.lock();
        if !*set {
            self.wake.wait_while_for(&mut set, |set| !*set, time);
        }
        *set
    }
}

/// Lengths of the waits between attempts.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait: doubled each time, up to 5 s.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.attempts.min(8)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        wait
    }

    /// How many waits there were.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn waits_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert_eq!(waits[0], FIRST);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[11], LONGEST);
    }

    #[test]
    fn an_interrupt_ends_the_wait() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.wait(Duration::from_millis(1)));
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| interrupt.set());
            assert!(interrupt.wait(Duration::from_secs(60)));
        });
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(interrupt.wait(Duration::from_secs(60)), "it stays");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
