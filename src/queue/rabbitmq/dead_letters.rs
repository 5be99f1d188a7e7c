//! The dead letters, for `antre dead`: taken from their queue, looked at, and given back, queued again or dropped.
//!
//! Nothing is lost when this process ends in the middle: a letter leaves the queue with its acknowledgement only, and that
//! follows the broker's confirm of its successor. Ended in between, it is in its lane and in the dead letters; an order that is
//! decided twice gets the same verdict.

use jiff::Timestamp;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{
        BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    connection::with_timeout,
    settlement::PERSISTENT,
    topology::{RabbitMqSettings, Topology},
    wire::{self, DATABASE_HEADER, ORDERS_V1, PRODUCT_V1, properties},
};
use crate::{
    domain::{command::Command, ids::ProductId, lane_set::LaneNumber},
    queue::QueueError,
};

/// The dead letters of one queue prefix.
pub struct DeadLetters {
    topology: Topology,
    connection: Connection,
    /// In confirm mode.
    channel: Channel,
}

/// A dead letter in this process's hands. Dropped, it goes back into its queue with the connection.
pub struct DeadLetter {
    /// Names it: 16 hex digits that follow from its payload.
    pub id: String,
    /// Why it is dead: `expired`, `rejected`, `delivery_limit`, as RabbitMQ says, or `undecidable`, as a worker found.
    pub reason: String,
    /// The queue that it left. `None`: a worker put it there.
    pub lane: Option<String>,
    /// When it died. `None`: the broker does not say.
    pub died_at: Option<Timestamp>,
    /// The installation id of the database that its commands are of.
    pub database: Option<String>,
    /// How often it was in the hands of a process that ended without giving it back. RabbitMQ drops it after 20.
    pub lost_deliveries: i64,
    /// What it says, or why that cannot be read.
    pub commands: Result<Vec<Command>, String>,
    pub payload: Vec<u8>,
    tag: u64,
}

impl DeadLetters {
    /// Connects, and declares the queue of dead letters where it does not exist yet.
    pub async fn open(settings: RabbitMqSettings) -> Result<Self, QueueError> {
        let topology = Topology::new(settings)?;
        let connection = topology.broker().connect("dead letters").await?;
        let channel = with_timeout(connection.create_channel()).await?;
        with_timeout(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        with_timeout(topology.declare_shared(&channel)).await?;
        Ok(Self { topology, connection, channel })
    }

    /// The oldest letter that nobody holds; `None`: there is none.
    pub async fn take(&self) -> Result<Option<DeadLetter>, QueueError> {
        let got = self.channel.basic_get(self.topology.dead_name(), BasicGetOptions::default());
        let Some(message) = with_timeout(got).await? else { return Ok(None) };
        let delivery = message.delivery;
        Ok(Some(DeadLetter::of(delivery.delivery_tag, &delivery.properties, delivery.data)))
    }

    /// Puts the commands of a letter at the end of their lanes, detached, because no client waits for them any more.
    pub async fn requeue(&self, letter: DeadLetter) -> Result<(), QueueError> {
        for (lane, commands) in self.by_lane(&letter)? {
            let lane = self.topology.lane(lane);
            with_timeout(self.topology.declare_lane(&self.channel, &lane)).await?;
            let mut properties = properties(ORDERS_V1).with_delivery_mode(PERSISTENT);
            if let Some(database) = &letter.database {
                let mut headers = FieldTable::default();
                headers.insert(DATABASE_HEADER.into(), AMQPValue::LongString(database.as_str().into()));
                properties = properties.with_headers(headers);
            }
            self.publish(lane.name(), properties, wire::encode_commands(&commands)).await?;
            // The lane of an archived product may be new, and then no worker looks for it.
            if let Some(command) = commands.first() {
                self.announce(command.product_id()).await?;
            }
        }
        self.drop(letter).await
    }

    /// The lanes to which [`requeue`](Self::requeue) puts a letter; an error where it cannot be read.
    pub fn lanes_of(&self, letter: &DeadLetter) -> Result<Vec<LaneNumber>, QueueError> {
        Ok(self.by_lane(letter)?.into_iter().map(|(lane, _)| lane).collect())
    }

    fn by_lane(&self, letter: &DeadLetter) -> Result<Vec<(LaneNumber, Vec<Command>)>, QueueError> {
        let commands = letter.commands.as_ref().map_err(|error| QueueError(error.clone()))?;
        let mut lanes: Vec<(LaneNumber, Vec<Command>)> = Vec::new();
        for command in commands {
            let (lane, command) = (self.topology.lane_of(command.product_id()), command.clone().detached());
            match lanes.iter_mut().find(|(number, _)| *number == lane) {
                Some((_, commands)) => commands.push(command),
                None => lanes.push((lane, vec![command])),
            }
        }
        Ok(lanes)
    }

    /// Tells workers to open the lanes of a product.
    async fn announce(&self, product_id: ProductId) -> Result<(), QueueError> {
        let (exchange, payload) = (self.topology.new_products_name(), wire::encode_product(product_id));
        let (options, properties) = (BasicPublishOptions::default(), properties(PRODUCT_V1));
        let published = self.channel.basic_publish(exchange, "".into(), options, &payload, properties);
        with_timeout(with_timeout(published).await?).await.map(drop)
    }

    async fn publish(
        &self,
        queue: ShortString,
        properties: BasicProperties,
        payload: Vec<u8>,
    ) -> Result<(), QueueError> {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = with_timeout(self.channel.basic_publish(
            "".into(),
            queue.clone(),
            mandatory,
            &payload,
            properties,
        ));
        match with_timeout(published.await?).await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Nack(_) => Err(QueueError(format!("{queue} is full"))),
            _ => Err(QueueError(format!("{queue} is gone"))),
        }
    }

