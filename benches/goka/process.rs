//! An engine as a process: what it takes, when it is done, and its death in the middle.
//!
//! An engine says on its output when it begins to work and when all is done; then it ends by itself. CPU time is that of the
//! whole process, from its start to its end, as the system counts it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// The engine is set up and begins to work.
pub const BEGUN: &str = "begun";
/// All records are processed, what was made of them is durable.
pub const DONE: &str = "done";

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long an engine may take for everything: a guard, not a measure.
const GUARD: Duration = Duration::from_secs(900);
/// Ticks of /proc a second, on every Linux there is.
const TICKS: u64 = 100;

/// Says a line to whoever started this process.
pub fn say(line: &str) {
    let mut out = std::io::stdout();
    // Who does not listen any more will not miss it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time of the whole process.
    pub cpu: Duration,
    /// From when it began to work until all was done.
    pub wall: Duration,
    /// Most bytes of memory it had at once.
    pub resident: u64,
}

/// A running engine.
pub struct Engine {
    child: Child,
    lines: Receiver<(Instant, String)>,
    resident: u64,
}

impl Engine {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("starting {command:?}"))?;
        let out = child.stdout.take().context("the output of the engine")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if tell.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines, resident: 0 })
    }

    /// Waits until it has done everything and has ended.
    pub fn finish(mut self) -> Result<Usage> {
        let begun = self.wait_for(BEGUN)?;
        let done = self.wait_for(DONE)?;
        let usage = Usage { cpu: self.ended()?, wall: done - begun, resident: self.resident };
        let status = self.child.wait().context("waiting for the engine")?;
        ensure!(status.success(), "the engine ended with {status}");
        Ok(usage)
    }

    /// Lets it work until `reached` says so, then kills it as `kill -9` does.
    pub fn kill_when(mut self, reached: impl Fn() -> Result<bool>) -> Result<()> {
        self.wait_for(BEGUN)?;
        let begun = Instant::now();
        while !reached()? {
            if let Some(status) = self.child.try_wait().context("looking at the engine")? {
                bail!("the engine ended before it was killed: {status}");
            }
            ensure!(begun.elapsed() < GUARD, "the engine has not come half of the way in {} s", GUARD.as_secs());
            std::thread::sleep(LOOK);
        }
        self.child.kill().context("killing the engine")?;
        let status = self.child.wait().context("waiting for the engine")?;
        ensure!(!status.success(), "the engine had ended before it was killed");
        Ok(())
    }

    fn wait_for(&mut self, line: &str) -> Result<Instant> {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok((at, said)) if said == line => return Ok(at),
                Ok((_, said)) => eprintln!("{said}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the engine ended before it was {line}: {}", self.child.wait().context("its end")?)
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
            }
            ensure!(begun.elapsed() < GUARD, "the engine is not {line} after {} s", GUARD.as_secs());
        }
    }

    fn look(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
        self.resident = self.resident.max(kib.unwrap_or(0) << 10);
    }

    /// CPU time of the process, once it has ended: it is read before the process is gone for good.
    fn ended(&self) -> Result<Duration> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the engine's id")?;
        waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).context("waiting for the engine")?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).context("its CPU time")?;
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok()).context("ticks of CPU");
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1_000 / TICKS))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
