//! A submission without memory of its own: what judges a share and what writes it take the same form, whether it comes
//! from a miner's line or from a record.

use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{
    WireType, bool, encode_key, encode_varint, encoded_len_varint, fixed32, fixed64, uint32, uint64,
};

use crate::EventTime;
use crate::upgrade::SCHEMA;
use crate::v1::{Coordinates, Submission};

/// A [`Submission`] whose names are borrowed. The fields are those of the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is the field of that name in the schema
pub struct Share<'a> {
    pub job_id: u64,
    pub extranonce1: u32,
    pub extranonce2: u64,
    pub ntime: u32,
    pub nonce: u32,
    pub version_bits: u32,
    pub has_version_bits: bool,
    pub version_mask: u32,
    pub difficulty: u64,
    pub session: u64,
    pub account: &'a str,
    pub worker: &'a str,
    pub gateway: u32,
    pub job_clock: u64,
}

impl<'a> From<&'a Submission> for Share<'a> {
    #[inline]
    fn from(submission: &'a Submission) -> Self {
        // Taken apart, so that a field the schema gains is not forgotten here.
        let Submission {
            job_id,
            extranonce1,
            extranonce2,
            ntime,
            nonce,
            version_bits,
            has_version_bits,
            version_mask,
            difficulty,
            session,
            account,
            worker,
            gateway,
            job_clock,
        } = submission;
        Self {
            job_id: *job_id,
            extranonce1: *extranonce1,
            extranonce2: *extranonce2,
            ntime: *ntime,
            nonce: *nonce,
            version_bits: *version_bits,
            has_version_bits: *has_version_bits,
            version_mask: *version_mask,
            difficulty: *difficulty,
            session: *session,
            account,
            worker,
            gateway: *gateway,
            job_clock: *job_clock,
        }
    }
}

impl From<Share<'_>> for Submission {
    #[inline]
    fn from(share: Share<'_>) -> Self {
        Self {
            job_id: share.job_id,
            extranonce1: share.extranonce1,
            extranonce2: share.extranonce2,
            ntime: share.ntime,
            nonce: share.nonce,
            version_bits: share.version_bits,
            has_version_bits: share.has_version_bits,
            version_mask: share.version_mask,
            difficulty: share.difficulty,
            session: share.session,
            account: share.account.to_owned(),
            worker: share.worker.to_owned(),
            gateway: share.gateway,
            job_clock: share.job_clock,
        }
    }
}

impl Share<'_> {
    /// Bytes of the message.
    fn encoded_len(&self) -> usize {
        let set = |is_set: bool, bytes: usize| if is_set { bytes } else { 0 };
        let fixed = |value: u32| set(value != 0, 5);
        let fixed_long = |value: u64| set(value != 0, 9);
        let varint = |value: u64| set(value != 0, 1 + encoded_len_varint(value));
        let text = |text: &str| set(!text.is_empty(), 1 + encoded_len_varint(text.len() as u64) + text.len());
        fixed_long(self.job_id)
            + fixed(self.extranonce1)
            + fixed_long(self.extranonce2)
            + fixed(self.ntime)
            + fixed(self.nonce)
            + fixed(self.version_bits)
            + set(self.has_version_bits, 2)
            + fixed(self.version_mask)
            + varint(self.difficulty)
            + fixed_long(self.session)
            + text(self.account)
            + text(self.worker)
            + varint(u64::from(self.gateway))
            + varint(self.job_clock)
    }

    /// Writes the message: the fields in order, those that are not the default.
    fn encode_raw(&self, out: &mut impl BufMut) {
        let fixed = |tag: u32, value: u32, out: &mut _| {
            if value != 0 {
                fixed32::encode(tag, &value, out);
            }
        };
        let fixed_long = |tag: u32, value: u64, out: &mut _| {
            if value != 0 {
                fixed64::encode(tag, &value, out);
            }
        };
        fixed_long(1, self.job_id, out);
        fixed(2, self.extranonce1, out);
        fixed_long(3, self.extranonce2, out);
        fixed(4, self.ntime, out);
        fixed(5, self.nonce, out);
        fixed(6, self.version_bits, out);
        if self.has_version_bits {
            bool::encode(7, &true, out);
        }
        fixed(8, self.version_mask, out);
        if self.difficulty != 0 {
            uint64::encode(9, &self.difficulty, out);
        }
        fixed_long(10, self.session, out);
        text(11, self.account, out);
        text(12, self.worker, out);
        if self.gateway != 0 {
            uint32::encode(13, &self.gateway, out);
        }
        if self.job_clock != 0 {
            uint64::encode(14, &self.job_clock, out);
        }
    }
}

fn text(tag: u32, text: &str, out: &mut impl BufMut) {
    if !text.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(text.len() as u64, out);
        out.put_slice(text.as_bytes());
    }
}

