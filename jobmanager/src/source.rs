//! Which node templates come from: the first of the list that answers, the others while it fails.

use std::time::{Duration, Instant, SystemTime};

use sluice_mining::Chain;
use sluice_mining::template::Template;

use crate::node::{HeaderInfo, NodeClient, NodeConfig, NodeError};
use crate::status::NodeState;

/// A template may take this long: a node that is busy connecting a block answers late.
const TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest pause before a node that failed is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A node and how it did lately.
struct Candidate {
    client: NodeClient,
    state: NodeState,
    failures: u32,
    retry_at: Instant,
}

/// The nodes as sources of templates.
pub(crate) struct Sources {
    nodes: Vec<Candidate>,
    chain: Chain,
}

impl Sources {
    pub(crate) fn new(configs: &[NodeConfig], chain: Chain) -> Result<Self, NodeError> {
        let candidate = |config: &NodeConfig| {
            let client = NodeClient::new(config, TIMEOUT)?;
            Ok(Candidate { client, state: NodeState::Connecting, failures: 0, retry_at: Instant::now() })
        };
        Ok(Self { nodes: configs.iter().map(candidate).collect::<Result<_, _>>()?, chain })
    }

    /// How the nodes are, in order.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        self.nodes.iter().map(|node| (node.client.name(), &node.state))
    }

    /// A template of the first node that gives one; `None` if none does now.
    pub(crate) fn template(&mut self) -> Option<Template> {
        let chain = self.chain;
        self.first(|client| {
            let json = client.template(chain)?;
            Template::from_gbt(&json).map_err(|error| NodeError::Answer(client.name().to_owned(), error.to_string()))
        })
    }

    /// The tip of the first node that tells it.
    pub(crate) fn tip(&mut self) -> Option<[u8; 32]> {
        self.first(NodeClient::best_hash)
    }

    /// A header, of the first node that knows it.
    pub(crate) fn header(&mut self, hash: &[u8; 32]) -> Option<HeaderInfo> {
        self.first(|client| client.header(hash)).flatten()
    }

    fn first<T>(&mut self, ask: impl Fn(&NodeClient) -> Result<T, NodeError>) -> Option<T> {
        self.nodes.iter_mut().find_map(|node| {
            if Instant::now() < node.retry_at {
                return None;
            }
            match ask(&node.client) {
                Ok(answer) => {
                    if let NodeState::Failed { since, .. } = &node.state {
                        let seconds = since.elapsed().unwrap_or_default().as_secs();
                        tracing::info!(node = node.client.name(), seconds, "the node answers again");
                    }
                    node.state = NodeState::Ok;
                    node.failures = 0;
                    Some(answer)
                }
                Err(error) => {
                    node.failed(&error);
                    None
                }
            }
        })
    }
}

impl Candidate {
    fn failed(&mut self, error: &NodeError) {
        let pause = PAUSES.0.saturating_mul(1 << self.failures.min(10)).min(PAUSES.1);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + pause;
        tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "no template");
        let since = match &self.state {
            NodeState::Failed { since, .. } => *since,
            _ => SystemTime::now(),
        };
        self.state = NodeState::Failed { since, error: error.to_string() };
    }
}
