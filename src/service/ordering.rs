//! Places an order, or takes one further: queues the command and waits for its verdict, until the deadline.
//!
//! Whoever is answered 202 finds the verdict later, and no clock decides whether that is so: before such an answer the
//! command is submitted again, [detached](Command::detached), and the lane stores the verdict on that copy.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    domain::time::from_millis,
    domain::{
        command::{ChangeOrder, Command, NewOrder, ReplyMode},
        ids::{CommandId, IdempotencyKey, OrderId, ProductId},
        order::{Change, Order, OrderState, OrderStatus, Quantity},
        rejection::Rejection,
        verdict::Verdict,
    },
    queue::{Outcome, Ping, Queue, QueueError, Refusal, Submitter},
    service::{batch_loader::BatchLoader, pending_replies::PendingReplies, sold_out::SoldOutCache},
    store::{Store, StoreError},
    telemetry::Sparse,
};

/// What is left at least of the time that a client waits.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// How long a client whose time is over waits until its detached command is queued. What takes longer is queued later.
const QUEUED_WITHIN: Duration = Duration::from_secs(2);

/// How long clients go on waiting after the process was told to stop. With [`QUEUED_WITHIN`], it is less than the server
/// gives requests in flight.
const WAIT_AFTER_STOP: Duration = Duration::from_secs(2);

/// The same for those who come even later.
const WAIT_WHILE_CLOSING: Duration = Duration::from_millis(500);

const SOLD_OUT: Rejection = Rejection::InsufficientStock { available: 0 };

/// What a buyer is told of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The pieces are reserved or paid, committed in the database.
    Accepted {
        /// The order.
        order: Order,
        /// Whether it was placed earlier, under the same idempotency key.
        replayed: bool,
    },
    /// Nothing was reserved.
    Rejected {
        /// Why.
        rejection: Rejection,
        /// Whether that was decided earlier, under the same idempotency key.
        replayed: bool,
    },
    /// The order of this idempotency key was placed earlier, and holds no pieces any more.
    NotReserved(Order),
    /// Nobody knows yet: no verdict by the deadline.
    Pending(OrderId),
    /// The order was not queued.
    Refused(Refusal),
    /// It cannot be decided, because what stands in the database cannot be.
    Undecidable,
}

impl Placed {
    const fn rejected(rejection: Rejection) -> Self {
        Self::Rejected { rejection, replayed: false }
    }
}

/// What a buyer is told of a payment or cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// This is how far the order has come now: by this change, or by an earlier one.
    Now(Order),
    /// Nobody knows yet: no verdict by the deadline.
    Pending,
    /// The change did not get in line.
    Refused(Refusal),
    /// The order is not on record any more.
    NotFound,
    /// It cannot be decided, because what stands in the database cannot be.
    Undecidable,
}

/// Queues commands, and hands their verdicts to those who wait for them.
pub struct OrderService {
    submitter: Arc<dyn Submitter>,
    pending: Arc<PendingReplies>,
    sold_out_cache: Arc<SoldOutCache>,
    order_timeout: Duration,
    keys: Arc<BatchLoader<IdempotencyKey>>,
    products: Arc<BatchLoader<ProductId>>,
    /// Products that exist. A product is never deleted, so what is in here stays true.
    known_products: RwLock<HashSet<ProductId>>,
    lanes_not_opened: Sparse,
    _closing: AbortOnDropHandle<()>,
}

impl OrderService {
    /// Gets an end of the queue for itself. Once `stop` is cancelled, clients wait for a short time only.
    pub async fn new(
        store: Arc<dyn Store>,
        queue: &dyn Queue,
        order_timeout: Duration,
        stop: CancellationToken,
    ) -> Result<Self, QueueError> {
        let pending = Arc::new(PendingReplies::default());
        let submitter = queue.submitter(pending.clone()).await?;
        let closing = tokio::spawn({
            let pending = pending.clone();
            async move {
                stop.cancelled().await;
                sleep(WAIT_AFTER_STOP).await;
                pending.close();
            }
        });
        Ok(Self {
            submitter,
            pending,
            sold_out_cache: SoldOutCache::new(store.clone()),
            order_timeout,
            keys: Arc::new(BatchLoader::new(store.clone())),
            products: Arc::new(BatchLoader::new(store)),
            known_products: RwLock::default(),
            lanes_not_opened: Sparse::default(),
            _closing: AbortOnDropHandle::new(closing),
        })
    }

