//! How clients of Kafka are set up: for answers at once, and for nothing to be lost or guessed.

use rdkafka::ClientConfig;

/// Largest record on brokers, in bytes: a block of 4 MB with its envelope fits four times.
pub(super) const MAX_RECORD: usize = 16 << 20;
/// The same for what goes to a broker at once: records with what is around them.
pub(super) const MAX_BATCH: usize = MAX_RECORD + (64 << 10);

/// A log on Kafka or Redpanda.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaOptions {
    /// `host:port` of some of the brokers; they name the others.
    pub brokers: Vec<String>,
    /// What names of topics begin with on the brokers, so that several logs can live there.
    pub prefix: String,
    /// Copies of each partition that new topics get.
    pub replication: u16,
    /// How many of them must have a record for it to be durable.
    pub min_insync: u16,
    /// Further properties of librdkafka by their names, for instance `security.protocol` and `sasl.*`.
    pub properties: Vec<(String, String)>,
    /// The identity of another log that this one is to go on with; a log that begins makes one of its own otherwise.
    pub uuid: Option<[u8; 16]>,
}

impl KafkaOptions {
    /// A log on these brokers: three copies of each partition, two of which make a record durable.
    pub fn new(brokers: Vec<String>) -> Self {
        Self { brokers, prefix: String::new(), replication: 3, min_insync: 2, properties: Vec::new(), uuid: None }
    }

    /// For administration.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.join(",")).set("client.id", "sluice");
        let settings = [
            ("allow.auto.create.topics", "false"),
            ("socket.nagle.disable", "true"),
            ("socket.keepalive.enable", "true"),
            // A broker that is gone is asked again soon, and the others who leads now.
            ("reconnect.backoff.ms", "50"),
            ("reconnect.backoff.max.ms", "1000"),
            ("topic.metadata.refresh.fast.interval.ms", "50"),
            ("topic.metadata.refresh.interval.ms", "30000"),
            // Closed idle connections are no news.
            ("log.connection.close", "false"),
        ];
        for (name, value) in settings {
            config.set(name, value);
        }
        config.set("message.max.bytes", MAX_BATCH.to_string());
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// For appends. A batch is sent again until it is durable, however long that takes: giving up would leave open
    /// whether it is.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        let settings = [
            ("enable.idempotence", "true"),
            ("enable.gapless.guarantee", "true"),
            ("acks", "all"),
            ("message.timeout.ms", "0"),
            ("retry.backoff.ms", "20"),
            ("retry.backoff.max.ms", "500"),
            ("linger.ms", "0"),
            ("batch.num.messages", "10000"),
            ("queue.buffering.max.messages", "1000000"),
            ("queue.buffering.max.kbytes", "262144"),
        ];
        for (name, value) in settings {
            config.set(name, value);
        }
        config
    }

    /// For reads. The group is a name that librdkafka insists on: nobody joins it, and no offset is kept there.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = self.client();
        let settings = [
            ("group.id", "sluice"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // A position that does not fit is an error (invariant P1).
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            // A new reader has its turn when the request that is under way comes back.
            ("fetch.wait.max.ms", "50"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.error.backoff.ms", "50"),
            ("queued.min.messages", "20000"),
            ("queued.max.messages.kbytes", "2048"),
            ("max.partition.fetch.bytes", "1048576"),
        ];
        for (name, value) in settings {
            config.set(name, value);
        }
        config
    }
}
