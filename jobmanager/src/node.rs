//! A client of one node. Each use has a client of its own: templates and submissions never wait for each other (a long
//! getblocktemplate would hold back submitblock on the same connection).

use std::sync::Arc;
use std::time::Duration;

use bitcoincore_rpc::{Client, RpcApi, jsonrpc};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sluice_mining::Chain;
use sluice_mining::node::ChainStatus;
use sluice_mining::wire::{display_hash, parse_display_hash};

use crate::transport::{Http, SharedHttp};

/// How to reach a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Name in logs, metrics and records.
    pub name: String,
    /// `http://HOST:PORT` of its RPC.
    pub rpc: String,
    /// `USER:PASSWORD` of its RPC.
    pub auth: String,
    /// Its ZMQ endpoint, if it has one.
    pub zmq: Option<String>,
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the credentials.
        f.debug_struct("NodeConfig").field("name", &self.name).field("rpc", &self.rpc).finish_non_exhaustive()
    }
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The settings cannot be used.
    #[error("node {0}: {1}")]
    Config(String, String),
    /// It did not answer.
    #[error("node {0} does not answer: {1}")]
    Unreachable(String, String),
    /// It answered with an error.
    #[error("node {0} says: {1} (code {2})")]
    Refused(String, String, i32),
    /// Its answer is not what the call should give.
    #[error("node {0}: {1}")]
    Answer(String, String),
}

impl NodeError {
    /// The node answered, with an error.
    pub fn reached(&self) -> bool {
        !matches!(self, Self::Unreachable(..))
    }
}

/// A block's header as `getblockheader` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderInfo {
    /// Height.
    pub height: u32,
    /// Median time of the block and the ten before it, seconds.
    pub median_time: u32,
    /// Hash of the block before it.
    pub prev_hash: Option<[u8; 32]>,
    /// Blocks from it to the tip, both included; negative if it is not in the best chain.
    pub confirmations: i64,
    /// Expected hashes of the chain up to it, 32 bytes, most significant first.
    pub chain_work: [u8; 32],
}

#[derive(Deserialize)]
struct RawHeader {
    height: u32,
    mediantime: u32,
    previousblockhash: Option<String>,
    confirmations: i64,
    chainwork: String,
}

/// The call that sends a block, as every node gets it. Written once: a block has up to 4 MB, twice as much in hex.
#[derive(Clone, Debug)]
pub struct BlockCall(Bytes);

impl BlockCall {
    /// The call for this block, serialised with witness.
    pub fn new(block: &[u8]) -> Self {
        const HEAD: &[u8] = br#"{"jsonrpc":"1.0","id":0,"method":"submitblock","params":[""#;
        const TAIL: &[u8] = br#""]}"#;
        let end = HEAD.len() + 2 * block.len();
        let mut call = vec![0; end + TAIL.len()];
        call[..HEAD.len()].copy_from_slice(HEAD);
        // The part is twice as long as the block, so this does not fail.
        const_hex::encode_to_slice(block, &mut call[HEAD.len()..end]).ok();
        call[end..].copy_from_slice(TAIL);
        Self(call.into())
    }
}

/// A way to a node, with a connection that is kept alive.
pub struct NodeClient {
    name: String,
    http: Arc<Http>,
    client: Client,
}

impl NodeClient {
    /// A client that connects at its first call and gives up on a call after `timeout`.
    ///
    /// # Errors
    /// If the URL or the credentials cannot be used.
    pub fn new(config: &NodeConfig, timeout: Duration) -> Result<Self, NodeError> {
        let wrong = |what: String| NodeError::Config(config.name.clone(), what);
        let (user, password) = config.auth.split_once(':').ok_or_else(|| wrong("auth must be USER:PASSWORD".into()))?;
        let transport = Http::new(&config.rpc, user, password, timeout)
            .map_err(|error| wrong(format!("rpc {}: {error}", shown_url(&config.rpc))))?;
        let http = Arc::new(transport);
        let client = Client::from_jsonrpc(jsonrpc::Client::with_transport(SharedHttp(http.clone())));
        Ok(Self { name: config.name.clone(), http, client })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn call<T: for<'a> Deserialize<'a>>(&self, method: &str, params: &[serde_json::Value]) -> Result<T, NodeError> {
        self.client.call(method, params).map_err(|error| match error {
            bitcoincore_rpc::Error::JsonRpc(error) => self.error(error),
            error => NodeError::Answer(self.name.clone(), error.to_string()),
        })
    }

    fn error(&self, error: jsonrpc::Error) -> NodeError {
        match error {
            jsonrpc::Error::Rpc(answer) => NodeError::Refused(self.name.clone(), answer.message, answer.code),
            jsonrpc::Error::Transport(error) => NodeError::Unreachable(self.name.clone(), error.to_string()),
            error => NodeError::Answer(self.name.clone(), error.to_string()),
        }
    }

    fn hash(&self, text: &str) -> Result<[u8; 32], NodeError> {
        parse_display_hash(text).ok_or_else(|| NodeError::Answer(self.name.clone(), format!("{text:?} is no hash")))
    }

    /// The result of `getblocktemplate`, as JSON. With a `longpollid` the node answers once that one's template is no
    /// longer the best (BIP22).
    ///
    /// # Errors
    /// If the node does not answer or refuses (no peers, still loading).
    pub fn template(&self, chain: Chain, longpollid: Option<&str>) -> Result<Box<RawValue>, NodeError> {
        let rules = if chain == Chain::Signet { json!(["segwit", "signet"]) } else { json!(["segwit"]) };
        let mut request = json!({ "rules": rules });
        if let Some(id) = longpollid {
            request["longpollid"] = json!(id);
        }
        self.call("getblocktemplate", &[request])
    }

    /// Hash of the tip.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn best_hash(&self) -> Result<[u8; 32], NodeError> {
        self.hash(&self.call::<String>("getbestblockhash", &[])?)
    }

