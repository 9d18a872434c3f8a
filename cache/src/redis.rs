//! Redis, or what speaks like it. One task has the connection: it takes what waits and sends it at once, as one pipeline.
//!
//! While the server is away everything is answered with nothing at once, and it is tried again every second. Whoever asks
//! never waits longer than [`PATIENCE`], whatever the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};
use tokio::sync::{mpsc, oneshot};

use crate::{Cache, CacheHealth, Entry, Rate, Taken};

/// Requests and values that wait for the server; more are lost and counted.
const QUEUE: usize = 8_192;
/// Most that goes out at once.
const PIPELINE: usize = 256;
/// How long who asks may wait for an answer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long the server may take for one pipeline.
const ANSWER: Duration = Duration::from_millis(200);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps ARGV[2] in version ARGV[1] (20 digits) for ARGV[3] ms, unless a newer one is there.
const PUT: &str = "local known = redis.call('HGET', KEYS[1], 'v')
if known and known > ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";

/// Takes one of a rate of ARGV[1] in ARGV[2] microseconds, by the server's clock; -1 if it was taken, else the microseconds
/// until there is one. KEYS[1] holds when the rate will be as if nothing had been taken.
const TAKE: &str = "local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local window = tonumber(ARGV[2])
local filled = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + math.floor(window / tonumber(ARGV[1]))
local over = filled - now - window
if over > 0 then return over end
redis.call('SET', KEYS[1], string.format('%.0f', filled), 'PX', math.ceil((filled - now) / 1000) + 1)
return -1";

/// Where the cache is.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]`. Never shown.
    pub url: String,
    /// What all keys begin with: pools that share a server need different ones.
    pub prefix: String,
}

/// A server of Redis.
pub struct RedisCache {
    prefix: String,
    requests: mpsc::Sender<Request>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    served: AtomicU64,
    lost: AtomicU64,
    away: Mutex<Option<(Instant, String)>>,
}

enum Request {
    Put(String, Entry, Duration),
    Get(String, oneshot::Sender<Option<Entry>>),
    Take(String, Rate, oneshot::Sender<Taken>),
}

/// The address of the server is none.
#[derive(Debug, thiserror::Error)]
#[error("the address of the Redis server cannot be used ({0}): write redis://HOST:PORT")]
pub struct AddressError(String);

impl RedisCache {
    /// A cache on this server, which may be away now. Its task runs on the runtime that this is called on, until the cache is
    /// dropped.
    ///
    /// # Errors
    /// If the address cannot be used. It does not show the password.
    pub fn new(options: &RedisOptions) -> Result<Self, AddressError> {
        let client = Client::open(options.url.as_str());
        let client = client.map_err(|error| AddressError(error.category().to_owned()))?;
        let (requests, waiting) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        tokio::spawn(Server { client, counters: Arc::clone(&counters), waiting, connection: None, next: None }.run());
        Ok(Self { prefix: options.prefix.clone(), requests, counters })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Hands a request over; false if too many wait.
    fn hand_over(&self, request: Request) -> bool {
        let handed = self.requests.try_send(request).is_ok();
        if !handed {
            self.counters.lose(1);
        }
        handed
    }

    /// The answer to a request, or `absent` if it does not come in time.
    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
        absent: T,
    ) -> BoxFuture<'static, T> {
        let (to, answer) = oneshot::channel();
        if !self.hand_over(request(to)) {
            return ready(absent).boxed();
        }
        async move { tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok).unwrap_or(absent) }.boxed()
    }
}

impl Cache for RedisCache {
    fn put(&self, key: &str, entry: Entry, ttl: Duration) {
        self.hand_over(Request::Put(self.key(key), entry, ttl));
    }

    fn get(&self, key: &str) -> BoxFuture<'static, Option<Entry>> {
        self.ask(|to| Request::Get(self.key(key), to), None)
    }

    fn take(&self, key: &str, rate: Rate) -> BoxFuture<'static, Taken> {
        if rate.count == 0 {
            return ready(Taken::Exceeded(rate.window)).boxed();
        }
        self.ask(|to| Request::Take(self.key(key), rate, to), Taken::Unknown)
    }

    fn health(&self) -> CacheHealth {
        let Counters { served, lost, away } = &*self.counters;
        let away = away.lock().as_ref().map(|(since, cause)| (since.elapsed(), cause.clone()));
        CacheHealth { served: served.load(Ordering::Relaxed), lost: lost.load(Ordering::Relaxed), away }
    }
}

