//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_topology::Override;

use crate::commands::checkpoint::CheckpointArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::replay::ReplayArgs;
use crate::commands::state::StateArgs;

/// Examples under `sluice --help`.
const EXAMPLES: &str = "\
Examples:
  sluice demo                              a whole pool on this machine, with a simulated node and miners
  sluice check -f topology.yaml            all mistakes of a topology file at once
  sluice run                               the pool of ./topology.yaml
  sluice run --only stratumd,jobmanager    some of its operators and services in this process
  sluice run --set ledger.scheme=solo      with a setting that replaces the file's
  sluice plan                              what a changed file makes of the states on disk
  sluice graph --format svg > pool.svg     a picture of it
  sluice checkpoint create                 a checkpoint of every task, also of a running pool
  sluice state ls                          what tasks have stored
  sluice replay --verify                   states, outputs and ledger against what the topics say
  sluice tap block.outcomes --json         the records of a topic, also of a running pool

Every setting of the file can be given by --set PATH=VALUE or by an environment variable: SLUICE__LEDGER__SCHEME=solo
is ledger.scheme. The file may refer to variables as ${NAME}; secrets come from variables or files only.";

/// A Bitcoin mining pool built as a stream-processing topology.
#[derive(Parser)]
#[command(name = "sluice", version, about, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Options of every command.
#[derive(Args)]
pub(crate) struct Common {
    /// How log lines are written, to stderr.
    #[arg(long, global = true, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module such as `info,sluice_log=debug`.
    #[arg(
        long,
        global = true,
        env = "SLUICE_LOG",
        default_value = "info,fluvio=warn,fluvio_socket=warn,fluvio_future=warn",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the pool of a topology file, or a part of it.
    Run(RunArgs),
    /// Check a topology file without touching anything, and report all mistakes at once.
    Check(CheckArgs),
    /// Make, list, verify, copy and restore checkpoints of tasks.
    Checkpoint(CheckpointArgs),
    /// Look into the state of tasks, also while they run, and into checkpoints.
    State(StateArgs),
    /// Compare a topology file with the log and the states on disk, before anything is touched.
    Plan(PlanArgs),
    /// Draw a topology.
    Graph(GraphArgs),
    /// List the kinds of operators, services and tables; with --reference their ports and settings, as Markdown.
    Kinds(KindsArgs),
    /// Show the records of a topic, also while the pool runs.
    Tap(TapArgs),
    /// Make states again from the topics, and check what is recorded against them.
    Replay(ReplayArgs),
    /// Change the number of partitions of the shares, on a stopped pool.
    Rescale(crate::commands::rescale::RescaleArgs),
    /// Run a whole pool on this machine, with a node and miners of its own, and watch it find blocks.
    Demo(DemoArgs),
    /// Show records that statistics could not process, and let them be processed once more.
    DeadLetters(crate::commands::dead_letters::DeadLettersArgs),
    /// Put load on a pool and measure it: many miners, shares of every kind, latencies.
    Swarm(SwarmArgs),
}

/// Which topology file, and what replaces its settings.
#[derive(Args, Clone)]
pub(crate) struct FileArgs {
    /// The topology file.
    #[arg(short, long, env = "SLUICE_TOPOLOGY", default_value = "topology.yaml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// A setting that replaces the file's, such as `ledger.fee_bps=100`; may be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = parse_override)]
    pub(crate) set: Vec<Override>,
}

/// `sluice run`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice run
  sluice run -f pool.yaml --only jobmanager,stratumd
  BITCOIN_RPC_AUTH=pool:secret sluice run --set bitcoin.network=signet --log-format json

On Fluvio (log.kind=fluvio) accepted shares are written by all copies of a partition, but synced to a
disk by none: it needs log.replication of 2 or more. There is no idempotent producer: what was sent
again is dropped by its coordinates.

