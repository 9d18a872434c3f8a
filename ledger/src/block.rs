//! A block's life: what the chain says of it, and what the ledger has done about it. Pure.

use sluice_proto::v1::BlockStatus;

/// What the chain says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainState {
    /// A node took it, and it is in the best chain as far as is known.
    Accepted,
    /// Every node refused it.
    Refused,
    /// It is not in the best chain at the moment.
    Inactive,
    /// It has the confirmations that maturity asks for. Final.
    Confirmed,
    /// A rival is buried as deep: it will not come back. Final.
    Orphaned,
}

/// What the ledger has done about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CreditState {
    /// Nothing yet: the slice of its share is not closed in every partition, or nobody took the block.
    Waiting,
    /// Its reward is shared out, pending.
    Pending,
    /// The credits are available.
    Available,
    /// The credits were taken back.
    Reversed,
}

/// What an outcome means for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The block is in this state now.
    To(ChainState),
    /// Nothing new.
    Stay,
    /// The outcome contradicts a final state.
    Conflict,
}

impl ChainState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Accepted, Self::Refused, Self::Inactive, Self::Confirmed, Self::Orphaned];

    /// Name as in the database and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Inactive => "inactive",
            Self::Confirmed => "confirmed",
            Self::Orphaned => "orphaned",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// What `status` means for a block in this state (`None`: not heard of before).
    ///
    /// Any status may be the first one: each outcome carries all the ledger needs, and older ones may have gone by
    /// the topic's retention. A refusal after an acceptance is a repeated submission and changes nothing; evidence of
    /// the chain beats a refusal, and that a refused block is not in the chain is no news.
    ///
    /// Outcomes may come again, in part and with other answers, where `submit` was interrupted before it could
    /// remember what it had written (docs/adr/0010): none of them undoes a final state.
    pub fn step(before: Option<Self>, status: BlockStatus) -> Option<Step> {
        let after = match status {
            BlockStatus::Unspecified => return None,
            BlockStatus::Accepted | BlockStatus::Active => Self::Accepted,
            BlockStatus::Refused => Self::Refused,
            BlockStatus::Inactive => Self::Inactive,
            BlockStatus::Confirmed => Self::Confirmed,
            BlockStatus::Orphaned => Self::Orphaned,
        };
        Some(match (before, after) {
            (None, after) => Step::To(after),
            (Some(before), after) if before == after => Step::Stay,
            (Some(Self::Confirmed), Self::Orphaned | Self::Inactive) => Step::Conflict,
            (Some(Self::Orphaned), Self::Confirmed) => Step::Conflict,
            (Some(Self::Orphaned), Self::Accepted) if status == BlockStatus::Active => Step::Conflict,
            (Some(Self::Confirmed | Self::Orphaned), _) => Step::Stay,
            (Some(_), Self::Refused) => Step::Stay,
            (Some(Self::Refused), Self::Inactive | Self::Orphaned) => Step::Stay,
            // A submission repeated after a restart is accepted as "already known": no news of the best chain.
            (Some(Self::Inactive), Self::Accepted) if status == BlockStatus::Accepted => Step::Stay,
            (Some(_), after) => Step::To(after),
        })
    }
}

