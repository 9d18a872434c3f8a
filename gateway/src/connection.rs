//! A connection: the session, and what has not been written or read yet. Idle, it holds no buffer.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use tokio::net::tcp::OwnedWriteHalf;

use crate::GatewayConfig;
use crate::limits::Visitor;
use crate::session::Session;
use crate::tls::Filter;

/// Why a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The miner closed it.
    ByPeer,
    /// The miner did not read.
    Evicted,
    /// The gateway refused to go on.
    Refused(&'static str),
    /// The network failed.
    Failed(ErrorKind),
    /// The gateway stops.
    Stopped,
}

/// A connection of a worker.
pub(crate) struct Connection {
    /// Where the miner is, as far as it is known: a load balancer's header may tell better.
    pub(crate) peer: Cell<SocketAddr>,
    /// Its place in the worker's list.
    pub(crate) place: usize,
    pub(crate) state: RefCell<State>,
}

/// How the miner came, and how it behaves. Goes with the connection from worker to worker.
#[derive(Default)]
pub(crate) struct Link {
    /// Place of its listener in the gateway's list.
    pub(crate) listener: usize,
    /// A PROXY header must come before anything else.
    pub(crate) awaits_header: bool,
    /// Where it speaks TLS.
    pub(crate) tls: Option<Filter>,
    /// Where its address has limits.
    pub(crate) visitor: Option<Visitor>,
    /// When it came, in seconds of the gateway's clock.
    pub(crate) since: u32,
    /// When the last line came.
    pub(crate) heard: u32,
}

impl Link {
    /// Whether lines can come yet.
    pub(crate) fn is_open(&self) -> bool {
        !self.awaits_header && !self.tls.as_ref().is_some_and(Filter::is_handshaking)
    }
}

/// What goes with a connection from worker to worker.
pub(crate) struct Moved {
    pub(crate) session: Session,
    pub(crate) link: Link,
    /// What the system did not take yet.
    pub(crate) out: Vec<u8>,
    /// What was read and not dealt with, from the beginning of a line on.
    pub(crate) begun: Vec<u8>,
}

/// What changes of a connection.
pub(crate) struct State {
    pub(crate) session: Session,
    pub(crate) link: Link,
    /// `None` once another worker has it.
    writer: Option<OwnedWriteHalf>,
    /// What the system did not take yet.
    out: Vec<u8>,
    /// The beginning of a line.
    pub(crate) begun: Vec<u8>,
    /// Of the connection's task.
    waker: Option<Waker>,
    /// Unanswered shares.
    pub(crate) in_flight: usize,
    /// The miner sends no more, but waits for answers.
    pub(crate) half_closed: bool,
    /// The worker that is to go on with it.
    pub(crate) moves: Option<u32>,
    ended: Option<Ended>,
}

impl State {
    /// `out` is what another worker could not write yet.
    pub(crate) fn new(session: Session, link: Link, writer: OwnedWriteHalf, out: Vec<u8>) -> Self {
        Self {
            session,
            link,
            writer: Some(writer),
            out,
            begun: Vec::new(),
            waker: None,
            in_flight: 0,
            half_closed: false,
            moves: None,
            ended: None,
        }
    }

    /// The way to the miner and what another worker needs to go on with it. `None` if it was asked before.
    pub(crate) fn detach(&mut self, config: &GatewayConfig) -> Option<(OwnedWriteHalf, Moved)> {
        let writer = self.writer.take()?;
        let moved = Moved {
            session: std::mem::replace(&mut self.session, Session::new(config)),
            link: std::mem::take(&mut self.link),
            out: std::mem::take(&mut self.out),
            begun: std::mem::take(&mut self.begun),
        };
        Some((writer, moved))
    }

    /// Whether `begun` holds bytes of the socket, not of what TLS made of them.
    pub(crate) fn keeps_bytes(&self) -> bool {
        self.link.tls.is_none() || self.link.awaits_header
    }

    /// Why it has ended, if it has.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Ends it; its task takes it away. The first reason stays.
    pub(crate) fn end(&mut self, why: Ended) {
        if self.ended.is_none() {
            self.ended = Some(why);
            self.wake();
        }
    }

    /// Everything is answered and written.
    pub(crate) fn is_done(&self) -> bool {
        self.in_flight == 0 && self.out.is_empty()
    }

