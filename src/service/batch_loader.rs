//! Batches reads of the store: keys that are requested while a read is under way are read together when it is done. A single
//! request never waits for others. Thousands of payments, each of which needs its order's product, or the first orders of a sale,
//! each of which needs to know whether its product exists, become few statements.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        order::Order,
        product::ProductState,
    },
    store::{Catalog, Orders, StoreError},
};

/// How many keys one statement reads at most.
const MAX_KEYS: usize = 1_000;
/// How long a request waits at most: for the read that is under way, and for its own.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// A key that a [`BatchLoader`] reads.
#[async_trait]
pub trait LoadKey: Clone + Eq + Hash + Send + Sync + 'static {
    type Value: Clone + Send;
    /// The role of the store that reads it.
    type Source: ?Sized + Send + Sync + 'static;

    /// The values of those keys that exist.
    async fn load(source: &Self::Source, keys: &[Self]) -> Result<HashMap<Self, Self::Value>, StoreError>;
}

#[async_trait]
impl LoadKey for OrderId {
    type Value = Order;
    type Source = dyn Orders;

    async fn load(orders: &dyn Orders, keys: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        orders.orders_by_id(keys).await
    }
}

#[async_trait]
impl LoadKey for IdempotencyKey {
    type Value = Order;
    type Source = dyn Orders;

    async fn load(orders: &dyn Orders, keys: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        orders.orders_by_key(keys).await
    }
}

/// Only whether the product exists, and is archived.
#[async_trait]
impl LoadKey for ProductId {
    type Value = ProductState;
    type Source = dyn Catalog;

    async fn load(catalog: &dyn Catalog, keys: &[Self]) -> Result<HashMap<Self, ProductState>, StoreError> {
        catalog.states(keys).await
    }
}

/// Loads the values of one kind of key.
pub struct BatchLoader<K: LoadKey> {
    source: Arc<K::Source>,
    pending: Mutex<Pending<K>>,
}

struct Pending<K: LoadKey> {
    requests: Vec<Request<K>>,
    is_reading: bool,
}

struct Request<K: LoadKey> {
    key: K,
    reply: oneshot::Sender<Result<Option<K::Value>, StoreError>>,
}

impl<K: LoadKey> BatchLoader<K> {
    /// Reads from this source, each of whose reads must end within a time limit.
    pub fn new(source: Arc<K::Source>) -> Self {
        let pending = Pending { requests: Vec::new(), is_reading: false };
        Self { source, pending: Mutex::new(pending) }
    }

    /// The value of this key, if it has one. Waits for [`MAX_WAIT`] at most, whatever is wrong with the reads of others.
    pub async fn load(self: &Arc<Self>, key: K) -> Result<Option<K::Value>, StoreError> {
        let (reply, loaded) = oneshot::channel();
        let is_first = {
            let mut pending = self.pending();
            pending.requests.push(Request { key: key.clone(), reply });
            !mem::replace(&mut pending.is_reading, true)
        };
        if is_first {
            // In a task: the client of the first request may leave, and the others still wait.
            tokio::spawn(self.clone().read());
        }
        let value = async {
            match loaded.await {
                Ok(value) => value,
                // Some key of the batch is corrupt: each is read separately, and only the corrupt one fails.
                Err(_) => Ok(K::load(&*self.source, &[key]).await?.into_values().next()),
            }
        };
        let silent = || StoreError::Unavailable(format!("no read is done within {MAX_WAIT:?}"));
        timeout(MAX_WAIT, value).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Reads until no request is pending.
    async fn read(self: Arc<Self>) {
        loop {
            let requests = {
                let mut pending = self.pending();
                if pending.requests.is_empty() {
                    pending.is_reading = false;
                    return;
                }
                let count = pending.requests.len().min(MAX_KEYS);
                let rest = pending.requests.split_off(count);
                mem::replace(&mut pending.requests, rest)
            };
            let keys: Vec<_> = requests.iter().map(|request| request.key.clone()).collect();
            let reading = K::load(&*self.source, &keys);
            match AssertUnwindSafe(reading).catch_unwind().await {
                Ok(Ok(values)) => {
                    for Request { key, reply } in requests {
                        let _ = reply.send(Ok(values.get(&key).cloned())); // the client may have left
                    }
                }
                Ok(Err(error)) if error.is_transient() => {
                    for Request { reply, .. } in requests {
                        let _ = reply.send(Err(StoreError::Unavailable(error.to_string())));
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, requests = requests.len(), "a batched read failed")
                }
                Err(_) => tracing::debug!(requests = requests.len(), "a batched read panicked"),
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending<K>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::{
        task::{JoinHandle, yield_now},
        time::{Instant, advance, sleep},
    };

    use super::*;
    use crate::{
        clock::SystemClock,
        store::{Store, memory::MemoryStore},
    };

    fn store() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)))
    }

    async fn loader() -> (Arc<BatchLoader<ProductId>>, ProductId) {
        let store = store();
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        (Arc::new(BatchLoader::<ProductId>::new(store)), product.id)
    }

