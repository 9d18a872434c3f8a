//! What the connections of a thread have in common, and what their lines and shares mean.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use super::lines::{FIRST_ID, Line};
use super::session::Session;
use super::tally::{Tally, Verdict};
use super::{Plan, Shared, unix_us};
use crate::stratum::{Message, Notify};

/// What connections have in common.
pub(super) struct Desk<'a> {
    pub(super) plan: &'a Plan,
    pub(super) shared: &'a Shared,
    pub(super) tally: Tally,
    pub(super) rng: fastrand::Rng,
    /// The newest job and its line: others get the same one.
    job: Option<(Vec<u8>, Arc<Notify>)>,
    pub(super) out: Vec<u8>,
    pub(super) in_window: bool,
    pub(super) running: bool,
    /// Shares that are still to be sent.
    pub(super) left: u64,
}

impl<'a> Desk<'a> {
    /// For the thread whose connections are these.
    pub(super) fn new(
        plan: &'a Plan,
        shared: &'a Shared,
        rng: fastrand::Rng,
        first: usize,
        count: usize,
    ) -> Result<Self> {
        // What is to be sent is shared like the connections.
        let all = plan.connections as u64;
        let share = |limit: u64| limit * (first + count) as u64 / all - limit * first as u64 / all;
        Ok(Self {
            plan,
            shared,
            tally: Tally::new()?,
            rng,
            job: None,
            out: Vec::new(),
            in_window: false,
            running: false,
            left: plan.shares.map_or(u64::MAX, share),
        })
    }

    /// Takes a line of the pool: `Ok(Err)` if the connection is of no use any more.
    pub(super) fn line(&mut self, session: &mut Session, slow: bool, line: &[u8], now: u64) -> Result<Result<()>> {
        let (id, verdict) = match Line::of(line) {
            Line::Yes(id) if id >= FIRST_ID => (id, Verdict::Accepted),
            Line::Notify => return Ok(self.notify(session, line, now)),
            _ => {
                let text = String::from_utf8_lossy(line);
                let message = match Message::parse(&text) {
                    Ok(message) => message,
                    Err(error) => return Ok(Err(error)),
                };
                match message {
                    Message::Reply { id, outcome } if id >= FIRST_ID => {
                        (id, outcome.map_or_else(|error| Verdict::of_code(error.code), |_| Verdict::Other))
                    }
                    other => {
                        let known = session.hear(other);
                        self.tally.counts.unknown_calls += u64::from(matches!(known, Ok(false)));
                        return Ok(known.map(|_| ()));
                    }
                }
            }
        };
        let Some(answered) = session.answer(id, verdict) else {
            return Ok(Err(anyhow::anyhow!("an answer to share {id}, which does not wait for one")));
        };
        self.tally.verdicts.count(answered.expected, verdict, answered.overtaken);
        if answered.expected != verdict && !answered.overtaken {
            self.tally.counts.surprise.get_or_insert_with(|| String::from_utf8_lossy(line).into_owned());
        }
        let accepted = verdict == Verdict::Accepted;
        self.tally.answer(answered.intended, now, self.in_window, accepted, slow);
        match answered.record {
            Some(record) if accepted => self.shared.write(&record).map(Ok),
            _ => Ok(Ok(())),
        }
    }

    fn notify(&mut self, session: &mut Session, line: &[u8], now: u64) -> Result<()> {
        self.tally.counts.notifies += 1;
        let job = match &self.job {
            Some((known, job)) if known == line => Arc::clone(job),
            _ => {
                let Message::Call { params, .. } = Message::parse(&String::from_utf8_lossy(line))? else {
                    bail!("a job that is no call");
                };
                let job = Arc::new(Notify::from_params(&params)?);
                self.job = Some((line.to_vec(), Arc::clone(&job)));
                job
            }
        };
        if session.job(&job, now) {
            self.tally.heard(job.prev_hash, Duration::from_nanos(now), unix_us);
        }
        Ok(())
    }

    /// Writes a share of the kind that is due.
    pub(super) fn submit(&mut self, session: &mut Session, intended: u64) -> Result<()> {
        let plan = self.plan;
        let wanted = if plan.duplicates + plan.stales + plan.lows == 0.0 {
            Verdict::Accepted
        } else {
            let draw = self.rng.f64() * 100.0;
            if draw < plan.duplicates {
                Verdict::Duplicate
            } else if draw < plan.duplicates + plan.stales {
                Verdict::Stale
            } else if draw < plan.duplicates + plan.stales + plan.lows {
                Verdict::Low
            } else {
                Verdict::Accepted
            }
        };
        let ahead = session.submit(plan, wanted, intended, &mut self.out)?;
        self.tally.counts.found_late += u64::from(!ahead);
        self.left -= 1;
        Ok(())
    }
}
