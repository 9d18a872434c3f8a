//! What a gateway does, in numbers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use sluice_proto::v1::Reason;

use crate::limits::LimitStatus;

/// The reasons there are, by their number.
pub(crate) const REASONS: [Reason; 9] = [
    Reason::Unspecified,
    Reason::Accepted,
    Reason::Stale,
    Reason::JobNotFound,
    Reason::Duplicate,
    Reason::LowDifficulty,
    Reason::NtimeTooOld,
    Reason::NtimeTooNew,
    Reason::VersionMask,
];

/// The newest job of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatestJob {
    /// Its id.
    pub job_id: u64,
    /// Height of the block it is for.
    pub height: u32,
    /// Compact network target.
    pub nbits: u32,
    /// Its offset in the topic of jobs.
    pub offset: u64,
    /// When it was written, by its writer's clock.
    pub issued: SystemTime,
}

/// What a gateway does. Counts are since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayStatus {
    /// Connections now.
    pub connections: u64,
    /// Connections with a subscription and at least one authorized user now: they get jobs.
    pub sessions_authorized: u64,
    /// Sessions that a new connection went on with.
    pub sessions_resumed: u64,
    /// Connections that were handed over to the worker of the session they went on with.
    pub connections_moved: u64,
    /// Connections taken.
    pub connections_total: u64,
    /// Connections refused because there were too many, or no slot of extranonce1 was free.
    pub connections_refused: u64,
    /// Errors of the system when a connection was taken.
    pub accept_errors: u64,
    /// Shares that are durable and answered, by reason: accepted, and each kind of rejection.
    pub shares: Vec<(Reason, u64)>,
    /// Submits that were answered with an error and not written: malformed, unauthorized or not subscribed.
    pub submits_refused: u64,
    /// Blocks sent to the block lane.
    pub candidates: u64,
    /// Lines that were no request.
    pub lines_malformed: u64,
    /// Lines beyond the limit; each ended its connection.
    pub lines_oversized: u64,
    /// Users refused.
    pub users_refused: u64,
    /// Connections ended because the miner did not read.
    pub evicted: u64,
    /// Connections ended since no PROXY header or TLS came in time.
    pub timed_out_handshake: u64,
    /// Connections ended since nobody logged in in time.
    pub timed_out_login: u64,
    /// Sessions ended since they were silent for too long.
    pub timed_out_idle: u64,
    /// Connections ended or refused for want of a PROXY header of a load balancer that may send one.
    pub headers_refused: u64,
    /// Connections whose TLS failed.
    pub tls_failed: u64,
    /// Limits of addresses, and bans.
    pub limits: LimitStatus,
    /// Listeners, in the order of the settings.
    pub listeners: Vec<ListenerStatus>,
    /// Jobs sent, counted per session.
    pub notifies: u64,
    /// Decisions of vardiff for sessions of this gateway.
    pub targets: u64,
    /// Shares that wait for their append.
    pub in_flight: u64,
    /// The newest job; `None` before the first.
    pub latest_job: Option<LatestJob>,
    /// From taking the newest job out of the log to having written it to the last session of the slowest worker.
    pub last_notify: Duration,
    /// Why the gateway has failed, if it has.
    pub failure: Option<String>,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its name, or its address where it has none.
    pub name: String,
    /// Connections now.
    pub connections: u64,
}

impl GatewayStatus {
    /// Shares with this reason.
    pub fn shares_with(&self, reason: Reason) -> u64 {
        self.shares.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
    }
}

/// Counters of one worker, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) connections: AtomicUsize,
    pub(crate) sessions: AtomicU64,
    pub(crate) shares: [AtomicU64; REASONS.len()],
    pub(crate) submits_refused: AtomicU64,
    pub(crate) candidates: AtomicU64,
    pub(crate) lines_malformed: AtomicU64,
    pub(crate) lines_oversized: AtomicU64,
    pub(crate) users_refused: AtomicU64,
    pub(crate) sessions_refused: AtomicU64,
    pub(crate) sessions_resumed: AtomicU64,
    pub(crate) connections_moved: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) timed_out_handshake: AtomicU64,
    pub(crate) timed_out_login: AtomicU64,
    pub(crate) timed_out_idle: AtomicU64,
    pub(crate) headers_refused: AtomicU64,
    pub(crate) tls_failed: AtomicU64,
    pub(crate) notifies: AtomicU64,
    pub(crate) targets: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    /// Nanoseconds.
    pub(crate) last_notify: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Takes one from a counter.
pub(crate) fn take_one(counter: &AtomicU64) {
    counter.fetch_sub(1, Ordering::Relaxed);
}

/// A counter's value.
pub(crate) fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// Adds this worker's numbers to `status`.
    pub(crate) fn add_to(&self, status: &mut GatewayStatus) {
        status.connections += self.connections.load(Ordering::Relaxed) as u64;
        status.sessions_authorized += value(&self.sessions);
        for (reason, counter) in REASONS.iter().zip(&self.shares).skip(1) {
            match status.shares.iter_mut().find(|(known, _)| known == reason) {
                Some((_, count)) => *count += value(counter),
                None => status.shares.push((*reason, value(counter))),
            }
        }
        status.submits_refused += value(&self.submits_refused);
        status.candidates += value(&self.candidates);
        status.lines_malformed += value(&self.lines_malformed);
        status.lines_oversized += value(&self.lines_oversized);
        status.users_refused += value(&self.users_refused);
        status.connections_refused += value(&self.sessions_refused);
        status.sessions_resumed += value(&self.sessions_resumed);
        status.connections_moved += value(&self.connections_moved);
        status.evicted += value(&self.evicted);
        status.timed_out_handshake += value(&self.timed_out_handshake);
        status.timed_out_login += value(&self.timed_out_login);
        status.timed_out_idle += value(&self.timed_out_idle);
        status.headers_refused += value(&self.headers_refused);
        status.tls_failed += value(&self.tls_failed);
        status.notifies += value(&self.notifies);
        status.targets += value(&self.targets);
        status.in_flight += value(&self.in_flight);
        status.last_notify = status.last_notify.max(Duration::from_nanos(value(&self.last_notify)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_by_their_number() {
        for (number, reason) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
        assert!(Reason::try_from(REASONS.len() as i32).is_err(), "a new reason needs a place in the list");
    }

    #[test]
    fn workers_add_up() {
        let (one, two) = (Counters::default(), Counters::default());
        add(&one.shares[Reason::Accepted as usize], 5);
        add(&two.shares[Reason::Accepted as usize], 2);
        add(&two.shares[Reason::Stale as usize], 1);
        add(&one.last_notify, 7);
        let mut status = GatewayStatus::default();
        one.add_to(&mut status);
        two.add_to(&mut status);
        assert_eq!((status.shares_with(Reason::Accepted), status.shares_with(Reason::Stale)), (7, 1));
        assert_eq!(status.last_notify, Duration::from_nanos(7));
    }
}
