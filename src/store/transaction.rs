//! The transaction that decides a batch, the same in every database.
//!
//! Rows are locked in one order everywhere: the inventories of the batch by product id, then the orders. Each
//! step is one statement with one JSON parameter, whatever the size of the batch, so that its text stays in the
//! prepared-statement cache.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    mem,
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::{
    error::StoreError,
    observer::RetryCause,
    ports::{Archival, Catalog, Recount},
    rows::{LockedRow, ReadOrder, product_id, stored_lines},
};
use crate::{
    domain::time::from_millis,
    domain::{
        command::Command,
        decide::{self, ArchivedProducts, BatchResult, Decision, Snapshot, StoredOrders, Times, Writes},
        ids::{IdempotencyKey, OrderId, ProductId},
        inventory::{Inventories, Inventory, Stock},
        lines::Line,
        order::OrderState,
        product::Product,
        rejection::RejectionDetails,
    },
};

/// One open transaction, whose statements take a bounded time. Dropping it rolls it back.
pub(super) trait Transaction: Send {
    /// Locks the inventories of these products (`[7, 9]`, ascending), and reads them once they are locked.
    fn lock_inventories(
        &mut self,
        products: String,
    ) -> impl Future<Output = Result<LockedInventories, StoreError>> + Send;

    /// Those of these orders that are stored (`["<32 hex digits>", …]`).
    fn stored_orders(
        &mut self,
        ids: String,
    ) -> impl Future<Output = Result<Vec<ReadOrder>, StoreError>> + Send;

    /// The stored orders that have one of these idempotency keys (`["<key>", …]`).
    fn orders_of_keys(
        &mut self,
        keys: String,
    ) -> impl Future<Output = Result<Vec<(IdempotencyKey, ReadOrder)>, StoreError>> + Send;

    /// Those of these idempotency keys (`["<key>", …]`) whose orders no longer exist.
    fn orphaned_keys(
        &mut self,
        keys: String,
    ) -> impl Future<Output = Result<Vec<(IdempotencyKey, OrderId)>, StoreError>> + Send;

    /// Writes what a batch changes, and commits, in as few round trips as the database takes: a lone order waits for each.
    fn commit(self, changes: Changes) -> impl Future<Output = Result<(), CommitError>> + Send;
}

/// The inventories of a batch, locked.
pub(super) struct LockedInventories {
    pub inventories: Inventories,
    pub archived: ArchivedProducts,
    /// Products whose inventory is invalid, and what is wrong with it.
    pub unreadable: HashMap<ProductId, String>,
    /// The database's clock, in Unix milliseconds.
    pub now: i64,
}

impl LockedInventories {
    pub(super) fn of(rows: Vec<LockedRow>) -> Result<Self, StoreError> {
        // Without any inventory nothing needs the time.
        let now = rows.first().map_or(0, |row| row.now_ms);
        let (mut inventories, mut unreadable) = (Inventories::new(), HashMap::new());
        let mut archived = ArchivedProducts::new();
        for row in rows {
            let id = product_id(row.product_id)?;
            match Inventory::try_from(row.stock) {
                Ok(inventory) => drop(inventories.insert(id, inventory)),
                Err(error) => drop(unreadable.insert(id, format!("the inventory of product {id}: {error}"))),
            }
            archived.extend(row.archived_at.map(|at| (id, from_millis(at))));
        }
        Ok(Self { inventories, archived, unreadable, now })
    }

    fn times(&self, reservation_ttl: Duration) -> Times {
        let ttl_ms = i64::try_from(reservation_ttl.as_millis()).unwrap_or(i64::MAX);
        Times { decided_at: from_millis(self.now), expires_at: from_millis(self.now.saturating_add(ttl_ms)) }
    }
}

/// What a batch changes, as lists in JSON; `None`: nothing.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// New reservations, grouped by equal values: `[[product_id, total, expires_at, ["<32 hex digits>", …]], …]`. The database
    /// then reads each value once for many orders: without that it spends twice as much on them.
    pub reservations: Option<String>,
    /// New reservations that have more than that: `[["<32 hex digits>", product_id, total, expires_at, lines, buyer], …]`.
    pub detailed_reservations: Option<String>,
    /// New rejections:
    /// `[["<32 hex digits>", product_id, total, rejected_available, rejection_reason, rejection_details, lines, buyer], …]`.
    pub rejections: Option<String>,
    /// The lines of new orders behind their first ones: `[[product_id, "<32 hex digits>", total], …]`.
    pub basket_lines: Option<String>,
    /// Keys of deleted orders, which new orders take: `[["<key>", "<32 hex digits of the order>"], …]`.
    pub orphaned_keys: Option<String>,
    /// Idempotency keys of new orders: `[["<key>", "<32 hex digits>"], …]`.
    pub keys: Option<String>,
    /// New statuses of stored orders: `[["<32 hex digits>", status], …]`.
    pub statuses: Option<String>,
    /// Other ids of stored orders, `[["<32 hex digits>", "<32 hex digits of the order>"], …]`; ids that are stored already stay
    /// as they are.
    pub aliases: Option<String>,
    /// Products to archive: `[[product_id, archived_at], …]`.
    pub archived: Option<String>,
    /// Moves of stock, `[[product_id, stored, available, reserved], …]`, each the difference to what is there; nothing but
    /// numbers.
    pub stock: Option<String>,
}

