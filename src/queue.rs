//! The queue contract: a lane for each product, in which commands stand in line, and the way back for verdicts.
//!
//! Two adapters, [`memory`] and [`rabbitmq`], stand behind it; `tests/it/ports/queue_contract.rs` is what both must
//! pass. What they promise:
//!
//! - Commands of one lane that one [`Submitter`] submitted one after the other are taken in that order.
//! - At most one consumer at a time holds deliveries of a lane (RabbitMQ can break this rule for a moment in a
//!   failover; the database's row locks stand behind it).
//! - A delivery that is not settled comes back when its consumer ends, in its old place.
//! - A lane is bounded. What it does not take is refused at once.

pub mod memory;
pub mod rabbitmq;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::{
    command::Command,
    event::Event,
    ids::{CommandId, OrderId, ProductId},
    verdict::Verdict,
};

/// What can be asked whether it works.
#[async_trait]
pub trait Ping: Send + Sync {
    /// Whether orders and verdicts get through now.
    async fn ping(&self) -> Result<(), QueueError>;
}

/// The lanes, from where ends are handed out.
#[async_trait]
pub trait Queue: Ping {
    /// An end for an API: what becomes of the commands submitted here arrives at the reply_sink.
    async fn submitter(&self, reply_sink: Arc<dyn ReplySink>) -> Result<Arc<dyn Submitter>, QueueError>;

    /// An end for a worker.
    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError>;
}

/// The API's end.
#[async_trait]
pub trait Submitter: Ping {
    /// Puts a command at the end of its product's lane. Returns at once; the [`Outcome`] arrives at the reply_sink. It
    /// may never arrive: then nobody knows, and the command may be decided all the same.
    fn submit(&self, command: Command);

    /// The same for a [detached](Command::detached) command whose client was told, or is about to be told, that there will be
    /// a verdict: it is never refused. What cannot be queued now is kept, and queued as soon as it can be.
    /// [`Outcome::Queued`] arrives when it is.
    fn submit_surely(&self, command: Command);

    /// Waits until nothing is kept any more.
    async fn flush(&self);

    /// Opens the lane of a new product, so that workers serve it at once. Losing it does no harm: the first order
    /// opens the lane as well, and workers look for new products every few seconds.
    async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError>;

    /// Whether this order, of which nothing else is known than its id, can still stand in line or be in a worker's hands.
    fn may_hold(&self, id: OrderId) -> bool;
}

/// Where an API hears what became of its orders.
pub trait ReplySink: Send + Sync {
    /// Takes outcomes; must not block. Commands for which nobody waits any more are passed over.
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>);
}

/// What became of a submitted command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is queued. Only said of a [detached](Command::is_detached) one, whose client waits for no more.
    Queued,
    /// A worker decided it.
    Decided(Verdict),
    /// It never got in line: sending it again is safe.
    Refused(Refusal),
}

/// Why a command did not get in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many commands as the lane takes are waiting in it.
    LaneFull,
    /// There is no connection to the queue, or the lane cannot be reached.
    QueueUnavailable,
    /// As many commands as the API takes wait for their verdicts.
    Overloaded,
    /// A worker of another database took it, and decides nothing of this one.
    OtherInstallation,
}

/// The worker's end. Dropping it gives back what it holds.
#[async_trait]
pub trait Consumer: Send {
    /// Serves these lanes too. It may return before they are open: a lane that cannot be opened fails a later
    /// [`Consumer::take`]. Lanes that it serves already are passed over.
    async fn serve(&mut self, lanes: &[ProductId]) -> Result<(), QueueError>;

    /// Waits until something has arrived, and takes it: up to `max_commands`, or one delivery if that alone is
    /// larger. Cancel safe: what is not returned is not taken.
    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError>;

    /// Tells what became of deliveries, and lets go of them once all of that is on its way for sure. It may return
    /// before: what fails then fails a later call, and the deliveries come back when the consumer ends. Those whose API
    /// is gone may be taken once more, [detached](Command::detached): what only it would have heard is stored.
    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError>;

    /// Waits until all that was settled is let go of.
    async fn finish(&mut self) -> Result<(), QueueError>;

    /// Gives deliveries back, each to its old place in its lane: they come again.
    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError>;

    /// Keeps commands that nobody can decide for a person, each by itself. Their deliveries are settled like others.
    async fn dead_letter(&mut self, commands: Vec<Command>) -> Result<(), QueueError>;
}

/// Commands of one lane that arrived together, from one API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// In the order of their arrival; never empty.
    pub commands: Vec<Command>,
    /// Where their verdicts go.
    pub reply_to: Address,
    /// What the adapter knows it by.
    pub(crate) tag: u64,
}

/// All that is to be told of decided deliveries, in this order.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// To the APIs whose commands they are.
    pub replies: Vec<Reply>,
    /// To the shop's other services: what became of orders.
    pub events: Vec<Event>,
}

/// Verdicts for one API.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Where they go.
    pub to: Address,
    /// By command.
    pub verdicts: Vec<(CommandId, Verdict)>,
}

/// The name of an API's reply_sink in the queue.
pub type Address = Arc<str>;

/// The queue did not do it. Always worth trying again on a new end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the queue does not answer: {0}")]
pub struct QueueError(pub String);
