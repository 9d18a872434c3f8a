//! The thread that turns what the nodes say, and a timer, into jobs. It never waits for a node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_mining::template::{Template, subsidy};
use sluice_proto::EventTime;

use crate::JobManagerConfig;
use crate::board::{Board, Now, Tip};
use crate::manager::{JobManagerError, Notice};
use crate::status::Status;
use crate::watch::{Event, How, Watch};
use crate::writer::Writer;

pub(crate) struct Worker {
    config: JobManagerConfig,
    watches: Vec<Watch>,
    board: Board,
    writer: Writer,
    status: Arc<Mutex<Status>>,
    /// A job of the next template, whatever it holds: the tip is new, or it is time.
    owed: bool,
    /// The tip that a template was asked for, as long as there is no job on it, and when its first sign came.
    awaited: Option<[u8; 32]>,
    tip_since: Instant,
    refresh_at: Instant,
    fees_at: Instant,
    /// Changes of the best node's mempool that had been heard of when a template was asked for last.
    mempool: u64,
    /// A template on a tip that its node has not told, and when it came.
    early: Option<(usize, Box<Template>, Instant)>,
    /// By node: the tip that a poll found and ZMQ has not told.
    unheard: Vec<Option<[u8; 32]>>,
}

impl Worker {
    pub(crate) fn new(
        config: JobManagerConfig,
        watches: Vec<Watch>,
        writer: Writer,
        status: Arc<Mutex<Status>>,
    ) -> Self {
        let board = Board::new(config.nodes.iter().map(|node| node.name.clone()), config.stuck_after);
        let (now, unheard) = (Instant::now(), vec![None; watches.len()]);
        let (refresh_at, fees_at) = (now + config.refresh, now + config.fee_poll);
        Self {
            config,
            watches,
            board,
            writer,
            status,
            owed: true,
            awaited: None,
            tip_since: now,
            refresh_at,
            fees_at,
            mempool: 0,
            early: None,
            unheard,
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// If the log fails, or no job can be made for a reason that will not pass.
    pub(crate) fn run(&mut self, notices: &Receiver<Notice>) -> Result<(), JobManagerError> {
        loop {
            self.report();
            let next = if self.config.refresh_fees == 0 { self.refresh_at } else { self.refresh_at.min(self.fees_at) };
            match notices.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Notice::Node(node, Event::Tip { tip, how, since })) => self.on_tip(node, tip, how, since)?,
                Ok(Notice::Node(node, Event::Template { template, since })) => {
                    self.on_template(node, template, since)?
                }
                Ok(Notice::Node(node, Event::Failed(what, error))) => {
                    self.board.failed(node, what, &error, Now::read());
                    self.follow(Instant::now())?;
                }
                Err(RecvTimeoutError::Timeout) => self.on_timer(),
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.watches.iter().for_each(Watch::halt);
        Ok(())
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        let best = self.board.best();
        if now >= self.refresh_at {
            // The template that comes shows the fees, too.
            (self.refresh_at, self.fees_at) = (now + self.config.refresh, now + self.config.fee_poll);
            self.owed = true;
            self.fetch(best);
            self.board.frozen().filter(|node| *node != best).for_each(|node| self.watches[node].fetch());
        } else if self.config.refresh_fees > 0 && now >= self.fees_at {
            self.fees_at = now + self.config.fee_poll;
            // A node that tells changes of its mempool need not be asked while there are none.
            let changes = self.watches[best].heard().mempool.load(Ordering::Relaxed);
            if changes == 0 || changes != self.mempool {
                self.fetch(best);
            }
        }
    }

    fn fetch(&mut self, node: usize) {
        self.mempool = self.watches[node].heard().mempool.load(Ordering::Relaxed);
        self.watches[node].fetch();
    }

    fn on_tip(&mut self, node: usize, tip: Tip, how: How, since: Instant) -> Result<(), JobManagerError> {
        self.watch_zmq(node, &tip, how);
        let hash = tip.hash;
        self.board.saw_tip(node, tip, Now::read());
        let early = self.early.take_if(|(of, ..)| *of == node).filter(|(_, template, _)| template.prev_hash == hash);
        self.follow(early.as_ref().map_or(since, |(.., earlier)| since.min(*earlier)))?;
        match early {
            Some((of, template, _)) => self.offer(of, *template),
            None => Ok(()),
        }
    }

    /// Goes over to the best node's tip, if that is new. The first sign of it came at `since`.
    fn follow(&mut self, since: Instant) -> Result<(), JobManagerError> {
        // At the start all have a say, so that it is not chance which one is chosen.
        if !self.board.is_complete() {
            return Ok(());
        }
        let changed = self.board.choose();
        let best = self.board.best();
        let Some(tip) = self.board.tip(best).cloned() else { return Ok(()) };
        self.board.mining(tip.clone());
        let has_job = self.writer.tip() == Some(tip.hash) && self.writer.template().is_some();
        let new = !has_job && self.awaited != Some(tip.hash);
        if has_job {
            self.awaited = None;
        }
        if new {
            (self.awaited, self.tip_since) = (Some(tip.hash), since);
            // First a job without transactions, where its target is sure, then the full one.
            if let Some(empty) = self.empty(&tip) {
                self.writer.publish(empty, since)?;
            }
        }
        if changed || new {
            self.owed = true;
            self.fetch(best);
        }
        Ok(())
    }

    /// A template without transactions on a new tip.
    fn empty(&self, tip: &Tip) -> Option<Template> {
        let (current, header) = (self.writer.template()?, &tip.header);
        // A tip that does not follow ours (a reorganisation), or has been followed by another one since its notice:
        // only the node's template is right.
        let follows = header.prev_hash == Some(current.prev_hash) && header.height == current.height;
        if !follows || header.confirmations != 1 {
            return None;
        }
        let now = u32::try_from(EventTime::now().secs()).unwrap_or(u32::MAX);
        let mut empty = current.empty_on(self.config.chain, tip.hash, now)?;
        empty.min_time = header.median_time.saturating_add(1);
        empty.cur_time = empty.cur_time.max(empty.min_time);
        Some(empty)
    }

    fn on_template(&mut self, node: usize, template: Box<Template>, since: Instant) -> Result<(), JobManagerError> {
        self.board.saw_template(node, &template, Now::read());
        self.follow(since)?;
        if self.board.tip(node).is_none_or(|tip| tip.hash != template.prev_hash) {
            // By longpoll it may be ahead of what is known of the node, or behind it because it took its time: the node
            // is asked which.
            self.early = Some((node, template, since));
            self.watches[node].ask_tip();
            return Ok(());
        }
        self.offer(node, *template)
    }

    /// Takes a template on the tip of its node, if it is the best one and all have had their say.
    fn offer(&mut self, node: usize, template: Template) -> Result<(), JobManagerError> {
        if node == self.board.best() && self.board.is_complete() { self.take(template) } else { Ok(()) }
    }

    /// Makes a job of a template on the tip that is mined on, if there is a reason.
    fn take(&mut self, template: Template) -> Result<(), JobManagerError> {
        let by_fees = !self.owed && self.fees_grew(&template);
        if !self.owed && !by_fees {
            return Ok(());
        }
        (self.owed, self.awaited) = (false, None);
        self.refresh_at = Instant::now() + self.config.refresh;
        self.writer.publish(template, self.tip_since)?;
        self.status.lock().fee_jobs += u64::from(by_fees);
        Ok(())
    }

    /// Whether a template's fees are above those of the last job by the share that was asked for.
    fn fees_grew(&self, template: &Template) -> bool {
        let share = self.config.refresh_fees;
        let Some(last) = self.writer.template().filter(|last| last.prev_hash == template.prev_hash) else {
            return false;
        };
        let new_coins = subsidy(self.config.chain, template.height).get();
        let [before, now] = [last, template].map(|of| of.coinbase_value.get().saturating_sub(new_coins));
        // All money there is, in satoshis, is below 2^51: nothing overflows.
        share > 0 && now > before && (now - before).saturating_mul(100) >= before.saturating_mul(share)
    }

    /// Waits for templates by longpoll where ZMQ does not tell what a poll has found, until it tells again.
    fn watch_zmq(&mut self, node: usize, tip: &Tip, how: How) {
        let (watch, name) = (&self.watches[node], self.board.name(node));
        if !watch.has_zmq() {
            return;
        }
        let news = self.board.tip(node).is_some_and(|known| known.hash != tip.hash);
        let unheard = &mut self.unheard[node];
        match how {
            How::Zmq => {
                *unheard = None;
                if watch.longpolls() {
                    tracing::info!(node = name, "ZMQ tells of tips again");
                    watch.longpoll(false);
                }
            }
            How::Poll if *unheard == Some(tip.hash) && !watch.longpolls() => {
                tracing::warn!(node = name, "ZMQ did not tell of a new tip: tips are waited for by longpoll");
                watch.longpoll(true);
            }
            How::Poll if news => *unheard = Some(tip.hash),
            How::Poll => {}
        }
    }

    fn report(&self) {
        let mut status = self.status.lock();
        for (number, (node, watch)) in status.nodes.iter_mut().zip(&self.watches).enumerate() {
            (node.state, node.stuck) = self.board.state(number);
            node.chosen = number == self.board.best();
            node.height = self.board.tip(number).map_or(0, |tip| tip.header.height);
            node.longpoll = watch.longpolls();
        }
    }
}
