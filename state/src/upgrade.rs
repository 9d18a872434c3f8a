//! Bringing tables of an earlier version to the newest one: into a new state, which then takes the place of the old one.

use std::path::{Path, PathBuf};

use crate::Backend;
use crate::digest::row_hash;
use crate::lineage::{StoredLineage, TableVersion};
use crate::tables::Tables;
use crate::types::{Digest, StateError, TableSpec};

/// Rows that are written in one commit.
const ROWS: usize = 16_384;

/// Makes in `to`, which is empty, what `from` holds, with each table brought to its newest version; the `wanted` lineage
/// comes last, so that a state which has one is whole.
///
/// # Errors
/// [`StateError::Foreign`] if a row cannot be upgraded, or `from` is not what its digests say. Others, such as a full disk,
/// say nothing of `from`.
pub(crate) fn upgrade(
    from: &Tables,
    found: &StoredLineage,
    to: Box<dyn Backend>,
    wanted: &StoredLineage,
    place: &str,
) -> Result<(), StateError> {
    let specs: Vec<TableSpec> = from.specs().cloned().collect();
    let mut to = Tables::new(to, specs.clone())?;
    for (index, (spec, found)) in specs.iter().zip(&found.tables).enumerate() {
        let unfit = |what: String| {
            let what = format!("table {} cannot be upgraded: {what}", spec.name);
            StateError::Foreign { path: place.to_owned(), what }
        };
        let read = copy_table(from, index, spec, found, &mut to, &unfit)?;
        // Else wrong rows would be carried on under a right digest.
        if read != from.digest(index)? {
            return Err(unfit("its rows are not those of its digest".into()));
        }
    }
    for (key, value) in from.committed_meta(&[])? {
        to.put_meta(&key, value);
    }
    to.commit()?;
    to.store_lineage(wanted)
}

