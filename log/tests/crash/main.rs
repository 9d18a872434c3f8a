//! A writer is killed (kill -9) many times, and its disk runs full: every record that it was told is durable is there
//! afterwards, in order, once (invariants S1, P1). Its files are damaged: that is told, or it changes nothing.
//!
//! The writer is this test binary, started again with an environment variable that makes it one. It prints each
//! acknowledged record to its standard output; what it has printed is what must be found.
#![allow(clippy::panic, clippy::unwrap_used)]

mod damage;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, LogError, Partition, Retention, TopicSpec};
use sluice_proto::Offset;

const PARTITIONS: u32 = 4;
const TOPIC: &str = "t";
/// Directory of the log a writer writes; makes a process a writer.
const WRITER: &str = "SLUICE_LOG_TEST_WRITER";
/// Appends of each partition's producer under way at once.
const IN_FLIGHT: usize = 3;
/// What a writer exits with after the log has stopped as it should.
const STOPPED: u8 = 42;

/// Small buffers, so that a short life sees flushes and recycled files too.
fn open(dir: &Path) -> Result<Arc<EmbeddedLog>, LogError> {
    let mut options = EmbeddedOptions::new(dir);
    options.write_buffer_bytes = 2 << 20;
    options.wal_bytes = 2 << 20;
    EmbeddedLog::open(options)
}

// --- the writer ---

/// Number `n` of a partition's records: its number, then bytes that depend on it.
fn record(n: u64) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(8 + (n * 37 % 400) as usize, n as u8);
    bytes.into()
}

fn number(value: &Bytes) -> u64 {
    let n = u64::from_be_bytes(*value.first_chunk().unwrap());
    assert_eq!(*value, record(n), "a record has changed");
    n
}

async fn write(dir: &Path) -> ExitCode {
    let log = open(dir).unwrap();
    let spec = TopicSpec { name: TOPIC.into(), partitions: PARTITIONS, retention: Retention::default() };
    log.create_topic(&spec).await.unwrap();
    let producers: Vec<_> =
        (0..PARTITIONS).map(|p| tokio::spawn(produce(log.clone(), Partition::new(TOPIC, p)))).collect();
    for producer in producers {
        let error = producer.await.unwrap();
        assert!(matches!(error, LogError::Stopped(_)), "{error}");
    }
    // It stays stopped, for every partition, and what was durable can still be read.
    for number in 0..PARTITIONS {
        let of = Partition::new(TOPIC, number);
        let again = log.append(&of, vec![record(0)]).await;
        assert!(matches!(again, Err(LogError::Stopped(_))), "{again:?}");
        assert!(!log.read(&of, Offset::ZERO, 1_000, Duration::ZERO).await.unwrap().is_empty());
    }
    assert_eq!(log.metrics().stopped, 1);
    ExitCode::from(STOPPED)
}

/// Appends until that fails; prints `PARTITION FIRST-NUMBER COUNT FIRST-OFFSET` for each acknowledged batch.
async fn produce(log: Arc<EmbeddedLog>, of: Partition) -> LogError {
    let mut at = next_number(&log, &of).await;
    let mut waiting = std::collections::VecDeque::new();
    loop {
        while waiting.len() < IN_FLIGHT {
            let count = 1 + at % 60;
            let batch = (at..at + count).map(record).collect();
            waiting.push_back((at, count, tokio::spawn(log.append(&of, batch))));
            at += count;
        }
        let Some((first, count, done)) = waiting.pop_front() else { continue };
        match done.await.unwrap() {
            Ok(offset) => {
                let mut out = std::io::stdout().lock();
                // Whoever reads this may be gone; then this process is soon gone too.
                let _ = writeln!(out, "{} {first} {count} {offset}", of.number).and_then(|()| out.flush());
            }
            Err(error) => {
                for (_, _, done) in waiting {
                    assert!(done.await.unwrap().is_err(), "something became durable behind a hole");
                }
                return error;
            }
        }
    }
}

async fn next_number(log: &EmbeddedLog, of: &Partition) -> u64 {
    let next = log.bounds(of).await.unwrap().next.get();
    if next <= 1 {
        return 0;
    }
    let last = log.read(of, Offset::new(next - 1), 1, Duration::ZERO).await.unwrap();
    number(&last[0].value) + 1
}

// --- the one who kills it ---

#[derive(Default)]
struct Acknowledged {
    /// Offset of each acknowledged record, by partition and number.
    offsets: HashMap<(u32, u64), u64>,
}

impl Acknowledged {
    fn note(&mut self, line: &str) {
        let words: Vec<u64> = line.split(' ').map(|w| w.parse().unwrap()).collect();
        let [partition, first, count, offset] = words[..] else { panic!("{line:?}") };
        for i in 0..count {
            let before = self.offsets.insert((partition as u32, first + i), offset + i);
            assert!(before.is_none(), "record {} of partition {partition} was acknowledged twice", first + i);
        }
    }
}

