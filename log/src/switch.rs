//! A log that is followed first and written later: what a standby reads through (docs/adr/0015).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use sluice_proto::Offset;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Bounds, Log, LogError, Partition, Record, SharedLog, TopicInfo, TopicSpec};

/// Reads through a follower of a log until it is given the log itself; then everything goes there.
///
/// Before that, appends fail with [`LogError::ReadOnly`] as the follower's do. A read that waits when the log is given
/// goes on there at once.
pub struct SwitchLog {
    uuid: [u8; 16],
    current: watch::Sender<SharedLog>,
}

impl SwitchLog {
    /// Reads through `follower` first.
    pub fn new(follower: SharedLog) -> Arc<Self> {
        Arc::new(Self { uuid: follower.uuid(), current: watch::Sender::new(follower) })
    }

    /// Everything goes to `log` from now on.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if it is another log than the one that was followed.
    pub fn switch(&self, log: SharedLog) -> Result<(), LogError> {
        if log.uuid() != self.uuid {
            return Err(LogError::Corrupt("the log that was followed has been replaced by another one".into()));
        }
        self.current.send_replace(log);
        Ok(())
    }

    fn now(&self) -> SharedLog {
        Arc::clone(&self.current.borrow())
    }
}

impl Log for SwitchLog {
    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        let log = self.now();
        async move { log.create_topic(spec).await }.boxed()
    }

    fn create_topics<'a>(&'a self, specs: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<TopicInfo>, LogError>> {
        let log = self.now();
        async move { log.create_topics(specs).await }.boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        let log = self.now();
        async move { log.topics().await }.boxed()
    }

    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        self.now().append(to, batch)
    }

    fn append_all(&self, batches: Vec<(Partition, Vec<Bytes>)>) -> BoxFuture<'static, Result<(), LogError>> {
        self.now().append_all(batches)
    }

    fn read(
        &self,
        from: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        let mut current = self.current.subscribe();
        let log = Arc::clone(&current.borrow_and_update());
        let (from, deadline) = (from.clone(), Instant::now() + wait);
        async move {
            tokio::select! {
                biased;
                Ok(()) = current.changed() => {
                    let log = Arc::clone(&current.borrow());
                    log.read(&from, offset, max_bytes, deadline.saturating_duration_since(Instant::now())).await
                }
                read = log.read(&from, offset, max_bytes, wait) => read,
            }
        }
        .boxed()
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.now().bounds(of)
    }

    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        self.now().trim(of, before)
    }
}

/// A log that refuses appends, above one that is open for writing: for who must not write to it.
pub fn read_only(log: SharedLog) -> SharedLog {
    Arc::new(ReadOnly(log))
}

struct ReadOnly(SharedLog);

impl Log for ReadOnly {
    fn uuid(&self) -> [u8; 16] {
        self.0.uuid()
    }

    fn create_topic<'a>(&'a self, _: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        ready(Err(LogError::ReadOnly)).boxed()
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        self.0.topics()
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
        self.0.read(from, offset, max_bytes, wait)
    }

    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.0.bounds(of)
    }

    fn trim(&self, _: &Partition, _: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        ready(Err(LogError::ReadOnly)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryLog, Retention};

    async fn log() -> (Arc<MemoryLog>, Partition) {
        let log = MemoryLog::new();
        let spec = TopicSpec { name: "a".into(), partitions: 1, retention: Retention::default() };
        log.create_topic(&spec).await.unwrap();
        (log, Partition::new("a", 0))
    }

    #[tokio::test]
    async fn a_read_that_waits_goes_on_in_the_log_it_is_switched_to() {
        let (log, partition) = log().await;
        let switch = SwitchLog::new(read_only(log.clone()));
        assert!(matches!(switch.append(&partition, vec![Bytes::from_static(b"x")]).await, Err(LogError::ReadOnly)));
        let waits = switch.read(&partition, Offset::new(1), 1000, Duration::from_secs(3600));
        let switched = async {
            tokio::task::yield_now().await;
            switch.switch(log.clone()).unwrap();
            switch.append(&partition, vec![Bytes::from_static(b"x")]).await.unwrap();
        };
        let (records, ()) = tokio::join!(waits, switched);
        assert_eq!(records.unwrap()[0].value.as_ref(), b"x");
    }

    #[tokio::test]
    async fn another_log_is_refused() {
        let (log, _) = log().await;
        assert!(matches!(SwitchLog::new(log).switch(MemoryLog::new()), Err(LogError::Corrupt(_))));
    }
}
