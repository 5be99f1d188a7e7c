//! The worker: takes what has arrived, decides it, tells what became of it, and lets go of it once that is on its way for
//! sure. A crash anywhere in between means that the commands come back, and an order that comes back gets the verdict on
//! record.
//!
//! While the database is away it holds its batch and tries again. A product that alone cannot be decided, for example because
//! somebody else keeps its row locked, is [`stalled`], and the others go on.

pub mod expiry;
mod health;
mod stalled;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use self::stalled::{Progress, Stalled, products_of};
use crate::{
    domain::{command::Command, decide::Undecidable, ids::ProductId, order::Change, verdict::Verdict},
    queue::{Address, Completion, Consumer, Delivery, Queue, QueueError, Reply},
    store::{Decided, Store, StoreError},
    telemetry::{Sparse, first_time},
};

pub use health::WorkerHealth;

/// How many commands one transaction decides at most. There is no least: a lone order never waits for company.
const MAX_BATCH: usize = 1_000;
/// How often the products are looked through for lanes that no message told of.
const RESCAN: Duration = Duration::from_secs(5);
/// After so many failures of a batch it is looked whether only some of its products are to blame.
const SUSPICIOUS: u32 = 5;
/// How many products are tried alone, and cannot be decided, before all others of their batch are given up as well: each may
/// cost a second.
const MAX_LONE_FAILURES: usize = 3;

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
    /// What it says of itself.
    pub health: Arc<WorkerHealth>,
}

impl Worker {
    /// Runs until [`Worker::stop`]. A connection that dies is made anew, for as long as it takes.
    pub async fn run(&self) {
        let mut delays = backoff();
        let failures = Sparse::default();
        while !self.stop.is_cancelled() {
            match self.serve_lanes().await {
                Ok(()) => return,
                Err(Lost { error, has_worked: true }) => {
                    delays = backoff();
                    tracing::warn!(%error, "lost the queue; what was in hand comes back");
                }
                Err(Lost { error, has_worked: false }) => {
                    if let Some(left_out) = failures.due() {
                        tracing::warn!(%error, left_out, "no queue yet");
                    }
                }
            }
            self.pause(delays.next()).await;
        }
    }

    /// One consumer's life.
    async fn serve_lanes(&self) -> Result<(), Lost> {
        let lost = |has_worked| move |error| Lost { error, has_worked };
        let consumer = self.queue.consumer().await.map_err(lost(false))?;
        let _consuming = self.health.consuming();
        let mut serving =
            Serving { worker: self, consumer, stalled: Stalled::default(), failures: Sparse::default() };
        let mut has_worked = false;
        let result = serving.serve(&mut has_worked).await;
        result.map_err(lost(has_worked))
    }

    async fn decide(&self, commands: &[Command]) -> Result<Decided, StoreError> {
        self.store.decide(commands, self.reservation_ttl).await
    }

