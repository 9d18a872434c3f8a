//! What every cache must do, on the one in memory and on a real Redis; and what happens when that one dies.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_cache::{Cache, Entry, MemoryCache, Rate, RedisCache, RedisOptions, Taken};
use sluice_testkit::redis::RedisServer;

const HOUR: Duration = Duration::from_secs(3_600);

fn entry(version: u64, value: &'static [u8]) -> Entry {
    Entry { version, value: Bytes::from_static(value) }
}

fn redis(server: &RedisServer, prefix: &str) -> RedisCache {
    RedisCache::new(&RedisOptions { url: server.url(), prefix: prefix.into() }).unwrap()
}

async fn conforms(cache: &dyn Cache) {
    assert_eq!(cache.get("a").await, None);
    cache.put("a", entry(2, b"two"), HOUR);
    assert_eq!(cache.get("a").await, Some(entry(2, b"two")));
    cache.put("a", entry(1, b"one"), HOUR);
    assert_eq!(cache.get("a").await, Some(entry(2, b"two")), "an older one comes late");
    cache.put("a", entry(2, b"2"), HOUR);
    assert_eq!(cache.get("a").await, Some(entry(2, b"2")), "the same version may be put again");
    cache.put("a", entry(u64::MAX, b"\0\xff\r\n"), HOUR);
    assert_eq!(cache.get("a").await, Some(entry(u64::MAX, b"\0\xff\r\n")), "any version, any bytes");
    assert_eq!(cache.get("b").await, None);
    cache.put("short", entry(1, b""), Duration::from_millis(1));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(cache.get("short").await, None, "its time is over");
    cache.put("short", entry(0, b"new"), HOUR);
    assert_eq!(cache.get("short").await, Some(entry(0, b"new")), "nothing older is known");

    let rate = Rate { count: 3, window: HOUR };
    for _ in 0..3 {
        assert_eq!(cache.take("r", rate).await, Taken::Granted);
    }
    let Taken::Exceeded(after) = cache.take("r", rate).await else { panic!("three in an hour") };
    assert!(after > HOUR / 3 - Duration::from_secs(60) && after <= HOUR / 3, "{after:?}");
    assert_eq!(cache.take("other", rate).await, Taken::Granted);
    assert!(matches!(cache.take("none", Rate { count: 0, window: HOUR }).await, Taken::Exceeded(_)));
    let quick = Rate { count: 1, window: Duration::from_millis(20) };
    assert_eq!(cache.take("quick", quick).await, Taken::Granted);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(cache.take("quick", quick).await, Taken::Granted, "it comes back");
    let health = cache.health();
    assert!(health.served > 10 && health.lost == 0 && health.away.is_none(), "{health:?}");
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&MemoryCache::default()).await;
}

#[tokio::test]
async fn redis_conforms() {
    let server = RedisServer::start().unwrap();
    conforms(&redis(&server, "one:")).await;
    // Another pool on the same server sees nothing of it.
    conforms(&redis(&server, "other:")).await;
}

/// Two processes share what one of them has put.
#[tokio::test]
async fn redis_is_shared() {
    let server = RedisServer::start().unwrap();
    let (one, other) = (redis(&server, ""), redis(&server, ""));
    one.put("a", entry(1, b"x"), HOUR);
    assert_eq!(one.get("a").await, Some(entry(1, b"x")), "it has arrived");
    assert_eq!(other.get("a").await, Some(entry(1, b"x")));
    let rate = Rate { count: 2, window: HOUR };
    assert_eq!((one.take("r", rate).await, other.take("r", rate).await), (Taken::Granted, Taken::Granted));
    assert!(matches!(one.take("r", rate).await, Taken::Exceeded(_)));
    // Flushed in mid-flight: what was known is gone, all goes on.
    server.ask("FLUSHALL").unwrap();
    assert_eq!((one.get("a").await, other.take("r", rate).await), (None, Taken::Granted));
}

/// Asks until the cache answers as wanted; a guard against hanging, not a measure.
async fn wait(cache: &dyn Cache, answers: bool) {
    let begun = Instant::now();
    loop {
        cache.put("w", entry(1, b"w"), HOUR);
        if cache.get("w").await.is_some() == answers {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Not there at the start, killed, standing still: every question has its answer, and it says how it is.
#[tokio::test]
async fn a_redis_that_is_away_is_done_without() {
    let mut server = RedisServer::away().unwrap();
    let cache = redis(&server, "");
    let nothing = async || {
        let begun = Instant::now();
        let rate = Rate { count: 1, window: HOUR };
        let (value, taken) = futures::future::join(cache.get("a"), cache.take("r", rate)).await;
        assert_eq!((value, taken), (None, Taken::Unknown));
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not hang");
    };
    nothing().await;
    server.launch().unwrap();
    wait(&cache, true).await;
    assert_eq!(cache.health().away, None);
    let lost = cache.health().lost;
    assert!(lost >= 2);
    server.kill().unwrap();
    nothing().await;
    let health = cache.health();
    assert!(health.lost > lost && health.away.is_some(), "{health:?}");
    server.launch().unwrap();
    wait(&cache, true).await;
    server.stand_still().unwrap();
    for _ in 0..5 {
        nothing().await;
    }
    assert!(cache.health().away.is_some());
    server.go_on().unwrap();
    wait(&cache, true).await;
    assert_eq!(cache.health().away, None);
}

/// More than it can hold at once: the rest is lost, and counted.
#[tokio::test]
async fn what_it_cannot_hold_is_counted() {
    let server = RedisServer::start().unwrap();
    let cache = redis(&server, "");
    wait(&cache, true).await;
    server.stand_still().unwrap();
    for number in 0..20_000 {
        cache.put("a", entry(number, b"x"), HOUR);
    }
    assert!(cache.health().lost >= 20_000 - 8_192 - 256, "{:?}", cache.health());
    server.go_on().unwrap();
    wait(&cache, true).await;
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_without_being_shown() {
    for url in ["", "http://x", "redis://user:secret@:/x:y"] {
        let refused = RedisCache::new(&RedisOptions { url: url.into(), prefix: String::new() });
        let told = refused.map(drop).unwrap_err().to_string();
        assert!(!told.contains("secret"), "{told}");
    }
}
