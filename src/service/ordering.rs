//! Orders: places them, changes them, and looks them up.
//!
//! A new order or a change is a command: it is queued in its product's lane, and the client waits for the verdict until its
//! deadline. What is final, and what a product or key is known for, is answered without the lane.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    domain::{
        command::{ChangeOrder, NewOrder},
        ids::{IdempotencyKey, OrderId},
        lines::Lines,
        names::Buyer,
        order::{Change, Order, OrderState, OrderStatus},
        origin::Origin,
        product::ProductState,
        rejection::Rejection,
        verdict::Verdict,
    },
    monitor::metrics::ApiMetrics,
    queue::Outcome,
    service::{
        answers::{change_answer, changed, order_answer},
        batch_loader::BatchLoader,
        dispatcher::{Dispatcher, reply_mode},
        order_gate::OrderGate,
        verdict_waits::VerdictWaits,
    },
    store::{Catalog, GivenUp, Orders, Page, StoreError},
};

pub use super::answers::{ChangeError, LookupError, OrderChange, OrderLookup, PlaceError, Placement};
pub use crate::store::{Direction, OrderPage};

/// The shortest wait that is left after lookups.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// What a client wants to order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub lines: Lines,
    pub buyer: Option<Buyer>,
    pub key: Option<IdempotencyKey>,
}

/// What a request says besides what it wants.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// How long its client prefers to wait for the verdict. `None`: the order timeout.
    pub wait: Option<Duration>,
    pub origin: Origin,
}

/// Which orders are listed.
#[derive(Clone, Debug)]
pub enum OrderList {
    Page(OrderPage),
    /// The order of this key, if it belongs to the list of this page: none or one.
    OfKey(IdempotencyKey, OrderPage),
    /// Pending orders: none, because they are not stored.
    Pending,
}

/// What buyers do with orders.
pub struct OrderService {
    stored_orders: Arc<dyn Orders>,
    dispatcher: Arc<Dispatcher>,
    gate: Arc<OrderGate>,
    orders: Arc<BatchLoader<OrderId>>,
    keys: Arc<BatchLoader<IdempotencyKey>>,
    verdict_waits: VerdictWaits,
    metrics: Arc<ApiMetrics>,
}

impl OrderService {
    pub fn new(
        catalog: Arc<dyn Catalog>,
        orders: Arc<dyn Orders>,
        dispatcher: Arc<Dispatcher>,
        metrics: Arc<ApiMetrics>,
    ) -> Self {
        Self {
            gate: OrderGate::new(catalog, metrics.clone()),
            orders: Arc::new(BatchLoader::new(orders.clone())),
            keys: Arc::new(BatchLoader::new(orders.clone())),
            verdict_waits: VerdictWaits::default(),
            dispatcher,
            stored_orders: orders,
            metrics,
        }
    }

    /// Places an order and waits for its verdict, for as long as the call says but no longer than the order timeout. A wait of 0
    /// ends when the order is queued, unless its key is stored. When the caller goes away, the order stays in its lane.
    pub async fn place(&self, request: Request, call: Call) -> Result<Placement, PlaceError> {
        let answer = self.try_to_place(request, call).await;
        self.metrics.order_answered(order_answer(&answer));
        answer
    }

