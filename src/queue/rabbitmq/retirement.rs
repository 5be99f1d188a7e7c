//! Removes the lanes of archived products once they are empty, for a worker.
//!
//! A broker deletes a quorum queue with all that is in it, and does not say who holds which of its messages. So a worker asks
//! the lane itself: it sends a *marker*, a message without content, through a lane that has no other message ready. Whoever
//! receives the marker is the lane's only active consumer, and has received all that was in front of it. If that is settled and
//! nothing is ready behind the marker, the lane is empty, and that worker deletes it with the marker in it. Otherwise it
//! acknowledges the marker, and somebody asks again some seconds later.
//!
//! Nothing arrives in between: no API publishes to the lane any more, see [`crate::queue::RETIRE_AFTER`].

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    Acker, ErrorKind,
    options::{BasicAckOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::FieldTable,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    connection::{BROKER_TIMEOUT, failed, no_answer, with_timeout},
    declarer::Declarer,
    topology::{Lane, Topology},
    wire::{EMPTY_V1, properties},
};
use crate::queue::QueueError;

/// After so long a lane that was gone is looked for again: somebody may have declared it again by hand.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What became of the lanes of archived products.
pub(super) struct Retirement {
    shared: Arc<Shared>,
    found: mpsc::UnboundedReceiver<Found>,
    /// The lanes of the products that are archived for long enough.
    lanes: HashSet<Lane>,
    /// When the broker ended the consumers of some of them.
    ended: HashMap<Lane, Instant>,
}

struct Shared {
    declarer: Declarer,
    found: mpsc::UnboundedSender<Found>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    /// One removal at a time: the markers of several workers arrive together.
    removing: tokio::sync::Mutex<()>,
    gone: Mutex<Gone>,
}

/// Lanes that do not exist.
struct Gone {
    lanes: HashSet<Lane>,
    since: Instant,
}

/// What a look at a lane found.
pub(super) enum Found {
    /// It existed then: somebody must serve it.
    Lane(Lane, Instant),
    /// It does not exist.
    Nothing(Lane),
}

impl Retirement {
    /// Connects when it is first needed.
    pub(super) fn new(topology: Arc<Topology>) -> Self {
        let (sender, found) = mpsc::unbounded_channel();
        let gone = Mutex::new(Gone { lanes: HashSet::new(), since: Instant::now() });
        let declarer = Declarer::new(topology, "worker: lanes of archived products");
        let (looking, removing) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let shared = Shared { declarer, found: sender, looking, removing, gone };
        Self { shared: Arc::new(shared), found, lanes: HashSet::new(), ended: HashMap::new() }
    }

    /// Looks at these lanes, and asks those that may be empty and were looked at before: by now all workers know that they are
    /// retiring, and open none of them again. Returns at once.
    pub(super) fn look_at(&mut self, lanes: Vec<Lane>) {
        let looks = lanes.iter().map(|lane| (lane.clone(), self.is_retiring(lane))).collect();
        self.lanes = lanes.into_iter().collect();
        self.ended.retain(|lane, _| self.lanes.contains(lane));
        tokio::spawn(self.shared.clone().look_at(looks));
    }

    /// What a look found. Cancel safe.
    pub(super) async fn found(&mut self) -> Option<Found> {
        self.found.recv().await
    }

    /// Whether the lane is about to be removed, or is.
    pub(super) fn is_retiring(&self, lane: &Lane) -> bool {
        self.lanes.contains(lane)
    }

    /// The broker has ended the consumer of a retiring lane: most likely the lane is removed. If it is not, the next look
    /// finds it.
    pub(super) fn end(&mut self, lane: Lane) {
        self.ended.insert(lane, Instant::now());
    }

    /// Whether a lane that existed then may exist still. To consume one that is being deleted closes the connection.
    pub(super) fn may_exist(&self, lane: &Lane, then: Instant) -> bool {
        self.ended.get(lane).is_none_or(|ended| *ended < then)
    }

