//! The nodes as takers of blocks (DESIGN 6, submit; invariant B1).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_failpoints::Point;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_mining::wire::display_hash;
use sluice_proto::EventTime;
use sluice_proto::v1::NodeResult;

use crate::node::{BlockCall, NodeClient, NodeConfig, NodeError};

/// A submission is given up after this long.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A question about a block is given up after this long.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other nodes are waited for once one has taken the block: the next block must not wait for a node that
/// hangs.
const OTHERS: Duration = Duration::from_secs(2);

/// All nodes, each with connections for blocks and others for questions.
pub struct Nodes {
    nodes: Vec<Arc<Link>>,
    /// How long the others are waited for once one has taken a block.
    others: Duration,
    /// Dropped at the end, which ends the threads that keep connections warm.
    warming: Mutex<Vec<Sender<()>>>,
}

struct Link {
    submit: NodeClient,
    ask: NodeClient,
}

impl Nodes {
    /// Clients of these nodes; nothing is connected yet.
    ///
    /// # Errors
    /// If a node's settings cannot be used.
    pub fn new(configs: &[NodeConfig]) -> Result<Self, NodeError> {
        let link = |config: &NodeConfig| {
            let (submit, ask) = (NodeClient::new(config, SUBMIT_TIMEOUT)?, NodeClient::new(config, ASK_TIMEOUT)?);
            Ok(Arc::new(Link { submit, ask }))
        };
        let nodes = configs.iter().map(link).collect::<Result<_, _>>()?;
        Ok(Self { nodes, others: OTHERS, warming: Mutex::default() })
    }

    /// Waits this long for the other nodes once one has taken a block (2 s otherwise).
    #[must_use]
    pub fn waiting(mut self, others: Duration) -> Self {
        self.others = others;
        self
    }

    /// Makes the connections that blocks go out on, and keeps them open by asking something at least this often: a node
    /// closes what is idle (Bitcoin Core after 30 s), and blocks are rare. A block does not wait for such a question.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn keep_warm(&self, every: Duration) -> io::Result<()> {
        for link in &self.nodes {
            let (link, (alive, ended)) = (link.clone(), channel::<()>());
            let name = format!("warm-{}", link.submit.name());
            std::thread::Builder::new().name(name).spawn(move || {
                let mut answers = true;
                loop {
                    link.warm(&mut answers);
                    if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })?;
            self.warming.lock().push(alive);
        }
        Ok(())
    }
}

impl Link {
    /// Asks for something on the connection for blocks; `answers` is whether it answered the last time.
    fn warm(&self, answers: &mut bool) {
        match (self.submit.ping(), *answers) {
            (Ok(()), false) => tracing::info!(node = self.submit.name(), "a node for blocks answers again"),
            (Err(error), true) => tracing::warn!(%error, "a node for blocks does not answer"),
            (Ok(()), true) | (Err(_), false) => return,
        }
        *answers = !*answers;
    }
}

impl BlockNodes for Nodes {
    fn submit(&self, block: &SentBlock) -> Vec<NodeResult> {
        sluice_failpoints::pass(Point::SubmitBefore);
        let call = BlockCall::new(&block.bytes);
        let (answers, heard) = channel();
        for (number, link) in self.nodes.iter().enumerate() {
            let (node, call, block, answers) = (link.clone(), call.clone(), block.clone(), answers.clone());
            let send = move || {
                // Where nobody waits any more, the answer was logged.
                answers.send((number, submit_to(&node.submit, &call, &block))).ok();
            };
            let thread = std::thread::Builder::new().name(format!("submit-{}", link.submit.name()));
            if let Err(error) = thread.spawn(send) {
                tracing::error!(%error, node = link.submit.name(), "no thread for a block");
            }
        }
        drop(answers);
        let results = self.gather(&heard);
        sluice_failpoints::pass(Point::SubmitAfter);
        results
    }

    fn status(&self, hash: [u8; 32], height: u32) -> Result<ChainStatus, String> {
        let mut unknown = false;
        let mut errors = Vec::new();
        for link in &self.nodes {
            match link.ask.status(&hash, height) {
                Ok(ChainStatus::Unknown) => unknown = true,
                Ok(status) => return Ok(status),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if unknown { Ok(ChainStatus::Unknown) } else { Err(errors.join("; ")) }
    }
}

impl Nodes {
    /// One result per node: of those that are much later than one that took the block, that they are late.
    fn gather(&self, heard: &Receiver<(usize, NodeResult)>) -> Vec<NodeResult> {
        let mut results: Vec<Option<NodeResult>> = vec![None; self.nodes.len()];
        let mut deadline: Option<Instant> = None;
        let missing = loop {
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            match heard.recv_timeout(left) {
                Ok((number, result)) => {
                    if result.accepted {
                        deadline.get_or_insert_with(|| Instant::now() + self.others);
                    }
                    results[number] = Some(result);
                }
                Err(RecvTimeoutError::Timeout) => break "no answer yet",
                Err(RecvTimeoutError::Disconnected) => break "the submission failed inside the pool",
            }
        };
        let result = |(link, result): (&Arc<Link>, Option<NodeResult>)| {
            let (node, answer) = (link.submit.name().to_owned(), missing.to_owned());
            result.unwrap_or_else(|| NodeResult { node, answer, ..NodeResult::default() })
        };
        self.nodes.iter().zip(results).map(result).collect()
    }
}

fn submit_to(node: &NodeClient, call: &BlockCall, block: &SentBlock) -> NodeResult {
    let (sent_ns, begun) = (EventTime::now().nanos(), Instant::now());
    let micros = || u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let answer = node.submit(call);
    let answered = micros();
    let shown = display_hash(&block.hash);
    let (reached, took, beside, answer) = match answer {
        Ok(None) => (true, true, false, "accepted".to_owned()),
        Ok(Some(reason)) => {
            // Inconclusive: a rival of the same height came first, and the node keeps ours beside it.
            let (has, beside) = (reason == "duplicate", reason == "inconclusive");
            (true, has, beside, reason)
        }
        Err(error) => (error.reached(), false, false, error.to_string()),
    };
    let mut result =
        NodeResult { node: node.name().to_owned(), answer, micros: answered, reached, ..Default::default() };
    result.sent_ns = sent_ns;
    if took || beside {
        result.preferred = block.prefer && prefer(node, &block.hash);
        result.active = is_active(node, block);
        result.settled_micros = micros();
    }
    result.accepted = took || (beside && result.active);
    tracing::info!(
        node = node.name(), block = %shown, accepted = result.accepted, answer = result.answer, micros = answered,
        active = result.active, "block sent"
    );
    result
}

/// Asks a node that has a block to prefer it over a rival; whether it does not refuse.
fn prefer(node: &NodeClient, hash: &[u8; 32]) -> bool {
    let asked = node.prefer(hash);
    if let Err(error) = &asked {
        tracing::warn!(%error, block = %display_hash(hash), "the node was not asked to prefer our block");
    }
    asked.is_ok()
}

/// Whether a node has a block at its height of the best chain.
fn is_active(node: &NodeClient, block: &SentBlock) -> bool {
    match node.block_at(block.height) {
        Ok(hash) => hash == Some(block.hash),
        Err(error) => {
            let hash = display_hash(&block.hash);
            tracing::warn!(%error, block = %hash, "the node did not say whether it prefers our block");
            false
        }
    }
}