/// A database that can begin a transaction.
pub(super) trait Begin: Sync {
    type Transaction: Transaction;

    /// Begins one that may write.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;

    /// Called when a transaction of a batch did not commit, and the next one is about to begin.
    fn runs_again(&self, _: RetryCause) {}
}

/// Why a batch was not committed.
pub(super) enum CommitError {
    /// The id or key of one of its new orders is stored.
    Duplicate,
    /// Anything else.
    Store(StoreError),
}

/// How often a transaction runs again after a deadlock, or a key that another worker stored in between, before the
/// caller gets the error.
const RUNS: u32 = 5;

/// Decides a batch: see [`super::ports::Decider::decide`]. One that the database refuses is decided again in halves, until the command
/// that it refuses is alone: all others get their verdicts.
pub(super) fn decide<'a, B: Begin>(
    store: &'a B,
    commands: &'a [Command],
    reservation_ttl: Duration,
) -> BoxFuture<'a, Result<BatchResult, StoreError>> {
    Box::pin(async move {
        let error = match decide_together(store, commands, reservation_ttl).await {
            Err(error) if !error.is_transient() => error,
            result => return result,
        };
        match commands {
            [] => return Ok(BatchResult::default()),
            [command] => return Ok(BatchResult::undecidable(command.product_id(), error.to_string())),
            _ => {}
        }
        let (first, second) = commands.split_at(commands.len() / 2);
        let first = decide(store, first, reservation_ttl).await?;
        Ok(first.followed_by(decide(store, second, reservation_ttl).await?))
    })
}

async fn decide_together<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
) -> Result<BatchResult, StoreError> {
    let mut reads = if are_new_orders(commands) { Reads::Nothing } else { Reads::StoredOrders };
    let mut run = 1;
    loop {
        let result = match reads {
            Reads::Nothing => decide_new_orders(store, commands, reservation_ttl).await,
            Reads::StoredOrders | Reads::OrphanedKeys => {
                decide_any_commands(store, commands, reservation_ttl, reads).await
            }
        };
        let cause = match result {
            Ok(decided) => return Ok(decided),
            // An order of the batch is stored, after all.
            Err(CommitError::Duplicate) if reads == Reads::Nothing => {
                reads = Reads::StoredOrders;
                RetryCause::Duplicate
            }
            Err(CommitError::Duplicate) if commands.iter().all(|command| command.key().is_none()) => {
                return Err(StoreError::Corrupt("an order of two products has one id".to_owned()));
            }
            // A worker of another lane has just stored one of its keys: the next run finds it. Or the order of a key was
            // deleted by hand, and the key is left.
            Err(CommitError::Duplicate) if run < RUNS => {
                (reads, run) = (Reads::OrphanedKeys, run + 1);
                RetryCause::Duplicate
            }
            Err(CommitError::Store(error @ StoreError::Contended(_))) if run < RUNS => {
                tracing::debug!(%error, run, "running the transaction again");
                run += 1;
                RetryCause::Contended
            }
            Err(error) => return Err(error.into()),
        };
        store.runs_again(cause);
    }
}

/// What a transaction reads of stored orders before it decides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Nothing: it assumes that no order of the batch is stored.
    Nothing,
    StoredOrders,
    /// Also the keys that are left of deleted orders. Only needed once an insertion has collided.
    OrphanedKeys,
}

/// Sets a product's stock: see [`Catalog::recount`].
pub(super) async fn recount<S: Catalog + Begin>(
    store: &S,
    id: ProductId,
    stock: Stock,
) -> Result<Recount, StoreError> {
    let Some(product) = store.product(id).await? else { return Ok(Recount::NoSuchProduct) };
    again_if_locked(|| async { Ok(recount_once(store, product.clone(), stock).await?) }).await
}

/// Archives a product: see [`Catalog::archive`].
pub(super) async fn archive<S: Catalog + Begin>(store: &S, id: ProductId) -> Result<Archival, StoreError> {
    let Some(product) = store.product(id).await? else { return Ok(Archival::NoSuchProduct) };
    again_if_locked(|| async { Ok(archive_once(store, product.clone()).await?) }).await
}

