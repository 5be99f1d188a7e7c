//! Publishes one message to a lane, and finds out what became of it ([`Published`]). The broker's publisher confirm says
//! that the message is stored; a mandatory message that finds no queue is returned. [`super::lane_publisher`] acts on that.

use std::{sync::Arc, time::Duration};

use deadpool_lapin::Pool;
use lapin::{
    Channel, Confirmation,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    connection::with_timeout,
    declarer::{DeclareError, Declarer},
    publish_connection::{PublishConnections, blocked},
    topology::Topology,
    traffic::{Message, PublishOutcome},
    wire::{self, DATABASE_HEADER, ORDERS_V1, PRODUCT_V1, properties},
};
use crate::{
    domain::{ids::ProductId, lane_set::LaneNumber},
    queue::{Address, QueueError},
};

/// How many lanes of new products are opened at a time, and how long one more waits for its turn.
const MAX_LANES_OPENING: usize = 4;
const OPEN_LANE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many messages are published [isolated](Publisher::publish_isolated) at a time.
const MAX_ISOLATED: usize = 4;

/// Publishes to lanes.
pub(super) struct Publisher {
    topology: Arc<Topology>,
    connections: PublishConnections,
    declarer: Declarer,
    lanes_opening: Semaphore,
    isolated: Semaphore,
}

/// What is known of a publish.
pub(super) enum Published {
    /// The broker has it.
    Confirmed,
    /// The lane is full, or its queue does not work.
    Nacked,
    /// A message found no queue: somebody has deleted the lane. Possibly it was another message than this one.
    Returned(Box<BasicReturnMessage>),
    /// It was not sent, because of the lane.
    NoLane(QueueError),
    /// It was not sent.
    NotSent(QueueError),
    /// It was sent, and there is no confirm: nobody knows whether the broker has it.
    Unknown(QueueError),
}

impl Published {
    fn outcome(&self) -> PublishOutcome {
        match self {
            Self::Confirmed => PublishOutcome::Confirmed,
            Self::Nacked => PublishOutcome::Refused,
            Self::Returned(_) => PublishOutcome::Returned,
            Self::NoLane(_) | Self::NotSent(_) => PublishOutcome::NotSent,
            Self::Unknown(_) => PublishOutcome::Unknown,
        }
    }
}

impl Publisher {
    pub(super) fn new(topology: Arc<Topology>, pool: Pool) -> Self {
        Self {
            connections: PublishConnections::new(topology.clone(), pool),
            declarer: Declarer::new(topology.clone(), "api: lanes"),
            topology,
            lanes_opening: Semaphore::new(MAX_LANES_OPENING),
            isolated: Semaphore::new(MAX_ISOLATED),
        }
    }

    /// Whether the broker blocks publishers now.
    pub(super) fn is_blocked(&self) -> bool {
        self.connections.is_blocked()
    }

    /// Changes when the broker begins and ends to block.
    pub(super) fn blocking(&self) -> watch::Receiver<bool> {
        self.connections.blocking()
    }

    /// Whether the broker answers.
    pub(super) async fn ping(&self) -> Result<(), QueueError> {
        self.connections.ping().await
    }

    /// Publishes commands to a lane, which is declared before if it is not known yet.
    pub(super) async fn publish(&self, lane: LaneNumber, payload: &[u8], reply_to: &Address) -> Published {
        let published = self.publish_shared(lane, payload, reply_to).await;
        self.topology.broker().traffic().published(Message::Commands, published.outcome());
        published
    }

    async fn publish_shared(&self, lane: LaneNumber, payload: &[u8], reply_to: &Address) -> Published {
        if self.is_blocked() {
            return Published::NotSent(blocked());
        }
        let connection = match self.connections.get().await {
            Ok(connection) => connection,
            Err(error) => return Published::NotSent(error),
        };
        if !connection.declared().contains(&lane) {
            match self.declarer.declare(&self.topology.lane(lane)).await {
                Ok(()) => drop(connection.declared().insert(lane)),
                Err(DeclareError::Lane(error)) => return Published::NoLane(error),
                Err(DeclareError::Broker(error)) => return Published::NotSent(error),
            }
        }
        let mut blocking = self.blocking();
        let published = tokio::select! {
            published = self.publish_on(&connection.orders, lane, payload, reply_to) => published,
            _ = blocking.wait_for(|is_blocked| *is_blocked) => Published::Unknown(blocked()),
        };
        match &published {
            Published::Returned(_) => connection.declared().clear(),
            Published::Unknown(_) => self.connections.replace_if_silent(&connection).await,
            _ => {}
        }
        published
    }

    /// The same for a lane that did not answer, on a separate connection: to wait for the answer of one queue would hold up
    /// a channel that others use.
    pub(super) async fn publish_isolated(
        &self,
        lane: LaneNumber,
        payload: &[u8],
        reply_to: &Address,
    ) -> Published {
        let _permit = self.isolated.acquire().await;
        let mut blocking = self.blocking();
        let _ = blocking.wait_for(|is_blocked| !*is_blocked).await;
        let opened = async {
            let connection = self.topology.broker().connect("api: a lane that did not answer").await?;
            let channel = with_timeout(connection.create_channel()).await?;
            with_timeout(self.topology.declare_lane(&channel, &self.topology.lane(lane))).await?;
            with_timeout(channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok::<_, QueueError>((connection, channel))
        };
        let published = match opened.await {
            Ok((_connection, channel)) => self.publish_on(&channel, lane, payload, reply_to).await,
            Err(error) => Published::NotSent(error),
        };
        self.topology.broker().traffic().published(Message::Commands, published.outcome());
        published
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
        let name = self.topology.lane(lane).name();
        let confirmed = with_timeout(async {
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

    /// Declares the lane of a new product, and notifies the workers: also of a lane that cannot be declared, so that they try it
    /// until they can. Many products come at once when a shop fills its catalogue: a few lanes are opened at a time, and a
    /// product that waits too long is opened by its first order.
    pub(super) async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        if self.is_blocked() {
            return Err(blocked());
        }
        let Ok(_permit) = timeout(OPEN_LANE_TIMEOUT, self.lanes_opening.acquire()).await else {
            return Err(QueueError("too many lanes are being opened".to_owned()));
        };
        let lane = self.topology.lane(self.topology.lane_of(product_id));
        let declared = match self.declarer.declare(&lane).await {
            Ok(()) => Ok(()),
            Err(DeclareError::Lane(error)) => Err(error),
            Err(DeclareError::Broker(error)) => return Err(error),
        };
        let (_connection, channel) = self.declarer.channel().await?;
        let (exchange, payload) = (self.topology.new_products_name(), wire::encode_product(product_id));
        let options = BasicPublishOptions::default();
        with_timeout(async {
            channel.basic_publish(exchange, "".into(), options, &payload, properties(PRODUCT_V1)).await?.await
        })
        .await?;
        declared
    }
}
