//! Files of a log are damaged, as a disk might: a flipped byte, a cut, a file that is gone. Either opening or reading
//! says so and where, or all that was acknowledged is read as it was written (invariant P1).

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::DirEntryExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, LogError, Partition, Retention, TopicSpec};
use sluice_proto::Offset;
use tokio::runtime::Runtime;

/// Directory of the log to write; makes a process the writer of a log that is damaged later.
pub const WRITER: &str = "SLUICE_LOG_TEST_DAMAGE";
/// `Shape` of that log.
const SHAPE: &str = "SLUICE_LOG_TEST_SHAPE";

const TOPICS: [(&str, u32); 2] = [("busy", 2), ("quiet", 1)];

/// What the files of a log are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Some kilobytes; the newest write-ahead log is a recycled one.
    Small,
    /// A megabyte and more: one partition is in tables, the others only in the write-ahead log that it shared with them.
    Uneven,
    /// As the small one, and closed.
    Closed,
}

impl Shape {
    /// Records of an append to the busy partition, and the bytes of each.
    fn busy(self) -> (usize, usize) {
        if self == Shape::Uneven { (64, 1_000) } else { (2, 750) }
    }

    /// Behind this round so much has been written that something is flushed; the next rounds find its results.
    fn flushes(self, round: u8) -> bool {
        if self == Shape::Uneven { round == 18 } else { round % 8 == 7 }
    }
}

const SHAPES: [Shape; 3] = [Shape::Small, Shape::Uneven, Shape::Closed];

fn options(dir: &Path, shape: Shape) -> EmbeddedOptions {
    let mut options = EmbeddedOptions::new(dir);
    options.write_buffer_bytes = 1 << 20;
    options.wal_bytes = if shape == Shape::Uneven { 64 << 20 } else { 10 << 10 };
    options.tail_bytes = 0;
    options
}

/// Writes a log, waits until all of it is acknowledged, and ends as by kill -9, or closes it first.
pub async fn write(dir: &Path) -> ExitCode {
    let name = std::env::var(SHAPE).unwrap();
    let shape = *SHAPES.iter().find(|shape| format!("{shape:?}") == name).unwrap();
    let log = EmbeddedLog::open(options(dir, shape)).unwrap();
    for (name, partitions) in TOPICS {
        log.create_topic(&TopicSpec { name: name.into(), partitions, retention: Retention::default() }).await.unwrap();
    }
    let busy = Partition::new("busy", 0);
    let (mut files, mut rounds, mut left) = (Files::default(), 0, None);
    while left != Some(0) {
        assert!(rounds < 200, "{shape:?}: no write-ahead log was recycled");
        let (count, size) = shape.busy();
        log.append(&busy, records(rounds, count, size)).await.unwrap();
        if rounds % 3 == 1 {
            log.append(&Partition::new("busy", 1), records(rounds, 1, 40)).await.unwrap();
            log.append(&Partition::new("quiet", 0), records(rounds, 1, 50)).await.unwrap();
        }
        if shape.flushes(rounds) {
            files.wait_for_table(dir);
        }
        // Three rounds more, so that much less is new in a recycled file than old.
        let ready = if shape == Shape::Uneven { rounds == 18 } else { files.recycled(dir) };
        left = left.map(|left: u8| left - 1).or(ready.then_some(3));
        rounds += 1;
    }
    println!("{rounds}");
    if shape == Shape::Closed {
        log.close().unwrap();
        return ExitCode::SUCCESS;
    }
    std::process::abort()
}

/// What a writer has seen of its log's files.
#[derive(Default)]
struct Files {
    /// The highest number of a table.
    table: u64,
    /// Names of write-ahead logs, by inode.
    logs: HashMap<u64, String>,
}

impl Files {
    /// Waits until there is a table of a higher number.
    fn wait_for_table(&mut self, dir: &Path) {
        let begun = Instant::now();
        let before = self.table;
        while self.table == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing was flushed");
            std::thread::sleep(Duration::from_millis(2));
            let tables = names(dir).filter_map(|(name, _)| name.strip_suffix(".sst")?.parse().ok());
            self.table = tables.max().unwrap_or_default();
        }
    }

    /// Whether a write-ahead log has got another name since the last look.
    fn recycled(&mut self, dir: &Path) -> bool {
        let mut found = false;
        for (name, inode) in names(dir).filter(|(name, _)| name.ends_with(".log")) {
            found |= self.logs.insert(inode, name.clone()).is_some_and(|before| before != name);
        }
        found
    }
}