/// How often something that the seller does is tried when it meets a locked row, before the seller gets the error.
const SELLERS_RUNS: u32 = 3;

/// Runs it again when the database gave it up because of the locks of others.
pub(super) async fn again_if_locked<T, F>(run_once: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut run = 1;
    loop {
        match run_once().await {
            Err(StoreError::Locked(_) | StoreError::Contended(_)) if run < SELLERS_RUNS => run += 1,
            result => return result,
        }
    }
}

async fn archive_once<B: Begin>(store: &B, product: Product) -> Result<Archival, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(json(&[product.id])).await?;
    if let Some(cause) = locked.unreadable.into_values().next() {
        return Err(StoreError::Corrupt(cause).into());
    }
    let Some(inventory) = locked.inventories.get(&product.id) else { return Ok(Archival::NoSuchProduct) };
    if let Some(at) = locked.archived.get(&product.id) {
        return Ok(Archival::Done(Product { archived_at: Some(*at), ..product }));
    }
    if inventory.reserved() > 0 {
        return Ok(Archival::HasReservations(inventory.reserved()));
    }
    let archived = list(&[(product.id, locked.now)]);
    transaction.commit(Changes { archived, ..Changes::default() }).await?;
    Ok(Archival::Done(Product { archived_at: Some(from_millis(locked.now)), ..product }))
}

async fn recount_once<B: Begin>(store: &B, product: Product, stock: Stock) -> Result<Recount, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(json(&[product.id])).await?;
    if let Some(cause) = locked.unreadable.into_values().next() {
        return Err(StoreError::Corrupt(cause).into());
    }
    if locked.archived.contains_key(&product.id) {
        return Ok(Recount::Archived);
    }
    let before = locked.inventories;
    let mut after = before.clone();
    let Some(inventory) = after.get_mut(&product.id) else { return Ok(Recount::NoSuchProduct) };
    if let Err(below) = inventory.recount(stock) {
        return Ok(Recount::BelowReserved(below));
    }
    let inventory = *inventory;
    let stock = list(&differences(&before, &after));
    transaction.commit(Changes { stock, ..Changes::default() }).await?;
    Ok(Recount::Done(product, inventory))
}

/// Whether a batch is what most batches are: new orders, each once.
fn are_new_orders(commands: &[Command]) -> bool {
    commands.iter().all(|command| matches!(command, Command::Place(_))) && !has_duplicates(commands)
}

/// Decides a batch that most likely has only orders which are not stored. The insertion of those that are stored now collides
/// if they were stored before. The others must be looked for: the very order that took the last piece is rejected when it is
/// redelivered.
async fn decide_new_orders<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
) -> Result<BatchResult, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(products_of(commands)).await?;
    if !locked.unreadable.is_empty() {
        return Err(CommitError::Duplicate); // the run that reads stored orders isolates the commands of these products
    }
    let (times, before, archived) = (locked.times(reservation_ttl), locked.inventories, locked.archived);
    let snapshot = Snapshot { inventories: before.clone(), archived, stored: None, times };
    let decision = decide::decide(snapshot, commands);
    let not_stored: Vec<_> = decision.not_stored.iter().map(|index| &commands[*index]).collect();
    if !not_stored.is_empty()
        && !stored_orders(&mut transaction, not_stored, Reads::StoredOrders).await?.is_empty()
    {
        return Err(CommitError::Duplicate);
    }
    transaction.commit(changes(&before, &decision)).await?;
    Ok(decision.result)
}

/// Decides any other batch: changes of stored orders, and orders that were redelivered because a worker died between commit
/// and ack, or that their client sent again. It first reads which are stored. An order changes only under the lock of its
/// inventory, so what is read after taking that lock stays true.
async fn decide_any_commands<B: Begin>(
    store: &B,
    commands: &[Command],
    reservation_ttl: Duration,
    reads: Reads,
) -> Result<BatchResult, CommitError> {
    let mut transaction = store.begin().await?;
    let mut locked = transaction.lock_inventories(products_of(commands)).await?;
    let mut stored = stored_orders(&mut transaction, commands, reads).await?;
    stored.unreadable.products = mem::take(&mut locked.unreadable);
    let (times, before, archived) = (locked.times(reservation_ttl), locked.inventories, locked.archived);
    let snapshot = Snapshot { inventories: before.clone(), archived, stored: Some(stored), times };
    let decision = decide::decide(snapshot, commands);
    transaction.commit(changes(&before, &decision)).await?;
    Ok(decision.result)
}

