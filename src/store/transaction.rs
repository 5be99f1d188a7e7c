//! The transaction that decides a batch, the same in every database.
//!
//! Rows are locked in one order everywhere: the inventories of the batch by product id, then the orders. Each
//! step is one statement with one JSON parameter, whatever the size of the batch, so that its text stays in the
//! prepared-statement cache.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    time::Duration,
};

use serde::Serialize;

use super::{Decided, Store, StoreError};
use crate::{
    batch::{self, Decision, Inventories, OnRecord, Times, Writes},
    command::Command,
    inventory::{Inventory, Stock, StockBelowReserved},
    order::{IdempotencyKey, Order, OrderId, OrderState, from_millis, now},
    product::{Product, ProductId},
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

    /// The orders on record that have one of these idempotency keys (`["<key>", …]`).
    fn orders_of_keys(
        &mut self,
        keys: String,
    ) -> impl Future<Output = Result<Vec<(IdempotencyKey, Order)>, StoreError>> + Send;

    /// Writes what a batch changes, and commits, in as few round trips as the database takes: a lone order waits for each.
    fn commit(self, changes: Changes) -> impl Future<Output = Result<(), CommitError>> + Send;
}

/// What a batch changes, as lists in JSON; `None`: nothing.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New reservations, like with like: `[[product_id, total, expires_at, ["<32 hex digits>", …]], …]`. What stands there
    /// once for many is read once: it makes half of what the database spends on them.
    pub reservations: Option<String>,
    /// New rejections: `[["<32 hex digits>", product_id, total, rejected_available], …]`.
    pub rejections: Option<String>,
    /// What clients call their new orders: `[["<key>", "<32 hex digits>"], …]`.
    pub keys: Option<String>,
    /// Orders that went further: `[["<32 hex digits>", status], …]`.
    pub statuses: Option<String>,
    /// Other ids of orders on record, `[["<32 hex digits>", "<32 hex digits of the order>"], …]`; those that are on
    /// record already stay as they are.
    pub aliases: Option<String>,
    /// Moves of stock, `[[product_id, stored, available, reserved], …]`, each the difference to what is there; nothing but
    /// numbers.
    pub stock: Option<String>,
}

/// A database that can begin a transaction.
pub(super) trait Begin: Sync {
    /// Its transaction.
    type Transaction: Transaction;

    /// Begins one that may write.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;
}

/// Why a batch was not committed.
pub(super) enum CommitError {
    /// The id or key of one of its new orders is on record.
    Duplicate,
    /// Anything else.
    Store(StoreError),
}

/// How often a transaction runs again after a deadlock, a lock that was not had in time, or a key that somebody else put
/// on record meanwhile, before the caller hears of it.
const RUNS: u32 = 5;

