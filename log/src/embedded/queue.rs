//! The queue between those who append and the one thread that makes it durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use sluice_proto::Offset;
use tokio::sync::oneshot;

use super::slot::Slot;
use crate::LogError;

/// What an append resolves to.
pub(super) type Answer = Result<Offset, LogError>;

/// An append that waits for its commit.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) slot: Arc<Slot>,
    pub(super) batch: Vec<Bytes>,
    pub(super) bytes: usize,
    pub(super) called: Instant,
    /// Told when it is durable. Of appends that are one call the last is told: what is before it in the queue is durable
    /// no later, and fails no later.
    pub(super) done: Option<oneshot::Sender<Answer>>,
}

impl Pending {
    /// Tells the caller.
    pub(super) fn answer(self, answer: Answer) {
        // A caller that has given up needs no answer.
        let _ = self.done.map(|done| done.send(answer));
    }
}

/// Appends in the order of their calls.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Pending>,
    bytes: usize,
    /// The appender sleeps and must be woken.
    idle: bool,
    closing: bool,
    stopped: Option<Arc<str>>,
}

impl Queue {
    /// Puts appends at the end; returns the bytes that wait now.
    ///
    /// # Errors
    /// [`LogError::Stopped`] if the writer has stopped or the log is being closed.
    pub(super) fn push(&self, appends: Vec<Pending>) -> Result<usize, LogError> {
        let mut state = self.state.lock();
        if let Some(cause) = &state.stopped {
            return Err(LogError::Stopped(cause.clone()));
        }
        if state.closing {
            return Err(closed());
        }
        state.bytes += appends.iter().map(|pending| pending.bytes).sum::<usize>();
        state.pending.extend(appends);
        let (bytes, wake) = (state.bytes, std::mem::take(&mut state.idle));
        drop(state);
        if wake {
            self.filled.notify_one();
        }
        Ok(bytes)
    }

    /// Moves appends of up to about `max_bytes`, but at least one, into `group`; waits for the first. Returns false once
    /// the queue is empty and closed.
    pub(super) fn take(&self, group: &mut Vec<Pending>, max_bytes: usize) -> bool {
        let mut state = self.state.lock();
        while state.pending.is_empty() {
            if state.closing {
                return false;
            }
            state.idle = true;
            self.filled.wait(&mut state);
        }
        let mut bytes = 0;
        while let Some(next) = state.pending.front() {
            bytes += next.bytes;
            if bytes > max_bytes && !group.is_empty() {
                break;
            }
            group.extend(state.pending.pop_front());
        }
        state.bytes -= group.iter().map(|p| p.bytes).sum::<usize>();
        true
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Takes nothing more; the appender ends once it has done what is there.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.filled.notify_one();
    }

    /// Fails all that waits and all that will come. The first cause stays.
    pub(super) fn stop(&self, cause: &Arc<str>) {
        let failed = {
            let mut state = self.state.lock();
            state.stopped.get_or_insert_with(|| cause.clone());
            state.bytes = 0;
            std::mem::take(&mut state.pending)
        };
        for pending in failed {
            pending.answer(Err(LogError::Stopped(cause.clone())));
        }
    }
}

/// What callers get once the log is closed.
pub(super) fn closed() -> LogError {
    LogError::Stopped("it was closed".into())
}