    async fn try_to_place(
        &self,
        request: Request,
        Call { wait, origin }: Call,
    ) -> Result<Placement, PlaceError> {
        let (wait, began) = (self.waiting_time(wait), Instant::now());
        let rejected = |rejection| Err(PlaceError::Rejected { rejection, replayed: false });
        let lane = request.lines.first().product_id;
        // Only the lane knows what a key stands for: an earlier copy of the order may be stored, or be queued still and about
        // to be reserved. Without a key a rejection that comes at once is as good as a stored one, and costs no row.
        if request.key.is_none()
            && let Some(rejection) = self.closed_to(&request.lines).await
        {
            self.metrics.refused_early(rejection.reason());
            self.dispatcher.activity().refuse_early(lane);
            return rejected(rejection);
        }
        let mut archived = None;
        for product_id in request.lines.products() {
            match self.dispatcher.products().state(product_id).await? {
                Some(ProductState::Live) => {}
                Some(ProductState::Archived) => archived = archived.or(Some(product_id)),
                None => return rejected(Rejection::ProductNotFound { product_id }),
            }
        }
        // A stored order is answered at once, without another id for it.
        if (wait.is_zero() || archived.is_some())
            && let Some(stored) = self.find_by_key(&request).await?
        {
            return stored;
        }
        if let Some(product_id) = archived {
            return rejected(Rejection::ProductNotFound { product_id });
        }
        // Deduct the lookup time from the wait, but keep at least 1 ms: a wait of 0 means detached.
        let wait = wait.min(wait.saturating_sub(began.elapsed()).max(MIN_WAIT));
        let id = self.dispatcher.clock().order_id();
        let Request { lines, buyer, key } = request.clone();
        let order = NewOrder { id, lines, buyer, reply: reply_mode(id.into(), wait), key, origin };
        let outcome = self.dispatcher.dispatch(order.into(), wait).await;
        match outcome {
            Some(Outcome::Decided(Verdict::Rejected(rejection))) => self.gate.learn(rejection),
            // No API learns the verdicts on detached orders: the gate reads instead.
            Some(Outcome::Queued) => {
                request.lines.products().for_each(|product_id| self.gate.check_soon(product_id))
            }
            _ => {}
        }
        match outcome {
            Some(Outcome::Decided(_)) if wait.is_zero() => Ok(Placement::Pending(id)),
            Some(Outcome::Decided(Verdict::Reserved { expires_at })) => {
                let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
                let Request { lines, buyer, .. } = request;
                let order = Order { id, lines: Some(lines), buyer, payment: None, state };
                Ok(Placement::Accepted { order, replayed: false })
            }
            Some(Outcome::Decided(Verdict::Rejected(rejection))) => rejected(rejection),
            Some(Outcome::Decided(Verdict::AlreadyPlaced(order))) => replay(order),
            Some(Outcome::Decided(Verdict::Undecidable)) => Err(PlaceError::Undecidable),
            // The lane would have found the order of this key; without it, the API must look.
            Some(Outcome::Refused(refusal)) => {
                self.find_by_key(&request).await?.unwrap_or(Err(PlaceError::Refused(refusal)))
            }
            Some(Outcome::Queued | Outcome::Decided(Verdict::Current(_) | Verdict::OrderNotFound)) | None => {
                Ok(Placement::Pending(id))
            }
        }
    }

    /// Why the gate refuses an order of these lines; `None`: it may be accepted.
    async fn closed_to(&self, lines: &Lines) -> Option<Rejection> {
        for product_id in lines.products() {
            if let Some(rejection) = self.gate.closed(product_id).await {
                return Some(rejection);
            }
        }
        None
    }

    /// The answer to an order whose key is stored, `None` if it is not.
    async fn find_by_key(
        &self,
        Request { lines, buyer, key }: &Request,
    ) -> Result<Option<Result<Placement, PlaceError>>, StoreError> {
        let Some(key) = key else { return Ok(None) };
        let Some(order) = self.keys.load(key.clone()).await? else { return Ok(None) };
        Ok(Some(if order.is_for(lines, buyer.as_ref()) {
            replay(order)
        } else {
            Err(PlaceError::Rejected { rejection: Rejection::KeyReused, replayed: false })
        }))
    }

    /// Changes an order and waits for the verdict, as [`OrderService::place`] does. What only one outcome is possible of is answered
    /// without the lane.
    pub async fn change(&self, id: OrderId, change: Change, call: Call) -> Result<OrderChange, ChangeError> {
        let kind = change.kind();
        let answer = self.try_to_change(id, change, call).await;
        self.metrics.change_answered(kind, change_answer(&answer));
        answer
    }

    async fn try_to_change(
        &self,
        id: OrderId,
        change: Change,
        call: Call,
    ) -> Result<OrderChange, ChangeError> {
        let order = match self.status(id).await? {
            Some(OrderLookup::Stored(order)) => order,
            Some(OrderLookup::Pending(_)) if change == Change::Cancel => {
                match self.stored_orders.give_up(id).await? {
                    GivenUp::Done(order) => return Ok(OrderChange::Done(order)),
                    GivenUp::Stored(order) => order,
                }
            }
            Some(OrderLookup::Pending(_)) => return Err(ChangeError::NotDecided),
            None => return Err(ChangeError::NotFound(id)),
        };
        let order = match change.kind().may_change(order.status()) {
            true => match self.decide_change(order, change.clone(), call).await? {
                OrderChange::Done(order) => order,
                pending => return Ok(pending),
            },
            false => order,
        };
        if matches!(order.status(), OrderStatus::Cancelled | OrderStatus::Expired | OrderStatus::Returned) {
            // A client that learns that pieces came back can order them, at every API.
            OrderGate::outlast_leases().await;
        }
        changed(&change, order)
    }

