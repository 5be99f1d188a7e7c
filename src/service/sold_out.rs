//! The sold-out cache: while no piece of a product is available, an API refuses its orders at once, so that the orders after the
//! last piece do not fill the lane. Orders with an idempotency key are not refused: see
//! [`OrderService::place`](crate::service::ordering::OrderService::place).
//!
//! It knows one thing only: that a read of the database, which began at a certain moment, found no available piece. This
//! counts for one [`SoldOutCache::LEASE`] from that moment on. Halfway it reads again. An order that arrives when the lease is
//! over waits for a read that counts for it. So the cache may be trusted:
//!
//! - it refuses an order only if no piece was available at some moment less than a lease before the order arrived;
//! - an API that brings pieces back (a recount, a cancellation) waits out one lease between the commit and the answer. Then
//!   no sold-out cache of any API refuses later orders on a read that began before the commit: a client that has the answer
//!   can order the pieces, at every API. No message has to arrive for that, and no clock has to agree with another;
//! - a client that learns of them otherwise may be refused for one lease more;
//! - when the database does not answer, no order is refused here: the orders are queued.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    domain::ids::ProductId,
    monitor::metrics::ApiMetrics,
    store::{Catalog, StoreError, TimeLimited},
};

/// What one API knows of products without available pieces.
pub struct SoldOutCache {
    store: Arc<TimeLimited<dyn Catalog>>,
    entries: Mutex<Entries>,
    /// Notified whenever a read is done.
    refreshed: Notify,
    metrics: Arc<ApiMetrics>,
}

#[derive(Debug, Default)]
struct Entries {
    /// A product without a lease may have pieces.
    leases: HashMap<ProductId, Lease>,
    is_refreshing: bool,
    /// Until when no product gets a lease, because a read failed.
    disabled_until: Option<Instant>,
    /// When [`SoldOutCache::check_soon`] last had an effect.
    checked_at: HashMap<ProductId, Instant>,
}

#[derive(Debug)]
struct Lease {
    expires_at: Instant,
    /// When it will expire if the newest read that has begun finds no piece.
    renewed_expires_at: Instant,
    /// Must be read again.
    needs_refresh: bool,
}

impl SoldOutCache {
    /// How long a read that found no piece counts, from when it began. All APIs must agree on it: a longer one would outlast
    /// the time that others wait. Short, because a recount and a cancellation wait for so long; long enough for a read to
    /// be back in time that begins at half of it. A slower database makes orders wait for reads, and changes nothing else.
    pub const LEASE: Duration = Duration::from_millis(20);

    /// How long a read may take before the cache is disabled.
    const READ_TIMEOUT: Duration = Duration::from_millis(250);
    /// How long the cache is disabled after a read that failed.
    const DISABLED_AFTER_FAILURE: Duration = Duration::from_secs(1);

    /// How often it reads a product at most because of orders whose verdicts no API learns.
    const CHECK_INTERVAL: Duration = Duration::from_millis(100);
    /// For how many products it remembers when it did.
    const MAX_CHECKED: usize = 10_000;

    pub fn new(store: Arc<dyn Catalog>, metrics: Arc<ApiMetrics>) -> Arc<Self> {
        let store = Arc::new(TimeLimited::new(store, Self::READ_TIMEOUT));
        Arc::new(Self { store, entries: Mutex::default(), refreshed: Notify::new(), metrics })
    }

    /// A verdict says that no piece was available. That was a while ago: the next order triggers a read.
    pub fn report_sold_out(&self, product_id: ProductId) {
        let now = Instant::now();
        let mut entries = self.entries();
        if entries.disabled_until.is_none_or(|until| until <= now) {
            let lease = Lease { expires_at: now, renewed_expires_at: now, needs_refresh: false };
            entries.leases.entry(product_id).or_insert(lease);
            self.metrics.set_sold_out_products(entries.leases.len());
        }
    }

