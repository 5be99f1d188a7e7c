//! Submits commands, and waits for their outcomes until a deadline.
//!
//! A client that is answered 202 finds the verdict later, and no clock decides whether that is so: before such an answer the
//! command is submitted again, [detached](Command::detached), and the lane stores the verdict on that copy.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Level, enabled};

use crate::{
    clock::Clock,
    domain::{
        command::{Command, ReplyMode},
        ids::{CommandId, OrderId, ProductId},
        time::from_millis,
        verdict::Verdict,
    },
    monitor::{activity::Activity, metrics::ApiMetrics},
    queue::{Outcome, Ping, Queue, QueueError, Refusal, Submitter},
    service::{known_products::KnownProducts, pending_replies::PendingReplies},
    telemetry::{ms, traces::CommandSpan},
};

/// How long a client whose deadline is over waits until its detached command is queued. A command that takes longer is queued
/// after the answer.
pub(super) const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long clients go on waiting after the process was asked to stop. With [`DETACH_TIMEOUT`], it is less than the server
/// gives requests in flight.
pub(super) const WAIT_AFTER_STOP: Duration = Duration::from_secs(2);

/// The same for clients whose requests arrive after that.
pub(super) const WAIT_WHILE_CLOSING: Duration = Duration::from_millis(500);

/// An API's way into the lanes, and back.
pub struct Dispatcher {
    submitter: Arc<dyn Submitter>,
    products: Arc<KnownProducts>,
    pending: Arc<PendingReplies>,
    order_timeout: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<ApiMetrics>,
    activity: Arc<Activity>,
    stop: CancellationToken,
    _closing: AbortOnDropHandle<()>,
}

impl Dispatcher {
    /// Once `stop` is cancelled, clients wait for a short time only.
    pub async fn new(
        queue: &dyn Queue,
        products: Arc<KnownProducts>,
        order_timeout: Duration,
        clock: Arc<dyn Clock>,
        activity: Arc<Activity>,
        stop: CancellationToken,
        metrics: Arc<ApiMetrics>,
    ) -> Result<Self, QueueError> {
        let pending = Arc::new(PendingReplies::new(metrics.clone()));
        let submitter = queue.submitter(pending.clone(), products.clone()).await?;
        let closing = tokio::spawn({
            let (pending, stop) = (pending.clone(), stop.clone());
            async move {
                stop.cancelled().await;
                sleep(WAIT_AFTER_STOP).await;
                pending.close();
            }
        });
        let closing = AbortOnDropHandle::new(closing);
        Ok(Self {
            submitter,
            products,
            pending,
            order_timeout,
            clock,
            metrics,
            activity,
            stop,
            _closing: closing,
        })
    }

    /// Cancelled once the process was asked to stop.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// What operators see of this process.
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// How long a client waits that prefers to wait this long: it may prefer less than the order timeout, not more.
    pub(super) fn waiting_time(&self, preferred: Option<Duration>) -> Duration {
        preferred.map_or(self.order_timeout, |preferred| preferred.min(self.order_timeout))
    }

    /// Queues a command, and waits for its outcome. `None`: not known by the deadline; the lane will store the verdict.
    ///
    /// A detached command is waited for until it is queued. When the caller goes away, nothing of it is left here; the command
    /// stays in its lane.
    pub(super) async fn dispatch(&self, command: Command, wait: Duration) -> Option<Outcome> {
        let submitted = self.activity.submit(&command);
        let outcome = self.submit_and_wait(command, wait).await;
        submitted.answer(outcome.as_ref());
        outcome
    }

