//! A small HTTP/1.1 server for JSON-RPC: POST, Basic auth, connections kept alive, one thread each.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;

use crate::rpc::base64;

/// Longest line of a request, and how many headers it may have.
const LINE: u64 = 8192;
const HEADERS: usize = 100;
/// Longest body: a block in hex and what surrounds it.
const BODY: usize = 32 << 20;

/// What a call is answered with.
pub(super) enum Answer {
    /// This status and body.
    Respond(u16, Vec<u8>),
    /// The connection is closed without an answer.
    Close,
}

/// Answers the body of a call.
pub(super) type Handler = Arc<dyn Fn(&[u8]) -> Answer + Send + Sync>;

/// A connection and, once it runs, the thread that serves it.
type Open = (TcpStream, Option<JoinHandle<()>>);

/// What the threads share.
struct Shared {
    handler: Handler,
    /// The right `Authorization` header.
    authorization: String,
    /// Connections on which nothing comes for this long are closed.
    idle: Duration,
    stopping: AtomicBool,
    accepted: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

/// A running server.
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on the loopback; port 0 means a free one. `auth` is `USER:PASSWORD`.
    ///
    /// # Errors
    /// If the port is in use.
    pub(super) fn start(port: u16, auth: &str, idle: Duration, handler: Handler) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("RPC on port {port}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            handler,
            authorization: format!("Basic {}", base64(auth.as_bytes())),
            idle,
            stopping: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let accepting = shared.clone();
        let acceptor = std::thread::Builder::new().name("simnode-rpc".into());
        let acceptor = acceptor.spawn(move || accept(&listener, &accepting))?;
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub(super) fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Closes every connection; calls in progress get no answer.
    pub(super) fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // The acceptor is woken by a connection.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
        let open: Vec<_> = self.shared.open.lock().drain().collect();
        for (_, (stream, _)) in &open {
            stream.shutdown(Shutdown::Both).ok();
        }
        for (_, (_, thread)) in open {
            thread.map(JoinHandle::join);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, stream) in (0_u64..).zip(listener.incoming()) {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = stream.and_then(|stream| connection(number, stream, shared)) {
            tracing::warn!(%error, "a connection to the simulated node failed");
        }
    }
}

fn connection(number: u64, stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(shared.idle))?;
    shared.open.lock().insert(number, (stream.try_clone()?, None));
    let serving = shared.clone();
    let thread = std::thread::Builder::new().name("simnode-rpc".into()).spawn(move || {
        if let Err(error) = serve(&stream, &serving) {
            tracing::debug!(%error, "a connection to the simulated node ended");
        }
        stream.shutdown(Shutdown::Both).ok();
        serving.open.lock().remove(&number);
    });
    let mut open = shared.open.lock();
    match (thread, open.get_mut(&number)) {
        (Ok(thread), Some(entry)) => entry.1 = Some(thread),
        // It has ended already.
        (Ok(_), None) => {}
        (Err(error), _) => {
            open.remove(&number);
            return Err(error);
        }
    }
    Ok(())
}

/// Answers calls on one connection until it is closed, idle for too long or broken.
fn serve(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, stream)? {
        if request.authorization.as_deref() != Some(shared.authorization.as_str()) {
            stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"jsonrpc\"\r\nContent-Length: 0\r\n\r\n",
            )?;
            if request.close {
                return Ok(());
            }
            continue;
        }
        let answer = match request.method.as_str() {
            "POST" => (shared.handler)(&request.body),
            _ => Answer::Respond(405, b"JSONRPC server handles only POST requests".to_vec()),
        };
        let Answer::Respond(status, body) = answer else { return Ok(()) };
        let last = if request.close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nConnection: {last}\r\nContent-Length: {}\r\n\r\n",
            phrase(status),
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat())?;
        if request.close {
            return Ok(());
        }
    }
    Ok(())
}

struct Request {
    method: String,
    authorization: Option<String>,
    close: bool,
    body: Vec<u8>,
}

/// The next request; `None` where the client has closed the connection.
fn read_request(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> io::Result<Option<Request>> {
    let Some(first) = line(reader)? else { return Ok(None) };
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let mut request =
        Request { method, authorization: None, close: words.nth(1) == Some("HTTP/1.0"), body: Vec::new() };
    let mut length = 0_usize;
    for _ in 0..HEADERS {
        let header = line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if header.is_empty() {
            if length > BODY {
                return Err(io::Error::other(format!("a body of {length} bytes")));
            }
            request.body = vec![0; length];
            reader.read_exact(&mut request.body)?;
            return Ok(Some(request));
        }
        let Some((name, value)) = header.split_once(':') else { return Err(io::Error::other("not a header")) };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(io::Error::other)?,
            "authorization" => request.authorization = Some(value.to_owned()),
            "connection" => request.close = value.eq_ignore_ascii_case("close"),
            "expect" => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?,
            _ => {}
        }
    }
    Err(io::Error::other("too many headers"))
}

/// A line without its end; `None` at the end of the stream.
fn line(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    let mut text = String::new();
    if reader.by_ref().take(LINE).read_line(&mut text)? == 0 {
        return Ok(None);
    }
    if !text.ends_with('\n') {
        return Err(io::Error::other("a line without an end"));
    }
    Ok(Some(text.trim_end().to_owned()))
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}
