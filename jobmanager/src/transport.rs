//! HTTP to a node, one connection kept alive: what `bitcoincore-rpc` speaks through.
//!
//! Its own transport would do but for three things that matter to a pool: it goes round for ever where a node dies in
//! the middle of an answer's headers, it sends a call a second time when the answer is late, and it looks a host's
//! address up only once.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use bitcoincore_rpc::jsonrpc::{self, Request, Response, Transport, base64};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Port where the URL has none.
const PORT: &str = "80";
/// Longest line and most headers of an answer.
const LINE: u64 = 8192;
const HEADERS: usize = 100;
/// Up to this size a call goes out in one piece, bytes.
const SMALL: usize = 16 << 10;
/// Largest answer: a template of the largest block in hex is a tenth of it.
const BODY: u64 = 256 << 20;

/// Connections to a node, made when they are needed; one is kept. A call takes it and brings it back, so that a call which
/// comes meanwhile does not wait but makes its own.
pub(crate) struct Http {
    /// Host and port.
    address: String,
    path: String,
    authorization: String,
    /// For connecting, for each write and for each read.
    timeout: Duration,
    connection: Mutex<Option<BufReader<TcpStream>>>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the connection ended before the answer's end")]
    CutOff,
    #[error("not an HTTP answer: {0:?}")]
    Malformed(String),
    #[error("wrong credentials (HTTP status 401)")]
    Unauthorized,
    #[error("HTTP status {0}")]
    Status(u16),
}

impl Http {
    /// A connection to `http://HOST:PORT`, with Basic authentication; nothing is connected yet.
    ///
    /// # Errors
    /// If the URL is none of that form.
    pub(crate) fn new(url: &str, user: &str, password: &str, timeout: Duration) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or("it must begin with http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains(['@', ' ']) {
            return Err("it must be http://HOST:PORT, the credentials apart".into());
        }
        // The colons of an IPv6 address are in brackets.
        let has_port = host.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
        let address = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
        let authorization = format!("Basic {}", base64::encode(format!("{user}:{password}")));
        Ok(Self { address, path: format!("/{path}"), authorization, timeout, connection: Mutex::new(None) })
    }

    fn call<T: DeserializeOwned>(&self, body: &impl Serialize) -> Result<T, jsonrpc::Error> {
        self.call_with(&serde_json::to_vec(body)?)
    }

    /// Makes the call that `body` is, as JSON.
    pub(crate) fn call_with<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, jsonrpc::Error> {
        let (status, answer) = self.exchange(body).map_err(|error| jsonrpc::Error::Transport(error.into()))?;
        serde_json::from_slice(&answer).map_err(|error| match status {
            200 => error.into(),
            401 => jsonrpc::Error::Transport(HttpError::Unauthorized.into()),
            status => jsonrpc::Error::Transport(HttpError::Status(status).into()),
        })
    }

    /// Sends a call; status and body of the answer.
    fn exchange(&self, body: &[u8]) -> Result<(u16, Vec<u8>), HttpError> {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.path,
            self.address,
            self.authorization,
            body.len()
        );
        // A node closes connections that are idle. Where it has, nothing of an answer comes, and the call goes out on a
        // new one; an answer that is late is another matter.
        let kept = self.connection.lock().take();
        if let Some(mut kept) = kept {
            match send(&mut kept, head.as_bytes(), body) {
                Ok(first) => return self.receive(kept, &first),
                Err(HttpError::Io(error)) if is_timeout(&error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let mut fresh = BufReader::new(self.connect()?);
        let first = send(&mut fresh, head.as_bytes(), body)?;
        self.receive(fresh, &first)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.address));
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(self.timeout))?;
                    stream.set_write_timeout(Some(self.timeout))?;
                    return Ok(stream);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Reads what follows an answer's first line; keeps the connection where that is possible.
    fn receive(&self, mut stream: BufReader<TcpStream>, first: &str) -> Result<(u16, Vec<u8>), HttpError> {
        let malformed = || HttpError::Malformed(first.to_owned());
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).ok_or_else(malformed)?;
        let status: u16 = status.parse().map_err(|_| malformed())?;
        let (mut length, mut close) = (None, !first.starts_with("HTTP/1.1"));
        for _ in 0..HEADERS {
            let header = line(&mut stream)?;
            if header.is_empty() {
                let mut body = Vec::new();
                let read = stream.by_ref().take(length.unwrap_or(BODY)).read_to_end(&mut body)?;
                if length.is_some_and(|length| read as u64 != length) {
                    return Err(HttpError::CutOff);
                }
                if length.is_some() && !close {
                    *self.connection.lock() = Some(stream);
                }
                return Ok((status, body));
            }
            let (name, value) = header.split_once(':').ok_or_else(|| HttpError::Malformed(header.clone()))?;
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            match name.as_str() {
                "content-length" => {
                    let bytes = value.parse().ok().filter(|bytes| *bytes <= BODY);
                    length = Some(bytes.ok_or_else(|| HttpError::Malformed(header.clone()))?);
                }
                "transfer-encoding" => return Err(HttpError::Malformed(header)),
                "connection" => close = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Err(HttpError::Malformed(format!("more than {HEADERS} headers")))
    }
}

