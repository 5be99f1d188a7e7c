//! The queue: a lane of commands for each product, and the way back for their verdicts.
//!
//! An API submits a command ([`Submitter`]). A worker takes it from its lane, decides it, and settles it ([`Consumer`]). The
//! [`Outcome`] arrives at the API ([`ReplySink`]). The adapters [`memory`] and [`rabbitmq`] implement this, and
//! `tests/it/ports/queue_contract.rs` tests both. They promise:
//!
//! - **Order.** Commands of one lane that one submitter submitted one after the other are taken in that order.
//! - **One at a time.** At most one consumer has unsettled deliveries of a lane. RabbitMQ can break this for a moment in a
//!   failover; the database's row locks stand behind it.
//! - **At least once.** A delivery that is not settled when its consumer ends is delivered again, in its old place.
//! - **Reply, then acknowledge.** A delivery is acknowledged only when the replies and events of its completion are
//!   confirmed.
//! - **Bounded.** A full lane refuses commands at once. A refused command is in no lane: it is safe to send it again.

pub mod memory;
pub mod rabbitmq;

use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::domain::{
    command::Command,
    event::Event,
    ids::{CommandId, OrderId, ProductId},
    verdict::Verdict,
};

/// A part of the queue that can say whether it works.
#[async_trait]
pub trait Ping: Send + Sync {
    /// Whether commands and verdicts get through now.
    async fn ping(&self) -> Result<(), QueueError>;
}

/// The way on which processes tell each other what they do, for operators. What is told may be lost, and nothing waits for it.
#[async_trait]
pub trait Reports: Send + Sync {
    /// Tells it to all that listen now, in this process too. Waits for a moment at most, and for nobody's answer.
    async fn tell(&self, report: Vec<u8>) -> Result<(), QueueError>;

    /// What is told from now on. Ends when the connection does.
    async fn listen(&self) -> Result<BoxStream<'static, Vec<u8>>, QueueError>;
}

/// How much waits, as the queue itself says it, for operators.
#[async_trait]
pub trait Depths: Send + Sync {
    /// How many dead letters there are.
    async fn dead_letters(&self) -> Result<u64, QueueError>;

    /// What waits in the lanes of this product.
    async fn depth(&self, product_id: ProductId) -> Result<LaneDepth, QueueError>;
}

/// What waits in a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneDepth {
    /// Messages, each of one or more commands, that no worker has taken.
    pub messages: u64,
    /// Workers that serve it; one of them at a time gets its messages.
    pub workers: u32,
}

/// The lanes.
#[async_trait]
pub trait Queue: Ping {
    /// For an API. The outcomes of the commands that it submits arrive at the reply sink.
    async fn submitter(
        &self,
        reply_sink: Arc<dyn ReplySink>,
        archive: Arc<dyn Archive>,
    ) -> Result<Arc<dyn Submitter>, QueueError>;

    /// For a worker.
    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError>;
}

/// How long an API may rely on what it knows of a product: that it is not archived, or that it exists.
pub const KNOWN_FOR: Duration = Duration::from_secs(5);

/// How long after its product was archived a lane may be removed. More than three things together: a transaction that archives
/// (10 s) tells the time at its beginning and is seen at its end, an API knows a product for [`KNOWN_FOR`], and what it
/// publishes then is confirmed within 10 s or counts as not published.
pub const RETIRE_AFTER: Duration = Duration::from_secs(30);

/// What a submitter asks before it uses a lane: the lane of an archived product is about to be removed.
#[async_trait]
pub trait Archive: Send + Sync {
    /// Whether the product is archived, as far as is known: the answer is at most [`KNOWN_FOR`] old, unless the database
    /// does not answer.
    async fn is_archived(&self, product_id: ProductId) -> bool;

    /// Forgets that a product was not archived: its lane is gone.
    fn forget(&self, product_id: ProductId);
}

/// For who submits only commands of products that cannot be archived, because pieces of them are reserved.
pub struct NothingArchived;

#[async_trait]
impl Archive for NothingArchived {
    async fn is_archived(&self, _: ProductId) -> bool {
        false
    }

    fn forget(&self, _: ProductId) {}
}

/// The API's end of the queue.
#[async_trait]
pub trait Submitter: Ping {
    /// Puts a command at the end of its product's lane, or of the lane that archived products share. Returns at once; the [`Outcome`] arrives at the reply sink. It may
    /// never arrive: then nobody knows whether the command is queued, and it may be decided.
    fn submit(&self, command: Command);

