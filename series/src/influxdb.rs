//! InfluxDB 1.8, 2 and 3 by the one way of writing that all of them know: `/api/v2/write`, a bucket, one opaque token.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::models::DataPoint;
use influxdb2::{Client, ClientBuilder, RequestError};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Field, Point, SeriesError, SeriesHealth, SeriesStore};

/// Points that go in one request: some 500 kB, where version 3 takes 10 MB at most.
const BATCH: usize = 4_000;
/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// First wait after a failure; the next are twice as long each.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A failure that lasts is logged again after this many attempts: every 5 minutes.
const LOG_EVERY: u32 = 60;

/// Where points go.
#[derive(Clone)]
pub struct InfluxOptions {
    /// `http://HOST:PORT` of the server.
    pub url: String,
    /// Bucket of version 2, `DATABASE` or `DATABASE/RETENTION` of version 1.8, database of version 3. It must exist there,
    /// but in version 3.
    pub bucket: String,
    /// Organization of version 2; the others ask for none.
    pub org: String,
    /// Token of versions 2 and 3, `USER:PASSWORD` of version 1.8; empty where the server asks for none.
    pub token: String,
}

/// A server.
pub struct InfluxDb {
    client: Client,
    options: InfluxOptions,
    /// One write at a time, so that no older total comes behind a newer one.
    turn: Mutex<()>,
    stop: watch::Sender<bool>,
    written: AtomicU64,
    failures: AtomicU64,
    waiting: Mutex<Option<(Instant, String)>>,
}

impl InfluxDb {
    /// Points go to this server. It is not asked before there are some: it may be away now.
    ///
    /// # Errors
    /// [`SeriesError::Options`] if the address cannot be used.
    pub fn new(options: InfluxOptions) -> Result<Self, SeriesError> {
        // No connection outlives the event loop of its write.
        let http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER).pool_max_idle_per_host(0);
        // The library panics at an address that is none.
        let url: reqwest::Url =
            options.url.parse().map_err(|error| SeriesError::Options(format!("`{}`: {error}", options.url)))?;
        if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
            return Err(SeriesError::Options(format!("`{}` is no address: write http://HOST:PORT", options.url)));
        }
        let client = ClientBuilder::with_builder(http, url.as_str(), &options.org, &options.token).build();
        let client = client.map_err(|error| SeriesError::Options(error.to_string()))?;
        let (written, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        let (turn, stop, waiting) = (Mutex::default(), watch::Sender::new(false), Mutex::default());
        Ok(Self { client, options, turn, stop, written, failures, waiting })
    }

    /// Writes points that fit one request, however long that takes.
    async fn write_batch(&self, points: &[Point]) -> Result<(), SeriesError> {
        let points: Vec<DataPoint> = points.iter().filter_map(rendered).collect();
        let mut stop = self.stop.subscribe();
        for attempt in 0.. {
            let body = stream::iter(points.clone());
            let request =
                self.client.write_with_precision(&self.options.bucket, body, TimestampPrecision::Milliseconds);
            let answer = tokio::select! {
                answer = request => answer,
                _ = stop.wait_for(|stop| *stop) => return Err(SeriesError::Interrupted),
            };
            match answer {
                Ok(()) => {
                    self.written.fetch_add(points.len() as u64, Ordering::Relaxed);
                    if let Some((since, _)) = self.waiting.lock().take() {
                        let (bucket, away) = (&self.options.bucket, since.elapsed());
                        tracing::info!(bucket, ?away, "InfluxDB takes points again");
                    }
                    return Ok(());
                }
                Err(error) => self.refused(&error, attempt),
            }
            let wait = FIRST_WAIT.saturating_mul(1 << attempt.min(8)).min(LONGEST_WAIT);
            if tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await.is_ok() {
                return Err(SeriesError::Interrupted);
            }
        }
        Ok(())
    }

    fn refused(&self, error: &RequestError, attempt: u32) {
        let cause = cause(error);
        self.failures.fetch_add(1, Ordering::Relaxed);
        if attempt.is_multiple_of(LOG_EVERY) {
            let bucket = &self.options.bucket;
            tracing::warn!(cause, bucket, attempt, "points wait for InfluxDB; they are written once it takes them");
        }
        let mut waiting = self.waiting.lock();
        let since = waiting.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *waiting = Some((since, cause));
    }
}

