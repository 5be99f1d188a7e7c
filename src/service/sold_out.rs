//! The sold-out cache before the lanes: while nothing of a product is left, its orders are refused at once, so that the storm after
//! the last piece does not stand in line for nothing. Orders with an idempotency key are let through: see
//! [`crate::service::ordering::OrderService::place`].
//!
//! It knows one thing only: that a read of the database, which began at a certain moment, found nothing. This counts for
//! one [`SoldOutCache::LEASE`] from that moment on. Halfway it reads again, and who comes when the lease is over waits for a read
//! that counts for him. So it may be trusted:
//!
//! - it refuses an order only if nothing of the product was left at some moment less than a lease before the order came;
//! - whoever brings pieces back (a recount, a cancellation) waits out one lease between the commit and the answer. Then
//!   no sold-out cache of any API refuses later orders on a read that began before the commit: who has that answer can order the
//!   pieces, wherever he does. No message has to arrive for that, and no clock has to agree with another;
//! - who learns of them otherwise may be refused for one lease more;
//! - when the database does not answer it is open: the orders stand in line.

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
    store::{Catalog, StoreError, TimeLimited},
};

/// What one API knows of products of which nothing is left.
pub struct SoldOutCache {
    store: Arc<TimeLimited<dyn Catalog>>,
    entries: Mutex<Entries>,
    /// Told to all who wait whenever a read is done.
    refreshed: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    /// What is not in here has pieces, or nobody has heard otherwise.
    empty: HashMap<ProductId, Entry>,
    is_refreshing: bool,
    /// Until when nothing is suspected, because a read failed.
    open_until: Option<Instant>,
    /// When [`SoldOutCache::look_soon`] was last heeded.
    looked_for: HashMap<ProductId, Instant>,
}

#[derive(Debug)]
struct Entry {
    /// The end of the lease.
    until: Instant,
    /// Where the end will be if the newest read that has begun finds nothing.
    will_be_until: Instant,
    /// Has to be read again.
    needs_refresh: bool,
}

impl SoldOutCache {
    /// How long a read counts that found nothing, from when it began. All APIs have to agree on it: a longer one of some
    /// would outlast the others' waiting. Short, because whoever brings pieces back waits for so long; long enough for a
    /// read, at half of it, to be back in time. A slower database makes orders wait for reads, and changes nothing else.
    pub const LEASE: Duration = Duration::from_millis(20);

    /// How long a read may take before the sold-out cache opens.
    const PATIENCE: Duration = Duration::from_millis(250);
    /// How long it stays open after a read that failed.
    const OPEN_AFTER_FAILURE: Duration = Duration::from_secs(1);

    /// How often the sold-out cache looks at most for orders of which nobody tells what became of them.
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    /// Of how many products it remembers when it did.
    const MAX_LOOKED_FOR: usize = 10_000;

    /// Open for all, to begin with.
    pub fn new(store: Arc<dyn Catalog>) -> Arc<Self> {
        let store = Arc::new(TimeLimited::new(store, Self::PATIENCE));
        Arc::new(Self { store, entries: Mutex::default(), refreshed: Notify::new() })
    }

    /// Some lane said that nothing of this product was left. That was a while ago: the next order has it looked up.
    pub fn report_sold_out(&self, product_id: ProductId) {
        let now = Instant::now();
        let mut entries = self.entries();
        if entries.open_until.is_none_or(|until| until <= now) {
            let entry = Entry { until: now, will_be_until: now, needs_refresh: false };
            entries.empty.entry(product_id).or_insert(entry);
        }
    }

    /// An order of this product was queued of which no API will apply_refresh. The next one has it looked up, but not each.
    pub fn look_soon(&self, product_id: ProductId) {
        let now = Instant::now();
        {
            let mut entries = self.entries();
            let looked_for = &mut entries.looked_for;
            if looked_for.get(&product_id).is_some_and(|at| now.duration_since(*at) < Self::LOOK_EVERY) {
                return;
            }
            if looked_for.len() >= Self::MAX_LOOKED_FOR {
                looked_for.clear();
            }
            looked_for.insert(product_id, now);
        }
        self.report_sold_out(product_id);
    }

