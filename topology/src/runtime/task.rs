//! A task at work: read, process, append, flush, commit.

mod ownership;
mod publish;
mod refusal;
mod stop;
mod work;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use sluice_failpoints::Point;
use sluice_log::{Partition, Record, SharedLog};
use sluice_proto::{Offset, hash64};
use sluice_state::{Lineage, StateEnv, Tables};
use tokio::sync::watch;
use tokio::time::Instant;

use super::broadcast::{Broadcast, open_tables};
use super::error::TaskError;
use super::feed::Feed;
use super::follow::Outputs;
use super::lanes::Watermarks;
use super::letters::Letters;
use super::nodes::{self, Node};
use super::order::Order;
use super::outbox::Outbox;
use super::owners::{Owners, Tenure};
use super::pace::Pace;
use super::persist;
use super::picker::Picker;
use super::plan::{PortRef, StoredInput, TaskSpec};
use super::status::Shared;
use crate::operator::{Emission, Externals, InputPosition, Lookups, OperatorError, Source};
use stop::{drain_over, interrupted};
use work::Work;

/// Records that a task leaves uncommitted, at most: see [`super::RuntimeOptions::linger`].
const MAX_UNCOMMITTED: usize = 32_768;

/// What all tasks of a runtime share.
pub(crate) struct Surroundings {
    pub(crate) log: SharedLog,
    pub(crate) env: StateEnv,
    pub(crate) externals: Arc<Externals>,
    pub(crate) owners: Arc<Owners>,
    pub(crate) network: String,
    pub(crate) options: super::RuntimeOptions,
    pub(crate) outputs: Outputs,
}

/// A task with its state open.
pub(crate) struct Task {
    /// As people see it.
    name: String,
    /// Its name in claims and fences.
    identity: String,
    owners: Arc<Owners>,
    /// Its epoch; none until it has taken one, or while another process has it.
    tenure: Option<Tenure>,
    pub(super) tables: Tables,
    lookups: Lookups,
    broadcasts: Vec<Broadcast>,
    pub(super) inputs: Vec<TaskInput>,
    nodes: Vec<Node>,
    pub(super) outbox: Outbox,
    picker: Picker,
    /// Where what it makes may depend on the order of its inputs: that order.
    order: Option<Order>,
    table_timeout: Duration,
    linger: Duration,
    /// Records that it writes may wait for those of the batches that have come already: none of its inputs has priority.
    gathers: bool,
    /// When the oldest record that is processed and not committed was begun with, and how many there are.
    uncommitted: Option<(Instant, usize)>,
    pace: Pace,
    work: Vec<Work>,
    emissions: Vec<Emission>,
    /// Where records go that it cannot process, if they do not stop it.
    letters: Option<Letters>,
    shared: Arc<Shared>,
}

pub(super) struct TaskInput {
    pub(super) feed: Feed,
    slot: String,
    to: Vec<PortRef>,
    /// What operators are told: where the record at hand was read, or a redriven one was once read.
    source: Source,
    /// Offset of the record at hand in this input.
    at: Offset,
    moved: bool,
    processed: u64,
}

/// What a task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Work on what has come.
    Step,
    /// Become the owner of the outputs.
    Promote,
    /// Commit what has waited long enough.
    Finish,
    /// Come to an end.
    Stop,
}

impl Task {
    /// Opens the task and, unless it follows another owner, takes it over from whoever had it.
    pub(crate) async fn open(spec: &TaskSpec, around: &Surroundings) -> Result<Self, TaskError> {
        let mut task = Self::prepare(spec, around).await?;
        if matches!(around.outputs, Outputs::Own) {
            task.take_over().await?;
            task.tables.commit()?;
        }
        Ok(task)
    }

