//! The order gate: while no order of a product can be accepted, because nothing of it is available or because of its terms of
//! sale, an API refuses its orders at once, so that a storm before the opening or after the last piece does not fill the
//! lane. Orders with an idempotency key are not refused: see
//! [`OrderService::place`](crate::service::ordering::OrderService::place).
//!
//! It knows one thing only: that a read of the database, which began at a certain moment, found the product closed to orders,
//! and why. This counts for one [`OrderGate::LEASE`] from that moment on. Halfway it reads again. An order that arrives when
//! the lease is over waits for a read that counts for it. So the gate may be trusted:
//!
//! - it refuses an order only if the product was closed at some moment less than a lease before the order arrived;
//! - a sale that is not open counts as closed only until [`OrderGate::OPENING_MARGIN`] before the opening, by the clock of the
//!   database: the lanes decide the opening;
//! - an API that opens a product (a recount, a cancellation, new terms) waits out one lease between the commit and the answer.
//!   Then no gate of any API refuses later orders on a read that began before the commit: a client that has the answer
//!   can order the pieces, at every API. No message has to arrive for that, and no clock has to agree with another;
//! - a client that learns of them otherwise may be refused for one lease more;
//! - when the database does not answer, no order is refused here: the orders are queued.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    domain::{ids::ProductId, rejection::Rejection},
    monitor::metrics::ApiMetrics,
    store::{Catalog, StoreError, TimeLimited},
};

/// What one API knows of products that are closed to orders.
pub struct OrderGate {
    store: Arc<TimeLimited<dyn Catalog>>,
    entries: Mutex<Entries>,
    /// Notified whenever a read is done.
    refreshed: Notify,
    metrics: Arc<ApiMetrics>,
}

#[derive(Debug, Default)]
struct Entries {
    /// A product without a lease may be open.
    leases: HashMap<ProductId, Lease>,
    is_refreshing: bool,
    /// Until when no product gets a lease, because a read failed.
    disabled_until: Option<Instant>,
    /// When [`OrderGate::check_soon`] last had an effect.
    checked_at: HashMap<ProductId, Instant>,
}

#[derive(Debug)]
struct Lease {
    expires_at: Instant,
    /// Why every order is refused, as the newest read says. `None`: none has said so yet.
    rejection: Option<Rejection>,
    /// When it will expire if the newest read that has begun finds it closed.
    renewed_expires_at: Instant,
    /// Must be read again.
    needs_refresh: bool,
}

impl OrderGate {
    /// How long a read that found a product closed counts, from when it began. All APIs must agree on it: a longer one would outlast
    /// the time that others wait. Short, because a recount, a cancellation and new terms wait for so long; long enough for a read to
    /// be back in time that begins at half of it. A slower database makes orders wait for reads, and changes nothing else.
    pub const LEASE: Duration = Duration::from_millis(20);

    /// How long before its opening a sale counts as closed at the latest. Longer than a lease and a read together: a gate refuses
    /// nothing that arrives after the opening.
    pub const OPENING_MARGIN: Duration = Duration::from_secs(1);

    /// How long a read may take before the gate is disabled.
    const READ_TIMEOUT: Duration = Duration::from_millis(250);
    /// How long the gate is disabled after a read that failed.
    const DISABLED_AFTER_FAILURE: Duration = Duration::from_secs(1);

    /// How often it reads a product at most because of orders whose verdicts no API learns.
    const CHECK_INTERVAL: Duration = Duration::from_millis(100);
    /// For how many products it remembers when it did.
    const MAX_CHECKED: usize = 10_000;

    pub fn new(store: Arc<dyn Catalog>, metrics: Arc<ApiMetrics>) -> Arc<Self> {
        let store = Arc::new(TimeLimited::new(store, Self::READ_TIMEOUT));
        Arc::new(Self { store, entries: Mutex::default(), refreshed: Notify::new(), metrics })
    }

    /// An order was rejected for this.
    pub fn learn(&self, rejection: Rejection) {
        match rejection {
            Rejection::InsufficientStock { product_id, available: 0 }
            | Rejection::SalePaused { product_id }
            | Rejection::SaleClosed { product_id } => self.report_closed(product_id),
            // In the last moment before the opening, a read for each order would be in vain.
            Rejection::SaleNotOpen { product_id, .. } => self.check_soon(product_id),
            _ => {}
        }
    }

