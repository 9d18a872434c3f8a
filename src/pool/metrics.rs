//! Metrics for Prometheus, gathered when they are asked for. All names stand in [`Metric`].

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sluice_gateway::GatewayStatus;
use sluice_jobmanager::{Latency, NodeState, Status, TIP_BOUNDS_US};
use sluice_log::{LATENCY_BOUNDS_US, LogMetrics};
use sluice_topology::runtime::{TaskState, TaskStatus};

use super::checkpoints::{Told, age};
use super::view::{View, reason_name};

/// Every metric there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Metric {
    Info,
    TaskRunning,
    TaskBatches,
    TaskAppended,
    DeadLetters,
    InputLagRecords,
    InputLagSeconds,
    InputRecords,
    InputRepeated,
    CheckpointAge,
    CheckpointSeconds,
    CheckpointBytes,
    Checkpoints,
    CheckpointsFailed,
    OperatorRecords,
    OperatorEmitted,
    OperatorBusySeconds,
    LogRecords,
    LogBytes,
    LogSyncs,
    LogCommitSeconds,
    LogQueuedBytes,
    LogQueueFull,
    LogReads,
    LogTrimmed,
    LogStopped,
    GatewayConnections,
    GatewayAuthorized,
    GatewayAccepted,
    GatewayRefused,
    GatewayShares,
    GatewayCandidates,
    GatewaySubmitsRefused,
    GatewayUsersRefused,
    GatewayBadLines,
    GatewayEvicted,
    GatewayTimedOut,
    GatewayHeadersRefused,
    GatewayTlsFailed,
    GatewayListener,
    GatewayLimited,
    GatewayThrottled,
    GatewayBanned,
    GatewayBans,
    GatewayBansLost,
    GatewayNotifies,
    GatewayTargets,
    GatewayInFlight,
    GatewayNotifySeconds,
    GatewayFailed,
    JobHeight,
    Jobs,
    Tips,
    JobTime,
    NodeUp,
    NodeNotices,
    FeeJobs,
    NodeChosen,
    NodeHeight,
    NodeStuck,
    NodeLost,
    NodeDisconnected,
    NodeLongpoll,
    SeriesPoints,
    SeriesFailures,
    SeriesWaiting,
    CacheServed,
    CacheLost,
    CacheUp,
}

