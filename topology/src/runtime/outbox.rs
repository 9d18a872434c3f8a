//! What a batch writes: encoded with its coordinates, appended by partition, awaited until durable.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use sluice_log::{Partition, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Epoch, EventTime, Head, Offset, decode, encode, encode_into, hash32, partition_of};
use sluice_state::{StateError, Tables};

use super::error::TaskError;
use super::follow::{AtEnd, Compared, Followed, Follower, Made, Recorded, Rule, damaged};
use super::lanes::{Lane, LaneTail, Mark};
use super::owners::{OwnerError, Owners};
use super::persist;
use super::plan::{StoredInput, TaskSpec};
use super::task::Surroundings;
use crate::operator::Key;

/// Records of a batch share memory, this many bytes at a time. (Where the first piece has none, each record gets its own.)
const PIECE: usize = 64 << 10;

/// Which lanes a task writes on.
pub(crate) enum Lanes {
    /// One for each input: a record has the position of what it was made from.
    Inputs(Vec<Lane>),
    /// One for all of them, that of the source with this task hash: records are counted, anew in each epoch.
    Source(u64),
    /// As [`Lanes::Inputs`], but what is made is forgotten.
    Discarded(Vec<Lane>),
}

/// Stored destinations of a task.
pub(crate) struct Outbox {
    log: SharedLog,
    /// 0 until [`Outbox::begin`].
    epoch: Epoch,
    lanes: Lanes,
    topics: Vec<Topic>,
    buffer: BytesMut,
    /// Finds out what of it is in the log already; `None` for a source.
    follower: Option<Follower>,
    /// Records appended so far.
    pub(crate) appended: u64,
}

struct Topic {
    name: Arc<str>,
    outlets: Vec<Outlet>,
}

/// One destination partition.
struct Outlet {
    partition: Partition,
    slot: String,
    /// End of each lane, as the batch has moved it so far.
    tails: Vec<LaneTail>,
    moved: Vec<bool>,
    batch: Vec<Bytes>,
    past: Past,
    /// Of the batch: what may be in the log already.
    made: VecDeque<Made>,
}

/// What is in the log of what a task makes again.
enum Past {
    /// Not looked for yet: it would stand behind these ends of lanes.
    Behind(Vec<Option<Mark>>),
    /// It is read along.
    Read(Box<Recorded>),
    /// Nothing: the task appends.
    Over,
}

impl Past {
    /// The last record of the lane of `input` that is known to be in the log.
    fn last(&self, input: usize) -> Option<Mark> {
        match self {
            Self::Behind(tails) => tails.get(input).copied().flatten(),
            Self::Read(recorded) => recorded.last(input),
            Self::Over => None,
        }
    }
}

impl Outbox {
    fn new(log: SharedLog, lanes: Lanes, follower: Option<Follower>) -> Self {
        let (epoch, buffer) = (Epoch::default(), BytesMut::with_capacity(PIECE));
        Self { log, epoch, lanes, topics: Vec::new(), buffer, follower, appended: 0 }
    }

    /// The outbox of a task with this hash on its lanes.
    pub(crate) fn of(spec: &TaskSpec, task: u64, around: &Surroundings) -> Self {
        if spec.is_world() {
            return Self::new(around.log.clone(), Lanes::Source(task), None);
        }
        let lane = |input: &StoredInput| Lane::input(task, hash32(&input.topic), input.partition);
        let partition = |input: &StoredInput| Partition::new(Arc::clone(&input.topic), input.partition);
        let inputs = spec.all_inputs();
        let followed = inputs.iter().map(|input| (partition(input), lane(input))).collect();
        let follower = around.outputs.follower(&around.log, &spec.name, followed);
        let lanes = inputs.iter().map(lane).collect();
        let lanes = if follower.is_some() { Lanes::Inputs(lanes) } else { Lanes::Discarded(lanes) };
        Self::new(around.log.clone(), lanes, follower)
    }

