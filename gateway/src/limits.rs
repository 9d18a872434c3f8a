//! What one address may do: connections, connects and messages per time, and bans of those that send nothing worth
//! having. IPv6 counts by /64, which is what one customer has.
//!
//! Thousands of miners may share an address, so the defaults bound one address to a part of a gateway and never to one
//! miner's worth; and a ban keeps new connections out, while of those that are there it ends only the bad ones.
//!
//! No message takes a lock: a connection counts for itself, and adds to its address every [`BATCH`] messages, and its
//! shares at each sweep as well. What is known of an address goes when it is as if it had never come; there are at most
//! `max_connections` with connections and [`MAX_BANS`] without.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::Mutex;
use sluice_cache::{Rate, Taken};

use crate::cached::{Cached, Visit};
use crate::status::{add, value};

/// Messages, and shares, that a connection counts before it adds them to its address.
const BATCH: u32 = 16;
/// Bans at once. Beyond them the miner is disconnected, but may come again.
const MAX_BANS: usize = 1 << 16;
/// Addresses beyond connections and bans that may be known before those are forgotten that have neither.
const SLACK: usize = 1 << 12;
/// Seconds of the rate of messages that may come at once.
const MESSAGE_BURST: u64 = 10;
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Limits of each address.
#[derive(Clone, Debug)]
pub struct LimitConfig {
    /// Networks without limits.
    pub unlimited: Vec<IpNet>,
    /// Connections at once; 0 is no limit.
    pub connections: u64,
    /// Connects per minute, all of which may come at once; 0 is no limit.
    pub connects: u64,
    /// Messages per second, of which those of 10 s may come at once; 0 is no limit.
    pub messages: u64,
    /// How long a ban lasts; zero means no bans.
    pub ban: Duration,
    /// Percent of the shares of an address that must be invalid for a ban.
    pub ban_percent: u64,
    /// Invalid shares within `ban_window` that it takes.
    pub ban_count: u64,
    /// See `ban_count`.
    pub ban_window: Duration,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            unlimited: ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect(),
            connections: 10_000,
            connects: 6_000,
            messages: 10_000,
            ban: Duration::from_secs(600),
            ban_percent: 95,
            ban_count: 1_000,
            ban_window: MINUTE,
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The address is banned.
    Banned,
    /// It has as many connections as it may have.
    TooMany,
    /// It connects too often.
    TooOften,
}

impl Refusal {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Banned => "the address is banned",
            Self::TooMany => "the address has address_connections already",
            Self::TooOften => "the address connects more often than address_connects",
        }
    }
}

/// What limits did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitStatus {
    /// Addresses that are banned now.
    pub banned: u64,
    /// Bans since the start.
    pub bans: u64,
    /// Bans that were not kept because there were too many.
    pub bans_lost: u64,
    /// Connections refused because of a ban.
    pub refused_banned: u64,
    /// Connections refused because the address had too many.
    pub refused_many: u64,
    /// Connections refused because the address connected too often.
    pub refused_often: u64,
    /// Times that a connection was not read from for a while, since its address sent too many messages.
    pub throttled: u64,
}

/// The addresses that are known.
pub(crate) struct Limits {
    config: LimitConfig,
    /// What other gateways are told and asked.
    cached: Option<Cached>,
    max_connections: usize,
    start: Instant,
    known: Mutex<Known>,
    bans: AtomicU64,
    bans_lost: AtomicU64,
    refused: [AtomicU64; 3],
    throttled: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    addresses: HashMap<IpAddr, Arc<Address>>,
    banned: usize,
}

#[derive(Debug)]
struct Address {
    ip: IpAddr,
    account: Mutex<Account>,
}

/// What is known of an address. Times are since the start.
#[derive(Debug, Default)]
struct Account {
    connections: u64,
    connects: Bucket,
    messages: Bucket,
    /// When the shares began to be counted.
    since: Duration,
    good: u64,
    bad: u64,
    banned_until: Duration,
    /// With other gateways it has connected more often than it may; until then it does not here either.
    held_until: Duration,
}

/// A token bucket (GCRA): when it will be full again. Own code, as it is three lines and takes the time as it is given.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Duration);

impl Bucket {
    /// Takes `count` items, of which `rate` come back per `per`.
    fn take(&mut self, count: u64, now: Duration, rate: u64, per: Duration) {
        let nanos = u128::from(count) * per.as_nanos() / u128::from(rate.max(1));
        self.0 = self.0.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    }

