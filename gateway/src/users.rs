//! User names: a payout address and a worker.

use sluice_mining::{AddressError, Chain, payout_script};

/// Longest user name, in bytes: some firmware overflows beyond it.
pub(crate) const MAX_NAME: usize = 127;
/// Where some firmware cuts user names.
const TRUNCATED_AT: usize = 63;
/// Users of one connection.
const MAX_USERS: usize = 1000;

/// An authorized user of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// As the miner gave it.
    name: Box<str>,
    /// The payout address.
    pub(crate) account: Box<str>,
    /// The worker; empty if the name had none.
    pub(crate) worker: Box<str>,
}

/// Why a user name is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UserError {
    /// Too long.
    Length,
    /// With control characters.
    Characters,
    /// Not an address.
    Address,
    /// An address of another chain.
    OtherChain,
    /// Too many users on the connection.
    TooMany,
}

impl UserError {
    /// What the miner is told.
    pub(crate) const fn text(&self) -> &'static str {
        match self {
            Self::Length => "Unauthorized worker: a user name has at most 127 bytes",
            Self::Characters => "Unauthorized worker: a user name has no control characters",
            Self::Address => "Unauthorized worker: the user name must be ADDRESS or ADDRESS.WORKER",
            Self::OtherChain => "Unauthorized worker: the address is not of the chain of this pool",
            Self::TooMany => "Unauthorized worker: too many users on this connection",
        }
    }
}

impl User {
    /// Reads `ADDRESS[.WORKER]`. A segwit address in capitals, which is the same address, becomes the usual small ones,
    /// so that both earn for one account.
    pub(crate) fn parse(chain: Chain, name: &str) -> Result<Self, UserError> {
        if name.len() > MAX_NAME {
            return Err(UserError::Length);
        }
        if name.chars().any(char::is_control) {
            return Err(UserError::Characters);
        }
        let (address, worker) = name.split_once('.').unwrap_or((name, ""));
        let script = payout_script(chain, address).map_err(|error| match error {
            AddressError::OtherChain(_) => UserError::OtherChain,
            AddressError::Malformed(_) => UserError::Address,
        })?;
        let small = address.to_ascii_lowercase();
        let same = small != address && payout_script(chain, &small).is_ok_and(|other| other == script);
        let account = if same { small.into() } else { address.into() };
        Ok(Self { name: name.into(), account, worker: worker.into() })
    }
}

/// The authorized users of a connection, by name.
#[derive(Debug, Default)]
pub(crate) struct Users(Vec<User>);

impl Users {
    /// Nobody is authorized.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the one user there is; `None` if there are none or several.
    pub(crate) fn only(&self) -> Option<&str> {
        match &*self.0 {
            [user] => Some(&user.name),
            _ => None,
        }
    }

    /// Adds a user; one that is there stays.
    pub(crate) fn add(&mut self, user: User) -> Result<(), UserError> {
        let Err(at) = self.0.binary_search_by(|known| known.name.cmp(&user.name)) else { return Ok(()) };
        if self.0.len() >= MAX_USERS {
            return Err(UserError::TooMany);
        }
        self.0.reserve_exact(1);
        self.0.insert(at, user);
        Ok(())
    }

    /// The user of this name. A name that was cut at 63 bytes is taken for the one user that begins with it.
    pub(crate) fn get(&self, name: &str) -> Option<&User> {
        let at = self.0.partition_point(|known| *known.name < *name);
        let found = self.0.get(at).filter(|known| *known.name == *name || name.len() == TRUNCATED_AT)?;
        if *found.name == *name {
            return Some(found);
        }
        let only = self.0.get(at + 1).is_none_or(|next| !next.name.starts_with(name));
        (found.name.starts_with(name) && only).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

    fn parse(name: &str) -> Result<User, UserError> {
        User::parse(Chain::Regtest, name)
    }

    #[test]
    fn a_user_is_an_address_and_a_worker() {
        for (name, worker) in [("", ""), (".", ""), (".rig", "rig"), (".a.b", "a.b")] {
            let user = parse(&format!("{ADDRESS}{name}")).unwrap();
            assert_eq!((&*user.account, &*user.worker), (ADDRESS, worker));
        }
        assert_eq!(&*parse(&format!("{}.x", ADDRESS.to_uppercase())).unwrap().account, ADDRESS);
    }

    #[test]
    fn what_is_no_user_is_refused_with_its_reason() {
        let main = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
        assert_eq!(parse("worker"), Err(UserError::Address));
        assert_eq!(parse(""), Err(UserError::Address));
        assert_eq!(parse(main), Err(UserError::OtherChain));
        assert_eq!(parse(&format!("{ADDRESS}.a\u{7}")), Err(UserError::Characters));
    }

    /// Whatsminer overflows beyond it: what it can send is taken, and no more.
    #[test]
    fn quirk_names_of_up_to_127_bytes_are_taken() {
        assert!(parse(&format!("{ADDRESS}.{}", "w".repeat(126 - ADDRESS.len()))).is_ok());
        assert_eq!(parse(&format!("{ADDRESS}.{}", "w".repeat(127 - ADDRESS.len()))), Err(UserError::Length));
    }

    #[test]
    fn quirk_a_name_cut_at_63_bytes_is_its_user_if_there_is_only_one() {
        let long = format!("{ADDRESS}.a-very-long-worker-name-1");
        let mut users = Users::default();
        users.add(parse(&long).unwrap()).unwrap();
        users.add(parse(ADDRESS).unwrap()).unwrap();
        assert_eq!(&*users.get(&long[..63]).unwrap().name, long);
        assert_eq!(users.get(&long[..62]), None);
        assert_eq!(&*users.get(ADDRESS).unwrap().name, ADDRESS);
        users.add(parse(&format!("{ADDRESS}.a-very-long-worker-name-2")).unwrap()).unwrap();
        assert_eq!(users.get(&long[..63]), None, "two begin with it");
        assert_eq!(&*users.get(&long).unwrap().name, long);
    }

    #[test]
    fn users_of_a_connection_are_bounded() {
        let mut users = Users::default();
        for n in 0..MAX_USERS {
            users.add(parse(&format!("{ADDRESS}.{n}")).unwrap()).unwrap();
        }
        assert_eq!(users.add(parse(&format!("{ADDRESS}.more")).unwrap()), Err(UserError::TooMany));
        assert_eq!(users.add(parse(&format!("{ADDRESS}.7")).unwrap()), Ok(()), "it is there");
    }
}
