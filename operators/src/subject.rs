//! Whom numbers are about, as a part of keys.

use sluice_topology::OperatorError;

use crate::codec::{damaged, push_text, split_text};

/// Whom numbers are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The whole pool.
    Pool,
    /// An account.
    Account(&'a str),
    /// An account's worker.
    Worker(&'a str, &'a str),
}

impl Subject<'_> {
    /// Its part of a key: a letter and its names, so that an account's workers stand together.
    pub(crate) fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        match self {
            Self::Pool => key.push(b'p'),
            Self::Account(account) => {
                key.push(b'a');
                push_text(&mut key, account);
            }
            Self::Worker(account, worker) => {
                key.push(b'w');
                push_text(&mut key, account);
                push_text(&mut key, worker);
            }
        }
        key
    }
}

impl<'a> Subject<'a> {
    /// Reads what [`Subject::key`] made.
    pub(crate) fn read(key: &'a [u8]) -> Result<Self, OperatorError> {
        let (letter, rest) = key.split_first().ok_or_else(|| damaged(key))?;
        let (subject, rest) = match letter {
            b'p' => (Self::Pool, rest),
            b'a' => split_text(rest).map(|(account, rest)| (Self::Account(account), rest))?,
            b'w' => {
                let (account, rest) = split_text(rest)?;
                let (worker, rest) = split_text(rest)?;
                (Self::Worker(account, worker), rest)
            }
            _ => return Err(damaged(key)),
        };
        if rest.is_empty() { Ok(subject) } else { Err(damaged(key)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_survive_and_nothing_else_is_one() {
        for subject in
            [Subject::Pool, Subject::Account("alice"), Subject::Worker("alice", ""), Subject::Worker("", "w")]
        {
            assert_eq!(Subject::read(&subject.key()).unwrap(), subject);
        }
        let long = [Subject::Pool.key(), vec![0]].concat();
        for wrong in [&b""[..], b"x", b"a\x00", b"w\x00\x01a", &long] {
            assert!(Subject::read(wrong).is_err(), "{wrong:?}");
        }
    }
}
