//! The event loop of a thread: sockets by epoll (edge-triggered), arrivals by a timer.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::desk::Desk;
use super::session::Session;
use super::tally::Tally;
use super::{CONNECT, FIND, Load, Plan, RUN, Report, Shared};

/// Longest line of a pool, and what is read at once.
const BUFFER: usize = 256 << 10;
/// Connections in the making at once, where there is no rate.
const CONNECTING: usize = 128;
/// Events taken at once.
const EVENTS: usize = 1024;
/// Events of the timer carry this number.
const TIMER: u64 = u64::MAX;
/// How long a thread sleeps at most: it looks whether the stage has changed.
const NAP: Duration = Duration::from_millis(5);
/// How long answers are waited for at the end, nanoseconds: a guard, a pool answers at once.
const DRAINING: u64 = 10_000_000_000;
/// How long a login may take, nanoseconds.
const LOGIN: u64 = 60_000_000_000;
/// Bytes that a slow reader reads each second.
const SIP: usize = 256;
/// A second in nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// Receive buffer of a slow reader.
const SLOW_BUFFER: usize = 4 << 10;
/// Shares found ahead before the sockets are looked at again.
const FIND_AT_ONCE: usize = 64;

/// A connection and its miner.
struct Connection {
    stream: Option<TcpStream>,
    session: Session,
    began: u64,
    /// It has been greeted.
    greeted: bool,
    ready: bool,
    slow: bool,
    /// The beginning of a line whose end has not come.
    tail: Vec<u8>,
    /// What the socket did not take.
    backlog: Vec<u8>,
}

pub(super) struct Engine<'a> {
    desk: Desk<'a>,
    epoll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    opened: usize,
    /// Connections that are ready or have failed.
    settled: usize,
    alive: usize,
    /// Those that shares go to in turn.
    turn: usize,
    next_arrival: f64,
    interval: f64,
    next_sip: u64,
    next_look: u64,
    draining: bool,
    /// CPU time of the thread when the window began, nanoseconds.
    cpu: u64,
}

