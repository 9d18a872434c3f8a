//! A chunk: consecutive records of a partition that became durable together, in one piece of memory.
//!
//! Layout, all integers little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version of the layout, 1 |
//! | 8 | when it was appended, milliseconds since the Unix epoch; never less than in the chunk before |
//! | 8 | bytes of all records of the partition before this chunk, since the partition was created |
//! | 4 | number of records, at least 1 |
//! | n x (4 + length) | each record: its length, its bytes |
//!
//! The second and third field let retention by age and by size find their place by binary search.

use std::ops::Range;

use bytes::Bytes;
use sluice_proto::Offset;

use crate::Record;

const VERSION: u8 = 1;
const HEADER: usize = 21;
const LENGTH: usize = 4;

/// A chunk that does not have the layout above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk of layout version {0}, this program reads version {VERSION}")]
    Version(u8),
    #[error("a chunk that ends in the middle of a record")]
    Short,
}

/// What the head of a chunk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// When it was appended, milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    /// Bytes of records in the partition before this chunk.
    pub(crate) position: u64,
    /// Number of records.
    pub(crate) count: u32,
}

impl Header {
    /// Reads the head of a chunk.
    pub(crate) fn read(data: &[u8]) -> Result<Self, ChunkError> {
        let version = *data.first().ok_or(ChunkError::Short)?;
        if version != VERSION {
            return Err(ChunkError::Version(version));
        }
        Ok(Self { time_ms: u64_at(data, 1)?, position: u64_at(data, 9)?, count: u32_at(data, 17)? })
    }
}

fn u64_at(data: &[u8], at: usize) -> Result<u64, ChunkError> {
    let bytes = data.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or(ChunkError::Short)?;
    Ok(u64::from_le_bytes(bytes))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, ChunkError> {
    let bytes = data.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(ChunkError::Short)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Bytes of all records in `chunk`, without their lengths.
pub(crate) fn payload_bytes(chunk: &[u8], count: u32) -> u64 {
    (chunk.len() as u64).saturating_sub(HEADER as u64).saturating_sub(u64::from(count) * LENGTH as u64)
}

/// Where in `data` the records lie that a reader gets: those behind the first `skip`, up to about `max_bytes` of them
/// and at least one.
pub(crate) fn span(data: &[u8], skip: u32, max_bytes: usize) -> Result<Range<usize>, ChunkError> {
    let header = Header::read(data)?;
    let mut start = HEADER;
    for _ in 0..skip {
        start = record_end(data, start)?;
    }
    let (mut end, mut taken) = (start, 0);
    for _ in skip..header.count {
        let next = record_end(data, end)?;
        taken += next - end - LENGTH;
        if end > start && taken > max_bytes {
            break;
        }
        end = next;
    }
    Ok(start..end)
}

fn record_end(data: &[u8], at: usize) -> Result<usize, ChunkError> {
    let end = at + LENGTH + u32_at(data, at)? as usize;
    if end > data.len() { Err(ChunkError::Short) } else { Ok(end) }
}

/// Splits a [`span`] into records that share its memory; the first has the number `offset`. Returns the bytes of all.
pub(crate) fn split(span: &Bytes, mut offset: u64, into: &mut Vec<Record>) -> Result<usize, ChunkError> {
    let (mut at, mut taken) = (0, 0);
    while at < span.len() {
        let end = record_end(span, at)?;
        let value = span.slice(at + LENGTH..end);
        taken += value.len();
        into.push(Record { offset: Offset::new(offset), value });
        offset += 1;
        at = end;
    }
    Ok(taken)
}

/// A chunk in memory.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Offset of its first record.
    pub(crate) first: u64,
    /// Number of its records.
    pub(crate) count: u32,
    /// The layout above.
    pub(crate) data: Bytes,
}

impl Chunk {
    /// The offset behind its last record.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Adds its records from `from` on to `into`, up to about `max_bytes` and at least one; returns their bytes.
    pub(crate) fn read(&self, from: u64, max_bytes: usize, into: &mut Vec<Record>) -> Result<usize, ChunkError> {
        let skip = u32::try_from(from.saturating_sub(self.first)).map_err(|_| ChunkError::Short)?;
        let span = span(&self.data, skip, max_bytes)?;
        split(&self.data.slice(span), from.max(self.first), into)
    }
}

/// Where the next record of a partition goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its offset.
    pub(crate) next: u64,
    /// Bytes of all records before it.
    pub(crate) position: u64,
    /// Time of the last chunk, milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
}

impl Head {
    /// A partition without any record.
    pub(crate) const EMPTY: Self = Self { next: 0, position: 0, time_ms: 0 };

