//! What every miner of the testkit begins with, and what it makes of the answers.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_mining::wire::word;

/// Ids of the requests.
pub(crate) const CONFIGURE: u64 = 1;
pub(crate) const SUBSCRIBE: u64 = 2;
pub(crate) const AUTHORIZE: u64 = 3;
/// Version bits that miners may use (BIP320).
pub(crate) const VERSION_MASK: u32 = 0x1fff_e000;

/// A request.
pub(crate) fn request(id: u64, method: &str, params: Value) -> Value {
    json!({ "id": id, "method": method, "params": params })
}

/// The requests of a login, in order.
pub(crate) fn requests(agent: &str, user: &str, password: &str, version_rolling: bool) -> Vec<Value> {
    let rolling = || json!([["version-rolling"], { "version-rolling.mask": word(VERSION_MASK) }]);
    let configure = version_rolling.then(|| request(CONFIGURE, "mining.configure", rolling()));
    let subscribe = request(SUBSCRIBE, "mining.subscribe", json!([agent]));
    let authorize = request(AUTHORIZE, "mining.authorize", json!([user, password]));
    configure.into_iter().chain([subscribe, authorize]).collect()
}

/// The version bits that the result of `mining.configure` grants; `None` from a pool without version rolling, which
/// answers false, nothing or an error.
///
/// # Errors
/// If what it grants is no mask.
pub(crate) fn granted_mask(result: &Value) -> Result<Option<u32>> {
    let granted = result.get("version-rolling") == Some(&Value::Bool(true));
    let text = || result.get("version-rolling.mask").and_then(Value::as_str).unwrap_or_default();
    granted.then(|| mask(text())).transpose()
}

/// A version mask as it stands in messages.
pub(crate) fn mask(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 16).with_context(|| format!("the pool's version mask {text:?}"))
}