impl CreditState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Pending, Self::Available, Self::Reversed];

    /// Name as in the database and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Available => "available",
            Self::Reversed => "reversed",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use BlockStatus as B;
    use ChainState as C;

    fn after(steps: &[B]) -> (Option<C>, usize) {
        steps.iter().fold((None, 0), |(state, conflicts), status| match C::step(state, *status).unwrap() {
            Step::To(next) => (Some(next), conflicts),
            Step::Stay => (state, conflicts),
            Step::Conflict => (state, conflicts + 1),
        })
    }

    #[test]
    fn a_life_of_a_block() {
        assert_eq!(after(&[B::Accepted, B::Confirmed]), (Some(C::Confirmed), 0));
        assert_eq!(after(&[B::Accepted, B::Inactive]), (Some(C::Inactive), 0));
        assert_eq!(after(&[B::Accepted, B::Inactive, B::Active, B::Confirmed]), (Some(C::Confirmed), 0));
        assert_eq!(after(&[B::Accepted, B::Inactive, B::Orphaned]), (Some(C::Orphaned), 0));
        assert_eq!(after(&[B::Refused]), (Some(C::Refused), 0));
    }

    #[test]
    fn a_repeated_submission_is_no_news() {
        assert_eq!(after(&[B::Accepted, B::Refused]), (Some(C::Accepted), 0));
        assert_eq!(after(&[B::Accepted, B::Inactive, B::Accepted]), (Some(C::Inactive), 0));
        assert_eq!(after(&[B::Accepted, B::Confirmed, B::Accepted, B::Refused]), (Some(C::Confirmed), 0));
        assert_eq!(after(&[B::Accepted, B::Orphaned, B::Accepted]), (Some(C::Orphaned), 0));
    }

    /// A crash of `submit` between append and commit, or the loss of its state, after any part of a block's life: the
    /// block is sent again with another answer perhaps, its place is told again, and its life goes on.
    #[test]
    fn m1_what_submit_repeats_after_a_crash_changes_nothing() {
        let lives: [&[B]; 6] = [
            &[B::Accepted, B::Confirmed],
            &[B::Accepted, B::Inactive, B::Orphaned],
            &[B::Accepted, B::Inactive, B::Active, B::Confirmed],
            &[B::Refused, B::Active, B::Confirmed],
            &[B::Refused, B::Active, B::Inactive, B::Orphaned],
            &[B::Refused, B::Accepted, B::Confirmed],
        ];
        for life in lives {
            let expected = after(life);
            for written in 1..=life.len() {
                for sent in [None, Some(B::Accepted), Some(B::Refused)] {
                    let place = life[written - 1];
                    let again = sent.into_iter().chain([place]).chain(life[written..].iter().copied());
                    let all: Vec<B> = life[..written].iter().copied().chain(again).collect();
                    assert_eq!(after(&all), expected, "{all:?}");
                }
            }
        }
    }

    /// What was written in a batch that was not committed and is not so any more: the place that is told after the start
    /// corrects it, whatever the last of it was.
    #[test]
    fn m1_an_answer_that_submit_forgot_is_corrected() {
        for forgotten in [B::Refused, B::Accepted, B::Inactive, B::Active] {
            for (place, end) in [(B::Active, C::Confirmed), (B::Inactive, C::Orphaned)] {
                for sent in [B::Accepted, B::Refused] {
                    let told = if place == B::Active { C::Accepted } else { C::Inactive };
                    let (state, conflicts) = after(&[B::Accepted, forgotten, sent, place]);
                    assert_eq!((state, conflicts), (Some(told), 0), "{forgotten:?} {sent:?} {place:?}");
                    let last = if end == C::Confirmed { B::Confirmed } else { B::Orphaned };
                    assert_eq!(after(&[B::Accepted, forgotten, sent, place, last]), (Some(end), 0));
                }
            }
        }
        // Accepted the first time, refused by all that were reached the second time: it is buried in the end.
        assert_eq!(after(&[B::Accepted, B::Refused, B::Orphaned]), (Some(C::Orphaned), 0));
        assert_eq!(after(&[B::Accepted, B::Refused, B::Confirmed]), (Some(C::Confirmed), 0));
    }

    #[test]
    fn a_refused_block_stays_refused_until_it_is_in_the_chain() {
        assert_eq!(after(&[B::Refused, B::Inactive, B::Orphaned]), (Some(C::Refused), 0));
        assert_eq!(after(&[B::Refused, B::Inactive, B::Active]), (Some(C::Accepted), 0));
    }

    #[test]
    fn the_chain_beats_a_refusal() {
        assert_eq!(after(&[B::Refused, B::Accepted]), (Some(C::Accepted), 0));
        assert_eq!(after(&[B::Refused, B::Confirmed]), (Some(C::Confirmed), 0));
    }

    #[test]
    fn final_states_stay_and_say_so() {
        assert_eq!(after(&[B::Confirmed, B::Orphaned, B::Inactive]), (Some(C::Confirmed), 2));
        assert_eq!(after(&[B::Orphaned, B::Confirmed, B::Active]), (Some(C::Orphaned), 2));
        assert_eq!(C::step(None, B::Unspecified), None);
    }

    #[test]
    fn names_are_read_back() {
        assert!(C::ALL.into_iter().all(|state| C::from_name(state.name()) == Some(state)));
        assert!(CreditState::ALL.into_iter().all(|state| CreditState::from_name(state.name()) == Some(state)));
    }
}
