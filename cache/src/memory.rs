//! The twin in memory: the same for the gateways of one process, and what others are held against in tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use hashlink::LruCache;
use parking_lot::Mutex;

use crate::{Cache, CacheHealth, Entry, Rate, Taken};

/// Values, and rates, at once; the one that nobody asked for longest goes.
const ENTRIES: usize = 1 << 17;

/// A cache in this process.
pub struct MemoryCache {
    values: Mutex<LruCache<Box<str>, (Entry, Instant)>>,
    /// When each rate will be as if nothing had been taken.
    rates: Mutex<LruCache<Box<str>, Instant>>,
    served: AtomicU64,
}

impl Default for MemoryCache {
    fn default() -> Self {
        let (values, rates) = (Mutex::new(LruCache::new(ENTRIES)), Mutex::new(LruCache::new(ENTRIES)));
        Self { values, rates, served: AtomicU64::new(0) }
    }
}

impl MemoryCache {
    fn count(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self, key: &str, now: Instant) -> Option<Entry> {
        self.values.lock().get(key).filter(|(_, until)| *until > now).map(|(entry, _)| entry.clone())
    }

    fn take_at(&self, key: &str, rate: Rate, now: Instant) -> Taken {
        let Some(each) = rate.window.checked_div(u32::try_from(rate.count).unwrap_or(u32::MAX)) else {
            return Taken::Exceeded(rate.window);
        };
        let mut rates = self.rates.lock();
        let filled = rates.get(key).copied().unwrap_or(now).max(now) + each;
        match filled.saturating_duration_since(now).checked_sub(rate.window).filter(|over| !over.is_zero()) {
            Some(over) => Taken::Exceeded(over),
            None => {
                rates.insert(key.into(), filled);
                Taken::Granted
            }
        }
    }
}

impl Cache for MemoryCache {
    fn put(&self, key: &str, entry: Entry, ttl: Duration) {
        self.count();
        let now = Instant::now();
        if self.value(key, now).is_none_or(|known| known.version <= entry.version) {
            self.values.lock().insert(key.into(), (entry, now + ttl));
        }
    }

    fn get(&self, key: &str) -> BoxFuture<'static, Option<Entry>> {
        self.count();
        ready(self.value(key, Instant::now())).boxed()
    }

    fn take(&self, key: &str, rate: Rate) -> BoxFuture<'static, Taken> {
        self.count();
        ready(self.take_at(key, rate, Instant::now())).boxed()
    }

    fn health(&self) -> CacheHealth {
        CacheHealth { served: self.served.load(Ordering::Relaxed), ..CacheHealth::default() }
    }
}
