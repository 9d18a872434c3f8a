//! What every back end holds to, and [`Tables`] on each of them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use bytes::Bytes;
use rocksdb::{Cache, WriteBufferManager};
use sluice_state::{
    Backend, Change, Lineage, MemoryBackend, MemoryLimits, RocksBackend, StateEnv, StateError, TableSpec, Tables,
};

fn specs() -> Vec<TableSpec> {
    vec![TableSpec::plain("vardiff.sessions"), TableSpec::grouped("dedupe.seen", 2)]
}

fn lineage() -> Lineage {
    Lineage { task: "shareproc.0".into(), log_uuid: [7; 16], wiring: "in share.submissions/0 of 8".into() }
}

fn put(table: usize, key: &'static str, value: &'static str) -> Change {
    Change::Put { table, key: Bytes::from_static(key.as_bytes()), value: Bytes::from_static(value.as_bytes()) }
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn all(backend: &dyn Backend, table: usize, from: &[u8], to: Option<&[u8]>) -> Rows {
    let mut rows = Rows::new();
    backend
        .scan(table, from, to, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
    rows
}

fn keys(rows: &Rows) -> Vec<&str> {
    rows.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect()
}

/// Runs `check` on an empty back end of each kind.
fn on_each(check: impl Fn(Box<dyn Backend>)) {
    check(Box::new(MemoryBackend::new(&specs())));
    let dir = tempfile::tempdir().unwrap();
    check(Box::new(rocks(dir.path())));
    check(Box::new(rocks_as(&dir.path().join("unlogged"), RocksBackend::open_unlogged)));
}

fn rocks(dir: &Path) -> RocksBackend {
    rocks_as(&dir.join("state"), RocksBackend::open)
}

fn rocks_as(
    path: &Path,
    open: fn(&Path, &[TableSpec], &Cache, &WriteBufferManager) -> Result<RocksBackend, StateError>,
) -> RocksBackend {
    let cache = Cache::new_lru_cache(1 << 20);
    let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(1 << 20, false, cache.clone());
    open(path, &specs(), &cache, &buffers).unwrap()
}

/// Whoever is killed while it makes a state without a write-ahead log leaves what was written out last, of all tables.
#[test]
fn an_unlogged_state_stands_at_what_was_written_out_last() {
    let dir = tempfile::tempdir().unwrap();
    let [made, left] = ["made", "left"].map(|name| dir.path().join(name));
    let mut backend = rocks_as(&made, RocksBackend::open_unlogged);
    backend.commit(&[put(0, "a", "1"), put(1, "aa1", "1")]).unwrap();
    backend.sync().unwrap();
    let range = Change::DeleteRange { table: 1, from: "aa".into(), to: "ab".into() };
    backend.commit(&[put(0, "a", "2"), range]).unwrap();
    // The files as they are at this moment.
    std::fs::create_dir(&left).unwrap();
    for file in made.read_dir().unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), left.join(file.file_name())).unwrap();
    }
    let left = rocks_as(&left, RocksBackend::open);
    assert_eq!(left.get(0, b"a").unwrap().unwrap(), "1");
    assert_eq!(left.get(1, b"aa1").unwrap().unwrap(), "1");
    drop(backend);
    let made = rocks_as(&made, RocksBackend::open);
    assert_eq!(made.get(0, b"a").unwrap().unwrap(), "2");
    assert_eq!(made.get(1, b"aa1").unwrap(), None);
}

#[test]
fn a_commit_is_read_back_in_order() {
    on_each(|mut backend| {
        backend.commit(&[put(0, "b", "1"), put(0, "a", "2"), put(1, "xx1", "3"), put(0, "b", "4")]).unwrap();
        assert_eq!(backend.get(0, b"b").unwrap().unwrap(), "4");
        assert_eq!(backend.get(1, b"b").unwrap(), None);
        assert_eq!(keys(&all(&*backend, 0, b"", None)), ["a", "b"]);
        assert_eq!(keys(&all(&*backend, 0, b"b", None)), ["b"]);
        assert_eq!(keys(&all(&*backend, 0, b"", Some(b"b"))), ["a"]);
        assert_eq!(keys(&all(&*backend, 0, b"b", Some(b"a"))), [""; 0]);
    });
}

#[test]
fn changes_apply_in_the_order_given() {
    on_each(|mut backend| {
        backend.commit(&[put(1, "aa1", "1"), put(1, "ab1", "1"), put(1, "ac1", "1")]).unwrap();
        let range = Change::DeleteRange { table: 1, from: "aa".into(), to: "ac".into() };
        let delete = Change::Delete { table: 1, key: "ac1".into() };
        backend.commit(&[put(1, "aa2", "1"), range, put(1, "aa1", "2"), delete]).unwrap();
        let rows = all(&*backend, 1, b"", None);
        assert_eq!(rows, [(b"aa1".to_vec(), b"2".to_vec())]);
    });
}

