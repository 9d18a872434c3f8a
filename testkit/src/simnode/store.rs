//! Blocks on disk: one file that only grows, read again at the start.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bitcoin::hashes::Hash;
use bitcoin::{Block, BlockHash};

use super::Origin;
use super::validate;

/// Marks the begin of a record.
const MAGIC: [u8; 4] = *b"slc1";
/// Magic, kind, length, checksum.
const HEADER: usize = 4 + 1 + 4 + 4;
/// Longer than any block.
const LONGEST: usize = 4_100_000;

/// Something to remember.
pub(super) enum Record {
    /// A block that was kept, in the order of arrival.
    Block(Box<Block>, Origin),
    /// A block was made precious.
    Precious(BlockHash),
}

/// The file.
pub(super) struct Store {
    file: File,
    path: PathBuf,
}

impl Store {
    /// Opens the file of a directory, which is made where it is missing, and reads its records. What a crash left of
    /// the last record is cut off.
    ///
    /// # Errors
    /// If another node has it open, the file cannot be read, or a record before the last is damaged.
    pub(super) fn open(dir: &Path) -> Result<(Self, Vec<Record>)> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join("blocks.dat");
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file_ref = file.as_mut().map_err(|error| anyhow::anyhow!("opening {}: {error}", path.display()))?;
        file_ref.try_lock().with_context(|| format!("{} is in use by another node", path.display()))?;
        let mut bytes = Vec::new();
        file_ref.read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        let (records, end) = read(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        if end < bytes.len() {
            let lost = bytes.len() - end;
            tracing::warn!(file = %path.display(), lost, "the last record was not written to its end: it is cut off");
            file_ref.set_len(end as u64).with_context(|| format!("cutting {}", path.display()))?;
            file_ref.seek(SeekFrom::End(0))?;
        }
        Ok((Self { file: file?, path }, records))
    }

    /// Writes a record; it is on disk when this returns.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn append(&mut self, record: &Record) -> Result<()> {
        let (kind, body) = match record {
            Record::Block(block, Origin::Submitted) => (b'S', validate::bytes(block)),
            Record::Block(block, Origin::Foreign) => (b'F', validate::bytes(block)),
            Record::Precious(hash) => (b'P', hash.to_byte_array().to_vec()),
        };
        let length = u32::try_from(body.len()).context("a block of more than 4 GB")?;
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&checksum(kind, &body));
        bytes.extend_from_slice(&body);
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("writing {}", self.path.display()))
    }
}

/// The records, and where the last whole one ends.
fn read(bytes: &[u8]) -> Result<(Vec<Record>, usize)> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        let length = u32::from_le_bytes([header[5], header[6], header[7], header[8]]) as usize;
        if header[..4] != MAGIC || length > LONGEST {
            bail!("no record begins at byte {at}");
        }
        let end = at + HEADER + length;
        let Some(body) = bytes.get(at + HEADER..end) else { break };
        if checksum(header[4], body) != header[9..13] {
            if end == bytes.len() {
                break;
            }
            bail!("the record at byte {at} has a wrong checksum");
        }
        records.push(decode(header[4], body).with_context(|| format!("the record at byte {at}"))?);
        at = end;
    }
    Ok((records, at))
}

fn decode(kind: u8, body: &[u8]) -> Result<Record> {
    let block = || bitcoin::consensus::deserialize(body).map(Box::new).context("not a block");
    Ok(match kind {
        b'S' => Record::Block(block()?, Origin::Submitted),
        b'F' => Record::Block(block()?, Origin::Foreign),
        b'P' => Record::Precious(BlockHash::from_slice(body).context("not a hash")?),
        _ => bail!("an unknown kind: {kind}"),
    })
}

fn checksum(kind: u8, body: &[u8]) -> [u8; 4] {
    let hash = sluice_mining::double_sha256(&[&[kind], body].concat());
    [hash[0], hash[1], hash[2], hash[3]]
}