/// Names and inodes of the files in a directory.
fn names(dir: &Path) -> impl Iterator<Item = (String, u64)> {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), file.ino()))
}

fn records(round: u8, count: usize, size: usize) -> Vec<Bytes> {
    (0..count).map(|number| vec![round.wrapping_mul(31).wrapping_add(number as u8); size].into()).collect()
}

/// What a log holds, by partition, and its identity.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    uuid: [u8; 16],
    records: BTreeMap<String, Vec<(u64, Bytes)>>,
}

async fn content(log: Arc<EmbeddedLog>) -> Result<Content, LogError> {
    let mut records = BTreeMap::new();
    for of in log.topics().await?.iter().flat_map(|topic| topic.all().collect::<Vec<_>>()) {
        let end = log.bounds(&of).await?.next;
        let (mut at, mut all) = (Offset::ZERO, Vec::new());
        while at < end {
            let some = log.read(&of, at, 1 << 20, Duration::ZERO).await?;
            at = some.last().unwrap().offset.next();
            all.extend(some.into_iter().map(|record| (record.offset.get(), record.value)));
        }
        records.insert(of.to_string(), all);
    }
    Ok(Content { uuid: log.uuid(), records })
}

/// A log whose files are to be damaged.
struct Original {
    shape: Shape,
    files: BTreeMap<String, Vec<u8>>,
    content: Content,
}

/// A place for many small directories: in memory where there is one.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

impl Original {
    fn new(runtime: &Runtime, shape: Shape) -> Self {
        let dir = place();
        let mut writer = Command::new(std::env::current_exe().unwrap());
        let output = writer.env(WRITER, dir.path()).env(SHAPE, format!("{shape:?}")).output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
        assert_eq!(output.status.success(), shape == Shape::Closed, "{output:?}");
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        let file =
            |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        let files: BTreeMap<_, _> = entries.map(file).collect();
        let content = runtime.block_on(content(EmbeddedLog::open(options(dir.path(), shape)).unwrap())).unwrap();
        let counts: Vec<usize> = content.records.values().map(Vec::len).collect();
        let rounds: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let (busy, others) = (rounds * shape.busy().0, (rounds + 1) / 3);
        assert_eq!(counts, [1 + busy, 1 + others, 1 + others], "{shape:?}: the log is not what was acknowledged");
        let of = |kind: &str| files.keys().filter(|name| name.ends_with(kind)).count();
        assert!(of(".sst") > 0 && of(".log") > 0, "{shape:?}: {:?}", files.keys());
        Self { shape, files, content }
    }

    /// Bytes of all files that RocksDB or the log reads.
    fn bytes(&self) -> usize {
        self.files.iter().filter(|(name, _)| counts(name)).map(|(_, bytes)| bytes.len()).sum()
    }

    /// File and offset of byte `number` of those.
    fn byte(&self, mut number: usize) -> (&str, usize) {
        for (name, bytes) in self.files.iter().filter(|(name, _)| counts(name)) {
            if number < bytes.len() {
                return (name, number);
            }
            number -= bytes.len();
        }
        panic!("there are fewer bytes");
    }

