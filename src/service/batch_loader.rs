//! Looks things up in the store, many with one statement: what is asked for while a read is under way is read together
//! when it is done. A lone request never waits for others; and a storm of payments, each of which must know its order's product, or
//! the thousands of first orders of a sale, each of which must know whether its product exists, do not become a storm of
//! statements.

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
    },
    store::{Catalog, Orders, StoreError},
};

/// How many things one statement reads at most.
const MAX_KEYS: usize = 1_000;
/// How long a request waits at most: for the read that is under way, and for its own.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// What something is found by.
#[async_trait]
pub trait LoadKey: Clone + Eq + Hash + Send + Sync + 'static {
    /// What is found.
    type Found: Copy + Send;
    /// The role of the store that finds it.
    type Source: ?Sized + Send + Sync + 'static;

    /// Those things of these names that there are.
    async fn read(source: &Self::Source, names: &[Self]) -> Result<HashMap<Self, Self::Found>, StoreError>;
}

#[async_trait]
impl LoadKey for OrderId {
    type Found = Order;
    type Source = dyn Orders;

    async fn read(orders: &dyn Orders, names: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        orders.orders_by_id(names).await
    }
}

#[async_trait]
impl LoadKey for IdempotencyKey {
    type Found = Order;
    type Source = dyn Orders;

    async fn read(orders: &dyn Orders, names: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        orders.orders_by_key(names).await
    }
}

/// That it exists is all that is found of a product.
#[async_trait]
impl LoadKey for ProductId {
    type Found = ();
    type Source = dyn Catalog;

    async fn read(catalog: &dyn Catalog, names: &[Self]) -> Result<HashMap<Self, ()>, StoreError> {
        Ok(catalog.existing(names).await?.into_iter().map(|id| (id, ())).collect())
    }
}

/// The desk where one kind of name is looked up.
pub struct BatchLoader<N: LoadKey> {
    source: Arc<N::Source>,
    gathering: Mutex<Gathering<N>>,
}

struct Gathering<N: LoadKey> {
    requests: Vec<Request<N>>,
    is_reading: bool,
}

struct Request<N: LoadKey> {
    name: N,
    answer: oneshot::Sender<Result<Option<N::Found>, StoreError>>,
}

impl<N: LoadKey> BatchLoader<N> {
    /// Reads from this source, each of whose reads must end within a time limit.
    pub fn new(source: Arc<N::Source>) -> Self {
        let gathering = Gathering { requests: Vec::new(), is_reading: false };
        Self { source, gathering: Mutex::new(gathering) }
    }

