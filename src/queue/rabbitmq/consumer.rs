//! The worker's end of the queue: takes what has arrived in its lanes, and settles what is decided. Lanes are opened next
//! to that ([`super::opener`]); one batch is settled ([`super::settlement`]) while the next one is decided.

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    mem,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    FutureExt, StreamExt,
    stream::{BoxStream, SelectAll},
};
use lapin::{
    Acker, BasicProperties, Confirmation,
    options::{BasicNackOptions, BasicPublishOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    connection::{failed, with_timeout, with_timeout_unless_blocked},
    declarer::Declarer,
    opener::{LaneFailures, Opened, Opener},
    retirement::{Found, Retirement},
    settlement::{PERSISTENT, Settlement, Unsettled},
    topology::{Lane, Topology},
    traffic::{Message, PublishOutcome, Rejected},
    wire::{self, DATABASE_HEADER, EMPTY_V1, ORDERS_V1, VERDICTS_V1, properties},
    worker_channels::{Arrival, WorkerChannels},
};
use crate::{
    domain::{command::Command, ids::ProductId},
    queue::{Address, Completion, Consumer, Delivery, QueueError},
    telemetry::LogLimiter,
};

/// How often orders of another database are logged.
const FOREIGN_EVERY: Duration = Duration::from_secs(60);

pub(super) struct RabbitMqConsumer {
    channels: Arc<WorkerChannels>,
    /// Lanes that are consumed, or about to be.
    served: HashSet<Lane>,
    arrivals: SelectAll<BoxStream<'static, Arrival>>,
    opener: Opener,
    retirement: Retirement,
    /// Lanes that the opener opened.
    opened: mpsc::UnboundedReceiver<Opened>,
    /// Unsettled deliveries, by tag.
    unsettled: HashMap<u64, (Lane, Acker)>,
    /// The batch that is being settled. Its result is the orphaned deliveries.
    settling: Option<JoinHandle<Result<Vec<Unsettled>, QueueError>>>,
    /// Deliveries whose API is gone, to be taken again.
    orphaned: Vec<Delivery>,
    foreign: LogLimiter,
}

impl RabbitMqConsumer {
    pub(super) async fn start(
        topology: Arc<Topology>,
        failures: Arc<LaneFailures>,
    ) -> Result<Self, QueueError> {
        let channels = Arc::new(WorkerChannels::open(topology.clone()).await?);
        let retirement = Retirement::new(topology.clone());
        let declarer = Declarer::new(topology, "worker: lanes");
        declarer.channel().await?; // declares what all lanes share
        let new_products = channels.new_products().await?;
        let (opening, opened) = mpsc::unbounded_channel();
        Ok(Self {
            opener: Opener::new(channels.clone(), declarer, failures, opening),
            retirement,
            channels,
            served: HashSet::new(),
            arrivals: SelectAll::from_iter([new_products]),
            opened,
            unsettled: HashMap::new(),
            settling: None,
            orphaned: Vec::new(),
            foreign: LogLimiter::every(FOREIGN_EVERY),
        })
    }

    /// Opens the lanes of products, without holding up those that are open: a thousand new ones take the broker many
    /// seconds.
    fn open(&mut self, products: &[ProductId]) {
        let lanes = products.iter().flat_map(|product_id| self.channels.topology.lanes_of(*product_id));
        let lanes: Vec<_> = lanes.filter(|lane| self.served.insert(lane.clone())).collect();
        self.opener.open(lanes);
    }

    /// A lane of an archived product was looked at.
    fn retire_found(&mut self, found: Found) {
        match found {
            Found::Lane(lane, then) if self.retirement.may_exist(&lane, then) => {
                if self.served.insert(lane.clone()) {
                    self.opener.open([lane]);
                }
            }
            Found::Lane(..) => {}
            Found::Nothing(lane) => drop(self.served.remove(&lane)),
        }
    }

    /// A marker has come through a lane: see [`super::retirement`].
    fn receive_marker(&self, lane: Lane, acker: Acker) {
        let is_settled = self.settling.is_none() && self.unsettled.values().all(|(of, _)| *of != lane);
        self.retirement.receive_marker(lane, acker, is_settled);
    }

    /// Handles an arrival; `None` if it brings no commands.
    fn receive(&mut self, arrival: Arrival) -> Result<Option<Delivery>, QueueError> {
        match arrival {
            Arrival::Commands(lane, delivery) => {
                let delivery = delivery.map_err(failed)?;
                if wire::kind_of(&delivery.properties) == Some(EMPTY_V1) {
                    self.receive_marker(lane, delivery.acker);
                    return Ok(None);
                }
                Ok(self.accept(lane, delivery))
            }
            Arrival::LaneEnd(lane) if self.channels.is_consuming() => {
                // The broker redelivers what it delivered before: those deliveries cannot be acknowledged any more.
                self.unsettled.retain(|_, (of, _)| *of != lane);
                if self.retirement.is_retiring(&lane) {
                    self.served.remove(&lane);
                    self.retirement.end(lane);
                } else {
                    self.opener.open_again(lane);
                }
                Ok(None)
            }
            Arrival::NewProduct(notification) => {
                let notification = notification.map_err(failed)?;
                match wire::decode_product(&notification.data, wire::kind_of(&notification.properties)) {
                    Ok(product_id) => {
                        let lanes = self.channels.topology.lanes_of(product_id);
                        lanes.iter().for_each(|lane| self.retirement.forget(lane));
                        self.open(&[product_id]);
                    }
                    Err(error) => tracing::warn!(%error, "a notification of a new product"),
                }
                Ok(None)
            }
            Arrival::LaneEnd(_) | Arrival::NewProductsEnd => {
                Err(QueueError("the connection for orders has ended".to_owned()))
            }
        }
    }

    /// Decodes a message. One that cannot be decoded, or is of another database, goes to the dead letters.
    fn accept(&mut self, lane: Lane, delivery: lapin::message::Delivery) -> Option<Delivery> {
        let reply_to = delivery.properties.reply_to().as_ref().map_or("", |name| name.as_str());
        let reply_to: Address = reply_to.into();
        let traffic = self.channels.topology.broker().traffic();
        match wire::decode_commands(&delivery.data, wire::kind_of(&delivery.properties)) {
            Ok(commands) if self.is_foreign(&delivery.properties) => {
                traffic.rejected(Rejected::Foreign);
                self.report_foreign(&lane);
                tokio::spawn(refuse_foreign(self.channels.clone(), commands, reply_to, delivery.acker));
                None
            }
            Ok(commands) => {
                traffic.delivered(delivery.redelivered);
                let name = lane.name().as_str().into();
                let taken = Delivery { commands, lane: name, reply_to, tag: delivery.delivery_tag };
                self.unsettled.insert(taken.tag, (lane, delivery.acker));
                Some(taken)
            }
            Err(error) => {
                traffic.rejected(Rejected::Undecodable);
                tracing::error!(%error, %lane, "a message goes to the dead letters");
                tokio::spawn(
                    async move { delivery.acker.reject(BasicRejectOptions { requeue: false }).await },
                );
                None
            }
        }
    }

    /// Whether a message says that its commands are of another database. Earlier releases say nothing.
    fn is_foreign(&self, properties: &BasicProperties) -> bool {
        let headers = properties.headers().as_ref().map(FieldTable::inner);
        let database = headers.and_then(|headers| headers.get(DATABASE_HEADER));
        let own = self.channels.topology.database().to_string();
        database.is_some_and(
            |database| !matches!(database, AMQPValue::LongString(id) if id.as_bytes() == own.as_bytes()),
        )
    }

    fn report_foreign(&self, lane: &Lane) {
        if let Some(suppressed) = self.foreign.due() {
            tracing::error!(
                %lane,
                suppressed,
                "orders of another database are refused and go to the dead letters: two installations share this \
                 QUEUE_PREFIX. Give each its own"
            );
        }
    }

    /// The commands of an orphaned delivery are decided again, detached, so that rejections are stored: clients with the
    /// answer 202 look for them there.
    fn retake(&mut self, orphaned: Vec<Unsettled>) {
        for Unsettled { delivery, lane, acker } in orphaned {
            self.unsettled.insert(delivery.tag, (lane, acker));
            let commands = delivery.commands.into_iter().map(Command::detached).collect();
            self.orphaned.push(Delivery { commands, reply_to: "".into(), ..delivery });
        }
    }
}

/// Decided here, commands of another database would be stored in the wrong one.
async fn refuse_foreign(
    channels: Arc<WorkerChannels>,
    commands: Vec<Command>,
    reply_to: Address,
    acker: Acker,
) {
    if !reply_to.is_empty() {
        let refusals = (reply_to.as_ref().into(), properties(VERDICTS_V1), wire::encode_refusals(&commands));
        if let Err(error) = channels.publish("".into(), BasicPublishOptions::default(), [refusals]).await {
            tracing::debug!(%error, "a refusal was not sent");
        }
    }
    let _ = with_timeout(acker.reject(BasicRejectOptions { requeue: false })).await; // if it fails, the broker redelivers
}

#[async_trait]
impl Consumer for RabbitMqConsumer {
    async fn serve(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        self.open(products);
        Ok(())
    }

    async fn retire(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        let topology = &self.channels.topology;
        let retiring = products.iter().flat_map(|product_id| topology.lanes_alone_of(*product_id)).collect();
        let shared = topology.archived_lanes().into_iter();
        let shared: Vec<_> = shared.filter(|lane| self.served.insert(lane.clone())).collect();
        self.opener.open(shared);
        self.retirement.look_at(retiring);
        Ok(())
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        loop {
            if !self.orphaned.is_empty() {
                return Ok(mem::take(&mut self.orphaned));
            }
            let first = tokio::select! {
                orphaned = settled(&mut self.settling) => {
                    self.retake(orphaned?);
                    continue;
                }
                Some(opened) = self.opened.recv() => {
                    self.arrivals.push(opened?);
                    continue;
                }
                Some(found) = self.retirement.found() => {
                    self.retire_found(found);
                    continue;
                }
                arrival = self.arrivals.next() => arrival.unwrap_or(Arrival::NewProductsEnd),
            };
            let Some(first) = self.receive(first)? else { continue };
            let mut room = max_commands.saturating_sub(first.commands.len());
            let mut taken = vec![first];
            // All that has arrived, without waiting for more.
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

    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError> {
        let settlement = Settlement::publish(self.channels.clone(), completion).await?;
        self.drain().await?; // at most one batch waits for confirms
        let unsettled = |delivery: Delivery| {
            let (lane, acker) = self.unsettled.remove(&delivery.tag)?;
            Some(Unsettled { delivery, lane, acker })
        };
        let unsettled = deliveries.into_iter().filter_map(unsettled).collect();
        self.settling = Some(tokio::spawn(settlement.acknowledge(unsettled)));
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), QueueError> {
        if self.settling.is_some() {
            let orphaned = settled(&mut self.settling).await?;
            self.retake(orphaned);
        }
        Ok(())
    }

    async fn requeue(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        for delivery in deliveries {
            let Some((_, acker)) = self.unsettled.remove(&delivery.tag) else { continue };
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            if !with_timeout(acker.nack(options)).await? {
                return Err(QueueError("the channel was gone before the nack".to_owned()));
            }
        }
        Ok(())
    }

    async fn dead_letter(&mut self, commands: Vec<Command>) -> Result<(), QueueError> {
        let properties = properties(ORDERS_V1).with_delivery_mode(PERSISTENT);
        let message = |command| {
            (self.channels.topology.dead_name(), properties.clone(), wire::encode_commands(&[command]))
        };
        let messages: Vec<_> = commands.into_iter().map(message).collect();
        let confirms = self.channels.publish("".into(), BasicPublishOptions::default(), messages).await?;
        let traffic = self.channels.topology.broker().traffic();
        for confirm in confirms {
            let confirmed = with_timeout_unless_blocked(self.channels.publish_status(), confirm).await?;
            traffic.published(Message::DeadLetters, PublishOutcome::of(&confirmed));
            if !matches!(confirmed, Confirmation::Ack(_)) {
                return Err(QueueError("the broker did not take a dead letter".to_owned()));
            }
        }
        Ok(())
    }
}

/// The orphaned deliveries of the batch that is being settled; waits for ever if there is none. Cancel safe.
async fn settled(
    settling: &mut Option<JoinHandle<Result<Vec<Unsettled>, QueueError>>>,
) -> Result<Vec<Unsettled>, QueueError> {
    let Some(handle) = settling else { return pending().await };
    let result = handle.await.map_err(failed);
    *settling = None;
    result?
}

impl Drop for RabbitMqConsumer {
    /// Closes the channel before the consumers are dropped: a cancelled consumer leaves its lane to the next one while its
    /// own messages are still unsettled, and they would come back behind others.
    fn drop(&mut self) {
        let (channels, consumers) = (self.channels.clone(), mem::take(&mut self.arrivals));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                channels.close().await;
                drop(consumers);
            });
        }
    }
}
