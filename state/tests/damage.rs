//! Damage to the files of a state or a checkpoint: an error with its reason, or no difference at all (DESIGN 5). A task
//! is stood in for by batches that are a function of their number: the "log" can always be read again from a position.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use sluice_state::checkpoint::{self, Checkpoints, Facts};
use sluice_state::{Lineage, MemoryLimits, StateEnv, StateError, StoredState, TableSpec, Tables};

/// Batches in the "log".
const END: u32 = 500;
const TASK: &str = "check.0";

fn specs() -> Vec<TableSpec> {
    vec![TableSpec::plain("count.accounts"), TableSpec::grouped("count.seen", 4)]
}

fn lineage() -> Lineage {
    Lineage { task: TASK.into(), log_uuid: [7; 16], wiring: "operator count of kind count".into() }
}

/// Small write buffers: tables are flushed one by one, each at its own time, as in a large state.
fn env(dir: &Path) -> StateEnv {
    StateEnv::on_disk(dir, MemoryLimits { cache: 4 << 20, write_buffers: 512 << 10 }).unwrap()
}

fn describe(key: &[u8], value: &[u8], facts: &mut Facts) -> Result<(), StateError> {
    if key == b"position" {
        facts.positions.insert("in/log/0".into(), u64::from(u32::from_be_bytes(value.try_into().unwrap())));
    }
    Ok(())
}

/// Does the batches from the committed position up to `end`: counters that build on what was there, seen things that
/// expire in ranges.
fn work(tables: &mut Tables, end: u32) -> Result<(), StateError> {
    let position = tables.meta(b"position")?.map_or(0, |at| u32::from_be_bytes(at[..].try_into().unwrap()));
    for batch in position..end {
        for row in 0..8_u32 {
            let account = format!("account {}", (batch * 7 + row * 3) % 50);
            let before =
                tables.get(0, account.as_bytes())?.map_or(0, |it| u64::from_le_bytes(it[..8].try_into().unwrap()));
            let mut value = (before + u64::from(batch)).to_le_bytes().to_vec();
            value.extend_from_slice(&[row as u8; 60]);
            tables.put(0, account.as_bytes(), &value)?;
            let seen = [(batch / 20).to_be_bytes(), (batch * 8 + row).to_be_bytes()].concat();
            tables.insert(1, &seen, &[batch as u8; 40])?;
        }
        if batch % 20 == 0 {
            tables.expire_below(1, &(batch / 20).saturating_sub(4).to_be_bytes())?;
        }
        tables.put_meta(b"position", Bytes::copy_from_slice(&(batch + 1).to_be_bytes()));
        tables.commit()?;
    }
    Ok(())
}

/// Every row, as one reads it.
fn rows(tables: &Tables) -> Result<Vec<(Bytes, Bytes)>, StateError> {
    let mut rows = Vec::new();
    for table in 0..2 {
        tables.scan(table, &[], None, &mut |key, value| {
            rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        })?;
    }
    Ok(rows)
}

type Outcome = (Vec<(String, sluice_state::Digest)>, Vec<(Bytes, Bytes)>);

/// Opens the state below `dir` and does what is left of the log.
fn finish(dir: &Path) -> Result<Outcome, StateError> {
    let mut tables = env(dir).open(specs(), &lineage())?;
    work(&mut tables, END)?;
    Ok((tables.digests(), rows(&tables)?))
}

/// A state that was killed before the end of the log, after restarts, with two checkpoints.
struct Image {
    dir: tempfile::TempDir,
    undamaged: Outcome,
}

fn image() -> Image {
    let dir = tempfile::tempdir().unwrap();
    for (end, checkpointed) in [(100, true), (220, false), (300, true), (420, false)] {
        let env = env(dir.path());
        let mut tables = env.open(specs(), &lineage()).unwrap();
        work(&mut tables, end).unwrap();
        if checkpointed {
            env.checkpointer(&tables, TASK, describe).unwrap().create().unwrap();
            work(&mut tables, end + 50).unwrap();
        }
    }
    let nothing = tempfile::tempdir().unwrap();
    let undamaged = finish(nothing.path()).unwrap();
    let copy = copied(dir.path());
    assert!(finish(copy.path()).unwrap() == undamaged, "the image itself goes on as if nothing had happened");
    Image { dir, undamaged }
}

/// A copy without hard links: damage to one file must not be damage to another.
fn copied(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

/// All files below `dir`, relative to it, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in next.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { left.push(path) } else { found.push(path.strip_prefix(dir).unwrap().to_owned()) }
        }
    }
    found.sort();
    found
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { at: usize, bits: u8 },
    Cut { to: usize },
    Remove,
}