SIGINT and SIGTERM stop it: what is in flight is answered, state is committed, and it exits within 5 seconds with code
0. A task that fails stops the process with code 1 and the cause; let a supervisor start it again.")]
pub(crate) struct RunArgs {
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Run only these operators and services (and the operators fused with them); `NAME:0-3` for some of an operator's
    /// partitions, which other processes then must not run.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// On Kafka: share out what --only names among all processes started so, by a consumer group. Start as many as you like,
    /// each with a state directory of its own; when one is gone, another one goes on within about 10 seconds.
    #[arg(long, requires = "only", conflicts_with = "standby")]
    pub(crate) shared: bool,
    /// Check the state of every task row by row, move aside what `sluice plan` calls rebuilt, and make it again from a
    /// checkpoint or the topics.
    #[arg(long)]
    pub(crate) rebuild: bool,
    /// Follow the pool that runs on this log, and take over when it is gone. Needs a state directory of its own
    /// (--set state.dir=DIR).
    #[arg(long, conflicts_with = "rebuild")]
    pub(crate) standby: bool,
}

/// `sluice check`.
#[derive(Args)]
#[command(after_help = "\
It exits with code 0 where there is no mistake, else 1. What is to be known all the same is printed as
a warning: that Fluvio (log.kind=fluvio) syncs nothing to a disk and has no idempotent producer, and
that accepted shares need log.replication of 2 or more there.")]
pub(crate) struct CheckArgs {
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Two plain lines for each mistake (FILE:LINE:COLUMN: ...), as editors read them.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Variables that secrets come from need not be set.
    #[arg(long)]
    pub(crate) without_secrets: bool,
}

/// `sluice graph`.
#[derive(Args)]
pub(crate) struct GraphArgs {
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// mermaid, dot or svg.
    #[arg(long, default_value = "mermaid", value_name = "FORMAT")]
    pub(crate) format: String,
}

/// `sluice kinds`.
#[derive(Args)]
pub(crate) struct KindsArgs {
    /// Everything about the topology file, as Markdown.
    #[arg(long)]
    pub(crate) reference: bool,
}

/// `sluice tap`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice tap share.tallies                       what is there, then what comes
  sluice tap block.outcomes --from 0 --stop      everything, and no more
  sluice tap mining.jobs --from latest --json
  sluice tap share.submissions --partition 2 --from 1000 --count 10")]
pub(crate) struct TapArgs {
    /// The topic.
    pub(crate) topic: String,
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Where to begin: `earliest`, `latest`, or an offset.
    #[arg(long, default_value = "earliest", value_parser = parse_from)]
    pub(crate) from: From,
    /// This partition only.
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// One JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// End after this many records.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End when there is nothing more, instead of waiting for it.
    #[arg(long)]
    pub(crate) stop: bool,
}

/// Where `sluice tap` begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The oldest record.
    Earliest,
    /// The next record.
    Latest,
    /// The record at an offset.
    Offset(u64),
}

/// `sluice demo`.
#[derive(Args)]
#[command(after_help = "\
The demo keeps its chain, log, state and ledger in --dir: stopped and started again it goes on with the same balances.
Where Bitcoin Core is found (BITCOIND_EXE, or bitcoind on the PATH) it runs a private signet on it, else a simulated
node.")]
pub(crate) struct DemoArgs {
    /// Where it keeps everything.
    #[arg(long, env = "SLUICE_DEMO_DIR", default_value = "./data/demo", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Use the simulated node even where Bitcoin Core is found.
    #[arg(long)]
    pub(crate) simulated: bool,
    /// Where the API is served.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub(crate) http: String,
    /// Where miners connect; you may add your own.
    #[arg(long, default_value = "127.0.0.1:3333", value_name = "HOST:PORT")]
    pub(crate) stratum: String,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<u64>,
    /// Plain lines instead of a live view; so it is too where the output is no terminal.
    #[arg(long)]
    pub(crate) plain: bool,
}

/// `sluice swarm`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice swarm --target 127.0.0.1:3333 --user bc1q...{n} -c 32 --in-flight 16 --stock 1000000
  sluice swarm --target 127.0.0.1:3333 --user bc1q... -c 1000 --rate 20000 --duplicates 1 --stales 1 --lows 1
  sluice swarm --target 127.0.0.1:3333 --user bc1q... -c 10000 --idle --duration 60
  sluice swarm --target 127.0.0.1:3333 --user bc1q... -c 5000 --idle --storm 2000