/// The stored orders that these commands are about.
async fn stored_orders(
    transaction: &mut impl Transaction,
    commands: impl IntoIterator<Item = &Command, IntoIter: Clone> + Send,
    reads: Reads,
) -> Result<StoredOrders, StoreError> {
    let commands = commands.into_iter();
    let mut stored = StoredOrders::default();
    for order in transaction.stored_orders(hex_ids(commands.clone().map(Command::order_id))).await? {
        stored.insert(order);
    }
    let keys: HashSet<_> = commands.filter_map(Command::key).collect();
    if !keys.is_empty() {
        let keys = json(&keys);
        if reads == Reads::OrphanedKeys {
            stored.orphaned_keys.extend(transaction.orphaned_keys(keys.clone()).await?);
        }
        for (key, order) in transaction.orders_of_keys(keys).await? {
            let id = stored.insert(order);
            stored.keys.insert(key, id);
        }
    }
    Ok(stored)
}

impl StoredOrders {
    fn insert(&mut self, order: ReadOrder) -> OrderId {
        match order {
            Ok(order) => {
                let id = order.id;
                self.orders.insert(id, order);
                id
            }
            Err((id, error)) => {
                self.unreadable.orders.insert(id, error.to_string());
                id
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.unreadable.orders.is_empty()
    }
}

/// What there is to write. For a batch that changes nothing, nothing.
fn changes(before: &Inventories, decision: &Decision) -> Changes {
    let Writes { orders, statuses, aliases, orphaned_keys } = &decision.writes;
    let hex = |id: &OrderId| id.uuid().simple();
    let mut reservations = BTreeMap::<_, Vec<_>>::new();
    let (mut detailed, mut rejections) = (Vec::new(), Vec::new());
    let (mut basket_lines, mut keys) = (Vec::new(), Vec::new());
    for (order, key) in orders {
        let Some(lines) = &order.lines else { continue };
        let (id, Line { product_id, total }) = (hex(&order.id), lines.first());
        match order.state {
            OrderState::Accepted { expires_at, .. } if order.buyer.is_none() && lines.only().is_some() => {
                let equal = (product_id, total, expires_at.as_millisecond());
                reservations.entry(equal).or_default().push(id);
            }
            OrderState::Accepted { expires_at, .. } => {
                let expires_at = expires_at.as_millisecond();
                detailed.push((id, product_id, total, expires_at, stored_lines(lines), &order.buyer));
            }
            OrderState::Rejected(rejection) => {
                let (reason, available) = (rejection.reason().as_str(), rejection.available());
                let details = RejectionDetails { available_stock: None, ..rejection.details() };
                let (details, lines) = (json(&details), stored_lines(lines));
                rejections.push((id, product_id, total, available, reason, details, lines, &order.buyer));
            }
        }
        basket_lines.extend(lines.others().iter().map(|line| (line.product_id, id, line.total)));
        keys.extend(key.as_ref().map(|key| (key, id)));
    }
    let reservations = reservations.into_iter();
    let reservations: Vec<_> = reservations
        .map(|((product_id, total, expires_at), ids)| (product_id, total, expires_at, ids))
        .collect();
    let statuses: Vec<_> = statuses.iter().map(|(id, status)| (hex(id), status.as_str())).collect();
    let aliases: Vec<_> = aliases.iter().map(|(id, order)| (hex(id), hex(order))).collect();
    let orphaned_keys: Vec<_> = orphaned_keys.iter().map(|(key, order)| (key, hex(order))).collect();
    Changes {
        reservations: list(&reservations),
        detailed_reservations: list(&detailed),
        rejections: list(&rejections),
        basket_lines: list(&basket_lines),
        orphaned_keys: list(&orphaned_keys),
        keys: list(&keys),
        statuses: list(&statuses),
        aliases: list(&aliases),
        archived: None,
        stock: list(&differences(before, &decision.inventories)),
    }
}

fn list(rows: &[impl Serialize]) -> Option<String> {
    (!rows.is_empty()).then(|| json(&rows))
}

/// Whether two commands of the batch have the same id or the same key.
fn has_duplicates(commands: &[Command]) -> bool {
    let mut ids: Vec<_> = commands.iter().map(Command::id).collect();
    ids.sort_unstable(); // almost sorted already: orders arrive about as they were created
    let mut keys = HashSet::new();
    ids.windows(2).any(|pair| pair[0] == pair[1])
        || !commands.iter().filter_map(Command::key).all(|key| keys.insert(key))
}

/// As [`Transaction::stored_orders`] takes them.
pub(super) fn hex_ids(ids: impl IntoIterator<Item = OrderId>) -> String {
    json(&ids.into_iter().map(|id| id.uuid().simple()).collect::<Vec<_>>())
}

fn products_of(commands: &[Command]) -> String {
    let mut products: Vec<_> = commands.iter().flat_map(Command::products).collect();
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

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Duplicate => {
                Self::Contended("the same idempotency keys, again and again".to_owned())
            }
            CommitError::Store(error) => error,
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