/// Copies the rows of a table through its steps; the digest of the rows read.
fn copy_table(
    from: &Tables,
    index: usize,
    spec: &TableSpec,
    found: &TableVersion,
    to: &mut Tables,
    unfit: &dyn Fn(String) -> StateError,
) -> Result<Digest, StateError> {
    let steps = spec.steps.get(found.version.saturating_sub(1) as usize..).unwrap_or_default();
    let (mut digest, mut scratch, mut waiting) = (Digest::default(), Vec::new(), 0);
    let mut failed = None;
    let mut copy = |key: &[u8], value: &[u8]| -> Result<(), StateError> {
        digest = digest.plus(row_hash(&mut scratch, key, value));
        let mut row = Some((key.to_vec(), value.to_vec()));
        for step in steps {
            let Some((key, value)) = &row else { break };
            row = step(key, value).map_err(|error| unfit(format!("row {}: {error}", hex(key))))?;
        }
        if let Some((key, value)) = row
            && !to.insert(index, &key, &value).map_err(|error| match error {
                StateError::Storage(_) => error,
                other => unfit(other.to_string()),
            })?
        {
            return Err(unfit(format!("two rows would become row {}", hex(&key))));
        }
        waiting += 1;
        if waiting == ROWS {
            waiting = 0;
            to.commit()?;
        }
        Ok(())
    };
    let scanned = from.scan(index, &[], None, &mut |key, value| match copy(key, value) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    scanned?;
    match failed {
        Some(error) => Err(error),
        None => to.commit().map(|()| digest),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directories of a state that is being replaced. A crash leaves one of these behind:
///
/// | state | `%upgraded` | `%old` | what it is |
/// |---|---|---|---|
/// | there | perhaps half | - | not replaced: the half is removed |
/// | - | whole | there | between the renames: the second one is done |
/// | there | - | there | replaced: the old one is removed |
pub(crate) struct Swap {
    state: PathBuf,
    upgraded: PathBuf,
    old: PathBuf,
}

impl Swap {
    /// For the state in `path`.
    pub(crate) fn of(path: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { state: path.to_owned(), upgraded: beside("%upgraded"), old: beside("%old") }
    }

    /// Where the new state is made.
    pub(crate) fn upgraded(&self) -> &Path {
        &self.upgraded
    }

    /// Where the state is to be read from as long as nobody has called [`Swap::recover`].
    pub(crate) fn current(&self) -> &Path {
        if !self.state.exists() && self.old.exists() { &self.upgraded } else { &self.state }
    }

    /// Finishes what a crash has interrupted, or removes what it left.
    pub(crate) fn recover(&self) -> Result<(), StateError> {
        if !self.state.exists() && self.old.exists() {
            self.enter()?;
        }
        for left in [&self.upgraded, &self.old].into_iter().filter(|left| left.exists()) {
            std::fs::remove_dir_all(left).map_err(|error| self.failed("remove what is left of", left, &error))?;
        }
        Ok(())
    }

    /// The old state leaves its place.
    pub(crate) fn leave(&self) -> Result<(), StateError> {
        self.rename(&self.state, &self.old)
    }

    /// The new one enters it.
    pub(crate) fn enter(&self) -> Result<(), StateError> {
        self.rename(&self.upgraded, &self.state)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StateError> {
        let parent = to.parent().unwrap_or(Path::new("."));
        std::fs::rename(from, to)
            .and_then(|()| std::fs::File::open(parent)?.sync_all())
            .map_err(|error| self.failed("move", from, &error))
    }

    fn failed(&self, what: &str, path: &Path, error: &std::io::Error) -> StateError {
        StateError::Storage(format!("cannot {what} {}: {error}", path.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use rocksdb::{Cache, WriteBufferManager};

    use super::*;
    use crate::lineage::Lineage;
    use crate::rocks::RocksBackend;
    use crate::tables::Opened;
    use crate::{Change, MemoryLimits, Reader, StateEnv, Stepped, TableStep};

    /// Values get a length in front; empty ones go.
    fn with_length(key: &[u8], value: &[u8]) -> Stepped {
        let length = u8::try_from(value.len()).map_err(|_| format!("a value of {} bytes", value.len()))?;
        Ok((!value.is_empty()).then(|| (key.to_vec(), [&[length], value].concat())))
    }

    /// Keys get a prefix.
    fn moved(key: &[u8], value: &[u8]) -> Stepped {
        Ok(Some(([b"k/", key].concat(), value.to_vec())))
    }

    fn same_key(_: &[u8], value: &[u8]) -> Stepped {
        Ok(Some((b"one".to_vec(), value.to_vec())))
    }

    const LADDER: &[TableStep] = &[with_length, moved];

    fn specs(steps: &'static [TableStep]) -> Vec<TableSpec> {
        vec![TableSpec { steps, ..TableSpec::plain("a.rows") }, TableSpec::grouped("a.kept", 1)]
    }

    fn lineage() -> Lineage {
        Lineage { task: "a.0".into(), log_uuid: [3; 16], wiring: "input x/0 of 1\n".into() }
    }

    fn disk(dir: &Path) -> StateEnv {
        StateEnv::on_disk(dir, MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 }).unwrap()
    }

    /// A state of version 1; its digests.
    fn fill(env: &StateEnv) -> Vec<(String, Digest)> {
        let mut tables = env.open(specs(&[]), &lineage()).unwrap();
        for (key, value) in [("a", "one"), ("b", ""), ("c", "three")] {
            tables.put(0, key.as_bytes(), value.as_bytes()).unwrap();
        }
        tables.put(1, b"gx", b"1").unwrap();
        tables.put_meta(b"position/x", "17".into());
        tables.commit().unwrap();
        tables.digests()
    }

    fn rows(tables: &Tables, table: usize) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        tables
            .scan(table, b"", None, &mut |key, value| {
                rows.push((text(key), text(value)));
                true
            })
            .unwrap();
        rows
    }

    fn is_upgraded(tables: &Tables, before: &[(String, Digest)]) {
        let row = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(rows(tables, 0), [row("k/a", "\u{3}one"), row("k/c", "\u{5}three")]);
        assert_eq!(tables.digests()[1], before[1], "a table without steps stays as it was");
        assert_eq!(tables.rows(0).unwrap(), 2);
        let (mut scratch, rows) = (Vec::new(), [("k/a", "\u{3}one"), ("k/c", "\u{5}three")]);
        let hashes = rows.map(|(key, value)| row_hash(&mut scratch, key.as_bytes(), value.as_bytes()));
        assert_eq!(tables.digest(0).unwrap(), hashes.into_iter().fold(Digest::default(), Digest::plus));
        assert_eq!(tables.meta(b"position/x").unwrap().unwrap(), "17");
    }

    #[test]
    fn rows_climb_all_steps_with_their_digest_and_the_positions() {
        let dir = tempfile::tempdir().unwrap();
        for env in [disk(dir.path()), StateEnv::in_memory()] {
            let before = fill(&env);
            is_upgraded(&env.open(specs(LADDER), &lineage()).unwrap(), &before);
            let again = env.open(specs(LADDER), &lineage()).unwrap();
            is_upgraded(&again, &before);
            drop(again);
            let error = env.open(specs(&LADDER[..1]), &lineage()).err().unwrap().to_string();
            assert!(error.contains("version 3") && error.contains("newer program"), "{error}");
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["a.0"]);
    }

    /// A crash in the middle of the copy, behind it, and behind each of the two renames.
    #[test]
    fn a_crash_leaves_the_old_state_or_the_new_one() {
        for stage in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let before = fill(&disk(dir.path()));
            let path = dir.path().join("a.0");
            let swap = Swap::of(&path);
            let cache = Cache::new_lru_cache(1 << 20);
            let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(1 << 20, false, cache.clone());
            let open = |path: &Path| Box::new(RocksBackend::open(path, &specs(LADDER), &cache, &buffers).unwrap());
            let Opened::Older(old, found) = Tables::open(open(&path), specs(LADDER), &lineage(), "here").unwrap()
            else {
                panic!("it is of version 1");
            };
            if stage == 0 {
                // Some rows are there, and no lineage.
                let mut half = Tables::new(open(swap.upgraded()), specs(LADDER)).unwrap();
                half.put(0, b"k/a", b"half").unwrap();
                half.commit().unwrap();
            } else {
                let wanted = lineage().with_tables(&specs(LADDER));
                upgrade(&old, &found, open(swap.upgraded()), &wanted, "here").unwrap();
            }
            drop(old);
            if stage >= 2 {
                swap.leave().unwrap();
                assert!(crate::StoredState::open(swap.current()).is_ok(), "it is seen although it is on its way");
            }
            if stage == 3 {
                swap.enter().unwrap();
            }
            is_upgraded(&disk(dir.path()).open(specs(LADDER), &lineage()).unwrap(), &before);
            assert!(!swap.upgraded.exists() && !swap.old.exists(), "stage {stage}");
        }
    }

    #[test]
    fn rows_that_cannot_climb_leave_the_state_as_it_was() {
        static MERGED: &[TableStep] = &[same_key];
        static LENGTH: &[TableStep] = &[with_length];
        let dir = tempfile::tempdir().unwrap();
        for env in [disk(dir.path()), StateEnv::in_memory()] {
            let before = fill(&env);
            let error = env.open(specs(MERGED), &lineage()).err().unwrap().to_string();
            assert!(error.contains("two rows would become row 6f6e65"), "{error}");
            let mut tables = env.open(specs(&[]), &lineage()).unwrap();
            assert_eq!(tables.digests(), before);
            tables.put(0, b"long", &[b'x'; 300]).unwrap();
            tables.commit().unwrap();
            drop(tables);
            let error = env.open(specs(LENGTH), &lineage()).err().unwrap().to_string();
            assert!(error.contains("a.rows") && error.contains("row 6c6f6e67: a value of 300 bytes"), "{error}");
        }
    }

    /// A disk without room.
    struct Full;

    impl Backend for Full {
        fn get(&self, _: usize, _: &[u8]) -> Result<Option<Bytes>, StateError> {
            Ok(None)
        }

        fn scan(
            &self,
            _: usize,
            _: &[u8],
            _: Option<&[u8]>,
            _: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), StateError> {
            Ok(())
        }

        fn commit(&mut self, _: &[Change]) -> Result<(), StateError> {
            Err(StateError::Storage("no space left".into()))
        }

        fn sync(&mut self) -> Result<(), StateError> {
            Ok(())
        }

        fn reader(&self) -> Arc<dyn Reader> {
            unreachable!("nobody reads it")
        }
    }

    /// Else a good state would be put aside where states are made again.
    #[test]
    fn a_full_disk_says_nothing_of_the_state() {
        let env = StateEnv::in_memory();
        let from = {
            fill(&env);
            env.open(specs(&[]), &lineage()).unwrap()
        };
        let (found, wanted) = (lineage().with_tables(&specs(&[])), lineage().with_tables(&specs(LADDER)));
        let error = upgrade(&from, &found, Box::new(Full), &wanted, "here").unwrap_err();
        assert!(matches!(&error, StateError::Storage(what) if what == "no space left"), "{error}");
    }

    #[test]
    fn rows_that_are_not_those_of_the_digest_are_not_carried_on() {
        let dir = tempfile::tempdir().unwrap();
        let env = disk(dir.path());
        let mut tables = env.open(specs(&[]), &lineage()).unwrap();
        // The digest of a row that is not there is taken away.
        tables.put_over(0, b"a", Some(5), b"1").unwrap();
        tables.commit().unwrap();
        drop(tables);
        let error = env.open(specs(LADDER), &lineage()).err().unwrap().to_string();
        assert!(error.contains("not those of its digest"), "{error}");
    }
}
