//! What nodes publish by ZMQ: new tips (`hashblock`) and what happens to the chain and the mempool (`sequence`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a read waits before it looks whether to stop.
const WAIT_MS: i32 = 200;
/// How long to wait before a socket that failed is made anew.
const RETRY: Duration = Duration::from_secs(1);
/// The topics; each numbers its messages by itself.
const TOPICS: [&[u8]; 2] = [b"hashblock", b"sequence"];

/// What a node published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// A block has become the tip, or at least a part of the best chain.
    Block([u8; 32]),
    /// A block is no longer in the best chain: a reorganisation.
    Disconnected([u8; 32]),
    /// Messages were lost on the way.
    Lost,
}

/// What was heard of one node so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Notices of a tip.
    pub(crate) tips: AtomicU64,
    /// Blocks that left the best chain.
    pub(crate) disconnected: AtomicU64,
    /// Changes of the mempool.
    pub(crate) mempool: AtomicU64,
    /// Messages that did not arrive.
    pub(crate) lost: AtomicU64,
}

/// A thread that listens to one node's endpoint.
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens at `endpoint`, counts in `heard` and calls `notice` with what concerns the chain. A lost connection is
    /// made again by ZMQ.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(
        node: String,
        endpoint: String,
        heard: Arc<Heard>,
        mut notice: impl FnMut(Published) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name(format!("zmq-{node}")).spawn(move || {
            let context = zmq::Context::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = listen(&context, &endpoint, &stopped, &heard, &mut notice) {
                    tracing::warn!(node, endpoint, %error, "tip notices failed, the tip is polled meanwhile");
                    std::thread::sleep(RETRY);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks the thread to end; dropping waits for it.
    pub(crate) fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
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
    heard: &Heard,
    notice: &mut dyn FnMut(Published),
) -> Result<(), zmq::Error> {
    let socket = context.socket(zmq::SUB)?;
    socket.set_rcvtimeo(WAIT_MS)?;
    socket.set_linger(0)?;
    socket.set_tcp_keepalive(1)?;
    for topic in TOPICS {
        socket.set_subscribe(topic)?;
    }
    socket.connect(endpoint)?;
    let mut numbers = [None; TOPICS.len()];
    while !stop.load(Ordering::Relaxed) {
        let message = match socket.recv_multipart(0) {
            Ok(message) => message,
            Err(zmq::Error::EAGAIN) => continue,
            Err(error) => return Err(error),
        };
        let lost = gap(&message, &mut numbers);
        if lost > 0 {
            heard.lost.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(endpoint, lost, "notices of a node were lost, its tip is asked for");
            notice(Published::Lost);
        }
        match read(&message) {
            Some(Message::Tip(hash)) => {
                heard.tips.fetch_add(1, Ordering::Relaxed);
                notice(Published::Block(hash));
            }
            Some(Message::Connected(hash)) => notice(Published::Block(hash)),
            Some(Message::Disconnected(hash)) => {
                heard.disconnected.fetch_add(1, Ordering::Relaxed);
                notice(Published::Disconnected(hash));
            }
            Some(Message::Mempool) => drop(heard.mempool.fetch_add(1, Ordering::Relaxed)),
            None => tracing::warn!(endpoint, parts = message.len(), "a notice that cannot be read"),
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Tip([u8; 32]),
    Connected([u8; 32]),
    Disconnected([u8; 32]),
    Mempool,
}

/// Reads topic and body: a hash as explorers show it, and for `sequence` a label behind it.
fn read(message: &[Vec<u8>]) -> Option<Message> {
    let (topic, body) = (message.first()?, message.get(1)?);
    let (shown, label) = body.split_first_chunk::<32>()?;
    let mut hash = *shown;
    hash.reverse();
    match (topic.as_slice(), label) {
        (b"hashblock", []) => Some(Message::Tip(hash)),
        (b"sequence", b"C") => Some(Message::Connected(hash)),
        (b"sequence", b"D") => Some(Message::Disconnected(hash)),
        // With the mempool's own number behind the label.
        (b"sequence", [b'A' | b'R', ..]) => Some(Message::Mempool),
        _ => None,
    }
}

/// How many messages of its topic are missing before this one. A node that was started again begins at 0.
fn gap(message: &[Vec<u8>], numbers: &mut [Option<u32>; TOPICS.len()]) -> u64 {
    let topic = TOPICS.iter().position(|topic| message.first().is_some_and(|first| first == topic));
    let number = message.get(2).and_then(|number| <[u8; 4]>::try_from(number.as_slice()).ok());
    let (Some(topic), Some(number)) = (topic, number.map(u32::from_le_bytes)) else { return 0 };
    let Some(last) = numbers[topic].replace(number) else { return 0 };
    u64::from(number.saturating_sub(last.wrapping_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &[u8], body: &[u8], number: u32) -> Vec<Vec<u8>> {
        vec![topic.to_vec(), body.to_vec(), number.to_le_bytes().to_vec()]
    }

    #[test]
    fn what_bitcoin_core_publishes_is_read() {
        let shown: Vec<u8> = (0..32).collect();
        let hash: [u8; 32] = std::array::from_fn(|at| 31 - at as u8);
        let with = |label: &[u8]| [&shown, label].concat();
        for (topic, body, expected) in [
            (b"hashblock".as_slice(), shown.clone(), Some(Message::Tip(hash))),
            (b"sequence", with(b"C"), Some(Message::Connected(hash))),
            (b"sequence", with(b"D"), Some(Message::Disconnected(hash))),
            (b"sequence", with(b"A\x01\0\0\0\0\0\0\0"), Some(Message::Mempool)),
            (b"sequence", with(b"R\x02\0\0\0\0\0\0\0"), Some(Message::Mempool)),
            (b"sequence", with(b"X"), None),
            (b"sequence", shown.clone(), None),
            (b"hashblock", with(b"C"), None),
            (b"hashblock", shown[1..].to_vec(), None),
            (b"rawblock", shown.clone(), None),
        ] {
            assert_eq!(read(&message(topic, &body, 0)), expected);
        }
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn p1_a_gap_in_the_numbers_is_counted_by_topic() {
        let mut numbers = [None; TOPICS.len()];
        let mut gap = |topic: &[u8], number| gap(&message(topic, &[0; 32], number), &mut numbers);
        assert_eq!(gap(b"hashblock", 7), 0, "the first one heard");
        assert_eq!((gap(b"hashblock", 8), gap(b"sequence", 90)), (0, 0));
        assert_eq!(gap(b"hashblock", 12), 3);
        assert_eq!((gap(b"sequence", 91), gap(b"hashblock", 13)), (0, 0));
        assert_eq!((gap(b"hashblock", 0), gap(b"hashblock", 1)), (0, 0), "the node was started again");
        assert_eq!((gap(b"sequence", u32::MAX), gap(b"sequence", 0)), (u64::from(u32::MAX) - 92, 0), "it wraps");
    }
}
