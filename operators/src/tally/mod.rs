//! `tally`: sums work and counts per account and worker over fixed slices of event time (DESIGN 6). Its records are
//! what money and statistics read.
//!
//! A partition's time is the least of the stamps of its live gateways; a gateway silent for longer than `silence` of
//! the others' time no longer holds it back (stamps are compared in tenths of a slice). A slice closes once the partition's time has passed it: its sums are
//! written, then a marker that says that this slice and all before it are closed. What comes later for a closed slice
//! counts in the one then open. All by record, so a replay cuts the same slices (invariant S2).
//!
//! Where the topic changes its number of partitions (docs/adr/0018), the cut ends the slices of one generation and begins
//! those of the next one behind the slice of its time: what came before the cut counts in the old one, once.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use sluice_mining::Work;
use sluice_proto::v1::{Cut, Reason, ReasonCount, SliceEnd, Tally, Verdict, WorkAt};
use sluice_proto::{Body, EventTime, RecordKind};
use sluice_topology::operator::StateView;
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    SettingSpec, SettingType, StateTable,
};

use crate::codec::{Sum, damaged, push_text, read_u64, split_text};
use crate::rows::Rows;

/// Slice (8 bytes), account, worker, kind (1 byte), nbits or reason (4 bytes) -> [`Sum`].
const SUMS: usize = 0;
/// `g` and gateway (4 bytes) -> newest stamp; `open` -> the open slice.
const CLOCK: usize = 1;
const OPEN: &[u8] = b"open";

const ACCEPTED: u8 = 0;
const REJECTED: u8 = 1;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "tally",
    summary: "sums shares per worker over slices of event time",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Verdict, RecordKind::Tick, RecordKind::Cut],
        optional: false,
        priority: false,
    }],
    outputs: &[OutputSpec {
        name: "out",
        writes: &[RecordKind::Tally, RecordKind::SliceEnd],
        optional: false,
        keyed: Keyed::Account,
    }],
    lookups: &[],
    settings: &[
        SettingSpec { name: "slice", ty: SettingType::Duration, default: Some("10s"), doc: "length of a slice" },
        SettingSpec {
            name: "silence",
            ty: SettingType::Duration,
            default: Some("30s"),
            doc: "how far a silent gateway may hold back the time of a partition",
        },
    ],
    state: &[StateTable::grouped("sums", 8), StateTable::plain("clock")],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let slice_ms = u32::try_from(cx.settings.duration("slice").as_millis()).unwrap_or(0);
    if slice_ms == 0 {
        return Err(OperatorError::Setting(format!("{}: slice must be from 1 ms to 49 days", cx.name)));
    }
    let silence = u64::try_from(cx.settings.duration("silence").as_nanos()).unwrap_or(u64::MAX);
    Ok(Box::new(TallyOperator { slice_ms, silence, clock: None, sums: Rows::of(SUMS), key: Vec::new() }))
}

struct TallyOperator {
    slice_ms: u32,
    /// Nanoseconds.
    silence: u64,
    /// The rows of the table `clock`, once read.
    clock: Option<Clock>,
    sums: Rows<Sum>,
    /// Of a row; kept for its memory.
    key: Vec<u8>,
}

#[derive(Default)]
struct Clock {
    stamps: BTreeMap<u32, EventTime>,
    open: Option<u64>,
}

impl Operator for TallyOperator {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.event_time;
        match &**input.record {
            Body::Verdict(verdict) => {
                let open = self.advance(verdict.gateway, time, input, cx)?;
                self.count(verdict, self.slice_of(time).max(open), cx)
            }
            Body::Tick(tick) => self.advance(tick.gateway, time, input, cx).map(|_| ()),
            Body::Cut(cut) if cut.generation > input.source.generation => self.end(cut, input, cx),
            Body::Cut(_) => self.begin(input, cx),
            _ => Err(crate::unexpected("tally", input)),
        }
    }

    fn settle(&mut self, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        self.sums.settle(state)
    }
}

impl TallyOperator {
    fn slice_of(&self, time: EventTime) -> u64 {
        time.millis() / u64::from(self.slice_ms)
    }

    /// What stamps are rounded down to, nanoseconds: slices begin at multiples of it.
    fn grain(&self) -> u64 {
        u64::from(self.slice_ms) * 100_000
    }

