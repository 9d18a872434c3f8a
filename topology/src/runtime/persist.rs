//! What the runtime commits beside the operators' rows: positions, marks, lane tails, raw records of tables.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use sluice_log::Partition;
use sluice_proto::{Epoch, Offset, Position};
use sluice_state::checkpoint::Facts;
use sluice_state::{StateError, Tables};

use super::feed::Feed;
use super::lanes::{Lane, Mark, Watermarks};

/// Name of an input or table among the keys: `in/share.submissions/3`, `table/job_table`. It holds no zero byte.
pub(crate) type Slot = str;

/// Name of a task's input.
pub(crate) fn input_slot(partition: &Partition) -> String {
    format!("in/{partition}")
}

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
    for (task, until) in entries(tables, "forgotten", slot)? {
        let task: [u8; 8] = task.as_ref().try_into().map_err(|_| damaged("forgotten epoch", slot))?;
        let until: [u8; 4] = until.as_ref().try_into().map_err(|_| damaged("forgotten epoch", slot))?;
        into.restore_forgotten(u64::from_be_bytes(task), Epoch::new(u32::from_be_bytes(until)));
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

/// Puts the position of `slot` into the next commit.
pub(crate) fn save_position(tables: &mut Tables, slot: &Slot, next: Offset) {
    tables.put_meta(&key("position", slot, b""), offset_bytes(next));
}

/// Puts the position of a feed and the marks that moved into the next commit.
pub(crate) fn save_feed(tables: &mut Tables, slot: &Slot, feed: &mut Feed) {
    save_position(tables, slot, feed.next);
    let watermarks = &mut feed.gate.watermarks;
    let changes = watermarks.take_changes();
    for lane in changes.outdated {
        tables.delete_meta(&key("mark", slot, &lane.to_bytes()[..16]));
    }
    for lane in changes.marks {
        let key = key("mark", slot, &lane.to_bytes());
        match watermarks.mark(lane) {
            Some(mark) => tables.put_meta(&key, mark.to_bytes()),
            None => tables.delete_meta(&key),
        }
    }
    let epochs = |what: &str, tasks: BTreeSet<u64>, epoch: &dyn Fn(u64) -> Option<Epoch>, tables: &mut Tables| {
        for (task, epoch) in tasks.into_iter().filter_map(|task| Some((task, epoch(task)?))) {
            let epoch = Bytes::copy_from_slice(&epoch.get().to_be_bytes());
            tables.put_meta(&key(what, slot, &task.to_be_bytes()), epoch);
        }
    };
    epochs("fence", changes.fences, &|task| watermarks.fenced(task), tables);
    epochs("forgotten", changes.forgotten, &|task| watermarks.forgotten(task), tables);
    if changes.forgiven {
        let count = Bytes::copy_from_slice(&watermarks.forgiven().to_be_bytes());
        tables.put_meta(&key("forgiven", slot, b""), count);
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

/// Records a second that the task was last seen to work through when it had many, if this is the entry that says so.
pub(crate) fn rate_of(key: &[u8], value: &[u8]) -> Option<u64> {
    (key == b"rate").then(|| offset_from(value).map(Offset::get)).flatten()
}

/// Puts that rate into the next commit.
pub(crate) fn save_rate(tables: &mut Tables, rate: u64) {
    tables.put_meta(b"rate", offset_bytes(Offset::new(rate)));
}

/// How far the order of inputs is committed: the offset behind the last turn, and the epoch it was taken in.
pub(crate) fn order(tables: &Tables) -> Result<Option<(Offset, Epoch)>, StateError> {
    let Some(bytes) = tables.meta(b"order")? else { return Ok(None) };
    let mark = Mark::from_bytes(&bytes).ok_or_else(|| damaged("order", "task"))?;
    Ok(Some((Offset::new(mark.position.offset), mark.epoch)))
}

/// Puts how far the order of inputs has been taken into the next commit.
pub(crate) fn save_order(tables: &mut Tables, (next, epoch): (Offset, Epoch)) {
    let position = Position { offset: next.get(), ordinal: 0 };
    tables.put_meta(b"order", Mark { epoch, position }.to_bytes());
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
