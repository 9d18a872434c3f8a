//! `mining.configure` (BIP310): answers what was asked, nothing else. Extra keys make some firmware ask for ever.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::value::RawValue;
use sluice_mining::Difficulty;

use super::request::{Request, Text, difficulty, word};

/// Names that are read: firmware asks for four at most, and each one is compared with those before it.
const MAX_NAMES: usize = 32;

/// What a miner asked for.
#[derive(Debug)]
pub(crate) struct Configure<'a> {
    /// Names of extensions as they stand in the line, in quotes, and what they are.
    asked: Vec<(&'a str, Extension)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Mask that the miner can roll; `None` if it is no mask.
    VersionRolling(Option<u32>),
    /// `Some(None)` asks for no minimum; `None` is no difficulty.
    MinimumDifficulty(Option<Option<Difficulty>>),
    /// What the miner says of itself is not needed.
    Info,
    SubscribeExtranonce,
    Unknown,
}

impl<'a> Configure<'a> {
    /// Reads the parameters; `None` if they are not a list of names, 32 at most, and, where there are any, an object of
    /// options.
    pub(crate) fn parse(request: &Request<'a>) -> Option<Self> {
        let params: Vec<&'a RawValue> = request.params()?;
        let names: Vec<&'a RawValue> = serde_json::from_str(params.first()?.get()).ok()?;
        if names.len() > MAX_NAMES {
            return None;
        }
        let options: HashMap<String, &'a RawValue> = match params.get(1) {
            Some(options) => serde_json::from_str::<Option<_>>(options.get()).ok()?.unwrap_or_default(),
            None => HashMap::new(),
        };
        let mut asked: Vec<(&str, Extension)> = Vec::new();
        for name in names {
            let extension = Extension::of(&serde_json::from_str::<Text<'_>>(name.get()).ok()?, &options);
            if asked.iter().all(|(known, _)| *known != name.get()) {
                asked.push((name.get(), extension));
            }
        }
        Some(Self { asked })
    }

    /// The mask that the miner can roll, if it asked for version rolling with one.
    pub(crate) fn version_mask(&self) -> Option<u32> {
        self.asked.iter().find_map(|(_, extension)| match extension {
            Extension::VersionRolling(mask) => *mask,
            _ => None,
        })
    }

    /// The minimum that the miner asked for; `Some(None)` if it asked for none.
    pub(crate) fn minimum(&self) -> Option<Option<Difficulty>> {
        self.asked.iter().find_map(|(_, extension)| match extension {
            Extension::MinimumDifficulty(minimum) => *minimum,
            _ => None,
        })
    }

    /// The miner takes another extranonce1 while it is connected.
    pub(crate) fn takes_extranonce(&self) -> bool {
        self.asked.iter().any(|(_, extension)| *extension == Extension::SubscribeExtranonce)
    }

    /// The result, with `mask` as what was agreed on.
    pub(crate) fn answer(&self, mask: u32) -> String {
        let mut out = String::from("{");
        for (number, (name, extension)) in self.asked.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            let granted = match extension {
                Extension::VersionRolling(asked) => asked.is_some() && mask != 0,
                Extension::MinimumDifficulty(minimum) => minimum.is_some(),
                Extension::Info | Extension::SubscribeExtranonce => true,
                Extension::Unknown => false,
            };
            // Writing to a String does not fail.
            let _ = write!(out, "{comma}{name}:{granted}");
            if granted && matches!(extension, Extension::VersionRolling(_)) {
                let _ = write!(out, ",\"version-rolling.mask\":\"{mask:08x}\"");
            }
        }
        out.push('}');
        out
    }
}

impl Extension {
    fn of(name: &str, options: &HashMap<String, &RawValue>) -> Self {
        match name {
            "version-rolling" => Self::VersionRolling(match options.get("version-rolling.mask") {
                Some(mask) => serde_json::from_str::<Text<'_>>(mask.get()).ok().and_then(|mask| word(&mask)),
                // The mask may be left out: then the miner can roll all bits.
                None => Some(u32::MAX),
            }),
            "minimum-difficulty" => Self::MinimumDifficulty(match options.get("minimum-difficulty.value") {
                Some(value) if matches!(value.get().trim_matches('"'), "0" | "0.0" | "null") => Some(None),
                Some(value) => difficulty(value).map(Some),
                None => Some(None),
            }),
            "info" => Self::Info,
            "subscribe-extranonce" => Self::SubscribeExtranonce,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(params: &str) -> Option<String> {
        let line = format!("{{\"params\":{params}}}");
        let request = Request::parse(line.as_bytes()).unwrap();
        let configure = Configure::parse(&request)?;
        Some(configure.answer(configure.version_mask().unwrap_or(0) & 0x1fff_e000))
    }

    #[test]
    fn quirk_configure_answers_only_what_was_asked() {
        for (params, result) in [
            ("[[],{}]", "{}"),
            (
                r#"[["version-rolling"],{"version-rolling.mask":"ffffffff","version-rolling.min-bit-count":16}]"#,
                r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
            ),
            (
                r#"[["version-rolling"],{"version-rolling.mask":"0x00FF0000"}]"#,
                r#"{"version-rolling":true,"version-rolling.mask":"00ff0000"}"#,
            ),
            (r#"[["version-rolling"]]"#, r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#),
            (r#"[["version-rolling"],null]"#, r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#),
            (r#"[["version-rolling"],{"version-rolling.mask":"00000007"}]"#, r#"{"version-rolling":false}"#),
            (r#"[["version-rolling"],{"version-rolling.mask":"what"}]"#, r#"{"version-rolling":false}"#),
            (
                r#"[["minimum-difficulty","info","subscribe-extranonce","x\"y"],{"minimum-difficulty.value":2048}]"#,
                r#"{"minimum-difficulty":true,"info":true,"subscribe-extranonce":true,"x\"y":false}"#,
            ),
            (r#"[["minimum-difficulty"],{"minimum-difficulty.value":-1}]"#, r#"{"minimum-difficulty":false}"#),
            (r#"[["info","info"],{}]"#, r#"{"info":true}"#),
        ] {
            assert_eq!(answer(params).as_deref(), Some(result), "{params}");
            assert!(serde_json::from_str::<serde_json::Value>(result).is_ok());
        }
        for bad in ["[]", "{}", "[{}]", "[[1]]", "[[\"info\"],7]", "null"] {
            assert_eq!(answer(bad), None, "{bad}");
        }
        let many =
            |count: usize| format!("[[{}]]", (0..count).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(","));
        assert!(answer(&many(MAX_NAMES)).is_some() && answer(&many(MAX_NAMES + 1)).is_none());
    }
}
