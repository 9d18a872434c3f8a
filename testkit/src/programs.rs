//! What the launched programs have in common: where they are found, ports, their output, their end.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Where free ports are looked for: below those that systems give to outgoing connections.
const PORTS: std::ops::Range<u32> = 15_000..31_000;
/// How often something is looked at that gives no notice.
pub(crate) const TICK: Duration = Duration::from_millis(20);
/// How much of an output is shown in an error.
const TAIL: usize = 8_000;

/// A port on the loopback that nothing listens on now, another one at each call. Where a program can take port 0 and
/// tell what it got, that is better.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    // Processes that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..span {
        let number = PORTS.start + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % span;
        let port = u16::try_from(number).context("a port")?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {} to {}", PORTS.start, PORTS.end)
}

/// A program: where the variable says, else on the PATH (if `on_path`), else in Sluice's cache at `cached`.
///
/// # Errors
/// If it is nowhere, or the variable names no file; the error says what to do.
pub(crate) fn find(name: &str, variable: &str, on_path: bool, cached: &str) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        if named.is_file() {
            return Ok(named);
        }
        bail!("{variable} is {}, which is no file", named.display());
    }
    let path = std::env::var_os("PATH").filter(|_| on_path).unwrap_or_default();
    let cache = cache_dir()?.join(cached);
    let places = std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).map(|dir| dir.join(name));
    match places.chain([cache.clone()]).find(|place| place.is_file()) {
        Some(found) => Ok(found),
        None => bail!(
            "{name} was not found{} and not at {}: run `make test`, which builds it once, or set {variable} to the \
             program",
            if on_path { " on the PATH" } else { "" },
            cache.display()
        ),
    }
}

/// Where the set-up keeps what it builds.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || named("HOME").map(|home| home.join(".cache"));
    let parent = || named("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("sluice"));
    named("SLUICE_CACHE").or_else(parent).context("none of SLUICE_CACHE, XDG_CACHE_HOME and HOME is set")
}

/// Waits until a process has ended, for `guard` at most.
///
/// # Errors
/// If it has not by then.
pub(crate) fn wait_exit(process: &mut Child, guard: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + guard;
    loop {
        if let Some(status) = process.try_wait().context("asking whether a process has ended")? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("process {} has not ended within {} s", process.id(), guard.as_secs());
        }
        std::thread::sleep(TICK);
    }
}

/// Asks a process to end (SIGTERM).
///
/// # Errors
/// If it cannot be asked.
pub(crate) fn terminate(process: &Child) -> Result<()> {
    // The standard library sends no signal but SIGKILL; every shell has `kill`.
    let status = Command::new("sh").args(["-c", &format!("kill -TERM {}", process.id())]).status();
    let status = status.context("running sh")?;
    if status.success() { Ok(()) } else { bail!("process {} was not asked to end: {status}", process.id()) }
}

/// The end of a file of output, for errors.
pub(crate) fn tail(file: &Path) -> String {
    let text = match fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned(),
        Err(error) => format!("({error})"),
    };
    format!("end of {}:\n{text}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let ports: std::collections::HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_missing_program_is_an_error_that_says_what_to_do() {
        let error = find("no-such-program", "NO_SUCH_PROGRAM_EXE", true, "none/bin/none").unwrap_err().to_string();
        assert!(error.contains("make test") && error.contains("NO_SUCH_PROGRAM_EXE"), "{error}");
    }
}