    /// Whether no more than what comes back in `burst` is missing.
    fn holds(&self, now: Duration, burst: Duration) -> bool {
        self.0.saturating_sub(now) <= burst
    }
}

impl Limits {
    pub(crate) fn new(config: LimitConfig, max_connections: usize, cached: Option<Cached>) -> Self {
        Self {
            config,
            cached,
            max_connections,
            start: Instant::now(),
            known: Mutex::default(),
            bans: AtomicU64::new(0),
            bans_lost: AtomicU64::new(0),
            refused: Default::default(),
            throttled: AtomicU64::new(0),
        }
    }

    /// Lets a connection from `ip` in; `None` where the address has no limits.
    pub(crate) fn admit(&self, ip: IpAddr, now: Instant) -> Result<Option<Visitor>, Refusal> {
        let ip = ip.to_canonical();
        if self.config.unlimited.iter().any(|net| net.contains(&ip)) {
            return Ok(None);
        }
        let now = self.since_start(now);
        let address = self.address(network_of(ip), now);
        let admitted = self.enter(&mut address.account.lock(), now);
        match admitted {
            Ok(()) => {
                self.ask_others(&address);
                Ok(Some(Visitor { address, used: 0, throttled: false, good: 0, bad: 0 }))
            }
            Err(refusal) => {
                add(&self.refused[refusal as usize], 1);
                Err(refusal)
            }
        }
    }

    /// Asks what other gateways know of an address, while its connection goes on: it counts for the next ones.
    fn ask_others(&self, address: &Arc<Address>) {
        let Some(cached) = &self.cached else { return };
        let connects = Some(self.config.connects).filter(|count| *count > 0);
        let asked = cached.visit(address.ip, connects.map(|count| Rate { count, window: MINUTE }));
        let (address, start, bans) = (Arc::clone(address), self.start, !self.config.ban.is_zero());
        tokio::spawn(async move {
            let Visit { taken, banned } = asked.await;
            let now = start.elapsed();
            let mut account = address.account.lock();
            if let Taken::Exceeded(after) = taken {
                account.held_until = now + after;
            }
            if let Some(ban) = banned.filter(|_| bans) {
                account.banned_until = account.banned_until.max(now + ban);
            }
        });
    }

    fn enter(&self, account: &mut Account, now: Duration) -> Result<(), Refusal> {
        if account.banned_until > now {
            return Err(Refusal::Banned);
        }
        if self.config.connections > 0 && account.connections >= self.config.connections {
            return Err(Refusal::TooMany);
        }
        if account.held_until > now {
            return Err(Refusal::TooOften);
        }
        if self.config.connects > 0 {
            let mut connects = account.connects;
            connects.take(1, now, self.config.connects, MINUTE);
            if !connects.holds(now, MINUTE) {
                return Err(Refusal::TooOften);
            }
            account.connects = connects;
        }
        account.connections += 1;
        Ok(())
    }

    fn address(&self, ip: IpAddr, now: Duration) -> Arc<Address> {
        let mut known = self.known.lock();
        if known.addresses.len() >= self.max_connections + MAX_BANS + SLACK && !known.addresses.contains_key(&ip) {
            self.forget(&mut known, now, true);
        }
        let new = || Arc::new(Address { ip, account: Mutex::default() });
        Arc::clone(known.addresses.entry(ip).or_insert_with(new))
    }

    /// Forgets addresses that are as if they had never come. To be called every few seconds.
    pub(crate) fn prune(&self, now: Instant) {
        self.forget(&mut self.known.lock(), self.since_start(now), false);
    }