    async fn submit_and_wait(&self, mut command: Command, wait: Duration) -> Option<Outcome> {
        let Some(reply) = self.pending.register(command.id()) else {
            return Some(Outcome::Refused(Refusal::Overloaded));
        };
        let is_detached = command.is_detached();
        let wait = if is_detached { self.order_timeout } else { wait };
        let wait = if self.pending.is_closing() { wait.min(WAIT_WHILE_CLOSING) } else { wait };
        let span = CommandSpan::begin(&mut command);
        let (detached, began) = (command.clone().detached(), Instant::now());
        let traced = enabled!(Level::DEBUG).then(|| detached.clone());
        self.submitter.submit(command);
        let outcome = match timeout(wait, reply).await {
            Ok(Some(outcome)) => {
                if let Outcome::Decided(_) = outcome {
                    self.metrics.decided(began.elapsed());
                }
                Some(outcome)
            }
            Ok(None) | Err(_) => {
                if !is_detached {
                    self.metrics.detached();
                }
                self.detach(detached).await
            }
        };
        if let Some(command) = traced {
            log_answered(&command, outcome.as_ref(), began.elapsed());
        }
        span.end(word_for(outcome.as_ref()));
        outcome
    }

    /// Ensures that there will be a verdict, before the client gets its 202. The first copy may be anywhere: in a lane, with a
    /// worker, or decided with a reply that got lost. Waits until the second one is queued, but not for long.
    async fn detach(&self, command: Command) -> Option<Outcome> {
        let Some(reply) = self.pending.register(command.id()) else {
            self.submitter.submit_or_park(command);
            return None;
        };
        self.submitter.submit_or_park(command);
        match timeout(DETACH_TIMEOUT, reply).await.ok().flatten() {
            // The lane also decides the detached copy, and pieces may have come back in between: that verdict counts.
            Some(Outcome::Decided(Verdict::Rejected(_)) | Outcome::Refused(_) | Outcome::Queued) | None => {
                None
            }
            decided => decided,
        }
    }

    /// How many commands are parked now.
    pub fn parked(&self) -> usize {
        self.submitter.parked()
    }

    /// Waits until every command is queued whose client was promised a verdict.
    pub async fn drain(&self) {
        self.submitter.drain().await;
    }

    /// Whether an order that is not stored may be in a lane: its id was generated by antre, not too long ago and not in the
    /// future.
    ///
    /// Ask this before the database: an order that is decided in between is found there.
    pub(super) fn may_be_pending(&self, id: OrderId) -> bool {
        let now = self.clock.now();
        id.has_valid_checksum() && !id.is_from_the_future(now) && self.submitter.may_be_pending(id, now)
    }

    /// What is known of products, here and by the queue.
    pub(super) fn products(&self) -> &KnownProducts {
        &self.products
    }

    pub(super) async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        self.submitter.open_lane(product_id).await
    }

    /// Whether commands are queued and verdicts arrive now.
    pub fn health_check(&self) -> Arc<dyn Ping> {
        self.submitter.clone()
    }

    #[cfg(test)]
    pub(super) fn pending_count(&self) -> usize {
        self.pending.count()
    }
}

fn word_for(outcome: Option<&Outcome>) -> &'static str {
    outcome.map_or("pending", Outcome::as_str)
}

fn log_answered(command: &Command, outcome: Option<&Outcome>, elapsed: Duration) {
    tracing::debug!(
        order_id = %command.order_id(),
        product_id = command.product_id().get(),
        request_id = command.origin().request_id.as_ref().map(display),
        what = command.what(),
        outcome = word_for(outcome),
        elapsed_ms = ms(elapsed),
        "a command has its outcome"
    );
}

/// A wait of 0 means detached.
pub(super) fn reply_mode(id: CommandId, wait: Duration) -> ReplyMode {
    if wait.is_zero() {
        return ReplyMode::Detached;
    }
    let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    ReplyMode::Until(from_millis(id.as_order().created_at().as_millisecond().saturating_add(wait_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn only_a_wait_of_zero_means_detached() {
        let id = SystemClock.command_id();
        assert_eq!(reply_mode(id, Duration::ZERO), ReplyMode::Detached);
        for wait in [Duration::from_nanos(1), Duration::from_secs(10), Duration::MAX] {
            assert!(matches!(reply_mode(id, wait), ReplyMode::Until(_)), "{wait:?}");
        }
    }
}