    /// The task waits for the owner of its outputs to write them.
    pub(crate) fn is_standby(&self) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.at_end == AtEnd::Wait)
    }

    /// Its records are counted anew in each epoch: they depend on answers from outside.
    pub(crate) fn is_source(&self) -> bool {
        matches!(self.lanes, Lanes::Source(_))
    }

    /// The partitions it writes to.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let outlets = self.topics.iter().flat_map(|topic| &topic.outlets);
        outlets.map(|outlet| outlet.partition.clone()).collect()
    }

    /// Begins an epoch of the task `name`, which it has claimed: appends its fence to every partition, durable before
    /// this returns. The task owns its outputs from here on; what is in the log of them by now stays compared.
    pub(crate) async fn begin(&mut self, name: &str, epoch: Epoch, owners: &Owners) -> Result<(), OwnerError> {
        owners.fence(name, epoch, self.partitions()).await?;
        self.epoch = epoch;
        if let Some(follower) = &mut self.follower {
            (follower.at_end, follower.rule) = (AtEnd::Append, Rule::Lenient);
            follower.promoted = None;
        }
        Ok(())
    }

    /// What was compared with the log so far.
    pub(crate) fn compared(&self) -> Compared {
        self.follower.as_ref().map(|follower| follower.compared).unwrap_or_default()
    }

    /// Index of the destination `topic`, which has this many partitions; new ones take the committed ends of lanes.
    pub(crate) fn topic(&mut self, tables: &Tables, topic: &Arc<str>, partitions: u32) -> Result<usize, StateError> {
        if let Some(known) = self.topics.iter().position(|known| known.name == *topic) {
            return Ok(known);
        }
        let mut outlets = Vec::new();
        for number in 0..partitions {
            let partition = Partition::new(Arc::clone(topic), number);
            let slot = partition.to_string();
            let ends = match &self.lanes {
                Lanes::Inputs(lanes) | Lanes::Discarded(lanes) => {
                    let ends = lanes.iter().map(|lane| persist::tail(tables, &slot, *lane));
                    ends.collect::<Result<Vec<_>, _>>()?
                }
                // A new epoch begins with nothing before it.
                Lanes::Source(_) => vec![None],
            };
            let tails = ends.iter().map(|end| LaneTail::after(end.map(|end| end.position))).collect();
            let moved = vec![false; ends.len()];
            let past = if self.follower.is_some() { Past::Behind(ends) } else { Past::Over };
            outlets.push(Outlet { partition, slot, tails, moved, batch: Vec::new(), past, made: VecDeque::new() });
        }
        self.topics.push(Topic { name: Arc::clone(topic), outlets });
        Ok(self.topics.len() - 1)
    }

    /// Adds a record to the batch, made from the record of `input` at `source`.
    ///
    /// # Errors
    /// If the key names a partition that the topic does not have.
    pub(crate) fn store(
        &mut self,
        topic: usize,
        (input, source): (usize, Offset),
        key: &Key,
        event_time: EventTime,
        body: Arc<Body>,
    ) -> Result<(), String> {
        let epoch = self.epoch;
        let topic = &mut self.topics[topic];
        let count = topic.outlets.len() as u32;
        let mut envelope = Envelope::new(event_time, Default::default(), Arc::unwrap_or_clone(body));
        let by_hash = |key: &[u8]| {
            let number = partition_of(key, count);
            number..number + 1
        };
        let chosen = match key {
            Key::Bytes(key) => by_hash(key),
            Key::Session(id) => by_hash(&id.to_be_bytes()),
            Key::Partition(number) if *number < count => *number..*number + 1,
            Key::Partition(number) => {
                return Err(format!("record for partition {number} of {}, which has {count}", topic.name));
            }
            Key::Every => 0..count,
        };
        for outlet in &mut topic.outlets[chosen.start as usize..chosen.end as usize] {
            let from = match &self.lanes {
                Lanes::Inputs(lanes) => {
                    outlet.moved[input] = true;
                    // What is in the log already is most likely of the same epoch as what stands before it.
                    let epoch = outlet.past.last(input).map_or(epoch, |mark| mark.epoch);
                    outlet.tails[input].next(lanes[input], epoch, source.get())
                }
                Lanes::Source(task) => outlet.tails[0].next_of_source(Lane::source(*task, epoch), epoch),
                Lanes::Discarded(lanes) => {
                    outlet.moved[input] = true;
                    outlet.tails[input].next(lanes[input], epoch, source.get());
                    continue;
                }
            };
            let at = from.position();
            envelope.from = Some(from);
            encode_into(&envelope, &mut self.buffer);
            let raw = self.buffer.split().freeze();
            match outlet.past {
                Past::Over => outlet.batch.push(raw),
                _ => outlet.made.push_back(Made { input, at, raw }),
            }
        }
        Ok(())
    }

    /// Nothing waits to be appended.
    pub(crate) fn is_empty(&self) -> bool {
        let mut outlets = self.topics.iter().flat_map(|topic| &topic.outlets);
        outlets.all(|outlet| outlet.batch.is_empty() && outlet.made.is_empty())
    }

    /// Finds in the log what is there of the batch, and appends the rest; returns once all of it is durable. `ends` are
    /// the offsets up to which the inputs were processed. `false`: the task is to become the owner, then to call again.
    pub(crate) async fn append(&mut self, ends: &[Offset]) -> Result<bool, TaskError> {
        if let Some(follower) = &mut self.follower {
            for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
                if !outlet.follow(follower, self.epoch, ends).await? {
                    return Ok(false);
                }
            }
        }
        self.append_batch().await?;
        Ok(true)
    }

    /// The end of a comparison: notices what is recorded of the inputs up to `ends` and was not made again.
    pub(crate) async fn compare_rest(&mut self, ends: &[Offset]) -> Result<(), TaskError> {
        let Some(follower) = &mut self.follower else { return Ok(()) };
        for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
            if let Some(recorded) = outlet.recorded(follower).await? {
                follower.read_behind(recorded, ends).await?;
            }
        }
        Ok(())
    }

    async fn append_batch(&mut self) -> Result<(), TaskError> {
        let mut appends = Vec::new();
        for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
            if outlet.batch.is_empty() {
                continue;
            }
            self.appended += outlet.batch.len() as u64;
            let append = self.log.append(&outlet.partition, std::mem::take(&mut outlet.batch));
            let partition = &outlet.partition;
            appends.push(async move {
                append.await.map_err(|error| TaskError::Append { partition: partition.clone(), error })
            });
        }
        try_join_all(appends).await.map(drop)
    }

    /// Puts the ends of lanes that moved into the next commit; a source's ends with its epoch.
    pub(crate) fn save(&mut self, tables: &mut Tables) {
        let (Lanes::Inputs(lanes) | Lanes::Discarded(lanes)) = &self.lanes else { return };
        for outlet in self.topics.iter_mut().flat_map(|topic| &mut topic.outlets) {
            for (input, moved) in outlet.moved.iter_mut().enumerate() {
                let end = match &outlet.past {
                    Past::Over => outlet.tails[input].last().map(|position| Mark { epoch: self.epoch, position }),
                    past => past.last(input),
                };
                if std::mem::take(moved)
                    && let Some(end) = end
                {
                    persist::save_tail(tables, &outlet.slot, lanes[input], end);
                }
            }
        }
    }
}

