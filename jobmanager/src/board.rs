//! What is known of the nodes, and which of them templates come from: of those that answer and do not stand still, the
//! one whose chain has the most work; the first of the list where they agree. No calls and no clock in here.

use std::time::{Duration, Instant, SystemTime};

use sluice_mining::template::Template;

use crate::node::{HeaderInfo, NodeError};
use crate::status::NodeState;

/// A node's tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tip {
    pub(crate) hash: [u8; 32],
    pub(crate) header: HeaderInfo,
}

/// The nodes.
pub(crate) struct Board {
    nodes: Vec<Entry>,
    /// For how long a node may stand still.
    stuck_after: Duration,
    /// The node that templates come from.
    best: usize,
    /// The tip that is mined on, and the node it is from.
    mined: Option<(usize, Tip)>,
}

struct Entry {
    name: String,
    asked: bool,
    /// What failed last, by use: questions, templates.
    failures: [Option<(SystemTime, String)>; 2],
    tip: Option<Tip>,
    /// Since when its tip has less work than another one.
    behind_since: Option<Instant>,
    behind: Option<(SystemTime, String)>,
    frozen: Option<(SystemTime, String)>,
    /// Time and tip of its last template that were new, and when that came.
    moved: Option<(u32, [u8; 32], Instant)>,
    stuck: u64,
}

/// What a call was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Question = 0,
    Template = 1,
}

/// The time of an event, by the two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    pub(crate) wall: SystemTime,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { at: Instant::now(), wall: SystemTime::now() }
    }
}

impl Board {
    pub(crate) fn new(names: impl IntoIterator<Item = String>, stuck_after: Duration) -> Self {
        let entry = |name| Entry {
            name,
            asked: false,
            failures: [None, None],
            tip: None,
            behind_since: None,
            behind: None,
            frozen: None,
            moved: None,
            stuck: 0,
        };
        Self { nodes: names.into_iter().map(entry).collect(), stuck_after, best: 0, mined: None }
    }

