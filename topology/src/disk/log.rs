//! The log's topics against those of the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_log::{Bounds, LogError, Partition, Retention, SharedLog, TopicInfo, TopicSpec, moving};
use sluice_proto::hash64;

use super::{TopicJudged, TopicStanding};
use crate::graph::{Graph, Group, Topic};
use crate::runtime::Owners;
use crate::runtime::rescale::{self, RescaleError};
use crate::spec::format_duration;

/// What a log holds, as of a moment.
pub struct LogFacts {
    /// Its UUID.
    pub(super) uuid: [u8; 16],
    topics: BTreeMap<Arc<str>, (TopicInfo, Vec<Bounds>)>,
    /// Who has ever run a task, where the file shares out partitions among instances.
    owners: Arc<Owners>,
    /// Why a generation of a topic cannot be used.
    pub(super) unfinished: Option<String>,
}

impl LogFacts {
    /// Asks `log` for what matters to `graph`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn of(log: &SharedLog, graph: &Graph) -> Result<Self, LogError> {
        let mut topics = BTreeMap::new();
        for topic in log.topics().await? {
            let mut bounds = Vec::new();
            for partition in topic.all() {
                bounds.push(log.bounds(&partition).await?);
            }
            topics.insert(Arc::clone(&topic.name), (topic, bounds));
        }
        let owners = Owners::new(log.clone(), [0; 16]);
        // Only a file that shares out partitions asks who has run what: claims are read again by who takes one.
        if graph.groups.iter().any(Group::is_partial) && topics.contains_key(&*Owners::topic().name) {
            owners.catch_up().await.map_err(|error| LogError::Storage(error.to_string()))?;
        }
        let brought = topics.get(moving::BROUGHT).and_then(|(_, bounds)| bounds.first().copied());
        let unfinished = match rescale::check(graph, log).await {
            Ok(()) => moving::is_incomplete(brought).then(|| {
                "the log has not been brought here completely: run `sluice replay --from-log` again until it ends"
                    .to_owned()
            }),
            Err(RescaleError::Log { error, .. }) => return Err(error),
            Err(error) => Some(error.to_string()),
        };
        Ok(Self { uuid: log.uuid(), topics, owners, unfinished })
    }

    /// Whether the task of this name has ever run on the log; for a file that shares out partitions.
    pub(super) fn has_run(&self, task: &str) -> bool {
        self.owners.newest(hash64(task)).is_some()
    }

    /// The bounds of a partition, if there is one.
    pub(super) fn bounds(&self, partition: &Partition) -> Option<Bounds> {
        self.topics.get(&partition.topic)?.1.get(partition.number as usize).copied()
    }
}

/// The topics that a process touches, and those of the log that nobody in the file does.
pub(super) fn topics(touched: &[TopicSpec], graph: &Graph, log: Option<&LogFacts>) -> Vec<TopicJudged> {
    let known = |name: &str| log.and_then(|log| log.topics.get(name)).map(|(info, _)| info);
    let of_file = touched.iter().map(|topic| TopicJudged {
        name: topic.name.clone(),
        standing: known(&topic.name).map_or(TopicStanding::New, |info| standing(info, topic)),
    });
    let others = log.into_iter().flat_map(|log| log.topics.keys());
    // The program's own topics are not in the file.
    let others = others.filter(|name| !name.starts_with("sluice.")).filter_map(|name| {
        if graph.topic(name).is_some_and(|topic| !topic.direct) {
            return None;
        }
        let is_earlier = |topic: &Topic| (1..topic.generation).any(|generation| topic.at(generation) == *name);
        let earlier = graph.stored_topics().any(is_earlier);
        let standing = if earlier { TopicStanding::Earlier } else { TopicStanding::Orphaned };
        Some(TopicJudged { name: name.to_string(), standing })
    });
    of_file.chain(others).collect()
}

fn standing(found: &TopicInfo, wanted: &TopicSpec) -> TopicStanding {
    if found.partitions != wanted.partitions {
        return TopicStanding::PartitionsChanged { was: found.partitions, now: wanted.partitions };
    }
    if found.retention != wanted.retention {
        return TopicStanding::RetentionChanged { was: kept(found.retention), now: kept(wanted.retention) };
    }
    TopicStanding::Kept
}

fn kept(retention: Retention) -> String {
    let age = retention.age.map_or_else(|| "for ever".to_owned(), format_duration);
    match retention.bytes {
        Some(bytes) => format!("{age}, up to {bytes} bytes"),
        None => age,
    }
}
