//! Batches of records as Fluvio writes them.
//!
//! The client's own reader of batches is too lenient for a log: of a batch that was cut off it takes what is there, up to half
//! a record. Here a batch is whole and its checksum right, or it is none.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fluvio::dataplane::Encoder;
use fluvio::dataplane::record::{BATCH_HEADER_SIZE, Batch, RawRecords};

/// Bits of a batch's attributes that name how it was compressed.
const COMPRESSION: i16 = 0x07;
/// Bit of a batch's attributes for a schema, whose number stands before the records.
const SCHEMA: i16 = 0x10;
/// Where the checksum stands: behind offset, length, epoch and version.
const CHECKSUM_AT: std::ops::Range<usize> = 17..21;

/// What a batch that was read holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Values from its base offset on.
    Values(Vec<Bytes>),
    /// Only its beginning has come.
    CutOff,
}

/// Records as one batch; an SPU writes it as a whole. `time` in milliseconds since 1970 is for other programs to show.
pub(super) fn batch(records: &[Bytes], time: i64) -> Batch<RawRecords> {
    let bytes: usize = records.iter().map(Bytes::len).sum();
    let mut raw = BytesMut::with_capacity(bytes + 16 * records.len() + 4);
    let count = i32::try_from(records.len()).unwrap_or(i32::MAX);
    raw.put_i32(count);
    for (number, record) in (0_i64..).zip(records) {
        put_record(&mut raw, number, record);
    }
    let mut batch = Batch::default();
    *batch.mut_records() = RawRecords(raw.freeze());
    batch.header.last_offset_delta = count - 1;
    batch.header.first_timestamp = time;
    batch.header.max_time_stamp = time;
    batch
}

/// Length, attributes, time and offset behind the batch's, no key, the value, no headers.
fn put_record(raw: &mut BytesMut, number: i64, value: &Bytes) {
    let length = value.len() as i64;
    let inner = 1 + varint_size(0) + varint_size(number) + 1 + varint_size(length) + value.len() + varint_size(0);
    put_varint(raw, inner as i64);
    raw.put_i8(0);
    put_varint(raw, 0);
    put_varint(raw, number);
    raw.put_u8(0);
    put_varint(raw, length);
    raw.put_slice(value);
    put_varint(raw, 0);
}

/// What is in a batch.
///
/// # Errors
/// What is wrong with it, if it is damaged or of another program.
pub(super) fn content(batch: &Batch<RawRecords>) -> Result<Content, String> {
    let attributes = batch.header.attributes;
    if attributes & (COMPRESSION | SCHEMA) != 0 {
        return Err(format!("a batch with attributes {attributes:#x}: compressed, or with a schema"));
    }
    let raw = &batch.records().0;
    if usize::try_from(batch.batch_len) != Ok(BATCH_HEADER_SIZE + raw.len()) {
        return Ok(Content::CutOff);
    }
    let mut whole = Vec::with_capacity(batch.write_size(0));
    batch.encode(&mut whole, 0).map_err(|error| error.to_string())?;
    if whole.get(CHECKSUM_AT) != Some(&batch.header.crc.to_be_bytes()[..]) {
        return Err("a batch with a wrong checksum".into());
    }
    let values = values(raw.clone()).ok_or("a batch whose records are damaged")?;
    if i64::try_from(values.len()) != Ok(i64::from(batch.header.last_offset_delta) + 1) {
        return Err("a batch with another number of records than it says".into());
    }
    Ok(Content::Values(values))
}

fn values(mut raw: Bytes) -> Option<Vec<Bytes>> {
    let count = usize::try_from(raw.try_get_i32().ok()?).ok()?;
    let mut values = Vec::with_capacity(count.min(raw.len()));
    for _ in 0..count {
        let length = take_length(&mut raw)?;
        let mut record = raw.split_to(length);
        record.try_get_i8().ok()?;
        take_varint(&mut record)?;
        take_varint(&mut record)?;
        if record.try_get_u8().ok()? != 0 {
            let key = take_length(&mut record)?;
            record.advance(key);
        }
        let length = take_length(&mut record)?;
        values.push(record.split_to(length));
    }
    Some(values)
}

/// A length that the rest has.
fn take_length(from: &mut Bytes) -> Option<usize> {
    usize::try_from(take_varint(from)?).ok().filter(|&length| length <= from.len())
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn put_varint(to: &mut BytesMut, number: i64) {
    let mut left = zigzag(number);
    while left >= 0x80 {
        to.put_u8((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    to.put_u8(left as u8);
}

fn varint_size(number: i64) -> usize {
    (64 - (zigzag(number) | 1).leading_zeros() as usize).div_ceil(7)
}

fn take_varint(from: &mut Bytes) -> Option<i64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = from.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluvio::dataplane::Decoder;
    use fluvio::dataplane::record::Record;
    use proptest::prelude::*;

    /// As it comes from an SPU: with the length and the checksum that the bytes have.
    fn read(bytes: &[u8]) -> std::io::Result<Batch<RawRecords>> {
        Batch::decode_from(&mut &bytes[..], 0)
    }

    fn written(records: &[Bytes]) -> Vec<u8> {
        let mut bytes = Vec::new();
        batch(records, 1).encode(&mut bytes, 0).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sizes in proptest::collection::vec(0..300_usize, 1..70)) {
            let records: Vec<Bytes> = sizes.iter().map(|&size| Bytes::from(vec![size as u8; size])).collect();
            let batch = read(&written(&records)).unwrap();
            prop_assert_eq!(content(&batch).unwrap(), Content::Values(records.clone()));
            // The client reads the same.
            let theirs: Vec<Record> = batch.memory_records().unwrap();
            prop_assert_eq!(theirs.len(), records.len());
            for (theirs, ours) in theirs.iter().zip(&records) {
                prop_assert_eq!(theirs.value().as_ref(), &ours[..]);
            }
        }
    }

    #[test]
    fn what_the_client_writes_is_read() {
        let records: Vec<Record> = [&b"one"[..], b"", b"three"].iter().map(|&value| Record::new(value)).collect();
        let keyed = Record::new_key_value("key", "four");
        let mut theirs: Batch = Batch::from(records);
        theirs.add_record(keyed);
        let mut bytes = Vec::new();
        theirs.encode(&mut bytes, 0).unwrap();
        let values: Vec<Bytes> = ["one", "", "three", "four"].map(Bytes::from).to_vec();
        assert_eq!(content(&read(&bytes).unwrap()).unwrap(), Content::Values(values));
    }

    #[test]
    fn half_a_batch_is_none() {
        let records = vec![Bytes::from_static(b"first"), Bytes::from(vec![7; 500])];
        let bytes = written(&records);
        for end in 0..bytes.len() {
            if let Ok(batch) = read(&bytes[..end]) {
                assert_eq!(content(&batch), Ok(Content::CutOff), "{end} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn a_damaged_batch_is_told() {
        let records = vec![Bytes::from_static(b"first"), Bytes::from_static(b"second")];
        let bytes = written(&records);
        // Offset, length and epoch stand outside of the checksum.
        for at in CHECKSUM_AT.start..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert!(content(&read(&damaged).unwrap()).is_err(), "byte {at}");
        }
    }
}