impl Metric {
    /// Name without the prefix and the suffix that the format asks for, help, type.
    const fn describe(self) -> (&'static str, &'static str, MetricType) {
        use MetricType::{Counter, Gauge};
        match self {
            Self::Info => ("build", "Version of the program and chain of the pool; always 1", Gauge),
            Self::TaskRunning => ("task_running", "1 while the task runs", Gauge),
            Self::TaskBatches => ("task_batches", "Batches committed", Counter),
            Self::TaskAppended => ("task_appended", "Records appended to the log", Counter),
            Self::DeadLetters => ("dead_letters", "Records put with the dead letters", Counter),
            Self::InputLagRecords => ("input_lag_records", "Records of an input not read yet", Gauge),
            Self::InputLagSeconds => ("input_lag_seconds", "How far behind now the last record read was", Gauge),
            Self::InputRecords => ("input_records", "Records read", Counter),
            Self::InputRepeated => ("input_repeated", "Repeated records dropped by watermark", Counter),
            Self::CheckpointAge => ("checkpoint_age_seconds", "Age of a task's newest checkpoint", Gauge),
            Self::CheckpointSeconds => ("checkpoint_seconds", "Time that a task's last checkpoint took", Gauge),
            Self::CheckpointBytes => ("checkpoint_bytes", "Bytes of a task's newest checkpoint", Gauge),
            Self::Checkpoints => ("checkpoints", "Checkpoints made", Counter),
            Self::CheckpointsFailed => ("checkpoints_failed", "Checkpoints that could not be made", Counter),
            Self::OperatorRecords => ("operator_records", "Records an operator was given", Counter),
            Self::OperatorEmitted => ("operator_emitted", "Records an operator sent", Counter),
            Self::OperatorBusySeconds => ("operator_busy_seconds", "Time an operator has used, by sample", Counter),
            Self::LogRecords => ("log_records", "Records made durable", Counter),
            Self::LogBytes => ("log_bytes", "Bytes of records made durable", Counter),
            Self::LogSyncs => ("log_syncs", "Group commits", Counter),
            Self::LogCommitSeconds => ("log_commit_seconds", "Time the group commits took", Counter),
            Self::LogQueuedBytes => ("log_queued_bytes", "Bytes that wait for their commit", Gauge),
            Self::LogQueueFull => ("log_queue_full", "Appends called while too many bytes were waiting", Counter),
            Self::LogReads => ("log_reads", "Reads, answered from memory or disk", Counter),
            Self::LogTrimmed => ("log_trimmed", "Records removed by retention", Counter),
            Self::LogStopped => ("log_stopped", "1 once an error has stopped the writer", Gauge),
            Self::GatewayConnections => ("gateway_connections", "Open connections", Gauge),
            Self::GatewayAuthorized => ("gateway_authorized", "Connections with an authorized worker", Gauge),
            Self::GatewayAccepted => ("gateway_connections_accepted", "Connections accepted", Counter),
            Self::GatewayRefused => ("gateway_connections_refused", "Connections refused", Counter),
            Self::GatewayShares => ("gateway_shares", "Shares answered, by reason", Counter),
            Self::GatewayCandidates => ("gateway_candidates", "Block candidates sent to the block lane", Counter),
            Self::GatewayBadLines => ("gateway_bad_lines", "Lines that could not be read, by cause", Counter),
            Self::GatewayEvicted => ("gateway_evicted", "Miners disconnected because they did not read", Counter),
            Self::GatewayTimedOut => ("gateway_timed_out", "Connections that took too long, by limit", Counter),
            Self::GatewayHeadersRefused => {
                ("gateway_headers_refused", "Load balancers' connections without a PROXY header", Counter)
            }
            Self::GatewayTlsFailed => ("gateway_tls_failed", "Connections whose TLS failed", Counter),
            Self::GatewayListener => ("gateway_listener_connections", "Open connections, by listener", Gauge),
            Self::GatewayLimited => ("gateway_limited", "Connections refused by a limit of their address", Counter),
            Self::GatewayThrottled => {
                ("gateway_throttled", "Times that a connection was not read from, by the limit of messages", Counter)
            }
            Self::GatewayBanned => ("gateway_banned", "Addresses that are banned", Gauge),
            Self::GatewayBans => ("gateway_bans", "Addresses banned", Counter),
            Self::GatewayBansLost => ("gateway_bans_lost", "Bans not kept, since there were too many", Counter),
            Self::GatewaySubmitsRefused => {
                ("gateway_submits_refused", "Submits malformed, unauthorized or not subscribed: not written", Counter)
            }
            Self::GatewayUsersRefused => ("gateway_users_refused", "User names refused", Counter),
            Self::GatewayNotifies => ("gateway_notifies", "Jobs sent, one for each session", Counter),
            Self::GatewayTargets => ("gateway_targets", "Decisions of vardiff taken over", Counter),
            Self::GatewayInFlight => ("gateway_shares_in_flight", "Shares that wait for their append", Gauge),
            Self::GatewayNotifySeconds => {
                ("gateway_last_notify_seconds", "From reading the newest job to its last session", Gauge)
            }
            Self::GatewayFailed => ("gateway_failed", "1 once the gateway has failed", Gauge),
            Self::JobHeight => ("job_height", "Height being mined", Gauge),
            Self::Jobs => ("jobs", "Jobs made", Counter),
            Self::Tips => ("tips", "New tips", Counter),
            Self::JobTime => ("job_timestamp_seconds", "When the last job was made", Gauge),
            Self::NodeUp => ("node_up", "1 while the node's last answer was good", Gauge),
            Self::NodeNotices => ("node_notices", "Tip notices of the node", Counter),
            Self::FeeJobs => ("fee_jobs", "Jobs made before their time since the fees had grown", Counter),
            Self::NodeChosen => ("node_chosen", "1 for the node that templates come from", Gauge),
            Self::NodeHeight => ("node_height", "Height of the node's tip", Gauge),
            Self::NodeStuck => ("node_stuck", "How often the node was found to stand still", Counter),
            Self::NodeLost => ("node_notices_lost", "ZMQ messages of the node that did not arrive", Counter),
            Self::NodeDisconnected => ("node_disconnected", "Blocks that left the node's best chain", Counter),
            Self::NodeLongpoll => ("node_longpoll", "1 while tips are waited for by longpoll", Gauge),
            Self::SeriesPoints => ("series_points", "Points that the server of time series has taken", Counter),
            Self::SeriesFailures => ("series_failures", "Writes of time series that failed and were repeated", Counter),
            Self::SeriesWaiting => {
                ("series_waiting_seconds", "For how long points have waited for their server", Gauge)
            }
            Self::CacheServed => {
                ("cache_served", "Requests that a cache has answered, and values it was given", Counter)
            }
            Self::CacheLost => ("cache_lost", "Requests and values that a cache did not take", Counter),
            Self::CacheUp => ("cache_up", "1 while a cache answers", Gauge),
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// A page of samples.
#[derive(Debug, Default)]
struct Page {
    samples: BTreeMap<Metric, Vec<(Labels, f64)>>,
    log: LogMetrics,
    /// By jobmanager.
    tips: Vec<(String, Latency)>,
}

impl Page {
    fn add<const N: usize>(&mut self, metric: Metric, labels: [(&'static str, &str); N], value: f64) {
        let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
        self.samples.entry(metric).or_default().push((labels, value));
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (metric, samples) in &self.samples {
            let (name, help, metric_type) = metric.describe();
            let mut family = encoder.encode_descriptor(name, help, None, metric_type)?;
            for (labels, value) in samples {
                let mut sample = family.encode_family(labels)?;
                match metric_type {
                    MetricType::Counter => sample.encode_counter::<NoLabelSet, f64, f64>(value, None)?,
                    _ => sample.encode_gauge(value)?,
                }
            }
        }
        let help = "From the notice of a new tip until its first job is durable";
        let mut family = encoder.encode_descriptor("tip_job_seconds", help, None, MetricType::Histogram)?;
        for (name, latency) in &self.tips {
            let bounds = TIP_BOUNDS_US.iter().map(|micros| *micros as f64 / 1e6).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(latency.buckets).collect();
            let labels = [("service", name.as_str())];
            let mut sample = family.encode_family(&labels)?;
            sample.encode_histogram::<NoLabelSet>(latency.sum.as_secs_f64(), latency.count(), &buckets, None)?;
        }
        let help = "From the call of an append to durable";
        let mut latency = encoder.encode_descriptor("log_append_seconds", help, None, MetricType::Histogram)?;
        let bounds = LATENCY_BOUNDS_US.iter().map(|micros| *micros as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.log.latency).collect();
        let count = self.log.latency.iter().sum();
        latency.encode_histogram::<NoLabelSet>(self.log.latency_sum_ns as f64 / 1e9, count, &buckets, None)
    }
}

/// All metrics of the pool in the text format of OpenMetrics.
pub(super) fn render(view: &View) -> String {
    let mut page = Page { log: view.log.metrics(), ..Page::default() };
    page.add(Metric::Info, [("version", env!("CARGO_PKG_VERSION")), ("network", &view.network)], 1.0);
    for task in view.tasks() {
        add_task(&mut page, &task);
    }
    add_stores(&mut page, view);
    for (task, told) in view.checkpoints.told() {
        add_checkpoints(&mut page, task, &told);
    }
    add_log(&mut page);
    for (name, gateway) in view.services.gateways() {
        add_gateway(&mut page, name, &gateway.status());
    }
    for (name, jobmanager) in view.services.jobmanagers() {
        add_jobs(&mut page, name, &jobmanager.status());
    }
    let mut registry = Registry::with_prefix("sluice");
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        tracing::error!("the metrics could not be written as text");
    }
    text
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn add_task(page: &mut Page, task: &TaskStatus) {
    let name = task.name.as_str();
    page.add(Metric::TaskRunning, [("task", name)], flag(task.state == TaskState::Running));
    page.add(Metric::TaskBatches, [("task", name)], task.batches as f64);
    page.add(Metric::TaskAppended, [("task", name)], task.appended as f64);
    page.add(Metric::DeadLetters, [("task", name)], task.dead_letters as f64);
    for input in &task.inputs {
        let from = input.partition.to_string();
        let labels = [("task", name), ("input", from.as_str())];
        page.add(Metric::InputLagRecords, labels, input.lag as f64);
        page.add(Metric::InputLagSeconds, labels, input.lag_time.as_secs_f64());
        page.add(Metric::InputRecords, labels, input.processed as f64);
        page.add(Metric::InputRepeated, labels, input.dropped as f64);
    }
    for operator in &task.operators {
        let labels = [("task", name), ("operator", operator.name.as_str()), ("kind", operator.kind)];
        page.add(Metric::OperatorRecords, labels, operator.processed as f64);
        page.add(Metric::OperatorEmitted, labels, operator.emitted as f64);
        page.add(Metric::OperatorBusySeconds, labels, operator.busy.as_secs_f64());
    }
}

fn add_checkpoints(page: &mut Page, task: &str, told: &Told) {
    if let Some(newest) = told.newest {
        page.add(Metric::CheckpointAge, [("task", task)], age(newest).as_secs_f64());
        page.add(Metric::CheckpointBytes, [("task", task)], told.bytes as f64);
    }
    if told.made + told.failed > 0 {
        page.add(Metric::CheckpointSeconds, [("task", task)], told.took.as_secs_f64());
    }
    page.add(Metric::Checkpoints, [("task", task)], told.made as f64);
    page.add(Metric::CheckpointsFailed, [("task", task)], told.failed as f64);
}

fn add_stores(page: &mut Page, view: &View) {
    for (name, series) in &view.outside.series.0 {
        let (health, labels) = (series.health(), [("operator", name.as_str())]);
        page.add(Metric::SeriesPoints, labels, health.written as f64);
        page.add(Metric::SeriesFailures, labels, health.failures as f64);
        page.add(Metric::SeriesWaiting, labels, health.waiting.map_or(0.0, |(since, _)| since.as_secs_f64()));
    }
    for (name, cache) in view.services.caches() {
        let (health, labels) = (cache.health(), [("cache", name)]);
        page.add(Metric::CacheServed, labels, health.served as f64);
        page.add(Metric::CacheLost, labels, health.lost as f64);
        page.add(Metric::CacheUp, labels, flag(health.away.is_none()));
    }
}

fn add_log(page: &mut Page) {
    let log = page.log.clone();
    page.add(Metric::LogRecords, [], log.records as f64);
    page.add(Metric::LogBytes, [], log.bytes as f64);
    page.add(Metric::LogSyncs, [], log.syncs as f64);
    page.add(Metric::LogCommitSeconds, [], log.commit_ns as f64 / 1e9);
    page.add(Metric::LogQueuedBytes, [], log.queued_bytes as f64);
    page.add(Metric::LogQueueFull, [], log.queue_full as f64);
    page.add(Metric::LogReads, [("from", "memory")], log.tail_reads as f64);
    page.add(Metric::LogReads, [("from", "disk")], log.disk_reads as f64);
    page.add(Metric::LogTrimmed, [], log.trimmed as f64);
    page.add(Metric::LogStopped, [], log.stopped as f64);
}

fn add_gateway(page: &mut Page, name: &str, status: &GatewayStatus) {
    let service = [("service", name)];
    page.add(Metric::GatewayConnections, service, status.connections as f64);
    page.add(Metric::GatewayAuthorized, service, status.sessions_authorized as f64);
    page.add(Metric::GatewayAccepted, service, status.connections_total as f64);
    page.add(Metric::GatewayRefused, service, status.connections_refused as f64);
    page.add(Metric::GatewayCandidates, service, status.candidates as f64);
    page.add(Metric::GatewaySubmitsRefused, service, status.submits_refused as f64);
    page.add(Metric::GatewayUsersRefused, service, status.users_refused as f64);
    page.add(Metric::GatewayEvicted, service, status.evicted as f64);
    page.add(Metric::GatewayHeadersRefused, service, status.headers_refused as f64);
    page.add(Metric::GatewayTlsFailed, service, status.tls_failed as f64);
    add_limits(page, name, status);
    page.add(Metric::GatewayNotifies, service, status.notifies as f64);
    page.add(Metric::GatewayTargets, service, status.targets as f64);
    page.add(Metric::GatewayInFlight, service, status.in_flight as f64);
    page.add(Metric::GatewayNotifySeconds, service, status.last_notify.as_secs_f64());
    page.add(Metric::GatewayFailed, service, flag(status.failure.is_some()));
    for (cause, count) in [("malformed", status.lines_malformed), ("oversized", status.lines_oversized)] {
        page.add(Metric::GatewayBadLines, [("service", name), ("cause", cause)], count as f64);
    }
    for (reason, count) in &status.shares {
        page.add(Metric::GatewayShares, [("service", name), ("reason", &reason_name(*reason))], *count as f64);
    }
}

fn add_limits(page: &mut Page, name: &str, status: &GatewayStatus) {
    let (service, limits) = ([("service", name)], &status.limits);
    page.add(Metric::GatewayThrottled, service, limits.throttled as f64);
    page.add(Metric::GatewayBanned, service, limits.banned as f64);
    page.add(Metric::GatewayBans, service, limits.bans as f64);
    page.add(Metric::GatewayBansLost, service, limits.bans_lost as f64);
    let refused = [
        ("ban", limits.refused_banned),
        ("address_connections", limits.refused_many),
        ("address_connects", limits.refused_often),
    ];
    for (limit, count) in refused {
        page.add(Metric::GatewayLimited, [("service", name), ("limit", limit)], count as f64);
    }
    let timed_out = [
        ("handshake_timeout", status.timed_out_handshake),
        ("login_timeout", status.timed_out_login),
        ("idle_timeout", status.timed_out_idle),
    ];
    for (limit, count) in timed_out {
        page.add(Metric::GatewayTimedOut, [("service", name), ("limit", limit)], count as f64);
    }
    for listener in &status.listeners {
        let labels = [("service", name), ("listener", listener.name.as_str())];
        page.add(Metric::GatewayListener, labels, listener.connections as f64);
    }
}

fn add_jobs(page: &mut Page, name: &str, status: &Status) {
    let service = [("service", name)];
    page.add(Metric::JobHeight, service, f64::from(status.height));
    page.add(Metric::Jobs, service, status.jobs as f64);
    page.add(Metric::Tips, service, status.tips as f64);
    page.add(Metric::FeeJobs, service, status.fee_jobs as f64);
    page.tips.push((name.to_owned(), status.tip_latency.clone()));
    if let Some(since) = status.last_job.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        page.add(Metric::JobTime, service, since.as_secs_f64());
    }
    for node in &status.nodes {
        let labels = [("service", name), ("node", node.name.as_str())];
        page.add(Metric::NodeUp, labels, flag(node.state == NodeState::Ok));
        page.add(Metric::NodeNotices, labels, node.notices as f64);
        page.add(Metric::NodeChosen, labels, flag(node.chosen));
        page.add(Metric::NodeHeight, labels, f64::from(node.height));
        page.add(Metric::NodeStuck, labels, node.stuck as f64);
        page.add(Metric::NodeLost, labels, node.lost as f64);
        page.add(Metric::NodeDisconnected, labels, node.disconnected as f64);
        page.add(Metric::NodeLongpoll, labels, flag(node.longpoll));
    }
}
