//! Checkpoints: made, listed, kept, copied, taken back.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use sluice_state::checkpoint::{self, Checkpointer, Checkpoints, Facts, Manifest};
use sluice_state::{Lineage, MemoryLimits, StateEnv, StateError, StoredState, TableSpec, Tables};

const TASK: &str = "count.0";
const LIMITS: MemoryLimits = MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 };

fn specs() -> Vec<TableSpec> {
    vec![TableSpec::plain("count.accounts"), TableSpec::grouped("count.seen", 2)]
}

fn lineage() -> Lineage {
    Lineage { task: TASK.into(), log_uuid: [7; 16], wiring: "operator count of kind count".into() }
}

fn describe(key: &[u8], value: &[u8], facts: &mut Facts) -> Result<(), StateError> {
    facts.positions.insert(String::from_utf8_lossy(key).into_owned(), u64::from(value[0]));
    Ok(())
}

fn open(dir: &Path) -> (StateEnv, Tables) {
    let env = StateEnv::on_disk(dir, LIMITS).unwrap();
    let tables = env.open(specs(), &lineage()).unwrap();
    (env, tables)
}

/// Commits one row more, and `number` as the position.
fn commit(tables: &mut Tables, number: u8) {
    tables.put(0, &[number], b"row").unwrap();
    tables.put(1, &[0, number, 1], b"seen").unwrap();
    tables.put_meta(b"in/log/0", vec![number].into());
    tables.commit().unwrap();
}

/// A state with checkpoints 1, 2 and 3, of so many rows, and a fourth row in the live state.
fn three(dir: &Path) -> (StateEnv, Tables, Checkpointer) {
    let (env, mut tables) = open(dir);
    let checkpointer = env.checkpointer(&tables, TASK, describe).unwrap();
    for number in 1..=3 {
        commit(&mut tables, number);
        assert_eq!(checkpointer.create().unwrap().sequence, u64::from(number));
    }
    commit(&mut tables, 4);
    (env, tables, checkpointer)
}

fn damage(found: &checkpoint::Found) {
    let database = found.database();
    let table = database.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let table = table.filter(|path| path.extension().is_some_and(|it| it == "sst")).min().unwrap();
    let mut bytes = fs::read(&table).unwrap();
    bytes[10] ^= 1;
    // A file of its own: the live state and other checkpoints have the same one.
    fs::remove_file(&table).unwrap();
    fs::write(&table, bytes).unwrap();
}

#[test]
fn a_checkpoint_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_env, tables, checkpointer) = three(dir.path());
    let found = checkpointer.checkpoints().list().unwrap();
    assert_eq!(found.iter().map(|it| it.sequence).collect::<Vec<_>>(), [3, 2, 1]);
    let manifest = checkpoint::verify(&found[0]).unwrap();
    assert_eq!((manifest.task.as_str(), manifest.log_uuid.as_str()), (TASK, "07".repeat(16).as_str()));
    assert_eq!(manifest.facts.positions["in/log/0"], 3);
    let rows: Vec<(&str, u64)> = manifest.tables.iter().map(|table| (table.name.as_str(), table.rows)).collect();
    assert_eq!(rows, [("count.accounts", 3), ("count.seen", 3)]);
    assert_ne!(manifest.tables[0].digest, tables.digest(0).unwrap().to_string(), "the task went on");
    assert!(manifest.files.iter().any(|file| file.name == "CURRENT") && manifest.bytes() > 0);
    let stored = StoredState::open(&found[0].database()).unwrap();
    assert_eq!((stored.task(), stored.check().unwrap()), (TASK, vec![]));
    assert_eq!(stored.reader().get("count.accounts", &[4]).unwrap(), None);
}

#[test]
fn a_running_state_is_read_beside_its_task() {
    let dir = tempfile::tempdir().unwrap();
    let (_env, tables, _) = three(dir.path());
    let stored = StoredState::open_beside(&dir.path().join(TASK)).unwrap();
    assert_eq!(stored.check().unwrap(), Vec::<String>::new());
    let digests: Vec<_> = stored.tables().iter().map(|table| (table.spec.name.clone(), table.digest)).collect();
    assert_eq!(digests, tables.digests());
}

#[test]
fn the_newest_that_are_in_order_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (_env, _tables, checkpointer) = three(dir.path());
    let checkpoints = checkpointer.checkpoints();
    fs::write(checkpoints.list().unwrap()[0].path.join("manifest.json"), "{}").unwrap();
    assert_eq!(checkpoints.keep(1).unwrap(), [1], "the damaged one does not count");
    assert_eq!(checkpointer.create().unwrap().sequence, 4);
    assert_eq!(checkpoints.keep(1).unwrap(), [3, 2]);
    assert!(checkpoint::verify(&checkpoints.list().unwrap()[0]).is_ok(), "files shared with removed ones are there");
}

