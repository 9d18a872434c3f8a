//! `job_table`: the jobs there are, from `mining.jobs`.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;

use sluice_mining::JobTable;
use sluice_proto::v1::{Envelope, Job};
use sluice_proto::{Body, EventTime, Offset, RecordKind};
use sluice_topology::{BroadcastTable, BuildContext, OperatorError, SettingSpec, SettingType, TableKind};

/// What the topology knows of it.
pub static KIND: TableKind = TableKind {
    name: "job_table",
    summary: "jobs by id, as of an offset of their topic",
    accepts: &[RecordKind::Job],
    settings: &[SettingSpec {
        name: "keep",
        ty: SettingType::Duration,
        default: Some("10m"),
        doc: "for how long a job can be cited after the next one; the jobmanager's `keep` must not exceed it",
    }],
    build: |_: &BuildContext<'_>| Ok(Box::new(JobTableState::default())),
};

/// The table. Jobs wait until a record asks for them by its job clock: a job that is applied makes older ones be
/// forgotten, so how far the topic happens to have been read must not show (invariant S2).
#[derive(Default)]
pub struct JobTableState(RefCell<Jobs>);

#[derive(Default)]
struct Jobs {
    table: JobTable,
    waiting: VecDeque<(Offset, EventTime, Job)>,
}

impl JobTableState {
    /// Gives `ask` the jobs as far as the job clock of the record at hand says, or as an earlier record's said.
    ///
    /// # Errors
    /// If a job on the way there cannot be used.
    pub fn as_of<R>(&self, clock: Offset, ask: impl FnOnce(&JobTable) -> R) -> Result<R, OperatorError> {
        let Jobs { table, waiting } = &mut *self.0.borrow_mut();
        while let Some((offset, issued, job)) = waiting.pop_front_if(|(offset, ..)| *offset <= clock) {
            let applied = table.apply(offset, issued, job);
            applied.map_err(|error| OperatorError::Record(format!("offset {offset} of job_table's topic: {error}")))?;
        }
        Ok(ask(table))
    }
}

impl BroadcastTable for JobTableState {
    fn apply(&mut self, offset: Offset, record: &Envelope) -> Result<(), OperatorError> {
        let Some(Body::Job(job)) = &record.body else {
            return Err(OperatorError::Record(format!("offset {offset} of the table job_table's topic is no job")));
        };
        self.0.get_mut().waiting.push_back((offset, record.event_time(), job.clone()));
        Ok(())
    }

    fn keep_from(&self) -> Offset {
        let jobs = self.0.borrow();
        match jobs.waiting.front() {
            Some((offset, ..)) if jobs.table.latest().is_none() => *offset,
            _ => jobs.table.keep_from(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