    /// The node that templates come from.
    pub(crate) fn best(&self) -> usize {
        self.best
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Every node has answered or failed to since the start.
    pub(crate) fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.asked || node.failures.iter().any(Option::is_some))
    }

    /// A node's tip, as it said last.
    pub(crate) fn tip(&self, node: usize) -> Option<&Tip> {
        self.nodes[node].tip.as_ref()
    }

    /// How a node is, and how often it was found to stand still.
    pub(crate) fn state(&self, node: usize) -> (NodeState, u64) {
        let node = &self.nodes[node];
        let failure = node.failures.iter().flatten().min_by_key(|(since, _)| *since);
        let state = match (failure, node.behind.as_ref().or(node.frozen.as_ref())) {
            (Some((since, error)), _) => NodeState::Failed { since: *since, error: error.clone() },
            (None, Some((since, why))) => NodeState::Stuck { since: *since, why: why.clone() },
            (None, None) if node.asked => NodeState::Ok,
            (None, None) => NodeState::Connecting,
        };
        (state, node.stuck)
    }

    /// Nodes whose templates stood still: they are asked for one now and then, since only that shows that they go on.
    pub(crate) fn frozen(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.frozen.is_some()).map(|(number, _)| number)
    }

    /// The node answered a question about its tip.
    pub(crate) fn saw_tip(&mut self, node: usize, tip: Tip, now: Now) {
        self.nodes[node].recovered(Use::Question);
        self.nodes[node].tip = Some(tip);
        for node in 0..self.nodes.len() {
            self.compare(node, now);
        }
    }

    /// The node gave a template.
    pub(crate) fn saw_template(&mut self, node: usize, template: &Template, now: Now) {
        let stuck_after = self.stuck_after;
        let node = &mut self.nodes[node];
        node.recovered(Use::Template);
        let (time, tip) = (template.cur_time, template.prev_hash);
        let since = match node.moved {
            Some((last, before, since)) if (last, before) == (time, tip) => since,
            _ => now.at,
        };
        node.moved = Some((time, tip, since));
        // A node whose smallest block time is ahead of the clock gives that, again and again: only a time that falls
        // behind stands still.
        let wall = now.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let late = wall.saturating_sub(Duration::from_secs(time.into()));
        if late <= stuck_after || now.at.duration_since(since) < stuck_after {
            if node.frozen.take().is_some() {
                tracing::info!(node = node.name, "the node's templates move again");
            }
        } else if node.frozen.is_none() {
            let why = format!("its templates keep the time {time}, which is {} s ago", late.as_secs());
            tracing::warn!(node = node.name, why, "a node stands still");
            node.frozen = Some((now.wall, why));
            node.stuck += 1;
        }
    }

    /// A call failed.
    pub(crate) fn failed(&mut self, node: usize, what: Use, error: &NodeError, now: Now) {
        let failure = &mut self.nodes[node].failures[what as usize];
        let since = failure.as_ref().map_or(now.wall, |(since, _)| *since);
        *failure = Some((since, error.to_string()));
    }

    /// Jobs are for blocks on this tip, which is the best node's.
    pub(crate) fn mining(&mut self, tip: Tip) {
        self.mined = Some((self.best, tip));
    }

    /// Chooses anew; tells whether templates come from another node now. Where no node can be chosen, all stays.
    pub(crate) fn choose(&mut self) -> bool {
        let Some(best) = self.candidate() else { return false };
        if best == self.best {
            return false;
        }
        tracing::info!(
            from = self.nodes[self.best].name,
            to = self.nodes[best].name,
            "templates come from another node"
        );
        self.best = best;
        true
    }

    fn candidate(&self) -> Option<usize> {
        let usable: Vec<(usize, &Tip)> = (0..self.nodes.len())
            .filter_map(|number| Some((number, self.nodes[number].usable()?)))
            // A node must not lead back from a tip that another one gave.
            .filter(|(number, tip)| self.mined_work(*number).is_none_or(|mined| tip.header.chain_work >= mined))
            .collect();
        let moving: Vec<_> =
            usable.iter().copied().filter(|(number, _)| self.nodes[*number].frozen.is_none()).collect();
        let among = if moving.is_empty() { usable } else { moving };
        let most = among.iter().map(|(_, tip)| tip.header.chain_work).max()?;
        let equal: Vec<_> = among.into_iter().filter(|(_, tip)| tip.header.chain_work == most).collect();
        let (first, tip) = *equal.first()?;
        let agree = equal.iter().all(|(_, other)| other.hash == tip.hash);
        // Of two tips of the same height, the one that is mined on stays.
        let stays = !agree && equal.iter().any(|(number, _)| *number == self.best);
        Some(if stays { self.best } else { first })
    }

    /// Work of the tip that is mined on, where it came from another node.
    fn mined_work(&self, node: usize) -> Option<[u8; 32]> {
        self.mined.as_ref().filter(|(from, _)| *from != node).map(|(_, tip)| tip.header.chain_work)
    }

    /// Whether a node's tip stays behind those of the others.
    fn compare(&mut self, number: usize, now: Now) {
        let others = (0..self.nodes.len()).filter(|other| *other != number);
        let others = others.filter_map(|other| self.nodes[other].usable()).map(|tip| &tip.header);
        let mined = self.mined.as_ref().filter(|(from, _)| *from != number).map(|(_, tip)| &tip.header);
        let ahead = others.chain(mined).max_by_key(|header| header.chain_work);
        let ahead = ahead.map(|header| (header.chain_work, header.height));
        let stuck_after = self.stuck_after;
        let node = &mut self.nodes[number];
        let (Some(tip), true) = (&node.tip, node.failures[Use::Question as usize].is_none()) else { return };
        let Some((_, height)) = ahead.filter(|(work, _)| *work > tip.header.chain_work) else {
            node.behind_since = None;
            if node.behind.take().is_some() {
                tracing::info!(node = node.name, height = tip.header.height, "the node has caught up");
            }
            return;
        };
        let since = *node.behind_since.get_or_insert(now.at);
        if node.behind.is_none() && now.at.duration_since(since) >= stuck_after {
            let why = format!("its tip has height {}, others have {height}", tip.header.height);
            tracing::warn!(node = node.name, why, "a node stands still");
            node.behind = Some((now.wall, why));
            node.stuck += 1;
        }
    }
}

