//! The queues and exchanges, each option with its reason. Every name begins with `QUEUE_PREFIX`.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use uuid::Uuid;

use super::connection::Broker;
use crate::{
    domain::{
        ids::ProductId,
        lane_set::{LaneNumber, LaneSet},
    },
    queue::QueueError,
};

/// How RabbitMQ is used.
#[derive(Clone, Debug)]
pub struct RabbitMqSettings {
    /// `amqp://user:password@host/vhost`
    pub url: String,
    /// The lanes of this process. Workers serve those of [other processes](super::RabbitMqQueue::serve_lane_sets) too.
    pub lanes: LaneSet,
    /// The installation id of the database. Workers of another database refuse its orders.
    pub database: Uuid,
    /// How many messages (each of one or more orders) may wait in one lane. All processes must agree on it: the
    /// broker refuses a lane that is declared differently.
    pub lane_capacity: u32,
    /// Whether workers publish events.
    pub events: bool,
    /// How long a worker may hold a message before the broker gives it, and the lane, to another one.
    pub consumer_timeout: Duration,
}

impl RabbitMqSettings {
    /// [`RabbitMqSettings::lane_capacity`] in production.
    pub const LANE_CAPACITY: u32 = 10_000;
    /// [`RabbitMqSettings::consumer_timeout`] in production: far more than a worker needs for all that it has prefetched.
    pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(60);
}

/// A lane of one of the sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    set: Arc<LaneSet>,
    number: LaneNumber,
}

impl Lane {
    /// The name of its queue.
    pub(super) fn name(&self) -> ShortString {
        self.set.name_of(self.number).into()
    }

    /// The queue of dead letters: messages that cannot be decoded or decided, or that exhausted their deliveries or their
    /// time.
    fn dead_name(&self) -> ShortString {
        format!("{}{DEAD}", self.set.prefix).into()
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().as_str())
    }
}

const DEAD: &str = "orders.dead";

/// How long a command waits in its lane before it is moved to the dead letters.
pub(super) const MAX_AGE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Topology {
    settings: RabbitMqSettings,
    broker: Broker,
    /// The lanes that this process submits to.
    own: Arc<LaneSet>,
    /// Lanes that other processes of the same database used lately.
    others: RwLock<Vec<Arc<LaneSet>>>,
}

impl Topology {
    pub(super) fn new(settings: RabbitMqSettings) -> Result<Self, QueueError> {
        let (broker, own) = (Broker::new(&settings.url)?, Arc::new(settings.lanes.clone()));
        Ok(Self { settings, broker, own, others: RwLock::default() })
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The lane to which commands of this product are published.
    pub(super) fn lane_of(&self, product_id: ProductId) -> LaneNumber {
        self.own.number_of(product_id)
    }

    /// A lane of this process's set.
    pub(super) fn lane(&self, number: LaneNumber) -> Lane {
        Lane { set: self.own.clone(), number }
    }

    /// All lanes in which commands of this product may wait.
    pub(super) fn lanes_of(&self, product_id: ProductId) -> Vec<Lane> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let sets = [&self.own].into_iter().chain(others.iter());
        sets.map(|set| Lane { set: set.clone(), number: set.number_of(product_id) }).collect()
    }

    /// The product that has this lane of the process's set alone.
    pub(super) fn product_of(&self, number: LaneNumber) -> Option<ProductId> {
        self.own.product_of(number)
    }

    /// The lane of the process's set that archived products share, if it has one.
    pub(super) fn archived_lane(&self) -> Option<LaneNumber> {
        self.own.archived()
    }