    /// Places an order and waits for its verdict, for as long as `wait` says but no longer than the service's order
    /// timeout; not to wait at all is to wait until the order is queued, unless its key is stored. When the caller goes away,
    /// so does everything that waits; the order itself stays in its lane.
    pub async fn place(
        &self,
        product_id: ProductId,
        total: Quantity,
        key: Option<IdempotencyKey>,
        wait: Option<Duration>,
    ) -> Result<Placed, StoreError> {
        let (wait, came) = (self.waiting_time(wait), Instant::now());
        // Only the lane knows what a key stands for: an earlier copy of the order may be stored, or be queued still and about
        // to be reserved. Without a key a rejection that comes at once is as good as a stored one, and costs no row.
        if key.is_none() && self.sold_out_cache.is_sold_out(product_id).await {
            return Ok(Placed::rejected(SOLD_OUT));
        }
        if !self.is_product(product_id).await? {
            return Ok(Placed::rejected(Rejection::ProductNotFound));
        }
        // What is stored is told at once, without another id for it.
        if wait.is_zero()
            && let Some(placed) = self.placed_earlier(key.as_ref(), product_id, total).await?
        {
            return Ok(placed);
        }
        // Deduct the lookup time from the wait, but keep at least 1 ms: a wait of 0 means detached.
        let wait = wait.min(wait.saturating_sub(came.elapsed()).max(LEAST_WAIT));
        let id = OrderId::generate();
        let order = NewOrder { id, product_id, total, reply: reply_mode(id.into(), wait), key: key.clone() };
        let outcome = self.ask(order.into(), wait).await;
        match outcome {
            Some(Outcome::Decided(Verdict::Rejected(SOLD_OUT))) => {
                self.sold_out_cache.report_sold_out(product_id)
            }
            // No API hears what the lane says of detached orders: the sold-out cache looks for itself.
            Some(Outcome::Queued) => self.sold_out_cache.look_soon(product_id),
            _ => {}
        }
        Ok(match outcome {
            Some(Outcome::Decided(_)) if wait.is_zero() => Placed::Pending(id),
            Some(Outcome::Decided(Verdict::Reserved { expires_at })) => {
                let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
                Placed::Accepted { order: Order { id, product_id, total, state }, replayed: false }
            }
            Some(Outcome::Decided(Verdict::Rejected(rejection))) => Placed::rejected(rejection),
            Some(Outcome::Decided(Verdict::AlreadyPlaced(order))) => again(order),
            Some(Outcome::Decided(Verdict::Undecidable)) => Placed::Undecidable,
            // The lane would have found what the key stands for; now nobody else looks.
            Some(Outcome::Refused(refusal)) => self
                .placed_earlier(key.as_ref(), product_id, total)
                .await?
                .unwrap_or(Placed::Refused(refusal)),
            Some(Outcome::Queued | Outcome::Decided(Verdict::Status(_) | Verdict::OrderNotFound)) | None => {
                Placed::Pending(id)
            }
        })
    }

    /// The answer to an order whose key is on record.
    async fn placed_earlier(
        &self,
        key: Option<&IdempotencyKey>,
        product_id: ProductId,
        total: Quantity,
    ) -> Result<Option<Placed>, StoreError> {
        let Some(key) = key else { return Ok(None) };
        Ok(self.keys.find(key.clone()).await?.map(|known| match known.is_for(product_id, total) {
            true => again(known),
            false => Placed::rejected(Rejection::KeyReused),
        }))
    }

    /// Takes an order on record further and waits for the verdict, as [`OrderService::place`] does. What is final is
    /// answered without the lane. Who hears that an order gave its pieces back can order them, wherever he does.
    pub async fn change(&self, order: Order, change: Change, wait: Option<Duration>) -> Changed {
        let changed = self.decide_change(order, change, wait).await;
        if let Changed::Now(order) = changed
            && matches!(order.status(), OrderStatus::Cancelled | OrderStatus::Expired)
        {
            SoldOutCache::lease_is_over().await;
        }
        changed
    }

    async fn decide_change(&self, order: Order, change: Change, wait: Option<Duration>) -> Changed {
        if order.status() != OrderStatus::Reserved {
            return Changed::Now(order);
        }
        let wait = self.waiting_time(wait);
        let id = CommandId::generate();
        let change = ChangeOrder {
            id,
            order_id: order.id,
            product_id: order.product_id,
            change,
            reply: reply_mode(id, wait),
        };
        match self.ask(change.into(), wait).await {
            Some(Outcome::Decided(_)) if wait.is_zero() => Changed::Pending,
            Some(Outcome::Decided(Verdict::Status(status))) => Changed::Now(order.with_status(status)),
            Some(Outcome::Decided(Verdict::OrderNotFound)) => Changed::NotFound,
            Some(Outcome::Decided(Verdict::Undecidable)) => Changed::Undecidable,
            Some(Outcome::Refused(refusal)) => Changed::Refused(refusal),
            Some(Outcome::Queued | Outcome::Decided(_)) | None => Changed::Pending,
        }
    }

