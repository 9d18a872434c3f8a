//! What the controller of a cluster knows: topics, who leads their partitions, and where that is. And what SPUs are asked in
//! passing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluvio::dataplane::link::ErrorCode;
use fluvio::metadata::partition::PartitionSpec;
use fluvio::metadata::spu::SpuSpec;
use fluvio::metadata::topic::{
    CleanupPolicy, CompressionAlgorithm, SegmentBasedPolicy, TopicSpec as Spec, TopicStorageConfig,
};
use fluvio::{FluvioAdmin, FluvioClusterConfig};
use fluvio_sc_schema::ApiError;
use fluvio_spu_schema::server::fetch_offset::FetchOffsetsRequest;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluice_proto::Offset;
use tokio::time::{Instant, sleep, timeout};

use super::link::{ASK, Fault, Link, check};
use super::settings::FluvioOptions;
use crate::{Bounds, LogError, Partition, Retention, TopicSpec};

/// How long connecting to the controller may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a topic may take to be made: the controller waits for its partitions to be there.
const CREATE: Duration = Duration::from_secs(30);
/// For how long whoever does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Who leads is not asked again sooner than this.
const FRESH: Duration = Duration::from_millis(200);

/// Bytes of a segment, which Fluvio removes as a whole. It must hold the largest batch.
const SEGMENT: std::ops::RangeInclusive<u64> = 32 << 20..=256 << 20;
/// What stands for ever, and for any size.
const FOR_EVER: u32 = u32::MAX;
const ANY_SIZE: u64 = i64::MAX as u64;
/// The shortest age that Fluvio takes, in seconds.
const SHORTEST: u32 = 10;

/// Name of a topic on the cluster, and number of a partition.
pub(super) type Place = (Arc<str>, u32);

/// A cluster of Fluvio.
pub(super) struct Cluster {
    options: FluvioOptions,
    /// The connection to the controller, one question at a time.
    admin: tokio::sync::Mutex<Option<FluvioAdmin>>,
    leaders: Mutex<Leaders>,
    /// Connections for questions that SPUs answer at once, one for each SPU and one question at a time.
    links: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Link>>>>>,
}

/// Addresses of the SPUs that lead partitions.
#[derive(Default)]
struct Leaders {
    asked: Option<Instant>,
    of: HashMap<Place, String>,
}

/// A topic as the controller describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) partitions: u32,
    /// Copies of each partition.
    replicas: u32,
    /// For how long Fluvio keeps its records, at least.
    pub(super) retention: Retention,
    /// What else may not be so.
    faults: Vec<&'static str>,
}

impl Described {
    fn of(spec: &Spec) -> Self {
        let storage = spec.get_storage();
        let bytes = storage.and_then(|storage| storage.max_partition_size).unwrap_or(0);
        let segment = storage.and_then(|storage| storage.segment_size).map_or(1 << 30, u64::from);
        let age = spec.get_clean_policy().map_or(0, CleanupPolicy::retention_secs);
        let retention = Retention {
            age: (age < FOR_EVER).then(|| Duration::from_secs(age.into())),
            bytes: (bytes < ANY_SIZE).then(|| bytes.saturating_sub(2 * segment)),
        };
        let mut faults = Vec::new();
        if !matches!(spec.get_compression_type(), CompressionAlgorithm::None | CompressionAlgorithm::Any) {
            faults.push("it compresses its records");
        }
        if spec.get_deduplication().is_some() {
            faults.push("it drops records that look like others (deduplication)");
        }
        let replicas = spec.replicas().replication_factor().unwrap_or(1);
        Self { partitions: spec.replicas().partitions(), replicas, retention, faults }
    }

    /// Holds it against what this log promises.
    pub(super) fn check(&self, topic: &str, options: &FluvioOptions) -> Result<(), LogError> {
        let mut faults: Vec<String> = self.faults.iter().map(|&fault| fault.to_owned()).collect();
        let (replicas, wanted) = (self.replicas, options.replication);
        if replicas < u32::from(wanted) {
            faults.push(format!("a partition has {replicas} copies, {wanted} are asked for (`replication`)"));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(LogError::Unfit(format!("topic {topic} on Fluvio: {}", faults.join("; "))))
    }

    /// Fluvio cannot change for how long a topic keeps records: keeping them longer than is asked for does no harm, removing
    /// them sooner does.
    pub(super) fn check_retention(&self, topic: &str, asked: Retention) -> Result<(), LogError> {
        let keeps =
            |has: Option<u64>, asked: Option<u64>| has.is_none_or(|has| asked.is_some_and(|asked| has >= asked));
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs());
        if keeps(seconds(self.retention.age), seconds(asked.age)) && keeps(self.retention.bytes, asked.bytes) {
            return Ok(());
        }
        Err(LogError::Unfit(format!(
            "topic {topic} on Fluvio removes records sooner than is asked for, and Fluvio cannot change that: ask for no more, \
             or give the topic the next `generation` in the file and run `sluice rescale`"
        )))
    }
}