/// Decides a batch: see [`super::Store::decide`].
pub(super) async fn decide<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
) -> Result<Decided, StoreError> {
    let mut is_plain = are_plain(commands);
    let mut run = 1;
    loop {
        let result = match is_plain {
            true => decide_plain(store, commands, reservation_ttl).await,
            false => decide_any(store, commands, reservation_ttl).await,
        };
        match result {
            Ok(decided) => return Ok(decided),
            // Something of the batch is on record, after all.
            Err(CommitError::Duplicate) if is_plain => is_plain = false,
            Err(CommitError::Duplicate) if commands.iter().all(|command| key_of(command).is_none()) => {
                return Err(StoreError::Corrupt("an order of two products has one id".to_owned()));
            }
            // A worker of another lane was faster with one of its keys: what it put on record is found now.
            Err(CommitError::Duplicate) if run < RUNS => run += 1,
            Err(CommitError::Store(error)) if is_conflict(&error) && run < RUNS => {
                tracing::debug!(%error, run, "running the transaction again");
                run += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Counts a product's stock anew: see [`Store::recount`].
pub(super) async fn recount<S: Store + Begin>(
    store: &S,
    id: ProductId,
    stock: Stock,
) -> Result<Option<Result<(Product, Inventory), StockBelowReserved>>, StoreError> {
    let Some(product) = store.product(id).await? else { return Ok(None) };
    let mut transaction = store.begin().await?;
    let before = transaction.lock_inventories(json(&[id])).await?;
    let mut after = before.clone();
    let Some(counted) = after.get_mut(&id) else { return Ok(None) };
    if let Err(below) = counted.recount(stock) {
        return Ok(Some(Err(below)));
    }
    let counted = *counted;
    let stock = list(&differences(&before, &after));
    transaction.commit(Changes { stock, ..Changes::default() }).await?;
    Ok(Some(Ok((product, counted))))
}

/// Whether a batch is what most batches are: new orders, each once.
fn are_plain(commands: &[Command]) -> bool {
    commands.iter().all(|command| matches!(command, Command::Place(_))) && !one_stands_twice(commands)
}

/// The usual way: none of the orders is on record. For those that go on record now, their insertion tells; for the
/// others it takes a look, because the very order that took the last piece is rejected when it comes back.
async fn decide_plain<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
) -> Result<Decided, CommitError> {
    let mut transaction = store.begin().await?;
    let before = transaction.lock_inventories(products_of(commands)).await?;
    let decision =
        batch::decide(before.clone(), None, commands, times(reservation_ttl)).map_err(StoreError::from)?;
    let forgotten = forgotten(commands, &decision);
    if !forgotten.is_empty() && !on_record(&mut transaction, forgotten).await?.orders.is_empty() {
        return Err(CommitError::Duplicate);
    }
    transaction.commit(changes(&before, &decision)).await?;
    Ok(decision.into())
}

/// The way of all other batches: of changes of orders on record, and of orders that came back, because a worker died
/// between commit and ack or because their client sent them again. It reads first what is on record. Whoever moves an order
/// holds the lock of its inventory, so what is read after taking that lock is final.
async fn decide_any<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
) -> Result<Decided, CommitError> {
    let mut transaction = store.begin().await?;
    let before = transaction.lock_inventories(products_of(commands)).await?;
    let on_record = on_record(&mut transaction, commands).await?;
    let decision = batch::decide(before.clone(), Some(on_record), commands, times(reservation_ttl))
        .map_err(StoreError::from)?;
    transaction.commit(changes(&before, &decision)).await?;
    Ok(decision.into())
}

/// What is on record of the orders that these commands are about.
async fn on_record(
    transaction: &mut impl Transaction,
    commands: impl IntoIterator<Item = &Command, IntoIter: Clone> + Send,
) -> Result<OnRecord, StoreError> {
    let commands = commands.into_iter();
    let mut on_record = OnRecord::default();
    let known = transaction.orders_on_record(hex(commands.clone().map(order_of))).await?;
    on_record.orders.extend(known.into_iter().map(|order| (order.id, order)));
    let keys: HashSet<_> = commands.filter_map(key_of).collect();
    if !keys.is_empty() {
        for (key, order) in transaction.orders_of_keys(json(&keys)).await? {
            on_record.keys.insert(key, order.id);
            on_record.orders.entry(order.id).or_insert(order);
        }
    }
    Ok(on_record)
}

fn times(reservation_ttl: Duration) -> Times {
    let decided_at = now();
    let ttl_ms = i64::try_from(reservation_ttl.as_millis()).unwrap_or(i64::MAX);
    Times { decided_at, expires_at: from_millis(decided_at.as_millisecond().saturating_add(ttl_ms)) }
}

/// What there is to write. For a batch that changes nothing, nothing.
fn changes(before: &Inventories, decision: &Decision) -> Changes {
    let Writes { orders, statuses, aliases } = &decision.writes;
    let hex = |id: &OrderId| id.uuid().simple();
    let mut reservations = BTreeMap::<_, Vec<_>>::new();
    let (mut rejections, mut keys) = (Vec::new(), Vec::new());
    for (order, key) in orders {
        let (id, product_id, total) = (hex(&order.id), order.product_id, order.total);
        match order.state {
            OrderState::Accepted { expires_at, .. } => {
                let alike = (product_id, total, expires_at.as_millisecond());
                reservations.entry(alike).or_default().push(id);
            }
            OrderState::Rejected(rejection) => {
                rejections.push((id, product_id, total, rejection.available()))
            }
        }
        keys.extend(key.as_ref().map(|key| (key, id)));
    }
    let reservations = reservations.into_iter();
    let reservations: Vec<_> = reservations
        .map(|((product_id, total, expires_at), ids)| (product_id, total, expires_at, ids))
        .collect();
    let statuses: Vec<_> = statuses.iter().map(|(id, status)| (hex(id), status.as_str())).collect();
    let aliases: Vec<_> = aliases.iter().map(|(id, order)| (hex(id), hex(order))).collect();
    Changes {
        reservations: list(&reservations),
        rejections: list(&rejections),
        keys: list(&keys),
        statuses: list(&statuses),
        aliases: list(&aliases),
        stock: list(&differences(before, &decision.inventories)),
    }
}

fn list(rows: &[impl Serialize]) -> Option<String> {
    (!rows.is_empty()).then(|| json(&rows))
}

impl From<Decision> for Decided {
    fn from(Decision { verdicts, events, .. }: Decision) -> Self {
        Self { verdicts, events }
    }
}

/// Those orders of existing products that do not go on record.
fn forgotten<'a>(commands: &'a [Command], decision: &Decision) -> Vec<&'a Command> {
    // What goes on record does so in the order of the batch.
    let mut recorded = decision.writes.orders.iter().map(|(order, _)| order.id).peekable();
    commands
        .iter()
        .filter(|command| decision.inventories.contains_key(&command.product_id()))
        .filter(|command| recorded.next_if_eq(&order_of(command)).is_none())
        .collect()
}

fn order_of(command: &Command) -> OrderId {
    match command {
        Command::Place(order) => order.id,
        Command::Change(change) => change.order_id,
    }
}

fn key_of(command: &Command) -> Option<&IdempotencyKey> {
    match command {
        Command::Place(order) => order.key.as_ref(),
        Command::Change(_) => None,
    }
}

/// Under one id, or under one key.
fn one_stands_twice(commands: &[Command]) -> bool {
    let mut ids: Vec<_> = commands.iter().map(Command::id).collect();
    ids.sort_unstable(); // almost sorted already: orders arrive about as they were created
    let mut keys = HashSet::new();
    ids.windows(2).any(|pair| pair[0] == pair[1])
        || !commands.iter().filter_map(key_of).all(|key| keys.insert(key))
}

/// As [`Transaction::orders_on_record`] takes them.
pub(super) fn hex(ids: impl IntoIterator<Item = OrderId>) -> String {
    json(&ids.into_iter().map(|id| id.uuid().simple()).collect::<Vec<_>>())
}

fn products_of(commands: &[Command]) -> String {
    let mut products: Vec<_> = commands.iter().map(Command::product_id).collect();
    products.sort_unstable();
    products.dedup();
    json(&products)
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

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Duplicate => Self::Contended,
            CommitError::Store(error) => error,
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Duplicate,
            _ => Self::Store(error.into()),
        }
    }
}
