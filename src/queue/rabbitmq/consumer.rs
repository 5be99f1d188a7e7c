//! The worker's end: consumes every lane, and publishes verdicts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::try_join_all,
    stream::{self, BoxStream, SelectAll},
};
use lapin::{
    Acker, BasicProperties, Channel, Confirmation, Connection,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::sync::mpsc;

use super::{
    failed, properties,
    topology::{Lane, Topology},
    within,
};
use crate::{
    batch::Event,
    inventory::StockNews,
    order::OrderId,
    product::ProductId,
    queue::{
        Consumer, Delivery, QueueError, Reply,
        message::{self, EVENTS_V1, STOCK_V1, VERDICTS_V1},
    },
};

/// How many messages of one lane are on their way to this worker or in its hands. Enough to fill the next batch
/// while one is decided; few enough that a thousand busy lanes fit into memory.
const PREFETCH_PER_LANE: u16 = 16;
/// A message that outlives the broker's restart, in a durable queue.
const PERSISTENT: u8 = 2;
/// How many lanes are declared and consumed at a time.
const LANES_AT_ONCE: usize = 64;

/// The worker's end.
pub(super) struct RabbitMqConsumer {
    end: Arc<End>,
    /// Lanes that are consumed, or about to be.
    served: HashSet<Lane>,
    arrivals: SelectAll<BoxStream<'static, Arrival>>,
    /// Lanes that are opened beside the work.
    opened: mpsc::UnboundedReceiver<Result<BoxStream<'static, Arrival>, QueueError>>,
    opening: mpsc::UnboundedSender<Result<BoxStream<'static, Arrival>, QueueError>>,
    unacked: HashMap<u64, Acker>,
}

/// Connections and channels. Verdicts leave on another connection than orders arrive on: a broker that is short of
/// memory stops reading from those who publish.
struct End {
    topology: Arc<Topology>,
    worker: String,
    _consuming: Connection,
    orders: Channel,
    _publishing: Connection,
    verdicts: Channel,
    declarations: Channel,
}

enum Arrival {
    Orders(Result<lapin::message::Delivery, lapin::Error>),
    News(Result<lapin::message::Delivery, lapin::Error>),
    /// The broker cancelled a consumer, or the connection is gone.
    End,
}

impl RabbitMqConsumer {
    pub(super) async fn start(topology: Arc<Topology>) -> Result<Self, QueueError> {
        let consuming = topology.connect("worker: orders").await?;
        let publishing = topology.connect("worker: verdicts").await?;
        let orders = within(consuming.create_channel()).await?;
        within(orders.basic_qos(PREFETCH_PER_LANE, BasicQosOptions::default())).await?;
        let verdicts = within(publishing.create_channel()).await?;
        within(verdicts.confirm_select(ConfirmSelectOptions::default())).await?;
        let declarations = within(publishing.create_channel()).await?;
        within(topology.declare_shared(&declarations)).await?;
        let news = within(news(&topology, &consuming)).await?;
        let (opening, opened) = mpsc::unbounded_channel();
        Ok(Self {
            end: Arc::new(End {
                topology,
                worker: OrderId::mint().to_string(),
                _consuming: consuming,
                orders,
                _publishing: publishing,
                verdicts,
                declarations,
            }),
            served: HashSet::new(),
            arrivals: SelectAll::from_iter([news]),
            opened,
            opening,
            unacked: HashMap::new(),
        })
    }

    /// Takes what has arrived; `None` when that was no commands.
    fn receive(&mut self, arrival: Arrival) -> Result<Option<Delivery>, QueueError> {
        match arrival {
            Arrival::Orders(delivery) => Ok(self.accept(delivery.map_err(failed)?)),
            Arrival::News(news) => {
                self.open_beside(&news.map_err(failed)?);
                Ok(None)
            }
            Arrival::End => Err(QueueError("the broker ended a consumer".to_owned())),
        }
    }

    /// Decodes a message. What nobody can decode goes to the dead letters.
    fn accept(&mut self, delivery: lapin::message::Delivery) -> Option<Delivery> {
        let kind = delivery.properties.kind().as_ref().map(|kind| kind.as_str());
        match message::decode_commands(&delivery.data, kind) {
            Ok(commands) => {
                let reply_to = delivery.properties.reply_to().as_ref().map_or("", |name| name.as_str());
                let taken = Delivery { commands, reply_to: reply_to.into(), tag: delivery.delivery_tag };
                self.unacked.insert(taken.tag, delivery.acker);
                Some(taken)
            }
            Err(error) => {
                tracing::error!(%error, lane = delivery.routing_key.as_str(), "a message goes to the dead letters");
                tokio::spawn(
                    async move { delivery.acker.reject(BasicRejectOptions { requeue: false }).await },
                );
                None
            }
        }
    }

    /// Opens the lane of a new product without holding up the others. On its own task: a consumer that is being
    /// started when the caller goes away would be left behind, active and deaf.
    fn open_beside(&mut self, news: &lapin::message::Delivery) {
        let kind = news.properties.kind().as_ref().map(|kind| kind.as_str());
        match message::decode_product(&news.data, kind) {
            Ok(product_id) => {
                let lane = self.end.topology.lane_of(product_id);
                if self.served.insert(lane) {
                    let (end, opening) = (self.end.clone(), self.opening.clone());
                    tokio::spawn(async move { opening.send(end.consume(lane).await) });
                }
            }
            Err(error) => tracing::warn!(%error, "a message about lanes"),
        }
    }
}

impl End {
    /// Starts to consume a lane.
    async fn consume(&self, lane: Lane) -> Result<BoxStream<'static, Arrival>, QueueError> {
        within(self.topology.declare_lane(&self.declarations, lane)).await?;
        let name = self.topology.lane_name(lane);
        let orders = within(self.orders.basic_consume(
            name.clone(),
            name, // the tag: unique on this channel
            BasicConsumeOptions::default(),
            Topology::priority(&self.worker, lane),
        ))
        .await?;
        Ok(orders.map(Arrival::Orders).chain(stream::once(async { Arrival::End })).boxed())
    }
}