    /// A verdict says that the product is closed to orders. That was a while ago: the next order triggers a read.
    fn report_closed(&self, product_id: ProductId) {
        let now = Instant::now();
        let mut entries = self.entries();
        if entries.disabled_until.is_none_or(|until| until <= now) {
            let lease =
                Lease { expires_at: now, rejection: None, renewed_expires_at: now, needs_refresh: false };
            entries.leases.entry(product_id).or_insert(lease);
            self.metrics.set_gated_products(entries.leases.len());
        }
    }

    /// The product may be closed: a detached order was queued, whose verdict no API learns, or its sale opens soon. The next order
    /// triggers a read, but not every one does.
    pub fn check_soon(&self, product_id: ProductId) {
        let now = Instant::now();
        {
            let mut entries = self.entries();
            let checked_at = &mut entries.checked_at;
            if checked_at.get(&product_id).is_some_and(|at| now.duration_since(*at) < Self::CHECK_INTERVAL) {
                return;
            }
            if checked_at.len() >= Self::MAX_CHECKED {
                checked_at.clear();
            }
            checked_at.insert(product_id, now);
        }
        self.report_closed(product_id);
    }

    /// Why every order of the product is refused: now, or less than a lease ago. `None`: it may be open.
    pub async fn closed(self: &Arc<Self>, product_id: ProductId) -> Option<Rejection> {
        let arrived_at = Instant::now();
        loop {
            let read = self.refreshed.notified();
            if let Some(known) = self.check(product_id, arrived_at) {
                return known;
            }
            read.await;
        }
    }

    /// What is known for an order that arrived then; `None`: it must wait for a read.
    fn check(self: &Arc<Self>, product_id: ProductId, arrived_at: Instant) -> Option<Option<Rejection>> {
        let mut entries = self.entries();
        let Some(lease) = entries.leases.get_mut(&product_id) else { return Some(None) };
        let known = lease.rejection.filter(|_| lease.expires_at > arrived_at);
        if lease.renewed_expires_at <= arrived_at + Self::LEASE / 2 {
            lease.needs_refresh = true;
            if !mem::replace(&mut entries.is_refreshing, true) {
                tokio::spawn(self.clone().read());
            }
        }
        known.map(Some)
    }

    /// Reads the products that need it, all with one statement, until none does.
    async fn read(self: Arc<Self>) {
        loop {
            let expires_at = Instant::now() + Self::LEASE; // before the read begins
            let Some(stale) = self.take_stale(expires_at) else { return };
            let (store, ids) = (self.store.clone(), stale.clone());
            // In a task: if it panics, the orders that wait here are still notified.
            let read = tokio::spawn(async move { store.closed_to_orders(&ids, Self::OPENING_MARGIN).await });
            let closed = read.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            self.apply_refresh(stale, expires_at, closed);
            self.refreshed.notify_waiters();
        }
    }

    /// The products that must be read now.
    fn take_stale(&self, expires_at: Instant) -> Option<Vec<ProductId>> {
        let mut entries = self.entries();
        let mut stale = Vec::new();
        for (id, lease) in &mut entries.leases {
            if mem::take(&mut lease.needs_refresh) {
                lease.renewed_expires_at = expires_at;
                stale.push(*id);
            }
        }
        entries.is_refreshing = !stale.is_empty();
        entries.is_refreshing.then_some(stale)
    }

