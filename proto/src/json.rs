//! How byte strings look in JSON: lower-case hex, in the order they are stored.

use bytes::Bytes;
use serde::Serializer;
use serde::ser::SerializeSeq;

/// One byte string as hex.
pub(crate) fn hex<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// A list of byte strings as a list of hex strings.
pub(crate) fn hex_list<S: Serializer>(list: &[Bytes], serializer: S) -> Result<S::Ok, S::Error> {
    let mut seq = serializer.serialize_seq(Some(list.len()))?;
    for bytes in list {
        seq.serialize_element(&hex::encode(bytes))?;
    }
    seq.end()
}