    /// Moves the partition's time by a stamp; closes the slices it has passed. Returns the open slice.
    fn advance(
        &mut self,
        gateway: u32,
        time: EventTime,
        input: &Input<'_>,
        cx: &mut Context<'_>,
    ) -> Result<u64, OperatorError> {
        let (silence, slice_ms) = (self.silence, u64::from(self.slice_ms));
        // Stamps count in tenths of a slice, so that not every share changes a row.
        let coarse = EventTime::from_nanos(time.nanos() - time.nanos() % self.grain());
        let clock = self.clock(cx)?;
        let stamp = clock.stamps.entry(gateway).or_default();
        if coarse > *stamp {
            *stamp = coarse;
            let mut key = [b'g', 0, 0, 0, 0];
            key[1..].copy_from_slice(&gateway.to_be_bytes());
            cx.state.put(CLOCK, &key, &coarse.nanos().to_be_bytes())?;
        } else if let Some(open) = clock.open {
            // Where no stamp has moved, time has not either.
            return Ok(open);
        }
        let newest = clock.stamps.values().max().copied().unwrap_or(time);
        let live = clock.stamps.values().filter(|stamp| newest.nanos_since(**stamp) <= silence);
        let now = live.min().copied().unwrap_or(time).millis() / slice_ms;
        let open = clock.open.unwrap_or(0);
        if clock.open.is_some() && now <= open {
            return Ok(open);
        }
        let first = clock.open.is_none();
        self.set_open(now, cx)?;
        if !first {
            self.write_before(now, input, cx)?;
            self.write_end(now - 1, 0, input, cx);
        }
        Ok(now)
    }

    /// The last record of a generation: writes what is left, and that nothing follows.
    fn end(&mut self, cut: &Cut, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let written = self.write_before(u64::MAX, input, cx)?.unwrap_or(0);
        let last = self.open_from(self.slice_of(input.event_time), cx)?.max(written);
        self.write_end(last, cut.partitions, input, cx);
        self.set_open(last.saturating_add(1), cx)
    }

    /// The first record of a generation behind its history: what that left open was written in the generation before.
    fn begin(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let before = self.open_from(self.slice_of(input.event_time), cx)?;
        self.sums.take(&cx.state, |_, _| true)?;
        cx.state.expire_below(SUMS, &u64::MAX.to_be_bytes())?;
        self.write_end(before, 0, input, cx);
        self.set_open(before.saturating_add(1), cx)
    }

    /// The open slice, or `slice` if that is later.
    fn open_from(&mut self, slice: u64, cx: &Context<'_>) -> Result<u64, OperatorError> {
        Ok(self.clock(cx)?.open.unwrap_or(0).max(slice))
    }

    fn set_open(&mut self, slice: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.clock(cx)?.open = Some(slice);
        Ok(cx.state.put(CLOCK, OPEN, &slice.to_be_bytes())?)
    }

    /// The rows of the table `clock`.
    fn clock(&mut self, cx: &Context<'_>) -> Result<&mut Clock, OperatorError> {
        Ok(match &mut self.clock {
            Some(clock) => clock,
            none => none.insert(read_clock(cx)?),
        })
    }

    fn count(&mut self, verdict: &Verdict, slice: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let reason = verdict.reason();
        let (kind, detail) = match reason {
            Reason::Accepted => (ACCEPTED, verdict.nbits),
            _ => (REJECTED, reason as u32),
        };
        let key = &mut self.key;
        key.clear();
        key.extend_from_slice(&slice.to_be_bytes());
        push_text(key, &verdict.account);
        push_text(key, &verdict.worker);
        key.push(kind);
        key.extend_from_slice(&detail.to_be_bytes());
        let share = Sum { work: Work::from_parts(verdict.work_hi, verdict.work_lo).get(), shares: 1 };
        let sum = self.sums.change(key, &cx.state, Sum::default)?;
        *sum = sum.add(share)?;
        Ok(())
    }

