//! Which node templates come from: of those that answer, the one whose chain has the most work; the first of the list
//! where they agree.

use std::time::{Duration, Instant, SystemTime};

use sluice_mining::Chain;
use sluice_mining::template::Template;
use sluice_mining::wire::display_hash;

use crate::node::{HeaderInfo, NodeClient, NodeConfig, NodeError};
use crate::status::NodeState;

/// A template may take this long where there is one node, since one that is busy connecting a block answers late; and
/// this long where there are others that can be asked.
const TEMPLATE_TIMEOUTS: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(5));
/// A question about the tip is given up after this long: while it is open, nothing else is done.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// First and longest pause before a node that failed is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A node and how it did lately.
struct Candidate {
    templates: NodeClient,
    asks: NodeClient,
    state: NodeState,
    failures: u32,
    retry_at: Instant,
    /// It answers, but its last template could not be had or used.
    no_template: bool,
    /// Its tip, as it said last.
    tip: Option<[u8; 32]>,
}

/// The nodes as sources of templates.
pub(crate) struct Sources {
    nodes: Vec<Candidate>,
    chain: Chain,
    /// The node that is asked first.
    best: usize,
}

impl Sources {
    pub(crate) fn new(configs: &[NodeConfig], chain: Chain) -> Result<Self, NodeError> {
        let timeout = if configs.len() > 1 { TEMPLATE_TIMEOUTS.1 } else { TEMPLATE_TIMEOUTS.0 };
        let candidate = |config: &NodeConfig| {
            Ok(Candidate {
                templates: NodeClient::new(config, timeout)?,
                asks: NodeClient::new(config, ASK_TIMEOUT)?,
                state: NodeState::Connecting,
                failures: 0,
                retry_at: Instant::now(),
                no_template: false,
                tip: None,
            })
        };
        Ok(Self { nodes: configs.iter().map(candidate).collect::<Result<_, _>>()?, chain, best: 0 })
    }

    /// How the nodes are, in order.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        self.nodes.iter().map(|node| (node.asks.name(), &node.state))
    }

    /// Asks every node for its tip and chooses the best one; its tip, or `None` if no node answers.
    pub(crate) fn poll(&mut self) -> Option<[u8; 32]> {
        for node in &mut self.nodes {
            node.tip = if node.no_template {
                node.template(self.chain).map(|template| template.prev_hash)
            } else {
                node.ask(NodeClient::best_hash)
            };
        }
        let best = self.choose()?;
        self.prefer(best);
        self.nodes[best].tip
    }

    /// A template of the best node, else of the first other one that gives one; `None` if none does now.
    pub(crate) fn template(&mut self) -> Option<Template> {
        let (best, chain) = (self.best, self.chain);
        let others = (0..self.nodes.len()).filter(|node| *node != best);
        let (node, template) = std::iter::once(best)
            .chain(others)
            .find_map(|node| self.nodes.get_mut(node)?.template(chain).map(|template| (node, template)))?;
        self.prefer(node);
        Some(template)
    }

    /// After a notice of this node: the header of its new tip, if it is to be followed rather than the tip that is
    /// mined on now. The node is then the best one.
    pub(crate) fn follow(&mut self, node: usize, hash: &[u8; 32], mined: Option<[u8; 32]>) -> Option<HeaderInfo> {
        let header = self.nodes.get_mut(node)?.ask(|client| client.header(hash)).flatten()?;
        if node != self.best
            && let Some(mined) = mined
            && let Some(current) = self.header(&mined)
            && current.chain_work >= header.chain_work
        {
            let name = self.nodes[node].asks.name();
            tracing::debug!(node = name, tip = %display_hash(hash), "a tip with no more work is not followed");
            return None;
        }
        self.prefer(node);
        Some(header)
    }

    /// A header, of the best node that knows it.
    pub(crate) fn header(&mut self, hash: &[u8; 32]) -> Option<HeaderInfo> {
        let best = self.best;
        let others = (0..self.nodes.len()).filter(|node| *node != best);
        std::iter::once(best)
            .chain(others)
            .find_map(|node| self.nodes.get_mut(node)?.ask(|client| client.header(hash)).flatten())
    }

    /// The best of the nodes that told their tips.
    fn choose(&mut self) -> Option<usize> {
        let known: Vec<(usize, [u8; 32])> =
            self.nodes.iter().enumerate().filter_map(|(number, node)| Some((number, node.tip?))).collect();
        let (first, tip) = *known.first()?;
        if known.iter().all(|(_, other)| *other == tip) {
            return Some(first);
        }
        let works: Vec<(usize, [u8; 32])> = known
            .into_iter()
            .filter_map(|(number, tip)| {
                let header = self.nodes[number].ask(|client| client.header(&tip)).flatten()?;
                Some((number, header.chain_work))
            })
            .collect();
        let most = works.iter().map(|(_, work)| *work).max()?;
        let mut equal = works.iter().filter(|(_, work)| *work == most).map(|(number, _)| *number);
        // Of two tips of the same height, the one that is mined on stays.
        if works.contains(&(self.best, most)) { Some(self.best) } else { equal.next() }
    }

    fn prefer(&mut self, best: usize) {
        if best != self.best {
            let (from, to) = (self.nodes[self.best].asks.name(), self.nodes[best].asks.name());
            tracing::info!(from, to, "templates come from another node");
            self.best = best;
        }
    }
}

impl Candidate {
    /// Asks the node something short; `None` if it does not answer or is not to be asked yet.
    fn ask<T>(&mut self, ask: impl FnOnce(&NodeClient) -> Result<T, NodeError>) -> Option<T> {
        if Instant::now() < self.retry_at {
            return None;
        }
        match ask(&self.asks) {
            Ok(answer) => {
                // A node without templates has not recovered because it tells its tip.
                if !self.no_template {
                    self.recovered();
                }
                Some(answer)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn template(&mut self, chain: Chain) -> Option<Template> {
        if Instant::now() < self.retry_at {
            return None;
        }
        let client = &self.templates;
        let template = client.template(chain).and_then(|json| {
            Template::from_gbt(&json).map_err(|error| NodeError::Answer(client.name().to_owned(), error.to_string()))
        });
        match template {
            Ok(template) => {
                self.no_template = false;
                self.recovered();
                Some(template)
            }
            Err(error) => {
                self.no_template = true;
                self.failed(&error);
                None
            }
        }
    }

    fn recovered(&mut self) {
        if let NodeState::Failed { since, .. } = &self.state {
            let seconds = since.elapsed().unwrap_or_default().as_secs();
            tracing::info!(node = self.asks.name(), seconds, "the node answers again");
        }
        self.state = NodeState::Ok;
        self.failures = 0;
    }

    fn failed(&mut self, error: &NodeError) {
        let pause = PAUSES.0.saturating_mul(1 << self.failures.min(10)).min(PAUSES.1);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + pause;
        tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "a node fails");
        let since = match &self.state {
            NodeState::Failed { since, .. } => *since,
            _ => SystemTime::now(),
        };
        self.state = NodeState::Failed { since, error: error.to_string() };
    }
}
