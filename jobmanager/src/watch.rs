//! The threads that ask one node, so that whoever makes jobs never waits for an answer: one for its tip, one for its
//! ZMQ notices, one for templates, one for longpolls. Templates and longpolls have connections of their own; the two that
//! ask about tips share one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sluice_mining::Chain;
use sluice_mining::template::Template;
use sluice_mining::wire::display_hash;

use crate::board::{Tip, Use};
use crate::node::{NodeClient, NodeConfig, NodeError};
use crate::zmq::{Heard, Listener, Published};

/// A template may take this long: a node that is busy connecting a block answers late.
const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(20);
/// A question about the tip is given up after this long.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// A longpoll is repeated after this long. Bitcoin Core answers after a minute where transactions have come, and not at
/// all where nothing changes.
const LONGPOLL_TIMEOUT: Duration = Duration::from_secs(180);
/// First and longest pause before a call that failed is made again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What was learned of a node.
pub(crate) enum Event {
    /// It has this tip.
    Tip {
        tip: Tip,
        how: How,
        /// When the first sign of it came.
        since: Instant,
    },
    /// It gave this template.
    Template { template: Box<Template>, since: Instant },
    /// A call failed.
    Failed(Use, NodeError),
}

/// How a tip was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Zmq,
    Poll,
}

/// What takes events; `false` once nobody wants them any more.
pub(crate) type Tell = Arc<dyn Fn(Event) -> bool + Send + Sync>;

/// One node under watch. Dropping it ends its threads, each after the call it is in.
pub(crate) struct Watch {
    polls: SyncSender<()>,
    fetches: SyncSender<()>,
    longpolls: SyncSender<()>,
    longpoll: Arc<AtomicBool>,
    heard: Arc<Heard>,
    listener: Option<Listener>,
}