    /// Writes the sums of the slices before `open`, in order; returns the last slice that has any.
    fn write_before(
        &mut self,
        open: u64,
        input: &Input<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Option<u64>, OperatorError> {
        let rows = self.sums.take(&cx.state, |key, _| key < &open.to_be_bytes()[..])?;
        let mut tally: Option<Tally> = None;
        for (key, sum) in rows {
            let row = Row::read(&key)?;
            if tally.as_ref().is_some_and(|tally| !row.belongs_to(tally)) {
                self.emit(tally.take(), cx);
            }
            row.add_to(tally.get_or_insert_with(|| self.empty(&row, input)), sum);
        }
        let last = tally.as_ref().map(|tally| tally.slice);
        self.emit(tally, cx);
        cx.state.expire_below(SUMS, &open.to_be_bytes())?;
        Ok(last)
    }

    /// Writes that `slice` and those before it are closed; and how many partitions the next generation has, where nothing
    /// follows in this one.
    fn write_end(&self, slice: u64, next_partitions: u32, input: &Input<'_>, cx: &mut Context<'_>) {
        let end = SliceEnd {
            slice,
            slice_ms: self.slice_ms,
            partition: input.source.partition,
            partitions: input.source.partitions,
            generation: generation(input),
            next_partitions,
        };
        cx.emit("out", Key::Every, self.end_of(slice), Body::SliceEnd(end));
    }

    fn empty(&self, row: &Row<'_>, input: &Input<'_>) -> Tally {
        Tally {
            slice: row.slice,
            slice_ms: self.slice_ms,
            partition: input.source.partition,
            account: row.account.to_owned(),
            worker: row.worker.to_owned(),
            accepted: Vec::new(),
            rejected: Vec::new(),
            generation: generation(input),
        }
    }

    fn emit(&self, tally: Option<Tally>, cx: &mut Context<'_>) {
        if let Some(tally) = tally {
            let key = Key::Bytes(Bytes::copy_from_slice(tally.account.as_bytes()));
            cx.emit("out", key, self.end_of(tally.slice), Body::Tally(tally));
        }
    }

    /// When a slice ends: the event time of its records.
    fn end_of(&self, slice: u64) -> EventTime {
        EventTime::from_millis(slice.saturating_add(1).saturating_mul(u64::from(self.slice_ms)))
    }
}

/// As records have it: 0 stands for the first.
fn generation(input: &Input<'_>) -> u32 {
    if input.source.generation > 1 { input.source.generation } else { 0 }
}

fn read_clock(cx: &Context<'_>) -> Result<Clock, OperatorError> {
    let mut clock = Clock::default();
    let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    cx.state.scan(CLOCK, &[], None, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        true
    })?;
    for (key, value) in rows {
        let value = read_u64(Some(&value))?;
        match key.strip_prefix(b"g").and_then(|id| <[u8; 4]>::try_from(id).ok()) {
            Some(id) => drop(clock.stamps.insert(u32::from_be_bytes(id), EventTime::from_nanos(value))),
            None if key == OPEN => clock.open = Some(value),
            None => return Err(damaged(&key)),
        }
    }
    Ok(clock)
}

/// A key of the table `sums`.
struct Row<'a> {
    slice: u64,
    account: &'a str,
    worker: &'a str,
    kind: u8,
    detail: u32,
}

impl<'a> Row<'a> {
    fn read(key: &'a [u8]) -> Result<Self, OperatorError> {
        let (slice, rest) = key.split_first_chunk::<8>().ok_or_else(|| damaged(key))?;
        let (account, rest) = split_text(rest)?;
        let (worker, rest) = split_text(rest)?;
        let [kind, detail @ ..]: [u8; 5] = rest.try_into().map_err(|_| damaged(key))?;
        Ok(Self { slice: u64::from_be_bytes(*slice), account, worker, kind, detail: u32::from_be_bytes(detail) })
    }

    fn belongs_to(&self, tally: &Tally) -> bool {
        self.slice == tally.slice && self.account == tally.account && self.worker == tally.worker
    }

    fn add_to(&self, tally: &mut Tally, sum: Sum) {
        let (work_hi, work_lo) = Work::new(sum.work).to_parts();
        if self.kind == ACCEPTED {
            tally.accepted.push(WorkAt { nbits: self.detail, work_hi, work_lo, shares: sum.shares });
        } else {
            let reason = i32::try_from(self.detail).unwrap_or(0);
            tally.rejected.push(ReasonCount { reason, shares: sum.shares, work_hi, work_lo });
        }
    }
}
