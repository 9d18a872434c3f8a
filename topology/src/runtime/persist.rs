//! What the runtime commits beside the operators' rows: positions, marks, lane tails, raw records of tables.

use bytes::{Buf, Bytes};
use sluice_proto::{Epoch, Offset};
use sluice_state::checkpoint::Facts;
use sluice_state::{StateError, Tables};

use super::feed::Feed;
use super::lanes::{Lane, Mark, Watermarks};

/// Name of an input or table among the keys: `in/share.submissions/3`, `table/job_table`. It holds no zero byte.
pub(crate) type Slot = str;

fn key(what: &str, slot: &Slot, rest: &[u8]) -> Vec<u8> {
    [what.as_bytes(), b"/", slot.as_bytes(), b"\0", rest].concat()
}

fn damaged(what: &str, slot: &Slot) -> StateError {
    StateError::Storage(format!("the stored {what} of {slot} cannot be read"))
}

fn offset_bytes(offset: Offset) -> Bytes {
    Bytes::copy_from_slice(&offset.get().to_be_bytes())
}

fn offset_from(bytes: &[u8]) -> Option<Offset> {
    Some(Offset::new(u64::from_be_bytes(bytes.try_into().ok()?)))
}

/// The committed position of `slot`.
pub(crate) fn position(tables: &Tables, slot: &Slot) -> Result<Option<Offset>, StateError> {
    let stored = tables.meta(&key("position", slot, b""))?;
    stored.map(|bytes| offset_from(&bytes).ok_or_else(|| damaged("position", slot))).transpose()
}

/// Rows below `what/slot`, without that part of their keys.
fn entries(tables: &Tables, what: &str, slot: &Slot) -> Result<Vec<(Bytes, Bytes)>, StateError> {
    let prefix = key(what, slot, b"");
    let mut entries = tables.committed_meta(&prefix)?;
    entries.iter_mut().for_each(|(key, _)| key.advance(prefix.len()));
    Ok(entries)
}

/// Takes the committed marks and fences of `slot` in.
pub(crate) fn load_watermarks(tables: &Tables, slot: &Slot, into: &mut Watermarks) -> Result<(), StateError> {
    for (lane, mark) in entries(tables, "mark", slot)? {
        let lane = Lane::from_bytes(&lane).ok_or_else(|| damaged("mark", slot))?;
        into.restore(lane, Mark::from_bytes(&mark).ok_or_else(|| damaged("mark", slot))?);
    }
    for (task, epoch) in entries(tables, "fence", slot)? {
        let task: [u8; 8] = task.as_ref().try_into().map_err(|_| damaged("fence", slot))?;
        let epoch: [u8; 4] = epoch.as_ref().try_into().map_err(|_| damaged("fence", slot))?;
        into.restore_fence(u64::from_be_bytes(task), Epoch::new(u32::from_be_bytes(epoch)));
    }
    if tables.meta(&key("mid-stream", slot, b""))?.is_some() {
        into.restore_mid_stream();
    }
    if let Some(count) = tables.meta(&key("forgiven", slot, b""))? {
        let count: [u8; 4] = count.as_ref().try_into().map_err(|_| damaged("count of gaps", slot))?;
        into.restore_forgiven(u32::from_be_bytes(count));
    }
    Ok(())
}

/// Puts into the next commit how the reader of a new `slot` began.
pub(crate) fn save_start(tables: &mut Tables, slot: &Slot, watermarks: &Watermarks) {
    if watermarks.is_mid_stream() {
        tables.put_meta(&key("mid-stream", slot, b""), Bytes::new());
    }
}

/// Puts the position of a feed and the marks that moved into the next commit.
pub(crate) fn save_feed(tables: &mut Tables, slot: &Slot, feed: &mut Feed) {
    tables.put_meta(&key("position", slot, b""), offset_bytes(feed.next));
    for (lane, mark) in feed.gate.watermarks.take_changed() {
        tables.put_meta(&key("mark", slot, &lane.to_bytes()), mark.to_bytes());
    }
    for (task, epoch) in feed.gate.watermarks.take_changed_fences() {
        let epoch = Bytes::copy_from_slice(&epoch.get().to_be_bytes());
        tables.put_meta(&key("fence", slot, &task.to_be_bytes()), epoch);
    }
    if let Some(count) = feed.gate.watermarks.take_changed_forgiven() {
        tables.put_meta(&key("forgiven", slot, b""), Bytes::copy_from_slice(&count.to_be_bytes()));
    }
}