    /// A detached order was queued: no API learns its verdict. The next order triggers a read, but not every one does.
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
        self.report_sold_out(product_id);
    }

    /// Whether no piece of the product is available: now, or less than a lease ago.
    pub async fn is_sold_out(self: &Arc<Self>, product_id: ProductId) -> bool {
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
    fn check(self: &Arc<Self>, product_id: ProductId, arrived_at: Instant) -> Option<bool> {
        let mut entries = self.entries();
        let Some(lease) = entries.leases.get_mut(&product_id) else { return Some(false) };
        let is_valid = lease.expires_at > arrived_at;
        if lease.renewed_expires_at <= arrived_at + Self::LEASE / 2 {
            lease.needs_refresh = true;
            if !mem::replace(&mut entries.is_refreshing, true) {
                tokio::spawn(self.clone().read());
            }
        }
        is_valid.then_some(true)
    }

    /// Reads the products that need it, all with one statement, until none does.
    async fn read(self: Arc<Self>) {
        loop {
            let expires_at = Instant::now() + Self::LEASE; // before the read begins
            let Some(stale) = self.take_stale(expires_at) else { return };
            let (store, ids) = (self.store.clone(), stale.clone());
            // In a task: if it panics, the orders that wait here are still notified.
            let read = tokio::spawn(async move { store.sold_out(&ids).await });
            let sold_out = read.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            self.apply_refresh(stale, expires_at, sold_out);
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

    /// Renews the leases of products that are still sold out, and drops the others. Disables the cache if the read failed.
    fn apply_refresh(
        &self,
        stale: Vec<ProductId>,
        expires_at: Instant,
        sold_out: Result<Vec<ProductId>, StoreError>,
    ) {
        self.metrics.sold_out_read(sold_out.is_ok());
        let mut entries = self.entries();
        if let Err(error) = &sold_out {
            tracing::warn!(%error, "could not read which products are sold out; their orders are queued");
            entries.disabled_until = Some(Instant::now() + Self::DISABLED_AFTER_FAILURE);
        }
        let sold_out: HashSet<_> = sold_out.into_iter().flatten().collect();
        for id in stale {
            match entries.leases.get_mut(&id) {
                Some(lease) if sold_out.contains(&id) => lease.expires_at = expires_at,
                _ => drop(entries.leases.remove(&id)),
            }
        }
        self.metrics.set_sold_out_products(entries.leases.len());
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no sold-out cache of any API refuses orders that arrive from now on, by a read that began before this call.
    pub async fn outlast_leases() {
        sleep(Self::LEASE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;
    use crate::{
        clock::SystemClock,
        domain::inventory::Stock,
        monitor::metrics::Metrics,
        store::{Ledger, Store, memory::MemoryStore},
    };

    struct Shop {
        store: Arc<MemoryStore>,
        product: ProductId,
        sold_out_cache: Arc<SoldOutCache>,
    }

    impl Shop {
        async fn open() -> Self {
            let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
            let sold_out_cache = SoldOutCache::new(store.clone(), Metrics::unwatched().api);
            Self { store, product, sold_out_cache }
        }

        /// No piece is available, and the read that finds it is under way since then. Time is paused.
        async fn reading() -> (Self, Instant) {
            let shop = Self::open().await;
            tokio::time::pause();
            shop.sold_out_cache.report_sold_out(shop.product);
            let began = shop.begin_to_read();
            (shop, began)
        }

        async fn count(&self, pieces: u32) {
            let stock = Stock::new(pieces).unwrap();
            self.store.recount(self.product, stock).await.unwrap().done().unwrap();
        }

        async fn is_sold_out(&self) -> bool {
            self.sold_out_cache.is_sold_out(self.product).await
        }

        /// An order that arrives now.
        async fn order(&self) -> JoinHandle<bool> {
            let (sold_out_cache, product) = (self.sold_out_cache.clone(), self.product);
            let order = tokio::spawn(async move { sold_out_cache.is_sold_out(product).await });
            yield_now().await;
            order
        }

        /// A read is under way.
        fn begin_to_read(&self) -> Instant {
            let began = Instant::now();
            {
                let mut entries = self.sold_out_cache.entries();
                entries.is_refreshing = true;
                entries.leases.get_mut(&self.product).unwrap().needs_refresh = true;
            }
            assert_eq!(self.sold_out_cache.take_stale(began + SoldOutCache::LEASE), Some(vec![self.product]));
            began
        }

        fn end_reading(&self, began: Instant, sold_out: Result<Vec<ProductId>, StoreError>) {
            self.sold_out_cache.apply_refresh(vec![self.product], began + SoldOutCache::LEASE, sold_out);
            self.sold_out_cache.refreshed.notify_waiters();
        }

        fn needs_refresh(&self) -> bool {
            self.sold_out_cache.entries().leases[&self.product].needs_refresh
        }
    }

    #[tokio::test]
    async fn only_a_read_makes_it_refuse() {
        let shop = Shop::open().await;
        assert!(!shop.is_sold_out().await, "no verdict said so");
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.is_sold_out().await);
        shop.count(1).await;
        shop.sold_out_cache.report_sold_out(shop.product); // by an earlier verdict
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await);
        assert!(shop.sold_out_cache.entries().leases.is_empty(), "the lease is dropped");
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(!shop.is_sold_out().await, "one piece is left");
    }

    #[tokio::test]
    async fn detached_orders_make_it_read_now_and_then() {
        let shop = Shop::open().await;
        shop.sold_out_cache.check_soon(shop.product);
        assert!(shop.is_sold_out().await);
        shop.count(1).await;
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await && shop.sold_out_cache.entries().leases.is_empty());
        shop.sold_out_cache.check_soon(shop.product);
        assert!(shop.sold_out_cache.entries().leases.is_empty(), "it has just read");
        tokio::time::pause();
        tokio::time::advance(SoldOutCache::CHECK_INTERVAL).await;
        shop.sold_out_cache.check_soon(shop.product);
        assert!(!shop.sold_out_cache.entries().leases.is_empty());
    }

    #[tokio::test]
    async fn no_order_for_available_pieces_is_refused_after_a_lease() {
        let shop = Shop::open().await;
        for pieces in 1..=50 {
            shop.count(0).await;
            shop.sold_out_cache.report_sold_out(shop.product);
            // In all states of a lease: new, halfway, being renewed, over.
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(1) * pieces {
                assert!(shop.is_sold_out().await);
                yield_now().await;
            }
            shop.count(pieces).await;
            SoldOutCache::outlast_leases().await;
            assert!(!shop.is_sold_out().await, "{pieces}");
        }
    }

    #[tokio::test]
    async fn an_order_within_a_lease_does_not_wait() {
        let (shop, began) = Shop::reading().await;
        shop.end_reading(began, Ok(vec![shop.product]));
        tokio::time::advance(SoldOutCache::LEASE / 4).await;
        assert!(shop.order().await.await.unwrap() && !shop.needs_refresh());
        tokio::time::advance(SoldOutCache::LEASE / 2).await;
        assert!(shop.order().await.await.unwrap() && shop.needs_refresh());
        shop.begin_to_read();
        assert!(shop.order().await.await.unwrap() && !shop.needs_refresh(), "it is being read");
    }

    #[tokio::test]
    async fn a_read_counts_for_orders_that_arrive_within_a_lease_of_its_beginning() {
        let (shop, began) = Shop::reading().await;
        let early = shop.order().await;
        tokio::time::advance(SoldOutCache::LEASE * 3 / 4).await;
        let later = shop.order().await;
        tokio::time::advance(SoldOutCache::LEASE / 4).await;
        assert!(!early.is_finished() && !later.is_finished());
        let late = shop.order().await;
        tokio::time::advance(SoldOutCache::LEASE).await;
        shop.end_reading(began, Ok(vec![shop.product]));
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
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.sold_out_cache.entries().leases.is_empty());
        tokio::time::advance(SoldOutCache::DISABLED_AFTER_FAILURE).await;
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(!shop.sold_out_cache.entries().leases.is_empty());
    }

    #[tokio::test]
    async fn it_refuses_nothing_when_the_database_does_not_answer() {
        let shop = Shop::open().await;
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.is_sold_out().await);
        shop.store.close().await;
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await);
        assert!(!shop.sold_out_cache.entries().is_refreshing, "the next read begins from scratch");
    }
}
