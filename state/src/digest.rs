//! Digests of tables, kept up to date change by change.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::types::Digest;

/// 128-bit XXH3 of one row: the key's length as 4 bytes little-endian, the key, the value. The length keeps rows apart
/// whose key and value only differ in where one ends and the other begins. It tells copies that differ by mistake, not
/// copies forged on purpose. `scratch` is reused from call to call.
pub fn row_hash(scratch: &mut Vec<u8>, key: &[u8], value: &[u8]) -> u128 {
    scratch.clear();
    scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(value);
    xxh3_128(scratch)
}

/// Digest and number of rows of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) digest: Digest,
    pub(crate) rows: u64,
}

impl Group {
    /// Length of a group's bytes.
    const LEN: usize = 24;

    /// 16 bytes of digest and 8 bytes of row count, little-endian.
    fn to_bytes(self) -> Bytes {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend_from_slice(&self.digest.to_u128().to_le_bytes());
        bytes.extend_from_slice(&self.rows.to_le_bytes());
        bytes.into()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (digest, rows) = bytes.split_first_chunk::<16>()?;
        let digest = Digest::from_u128(u128::from_le_bytes(*digest));
        Some(Self { digest, rows: u64::from_le_bytes(rows.try_into().ok()?) })
    }
}

/// The digest of one table as the sum over its groups, so that a range of groups expires without reading its rows. A
/// table without groups has one, with the empty prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableDigest {
    groups: BTreeMap<Bytes, Group>,
    /// Groups that differ from what was last committed.
    dirty: BTreeSet<Bytes>,
}

impl TableDigest {
    /// Takes a committed group in; `false` if the bytes are not one.
    pub(crate) fn load(&mut self, prefix: &[u8], bytes: &[u8]) -> bool {
        match Group::from_bytes(bytes) {
            Some(group) => {
                self.groups.insert(Bytes::copy_from_slice(prefix), group);
                true
            }
            None => false,
        }
    }

    /// Sum over all groups.
    pub(crate) fn total(&self) -> Digest {
        self.groups.values().fold(Digest::default(), |sum, group| sum.plus(group.digest.to_u128()))
    }

    /// Rows in all groups.
    pub(crate) fn rows(&self) -> u64 {
        self.groups.values().map(|group| group.rows).sum()
    }

    /// Replaces the row hash `old` by `new` in the group of `prefix`; `None` stands for no row.
    pub(crate) fn replace(&mut self, prefix: &[u8], old: Option<u128>, new: Option<u128>) {
        if old == new {
            return;
        }
        let group = match self.groups.get_mut(prefix) {
            Some(group) => group,
            None => self.groups.entry(Bytes::copy_from_slice(prefix)).or_default(),
        };
        if let Some(old) = old {
            group.digest = group.digest.minus(old);
            group.rows = group.rows.saturating_sub(1);
        }
        if let Some(new) = new {
            group.digest = group.digest.plus(new);
            group.rows = group.rows.saturating_add(1);
        }
        if group.rows == 0 {
            self.groups.remove(prefix);
        }
        if !self.dirty.contains(prefix) {
            self.dirty.insert(Bytes::copy_from_slice(prefix));
        }
    }

    /// Forgets all groups below `prefix`; returns the smallest of them, if there were any.
    pub(crate) fn expire_below(&mut self, prefix: &[u8]) -> Option<Bytes> {
        let kept = self.groups.split_off(prefix);
        let expired = std::mem::replace(&mut self.groups, kept);
        let smallest = expired.keys().next().cloned();
        self.dirty.extend(expired.into_keys());
        smallest
    }

    /// Calls `visit` with each group that changed since the last commit and its bytes (`None`: it is gone), and counts
    /// them as committed.
    pub(crate) fn take_dirty(&mut self, mut visit: impl FnMut(Bytes, Option<Bytes>)) {
        for prefix in std::mem::take(&mut self.dirty) {
            let bytes = self.groups.get(&prefix).map(|group| group.to_bytes());
            visit(prefix, bytes);
        }
    }
}