    /// What the lane makes of an order: [`OrderChange::Done`], whatever status it has then.
    async fn decide_change(
        &self,
        order: Order,
        change: Change,
        Call { wait, origin }: Call,
    ) -> Result<OrderChange, ChangeError> {
        let wait = self.waiting_time(wait);
        let id = self.dispatcher.clock().command_id();
        let Some(change) = ChangeOrder::of(&order, id, change, reply_mode(id, wait), origin) else {
            return Ok(OrderChange::Done(order)); // cancelled before its turn
        };
        match self.dispatcher.dispatch(change.into(), wait).await {
            Some(Outcome::Decided(_)) if wait.is_zero() => Ok(OrderChange::Pending(order)),
            Some(Outcome::Decided(Verdict::Current(order))) => Ok(OrderChange::Done(order)),
            Some(Outcome::Decided(Verdict::OrderNotFound)) => Err(ChangeError::NotFound(order.id)),
            Some(Outcome::Decided(Verdict::Undecidable)) => Err(ChangeError::Undecidable),
            Some(Outcome::Refused(refusal)) => Err(ChangeError::Refused(refusal)),
            Some(Outcome::Queued | Outcome::Decided(_)) | None => Ok(OrderChange::Pending(order)),
        }
    }

    /// What is known of an order; `None` if there is none.
    pub async fn status(&self, id: OrderId) -> Result<Option<OrderLookup>, StoreError> {
        // Ask this before the database: an order that is decided in between is found there.
        let may_be_pending = self.dispatcher.may_be_pending(id);
        Ok(match self.orders.load(id).await? {
            Some(order) => Some(OrderLookup::Stored(order)),
            None => may_be_pending.then_some(OrderLookup::Pending(id)),
        })
    }

    /// The same once the order is decided: a pending one is answered when it is, or when `wait` or the order timeout is over.
    pub async fn status_when_decided(
        &self,
        id: OrderId,
        wait: Duration,
    ) -> Result<Option<OrderLookup>, LookupError> {
        let (wait, stop) = (self.waiting_time(Some(wait)), self.dispatcher.stop());
        self.verdict_waits.until_decided(wait, stop, || self.status(id)).await
    }

    /// A page of the stored orders.
    pub async fn list(&self, list: OrderList) -> Result<Page<Order, OrderId>, StoreError> {
        match list {
            OrderList::Page(page) => self.stored_orders.orders(page).await,
            OrderList::OfKey(key, page) => {
                let found = self.keys.load(key).await?.filter(|order| page.has(order));
                Ok(Page { rows: found.into_iter().collect(), next: None })
            }
            OrderList::Pending => Ok(Page::empty()),
        }
    }

    /// How long a client waits that prefers to wait this long: it may prefer less than the order timeout, not more.
    pub fn waiting_time(&self, preferred: Option<Duration>) -> Duration {
        self.dispatcher.waiting_time(preferred)
    }
}

