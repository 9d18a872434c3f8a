//! One suite for every back end of the ledger: the same scenarios, and the same results to the last bit.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixture;
mod outages;
mod owners;
mod properties;
mod scenarios;
mod world;

/// Each scenario on each back end.
macro_rules! on_every_back_end {
    ($($scenario:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $scenario() { crate::scenarios::$scenario(&crate::fixture::Fixture::sqlite()); })*
        }
        mod postgres {
            $(#[test] fn $scenario() { crate::scenarios::$scenario(&crate::fixture::Fixture::postgres()); })*
        }
    };
}

on_every_back_end!(
    m1_a_block_is_credited_matured_and_sums_exactly,
    the_oldest_slice_counts_in_part,
    an_orphan_is_reversed,
    an_inactive_block_stays_pending,
    a_refused_block_is_recorded_and_not_credited,
    every_partition_must_have_closed_the_slice,
    every_generation_must_have_closed_the_slice,
    a_ledger_from_before_generations_goes_on,
    outcomes_and_tallies_may_come_in_either_order,
    a_repeated_batch_changes_nothing,
    an_empty_window_pays_the_finder,
    trap_19_a_window_that_is_not_full_pays_the_whole_reward,
    solo_pays_the_finder,
    m1_a_ledger_is_made_again_with_the_rules_it_had,
    new_rules_hold_from_the_next_slice_on,
    a_contradiction_of_the_chain_moves_no_money,
    p1_records_that_cannot_be_right_stop_the_ledger,
    p1_a_ledger_that_lost_what_it_was_given_refuses_more,
    the_ledger_belongs_to_one_log,
    old_slices_go_and_no_window_misses_them,
    a_window_that_was_removed_stops_the_credit,
    pages_go_through_everything_once,
    postings_stay_and_balances_do_not_fall_below_zero,
    a_reward_of_nothing_is_credited,
    names_are_any_text,
    p1_an_owner_that_was_replaced_writes_nothing,
    m1_two_owners_at_once_change_no_balance,
);
