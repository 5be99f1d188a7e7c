//! The gate before the lanes: while nothing of a product is left, its orders are refused at once, so that the storm after
//! the last piece does not stand in line for nothing. Orders with an idempotency key are let through, and those whose
//! client does not wait: see [`crate::placement::Placement::place`].
//!
//! It knows one thing only: that a read of the database, which began at a certain moment, found nothing. For
//! [`Gate::LEASE`] from that moment on it takes this for still true; halfway it reads again, and whoever comes when the
//! lease is over waits for such a read. So it may be trusted:
//!
//! - it refuses on a committed stock of zero, so never an order that could be filled in part or whole;
//! - whoever brings pieces back (a recount, a cancellation) waits out one lease between the commit and the answer. Then
//!   no gate of any API refuses on a read that began before the commit: who hears that there are pieces can order them,
//!   wherever he does. No message has to arrive for that, and no clock has to agree with another;
//! - what nobody answers for (an expiry) opens it a lease later at the most;
//! - when the database does not answer it is open: the orders stand in line.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    lookup::{Lookup, SoldOut},
    product::ProductId,
    store::Store,
};

/// What one API knows of products of which nothing is left. What is not in here has pieces, or nobody has heard otherwise.
pub struct Gate {
    reads: Arc<Lookup<SoldOut>>,
    closed: Mutex<HashMap<ProductId, Lease>>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    until: Instant,
    is_being_renewed: bool,
}

impl Gate {
    /// How long a read counts that found nothing, from when it began. All APIs have to agree on it: a longer one of some
    /// would outlast the others' waiting. Short, because whoever brings pieces back waits for so long; long enough for a
    /// read, at half of it, to be back in time.
    pub const LEASE: Duration = Duration::from_millis(20);

    /// How long a read may take before the gate opens.
    const PATIENCE: Duration = Duration::from_millis(250);

    /// Open for all, to begin with.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { reads: Arc::new(Lookup::new(store)), closed: Mutex::default() })
    }

    /// Some lane said that nothing of this product was left. That was a while ago: the next order has it looked up.
    pub fn suspect(&self, product_id: ProductId) {
        let over = Lease { until: Instant::now(), is_being_renewed: false };
        self.closed().entry(product_id).or_insert(over);
    }

    /// Whether nothing of the product is left: now, or a lease ago.
    pub async fn is_closed(self: &Arc<Self>, product_id: ProductId) -> bool {
        if let Some(known) = self.look(product_id) {
            return known;
        }
        self.read(product_id).await
    }

    /// What is known without reading.
    fn look(self: &Arc<Self>, product_id: ProductId) -> Option<bool> {
        let now = Instant::now();
        let mut closed = self.closed();
        let Some(lease) = closed.get_mut(&product_id) else { return Some(false) };
        let left = lease.until.saturating_duration_since(now);
        if left.is_zero() {
            return None;
        }
        if left < Self::LEASE / 2 && !lease.is_being_renewed {
            lease.is_being_renewed = true;
            let gate = self.clone();
            tokio::spawn(async move { gate.read(product_id).await });
        }
        Some(true)
    }

    /// Renews the lease, or opens the gate.
    async fn read(&self, product_id: ProductId) -> bool {
        let until = Instant::now() + Self::LEASE; // before the read begins
        let is_sold_out = timeout(Self::PATIENCE, self.reads.find(SoldOut(product_id))).await;
        let is_sold_out = matches!(is_sold_out, Ok(Ok(Some(()))));
        let mut closed = self.closed();
        if is_sold_out {
            let lease = closed.entry(product_id).or_insert(Lease { until, is_being_renewed: false });
            *lease = Lease { until: lease.until.max(until), is_being_renewed: false };
        } else {
            closed.remove(&product_id);
        }
        is_sold_out
    }

    fn closed(&self) -> MutexGuard<'_, HashMap<ProductId, Lease>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no gate of any API refuses on a read that began before this was called.
    pub async fn lease_is_over() {
        sleep(Self::LEASE).await;
    }
}

#[cfg(test)]
mod tests {
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

        async fn count(&self, pieces: u32) {
            let stock = Stock::new(pieces).unwrap();
            self.store.recount(self.product, stock).await.unwrap().unwrap().unwrap();
        }

        async fn is_closed(&self) -> bool {
            self.gate.is_closed(self.product).await
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
        assert!(shop.gate.closed().is_empty(), "it is forgotten");
        shop.gate.suspect(shop.product);
        assert!(!shop.is_closed().await, "one piece is left");
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
                tokio::task::yield_now().await;
            }
            shop.count(pieces).await;
            Gate::lease_is_over().await;
            assert!(!shop.is_closed().await, "{pieces}");
        }
    }

    #[tokio::test]
    async fn who_comes_within_a_lease_does_not_wait_for_a_read() {
        let shop = Shop::open().await;
        tokio::time::pause();
        let begin = || {
            let lease = Lease { until: Instant::now() + Gate::LEASE, is_being_renewed: false };
            shop.gate.closed().insert(shop.product, lease);
        };
        let is_being_renewed = || shop.gate.closed()[&shop.product].is_being_renewed;
        begin();
        assert_eq!((shop.gate.look(shop.product), is_being_renewed()), (Some(true), false));
        tokio::time::advance(Gate::LEASE).await;
        assert_eq!((shop.gate.look(shop.product), is_being_renewed()), (None, false));
        begin();
        tokio::time::advance(Gate::LEASE * 3 / 4).await;
        assert_eq!((shop.gate.look(shop.product), is_being_renewed()), (Some(true), true));
    }

    #[tokio::test]
    async fn it_opens_when_the_database_does_not_answer() {
        let shop = Shop::open().await;
        shop.gate.suspect(shop.product);
        assert!(shop.is_closed().await);
        shop.store.close().await;
        Gate::lease_is_over().await;
        assert!(!shop.is_closed().await);
        assert!(shop.gate.closed().is_empty());
    }
}