/// The answer to an order whose idempotency key belongs to this one, which was placed earlier.
fn replay(order: Order) -> Result<Placement, PlaceError> {
    match (order.status(), order.state) {
        (_, OrderState::Rejected(rejection)) => Err(PlaceError::Rejected { rejection, replayed: true }),
        (OrderStatus::Reserved | OrderStatus::Paid, _) => Ok(Placement::Accepted { order, replayed: true }),
        _ => Err(PlaceError::NotReserved(Box::new(order))),
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::Command,
            ids::ProductId,
            order::{ChangeKind, Quantity},
            rules::Rules,
        },
        monitor::{activity::Activity, metrics::Metrics},
        queue::{Queue, Refusal, memory::MemoryQueue},
        service::{
            dispatcher::{DETACH_TIMEOUT, WAIT_AFTER_STOP, WAIT_WHILE_CLOSING},
            known_products::KnownProducts,
        },
        store::{Ledger, Store, memory::MemoryStore},
    };

    async fn service(
        store: Arc<impl Store + 'static>,
        queue: &dyn Queue,
        timeout: Duration,
        stop: CancellationToken,
    ) -> OrderService {
        let (metrics, clock) = (Metrics::unwatched().api, Arc::new(SystemClock));
        let activity = Arc::new(Activity::new(clock.clone()));
        let products = Arc::new(KnownProducts::new(store.clone()));
        let dispatcher =
            Dispatcher::new(queue, products, timeout, clock, activity, stop, metrics.clone()).await;
        OrderService::new(store.clone(), store, Arc::new(dispatcher.unwrap()), metrics)
    }

    /// One piece of the product.
    fn request(product_id: ProductId, key: Option<IdempotencyKey>) -> Request {
        Request { lines: Lines::one(product_id, Quantity::new(1).unwrap()), buyer: None, key }
    }

    fn is_rejected(result: Result<Placement, PlaceError>, wanted: Rejection) -> bool {
        matches!(result, Err(PlaceError::Rejected { rejection, replayed: false, .. }) if rejection == wanted)
    }

    async fn ordering(order_timeout: Duration) -> (MemoryQueue, OrderService, ProductId) {
        ordering_with(order_timeout, 2).await
    }

    async fn ordering_with(
        order_timeout: Duration,
        lane_capacity: usize,
    ) -> (MemoryQueue, OrderService, ProductId) {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let queue = MemoryQueue::new(lane_capacity, SystemClock.now());
        let ordering = service(store, &queue, order_timeout, CancellationToken::new()).await;
        (queue, ordering, product.id)
    }

    #[tokio::test]
    async fn no_verdict_by_the_deadline_is_pending_and_leaves_no_pending_reply() {
        let (_queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let placed = ordering.place(request(product_id, None), Call::default()).await.unwrap();
        let Placement::Pending(id) = placed else { panic!("{placed:?}") };
        assert!(ordering.dispatcher.may_be_pending(id));
        assert!(!ordering.dispatcher.may_be_pending(uuid::Uuid::now_v7().into()));
        assert_eq!(ordering.dispatcher.pending_count(), 0);
    }

    #[tokio::test]
    async fn a_client_that_leaves_leaves_no_pending_reply() {
        let (_queue, ordering, product_id) = ordering(Duration::from_secs(60)).await;
        let ordering = Arc::new(ordering);
        let buyer = tokio::spawn({
            let ordering = ordering.clone();
            async move { ordering.place(request(product_id, None), Call::default()).await }
        });
        while ordering.dispatcher.pending_count() == 0 {
            tokio::task::yield_now().await;
        }
        buyer.abort();
        assert!(buyer.await.unwrap_err().is_cancelled());
        assert_eq!(ordering.dispatcher.pending_count(), 0);
    }

    #[tokio::test]
    async fn a_full_lane_refuses_at_once() {
        let (_queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        for _ in 0..2 {
            assert!(matches!(
                ordering.place(request(product_id, None), Call::default()).await.unwrap(),
                Placement::Pending(_)
            ));
        }
        let refused = ordering.place(request(product_id, None), Call::default()).await;
        assert!(matches!(refused, Err(PlaceError::Refused(Refusal::LaneFull))));
        assert_eq!(ordering.dispatcher.pending_count(), 0);
    }

    #[tokio::test]
    async fn the_gate_lets_orders_with_a_key_through() {
        let (_queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let sold_out = Rejection::InsufficientStock { product_id, available: 0 };
        ordering.gate.learn(sold_out); // rightly: it is new
        assert!(is_rejected(ordering.place(request(product_id, None), Call::default()).await, sold_out));
        let key = Some("a-key".to_owned().try_into().unwrap());
        assert!(matches!(
            ordering.place(request(product_id, key), Call::default()).await.unwrap(),
            Placement::Pending(_)
        ));
    }

    /// The command that a worker takes next.
    async fn next_command(queue: &MemoryQueue) -> Command {
        let deliveries = queue.consumer().await.unwrap().take(1).await.unwrap();
        deliveries[0].commands[0].clone()
    }

    #[tokio::test]
    async fn a_202_leaves_a_detached_copy() {
        let (queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        // A worker holds the first copy, and its lane is full: the second one is queued all the same.
        let mut worker = queue.consumer().await.unwrap();
        let (placed, held) =
            tokio::join!(ordering.place(request(product_id, None), Call::default()), worker.take(1));
        let Placement::Pending(id) = placed.unwrap() else { panic!() };
        let held = held.unwrap();
        assert!(!held[0].commands[0].is_detached());
        worker.settle(held, crate::queue::Completion::default()).await.unwrap();
        let copy = next_command(&queue).await;
        assert!(copy.is_detached() && copy.id() == id.into());
    }

    #[tokio::test]
    async fn a_client_that_waits_when_the_process_stops_gets_202() {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let product_id = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
        let queue = MemoryQueue::new(100, SystemClock.now());
        let stop = CancellationToken::new();
        let ordering = service(store, &queue, Duration::from_secs(60), stop.clone()).await;
        assert!(ordering.dispatcher.products().state(product_id).await.unwrap().is_some());
        tokio::time::pause();
        let began = Instant::now();
        stop.cancel();
        let placed = ordering.place(request(product_id, None), Call::default()).await.unwrap();
        assert!(
            matches!(placed, Placement::Pending(_)) && began.elapsed() <= WAIT_AFTER_STOP + DETACH_TIMEOUT
        );
        let began = Instant::now();
        let placed = ordering.place(request(product_id, None), Call::default()).await.unwrap();
        assert!(
            matches!(placed, Placement::Pending(_)) && began.elapsed() <= WAIT_WHILE_CLOSING + DETACH_TIMEOUT
        );
        assert!(next_command(&queue).await.is_detached());
        assert_eq!(ordering.dispatcher.pending_count(), 0);
    }

    #[tokio::test]
    async fn an_unknown_product_gets_no_lane() {
        let (queue, ordering, _) = ordering(Duration::from_secs(60)).await;
        let stranger = ProductId::new(4711).unwrap();
        let placed = ordering.place(request(stranger, None), Call::default()).await;
        assert!(is_rejected(placed, Rejection::ProductNotFound { product_id: stranger }));
        queue.drain().await;
    }

    #[tokio::test]
    async fn an_order_that_is_not_stored_is_pending_or_not_found() {
        let (_queue, ordering, product_id) = ordering(Duration::from_millis(20)).await;
        let placed = ordering.place(request(product_id, None), Call::default()).await.unwrap();
        let Placement::Pending(id) = placed else { panic!("{placed:?}") };
        assert_eq!(ordering.status(id).await.unwrap(), Some(OrderLookup::Pending(id)));
        assert!(matches!(
            ordering.change(id, Change::Pay { reference: None }, Call::default()).await,
            Err(ChangeError::NotDecided)
        ));
        let stranger = OrderId::from(uuid::Uuid::now_v7());
        assert_eq!(ordering.status(stranger).await.unwrap(), None);
        let changed = ordering.change(stranger, Change::Pay { reference: None }, Call::default()).await;
        assert!(matches!(changed, Err(ChangeError::NotFound(id)) if id == stranger));
        // No worker is there, and it can be given up all the same.
        let given_up = Order::given_up(id);
        for _ in 0..2 {
            let changed = ordering.change(id, Change::Cancel, Call::default()).await.unwrap();
            assert_eq!(changed, OrderChange::Done(given_up.clone()));
        }
        assert_eq!(ordering.status(id).await.unwrap(), Some(OrderLookup::Stored(given_up)));
    }

    /// A worker decides what arrives.
    async fn work(queue: &MemoryQueue, store: &dyn Store) {
        let mut worker = queue.consumer().await.unwrap();
        loop {
            let deliveries = worker.take(10).await.unwrap();
            let commands: Vec<_> = deliveries.iter().flat_map(|one| one.commands.clone()).collect();
            let decided = store.decide(&commands, Rules::of_ttl(Duration::from_secs(60))).await.unwrap();
            let verdicts = commands.iter().map(Command::id).zip(decided.verdicts).collect();
            let replies = vec![crate::queue::Reply { to: deliveries[0].reply_to.clone(), verdicts }];
            worker
                .settle(deliveries, crate::queue::Completion { replies, events: Vec::new() })
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_change_is_done_conflicts_or_is_done_again() {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let product_id = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
        let queue = MemoryQueue::new(100, SystemClock.now());
        let ordering =
            service(store.clone(), &queue, Duration::from_secs(60), CancellationToken::new()).await;
        store.recount(product_id, crate::domain::inventory::Stock::new(1).unwrap()).await.unwrap();
        let client = async {
            let placed = ordering.place(request(product_id, None), Call::default()).await.unwrap();
            let Placement::Accepted { order, replayed: false } = placed else { panic!("{placed:?}") };
            let cancelled = order.clone().with_status(OrderStatus::Cancelled);
            for _ in 0..2 {
                let began = Instant::now();
                let changed = ordering.change(order.id, Change::Cancel, Call::default()).await.unwrap();
                assert_eq!(changed, OrderChange::Done(cancelled.clone()));
                assert!(began.elapsed() >= OrderGate::LEASE, "its pieces can be ordered at every API");
            }
            let paid = ordering.change(order.id, Change::Pay { reference: None }, Call::default()).await;
            assert!(matches!(paid, Err(ChangeError::Conflict(ChangeKind::Pay, OrderStatus::Cancelled))));
            assert_eq!(ordering.status(order.id).await.unwrap(), Some(OrderLookup::Stored(cancelled)));
        };
        tokio::select! {
            () = work(&queue, &*store) => {}
            () = client => {}
        }
    }
}
