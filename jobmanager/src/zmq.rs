//! Tip notices from nodes (ZMQ `hashblock`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a read waits before it looks whether to stop.
const WAIT_MS: i32 = 200;
/// How long to wait before a socket that failed is made anew.
const RETRY: Duration = Duration::from_secs(1);

/// A thread that listens to one node's endpoint.
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    notices: Arc<AtomicU64>,
}

impl Listener {
    /// Listens at `endpoint` and calls `notice` with each new tip's hash. A lost connection is made again by ZMQ.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(
        node: String,
        endpoint: String,
        mut notice: impl FnMut([u8; 32]) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, notices) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), notices.clone());
        let thread = std::thread::Builder::new().name(format!("zmq-{node}")).spawn(move || {
            let context = zmq::Context::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut heard = |hash| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    notice(hash);
                };
                if let Err(error) = listen(&context, &endpoint, &stopped, &mut heard) {
                    tracing::warn!(node, endpoint, %error, "tip notices failed, the tip is polled meanwhile");
                    std::thread::sleep(RETRY);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread), notices })
    }

    /// Asks the thread to end; dropping waits for it.
    pub(crate) fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Notices so far.
    pub(crate) fn notices(&self) -> u64 {
        self.notices.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.halt();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for tip notices had panicked");
        }
    }
}

fn listen(
    context: &zmq::Context,
    endpoint: &str,
    stop: &AtomicBool,
    notice: &mut dyn FnMut([u8; 32]),
) -> Result<(), zmq::Error> {
    let socket = context.socket(zmq::SUB)?;
    socket.set_rcvtimeo(WAIT_MS)?;
    socket.set_linger(0)?;
    socket.set_tcp_keepalive(1)?;
    socket.set_subscribe(b"hashblock")?;
    socket.connect(endpoint)?;
    while !stop.load(Ordering::Relaxed) {
        let message = match socket.recv_multipart(0) {
            Ok(message) => message,
            Err(zmq::Error::EAGAIN) => continue,
            Err(error) => return Err(error),
        };
        // Topic, hash as explorers show it, sequence number.
        let hash = message.get(1).and_then(|hash| <[u8; 32]>::try_from(hash.as_slice()).ok());
        match (message.first().map(Vec::as_slice), hash) {
            (Some(b"hashblock"), Some(mut hash)) => {
                hash.reverse();
                notice(hash);
            }
            _ => tracing::warn!(endpoint, parts = message.len(), "a tip notice that cannot be read"),
        }
    }
    Ok(())
}