impl End {
    /// Publishes `(routing key, payload)` in this order, and waits until the broker has answered for them all. How
    /// many a queue refused.
    async fn publish(
        &self,
        exchange: ShortString,
        properties: BasicProperties,
        messages: impl Iterator<Item = (String, Vec<u8>)> + Send,
    ) -> Result<usize, QueueError> {
        let mut confirms = Vec::new();
        for (key, payload) in messages {
            let options = BasicPublishOptions::default();
            let (exchange, properties) = (exchange.clone(), properties.clone());
            let published = self.verdicts.basic_publish(exchange, key.into(), options, &payload, properties);
            confirms.push(within(published).await?);
        }
        let mut refused = 0;
        for confirm in confirms {
            refused += usize::from(matches!(within(confirm).await?, Confirmation::Nack(_)));
        }
        Ok(refused)
    }
}

/// News of products: a queue that is only this connection's, bound to the fanout exchange.
async fn news(
    topology: &Topology,
    connection: &Connection,
) -> Result<BoxStream<'static, Arrival>, lapin::Error> {
    let channel = connection.create_channel().await?;
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    channel
        .queue_bind(
            name.clone(),
            topology.news_name(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let news = channel.basic_consume(name, "news".into(), options, FieldTable::default()).await?;
    Ok(news.map(Arrival::News).chain(stream::once(async { Arrival::End })).boxed())
}

#[async_trait]
impl Consumer for RabbitMqConsumer {
    async fn serve(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        let lanes: Vec<_> = products
            .iter()
            .map(|product_id| self.end.topology.lane_of(*product_id))
            .filter(|lane| self.served.insert(*lane))
            .collect();
        let end = &self.end;
        let consumed: Vec<_> = stream::iter(lanes)
            .map(|lane| async move { end.consume(lane).await })
            .buffer_unordered(LANES_AT_ONCE)
            .try_collect()
            .await?;
        self.arrivals.extend(consumed);
        Ok(())
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        loop {
            let first = tokio::select! {
                Some(opened) = self.opened.recv() => {
                    self.arrivals.push(opened?);
                    continue;
                }
                arrival = self.arrivals.next() => arrival.unwrap_or(Arrival::End),
            };
            let Some(first) = self.receive(first)? else { continue };
            let mut room = max_commands.saturating_sub(first.commands.len());
            let mut taken = vec![first];
            // All that has arrived, and no waiting for more.
            while room > 0
                && let Some(Some(arrival)) = self.arrivals.next().now_or_never()
            {
                if let Some(delivery) = self.receive(arrival)? {
                    room = room.saturating_sub(delivery.commands.len());
                    taken.push(delivery);
                }
            }
            return Ok(taken);
        }
    }

    async fn reply(&mut self, replies: Vec<Reply>) -> Result<(), QueueError> {
        let messages = replies.into_iter().filter(|reply| !reply.to.is_empty()).map(
            |Reply { to, verdicts, sold_out }| (to.to_string(), message::encode_verdicts(verdicts, sold_out)),
        );
        // Not mandatory: an API that is gone took its queue with it, and nobody waits.
        if self.end.publish("".into(), properties(VERDICTS_V1), messages).await? > 0 {
            // Its queue went while the broker was putting the message into it.
            tracing::debug!("verdicts for an API that is gone");
        }
        Ok(())
    }

    async fn announce(&mut self, news: Vec<StockNews>) -> Result<(), QueueError> {
        let exchange = self.end.topology.stock_name();
        let messages = news.into_iter().map(|news| (String::new(), message::encode_stock(news)));
        if self.end.publish(exchange, properties(STOCK_V1), messages).await? > 0 {
            tracing::debug!("news of stock for an API that is gone");
        }
        Ok(())
    }

    async fn publish(&mut self, events: Vec<Event>) -> Result<(), QueueError> {
        if !self.end.topology.events_are_on() {
            return Ok(());
        }
        let exchange = self.end.topology.events_name();
        let properties = properties(EVENTS_V1).with_delivery_mode(PERSISTENT);
        let messages = message::encode_events(&events).into_iter();
        let refused = self.end.publish(exchange, properties, messages).await?;
        if refused > 0 {
            // A queue that somebody bound to the exchange is full and refuses. Its owner chose to lose what comes then;
            // the shop goes on selling.
            tracing::error!(refused, "a queue bound to the exchange of events refused messages: it is full");
        }
        Ok(())
    }

    async fn ack(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        let ackers: Vec<_> =
            deliveries.iter().filter_map(|delivery| self.unacked.remove(&delivery.tag)).collect();
        // Each by itself: tags of several lanes interleave, and "multiple" would cover what is not done yet. All at
        // once: to wait until one is written before the next would take as long as many lanes have orders.
        let acked =
            within(try_join_all(ackers.iter().map(|acker| acker.ack(BasicAckOptions::default())))).await?;
        if acked.contains(&false) {
            return Err(QueueError("the channel was gone before the ack".to_owned()));
        }
        Ok(())
    }

    async fn put_aside(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        for delivery in deliveries {
            let Some(acker) = self.unacked.remove(&delivery.tag) else { continue };
            if !within(acker.reject(BasicRejectOptions { requeue: false })).await? {
                return Err(QueueError("the channel was gone before the reject".to_owned()));
            }
        }
        Ok(())
    }
}

impl Drop for RabbitMqConsumer {
    /// Closes the channel before the consumers go: a consumer that is cancelled leaves its lane to the next one while
    /// its own messages are still out, and they would come back behind others.
    fn drop(&mut self) {
        let (end, consumers) = (self.end.clone(), std::mem::take(&mut self.arrivals));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = within(end.orders.close(200, "done".into())).await;
                drop(consumers);
            });
        }
    }
}