    /// Keeps addresses with connections or a ban, and unless it `must` make room those that may not do all again yet.
    fn forget(&self, known: &mut Known, now: Duration, must: bool) {
        let mut banned = 0;
        known.addresses.retain(|_, address| {
            let account = address.account.lock();
            let is_banned = account.banned_until > now;
            banned += usize::from(is_banned);
            let counted = account.bad > 0 && now.saturating_sub(account.since) <= self.config.ban_window;
            let owes = account.connects.0 > now || account.messages.0 > now || account.held_until > now;
            // One that is just being let in is held by its caller.
            let held = account.connections > 0 || Arc::strong_count(address) > 1;
            is_banned || held || (!must && (counted || owes))
        });
        known.banned = banned;
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Bans an address, if the list has room.
    fn ban(&self, address: &Address, now: Duration) {
        let mut known = self.known.lock();
        // Bans that have ended are taken off the list every few seconds, not here: that takes long where there are many.
        if known.banned >= MAX_BANS {
            add(&self.bans_lost, 1);
            tracing::warn!(address = %address.ip, "an address is not banned, since {MAX_BANS} others are");
            return;
        }
        known.banned += 1;
        drop(known);
        address.account.lock().banned_until = now + self.config.ban;
        add(&self.bans, 1);
        if let Some(cached) = &self.cached {
            cached.note_ban(address.ip, self.config.ban);
        }
        tracing::warn!(address = %address.ip, ban = ?self.config.ban, "an address is banned: its shares are invalid");
    }

    pub(crate) fn status(&self, now: Instant) -> LimitStatus {
        let now = self.since_start(now);
        let known = self.known.lock();
        let banned = known.addresses.values().filter(|address| address.account.lock().banned_until > now).count();
        let [refused_banned, refused_many, refused_often] = self.refused.each_ref().map(value);
        LimitStatus {
            banned: banned as u64,
            bans: value(&self.bans),
            bans_lost: value(&self.bans_lost),
            refused_banned,
            refused_many,
            refused_often,
            throttled: value(&self.throttled),
        }
    }
}

/// What is limited of an IPv6 address is its network.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// A connection of an address with limits. Dropped, the address has one connection less.
#[derive(Debug)]
pub(crate) struct Visitor {
    address: Arc<Address>,
    /// Messages that are not yet taken from the address's.
    used: u32,
    throttled: bool,
    /// Shares that are not yet added to the address's.
    good: u32,
    bad: u32,
}

impl Visitor {
    /// Counts a message.
    pub(crate) fn message(&mut self) {
        // Without a limit nobody takes them from the address's.
        self.used = self.used.saturating_add(1);
    }

    /// Whether the connection may be read from. Where it may not, it is to be asked again at the next sweep.
    pub(crate) fn may_read(&mut self, limits: &Limits) -> bool {
        if (self.used < BATCH && !self.throttled) || limits.config.messages == 0 {
            return true;
        }
        let now = limits.since_start(Instant::now());
        let mut account = self.address.account.lock();
        account.messages.take(self.used.into(), now, limits.config.messages, SECOND);
        self.used = 0;
        let holds = account.messages.holds(now, SECOND * MESSAGE_BURST as u32);
        if !holds && !self.throttled {
            add(&limits.throttled, 1);
        }
        self.throttled = !holds;
        holds
    }

    /// Whether it is to be asked again.
    pub(crate) fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Counts shares; false if the connection is to be ended.
    pub(crate) fn shares(&mut self, good: u32, bad: u32, limits: &Limits) -> bool {
        self.good += good;
        self.bad += bad;
        self.good + self.bad < BATCH || self.settle(limits, Instant::now())
    }

