//! How the process is, part by part.

use std::time::{Duration, SystemTime};

use sluice_api::views::{Condition, Health, Part, Task};
use sluice_jobmanager::{NodeState, Status};
use sluice_topology::runtime::{TaskState, TaskStatus};

use super::View;
use crate::pool::checkpoints::age;

/// A job older than this many times the longest refresh that is usual means that no node gives templates.
const OLD_JOB: Duration = Duration::from_secs(300);
/// A task that is so far behind is degraded.
const BEHIND: Duration = Duration::from_secs(30);

/// The worst condition of all parts, and all parts.
pub(super) fn health(view: &View) -> Health {
    let tasks = view.tasks();
    let mut parts = vec![log(view)];
    parts.extend(tasks.iter().map(task));
    parts.extend(checkpoints(view));
    for (name, jobmanager) in view.services.jobmanagers() {
        parts.extend(job_parts(name, &jobmanager.status()));
    }
    let mut has_job = true;
    for (name, gateway) in view.services.gateways() {
        let status = gateway.status();
        has_job &= status.latest_job.is_some();
        let (condition, detail) = match (status.failure, status.latest_job) {
            (Some(failure), _) => (Condition::Failed, failure),
            (None, Some(job)) => {
                (Condition::Ok, format!("{} connections, job at height {}", status.connections, job.height))
            }
            (None, None) => (Condition::Degraded, "waits for the first job".to_owned()),
        };
        parts.push(Part { name: name.to_owned(), condition, detail });
    }
    if let Some(ledger) = &view.outside.ledger {
        let (condition, detail) = match ledger.totals() {
            Ok(totals) => (Condition::Ok, format!("{} accounts", totals.accounts)),
            Err(error) => (Condition::Degraded, format!("lags, loses nothing: {error}")),
        };
        parts.push(Part { name: "ledger database".into(), condition, detail });
    }
    parts.extend(series(view));
    parts.extend(caches(view));
    let condition = worst(parts.iter().map(|part| part.condition));
    let running = tasks.iter().all(|task| task.state == TaskState::Running);
    Health {
        condition,
        ready: running && has_job && condition != Condition::Failed,
        version: env!("CARGO_PKG_VERSION").into(),
        network: view.network.clone(),
        parts,
        tasks: tasks.iter().map(shown).collect(),
    }
}

/// Time series: a server that does not take them makes their task lag.
fn series(view: &View) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (name, store) in &view.outside.series.0 {
        let health = store.health();
        let (condition, detail) = match health.waiting {
            None => (Condition::Ok, format!("{} points written", health.written)),
            Some((since, cause)) => {
                (Condition::Degraded, format!("lags for {} s, loses nothing: {cause}", since.as_secs()))
            }
        };
        parts.push(Part { name: format!("time series of {name}"), condition, detail });
    }
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    parts
}

/// Caches: all goes on without them.
fn caches(view: &View) -> impl Iterator<Item = Part> {
    view.services.caches().map(|(name, cache)| {
        let health = cache.health();
        let (condition, detail) = match health.away {
            None => (Condition::Ok, format!("{} requests served", health.served)),
            Some((since, cause)) => {
                (Condition::Degraded, format!("away for {} s, and done without: {cause}", since.as_secs()))
            }
        };
        Part { name: format!("cache {name}"), condition, detail }
    })
}

fn worst(conditions: impl Iterator<Item = Condition>) -> Condition {
    conditions.fold(Condition::Ok, |worst, one| match (worst, one) {
        (Condition::Failed, _) | (_, Condition::Failed) => Condition::Failed,
        (Condition::Degraded, _) | (_, Condition::Degraded) => Condition::Degraded,
        _ => Condition::Ok,
    })
}

fn log(view: &View) -> Part {
    let metrics = view.log.metrics();
    let (condition, detail) = if metrics.stopped == 0 {
        (Condition::Ok, format!("{} records, {} bytes waiting", metrics.records, metrics.queued_bytes))
    } else {
        (
            Condition::Failed,
            "the writer has stopped after an I/O error: free the disk or repair it, then restart".into(),
        )
    };
    Part { name: "log".into(), condition, detail }
}