fn writer(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(WRITER, dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Lets a writer work until `enough`, kills it if it still lives, and takes over what it said.
fn observe(mut child: Child, acknowledged: &mut Acknowledged, mut enough: impl FnMut(usize) -> bool) -> Option<i32> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut count = 0;
    while !enough(count) {
        let Some(Ok(line)) = lines.next() else { break };
        acknowledged.note(&line);
        count += 1;
    }
    // On Unix this is SIGKILL.
    let _ = child.kill();
    // What it had printed before it died is acknowledged too; its last line may be cut.
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    rest.iter().filter(|line| line.split(' ').count() == 4).for_each(|line| acknowledged.note(line));
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    output.status.code()
}

/// Every acknowledged record is there at its offset; records are numbered without a gap or a repetition.
async fn check(dir: &Path, acknowledged: &Acknowledged) -> u64 {
    let log = open(dir).unwrap();
    let mut total = 0;
    for partition in 0..PARTITIONS {
        let of = Partition::new(TOPIC, partition);
        let (mut at, mut expected) = (Offset::ZERO, 0);
        loop {
            let records = log.read(&of, at, 1 << 20, Duration::ZERO).await.unwrap();
            let Some(last) = records.last() else { break };
            at = last.offset.next();
            for record in records.iter().filter(|r| r.offset != Offset::ZERO) {
                assert_eq!(number(&record.value), expected, "{of} at {}", record.offset);
                if let Some(offset) = acknowledged.offsets.get(&(partition, expected)) {
                    assert_eq!(record.offset.get(), *offset);
                }
                expected += 1;
            }
        }
        let newest = acknowledged.offsets.keys().filter(|(p, _)| *p == partition).map(|(_, n)| *n).max();
        assert!(
            newest.is_none_or(|newest| newest < expected),
            "{of} has lost record {newest:?}, it ends at {expected}"
        );
        total += expected;
    }
    total
}

fn kill_it_many_times(runs: u32) -> Acknowledged {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::default();
    let runtime = runtime();
    for run in 0..runs {
        let before = acknowledged.offsets.len();
        // Some lives are long, some end while the log is opened.
        let life = Duration::from_millis(u64::from(run * 7919 % 30) * 10);
        let child = writer(dir.path()).spawn().unwrap();
        let born = Instant::now();
        let code = observe(child, &mut acknowledged, |count| {
            if run % 3 == 0 { count > run as usize * 5 } else { born.elapsed() >= life && count > 0 }
        });
        assert_eq!(code, None, "the writer ended by itself");
        let total = runtime.block_on(check(dir.path(), &acknowledged));
        assert!(acknowledged.offsets.len() > before, "run {run} acknowledged nothing");
        assert!(total >= acknowledged.offsets.len() as u64);
    }
    acknowledged
}

// --- a full disk ---

/// Runs a writer in `dir`, whose disk is nearly full, until the log stops. Then makes room and looks.
fn fill_up(dir: &Path, mut command: Command, make_room: impl FnOnce()) {
    let mut acknowledged = Acknowledged::default();
    let deadline = Instant::now() + Duration::from_secs(60);
    let code = observe(command.spawn().unwrap(), &mut acknowledged, |_| Instant::now() > deadline);
    assert_eq!(code, Some(i32::from(STOPPED)), "the writer did not stop as it should");
    assert!(acknowledged.offsets.len() > 1_000, "{} records fitted", acknowledged.offsets.len());
    make_room();
    runtime().block_on(check(dir, &acknowledged));
    // With room again, it goes on behind what is there.
    let before = acknowledged.offsets.len();
    let code = observe(writer(dir).spawn().unwrap(), &mut acknowledged, |count| count > 20);
    assert_eq!(code, None);
    runtime().block_on(check(dir, &acknowledged));
    assert!(acknowledged.offsets.len() > before);
}

/// A real file system of 24 MiB; `None` where this process may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|o| o.status.success()).then_some(Self(dir))
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=200m"]).arg(self.0.path()).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn a_full_disk_stops_it() {
    let Some(disk) = SmallDisk::mount() else {
        println!("  (mounting is not permitted here: the limit on file sizes stands in for a full disk)");
        return;
    };
    let dir = disk.0.path().join("log");
    fill_up(&dir, writer(&dir), || disk.grow());
}

/// The kernel refuses to let any file of the process grow beyond a limit: an I/O error that needs no privilege.
fn a_limit_on_files_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    // Blocks of 512 bytes. The signal that comes with it is ignored, so that writing fails with EFBIG.
    command.args(["-c", "trap '' XFSZ; ulimit -f 1500; exec \"$0\""]).arg(std::env::current_exe().unwrap());
    command.env(WRITER, dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    fill_up(dir.path(), command, || ());
}

// --- both ---

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A test: its name, whether it is too long for every run, and itself.
type Test<'a> = (&'a str, bool, &'a dyn Fn());

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(WRITER) {
        return runtime().block_on(write(Path::new(&dir)));
    }
    if let Some(dir) = std::env::var_os(damage::WRITER) {
        return runtime().block_on(damage::write(Path::new(&dir)));
    }
    let runs = std::env::var("SLUICE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let tests: [Test<'_>; 5] = [
        ("what_was_acknowledged_survives_kills", false, &|| {
            println!("  {} records acknowledged in {runs} lives", kill_it_many_times(runs).offsets.len());
        }),
        ("a_full_disk_stops_it", false, &a_full_disk_stops_it),
        ("a_limit_on_files_stops_it", false, &a_limit_on_files_stops_it),
        ("p1_damaged_files_are_refused_or_harmless", false, &damage::p1_damaged_files_are_refused_or_harmless),
        (
            "nightly_p1_every_flipped_byte_is_refused_or_harmless",
            true,
            &damage::nightly_p1_every_flipped_byte_is_refused_or_harmless,
        ),
    ];
    for (name, long, test) in tests.iter().filter(|(name, ..)| name.contains(&filter)) {
        if *long != has("--ignored") && !has("--include-ignored") {
            continue;
        }
        let started = Instant::now();
        test();
        println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}
