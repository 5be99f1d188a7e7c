//! Tells an observer how long the parts of a transaction take, without a trace of that in the transaction itself: decorators of
//! [`Begin`] and [`Transaction`].

use std::{fmt, sync::Arc, time::Instant};

use super::{
    error::StoreError,
    observer::{RetryCause, TransactionObserver, TransactionPhases},
    rows::ReadOrder,
    transaction::{Begin, Changes, CommitError, LockedInventories, Transaction},
};
use crate::domain::{
    holdings::Holdings,
    ids::{IdempotencyKey, OrderId},
};

/// The observer of a store, or none.
#[derive(Clone, Default)]
pub(super) struct Observer(Option<Arc<dyn TransactionObserver>>);

impl Observer {
    pub(super) fn new(observer: Arc<dyn TransactionObserver>) -> Self {
        Self(Some(observer))
    }

    fn observer(&self) -> Option<&dyn TransactionObserver> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer").field(&self.0.is_some()).finish()
    }
}

/// A database whose transactions are observed.
pub(super) struct Observed<'a, B> {
    pub(super) store: &'a B,
    pub(super) observer: &'a Observer,
}

impl<'a, B: Begin> Begin for Observed<'a, B> {
    type Transaction = ObservedTransaction<'a, B::Transaction>;

    async fn begin(&self) -> Result<Self::Transaction, StoreError> {
        let began_at = Instant::now();
        let transaction = self.store.begin().await?;
        Ok(ObservedTransaction {
            transaction,
            observer: self.observer.observer(),
            began_at,
            read_at: began_at,
        })
    }

    fn runs_again(&self, cause: RetryCause) {
        if let Some(observer) = self.observer.observer() {
            observer.runs_again(cause);
        }
    }
}

pub(super) struct ObservedTransaction<'a, T> {
    transaction: T,
    observer: Option<&'a dyn TransactionObserver>,
    began_at: Instant,
    /// When the last read was done.
    read_at: Instant,
}

impl<T: Transaction> ObservedTransaction<'_, T> {
    /// Notes the end of a read.
    fn read<R>(&mut self, result: R) -> R {
        self.read_at = Instant::now();
        result
    }
}

impl<T: Transaction> Transaction for ObservedTransaction<'_, T> {
    async fn lock_inventories(&mut self, products: String) -> Result<LockedInventories, StoreError> {
        let locked = self.transaction.lock_inventories(products).await;
        self.read(locked)
    }

    async fn stored_orders(&mut self, ids: String) -> Result<Vec<ReadOrder>, StoreError> {
        let orders = self.transaction.stored_orders(ids).await;
        self.read(orders)
    }

    async fn orders_of_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, ReadOrder)>, StoreError> {
        let orders = self.transaction.orders_of_keys(keys).await;
        self.read(orders)
    }

    async fn orphaned_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, OrderId)>, StoreError> {
        let keys = self.transaction.orphaned_keys(keys).await;
        self.read(keys)
    }

    async fn holdings(&mut self, holders: String) -> Result<Holdings, StoreError> {
        let holdings = self.transaction.holdings(holders).await;
        self.read(holdings)
    }

    async fn commit(self, changes: Changes) -> Result<(), CommitError> {
        let Self { transaction, observer, began_at, read_at } = self;
        let decided_at = Instant::now();
        transaction.commit(changes).await?;
        if let Some(observer) = observer {
            observer.committed(TransactionPhases {
                lock_and_read: read_at - began_at,
                decide: decided_at - read_at,
                write_and_commit: decided_at.elapsed(),
            });
        }
        Ok(())
    }
}
