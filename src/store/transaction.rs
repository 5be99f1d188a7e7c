//! The transaction that decides a batch, the same in every database.
//!
//! Rows are locked in one order everywhere: the inventories of the batch by product id, then the orders. Each
//! step is one statement with one JSON parameter, whatever the size of the batch, so that its text stays in the
//! prepared-statement cache.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    time::Duration,
};

use serde::Serialize;

use super::{Decided, StoreError};
use crate::{
    batch::{self, Decision, Inventories},
    order::{NewOrder, Order, OrderId, OrderState, Verdict, from_millis, now, on_record},
};

/// One open transaction. Dropping it rolls it back.
pub(super) trait Transaction: Send {
    /// Locks the inventories of these products (`[7, 9]`, ascending), and reads them once they are locked.
    fn lock_inventories(
        &mut self,
        products: String,
    ) -> impl Future<Output = Result<Inventories, StoreError>> + Send;

    /// The orders on record among these (`["<32 hex digits>", …]`).
    fn orders_on_record(
        &mut self,
        ids: String,
    ) -> impl Future<Output = Result<Vec<Order>, StoreError>> + Send;

    /// Puts orders on record: `[["<32 hex digits>", product_id, total, status, expires_at, rejected_available], …]`.
    fn insert_orders(&mut self, rows: String) -> impl Future<Output = Result<(), InsertError>> + Send;

    /// Moves stock: `[[product_id, stored, available, reserved], …]`, each the difference to what is there; counts
    /// up their versions.
    fn move_stock(&mut self, differences: String) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Commits.
    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A database that can begin a transaction.
pub(super) trait Begin: Sync {
    /// Its transaction.
    type Transaction: Transaction;