/// A topic as Fluvio is to make it.
fn spec_of(spec: &TopicSpec, options: &FluvioOptions) -> Spec {
    let mut made = Spec::new_computed(spec.partitions, u32::from(options.replication), None);
    let Retention { age, bytes } = spec.retention;
    let seconds = |age: Duration| age.as_secs().saturating_add(u64::from(age.subsec_nanos() > 0));
    let in_range = |age: u64| u32::try_from(age).unwrap_or(FOR_EVER).max(SHORTEST);
    let time_in_seconds = age.map_or(FOR_EVER, |age| in_range(seconds(age)));
    made.set_cleanup_policy(CleanupPolicy::Segment(SegmentBasedPolicy { time_in_seconds }));
    let segment = bytes.map_or(*SEGMENT.end(), |bytes| (bytes / 8).clamp(*SEGMENT.start(), *SEGMENT.end()));
    // It counts the segment that is written, and removes whole ones.
    let most = bytes.map_or(ANY_SIZE, |bytes| bytes.saturating_add(2 * segment).min(ANY_SIZE));
    made.set_storage(TopicStorageConfig {
        segment_size: Some(u32::try_from(segment).unwrap_or(u32::MAX)),
        max_partition_size: Some(most),
    });
    made.set_compression_type(CompressionAlgorithm::None);
    made
}

impl Cluster {
    pub(super) fn new(options: FluvioOptions) -> Arc<Self> {
        let (admin, leaders, links) = (tokio::sync::Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { options, admin, leaders, links })
    }