    /// The lanes of all sets that archived products share.
    pub(super) fn archived_lanes(&self) -> Vec<Lane> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let sets = [&self.own].into_iter().chain(others.iter());
        sets.filter_map(|set| Some(Lane { set: set.clone(), number: set.archived()? })).collect()
    }

    /// The lanes that this product has alone: no other one loses anything when they are removed.
    pub(super) fn lanes_alone_of(&self, product_id: ProductId) -> Vec<Lane> {
        let mut lanes = self.lanes_of(product_id);
        lanes.retain(|lane| lane.set.product_of(lane.number).is_some());
        lanes
    }

    /// From now on workers serve these sets as well. Replaces the sets of an earlier call.
    pub(super) fn serve_lane_sets(&self, sets: Vec<LaneSet>) {
        let others = sets.into_iter().filter(|set| *set != *self.own).map(Arc::new).collect();
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = others;
    }

    pub(super) fn database(&self) -> Uuid {
        self.settings.database
    }

    /// The dead letters of this process's own lanes.
    pub(super) fn dead_name(&self) -> ShortString {
        self.name(DEAD)
    }

    /// The fanout exchange that notifies workers of new products.
    pub(super) fn new_products_name(&self) -> ShortString {
        self.name("lanes")
    }

    /// The topic exchange of events, for the shop's other services.
    pub(super) fn events_name(&self) -> ShortString {
        self.name("antre.events")
    }

    /// The fanout exchange of what processes tell each other, for operators.
    pub(super) fn reports_name(&self) -> ShortString {
        self.name("antre.reports")
    }

    /// The queue of one listener.
    pub(super) fn report_queue_name(&self) -> ShortString {
        self.name(&format!("reports.{}", Uuid::now_v7().simple()))
    }

    /// Declares the queue of one listener, and binds it.
    pub(super) async fn declare_report_queue(
        &self,
        channel: &Channel,
        name: ShortString,
    ) -> Result<(), lapin::Error> {
        let arguments = table([
            // A listener that is slow loses the oldest: they are of no use any more.
            ("x-max-length", AMQPValue::LongLongInt(1_000)),
            ("x-overflow", text("drop-head")),
            ("x-message-ttl", AMQPValue::LongLongInt(10_000)),
        ]);
        // It is deleted with its connection.
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.clone(), options, arguments).await?;
        let binding = QueueBindOptions::default();
        channel.queue_bind(name, self.reports_name(), "".into(), binding, FieldTable::default()).await
    }

    /// Whether workers publish events.
    pub(super) fn events_are_on(&self) -> bool {
        self.settings.events
    }

    /// The reply queue of one connection of one API.
    pub(super) fn replies_name(&self, instance: &str, incarnation: u32) -> ShortString {
        self.name(&format!("replies.{instance}.{incarnation}"))
    }

    /// How many commands an API gathers for one lane while a publish is under way.
    pub(super) fn lane_capacity(&self) -> usize {
        self.settings.lane_capacity as usize
    }

    fn name(&self, name: &str) -> ShortString {
        format!("{}{name}", self.own.prefix).into()
    }

    /// Declares what all lanes share. Must be done before the first lane is declared.
    pub(super) async fn declare_shared(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let exchanges = [
            (self.new_products_name(), ExchangeKind::Fanout),
            (self.events_name(), ExchangeKind::Topic),
            (self.reports_name(), ExchangeKind::Fanout),
        ];
        for (name, kind) in exchanges {
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(name, kind, options, FieldTable::default()).await?;
        }
        declare_dead(channel, self.name(DEAD)).await
    }

    /// Declares a lane. To declare one that exists changes nothing.
    pub(super) async fn declare_lane(&self, channel: &Channel, lane: &Lane) -> Result<(), lapin::Error> {
        if lane.set != self.own {
            declare_dead(channel, lane.dead_name()).await?;
        }
        let arguments = table([
            // Replicated, always persistent, and unacknowledged messages are redelivered in their old order.
            ("x-queue-type", text("quorum")),
            // One worker at a time, chosen by consumer priority, replaced when its connection dies.
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            // Back-pressure: a full lane answers a publish with a nack, and the client gets 503 at once.
            ("x-max-length", AMQPValue::LongLongInt(self.settings.lane_capacity.into())),
            ("x-overflow", text("reject-publish")),
            // Poison: a message that kills its worker this often becomes a dead letter. Finite, because without a
            // limit requeued messages would go to the back of the lane.
            ("x-delivery-limit", AMQPValue::LongLongInt(100)),
            // An hour without any worker: the buyers are gone. Their orders become dead letters, for a person.
            ("x-message-ttl", AMQPValue::LongLongInt(MAX_AGE.as_millis() as i64)),
            // To the dead letters through the default exchange, safely: this strategy needs reject-publish.
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", AMQPValue::LongString(lane.dead_name().as_str().into())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        channel.queue_declare(lane.name(), QueueDeclareOptions::durable(), arguments).await?;
        Ok(())
    }

    /// The arguments with which a worker consumes a lane.
    pub(super) fn consumer_arguments(&self, worker: &str, lane: &Lane) -> FieldTable {
        table([
            ("x-priority", AMQPValue::LongInt(priority(worker, lane.number))),
            // RabbitMQ (seen in 4.3.6) forgets to remove a consumer that dies with unacknowledged messages while another
            // one with a higher priority waits for them. Once all that outrank it are gone, it is active, and its lane
            // would stand still for the broker's own 30 minutes, or, where nothing else ends it, for ever.
            ("x-consumer-timeout", AMQPValue::LongLongInt(self.settings.consumer_timeout.as_millis() as i64)),
        ])
    }
}

/// Dead letters are kept until a person has looked. The queue is a quorum queue, so that they outlive a node, and its length has
/// no limit, because lanes are bounded. RabbitMQ's own limit of 20 lost deliveries applies: an argument against it would make the
/// broker refuse the declaration of a queue that exists, and `antre dead` gives letters back in a way that does not count.
async fn declare_dead(channel: &Channel, name: ShortString) -> Result<(), lapin::Error> {
    let arguments = table([("x-queue-type", text("quorum"))]);
    channel.queue_declare(name, QueueDeclareOptions::durable(), arguments).await?;
    Ok(())
}

/// Rendezvous hashing, done by the broker: it activates the consumer with the highest priority, so lanes spread over the
/// workers, and a worker that joins or dies moves only its share of the lanes.
fn priority(worker: &str, lane: LaneNumber) -> i32 {
    let mut hasher = DefaultHasher::new();
    (worker, lane).hash(&mut hasher);
    (hasher.finish() % 1_000_000) as i32
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_spread_lanes_evenly_and_a_join_moves_only_its_share() {
        let best = |workers: &[&str], lane: LaneNumber| {
            workers.iter().max_by_key(|worker| priority(worker, lane)).map(|worker| (*worker).to_owned())
        };
        let (mut moved, mut of_c) = (0, 0);
        for lane in 0..3000 {
            let (before, after) = (best(&["a", "b"], lane), best(&["a", "b", "c"], lane));
            if after.as_deref() == Some("c") {
                of_c += 1;
            } else if before != after {
                moved += 1;
            }
        }
        assert_eq!(moved, 0);
        assert!((900..1100).contains(&of_c), "{of_c}");
    }
}