    /// Begins one that may write.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;
}

/// Why orders were not inserted.
pub(super) enum InsertError {
    /// One of the ids is on record.
    Duplicate,
    /// Anything else.
    Store(StoreError),
}

/// How often a transaction runs again after a deadlock or a lock that was not had in time, before the caller
/// hears of it.
const RUNS: u32 = 5;

/// Decides a batch: see [`super::Store::decide`].
pub(super) async fn decide<B: Begin>(
    store: &B,
    orders: &[NewOrder],
    reservation_ttl: Duration,
) -> Result<Decided, StoreError> {
    let mut run = 1;
    loop {
        let result = match decide_new(store, orders, reservation_ttl).await {
            Err(InsertError::Duplicate) => decide_redelivered(store, orders, reservation_ttl).await,
            Ok(decided) => Ok(decided),
            Err(InsertError::Store(error)) => Err(error),
        };
        match result {
            Err(error) if is_conflict(&error) && run < RUNS => {
                tracing::debug!(%error, run, "running the transaction again");
                run += 1;
            }
            result => return result,
        }
    }
}

/// The usual way: none of the orders is on record. For those that go on record now, their insertion tells; for the
/// others it takes a look, because the very order that took the last piece is rejected when it comes back.
async fn decide_new<B: Begin>(
    store: &B,
    orders: &[NewOrder],
    reservation_ttl: Duration,
) -> Result<Decided, InsertError> {
    if one_stands_twice(orders) {
        return Err(InsertError::Duplicate);
    }
    let mut transaction = store.begin().await?;
    let inventories = transaction.lock_inventories(products_of(orders)).await?;
    let Applied { decided, forgotten } =
        apply(&mut transaction, inventories, orders, reservation_ttl).await?;
    if !forgotten.is_empty() && !transaction.orders_on_record(ids(&forgotten)).await?.is_empty() {
        return Err(InsertError::Duplicate);
    }
    transaction.commit().await?;
    Ok(decided)
}

/// The careful way, after one of the ids was found on record: a worker died between commit and ack, and its
/// messages came back. Whoever decides an order holds the lock of its inventory, so what is read after taking
/// that lock is final.
async fn decide_redelivered<B: Begin>(
    store: &B,
    orders: &[NewOrder],
    reservation_ttl: Duration,
) -> Result<Decided, StoreError> {
    let mut transaction = store.begin().await?;
    let inventories = transaction.lock_inventories(products_of(orders)).await?;
    let mut verdicts: HashMap<OrderId, Verdict> = transaction
        .orders_on_record(ids(orders))
        .await?
        .iter()
        .map(|order| (order.id, order.verdict()))
        .collect();

    // A message may even stand twice in one batch: it is decided once.
    let mut seen: HashSet<OrderId> = verdicts.keys().copied().collect();
    let rest: Vec<_> = orders.iter().copied().filter(|order| seen.insert(order.id)).collect();
    let decided = match apply(&mut transaction, inventories, &rest, reservation_ttl).await {
        Ok(Applied { decided, .. }) => decided,
        Err(InsertError::Store(error)) => return Err(error),
        Err(InsertError::Duplicate) => {
            return Err(StoreError::Corrupt("an order of two products has one id".to_owned()));
        }
    };
    transaction.commit().await?;
    verdicts.extend(rest.iter().map(|order| order.id).zip(decided.verdicts));
    let verdicts = orders.iter().map(|order| verdicts[&order.id]).collect();
    Ok(Decided { verdicts, stock: decided.stock })
}

/// A batch that is decided and written, but not committed.
struct Applied {
    decided: Decided,
    /// Those of an existing product that do not go on record.
    forgotten: Vec<NewOrder>,
}

/// Decides in memory, then writes what changed. A batch that changes nothing writes nothing.
async fn apply(
    transaction: &mut impl Transaction,
    before: Inventories,
    orders: &[NewOrder],
    reservation_ttl: Duration,
) -> Result<Applied, InsertError> {
    let decided_at = now();
    let ttl_ms = i64::try_from(reservation_ttl.as_millis()).unwrap_or(i64::MAX);
    let expires_at = from_millis(decided_at.as_millisecond().saturating_add(ttl_ms));
    let Decision { verdicts, inventories: after } = batch::decide(before.clone(), orders, expires_at);

    let (mut rows, mut forgotten) = (Vec::new(), Vec::new());
    for (order, verdict) in orders.iter().zip(&verdicts) {
        match on_record(order, *verdict, decided_at) {
            Some(order) => rows.push(row(order)),
            None if before.contains_key(&order.product_id) => forgotten.push(*order),
            None => {}
        }
    }
    if !rows.is_empty() {
        transaction.insert_orders(json(&rows)).await?;
    }
    let differences = differences(&before, &after);
    if !differences.is_empty() {
        transaction.move_stock(json(&differences)).await?;
    }
    let stock = before
        .iter()
        .zip(&after)
        .map(|((product_id, before), (_, after))| after.committed(*before).news(*product_id))
        .collect();
    Ok(Applied { decided: Decided { verdicts, stock }, forgotten })
}

fn one_stands_twice(orders: &[NewOrder]) -> bool {
    let mut ids: Vec<_> = orders.iter().map(|order| order.id).collect();
    ids.sort_unstable(); // almost sorted already: orders arrive about as they were created
    ids.windows(2).any(|pair| pair[0] == pair[1])
}

fn ids(orders: &[NewOrder]) -> String {
    json(&orders.iter().map(|order| order.id.uuid().simple()).collect::<Vec<_>>())
}

fn products_of(orders: &[NewOrder]) -> String {
    let mut products: Vec<_> = orders.iter().map(|order| order.product_id).collect();
    products.sort_unstable();
    products.dedup();
    json(&products)
}

fn row(order: Order) -> impl Serialize {
    let (expires_at, rejected_available) = match order.state {
        OrderState::Accepted { expires_at, .. } => (Some(expires_at.as_millisecond()), None),
        OrderState::Rejected { available } => (None, Some(available)),
    };
    let status = order.status().as_str();
    (order.id.uuid().simple(), order.product_id, order.total, status, expires_at, rejected_available)
}

fn differences(before: &Inventories, after: &Inventories) -> Vec<impl Serialize> {
    let difference = |after: u32, before: u32| i64::from(after) - i64::from(before);
    before
        .iter()
        .zip(after.values())
        .filter(|((_, before), after)| before != after)
        .map(|((product_id, before), after)| {
            (
                *product_id,
                difference(after.stored(), before.stored()),
                difference(after.available(), before.available()),
                difference(after.reserved(), before.reserved()),
            )
        })
        .collect()
}

#[expect(clippy::expect_used, reason = "lists of numbers and texts always serialize")]
pub(super) fn json(list: &impl Serialize) -> String {
    serde_json::to_string(list).expect("a list of numbers and texts")
}

/// Somebody else holds the rows: 1213 and 1205 in MySQL, `SQLITE_BUSY` in SQLite.
fn is_conflict(error: &StoreError) -> bool {
    let StoreError::Unavailable(sqlx::Error::Database(error)) = error else { return false };
    match error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        Some(mysql) => matches!(mysql.number(), 1205 | 1213),
        None => true,
    }
}

impl From<StoreError> for InsertError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for InsertError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Duplicate,
            _ => Self::Store(error.into()),
        }
    }
}
