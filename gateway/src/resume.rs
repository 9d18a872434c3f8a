//! What a miner shows to go on with its session (docs/adr/0012).
//!
//! The id in the answer to a subscription is a *token*: the session's id and a check value over it, keyed by the UUID of
//! the log. All gateways of a log have that key, and nobody else knows it: who has a token was given it.

use std::hash::Hasher;

use hashlink::LruCache;
use siphasher::sip::SipHasher24;

use crate::identity::{Exhausted, Identities, Identity};
use crate::plan::Plan;
use crate::protocol::request::hex;
use crate::session::Resumed;

/// Hex digits of a token: 16 of the session, 16 of the check value. Firmware is known to take 32.
const TOKEN: usize = 32;
/// Hex digits of an extranonce1.
const EXTRANONCE1: usize = 8;
/// Ended sessions that a worker keeps, a few hundred bytes each; the one that ended first goes.
const ENDED: usize = 1 << 14;

/// What a miner says of the session it wants to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A token: the session is the miner's.
    Session(u64),
    /// An extranonce1, as some firmware keeps it instead: anybody may guess one.
    Extranonce1(u32),
}

impl Claim {
    /// The session that is claimed, and whether the claim is proven; `None` if there is none.
    pub(crate) fn session(self, identities: &Identities) -> Option<(u64, bool)> {
        match self {
            Self::Session(session) => Some((session, true)),
            Self::Extranonce1(one) => identities.session_of(one).map(|session| (session, false)),
        }
    }
}

/// Sessions that have ended and may be gone on with, each as long as its extranonce1 rests.
pub(crate) struct EndedSessions(LruCache<u64, (Identity, Box<Plan>)>);

impl EndedSessions {
    /// No sessions.
    pub(crate) fn new() -> Self {
        Self(LruCache::new(ENDED))
    }

    /// A session has ended: its identity is given back, and it is kept if it had a job.
    pub(crate) fn end(&mut self, identities: &Identities, identity: Identity, plan: Plan) {
        let last_job = plan.last_job();
        identities.release(identity, last_job);
        if last_job.is_some() {
            self.0.insert(identity.session, (identity, Box::new(plan)));
        }
    }

    /// What becomes of a claim to `session`, which is `live` if it was taken from its connection.
    pub(crate) fn resume(
        &mut self,
        identities: &Identities,
        (session, proven): (u64, bool),
        live: Option<(Identity, Plan)>,
        live_from: u64,
    ) -> Result<Resumed, Exhausted> {
        let live = live.map(|(identity, plan)| (identity, Box::new(plan)));
        match live.or_else(|| self.take(identities, session)) {
            Some((identity, plan)) => Ok(Resumed::Here(identity, plan)),
            None if proven => identities.adopt(session, live_from).map(Resumed::Adopted),
            None => Ok(Resumed::Nothing),
        }
    }

    /// Takes a session back, with its extranonce1.
    fn take(&mut self, identities: &Identities, session: u64) -> Option<(Identity, Box<Plan>)> {
        self.0.remove(&session).filter(|(identity, _)| identities.revive(*identity))
    }
}

/// Writes and reads tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    key: [u8; 16],
}

impl Tokens {
    /// Tokens of all gateways of the log `uuid`.
    pub(crate) fn new(uuid: [u8; 16]) -> Self {
        Self { key: uuid }
    }

    /// The token of a session.
    pub(crate) fn write(&self, session: u64) -> String {
        format!("{session:016x}{:016x}", self.check(session))
    }

    /// What a miner's text claims; `None` if it is neither a token of this log nor an extranonce1.
    pub(crate) fn read(&self, text: &str) -> Option<Claim> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            EXTRANONCE1 if is_hex => u32::try_from(hex(text, EXTRANONCE1)?).ok().map(Claim::Extranonce1),
            TOKEN if is_hex => {
                let (session, check) = text.split_at(TOKEN / 2);
                let session = hex(session, TOKEN / 2)?;
                (hex(check, TOKEN / 2)? == self.check(session)).then_some(Claim::Session(session))
            }
            _ => None,
        }
    }

    fn check(&self, session: u64) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&session.to_be_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_gateways_of_its_log_and_by_no_other() {
        let (tokens, others) = (Tokens::new([7; 16]), Tokens::new([8; 16]));
        let token = tokens.write(0x0100_0005_0000_0001);
        assert_eq!((token.len(), &token[..16]), (32, "0100000500000001"));
        assert_eq!(Tokens::new([7; 16]).read(&token), Some(Claim::Session(0x0100_0005_0000_0001)));
        assert_eq!(tokens.read(&token.to_uppercase()), Some(Claim::Session(0x0100_0005_0000_0001)));
        assert_eq!(others.read(&token), None);
        for at in 0..32 {
            let other = if token.as_bytes()[at] == b'0' { "1" } else { "0" };
            let mut forged = token.clone();
            forged.replace_range(at..=at, other);
            assert_eq!(tokens.read(&forged), None, "{forged}");
        }
    }

    #[test]
    fn what_is_no_token_may_be_an_extranonce1() {
        let tokens = Tokens::new([7; 16]);
        assert_eq!(tokens.read("0100000A"), Some(Claim::Extranonce1(0x0100_000a)));
        for text in ["", "0x00000a", "0100000", "0100000g", "\u{e9}\u{e9}\u{e9}\u{e9}", &"0".repeat(33)] {
            assert_eq!(tokens.read(text), None, "{text}");
        }
    }
}