    /// What is waited when a client prefers to wait so long; it may prefer less than the service would wait, not more.
    pub fn waiting_time(&self, preferred: Option<Duration>) -> Duration {
        preferred.map_or(self.order_timeout, |preferred| preferred.min(self.order_timeout))
    }

    /// Queues a command, and waits for what becomes of it.
    async fn ask(&self, command: Command, wait: Duration) -> Option<Outcome> {
        let Some(reply) = self.pending.register(command.id()) else {
            return Some(Outcome::Refused(Refusal::Overloaded));
        };
        // Who does not wait for the verdict hears as soon as the command is queued.
        let wait = if command.is_detached() { self.order_timeout } else { wait };
        let wait = if self.pending.is_closing() { wait.min(WAIT_WHILE_CLOSING) } else { wait };
        let detached = command.clone().detached();
        self.submitter.submit(command);
        match timeout(wait, reply).await {
            Ok(Some(outcome)) => Some(outcome),
            Ok(None) | Err(_) => self.detach(detached).await,
        }
    }

    /// The client is about to be told that there will be a verdict: sees to it. The first copy may be anywhere: in a lane, in
    /// a worker's hands, decided with a reply that got lost. Waits until the second one is queued, but not for long.
    async fn detach(&self, command: Command) -> Option<Outcome> {
        let Some(reply) = self.pending.register(command.id()) else {
            self.submitter.submit_or_park(command);
            return None;
        };
        self.submitter.submit_or_park(command);
        match timeout(QUEUED_WITHIN, reply).await.ok().flatten() {
            // The lane decides the detached copy by itself, and pieces may have come back meanwhile: that verdict counts.
            Some(Outcome::Decided(Verdict::Rejected(_)) | Outcome::Refused(_) | Outcome::Queued) | None => {
                None
            }
            decided => decided,
        }
    }

    /// Waits until all is queued of which clients were told that there will be a verdict.
    pub async fn flush(&self) {
        self.submitter.drain().await;
    }

    /// Whether an order that is not on record may still be in line: antre gave its id out, not too long ago and not in times
    /// to come.
    pub fn may_be_pending(&self, id: OrderId) -> bool {
        id.is_genuine() && !id.is_from_the_future() && self.submitter.may_be_pending(id)
    }

    /// Opens the lane of a new product. A failure is no more than a delay, see [`Submitter::open_lane`].
    pub async fn open_lane(&self, product_id: ProductId) {
        if let Err(error) = self.submitter.open_lane(product_id).await
            && let Some(left_out) = self.lanes_not_opened.due()
        {
            tracing::warn!(%product_id, %error, left_out, "the lane will be opened by its first order");
        }
    }

    /// Whether orders get in line now.
    pub fn probe(&self) -> Arc<dyn Ping> {
        self.submitter.clone()
    }

