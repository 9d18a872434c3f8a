//! The pool's own state of a task, to compare with: as it is stored, also while the pool runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use sluice_log::Partition;
use sluice_proto::Offset;
use sluice_state::checkpoint::Facts;
use sluice_state::{StoredState, state_directory};
use sluice_topology::runtime::describe;

/// Positions and digests of one commit.
pub(super) struct Live {
    positions: BTreeMap<Partition, Offset>,
    digests: BTreeMap<String, String>,
}

impl Live {
    /// The state of `task` below `state`; `None` if there is none.
    pub(super) fn read(state: &Path, task: &str) -> anyhow::Result<Option<Self>> {
        let dir = state_directory(state, task);
        if !dir.exists() {
            return Ok(None);
        }
        let stored = StoredState::open_beside(&dir).with_context(|| format!("the state of {task}"))?;
        let (mut facts, mut described) = (Facts::default(), Ok(()));
        stored.entries(&mut |key, value| {
            if described.is_ok() {
                described = describe(key, value, &mut facts);
            }
        })?;
        described?;
        let positions = facts.positions.into_iter().filter_map(|(slot, next)| {
            let (topic, number) = slot.strip_prefix("in/")?.rsplit_once('/')?;
            Some((Partition::new(topic, number.parse().ok()?), Offset::new(next)))
        });
        let digests = stored.tables().iter().map(|table| (table.spec.name.clone(), table.digest.to_string()));
        Ok(Some(Self { positions: positions.collect(), digests: digests.collect() }))
    }

    /// How far the task has read its inputs.
    pub(super) fn positions(&self) -> &BTreeMap<Partition, Offset> {
        &self.positions
    }

    /// The inputs stand at these places.
    pub(super) fn stands_at(&self, positions: &[(Partition, Offset)]) -> bool {
        let stands = |(partition, next): &(Partition, Offset)| {
            self.positions.get(partition).copied().unwrap_or(Offset::ZERO) == *next
        };
        positions.iter().all(stands)
    }

    /// Digest of a table, 32 hex digits.
    pub(super) fn digest(&self, table: &str) -> Option<&str> {
        self.digests.get(table).map(String::as_str)
    }
}