    #[tokio::test]
    async fn each_request_gets_the_value_of_its_key() {
        let (loader, known) = loader().await;
        let ids = (1..=3 * MAX_KEYS as u64).map(|number| ProductId::new(number).unwrap());
        let answers = join_all(ids.map(|id| {
            let loader = loader.clone();
            async move { (id, loader.load(id).await.unwrap()) }
        }));
        for (id, found) in answers.await {
            assert_eq!(found.is_some(), id == known, "{id}");
        }
        assert!(!loader.pending().is_reading && loader.pending().requests.is_empty());
    }

    #[tokio::test]
    async fn a_client_that_leaves_does_not_stop_the_read_of_others() {
        let (loader, known) = loader().await;
        let leaving = tokio::spawn({
            let loader = loader.clone();
            async move { loader.load(known).await }
        });
        tokio::task::yield_now().await;
        leaving.abort();
        assert_eq!(loader.load(known).await.unwrap(), Some(ProductState::Live));
    }

    #[tokio::test]
    async fn a_read_that_fails_fails_every_request() {
        let store = store();
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let (loader, known) = (Arc::new(BatchLoader::<ProductId>::new(store.clone())), product.id);
        store.close().await;
        let answers = join_all((0..5).map(|_| loader.load(known))).await;
        assert!(answers.iter().all(Result::is_err));
    }

    /// Keys whose reads fail in different ways.
    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum FaultyKey {
        Good,
        Silent,
        Unavailable,
        Corrupt,
        Panics,
    }

    thread_local! {
        /// Reads of faulty keys in this test.
        static READS: Cell<u32> = const { Cell::new(0) };
    }

    #[async_trait]
    impl LoadKey for FaultyKey {
        type Value = ();
        type Source = ();

        async fn load((): &(), keys: &[Self]) -> Result<HashMap<Self, ()>, StoreError> {
            READS.set(READS.get() + 1);
            for key in keys {
                match key {
                    Self::Good => {}
                    // As a read of a time-limited store.
                    Self::Silent => {
                        sleep(Duration::from_secs(3)).await;
                        return Err(StoreError::Unavailable("by a test".to_owned()));
                    }
                    Self::Unavailable => return Err(StoreError::Unavailable("by a test".to_owned())),
                    Self::Corrupt => return Err(StoreError::Corrupt("by a test".to_owned())),
                    Self::Panics => panic!("a key that panics"),
                }
            }
            Ok(keys.iter().map(|key| (*key, ())).collect())
        }
    }

    fn faulty_loader() -> Arc<BatchLoader<FaultyKey>> {
        Arc::new(BatchLoader::new(Arc::new(())))
    }

    #[tokio::test]
    async fn a_stuck_read_ends_and_the_next_one_begins() {
        let loader = faulty_loader();
        tokio::time::pause();
        let began = Instant::now();
        let stuck = spawn_load(&loader, FaultyKey::Silent);
        yield_now().await;
        let answers = [stuck.await.unwrap(), loader.load(FaultyKey::Silent).await];
        for answer in answers {
            assert!(answer.unwrap_err().is_transient());
        }
        assert_eq!(began.elapsed().as_secs(), 6);
        assert_eq!(loader.load(FaultyKey::Good).await.unwrap(), Some(()));
        assert_eq!(READS.get(), 3);
    }

    #[tokio::test]
    async fn a_request_waits_for_at_most_one_stuck_read() {
        let loader = faulty_loader();
        tokio::time::pause();
        let stuck = spawn_load(&loader, FaultyKey::Silent);
        advance(Duration::from_secs(2)).await;
        let began = Instant::now();
        assert!(loader.load(FaultyKey::Silent).await.unwrap_err().is_transient());
        assert_eq!(began.elapsed().as_secs(), 3);
        assert!(stuck.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn an_unavailable_database_is_read_once_for_all_requests() {
        let loader = faulty_loader();
        let answers = join_all((0..5).map(|_| loader.load(FaultyKey::Unavailable))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap_err().is_transient()));
        assert_eq!(READS.get(), 1);
    }

    #[tokio::test]
    async fn a_corrupt_key_fails_alone() {
        let loader = faulty_loader();
        for faulty in [FaultyKey::Corrupt, FaultyKey::Panics] {
            let wrong = spawn_load(&loader, faulty);
            let right = spawn_load(&loader, FaultyKey::Good);
            assert_eq!(right.await.unwrap().unwrap(), Some(()));
            match wrong.await {
                Ok(answer) => assert!(matches!(answer, Err(StoreError::Corrupt(_)))),
                Err(error) => assert!(error.is_panic() && faulty == FaultyKey::Panics),
            }
            assert_eq!(loader.load(FaultyKey::Good).await.unwrap(), Some(()), "it goes on");
        }
    }

    fn spawn_load(
        loader: &Arc<BatchLoader<FaultyKey>>,
        key: FaultyKey,
    ) -> JoinHandle<Result<Option<()>, StoreError>> {
        let loader = loader.clone();
        tokio::spawn(async move { loader.load(key).await })
    }
}