    /// Whether nothing of the product is left: now, or less than a lease ago.
    pub async fn is_sold_out(self: &Arc<Self>, product_id: ProductId) -> bool {
        let came = Instant::now();
        loop {
            let read = self.refreshed.notified();
            if let Some(known) = self.look(product_id, came) {
                return known;
            }
            read.await;
        }
    }

    /// What is known for an order that came then; `None`: it has to wait for a read.
    fn look(self: &Arc<Self>, product_id: ProductId, came: Instant) -> Option<bool> {
        let mut entries = self.entries();
        let Some(entry) = entries.empty.get_mut(&product_id) else { return Some(false) };
        let is_closed = entry.until > came;
        if entry.will_be_until <= came + Self::LEASE / 2 {
            entry.needs_refresh = true;
            if !mem::replace(&mut entries.is_refreshing, true) {
                tokio::spawn(self.clone().read());
            }
        }
        is_closed.then_some(true)
    }

    /// Reads what is wanted, all of it together, until nothing is.
    async fn read(self: Arc<Self>) {
        loop {
            let until = Instant::now() + Self::LEASE; // before the read begins
            let Some(wanted) = self.wanted(until) else { return };
            let (store, ids) = (self.store.clone(), wanted.clone());
            // On its own: should it panic, who waits here still hears of it.
            let read = tokio::spawn(async move { store.sold_out(&ids).await });
            let sold_out = read.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            self.apply_refresh(wanted, until, sold_out);
            self.refreshed.notify_waiters();
        }
    }

    /// What is to be read now.
    fn wanted(&self, until: Instant) -> Option<Vec<ProductId>> {
        let mut entries = self.entries();
        let mut wanted = Vec::new();
        for (id, entry) in &mut entries.empty {
            if mem::take(&mut entry.needs_refresh) {
                entry.will_be_until = until;
                wanted.push(*id);
            }
        }
        entries.is_refreshing = !wanted.is_empty();
        entries.is_refreshing.then_some(wanted)
    }

    /// Renews leases, or opens the sold-out cache.
    fn apply_refresh(
        &self,
        wanted: Vec<ProductId>,
        until: Instant,
        sold_out: Result<Vec<ProductId>, StoreError>,
    ) {
        let mut entries = self.entries();
        if let Err(error) = &sold_out {
            tracing::warn!(%error, "could not read what is sold out; such orders stand in line");
            entries.open_until = Some(Instant::now() + Self::OPEN_AFTER_FAILURE);
        }
        let sold_out: HashSet<_> = sold_out.into_iter().flatten().collect();
        for id in wanted {
            match entries.empty.get_mut(&id) {
                Some(entry) if sold_out.contains(&id) => entry.until = until,
                _ => drop(entries.empty.remove(&id)),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no sold-out cache of any API refuses orders that come from now on by a read that began before this was called.
    pub async fn outlast_leases() {
        sleep(Self::LEASE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;
    use crate::{
        domain::inventory::Stock,
        store::{Store, sqlite::SqliteStore},
    };

    struct Shop {
        _directory: tempfile::TempDir,
        store: Arc<SqliteStore>,
        product: ProductId,
        sold_out_cache: Arc<SoldOutCache>,
    }

    impl Shop {
        async fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", directory.path().join("antre.db").display());
            let store = Arc::new(SqliteStore::open(&url).await.unwrap());
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
            let sold_out_cache = SoldOutCache::new(store.clone());
            Self { _directory: directory, store, product, sold_out_cache }
        }

        /// Nothing is left, and the read that finds it is under way since then. Time stands still.
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

        /// An order that comes now.
        async fn come(&self) -> JoinHandle<bool> {
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
                entries.empty.get_mut(&self.product).unwrap().needs_refresh = true;
            }
            assert_eq!(self.sold_out_cache.wanted(began + SoldOutCache::LEASE), Some(vec![self.product]));
            began
        }

        fn end_reading(&self, began: Instant, sold_out: Result<Vec<ProductId>, StoreError>) {
            self.sold_out_cache.apply_refresh(vec![self.product], began + SoldOutCache::LEASE, sold_out);
            self.sold_out_cache.refreshed.notify_waiters();
        }

        fn needs_refresh(&self) -> bool {
            self.sold_out_cache.entries().empty[&self.product].needs_refresh
        }
    }

    #[tokio::test]
    async fn it_closes_on_what_a_read_says_and_on_nothing_else() {
        let shop = Shop::open().await;
        assert!(!shop.is_sold_out().await, "nobody said anything");
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.is_sold_out().await);
        shop.count(1).await;
        shop.sold_out_cache.report_sold_out(shop.product); // by what somebody said earlier
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await);
        assert!(shop.sold_out_cache.entries().empty.is_empty(), "it is forgotten");
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(!shop.is_sold_out().await, "one piece is left");
    }

    #[tokio::test]
    async fn it_looks_for_itself_now_and_then() {
        let shop = Shop::open().await;
        shop.sold_out_cache.look_soon(shop.product);
        assert!(shop.is_sold_out().await);
        shop.count(1).await;
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await && shop.sold_out_cache.entries().empty.is_empty());
        shop.sold_out_cache.look_soon(shop.product);
        assert!(shop.sold_out_cache.entries().empty.is_empty(), "it has just looked");
        tokio::time::pause();
        tokio::time::advance(SoldOutCache::LOOK_EVERY).await;
        shop.sold_out_cache.look_soon(shop.product);
        assert!(!shop.sold_out_cache.entries().empty.is_empty());
    }

