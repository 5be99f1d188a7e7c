//! The worker's end: consumes every lane, and publishes verdicts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    FutureExt, StreamExt,
    future::{join_all, maybe_done},
    poll,
    stream::{self, BoxStream, SelectAll},
};
use lapin::{
    Acker, BasicProperties, Channel, Confirmation, Connection, PublisherConfirm,
    options::{
        BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    DATABASE_HEADER,
    declarer::Declarer,
    failed,
    opener::{LaneTroubles, Opened, Opener},
    properties,
    settlement::{Held, Settlement, settled},
    topology::{Lane, Topology},
    within, within_unless_blocked,
};
use crate::{
    domain::{
        command::Command,
        ids::{OrderId, ProductId},
    },
    queue::{
        Address, Completion, Consumer, Delivery, QueueError, Reply,
        rabbitmq::wire::{self, EVENTS_V1, ORDERS_V1, VERDICTS_V1},
    },
    telemetry::Sparse,
};

/// How many messages of one lane are on their way to this worker or in its hands. Enough to fill the next batch
/// while one is decided; few enough that a thousand busy lanes fit into memory.
const PREFETCH_PER_LANE: u16 = 16;
/// A message that outlives the broker's restart, in a durable queue.
const PERSISTENT: u8 = 2;
/// How often the log tells of orders of another database.
const FOREIGN_EVERY: Duration = Duration::from_secs(60);

/// The worker's end.
pub(super) struct RabbitMqConsumer {
    end: Arc<End>,
    /// Lanes that are consumed, or about to be.
    served: HashSet<Lane>,
    arrivals: SelectAll<BoxStream<'static, Arrival>>,
    opener: Opener,
    /// What the opener opened.
    opened: mpsc::UnboundedReceiver<Opened>,
    unacked: HashMap<u64, (Lane, Acker)>,
    settling: Option<JoinHandle<Result<Vec<Held>, QueueError>>>,
    /// Deliveries whose verdicts reached nobody, to be taken again.
    unheard: Vec<Delivery>,
}

/// Connections and channels. Verdicts leave on another connection than orders arrive on: a broker that is short of
/// memory stops reading from those who publish.
pub(super) struct End {
    pub(super) topology: Arc<Topology>,
    pub(super) worker: String,
    _consuming: Connection,
    pub(super) orders: Channel,
    pub(super) publishing: Connection,
    verdicts: Channel,
    foreign: Sparse,
}

pub(super) enum Arrival {
    Orders(Lane, Result<lapin::message::Delivery, lapin::Error>),
    /// The broker cancelled the consumer of this lane, or the connection is gone.
    LaneEnd(Lane),
    News(Result<lapin::message::Delivery, lapin::Error>),
    /// The same for news.
    NewsEnd,
}

impl RabbitMqConsumer {
    pub(super) async fn start(
        topology: Arc<Topology>,
        troubles: Arc<LaneTroubles>,
    ) -> Result<Self, QueueError> {
        let consuming = topology.connect("worker: orders").await?;
        let publishing = topology.connect("worker: verdicts").await?;
        let orders = within(consuming.create_channel()).await?;
        within(orders.basic_qos(PREFETCH_PER_LANE, BasicQosOptions::default())).await?;
        let verdicts = within(publishing.create_channel()).await?;
        within(verdicts.confirm_select(ConfirmSelectOptions::default())).await?;
        let declarer = Declarer::new(topology.clone(), "worker: lanes");
        declarer.channel().await?; // what all lanes share is there
        let news = within(news(&topology, &consuming)).await?;
        let (opening, opened) = mpsc::unbounded_channel();
        let end = Arc::new(End {
            topology,
            worker: OrderId::generate().to_string(),
            _consuming: consuming,
            orders,
            publishing,
            verdicts,
            foreign: Sparse::every(FOREIGN_EVERY),
        });
        Ok(Self {
            opener: Opener::new(end.clone(), declarer, troubles, opening),
            end,
            served: HashSet::new(),
            arrivals: SelectAll::from_iter([news]),
            opened,
            unacked: HashMap::new(),
            settling: None,
            unheard: Vec::new(),
        })
    }

    /// Takes what has arrived; `None` when that was no commands.
    fn receive(&mut self, arrival: Arrival) -> Result<Option<Delivery>, QueueError> {
        match arrival {
            Arrival::Orders(lane, delivery) => Ok(self.accept(lane, delivery.map_err(failed)?)),
            Arrival::LaneEnd(lane) if self.end.orders.status().connected() => {
                // What it had handed out comes back from the broker: nothing of that is acknowledged any more.
                self.unacked.retain(|_, (of, _)| *of != lane);
                self.opener.open_again(lane);
                Ok(None)
            }
            Arrival::News(news) => {
                let news = news.map_err(failed)?;
                let kind = news.properties.kind().as_ref().map(|kind| kind.as_str());
                match wire::decode_product(&news.data, kind) {
                    Ok(product_id) => self.open(&[product_id]),
                    Err(error) => tracing::warn!(%error, "a message about lanes"),
                }
                Ok(None)
            }
            Arrival::LaneEnd(_) | Arrival::NewsEnd => {
                Err(QueueError("the connection for orders has ended".to_owned()))
            }
        }
    }

    /// Decodes a message. What nobody can decode, or what is of another database, goes to the dead letters.
    fn accept(&mut self, lane: Lane, delivery: lapin::message::Delivery) -> Option<Delivery> {
        let kind = delivery.properties.kind().as_ref().map(|kind| kind.as_str());
        let reply_to = delivery.properties.reply_to().as_ref().map_or("", |name| name.as_str());
        let reply_to: Address = reply_to.into();
        match wire::decode_commands(&delivery.data, kind) {
            Ok(commands) if self.end.is_foreign(&delivery.properties) => {
                let end = self.end.clone();
                tokio::spawn(
                    async move { end.refuse_foreign(&lane, commands, &reply_to, delivery.acker).await },
                );
                None
            }
            Ok(commands) => {
                let taken = Delivery { commands, reply_to, tag: delivery.delivery_tag };
                self.unacked.insert(taken.tag, (lane, delivery.acker));
                Some(taken)
            }
            Err(error) => {
                tracing::error!(%error, %lane, "a message goes to the dead letters");
                tokio::spawn(
                    async move { delivery.acker.reject(BasicRejectOptions { requeue: false }).await },
                );
                None
            }
        }
    }

    /// Verdicts that reached nobody: their commands are decided once more, now for nobody, so that rejections go on
    /// record. Who was answered 202 meanwhile asks for them there.
    fn take_back(&mut self, unheard: Vec<Held>) {
        for Held { delivery, lane, acker } in unheard {
            self.unacked.insert(delivery.tag, (lane, acker));
            let commands = delivery.commands.into_iter().map(Command::detached).collect();
            self.unheard.push(Delivery { commands, reply_to: "".into(), ..delivery });
        }
    }

    /// Opens lanes, without holding up those that are open: a thousand new ones take the broker many seconds.
    fn open(&mut self, products: &[ProductId]) {
        let lanes = products.iter().flat_map(|product_id| self.end.topology.lanes_of(*product_id));
        let lanes: Vec<_> = lanes.filter(|lane| self.served.insert(lane.clone())).collect();
        self.opener.open(lanes);
    }
}

impl End {
    /// Whether a message says that its orders are of another database. Earlier releases say nothing.
    fn is_foreign(&self, properties: &BasicProperties) -> bool {
        let headers = properties.headers().as_ref().map(FieldTable::inner);
        let database = headers.and_then(|headers| headers.get(DATABASE_HEADER));
        let own = self.topology.database().to_string();
        database.is_some_and(
            |database| !matches!(database, AMQPValue::LongString(id) if id.as_bytes() == own.as_bytes()),
        )
    }

    /// Decided here, they would be stored in the wrong database.
    async fn refuse_foreign(&self, lane: &Lane, commands: Vec<Command>, reply_to: &str, acker: Acker) {
        if let Some(left_out) = self.foreign.due() {
            tracing::error!(
                %lane,
                left_out,
                "orders of another database are refused and go to the dead letters: two installations share this \
                 QUEUE_PREFIX. Give each its own"
            );
        }
        if !reply_to.is_empty() {
            let refusals = (reply_to.into(), properties(VERDICTS_V1), wire::encode_refusals(&commands));
            if let Err(error) = self.publish("".into(), BasicPublishOptions::default(), [refusals]).await {
                tracing::debug!(%error, "a refusal did not leave");
            }
        }
        let _ = within(acker.reject(BasicRejectOptions { requeue: false })).await; // else it comes back
    }

    /// Publishes `(routing key, properties, payload)` in this order. What comes back is to be asked whether the broker has
    /// them.
    async fn publish(
        &self,
        exchange: ShortString,
        options: BasicPublishOptions,
        messages: impl IntoIterator<Item = (ShortString, BasicProperties, Vec<u8>), IntoIter: Send> + Send,
    ) -> Result<Vec<PublisherConfirm>, QueueError> {
        let mut written = Vec::new();
        for (key, properties, payload) in messages {
            let exchange = exchange.clone();
            let mut publish = Box::pin(maybe_done(async move {
                self.verdicts.basic_publish(exchange, key, options, &payload, properties).await
            }));
            // Its first poll puts it in the connection's line, so they leave in this order; and together, because to
            // wait until one is written before the next would take as long as a batch has products.
            let _ = poll!(publish.as_mut());
            written.push(publish);
        }
        let all = join_all(written.iter_mut().map(|publish| publish.as_mut()));
        within_unless_blocked(self.publishing.status(), all.map(Ok::<_, lapin::Error>)).await?;
        let confirms = written.iter_mut().filter_map(|publish| publish.as_mut().take_output());
        confirms.collect::<Result<_, _>>().map_err(failed)
    }
}

/// A message of events reaches each queue that is bound to any of its keys, once. The first is the one that receivers see;
/// the broker takes the others off (its "sender-selected distribution").
fn routing(keys: Vec<String>) -> (ShortString, BasicProperties) {
    let properties = properties(EVENTS_V1).with_delivery_mode(PERSISTENT);
    let mut keys = keys.into_iter();
    let first = keys.next().unwrap_or_default().into();
    let others: Vec<_> = keys.map(|key| AMQPValue::LongString(key.into())).collect();
    if others.is_empty() {
        return (first, properties);
    }
    let mut headers = FieldTable::default();
    headers.insert("BCC".into(), AMQPValue::FieldArray(others.into()));
    (first, properties.with_headers(headers))
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
    Ok(news.map(Arrival::News).chain(stream::once(async { Arrival::NewsEnd })).boxed())
}

#[async_trait]
impl Consumer for RabbitMqConsumer {
    async fn serve(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        self.open(products);
        Ok(())
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        loop {
            if !self.unheard.is_empty() {
                return Ok(std::mem::take(&mut self.unheard));
            }
            let first = tokio::select! {
                settled = settled(&mut self.settling) => {
                    self.take_back(settled?);
                    continue;
                }
                Some(opened) = self.opened.recv() => {
                    self.arrivals.push(opened?);
                    continue;
                }
                arrival = self.arrivals.next() => arrival.unwrap_or(Arrival::NewsEnd),
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

    /// All is said at once, in its order: it leaves on one channel, and the broker keeps the order of a channel. Only one
    /// batch waits for the broker's answers while the next is decided.
    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError> {
        let Completion { replies, events } = completion;
        let (end, topology) = (&self.end, &self.end.topology);
        let replies =
            replies.into_iter().filter(|reply| !reply.to.is_empty()).map(|Reply { to, verdicts }| {
                (to.as_ref().into(), properties(VERDICTS_V1), wire::encode_verdicts(verdicts))
            });
        // Comes back when the API, or the connection on which it listens, is gone.
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let to_apis = end.publish("".into(), mandatory, replies).await?;
        let events = if topology.events_are_on() { wire::encode_events(&events) } else { Vec::new() };
        let events = events.into_iter().map(|(keys, payload)| {
            let (key, properties) = routing(keys);
            (key, properties, payload)
        });
        let to_services = end.publish(topology.events_name(), BasicPublishOptions::default(), events).await?;
        self.finish().await?;
        let held = |delivery: Delivery| {
            let (lane, acker) = self.unacked.remove(&delivery.tag)?;
            Some(Held { delivery, lane, acker })
        };
        let held = deliveries.into_iter().filter_map(held).collect();
        let settlement = Settlement { end: self.end.clone(), to_apis, to_services, held };
        self.settling = Some(tokio::spawn(settlement.finish()));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), QueueError> {
        if self.settling.is_some() {
            let unheard = settled(&mut self.settling).await?;
            self.take_back(unheard);
        }
        Ok(())
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        for delivery in deliveries {
            let Some((_, acker)) = self.unacked.remove(&delivery.tag) else { continue };
            if !within(acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() })).await? {
                return Err(QueueError("the channel was gone before the nack".to_owned()));
            }
        }
        Ok(())
    }

    async fn dead_letter(&mut self, commands: Vec<Command>) -> Result<(), QueueError> {
        let properties = properties(ORDERS_V1).with_delivery_mode(PERSISTENT);
        let messages = commands.into_iter().map(|command| {
            let payload = wire::encode_commands(&[command]);
            (self.end.topology.dead_name(), properties.clone(), payload)
        });
        let confirms =
            self.end.publish("".into(), BasicPublishOptions::default(), messages.collect::<Vec<_>>()).await?;
        for confirm in confirms {
            let confirmed = within_unless_blocked(self.end.publishing.status(), confirm).await?;
            if !matches!(confirmed, Confirmation::Ack(_)) {
                return Err(QueueError("the broker did not take a dead letter".to_owned()));
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
