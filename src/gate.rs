//! The gate before the lanes: while nothing of a product is left, its orders are refused at once, so that the storm after
//! the last piece does not stand in line for nothing. Orders with an idempotency key are let through: see
//! [`crate::placement::Placement::place`].
//!
//! It knows one thing only: that a read of the database, which began at a certain moment, found nothing. This counts for
//! one [`Gate::LEASE`] from that moment on. Halfway it reads again, and who comes when the lease is over waits for a read
//! that counts for him. So it may be trusted:
//!
//! - it refuses an order only if nothing of the product was left at some moment less than a lease before the order came;
//! - whoever brings pieces back (a recount, a cancellation) waits out one lease between the commit and the answer. Then
//!   no gate of any API refuses later orders on a read that began before the commit: who has that answer can order the
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
    product::ProductId,
    store::{Store, StoreError, within},
};

/// What one API knows of products of which nothing is left.
pub struct Gate {
    store: Arc<dyn Store>,
    shelves: Mutex<Shelves>,
    /// Told to all who wait whenever a read is done.
    is_read: Notify,
}

#[derive(Debug, Default)]
struct Shelves {
    /// What is not in here has pieces, or nobody has heard otherwise.
    empty: HashMap<ProductId, Shelf>,
    is_reading: bool,
    /// Until when nothing is suspected, because a read failed.
    is_blind_until: Option<Instant>,
    /// When [`Gate::look_soon`] was last heeded.
    looked_for: HashMap<ProductId, Instant>,
}

#[derive(Debug)]
struct Shelf {
    /// The end of the lease.
    until: Instant,
    /// Where the end will be if the newest read that has begun finds nothing.
    will_be_until: Instant,
    /// Has to be read again.
    is_wanted: bool,
}

impl Gate {
    /// How long a read counts that found nothing, from when it began. All APIs have to agree on it: a longer one of some
    /// would outlast the others' waiting. Short, because whoever brings pieces back waits for so long; long enough for a
    /// read, at half of it, to be back in time. A slower database makes orders wait for reads, and changes nothing else.
    pub const LEASE: Duration = Duration::from_millis(20);

    /// How long a read may take before the gate opens.
    const PATIENCE: Duration = Duration::from_millis(250);
    /// How long it stays open after a read that failed.
    const BLINDNESS: Duration = Duration::from_secs(1);

    /// How often the gate looks at most for orders of which nobody tells what became of them.
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    /// Of how many products it remembers when it did.
    const MAX_LOOKED_FOR: usize = 10_000;

