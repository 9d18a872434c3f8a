//! Places where a test lets the program crash, fail, stall or wait (docs/adr/0020).
//!
//! Nothing happens unless the program was started with `SLUICE_FAILPOINTS`, a list of settings separated by `;`:
//!
//! ```text
//! POINT=ACTION[@N]     append::after=abort@25;commit::before=sleep(50)
//! ```
//!
//! A point acts when it is passed for the `N`th time (the first, if there is no `@N`) and from then on:
//!
//! | action | what happens |
//! |---|---|
//! | `abort` | the process ends at once, as by kill -9: nothing is written out, no destructor runs |
//! | `error` | the stage fails as if its disk or database had; only where [`Point::can_fail`] |
//! | `sleep(MS)` | the thread stands still for so many milliseconds, as on a slow disk |
//! | `pause(FILE)` | the thread stands still until there is a file of that name |
//!
//! The points stand in [`Point`], each with what has happened there. An unset one costs one load of an atomic.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod points;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use points::Point;

/// Environment variable with the settings.
pub const VARIABLE: &str = "SLUICE_FAILPOINTS";

/// How often a paused thread looks for its file.
const LOOK: Duration = Duration::from_millis(5);

static ARMED: OnceLock<Armed> = OnceLock::new();

/// The error that a point injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an error was injected at the failpoint {}", .0.name())]
pub struct Injected(pub Point);

/// Settings that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}: `{setting}`: {why}")]
pub struct Unclear {
    setting: String,
    why: String,
}

/// Sets the failpoints of this process from [`VARIABLE`], if it is there. Tells which act, so that nobody runs a pool
/// on them without knowing.
///
/// # Errors
/// If the settings cannot be understood.
pub fn arm_from_environment() -> Result<Option<String>, Unclear> {
    let Ok(settings) = std::env::var(VARIABLE) else { return Ok(None) };
    let armed = Armed::parse(&settings)?;
    let shown = armed.to_string();
    // A second call would be a second main.
    Ok(ARMED.set(armed).is_ok().then_some(shown))
}

/// Passes a point where an error may be injected.
///
/// # Errors
/// [`Injected`], if that is its setting.
#[inline]
pub fn check(point: Point) -> Result<(), Injected> {
    match ARMED.get() {
        None => Ok(()),
        Some(armed) => armed.pass(point),
    }
}

/// Passes a point of a place that cannot fail.
#[inline]
pub fn pass(point: Point) {
    if let Some(armed) = ARMED.get() {
        // No error is set at such a point: `parse` refuses it.
        let _ = armed.pass(point);
    }
}

#[derive(Debug)]
struct Armed(BTreeMap<Point, Setting>);

#[derive(Debug)]
struct Setting {
    action: Action,
    /// The pass from which on it acts; the first is 1.
    from: u64,
    passed: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Error,
    Sleep(Duration),
    Pause(PathBuf),
}

impl Armed {
    fn parse(settings: &str) -> Result<Self, Unclear> {
        let mut armed = BTreeMap::new();
        for setting in settings.split(';').map(str::trim).filter(|setting| !setting.is_empty()) {
            let unclear = |why: String| Unclear { setting: setting.to_owned(), why };
            let (name, action) = setting.split_once('=').ok_or_else(|| unclear("POINT=ACTION is expected".into()))?;
            let point = Point::ALL.iter().find(|point| point.name() == name);
            let point = *point.ok_or_else(|| unclear(format!("there is no point {name}; there are {}", names())))?;
            let setting = Setting::parse(action).map_err(unclear)?;
            if setting.action == Action::Error && !point.can_fail() {
                return Err(unclear("no error can come from there".into()));
            }
            if armed.insert(point, setting).is_some() {
                return Err(unclear("the point is set twice".into()));
            }
        }
        Ok(Self(armed))
    }

    #[cold]
    fn pass(&self, point: Point) -> Result<(), Injected> {
        let Some(setting) = self.0.get(&point) else { return Ok(()) };
        let passed = setting.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if passed < setting.from {
            return Ok(());
        }
        if passed == setting.from {
            tracing::warn!(point = point.name(), action = %setting.action, passed, "a failpoint acts");
        }
        match &setting.action {
            // Whoever comes to it first ends the process, once it has said so.
            Action::Abort if passed > setting.from => loop {
                std::thread::park();
            },
            Action::Abort => std::process::abort(),
            Action::Error => return Err(Injected(point)),
            Action::Sleep(time) => std::thread::sleep(*time),
            Action::Pause(until) => {
                while !until.exists() {
                    std::thread::sleep(LOOK);
                }
            }
        }
        Ok(())
    }
}

