//! Values that must not be seen: taken from the environment or from files, never printed.

use std::fmt;
use std::path::{Path, PathBuf};

/// A secret, such as a password or a database URL with one in it.
///
/// It is put together from fixed text, environment variables and files. Files are read by [`Secret::reveal`], not
/// before: checking a topology does no I/O. `Debug` tells where the secret comes from, never what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<Part>);

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text from the topology file.
    Fixed(String),
    /// Value of an environment variable; `None` where it is not set and that was allowed.
    Variable { name: String, value: Option<String> },
    /// Contents of a file.
    File(PathBuf),
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is not set.
    #[error("the environment variable {0} is not set; it holds a secret that is needed now")]
    Variable(String),
    /// The file cannot be read.
    #[error("the secret file {path} cannot be read: {cause}")]
    File {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
}

impl Secret {
    /// A secret from the parts of a scalar.
    pub(crate) fn from_parts(parts: Vec<Part>) -> Self {
        Self(parts)
    }

    /// A secret that is known already: for tests and for values that a program made itself.
    pub fn known(value: impl Into<String>) -> Self {
        Self(vec![Part::Variable { name: "(known)".to_owned(), value: Some(value.into()) }])
    }

    /// The secret itself. Reads its files; one line end at a file's end is dropped.
    ///
    /// # Errors
    /// If a variable is not set or a file cannot be read.
    pub fn reveal(&self) -> Result<String, SecretError> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Fixed(text) => out.push_str(text),
                Part::Variable { value: Some(value), .. } => out.push_str(value),
                Part::Variable { name, value: None } => return Err(SecretError::Variable(name.clone())),
                Part::File(path) => out.push_str(&read(path)?),
            }
        }
        Ok(out)
    }

    /// The secret, if no file has to be read for it and every variable is set.
    pub(crate) fn known_now(&self) -> Option<String> {
        let files = self.0.iter().any(|part| matches!(part, Part::File(_)));
        if files { None } else { self.reveal().ok() }
    }

    /// Whether any of it comes from the environment or a file.
    pub(crate) fn comes_from_outside(&self) -> bool {
        self.0.iter().any(|part| !matches!(part, Part::Fixed(_)))
    }

    /// Its fixed text, with `*` for each other part.
    pub(crate) fn fixed_text(&self) -> String {
        self.0.iter().map(|part| if let Part::Fixed(text) = part { text.as_str() } else { "*" }).collect()
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| SecretError::File { path: path.display().to_string(), cause })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(")?;
        for (index, part) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" + ")?;
            }
            match part {
                Part::Fixed(_) => f.write_str("text")?,
                Part::Variable { name, .. } => write!(f, "${{{name}}}")?,
                Part::File(path) => write!(f, "${{file:{}}}", path.display())?,
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: Option<&str>) -> Part {
        Part::Variable { name: name.to_owned(), value: value.map(str::to_owned) }
    }

    #[test]
    fn debug_never_shows_it() {
        let secret = Secret(vec![
            Part::Fixed("postgres://pool:hunter1@".to_owned()),
            variable("PASSWORD", Some("hunter2")),
            Part::File("/run/secret".into()),
        ]);
        let shown = format!("{secret:?} {:?}", Secret::known("hunter3"));
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(shown.contains("${PASSWORD}") && shown.contains("${file:/run/secret}"));
    }

    #[test]
    fn a_file_is_read_when_revealed_without_its_line_end() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("auth");
        std::fs::write(&path, "pool:s3cret\r\n")?;
        let secret = Secret(vec![Part::File(path.clone())]);
        assert_eq!(secret.reveal().ok().as_deref(), Some("pool:s3cret"));
        std::fs::remove_file(&path)?;
        assert!(matches!(secret.reveal(), Err(SecretError::File { .. })));
        Ok(())
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = Secret(vec![variable("RPC_AUTH", None)]).reveal().err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("RPC_AUTH")));
    }
}