    /// Removes a letter for ever.
    pub async fn drop(&self, letter: DeadLetter) -> Result<(), QueueError> {
        match with_timeout(self.channel.basic_ack(letter.tag, BasicAckOptions::default())).await {
            Ok(()) => Ok(()),
            Err(error) => Err(QueueError(format!("not acknowledged, so it stays: {error}"))),
        }
    }

    /// Gives back all letters that were neither queued again nor dropped, in their old order, and closes the connection.
    pub async fn close(self) -> Result<(), QueueError> {
        // Tag 0 with `multiple`: all that are unacknowledged.
        let all = BasicNackOptions { multiple: true, requeue: true };
        with_timeout(self.channel.basic_nack(0, all)).await?;
        with_timeout(self.channel.close(200, "done".into())).await?; // answered once the nack is handled
        with_timeout(self.connection.close(200, "done".into())).await
    }
}

impl DeadLetter {
    fn of(tag: u64, properties: &BasicProperties, payload: Vec<u8>) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        let text = |table: &FieldTable, name: &str| match table.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            Some(AMQPValue::ShortString(text)) => Some(text.to_string()),
            _ => None,
        };
        let death = match headers.inner().get("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => match deaths.as_slice().first() {
                Some(AMQPValue::FieldTable(death)) => Some(death.clone()),
                _ => None,
            },
            _ => None,
        };
        let of_death = |name: &str| death.as_ref().and_then(|death| text(death, name));
        let died_at = match death.as_ref().and_then(|death| death.inner().get("time")) {
            Some(AMQPValue::Timestamp(seconds)) => {
                i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
            }
            _ => None,
        };
        let lost_deliveries = match headers.inner().get("x-delivery-count") {
            Some(AMQPValue::LongLongInt(count)) => *count,
            Some(AMQPValue::LongInt(count)) => i64::from(*count),
            Some(AMQPValue::LongUInt(count)) => i64::from(*count),
            _ => 0,
        };
        let commands = wire::decode_commands(&payload, wire::kind_of(properties));
        Self {
            id: format!("{:016x}", fnv1a(&payload)),
            reason: of_death("reason").unwrap_or_else(|| "undecidable".to_owned()),
            lane: of_death("queue"),
            died_at,
            database: text(&headers, DATABASE_HEADER),
            lost_deliveries,
            commands: commands.map_err(|error| error.to_string()),
            payload,
            tag,
        }
    }
}

/// A hash that stays the same in later releases.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_letter_follows_from_its_payload() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_letter_without_headers_was_found_undecidable_by_a_worker() {
        let letter = DeadLetter::of(1, &BasicProperties::default(), b"nonsense".to_vec());
        assert_eq!((letter.reason.as_str(), letter.lane, letter.died_at), ("undecidable", None, None));
        assert!(letter.commands.is_err() && letter.lost_deliveries == 0);
    }
}