impl Entry {
    /// Its tip, if templates can come from it.
    fn usable(&self) -> Option<&Tip> {
        let works = self.failures.iter().all(Option::is_none) && self.behind.is_none();
        self.tip.as_ref().filter(|_| works)
    }

    fn recovered(&mut self, what: Use) {
        self.asked = true;
        if let Some((since, _)) = self.failures[what as usize].take() {
            let seconds = since.elapsed().unwrap_or_default().as_secs();
            tracing::info!(node = self.name, seconds, "the node answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_mining::Sats;

    const STUCK_AFTER: Duration = Duration::from_secs(120);

    /// A board of nodes, and the clocks it is told.
    struct Rig {
        board: Board,
        begun: Now,
    }

    fn rig(names: &[&str]) -> Rig {
        let board = Board::new(names.iter().map(ToString::to_string), STUCK_AFTER);
        Rig { board, begun: Now::read() }
    }

    impl Rig {
        fn now(&self, seconds: u64) -> Now {
            let later = Duration::from_secs(seconds);
            Now { at: self.begun.at + later, wall: self.begun.wall + later }
        }

        /// The node tells a tip of this height, one of several of that height; the node that is the best then.
        fn tip(&mut self, seconds: u64, node: usize, height: u8, which: u8) -> usize {
            self.board.saw_tip(node, tip(height, which), self.now(seconds));
            self.board.choose();
            if let Some(tip) = self.board.tip(self.board.best()).cloned() {
                self.board.mining(tip);
            }
            self.board.best()
        }

        fn fails(&mut self, seconds: u64, node: usize, what: Use) -> usize {
            let error = NodeError::Unreachable("a".into(), "hung up".into());
            self.board.failed(node, what, &error, self.now(seconds));
            self.board.choose();
            self.board.best()
        }

        /// The node gives a template whose time is this many seconds after the beginning.
        fn template(&mut self, seconds: u64, node: usize, time: u64) -> usize {
            let wall = self.now(time).wall.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let template = Template {
                height: 1,
                prev_hash: [1; 32],
                version: 0,
                nbits: 0,
                cur_time: wall.as_secs() as u32,
                min_time: 0,
                coinbase_value: Sats::ZERO,
                commitment: None,
                transactions: Vec::new(),
            };
            self.board.saw_template(node, &template, self.now(seconds));
            self.board.choose();
            self.board.best()
        }

        fn is_stuck(&self, node: usize) -> bool {
            matches!(self.board.state(node).0, NodeState::Stuck { .. })
        }
    }

    fn tip(height: u8, which: u8) -> Tip {
        let mut chain_work = [0; 32];
        chain_work[31] = height;
        let header =
            HeaderInfo { height: height.into(), median_time: 0, prev_hash: None, confirmations: 1, chain_work };
        Tip { hash: [[height; 16], [which; 16]].concat().try_into().unwrap(), header }
    }

    #[test]
    fn the_most_work_wins_then_the_tip_that_is_mined_on_then_the_order() {
        let mut rig = rig(&["a", "b", "c"]);
        assert!(!rig.board.is_complete());
        assert_eq!(rig.tip(0, 1, 5, 0), 1, "the only one that answers");
        assert_eq!(rig.tip(0, 0, 5, 0), 0, "the first of those that agree");
        rig.fails(0, 2, Use::Question);
        assert!(rig.board.is_complete());
        assert_eq!(rig.tip(1, 2, 6, 0), 2);
        assert_eq!(rig.tip(1, 0, 6, 9), 2, "another tip of the same height: it stays");
        assert_eq!(rig.tip(2, 0, 6, 0), 0, "they agree again");
        assert_eq!(rig.tip(3, 0, 7, 0), 0);
    }

    #[test]
    fn a_node_that_fails_is_replaced_and_takes_over_again() {
        let mut rig = rig(&["a", "b"]);
        rig.tip(0, 1, 5, 0);
        rig.tip(0, 0, 5, 0);
        for what in [Use::Question, Use::Template] {
            assert_eq!(rig.fails(1, 0, what), 1);
            assert!(matches!(rig.board.state(0).0, NodeState::Failed { .. }));
            if what == Use::Template {
                assert_eq!(
                    rig.tip(2, 0, 5, 0),
                    1,
                    "a node without templates has not recovered because it tells its tip"
                );
                assert_eq!(rig.template(3, 0, 3), 0);
            }
            assert_eq!(rig.tip(4, 0, 5, 0), 0);
            assert_eq!(rig.board.state(0).0, NodeState::Ok);
        }
        rig.fails(5, 0, Use::Question);
        assert_eq!(rig.fails(5, 1, Use::Question), 1, "nobody is left: all stays");
    }

    /// A node must not lead miners back to a tip that has been overtaken; it may lead back from its own.
    #[test]
    fn only_the_node_that_a_tip_came_from_leads_back() {
        let mut rig = rig(&["a", "b"]);
        rig.tip(0, 1, 5, 0);
        assert_eq!(rig.tip(0, 0, 6, 0), 0);
        assert_eq!(rig.fails(1, 0, Use::Question), 0, "the other one is behind");
        assert_eq!(rig.tip(2, 1, 6, 1), 1, "and has caught up");
        rig.fails(3, 1, Use::Question);
        assert_eq!(rig.tip(4, 1, 4, 0), 1, "its block was taken back");
        assert_eq!(rig.board.tip(1), Some(&tip(4, 0)));
    }

    #[test]
    fn a_node_whose_tip_stays_behind_is_told_and_not_chosen_until_it_catches_up() {
        let mut rig = rig(&["a", "b"]);
        rig.tip(0, 1, 5, 0);
        rig.tip(0, 0, 5, 0);
        assert_eq!(rig.tip(1, 1, 6, 0), 1);
        rig.tip(120, 0, 5, 0);
        assert!(!rig.is_stuck(0), "not for long enough");
        rig.tip(122, 0, 5, 0);
        let (state, count) = rig.board.state(0);
        let NodeState::Stuck { why, .. } = state else { panic!("{state:?}") };
        assert_eq!((&*why, count), ("its tip has height 5, others have 6", 1));
        assert_eq!(rig.fails(123, 1, Use::Question), 1, "not even now");
        assert!(rig.is_stuck(0), "nobody is ahead that answers, but it was");
        assert_eq!(rig.tip(124, 0, 6, 0), 0, "it has caught up");
        assert_eq!(rig.board.state(0), (NodeState::Ok, 1));
        rig.tip(130, 1, 7, 0);
        rig.tip(200, 0, 7, 0);
        rig.tip(201, 1, 8, 0);
        rig.tip(320, 0, 7, 0);
        assert!(!rig.is_stuck(0), "each time anew");
        rig.tip(330, 0, 7, 0);
        assert_eq!(rig.board.state(0).1, 2);
    }

    #[test]
    fn a_node_whose_templates_keep_their_time_is_the_last_resort() {
        let mut rig = rig(&["a", "b"]);
        rig.tip(0, 1, 5, 0);
        assert_eq!(rig.tip(0, 0, 5, 0), 0);
        assert_eq!(rig.template(100, 0, 100), 0);
        assert_eq!(rig.template(219, 0, 100), 0, "not for long enough");
        assert_eq!(rig.template(225, 0, 100), 1);
        assert!(rig.is_stuck(0) && rig.board.frozen().eq([0]));
        assert_eq!(rig.fails(226, 1, Use::Question), 0, "its blocks would be good");
        assert_eq!(rig.tip(227, 1, 5, 0), 1);
        assert_eq!(rig.template(230, 0, 230), 0, "it moves again");
        assert_eq!(rig.board.state(0), (NodeState::Ok, 1));
        // A smallest block time ahead of the clock is given again and again; so is a clock that is wrong but moves.
        for seconds in [300, 500, 700] {
            assert_eq!(rig.template(seconds, 0, 5_000), 0);
        }
        for seconds in [900, 1_100, 1_300] {
            assert_eq!(rig.template(seconds, 0, seconds - 800), 0);
        }
    }
}
