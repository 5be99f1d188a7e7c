//! Places an order: puts it in line and waits for its verdict, until the deadline.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use crate::{
    gate::Gate,
    inventory::StockNews,
    order::{
        NewOrder, Order, OrderId, OrderState, OrderStatus, Quantity, Rejection, Verdict, from_millis, now,
    },
    product::ProductId,
    queue::{Inbox, Outcome, Ping, Queue, QueueError, Refusal, Submitter},
    store::{Store, StoreError},
};

/// How many orders of one process may wait for their verdicts.
const MAX_WAITING: usize = 65_536;

/// What a buyer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The pieces are reserved, committed in the database.
    Reserved(Order),
    /// Nothing was reserved.
    Rejected(Rejection),
    /// Nobody knows yet: no verdict by the deadline.
    Pending(OrderId),
    /// The order did not get in line.
    Refused(Refusal),
}

/// Puts orders in line and knows who waits for which.
pub struct Placement {
    store: Arc<dyn Store>,
    submitter: Arc<dyn Submitter>,
    waiting: Arc<WaitingRoom>,
    gate: Arc<Gate>,
    order_timeout: Duration,
    /// Products that exist. A product is never deleted, so what is in here stays true.
    known_products: RwLock<HashSet<ProductId>>,
    /// Who looks whether a product exists holds the one of its id; see [`Placement::is_product`].
    lookups: [tokio::sync::Mutex<()>; LOOKUPS],
}

/// How many products can be looked up side by side without waiting for each other.
const LOOKUPS: usize = 256;

impl Placement {
    /// Gets an end of the queue for itself.
    pub async fn new(
        store: Arc<dyn Store>,
        queue: &dyn Queue,
        order_timeout: Duration,
    ) -> Result<Self, QueueError> {
        let (waiting, gate) = (Arc::new(WaitingRoom::default()), Arc::new(Gate::default()));
        let desk = FrontDesk { waiting: waiting.clone(), gate: gate.clone() };
        let submitter = queue.submitter(Arc::new(desk)).await?;
        let (known_products, lookups) = (RwLock::default(), std::array::from_fn(|_| Default::default()));
        Ok(Self { store, submitter, waiting, gate, order_timeout, known_products, lookups })
    }

