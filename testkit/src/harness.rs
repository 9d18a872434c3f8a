//! The real program as a process: started on a topology file of the test's own, killed, stopped, started again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{TICK, tail, terminate, wait_exit};
use crate::rpc::http;

/// How long the program may take to be ready or to end: a guard against hanging, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program, its directory and its topology. The directory stays over restarts and goes with this value.
///
/// The topology should have port 0 wherever the program listens: each start gets free ports, and tells them in its log
/// (`message` "listening" with `service` and `address`), where [`PoolProcess::address`] reads them.
pub struct PoolProcess {
    exe: PathBuf,
    dir: TempDir,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    process: Option<Child>,
    /// Starts so far: each has an output of its own.
    starts: u32,
    keep: bool,
}

impl PoolProcess {
    /// A program (`env!("CARGO_BIN_EXE_sluice")` in the tests of the binary) with a topology file, not started yet.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn new(exe: impl Into<PathBuf>, topology: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-pool-").tempdir().context("a directory for the pool")?;
        let exe = exe.into();
        let (args, env) = (Vec::new(), BTreeMap::new());
        let pool = Self { exe, dir, args, env, process: None, starts: 0, keep: false };
        pool.set_topology(topology)?;
        Ok(pool)
    }

    /// Replaces the topology file; it counts from the next start on.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set_topology(&self, topology: &str) -> Result<()> {
        fs::write(self.dir.path().join("topology.yaml"), topology).context("writing topology.yaml")
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets an environment variable from the next start on, or takes it away.
    pub fn set_env(&mut self, name: &str, value: Option<String>) {
        match value {
            Some(value) => self.env.insert(name.to_owned(), value),
            None => self.env.remove(name),
        };
    }

    /// Adds an argument of `sluice run`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The directory in which it runs, with `topology.yaml` and all that it writes to relative paths.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time; the error shows its output.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the pool runs already");
        }
        self.starts += 1;
        let output = File::create(self.output_file()).context("the output of the pool")?;
        let mut command = self.command(&["--log-format", "json", "run"]);
        command.args(&self.args);
        command.stdout(output.try_clone()?).stderr(output);
        self.process = Some(command.spawn().with_context(|| format!("starting {}", self.exe.display()))?);
        Ok(())
    }

    /// The program with these arguments, in the pool's directory and with its environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(args).current_dir(self.dir.path());
        // What is set for people would disturb tests.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
            command.env_remove(name);
        }
        command.envs(&self.env).stdin(Stdio::null());
        command
    }

    /// Waits until `GET /ready` answers 200.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let address = self.wait_address("http")?;
        self.wait_for("an answer 200 to GET /ready", || match http("GET", &address, "/ready", "", &[]) {
            Ok((200, _)) => Ok(Some(())),
            // Not ready yet, or not listening yet.
            Ok(_) | Err(_) => Ok(None),
        })
    }

    /// Waits until the service listens; its `HOST:PORT`. `http` is the API.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn wait_address(&mut self, service: &str) -> Result<String> {
        let file = self.output_file();
        self.wait_for(&format!("{service} to listen"), || Ok(addresses(&file)?.remove(service)))
    }

    /// `HOST:PORT` on which a service of this start listens.
    ///
    /// # Errors
    /// If it does not listen, which is never so after [`Self::start`] for what the topology has.
    pub fn address(&self, service: &str) -> Result<String> {
        let mut known = addresses(&self.output_file())?;
        known.remove(service).with_context(|| format!("{service} does not listen; there are: {known:?}"))
    }

    /// Waits until `look` finds something, as long as the program runs.
    ///
    /// # Errors
    /// If it ends, `look` fails, or nothing is found in time; the error shows its output.
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            let process = self.process.as_mut().context("the pool is not started")?;
            if let Some(status) = process.try_wait().context("asking whether the pool has ended")? {
                bail!("waiting for {what}, but the pool ended ({status}); {}", tail(&self.output_file()));
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what}; {}", PATIENCE.as_secs(), tail(&self.output_file()));
            }
            std::thread::sleep(TICK);
        }
    }

    /// `GET` of a path of the API: status and body.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http("GET", &self.address("http")?, path, "", &[])
    }

    /// `GET` of a path of the API that answers with JSON.
    ///
    /// # Errors
    /// If there is no answer, its status is not 200 or its body is no JSON.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path)?;
        if status != 200 {
            bail!("GET {path} was answered with status {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("GET {path} was answered with no JSON: {body}"))
    }

    /// Kills it (SIGKILL), as a crash would, and waits for its end.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the pool does not run")?;
        process.kill().context("killing the pool")?;
        process.wait().map(|_| ()).context("waiting for the pool's end")
    }

    /// Asks it to stop (SIGTERM), and waits for its end; how it ended and how long that took.
    ///
    /// # Errors
    /// If it does not run or does not end in time.
    pub fn stop(&mut self) -> Result<(ExitStatus, Duration)> {
        let begun = Instant::now();
        terminate(self.process.as_ref().context("the pool does not run")?)?;
        Ok((self.wait_exit()?, begun.elapsed()))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not run or does not end in time; the error shows its output.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let process = self.process.as_mut().context("the pool does not run")?;
        let status = wait_exit(process, PATIENCE).with_context(|| tail(&self.output_file()))?;
        self.process = None;
        Ok(status)
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        let ended =
            self.process.as_mut().map(Child::try_wait).transpose().context("asking whether the pool has ended")?;
        Ok(ended.is_some_and(|ended| ended.is_none()))
    }

    /// Its process id.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What this start (or the last one) has printed: log lines in JSON.
    ///
    /// # Errors
    /// If it was never started.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(self.output_file()).context("the output of the pool")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Keeps the directory for a look at it.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    fn output_file(&self) -> PathBuf {
        self.dir.path().join(format!("output-{}", self.starts))
    }
}

