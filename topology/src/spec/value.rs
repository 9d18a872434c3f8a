//! Settings as text -> values.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::kind::SettingType;
use crate::settings::SettingValue;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// Port; 0 where the system is to choose one.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port`, `[v6]:port`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = digits.then(|| port.parse().ok()).flatten()?;
        if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            let address: std::net::Ipv6Addr = inner.parse().ok()?;
            return Some(Self { host: address.to_string(), port });
        }
        let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        (!host.is_empty() && host.bytes().all(name)).then(|| Self { host: host.to_owned(), port })
    }

    /// Whether listening on both at once fails.
    pub(crate) fn clashes_with(&self, other: &Self) -> bool {
        let all = |host: &str| matches!(host, "0.0.0.0" | "::");
        let local = |host: &str| if host == "localhost" { "127.0.0.1".to_owned() } else { host.to_lowercase() };
        self.port != 0
            && self.port == other.port
            && (all(&self.host) || all(&other.host) || local(&self.host) == local(&other.host))
    }
}

/// Reads a scalar setting. The error says what was expected; lists are read item by item by the caller.
pub(crate) fn parse_scalar(ty: SettingType, text: &str) -> Result<SettingValue, String> {
    match ty {
        SettingType::Text | SettingType::Cache => Ok(SettingValue::Text(text.to_owned())),
        SettingType::Word(words) if words.contains(&text) => Ok(SettingValue::Text(text.to_owned())),
        SettingType::Flag => match text {
            "true" => Ok(SettingValue::Flag(true)),
            "false" => Ok(SettingValue::Flag(false)),
            _ => Err(expected(ty)),
        },
        SettingType::Integer(least, most) => {
            let number = digits(text).filter(|number| (least..=most).contains(number));
            number.map(SettingValue::Integer).ok_or_else(|| expected(ty))
        }
        SettingType::Decimal if is_decimal(text) => Ok(SettingValue::Text(text.to_owned())),
        SettingType::Duration => parse_duration(text).map(SettingValue::Duration).ok_or_else(|| expected(ty)),
        SettingType::Size => parse_size(text).map(SettingValue::Integer).ok_or_else(|| expected(ty)),
        SettingType::Address | SettingType::Addresses => match HostPort::parse(text) {
            Some(_) => Ok(SettingValue::Text(text.to_owned())),
            None => Err(expected(SettingType::Address)),
        },
        SettingType::Networks if network(text).is_some() => Ok(SettingValue::Text(text.to_owned())),
        SettingType::Networks => Err(NETWORK.to_owned()),
        SettingType::Secret | SettingType::Word(_) | SettingType::Decimal | SettingType::Entries(_) => {
            Err(expected(ty))
        }
    }
}

/// What a setting of this type looks like, for hints and the reference.
pub(crate) fn expected(ty: SettingType) -> String {
    match ty {
        SettingType::Text => "text".to_owned(),
        SettingType::Cache => "the name of a cache".to_owned(),
        SettingType::Secret => "`${VARIABLE}` or `${file:PATH}`".to_owned(),
        SettingType::Word(words) => format!("one of {}", super::quoted_list(words.iter().copied())),
        SettingType::Flag => "`true` or `false`".to_owned(),
        SettingType::Integer(0, u64::MAX) => "a whole number".to_owned(),
        SettingType::Integer(least, u64::MAX) => format!("a whole number, at least {least}"),
        SettingType::Integer(least, most) => format!("a whole number from {least} to {most}"),
        SettingType::Decimal => "a decimal number such as `0.5`".to_owned(),
        SettingType::Duration => "a length of time such as `250ms`, `10s`, `5m`, `2h` or `30d`".to_owned(),
        SettingType::Size => "a number of bytes such as `900`, `64KiB` or `10GiB`".to_owned(),
        SettingType::Address => "`HOST:PORT` such as `127.0.0.1:3333`".to_owned(),
        SettingType::Addresses => "a list of `HOST:PORT`".to_owned(),
        SettingType::Networks => "a list of networks such as `10.0.0.0/8`, `fd00::/8` or `192.0.2.7`".to_owned(),
        SettingType::Entries(_) => "a list of mappings".to_owned(),
    }
}

/// What an item of a list of networks looks like.
const NETWORK: &str = "a network such as `10.0.0.0/8`, `fd00::/8` or `192.0.2.7`";

