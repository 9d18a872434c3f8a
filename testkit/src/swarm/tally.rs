//! What a swarm has seen: verdicts against its own, latencies, jobs, and the outcome that all of it makes.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart from longer ones, nanoseconds.
const LONGEST: u64 = 300_000_000_000;

/// What a pool can say to a share, and what the generator expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `true`.
    Accepted,
    /// Error 22.
    Duplicate,
    /// Error 21.
    Stale,
    /// Error 23.
    Low,
    /// Anything else.
    Other,
}

impl Verdict {
    /// Of the code of an error.
    pub(super) fn of_code(code: i64) -> Self {
        match code {
            21 => Self::Stale,
            22 => Self::Duplicate,
            23 => Self::Low,
            _ => Self::Other,
        }
    }
}

/// Counts of one verdict of the generator's own, by what the pool answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// Answered `true`.
    pub accepted: u64,
    /// Answered with error 22.
    pub duplicate: u64,
    /// Answered with error 21.
    pub stale: u64,
    /// Answered with error 23.
    pub low: u64,
    /// Answered with any other error.
    pub other: u64,
}

impl Answers {
    fn place(&mut self, answered: Verdict) -> &mut u64 {
        match answered {
            Verdict::Accepted => &mut self.accepted,
            Verdict::Duplicate => &mut self.duplicate,
            Verdict::Stale => &mut self.stale,
            Verdict::Low => &mut self.low,
            Verdict::Other => &mut self.other,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.accepted + self.duplicate + self.stale + self.low + self.other
    }

    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        self.stale += other.stale;
        self.low += other.low;
        self.other += other.other;
    }
}

/// Answers by what the generator expected, over the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Shares that should be accepted.
    pub good: Answers,
    /// Shares that were accepted before.
    pub duplicate: Answers,
    /// Shares for a job that there is not (any more).
    pub stale: Answers,
    /// Shares that miss their target.
    pub low: Answers,
    /// Answered `stale` where a clean job came between share and answer: no mismatch.
    pub overtaken: u64,
}

impl Verdicts {
    /// Counts an answer.
    pub(super) fn count(&mut self, expected: Verdict, answered: Verdict, overtaken: bool) {
        let answers = match expected {
            Verdict::Duplicate => &mut self.duplicate,
            Verdict::Stale => &mut self.stale,
            Verdict::Low => &mut self.low,
            Verdict::Accepted | Verdict::Other => &mut self.good,
        };
        *answers.place(answered) += 1;
        if overtaken && answered == Verdict::Stale && expected != Verdict::Stale {
            self.overtaken += 1;
        }
    }

    /// Answers that were not what the generator expected.
    pub fn mismatches(&self) -> u64 {
        let right = self.good.accepted + self.duplicate.duplicate + self.stale.stale + self.low.low;
        self.answered() - right - self.overtaken
    }

    /// All answers.
    pub fn answered(&self) -> u64 {
        [self.good, self.duplicate, self.stale, self.low].iter().map(Answers::total).sum()
    }

    /// All answers `true`, whatever was expected.
    pub fn accepted(&self) -> u64 {
        [self.good, self.duplicate, self.stale, self.low].iter().map(|answers| answers.accepted).sum()
    }

    fn add(&mut self, other: &Self) {
        self.good.add(&other.good);
        self.duplicate.add(&other.duplicate);
        self.stale.add(&other.stale);
        self.low.add(&other.low);
        self.overtaken += other.overtaken;
    }
}

/// How a job that came to all connections spread, times since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Block that the job builds on, internal order.
    #[serde(skip)]
    pub prev_hash: [u8; 32],
    /// When the first connection read it, by the system's clock, microseconds since 1970.
    pub first_unix_us: u64,
    /// When the first connection read it, since the start.
    pub first: Duration,
    /// When the last one did.
    pub last: Duration,
    /// Connections that it came to.
    pub heard: u64,
}

/// What one thread has seen.
pub(super) struct Tally {
    pub(super) verdicts: Verdicts,
    pub(super) in_window: u64,
    pub(super) accepted_in_window: u64,
    pub(super) latency: Histogram<u64>,
    pub(super) first_job: Histogram<u64>,
    pub(super) spreads: Vec<Spread>,
    pub(super) counts: Counts,
}