    /// The same for a [detached](Command::detached) command whose client is answered 202, which says that there will be a
    /// verdict. It is never refused: a command that cannot be queued is parked, and submitted again. [`Outcome::Queued`]
    /// arrives when it is queued.
    fn submit_or_park(&self, command: Command);

    /// How many commands are parked now.
    fn parked(&self) -> usize;

    /// Waits until no command is parked.
    async fn drain(&self);

    /// Opens the lane of a new product, so that workers serve it at once. A failure does no harm: the first order opens the
    /// lane as well, and workers look for new products every few seconds.
    async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError>;

    /// Whether the order with this id may be in a lane or with a worker.
    fn may_be_pending(&self, id: OrderId, now: Timestamp) -> bool;
}

/// Where the outcomes of an API's commands arrive.
pub trait ReplySink: Send + Sync {
    /// Must not block. Outcomes that no client waits for are ignored.
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>);
}

/// What became of a submitted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is queued. Arrives only for a [detached](Command::is_detached) command, whose client waits for nothing more.
    Queued,
    /// A worker decided it.
    Decided(Verdict),
    /// It is in no lane: it is safe to send it again.
    Refused(Refusal),
}

impl Outcome {
    /// A word for it, for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Decided(verdict) => verdict.as_str(),
            Self::Refused(Refusal::LaneFull) => "lane_full",
            Self::Refused(Refusal::QueueUnavailable) => "queue_unavailable",
            Self::Refused(Refusal::Overloaded) => "overloaded",
            Self::Refused(Refusal::OtherInstallation) => "other_installation",
        }
    }
}

/// Why a command was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lane is full.
    LaneFull,
    /// There is no connection to the queue, or the lane cannot be reached.
    QueueUnavailable,
    /// The API waits for as many verdicts as it can.
    Overloaded,
    /// A worker of another database took it, and refuses to decide it.
    OtherInstallation,
}

/// The worker's end of the queue. When it is dropped, its unsettled deliveries go back to their lanes.
#[async_trait]
pub trait Consumer: Send {
    /// Serves the lanes of these products as well. Lanes that it serves already are ignored. May return before the lanes
    /// are open.
    async fn serve(&mut self, products: &[ProductId]) -> Result<(), QueueError>;

    /// These products have been archived for [`RETIRE_AFTER`] and longer. From now on serves the lane that archived products
    /// share, and the lanes of these that still exist; of those that are empty each is removed. Returns before that is done.
    async fn retire(&mut self, products: &[ProductId]) -> Result<(), QueueError>;

    /// Waits until something has arrived, and takes it: up to `max_commands`, or one delivery if that alone is larger.
    /// Cancel safe: a delivery that is not returned is not taken.
    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError>;

    /// Publishes the completion of decided deliveries, and acknowledges them once it is confirmed. May return before that:
    /// then a failure fails a later call, and the deliveries are delivered again when the consumer ends. Deliveries whose API
    /// is gone may be taken once more, [detached](Command::detached), so that their rejections are stored.
    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError>;

    /// Waits until all deliveries that were settled are acknowledged.
    async fn drain(&mut self) -> Result<(), QueueError>;

    /// Puts deliveries back, each in its old place in its lane. They are delivered again.
    async fn requeue(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError>;

    /// Keeps undecidable commands for a person, each as a separate dead letter. Their deliveries are settled like others.
    async fn dead_letter(&mut self, commands: Vec<Command>) -> Result<(), QueueError>;
}

/// Commands of one lane that arrived together, from one API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// In the order of their arrival, at least one.
    pub commands: Vec<Command>,
    /// Of the lane, for the log.
    pub lane: LaneName,
    pub reply_to: Address,
    /// The adapter's id of this delivery.
    pub(crate) tag: u64,
}

/// The results of decided deliveries. Replies are published first, so that no client waits for an event.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// One for each API.
    pub replies: Vec<Reply>,
    /// For the shop's other services.
    pub events: Vec<Event>,
}

/// Verdicts for one API.
#[derive(Clone, Debug)]
pub struct Reply {
    pub to: Address,
    pub verdicts: Vec<(CommandId, Verdict)>,
}

/// What a lane is called in the log: the name of its queue.
pub type LaneName = Arc<str>;

/// The address of an API's reply sink. Empty for commands whose API is gone.
pub type Address = Arc<str>;

/// The queue did not answer, or refused. It is always worth trying again with a new submitter or consumer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the queue does not answer: {0}")]
pub struct QueueError(pub String);
