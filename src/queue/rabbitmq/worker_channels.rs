//! A worker's connections: commands arrive on one, verdicts and events leave on the other, because a broker that is short
//! of memory stops reading from connections that publish. Everything that arrives is an [`Arrival`], for
//! [`super::consumer`].

use std::sync::Arc;
use uuid::Uuid;

use futures_util::{
    FutureExt, StreamExt,
    future::{join_all, maybe_done},
    poll,
    stream::{self, BoxStream},
};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionStatus, PublisherConfirm,
    options::{
        BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};

use super::{
    connection::{failed, with_timeout, with_timeout_unless_blocked},
    topology::{Lane, Topology},
};
use crate::queue::QueueError;

/// How many messages of one lane are on their way to this worker or unsettled. Enough to fill the next batch while one is
/// decided; few enough that a thousand busy lanes fit into memory.
const PREFETCH_PER_LANE: u16 = 16;

pub(super) struct WorkerChannels {
    pub(super) topology: Arc<Topology>,
    /// Ranks this worker's consumers.
    worker_id: String,
    consuming: Connection,
    orders: Channel,
    publishing: Connection,
    /// In confirm mode.
    completions: Channel,
}

/// Something that the broker sent to a worker.
pub(super) enum Arrival {
    Commands(Lane, Result<lapin::message::Delivery, lapin::Error>),
    /// The broker cancelled the consumer of this lane, or the connection is gone.
    LaneEnd(Lane),
    /// A notification of a new product.
    NewProduct(Result<lapin::message::Delivery, lapin::Error>),
    /// There are no more notifications: the connection is gone.
    NewProductsEnd,
}

/// A message to publish: routing key, properties, payload.
pub(super) type Message = (ShortString, BasicProperties, Vec<u8>);

impl WorkerChannels {
    pub(super) async fn open(topology: Arc<Topology>) -> Result<Self, QueueError> {
        let consuming = topology.broker().connect("worker: orders").await?;
        let publishing = topology.broker().connect("worker: verdicts").await?;
        let orders = with_timeout(consuming.create_channel()).await?;
        with_timeout(orders.basic_qos(PREFETCH_PER_LANE, BasicQosOptions::default())).await?;
        let completions = with_timeout(publishing.create_channel()).await?;
        with_timeout(completions.confirm_select(ConfirmSelectOptions::default())).await?;
        let worker_id = Uuid::now_v7().to_string();
        Ok(Self { topology, worker_id, consuming, orders, publishing, completions })
    }

    /// What arrives in a lane.
    pub(super) async fn consume(&self, lane: &Lane) -> Result<BoxStream<'static, Arrival>, QueueError> {
        let (name, arguments) = (lane.name(), self.topology.consumer_arguments(&self.worker_id, lane));
        // The consumer tag, the lane's name, is unique on this channel.
        let consuming =
            self.orders.basic_consume(name.clone(), name, BasicConsumeOptions::default(), arguments);
        let deliveries = with_timeout(consuming).await?;
        let (of, at_end) = (lane.clone(), lane.clone());
        let arrivals = deliveries.map(move |delivery| Arrival::Commands(of.clone(), delivery));
        Ok(arrivals.chain(stream::once(async { Arrival::LaneEnd(at_end) })).boxed())
    }

    /// Notifications of new products, in an exclusive queue that is bound to the fanout exchange.
    pub(super) async fn new_products(&self) -> Result<BoxStream<'static, Arrival>, QueueError> {
        let consumer = with_timeout(async {
            let channel = self.consuming.create_channel().await?;
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
            let (name, exchange) = (queue.name().clone(), self.topology.new_products_name());
            let options = QueueBindOptions::default();
            channel.queue_bind(name.clone(), exchange, "".into(), options, FieldTable::default()).await?;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            channel.basic_consume(name, "new products".into(), options, FieldTable::default()).await
        });
        let arrivals = consumer.await?.map(Arrival::NewProduct);
        Ok(arrivals.chain(stream::once(async { Arrival::NewProductsEnd })).boxed())
    }

    /// Whether commands can still arrive.
    pub(super) fn is_consuming(&self) -> bool {
        self.orders.status().connected()
    }

    /// Ends all consumers. Their unacknowledged messages go back to the front of their lanes first.
    pub(super) async fn close(&self) {
        let _ = with_timeout(self.orders.close(200, "done".into())).await;
    }

    /// The state of the connection that [`WorkerChannels::publish`] uses.
    pub(super) fn publish_status(&self) -> &ConnectionStatus {
        self.publishing.status()
    }

    /// Publishes messages in this order: all leave on one channel, and the broker keeps the order of a channel. Returns the
    /// confirms to wait for.
    pub(super) async fn publish(
        &self,
        exchange: ShortString,
        options: BasicPublishOptions,
        messages: impl IntoIterator<Item = Message, IntoIter: Send> + Send,
    ) -> Result<Vec<PublisherConfirm>, QueueError> {
        let mut written = Vec::new();
        for (key, properties, payload) in messages {
            let exchange = exchange.clone();
            let mut publish = Box::pin(maybe_done(async move {
                self.completions.basic_publish(exchange, key, options, &payload, properties).await
            }));
            // The first poll queues the message in the connection, so that messages leave in this order. They leave together:
            // to wait until one is written before the next would take as long as a batch has products.
            let _ = poll!(publish.as_mut());
            written.push(publish);
        }
        let all = join_all(written.iter_mut().map(|publish| publish.as_mut()));
        with_timeout_unless_blocked(self.publish_status(), all.map(Ok::<_, lapin::Error>)).await?;
        let confirms = written.iter_mut().filter_map(|publish| publish.as_mut().take_output());
        confirms.collect::<Result<_, _>>().map_err(failed)
    }
}
