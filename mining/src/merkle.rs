//! Merkle trees of transaction ids.

use crate::hash::pair;

/// Root of a tree over `ids`; the last of an odd row is paired with itself. All zeros for no ids.
pub fn root(ids: impl IntoIterator<Item = [u8; 32]>) -> [u8; 32] {
    let mut row: Vec<[u8; 32]> = ids.into_iter().collect();
    while row.len() > 1 {
        row = row.chunks(2).map(|both| pair(&both[0], both.last().unwrap_or(&both[0]))).collect();
    }
    row.pop().unwrap_or_default()
}

/// Branch of the first leaf (the coinbase) of a tree whose other leaves are `others`: with it, the root follows from
/// the first leaf alone.
pub fn branch(others: impl IntoIterator<Item = [u8; 32]>) -> Vec<[u8; 32]> {
    // Index 0 stands for the coinbase and what it becomes; its value is never used.
    let mut row: Vec<[u8; 32]> = std::iter::once([0; 32]).chain(others).collect();
    let mut branch = Vec::new();
    while row.len() > 1 {
        branch.push(row[1]);
        row = row.chunks(2).map(|both| pair(&both[0], both.last().unwrap_or(&both[0]))).collect();
    }
    branch
}

/// Root from the first leaf and its branch.
pub fn root_from_branch(first: [u8; 32], branch: &[[u8; 32]]) -> [u8; 32] {
    branch.iter().fold(first, |node, sibling| pair(&node, sibling))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_branch_gives_the_root_of_the_full_tree(first: [u8; 32], others: Vec<[u8; 32]>) {
            let full = root(std::iter::once(first).chain(others.iter().copied()));
            let branch = branch(others.iter().copied());
            prop_assert_eq!(root_from_branch(first, &branch), full);
            prop_assert_eq!(branch.len(), (others.len() + 1).next_power_of_two().trailing_zeros() as usize);
        }
    }

    #[test]
    fn a_single_leaf_is_its_own_root() {
        assert_eq!(root([[7; 32]]), [7; 32]);
        assert!(branch([]).is_empty());
    }
}
