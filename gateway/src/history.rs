//! What is remembered of sessions that are not here, so that the next one does not begin from nothing.

use hashlink::LruCache;
use parking_lot::Mutex;
use sluice_mining::Difficulty;

/// Workers remembered, about 8 MB; the one that was not heard of for longest goes.
const WORKERS: usize = 1 << 16;
/// Sessions whose last decision is remembered, about 4 MB; likewise.
const SESSIONS: usize = 1 << 16;

/// Difficulties of workers and of sessions. Touched when a session begins or ends and when vardiff decides, never on the
/// way of a share.
#[derive(Debug)]
pub(crate) struct History {
    workers: Mutex<LruCache<Box<str>, Difficulty>>,
    sessions: Mutex<LruCache<u64, Difficulty>>,
}

impl Default for History {
    fn default() -> Self {
        Self { workers: Mutex::new(LruCache::new(WORKERS)), sessions: Mutex::new(LruCache::new(SESSIONS)) }
    }
}

impl History {
    /// The difficulty of a user name when its session ended.
    pub(crate) fn note_worker(&self, name: &str, difficulty: Difficulty) {
        self.workers.lock().insert(name.into(), difficulty);
    }

    /// The difficulty that a user name had last.
    pub(crate) fn worker(&self, name: &str) -> Option<Difficulty> {
        self.workers.lock().get(name).copied()
    }

    /// A decision of vardiff, for a session of this gateway or of another one.
    pub(crate) fn note_session(&self, session: u64, difficulty: Difficulty) {
        self.sessions.lock().insert(session, difficulty);
    }

    /// Vardiff's last decision for a session.
    pub(crate) fn session(&self, session: u64) -> Option<Difficulty> {
        self.sessions.lock().get(&session).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_what_was_not_heard_of_for_longest_is_forgotten() {
        let history = History::default();
        history.note_worker("a.w1", Difficulty::MIN);
        history.note_worker("a.w1", Difficulty::ONE);
        assert_eq!((history.worker("a.w1"), history.worker("a.w2")), (Some(Difficulty::ONE), None));
        for session in 0..SESSIONS as u64 {
            history.note_session(session, Difficulty::ONE);
        }
        assert_eq!(history.session(0), Some(Difficulty::ONE));
        history.note_session(u64::MAX, Difficulty::MIN);
        assert_eq!((history.session(0), history.session(1)), (Some(Difficulty::ONE), None));
    }
}
