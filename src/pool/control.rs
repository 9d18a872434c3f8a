//! The control socket: commands to the running pool from the same machine and user.
//!
//! A request is a line of words, `checkpoint verify.3`; the answer is a line of JSON, `{"ok": ...}` or `{"error": "..."}`.
//! A connection may ask as often as it likes, one request after the other.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use sluice_topology::runtime::RuntimeHandle;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::checkpoints::Checkpointing;

/// Name of the socket in the state's directory.
const SOCKET: &str = "control.sock";
/// Longest request, bytes.
const LONGEST: u64 = 4_096;
/// Longest path that a socket's address has room for, bytes.
const LONGEST_PATH: usize = 107;

/// What commands work on.
pub(super) struct Powers {
    pub(super) runtime: Arc<RuntimeHandle>,
    pub(super) checkpoints: Arc<Checkpointing>,
}

type Answer = BoxFuture<'static, Result<Value, String>>;

/// A command.
struct Command {
    name: &'static str,
    run: fn(Arc<Powers>, Vec<String>) -> Answer,
}

/// All of them, by name.
const COMMANDS: &[Command] = &[
    Command { name: "checkpoint", run: |powers, words| checkpoint(powers, words).boxed() },
    Command { name: "status", run: |powers, _| status(powers).boxed() },
];

/// Makes checkpoints of the task that the first word names, or of all.
async fn checkpoint(powers: Arc<Powers>, words: Vec<String>) -> Result<Value, String> {
    let made = move || powers.checkpoints.create(words.first().map(String::as_str));
    let made = tokio::task::spawn_blocking(made).await.map_err(|error| format!("no checkpoint: {error}"))??;
    let shown = made.into_iter().map(|(task, made)| match made {
        Ok(manifest) => json!({ "task": task, "manifest": manifest }),
        Err(error) => json!({ "task": task, "error": error.to_string() }),
    });
    Ok(shown.collect())
}

/// The tasks with their positions and digests.
async fn status(powers: Arc<Powers>) -> Result<Value, String> {
    let tasks = powers.runtime.status().await.into_iter().map(|task| {
        let position = |input: &sluice_topology::runtime::InputStatus| {
            json!({ "input": input.partition.to_string(), "position": input.position.get(), "lag": input.lag })
        };
        let digests = task.digests.iter().map(|(table, digest)| (table.clone(), digest.to_string().into()));
        json!({
            "name": task.name,
            "state": format!("{:?}", task.state).to_lowercase(),
            "error": task.error,
            "inputs": task.inputs.iter().map(position).collect::<Value>(),
            "digests": digests.collect::<serde_json::Map<String, Value>>(),
        })
    });
    let tasks: Value = tasks.collect();
    Ok(json!({ "version": env!("CARGO_PKG_VERSION"), "process": std::process::id(), "tasks": tasks }))
}

/// The open socket. Dropping it removes it.
pub(super) struct Control {
    path: PathBuf,
    serving: JoinHandle<()>,
}

impl Control {
    /// Opens the socket in the state's directory and answers on it.
    ///
    /// # Errors
    /// If another process answers there, or the socket cannot be made.
    pub(super) fn start(state: &Path, powers: Powers) -> anyhow::Result<Self> {
        let path = state.join(SOCKET);
        let listener = bind(state).with_context(|| format!("cannot open the control socket {}", path.display()))?;
        let powers = Arc::new(powers);
        let serving = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&powers)))),
                    Err(error) => {
                        tracing::warn!(%error, "the control socket accepts no connection");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(Self { path, serving })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        // If it stays, the next process finds nobody behind it and replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(stream: UnixStream, powers: Arc<Powers>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        match (&mut reader).take(LONGEST).read_line(&mut line).await {
            Ok(length) if length > 0 && line.ends_with('\n') => {}
            _ => return,
        }
        let answer = match answer(&line, &powers).await {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error }),
        };
        if writer.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer(line: &str, powers: &Arc<Powers>) -> Result<Value, String> {
    let mut words = line.split_whitespace().map(str::to_owned);
    let name = words.next().unwrap_or_default();
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        return Err(format!("there is no command `{name}`; there are {}", known.join(", ")));
    };
    (command.run)(Arc::clone(powers), words.collect()).await
}

/// A path to a file of a directory that fits into a socket's address: where the real one is too long, by way of the open
/// directory.
struct Short {
    path: PathBuf,
    /// Open while the path is used.
    _dir: Option<File>,
}

impl Short {
    fn of(dir: &Path, name: &str) -> std::io::Result<Self> {
        let path = dir.join(name);
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { path, _dir: None });
        }
        let open = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()));
        Ok(Self { path, _dir: Some(open) })
    }
}

/// The socket is made in a directory that nobody else may enter and moved to its place when its mode is set. That also
/// replaces one that a process has left behind.
fn bind(state: &Path) -> anyhow::Result<UnixListener> {
    if connect(state)?.is_some() {
        bail!("another process answers there; does it run the same pool?");
    }
    let private = state.join("control%new");
    if private.exists() {
        std::fs::remove_dir_all(&private)?;
    }
    DirBuilder::new().mode(0o700).create(&private)?;
    let short = Short::of(&private, SOCKET)?;
    let listener = UnixListener::bind(&short.path)?;
    std::fs::set_permissions(private.join(SOCKET), Permissions::from_mode(0o600))?;
    std::fs::rename(private.join(SOCKET), state.join(SOCKET))?;
    std::fs::remove_dir(&private)?;
    Ok(listener)
}

fn connect(state: &Path) -> anyhow::Result<Option<BlockingStream>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match Short::of(state, SOCKET).and_then(|short| BlockingStream::connect(&short.path)) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot ask {}", state.join(SOCKET).display())),
    }
}

/// Asks the pool that runs on the state's directory; `None` if none runs. Blocks until it has answered.
///
/// # Errors
/// What the pool says against it, or if it ends before it answers.
pub(crate) fn ask(state: &Path, request: &str) -> anyhow::Result<Option<Value>> {
    let Some(mut stream) = connect(state)? else { return Ok(None) };
    stream.write_all(format!("{request}\n").as_bytes()).context("the pool does not take the request")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the pool does not answer")?;
    let mut answer: Value = serde_json::from_str(&line).context("the pool has ended before it answered")?;
    match answer.get_mut("ok") {
        Some(value) => Ok(Some(value.take())),
        None => bail!("{}", answer["error"].as_str().unwrap_or("the pool gives no reason")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Sockets of ended processes are replaced, those of living ones are not; only the user may connect.
    #[tokio::test]
    async fn a_socket_is_taken_over_from_the_dead_only() {
        for long in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join(if long { "d".repeat(150) } else { "state".into() });
            std::fs::create_dir(&dir).unwrap();
            let first = bind(&dir).unwrap();
            assert_eq!(std::fs::metadata(dir.join(SOCKET)).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(bind(&dir).unwrap_err().to_string().contains("another process"));
            drop(first);
            assert!(dir.join(SOCKET).exists());
            drop(bind(&dir).unwrap());
        }
    }

    #[test]
    fn nobody_answers_where_no_pool_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ask(dir.path(), "status").unwrap().is_none());
    }
}
