//! The worker: takes the commands that have arrived, decides them, replies, and acknowledges them once the replies are confirmed.
//! A crash anywhere in between means that the commands are delivered again, and a decided order gets its stored verdict.
//!
//! While the database is away it holds its batch and tries again, and takes what arrives meanwhile ([`intake`]). A product that alone cannot be decided, for example because
//! another session keeps its row locked, is [`stalled`], and the others go on.

mod batch;
mod dead_letters;
mod decided;
pub mod expiry;
pub mod health;
mod intake;
mod isolation;
pub mod pruning;
mod split_deliveries;
mod stalled;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use self::{
    batch::{BatchDecider, products_of, replies_of},
    dead_letters::report_undecidable,
    decided::log_decided,
    health::WorkerHealth,
    intake::Intake,
    isolation::Isolation,
    stalled::{Progress, Stalled},
};
use crate::{
    backoff::backoff,
    domain::{decide::BatchResult, ids::ProductId, rules::Rules},
    monitor::activity::Activity,
    queue::{Completion, Delivery, Queue, QueueError, RETIRE_AFTER},
    store::{Decider, ProductLane, Store, StoreError},
    telemetry::{LogLimiter, listed},
};

/// How often a worker looks for products whose notification did not arrive, and for those that are archived.
const RESCAN: Duration = Duration::from_secs(5);
/// For how long after it was archived a worker looks for the lane of a product: far longer than a command waits.
const LOOK_BACK: Duration = Duration::from_secs(24 * 3600);
/// After so many failures of a batch the worker finds out whether only some of its products cannot be decided.
const FAILURES_BEFORE_ISOLATION: u32 = 5;

const MIN_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Serves lanes until it is asked to stop.
pub struct Worker {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// Of the same store.
    pub decider: Arc<dyn Decider>,
    pub activity: Arc<Activity>,
    pub rules: Rules,
    /// Finish the batch in hand, then end.
    pub stop: CancellationToken,
    pub health: Arc<WorkerHealth>,
}

impl Worker {
    /// Runs until [`Worker::stop`]. When the connection dies, it connects again, for as long as it takes.
    pub async fn run(&self) {
        let mut delays = backoff(MIN_DELAY, MAX_DELAY);
        let failures = LogLimiter::default();
        while !self.stop.is_cancelled() {
            match self.serve_lanes().await {
                Ok(()) => return,
                Err(ConsumerLost { error, has_worked: true }) => {
                    delays = backoff(MIN_DELAY, MAX_DELAY);
                    tracing::warn!(%error, "lost the queue; unacknowledged commands will be delivered again");
                }
                Err(ConsumerLost { error, has_worked: false }) => {
                    if let Some(suppressed) = failures.due() {
                        tracing::warn!(%error, suppressed, "no queue yet");
                    }
                }
            }
            self.pause(delays.next()).await;
        }
    }

