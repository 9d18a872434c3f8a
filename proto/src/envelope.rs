//! Encoding and decoding of records.

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::Body;
use crate::parse::ShareRecord;
use crate::upgrade::{SCHEMA, to_newest};
use crate::v1::{Coordinates, Envelope, Fence};
use crate::{EventTime, Position};

/// A record that cannot be read. On a money path this stops the task (invariant P1).
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no envelope.
    #[error("not a record of Sluice: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Written by a newer program, or by none.
    #[error("record of schema version {0}, this program reads versions 1 to {SCHEMA}; run the newer program")]
    Schema(u32),
    /// Of a released version, and yet not as that version wrote it.
    #[error("record of schema version {version} that cannot be brought to version {SCHEMA}: {what}")]
    Upgrade {
        /// Its version.
        version: u32,
        /// What is wrong with it.
        what: String,
    },
    /// An envelope whose body this program does not know.
    #[error("record with an empty or unknown body; run the newer program")]
    NoBody,
}

/// Which of the records an envelope holds. The topology checks ports and topics by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is the message of that name in the schema
pub enum RecordKind {
    Genesis,
    Fence,
    Job,
    TemplateChunk,
    Submission,
    Tick,
    Verdict,
    Tally,
    SliceEnd,
    Candidate,
    SolvedBlock,
    BlockOutcome,
    DifficultyTarget,
    Turn,
    Cut,
    Rescale,
    DeadLetter,
    Redriven,
}

impl RecordKind {
    /// Name as error messages and graphs show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Genesis => "genesis",
            Self::Fence => "fence",
            Self::Job => "job",
            Self::TemplateChunk => "template_chunk",
            Self::Submission => "submission",
            Self::Tick => "tick",
            Self::Verdict => "verdict",
            Self::Tally => "tally",
            Self::SliceEnd => "slice_end",
            Self::Candidate => "candidate",
            Self::SolvedBlock => "solved_block",
            Self::BlockOutcome => "block_outcome",
            Self::DifficultyTarget => "difficulty_target",
            Self::Turn => "turn",
            Self::Cut => "cut",
            Self::Rescale => "rescale",
            Self::DeadLetter => "dead_letter",
            Self::Redriven => "redriven",
        }
    }

    /// Kind of `body`.
    pub const fn of(body: &Body) -> Self {
        match body {
            Body::Genesis(_) => Self::Genesis,
            Body::Fence(_) => Self::Fence,
            Body::Job(_) => Self::Job,
            Body::TemplateChunk(_) => Self::TemplateChunk,
            Body::Submission(_) => Self::Submission,
            Body::Tick(_) => Self::Tick,
            Body::Verdict(_) => Self::Verdict,
            Body::Tally(_) => Self::Tally,
            Body::SliceEnd(_) => Self::SliceEnd,
            Body::Candidate(_) => Self::Candidate,
            Body::SolvedBlock(_) => Self::SolvedBlock,
            Body::BlockOutcome(_) => Self::BlockOutcome,
            Body::DifficultyTarget(_) => Self::DifficultyTarget,
            Body::Turn(_) => Self::Turn,
            Body::Cut(_) => Self::Cut,
            Body::Rescale(_) => Self::Rescale,
            Body::DeadLetter(_) => Self::DeadLetter,
            Body::Redriven(_) => Self::Redriven,
        }
    }
}

impl Envelope {
    /// An envelope of the current schema around `body`.
    pub fn new(event_time: EventTime, from: Coordinates, body: Body) -> Self {
        Self { schema: SCHEMA, event_time_ns: event_time.nanos(), from: Some(from), body: Some(body) }
    }

    /// When the event happened.
    pub fn event_time(&self) -> EventTime {
        EventTime::from_nanos(self.event_time_ns)
    }
}

impl Coordinates {
    /// Where on its lane the record stands.
    pub fn position(&self) -> Position {
        Position { offset: self.source_offset, ordinal: self.ordinal }
    }

    /// Where on its lane the record before it stands, if there is one.
    pub fn predecessor(&self) -> Option<Position> {
        (self.prev_offset != 0).then_some(Position { offset: self.prev_offset, ordinal: self.prev_ordinal })
    }
}

