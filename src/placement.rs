//! Places an order, or takes one further: puts the command in line and waits for its verdict, until the deadline.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{
    command::{Change, ChangeOrder, Command, CommandId, ReplyMode},
    gate::Gate,
    lookup::Lookup,
    order::{
        IdempotencyKey, NewOrder, Order, OrderId, OrderState, OrderStatus, Quantity, Rejection, Verdict,
        from_millis,
    },
    product::ProductId,
    queue::{Inbox, Outcome, Ping, Queue, QueueError, Refusal, Submitter},
    store::{Store, StoreError},
};

/// What is left at least of the time that a client waits.
const LEAST_WAIT: Duration = Duration::from_millis(1);

const SOLD_OUT: Rejection = Rejection::InsufficientStock { available: 0 };

/// How many commands of one process may wait for their verdicts.
const MAX_WAITING: usize = 65_536;

/// What a buyer is told of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The pieces were reserved, committed in the database: now, or earlier under the same idempotency key.
    Accepted(Order),
    /// Nothing was reserved.
    Rejected(Rejection),
    /// Nobody knows yet: no verdict by the deadline.
    Pending(OrderId),
    /// The order did not get in line.
    Refused(Refusal),
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
}

/// Puts commands in line and knows who waits for which.
pub struct Placement {
    submitter: Arc<dyn Submitter>,
    waiting: Arc<WaitingRoom>,
    gate: Arc<Gate>,
    order_timeout: Duration,
    keys: Arc<Lookup<IdempotencyKey>>,
    products: Arc<Lookup<ProductId>>,
    /// Products that exist. A product is never deleted, so what is in here stays true.
    known_products: RwLock<HashSet<ProductId>>,
}

impl Placement {
    /// Gets an end of the queue for itself.
    pub async fn new(
        store: Arc<dyn Store>,
        queue: &dyn Queue,
        order_timeout: Duration,
    ) -> Result<Self, QueueError> {
        let waiting = Arc::new(WaitingRoom::default());
        Ok(Self {
            submitter: queue.submitter(waiting.clone()).await?,
            waiting,
            gate: Gate::new(store.clone()),
            order_timeout,
            keys: Arc::new(Lookup::new(store.clone())),
            products: Arc::new(Lookup::new(store)),
            known_products: RwLock::default(),
        })
    }

    /// Places an order and waits for its verdict, for as long as `wait` says but no longer than the service's order
    /// timeout; not to wait at all is to wait until the order stands in line, unless its key is on record. When the caller
    /// goes away, so does everything that waits; the order itself stays in line.
    pub async fn place(
        &self,
        product_id: ProductId,
        total: Quantity,
        key: Option<IdempotencyKey>,
        wait: Option<Duration>,
    ) -> Result<Placed, StoreError> {
        let (wait, came) = (self.waiting_time(wait), Instant::now());
        // Who does not wait finds the rejection on record, so there the lane has to decide it. So it has to where there is a
        // key: an earlier copy of the order may be on record, or in line still and about to be reserved.
        if key.is_none() && !wait.is_zero() && self.gate.is_closed(product_id).await {
            return Ok(Placed::Rejected(SOLD_OUT));
        }
        if !self.is_product(product_id).await? {
            return Ok(Placed::Rejected(Rejection::ProductNotFound));
        }
        // What is on record is told at once, without another id for it.
        if wait.is_zero()
            && let Some(placed) = self.placed_earlier(key.as_ref(), product_id, total).await?
        {
            return Ok(placed);
        }
        // What was looked up is part of what he waits for. Not all of it: who does not wait at all is somebody else.
        let wait = wait.min(wait.saturating_sub(came.elapsed()).max(LEAST_WAIT));
        let id = OrderId::mint();
        let order = NewOrder { id, product_id, total, reply: reply_mode(id.into(), wait), key: key.clone() };
        Ok(match self.ask(order.into(), wait).await {
            Some(Outcome::Decided(_)) if wait.is_zero() => Placed::Pending(id),
            Some(Outcome::Decided(Verdict::Reserved { expires_at })) => {
                let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
                Placed::Accepted(Order { id, product_id, total, state })
            }
            Some(Outcome::Decided(Verdict::Rejected(rejection))) => {
                if rejection == SOLD_OUT {
                    self.gate.suspect(product_id);
                }
                Placed::Rejected(rejection)
            }
            Some(Outcome::Decided(Verdict::AlreadyPlaced(order))) => again(order),
            // The lane would have found what the key stands for; now nobody else looks.
            Some(Outcome::Refused(refusal)) => self
                .placed_earlier(key.as_ref(), product_id, total)
                .await?
                .unwrap_or(Placed::Refused(refusal)),
            Some(Outcome::InLine | Outcome::Decided(Verdict::Status(_) | Verdict::OrderNotFound)) | None => {
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
            false => Placed::Rejected(Rejection::KeyReused),
        }))
    }