    /// Open for all, to begin with.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, shelves: Mutex::default(), is_read: Notify::new() })
    }

    /// Some lane said that nothing of this product was left. That was a while ago: the next order has it looked up.
    pub fn suspect(&self, product_id: ProductId) {
        let now = Instant::now();
        let mut shelves = self.shelves();
        if shelves.is_blind_until.is_none_or(|until| until <= now) {
            let shelf = Shelf { until: now, will_be_until: now, is_wanted: false };
            shelves.empty.entry(product_id).or_insert(shelf);
        }
    }

    /// An order of this product was queued of which no API will hear. The next one has it looked up, but not each.
    pub fn look_soon(&self, product_id: ProductId) {
        let now = Instant::now();
        {
            let mut shelves = self.shelves();
            let looked_for = &mut shelves.looked_for;
            if looked_for.get(&product_id).is_some_and(|at| now.duration_since(*at) < Self::LOOK_EVERY) {
                return;
            }
            if looked_for.len() >= Self::MAX_LOOKED_FOR {
                looked_for.clear();
            }
            looked_for.insert(product_id, now);
        }
        self.suspect(product_id);
    }

    /// Whether nothing of the product is left: now, or less than a lease ago.
    pub async fn is_closed(self: &Arc<Self>, product_id: ProductId) -> bool {
        let came = Instant::now();
        loop {
            let read = self.is_read.notified();
            if let Some(known) = self.look(product_id, came) {
                return known;
            }
            read.await;
        }
    }

    /// What is known for an order that came then; `None`: it has to wait for a read.
    fn look(self: &Arc<Self>, product_id: ProductId, came: Instant) -> Option<bool> {
        let mut shelves = self.shelves();
        let Some(shelf) = shelves.empty.get_mut(&product_id) else { return Some(false) };
        let is_closed = shelf.until > came;
        if shelf.will_be_until <= came + Self::LEASE / 2 {
            shelf.is_wanted = true;
            if !mem::replace(&mut shelves.is_reading, true) {
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
            let read = tokio::spawn(async move { within(Self::PATIENCE, store.sold_out(&ids)).await });
            let sold_out = read.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
            self.hear(wanted, until, sold_out);
            self.is_read.notify_waiters();
        }
    }

    /// What is to be read now.
    fn wanted(&self, until: Instant) -> Option<Vec<ProductId>> {
        let mut shelves = self.shelves();
        let mut wanted = Vec::new();
        for (id, shelf) in &mut shelves.empty {
            if mem::take(&mut shelf.is_wanted) {
                shelf.will_be_until = until;
                wanted.push(*id);
            }
        }
        shelves.is_reading = !wanted.is_empty();
        shelves.is_reading.then_some(wanted)
    }

    /// Renews leases, or opens the gate.
    fn hear(&self, wanted: Vec<ProductId>, until: Instant, sold_out: Result<Vec<ProductId>, StoreError>) {
        let mut shelves = self.shelves();
        if let Err(error) = &sold_out {
            tracing::warn!(%error, "could not read what is sold out; such orders stand in line");
            shelves.is_blind_until = Some(Instant::now() + Self::BLINDNESS);
        }
        let sold_out: HashSet<_> = sold_out.into_iter().flatten().collect();
        for id in wanted {
            match shelves.empty.get_mut(&id) {
                Some(shelf) if sold_out.contains(&id) => shelf.until = until,
                _ => drop(shelves.empty.remove(&id)),
            }
        }
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no gate of any API refuses orders that come from now on by a read that began before this was called.
    pub async fn lease_is_over() {
        sleep(Self::LEASE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;
    use crate::{inventory::Stock, store::sqlite::SqliteStore};

    struct Shop {
        _directory: tempfile::TempDir,
        store: Arc<SqliteStore>,
        product: ProductId,
        gate: Arc<Gate>,
    }

    impl Shop {
        async fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", directory.path().join("antre.db").display());
            let store = Arc::new(SqliteStore::open(&url).await.unwrap());
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
            let gate = Gate::new(store.clone());
            Self { _directory: directory, store, product, gate }
        }

        /// Nothing is left, and the read that finds it is under way since then. Time stands still.
        async fn reading() -> (Self, Instant) {
            let shop = Self::open().await;
            tokio::time::pause();
            shop.gate.suspect(shop.product);
            let began = shop.begin_to_read();
            (shop, began)
        }

        async fn count(&self, pieces: u32) {
            let stock = Stock::new(pieces).unwrap();
            self.store.recount(self.product, stock).await.unwrap().unwrap().unwrap();
        }

        async fn is_closed(&self) -> bool {
            self.gate.is_closed(self.product).await
        }

        /// An order that comes now.
        async fn come(&self) -> JoinHandle<bool> {
            let (gate, product) = (self.gate.clone(), self.product);
            let order = tokio::spawn(async move { gate.is_closed(product).await });
            yield_now().await;
            order
        }

        /// A read is under way.
        fn begin_to_read(&self) -> Instant {
            let began = Instant::now();
            {
                let mut shelves = self.gate.shelves();
                shelves.is_reading = true;
                shelves.empty.get_mut(&self.product).unwrap().is_wanted = true;
            }
            assert_eq!(self.gate.wanted(began + Gate::LEASE), Some(vec![self.product]));
            began
        }

        fn end_reading(&self, began: Instant, sold_out: Result<Vec<ProductId>, StoreError>) {
            self.gate.hear(vec![self.product], began + Gate::LEASE, sold_out);
            self.gate.is_read.notify_waiters();
        }

        fn is_wanted(&self) -> bool {
            self.gate.shelves().empty[&self.product].is_wanted
        }
    }

    #[tokio::test]
    async fn it_closes_on_what_a_read_says_and_on_nothing_else() {
        let shop = Shop::open().await;
        assert!(!shop.is_closed().await, "nobody said anything");
        shop.gate.suspect(shop.product);
        assert!(shop.is_closed().await);
        shop.count(1).await;
        shop.gate.suspect(shop.product); // by what somebody said earlier
        Gate::lease_is_over().await;
        assert!(!shop.is_closed().await);
        assert!(shop.gate.shelves().empty.is_empty(), "it is forgotten");
        shop.gate.suspect(shop.product);
        assert!(!shop.is_closed().await, "one piece is left");
    }

    #[tokio::test]
    async fn it_looks_for_itself_now_and_then() {
        let shop = Shop::open().await;
        shop.gate.look_soon(shop.product);
        assert!(shop.is_closed().await);
        shop.count(1).await;
        Gate::lease_is_over().await;
        assert!(!shop.is_closed().await && shop.gate.shelves().empty.is_empty());
        shop.gate.look_soon(shop.product);
        assert!(shop.gate.shelves().empty.is_empty(), "it has just looked");
        tokio::time::pause();
        tokio::time::advance(Gate::LOOK_EVERY).await;
        shop.gate.look_soon(shop.product);
        assert!(!shop.gate.shelves().empty.is_empty());
    }

    #[tokio::test]
    async fn no_piece_is_refused_once_a_lease_is_over() {
        let shop = Shop::open().await;
        for pieces in 1..=50 {
            shop.count(0).await;
            shop.gate.suspect(shop.product);
            // In all states of a lease: new, halfway, being renewed, over.
            let closed_at = Instant::now();
            while closed_at.elapsed() < Duration::from_millis(1) * pieces {
                assert!(shop.is_closed().await);
                yield_now().await;
            }
            shop.count(pieces).await;
            Gate::lease_is_over().await;
            assert!(!shop.is_closed().await, "{pieces}");
        }
    }

    #[tokio::test]
    async fn who_comes_within_a_lease_does_not_wait() {
        let (shop, began) = Shop::reading().await;
        shop.end_reading(began, Ok(vec![shop.product]));
        tokio::time::advance(Gate::LEASE / 4).await;
        assert!(shop.come().await.await.unwrap() && !shop.is_wanted());
        tokio::time::advance(Gate::LEASE / 2).await;
        assert!(shop.come().await.await.unwrap() && shop.is_wanted());
        shop.begin_to_read();
        assert!(shop.come().await.await.unwrap() && !shop.is_wanted(), "it is being read");
    }

    #[tokio::test]
    async fn a_read_counts_for_those_who_come_within_a_lease_of_its_beginning() {
        let (shop, began) = Shop::reading().await;
        let early = shop.come().await;
        tokio::time::advance(Gate::LEASE * 3 / 4).await;
        let later = shop.come().await;
        tokio::time::advance(Gate::LEASE / 4).await;
        assert!(!early.is_finished() && !later.is_finished());
        let late = shop.come().await;
        tokio::time::advance(Gate::LEASE).await;
        shop.end_reading(began, Ok(vec![shop.product]));
        assert!(early.await.unwrap() && later.await.unwrap());
        yield_now().await;
        assert!(!late.is_finished() && shop.is_wanted());
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
        shop.gate.suspect(shop.product);
        assert!(shop.gate.shelves().empty.is_empty());
        tokio::time::advance(Gate::BLINDNESS).await;
        shop.gate.suspect(shop.product);
        assert!(!shop.gate.shelves().empty.is_empty());
    }

    #[tokio::test]
    async fn it_opens_when_the_database_does_not_answer() {
        let shop = Shop::open().await;
        shop.gate.suspect(shop.product);
        assert!(shop.is_closed().await);
        shop.store.close().await;
        Gate::lease_is_over().await;
        assert!(!shop.is_closed().await);
        assert!(!shop.gate.shelves().is_reading, "the next read begins anew");
    }
}