/// Appends the bytes of an envelope of the current schema around `share`: those of [`crate::encode_into`] for the same
/// submission, without making one.
pub fn encode_share_into(event_time: EventTime, from: &Coordinates, share: &Share<'_>, buffer: &mut BytesMut) {
    let event_time_ns = event_time.nanos();
    let (from_len, share_len) = (from.encoded_len(), share.encoded_len());
    // Keys, schema, time and lengths take 30 bytes at most.
    buffer.reserve(from_len + share_len + 30);
    uint32::encode(1, &SCHEMA, buffer);
    if event_time_ns != 0 {
        fixed64::encode(2, &event_time_ns, buffer);
    }
    encode_key(3, WireType::LengthDelimited, buffer);
    encode_varint(from_len as u64, buffer);
    from.encode_raw(buffer);
    encode_key(8, WireType::LengthDelimited, buffer);
    encode_varint(share_len as u64, buffer);
    share.encode_raw(buffer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::decode_any;
    use crate::v1::Envelope;
    use crate::{Body, decode, encode, peek_share};
    use bytes::Bytes;
    use proptest::prelude::*;

    /// Numbers of all lengths, the default among them.
    fn number() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0..64_u32).prop_map(|(value, shift)| value >> shift)
    }

    fn word() -> impl Strategy<Value = u32> {
        (any::<u32>(), 0..=32_u32).prop_map(|(value, shift)| value.checked_shr(shift).unwrap_or(0))
    }

    prop_compose! {
        fn submission()(
            (job_id, extranonce2, difficulty, session, job_clock) in (number(), number(), number(), number(), number()),
            (extranonce1, ntime, nonce, gateway) in (word(), word(), word(), word()),
            (version_bits, has_version_bits, version_mask) in (word(), any::<bool>(), word()),
            account in "[a-z0-9é]{0,200}",
            worker in ".{0,90}",
        ) -> Submission {
            Submission {
                job_id, extranonce1, extranonce2, ntime, nonce, version_bits, has_version_bits, version_mask,
                difficulty, session, account, worker, gateway, job_clock,
            }
        }
    }

    prop_compose! {
        fn coordinates()(
            (task, source_offset, prev_offset) in (number(), number(), number()),
            (epoch, source_topic, source_partition, ordinal, prev_ordinal) in (word(), word(), word(), word(), word()),
        ) -> Coordinates {
            Coordinates {
                task, epoch, source_topic, source_partition, source_offset, ordinal, prev_offset, prev_ordinal,
            }
        }
    }

    proptest! {
        #[test]
        fn a_share_is_written_as_its_submission_is(from in coordinates(), submission in submission(), time in number()) {
            let time = EventTime::from_nanos(time);
            let mut bytes = BytesMut::from(&b"before"[..]);
            encode_share_into(time, &from, &Share::from(&submission), &mut bytes);
            prop_assert_eq!(&Submission::from(Share::from(&submission)), &submission);
            let envelope = Envelope::new(time, from, Body::Submission(submission));
            prop_assert_eq!(&bytes[6..], &encode(&envelope)[..]);
        }

        /// The short way of reading one is taken, and gives what the general decoder gives.
        #[test]
        fn a_submission_is_read_as_the_general_decoder_reads_it(
            from in coordinates(), submission in submission(), time in number(),
        ) {
            let record = Envelope::new(EventTime::from_nanos(time), from, Body::Submission(submission.clone()));
            let bytes = encode(&record);
            let Share { job_id, extranonce1, extranonce2, ntime, nonce, version_bits, has_version_bits, version_mask, .. } =
                Share::from(&submission);
            let hashed = Share {
                job_id, extranonce1, extranonce2, ntime, nonce, version_bits, has_version_bits, version_mask,
                ..Share::default()
            };
            prop_assert_eq!(peek_share(&bytes), Some(hashed));
            prop_assert_eq!(decode_any(bytes.clone()).unwrap(), record.clone());
            prop_assert_eq!(decode(bytes).unwrap(), record);
        }

        /// A record that is damaged in any way is read, or refused, as by the general decoder.
        #[test]
        fn a_damaged_submission_is_read_as_the_general_decoder_reads_it(
            from in coordinates(),
            submission in submission(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..4),
        ) {
            let record = Envelope::new(EventTime::from_nanos(7), from, Body::Submission(submission));
            let mut bytes = encode(&record).to_vec();
            for (at, byte, what) in damage {
                let at = at.index(bytes.len());
                match what {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let bytes = Bytes::from(bytes);
            let show = |read: Result<Envelope, crate::DecodeError>| read.map_err(|error| error.to_string());
            prop_assert_eq!(show(decode(bytes.clone())), show(decode_any(bytes)));
        }
    }
}