/// Reads an item of a list of networks ([`SettingType::Networks`]): a network, or an address alone.
pub fn network(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| alone()).ok()
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn is_decimal(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let number = |part: &str| !part.is_empty() && part.len() <= 40 && part.bytes().all(|b| b.is_ascii_digit());
    number(whole) && number(fraction)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((digits(number)?, unit.trim_start_matches(' ')))
}

/// Reads `250ms`, `10s`, `5m`, `2h`, `30d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let each: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(each)
}

/// `duration` as the file would have it, in the largest unit that fits.
pub(crate) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_millis() > 0 {
        return format!("{}ms", duration.as_millis());
    }
    for (each, unit) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds > 0 && seconds.is_multiple_of(each) {
            return format!("{}{unit}", seconds / each);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_of_each_type() {
        let ok = |ty, text: &str| parse_scalar(ty, text).ok();
        assert_eq!(ok(SettingType::Flag, "true"), Some(SettingValue::Flag(true)));
        assert_eq!(ok(SettingType::Flag, "yes"), None);
        assert_eq!(ok(SettingType::Integer(1, 8), "8"), Some(SettingValue::Integer(8)));
        for bad in ["0", "9", "-1", "+1", "1.0", "", "0x1", "99999999999999999999"] {
            assert_eq!(ok(SettingType::Integer(1, 8), bad), None, "{bad}");
        }
        assert_eq!(ok(SettingType::Duration, "30d"), Some(SettingValue::Duration(Duration::from_secs(2_592_000))));
        assert_eq!(ok(SettingType::Duration, "250ms"), Some(SettingValue::Duration(Duration::from_millis(250))));
        for bad in ["5", "m", "5 weeks", "1.5h", "-1s", "18446744073709551615d"] {
            assert_eq!(ok(SettingType::Duration, bad), None, "{bad}");
        }
        assert_eq!(ok(SettingType::Size, "10GiB"), Some(SettingValue::Integer(10 << 30)));
        assert_eq!(ok(SettingType::Size, "900"), Some(SettingValue::Integer(900)));
        assert_eq!(ok(SettingType::Size, "1XB"), None);
        assert_eq!(ok(SettingType::Decimal, "0.001"), Some(SettingValue::Text("0.001".to_owned())));
        for bad in [".5", "1.", "1e3", "-1", "", "1.2.3"] {
            assert_eq!(ok(SettingType::Decimal, bad), None, "{bad}");
        }
        assert!(ok(SettingType::Word(&["a", "b"]), "b").is_some());
        assert!(ok(SettingType::Word(&["a", "b"]), "c").is_none());
    }

    #[test]
    fn networks() {
        for good in ["10.0.0.0/8", "192.0.2.7", "::1", "fd00::/8", "0.0.0.0/0"] {
            assert!(parse_scalar(SettingType::Networks, good).is_ok(), "{good}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "host", "fd00::/129", "10.0.0.0/", "::1:3333/x", ""] {
            assert!(parse_scalar(SettingType::Networks, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_their_clashes() {
        let at = |text: &str| HostPort::parse(text);
        for bad in ["3333", ":3333", "host", "host:", "host:70000", "a b:1", "[::1:3", "h:+1", "::1:80"] {
            assert_eq!(at(bad), None, "{bad}");
        }
        let clash = |a: &str, b: &str| at(a).zip(at(b)).is_some_and(|(a, b)| a.clashes_with(&b) && b.clashes_with(&a));
        assert!(clash("0.0.0.0:1", "127.0.0.1:1"));
        assert!(clash("localhost:1", "127.0.0.1:1"));
        assert!(clash("[::]:1", "10.0.0.1:1"));
        assert!(!clash("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!clash("127.0.0.1:1", "10.0.0.1:1"));
        assert!(!clash("0.0.0.0:0", "0.0.0.0:0"));
    }

    proptest! {
        #[test]
        fn durations_survive_formatting(millis in 0_u64..10_u64.pow(14)) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_a_value_or_not(text: String) {
            for ty in [
                SettingType::Flag, SettingType::Integer(0, u64::MAX), SettingType::Decimal, SettingType::Duration,
                SettingType::Size, SettingType::Address, SettingType::Networks,
            ] {
                let _ = parse_scalar(ty, &text);
            }
        }
    }
}