/// The committed end of `lane` in the destination `slot`.
pub(crate) fn tail(tables: &Tables, slot: &Slot, lane: Lane) -> Result<Option<Mark>, StateError> {
    let stored = tables.meta(&key("tail", slot, &lane.to_bytes()))?;
    stored.map(|bytes| Mark::from_bytes(&bytes).ok_or_else(|| damaged("tail", slot))).transpose()
}

/// Puts the end of `lane` in the destination `slot` into the next commit.
pub(crate) fn save_tail(tables: &mut Tables, slot: &Slot, lane: Lane, end: Mark) {
    tables.put_meta(&key("tail", slot, &lane.to_bytes()), end.to_bytes());
}

/// Raw records that the table in `slot` was last known to need, in order.
pub(crate) fn raw_records(tables: &Tables, slot: &Slot) -> Result<Vec<(Offset, Bytes)>, StateError> {
    let stored = entries(tables, "raw", slot)?.into_iter();
    stored.map(|(offset, raw)| Ok((offset_from(&offset).ok_or_else(|| damaged("record", slot))?, raw))).collect()
}

/// Keeps a raw record of the table in `slot`.
pub(crate) fn keep_raw(tables: &mut Tables, slot: &Slot, offset: Offset, raw: Bytes) {
    tables.put_meta(&key("raw", slot, &offset.get().to_be_bytes()), raw);
}

/// Forgets a raw record of the table in `slot`.
pub(crate) fn forget_raw(tables: &mut Tables, slot: &Slot, offset: Offset) {
    tables.delete_meta(&key("raw", slot, &offset.get().to_be_bytes()));
}

/// The epoch that the task took last, if it takes epochs.
pub(crate) fn epoch(tables: &Tables) -> Result<Option<Epoch>, StateError> {
    let Some(bytes) = tables.meta(b"epoch")? else { return Ok(None) };
    let bytes: [u8; 4] = bytes.as_ref().try_into().map_err(|_| damaged("epoch", "task"))?;
    Ok(Some(Epoch::new(u32::from_be_bytes(bytes))))
}

/// Puts the epoch that the task takes into the next commit.
pub(crate) fn save_epoch(tables: &mut Tables, epoch: Epoch) {
    tables.put_meta(b"epoch", Bytes::copy_from_slice(&epoch.get().to_be_bytes()));
}

/// The batch a task with several inputs had begun: it reads `slot` up to this offset.
pub(crate) fn intent(tables: &Tables) -> Result<Option<(String, Offset)>, StateError> {
    let Some(bytes) = tables.meta(b"intent")? else { return Ok(None) };
    let parsed = bytes.split_last_chunk::<8>().and_then(|(slot, until)| {
        Some((std::str::from_utf8(slot).ok()?.to_owned(), Offset::new(u64::from_be_bytes(*until))))
    });
    parsed.map(Some).ok_or_else(|| damaged("intent", "task"))
}

/// Puts the intent to read `slot` up to `until` into the next commit.
pub(crate) fn save_intent(tables: &mut Tables, slot: &Slot, until: Offset) {
    tables.put_meta(b"intent", [slot.as_bytes(), &until.get().to_be_bytes()].concat().into());
}

/// Whether the dead letter with this number has been processed again.
pub(crate) fn was_redriven(tables: &Tables, letter: Offset) -> Result<bool, StateError> {
    Ok(tables.meta(&key("redriven", "letter", &letter.get().to_be_bytes()))?.is_some())
}

/// Puts into the next commit that it has.
pub(crate) fn save_redriven(tables: &mut Tables, letter: Offset) {
    tables.put_meta(&key("redriven", "letter", &letter.get().to_be_bytes()), Bytes::new());
}

/// Tells of a committed entry what a checkpoint's manifest says of it: positions and the epoch.
pub fn describe(key: &[u8], value: &[u8], facts: &mut Facts) -> Result<(), StateError> {
    facts.schema = sluice_proto::SCHEMA;
    if key == b"epoch" {
        let bytes = value.try_into().map_err(|_| damaged("epoch", "task"))?;
        facts.epoch = Some(u32::from_be_bytes(bytes));
    }
    let slot = key.strip_prefix(b"position/").and_then(|rest| rest.strip_suffix(b"\0"));
    if let Some(slot) = slot {
        let slot = String::from_utf8_lossy(slot).into_owned();
        let offset = offset_from(value).ok_or_else(|| damaged("position", &slot))?;
        facts.positions.insert(slot, offset.get());
    }
    Ok(())
}
