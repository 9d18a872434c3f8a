//! `sluice run`: the pool of a topology file, until a signal or a failure.

use std::process::ExitCode;

use anyhow::Context;
use sluice_topology::Graph;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Common, RunArgs};
use crate::pool::{End, Pool, Sharing, Standby};
use crate::{logging, topology_file};

/// Runs it: code 0 after a signal; an error if a part failed.
pub(crate) fn run(args: &RunArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let graph = topology_file::load(&args.file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .thread_name("sluice")
        .build()
        .context("no runtime")?;
    let result = runtime.block_on(serve(&graph, args));
    // What still blocks (a call to a node that does not answer) must not hold the process.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// Runs pools, one after the other, until a signal or a failure: more than one only where they are shared out.
async fn serve(graph: &Graph, args: &RunArgs) -> anyhow::Result<()> {
    let (mut signals, mut hangups) = (Signals::new()?, signal(SignalKind::hangup())?);
    let mut sharing = if args.shared { Some(Sharing::join(graph, &args.only).await?) } else { None };
    let (pool, end) = loop {
        let only = sharing.as_ref().map_or_else(|| args.only.clone(), Sharing::selection);
        let started = tokio::select! {
            started = begin(graph, args, &only) => started,
            name = signals.next() => {
                tracing::info!(signal = name, "stopped before everything had started");
                return Ok(());
            }
        };
        let pool = match started {
            Ok(pool) => pool,
            Err(error) if has_gone(&mut sharing, &only).await => {
                tracing::warn!(%error, "what could not start here is another process's now");
                continue;
            }
            Err(error) => return Err(error),
        };
        let shared = sharing.as_mut().map(|sharing| (sharing, &only[..]));
        let end = until(&pool, &mut signals, &mut hangups, shared).await;
        match end {
            None => tracing::info!("the group has given this process something else to run"),
            Some(End::Failed(cause)) if has_gone(&mut sharing, &only).await => {
                tracing::warn!(cause, "what failed here is another process's now");
            }
            Some(end) => break (pool, end),
        }
        pool.stop().await;
    };
    if matches!(end, End::Signal(_)) {
        tokio::select! {
            () = pool.drain() => {}
            name = signals.next() => tracing::warn!(signal = name, "a second signal: miners have no more time"),
        }
    }
    tokio::select! {
        () = pool.stop() => {}
        name = signals.next() => tracing::warn!(signal = name, "one more signal: stopped at once"),
    }
    match end {
        End::Signal(name) => {
            tracing::info!(signal = name, "stopped");
            Ok(())
        }
        End::Failed(cause) => Err(anyhow::anyhow!(cause)),
    }
}

/// Whether what has failed here was to go to another process anyway.
async fn has_gone(sharing: &mut Option<Sharing>, before: &[String]) -> bool {
    match sharing {
        Some(sharing) => sharing.has_gone(before).await,
        None => false,
    }
}

/// How a pool ends; `None` once something else is to run here.
async fn until(
    pool: &Pool,
    signals: &mut Signals,
    hangups: &mut Signal,
    shared: Option<(&mut Sharing, &[String])>,
) -> Option<End> {
    let changed = async {
        match shared {
            Some((sharing, running)) => sharing.changed(running).await,
            None => std::future::pending().await,
        }
    };
    let mut changed = std::pin::pin!(changed);
    loop {
        tokio::select! {
            end = pool.failed() => return Some(end),
            name = signals.next() => return Some(End::Signal(name)),
            () = &mut changed => return None,
            _ = hangups.recv() => pool.reload(),
        }
    }
}

/// Starts the pool, once it is its turn.
async fn begin(graph: &Graph, args: &RunArgs, only: &[String]) -> anyhow::Result<Pool> {
    if !args.standby {
        return Pool::start(graph, only, args.rebuild).await;
    }
    let standby = Standby::start(graph, &args.only).await?;
    match standby.log_is_free().await {
        Ok(log) => standby.take_over(log).await,
        Err(error) => {
            standby.stop().await;
            Err(error)
        }
    }
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one's name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