/// Counts of what happened to connections and shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections that got a job.
    pub ready: u64,
    /// Connections that failed before that.
    pub refused: u64,
    /// What one of those was told.
    pub refusal: Option<String>,
    /// Connections that the pool closed later.
    pub closed: u64,
    /// Of them slow readers.
    pub closed_slow: u64,
    /// Shares without an answer: lost with their connection, or still waited for at the end.
    pub unanswered: u64,
    /// Shares that were found while they were due, since none found ahead was left. They slow the generator down.
    pub found_late: u64,
    /// What the pool said to a share that it should not have said, once.
    pub surprise: Option<String>,
    /// Jobs received, counted per connection.
    pub notifies: u64,
    /// Calls of the pool that the generator does not know.
    pub unknown_calls: u64,
    /// CPU time of the generator within the measured window, nanoseconds.
    pub cpu_ns: u64,
}

impl Tally {
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1_000, LONGEST, 3);
        Ok(Self {
            verdicts: Verdicts::default(),
            in_window: 0,
            accepted_in_window: 0,
            latency: histogram()?,
            first_job: histogram()?,
            spreads: Vec::new(),
            counts: Counts::default(),
        })
    }

    /// Notes that a job on this block has come, `now` after the start.
    pub(super) fn heard(&mut self, prev_hash: [u8; 32], now: Duration, unix_us: impl FnOnce() -> u64) {
        // The newest is last: jobs on older blocks do not come any more.
        match self.spreads.iter_mut().rev().find(|spread| spread.prev_hash == prev_hash) {
            Some(spread) => {
                spread.last = now;
                spread.heard += 1;
            }
            None => {
                self.spreads.push(Spread { prev_hash, first_unix_us: unix_us(), first: now, last: now, heard: 1 });
            }
        }
    }

    /// Adds what another thread has seen.
    pub(super) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.verdicts.add(&other.verdicts);
        self.in_window += other.in_window;
        self.accepted_in_window += other.accepted_in_window;
        self.latency.add(&other.latency)?;
        self.first_job.add(&other.first_job)?;
        for spread in &other.spreads {
            match self.spreads.iter_mut().find(|known| known.prev_hash == spread.prev_hash) {
                Some(known) => {
                    known.heard += spread.heard;
                    known.last = known.last.max(spread.last);
                    if spread.first < known.first {
                        (known.first, known.first_unix_us) = (spread.first, spread.first_unix_us);
                    }
                }
                None => self.spreads.push(*spread),
            }
        }
        let (mine, its) = (&mut self.counts, &other.counts);
        mine.ready += its.ready;
        mine.refused += its.refused;
        mine.refusal = mine.refusal.take().or_else(|| its.refusal.clone());
        mine.closed += its.closed;
        mine.closed_slow += its.closed_slow;
        mine.unanswered += its.unanswered;
        mine.found_late += its.found_late;
        mine.surprise = mine.surprise.take().or_else(|| its.surprise.clone());
        mine.notifies += its.notifies;
        mine.unknown_calls += its.unknown_calls;
        mine.cpu_ns += its.cpu_ns;
        Ok(())
    }

    /// Counts an answer that came `now`, to a share that was to be sent at `intended` (nanoseconds since the start).
    pub(super) fn answer(&mut self, intended: u64, now: u64, in_window: bool, accepted: bool, is_slow: bool) {
        if in_window {
            self.in_window += 1;
            self.accepted_in_window += u64::from(accepted);
            if !is_slow {
                self.latency.saturating_record(now.saturating_sub(intended));
            }
        }
    }
}

/// Percentiles of a latency, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half are below.
    pub p50_us: f64,
    /// 90 of 100 are below.
    pub p90_us: f64,
    /// 99 of 100 are below.
    pub p99_us: f64,
    /// 999 of 1,000 are below.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |percent: f64| histogram.value_at_quantile(percent / 100.0) as f64 / 1e3;
        Self {
            p50_us: at(50.0),
            p90_us: at(90.0),
            p99_us: at(99.0),
            p999_us: at(99.9),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, p999, max] =
            [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us].map(|us| us / 1e3);
        write!(f, "p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, max {max:.2} ms")
    }
}