impl Outlet {
    /// The recorded outputs, found first if they were not yet; `None` once they are over.
    async fn recorded(&mut self, follower: &Follower) -> Result<Option<&mut Recorded>, TaskError> {
        if let Past::Behind(tails) = &self.past {
            self.past = Past::Read(Box::new(follower.open(&self.partition, tails).await?));
        }
        Ok(match &mut self.past {
            Past::Read(recorded) => Some(recorded),
            _ => None,
        })
    }

    /// Passes what is recorded of the batch, and puts the rest where it will be appended. `false`: the task is to become
    /// the owner first.
    async fn follow(&mut self, follower: &mut Follower, epoch: Epoch, ends: &[Offset]) -> Result<bool, TaskError> {
        if self.made.is_empty() {
            return Ok(true);
        }
        let (mut made, lanes) = (std::mem::take(&mut self.made), self.tails.len());
        let Some(recorded) = self.recorded(follower).await? else { return Ok(true) };
        let followed = follower.follow(recorded, &mut made, ends).await?;
        match followed {
            Followed::All => {}
            Followed::Promoted => self.made = made,
            Followed::Rest => {
                let batch = recorded.go_on(made, epoch)?;
                if recorded.is_empty() {
                    // What comes next stands behind what is recorded, even if that is not what was made.
                    let last = |input| LaneTail::after(recorded.last(input).map(|mark| mark.position));
                    let tails = (0..lanes).map(last).collect();
                    (self.tails, self.past) = (tails, Past::Over);
                }
                self.batch = batch;
            }
        }
        Ok(followed != Followed::Promoted)
    }
}

impl Recorded {
    /// The bytes of what is not recorded, as it follows what is: in this epoch, behind the last recorded one.
    fn go_on(&mut self, made: VecDeque<Made>, epoch: Epoch) -> Result<Vec<Bytes>, TaskError> {
        let mut batch = Vec::with_capacity(made.len());
        for Made { input, at, raw } in made {
            let last = self.last(input).map(|mark| mark.position);
            let wrong = |error| damaged(self.partition(), Offset::ZERO, error);
            let from = Head::read(&raw).map_err(wrong)?.from.unwrap_or_default();
            let fits = from.epoch == epoch.get() && from.predecessor() == last;
            batch.push(if fits {
                raw
            } else {
                let mut envelope = decode(raw).map_err(wrong)?;
                let last = last.unwrap_or_default();
                let (prev_offset, prev_ordinal) = (last.offset, last.ordinal);
                envelope.from = envelope.from.map(|from| sluice_proto::v1::Coordinates {
                    epoch: epoch.get(),
                    prev_offset,
                    prev_ordinal,
                    ..from
                });
                encode(&envelope)
            });
            self.appended(input, Mark { epoch, position: at });
        }
        Ok(batch)
    }
}
