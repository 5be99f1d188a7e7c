//! The connection on which an API publishes, and what becomes of one message.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_lapin::{Object, Pool};
use futures_util::StreamExt;
use lapin::{
    Channel, Confirmation, Event, ExchangeKind,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    DATABASE_HEADER,
    declarer::{Declarer, NotDeclared},
    failed, properties, silent,
    topology::Topology,
    within,
};
use crate::{
    domain::{ids::ProductId, lane_set::LaneNumber},
    queue::{
        Address, QueueError,
        rabbitmq::wire::{self, ORDERS_V1, PRODUCT_V1},
    },
};

/// How long an answer to a ping counts: readiness is asked for by many.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take for one. Less than readiness waits.
const PING_PATIENCE: Duration = Duration::from_millis(1_500);

/// How many lanes of new products are opened at a time, and how long the others wait for their turn.
const NEW_LANES_AT_ONCE: usize = 4;
const NEW_LANE_PATIENCE: Duration = Duration::from_secs(1);

/// How many messages of lanes that do not answer are sent again at a time, each on a connection of its own.
const AGAIN_AT_ONCE: usize = 4;

/// Publishes to lanes.
pub(super) struct Publisher {
    topology: Arc<Topology>,
    pool: Pool,
    declarer: Declarer,
    current: tokio::sync::Mutex<Option<Arc<Publishing>>>,
    /// Whether the broker blocks the connection: it is short of memory or disk.
    is_blocked: watch::Sender<bool>,
    last_ping: tokio::sync::Mutex<Option<(Instant, Result<(), QueueError>)>>,
    new_lanes: Semaphore,
    again: Semaphore,
}

/// A connection to publish on.
struct Publishing {
    connection: Object,
    orders: Channel,
    /// A channel of its own: what it asks waits behind nothing else.
    pings: Channel,
    declared: Mutex<HashSet<LaneNumber>>,
    _watching: AbortOnDropHandle<()>,
}

/// What is known of a publish.
pub(super) enum Published {
    /// The broker has it.
    Confirmed,
    /// The lane is full, or its queue does not work.
    Nacked,
    /// It found no lane: somebody has deleted the queue. Possibly it was another message than this one.
    Returned(Box<BasicReturnMessage>),
    /// It never left, because of the lane.
    NoLane(QueueError),
    /// It never left.
    NotSent(QueueError),
    /// It left, and nobody knows whether it arrived.
    Unknown(QueueError),
}

impl Publisher {
    pub(super) fn new(topology: Arc<Topology>, pool: Pool) -> Self {
        Self {
            declarer: Declarer::new(topology.clone(), "api: lanes"),
            topology,
            pool,
            current: tokio::sync::Mutex::default(),
            is_blocked: watch::Sender::new(false),
            last_ping: tokio::sync::Mutex::default(),
            new_lanes: Semaphore::new(NEW_LANES_AT_ONCE),
            again: Semaphore::new(AGAIN_AT_ONCE),
        }
    }

    /// Whether the broker takes nothing now.
    pub(super) fn is_blocked(&self) -> bool {
        *self.is_blocked.borrow()
    }

    /// Tells when it begins and ends to block.
    pub(super) fn blocking(&self) -> watch::Receiver<bool> {
        self.is_blocked.subscribe()
    }

