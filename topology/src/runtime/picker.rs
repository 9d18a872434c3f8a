//! Which input is read next: those with priority first, within a bound, so that none starves.

/// Chooses among inputs that have something ready. Pure, so that the bound can be proven by test.
#[derive(Clone, Debug)]
pub(crate) struct Picker {
    priority: Vec<bool>,
    bound: u32,
    streak: u32,
    last: [usize; 2],
}

impl Picker {
    /// For inputs of which those marked have priority; after `bound` batches of priority inputs in a row one of the
    /// others gets its turn, if it has anything.
    pub(crate) fn new(priority: Vec<bool>, bound: u32) -> Self {
        Self { priority, bound, streak: 0, last: [0; 2] }
    }

    /// The input to read next, among those that are `ready`. Inputs of one class take turns.
    pub(crate) fn pick(&mut self, ready: &[bool]) -> Option<usize> {
        let urgent = self.next_of(true, ready);
        let normal = self.next_of(false, ready);
        let chosen = match (urgent, normal) {
            (Some(_), Some(normal)) if self.streak >= self.bound => normal,
            (Some(urgent), _) => urgent,
            (None, normal) => normal?,
        };
        let priority = self.priority.get(chosen).copied().unwrap_or(false);
        self.streak = if priority { self.streak.saturating_add(1) } else { 0 };
        self.last[usize::from(priority)] = chosen;
        Some(chosen)
    }

    /// The ready input of this class that comes after the one which had the last turn.
    fn next_of(&self, priority: bool, ready: &[bool]) -> Option<usize> {
        let last = self.last[usize::from(priority)];
        let count = self.priority.len();
        let candidates = (1..=count).map(|step| (last + step) % count);
        candidates
            .filter(|index| self.priority.get(*index) == Some(&priority))
            .find(|index| ready.get(*index) == Some(&true))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn priority_goes_first() {
        let mut picker = Picker::new(vec![false, true, false], 2);
        assert_eq!(picker.pick(&[false; 3]), None);
        let picks: Vec<_> = (0..8).map(|_| picker.pick(&[true; 3]).unwrap()).collect();
        assert_eq!(picks, [1, 1, 2, 1, 1, 0, 1, 1]);
    }

    proptest! {
        /// An input that stays ready is read within (bound + 1) x (number of normal inputs) turns if it is a normal
        /// one, and within 2 x (number of priority inputs) if it has priority and the bound is not 0.
        #[test]
        fn no_ready_input_starves(
            priority in proptest::collection::vec(any::<bool>(), 1..6),
            bound in 1u32..5,
            others in proptest::collection::vec(any::<u8>(), 200),
            watched in any::<prop::sample::Index>(),
        ) {
            let watched = watched.index(priority.len());
            let same = priority.iter().filter(|p| **p == priority[watched]).count();
            let most = if priority[watched] { 2 * same } else { (bound as usize + 1) * same };
            let mut picker = Picker::new(priority.clone(), bound);
            let mut since = 0;
            for bits in others {
                let ready: Vec<bool> = (0..priority.len()).map(|i| i == watched || bits >> i & 1 == 1).collect();
                let chosen = picker.pick(&ready).unwrap();
                prop_assert!(ready[chosen]);
                since = if chosen == watched { 0 } else { since + 1 };
                prop_assert!(since < most, "not picked for {since} turns");
            }
        }
    }
}
