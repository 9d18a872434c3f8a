//! `sluice run`: the pool of a topology file, until a signal or a failure.

use std::process::ExitCode;

use anyhow::Context;
use sluice_topology::Graph;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Common, RunArgs};
use crate::pool::{End, Pool, Standby};
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
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let pool = tokio::select! {
            pool = begin(&graph, args) => pool?,
            name = signals.next() => {
                tracing::info!(signal = name, "stopped before everything had started");
                return Ok(());
            }
        };
        let mut hangups = signal(SignalKind::hangup())?;
        let end = loop {
            tokio::select! {
                end = pool.failed() => break end,
                name = signals.next() => break End::Signal(name),
                _ = hangups.recv() => pool.reload(),
            }
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
    });
    // What still blocks (a call to a node that does not answer) must not hold the process.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// Starts the pool, once it is its turn.
async fn begin(graph: &Graph, args: &RunArgs) -> anyhow::Result<Pool> {
    if !args.standby {
        return Pool::start(graph, &args.only, args.rebuild).await;
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