    /// Publishes commands to a lane, which is declared before if need be.
    pub(super) async fn publish(&self, lane: LaneNumber, payload: &[u8], reply_to: &Address) -> Published {
        if self.is_blocked() {
            return Published::NotSent(blocked());
        }
        let publishing = match self.publishing().await {
            Ok(publishing) => publishing,
            Err(error) => return Published::NotSent(error),
        };
        if !publishing.declared().contains(&lane) {
            match self.declarer.declare(&self.topology.own_lane(lane)).await {
                Ok(()) => drop(publishing.declared().insert(lane)),
                Err(NotDeclared::Lane(error)) => return Published::NoLane(error),
                Err(NotDeclared::Broker(error)) => return Published::NotSent(error),
            }
        }
        let mut blocking = self.blocking();
        let published = tokio::select! {
            published = self.publish_on(&publishing.orders, lane, payload, reply_to) => published,
            _ = blocking.wait_for(|is_blocked| *is_blocked) => Published::Unknown(blocked()),
        };
        match &published {
            Published::Returned(_) => publishing.declared().clear(),
            // Half a publish may be stuck in this connection: the next one goes elsewhere, unless it still answers.
            Published::Unknown(_) if !self.is_blocked() && publishing.ping(&self.topology).await.is_err() => {
                let mut current = self.current.lock().await;
                if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &publishing)) {
                    *current = None;
                }
            }
            _ => {}
        }
        published
    }

    /// The same for a lane that did not answer, on a connection of its own: what waits for the answer of one queue would hold
    /// up a channel that others use.
    pub(super) async fn publish_aside(
        &self,
        lane: LaneNumber,
        payload: &[u8],
        reply_to: &Address,
    ) -> Published {
        let _permit = self.again.acquire().await;
        let mut blocking = self.blocking();
        let _ = blocking.wait_for(|is_blocked| !*is_blocked).await;
        let opened = async {
            let connection = self.topology.connect("api: a lane that did not answer").await?;
            let channel = within(connection.create_channel()).await?;
            within(self.topology.declare_lane(&channel, &self.topology.own_lane(lane))).await?;
            within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok::<_, QueueError>((connection, channel))
        };
        match opened.await {
            Ok((_connection, channel)) => self.publish_on(&channel, lane, payload, reply_to).await,
            Err(error) => Published::NotSent(error),
        }
    }

    async fn publish_on(
        &self,
        channel: &Channel,
        lane: LaneNumber,
        payload: &[u8],
        reply_to: &Address,
    ) -> Published {
        let mut headers = FieldTable::default();
        let database = self.topology.database().to_string();
        headers.insert(DATABASE_HEADER.into(), AMQPValue::LongString(database.into()));
        let properties = properties(ORDERS_V1).with_headers(headers).with_reply_to(reply_to.as_ref().into());
        // A lane that somebody deleted returns the message instead of losing it.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let name = self.topology.own_lane(lane).name();
        let confirmed = within(async {
            channel.basic_publish("".into(), name, options, payload, properties).await?.await
        });
        match confirmed.await {
            Ok(Confirmation::Nack(_)) => Published::Nacked,
            Ok(Confirmation::Ack(None)) => Published::Confirmed,
            Ok(Confirmation::Ack(Some(returned))) => Published::Returned(Box::new(returned)),
            Ok(Confirmation::NotRequested) => {
                Published::Unknown(QueueError("the channel is not in confirm mode".to_owned()))
            }
            Err(error) => Published::Unknown(error),
        }
    }

    /// Opens the lane of a new product. Many come at once when a shop fills its catalogue: a few at a time, and who waits too
    /// long is opened by its first order.
    pub(super) async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        if self.is_blocked() {
            return Err(blocked());
        }
        let Ok(_permit) = timeout(NEW_LANE_PATIENCE, self.new_lanes.acquire()).await else {
            return Err(QueueError("too many lanes are being opened".to_owned()));
        };
        let lane = self.topology.own_lane(self.topology.lane_of(product_id));
        self.declarer.declare(&lane).await.map_err(|error| match error {
            NotDeclared::Lane(error) | NotDeclared::Broker(error) => error,
        })?;
        let (_connection, channel) = self.declarer.channel().await?;
        let (exchange, payload) = (self.topology.news_name(), wire::encode_product(product_id));
        let options = BasicPublishOptions::default();
        within(async {
            channel.basic_publish(exchange, "".into(), options, &payload, properties(PRODUCT_V1)).await?.await
        })
        .await
        .map(drop)
    }

    /// Whether the broker answers: asked once a second at most, however many want to know.
    pub(super) async fn ping(&self) -> Result<(), QueueError> {
        let mut last = self.last_ping.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < PING_EVERY
        {
            return answer.clone();
        }
        let answer = match timeout(PING_PATIENCE, self.ping_now()).await {
            Ok(answer) => answer,
            Err(_) => Err(silent(PING_PATIENCE)),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ping_now(&self) -> Result<(), QueueError> {
        if self.is_blocked() {
            return Err(blocked());
        }
        let publishing = self.publishing().await?;
        publishing.ping(&self.topology).await
    }

    /// The connection to publish on, or a new one.
    async fn publishing(&self) -> Result<Arc<Publishing>, QueueError> {
        let mut current = self.current.lock().await;
        if let Some(publishing) = current.as_ref().filter(|publishing| publishing.is_usable()) {
            return Ok(publishing.clone());
        }
        *current = None;
        let connection = self.pool.get().await.map_err(failed)?;
        let watching = AbortOnDropHandle::new(tokio::spawn(watch_blocking(
            connection.events_listener(),
            self.is_blocked.clone(),
        )));
        let (orders, pings) = within(async {
            Ok::<_, lapin::Error>((connection.create_channel().await?, connection.create_channel().await?))
        })
        .await?;
        within(orders.confirm_select(ConfirmSelectOptions::default())).await?;
        let publishing =
            Publishing { connection, orders, pings, declared: Mutex::default(), _watching: watching };
        let publishing = Arc::new(publishing);
        *current = Some(publishing.clone());
        Ok(publishing)
    }
}

/// Tells whether the broker blocks the connection. It does not, once the connection is gone.
async fn watch_blocking(events: impl futures_util::Stream<Item = Event>, is_blocked: watch::Sender<bool>) {
    let mut blocking = Blocking { is_blocked, blocks: false };
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%reason, "the broker takes no orders: it is short of memory or disk; they are refused");
                blocking.set(true);
            }
            Event::ConnectionUnblocked => {
                tracing::info!("the broker takes orders again");
                blocking.set(false);
            }
            Event::Error(_) => return,
            _ => {}
        }
    }
}

/// Whether the broker blocks one connection.
struct Blocking {
    is_blocked: watch::Sender<bool>,
    blocks: bool,
}

impl Blocking {
    fn set(&mut self, blocks: bool) {
        self.blocks = blocks;
        self.is_blocked.send_replace(blocks);
    }
}

impl Drop for Blocking {
    /// The connection is gone, and with it what it was blocked by.
    fn drop(&mut self) {
        if self.blocks {
            self.is_blocked.send_replace(false);
        }
    }
}

impl Publishing {
    fn is_usable(&self) -> bool {
        let is_connected = self.connection.status().connected();
        is_connected && self.orders.status().connected() && self.pings.status().connected()
    }

    /// A round trip, not only a look at the socket.
    async fn ping(&self, topology: &Topology) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let (name, kind) = (topology.news_name(), ExchangeKind::Fanout);
        let answer = self.pings.exchange_declare(name, kind, options, FieldTable::default());
        match timeout(PING_PATIENCE, answer).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(silent(PING_PATIENCE)),
        }
    }

    fn declared(&self) -> MutexGuard<'_, HashSet<LaneNumber>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blocked() -> QueueError {
    QueueError("the broker blocks publishers: it is short of memory or disk".to_owned())
}