    /// Asks the controller, on a new connection if the last one failed.
    async fn ask<T>(
        &self,
        patience: Duration,
        question: impl for<'a> FnOnce(&'a FluvioAdmin) -> BoxFuture<'a, anyhow::Result<T>>,
    ) -> Result<T, Fault> {
        let endpoint = &self.options.endpoint;
        let late = |what: &str, after: Duration| {
            Fault::Passing(format!("{endpoint}: {what} took longer than {} s", after.as_secs()))
        };
        let told = |error: &anyhow::Error| format!("{endpoint}: {error}");
        // Taken out while it is asked: a question that is given up leaves none behind.
        let mut slot = self.admin.lock().await;
        let admin = match slot.take() {
            Some(admin) => admin,
            None => {
                let config = FluvioClusterConfig::new(endpoint.clone());
                let connected = timeout(CONNECT, FluvioAdmin::connect_with_config(&config)).await;
                let connected = connected.map_err(|_| late("connecting", CONNECT))?;
                connected.map_err(|error| Fault::Passing(told(&error)))?
            }
        };
        let answer = timeout(patience, question(&admin)).await.map_err(|_| late("an answer", patience))?;
        match answer {
            Ok(answer) => {
                *slot = Some(admin);
                Ok(answer)
            }
            Err(error) => Err(fault(&error, told(&error))),
        }
    }

    /// The same, again and again while it cannot be answered.
    async fn ask_again<T>(
        &self,
        what: &str,
        question: impl for<'a> Fn(&'a FluvioAdmin) -> BoxFuture<'a, anyhow::Result<T>>,
    ) -> Result<T, LogError> {
        let begun = Instant::now();
        loop {
            match self.ask(ASK, &question).await {
                Err(Fault::Passing(told)) if begun.elapsed() < PATIENCE => {
                    tracing::debug!(what, told, "Fluvio is asked again");
                }
                answer => return answer.map_err(|fault| storage(what, &fault)),
            }
            sleep(PAUSE).await;
        }
    }

    /// Creates a topic, if it is not there.
    pub(super) async fn create(&self, name: &str, spec: &TopicSpec) -> Result<(), LogError> {
        let (what, begun) = (format!("creating topic {name}"), Instant::now());
        loop {
            if self.describe(name).await?.is_some() {
                return Ok(());
            }
            let made = spec_of(spec, &self.options);
            let named = name.to_owned();
            let asked = self.ask(CREATE, move |admin| admin.create(named, false, made).boxed()).await;
            let Err(fault) = asked else { return Ok(()) };
            if begun.elapsed() > PATIENCE || matches!(fault, Fault::Refused(_)) {
                let hint = format!("{}: has the cluster {} SPUs?", fault.told(), self.options.replication);
                return Err(storage(&what, &Fault::Refused(hint)));
            }
            tracing::debug!(what, told = fault.told(), "Fluvio is asked again");
            sleep(PAUSE).await;
        }
    }

    /// What the controller has of a topic.
    pub(super) async fn describe(&self, name: &str) -> Result<Option<Described>, LogError> {
        let (what, topic) = (format!("topic {name}"), name.to_owned());
        let described = self.ask_again(&what, move |admin| {
            let topic = topic.clone();
            async move {
                // The name is a filter, which others may pass, too.
                let found = admin.list::<Spec, _>(vec![topic.clone()]).await?;
                Ok(found.iter().find(|found| found.name == topic).map(|found| Described::of(&found.spec)))
            }
            .boxed()
        });
        described.await
    }

    /// Where the SPU is that leads a partition.
    pub(super) async fn leader(&self, place: &Place) -> Result<String, Fault> {
        if let Some(address) = self.known_leader(place) {
            return Ok(address);
        }
        let recent = self.leaders.lock().asked.is_some_and(|asked| asked.elapsed() < FRESH);
        if recent {
            sleep(FRESH).await;
            // Somebody else may have asked meanwhile.
            if let Some(address) = self.known_leader(place) {
                return Ok(address);
            }
        }
        let spus = self.ask(ASK, |admin| admin.all::<SpuSpec>().boxed()).await?;
        let partitions = self.ask(ASK, |admin| admin.all::<PartitionSpec>().boxed()).await?;
        let spus: HashMap<_, _> = spus.into_iter().map(|spu| (spu.spec.id, spu.spec.public_endpoint.addr())).collect();
        let of = partitions.into_iter().filter_map(|partition| {
            let (topic, number) = partition.name.rsplit_once('-')?;
            let place: Place = (topic.into(), number.parse().ok()?);
            Some((place, spus.get(&partition.spec.leader)?.clone()))
        });
        let mut leaders = self.leaders.lock();
        *leaders = Leaders { asked: Some(Instant::now()), of: of.collect() };
        let (topic, number) = place;
        leaders.of.get(place).cloned().ok_or_else(|| Fault::Passing(format!("nobody leads {topic}/{number}")))
    }

    fn known_leader(&self, place: &Place) -> Option<String> {
        self.leaders.lock().of.get(place).cloned()
    }

    /// What is known of the leader of a partition is not so any more.
    pub(super) fn forget_leader(&self, place: &Place) {
        self.leaders.lock().of.remove(place);
    }

    /// A new connection to the SPU that leads a partition.
    pub(super) async fn connect(&self, place: &Place) -> Result<Link, Fault> {
        let connected = match self.leader(place).await {
            Ok(address) => Link::open(&address).await,
            Err(fault) => Err(fault),
        };
        connected.inspect_err(|_| self.forget_leader(place))
    }

    /// Where a partition that has been made begins and ends.
    pub(super) async fn bounds(&self, place: &Place, at: &Partition) -> Result<Bounds, LogError> {
        let begun = Instant::now();
        loop {
            match self.bounds_once(place).await {
                Err(Fault::Passing(told)) if begun.elapsed() < PATIENCE => {
                    tracing::debug!(%at, told, "Fluvio is asked again");
                    self.forget_leader(place);
                }
                answer => return answer.map_err(|fault| storage(&format!("the bounds of {at}"), &fault)),
            }
            sleep(PAUSE).await;
        }
    }

    async fn bounds_once(&self, place: &Place) -> Result<Bounds, Fault> {
        let address = self.leader(place).await?;
        let link = Arc::clone(self.links.lock().entry(address.clone()).or_default());
        let mut slot = link.lock().await;
        // Taken out while it is asked: a question that is given up leaves none behind.
        let link = match slot.take() {
            Some(link) => link,
            None => Link::open(&address).await?,
        };
        let bounds = offsets(&link, place).await?;
        *slot = Some(link);
        bounds
    }
}