    /// The header with this hash; `None` if the node does not know it.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn header(&self, hash: &[u8; 32]) -> Result<Option<HeaderInfo>, NodeError> {
        let header: RawHeader = match self.call("getblockheader", &[json!(display_hash(hash))]) {
            Ok(header) => header,
            // RPC_INVALID_ADDRESS_OR_KEY: "Block not found".
            Err(NodeError::Refused(_, _, -5)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let prev_hash = header.previousblockhash.as_deref().map(|text| self.hash(text)).transpose()?;
        // The same 64 hex digits as a hash, but of a number, so most significant first.
        let mut chain_work = self.hash(&header.chainwork)?;
        chain_work.reverse();
        let (height, median_time) = (header.height, header.mediantime);
        Ok(Some(HeaderInfo { height, median_time, prev_hash, confirmations: header.confirmations, chain_work }))
    }

    /// Where a block stands.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn status(&self, hash: &[u8; 32], height: u32) -> Result<ChainStatus, NodeError> {
        let Some(header) = self.header(hash)? else { return Ok(ChainStatus::Unknown) };
        if let Ok(confirmations) = u32::try_from(header.confirmations) {
            return Ok(ChainStatus::Active { confirmations });
        }
        let rival = match self.block_at(height)? {
            Some(rival) => self.header(&rival)?,
            None => None,
        };
        let rival_confirmations = rival.map_or(0, |rival| u32::try_from(rival.confirmations).unwrap_or(0));
        Ok(ChainStatus::Inactive { rival_confirmations })
    }

    /// Sends a block. `Ok(None)` means it was taken, `Ok(Some(reason))` is the node's reason (BIP22).
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn submit(&self, block: &BlockCall) -> Result<Option<String>, NodeError> {
        let answer = self.http.call_with::<jsonrpc::Response>(&block.0);
        answer.and_then(|answer| answer.result()).map_err(|error| self.error(error))
    }

    /// Asks for something that the node answers without waiting for its chain: the connection stays open.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn ping(&self) -> Result<(), NodeError> {
        self.call::<u64>("uptime", &[]).map(|_| ())
    }

    /// Hash of the block at this height of the best chain; `None` if the chain is shorter.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn block_at(&self, height: u32) -> Result<Option<[u8; 32]>, NodeError> {
        match self.call::<String>("getblockhash", &[json!(height)]) {
            Ok(text) => self.hash(&text).map(Some),
            // RPC_INVALID_PARAMETER: the best chain is shorter.
            Err(NodeError::Refused(_, _, -8)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the node to prefer the block over a rival that came first.
    ///
    /// # Errors
    /// If the node does not answer or does not know the block.
    pub fn prefer(&self, hash: &[u8; 32]) -> Result<(), NodeError> {
        self.call::<serde_json::Value>("preciousblock", &[json!(display_hash(hash))]).map(|_| ())
    }
}

/// A URL without the credentials that someone may have put in it.
fn shown_url(url: &str) -> &str {
    url.rsplit('@').next().unwrap_or(url)
}

/// The `longpollid` of a template in JSON, if it has one (BIP22).
pub(crate) fn longpoll_id(template: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Longpoll {
        longpollid: Option<String>,
    }
    serde_json::from_str::<Longpoll>(template.get()).ok()?.longpollid
}
