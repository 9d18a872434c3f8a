//! One connection to an SPU, used by one at a time: what a request that was given up has left of itself on it is nobody
//! else's.

use std::fmt::Display;
use std::time::Duration;

use fluvio::dataplane::api::Request;
use fluvio::dataplane::link::ErrorCode;
use fluvio_socket::{AsyncResponse, ClientConfig, MultiplexerSocket, VersionedSerialSocket};
use tokio::time::timeout;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an SPU may take to answer what it need not wait for.
pub(super) const ASK: Duration = Duration::from_secs(10);
/// Answers of a stream that may wait for their reader; an SPU sends one, and then waits for its acknowledgement.
const WAITING: usize = 10;

/// Why a request was not answered as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It passes: a connection broke, or an SPU is gone, or has just come, or is not the leader any more.
    Passing(String),
    /// It stays so.
    Refused(String),
}

impl Fault {
    /// What was told.
    pub(super) fn told(&self) -> &str {
        match self {
            Self::Passing(what) | Self::Refused(what) => what,
        }
    }
}

/// A connection to an SPU.
pub(super) struct Link {
    socket: VersionedSerialSocket,
    address: String,
}

impl Link {
    /// Connects to the SPU at `address` (`host:port`).
    pub(super) async fn open(address: &str) -> Result<Self, Fault> {
        let mut config = ClientConfig::with_addr(address.to_owned());
        config.set_client_id("sluice");
        let connected = within(CONNECT, address, "connecting", config.connect()).await?;
        let (socket, config, versions) = connected.split();
        let socket = VersionedSerialSocket::new(MultiplexerSocket::shared(socket), config, versions);
        Ok(Self { socket, address: address.to_owned() })
    }

    /// Asks, and waits for the answer at most as long as `patience`. After a fault the connection is not to be used again.
    pub(super) async fn ask<R>(&self, request: R, patience: Duration) -> Result<R::Response, Fault>
    where
        R: Request + Send + Sync,
    {
        within(patience, &self.address, "an answer", self.socket.send_receive(request)).await
    }

    /// Asks for a stream of answers.
    pub(super) async fn stream<R>(&self, request: R) -> Result<AsyncResponse<R>, Fault>
    where
        R: Request + Send + Sync,
    {
        let message = self.socket.new_request(request, self.socket.lookup_version::<R>());
        within(ASK, &self.address, "a stream", self.socket.create_stream(message, WAITING)).await
    }

    /// Where it goes.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

/// Nothing of the client's ends by itself in time: all of it is waited for here.
async fn within<T, E: Display>(
    patience: Duration,
    address: &str,
    what: &str,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, Fault> {
    match timeout(patience, asked).await {
        Ok(answer) => answer.map_err(|error| Fault::Passing(format!("{address}: {error}"))),
        Err(_) => Err(Fault::Passing(format!("{address}: {what} took longer than {} s", patience.as_secs()))),
    }
}

/// What an answer's code says. Everything passes but what is refused, or makes no sense: SPUs die, others take over, and say
/// so in many ways meanwhile.
pub(super) fn check(code: &ErrorCode) -> Result<(), Fault> {
    match code {
        ErrorCode::None => Ok(()),
        ErrorCode::MessageTooLarge | ErrorCode::PermissionDenied | ErrorCode::CompressionError => {
            Err(Fault::Refused(code.to_string()))
        }
        code => Err(Fault::Passing(code.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_so_is_refused() {
        assert_eq!(check(&ErrorCode::None), Ok(()));
        for code in [ErrorCode::NotLeaderForPartition, ErrorCode::StorageError, ErrorCode::SpuOffline] {
            assert!(matches!(check(&code), Err(Fault::Passing(_))), "{code}");
        }
        for code in [ErrorCode::MessageTooLarge, ErrorCode::PermissionDenied] {
            assert!(matches!(check(&code), Err(Fault::Refused(_))), "{code}");
        }
    }

    /// Someone who takes connections and never says a word.
    #[tokio::test]
    async fn whoever_says_nothing_is_waited_for_no_longer_than_that() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = nobody.local_addr().unwrap().to_string();
        let Err(Fault::Passing(told)) = Link::open(&address).await else { panic!("connected") };
        assert!(told.contains(&address) && told.contains("longer than 5 s"), "{told}");
    }

    #[tokio::test]
    async fn nobody_is_told_with_the_address() {
        let address = {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            port.local_addr().unwrap().to_string()
        };
        let Err(Fault::Passing(told)) = Link::open(&address).await else { panic!("connected") };
        assert!(told.contains(&address), "{told}");
    }
}
