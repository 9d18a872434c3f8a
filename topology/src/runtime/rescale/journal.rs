//! What has been changed and what is being changed: records of `sluice.generations`, which is kept for ever.

use std::sync::Arc;
use std::time::Duration;

use sluice_log::{Partition, Retention, SharedLog, TopicInfo, TopicSpec};
use sluice_proto::v1::{Envelope, Rescale};
use sluice_proto::{Body, Epoch, EventTime, Offset, Position, encode};

use super::{RescaleError, SOURCE, Since};
use crate::graph::{Graph, Topic};
use crate::runtime::lanes::{Lane, LaneTail};
use crate::runtime::reader::TopicReader;

/// The topic that says which generations there are.
pub const GENERATIONS: &str = "sluice.generations";

pub(super) fn place() -> Partition {
    Partition::new(GENERATIONS, 0)
}

/// All steps on record, in order.
pub(super) async fn read(log: &SharedLog) -> Result<Vec<Rescale>, RescaleError> {
    let topics = log.topics().await.map_err(RescaleError::log(&place()))?;
    if !topics.iter().any(|topic| &*topic.name == GENERATIONS) {
        return Ok(Vec::new());
    }
    let end = log.bounds(&place()).await.map_err(RescaleError::log(&place()))?.next;
    let mut reader = TopicReader::new(log.clone(), place(), Offset::ZERO);
    let mut all = Vec::new();
    while reader.position() < end {
        for (_, envelope) in reader.next_batch(Duration::ZERO).await? {
            if let Some(Body::Rescale(step)) = envelope.body {
                all.push(step);
            }
        }
    }
    Ok(all)
}

/// Puts a step on record, durably.
pub(super) async fn append(log: &SharedLog, step: Rescale) -> Result<(), RescaleError> {
    let spec = TopicSpec { name: GENERATIONS.to_owned(), partitions: 1, retention: Retention::default() };
    let created = log.create_topic(&spec).await;
    created.map_err(|error| RescaleError::Topic { topic: spec.name.clone(), error })?;
    let last = read(log).await?.len() as u64;
    let last = (last > 0).then_some(Position { offset: last, ordinal: 0 });
    let from = LaneTail::after(last).next_of_source(Lane::source(SOURCE, Epoch::new(1)), Epoch::new(1));
    let record = encode(&Envelope::new(EventTime::from_nanos(step.cut_ns), from, Body::Rescale(step)));
    log.append(&place(), vec![record]).await.map(drop).map_err(RescaleError::log(&place()))
}

/// The generation that is in use, and one that was begun and is not done.
fn state(topic: &Topic, known: &[Rescale]) -> (Rescale, Option<Rescale>) {
    let first = Rescale { topic: topic.base().to_owned(), generation: 1, ..Rescale::default() };
    let (mut used, mut begun) = (first, None);
    for step in known.iter().filter(|step| step.topic == topic.base()) {
        if step.done {
            (used, begun) = (step.clone(), None);
        } else {
            begun = Some(step.clone());
        }
    }
    (used, begun)
}

/// Whether the generation of `topic` has to be made or completed.
pub(super) fn needs_rescale(topic: &Topic, known: &[Rescale]) -> Result<bool, RescaleError> {
    let (used, begun) = state(topic, known);
    let base = topic.base();
    let refused = |what: String| Err(RescaleError::Refused(what));
    match begun {
        Some(begun) if topic.generation == begun.generation => Ok(true),
        Some(begun) => refused(format!(
            "a change of {base} to {} partitions in generation {} was begun and is not complete: write `partitions: {}, \
             generation: {}` and run `sluice rescale`",
            begun.partitions, begun.generation, begun.partitions, begun.generation
        )),
        None if topic.generation == used.generation => Ok(false),
        None if topic.generation == used.generation + 1 => Ok(true),
        None => refused(format!(
            "{base} is at generation {}, the file asks for generation {}: {}",
            used.generation,
            topic.generation,
            if topic.generation < used.generation {
                format!("write `partitions: {}, generation: {}`", used.partitions, used.generation)
            } else {
                "it grows by one with each change".to_owned()
            }
        )),
    }
}

/// Refuses a log whose generations are not those of the graph: one that is half made, or one that has ended.
///
/// # Errors
/// [`RescaleError::Refused`] with what to do; others if the log fails.
pub async fn check(graph: &Graph, log: &SharedLog) -> Result<(), RescaleError> {
    let known = read(log).await?;
    for topic in graph.stored_topics() {
        if needs_rescale(topic, &known)? {
            return Err(RescaleError::Refused(format!(
                "generation {} of {} with {} partitions is not there yet: run `sluice rescale`",
                topic.generation,
                topic.base(),
                topic.partitions
            )));
        }
    }
    Ok(())
}

/// The change of `topic` that was begun, if one was.
pub(super) async fn begun(topic: &Topic, log: &SharedLog) -> Result<Option<Rescale>, RescaleError> {
    Ok(state(topic, &read(log).await?).1)
}

/// The topic in the log that the generation of `topic` is made of.
pub(super) async fn old(topic: &Topic, log: &SharedLog) -> Result<TopicInfo, RescaleError> {
    let old = topic.at(topic.generation - 1);
    let topics = log.topics().await.map_err(RescaleError::log(&place()))?;
    topics.into_iter().find(|info| info.name == old).ok_or_else(|| {
        RescaleError::Refused(format!(
            "the log has no topic {old} to make generation {} of: a new pool begins with generation 1",
            topic.generation
        ))
    })
}

/// Puts a new change on record: where the old partitions end, and the newest event time there is.
pub(super) async fn begin(topic: &Topic, since: Option<Since>, log: &SharedLog) -> Result<Rescale, RescaleError> {
    let info = old(topic, log).await?;
    let (mut cuts, mut newest) = (Vec::new(), EventTime::default());
    for partition in info.all() {
        let (end, time) = last(log, partition).await?;
        cuts.push(end.get());
        newest = newest.max(time);
    }
    let since = since.map_or(0, |since| {
        let length = u64::try_from(since.length.as_nanos()).unwrap_or(u64::MAX);
        newest.nanos().saturating_sub(length).min(since.needed.nanos())
    });
    let step = Rescale {
        topic: topic.base().to_owned(),
        generation: topic.generation,
        partitions: topic.partitions,
        old_partitions: info.partitions,
        since_ns: since,
        cut_ns: newest.nanos(),
        cuts,
        done: false,
    };
    append(log, step.clone()).await?;
    Ok(step)
}

/// Where a partition ends, and the newest event time in it.
async fn last(log: &SharedLog, partition: Partition) -> Result<(Offset, EventTime), RescaleError> {
    let end = log.bounds(&partition).await.map_err(RescaleError::log(&partition))?.next;
    let mut reader = TopicReader::from_oldest(Arc::clone(log), partition).await?;
    let mut newest = EventTime::default();
    while reader.position() < end {
        let records = reader.next_batch(Duration::ZERO).await?;
        newest = records.iter().map(|(_, envelope)| envelope.event_time()).max().unwrap_or(newest).max(newest);
    }
    Ok((end, newest))
}