    /// Opens and reads a copy with one damage; whether it was noticed. Panics if it was not and something is wrong.
    fn look(&self, runtime: &Runtime, damage: &Damage<'_>) -> bool {
        let dir = place();
        for (name, bytes) in &self.files {
            if let Some(bytes) = damage.of(name, bytes) {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
        }
        let read = match EmbeddedLog::open(options(dir.path(), self.shape)) {
            Ok(log) => runtime.block_on(content(log)),
            Err(error) => Err(error),
        };
        match read {
            Ok(content) => {
                let differs =
                    content.records.iter().find(|(of, records)| self.content.records.get(*of) != Some(records));
                let differs = differs.map(|(of, records)| format!("{of} has {} records", records.len()));
                assert!(content == self.content, "{:?}, {damage:?}: not noticed, {differs:?}", self.shape);
                false
            }
            Err(error) => {
                let place = dir.path().display().to_string();
                assert!(error.to_string().contains(&place), "{damage:?}: {error} does not say where");
                assert!(
                    matches!(error, LogError::Corrupt(_) | LogError::Storage(_)),
                    "{damage:?}: {error:?} is no error of damage"
                );
                true
            }
        }
    }
}

/// Files that nothing is read from.
fn counts(name: &str) -> bool {
    !name.starts_with("LOG") && name != "LOCK"
}

#[derive(Debug)]
enum Damage<'a> {
    Flip { file: &'a str, at: usize, mask: u8 },
    Cut { file: &'a str, at: usize },
    Gone { file: &'a str },
}

impl Damage<'_> {
    /// What is left of a file.
    fn of(&self, name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        match self {
            Damage::Flip { file, at, mask } if *file == name => bytes[*at] ^= mask,
            Damage::Cut { file, at } if *file == name => bytes.truncate(*at),
            Damage::Gone { file } if *file == name => return None,
            _ => {}
        }
        Some(bytes)
    }
}

/// Numbers that are the seed's.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn small_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Some hundred random flips and cuts of logs of all shapes; each file gone; each file's last bytes cut.
pub fn p1_damaged_files_are_refused_or_harmless() {
    let seed =
        std::env::var("SLUICE_SEED").map_or_else(|_| RandomState::new().hash_one(0), |seed| seed.parse().unwrap());
    println!("  seed {seed}");
    let (runtime, mut random) = (small_runtime(), Random(seed));
    for shape in SHAPES {
        let original = Original::new(&runtime, shape);
        let mut noticed = [0; 4];
        let mut flip = |kind: usize, file: &str, at: usize, mask: usize| {
            let flip = Damage::Flip { file, at, mask: 1 + mask as u8 };
            noticed[kind] += usize::from(original.look(&runtime, &flip));
        };
        for (file, bytes) in original.files.iter().filter(|(name, bytes)| counts(name) && !bytes.is_empty()) {
            (0..12).for_each(|_| flip(2, file, random.below(bytes.len()), random.below(255)));
            let headers = match file {
                file if file.ends_with(".log") => headers(bytes, 11, 2, &mut random),
                file if file.starts_with("MANIFEST") => headers(bytes, 7, 12, &mut random),
                _ => Vec::new(),
            };
            headers.into_iter().for_each(|at| flip(3, file, at, random.below(255)));
        }
        for (file, bytes) in original.files.iter().filter(|(name, _)| counts(name)) {
            noticed[0] += usize::from(original.look(&runtime, &Damage::Gone { file }));
            for at in [random.below(bytes.len().max(1)), bytes.len().saturating_sub(1), bytes.len().saturating_sub(40)]
            {
                noticed[1] += usize::from(original.look(&runtime, &Damage::Cut { file, at }));
            }
        }
        let [gone, cut, flipped, headers] = noticed;
        println!(
            "  {shape:?}, {} bytes: noticed {gone} files gone, {cut} cut, {flipped} bytes flipped, {headers} of headers",
            original.bytes()
        );
        assert!(gone >= 3 && cut >= 3 && flipped >= 10, "the damage does not reach what is read");
    }
}

/// Where the bytes of the headers of `count` random records stand, in a write-ahead log or a manifest: checksum (4 bytes),
/// length (2), type (1), and in a write-ahead log the number of the file (4), by which recovery tells what is left of a
/// file that was recycled. No header stands across the end of a block of 32 KiB.
fn headers(file: &[u8], header: usize, count: usize, random: &mut Random) -> Vec<usize> {
    const BLOCK: usize = 32 << 10;
    let mut starts = Vec::new();
    let mut at = 0;
    while let Some(&[low, high]) = file.get(at + 4..at + 6) {
        starts.push(at);
        at += header + usize::from(u16::from_le_bytes([low, high]));
        if BLOCK - at % BLOCK < header {
            at = at.next_multiple_of(BLOCK);
        }
    }
    let chosen = (0..count).filter_map(|_| starts.get(random.below(starts.len().max(1))).copied());
    chosen.flat_map(|start| start..start + header).filter(|at| *at < file.len()).collect()
}

/// Every byte of the two small logs. Opening one waits more than it computes, so several are opened at once.
pub fn nightly_p1_every_flipped_byte_is_refused_or_harmless() {
    for shape in [Shape::Small, Shape::Closed] {
        let original = Original::new(&small_runtime(), shape);
        let (next, noticed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let runtime = small_runtime();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= original.bytes() {
                            break;
                        }
                        let (file, at) = original.byte(number);
                        let mask = 1 + Random(number as u64).below(255) as u8;
                        let seen = original.look(&runtime, &Damage::Flip { file, at, mask });
                        noticed.fetch_add(usize::from(seen), Ordering::Relaxed);
                    }
                });
            }
        });
        println!(
            "  {shape:?}: {} bytes flipped, {} noticed, the others harmless",
            original.bytes(),
            noticed.into_inner()
        );
    }
}