/// Asks an SPU where a partition begins and ends; the inner fault is the SPU's answer, after which the connection is good.
pub(super) async fn offsets(link: &Link, (topic, number): &Place) -> Result<Result<Bounds, Fault>, Fault> {
    let answer = link.ask(FetchOffsetsRequest::new(topic.to_string(), *number), ASK).await?;
    let partitions = answer.topics.into_iter().filter(|of| of.name == **topic).flat_map(|of| of.partitions);
    let Some(found) = partitions.into_iter().find(|partition| partition.partition_index == *number) else {
        return Ok(Err(Fault::Passing(format!("{} says nothing of {topic}/{number}", link.address()))));
    };
    let offset = |number: i64| Offset::new(u64::try_from(number).unwrap_or(0));
    let bounds = Bounds { start: offset(found.start_offset), next: offset(found.last_stable_offset) };
    Ok(check(&found.error_code).map(|()| bounds))
}

/// What the controller answered, or what became of the question.
fn fault(error: &anyhow::Error, told: String) -> Fault {
    let Some(ApiError::Code(code, _)) = error.downcast_ref() else { return Fault::Passing(told) };
    match code {
        ErrorCode::PermissionDenied
        | ErrorCode::TopicInvalidName
        | ErrorCode::TopicInvalidConfiguration
        | ErrorCode::TopicError
        | ErrorCode::InvalidCreateRequest => Fault::Refused(told),
        _ => Fault::Passing(told),
    }
}

/// The fault, where it is one of the log.
pub(super) fn storage(what: &str, fault: &Fault) -> LogError {
    let hint = match fault {
        Fault::Passing(_) => "; is the cluster up, and is `endpoint` right?",
        Fault::Refused(_) => "",
    };
    LogError::Storage(format!("{what} on Fluvio: {}{hint}", fault.told()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(retention: Retention) -> TopicSpec {
        TopicSpec { name: "shares".into(), partitions: 3, retention }
    }

    #[tokio::test]
    async fn a_controller_that_is_not_there_is_told_with_its_address() {
        let endpoint = {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            port.local_addr().unwrap().to_string()
        };
        let cluster = Cluster::new(FluvioOptions::new(&endpoint));
        let fault = cluster.leader(&("shares".into(), 0)).await.unwrap_err();
        let told = storage("the bounds of shares/0", &fault).to_string();
        assert!(matches!(fault, Fault::Passing(_)) && told.contains(&endpoint), "{told}");
        assert!(told.contains("is `endpoint` right?"), "{told}");
    }

    #[test]
    fn a_topic_is_made_as_it_is_asked_for() {
        let options = FluvioOptions::new("localhost:9003");
        let hour = Some(Duration::from_secs(3600));
        for retention in [
            Retention::default(),
            Retention { age: hour, bytes: None },
            Retention { age: None, bytes: Some(1 << 40) },
            Retention { age: hour, bytes: Some(1) },
        ] {
            let made = spec_of(&spec(retention), &options);
            assert_eq!(made.validate_config(), None);
            let described = Described::of(&made);
            assert_eq!((described.partitions, described.replicas, described.retention), (3, 3, retention));
            described.check("shares", &options).unwrap();
            described.check_retention("shares", retention).unwrap();
        }
        // Shorter, and longer, than Fluvio has numbers for.
        for (age, least) in [(Duration::from_millis(1), 10), (Duration::MAX, u64::from(u32::MAX))] {
            let made = spec_of(&spec(Retention { age: Some(age), bytes: None }), &options);
            assert_eq!(u64::from(made.retention_secs()), least);
        }
    }

    #[test]
    fn what_is_less_than_asked_for_is_refused() {
        let options = FluvioOptions::new("localhost:9003");
        let one = FluvioOptions { replication: 1, ..options.clone() };
        let mut made = spec_of(&spec(Retention::default()), &one);
        made.set_compression_type(CompressionAlgorithm::Gzip);
        let told = Described::of(&made).check("shares", &options).unwrap_err().to_string();
        assert!(told.contains("has 1 copies, 3 are asked for") && told.contains("compresses"), "{told}");
        let hours = |hours: u64| Retention { age: Some(Duration::from_secs(3600 * hours)), bytes: None };
        let described = Described::of(&spec_of(&spec(hours(2)), &options));
        described.check_retention("shares", hours(1)).unwrap();
        for longer in [hours(3), Retention::default()] {
            let told = described.check_retention("shares", longer).unwrap_err().to_string();
            assert!(told.contains("sooner") && told.contains("generation"), "{told}");
        }
    }
}
