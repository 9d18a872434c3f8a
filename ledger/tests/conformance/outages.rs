//! Databases that go away, at the worst moments: the ledger lags, it loses nothing and doubles nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sluice_ledger::{LedgerError, open, open_postgres, open_sqlite};
use sluice_proto::v1::BlockStatus;
use sluice_testkit::postgres::Postgres;

use crate::fixture::Fixture;
use crate::world::{Topics, all, outcome, pplns, slice_end, tally};

const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(60);

fn topics(blocks: u8) -> Topics {
    let mut topics = Topics::new(1);
    for number in 1..=blocks {
        let slice = u64::from(number);
        topics.tally(tally(0, slice, "alice", 600)).tally(tally(0, slice, "bob", 300)).end(slice_end(0, 1, slice));
        topics.outcome(outcome(number, slice, 5_000_000_001, "bob", BlockStatus::Accepted));
    }
    topics
}

/// What a ledger holds to which all was applied without trouble.
fn expected(topics: &Topics) -> sluice_ledger::LedgerDigest {
    let fixture = Fixture::sqlite();
    fixture.store.apply(&all(topics, pplns(2, 100))).unwrap();
    fixture.store.digest().unwrap()
}

#[test]
fn a_postgres_that_is_down_is_waited_for() {
    let mut server = Postgres::start().unwrap();
    let store = open_postgres(&server.create_database().unwrap(), LONG).unwrap();
    let (first, second) = (topics(1), topics(2));
    store.apply(&all(&first, pplns(2, 100))).unwrap();
    server.stop().unwrap();
    assert!(matches!(store.totals(), Err(LedgerError::Unavailable(_))), "reading does not wait");
    let (done, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(store.apply(&all(&second, pplns(2, 100)))).unwrap());
        assert!(waits.recv_timeout(SHORT).is_err(), "writing waits");
        server.launch().unwrap();
        let applied = waits.recv_timeout(LONG).unwrap().unwrap();
        assert_eq!((applied.repeats, applied.credited), (4, 1));
    });
    assert_eq!(store.digest().unwrap(), expected(&second));
}

#[test]
fn an_interrupt_ends_the_waiting_for_postgres() {
    let mut server = Postgres::start().unwrap();
    let store = open_postgres(&server.create_database().unwrap(), LONG).unwrap();
    server.stop().unwrap();
    let (done, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(store.apply(&all(&topics(1), pplns(2, 100)))).unwrap());
        assert!(waits.recv_timeout(SHORT).is_err());
        store.interrupt();
        let ended = waits.recv_timeout(Duration::from_secs(4)).unwrap();
        assert!(matches!(ended, Err(LedgerError::Interrupted)), "{ended:?}");
    });
}

/// Between the ledger and the server: lets everything through, but while cuts are left it cuts the connection at each
/// commit, by turns before (even) and after (odd) the server has heard of it. The answer never arrives.
fn cutting_proxy(server: u16) -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let cuts = Arc::new(AtomicU32::new(0));
    let left = cuts.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap());
            let (from_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || forward(from_server, to_client, |_| Pass::On));
            let left = left.clone();
            std::thread::spawn(move || {
                forward(client, server, |bytes| {
                    if !bytes.windows(7).any(|window| window == b"COMMIT\0") {
                        return Pass::On;
                    }
                    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                        Err(_) => Pass::On,
                        Ok(left) if left % 2 == 0 => Pass::Cut,
                        Ok(_) => Pass::LastWords,
                    }
                });
            });
        }
    });
    (port, cuts)
}

