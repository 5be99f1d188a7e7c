//! Looks things up in the store, many with one statement: what is asked for while a read is under way is read together
//! when it is done. A lone question never waits; and a storm of payments, each of which must know its order's product, or
//! the thousands of first orders of a sale, each of which must know whether its product exists, do not become a storm of
//! statements.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::{
    order::{IdempotencyKey, Order, OrderId},
    product::ProductId,
    store::{Store, StoreError},
};

/// How many things one statement reads at most.
const MAX_NAMES: usize = 1_000;

/// What something is found by.
#[async_trait]
pub trait Name: Clone + Eq + Hash + Send + Sync + 'static {
    /// What is found.
    type Found: Copy + Send;

    /// Those things of these names that there are.
    async fn read(store: &dyn Store, names: &[Self]) -> Result<HashMap<Self, Self::Found>, StoreError>;
}

#[async_trait]
impl Name for OrderId {
    type Found = Order;

    async fn read(store: &dyn Store, names: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        store.orders_by_id(names).await
    }
}

#[async_trait]
impl Name for IdempotencyKey {
    type Found = Order;

    async fn read(store: &dyn Store, names: &[Self]) -> Result<HashMap<Self, Order>, StoreError> {
        store.orders_by_key(names).await
    }
}

/// That it exists is all that is found of a product.
#[async_trait]
impl Name for ProductId {
    type Found = ();

    async fn read(store: &dyn Store, names: &[Self]) -> Result<HashMap<Self, ()>, StoreError> {
        Ok(store.existing(names).await?.into_iter().map(|id| (id, ())).collect())
    }
}

/// The desk where one kind of name is looked up.
pub struct Lookup<N: Name> {
    store: Arc<dyn Store>,
    gathering: Mutex<Gathering<N>>,
}

struct Gathering<N: Name> {
    questions: Vec<Question<N>>,
    is_reading: bool,
}

struct Question<N: Name> {
    name: N,
    answer: oneshot::Sender<Option<N::Found>>,
}

impl<N: Name> Lookup<N> {
    /// Asks this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let gathering = Gathering { questions: Vec::new(), is_reading: false };
        Self { store, gathering: Mutex::new(gathering) }
    }

    /// What has this name, if anything has.
    pub async fn find(self: &Arc<Self>, name: N) -> Result<Option<N::Found>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut gathering = self.gathering();
            gathering.questions.push(Question { name: name.clone(), answer });
            !mem::replace(&mut gathering.is_reading, true)
        };
        if is_first {
            // On its own: the client of the first question may leave, and the others still wait.
            tokio::spawn(self.clone().read());
        }
        match answered.await {
            Ok(found) => Ok(found),
            // The common read failed: everybody asks for himself, and hears why.
            Err(_) => Ok(N::read(&*self.store, &[name]).await?.into_values().next()),
        }
    }

    /// Reads until nobody asks.
    async fn read(self: Arc<Self>) {
        loop {
            let questions = {
                let mut gathering = self.gathering();
                if gathering.questions.is_empty() {
                    gathering.is_reading = false;
                    return;
                }
                let count = gathering.questions.len().min(MAX_NAMES);
                let rest = gathering.questions.split_off(count);
                mem::replace(&mut gathering.questions, rest)
            };
            let names: Vec<_> = questions.iter().map(|question| question.name.clone()).collect();
            match N::read(&*self.store, &names).await {
                Ok(found) => {
                    for Question { name, answer } in questions {
                        let _ = answer.send(found.get(&name).copied()); // who asked may have left
                    }
                }
                Err(error) => tracing::debug!(%error, questions = questions.len(), "a common read failed"),
            }
        }
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering<N>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    async fn lookup() -> (tempfile::TempDir, Arc<Lookup<ProductId>>, ProductId) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = Arc::new(SqliteStore::open(&url).await.unwrap());
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        (directory, Arc::new(Lookup::new(store)), product.id)
    }

    #[tokio::test]
    async fn everybody_gets_the_answer_to_his_own_question() {
        let (_directory, lookup, known) = lookup().await;
        let ids = (1..=3 * MAX_NAMES as u64).map(|number| ProductId::new(number).unwrap());
        let answers = join_all(ids.map(|id| {
            let lookup = lookup.clone();
            async move { (id, lookup.find(id).await.unwrap()) }
        }));
        for (id, found) in answers.await {
            assert_eq!(found.is_some(), id == known, "{id}");
        }
        assert!(!lookup.gathering().is_reading && lookup.gathering().questions.is_empty());
    }

    #[tokio::test]
    async fn who_leaves_keeps_nobody_from_his_answer() {
        let (_directory, lookup, known) = lookup().await;
        let leaving = tokio::spawn({
            let lookup = lookup.clone();
            async move { lookup.find(known).await }
        });
        tokio::task::yield_now().await;
        leaving.abort();
        assert_eq!(lookup.find(known).await.unwrap(), Some(()));
    }

    #[tokio::test]
    async fn a_read_that_fails_is_told_to_everybody() {
        let (_directory, lookup, known) = lookup().await;
        lookup.store.close().await;
        let answers = join_all((0..5).map(|_| lookup.find(known))).await;
        assert!(answers.iter().all(Result::is_err));
    }
}