    /// Opens the task's state and brings everything to where it was committed. Nothing may be appended by it before
    /// [`Task::take_over`].
    async fn prepare(spec: &TaskSpec, around: &Surroundings) -> Result<Self, TaskError> {
        let lineage = Lineage { task: spec.name.clone(), log_uuid: around.log.uuid(), wiring: spec.wiring() };
        let state_tables = nodes::state_tables(spec);
        let mut tables = around.env.open(state_tables, &lineage)?;
        let all_inputs = spec.all_inputs();
        let mut inputs = Vec::with_capacity(all_inputs.len());
        for input in &all_inputs {
            inputs.push(TaskInput::open(input, around, &tables).await?);
        }
        let task_hash = hash64(&spec.name);
        let mut outbox = Outbox::of(spec, task_hash, around);
        let letters = refusal::open_letters(spec, &tables, &mut outbox)?;
        let nodes = nodes::build(spec, &around.network, &around.externals, &tables, &mut outbox)?;
        let (lookups, broadcasts) = open_tables(spec, around, &mut tables).await?;
        let order = spec.depends_on_order();
        let order = order.then(|| Order::load(&all_inputs, task_hash, &around.log, &tables)).transpose()?;
        let priority = all_inputs.iter().map(|input| input.priority).collect();
        let of_inputs = inputs.iter().map(|input| (&input.feed, None));
        let of_tables = broadcasts.iter().map(|broadcast| (&broadcast.feed, Some(broadcast.kind)));
        let feeds: Vec<_> = of_inputs.chain(of_tables).collect();
        let shared = Arc::new(Shared::new(spec, &feeds, &nodes, &tables));
        shared.owner.send_replace(!outbox.is_standby());
        Ok(Self {
            name: spec.shown.clone(),
            identity: spec.name.clone(),
            owners: Arc::clone(&around.owners),
            tenure: None,
            tables,
            lookups,
            broadcasts,
            inputs,
            nodes,
            outbox,
            picker: Picker::new(priority, around.options.starvation_bound),
            order,
            table_timeout: around.options.table_timeout,
            linger: around.options.linger,
            gathers: spec.inputs.iter().all(|input| !input.priority),
            uncommitted: None,
            pace: Pace::default(),
            work: Vec::new(),
            emissions: Vec::new(),
            letters,
            shared,
        })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn reader(&self) -> Arc<dyn sluice_state::Reader> {
        self.tables.reader()
    }

    /// Works until `stop` says so (or its sender is gone): then finishes the batch, commits it and makes the state
    /// durable. A batch that does not come to its end in time is given up: nothing of it is committed, and it
    /// is repeated at the next start like one that a crash had interrupted.
    pub(crate) async fn run(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        promoted: &mut watch::Receiver<bool>,
    ) -> Result<(), TaskError> {
        let (mut drained, owner) = (stop.clone(), self.shared.owner.subscribe());
        let mut going = true;
        while going {
            let due = self.uncommitted.map(|(since, _)| since + self.linger);
            let standby = self.outbox.is_standby();
            let next = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => Next::Stop,
                Ok(_) = promoted.wait_for(|promoted| *promoted), if standby => Next::Promote,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Next::Finish,
                ready = self.wait() => ready.map(|()| Next::Step)?,
            };
            going = next != Next::Stop;
            tokio::select! {
                biased;
                done = self.advance(next) => match done {
                    Err(TaskError::Flush { error: OperatorError::Interrupted(cause), operator }) => {
                        interrupted(&operator, cause, &mut drained).await?;
                        break;
                    }
                    done => done?,
                },
                () = drain_over(&mut drained, &owner) => {
                    tracing::warn!(task = %self.name, "stopped in the middle of a batch, which is repeated at the next start");
                    break;
                }
            }
        }
        sluice_failpoints::check(Point::SyncBefore)?;
        self.tables.sync()?;
        Ok(sluice_failpoints::check(Point::SyncAfter)?)
    }