fn task(task: &TaskStatus) -> Part {
    let behind = task.inputs.iter().map(|input| input.lag_time).max().unwrap_or_default();
    let (condition, detail) = match (task.state, &task.error) {
        (TaskState::Running, _) if behind > BEHIND => (Condition::Degraded, format!("{} s behind", behind.as_secs())),
        (TaskState::Running, _) if task.inputs.iter().any(|input| input.end.is_none()) => {
            (Condition::Degraded, "waits: the log does not say how far it goes".to_owned())
        }
        (TaskState::Running, _) => (Condition::Ok, format!("{} records behind", lag(task))),
        (TaskState::Stopped, _) => (Condition::Degraded, "stopped".to_owned()),
        (TaskState::Failed, error) => (Condition::Failed, error.clone().unwrap_or_else(|| "failed".to_owned())),
    };
    Part { name: format!("task {}", task.name), condition, detail }
}

/// One part for all checkpoints: the names of the tasks whose newest one is too old.
fn checkpoints(view: &View) -> Option<Part> {
    let told: Vec<_> = view.checkpoints.told().collect();
    let oldest = told.iter().map(|(_, told)| told.newest.map_or(Duration::ZERO, age)).max()?;
    let late = told.iter().filter(|(_, told)| view.checkpoints.is_late(told)).map(|(task, told)| match &told.error {
        Some(error) => format!("{task} ({error})"),
        None => (*task).to_owned(),
    });
    let late: Vec<String> = late.collect();
    let (condition, detail) = if late.is_empty() {
        (Condition::Ok, format!("the oldest of {} tasks is {} s old", told.len(), oldest.as_secs()))
    } else {
        (Condition::Degraded, format!("too old, nothing is lost: {}", late.join(", ")))
    };
    Some(Part { name: "checkpoints".into(), condition, detail })
}

/// Records of its inputs that a task has not read.
fn lag(task: &TaskStatus) -> u64 {
    task.inputs.iter().fold(0, |sum, input| sum.saturating_add(input.lag))
}

fn shown(task: &TaskStatus) -> Task {
    let sum = |of: fn(&sluice_topology::runtime::InputStatus) -> u64| task.inputs.iter().map(of).sum();
    Task {
        name: task.name.clone(),
        lag_records: lag(task),
        processed: sum(|input| input.processed),
        repeated: sum(|input| input.dropped),
        emitted: task.appended,
    }
}

/// A jobmanager and its nodes: degraded while one of several fails, failed never (it goes on trying).
fn job_parts(name: &str, status: &Status) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::with_capacity(status.nodes.len() + 1);
    for node in &status.nodes {
        let (condition, detail) = match &node.state {
            NodeState::Connecting => (Condition::Degraded, "not asked yet".to_owned()),
            NodeState::Ok => {
                let by = if node.longpoll { ", tips by longpoll" } else { "" };
                (Condition::Ok, format!("height {}, {} tip notices{by}", node.height, node.notices))
            }
            NodeState::Stuck { since, why } => {
                let seconds = since.elapsed().unwrap_or_default().as_secs();
                (Condition::Degraded, format!("stands still for {seconds} s: {why}"))
            }
            NodeState::Failed { since, error } => {
                let seconds = since.elapsed().unwrap_or_default().as_secs();
                (Condition::Degraded, format!("fails for {seconds} s: {error}"))
            }
        };
        parts.push(Part { name: format!("node {}", node.name), condition, detail });
    }
    let age = status.last_job.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    let (condition, detail) = match age {
        None => (Condition::Degraded, "no template yet".to_owned()),
        Some(age) if age > OLD_JOB => (Condition::Degraded, format!("the last job is {} s old", age.as_secs())),
        Some(age) => (Condition::Ok, format!("height {}, the last job is {} s old", status.height, age.as_secs())),
    };
    parts.push(Part { name: name.to_owned(), condition, detail });
    parts
}
