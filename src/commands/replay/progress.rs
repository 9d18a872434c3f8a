//! How far a replay is: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sluice_topology::runtime::replay::Progress;

/// How often the bar moves.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// Shows progress on stderr.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    begun: Instant,
    told: Instant,
}

impl Meter {
    /// Begins.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = "{bar:30} {human_pos} of {human_len} records, {per_sec}, {eta} left";
            ProgressStyle::with_template(style).map(|style| bar.clone().with_style(style)).unwrap_or(bar)
        });
        Self { bar, begun: Instant::now(), told: Instant::now() }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, progress: &Progress) {
        let (total, done) = (progress.total.load(Ordering::Relaxed), progress.done.load(Ordering::Relaxed));
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.told.elapsed() >= LINE {
            self.told = Instant::now();
            let rate = rate(done, self.begun.elapsed());
            let left = total.saturating_sub(done) / rate.max(1);
            eprintln!("{done} of {total} records, {rate}/s, {left} s left");
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Records a second.
pub(super) fn rate(records: u64, took: Duration) -> u64 {
    let micros = took.as_micros().max(1);
    u64::try_from(u128::from(records) * 1_000_000 / micros).unwrap_or(u64::MAX)
}
