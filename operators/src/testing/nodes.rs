//! Bitcoin nodes that answer by a script: what real ones cannot be made to say at a given moment.

#![allow(dead_code)] // each test binary uses its part of it

use std::collections::BTreeMap;
use std::sync::Mutex;

use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
use sluice_proto::v1::NodeResult;

/// What a node does with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// It takes it.
    Takes,
    /// It refuses it.
    Refuses,
    /// It does not answer.
    Nothing,
}

/// The nodes and all that was asked of them.
#[derive(Default)]
pub struct ScriptedNodes(Mutex<Script>);

#[derive(Default)]
struct Script {
    /// What each node says to each block; to others the nodes say nothing.
    blocks: BTreeMap<[u8; 32], Vec<Says>>,
    /// Where blocks stand; nobody answers about others.
    status: BTreeMap<[u8; 32], ChainStatus>,
    submitted: Vec<[u8; 32]>,
    preferred: Vec<[u8; 32]>,
    asked: Vec<[u8; 32]>,
}

impl ScriptedNodes {
    /// From now on the nodes say this to `hash`, one after the other.
    pub fn say(&self, hash: [u8; 32], says: &[Says]) {
        self.0.lock().unwrap().blocks.insert(hash, says.to_vec());
    }

    /// From now on `hash` stands there; nowhere, if the nodes do not answer.
    pub fn stands(&self, hash: [u8; 32], status: Option<ChainStatus>) {
        let mut script = self.0.lock().unwrap();
        match status {
            Some(status) => drop(script.status.insert(hash, status)),
            None => drop(script.status.remove(&hash)),
        }
    }

    /// The blocks sent since the last call, in order.
    pub fn take_submitted(&self) -> Vec<[u8; 32]> {
        std::mem::take(&mut self.0.lock().unwrap().submitted)
    }

    /// The blocks sent to be preferred over rivals since the last call, in order.
    pub fn take_preferred(&self) -> Vec<[u8; 32]> {
        std::mem::take(&mut self.0.lock().unwrap().preferred)
    }

    /// The blocks asked about since the last call, in order.
    pub fn take_asked(&self) -> Vec<[u8; 32]> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

impl BlockNodes for ScriptedNodes {
    fn submit(&self, block: &SentBlock) -> Vec<NodeResult> {
        let mut script = self.0.lock().unwrap();
        script.submitted.push(block.hash);
        if block.prefer {
            script.preferred.push(block.hash);
        }
        let says = script.blocks.get(&block.hash).cloned().unwrap_or_else(|| vec![Says::Nothing]);
        let result = |(number, says): (usize, Says)| NodeResult {
            node: format!("node{}", number + 1),
            accepted: says == Says::Takes,
            answer: format!("{says:?}"),
            micros: 7,
            reached: says != Says::Nothing,
            preferred: block.prefer && says == Says::Takes,
            ..NodeResult::default()
        };
        says.into_iter().enumerate().map(result).collect()
    }

    fn status(&self, hash: [u8; 32], _: u32) -> Result<ChainStatus, String> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(hash);
        script.status.get(&hash).copied().ok_or_else(|| "no node answers".to_owned())
    }
}