impl Counters {
    fn lose(&self, count: usize) {
        self.lost.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn is_there(&self) {
        if let Some((since, _)) = self.away.lock().take() {
            tracing::info!(away = ?since.elapsed(), "Redis answers again");
        }
    }

    fn is_away(&self, error: &RedisError) {
        let mut away = self.away.lock();
        match &mut *away {
            Some((_, cause)) => *cause = error.to_string(),
            None => {
                tracing::warn!(%error, "Redis does not answer; the pool goes on without it");
                *away = Some((Instant::now(), error.to_string()));
            }
        }
    }
}

/// Who has the connection.
struct Server {
    client: Client,
    counters: Arc<Counters>,
    waiting: mpsc::Receiver<Request>,
    connection: Option<MultiplexedConnection>,
    /// When it may be tried to connect again.
    next: Option<Instant>,
}

impl Server {
    async fn run(mut self) {
        let mut requests = Vec::with_capacity(PIPELINE);
        // The server is looked for at the start, so that it is known whether it is there.
        self.connect().await;
        while self.waiting.recv_many(&mut requests, PIPELINE).await > 0 {
            let count = requests.len();
            if self.serve(&mut requests).await {
                self.counters.served.fetch_add(count as u64, Ordering::Relaxed);
            } else {
                self.counters.lose(count);
            }
            // Who is not answered learns it by that.
            requests.clear();
        }
    }

    async fn connect(&mut self) {
        let config = AsyncConnectionConfig::new();
        let config = config.set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => (self.connection, self.next) = (Some(connection), None),
            Err(error) => {
                self.counters.is_away(&error);
                self.next = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// Sends requests and hands out their answers; false if there are none.
    async fn serve(&mut self, requests: &mut Vec<Request>) -> bool {
        if self.connection.is_none() && self.next.is_none_or(|next| next <= Instant::now()) {
            self.connect().await;
        }
        let Some(connection) = &mut self.connection else { return false };
        let answers = pipeline(requests).query_async::<Vec<Value>>(connection).await;
        match answers {
            Ok(answers) => {
                self.counters.is_there();
                requests.drain(..).zip(answers).for_each(|(request, answer)| request.answered(answer));
                true
            }
            Err(error) => {
                self.counters.is_away(&error);
                self.connection = None;
                // At once, if the server was only started anew.
                self.next = error.is_timeout().then(|| Instant::now() + PAUSE);
                false
            }
        }
    }
}

fn pipeline(requests: &[Request]) -> Pipeline {
    let mut all = Pipeline::with_capacity(requests.len());
    // A server that was started anew or flushed does not know scripts by their hash: each goes with its text, of a few hundred
    // bytes.
    for request in requests {
        match request {
            Request::Put(key, Entry { version, value }, ttl) => {
                let (version, ttl) = (format!("{version:020}"), u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
                all.cmd("EVAL").arg(PUT).arg(1).arg(key).arg(version).arg(&value[..]).arg(ttl.max(1));
            }
            Request::Get(key, _) => {
                all.cmd("HMGET").arg(key).arg("v").arg("d");
            }
            Request::Take(key, Rate { count, window }, _) => {
                let window = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
                all.cmd("EVAL").arg(TAKE).arg(1).arg(key).arg(*count).arg(window);
            }
        }
    }
    all
}

impl Request {
    /// Hands the answer to who asked, if anybody still waits.
    fn answered(self, answer: Value) {
        match self {
            Self::Put(..) => {}
            Self::Get(_, to) => {
                // Who has asked may have gone.
                let _ = to.send(entry(answer));
            }
            Self::Take(_, _, to) => {
                let taken = match answer {
                    Value::Int(-1) => Taken::Granted,
                    Value::Int(over) => Taken::Exceeded(Duration::from_micros(u64::try_from(over).unwrap_or(0))),
                    _ => Taken::Unknown,
                };
                let _ = to.send(taken);
            }
        }
    }
}

/// A value as [`PUT`] keeps it; `None` for anything else.
fn entry(answer: Value) -> Option<Entry> {
    let Value::Array(parts) = answer else { return None };
    match <[Value; 2]>::try_from(parts).ok()? {
        [Value::BulkString(version), Value::BulkString(value)] => {
            Some(Entry { version: std::str::from_utf8(&version).ok()?.parse().ok()?, value: Bytes::from(value) })
        }
        _ => None,
    }
}