    /// Takes an order on record further and waits for the verdict, as [`Placement::place`] does. What is final is
    /// answered without the lane. Who hears that an order gave its pieces back can order them, wherever he does.
    pub async fn change(&self, order: Order, change: Change, wait: Option<Duration>) -> Changed {
        let changed = self.decide_change(order, change, wait).await;
        if let Changed::Now(order) = changed
            && matches!(order.status(), OrderStatus::Cancelled | OrderStatus::Expired)
        {
            Gate::lease_is_over().await;
        }
        changed
    }

    async fn decide_change(&self, order: Order, change: Change, wait: Option<Duration>) -> Changed {
        if order.status() != OrderStatus::Reserved {
            return Changed::Now(order);
        }
        let wait = self.waiting_time(wait);
        let id = CommandId::mint();
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
            Some(Outcome::Refused(refusal)) => Changed::Refused(refusal),
            Some(Outcome::InLine | Outcome::Decided(_)) | None => Changed::Pending,
        }
    }

    /// What is waited when a client prefers to wait so long; it may prefer less than the service would wait, not more.
    pub fn waiting_time(&self, preferred: Option<Duration>) -> Duration {
        preferred.map_or(self.order_timeout, |preferred| preferred.min(self.order_timeout))
    }

    /// Puts a command in line, and waits for what becomes of it.
    async fn ask(&self, command: Command, wait: Duration) -> Option<Outcome> {
        let Some(seat) = WaitingRoom::sit_down(&self.waiting, command.id()) else {
            return Some(Outcome::Refused(Refusal::LaneFull));
        };
        // Who does not wait for the verdict hears as soon as the command stands in line.
        let wait = if command.is_detached() { self.order_timeout } else { wait };
        let detached = command.clone().detached();
        self.submitter.submit(command);
        match timeout(wait, seat).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // The lane stores the verdict on this copy, a rejection too.
                self.submitter.submit(detached);
                None
            }
        }
    }

    /// Whether an order that is not on record may still be in line: antre gave its id out, not too long ago.
    pub fn may_be_pending(&self, id: OrderId) -> bool {
        id.was_given_out() && self.submitter.may_hold(id)
    }

    /// Opens the lane of a new product. A failure is no more than a delay, see [`Submitter::open_lane`].
    pub async fn open_lane(&self, product_id: ProductId) {
        if let Err(error) = self.submitter.open_lane(product_id).await {
            tracing::warn!(%product_id, %error, "the lane will be opened by its first order");
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

/// The order on record that was placed under the same idempotency key earlier.
fn again(order: Order) -> Placed {
    match order.state {
        OrderState::Accepted { .. } => Placed::Accepted(order),
        OrderState::Rejected(rejection) => Placed::Rejected(rejection),
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

/// Who waits for which command.
#[derive(Default)]
struct WaitingRoom(Mutex<HashMap<CommandId, oneshot::Sender<Outcome>>>);

impl WaitingRoom {
    /// `None`: the room is full.
    fn sit_down(room: &Arc<Self>, id: CommandId) -> Option<Seat> {
        let mut seats = room.seats();
        if seats.len() >= MAX_WAITING {
            return None;
        }
        let (sender, outcome) = oneshot::channel();
        seats.insert(id, sender);
        drop(seats);
        Some(Seat { room: room.clone(), id, outcome, is_called: false })
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<CommandId, oneshot::Sender<Outcome>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for WaitingRoom {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) -> Vec<CommandId> {
        let (mut called, mut refused) = (Vec::with_capacity(outcomes.len()), Vec::new());
        {
            let mut seats = self.seats();
            for (id, outcome) in outcomes {
                match (seats.remove(&id), outcome) {
                    (Some(seat), outcome) => called.push((id, seat, outcome)),
                    (None, Outcome::Refused(_)) => refused.push(id),
                    (None, Outcome::InLine | Outcome::Decided(_)) => {}
                }
            }
        }
        for (id, seat, outcome) in called {
            // Its buyer may have left just now.
            if let Err(Outcome::Refused(_)) = seat.send(outcome) {
                refused.push(id);
            }
        }
        refused
    }
}

/// One who waits for an outcome. Dropping it leaves nothing behind.
struct Seat {
    room: Arc<WaitingRoom>,
    id: CommandId,
    outcome: oneshot::Receiver<Outcome>,
    /// Who is called is no longer in the room.
    is_called: bool,
}

impl Future for Seat {
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let outcome = Pin::new(&mut self.outcome).poll(context).map(Result::ok);
        self.is_called = outcome.is_ready();
        outcome
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.is_called {
            self.room.seats().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{queue::in_process::InProcessQueue, store::sqlite::SqliteStore};

    async fn placement(order_timeout: Duration) -> (tempfile::TempDir, InProcessQueue, Placement, ProductId) {
        placement_with(order_timeout, 2).await
    }

    async fn placement_with(
        order_timeout: Duration,
        lane_capacity: usize,
    ) -> (tempfile::TempDir, InProcessQueue, Placement, ProductId) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let queue = InProcessQueue::new(lane_capacity);
        let placement = Placement::new(store, &queue, order_timeout).await.unwrap();
        (directory, queue, placement, product.id)
    }

    #[tokio::test]
    async fn no_verdict_by_the_deadline_is_pending_and_leaves_nothing_behind() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_millis(20)).await;
        let placed = placement.place(product_id, Quantity::new(1).unwrap(), None, None).await.unwrap();
        let Placed::Pending(id) = placed else { panic!("{placed:?}") };
        assert!(placement.may_be_pending(id));
        assert!(!placement.may_be_pending(uuid::Uuid::now_v7().into()));
        assert_eq!(placement.waiting.seats().len(), 0);
    }

    #[test]
    fn only_who_does_not_wait_at_all_is_detached() {
        let id = CommandId::mint();
        assert_eq!(reply_mode(id, Duration::ZERO), ReplyMode::Detached);
        for wait in [Duration::from_nanos(1), Duration::from_secs(10), Duration::MAX] {
            assert!(matches!(reply_mode(id, wait), ReplyMode::Until(_)), "{wait:?}");
        }
    }

    #[tokio::test]
    async fn a_buyer_who_leaves_leaves_nothing_behind() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_secs(60)).await;
        let placement = Arc::new(placement);
        let buyer = tokio::spawn({
            let placement = placement.clone();
            async move { placement.place(product_id, Quantity::new(1).unwrap(), None, None).await }
        });
        while placement.waiting.seats().is_empty() {
            tokio::task::yield_now().await;
        }
        buyer.abort();
        assert!(buyer.await.unwrap_err().is_cancelled());
        assert_eq!(placement.waiting.seats().len(), 0);
    }

    #[tokio::test]
    async fn a_full_lane_refuses_at_once() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_millis(20)).await;
        let one = Quantity::new(1).unwrap();
        for _ in 0..2 {
            assert!(matches!(
                placement.place(product_id, one, None, None).await.unwrap(),
                Placed::Pending(_)
            ));
        }
        assert_eq!(
            placement.place(product_id, one, None, None).await.unwrap(),
            Placed::Refused(Refusal::LaneFull)
        );
        assert_eq!(placement.waiting.seats().len(), 0);
    }

    #[tokio::test]
    async fn the_closed_gate_lets_orders_with_a_key_through() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_millis(20)).await;
        placement.gate.suspect(product_id); // rightly: it is new
        let one = Quantity::new(1).unwrap();
        assert_eq!(
            placement.place(product_id, one, None, None).await.unwrap(),
            Placed::Rejected(Rejection::InsufficientStock { available: 0 })
        );
        let key = Some("a-key".to_owned().try_into().unwrap());
        assert!(matches!(placement.place(product_id, one, key, None).await.unwrap(), Placed::Pending(_)));
    }

    #[tokio::test]
    async fn an_unknown_product_gets_no_lane() {
        let (_directory, queue, placement, _) = placement(Duration::from_secs(60)).await;
        let stranger = ProductId::new(4711).unwrap();
        let placed = placement.place(stranger, Quantity::new(1).unwrap(), None, None).await.unwrap();
        assert_eq!(placed, Placed::Rejected(Rejection::ProductNotFound));
        queue.drained().await;
    }
}
