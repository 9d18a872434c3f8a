//! What a checkpoint says of itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Name of the file, beside the directory with the database.
pub(super) const FILE: &str = "manifest.json";
/// Version of what is written here.
const FORMAT: u32 = 1;

/// The manifest of a checkpoint. It is JSON; numbers of 128 bits are 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest itself.
    pub format: u32,
    /// The task.
    pub task: String,
    /// Number of the checkpoint among those of the task: newer ones have greater numbers.
    pub sequence: u64,
    /// When it was made, milliseconds since 1970.
    pub time_ms: u64,
    /// UUID of the log that the task reads and writes, 32 hex digits.
    pub log_uuid: String,
    /// What the state was made from, as text.
    pub lineage: String,
    /// Hash of the former: equal ones come from the same wiring of the task.
    pub topology_hash: String,
    /// What the runtime said of its own entries.
    pub facts: Facts,
    /// The tables, in the order of the task.
    pub tables: Vec<TableEntry>,
    /// The files of the database, by name.
    pub files: Vec<FileEntry>,
    /// XXH3-128 of the manifest with this field empty, as compact JSON.
    pub hash: String,
}

/// What the runtime commits beside the rows, as far as it matters to people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Version of the records that the program writes.
    pub schema: u32,
    /// Epoch that the task took last.
    pub epoch: Option<u32>,
    /// Next offset to read, by what is read: `in/share.submissions/3`.
    pub positions: BTreeMap<String, u64>,
}

/// A table in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// Its name.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Digest, counted from the rows.
    pub digest: String,
}

/// A file in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the database's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3-128 of its content.
    pub hash: String,
}

/// A 128-bit number as it stands in a manifest.
pub(super) fn hex(value: u128) -> String {
    format!("{value:032x}")
}

/// Hash of a lineage.
pub(super) fn text_hash(text: &str) -> String {
    hex(xxh3_128(text.as_bytes()))
}

impl Manifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// With the version and the hash that it must have.
    pub(super) fn sealed(mut self) -> Result<Self, String> {
        self.format = FORMAT;
        self.hash = String::new();
        self.hash = self.own_hash()?;
        Ok(self)
    }

    fn own_hash(&self) -> Result<String, String> {
        let open = Self { hash: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&open).map_err(|error| format!("the manifest cannot be written: {error}"))?;
        Ok(hex(xxh3_128(&text)))
    }

    /// As it is stored.
    pub(super) fn to_json(&self) -> Result<String, String> {
        serde_json::to_string_pretty(self).map_err(|error| format!("the manifest cannot be written: {error}"))
    }

    /// The manifest of the checkpoint in `dir`, if it is whole.
    ///
    /// # Errors
    /// Says why it cannot be read or is not what was written.
    pub fn read(dir: &Path) -> Result<Self, String> {
        let text = std::fs::read(dir.join(FILE)).map_err(|error| format!("{FILE} cannot be read: {error}"))?;
        let read: Self = serde_json::from_slice(&text).map_err(|error| format!("{FILE} is damaged: {error}"))?;
        if read.format != FORMAT {
            return Err(format!("{FILE} has format {}, this program reads {FORMAT}", read.format));
        }
        if read.own_hash()? != read.hash {
            return Err(format!("{FILE} is damaged: its hash does not fit"));
        }
        if text_hash(&read.lineage) != read.topology_hash {
            return Err(format!("{FILE} is damaged: the hash of its lineage does not fit"));
        }
        Ok(read)
    }
}