    #[tokio::test]
    async fn no_piece_is_refused_once_a_outlast_leases() {
        let shop = Shop::open().await;
        for pieces in 1..=50 {
            shop.count(0).await;
            shop.sold_out_cache.report_sold_out(shop.product);
            // In all states of a lease: new, halfway, being renewed, over.
            let closed_at = Instant::now();
            while closed_at.elapsed() < Duration::from_millis(1) * pieces {
                assert!(shop.is_sold_out().await);
                yield_now().await;
            }
            shop.count(pieces).await;
            SoldOutCache::outlast_leases().await;
            assert!(!shop.is_sold_out().await, "{pieces}");
        }
    }

    #[tokio::test]
    async fn who_comes_within_a_lease_does_not_wait() {
        let (shop, began) = Shop::reading().await;
        shop.end_reading(began, Ok(vec![shop.product]));
        tokio::time::advance(SoldOutCache::LEASE / 4).await;
        assert!(shop.come().await.await.unwrap() && !shop.needs_refresh());
        tokio::time::advance(SoldOutCache::LEASE / 2).await;
        assert!(shop.come().await.await.unwrap() && shop.needs_refresh());
        shop.begin_to_read();
        assert!(shop.come().await.await.unwrap() && !shop.needs_refresh(), "it is being read");
    }

    #[tokio::test]
    async fn a_read_counts_for_those_who_come_within_a_lease_of_its_beginning() {
        let (shop, began) = Shop::reading().await;
        let early = shop.come().await;
        tokio::time::advance(SoldOutCache::LEASE * 3 / 4).await;
        let later = shop.come().await;
        tokio::time::advance(SoldOutCache::LEASE / 4).await;
        assert!(!early.is_finished() && !later.is_finished());
        let late = shop.come().await;
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
    async fn after_a_read_that_failed_it_is_open_for_a_while() {
        let (shop, began) = Shop::reading().await;
        let order = shop.come().await;
        shop.end_reading(began, Err(StoreError::Unavailable("it is away".to_owned())));
        assert!(!order.await.unwrap());
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.sold_out_cache.entries().empty.is_empty());
        tokio::time::advance(SoldOutCache::OPEN_AFTER_FAILURE).await;
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(!shop.sold_out_cache.entries().empty.is_empty());
    }

    #[tokio::test]
    async fn it_opens_when_the_database_does_not_answer() {
        let shop = Shop::open().await;
        shop.sold_out_cache.report_sold_out(shop.product);
        assert!(shop.is_sold_out().await);
        shop.store.close().await;
        SoldOutCache::outlast_leases().await;
        assert!(!shop.is_sold_out().await);
        assert!(!shop.sold_out_cache.entries().is_refreshing, "the next read begins anew");
    }
}
