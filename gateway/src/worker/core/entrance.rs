//! What stands between a socket and a session: the load balancer's header, TLS, limits of the address and time limits.

use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::{Core, counters};
use crate::connection::{Connection, Ended, State};
use crate::proxy::{Parsed, parse};
use crate::session::Turn;
use crate::shared::Shared;
use crate::status::{Counters, add};

impl Core {
    /// Takes what came from a socket, after what of it was kept.
    pub(super) fn take_bytes(&mut self, connection: &Rc<Connection>, state: &mut State, bytes: &[u8]) {
        let counters = counters(&self.shared, self.number);
        let bytes = match state.link.awaits_header {
            true => take_header(&self.shared, counters, connection, state, bytes),
            false => Some(bytes),
        };
        let Some(bytes) = bytes else { return };
        if state.link.tls.is_none() {
            return self.take_lines(connection, state, bytes);
        }
        let mut plain = std::mem::take(&mut self.plain);
        take_encrypted(&self.shared, counters, state, bytes, &mut plain);
        self.take_lines(connection, state, &plain);
        self.plain = plain;
    }

    /// Looks after the connections of one of `slices`.
    pub(in crate::worker) fn sweep(&self, slice: usize, slices: usize) {
        self.shared.set_seconds();
        let (counters, now) = (counters(&self.shared, self.number), Instant::now());
        for connection in self.connections.iter().skip(slice).step_by(slices).flatten() {
            look_after(&self.shared, counters, &mut connection.state.borrow_mut(), now);
        }
    }
}

/// Takes the load balancer's header in front of `bytes`; what is the miner's, unless more must come first or the
/// connection is ended.
fn take_header<'a>(
    shared: &Shared,
    counters: &Counters,
    connection: &Connection,
    state: &mut State,
    bytes: &'a [u8],
) -> Option<&'a [u8]> {
    let header = match parse(bytes) {
        Parsed::Header(header) => header,
        Parsed::Incomplete => {
            state.begun.extend_from_slice(bytes);
            return None;
        }
        Parsed::Invalid(why) => {
            add(&counters.headers_refused, 1);
            state.end(Ended::Refused(why));
            return None;
        }
    };
    state.link.awaits_header = false;
    if let Some(source) = header.source {
        connection.peer.set(source);
        match shared.limits.admit(source.ip(), Instant::now()) {
            Ok(visitor) => state.link.visitor = visitor,
            Err(refusal) => {
                state.end(Ended::Refused(refusal.text()));
                return None;
            }
        }
    }
    Some(&bytes[header.length..])
}

/// Takes bytes of TLS and leaves in `plain` the lines that they hold, behind the one that had begun.
fn take_encrypted(shared: &Shared, counters: &Counters, state: &mut State, bytes: &[u8], plain: &mut Vec<u8>) {
    plain.clear();
    plain.append(&mut state.begun);
    state.begun = Vec::new();
    if let Err(error) = state.decrypt(bytes, plain, shared.config.output_limit) {
        add(&counters.tls_failed, 1);
        tracing::debug!(error, "a connection without TLS, or with a broken one");
        state.end(Ended::Refused("its TLS failed"));
    }
}

/// Counts what a turn brought against the limits of the address; false if the connection is to be ended.
pub(super) fn count(shared: &Shared, state: &mut State, turn: &mut Turn) -> bool {
    let (good, bad) = (std::mem::take(&mut turn.good), std::mem::take(&mut turn.bad));
    let Some(visitor) = &mut state.link.visitor else { return true };
    (good == 0 && bad == 0) || visitor.shares(good, bad, &shared.limits)
}

/// Looks after a connection, once a second: ends it if it takes too long, and adds up what it did.
fn look_after(shared: &Shared, counters: &Counters, state: &mut State, now: Instant) {
    if let Some((why, counter)) = overdue(shared, counters, state) {
        add(counter, 1);
        return state.end(Ended::Refused(why));
    }
    let Some(visitor) = &mut state.link.visitor else { return };
    if visitor.is_throttled() {
        state.wake();
    } else if !visitor.settle(&shared.limits, now) {
        state.end(Ended::Refused(BANNED));
    }
}

/// Why a connection of a banned address is ended.
pub(super) const BANNED: &str = "its address is banned, and its shares are as bad";

/// Which time limit a connection has passed.
fn overdue<'a>(shared: &Shared, counters: &'a Counters, state: &State) -> Option<(&'static str, &'a AtomicU64)> {
    let (config, link) = (&shared.config, &state.link);
    let passed = |since: u32, limit: Duration| {
        !limit.is_zero() && u64::from(shared.seconds().saturating_sub(since)) > limit.as_secs()
    };
    if !link.is_open() && passed(link.since, config.handshake_timeout) {
        return Some(("no PROXY header or TLS within handshake_timeout", &counters.timed_out_handshake));
    }
    if !state.session.is_ready() {
        let late = passed(link.since, config.login_timeout);
        return late.then_some(("no login within login_timeout", &counters.timed_out_login));
    }
    let idle = state.in_flight == 0 && passed(link.heard, config.idle_timeout);
    idle.then_some(("no line within idle_timeout", &counters.timed_out_idle))
}
