//! A small client of a node's JSON-RPC, for tests: one connection a call, no state.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

/// A call that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a node answers and with which credentials.
#[derive(Clone)]
pub struct Rpc {
    address: String,
    auth: String,
}

/// A call that the node answered with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{method}: {message} (code {code})")]
pub struct RpcError {
    /// The method called.
    pub method: String,
    /// Code of the error.
    pub code: i64,
    /// Its message.
    pub message: String,
}

impl Rpc {
    /// A client of the node at `HOST:PORT`, with the credentials `USER:PASSWORD`.
    pub fn new(address: impl Into<String>, auth: impl Into<String>) -> Self {
        Self { address: address.into(), auth: auth.into() }
    }

    /// Calls a method with positional parameters.
    ///
    /// # Errors
    /// If the node cannot be reached, or answers with an error (then the cause is an [`RpcError`]).
    pub fn call(&self, method: &str, params: &Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "1.0", "id": 1, "method": method, "params": params }).to_string();
        let head =
            format!("Authorization: Basic {}\r\nContent-Type: application/json\r\n", base64(self.auth.as_bytes()));
        let (status, answer) =
            http("POST", &self.address, "/", &head, body.as_bytes()).with_context(|| format!("calling {method}"))?;
        let answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{method} was answered with status {status} and no JSON: {answer:?}"))?;
        match &answer["error"] {
            Value::Null => Ok(answer["result"].clone()),
            error => Err(anyhow!(RpcError {
                method: method.to_owned(),
                code: error["code"].as_i64().unwrap_or_default(),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            })),
        }
    }
}

/// Sends one HTTP request; returns status and body. `headers` are lines that end with CR LF.
///
/// # Errors
/// If there is no answer or it is no HTTP.
pub fn http(verb: &str, address: &str, path: &str, headers: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = format!(
        "{verb} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).with_context(|| format!("sending to {address}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("the answer of {address}"))?;
    let split = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let split = split.with_context(|| format!("{address} closed the connection without an answer"))?;
    let head = String::from_utf8_lossy(&answer[..split]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{address} does not speak HTTP: {head:?}"))?;
    let mut body = answer.split_off(split + 4);
    if head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked") {
        body = unchunk(&body).with_context(|| format!("the answer of {address}"))?;
    }
    Ok((status, String::from_utf8(body).context("a body that is no text")?))
}

/// The body of chunks.
fn unchunk(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = chunks.windows(2).position(|bytes| bytes == b"\r\n").context("a chunk without a size")?;
        let size = std::str::from_utf8(&chunks[..line])?.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).context("a chunk's size")?;
        let chunk = chunks.get(line + 2..line + 2 + size).context("a chunk that is cut off")?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        let Some(rest) = chunks.get(line + 2 + size + 2..) else { bail!("the chunks have no end") };
        chunks = rest;
    }
}

/// Base64 with padding (RFC 4648).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4648.
    #[test]
    fn base64_pads() {
        for (text, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk(b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n").unwrap(), b"Wikipedia");
        assert!(unchunk(b"4\r\nWi").is_err());
    }
}
