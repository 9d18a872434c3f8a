//! Reading a log that another process writes, without stopping it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use sluice_proto::Offset;

use super::EmbeddedOptions;
use super::mark::Marked;
use super::store::Store;
use crate::{Bounds, Log, LogError, Partition, Record, TopicInfo, TopicSpec};

/// How often it looks for new records while a reader waits, and at most while readers do not.
const LOOK: Duration = Duration::from_millis(20);
/// How long the records that are marked may be on their way from one file of the writer to another.
const PATIENCE: Duration = Duration::from_millis(500);

/// A log that another process may be writing, to be read only: for `sluice tap` and the like.
///
/// It differs from the log itself in three ways. New records show up within some 20 ms. A record can show up a moment
/// before it is durable, so nothing that must hold may be built on it. Topics created after the opening are not seen.
pub struct LogFollower {
    reader: Arc<Reader>,
    topics: Vec<TopicInfo>,
}

struct Reader {
    store: Store,
    genesis: HashMap<Partition, Bytes>,
    looked: Mutex<Option<Instant>>,
    /// Removed when the follower goes.
    _scratch: Scratch,
}

impl LogFollower {
    /// Opens the log in `dir`.
    ///
    /// # Errors
    /// [`LogError::Storage`] if there is none, [`LogError::Corrupt`] if it is damaged, has lost records that were
    /// acknowledged, or is of another program.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Arc<Self>, LogError> {
        let (dir, scratch) = (dir.into(), Scratch::new()?);
        // Before the log is opened: what is in it then has at least what was marked.
        let marked = Marked::read(&dir);
        let store = Store::open_secondary(&EmbeddedOptions::new(dir), &scratch.0)?;
        let topics = topics_as_marked(&store, &marked)?;
        let mut genesis = HashMap::new();
        for partition in topics.iter().flat_map(TopicInfo::all) {
            genesis.insert(partition.clone(), store.genesis(&partition)?);
        }
        let reader = Reader { store, genesis, looked: Mutex::new(None), _scratch: scratch };
        Ok(Arc::new(Self { reader: Arc::new(reader), topics }))
    }
}

/// All topics, once their partitions end where they are marked to.
///
/// # Errors
/// [`LogError::Corrupt`] if they do not even after a while, in which the writer may have moved records to another file.
fn topics_as_marked(store: &Store, marked: &Marked) -> Result<Vec<TopicInfo>, LogError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (topics, mut ends) = (store.topics()?, BTreeMap::new());
        for partition in topics.iter().flat_map(TopicInfo::all) {
            let next = store.head(&partition)?.next;
            ends.insert(Marked::name(&partition), (partition, next));
        }
        match marked.check(store.dir(), &ends) {
            Ok(()) => return Ok(topics),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => {
                std::thread::sleep(LOOK);
                store.catch_up()?;
            }
        }
    }
}

impl Reader {
    fn catch_up(&self) -> Result<(), LogError> {
        let mut looked = self.looked.lock();
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            self.store.catch_up()?;
            *looked = Some(Instant::now());
        }
        Ok(())
    }

    fn bounds(&self, of: &Partition) -> Result<Bounds, LogError> {
        if !self.genesis.contains_key(of) {
            return Err(LogError::Unknown(of.clone()));
        }
        self.catch_up()?;
        let (start, next) = (self.store.start(of)?, self.store.head(of)?.next);
        Ok(Bounds { start: Offset::new(start), next: Offset::new(next) })
    }

    fn read(&self, of: &Partition, asked: Offset, max_bytes: usize) -> Result<Vec<Record>, LogError> {
        let Bounds { start, next } = self.bounds(of)?;
        let fits = asked == Offset::ZERO || (start..=next).contains(&asked);
        let out_of_range = || LogError::OutOfRange { partition: of.clone(), asked, start, next };
        if !fits {
            return Err(out_of_range());
        }
        let mut records = Vec::new();
        let mut from = asked.get();
        if asked == Offset::ZERO {
            records.extend(self.genesis.get(of).map(|value| Record { offset: asked, value: value.clone() }));
            from = start.get().max(1);
        }
        let before = records.len();
        self.store.read(of, from, next.get(), max_bytes, &mut records)?;
        if records.len() == before && from < next.get() {
            // The writer has trimmed between the two looks.
            return Err(out_of_range());
        }
        Ok(records)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(LogError::Storage(format!("a read from the log failed: {e}"))))
}

impl Log for LogFollower {
    fn uuid(&self) -> [u8; 16] {
        self.reader.store.uuid()
    }

    fn create_topic<'a>(&'a self, _: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        ready(Err(LogError::ReadOnly)).boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        ready(Ok(self.topics.clone())).boxed()
    }

    fn append(&self, _: &Partition, _: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        ready(Err(LogError::ReadOnly)).boxed()
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        let (reader, from) = (self.reader.clone(), from.clone());
        let deadline = Instant::now() + wait;
        async move {
            loop {
                let (reader, from) = (reader.clone(), from.clone());
                let records = blocking(move || reader.read(&from, offset, max_bytes)).await?;
                let left = deadline.saturating_duration_since(Instant::now());
                if !records.is_empty() || left.is_zero() {
                    return Ok(records);
                }
                tokio::time::sleep(LOOK.min(left)).await;
            }
        }
        .boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        let (reader, of) = (self.reader.clone(), of.clone());
        blocking(move || reader.bounds(&of)).boxed()
    }

    fn trim(&self, _: &Partition, _: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        ready(Err(LogError::ReadOnly)).boxed()
    }
}

/// A directory for RocksDB's notes about its reading.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, LogError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sluice-follow-{}-{number}", std::process::id()));
        match std::fs::create_dir(&dir) {
            Ok(()) => Ok(Self(dir)),
            // Left by a killed process of the same number.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && is_own(&dir) => Ok(Self(dir)),
            Err(e) => Err(LogError::Storage(format!("{}: {e}", dir.display()))),
        }
    }
}

/// Whether `dir` is a directory that this user made, not a link that somebody else put there.
fn is_own(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = |path: &Path| std::fs::symlink_metadata(path).ok().filter(|m| m.is_dir()).map(|m| m.uid());
    owner(dir).is_some() && owner(dir) == std::fs::metadata("/proc/self").ok().map(|m| m.uid())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(dir = %self.0.display(), %error, "a scratch directory stays behind");
        }
    }
}