impl Watch {
    /// Starts to watch a node: its tip is asked for at once and then every `poll`.
    ///
    /// # Errors
    /// If its settings cannot be used or no thread can be started.
    pub(crate) fn start(
        config: &NodeConfig,
        chain: Chain,
        poll: Duration,
        tell: &Tell,
    ) -> Result<Self, crate::JobManagerError> {
        let asks = Arc::new(NodeClient::new(config, ASK_TIMEOUT)?);
        let templates = NodeClient::new(config, TEMPLATE_TIMEOUT)?;
        let longpoller = NodeClient::new(config, LONGPOLL_TIMEOUT)?;
        // One place each: a call that is due anyway need not be asked for twice.
        let ((polls, poll_asked), (fetches, fetch_asked)) = (sync_channel(1), sync_channel(1));
        let (longpolls, longpoll_asked) = sync_channel(1);
        let longpoll = Arc::new(AtomicBool::new(false));
        let thread = |use_: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(format!("{use_}-{}", config.name)).spawn(run).map(drop)
        };
        let (client, to) = (asks.clone(), tell.clone());
        thread("poll", Box::new(move || poll_tip(&client, poll, &poll_asked, &to)))?;
        let to = tell.clone();
        thread("gbt", Box::new(move || fetch(&templates, chain, &fetch_asked, &to)))?;
        let (on, to) = (longpoll.clone(), tell.clone());
        thread("longpoll", Box::new(move || wait_for_templates(&longpoller, chain, &longpoll_asked, &on, &to)))?;
        let heard = Arc::new(Heard::default());
        let listener = match &config.zmq {
            None => None,
            Some(endpoint) => {
                let notice = on_published(asks, polls.clone(), tell.clone());
                Some(Listener::start(config.name.clone(), endpoint.clone(), heard.clone(), notice)?)
            }
        };
        let watch = Self { polls, fetches, longpolls, longpoll, heard, listener };
        if watch.listener.is_none() {
            watch.longpoll(true);
        }
        Ok(watch)
    }

    /// Asks for a template; it comes as an event.
    pub(crate) fn fetch(&self) {
        self.fetches.try_send(()).ok();
    }

    /// Asks for the tip now, not at the next poll.
    pub(crate) fn ask_tip(&self) {
        self.polls.try_send(()).ok();
    }

    /// Waits for new templates by longpoll from now on, or no longer.
    pub(crate) fn longpoll(&self, on: bool) {
        self.longpoll.store(on, Ordering::SeqCst);
        if on {
            self.longpolls.try_send(()).ok();
        }
    }

    /// Whether new templates are waited for by longpoll.
    pub(crate) fn longpolls(&self) -> bool {
        self.longpoll.load(Ordering::SeqCst)
    }

    /// Whether it has a ZMQ endpoint.
    pub(crate) fn has_zmq(&self) -> bool {
        self.listener.is_some()
    }

    /// What was heard by ZMQ.
    pub(crate) fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// Asks its longpoll and its listener to end; dropping waits for the listener.
    pub(crate) fn halt(&self) {
        self.longpoll(false);
        self.listener.iter().for_each(Listener::halt);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What a listener does with what a node publishes: the header of a new tip is asked for at once, on the connection
/// that polls keep warm.
fn on_published(asks: Arc<NodeClient>, polls: SyncSender<()>, tell: Tell) -> impl FnMut(Published) + Send {
    let mut last = None;
    move |published| match published {
        // The same block by both topics.
        Published::Block(hash) if last == Some(hash) => {}
        Published::Block(hash) => {
            let since = Instant::now();
            last = Some(hash);
            match asks.header(&hash) {
                // Others follow it already, and have notices of their own.
                Ok(Some(header)) if header.confirmations != 1 => {}
                Ok(Some(header)) => drop(tell(Event::Tip { tip: Tip { hash, header }, how: How::Zmq, since })),
                Ok(None) => tracing::warn!(node = asks.name(), tip = %display_hash(&hash), "it does not know its tip"),
                // The poll finds out whether it goes on like that.
                Err(error) => {
                    tracing::warn!(%error, "a tip is noticed whose header cannot be had");
                    polls.try_send(()).ok();
                }
            }
        }
        Published::Disconnected(hash) => {
            // Should no other block take its place, only a question shows the tip.
            last = None;
            tracing::info!(node = asks.name(), block = %display_hash(&hash), "a block has left the best chain");
            polls.try_send(()).ok();
        }
        Published::Lost => drop(polls.try_send(())),
    }
}

/// Asks for the tip at once, every `poll`, and when it is asked to.
fn poll_tip(node: &NodeClient, poll: Duration, asked: &Receiver<()>, tell: &Tell) {
    let (mut known, mut failures): (Option<Tip>, u32) = (None, 0);
    loop {
        let since = Instant::now();
        let pause = match tip_of(node, known.take()) {
            Ok(tip) => {
                failures = 0;
                known.clone_from(&tip);
                if tip.is_some_and(|tip| !tell(Event::Tip { tip, how: How::Poll, since })) {
                    return;
                }
                poll
            }
            Err(error) => match retry(node, Use::Question, error, &mut failures, tell) {
                Some(pause) => pause,
                None => return,
            },
        };
        if asked.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// The node's tip; `None` where it changes between two questions.
fn tip_of(node: &NodeClient, known: Option<Tip>) -> Result<Option<Tip>, NodeError> {
    let hash = node.best_hash()?;
    match known {
        Some(tip) if tip.hash == hash => Ok(Some(tip)),
        _ => Ok(node.header(&hash)?.map(|header| Tip { hash, header })),
    }
}

/// Gets a template whenever one is asked for; one that fails again until it works.
fn fetch(node: &NodeClient, chain: Chain, asked: &Receiver<()>, tell: &Tell) {
    let mut failures = 0;
    while asked.recv() == Ok(()) {
        loop {
            let since = Instant::now();
            match node.template(chain, None).and_then(|json| parse(node, &json)) {
                Ok(template) => {
                    failures = 0;
                    if !tell(Event::Template { template, since }) {
                        return;
                    }
                    break;
                }
                Err(error) => match retry(node, Use::Template, error, &mut failures, tell) {
                    Some(pause) => std::thread::sleep(pause),
                    None => return,
                },
            }
        }
    }
}

/// Waits for templates by longpoll (BIP22) while that is on.
fn wait_for_templates(node: &NodeClient, chain: Chain, asked: &Receiver<()>, on: &AtomicBool, tell: &Tell) {
    while asked.recv() == Ok(()) {
        let (mut id, mut failures): (Option<String>, u32) = (None, 0);
        while on.load(Ordering::SeqCst) {
            let json = node.template(chain, id.as_deref());
            let since = Instant::now();
            let template = json.and_then(|json| {
                id = crate::node::longpoll_id(&json);
                parse(node, &json)
            });
            match template {
                Ok(template) => {
                    failures = 0;
                    if !tell(Event::Template { template, since }) {
                        return;
                    }
                    if id.is_none() {
                        tracing::warn!(node = node.name(), "the node knows no longpoll, its tip is polled");
                        break;
                    }
                }
                // Whether the node gives templates shows where they are fetched.
                Err(error) => {
                    id = None;
                    let pause = pause_after(&mut failures);
                    tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "a longpoll ended");
                    std::thread::sleep(pause);
                }
            }
        }
    }
}

fn parse(node: &NodeClient, json: &RawValue) -> Result<Box<Template>, NodeError> {
    let template = Template::from_gbt(json.get());
    template.map(Box::new).map_err(|error| NodeError::Answer(node.name().to_owned(), error.to_string()))
}

/// Tells of a failure; how long to wait before the next try, `None` once nobody wants to know.
fn retry(node: &NodeClient, what: Use, error: NodeError, failures: &mut u32, tell: &Tell) -> Option<Duration> {
    let pause = pause_after(failures);
    tracing::warn!(%error, node = node.name(), retry_in_ms = pause.as_millis() as u64, "a node fails");
    tell(Event::Failed(what, error)).then_some(pause)
}

fn pause_after(failures: &mut u32) -> Duration {
    let pause = PAUSES.0.saturating_mul(1 << (*failures).min(10)).min(PAUSES.1);
    *failures = failures.saturating_add(1);
    pause
}