/// What a run has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Length of the measured window.
    pub seconds: f64,
    /// Answers within it, a second.
    pub answered_per_second: f64,
    /// Shares answered `true` within it.
    pub accepted: u64,
    /// The same, a second.
    pub accepted_per_second: f64,
    /// From the intended send of a share to its answer, within the window, slow readers apart.
    pub latency: Latency,
    /// From the beginning of a connection to its first job.
    pub first_job: Latency,
    /// Answers over the whole run against what the generator expected.
    pub verdicts: Verdicts,
    /// Answers that were not what the generator expected.
    pub mismatches: u64,
    /// What happened to connections and shares.
    pub counts: Counts,
    /// How each new block spread over the connections, in order of time.
    pub spreads: Vec<Spread>,
}

impl Outcome {
    pub(super) fn new(window: Duration, mut tally: Tally) -> Self {
        let seconds = window.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        tally.spreads.sort_by_key(|spread| spread.first);
        Self {
            seconds,
            answered_per_second: rate(tally.in_window),
            accepted: tally.accepted_in_window,
            accepted_per_second: rate(tally.accepted_in_window),
            latency: Latency::of(&tally.latency),
            first_job: Latency::of(&tally.first_job),
            mismatches: tally.verdicts.mismatches(),
            verdicts: tally.verdicts,
            counts: tally.counts,
            spreads: tally.spreads,
        }
    }

    /// CPU time of the generator for each accepted share of the window, microseconds.
    pub fn generator_us_per_share(&self) -> f64 {
        self.counts.cpu_ns as f64 / 1e3 / self.accepted.max(1) as f64
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "connections  {} ready, {} refused, {} closed by the pool",
            counts.ready, counts.refused, counts.closed
        )?;
        if let Some(refusal) = &counts.refusal {
            writeln!(f, "             a refused one heard: {refusal}")?;
        }
        if counts.closed_slow > 0 {
            writeln!(f, "             {} of the closed ones were slow readers", counts.closed_slow)?;
        }
        writeln!(f, "first job    {}", self.first_job)?;
        if self.verdicts.answered() > 0 || counts.unanswered > 0 {
            self.shares(f)?;
        }
        for spread in &self.spreads {
            let over = (spread.last - spread.first).as_secs_f64() * 1e3;
            writeln!(
                f,
                "new block    heard by {} connections over {over:.2} ms, the first at {} us",
                spread.heard, spread.first_unix_us
            )?;
        }
        Ok(())
    }
}

impl Outcome {
    fn shares(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "shares       {} accepted in {:.2} s: {:.0}/s ({:.0} answers/s)",
            self.accepted, self.seconds, self.accepted_per_second, self.answered_per_second
        )?;
        writeln!(f, "latency      {}", self.latency)?;
        writeln!(f, "generator    {:.2} us of CPU a share", self.generator_us_per_share())?;
        writeln!(f, "expected     accepted  duplicate      stale        low      other   <- answered, whole run")?;
        let rows = [
            ("accepted", self.verdicts.good),
            ("duplicate", self.verdicts.duplicate),
            ("stale", self.verdicts.stale),
            ("low", self.verdicts.low),
        ];
        for (name, row) in rows.iter().filter(|(_, row)| row.total() > 0) {
            let Answers { accepted, duplicate, stale, low, other } = row;
            writeln!(f, "  {name:<9} {accepted:>10} {duplicate:>10} {stale:>10} {low:>10} {other:>10}")?;
        }
        writeln!(
            f,
            "mismatches   {} ({} more were overtaken by a clean job), {} unanswered, {} found late",
            self.mismatches, self.verdicts.overtaken, counts.unanswered, counts.found_late
        )?;
        match &counts.surprise {
            Some(said) => writeln!(f, "             one of them was answered: {said}"),
            None => Ok(()),
        }
    }
}