impl<'a> Engine<'a> {
    pub(super) fn new(plan: &'a Plan, shared: &'a Shared, first: usize, count: usize, threads: usize) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("no epoll")?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let timer = timer.context("no timer")?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).context("the timer")?;
        let mut rng = fastrand::Rng::with_seed(plan.seed.wrapping_add(first as u64));
        let connections = (first..first + count).map(|number| Connection {
            stream: None,
            session: Session::new(plan.user.replace("{n}", &number.to_string())),
            began: 0,
            greeted: false,
            ready: false,
            slow: rng.f64() * 100.0 < plan.slow_readers,
            tail: Vec::new(),
            backlog: Vec::new(),
        });
        let connections: Vec<Connection> = connections.collect();
        let interval = match plan.load {
            Load::Open { rate, .. } => 1e9 * threads as f64 / rate,
            Load::Idle | Load::Closed(_) => f64::INFINITY,
        };
        let desk = Desk::new(plan, shared, rng, first, count)?;
        let buffer = vec![0; BUFFER];
        let (opened, settled, alive, turn) = (0, 0, 0, 0);
        Ok(Self {
            desk,
            epoll,
            timer,
            connections,
            buffer,
            opened,
            settled,
            alive,
            turn,
            next_arrival: f64::INFINITY,
            interval,
            next_sip: 0,
            next_look: 0,
            draining: false,
            cpu: 0,
        })
    }

    /// Runs until the end.
    ///
    /// # Errors
    /// If the system fails, or shares cannot be found.
    pub(super) fn run(mut self, tell: &Sender<Report>) -> Result<Tally> {
        let mut events = Vec::with_capacity(EVENTS);
        // The stage that was reported as done, and when draining began.
        let (mut told, mut draining, mut quiet) = (None, None, false);
        loop {
            let (stage, now) = (self.desk.shared.stage.load(Ordering::Acquire), self.desk.shared.now());
            self.look_at_window(now)?;
            let done = match stage {
                CONNECT => self.open_more(now)?,
                FIND => self.find_ahead()?,
                RUN => {
                    self.set_out(now)?;
                    if self.desk.left == 0 && !self.draining {
                        self.let_slow_ones_read()?;
                    }
                    if self.alive == 0 || (self.desk.left == 0 && self.is_answered()) {
                        return self.finish();
                    }
                    false
                }
                _ => {
                    self.desk.running = false;
                    self.next_arrival = f64::INFINITY;
                    if !self.draining {
                        self.let_slow_ones_read()?;
                    }
                    let since = *draining.get_or_insert(now);
                    // What the pool has sent is taken, jobs too.
                    if (quiet && self.is_answered()) || now - since > DRAINING {
                        return self.finish();
                    }
                    false
                }
            };
            if done && told != Some(stage) {
                told = Some(stage);
                tell.send(Report::Done).context("the swarm was given up")?;
            }
            let busy = stage == FIND && !done;
            self.wait(&mut events, if busy { Duration::ZERO } else { NAP })?;
            quiet = events.is_empty();
            for event in events.drain(..) {
                self.handle(event)?;
            }
            self.sip()?;
        }
    }

    /// Notes whether answers count, and the CPU time at the beginning and the end of the window.
    fn look_at_window(&mut self, now: u64) -> Result<()> {
        let shared = self.desk.shared;
        let inside = now >= shared.begin.load(Ordering::Acquire) && now < shared.end.load(Ordering::Acquire);
        if inside != self.desk.in_window {
            self.cross_window()?;
        }
        Ok(())
    }

    /// Enters the window, or leaves it.
    fn cross_window(&mut self) -> Result<()> {
        let used = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        let used = u64::try_from(used.tv_sec)? * SECOND + u64::try_from(used.tv_nsec)?;
        if self.desk.in_window {
            self.desk.tally.counts.cpu_ns = used - self.cpu;
        }
        (self.cpu, self.desk.in_window) = (used, !self.desk.in_window);
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.connections.iter().all(|one| one.session.unanswered == 0)
    }

    fn finish(mut self) -> Result<Tally> {
        // It may end before the window does: with the last share, or the last connection.
        if self.desk.in_window {
            self.cross_window()?;
        }
        let open = self.connections.iter().filter(|one| one.stream.is_some());
        let left: usize = open.map(|one| one.session.unanswered).sum();
        self.desk.tally.counts.unanswered += left as u64;
        Ok(self.desk.tally)
    }

    /// Opens connections that are due; whether all are settled.
    fn open_more(&mut self, now: u64) -> Result<bool> {
        let due = match self.desk.plan.connect_rate {
            Some(rate) => (now as f64 / 1e9 * rate) as usize,
            None => self.settled + CONNECTING,
        };
        while self.opened < due.min(self.connections.len()) {
            self.open(self.opened, now)?;
            self.opened += 1;
        }
        // A pool that does not answer a login does not hold up the others for ever.
        if now < self.next_look {
            return Ok(self.settled == self.connections.len());
        }
        self.next_look = now + SECOND;
        for index in 0..self.opened {
            let one = &self.connections[index];
            if !one.ready && one.stream.is_some() && now - one.began > LOGIN {
                self.close(index, Some("no job within 60 s".into()));
            }
        }
        Ok(self.settled == self.connections.len())
    }

    fn open(&mut self, index: usize, now: u64) -> Result<()> {
        let target = self.desk.plan.target;
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
        let socket = socket.context("no socket; `ulimit -n` says how many a process may have")?;
        let one = &mut self.connections[index];
        if one.slow {
            sockopt::set_socket_recv_buffer_size(&socket, SLOW_BUFFER).context("the buffer of a slow reader")?;
        }
        sockopt::set_tcp_nodelay(&socket, true).context("TCP_NODELAY")?;
        one.began = now;
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => {
                self.settled += 1;
                self.desk.tally.counts.refused += 1;
                self.desk.tally.counts.refusal = Some(error.to_string());
                return Ok(());
            }
        }
        let stream = TcpStream::from(socket);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), flags).context("a socket")?;
        one.stream = Some(stream);
        self.alive += 1;
        Ok(())
    }

    /// Finds some shares ahead; whether there are enough.
    fn find_ahead(&mut self) -> Result<bool> {
        let plan = self.desk.plan;
        let each = plan.stock.div_ceil(plan.connections);
        let poor = |one: &Connection| one.ready && one.stream.is_some() && one.session.stock() < each;
        let Some(place) = (0..self.connections.len())
            .map(|step| (self.turn + step) % self.connections.len())
            .find(|index| poor(&self.connections[*index]))
        else {
            return Ok(true);
        };
        self.turn = place;
        let session = &mut self.connections[place].session;
        session.find_ahead(plan, FIND_AT_ONCE.min(each - session.stock()))?;
        Ok(false)
    }

    /// Sends the first shares, and those that are due.
    fn set_out(&mut self, now: u64) -> Result<()> {
        if !self.desk.running {
            self.desk.running = true;
            self.next_arrival = now as f64 + self.interval;
            if let Load::Closed(_) = self.desk.plan.load {
                for index in 0..self.connections.len() {
                    self.top_up(index, now)?;
                }
            }
        }
        while self.next_arrival <= now as f64 && self.desk.left > 0 {
            let intended = self.next_arrival as u64;
            self.next_arrival += match self.desk.plan.load {
                Load::Open { poisson: true, .. } => -self.interval * (1.0 - self.desk.rng.f64()).ln(),
                _ => self.interval,
            };
            let Some(index) = self.next_miner() else { return Ok(()) };
            self.desk.submit(&mut self.connections[index].session, intended)?;
            self.flush(index);
        }
        Ok(())
    }

    /// The next connection in turn that can send.
    fn next_miner(&mut self) -> Option<usize> {
        for _ in 0..self.connections.len() {
            self.turn = (self.turn + 1) % self.connections.len();
            let one = &self.connections[self.turn];
            if one.ready && one.stream.is_some() {
                return Some(self.turn);
            }
        }
        None
    }

    fn wait(&mut self, events: &mut Vec<Event>, nap: Duration) -> Result<()> {
        let mut nap = nap;
        if self.next_arrival.is_finite() && self.desk.left > 0 {
            let left = (self.next_arrival - self.desk.shared.now() as f64).max(0.0);
            if left < 1e9 {
                // Timeouts of epoll are milliseconds; an arrival is due more exactly than that.
                let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
                let due = Timespec { tv_sec: 0, tv_nsec: (left as i64).max(1) };
                let spec = Itimerspec { it_interval: zero, it_value: due };
                timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).context("setting the timer")?;
            }
            if left == 0.0 {
                nap = Duration::ZERO;
            }
        }
        let nap = Timespec { tv_sec: 0, tv_nsec: i64::from(nap.subsec_nanos()) };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&nap)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for sockets"),
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let (number, flags) = ({ event.data }.u64(), { event.flags });
        if number == TIMER {
            let mut ticks = [0; 8];
            // It is armed again for each arrival: how often it has rung does not matter.
            rustix::io::read(&self.timer, &mut ticks).ok();
            return Ok(());
        }
        let index = usize::try_from(number)?;
        if self.connections[index].stream.is_none() {
            return Ok(());
        }
        if flags.contains(EventFlags::OUT) {
            if !self.connections[index].greeted {
                self.greet(index);
            } else if !self.connections[index].backlog.is_empty() {
                self.flush(index);
            }
        }
        let slow = self.sips(index);
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) && !slow {
            self.read(index)?;
        }
        Ok(())
    }

    fn greet(&mut self, index: usize) {
        let one = &mut self.connections[index];
        let failed = match one.stream.as_ref().map(sockopt::socket_error) {
            Some(Ok(Ok(()))) | None => None,
            Some(Ok(Err(error)) | Err(error)) => Some(error.to_string()),
        };
        if failed.is_some() {
            return self.close(index, failed);
        }
        one.greeted = true;
        let greeting = one.session.greeting(self.desk.plan);
        self.desk.out.extend_from_slice(greeting.as_bytes());
        self.flush(index);
    }

    /// Sends what stands in `out` for a connection, behind what it could not send before.
    fn flush(&mut self, index: usize) {
        let (one, out) = (&mut self.connections[index], &mut self.desk.out);
        let Some(stream) = &mut one.stream else { return out.clear() };
        if !one.backlog.is_empty() {
            one.backlog.append(out);
            std::mem::swap(&mut one.backlog, out);
        }
        let mut sent = 0;
        while sent < out.len() {
            match stream.write(&out[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The end of the connection is found by reading: what the pool had said before is read first.
                Err(_) => sent = out.len(),
            }
        }
        one.backlog.clear();
        one.backlog.extend_from_slice(&out[sent..]);
        out.clear();
    }

    /// Reads all that is there.
    fn read(&mut self, index: usize) -> Result<()> {
        loop {
            // A slow reader takes a sip, and is not asked again before the next.
            let sips = self.sips(index);
            let one = &mut self.connections[index];
            let Some(stream) = &mut one.stream else { return Ok(()) };
            let kept = one.tail.len();
            self.buffer[..kept].copy_from_slice(&one.tail);
            let room = if sips { SIP.min(BUFFER - kept) } else { BUFFER - kept };
            match stream.read(&mut self.buffer[kept..kept + room]) {
                Ok(0) => {
                    let cause = if room == 0 { "a line without end" } else { "the pool closed the connection" };
                    self.close(index, Some(cause.into()));
                    return Ok(());
                }
                Ok(count) => {
                    self.take(index, kept + count)?;
                    // Less than there was room for is all there was: more gives another event.
                    if count < room || sips {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.close(index, Some(error.to_string()));
                    return Ok(());
                }
            }
        }
    }

    /// Takes the lines in the buffer, and sends what follows from them.
    fn take(&mut self, index: usize, end: usize) -> Result<()> {
        let now = self.desk.shared.now();
        let (one, desk) = (&mut self.connections[index], &mut self.desk);
        let (mut begin, mut fault) = (0, None);
        for place in memchr::memchr_iter(b'\n', &self.buffer[..end]) {
            let line = self.buffer[begin..place].trim_ascii();
            begin = place + 1;
            if let Err(error) = desk.line(&mut one.session, one.slow, line, now)? {
                fault = Some(format!("{error:#}"));
                break;
            }
        }
        one.tail.clear();
        one.tail.extend_from_slice(&self.buffer[begin..end]);
        if fault.is_some() {
            self.close(index, fault);
            return Ok(());
        }
        if !one.ready && one.session.is_ready() {
            one.ready = true;
            self.settled += 1;
            desk.tally.counts.ready += 1;
            desk.tally.first_job.saturating_record(now - one.began);
        }
        self.top_up(index, now)
    }

    /// In a closed loop: sends as many shares as were answered.
    fn top_up(&mut self, index: usize, now: u64) -> Result<()> {
        let Load::Closed(in_flight) = self.desk.plan.load else { return Ok(()) };
        let one = &mut self.connections[index];
        if !self.desk.running || !one.ready || one.stream.is_none() {
            return Ok(());
        }
        while one.session.unanswered < in_flight && self.desk.left > 0 {
            self.desk.submit(&mut one.session, now)?;
        }
        if !self.desk.out.is_empty() {
            self.flush(index);
        }
        Ok(())
    }

    /// It reads in sips: a slow reader, once it has logged in and until the run ends.
    fn sips(&self, index: usize) -> bool {
        let one = &self.connections[index];
        one.slow && one.ready && !self.draining
    }

    /// At the end everybody reads what there is: their answers count like all others.
    fn let_slow_ones_read(&mut self) -> Result<()> {
        self.draining = true;
        (0..self.connections.len()).try_for_each(|index| match self.connections[index].slow {
            true => self.read(index),
            false => Ok(()),
        })
    }

    /// Lets the slow readers read a little.
    fn sip(&mut self) -> Result<()> {
        let now = self.desk.shared.now();
        if self.desk.plan.slow_readers == 0.0 || now < self.next_sip {
            return Ok(());
        }
        self.next_sip = now + SECOND;
        for index in 0..self.connections.len() {
            if self.sips(index) {
                self.read(index)?;
            }
        }
        Ok(())
    }

    /// Gives up a connection.
    fn close(&mut self, index: usize, cause: Option<String>) {
        let one = &mut self.connections[index];
        if one.stream.take().is_none() {
            return;
        }
        self.alive -= 1;
        let counts = &mut self.desk.tally.counts;
        counts.unanswered += one.session.unanswered as u64;
        one.session.unanswered = 0;
        if one.ready {
            counts.closed += 1;
            counts.closed_slow += u64::from(one.slow);
        } else {
            self.settled += 1;
            counts.refused += 1;
            counts.refusal = cause.or_else(|| counts.refusal.take());
        }
    }
}
