//! Which parts of a topology a process runs: names, each with or without partitions.

use std::collections::BTreeSet;

/// What is chosen of an operator or service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// All of its partitions.
    All,
    /// These of its partitions, maybe none.
    Partitions(BTreeSet<u32>),
}

impl Chosen {
    /// Whether it has this partition.
    pub fn has(&self, partition: u32) -> bool {
        match self {
            Self::All => true,
            Self::Partitions(partitions) => partitions.contains(&partition),
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Partitions(mut one), Self::Partitions(other)) => {
                one.extend(other);
                Self::Partitions(one)
            }
            _ => Self::All,
        }
    }
}

/// Name and partitions of `NAME`, `NAME:2`, `NAME:0-3` or `NAME:` (none of them); `None` if it is none of these.
pub fn parse(text: &str) -> Option<(&str, Chosen)> {
    let Some((name, range)) = text.split_once(':') else { return Some((text, Chosen::All)) };
    if range.is_empty() {
        return Some((name, Chosen::Partitions(BTreeSet::new())));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    let (first, last) = (number(first)?, number(last)?);
    // More partitions than a topic can have are a slip of the hand.
    let right = first <= last && last - first < 1 << 16;
    right.then(|| (name, Chosen::Partitions((first..=last).collect())))
}

/// What `only` chooses of `name`: everything where it is empty, `None` where it does not name it.
pub(crate) fn of(only: &[String], name: &str) -> Option<Chosen> {
    if only.is_empty() {
        return Some(Chosen::All);
    }
    let all = only.iter().filter_map(|text| parse(text)).filter(|(named, _)| *named == name);
    all.map(|(_, chosen)| chosen).reduce(Chosen::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_all_or_some_partitions() {
        let some = |numbers: &[u32]| Some(Chosen::Partitions(numbers.iter().copied().collect()));
        let only = ["verify:0-1", "verify:3", "ledger", "stats:", "tally:2"].map(str::to_owned);
        assert_eq!(of(&only, "verify"), some(&[0, 1, 3]));
        assert_eq!(of(&only, "ledger"), Some(Chosen::All));
        assert_eq!((of(&only, "stats"), of(&only, "submit")), (some(&[]), None));
        assert_eq!(of(&[], "submit"), Some(Chosen::All));
        assert_eq!(of(&["a:1".to_owned(), "a".to_owned()], "a"), Some(Chosen::All));
        for wrong in ["a:x", "a:3-1", "a:-1", "a:1-", "a:0-4000000000", "a:+1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
