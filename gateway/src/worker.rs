//! A worker: a thread with an event loop, the connections it was handed, and the partitions it writes.

mod core;
mod sessions;
mod tasks;

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_topology::runtime::Writer;
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio::task::{LocalSet, spawn_local};

use crate::acceptor::Arrival;
use crate::connection::Moved;
use crate::jobs::{Handed, JobBatch};
use crate::outlet::Outlet;
use crate::shared::Shared;
use crate::targets::Decision;
use core::Core;

/// How long a stop waits for shares to become durable and answers to be written.
const DRAIN: Duration = Duration::from_millis(1500);

/// What a worker is handed by the other threads.
pub(crate) struct Inbox {
    /// Of its partitions, in order.
    pub(crate) writers: Vec<Writer>,
    /// Connections.
    pub(crate) connections: Receiver<Arrival>,
    /// Jobs.
    pub(crate) jobs: Receiver<Handed>,
    /// Decisions of vardiff.
    pub(crate) targets: Receiver<Decision>,
    /// What other workers and the gateway's owner ask for.
    pub(crate) mail: Receiver<Mail>,
}

/// What a worker is asked for.
pub(crate) enum Mail {
    /// To serve a connection from here on.
    Serve(Box<Handover>),
    /// To send a line to a session, or to all of its sessions that get jobs.
    Tell(Option<u64>, Bytes),
    /// A decision for a session that comes on no other way.
    Decide(Decision),
    /// To change the extranonce1 of a session.
    ChangeExtranonce(u64),
}

/// A connection on its way from one worker to another.
pub(crate) struct Handover {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) moved: Moved,
    /// The worker it comes from, where it is counted until it has been taken over.
    pub(crate) from: u32,
}

/// A worker on its thread.
pub(crate) struct Worker {
    core: RefCell<Core>,
    /// Shares have been taken in.
    filled: Notify,
    /// A connection has been taken away.
    removed: Notify,
    shared: Arc<Shared>,
}

impl Worker {
    /// Runs worker `number` until the gateway stops or fails.
    ///
    /// # Errors
    /// If the system gives no event loop.
    pub(crate) fn run(
        shared: Arc<Shared>,
        number: u32,
        jobs: Vec<Arc<JobBatch>>,
        mut inbox: Inbox,
    ) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let outlet = Outlet::new(std::mem::take(&mut inbox.writers), shared.workers.len() as u32);
        let core = RefCell::new(Core::new(Arc::clone(&shared), number, outlet));
        let worker = Rc::new(Self { core, filled: Notify::new(), removed: Notify::new(), shared: Arc::clone(&shared) });
        runtime.block_on(local.run_until(async move {
            worker.take_jobs(&jobs);
            worker.spawn_tasks(inbox);
            tokio::select! {
                () = shared.stopped() => worker.drain().await,
                _ = shared.failed() => worker.abandon(),
            }
        }));
        Ok(())
    }

    fn spawn_tasks(self: &Rc<Self>, inbox: Inbox) {
        self.spawn(Rc::clone(self).accept_all(inbox.connections));
        self.spawn(Rc::clone(self).apply_all(inbox.jobs));
        self.spawn(Rc::clone(self).decide_all(inbox.targets));
        self.spawn(Rc::clone(self).take_mail(inbox.mail));
        self.spawn(Rc::clone(self).append_always());
        self.spawn(Rc::clone(self).tick_always());
        self.spawn(Rc::clone(self).sweep_always());
        self.spawn(Rc::clone(self).send_away());
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_local(Arc::clone(&self.shared).guarded(task));
    }

    /// Reads no more, waits until everything in flight is durable, answered and written, and closes.
    async fn drain(&self) {
        self.core.borrow_mut().stop_reading();
        let gone = async {
            while self.core.borrow().connections() > 0 {
                self.removed.notified().await;
            }
        };
        if tokio::time::timeout(DRAIN, gone).await.is_err() {
            let left = self.core.borrow().connections();
            tracing::warn!(left, "connections were closed with answers still under way");
        }
    }

    /// Closes all connections unanswered: what their shares would have become is not known.
    fn abandon(&self) {
        let left = self.core.borrow().connections();
        tracing::warn!(left, "connections are closed, since the gateway has failed");
    }
}
