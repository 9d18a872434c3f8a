//! The section `caches`: what gateways share beside the log.

use std::collections::BTreeMap;

use super::Spanned;
use super::declare::entries;
use super::fields::{Fields, Reader};
use super::secret::Secret;
use crate::kind::{SettingSpec, SettingType};

/// A cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheConfig {
    /// In the memory of each process.
    Memory,
    /// A server of Redis.
    Redis {
        /// `redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]`.
        url: Secret,
        /// What all keys begin with.
        prefix: String,
    },
}

const fn setting(name: &'static str, ty: SettingType, default: Option<&'static str>, doc: &'static str) -> SettingSpec {
    SettingSpec { name, ty, default, doc }
}

/// Without `url`, which is a secret only where it holds a password.
pub(super) const CACHE: &[SettingSpec] = &[
    setting(
        "kind",
        SettingType::Word(&["memory", "redis"]),
        None,
        "Which: in the memory of each process, or a server of Redis (`url: redis://HOST:PORT`).",
    ),
    setting("prefix", SettingType::Text, Some("sluice:"), "Redis: what all keys begin with."),
];

/// Names of all caches, and those without problems; `None` where one has some.
pub(super) fn read<'n>(
    top: &mut Fields<'n>,
    reader: &mut Reader<'_>,
) -> (Vec<String>, Option<BTreeMap<String, CacheConfig>>) {
    let (mut names, mut all) = (Vec::new(), Some(BTreeMap::new()));
    for entry in entries(top, "caches", false, reader) {
        names.push(entry.key.value.clone());
        let fields = Fields::of(&entry.value, format!("cache `{}`", entry.key.value), reader);
        let read = fields.and_then(|fields| cache(fields.at(entry.key.span), reader));
        all = all.zip(read).map(|(mut all, read)| {
            all.insert(entry.key.value.clone(), read);
            all
        });
    }
    (names, all)
}

fn cache(mut fields: Fields<'_>, reader: &mut Reader<'_>) -> Option<CacheConfig> {
    let located = reader.settings(&mut fields, CACHE);
    let url = fields.get("url").map(|node| Spanned::new(url(node, reader), node.span));
    let kind = located.settings.get("kind").map(|_| located.settings.text("kind"));
    let read = match (kind, url) {
        (Some("memory"), Some(url)) => {
            let message = "`url` is of a cache in Redis, and this one is in memory".to_owned();
            reader.problems.add("setting.unused", url.span, message, "write `kind: redis`, or remove it");
            None
        }
        (Some("memory"), None) => Some(CacheConfig::Memory),
        (Some(_), None) => {
            let message = format!("{} lacks `url`", fields.owner);
            fields.lacks("url", "setting.missing", message, "add `url: redis://HOST:PORT`".to_owned());
            None
        }
        (Some(_), Some(url)) => {
            url.value.map(|url| CacheConfig::Redis { url, prefix: located.settings.text("prefix").to_owned() })
        }
        (None, _) => None,
    };
    fields.finish(reader);
    read
}

fn url(node: &super::Node, reader: &mut Reader<'_>) -> Option<Secret> {
    let url = reader.maybe_secret(node, "`url` of a cache")?;
    let fixed = url.fixed_text();
    let password = fixed.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(user, _)| user);
    if password.is_some_and(|text| text.split_once(':').is_some_and(|(_, it)| !it.is_empty() && !it.starts_with('*'))) {
        let hint = "take the password, or the whole URL, from a variable: `url: ${REDIS_URL}`; and change the password";
        reader.problems.add("secret.inline", node.span, "the URL of a cache holds a password", hint);
        return None;
    }
    let valid = |url: &str| url.strip_prefix("redis://").is_some_and(|rest| !rest.is_empty());
    if url.known_now().is_some_and(|known| !valid(&known)) {
        let message = "`url` of a cache names no server that can be spoken to";
        reader.problems.add("setting.type", node.span, message, "write `redis://HOST:PORT`, without TLS");
        return None;
    }
    Some(url)
}