    /// Renews the leases of products that are still closed, and drops the others. Disables the gate if the read failed.
    fn apply_refresh(
        &self,
        stale: Vec<ProductId>,
        expires_at: Instant,
        closed: Result<Vec<(ProductId, Rejection)>, StoreError>,
    ) {
        self.metrics.gate_read(closed.is_ok());
        let mut entries = self.entries();
        if let Err(error) = &closed {
            tracing::warn!(%error, "could not read which products are closed to orders; their orders are queued");
            entries.disabled_until = Some(Instant::now() + Self::DISABLED_AFTER_FAILURE);
        }
        let closed: HashMap<_, _> = closed.into_iter().flatten().collect();
        for id in stale {
            match (entries.leases.get_mut(&id), closed.get(&id)) {
                (Some(lease), Some(rejection)) => {
                    (lease.expires_at, lease.rejection) = (expires_at, Some(*rejection));
                }
                _ => drop(entries.leases.remove(&id)),
            }
        }
        self.metrics.set_gated_products(entries.leases.len());
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no gate of any API refuses orders that arrive from now on, by a read that began before this call.
    pub async fn outlast_leases() {
        sleep(Self::LEASE).await;
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use tokio::task::{JoinHandle, yield_now};

    use super::*;
    use crate::{
        clock::SystemClock,
        domain::{
            inventory::Stock,
            quantity::Quantity,
            terms::{SalePeriod, Terms},
            time::from_millis,
        },
        monitor::metrics::Metrics,
        store::{Ledger, Retention, Store, memory::MemoryStore},
    };

    struct Shop {
        store: Arc<MemoryStore>,
        product: ProductId,
        gate: Arc<OrderGate>,
    }

    impl Shop {
        async fn open() -> Self {
            let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
            let gate = OrderGate::new(store.clone(), Metrics::unwatched().api);
            Self { store, product, gate }
        }

        /// No piece is available, and the read that finds it is under way since then. Time is paused.
        async fn reading() -> (Self, Instant) {
            let shop = Self::open().await;
            tokio::time::pause();
            shop.gate.report_closed(shop.product);
            let began = shop.begin_to_read();
            (shop, began)
        }

        async fn count(&self, pieces: u32) {
            let stock = Stock::new(pieces).unwrap();
            self.store.recount(self.product, stock).await.unwrap().done().unwrap();
        }

        fn sold_out(&self) -> Rejection {
            Rejection::InsufficientStock { product_id: self.product, available: 0 }
        }

        async fn is_closed(&self) -> bool {
            self.closed().await.is_some()
        }

        async fn closed(&self) -> Option<Rejection> {
            self.gate.closed(self.product).await
        }

        /// An order that arrives now.
        async fn order(&self) -> JoinHandle<bool> {
            let (gate, product) = (self.gate.clone(), self.product);
            let order = tokio::spawn(async move { gate.closed(product).await.is_some() });
            yield_now().await;
            order
        }

        /// A read is under way.
        fn begin_to_read(&self) -> Instant {
            let began = Instant::now();
            {
                let mut entries = self.gate.entries();
                entries.is_refreshing = true;
                entries.leases.get_mut(&self.product).unwrap().needs_refresh = true;
            }
            assert_eq!(self.gate.take_stale(began + OrderGate::LEASE), Some(vec![self.product]));
            began
        }

        fn end_reading(&self, began: Instant, closed: Result<Vec<(ProductId, Rejection)>, StoreError>) {
            self.gate.apply_refresh(vec![self.product], began + OrderGate::LEASE, closed);
            self.gate.refreshed.notify_waiters();
        }

        fn needs_refresh(&self) -> bool {
            self.gate.entries().leases[&self.product].needs_refresh
        }
    }

    #[tokio::test]
    async fn only_a_read_makes_it_refuse() {
        let shop = Shop::open().await;
        assert!(!shop.is_closed().await, "no verdict said so");
        shop.gate.report_closed(shop.product);
        assert!(shop.is_closed().await);
        shop.count(1).await;
        shop.gate.report_closed(shop.product); // by an earlier verdict
        OrderGate::outlast_leases().await;
        assert!(!shop.is_closed().await);
        assert!(shop.gate.entries().leases.is_empty(), "the lease is dropped");
        shop.gate.report_closed(shop.product);
        assert!(!shop.is_closed().await, "one piece is left");
    }

    #[tokio::test]
    async fn it_refuses_for_the_reason_that_the_store_says() {
        let shop = Shop::open().await;
        shop.count(5).await;
        let product_id = shop.product;
        let now = Retention::now(&*shop.store).await.unwrap().as_millisecond();
        let opens_in = |ms: i64| {
            let period = SalePeriod::new(Some(from_millis(now + ms)), None).unwrap();
            Terms { period, ..Terms::default() }
        };
        let ended = SalePeriod::new(None, Some(from_millis(now))).unwrap();
        let not_open = Rejection::SaleNotOpen { product_id, opens_at: from_millis(now + 3_600_000) };
        let paused = Rejection::SalePaused { product_id };
        let limited = Rejection::LimitPerOrder { product_id, limit: 1 };
        for (terms, verdict, expected) in [
            (Terms { selling: false, ..Terms::default() }, paused, Some(paused)),
            (opens_in(3_600_000), not_open, Some(not_open)),
            (Terms { period: ended, ..Terms::default() }, paused, Some(Rejection::SaleClosed { product_id })),
            (opens_in(900), paused, None),
            (Terms { max_per_order: Quantity::new(1), ..Terms::default() }, limited, None),
            (Terms::default(), paused, None),
        ] {
            shop.store.set_terms(product_id, terms).await.unwrap();
            OrderGate::outlast_leases().await;
            shop.gate.learn(verdict);
            assert_eq!(shop.closed().await, expected, "{terms:?}");
            assert_eq!(shop.closed().await, expected, "on the lease");
        }
        assert!(shop.gate.entries().leases.is_empty());
    }

    #[tokio::test]
    async fn in_the_last_second_before_an_opening_it_reads_now_and_then() {
        let shop = Shop::open().await;
        shop.count(5).await;
        let opens_at = Retention::now(&*shop.store).await.unwrap() + SignedDuration::from_millis(900);
        let period = SalePeriod::new(Some(opens_at), None).unwrap();
        shop.store.set_terms(shop.product, Terms { period, ..Terms::default() }).await.unwrap();
        let not_open = Rejection::SaleNotOpen { product_id: shop.product, opens_at };
        shop.gate.learn(not_open);
        assert!(!shop.is_closed().await, "its lane decides");
        shop.gate.learn(not_open);
        assert!(shop.gate.entries().leases.is_empty(), "it has just read");
    }

    #[tokio::test]
    async fn detached_orders_make_it_read_now_and_then() {
        let shop = Shop::open().await;
        shop.gate.check_soon(shop.product);
        assert!(shop.is_closed().await);
        shop.count(1).await;
        OrderGate::outlast_leases().await;
        assert!(!shop.is_closed().await && shop.gate.entries().leases.is_empty());
        shop.gate.check_soon(shop.product);
        assert!(shop.gate.entries().leases.is_empty(), "it has just read");
        tokio::time::pause();
        tokio::time::advance(OrderGate::CHECK_INTERVAL).await;
        shop.gate.check_soon(shop.product);
        assert!(!shop.gate.entries().leases.is_empty());
    }

    #[tokio::test]
    async fn no_order_for_available_pieces_is_refused_after_a_lease() {
        let shop = Shop::open().await;
        for pieces in 1..=50 {
            shop.count(0).await;
            shop.gate.report_closed(shop.product);
            // In all states of a lease: new, halfway, being renewed, over.
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(1) * pieces {
                assert!(shop.is_closed().await);
                yield_now().await;
            }
            shop.count(pieces).await;
            OrderGate::outlast_leases().await;
            assert!(!shop.is_closed().await, "{pieces}");
        }
    }

    #[tokio::test]
    async fn an_order_within_a_lease_does_not_wait() {
        let (shop, began) = Shop::reading().await;
        shop.end_reading(began, Ok(vec![(shop.product, shop.sold_out())]));
        tokio::time::advance(OrderGate::LEASE / 4).await;
        assert!(shop.order().await.await.unwrap() && !shop.needs_refresh());
        tokio::time::advance(OrderGate::LEASE / 2).await;
        assert!(shop.order().await.await.unwrap() && shop.needs_refresh());
        shop.begin_to_read();
        assert!(shop.order().await.await.unwrap() && !shop.needs_refresh(), "it is being read");
    }

    #[tokio::test]
    async fn a_read_counts_for_orders_that_arrive_within_a_lease_of_its_beginning() {
        let (shop, began) = Shop::reading().await;
        let early = shop.order().await;
        tokio::time::advance(OrderGate::LEASE * 3 / 4).await;
        let later = shop.order().await;
        tokio::time::advance(OrderGate::LEASE / 4).await;
        assert!(!early.is_finished() && !later.is_finished());
        let late = shop.order().await;
        tokio::time::advance(OrderGate::LEASE).await;
        shop.end_reading(began, Ok(vec![(shop.product, shop.sold_out())]));
        assert!(early.await.unwrap() && later.await.unwrap());
        yield_now().await;
        assert!(!late.is_finished() && shop.needs_refresh());
        let began = shop.begin_to_read();
        shop.end_reading(began, Ok(vec![]));
        assert!(!late.await.unwrap(), "there are pieces");
    }

    #[tokio::test]
    async fn after_a_read_that_failed_it_refuses_nothing_for_a_while() {
        let (shop, began) = Shop::reading().await;
        let order = shop.order().await;
        shop.end_reading(began, Err(StoreError::Unavailable("by a test".to_owned())));
        assert!(!order.await.unwrap());
        shop.gate.report_closed(shop.product);
        assert!(shop.gate.entries().leases.is_empty());
        tokio::time::advance(OrderGate::DISABLED_AFTER_FAILURE).await;
        shop.gate.report_closed(shop.product);
        assert!(!shop.gate.entries().leases.is_empty());
    }

    #[tokio::test]
    async fn it_refuses_nothing_when_the_database_does_not_answer() {
        let shop = Shop::open().await;
        shop.gate.report_closed(shop.product);
        assert!(shop.is_closed().await);
        shop.store.close().await;
        OrderGate::outlast_leases().await;
        assert!(!shop.is_closed().await);
        assert!(!shop.gate.entries().is_refreshing, "the next read begins from scratch");
    }
}
