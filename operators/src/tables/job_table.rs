//! `job_table`: the jobs there are, from `mining.jobs`.

use std::any::Any;

use sluice_mining::JobTable;
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Offset, RecordKind};
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

/// The table.
#[derive(Default)]
pub struct JobTableState {
    /// The jobs.
    pub jobs: JobTable,
}

impl BroadcastTable for JobTableState {
    fn apply(&mut self, offset: Offset, record: &Envelope) -> Result<(), OperatorError> {
        let Some(Body::Job(job)) = &record.body else {
            return Err(OperatorError::Record(format!("offset {offset} of the table job_table's topic is no job")));
        };
        match self.jobs.apply(offset, record.event_time(), job.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(OperatorError::Record(error.to_string())),
        }
    }

    fn keep_from(&self) -> Offset {
        self.jobs.keep_from()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