impl Damage {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::Flip { at, bits } => bytes[at] ^= bits,
            Self::Cut { to } => bytes.truncate(to),
            Self::Remove => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }

    fn random(random: &mut fastrand::Rng, length: usize) -> Self {
        match random.u8(..10) {
            0 => Self::Remove,
            1 | 2 => Self::Cut { to: random.usize(..length) },
            _ => Self::Flip { at: random.usize(..length), bits: 1 << random.u8(..8) },
        }
    }
}

impl Image {
    /// Damages a file of the live state. Either the task is told, or all is as it would have been; then whoever looks at the
    /// state may still be told, where the damage lies in what the task had no need to read.
    fn live(&self, file: &Path, damage: Damage) -> bool {
        let copy = copied(self.dir.path());
        damage.apply(&copy.path().join(file));
        match finish(copy.path()) {
            Ok(outcome) => {
                assert!(outcome == self.undamaged, "{file:?} {damage:?} changed the outcome");
                match StoredState::open(&copy.path().join(TASK)).and_then(|stored| stored.check()) {
                    Ok(faults) => assert_eq!(faults, Vec::<String>::new(), "{file:?} {damage:?}"),
                    Err(error) => assert!(matches!(error, StateError::Damaged { .. }), "{file:?} {damage:?}: {error}"),
                }
                false
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                true
            }
        }
    }

    /// Damages a file of the newest checkpoint, whose live state is gone. It is refused, and the older one is taken.
    fn checkpoint(&self, file: &Path, damage: Damage) {
        let copy = copied(self.dir.path());
        fs::remove_dir_all(copy.path().join(TASK)).unwrap();
        damage.apply(&copy.path().join(file));
        let newest = Checkpoints::of(copy.path(), TASK).list().unwrap().remove(0);
        assert_eq!(newest.sequence, 2);
        let refused = checkpoint::verify(&newest);
        assert!(refused.is_err() || !matches!(damage, Damage::Remove), "{file:?} {damage:?}: {refused:?}");
        assert!(finish(copy.path()).unwrap() == self.undamaged, "{file:?} {damage:?} changed the outcome");
        // White space of the manifest is nobody's number; everything else is told.
        if refused.is_ok() {
            let told = fs::read_to_string(copy.path().join(file)).unwrap();
            let meant: Option<serde_json::Value> = serde_json::from_str(&told).ok();
            let original = fs::read_to_string(self.dir.path().join(file)).unwrap();
            assert_eq!(meant, serde_json::from_str(&original).ok(), "{file:?} {damage:?} went unseen");
        }
    }

    fn files_of(&self, of: &str) -> Vec<(PathBuf, usize)> {
        let length = |file: PathBuf| (file.clone(), fs::metadata(self.dir.path().join(file)).unwrap().len() as usize);
        let all = files(self.dir.path()).into_iter().filter(|file| file.starts_with(of));
        all.map(length).filter(|(_, length)| *length > 0).collect()
    }
}

