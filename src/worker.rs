//! The worker: takes what has arrived, decides it, tells what became of it, and lets go of it once that is on its way for
//! sure. A crash anywhere in between means that the commands come back, and an order that comes back gets the verdict on
//! record.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    command::Command,
    order::Verdict,
    queue::{Address, Consumer, Delivery, Queue, QueueError, Reply, Tidings},
    store::{Decided, Store, StoreError, in_time},
};

/// How many commands one transaction decides at most. There is no least: a lone order never waits for company.
const MAX_BATCH: usize = 1_000;
/// How often the products are looked through for lanes that no message told of.
const RESCAN: Duration = Duration::from_secs(5);

/// Serves lanes until it is told to stop.
pub struct Worker {
    /// Where orders stand in line.
    pub queue: Arc<dyn Queue>,
    /// What decides them.
    pub store: Arc<dyn Store>,
    /// How long a reservation lives unless it is paid.
    pub reservation_ttl: Duration,
    /// Finish the batch in hand, then end.
    pub stop: CancellationToken,
}

impl Worker {
    /// Runs until [`Worker::stop`]. A connection that dies is made anew, for as long as it takes.
    pub async fn run(self) {
        let mut delays = backoff();
        while !self.stop.is_cancelled() {
            match self.serve_lanes().await {
                Ok(()) => return,
                Err(Lost { error, has_worked: true }) => {
                    delays = backoff();
                    tracing::warn!(%error, "lost the queue; what was in hand comes back");
                }
                Err(Lost { error, has_worked: false }) => tracing::warn!(%error, "no queue yet"),
            }
            self.pause(delays.next()).await;
        }
    }

    /// One consumer's life.
    async fn serve_lanes(&self) -> Result<(), Lost> {
        let mut has_worked = false;
        self.consume(&mut has_worked).await.map_err(|error| Lost { error, has_worked })
    }

    async fn consume(&self, has_worked: &mut bool) -> Result<(), QueueError> {
        let mut consumer = self.queue.consumer().await?;
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return consumer.finish().await,
                _ = rescan.tick() => self.look_for_lanes(&mut *consumer).await?,
                taken = consumer.take(MAX_BATCH) => {
                    let deliveries = taken?;
                    *has_worked = true;
                    self.settle(&mut *consumer, deliveries).await?;
                }
            }
        }
    }

    async fn look_for_lanes(&self, consumer: &mut dyn Consumer) -> Result<(), QueueError> {
        match in_time(self.store.product_ids()).await {
            Ok(products) => consumer.serve(&products).await,
            Err(error) => {
                tracing::warn!(%error, "could not look for new products");
                Ok(())
            }
        }
    }

    /// Decides, tells what became of it, and lets go.
    async fn settle(&self, consumer: &mut dyn Consumer, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        let commands: Vec<Command> =
            deliveries.iter().flat_map(|delivery| &delivery.commands).cloned().collect();
        match self.decide(&commands).await {
            Decision::Made(decided) => {
                let tidings = tidings(&deliveries, decided);
                consumer.settle(deliveries, tidings).await
            }
            Decision::Impossible(error) if deliveries.len() == 1 => {
                tracing::error!(%error, commands = ?deliveries[0].commands, "putting commands aside");
                consumer.put_aside(deliveries).await
            }
            Decision::Impossible(error) => {
                tracing::warn!(%error, "deciding the deliveries of this batch one by one");
                for delivery in deliveries {
                    Box::pin(self.settle(consumer, vec![delivery])).await?;
                }
                Ok(())
            }
            // Unacknowledged, they come back when the consumer ends.
            Decision::Stopped => Err(QueueError("stopped while the database was away".to_owned())),
        }
    }

    /// Asks the store until it answers.
    async fn decide(&self, commands: &[Command]) -> Decision {
        let mut delays = backoff();
        loop {
            match self.store.decide(commands, self.reservation_ttl).await {
                Ok(decided) => return Decision::Made(decided),
                Err(error) if !error.is_transient() => return Decision::Impossible(error),
                Err(error) => tracing::warn!(%error, commands = commands.len(), "deciding again"),
            }
            if self.stop.is_cancelled() {
                return Decision::Stopped;
            }
            self.pause(delays.next()).await;
        }
    }

    /// Waits, but not beyond the stop.
    async fn pause(&self, delay: Option<Duration>) {
        tokio::select! {
            () = sleep(delay.unwrap_or(MAX_DELAY)) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// A consumer ended.
struct Lost {
    error: QueueError,
    /// Whether it took anything: then the queue is there, and trying again need not wait long.
    has_worked: bool,
}

/// What became of a batch at the store.
enum Decision {
    Made(Decided),
    /// Trying again will not help.
    Impossible(StoreError),
    /// The worker was told to stop while the database was away.
    Stopped,
}

const MAX_DELAY: Duration = Duration::from_secs(2);

/// Growing delays with jitter, so that many workers do not come back in step.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

/// What there is to tell of a batch.
fn tidings(deliveries: &[Delivery], decided: Decided) -> Tidings {
    Tidings { replies: replies(deliveries, &decided.verdicts), events: decided.events }
}

/// One reply for each API, whatever the number of its deliveries.
fn replies(deliveries: &[Delivery], verdicts: &[Verdict]) -> Vec<Reply> {
    let mut replies: Vec<Reply> = Vec::new();
    let mut rest = verdicts.iter().copied();
    for delivery in deliveries {
        let decided = delivery.commands.iter().map(Command::id).zip(rest.by_ref());
        match replies.iter_mut().find(|reply| reply.to == delivery.reply_to) {
            Some(reply) => reply.verdicts.extend(decided),
            None => {
                replies.push(Reply { to: Address::clone(&delivery.reply_to), verdicts: decided.collect() })
            }
        }
    }
    replies
}