impl Drop for PoolProcess {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("the pool, start {}, {}", self.starts, tail(&self.output_file()));
        }
        self.dir.disable_cleanup(self.keep);
    }
}

/// Who listens where, from the log lines of a file; of several addresses of one service the last.
fn addresses(file: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    // A line that is not written to its end yet is no JSON: it is read the next time.
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    Ok(lines.filter_map(|line| listening(&line)).collect())
}

fn listening(line: &Value) -> Option<(String, String)> {
    // The fields of an event are beside the level and the time, or in an object of their own.
    let field = |name: &str| line.get(name).or_else(|| line.get("fields")?.get(name))?.as_str();
    (field("message") == Some("listening")).then_some(())?;
    Some((field("service")?.to_owned(), field("address")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A program that behaves like `sluice run` as far as the harness goes: it says where the file `http` says that
    /// something listens, and ends on SIGTERM.
    const SCRIPT: &str = r#"#!/bin/sh
printf '{"level":"INFO","message":"listening","service":"http","address":"%s"}\n' "$(cat http)" >&2
printf '{"fields":{"message":"listening","service":"stratumd","address":"127.0.0.1:3333"}}\n{"mess' >&2
echo "$GREETING $*"
trap 'exit 3' TERM
while :; do sleep 0.01; done
"#;

    fn script(dir: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let file = dir.join("program");
        File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// Answers 503 once, then 200.
    fn api() -> (String, std::thread::JoinHandle<()>) {
        use std::io::{BufRead, BufReader};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = move || {
            for status in ["503 Service Unavailable", "200 OK", "200 OK", "404 Not Found"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while !lines.next().unwrap().unwrap().is_empty() {}
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\n{{\"a\":1}}").unwrap();
            }
        };
        (address, std::thread::spawn(serve))
    }

    #[test]
    fn a_program_is_started_asked_killed_and_started_again() {
        let place = tempfile::tempdir().unwrap();
        let exe = script(place.path(), SCRIPT);
        let (address, server) = api();
        let mut pool = PoolProcess::new(exe, "version: 1").unwrap().env("GREETING", "hello").arg("--only=x");
        fs::write(pool.dir().join("http"), &address).unwrap();
        pool.start().unwrap();
        assert_eq!(pool.address("http").unwrap(), address);
        assert_eq!(pool.wait_address("stratumd").unwrap(), "127.0.0.1:3333");
        assert!(pool.address("nobody").is_err());
        assert_eq!(pool.get_json("/api/v1/pool").unwrap()["a"], 1);
        assert!(pool.get_json("/nothing").unwrap_err().to_string().contains("404"));
        server.join().unwrap();
        assert!(pool.spawn().is_err(), "it runs already");
        pool.kill().unwrap();
        assert!(!pool.is_running().unwrap());
        pool.spawn().unwrap();
        pool.wait_address("http").unwrap();
        // The trap is set right after the greeting.
        let file = pool.output_file();
        pool.wait_for("the greeting", || Ok(fs::read_to_string(&file)?.contains("hello").then_some(()))).unwrap();
        assert!(pool.output().unwrap().contains("hello --log-format json run --only=x"));
        let (status, _) = pool.stop().unwrap();
        assert!(!status.success());
        assert!(pool.dir().join("topology.yaml").exists());
    }

    #[test]
    fn a_program_that_ends_is_an_error_with_its_output() {
        let place = tempfile::tempdir().unwrap();
        let exe = script(place.path(), "#!/bin/sh\necho 'no such topic' >&2\nexit 1\n");
        let error = format!("{:#}", PoolProcess::new(exe, "").unwrap().start().unwrap_err());
        assert!(error.contains("no such topic") && error.contains("exit status: 1"), "{error}");
    }
}
