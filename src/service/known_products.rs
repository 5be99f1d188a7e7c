//! What an API knows of products without asking the database for each order: whether they exist, and are archived.
//!
//! A product may be archived at another API, so what is known counts for a few seconds only. While the database does not answer,
//! the last answer goes on counting: the lane decides, and knows better.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, timeout};

use super::batch_loader::BatchLoader;
use crate::{
    domain::{ids::ProductId, product::ProductState},
    queue::{Archive, KNOWN_FOR},
    store::{Catalog, StoreError},
};

/// How long an order waits for the read of a product that was known before.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// After a read that failed or took longer, the product is not read again for so long.
const DISTRUST: Duration = Duration::from_secs(5);

pub struct KnownProducts {
    products: Arc<BatchLoader<ProductId>>,
    known: Mutex<HashMap<ProductId, Known>>,
}

/// That a product exists.
#[derive(Clone, Copy)]
struct Known {
    state: ProductState,
    /// When it must be read again. A product stays archived for ever.
    until: Option<Instant>,
}

impl KnownProducts {
    pub fn new(catalog: Arc<dyn Catalog>) -> Self {
        Self { products: Arc::new(BatchLoader::new(catalog)), known: Mutex::default() }
    }

    /// What the product is; `None`: it does not exist.
    pub async fn state(&self, id: ProductId) -> Result<Option<ProductState>, StoreError> {
        let before = self.known().get(&id).copied();
        let now = Instant::now(); // before the read begins
        if let Some(Known { state, until }) = before
            && until.is_none_or(|until| now < until)
        {
            return Ok(Some(state));
        }
        let found = match before {
            None => self.products.load(id).await?,
            Some(Known { state, .. }) => match timeout(MAX_WAIT, self.products.load(id)).await {
                Ok(Ok(found)) => found,
                Ok(Err(_)) | Err(_) => {
                    self.learn(id, state, Instant::now() + DISTRUST);
                    return Ok(Some(state));
                }
            },
        };
        match found {
            Some(state) => self.learn(id, state, now + KNOWN_FOR),
            None => drop(self.known().remove(&id)),
        }
        Ok(found)
    }

    /// The product was archived just now.
    pub fn archived(&self, id: ProductId) {
        self.known().insert(id, Known { state: ProductState::Archived, until: None });
    }

    fn learn(&self, id: ProductId, state: ProductState, until: Instant) {
        let mut known = self.known();
        // A read that began before the product was archived may end after it.
        if known.get(&id).is_none_or(|known| known.until.is_some()) {
            known.insert(id, Known { state, until: (state == ProductState::Live).then_some(until) });
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ProductId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Archive for KnownProducts {
    async fn is_archived(&self, product_id: ProductId) -> bool {
        matches!(self.state(product_id).await, Ok(Some(ProductState::Archived)))
    }

    fn forget(&self, product_id: ProductId) {
        if let Some(Known { until: Some(until), .. }) = self.known().get_mut(&product_id) {
            *until = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{
        clock::SystemClock,
        store::{Store, memory::MemoryStore},
    };

    async fn shop() -> (Arc<MemoryStore>, KnownProducts, ProductId) {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let id = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap().id;
        tokio::time::pause();
        (store.clone(), KnownProducts::new(store), id)
    }

    #[tokio::test]
    async fn an_archive_at_another_api_is_known_within_seconds_and_for_ever() {
        let (store, known, id) = shop().await;
        assert_eq!(known.state(id).await.unwrap(), Some(ProductState::Live));
        store.archive(id).await.unwrap();
        assert!(!known.is_archived(id).await, "it was read just now");
        advance(KNOWN_FOR).await;
        assert!(known.is_archived(id).await);
        store.close().await;
        advance(KNOWN_FOR * 2).await;
        assert!(known.is_archived(id).await, "without a read");
    }

    #[tokio::test]
    async fn a_lane_that_is_gone_makes_it_read_again() {
        let (store, known, id) = shop().await;
        assert!(!known.is_archived(id).await);
        store.archive(id).await.unwrap();
        known.forget(id);
        assert!(known.is_archived(id).await);
        known.forget(id);
        assert!(known.is_archived(id).await);
    }

    #[tokio::test]
    async fn an_archive_here_is_known_at_once_whatever_is_being_read() {
        let (_store, known, id) = shop().await;
        known.archived(id);
        known.learn(id, ProductState::Live, Instant::now() + KNOWN_FOR);
        assert!(known.is_archived(id).await);
    }

    #[tokio::test]
    async fn what_was_known_counts_while_the_database_is_away() {
        let (store, known, id) = shop().await;
        assert_eq!(known.state(id).await.unwrap(), Some(ProductState::Live));
        store.close().await;
        advance(KNOWN_FOR * 100).await;
        assert_eq!(known.state(id).await.unwrap(), Some(ProductState::Live));
        let stranger = ProductId::new(4711).unwrap();
        assert!(known.state(stranger).await.unwrap_err().is_transient(), "nothing is known of it");
    }

    #[tokio::test]
    async fn a_product_that_does_not_exist_is_read_each_time() {
        let (store, known, id) = shop().await;
        let next = ProductId::new(id.get() + 1).unwrap();
        assert_eq!(known.state(next).await.unwrap(), None);
        store.create_product("Topi".to_owned().try_into().unwrap()).await.unwrap();
        assert_eq!(known.state(next).await.unwrap(), Some(ProductState::Live));
    }
}
