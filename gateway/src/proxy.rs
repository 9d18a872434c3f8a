//! The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): the first bytes of a connection that came
//! through a load balancer say where the miner is. A pure function of bytes.
//!
//! Of the crates there are, `ppp` takes no `PROXY UNKNOWN` with more than seven words, and neither it nor `proxy-header`
//! takes a `LOCAL` whose addresses are shorter than its family says; both must be taken and ignored. The format is small.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest header of version 1, with its end (proxy-protocol.txt 2.1).
const V1_MAX: usize = 107;
/// How a header of version 1 begins.
const V1_START: &[u8] = b"PROXY ";
/// How a header of version 2 begins.
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 2 in front of its addresses.
const V2_FIXED: usize = 16;
/// Longest header, bytes.
pub(crate) const MAX_HEADER: usize = V2_FIXED + V2_MAX;
/// Addresses and extensions that are taken, bytes. Receivers must take 536 (proxy-protocol.txt 2.2); extensions with a
/// client's certificate may be larger, and nothing is larger than this in good faith.
const V2_MAX: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Header(Header),
    /// The beginning of one: more bytes are needed.
    Incomplete,
    /// No header, and none that could become one.
    Invalid(&'static str),
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the miner is; `None` where the load balancer does not know, or speaks for itself (a health check).
    pub source: Option<SocketAddr>,
    /// Its bytes: what follows is the miner's.
    pub length: usize,
}

/// Reads the header in front of `bytes`. Asked again with more bytes, an answer other than [`Parsed::Incomplete`] stays
/// the same. At most 4,112 bytes are looked at, so a caller need not keep more.
pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(V2_START) {
        return version_2(bytes);
    }
    if bytes.starts_with(V1_START) {
        return version_1(bytes);
    }
    if V2_START.starts_with(bytes) || V1_START.starts_with(bytes) {
        return Parsed::Incomplete;
    }
    Parsed::Invalid("it does not begin with a PROXY header")
}

fn version_1(bytes: &[u8]) -> Parsed {
    let seen = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < V1_MAX {
            Parsed::Incomplete
        } else {
            Parsed::Invalid("a PROXY line beyond 107 bytes")
        };
    };
    let Ok(line) = std::str::from_utf8(&seen[V1_START.len()..end]) else {
        return Parsed::Invalid("a PROXY line that is no text");
    };
    let mut words = line.split(' ');
    let source = match words.next() {
        // Whatever else the line says is to be ignored.
        Some("UNKNOWN") => Some(None),
        Some("TCP4") => addresses::<Ipv4Addr>(words).map(Some),
        Some("TCP6") => addresses::<Ipv6Addr>(words).map(Some),
        _ => None,
    };
    match source {
        Some(source) => Parsed::Header(Header { source, length: end + 2 }),
        None => Parsed::Invalid("a PROXY line that is not PROTOCOL SOURCE DESTINATION PORT PORT"),
    }
}

/// The source of `SOURCE DESTINATION PORT PORT`, if all of it is there.
fn addresses<'a, A: FromStr + Into<IpAddr>>(mut words: impl Iterator<Item = &'a str>) -> Option<SocketAddr> {
    let source: A = words.next()?.parse().ok()?;
    words.next()?.parse::<A>().ok()?;
    let source_port = port(words.next()?)?;
    port(words.next()?)?;
    words.next().is_none().then(|| SocketAddr::new(source.into(), source_port))
}

fn port(word: &str) -> Option<u16> {
    word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok()).flatten()
}

fn version_2(bytes: &[u8]) -> Parsed {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED) else { return Parsed::Incomplete };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > V2_MAX {
        return Parsed::Invalid("a PROXY header beyond 4112 bytes");
    }
    let Some(body) = rest.get(..length) else { return Parsed::Incomplete };
    let source = match (command, family) {
        (0x20, _) => Some(None),
        (0x21, 0x11) => source_v4(body).map(Some),
        (0x21, 0x21) => source_v6(body).map(Some),
        // Unspecified, datagrams and local sockets: taken, without an address (proxy-protocol.txt 2.2).
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Some(None),
        (0x21, _) => return Parsed::Invalid("a PROXY header of an unknown family"),
        _ => return Parsed::Invalid("a PROXY header of an unknown version or command"),
    };
    match source {
        Some(source) => Parsed::Header(Header { source, length: V2_FIXED + length }),
        None => Parsed::Invalid("a PROXY header that is too short for its addresses"),
    }
}

/// The source of two IPv4 addresses and two ports.
fn source_v4(body: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 4] = body.first_chunk().copied()?;
    let port: [u8; 2] = body.get(8..12)?.first_chunk().copied()?;
    Some(SocketAddr::new(Ipv4Addr::from(ip).into(), u16::from_be_bytes(port)))
}