    /// One consumer's life.
    async fn serve_lanes(&self) -> Result<(), ConsumerLost> {
        let lost = |has_worked| move |error| ConsumerLost { error, has_worked };
        let consumer = self.queue.consumer().await.map_err(lost(false))?;
        let _consuming = self.health.consuming();
        let _holding = self.activity.undecided().session();
        let decider = BatchDecider { decider: self.decider.clone(), rules: self.rules };
        let stalled = Stalled::new(decider.clone());
        let intake = Intake::new(consumer, self.activity.undecided().clone());
        let mut session = Session { worker: self, decider, intake, stalled, failures: LogLimiter::default() };
        let mut has_worked = false;
        let result = session.run(&mut has_worked).await;
        result.map_err(lost(has_worked))
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
struct ConsumerLost {
    error: QueueError,
    /// Whether it took anything: then the queue is there, and the next attempt need not wait long.
    has_worked: bool,
}

/// A worker with its consumer.
struct Session<'a> {
    worker: &'a Worker,
    decider: BatchDecider,
    intake: Intake,
    stalled: Stalled,
    failures: LogLimiter,
}

impl Session<'_> {
    async fn run(&mut self, has_worked: &mut bool) -> Result<(), QueueError> {
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.worker.stop.cancelled() => return self.intake.consumer.drain().await,
                _ = rescan.tick() => {
                    self.stalled.forget_idle();
                    self.look_for_lanes().await?;
                }
                progress = self.stalled.progress() => match progress {
                    Progress::Decided(deliveries, result) => self.complete(deliveries, result).await?,
                    Progress::Requeue(deliveries) => {
                        self.worker.activity.undecided().release(&deliveries);
                        self.intake.consumer.requeue(deliveries).await?;
                    }
                },
                taken = self.intake.next() => {
                    let deliveries = taken?;
                    *has_worked = true;
                    let batch = self.stalled.hold_back(deliveries);
                    self.decide(batch).await?;
                }
            }
        }
    }

    /// Decides a batch in one transaction and completes it. Tries again until that succeeds; products that cannot be decided
    /// while others can are stalled.
    async fn decide(&mut self, mut batch: Vec<Delivery>) -> Result<(), QueueError> {
        let (worker, began) = (self.worker, Instant::now());
        let (mut delays, mut failures) = (backoff(MIN_DELAY, MAX_DELAY), 0);
        while !batch.is_empty() {
            let error = match self.intake.during(began, self.decider.decide(&batch)).await {
                Ok(result) => return self.complete(batch, result).await,
                Err(error) => error,
            };
            failures += 1;
            let is_locked = matches!(error, StoreError::Locked(_));
            if is_locked || (failures >= FAILURES_BEFORE_ISOLATION && worker.store.ping().await.is_ok()) {
                batch = self.isolate(batch, &error).await?;
                continue;
            }
            self.report_failure(&batch, &error);
            if worker.stop.is_cancelled() {
                // Unacknowledged, they are delivered again when the consumer ends.
                return Err(QueueError("stopped while the database was away".to_owned()));
            }
            self.intake.during(began, worker.pause(delays.next())).await;
        }
        Ok(())
    }

    /// Publishes replies and events of decided commands, then acknowledges the deliveries that are decided entirely.
    async fn complete(&mut self, decided: Vec<Delivery>, result: BatchResult) -> Result<(), QueueError> {
        self.worker.activity.undecided().decide(&decided);
        if !result.undecidable.is_empty() {
            let dead = report_undecidable(&decided, &result.undecidable);
            self.intake.consumer.dead_letter(dead).await?;
        }
        log_decided(&decided, &result.verdicts);
        let completion =
            Completion { replies: replies_of(&decided, &result.verdicts), events: result.events };
        let finished = self.stalled.finish(decided);
        self.intake.consumer.settle(finished, completion).await
    }

    /// Returns what is left to be decided in one batch.
    async fn isolate(
        &mut self,
        batch: Vec<Delivery>,
        error: &StoreError,
    ) -> Result<Vec<Delivery>, QueueError> {
        let mut isolation = Isolation::begin(self.decider.clone(), &mut self.stalled, batch, error).await;
        while let Some((deliveries, result)) = isolation.decide_next(&mut self.stalled, error).await {
            self.complete(deliveries, result).await?;
        }
        Ok(isolation.into_rest())
    }

    async fn look_for_lanes(&mut self) -> Result<(), QueueError> {
        match self.worker.store.product_lanes().await {
            Ok(products) => {
                let Lanes { served, retiring, has_archived } = Lanes::of(&products);
                self.worker.activity.serve(served.len());
                self.intake.consumer.serve(&served).await?;
                if has_archived {
                    self.intake.consumer.retire(&retiring).await?;
                }
                Ok(())
            }
            Err(error) => {
                if let Some(suppressed) = self.failures.due() {
                    tracing::warn!(%error, suppressed, "could not look for new products");
                }
                Ok(())
            }
        }
    }

    fn report_failure(&self, batch: &[Delivery], error: &StoreError) {
        if let Some(suppressed) = self.failures.due() {
            let products = listed(products_of(batch));
            let commands: usize = batch.iter().map(|delivery| delivery.commands.len()).sum();
            tracing::warn!(%error, products, commands, suppressed, "could not decide a batch, trying again");
        }
    }
}

/// The products whose lanes a worker serves, and those whose lanes it removes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lanes {
    served: Vec<ProductId>,
    retiring: Vec<ProductId>,
    has_archived: bool,
}

impl Lanes {
    fn of(products: &[ProductLane]) -> Self {
        let mut lanes = Self::default();
        for ProductLane { product_id, archived_for } in products {
            match archived_for {
                None => lanes.served.push(*product_id),
                // Other APIs may not know it yet: what they still queue is refused at once.
                Some(age) if *age < RETIRE_AFTER => lanes.served.push(*product_id),
                Some(age) if *age < LOOK_BACK => lanes.retiring.push(*product_id),
                Some(_) => {}
            }
            lanes.has_archived |= archived_for.is_some();
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_of_an_archived_product_is_served_for_a_while_and_then_removed() {
        let ages = [None, Some(Duration::ZERO), Some(RETIRE_AFTER), Some(LOOK_BACK)];
        let products: Vec<_> = (1..).map_while(ProductId::new).zip(ages).collect();
        let lane = |(product_id, archived_for)| ProductLane { product_id, archived_for };
        let id = |index: usize| products[index].0;
        assert_eq!(
            Lanes::of(&products.iter().copied().map(lane).collect::<Vec<_>>()),
            Lanes { served: vec![id(0), id(1)], retiring: vec![id(2)], has_archived: true }
        );
        assert!(!Lanes::of(&[lane(products[0])]).has_archived);
    }
}