/// What stands in front of a record's body: enough to tell whose it is, without reading the rest.
#[derive(Clone, PartialEq, Message)]
pub struct Head {
    /// Schema version, see [`Envelope`].
    #[prost(uint32, tag = "1")]
    pub schema: u32,
    /// Event time, nanoseconds since the Unix epoch.
    #[prost(fixed64, tag = "2")]
    pub event_time_ns: u64,
    /// Coordinates of the producer.
    #[prost(message, optional, tag = "3")]
    pub from: Option<Coordinates>,
    /// The body, where it is a fence.
    #[prost(message, optional, tag = "5")]
    pub fence: Option<Fence>,
}

impl Head {
    /// Reads the head of a record; its body is passed over unread.
    ///
    /// # Errors
    /// If the bytes are no envelope, or of a schema this program does not know.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let head = <Self as Message>::decode(bytes)?;
        if head.schema == 0 || head.schema > SCHEMA {
            return Err(DecodeError::Schema(head.schema));
        }
        Ok(head)
    }
}

/// The bytes of `envelope`.
pub fn encode(envelope: &Envelope) -> Bytes {
    envelope.encode_to_vec().into()
}

/// Appends the bytes of `envelope` to `buffer`, which grows as needed.
pub fn encode_into(envelope: &Envelope, buffer: &mut BytesMut) {
    buffer.reserve(envelope.encoded_len());
    envelope.encode_raw(buffer);
}

/// Reads a record of any version, as the newest version has it; byte fields share `bytes`.
///
/// # Errors
/// If the bytes are malformed, of a schema this program does not know, or without a body it knows.
pub fn decode(bytes: Bytes) -> Result<Envelope, DecodeError> {
    match ShareRecord::parse(&bytes) {
        Some(submission) => Ok(submission.into()),
        None => decode_any(bytes),
    }
}

/// As [`decode`], whatever the record holds.
pub(crate) fn decode_any(bytes: Bytes) -> Result<Envelope, DecodeError> {
    let mut envelope = Envelope::decode(bytes)?;
    to_newest(&mut envelope)?;
    if envelope.body.is_none() {
        return Err(DecodeError::NoBody);
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Submission, Tick};
    use proptest::prelude::*;

    fn tick() -> Envelope {
        Envelope::new(EventTime::from_nanos(7), Coordinates::default(), Body::Tick(Tick { gateway: 1, job_clock: 2 }))
    }

    #[test]
    fn the_head_of_a_record_is_read_without_its_body() {
        let from = Coordinates { task: 3, epoch: 2, source_offset: 9, ..Coordinates::default() };
        let head = Head::read(&encode(&Envelope { from: Some(from), ..tick() })).unwrap();
        assert_eq!((head.event_time_ns, head.from, head.fence), (7, Some(from), None));
        let fence = || Fence { task: 3, epoch: 2, owner: Bytes::from_static(b"owner") };
        let head = Head::read(&encode(&Envelope { body: Some(Body::Fence(fence())), ..tick() })).unwrap();
        assert_eq!(head.fence, Some(fence()));
        assert!(matches!(Head::read(&encode(&Envelope { schema: SCHEMA + 1, ..tick() })), Err(DecodeError::Schema(_))));
    }

    #[test]
    fn an_unknown_schema_is_refused() {
        for schema in [0, SCHEMA + 1] {
            let bytes = encode(&Envelope { schema, ..tick() });
            assert!(matches!(decode(bytes), Err(DecodeError::Schema(s)) if s == schema));
        }
    }

    #[test]
    fn an_empty_body_is_refused() {
        let bytes = encode(&Envelope { body: None, ..tick() });
        assert!(matches!(decode(bytes), Err(DecodeError::NoBody)));
    }

    #[test]
    fn offset_zero_is_no_predecessor() {
        assert_eq!(Coordinates::default().predecessor(), None);
        let second = Coordinates { prev_offset: 4, prev_ordinal: 2, ..Coordinates::default() };
        assert_eq!(second.predecessor(), Some(Position { offset: 4, ordinal: 2 }));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nonce: u32, job_id: u64, account in "[a-z0-9]{0,90}", time: u64) {
            let body = Body::Submission(Submission { nonce, job_id, account, ..Submission::default() });
            let record = Envelope::new(EventTime::from_nanos(time), Coordinates::default(), body);
            prop_assert_eq!(decode(encode(&record)).unwrap(), record);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }
    }
}