enum Pass {
    On,
    Cut,
    LastWords,
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut judge: impl FnMut(&[u8]) -> Pass) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        let pass = judge(bytes);
        if matches!(pass, Pass::LastWords) {
            // The client is cut off first, so that it cannot see the answer.
            from.shutdown(Shutdown::Both).ok();
        }
        if matches!(pass, Pass::Cut) || to.write_all(bytes).is_err() {
            break;
        }
        if matches!(pass, Pass::LastWords) {
            std::thread::sleep(SHORT);
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

#[test]
fn a_commit_of_unknown_outcome_is_found_out() {
    let server = Postgres::shared().unwrap();
    let direct = server.create_database().unwrap();
    open_postgres(&direct, LONG).unwrap();
    let (port, cuts) = cutting_proxy(server.port());
    let url = direct.replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    let store = open_postgres(&url, LONG).unwrap();
    let mut unseen = 0;
    for blocks in 1..=5 {
        cuts.store(u32::from(blocks) % 3, Ordering::SeqCst);
        // Where the lost commit had happened, the repetition finds every record covered.
        unseen += u32::from(store.apply(&all(&topics(blocks), pplns(2, 100))).unwrap().credited == 0);
    }
    assert_eq!(cuts.load(Ordering::SeqCst), 0, "the connection was cut at every commit that was to be");
    assert_eq!(unseen, 4, "these commits happened without an answer");
    assert_eq!(store.digest().unwrap(), expected(&topics(5)));
    assert!(store.verify().unwrap().findings.is_empty());
}

/// Two processes that both believe the ledger is theirs: each record still counts once.
fn two_writers(fixture: &Fixture) {
    let stores = [fixture.store.clone(), fixture.again()];
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(move || {
                for blocks in 1..=8 {
                    store.apply(&all(&topics(blocks), pplns(2, 100))).unwrap();
                }
            });
        }
    });
    assert_eq!(fixture.store.digest().unwrap(), expected(&topics(8)));
}

#[test]
fn two_writers_on_postgres_count_everything_once() {
    two_writers(&Fixture::postgres());
}

#[test]
fn two_writers_on_sqlite_count_everything_once() {
    two_writers(&Fixture::sqlite());
}

#[test]
fn a_locked_sqlite_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let store = open_sqlite(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (done, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(store.apply(&all(&topics(1), pplns(2, 100)))).unwrap());
        assert!(waits.recv_timeout(Duration::from_secs(2)).is_err(), "longer than SQLite itself waits");
        store.totals().unwrap();
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(waits.recv_timeout(LONG).unwrap().unwrap().credited, 1);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        scope.spawn(|| done.send(store.apply(&all(&topics(2), pplns(2, 100)))).unwrap());
        assert!(waits.recv_timeout(SHORT).is_err());
        store.interrupt();
        assert!(matches!(waits.recv_timeout(LONG).unwrap(), Err(LedgerError::Interrupted)));
        other.execute_batch("ROLLBACK").unwrap();
    });
    assert_eq!(store.apply(&all(&topics(2), pplns(2, 100))).unwrap().credited, 1, "what does not wait is done");
}

#[test]
fn an_address_that_cannot_be_used_is_explained() {
    for url in ["", "mysql://x", "sqlite:", "sqlite://", "postgres://host:port/x"] {
        assert!(matches!(open(url), Err(LedgerError::Url(_))), "{url}");
    }
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/directory/ledger.db");
    assert!(open(&format!("sqlite:{}", missing.display())).is_err());
    std::fs::write(dir.path().join("text"), "no database, but long enough to look like a file of some kind").unwrap();
    assert!(open(&format!("sqlite:{}", dir.path().join("text").display())).is_err());
    assert!(open(&format!("sqlite:{}", dir.path().join("ledger.db").display())).is_ok());
    let server = Postgres::shared().unwrap();
    let start = std::time::Instant::now();
    assert!(matches!(open(&server.url("nosuchdatabase")), Err(LedgerError::Database(_))));
    assert!(start.elapsed() < Duration::from_secs(20), "what waiting does not help is not waited for");
    let unreachable = open_postgres("postgres://sluice:hunter2@127.0.0.1:1/x", SHORT);
    let Err(LedgerError::Unavailable(text)) = unreachable else { panic!("nobody listens there") };
    assert!(!text.contains("hunter2"));
}

/// The store may be used and dropped where a runtime runs.
#[test]
fn a_postgres_ledger_works_on_a_runtime_thread() {
    let fixture = Fixture::postgres();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async move {
        fixture.store.apply(&all(&topics(1), pplns(2, 100))).unwrap();
        assert_eq!(fixture.store.digest().unwrap(), expected(&topics(1)));
        drop(fixture);
    });
}