impl SeriesStore for InfluxDb {
    fn write(&self, points: &[Point]) -> Result<(), SeriesError> {
        let _turn = self.turn.lock();
        // A thread of its own, since the caller's may belong to a runtime that must not be blocked on.
        let write = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| SeriesError::Options(format!("no event loop: {error}")))?;
            points.chunks(BATCH).try_for_each(|batch| runtime.block_on(self.write_batch(batch)))
        };
        std::thread::scope(|scope| match scope.spawn(write).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    fn interrupt(&self) {
        self.stop.send_replace(true);
    }

    fn health(&self) -> SeriesHealth {
        let waiting = self.waiting.lock().as_ref().map(|(since, cause)| (since.elapsed(), cause.clone()));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SeriesHealth { written: count(&self.written), failures: count(&self.failures), waiting }
    }
}

/// What happened, with what can be done about it.
fn cause(error: &RequestError) -> String {
    match error {
        RequestError::Http { status, text } => {
            let hint = match status.as_u16() {
                401 | 403 => ": is `token` right?",
                404 => ": do `bucket` and `org` exist there?",
                _ => "",
            };
            format!("{status} {}{hint}", text.trim())
        }
        RequestError::ReqwestProcessing { source } => {
            // Its own words leave out what lies below: that the connection was refused.
            let mut text = source.to_string();
            let mut below = std::error::Error::source(source);
            while let Some(error) = below {
                text = format!("{text}: {error}");
                below = error.source();
            }
            text
        }
        other => other.to_string(),
    }
}

/// As the library takes it; `None` for a point without fields.
fn rendered(point: &Point) -> Option<DataPoint> {
    let mut to = DataPoint::builder(point.measurement).timestamp(i64::try_from(point.time_ms).unwrap_or(i64::MAX));
    for (name, value) in &point.tags {
        to = to.tag(*name, tag_value(value));
    }
    for (name, value) in &point.fields {
        to = match *value {
            Field::Count(count) => to.field(*name, i64::try_from(count).unwrap_or(i64::MAX)),
            Field::Work(work) => to.field(*name, work as f64),
        };
    }
    to.build().ok()
}

/// A value that the line protocol can hold: not empty, in one line, and without a backslash, which would take the
/// meaning from what comes behind it.
fn tag_value(value: &str) -> Cow<'_, str> {
    match value {
        "" => Cow::Borrowed("-"),
        _ if value.contains(|it: char| it.is_control() || it == '\\') => {
            Cow::Owned(value.replace(|it: char| it.is_control() || it == '\\', "_"))
        }
        _ => Cow::Borrowed(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use influxdb2::models::WriteDataPoint as _;
    use proptest::prelude::*;

    fn line(point: &Point) -> String {
        let mut bytes = Vec::new();
        rendered(point).unwrap().write_data_point_to(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn point(worker: &str) -> Point {
        Point {
            measurement: "shares",
            tags: vec![("miner_address", "bc1q".to_owned()), ("worker_name", worker.to_owned())],
            fields: vec![("count", Field::Count(7)), ("work", Field::Work(1 << 70))],
            time_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_point_is_a_line_of_its_own() {
        assert_eq!(
            line(&point("rig 1,a=b")),
            "shares,miner_address=bc1q,worker_name=rig\\ 1\\,a\\=b count=7i,work=1180591620717411300000 1700000000000\n"
        );
        assert!(line(&point("")).contains("worker_name=- "), "a tag without a value is refused by servers");
        let bare = Point { fields: Vec::new(), ..point("") };
        assert!(rendered(&bare).is_none());
    }

    proptest! {
        /// Whatever a miner calls itself, it gets neither a second line nor another tag.
        #[test]
        fn no_name_breaks_out_of_its_tag(name in any::<String>()) {
            let line = line(&point(&name));
            prop_assert_eq!(line.matches('\n').count(), 1);
            let mut bare = String::new();
            let mut chars = line.chars();
            while let Some(next) = chars.next() {
                // What is escaped is no mark.
                if next == '\\' { chars.next(); } else { bare.push(next); }
            }
            prop_assert_eq!(bare.matches(',').count(), 3);
            prop_assert_eq!(bare.matches(' ').count(), 2);
        }
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for url in ["", "influx:8086", "ftp://x", "http://"] {
            let options = InfluxOptions { url: url.into(), bucket: "b".into(), org: "o".into(), token: "t".into() };
            assert!(matches!(InfluxDb::new(options), Err(SeriesError::Options(_))), "{url}");
        }
    }
}