    /// Adds what was counted to the address's; false if the connection is to be ended.
    pub(crate) fn settle(&mut self, limits: &Limits, now: Instant) -> bool {
        let (good, bad) = (std::mem::take(&mut self.good).into(), std::mem::take(&mut self.bad).into());
        let config = &limits.config;
        if good + bad == 0 || config.ban.is_zero() {
            return true;
        }
        let now = limits.since_start(now);
        let too_bad = |good: u64, bad: u64| bad > 0 && bad * 100 >= (good + bad) * config.ban_percent;
        let mut account = self.address.account.lock();
        if now.saturating_sub(account.since) > config.ban_window {
            (account.since, account.good, account.bad) = (now, 0, 0);
        }
        account.good += good;
        account.bad += bad;
        let is_banned = account.banned_until > now;
        let flood = account.bad >= config.ban_count && too_bad(account.good, account.bad);
        drop(account);
        if flood && !is_banned {
            limits.ban(&self.address, now);
        }
        // Neighbours whose shares are good go on.
        !((flood || is_banned) && too_bad(good, bad))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.address.account.lock().connections -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut LimitConfig)) -> Limits {
        let mut config = LimitConfig::default();
        change(&mut config);
        Limits::new(config, 100, None)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn admit(limits: &Limits, from: &str, after: u64) -> Result<Visitor, Refusal> {
        let now = limits.start + Duration::from_secs(after);
        limits.admit(ip(from), now).map(|visitor| visitor.unwrap())
    }

    #[test]
    fn connections_at_once_are_limited_by_address_and_by_network_of_64_bits() {
        let limits = limits(|config| config.connections = 2);
        let one = admit(&limits, "192.0.2.1", 0).unwrap();
        let _two = admit(&limits, "::ffff:192.0.2.1", 0).unwrap();
        assert_eq!(admit(&limits, "192.0.2.1", 0).unwrap_err(), Refusal::TooMany);
        assert!(admit(&limits, "192.0.2.2", 0).is_ok());
        let _six = (admit(&limits, "2001:db8::1", 0).unwrap(), admit(&limits, "2001:db8::ffff:0:0:1", 0).unwrap());
        assert_eq!(admit(&limits, "2001:db8:0:0:1::", 0).unwrap_err(), Refusal::TooMany);
        assert!(admit(&limits, "2001:db8:0:1::1", 0).is_ok());
        drop(one);
        assert!(admit(&limits, "192.0.2.1", 0).is_ok());
        assert_eq!(limits.status(limits.start).refused_many, 2);
    }

    #[test]
    fn connects_per_minute_are_limited_and_come_back() {
        let limits = limits(|config| config.connects = 60);
        for _ in 0..60 {
            admit(&limits, "192.0.2.1", 0).unwrap();
        }
        assert_eq!(admit(&limits, "192.0.2.1", 0).unwrap_err(), Refusal::TooOften);
        assert!(admit(&limits, "192.0.2.9", 0).is_ok());
        for _ in 0..3 {
            admit(&limits, "192.0.2.1", 3).unwrap();
        }
        assert_eq!(admit(&limits, "192.0.2.1", 3).unwrap_err(), Refusal::TooOften);
        assert_eq!(limits.status(limits.start).refused_often, 2);
    }

    #[test]
    fn unlimited_networks_are_not_even_known() {
        let limits = limits(|config| {
            config.connections = 1;
            config.unlimited.push("10.0.0.0/8".parse().unwrap());
        });
        for from in ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"] {
            assert!(limits.admit(ip(from), limits.start).unwrap().is_none(), "{from}");
        }
        assert!(limits.known.lock().addresses.is_empty());
    }

    #[test]
    fn messages_beyond_the_rate_wait() {
        let limits = limits(|config| config.messages = 1);
        let mut visitor = admit(&limits, "192.0.2.1", 0).unwrap();
        (0..BATCH - 1).for_each(|_| visitor.message());
        assert!(visitor.may_read(&limits), "no batch yet");
        (0..1_000_000).for_each(|_| visitor.message());
        assert!(!visitor.may_read(&limits) && visitor.is_throttled() && !visitor.may_read(&limits));
        let mut other = admit(&limits, "192.0.2.1", 0).unwrap();
        (0..BATCH).for_each(|_| other.message());
        assert!(!other.may_read(&limits), "the address's other connections wait too");
        assert_eq!(limits.status(limits.start).throttled, 2);
        visitor.address.account.lock().messages = Bucket::default();
        assert!(visitor.may_read(&limits) && !visitor.is_throttled());
    }

    #[test]
    fn messages_without_a_limit_never_are_too_many() {
        let limits = limits(|config| config.messages = 0);
        let mut visitor = admit(&limits, "192.0.2.1", 0).unwrap();
        visitor.used = u32::MAX;
        visitor.message();
        assert!(visitor.may_read(&limits));
    }

    fn bannable() -> Limits {
        limits(|config| {
            config.ban_count = 100;
            config.ban_percent = 90;
        })
    }