    /// The head behind the chunk `data` whose first record is `first`.
    pub(crate) fn behind(first: u64, data: &[u8]) -> Result<Self, ChunkError> {
        let header = Header::read(data)?;
        Ok(Self {
            next: first + u64::from(header.count),
            position: header.position + payload_bytes(data, header.count),
            time_ms: header.time_ms,
        })
    }
}

/// A chunk that is being filled.
#[derive(Debug)]
pub(crate) struct ChunkBuilder {
    first: u64,
    count: u32,
    data: Vec<u8>,
}

impl ChunkBuilder {
    /// A chunk behind `head`, appended at `now_ms`, with room for `bytes` and `records`.
    pub(crate) fn new(head: &Head, now_ms: u64, bytes: usize, records: usize) -> Self {
        let mut data = Vec::with_capacity(HEADER + bytes + records * LENGTH);
        data.push(VERSION);
        data.extend_from_slice(&now_ms.max(head.time_ms).to_le_bytes());
        data.extend_from_slice(&head.position.to_le_bytes());
        data.extend_from_slice(&0_u32.to_le_bytes());
        Self { first: head.next, count: 0, data }
    }

    /// Adds a record, which must be shorter than 4 GiB (the log refuses larger ones before they come here).
    pub(crate) fn push(&mut self, record: &[u8]) {
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        self.data.extend_from_slice(&length.to_le_bytes());
        self.data.extend_from_slice(record);
        self.count += 1;
    }

    /// Number of records so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// The finished chunk; moves `head` behind it.
    pub(crate) fn finish(mut self, head: &mut Head) -> Chunk {
        if let Some(count) = self.data.get_mut(HEADER - 4..HEADER) {
            count.copy_from_slice(&self.count.to_le_bytes());
        }
        head.next += u64::from(self.count);
        head.position += payload_bytes(&self.data, self.count);
        head.time_ms = u64_at(&self.data, 1).unwrap_or(head.time_ms);
        Chunk { first: self.first, count: self.count, data: self.data.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(head: &mut Head, records: &[Vec<u8>]) -> Chunk {
        let mut builder = ChunkBuilder::new(head, 1_000, 0, records.len());
        records.iter().for_each(|r| builder.push(r));
        builder.finish(head)
    }

    #[test]
    fn time_never_goes_back() {
        let mut head = Head { time_ms: 5_000, ..Head::EMPTY };
        let chunk = chunk(&mut head, &[vec![1]]);
        assert_eq!(Header::read(&chunk.data).unwrap().time_ms, 5_000);
        assert_eq!(head.time_ms, 5_000);
    }

    #[test]
    fn a_reader_with_a_small_budget_gets_one_record() {
        let chunk = chunk(&mut Head::EMPTY.clone(), &[vec![1; 50], vec![2; 50]]);
        let mut records = Vec::new();
        assert_eq!(chunk.read(1, 1, &mut records).unwrap(), 50);
        assert_eq!(records, [Record { offset: Offset::new(1), value: vec![2; 50].into() }]);
    }

    #[test]
    fn another_version_is_refused() {
        let mut data = chunk(&mut Head::EMPTY.clone(), &[vec![1]]).data.to_vec();
        data[0] = 9;
        assert_eq!(Header::read(&data), Err(ChunkError::Version(9)));
    }

    proptest! {
        #[test]
        fn what_is_put_in_is_read(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..30),
            first in 0_u64..1_000_000,
            from in 0_usize..30,
        ) {
            let from = from % records.len();
            let mut head = Head { next: first, position: 77, time_ms: 3 };
            let chunk = chunk(&mut head, &records);
            prop_assert_eq!(chunk.end(), first + records.len() as u64);
            prop_assert_eq!(Head::behind(first, &chunk.data).unwrap(), head);
            prop_assert_eq!(head.position, 77 + records.iter().map(|r| r.len() as u64).sum::<u64>());
            let mut read = Vec::new();
            chunk.read(first + from as u64, usize::MAX, &mut read).unwrap();
            let values: Vec<_> = read.iter().map(|r| r.value.to_vec()).collect();
            prop_assert_eq!(&values[..], &records[from..]);
            prop_assert!(read.iter().zip(first + from as u64..).all(|(r, o)| r.offset.get() == o));
        }

        #[test]
        fn garbage_never_panics(data: Vec<u8>, skip in 0_u32..5) {
            let _ = span(&data, skip, 100);
            let mut records = Vec::new();
            let _ = split(&data.into(), 0, &mut records);
        }

        #[test]
        fn garbage_behind_a_sound_header_never_panics(rest: Vec<u8>, count: u32, skip in 0_u32..5) {
            let mut data = vec![VERSION];
            data.extend_from_slice(&[0; 16]);
            data.extend_from_slice(&count.to_le_bytes());
            data.extend_from_slice(&rest);
            let _ = span(&data, skip, 100);
            let _ = Head::behind(0, &data);
        }
    }
}
