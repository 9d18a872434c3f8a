//! Settings of an operator, checked against its [`crate::SettingSpec`]s.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::spec::Secret;

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingValue {
    /// Text, word, decimal, address or name of a cache.
    Text(String),
    /// Secret; never shown by `Debug`.
    Secret(Secret),
    /// Flag.
    Flag(bool),
    /// Integer, or size in bytes.
    Integer(u64),
    /// Duration.
    Duration(Duration),
    /// List of texts.
    List(Vec<String>),
    /// List of mappings.
    Entries(Vec<Settings>),
}

/// Settings by name. The check has made sure that each is there with its type, or is optional and absent: asking for
/// another name or type is a mistake in the program, answered with the type's empty value by the plain getters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, SettingValue>);

impl Settings {
    /// Settings with these values.
    pub fn new(values: impl IntoIterator<Item = (String, SettingValue)>) -> Self {
        Self(values.into_iter().collect())
    }

    /// The value of `name`, if it is set.
    pub fn get(&self, name: &str) -> Option<&SettingValue> {
        self.0.get(name)
    }

    /// A text; empty if it is not set.
    pub fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Some(SettingValue::Text(text)) => text,
            _ => "",
        }
    }

    /// A secret, if it is set. Its value comes from [`Secret::reveal`].
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        match self.get(name) {
            Some(SettingValue::Secret(secret)) => Some(secret),
            _ => None,
        }
    }

    /// A flag; false if it is not set.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(SettingValue::Flag(true)))
    }

    /// An integer or a size in bytes; 0 if it is not set.
    pub fn integer(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(SettingValue::Integer(value)) => *value,
            _ => 0,
        }
    }

    /// A duration; zero if it is not set.
    pub fn duration(&self, name: &str) -> Duration {
        match self.get(name) {
            Some(SettingValue::Duration(value)) => *value,
            _ => Duration::ZERO,
        }
    }

    /// A list; empty if it is not set.
    pub fn list(&self, name: &str) -> &[String] {
        match self.get(name) {
            Some(SettingValue::List(list)) => list,
            _ => &[],
        }
    }

    /// A list of mappings; empty if it is not set.
    pub fn entries(&self, name: &str) -> &[Settings] {
        match self.get(name) {
            Some(SettingValue::Entries(entries)) => entries,
            _ => &[],
        }
    }
}
