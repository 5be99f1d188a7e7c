//! Settles a decided batch: publishes its replies and events, waits for the broker's confirms, and then acknowledges its
//! deliveries. A reply that is returned has no receiver any more: its delivery is orphaned, and must be decided again.

use std::{collections::HashSet, sync::Arc};

use futures_util::future::try_join_all;
use lapin::{
    Acker, BasicProperties, Confirmation, PublisherConfirm,
    options::{BasicAckOptions, BasicPublishOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    connection::{with_timeout, with_timeout_unless_blocked},
    topology::Lane,
    traffic::{Message, PublishOutcome},
    wire::{self, EVENTS_V1, VERDICTS_V1, properties},
    worker_channels::WorkerChannels,
};
use crate::queue::{Completion, Delivery, QueueError, Reply};

/// A message that outlives the broker's restart, in a durable queue.
pub(super) const PERSISTENT: u8 = 2;

/// A delivery, and the way to acknowledge it.
pub(super) struct Unsettled {
    pub(super) delivery: Delivery,
    pub(super) lane: Lane,
    pub(super) acker: Acker,
}

/// A completion that was published and is not confirmed yet.
pub(super) struct Settlement {
    channels: Arc<WorkerChannels>,
    replies: Vec<PublisherConfirm>,
    events: Vec<PublisherConfirm>,
}

impl Settlement {
    /// Publishes the replies, then the events.
    pub(super) async fn publish(
        channels: Arc<WorkerChannels>,
        Completion { replies, events }: Completion,
    ) -> Result<Self, QueueError> {
        let replies =
            replies.into_iter().filter(|reply| !reply.to.is_empty()).map(|Reply { to, verdicts }| {
                (to.as_ref().into(), properties(VERDICTS_V1), wire::encode_verdicts(verdicts))
            });
        // Returned when the API, or its connection for replies, is gone.
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let replies = channels.publish("".into(), mandatory, replies).await?;
        let topology = &channels.topology;
        let events = if topology.events_are_on() { wire::encode_events(&events) } else { Vec::new() };
        let events = events.into_iter().map(|(keys, payload)| {
            let (key, properties) = routing(keys);
            (key, properties, payload)
        });
        let options = BasicPublishOptions::default();
        let events = channels.publish(topology.events_name(), options, events).await?;
        Ok(Self { channels, replies, events })
    }

    /// Waits for all confirms and acknowledges the deliveries. Returns the orphaned ones, which are not acknowledged.
    pub(super) async fn acknowledge(self, unsettled: Vec<Unsettled>) -> Result<Vec<Unsettled>, QueueError> {
        let status = self.channels.publish_status();
        let traffic = self.channels.topology.broker().traffic();
        let mut gone = HashSet::new();
        for confirm in self.replies {
            // lapin attaches a returned message to whichever confirm comes next, so its routing key says which one it is.
            let confirmation = with_timeout_unless_blocked(status, confirm).await?;
            traffic.published(Message::Replies, PublishOutcome::of(&confirmation));
            match confirmation {
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    gone.insert(returned.routing_key.clone());
                }
                // The reply queue was deleted while the broker put the message into it.
                Confirmation::Nack(None) => tracing::debug!("verdicts for an API that is gone"),
                Confirmation::Ack(None) | Confirmation::NotRequested => {}
            }
        }
        let mut refused = 0;
        for confirm in self.events {
            let confirmation = with_timeout_unless_blocked(status, confirm).await?;
            traffic.published(Message::Events, PublishOutcome::of(&confirmation));
            refused += usize::from(matches!(confirmation, Confirmation::Nack(_)));
        }
        if refused > 0 {
            // A queue that somebody bound to the exchange is full and refuses. Its owner chose to lose events then; the shop
            // goes on selling.
            tracing::error!(refused, "a queue bound to the exchange of events refused messages: it is full");
        }
        let (orphaned, settled): (Vec<_>, Vec<_>) =
            unsettled.into_iter().partition(|one| gone.contains(&*one.delivery.reply_to));
        // One ack for each: the tags of several lanes interleave, and "multiple" would cover deliveries that are not decided.
        // All at once: to wait until one is written before the next would take as long as many lanes have orders.
        let acks = settled.iter().map(|one| one.acker.ack(BasicAckOptions::default()));
        if with_timeout(try_join_all(acks)).await?.contains(&false) {
            return Err(QueueError("the channel was gone before the ack".to_owned()));
        }
        Ok(orphaned)
    }
}

/// A message of events reaches each queue that is bound to any of its keys, once. Receivers see the first key; the broker
/// takes the others off (its "sender-selected distribution").
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
