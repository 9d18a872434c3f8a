//! Reading a request: JSON, borrowed from the line wherever it has no escapes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use sluice_mining::{Difficulty, Target};

/// A request. Fields may come in any order; unknown ones are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct Request<'a> {
    /// The id, as it stands in the line; `None` if there was none.
    #[serde(borrow, default)]
    pub(crate) id: Id<'a>,
    /// The method; `None` in an answer to something the gateway never asked.
    #[serde(borrow, default)]
    pub(crate) method: Option<Text<'a>>,
    /// The parameters, not read yet.
    #[serde(borrow, default)]
    pub(crate) params: Option<&'a RawValue>,
}

impl<'a> Request<'a> {
    /// Reads a line.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }

    /// The parameters as `T`; `None` if they are something else.
    pub(crate) fn params<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_str(self.params?.get()).ok()
    }

    /// The first parameter as a text.
    pub(crate) fn first_text(&self) -> Option<Text<'a>> {
        let params: Vec<&'a RawValue> = self.params()?;
        serde_json::from_str(params.first()?.get()).ok()
    }

    /// The first two parameters, as far as they are texts.
    pub(crate) fn two_texts(&self) -> (Option<Text<'a>>, Option<Text<'a>>) {
        let params: Vec<&'a RawValue> = self.params().unwrap_or_default();
        let text = |at: usize| params.get(at).and_then(|value| serde_json::from_str(value.get()).ok());
        (text(0), text(1))
    }

    /// The first parameter as a difficulty: a number, or one in quotes.
    pub(crate) fn first_difficulty(&self) -> Option<Difficulty> {
        let params: Vec<&'a RawValue> = self.params()?;
        difficulty(params.first()?)
    }

    /// The first parameter as a target: 64 hex digits, most significant first.
    pub(crate) fn first_target(&self) -> Option<Difficulty> {
        let text = self.first_text()?;
        let digits = unprefixed(&text);
        if digits.len() != 64 || !digits.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (to, pair) in bytes.iter_mut().rev().zip(digits.as_bytes().chunks(2)) {
            *to = u8::try_from(hex(std::str::from_utf8(pair).ok()?, 2)?).ok()?;
        }
        Some(Difficulty::of_target(Target::from_le_bytes(bytes).ok()?))
    }
}

/// A difficulty as a JSON number, or in quotes.
pub(crate) fn difficulty(value: &RawValue) -> Option<Difficulty> {
    Difficulty::parse_wire(value.get().trim_matches('"'))
}

/// The id of a request, to be echoed byte by byte.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Id<'a>(pub(crate) Option<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not through Option: `null` is an id, and is echoed.
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw)))
    }
}

/// A JSON string, borrowed from the line unless it has escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text<'a>(Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl<'de> Visitor<'de> for AsText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AsText)
    }
}

/// `text` without a leading `0x`.
pub(crate) fn unprefixed(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}

/// A number of 1 to `digits` hex digits of either case, with or without `0x` before them.
pub(crate) fn hex(text: &str, digits: usize) -> Option<u64> {
    let number = unprefixed(text);
    let fits = (1..=digits).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fits { u64::from_str_radix(number, 16).ok() } else { None }
}

/// A number of 1 to 8 hex digits: ntime, nonce, version bits, masks.
pub(crate) fn word(text: &str) -> Option<u32> {
    u32::try_from(hex(text, 8)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_kept_verbatim() {
        for id in ["1", "\"a\\u0041\"", "null", "123456789012345678901234567890", "1.50", "-7", "[1, 2]"] {
            let line = format!("{{\"params\": [], \"id\": {id} , \"method\":\"m\"}}");
            assert_eq!(Request::parse(line.as_bytes()).unwrap().id.0.unwrap().get(), id);
        }
        assert!(Request::parse(b"{\"method\":\"m\"}").unwrap().id.0.is_none());
    }

    #[test]
    fn quirk_unknown_fields_spaces_and_order_do_not_matter() {
        let line = br#" { "jsonrpc" : "2.0", "params" : ["a"], "ttl":2, "x":{"y":[]}, "method" : "mining.\u0061uthorize", "id" : 5 } "#;
        let request = Request::parse(line).unwrap();
        assert_eq!(&*request.method.clone().unwrap(), "mining.authorize");
        assert_eq!(&*request.first_text().unwrap(), "a");
    }

    #[test]
    fn numbers_are_their_values_whatever_their_form() {
        for (text, value) in [("0", Some(0)), ("00000000", Some(0)), ("aB", Some(0xab)), ("0xFF", Some(255))] {
            assert_eq!(word(text), value, "{text}");
        }
        for bad in ["", "0x", "+1", "-1", "123456789", "g", " 1", "1 "] {
            assert_eq!(word(bad), None, "{bad:?}");
        }
        assert_eq!(hex("0XffffFFFFffffFFFF", 16), Some(u64::MAX));
    }

    #[test]
    fn targets_are_the_difficulty_they_stand_for() {
        let one = format!("{{\"params\":[\"{:0>8}{:0<56}\"]}}", "", "ffff");
        assert_eq!(Request::parse(one.as_bytes()).unwrap().first_target(), Some(Difficulty::ONE));
        for bad in ["[]", "[1]", "[\"00\"]", "[\"\u{e9}\"]"] {
            assert_eq!(Request::parse(format!("{{\"params\":{bad}}}").as_bytes()).unwrap().first_target(), None);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line: Vec<u8>) {
            if let Ok(request) = Request::parse(&line) {
                let _ = (request.two_texts(), request.first_difficulty(), request.first_target());
            }
        }
    }
}
