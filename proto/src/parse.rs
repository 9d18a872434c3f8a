//! Reading submissions, the records that come in numbers, without the general decoder: names stay where they are.
//!
//! Only what this program writes is read here: fields in order, each at most once, none that is unknown. Everything else
//! is left to the general decoder, so that nothing is accepted or refused here that it would not be there.

use crate::upgrade::SCHEMA;
use crate::v1::{Coordinates, Envelope, envelope::Body};
use crate::{EventTime, Share};

/// A record of the current schema that holds a submission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShareRecord<'a> {
    /// When the event happened.
    pub event_time: EventTime,
    /// Who wrote the record.
    pub from: Coordinates,
    /// The submission.
    pub share: Share<'a>,
}

impl<'a> ShareRecord<'a> {
    /// Reads a record; `None` if it holds something else, or is written in another way than by this program: then
    /// [`crate::decode`] reads it, or says what is wrong with it.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(record);
        if fields.varint(1)? != u64::from(SCHEMA) {
            return None;
        }
        let event_time = EventTime::from_nanos(fields.fixed64(2)?);
        let from = coordinates(fields.message(3)?)?;
        let share = share(fields.message(8)?)?;
        fields.end()?;
        Some(Self { event_time, from, share })
    }
}

impl From<ShareRecord<'_>> for Envelope {
    fn from(record: ShareRecord<'_>) -> Self {
        Self::new(record.event_time, record.from, Body::Submission(record.share.into()))
    }
}

/// What a submission's hash depends on, out of the bytes of a record of the current schema: the fields of a [`Share`] up
/// to its version mask. `None` if the record holds something else, or is written in another way than by this program. What is
/// behind those fields is not looked at: [`crate::decode`] may still refuse the record.
pub fn peek_share(record: &[u8]) -> Option<Share<'static>> {
    let mut fields = Fields(record);
    if fields.varint(1)? != u64::from(SCHEMA) {
        return None;
    }
    fields.fixed64(2)?;
    fields.message(3)?;
    hashed(&mut Fields(fields.message(8)?))
}

#[inline]
fn coordinates(message: &[u8]) -> Option<Coordinates> {
    let mut fields = Fields(message);
    let coordinates = Coordinates {
        task: fields.fixed64(1)?,
        epoch: fields.word(2)?,
        source_topic: fields.fixed32(3)?,
        source_partition: fields.word(4)?,
        source_offset: fields.varint(5)?,
        ordinal: fields.word(6)?,
        prev_offset: fields.varint(7)?,
        prev_ordinal: fields.word(8)?,
    };
    fields.end()?;
    Some(coordinates)
}

#[inline]
fn share(message: &[u8]) -> Option<Share<'_>> {
    let mut fields = Fields(message);
    let first = hashed(&mut fields)?;
    let share = Share {
        difficulty: fields.varint(9)?,
        session: fields.fixed64(10)?,
        account: fields.text(11)?,
        worker: fields.text(12)?,
        gateway: fields.word(13)?,
        job_clock: fields.varint(14)?,
        ..first
    };
    fields.end()?;
    Some(share)
}

/// The first fields of a submission.
#[inline]
fn hashed(fields: &mut Fields<'_>) -> Option<Share<'static>> {
    Some(Share {
        job_id: fields.fixed64(1)?,
        extranonce1: fields.fixed32(2)?,
        extranonce2: fields.fixed64(3)?,
        ntime: fields.fixed32(4)?,
        nonce: fields.fixed32(5)?,
        version_bits: fields.fixed32(6)?,
        has_version_bits: match fields.varint(7)? {
            0 => false,
            1 => true,
            _ => return None,
        },
        version_mask: fields.fixed32(8)?,
        ..Share::default()
    })
}

/// What is left of a message. Each call takes the field with this number (below 16), or its default if another one
/// comes next; `None` if it is malformed.
struct Fields<'a>(&'a [u8]);

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

impl<'a> Fields<'a> {
    /// Whether this field comes next; then its key is taken.
    #[inline]
    fn comes(&mut self, number: u8, wire: u8) -> bool {
        match self.0.split_first() {
            Some((key, rest)) if *key == (number << 3) | wire => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn fixed32(&mut self, number: u8) -> Option<u32> {
        if !self.comes(number, FIXED32) {
            return Some(0);
        }
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*value))
    }

    #[inline]
    fn fixed64(&mut self, number: u8) -> Option<u64> {
        if !self.comes(number, FIXED64) {
            return Some(0);
        }
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*value))
    }

    #[inline]
    fn varint(&mut self, number: u8) -> Option<u64> {
        if self.comes(number, VARINT) { self.number() } else { Some(0) }
    }

    #[inline]
    fn word(&mut self, number: u8) -> Option<u32> {
        self.varint(number).and_then(|value| u32::try_from(value).ok())
    }

    /// A number of at most 9 bytes: a longer one is left to the general decoder.
    #[inline]
    fn number(&mut self) -> Option<u64> {
        if let Some((byte @ ..0x80, rest)) = self.0.split_first() {
            self.0 = rest;
            return Some(u64::from(*byte));
        }
        self.long_number()
    }

    fn long_number(&mut self) -> Option<u64> {
        let mut value = 0;
        for at in 0..9 {
            let byte = *self.0.get(at)?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    /// The bytes of a field that has a length; none if it does not come.
    #[inline]
    fn bytes(&mut self, number: u8) -> Option<&'a [u8]> {
        if !self.comes(number, LENGTH) {
            return Some(&[]);
        }
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A message that must be there.
    #[inline]
    fn message(&mut self, number: u8) -> Option<&'a [u8]> {
        let comes = self.0.first() == Some(&((number << 3) | LENGTH));
        if comes { self.bytes(number) } else { None }
    }

    #[inline]
    fn text(&mut self, number: u8) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(number)?).ok()
    }

    /// Nothing may be left.
    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