#[test]
fn a_lost_state_comes_back_from_the_newest_checkpoint_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (env, tables, checkpointer) = three(dir.path());
    let list = checkpointer.checkpoints().list().unwrap();
    drop((env, tables, checkpointer));
    let live = dir.path().join(TASK);
    let rows_after_loss = || {
        fs::remove_dir_all(&live).unwrap();
        let (_env, tables) = open(dir.path());
        (tables.rows(0).unwrap(), tables.meta(b"in/log/0").unwrap().map(|position| position[0]))
    };
    assert_eq!(rows_after_loss(), (3, Some(3)));
    fs::create_dir_all(dir.path().join("moved")).unwrap();
    fs::rename(&live, dir.path().join("moved").join(TASK)).unwrap();
    fs::create_dir(&live).unwrap();
    assert_eq!(open(dir.path()).1.rows(0).unwrap(), 3, "an empty directory is no state");
    damage(&list[0]);
    assert_eq!(rows_after_loss(), (2, Some(2)));
    fs::remove_file(list[1].path.join("manifest.json")).unwrap();
    assert_eq!(rows_after_loss(), (1, Some(1)));
    damage(&list[2]);
    assert_eq!(rows_after_loss(), (0, None), "nothing is left: the log is read from the start");
}

#[test]
fn checkpoints_of_another_log_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    drop(three(dir.path()));
    let live = dir.path().join(TASK);
    let env = StateEnv::on_disk(dir.path(), LIMITS).unwrap();
    let other = Lineage { log_uuid: [8; 16], ..lineage() };
    let refused = env.open(specs(), &other).err().unwrap().to_string();
    assert!(refused.contains("0707") && refused.contains("0808"), "{refused}");
    fs::remove_dir_all(&live).unwrap();
    assert_eq!(env.open(specs(), &other).unwrap().rows(0).unwrap(), 0);
}

#[test]
fn a_damaged_state_is_refused_or_with_rebuild_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    drop(three(dir.path()));
    let live = dir.path().join(TASK);
    fs::write(live.join("CURRENT"), "MANIFEST-999999\n").unwrap();
    let env = StateEnv::on_disk(dir.path(), LIMITS).unwrap();
    let refused = env.open(specs(), &lineage()).err().unwrap();
    assert!(matches!(refused, StateError::Damaged { .. }), "{refused}");
    let env = StateEnv::rebuilding(dir.path(), LIMITS).unwrap();
    assert_eq!(env.open(specs(), &lineage()).unwrap().rows(0).unwrap(), 3, "the newest checkpoint");
    assert!(dir.path().join(format!("{TASK}%aside-1")).exists());
    assert_eq!(env.open(specs(), &lineage()).unwrap().rows(0).unwrap(), 3, "a state in order stays");
    assert!(!dir.path().join(format!("{TASK}%aside-2")).exists());
}

#[test]
fn copies_elsewhere_are_verified_and_taken_back() {
    let (dir, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (env, tables, checkpointer) = three(dir.path());
    let (from, to) = (checkpointer.checkpoints().clone(), Checkpoints::below(away.path(), TASK));
    from.copy_to(2, &to).unwrap();
    from.copy_to(2, &to).unwrap();
    assert!(from.copy_to(9, &to).is_err());
    let fits = |found: &Manifest| lineage().differs(&specs(), &found.lineage);
    let in_use = checkpoint::restore(&to, None, dir.path(), fits).unwrap_err();
    assert!(in_use.to_string().contains("in use"), "{in_use}");
    drop((env, tables, checkpointer));
    let restored = checkpoint::restore(&to, None, dir.path(), fits).unwrap();
    assert_eq!(restored.manifest.sequence, 2);
    assert!(restored.aside.unwrap().exists());
    assert_eq!(open(dir.path()).1.rows(0).unwrap(), 2);
    let other = Lineage { log_uuid: [8; 16], ..lineage() };
    let foreign = |found: &Manifest| other.differs(&specs(), &found.lineage);
    let refused = checkpoint::restore(&to, None, dir.path(), foreign).unwrap_err();
    assert!(refused.to_string().contains("0808"), "{refused}");
    damage(&to.list().unwrap()[0]);
    let refused = checkpoint::restore(&to, Some(2), dir.path(), fits).unwrap_err();
    assert!(refused.to_string().contains("other bytes"), "{refused}");
    assert!(from.copy_to(2, &to).is_err(), "a damaged copy is told");
    assert_eq!(open(dir.path()).1.rows(0).unwrap(), 2, "what cannot be used replaces nothing");
}