    /// What has this name, if anything has. Waits for [`MAX_WAIT`] at most, whatever is wrong with the reads of others.
    pub async fn find(self: &Arc<Self>, name: N) -> Result<Option<N::Found>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut gathering = self.gathering();
            gathering.requests.push(Request { name: name.clone(), answer });
            !mem::replace(&mut gathering.is_reading, true)
        };
        if is_first {
            // On its own: the client of the first request may leave, and the others still wait.
            tokio::spawn(self.clone().read());
        }
        let answer = async {
            match answered.await {
                Ok(answer) => answer,
                // Something is wrong with what stands there: everybody asks for himself, and hears whether it is with his.
                Err(_) => Ok(N::read(&*self.source, &[name]).await?.into_values().next()),
            }
        };
        let silent = || StoreError::Unavailable(format!("no read is done within {MAX_WAIT:?}"));
        timeout(MAX_WAIT, answer).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Reads until nobody asks.
    async fn read(self: Arc<Self>) {
        loop {
            let requests = {
                let mut gathering = self.gathering();
                if gathering.requests.is_empty() {
                    gathering.is_reading = false;
                    return;
                }
                let count = gathering.requests.len().min(MAX_KEYS);
                let rest = gathering.requests.split_off(count);
                mem::replace(&mut gathering.requests, rest)
            };
            let names: Vec<_> = requests.iter().map(|request| request.name.clone()).collect();
            let reading = N::read(&*self.source, &names);
            match AssertUnwindSafe(reading).catch_unwind().await {
                Ok(Ok(found)) => {
                    for Request { name, answer } in requests {
                        let _ = answer.send(Ok(found.get(&name).copied())); // who asked may have left
                    }
                }
                Ok(Err(error)) if error.is_transient() => {
                    for Request { answer, .. } in requests {
                        let _ = answer.send(Err(StoreError::Unavailable(error.to_string())));
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, requests = requests.len(), "a common read failed")
                }
                Err(_) => tracing::debug!(requests = requests.len(), "a common read panicked"),
            }
        }
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering<N>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
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
    use crate::store::{Store, sqlite::SqliteStore};

    async fn store() -> (tempfile::TempDir, Arc<SqliteStore>) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        (directory, store)
    }

    async fn loader() -> (tempfile::TempDir, Arc<BatchLoader<ProductId>>, ProductId) {
        let (directory, store) = store().await;
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        (directory, Arc::new(BatchLoader::<ProductId>::new(store)), product.id)
    }

    #[tokio::test]
    async fn everybody_gets_the_answer_to_his_own_question() {
        let (_directory, loader, known) = loader().await;
        let ids = (1..=3 * MAX_KEYS as u64).map(|number| ProductId::new(number).unwrap());
        let answers = join_all(ids.map(|id| {
            let loader = loader.clone();
            async move { (id, loader.find(id).await.unwrap()) }
        }));
        for (id, found) in answers.await {
            assert_eq!(found.is_some(), id == known, "{id}");
        }
        assert!(!loader.gathering().is_reading && loader.gathering().requests.is_empty());
    }

    #[tokio::test]
    async fn who_leaves_keeps_nobody_from_his_answer() {
        let (_directory, loader, known) = loader().await;
        let leaving = tokio::spawn({
            let loader = loader.clone();
            async move { loader.find(known).await }
        });
        tokio::task::yield_now().await;
        leaving.abort();
        assert_eq!(loader.find(known).await.unwrap(), Some(()));
    }

    #[tokio::test]
    async fn a_read_that_fails_is_told_to_everybody() {
        let (_directory, store) = store().await;
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        let (loader, known) = (Arc::new(BatchLoader::<ProductId>::new(store.clone())), product.id);
        store.close().await;
        let answers = join_all((0..5).map(|_| loader.find(known))).await;
        assert!(answers.iter().all(Result::is_err));
    }

    /// Names that go wrong in their own ways.
    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum Strange {
        Good,
        Silent,
        Away,
        Corrupt,
        Panics,
    }

    thread_local! {
        /// Reads of strange names in this test.
        static READS: Cell<u32> = const { Cell::new(0) };
    }

    #[async_trait]
    impl LoadKey for Strange {
        type Found = ();
        type Source = ();

        async fn read((): &(), names: &[Self]) -> Result<HashMap<Self, ()>, StoreError> {
            READS.set(READS.get() + 1);
            for name in names {
                match name {
                    Self::Good => {}
                    // As every read of a time-limited store.
                    Self::Silent => {
                        sleep(Duration::from_secs(3)).await;
                        return Err(StoreError::Unavailable("it is silent".to_owned()));
                    }
                    Self::Away => return Err(StoreError::Unavailable("it is away".to_owned())),
                    Self::Corrupt => return Err(StoreError::Corrupt("it cannot be".to_owned())),
                    Self::Panics => panic!("a name that panics"),
                }
            }
            Ok(names.iter().map(|name| (*name, ())).collect())
        }
    }

    fn strange() -> Arc<BatchLoader<Strange>> {
        Arc::new(BatchLoader::new(Arc::new(())))
    }

    #[tokio::test]
    async fn a_read_that_is_stuck_ends_and_the_next_one_begins() {
        let loader = strange();
        tokio::time::pause();
        let began = Instant::now();
        let stuck = spawn_find(&loader, Strange::Silent);
        yield_now().await;
        let answers = [stuck.await.unwrap(), loader.find(Strange::Silent).await];
        for answer in answers {
            assert!(answer.unwrap_err().is_transient());
        }
        assert_eq!(began.elapsed().as_secs(), 6);
        assert_eq!(loader.find(Strange::Good).await.unwrap(), Some(()));
        assert_eq!(READS.get(), 3);
    }

    #[tokio::test]
    async fn nobody_waits_for_more_than_one_read_that_is_stuck() {
        let loader = strange();
        tokio::time::pause();
        let stuck = spawn_find(&loader, Strange::Silent);
        advance(Duration::from_secs(2)).await;
        let began = Instant::now();
        assert!(loader.find(Strange::Silent).await.unwrap_err().is_transient());
        assert_eq!(began.elapsed().as_secs(), 3);
        assert!(stuck.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_asked_once_for_everybody() {
        let loader = strange();
        let answers = join_all((0..5).map(|_| loader.find(Strange::Away))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap_err().is_transient()));
        assert_eq!(READS.get(), 1);
    }

    #[tokio::test]
    async fn what_is_wrong_with_one_is_his_own_affair() {
        let loader = strange();
        for strange in [Strange::Corrupt, Strange::Panics] {
            let wrong = spawn_find(&loader, strange);
            let right = spawn_find(&loader, Strange::Good);
            assert_eq!(right.await.unwrap().unwrap(), Some(()));
            match wrong.await {
                Ok(answer) => assert!(matches!(answer, Err(StoreError::Corrupt(_)))),
                Err(error) => assert!(error.is_panic() && strange == Strange::Panics),
            }
            assert_eq!(loader.find(Strange::Good).await.unwrap(), Some(()), "it goes on");
        }
    }

    fn spawn_find(
        loader: &Arc<BatchLoader<Strange>>,
        name: Strange,
    ) -> JoinHandle<Result<Option<()>, StoreError>> {
        let loader = loader.clone();
        tokio::spawn(async move { loader.find(name).await })
    }
}
