//! What a password may say: `d=1024` and `md=512`, with commas, semicolons or spaces between them, as other pools take
//! them. Whatever else stands there means nothing: an address needs no password.

use sluice_mining::Difficulty;

/// What a password asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// `d`: the difficulty to begin with, as `mining.suggest_difficulty` would ask for it. Vardiff goes on from there.
    pub(crate) difficulty: Option<Difficulty>,
    /// `md`: the lowest difficulty that the miner wants to be given.
    pub(crate) minimum: Option<Difficulty>,
}

impl Wishes {
    /// Reads a password. What is no number above 0 asks for nothing; of two that name the same, the last counts.
    pub(crate) fn parse(password: &str) -> Self {
        let mut wishes = Self::default();
        for part in password.split([',', ';', ' ']) {
            let Some((key, value)) = part.split_once('=') else { continue };
            let Some(difficulty) = Difficulty::parse_wire(value) else { continue };
            match key {
                "d" | "D" => wishes.difficulty = Some(difficulty),
                "md" | "MD" => wishes.minimum = Some(difficulty),
                _ => {}
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_may_ask_for_a_difficulty_and_a_minimum() {
        let whole = |value| Some(Difficulty::from_integer(value).unwrap());
        for (password, difficulty, minimum) in [
            ("d=1024,md=512", whole(1024), whole(512)),
            ("x;md=512; d=1024", whole(1024), whole(512)),
            ("x d=1024", whole(1024), None),
            ("d=1,d=2", whole(2), None),
            ("d=0.5", Difficulty::from_units(1 << 23), None),
            ("MD=8", None, whole(8)),
            ("d=", None, None),
            ("d=0,md=-1", None, None),
            ("id=7,d=x", None, None),
            ("", None, None),
        ] {
            assert_eq!(Wishes::parse(password), Wishes { difficulty, minimum }, "{password}");
        }
    }
}