    /// Wakes its task.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Has its task woken by `cx`.
    pub(crate) fn listen(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// Writes `bytes`; what the system does not take is kept, up to `limit` bytes. Beyond them the miner is not reading,
    /// and the connection is ended.
    pub(crate) fn send(&mut self, bytes: &[u8], limit: usize) {
        if self.ended.is_some() || bytes.is_empty() {
            return;
        }
        let Some(tls) = &mut self.link.tls else { return self.write(bytes, limit) };
        match tls.encrypt(bytes) {
            Ok(()) => self.send_encrypted(limit),
            Err(error) => self.end(Ended::Failed(error.kind())),
        }
    }

    /// Writes what the socket is to carry, even after the end: a goodbye comes behind it.
    fn write(&mut self, bytes: &[u8], limit: usize) {
        let Some(writer) = self.writer.as_ref().filter(|_| !bytes.is_empty()) else { return };
        let mut rest = bytes;
        if self.out.is_empty() {
            match writer.try_write(bytes) {
                Ok(written) => rest = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return self.end(Ended::Failed(error.kind())),
            }
        }
        if rest.is_empty() {
            return;
        }
        if self.out.len() + rest.len() > limit {
            return self.end(Ended::Evicted);
        }
        self.out.extend_from_slice(rest);
        self.wake();
    }

    /// Takes bytes of the socket, and adds what the miner said to `plain`.
    pub(crate) fn decrypt(&mut self, bytes: &[u8], plain: &mut Vec<u8>, limit: usize) -> Result<(), String> {
        let Some(tls) = &mut self.link.tls else { return Ok(()) };
        let closed = tls.decrypt(bytes, plain);
        self.send_encrypted(limit);
        self.half_closed |= closed?;
        Ok(())
    }

    /// Tells the miner that no more comes, where the protocol below has a word for it.
    pub(crate) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.link.tls {
            tls.close();
            self.send_encrypted(usize::MAX);
        }
    }

    /// Writes what TLS has to send, like [`State::send`].
    fn send_encrypted(&mut self, limit: usize) {
        let Some(tls) = &mut self.link.tls else { return };
        let mut bytes = Vec::new();
        match tls.encrypted(&mut bytes) {
            Ok(()) => self.write(&bytes, limit),
            Err(error) => self.end(Ended::Failed(error.kind())),
        }
    }

    /// Writes what is kept, as far as the system takes it.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) {
        while let Some(writer) = self.writer.as_ref().filter(|_| !self.out.is_empty() && self.ended.is_none()) {
            match writer.as_ref().poll_write_ready(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => return self.end(Ended::Failed(error.kind())),
                Poll::Ready(Ok(())) => match writer.try_write(&self.out) {
                    Ok(written) if written == self.out.len() => self.out = Vec::new(),
                    Ok(written) => drop(self.out.drain(..written)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return self.end(Ended::Failed(error.kind())),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DESIGN 10 allows 5 kB for an idle connection. Most of it is the event loop's and the user's names; what the
    /// gateway keeps itself must stay small, and without buffers.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 512, "{} bytes", size_of::<Connection>());
    }

    #[tokio::test]
    async fn what_the_system_does_not_take_is_kept_up_to_the_limit_and_freed_when_written() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        let config = crate::GatewayConfig::new("g", sluice_mining::Chain::Regtest);
        let mut state = State::new(Session::new(&config), Link::default(), stream.into_split().1, Vec::new());
        // More than the system takes for a peer that does not read.
        let line = vec![b'x'; 1 << 20];
        let mut sent = 0;
        while state.out.is_empty() {
            state.send(&line, 4 << 20);
            sent += line.len();
            assert_eq!(state.ended(), None);
        }
        assert!(!state.is_done());
        let mut read = 0;
        let mut buffer = vec![0; 1 << 20];
        while read < sent {
            // Either side's progress wakes the other.
            std::future::poll_fn(|cx| {
                state.poll_drain(cx);
                peer.poll_read_ready(cx)
            })
            .await
            .unwrap();
            read += peer.try_read(&mut buffer).unwrap_or(0);
        }
        assert_eq!((read, state.out.capacity()), (sent, 0));
        while state.ended().is_none() {
            state.send(&line, 2 << 20);
        }
        assert_eq!(state.ended(), Some(&Ended::Evicted));
    }
}
