//! `sluice demo`: a whole pool on this machine, with a node and miners of its own.

mod miners;
mod node;
mod screen;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use sluice_api::PoolView;
use sluice_proto::EventTime;
use sluice_topology::{Environment, FileText, Graph};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::cli::{Common, DemoArgs};
use crate::commands::run::Signals;
use crate::pool::{End, Pool, View};
use crate::{logging, registry};
use node::DemoNode;
use screen::{Screen, Snapshot};

/// The demo's topology.
const TOPOLOGY: &str = include_str!("demo.yaml");
/// Blocks that the screen shows.
const BLOCKS: u32 = 10;
/// Accounts that the screen shows.
const ACCOUNTS: u32 = 10;

/// Runs it until a signal, or for as long as it was told.
pub(crate) fn run(args: &DemoArgs, common: &Common) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let screen = Screen::open(args.plain)?;
    let log_file = dir.join("demo.log");
    let file = std::fs::File::options().create(true).append(true).open(&log_file);
    let file = file.with_context(|| format!("cannot write {}", log_file.display()))?;
    logging::start_to(common, BoxMakeWriter::new(Arc::new(file)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    let result = runtime.block_on(play(args, screen));
    runtime.shutdown_background();
    let shown = || format!("the log is in {}", log_file.display());
    result.with_context(shown).map(|()| ExitCode::SUCCESS)
}

async fn play(args: &DemoArgs, mut screen: Screen) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (dir, simulated) = (args.dir.clone(), args.simulated);
    let node = tokio::task::spawn_blocking(move || DemoNode::start(&dir, simulated)).await??;
    let graph = graph(args, &node)?;
    let pool = Pool::start(&graph, &[], false).await?;
    let Some(stratum) = pool.stratum().first().copied() else { bail!("no gateway listens") };
    let miners = miners::start(&node, stratum)?;
    let watched = Watched { node: &node, view: pool.view(), stratum: stratum.to_string(), api: pool.http() };
    let end = tokio::select! {
        shown = watched.show(&mut screen) => shown.map(|()| None),
        end = pool.failed() => Ok(Some(end)),
        name = signals.next() => Ok(Some(End::Signal(name))),
        () = wait(args.seconds) => Ok(None),
    };
    // The terminal is itself again before anything else is said.
    drop(screen);
    let last = watched.snapshot().await;
    drop(watched);
    tokio::task::spawn_blocking(move || drop(miners)).await?;
    pool.stop().await;
    tokio::task::spawn_blocking(move || drop(node)).await?;
    println!("{}", screen::plain(&last));
    match end? {
        Some(End::Failed(cause)) => bail!(cause),
        _ => Ok(()),
    }
}

async fn wait(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

/// The demo's graph, on this node.
fn graph(args: &DemoArgs, node: &DemoNode) -> anyhow::Result<Graph> {
    let text = |path: &Path| path.display().to_string();
    let environment = Environment::new([
        ("DEMO_DIR", text(&args.dir)),
        ("DEMO_NETWORK", node.network().to_string()),
        ("DEMO_PAYOUT", node.address(0)?),
        ("DEMO_RPC", node.rpc()),
        ("DEMO_AUTH", node.auth().to_owned()),
        ("DEMO_ZMQ", node.zmq()),
        ("DEMO_HTTP", args.http.clone()),
        ("DEMO_STRATUM", args.stratum.clone()),
    ]);
    sluice_topology::load(&FileText::new("demo.yaml", TOPOLOGY), &registry::registry(), &environment)
        .map_err(|report| anyhow::anyhow!("{}", report.plain()))
}

/// What the screen shows, and where it comes from.
struct Watched<'a> {
    node: &'a DemoNode,
    view: Arc<View>,
    stratum: String,
    api: String,
}

impl Watched<'_> {
    async fn show(&self, screen: &mut Screen) -> anyhow::Result<()> {
        loop {
            screen.show(&self.snapshot().await).context("the terminal")?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn snapshot(&self) -> Snapshot {
        let view = self.view.clone();
        let gathered = tokio::task::spawn_blocking(move || {
            let pool = view.pool().map_err(|error| error.to_string());
            let blocks = view.blocks(None, BLOCKS).ok().flatten().unwrap_or_default();
            let balances = view.balances(ACCOUNTS).unwrap_or_default();
            let lag = view.health().tasks.into_iter().map(|task| (task.name, task.lag_records)).collect();
            (pool, blocks, balances, lag)
        });
        let failed = |error: tokio::task::JoinError| (Err(error.to_string()), Vec::new(), Vec::new(), Vec::new());
        let (pool, blocks, balances, lag) = gathered.await.unwrap_or_else(failed);
        Snapshot {
            node: self.node.describe().to_owned(),
            api: self.api.clone(),
            stratum: self.stratum.clone(),
            pool,
            blocks,
            balances,
            lag,
            now_ms: EventTime::now().millis(),
        }
    }
}