    /// Returns once there is something to do. While turns are repeated, that is the input whose turn it is.
    pub(super) async fn wait(&mut self) -> Result<(), TaskError> {
        let turn = self.turn().await?.map(|(input, _)| input);
        poll_fn(|cx| {
            if let Some(tenure) = &mut self.tenure {
                let ended = tenure.poll_ended(cx).map_err(TaskError::from);
                if let Err(error) = ended.and_then(|by| self.judge(by)) {
                    return Poll::Ready(Err(error));
                }
            }
            let mut ready = false;
            let inputs = self.inputs.iter_mut().map(|input| &mut input.feed);
            let inputs = inputs.enumerate().map(|(input, feed)| (feed, turn.is_none_or(|turn| turn == input)));
            let tables = self.broadcasts.iter_mut().map(|broadcast| (&mut broadcast.feed, true));
            for (feed, counts) in tables.chain(inputs) {
                if let Err(error) = feed.poll_fetch(cx) {
                    return Poll::Ready(Err(error.into()));
                }
                ready |= counts && feed.is_ready();
            }
            if ready { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Does what is next. Before a stop, what has been begun is finished.
    async fn advance(&mut self, next: Next) -> Result<(), TaskError> {
        match next {
            Next::Step => self.step().await,
            Next::Promote => self.promote().await,
            Next::Finish | Next::Stop if self.uncommitted.is_some() => self.finish().await,
            Next::Finish | Next::Stop => Ok(()),
        }
    }

    /// Works on one batch of one input, if any is there, else applies what has come for the tables: while there are
    /// records, these say how far the tables must be. A batch that writes nothing to any topic is seen by nobody: it
    /// may be committed together with the next ones. One that writes may, too, while more has come already, unless somebody is
    /// in a hurry for it: under load a session's row is then written once for many batches.
    async fn step(&mut self) -> Result<(), TaskError> {
        let Some((input, records)) = self.next_batch().await? else {
            return if self.apply_tables()? { self.finish().await } else { Ok(()) };
        };
        let (begun, length) = (Instant::now(), records.len());
        let (since, before) = self.uncommitted.unwrap_or((begun, 0));
        let count = before + length;
        self.process(input, records).await?;
        self.uncommitted = Some((since, count));
        // Where the order of its inputs counts, each batch is a turn of its own (see `order`).
        let more = self.gathers && self.inputs.iter().any(|input| input.feed.is_ready());
        let may_wait = self.order.is_none() && (more || self.outbox.is_empty()) && count < MAX_UNCOMMITTED;
        if !may_wait || since.elapsed() >= self.linger {
            self.finish().await?;
        }
        self.pace.count(length, begun.elapsed(), &mut self.tables);
        Ok(())
    }

    /// Applies what has come for the tables; tells whether there was anything.
    pub(super) fn apply_tables(&mut self) -> Result<bool, TaskError> {
        let mut applied = false;
        for broadcast in self.broadcasts.iter_mut().filter(|broadcast| broadcast.feed.is_ready()) {
            broadcast.apply_ready(None, &mut self.lookups, &mut self.tables)?;
            applied = true;
        }
        Ok(applied)
    }

    /// Where the order of inputs counts and is written down: whose turn was next, and up to where.
    pub(super) async fn turn(&mut self) -> Result<Option<(usize, Offset)>, TaskError> {
        let inputs = &self.inputs;
        match &mut self.order {
            Some(order) => order.next(|input| inputs[input].feed.next).await,
            None => Ok(None),
        }
    }

    /// Goes by the order of inputs that is written down, without taking the task over.
    pub(super) async fn repeat_order(&mut self) -> Result<(), TaskError> {
        match &mut self.order {
            Some(order) => order.repeat().await,
            None => Ok(()),
        }
    }

    /// The next batch: one input's, so that what a task with several has done can be told by an offset.
    pub(super) async fn next_batch(&mut self) -> Result<Option<(usize, Vec<Record>)>, TaskError> {
        if let Some((input, until)) = self.turn().await? {
            let records = self.inputs[input].feed.take(Some(until));
            return Ok((!records.is_empty()).then_some((input, records)));
        }
        let ready: Vec<bool> = self.inputs.iter().map(|input| input.feed.is_ready()).collect();
        let Some(input) = self.picker.pick(&ready) else { return Ok(None) };
        let records = self.inputs[input].feed.take(None);
        if let (Some(order), Some(last)) = (&mut self.order, records.last()) {
            order.take(input, last.offset.next());
        }
        Ok(Some((input, records)))
    }

    /// What has been processed, from its outputs to its commit. In between it looks whether the task is still its own:
    /// what it commits must not be behind the fence of another owner (see [`super::owners`]).
    pub(super) async fn finish(&mut self) -> Result<(), TaskError> {
        sluice_failpoints::check(Point::OutputsBefore)?;
        while !self.append().await? {
            self.promote().await?;
        }
        sluice_failpoints::check(Point::OutputsAfter)?;
        self.still_owned().await?;
        self.flush()?;
        self.commit()
    }

    /// Makes the outputs of the batch durable behind the turn that they were made in, or finds them in the log. `false`: the task is to become their owner.
    pub(super) async fn append(&mut self) -> Result<bool, TaskError> {
        if let Some(order) = &mut self.order {
            order.append().await?;
        }
        let ends: Vec<Offset> = self.inputs.iter().map(|input| input.feed.next).collect();
        self.outbox.append(&ends).await
    }

    /// The end of a comparison: see [`Outbox::compare_rest`].
    pub(super) async fn compare_rest(&mut self) -> Result<(), TaskError> {
        let ends: Vec<Offset> = self.inputs.iter().map(|input| input.feed.next).collect();
        self.outbox.compare_rest(&ends).await
    }

    /// Becomes the owner of the outputs: from here on, what is not in the log of them is appended.
    pub(super) async fn promote(&mut self) -> Result<(), TaskError> {
        let inputs = self.inputs.iter().map(|input| &input.feed);
        for feed in inputs.chain(self.broadcasts.iter().map(|broadcast| &broadcast.feed)) {
            feed.check_position().await?;
        }
        self.take_over().await?;
        tracing::info!(task = %self.name, compared = self.outbox.compared().same, "owns its outputs now");
        self.shared.owner.send_replace(true);
        Ok(())
    }

    /// Lets operators with effects outside the state make them durable, together with the positions.
    pub(super) fn flush(&mut self) -> Result<(), TaskError> {
        sluice_failpoints::check(Point::FlushBefore)?;
        let positions: Vec<InputPosition> = self.inputs.iter().map(TaskInput::position).collect();
        for node in &mut self.nodes {
            let flushed = node.operator.flush(&positions);
            flushed.map_err(|error| TaskError::Flush { operator: node.name.clone(), error })?;
        }
        Ok(sluice_failpoints::check(Point::FlushAfter)?)
    }

    /// Commits rows, positions, marks, lane ends and table records in one atomic step, and publishes the counters.
    pub(super) fn commit(&mut self) -> Result<(), TaskError> {
        for node in &mut self.nodes {
            let settled = node.settle(&mut self.tables);
            settled.map_err(|error| TaskError::Settle { operator: node.name.clone(), error })?;
        }
        self.uncommitted = None;
        for input in &mut self.inputs {
            if std::mem::take(&mut input.moved) {
                persist::save_feed(&mut self.tables, &input.slot, &mut input.feed);
            }
        }
        self.outbox.save(&mut self.tables);
        if let Some(order) = &self.order {
            order.save(&mut self.tables);
        }
        sluice_failpoints::check(Point::CommitBefore)?;
        self.tables.commit()?;
        sluice_failpoints::check(Point::CommitAfter)?;
        self.publish();
        Ok(())
    }
}

impl TaskInput {
    async fn open(spec: &StoredInput, around: &Surroundings, tables: &Tables) -> Result<Self, TaskError> {
        let partition = Partition::new(Arc::clone(&spec.topic), spec.partition);
        let slot = persist::input_slot(&partition);
        let mut watermarks = Watermarks::from_the_start();
        persist::load_watermarks(tables, &slot, &mut watermarks)?;
        let position = persist::position(tables, &slot)?.unwrap_or(Offset::ZERO);
        let feed = Feed::new(around.log.clone(), partition, position, watermarks);
        feed.check_position().await?;
        let source = Source {
            topic: Arc::clone(&spec.topic),
            partition: spec.partition,
            partitions: spec.partitions,
            generation: spec.generation,
            history: false,
            offset: Offset::ZERO,
        };
        Ok(Self { feed, slot, to: spec.to.clone(), source, at: Offset::ZERO, moved: false, processed: 0 })
    }

    fn position(&self) -> InputPosition {
        let Source { topic, partition, .. } = &self.source;
        InputPosition { topic: Arc::clone(topic), partition: *partition, next: self.feed.next }
    }
}