    /// Waits, but not beyond the stop.
    async fn pause(&self, delay: Option<Duration>) {
        tokio::select! {
            () = sleep(delay.unwrap_or(MAX_DELAY)) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// A worker with an end of the queue.
struct Serving<'a> {
    worker: &'a Worker,
    consumer: Box<dyn Consumer>,
    stalled: Stalled,
    failures: Sparse,
}

impl Serving<'_> {
    async fn serve(&mut self, has_worked: &mut bool) -> Result<(), QueueError> {
        let mut rescan = interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.worker.stop.cancelled() => return self.consumer.drain().await,
                _ = rescan.tick() => {
                    self.stalled.forget_idle();
                    self.look_for_lanes().await?;
                }
                progress = self.stalled.progress() => match progress {
                    Progress::Decided(parts, decided) => self.tell(parts, decided).await?,
                    Progress::Requeue(deliveries) => self.consumer.requeue(deliveries).await?,
                },
                taken = self.consumer.take(MAX_BATCH) => {
                    let deliveries = taken?;
                    *has_worked = true;
                    let parts = self.stalled.pass(deliveries);
                    self.settle(parts).await?;
                }
            }
        }
    }

    async fn look_for_lanes(&mut self) -> Result<(), QueueError> {
        match self.worker.store.product_ids().await {
            Ok(products) => self.consumer.serve(&products).await,
            Err(error) => {
                if let Some(left_out) = self.failures.due() {
                    tracing::warn!(%error, left_out, "could not look for new products");
                }
                Ok(())
            }
        }
    }

    /// Decides, tells what became of it, and lets go. What cannot be decided now, while other products can, is stalled.
    async fn settle(&mut self, mut parts: Vec<Delivery>) -> Result<(), QueueError> {
        let worker = self.worker;
        let _deciding = worker.health.deciding();
        let (mut delays, mut failures) = (backoff(), 0);
        while !parts.is_empty() {
            let error = match worker.decide(&commands_of(&parts)).await {
                Ok(decided) => return self.tell(parts, decided).await,
                Err(error) => error,
            };
            failures += 1;
            let is_locked = matches!(error, StoreError::Locked(_));
            if is_locked || (failures >= SUSPICIOUS && worker.store.ping().await.is_ok()) {
                parts = self.isolate(parts, &error).await?;
                continue;
            }
            if let Some(left_out) = self.failures.due() {
                let products =
                    products_of(&parts).into_iter().take(10).map(ProductId::get).collect::<Vec<_>>();
                let commands: usize = parts.iter().map(|part| part.commands.len()).sum();
                tracing::warn!(%error, ?products, commands, left_out, "deciding again");
            }
            if worker.stop.is_cancelled() {
                // Unacknowledged, they come back when the consumer ends.
                return Err(QueueError("stopped while the database was away".to_owned()));
            }
            worker.pause(delays.next()).await;
        }
        Ok(())
    }

    /// Finds out which products cannot be decided, stalls them, and returns what is left to be decided.
    async fn isolate(
        &mut self,
        parts: Vec<Delivery>,
        error: &StoreError,
    ) -> Result<Vec<Delivery>, QueueError> {
        let worker = self.worker;
        let products = products_of(&parts);
        let listed: Vec<_> = products.iter().copied().collect();
        let free: BTreeSet<_> = match worker.store.unlocked(&listed).await {
            Ok(free) => free.into_iter().collect(),
            Err(_) => return Ok(parts), // the database is away, not a product
        };
        let locked: BTreeSet<_> = products.difference(&free).copied().collect();
        if !locked.is_empty() {
            return Ok(self.stall(parts, &locked, error));
        }
        // Not the inventories: something else of a product. Each alone, then.
        let (mut rest, mut failures) = (parts, 0);
        for product_id in products {
            let only = BTreeSet::from([product_id]);
            if failures >= MAX_LONE_FAILURES {
                rest = self.stall(rest, &only, error);
                continue;
            }
            let (lone, others) = self.stalled.split(rest, &only);
            rest = others;
            match worker.decide(&commands_of(&lone)).await {
                Ok(decided) => self.tell(lone, decided).await?,
                Err(error) => {
                    failures += 1;
                    rest.extend(self.stall(lone, &only, &error));
                }
            }
        }
        Ok(rest)
    }

    fn stall(
        &mut self,
        parts: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
        error: &StoreError,
    ) -> Vec<Delivery> {
        let (store, ttl) = (self.worker.store.clone(), self.worker.reservation_ttl);
        self.stalled.stall(parts, products, error, &store, ttl)
    }

    /// Tells what became of commands, and lets go of the deliveries that are decided with that.
    async fn tell(&mut self, parts: Vec<Delivery>, decided: Decided) -> Result<(), QueueError> {
        if !decided.undecidable.is_empty() {
            let dead = report(&commands_of(&parts), &decided.undecidable);
            self.consumer.dead_letter(dead).await?;
        }
        let completion = Completion { replies: replies(&parts, &decided.verdicts), events: decided.events };
        let done = self.stalled.finish(parts);
        self.consumer.settle(done, completion).await
    }
}

/// Says which commands cannot be decided, each once, and returns those that go to the dead letters. An expiry does not: the
/// sweep asks for it again.
fn report(commands: &[Command], undecidable: &[Undecidable]) -> Vec<Command> {
    let mut dead = Vec::new();
    for Undecidable { index, cause } in undecidable {
        let Some(command) = commands.get(*index) else { continue };
        let (order_id, what) = match command {
            Command::Place(order) => (order.id, "place"),
            Command::Change(change) => (change.order_id, word_of(change.change)),
        };
        if first_time(&format!("{what} {order_id}: {cause}")) {
            let product_id = command.product_id();
            tracing::error!(
                %order_id, %product_id, what, %cause,
                "a command cannot be decided; put right what the cause names, then it can be sent again (a new one, a payment or a \
                 cancellation is in the dead letters, an expiry is tried again by itself)"
            );
        }
        if !matches!(command, Command::Change(change) if change.change == Change::Expire) {
            dead.push(command.clone());
        }
    }
    dead
}

fn word_of(change: Change) -> &'static str {
    match change {
        Change::Pay => "pay",
        Change::Cancel => "cancel",
        Change::Expire => "expire",
    }
}

/// A consumer ended.
struct Lost {
    error: QueueError,
    /// Whether it took anything: then the queue is there, and trying again need not wait long.
    has_worked: bool,
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

fn commands_of(parts: &[Delivery]) -> Vec<Command> {
    parts.iter().flat_map(|part| &part.commands).cloned().collect()
}

/// One reply for each API, whatever the number of its deliveries.
fn replies(parts: &[Delivery], verdicts: &[Verdict]) -> Vec<Reply> {
    let mut replies: Vec<Reply> = Vec::new();
    let mut rest = verdicts.iter().copied();
    for part in parts {
        let decided = part.commands.iter().map(Command::id).zip(rest.by_ref());
        match replies.iter_mut().find(|reply| reply.to == part.reply_to) {
            Some(reply) => reply.verdicts.extend(decided),
            None => replies.push(Reply { to: Address::clone(&part.reply_to), verdicts: decided.collect() }),
        }
    }
    replies
}