    /// Places an order and waits for its verdict. When the caller goes away, so does everything that waits; the
    /// order itself stays in line.
    pub async fn place(&self, product_id: ProductId, total: Quantity) -> Result<Placed, StoreError> {
        if self.gate.is_closed(product_id) {
            return Ok(Placed::Rejected(Rejection::InsufficientStock { available: 0 }));
        }
        if !self.is_product(product_id).await? {
            return Ok(Placed::Rejected(Rejection::ProductNotFound));
        }
        let wait_ms = i64::try_from(self.order_timeout.as_millis()).unwrap_or(i64::MAX);
        let answer_by = from_millis(now().as_millisecond().saturating_add(wait_ms));
        let order = NewOrder { id: OrderId::mint(), product_id, total, answer_by };
        let Some(seat) = WaitingRoom::sit_down(&self.waiting, order.id) else {
            return Ok(Placed::Refused(Refusal::LaneFull));
        };
        self.submitter.submit(order);
        Ok(match timeout(self.order_timeout, seat).await {
            Ok(Some(Outcome::Decided(Verdict::Reserved { expires_at }))) => {
                let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
                Placed::Reserved(Order { id: order.id, product_id, total, state })
            }
            Ok(Some(Outcome::Decided(Verdict::Rejected(rejection)))) => Placed::Rejected(rejection),
            Ok(Some(Outcome::Refused(refusal))) => Placed::Refused(refusal),
            Ok(None) | Err(_) => Placed::Pending(order.id),
        })
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

    /// Tells all APIs that a product's stock was counted anew, before the seller hears that it is done. APIs that the
    /// news does not reach find out by themselves within [`Gate::MAX_CLOSED`].
    pub async fn tell(&self, news: StockNews) {
        self.gate.hear(news);
        if let Err(error) = self.submitter.tell(news).await {
            tracing::warn!(%error, product_id = %news.product_id, "other APIs hear of the new stock a moment later");
        }
    }

    /// Whether orders get in line now.
    pub fn probe(&self) -> Arc<dyn Ping> {
        self.submitter.clone()
    }

    /// When a sale begins, thousands of orders at once ask for a product that this process has not met yet, and the
    /// store's connections are few. So one asks, and the others wait for what it learns; if that is nothing, each
    /// asks for itself.
    async fn is_product(&self, id: ProductId) -> Result<bool, StoreError> {
        if self.knows(id) {
            return Ok(true);
        }
        let lookup = &self.lookups[(id.get() % LOOKUPS as u64) as usize];
        let first = lookup.try_lock();
        if first.is_err() {
            drop(lookup.lock().await);
            if self.knows(id) {
                return Ok(true);
            }
        }
        let exists = self.store.product(id).await?.is_some();
        if exists {
            self.known_products.write().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        Ok(exists)
    }

    fn knows(&self, id: ProductId) -> bool {
        self.known_products.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// Who waits for which order.
#[derive(Default)]
struct WaitingRoom(Mutex<HashMap<OrderId, oneshot::Sender<Outcome>>>);

impl WaitingRoom {
    /// `None`: the room is full.
    fn sit_down(room: &Arc<Self>, id: OrderId) -> Option<Seat> {
        let mut seats = room.seats();
        if seats.len() >= MAX_WAITING {
            return None;
        }
        let (sender, outcome) = oneshot::channel();
        seats.insert(id, sender);
        drop(seats);
        Some(Seat { room: room.clone(), id, outcome, is_called: false })
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<OrderId, oneshot::Sender<Outcome>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where everything that the queue says arrives.
struct FrontDesk {
    waiting: Arc<WaitingRoom>,
    gate: Arc<Gate>,
}

impl Inbox for FrontDesk {
    fn deliver(&self, outcomes: Vec<(OrderId, Outcome)>) {
        self.waiting.deliver(outcomes);
    }

    fn hear(&self, news: StockNews) {
        self.gate.hear(news);
    }
}

impl WaitingRoom {
    fn deliver(&self, outcomes: Vec<(OrderId, Outcome)>) {
        let called: Vec<_> = {
            let mut seats = self.seats();
            outcomes.into_iter().filter_map(|(id, outcome)| Some((seats.remove(&id)?, outcome))).collect()
        };
        for (seat, outcome) in called {
            let _ = seat.send(outcome); // its buyer may have left just now
        }
    }
}

/// One who waits for an outcome. Dropping it leaves nothing behind.
struct Seat {
    room: Arc<WaitingRoom>,
    id: OrderId,
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
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let queue = InProcessQueue::new(2);
        let placement = Placement::new(store, &queue, order_timeout).await.unwrap();
        (directory, queue, placement, product.id)
    }

    #[tokio::test]
    async fn no_verdict_by_the_deadline_is_pending_and_leaves_nothing_behind() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_millis(20)).await;
        let placed = placement.place(product_id, Quantity::new(1).unwrap()).await.unwrap();
        let Placed::Pending(id) = placed else { panic!("{placed:?}") };
        assert!(placement.may_be_pending(id));
        assert!(!placement.may_be_pending(uuid::Uuid::now_v7().into()));
        assert_eq!(placement.waiting.seats().len(), 0);
    }

    #[tokio::test]
    async fn a_buyer_who_leaves_leaves_nothing_behind() {
        let (_directory, _queue, placement, product_id) = placement(Duration::from_secs(60)).await;
        let placement = Arc::new(placement);
        let buyer = tokio::spawn({
            let placement = placement.clone();
            async move { placement.place(product_id, Quantity::new(1).unwrap()).await }
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
            assert!(matches!(placement.place(product_id, one).await.unwrap(), Placed::Pending(_)));
        }
        assert_eq!(placement.place(product_id, one).await.unwrap(), Placed::Refused(Refusal::LaneFull));
        assert_eq!(placement.waiting.seats().len(), 0);
    }

    #[tokio::test]
    async fn an_unknown_product_gets_no_lane() {
        let (_directory, queue, placement, _) = placement(Duration::from_secs(60)).await;
        let stranger = ProductId::new(4711).unwrap();
        let placed = placement.place(stranger, Quantity::new(1).unwrap()).await.unwrap();
        assert_eq!(placed, Placed::Rejected(Rejection::ProductNotFound));
        queue.drained().await;
    }
}