    async fn is_product(&self, id: ProductId) -> Result<bool, StoreError> {
        if self.knows(id) {
            return Ok(true);
        }
        let exists = self.products.find(id).await?.is_some();
        if exists {
            self.known_products.write().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        Ok(exists)
    }

    fn knows(&self, id: ProductId) -> bool {
        self.known_products.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// The answer to an order that was placed under the same idempotency key earlier: this one.
fn again(order: Order) -> Placed {
    match (order.status(), order.state) {
        (_, OrderState::Rejected(rejection)) => Placed::Rejected { rejection, replayed: true },
        (OrderStatus::Reserved | OrderStatus::Paid, _) => Placed::Accepted { order, replayed: true },
        _ => Placed::NotReserved(order),
    }
}

/// Not to wait at all is to be detached.
fn reply_mode(id: CommandId, wait: Duration) -> ReplyMode {
    if wait.is_zero() {
        return ReplyMode::Detached;
    }
    let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    ReplyMode::Until(from_millis(id.as_order().created_at().as_millisecond().saturating_add(wait_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{queue::memory::MemoryQueue, store::sqlite::SqliteStore};

    async fn ordering(order_timeout: Duration) -> (tempfile::TempDir, MemoryQueue, OrderService, ProductId) {
        ordering_with(order_timeout, 2).await
    }

    async fn ordering_with(
        order_timeout: Duration,
        lane_capacity: usize,
    ) -> (tempfile::TempDir, MemoryQueue, OrderService, ProductId) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let queue = MemoryQueue::new(lane_capacity);
        let ordering =
            OrderService::new(store, &queue, order_timeout, CancellationToken::new()).await.unwrap();
        (directory, queue, ordering, product.id)
    }

    #[tokio::test]
    async fn no_verdict_by_the_deadline_is_pending_and_leaves_nothing_behind() {
        let (_directory, _queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let placed = ordering.place(product_id, Quantity::new(1).unwrap(), None, None).await.unwrap();
        let Placed::Pending(id) = placed else { panic!("{placed:?}") };
        assert!(ordering.may_be_pending(id));
        assert!(!ordering.may_be_pending(uuid::Uuid::now_v7().into()));
        assert_eq!(ordering.pending.count(), 0);
    }

    #[test]
    fn only_who_does_not_wait_at_all_is_detached() {
        let id = CommandId::generate();
        assert_eq!(reply_mode(id, Duration::ZERO), ReplyMode::Detached);
        for wait in [Duration::from_nanos(1), Duration::from_secs(10), Duration::MAX] {
            assert!(matches!(reply_mode(id, wait), ReplyMode::Until(_)), "{wait:?}");
        }
    }

    #[tokio::test]
    async fn a_buyer_who_leaves_leaves_nothing_behind() {
        let (_directory, _queue, ordering, product_id) = ordering(Duration::from_secs(60)).await;
        let ordering = Arc::new(ordering);
        let buyer = tokio::spawn({
            let ordering = ordering.clone();
            async move { ordering.place(product_id, Quantity::new(1).unwrap(), None, None).await }
        });
        while ordering.pending.count() == 0 {
            tokio::task::yield_now().await;
        }
        buyer.abort();
        assert!(buyer.await.unwrap_err().is_cancelled());
        assert_eq!(ordering.pending.count(), 0);
    }

    #[tokio::test]
    async fn a_full_lane_refuses_at_once() {
        let (_directory, _queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let one = Quantity::new(1).unwrap();
        for _ in 0..2 {
            assert!(matches!(ordering.place(product_id, one, None, None).await.unwrap(), Placed::Pending(_)));
        }
        assert_eq!(
            ordering.place(product_id, one, None, None).await.unwrap(),
            Placed::Refused(Refusal::LaneFull)
        );
        assert_eq!(ordering.pending.count(), 0);
    }

    #[tokio::test]
    async fn the_closed_gate_lets_orders_with_a_key_through() {
        let (_directory, _queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        ordering.sold_out_cache.report_sold_out(product_id); // rightly: it is new
        let one = Quantity::new(1).unwrap();
        assert_eq!(ordering.place(product_id, one, None, None).await.unwrap(), Placed::rejected(SOLD_OUT));
        let key = Some("a-key".to_owned().try_into().unwrap());
        assert!(matches!(ordering.place(product_id, one, key, None).await.unwrap(), Placed::Pending(_)));
    }

    /// The command that a worker takes next.
    async fn next_command(queue: &MemoryQueue) -> Command {
        let deliveries = queue.consumer().await.unwrap().take(1).await.unwrap();
        deliveries[0].commands[0].clone()
    }

    #[tokio::test]
    async fn who_is_told_to_look_later_leaves_a_detached_copy() {
        let (_directory, queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let one = Quantity::new(1).unwrap();
        // A worker holds the first copy, and its lane is full: the second one is queued all the same.
        let mut worker = queue.consumer().await.unwrap();
        let (placed, held) = tokio::join!(ordering.place(product_id, one, None, None), worker.take(1));
        let Placed::Pending(id) = placed.unwrap() else { panic!() };
        let held = held.unwrap();
        assert!(!held[0].commands[0].is_detached());
        worker.settle(held, crate::queue::Completion::default()).await.unwrap();
        let copy = next_command(&queue).await;
        assert!(copy.is_detached() && copy.id() == id.into());
    }

    #[tokio::test]
    async fn who_waits_when_the_process_stops_is_told_to_look_later() {
        let (directory, queue, _, product_id) = ordering(Duration::from_secs(60)).await;
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        let stop = CancellationToken::new();
        let ordering = OrderService::new(store, &queue, Duration::from_secs(60), stop.clone()).await.unwrap();
        let one = Quantity::new(1).unwrap();
        assert!(ordering.is_product(product_id).await.unwrap());
        tokio::time::pause();
        let began = Instant::now();
        stop.cancel();
        let placed = ordering.place(product_id, one, None, None).await.unwrap();
        assert!(matches!(placed, Placed::Pending(_)) && began.elapsed() <= WAIT_AFTER_STOP + QUEUED_WITHIN);
        let began = Instant::now();
        let placed = ordering.place(product_id, one, None, None).await.unwrap();
        assert!(
            matches!(placed, Placed::Pending(_)) && began.elapsed() <= WAIT_WHILE_CLOSING + QUEUED_WITHIN
        );
        assert!(next_command(&queue).await.is_detached());
        assert_eq!(ordering.pending.count(), 0);
    }

    #[tokio::test]
    async fn an_unknown_product_gets_no_lane() {
        let (_directory, queue, ordering, _) = ordering(Duration::from_secs(60)).await;
        let stranger = ProductId::new(4711).unwrap();
        let placed = ordering.place(stranger, Quantity::new(1).unwrap(), None, None).await.unwrap();
        assert_eq!(placed, Placed::rejected(Rejection::ProductNotFound));
        queue.drain().await;
    }
}