It works with any Stratum V1 pool. Give the pool a difficulty far below 1: shares are found by hashing, before the
measured window if --stock says how many. Open files: `ulimit -n` must exceed the connections.")]
pub(crate) struct SwarmArgs {
    /// The pool, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) target: String,
    /// The pool is on another machine, and its operator has agreed to be put under load.
    #[arg(long)]
    pub(crate) allow_remote: bool,
    /// User of the login (payout address, and a worker's name after a dot); {n} in it is the connection's number.
    #[arg(long)]
    pub(crate) user: String,
    /// Password of the login.
    #[arg(long, default_value = "x")]
    pub(crate) password: String,
    /// Connections.
    #[arg(short, long, default_value_t = 32, value_name = "N")]
    pub(crate) connections: usize,
    /// Closed loop: each connection keeps this many shares unanswered.
    #[arg(long, default_value_t = 16, value_name = "K", conflicts_with_all = ["rate", "idle"])]
    pub(crate) in_flight: usize,
    /// Open loop: shares a second over all connections, however fast the pool is.
    #[arg(long, value_name = "R", conflicts_with = "idle")]
    pub(crate) rate: Option<f64>,
    /// Send the shares of --rate evenly, not at random times.
    #[arg(long, requires = "rate")]
    pub(crate) even: bool,
    /// Send no shares: log in, stay, and tell how new blocks spread.
    #[arg(long)]
    pub(crate) idle: bool,
    /// Connect storm: this many new connections a second, whether or not those before have a job yet.
    #[arg(long, value_name = "R")]
    pub(crate) storm: Option<f64>,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    pub(crate) duration: f64,
    /// End earlier, when this many shares were sent and answered.
    #[arg(long, value_name = "N", conflicts_with = "idle")]
    pub(crate) shares: Option<u64>,
    /// Seconds of load before.
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub(crate) warm_up: f64,
    /// Shares to find before, over all connections.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) stock: usize,
    /// Of 100 shares these many repeat an accepted one.
    #[arg(long, default_value_t = 0.0, value_name = "PCT")]
    pub(crate) duplicates: f64,
    /// Of 100 shares these many are for a job that there is not (any more).
    #[arg(long, default_value_t = 0.0, value_name = "PCT")]
    pub(crate) stales: f64,
    /// Of 100 shares these many miss their target.
    #[arg(long, default_value_t = 0.0, value_name = "PCT")]
    pub(crate) lows: f64,
    /// Of 100 connections these many read 256 bytes a second.
    #[arg(long, default_value_t = 0.0, value_name = "PCT")]
    pub(crate) slow_readers: f64,
    /// Do not ask for version rolling.
    #[arg(long)]
    pub(crate) no_version_rolling: bool,
    /// Send shares that are blocks, too.
    #[arg(long)]
    pub(crate) blocks: bool,
    /// Threads.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Seed of what is random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write a line for each share answered `true`: job, extranonce1, extranonce2, ntime, nonce, version bits, user.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_override(text: &str) -> Result<Override, String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok(Override { path: path.to_owned(), value: value.to_owned() }),
        _ => Err(format!("`{text}` is not PATH=VALUE, such as ledger.scheme=solo")),
    }
}

fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "earliest" => Ok(From::Earliest),
        "latest" => Ok(From::Latest),
        _ => text.parse().map(From::Offset).map_err(|_| format!("`{text}` is not `earliest`, `latest` or an offset")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn overrides_and_places_are_read() {
        let set = parse_override("ledger.url=sqlite:a=b").map(|set| (set.path, set.value));
        assert_eq!(set, Ok(("ledger.url".to_owned(), "sqlite:a=b".to_owned())));
        assert!(parse_override("ledger").is_err());
        assert_eq!(parse_from("7"), Ok(From::Offset(7)));
        assert!(parse_from("-1").is_err());
    }
}
