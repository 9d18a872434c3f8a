//! TLS: certificates that can be changed while connections go on, and the filter between a socket and a session.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, ServerConnection};
use rustls::sign::CertifiedKey;

use crate::listener::TlsFiles;

/// TLS of a listener.
pub(crate) struct Tls {
    files: TlsFiles,
    certificate: Arc<Certificate>,
    config: Arc<ServerConfig>,
    /// Of the files whose certificate is in use.
    seen: ArcSwap<[Option<SystemTime>; 2]>,
}

/// The certificate in use.
#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// TLS with the certificate in `files`.
    ///
    /// # Errors
    /// What is wrong with the files, in words.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, String> {
        let seen = changed(&files);
        let certificate = Arc::new(Certificate(ArcSwap::from_pointee(read(&files)?)));
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("TLS cannot be used: {error}"))?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(&certificate) as Arc<_>);
        // Miners that come again after a restart of their network need no full handshake, and nothing is kept for them.
        config.ticketer = ring::Ticketer::new().map_err(|error| format!("TLS cannot be used: {error}"))?;
        Ok(Self { files, certificate, config: Arc::new(config), seen: ArcSwap::from_pointee(seen) })
    }

    /// Reads the files again. Connections that are there go on with what they have.
    ///
    /// # Errors
    /// What is wrong with the files, in words; the certificate stays.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let seen = changed(&self.files);
        self.certificate.0.store(Arc::new(read(&self.files)?));
        self.seen.store(Arc::new(seen));
        tracing::info!(cert = %self.files.cert.display(), "a certificate was read");
        Ok(())
    }

    /// Whether the files have changed since they were read.
    pub(crate) fn has_changed(&self) -> bool {
        changed(&self.files) != **self.seen.load()
    }

    /// The filter of a new connection.
    ///
    /// # Errors
    /// If the library cannot make one.
    pub(crate) fn filter(&self) -> Result<Filter, rustls::Error> {
        let mut connection = ServerConnection::new(Arc::clone(&self.config))?;
        // The connection's output is bounded where it is kept.
        connection.set_buffer_limit(None);
        Ok(Filter(Box::new(connection)))
    }
}

/// When the files were changed.
fn changed(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok())
}

/// Reads a certificate chain and its key, which must belong together.
fn read(files: &TlsFiles) -> Result<CertifiedKey, String> {
    let wrong = |what: &str, path: &std::path::Path, error: &dyn std::fmt::Display| {
        format!("{what} {} cannot be used: {error}; it must be a PEM file that the pool may read", path.display())
    };
    let chain = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong("the certificate", &files.cert, &error))?;
    if chain.is_empty() {
        return Err(wrong("the certificate", &files.cert, &"there is none in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong("the key", &files.key, &error))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| wrong("the key", &files.key, &error))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| {
        wrong("the certificate", &files.cert, &format!("it is not of the key {}: {error}", files.key.display()))
    })?;
    Ok(certified)
}

/// TLS of one connection, 7.4 kB where it is idle: no I/O of its own, so that a connection can be moved between threads.
pub(crate) struct Filter(Box<ServerConnection>);

impl Filter {
    /// Whether the handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes what came from the socket, and adds what the peer said to `plain`. True once the peer has said that it
    /// sends no more.
    ///
    /// # Errors
    /// If the peer does not speak TLS; what is to be told to it is in [`Filter::encrypted`].
    pub(crate) fn decrypt(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<bool, String> {
        let mut closed = false;
        while !bytes.is_empty() && !closed {
            let taken = self.0.read_tls(&mut bytes).map_err(|error| error.to_string())?;
            self.0.process_new_packets().map_err(|error| error.to_string())?;
            match self.0.reader().read_to_end(plain) {
                Ok(_) => closed = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => closed = taken == 0,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(closed)
    }

    /// Encrypts `bytes`; they are in [`Filter::encrypted`] then.
    pub(crate) fn encrypt(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.writer().write_all(bytes)
    }

    /// Says that no more is sent.
    pub(crate) fn close(&mut self) {
        self.0.send_close_notify();
    }

    /// Moves what is to be sent to the end of `out`.
    pub(crate) fn encrypted(&mut self, out: &mut Vec<u8>) -> std::io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(out)?;
        }
        Ok(())
    }
}
