//! What a topology may take from its surroundings: environment variables, and settings given on the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::secret::Part;

/// Environment variables and overrides for reading a topology.
///
/// `Debug` shows names only: values may be secret.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    overrides: Vec<Override>,
    secrets_later: bool,
}

/// A setting given outside the file: `ledger.scheme` = `solo`. The value is YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Keys from the top, joined by dots. Names with dots in them are recognised where the file has them.
    pub path: String,
    /// The value, as YAML.
    pub value: String,
}

impl Environment {
    /// An environment with these variables and no others.
    pub fn new<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, ..Self::default() }
    }

    /// The environment of this process. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        Self::new(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Secrets whose variables are not set are no mistake: for drawing and checking away from the machine that runs
    /// the pool. Using such a secret fails.
    #[must_use]
    pub fn secrets_later(mut self) -> Self {
        self.secrets_later = true;
        self
    }

    /// With a setting that replaces the file's.
    #[must_use]
    pub fn with_override(mut self, setting: Override) -> Self {
        self.overrides.push(setting);
        self
    }

    pub(crate) fn overrides(&self) -> &[Override] {
        &self.overrides
    }

    /// `text` with its references replaced.
    pub(crate) fn expand(&self, text: &str) -> Result<String, Unresolved> {
        let mut out = String::new();
        for piece in pieces(text)? {
            match piece {
                Piece::Text(text) => out.push_str(&text),
                Piece::Variable { name, default } => out.push_str(&self.value(&name, default)?),
                Piece::File(path) => return Err(Unresolved::FileInPlainSetting(path)),
            }
        }
        Ok(out)
    }

    fn value(&self, name: &str, default: Option<String>) -> Result<String, Unresolved> {
        match (self.variables.get(name), default) {
            (Some(value), None) => Ok(value.clone()),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value.clone()),
            (_, Some(default)) => Ok(default),
            (None, None) => Err(Unresolved::Unset(name.to_owned())),
        }
    }

    /// The parts of a secret.
    pub(crate) fn secret_parts(&self, text: &str) -> Result<Vec<Part>, Unresolved> {
        pieces(text)?.into_iter().map(|piece| self.secret_part(piece)).collect()
    }

    fn secret_part(&self, piece: Piece) -> Result<Part, Unresolved> {
        match piece {
            Piece::Text(text) => Ok(Part::Fixed(text)),
            Piece::File(path) => Ok(Part::File(PathBuf::from(path))),
            Piece::Variable { name, default } => {
                if default.as_deref().is_some_and(|default| !default.is_empty()) {
                    return Err(Unresolved::DefaultOfSecret(name));
                }
                match self.variables.get(&name) {
                    Some(value) => Ok(Part::Variable { name, value: Some(value.clone()) }),
                    None if self.secrets_later => Ok(Part::Variable { name, value: None }),
                    None => Err(Unresolved::Unset(name)),
                }
            }
        }
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).field("overrides", &self.overrides).finish()
    }
}

/// Why a reference cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// The variable is not set and has no default.
    Unset(String),
    /// `${file:...}` outside a secret.
    FileInPlainSetting(String),
    /// `${NAME:-default}` in a secret: the default would be the secret, in the file.
    DefaultOfSecret(String),
    /// Not a reference that can be read.
    Malformed(String),
}

impl Unresolved {
    /// Rule, message and hint.
    pub(crate) fn explain(&self) -> (&'static str, String, String) {
        match self {
            Self::Unset(name) => (
                "variable.unset",
                format!("the environment variable `{name}` is not set"),
                format!("set `{name}`, or write a default into the file: `${{{name}:-default}}` (not for secrets)"),
            ),
            Self::FileInPlainSetting(path) => (
                "variable.file",
                format!("`${{file:{path}}}` stands where no secret belongs"),
                "only secrets are read from files; write the value, or take it from a variable".to_owned(),
            ),
            Self::DefaultOfSecret(name) => (
                "secret.inline",
                "a secret is written in the file, as a default".to_owned(),
                format!("write `${{{name}}}` and set the variable, or use `${{file:PATH}}`"),
            ),
            Self::Malformed(what) => (
                "variable.syntax",
                format!("`{what}` is no reference to a variable"),
                "write `${NAME}`, `${NAME:-default}` or `${file:PATH}`; `$${` stands for `${` itself".to_owned(),
            ),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable { name: String, default: Option<String> },
    File(String),
}

/// Splits a scalar at its references.
fn pieces(text: &str) -> Result<Vec<Piece>, Unresolved> {
    let mut out = Vec::new();
    let mut fixed = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        if let Some(before) = before.strip_suffix('$') {
            fixed.push_str(before);
            fixed.push_str("${");
            rest = &reference[2..];
            continue;
        }
        fixed.push_str(before);
        let end = reference.find('}').ok_or_else(|| Unresolved::Malformed(reference.to_owned()))?;
        if !fixed.is_empty() {
            out.push(Piece::Text(std::mem::take(&mut fixed)));
        }
        out.push(reference_of(&reference[..=end], &reference[2..end])?);
        rest = &reference[end + 1..];
    }
    fixed.push_str(rest);
    if !fixed.is_empty() {
        out.push(Piece::Text(fixed));
    }
    Ok(out)
}

fn reference_of(whole: &str, inner: &str) -> Result<Piece, Unresolved> {
    let malformed = || Unresolved::Malformed(whole.to_owned());
    if let Some(path) = inner.strip_prefix("file:") {
        return if path.is_empty() { Err(malformed()) } else { Ok(Piece::File(path.to_owned())) };
    }
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default.to_owned())),
        None => (inner, None),
    };
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(malformed());
    }
    Ok(Piece::Variable { name: name.to_owned(), default })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment() -> Environment {
        Environment::new([("HOST", "node"), ("EMPTY", "")])
    }

    #[test]
    fn references_are_replaced() {
        let expand = |text: &str| environment().expand(text);
        assert_eq!(expand("http://${HOST}:${PORT:-8332}/").as_deref(), Ok("http://node:8332/"));
        assert_eq!(expand("${EMPTY:-x}${EMPTY}${NONE:-}").as_deref(), Ok("x"));
        assert_eq!(expand("$${HOST} $HOST a$").as_deref(), Ok("${HOST} $HOST a$"));
        assert_eq!(expand("${NONE}"), Err(Unresolved::Unset("NONE".to_owned())));
        assert_eq!(expand("${file:/x}"), Err(Unresolved::FileInPlainSetting("/x".to_owned())));
        for bad in ["${", "${}", "${1A}", "${A:b}", "${A", "${file:}", "${A-${B}}"] {
            assert!(matches!(expand(bad), Err(Unresolved::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn a_secret_has_no_default_and_may_come_later() {
        let inline = environment().secret_parts("${A:-hunter2}").err();
        assert_eq!(inline, Some(Unresolved::DefaultOfSecret("A".to_owned())));
        assert!(environment().secret_parts("${A}").is_err());
        assert!(environment().secrets_later().secret_parts("${A}").is_ok());
        let shown = format!("{:?}", Environment::new([("A", "hunter2")]));
        assert!(shown.contains('A') && !shown.contains("hunter2"));
    }

    proptest! {
        #[test]
        fn text_without_references_stays(text in "[^$]*") {
            prop_assert_eq!(environment().expand(&text), Ok(text));
        }

        #[test]
        fn any_text_is_expanded_or_refused(text in "(\\$|\\{|\\}|:-|file:|[A-Z]|é){0,20}") {
            let _ = environment().expand(&text);
            let _ = environment().secret_parts(&text).map(|_| ());
        }
    }
}
