//! What this gateway shares with the others of its pool through a cache: where the newest job stands, difficulties of sessions,
//! how often addresses connect, bans (docs/adr/0024).
//!
//! Nobody waits for it on the way of a share, and nothing is believed that would change a verdict: the job is looked up in the
//! log, a difficulty is one that vardiff could have given.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, future};
use sluice_cache::{Cache, Entry, Rate, Taken};
use sluice_mining::Difficulty;
use sluice_proto::{EventTime, Offset};

/// For how long the place of the newest job is good for anything.
const JOB: Duration = Duration::from_secs(3_600);
/// For how long a session's difficulty is: a miner that was away for longer may be another one by now.
const SESSION: Duration = Duration::from_secs(24 * 3_600);

/// The cache, as one pool's gateways use it.
#[derive(Clone)]
pub(crate) struct Cached {
    cache: Arc<dyn Cache>,
    /// What keys begin with: the identity of the log, so that no other pool's values are taken for this one's.
    pool: String,
}

/// What others know of an address.
pub(crate) struct Visit {
    /// Its share of the connects that it may make to all of them together.
    pub(crate) taken: Taken,
    /// For how long it is still banned.
    pub(crate) banned: Option<Duration>,
}

impl Cached {
    /// The cache of the gateways of the log `uuid`.
    pub(crate) fn new(cache: Arc<dyn Cache>, uuid: [u8; 16]) -> Self {
        let pool = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { cache, pool }
    }

    fn key(&self, what: &str) -> String {
        // Braces keep the keys of a pool together in a cluster.
        format!("{{{}}}/{what}", self.pool)
    }

    /// The newest job: its offset and id.
    pub(crate) fn note_job(&self, offset: Offset, job_id: u64) {
        let value = Bytes::copy_from_slice(&job_id.to_be_bytes());
        self.cache.put(&self.key("job"), Entry { version: offset.get(), value }, JOB);
    }

    /// Where the newest job was seen, and its id.
    pub(crate) async fn newest_job(&self) -> Option<(Offset, u64)> {
        let Entry { version, value } = self.cache.get(&self.key("job")).await?;
        Some((Offset::new(version), u64::from_be_bytes(value[..].try_into().ok()?)))
    }

    /// Vardiff's decision for a session, at `offset` of its partition.
    pub(crate) fn note_session(&self, session: u64, offset: Offset, difficulty: Difficulty) {
        let value = Bytes::copy_from_slice(&difficulty.units().to_be_bytes());
        self.cache.put(&self.key(&format!("session/{session:016x}")), Entry { version: offset.get(), value }, SESSION);
    }

    /// Vardiff's last decision for a session.
    pub(crate) fn session(&self, session: u64) -> BoxFuture<'static, Option<Difficulty>> {
        let entry = self.cache.get(&self.key(&format!("session/{session:016x}")));
        let read = |Entry { value, .. }| Difficulty::from_units(u64::from_be_bytes(value[..].try_into().ok()?));
        entry.map(move |entry| entry.and_then(read)).boxed()
    }

    /// An address is banned here for a time, and so everywhere.
    pub(crate) fn note_ban(&self, ip: IpAddr, ban: Duration) {
        let until = EventTime::now().nanos() / 1_000_000 + u64::try_from(ban.as_millis()).unwrap_or(u64::MAX);
        let value = Bytes::copy_from_slice(&until.to_be_bytes());
        self.cache.put(&self.key(&format!("ban/{ip}")), Entry { version: until, value }, ban);
    }

    /// An address connects: counts it, and asks what the others know. `connects` is `None` where it may as often as it likes.
    pub(crate) fn visit(&self, ip: IpAddr, connects: Option<Rate>) -> impl Future<Output = Visit> + Send + use<> {
        let taken = match connects {
            Some(rate) => self.cache.take(&self.key(&format!("connects/{ip}")), rate),
            None => future::ready(Taken::Granted).boxed(),
        };
        let ban = self.cache.get(&self.key(&format!("ban/{ip}")));
        future::join(taken, ban).map(|(taken, ban)| {
            let left = |entry: Entry| {
                let now = EventTime::now().nanos() / 1_000_000;
                entry.version.checked_sub(now).filter(|left| *left > 0).map(Duration::from_millis)
            };
            Visit { taken, banned: ban.and_then(left) }
        })
    }
}
