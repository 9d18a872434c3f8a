//! `vardiff`: difficulty per session, from windows of event time (DESIGN 6). Decisions are records.
//!
//! Work is compared with what a session would do at the target share rate; `row` has the rules, and docs/VARDIFF.md what
//! they make of miners of all sizes. They know of a session from its first submission on: until then the gateway's first
//! difficulty holds, and is eased. A miner's own minimum is the gateway's too: it gives out no less, whatever is decided.

mod row;
#[cfg(test)]
mod tests;

use sluice_mining::Difficulty;
use sluice_proto::v1::{DifficultyTarget, Reason, Verdict};
use sluice_proto::{Body, EventTime, RecordKind};
use sluice_topology::operator::StateView;
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    SettingSpec, SettingType, StateTable,
};

use crate::codec::read_u64;
use crate::rows::Rows;
use row::Session;

/// Session (8 bytes) -> [`Session`].
const SESSIONS: usize = 0;
/// One row: when silent sessions were last looked at, event time in nanoseconds.
const MARKS: usize = 1;
const SWEPT: &[u8] = b"swept";

/// Silent sessions are looked at this often, nanoseconds: a third of a look for each share there should be.
const SWEEP: u64 = 10_000_000_000;
/// A session is forgotten after this long without a share, nanoseconds.
const FORGET: u64 = 3_600_000_000_000;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "vardiff",
    summary: "difficulty per session, from its share rate",
    inputs: &[InputSpec {
        name: "in",
        accepts: &[RecordKind::Verdict, RecordKind::Tick, RecordKind::Cut],
        optional: false,
        priority: false,
    }],
    outputs: &[OutputSpec {
        name: "out",
        writes: &[RecordKind::DifficultyTarget],
        optional: false,
        keyed: Keyed::Session,
    }],
    lookups: &[],
    settings: &[
        SettingSpec {
            name: "shares_per_minute",
            ty: SettingType::Integer(1, 600),
            default: Some("20"),
            doc: "share rate of a session to aim at",
        },
        SettingSpec {
            name: "min_difficulty",
            ty: SettingType::Decimal,
            default: Some("0.0000001"),
            doc: "lowest difficulty to give out, rounded down to a whole number, below 1 to one of 4 steps to each power of two",
        },
        SettingSpec {
            name: "max_difficulty",
            ty: SettingType::Decimal,
            default: Some("1000000000000"),
            doc: "highest difficulty to give out",
        },
    ],
    state: &[StateTable::plain("sessions"), StateTable::plain("marks")],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let difficulty = |name: &str| {
        Difficulty::parse_wire(cx.settings.text(name))
            .ok_or_else(|| OperatorError::Setting(format!("{}: {name} must be a number above 0", cx.name)))
    };
    let (min, max) = (difficulty("min_difficulty")?, difficulty("max_difficulty")?);
    if min > max {
        return Err(OperatorError::Setting(format!("{}: min_difficulty is above max_difficulty", cx.name)));
    }
    let per_minute = u128::from(cx.settings.integer("shares_per_minute").max(1));
    Ok(Box::new(Vardiff { rules: Rules { per_minute, min, max }, sessions: Rows::of(SESSIONS) }))
}

struct Vardiff {
    rules: Rules,
    sessions: Rows<Session>,
}

/// What decisions depend on besides a session's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    per_minute: u128,
    min: Difficulty,
    max: Difficulty,
}

impl Operator for Vardiff {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.event_time;
        match &**input.record {
            Body::Verdict(verdict) => self.share(verdict, time, cx),
            Body::Tick(_) => self.sweep(time, cx),
            Body::Cut(_) => Ok(()),
            _ => Err(crate::unexpected("vardiff", input)),
        }
    }

    fn settle(&mut self, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        self.sessions.settle(state)
    }
}

impl Vardiff {
    fn share(&mut self, verdict: &Verdict, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let new = || Session::new(verdict.gateway, verdict.difficulty, time);
        let session = self.sessions.change(&verdict.session.to_be_bytes(), &cx.state, new)?;
        if verdict.reason() == Reason::Accepted {
            session.add(time, verdict.difficulty);
        }
        if let Some(difficulty) = session.decide(&self.rules, time) {
            emit(verdict.session, session.gateway, difficulty, time, cx);
        }
        Ok(())
    }

    /// Looks at all sessions: only silence can tell that one has become slow.
    fn sweep(&mut self, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let swept = EventTime::from_nanos(read_u64(cx.state.get(MARKS, SWEPT)?.as_deref())?);
        if time.nanos_since(swept) < SWEEP {
            return Ok(());
        }
        cx.state.put(MARKS, SWEPT, &time.nanos().to_be_bytes())?;
        let forgotten = |_: &[u8], session: &Session| time.nanos_since(session.last_share) > FORGET;
        for (key, _) in self.sessions.take(&cx.state, forgotten)? {
            cx.state.delete(SESSIONS, &key)?;
        }
        let mut decided: Vec<(u64, u64, Session)> = Vec::new();
        for (key, session) in self.sessions.all(&cx.state)? {
            let mut session = session.clone();
            if let Some(difficulty) = session.decide(&self.rules, time) {
                decided.push((read_u64(Some(key))?, difficulty, session));
            }
        }
        decided.sort_unstable_by_key(|(id, ..)| *id);
        for (id, difficulty, session) in decided {
            emit(id, session.gateway, difficulty, time, cx);
            self.sessions.set(&id.to_be_bytes(), session);
        }
        Ok(())
    }
}

fn emit(session: u64, gateway: u32, difficulty: u64, time: EventTime, cx: &mut Context<'_>) {
    let target = DifficultyTarget { session, difficulty, gateway };
    cx.emit("out", Key::session(session), time, Body::DifficultyTarget(target));
}