    /// Somebody opens the lane, whatever was known of it.
    pub(super) fn forget(&self, lane: &Lane) {
        self.shared.gone().lanes.remove(lane);
    }

    /// The marker has come through the lane, and all that was in front of it is settled or not (`is_settled`).
    pub(super) fn receive_marker(&self, lane: Lane, acker: Acker, is_settled: bool) {
        let is_asked = is_settled && self.is_retiring(&lane);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let removed = match is_asked {
                true => shared.remove_if_empty(&lane).await,
                false => Ok(false),
            };
            match removed {
                Ok(true) => return, // the marker is gone with its lane
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%lane, %error, "the lane of an archived product is not removed yet")
                }
            }
            let _ = with_timeout(acker.ack(BasicAckOptions::default())).await; // else it comes again
        });
    }
}

impl Shared {
    async fn look_at(self: Arc<Self>, looks: Vec<(Lane, bool)>) {
        let Ok(_alone) = self.looking.try_lock() else { return };
        for (lane, asks) in self.worth_a_look(looks) {
            match self.look(&lane, asks).await {
                Ok(found) => drop(self.found.send(found)), // the consumer may have ended
                Err(error) => {
                    tracing::debug!(%lane, %error, "could not look for the lane of an archived product");
                    return;
                }
            }
        }
    }

    /// Those of these lanes that may exist.
    fn worth_a_look(&self, mut looks: Vec<(Lane, bool)>) -> Vec<(Lane, bool)> {
        let mut gone = self.gone();
        if gone.since.elapsed() >= LOOK_AGAIN {
            *gone = Gone { lanes: HashSet::new(), since: Instant::now() };
        }
        looks.retain(|(lane, _)| !gone.lanes.contains(lane));
        looks
    }

    async fn look(&self, lane: &Lane, asks: bool) -> Result<Found, QueueError> {
        let looked_at = Instant::now();
        let Some(ready) = self.ready(lane).await? else {
            self.gone().lanes.insert(lane.clone());
            return Ok(Found::Nothing(lane.clone()));
        };
        if asks && ready == 0 {
            let (_connection, channel) = self.declarer.channel().await?;
            let marker = channel.basic_publish(
                "".into(),
                lane.name(),
                BasicPublishOptions::default(),
                &[],
                properties(EMPTY_V1),
            );
            with_timeout(marker).await?;
        }
        Ok(Found::Lane(lane.clone(), looked_at))
    }

    /// How many messages of the lane no worker has taken; `None`: there is no such lane.
    async fn ready(&self, lane: &Lane) -> Result<Option<u32>, QueueError> {
        let (_connection, channel) = self.declarer.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared = channel.queue_declare(lane.name(), passive, FieldTable::default());
        match timeout(BROKER_TIMEOUT, declared).await.map_err(|_| no_answer(BROKER_TIMEOUT))? {
            Ok(queue) => Ok(Some(queue.message_count())),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn remove_if_empty(&self, lane: &Lane) -> Result<bool, QueueError> {
        let _alone = self.removing.lock().await;
        if self.ready(lane).await? != Some(0) {
            return Ok(false);
        }
        let (_connection, channel) = self.declarer.channel().await?;
        // Not `if-empty`: RabbitMQ refuses that for quorum queues, and closes the connection.
        let deleted = with_timeout(channel.queue_delete(lane.name(), QueueDeleteOptions::default())).await?;
        self.gone().lanes.insert(lane.clone());
        match deleted {
            0 => tracing::info!(%lane, "the empty lane of an archived product is removed"),
            messages => tracing::error!(
                %lane,
                messages,
                "the lane of an archived product was removed with messages that arrived at that moment: an API had queued \
                 them without its database"
            ),
        }
        Ok(true)
    }

    fn gone(&self) -> MutexGuard<'_, Gone> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    let not_found = AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == not_found)
}
