//! Records as released versions have written them: they can be read for ever.
//!
//! One file a schema version, one line a kind of record: its bytes, every field set, and what they mean. A kind that is
//! added within a version gets a line at the end of the newest file; a line is never changed.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use sluice_proto::{RecordKind, SCHEMA, decode};

#[test]
fn records_of_every_version_are_read_for_ever() {
    for version in 1..=SCHEMA {
        let path = format!("{}/tests/golden/{version}.jsonl", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(version != 1 || text.lines().count() >= 13, "version 1 has 13 kinds");
        for line in text.lines() {
            let golden: Value = serde_json::from_str(line).unwrap();
            let bytes = hex::decode(golden["bytes"].as_str().unwrap()).unwrap();
            let record = decode(bytes.into()).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(RecordKind::of(record.body.as_ref().unwrap()).name(), golden["kind"].as_str().unwrap());
            let mut record = serde_json::to_value(&record).unwrap();
            record["schema"] = version.into();
            if let Some(what) = differs(&golden["record"], &record) {
                panic!("{}: {what}\n{record}", golden["kind"]);
            }
        }
    }
}

/// The first field of `golden` that is not in `found`, which may have fields that were added since.
fn differs(golden: &Value, found: &Value) -> Option<String> {
    match (golden, found) {
        (Value::Object(golden), Value::Object(found)) => golden.iter().find_map(|(name, value)| {
            let found = found.get(name).unwrap_or(&Value::Null);
            differs(value, found).map(|what| format!("{name}: {what}"))
        }),
        (Value::Array(golden), Value::Array(found)) if golden.len() == found.len() => {
            golden.iter().zip(found).find_map(|(golden, found)| differs(golden, found))
        }
        _ => (golden != found).then(|| format!("{found} instead of {golden}")),
    }
}