/// The source of two IPv6 addresses and two ports.
fn source_v6(body: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 16] = body.first_chunk().copied()?;
    let port: [u8; 2] = body.get(32..36)?.first_chunk().copied()?;
    Some(SocketAddr::new(Ipv6Addr::from(ip).into(), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(source: Option<&str>, length: usize) -> Parsed {
        Parsed::Header(Header { source: source.map(|text| text.parse().unwrap()), length })
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_START, &[command, family], &length, body].concat()
    }

    /// Each prefix of a header is incomplete, and what follows it does not matter.
    fn whole(bytes: &[u8], source: Option<&str>) {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Parsed::Incomplete, "{end} bytes of {bytes:?}");
        }
        assert_eq!(parse(bytes), header(source, bytes.len()));
        assert_eq!(parse(&[bytes, b"{\"id\":1}\r\n"].concat()), header(source, bytes.len()));
    }

    #[test]
    fn version_1_says_where_a_miner_is() {
        whole(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 3333\r\n", Some("192.0.2.7:56324"));
        whole(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", Some("[2001:db8::7]:1"));
        whole(b"PROXY UNKNOWN\r\n", None);
        whole(b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535 and more and more\r\n", None);
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
        whole(longest.as_bytes(), None);
    }

    #[test]
    fn version_1_out_of_form_is_refused() {
        for bad in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 3333 5\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 3333\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 3333\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1  3333\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY \r\n",
            "{\"id\":1,\"method\":\"mining.subscribe\"}\n",
            "proxy tcp4",
        ] {
            assert!(matches!(parse(bad.as_bytes()), Parsed::Invalid(_)), "{bad}");
        }
        assert!(matches!(parse(format!("PROXY UNKNOWN {}", "x".repeat(93)).as_bytes()), Parsed::Invalid(_)));
        assert!(matches!(parse(b"PROXY UNKNOWN \xff\r\n"), Parsed::Invalid(_)));
    }

    #[test]
    fn version_2_says_where_a_miner_is() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0x0d, 0x05];
        whole(&v2(0x21, 0x11, &four), Some("192.0.2.7:56324"));
        whole(&v2(0x21, 0x11, &[&four[..], &[4, 0, 1, 0]].concat()), Some("192.0.2.7:56324"));
        let address = |last: u8| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
        let six = [address(7), address(1), vec![0, 1, 0xff, 0xff]].concat();
        whole(&v2(0x21, 0x21, &six), Some("[2001:db8::7]:1"));
        whole(&v2(0x20, 0x00, &[]), None);
        whole(&v2(0x20, 0x11, &[1, 2, 3]), None);
        whole(&v2(0x21, 0x00, &[9; 30]), None);
        whole(&v2(0x21, 0x31, &[b'/'; 216]), None);
        whole(&v2(0x21, 0x12, &four), None);
    }

    #[test]
    fn version_2_out_of_form_is_refused() {
        for bad in [
            v2(0x21, 0x11, &[1; 11]),
            v2(0x21, 0x21, &[1; 35]),
            v2(0x22, 0x11, &[1; 12]),
            v2(0x11, 0x11, &[1; 12]),
            v2(0x21, 0x41, &[1; 12]),
            v2(0x21, 0x13, &[1; 12]),
            v2(0x21, 0x00, &[0; V2_MAX + 1]),
        ] {
            assert!(matches!(parse(&bad), Parsed::Invalid(_)), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_answer_stays_when_more_bytes_come(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY UNKNOWN", V2_START]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
            cut in 0usize..300,
        ) {
            let bytes = [start, &rest].concat();
            let before = parse(&bytes[..cut.min(bytes.len())]);
            if before != Parsed::Incomplete {
                prop_assert_eq!(parse(&bytes), before);
            }
        }

        #[test]
        fn every_address_comes_through_both_versions(ip in any::<IpAddr>(), port in any::<u16>()) {
            let (word, family, octets) = match ip {
                IpAddr::V4(ip) => ("TCP4", 0x11, ip.octets().to_vec()),
                IpAddr::V6(ip) => ("TCP6", 0x21, ip.octets().to_vec()),
            };
            let text = format!("PROXY {word} {ip} {ip} {port} 3333\r\n");
            let body = [&octets[..], &octets, &port.to_be_bytes(), &[0x0d, 0x05]].concat();
            for bytes in [text.into_bytes(), v2(0x21, family, &body)] {
                let Parsed::Header(header) = parse(&bytes) else { panic!("{bytes:?}") };
                prop_assert_eq!(header, Header { source: Some(SocketAddr::new(ip, port)), length: bytes.len() });
            }
        }
    }
}