/// Sends a request; the first line of the answer. A large body is not copied behind its head.
fn send(stream: &mut BufReader<TcpStream>, head: &[u8], body: &[u8]) -> Result<String, HttpError> {
    if body.len() <= SMALL {
        stream.get_mut().write_all(&[head, body].concat())?;
    } else {
        stream.get_mut().write_all(head)?;
        stream.get_mut().write_all(body)?;
    }
    line(stream)
}

/// A line without its end.
fn line(stream: &mut BufReader<TcpStream>) -> Result<String, HttpError> {
    let mut text = String::new();
    stream.by_ref().take(LINE).read_line(&mut text)?;
    if text.ends_with('\n') { Ok(text.trim_end().to_owned()) } else { Err(HttpError::CutOff) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What `bitcoincore-rpc` calls; others may call beside it.
pub(crate) struct SharedHttp(pub(crate) Arc<Http>);

impl Transport for SharedHttp {
    fn send_request(&self, request: Request<'_>) -> Result<Response, jsonrpc::Error> {
        self.0.call(&request)
    }

    fn send_batch(&self, requests: &[Request<'_>]) -> Result<Vec<Response>, jsonrpc::Error> {
        self.0.call(&requests)
    }

    fn fmt_target(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.0.address, self.0.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"result\":7}";

    /// Serves connections one after the other; on each, these answers, each to one request. Gives the requests.
    fn server(connections: Vec<Vec<&'static str>>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = move || {
            let mut requests = Vec::new();
            for answers in connections {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                for answer in answers {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        assert_ne!(stream.read_line(&mut head).unwrap(), 0);
                    }
                    let length = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap();
                    let mut body = vec![0; length.parse().unwrap()];
                    stream.read_exact(&mut body).unwrap();
                    requests.push(head + std::str::from_utf8(&body).unwrap());
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            }
            requests
        };
        (url, std::thread::spawn(serve))
    }

    fn http(url: &str) -> Http {
        Http::new(url, "user", "pass", Duration::from_secs(60)).unwrap()
    }

    fn text(answer: Result<(u16, Vec<u8>), HttpError>) -> String {
        answer.map_or_else(|error| error.to_string(), |(status, body)| format!("{status} {}", body.len()))
    }

    #[test]
    fn a_connection_is_kept_and_made_again_where_the_node_closed_it() {
        let closing = "HTTP/1.1 500 Error\r\nconnection: Close\r\ncontent-length: 2\r\n\r\n{}";
        let (url, server) = server(vec![vec![GOOD, GOOD], vec![GOOD, closing], vec![GOOD]]);
        let http = http(&url);
        for expected in ["200 12", "200 12", "200 12", "500 2", "200 12"] {
            assert_eq!(text(http.exchange(b"call")), expected);
        }
        let requests = server.join().unwrap();
        assert_eq!(requests.len(), 5, "each call was sent once");
        assert!(requests[0].starts_with("POST / HTTP/1.1\r\n") && requests[0].ends_with("\r\n\r\ncall"));
        assert!(requests[0].contains("Authorization: Basic dXNlcjpwYXNz\r\n"), "{}", requests[0]);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error_and_not_a_hang() {
        for cut in
            ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
        {
            let (url, server) = server(vec![vec![cut]]);
            assert_eq!(text(http(&url).exchange(b"call")), "the connection ended before the answer's end", "{cut:?}");
            server.join().unwrap();
        }
        let (url, server) = server(vec![vec!["SSH-2.0-OpenSSH\r\n"]]);
        assert!(text(http(&url).exchange(b"call")).starts_with("not an HTTP answer"));
        server.join().unwrap();
    }

    #[test]
    fn a_late_answer_is_not_asked_for_twice() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let http = Http::new(&url, "user", "pass", Duration::from_millis(50)).unwrap();
        let (first, _) = std::thread::scope(|scope| {
            let accepted = scope.spawn(|| listener.accept().unwrap());
            let called = scope.spawn(|| http.exchange(b"call"));
            assert!(matches!(called.join().unwrap(), Err(HttpError::Io(error)) if is_timeout(&error)));
            accepted.join().unwrap()
        });
        drop(first);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "no second connection");
    }

    #[test]
    fn statuses_without_json_say_what_is_wrong() {
        for (answer, expected) in [
            ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "wrong credentials"),
            ("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "HTTP status 503"),
            ("HTTP/1.0 404 Not Found\r\n\r\nnothing", "HTTP status 404"),
        ] {
            let (url, server) = server(vec![vec![answer]]);
            let error = http(&url).call::<serde_json::Value>(&"call").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            server.join().unwrap();
        }
    }

    #[test]
    fn only_urls_of_the_right_form_are_taken() {
        let address = |url| Http::new(url, "u", "p", Duration::ZERO).map(|http| (http.address, http.path));
        let pair = |address: &str, path: &str| Ok((address.to_owned(), path.to_owned()));
        assert_eq!(address("http://node:8332"), pair("node:8332", "/"));
        assert_eq!(address("http://node/wallet/x"), pair("node:80", "/wallet/x"));
        assert_eq!(address("http://[::1]:8332/"), pair("[::1]:8332", "/"));
        assert_eq!(address("http://[::1]"), pair("[::1]:80", "/"));
        for wrong in ["https://node:8332", "node:8332", "http://", "http://user:pass@node:8332"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