#[test]
fn a_scan_stops_when_told_to() {
    on_each(|mut backend| {
        let changes: Vec<Change> = (0..1000u32)
            .map(|i| Change::Put { table: 0, key: i.to_be_bytes().to_vec().into(), value: Bytes::new() })
            .collect();
        backend.commit(&changes).unwrap();
        let mut seen = 0;
        let mut stop_at_600 = |_: &[u8], _: &[u8]| {
            seen += 1;
            seen < 600
        };
        backend.scan(0, b"", None, &mut stop_at_600).unwrap();
        assert_eq!(seen, 600);
        assert_eq!(all(&*backend, 0, b"", None).len(), 1000);
    });
}

#[test]
fn a_commit_to_a_table_that_is_not_there_changes_nothing() {
    on_each(|mut backend| {
        assert!(matches!(backend.commit(&[put(0, "a", "1"), put(9, "a", "1")]), Err(StateError::NoTable(_))));
        assert_eq!(backend.get(0, b"a").unwrap(), None);
        assert!(backend.get(9, b"a").is_err());
    });
}

#[test]
fn a_reader_sees_commits_by_table_name() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        let reader = tables.reader();
        tables.put(0, b"k", b"v").unwrap();
        assert_eq!(reader.get("vardiff.sessions", b"k").unwrap(), None, "not committed yet");
        tables.commit().unwrap();
        assert_eq!(reader.get("vardiff.sessions", b"k").unwrap().unwrap(), "v");
        assert!(matches!(reader.get("no.such", b"k"), Err(StateError::NoTable(name)) if name == "no.such"));
        let mut rows = 0;
        let mut count = |_: &[u8], _: &[u8]| {
            rows += 1;
            true
        };
        std::thread::scope(|scope| {
            scope.spawn(|| reader.scan("vardiff.sessions", b"", None, &mut count).unwrap());
        });
        assert_eq!(rows, 1);
    });
}

#[test]
fn changes_are_seen_before_and_after_their_commit() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        assert!(tables.insert(1, b"aa1", b"").unwrap());
        assert!(!tables.insert(1, b"aa1", b"").unwrap());
        tables.commit().unwrap();
        assert!(tables.is_clean());
        assert!(!tables.insert(1, b"aa1", b"").unwrap());
        tables.delete(1, b"aa1").unwrap();
        assert_eq!(tables.get(1, b"aa1").unwrap(), None);
        assert!(tables.insert(1, b"aa1", b"").unwrap());
    });
}

#[test]
fn expiry_takes_committed_and_uncommitted_rows() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        tables.put(1, b"aa1", b"x").unwrap();
        tables.put(1, b"ac1", b"x").unwrap();
        let expected = {
            let mut only = Tables::new(Box::new(MemoryBackend::new(&specs())), specs()).unwrap();
            only.put(1, b"ac1", b"x").unwrap();
            only.digest(1).unwrap()
        };
        tables.commit().unwrap();
        tables.put(1, b"ab1", b"x").unwrap();
        tables.expire_below(1, b"ac").unwrap();
        assert_eq!(tables.get(1, b"aa1").unwrap(), None);
        assert_eq!(tables.get(1, b"ab1").unwrap(), None);
        assert_eq!((tables.rows(1).unwrap(), tables.digest(1).unwrap()), (1, expected));
        assert!(tables.insert(1, b"aa1", b"y").unwrap(), "an expired row may come again");
        tables.commit().unwrap();
        assert_eq!(tables.get(1, b"aa1").unwrap().unwrap(), "y");
        assert_eq!(tables.get(1, b"ac1").unwrap().unwrap(), "x");
        assert_eq!(tables.rows(1).unwrap(), 2);
    });
}

/// The last row of a group is deleted, and the group expires before that is committed.
#[test]
fn expiry_does_not_bring_back_a_row_that_was_deleted() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        tables.put(1, b"aa1", b"x").unwrap();
        tables.commit().unwrap();
        tables.put(1, b"ab1", b"x").unwrap();
        tables.delete(1, b"aa1").unwrap();
        tables.expire_below(1, b"ac").unwrap();
        tables.commit().unwrap();
        assert_eq!(tables.get(1, b"aa1").unwrap(), None);
        assert_eq!(tables.rows(1).unwrap(), 0);
    });
}

#[test]
fn expiry_is_refused_where_rows_are_not_grouped() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        assert!(matches!(tables.expire_below(0, b"a"), Err(StateError::Misuse { .. })));
        assert!(matches!(tables.expire_below(1, b"aaa"), Err(StateError::Misuse { .. })));
        assert!(matches!(tables.put(1, b"a", b""), Err(StateError::Misuse { .. })));
    });
}