impl Setting {
    fn parse(text: &str) -> Result<Self, String> {
        let (action, from) = match text.rsplit_once('@') {
            None => (text, 1),
            Some((action, from)) => (action, from.parse().ok().filter(|from| *from > 0).ok_or("@N counts from 1")?),
        };
        let (name, argument) = match action.strip_suffix(')').and_then(|action| action.split_once('(')) {
            None => (action, None),
            Some((name, argument)) => (name, Some(argument)),
        };
        let action = match (name, argument) {
            ("abort", None) => Action::Abort,
            ("error", None) => Action::Error,
            ("sleep", Some(ms)) => Action::Sleep(Duration::from_millis(ms.parse().map_err(|_| "no milliseconds")?)),
            ("pause", Some(file)) if !file.is_empty() => Action::Pause(file.into()),
            _ => return Err("the actions are abort, error, sleep(MS) and pause(FILE)".into()),
        };
        Ok(Self { action, from, passed: AtomicU64::new(0) })
    }
}

fn names() -> String {
    Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort => write!(f, "abort"),
            Self::Error => write!(f, "error"),
            Self::Sleep(time) => write!(f, "sleep({})", time.as_millis()),
            Self::Pause(file) => write!(f, "pause({})", file.display()),
        }
    }
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (point, setting)) in self.0.iter().enumerate() {
            let between = if number == 0 { "" } else { ";" };
            write!(f, "{between}{}={}@{}", point.name(), setting.action, setting.from)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn settings_are_read_and_shown() {
        let text = "append::before=abort@25; commit::after = error";
        assert!(Armed::parse(text).unwrap_err().to_string().contains("there is no point commit::after "));
        let armed = Armed::parse("append::before=abort@25; commit::after=error;job::after=sleep(7);").unwrap();
        assert_eq!(armed.to_string(), "append::before=abort@25;commit::after=error@1;job::after=sleep(7)@1");
        assert!(Armed::parse("").unwrap().0.is_empty());
    }

    #[test]
    fn what_is_unclear_is_told() {
        for (settings, why) in [
            ("append::before", "POINT=ACTION"),
            ("append::sideways=abort", "append::after"),
            ("append::before=explode", "abort, error"),
            ("append::before=sleep", "abort, error"),
            ("append::before=pause()", "abort, error"),
            ("append::before=sleep(long)", "milliseconds"),
            ("append::before=abort@0", "from 1"),
            ("gateway::after=error", "no error"),
            ("append::before=abort;append::before=error", "twice"),
        ] {
            let error = Armed::parse(settings).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(VARIABLE), "{settings}: {error}");
        }
    }

    #[test]
    fn a_point_acts_from_its_pass_on() {
        let armed = Armed::parse("flush::after=error@3").unwrap();
        assert_eq!(armed.pass(Point::FlushBefore), Ok(()));
        let passes: Vec<bool> = (0..5).map(|_| armed.pass(Point::FlushAfter).is_ok()).collect();
        assert_eq!(passes, [true, true, false, false, false]);
        assert!(Injected(Point::FlushAfter).to_string().contains("flush::after"));
    }

    #[test]
    fn a_thread_stands_still_for_its_time_or_until_its_file_is_there() {
        let begun = Instant::now();
        Armed::parse("append::after=sleep(30)").unwrap().pass(Point::AppendAfter).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("go");
        let armed = Armed::parse(&format!("append::after=pause({})", file.display())).unwrap();
        std::thread::scope(|scope| {
            let paused = scope.spawn(|| armed.pass(Point::AppendAfter));
            while armed.0[&Point::AppendAfter].passed.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            assert!(!paused.is_finished());
            std::fs::write(&file, "").unwrap();
            paused.join().unwrap().unwrap();
        });
    }

    #[test]
    fn names_are_unique_and_say_before_or_after() {
        for (number, point) in Point::ALL.iter().enumerate() {
            assert!(point.name().ends_with("::before") || point.name().ends_with("::after"), "{}", point.name());
            assert!(Point::ALL[..number].iter().all(|other| other.name() != point.name()));
            assert!(point.place().ends_with('.'));
        }
    }
}