/// Numbers of the seed in `SLUICE_SEED`, else of another one each time; it is printed with a failure.
fn random() -> fastrand::Rng {
    let seed =
        std::env::var("SLUICE_SEED").map_or_else(|_| RandomState::new().hash_one(0), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// S2: whatever byte of a live state is damaged, the task is told or nothing changes; likewise files cut short or gone.
#[test]
fn s2_damage_to_a_live_state_is_detected_or_harmless() {
    let mut random = random();
    let image = image();
    let files = image.files_of(TASK);
    for (file, _) in &files {
        image.live(file, Damage::Remove);
    }
    let mut detected = 0;
    for _ in 0..50 {
        let (file, length) = &files[random.usize(..files.len())];
        detected += u32::from(image.live(file, Damage::random(&mut random, *length)));
    }
    assert!(detected > 0 && detected < 50, "some were detected, some harmless: {detected}");
}

/// S2: whatever byte of a checkpoint is damaged, it is not used: the one before is.
#[test]
fn s2_damage_to_a_checkpoint_makes_the_one_before_the_newest() {
    let mut random = random();
    let image = image();
    let files = image.files_of(&format!("checkpoints/{TASK}/00000002"));
    for (file, _) in &files {
        image.checkpoint(file, Damage::Remove);
    }
    for _ in 0..25 {
        let (file, length) = &files[random.usize(..files.len())];
        image.checkpoint(file, Damage::random(&mut random, *length));
    }
}

/// The state below `dir` as a kill would leave it, when it has worked up to `end`.
fn killed_at(dir: &Path, end: u32) -> tempfile::TempDir {
    // Buffers that hold everything: nothing is written but the log of commits.
    let env = StateEnv::on_disk(dir, MemoryLimits { cache: 64 << 20, write_buffers: 32 << 20 }).unwrap();
    let mut tables = env.open(specs(), &lineage()).unwrap();
    work(&mut tables, end).unwrap();
    copied(dir)
}

/// The write-ahead logs of the state below `dir`.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let live = dir.join(TASK);
    let logs = files(&live).into_iter().filter(|file| file.extension().is_some_and(|it| it == "log"));
    logs.map(|file| live.join(file)).collect()
}

fn refused(dir: &Path) -> String {
    match env(dir).open(specs(), &lineage()).err() {
        Some(StateError::Damaged { what, .. }) => what,
        other => panic!("not noticed: {other:?}"),
    }
}

/// S2: commits that are missing between others are noticed, where the database does not miss them: here those of a
/// write-ahead log that it had not yet noted down.
#[test]
fn s2_commits_missing_between_others_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    drop(killed_at(dir.path(), 3));
    let older = killed_at(dir.path(), 6);
    let newer = killed_at(dir.path(), 9);
    for log in logs(older.path()) {
        fs::remove_file(log).unwrap();
    }
    for log in logs(newer.path()) {
        fs::copy(&log, older.path().join(TASK).join(log.file_name().unwrap())).unwrap();
    }
    let what = refused(older.path());
    assert!(what.contains("9 commits were made") || what.contains("10 commits were made"), "{what}");
}

/// S2: an older commit is harmless, but not where files have been unlinked that it needs.
#[test]
fn s2_an_older_commit_without_its_expired_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let killed = killed_at(dir.path(), 130);
    for log in logs(killed.path()) {
        fs::write(log, []).unwrap();
    }
    let what = refused(killed.path());
    assert!(what.contains("must have"), "{what}");
}

/// S2: files that RocksDB would read for ever, since a record says that its file was recycled, are refused: by the task,
/// and by whoever looks at the state.
#[test]
fn s2_files_that_have_no_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let killed = killed_at(dir.path(), 3);
    let name = fs::read_to_string(killed.path().join(TASK).join("CURRENT")).unwrap();
    let log = logs(killed.path()).remove(0);
    for file in [name.trim(), log.file_name().unwrap().to_str().unwrap()] {
        let damaged = copied(killed.path());
        let live = damaged.path().join(TASK);
        let mut bytes = fs::read(live.join(file)).unwrap();
        let second = 7 + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        bytes[second + 6] = 5;
        fs::write(live.join(file), bytes).unwrap();
        let what = refused(damaged.path());
        assert!(what.contains("a record of type 5"), "{what}");
        assert!(matches!(StoredState::open(&live), Err(StateError::Damaged { .. })));
    }
}

/// S2: every byte of the small files, and every length of them.
#[test]
#[ignore = "thousands of damaged copies: for the nightly run"]
fn nightly_s2_every_byte_of_a_state_and_a_checkpoint() {
    let image = image();
    let flip = |at| Damage::Flip { at, bits: 1 << (at % 8) };
    let mut live: Vec<(PathBuf, Damage)> = Vec::new();
    for (file, length) in image.files_of(TASK) {
        // Of large files a byte in a hundred: blocks are all alike.
        let places = (0..length).step_by(if length > 4_096 { 101 } else { 1 });
        live.extend(places.flat_map(|at| [(file.clone(), flip(at)), (file.clone(), Damage::Cut { to: at })]));
    }
    let mut checkpoint: Vec<(PathBuf, Damage)> = Vec::new();
    for (file, length) in image.files_of(&format!("checkpoints/{TASK}/00000002")) {
        let places = (0..length).step_by(if length > 4_096 { 1_009 } else { 7 });
        checkpoint.extend(places.map(|at| (file.clone(), flip(at))));
    }
    println!("{} times damage to the live state, {} times to a checkpoint", live.len(), checkpoint.len());
    // Opening a state is mostly waiting for its threads.
    let (live, checkpoint) = (&Mutex::new(live.into_iter()), &Mutex::new(checkpoint.into_iter()));
    let work = || {
        while let Some((file, damage)) = { live.lock().unwrap().next() } {
            image.live(&file, damage);
        }
        while let Some((file, damage)) = { checkpoint.lock().unwrap().next() } {
            image.checkpoint(&file, damage);
        }
    };
    std::thread::scope(|scope| (0..16).for_each(|_| drop(scope.spawn(work))));
}