#[test]
fn meta_is_committed_with_the_rows_and_rolled_back_with_them() {
    on_each(|backend| {
        let mut tables = Tables::new(backend, specs()).unwrap();
        tables.put_meta(b"p/a", "1".into());
        tables.put(0, b"k", b"v").unwrap();
        tables.commit().unwrap();
        let digest = tables.digest(0).unwrap();
        tables.put_meta(b"p/b", "2".into());
        tables.delete_meta(b"p/a");
        tables.put(0, b"k", b"w").unwrap();
        assert_eq!(tables.meta(b"p/a").unwrap(), None);
        assert_ne!(tables.digest(0).unwrap(), digest);
        tables.rollback().unwrap();
        assert_eq!(tables.meta(b"p/a").unwrap().unwrap(), "1");
        assert_eq!(tables.meta(b"p/b").unwrap(), None);
        assert_eq!(tables.get(0, b"k").unwrap().unwrap(), "v");
        assert_eq!(tables.digest(0).unwrap(), digest);
        assert_eq!(tables.committed_meta(b"p/").unwrap(), [(Bytes::from("p/a"), Bytes::from("1"))]);
        assert_eq!(tables.committed_meta(b"q").unwrap(), []);
    });
}

fn environments() -> (tempfile::TempDir, [StateEnv; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let limits = MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 };
    let disk = StateEnv::on_disk(dir.path(), limits).unwrap();
    let scratch = StateEnv::scratch(dir.path().join("scratch"), limits).unwrap();
    (dir, [disk, scratch, StateEnv::in_memory()])
}

#[test]
fn state_is_found_again_with_its_digests() {
    let (_dir, environments) = environments();
    for env in environments {
        let mut tables = env.open(specs(), &lineage()).unwrap();
        tables.put(0, b"a", b"1").unwrap();
        tables.put(1, b"aa1", b"1").unwrap();
        tables.put(1, b"zz1", b"1").unwrap();
        tables.commit().unwrap();
        tables.put(0, b"uncommitted", b"1").unwrap();
        let committed = {
            tables.rollback().unwrap();
            tables.digests()
        };
        drop(tables);
        let mut tables = env.open(specs(), &lineage()).unwrap();
        assert_eq!(tables.digests(), committed);
        assert_eq!(tables.get(0, b"uncommitted").unwrap(), None);
        tables.expire_below(1, b"zz").unwrap();
        tables.commit().unwrap();
        drop(tables);
        let tables = env.open(specs(), &lineage()).unwrap();
        assert_eq!((tables.rows(0).unwrap(), tables.rows(1).unwrap()), (1, 1));
        assert_eq!(tables.get(1, b"aa1").unwrap(), None);
    }
}

#[test]
fn foreign_state_is_refused_with_the_reason() {
    let (_dir, environments) = environments();
    for env in environments {
        drop(env.open(specs(), &lineage()).unwrap());
        let refused = |specs: Vec<TableSpec>, lineage: Lineage| match env.open(specs, &lineage).err() {
            Some(StateError::Foreign { what, .. }) => what,
            other => panic!("not refused: {other:?}"),
        };
        let other_log = Lineage { log_uuid: [8; 16], ..lineage() };
        assert!(refused(specs(), other_log).contains("log 0707"));
        let other_wiring = Lineage { wiring: "in share.submissions/0 of 16".into(), ..lineage() };
        assert!(refused(specs(), other_wiring).contains("of 16"));
        let mut fewer = specs();
        fewer.pop();
        assert!(refused(fewer, lineage()).contains("table"));
        let mut grouped = specs();
        grouped[1].group_prefix = Some(3);
        assert!(refused(grouped, lineage()).contains("dedupe.seen"));
        assert!(env.open(specs(), &lineage()).is_ok());
    }
}

#[test]
fn a_directory_with_something_else_in_it_is_left_alone() {
    let (dir, [env, ..]) = environments();
    let place = dir.path().join("shareproc.0");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("wallet.dat"), "precious").unwrap();
    assert!(matches!(env.open(specs(), &lineage()), Err(StateError::Foreign { .. })));
    assert_eq!(std::fs::read_to_string(place.join("wallet.dat")).unwrap(), "precious");
}

#[test]
fn a_half_made_state_is_made_again() {
    let (dir, [env, ..]) = environments();
    std::fs::create_dir(dir.path().join("shareproc.0%new")).unwrap();
    std::fs::write(dir.path().join("shareproc.0%new").join("CURRENT"), "half").unwrap();
    let mut tables = env.open(specs(), &lineage()).unwrap();
    tables.put(0, b"a", b"1").unwrap();
    tables.commit().unwrap();
    assert!(!dir.path().join("shareproc.0%new").exists());
}