    #[test]
    fn a_flood_of_invalid_shares_is_banned_for_a_time() {
        let limits = bannable();
        let now = limits.start;
        let mut flood = admit(&limits, "192.0.2.1", 0).unwrap();
        let mut neighbour = admit(&limits, "192.0.2.1", 0).unwrap();
        assert!((0..96).all(|_| flood.shares(0, 1, &limits)));
        neighbour.shares(5, 0, &limits);
        assert!(!(0..16).all(|_| flood.shares(0, 1, &limits)), "100 of them");
        assert!(neighbour.settle(&limits, Instant::now()), "who sends good shares goes on");
        assert_eq!(admit(&limits, "192.0.2.1", 0).unwrap_err(), Refusal::Banned);
        assert!(admit(&limits, "192.0.2.2", 0).is_ok());
        assert!(!(0..16).all(|_| neighbour.shares(0, 1, &limits)), "who is as bad goes too");
        let status = limits.status(now);
        assert_eq!((status.banned, status.bans, status.refused_banned), (1, 1, 1));
        drop((flood, neighbour));
        limits.prune(now + SECOND);
        assert_eq!(limits.known.lock().addresses.len(), 1, "a ban outlives its connections");
        let later = now + Duration::from_secs(700);
        assert_eq!(limits.status(later).banned, 0);
        limits.prune(later);
        assert!(limits.known.lock().addresses.is_empty());
    }

    /// Thousands of miners may share an address.
    #[test]
    fn one_bad_miner_does_not_get_its_neighbours_banned() {
        let limits = bannable();
        let mut farm = admit(&limits, "192.0.2.1", 0).unwrap();
        let mut bad = admit(&limits, "192.0.2.1", 0).unwrap();
        for _ in 0..2_000 {
            assert!(farm.shares(2, 0, &limits) && bad.shares(0, 1, &limits));
        }
        assert_eq!(limits.status(limits.start).bans, 0);
    }

    #[test]
    fn old_shares_and_few_shares_do_not_count() {
        let limits = bannable();
        let mut visitor = admit(&limits, "192.0.2.1", 0).unwrap();
        for minute in 0..10 {
            visitor.bad = 60;
            let now = limits.start + MINUTE * minute + SECOND * minute;
            assert!(visitor.settle(&limits, now), "60 a minute are few");
        }
        let off = super::tests::limits(|config| config.ban = Duration::ZERO);
        let mut visitor = admit(&off, "192.0.2.1", 0).unwrap();
        assert!((0..10_000).all(|_| visitor.shares(0, 1, &off)));
    }

    /// Two gateways of one pool count an address together, and what one bans the other does not let in.
    #[tokio::test]
    async fn gateways_with_one_cache_count_together() {
        let cache: Arc<dyn sluice_cache::Cache> = Arc::new(sluice_cache::MemoryCache::default());
        let gateway = || {
            let config = LimitConfig { connects: 3, ban_count: 10, ..LimitConfig::default() };
            Limits::new(config, 100, Some(Cached::new(Arc::clone(&cache), [7; 16])))
        };
        let (one, other) = (gateway(), gateway());
        let settled = || tokio::time::sleep(Duration::from_millis(20));
        let admit = |limits: &Limits, from: &str| limits.admit(ip(from), Instant::now()).map(|it| it.unwrap());
        for limits in [&one, &other, &one] {
            admit(limits, "192.0.2.1").unwrap();
            settled().await;
        }
        // The fourth is let in by a gateway that has seen one of the three, and counted.
        admit(&other, "192.0.2.1").unwrap();
        settled().await;
        assert_eq!(admit(&other, "192.0.2.1").unwrap_err(), Refusal::TooOften);
        let mut flood = admit(&one, "192.0.2.2").unwrap();
        assert!(!(0..20).all(|_| flood.shares(0, 1, &one)));
        admit(&other, "192.0.2.2").unwrap();
        settled().await;
        assert_eq!(admit(&other, "192.0.2.2").unwrap_err(), Refusal::Banned);
        let stranger = Limits::new(LimitConfig::default(), 100, Some(Cached::new(cache, [8; 16])));
        admit(&stranger, "192.0.2.2").unwrap();
        settled().await;
        assert!(admit(&stranger, "192.0.2.2").is_ok(), "another pool's bans are its own");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let limits = limits(|config| {
            config.ban_count = 1;
            config.connects = 1;
        });
        let bound = limits.max_connections + MAX_BANS + SLACK;
        for number in 0..bound as u32 + 10 {
            let from = IpAddr::V4((0x0b00_0000 + number).into());
            let mut visitor = limits.admit(from, limits.start).unwrap().unwrap();
            visitor.bad = 1;
            visitor.settle(&limits, limits.start);
        }
        let status = limits.status(limits.start);
        assert_eq!((status.banned, status.bans), (MAX_BANS as u64, MAX_BANS as u64));
        assert!(status.bans_lost > 0 && limits.known.lock().addresses.len() <= bound);
    }
}
