//! The transaction that decides a batch, the same in every database.
//!
//! Rows are locked in one order everywhere: the inventories of the batch by product id, then the orders. Each
//! step is one statement with one JSON parameter, whatever the size of the batch, so that its text stays in the
//! prepared-statement cache.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    mem,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    error::StoreError,
    json::json,
    observer::RetryCause,
    rows::{LockedRow, ReadOrder, product_id, stored_lines},
    terms,
};
use crate::{
    domain::time::from_millis,
    domain::{
        command::Command,
        decide::{
            self, ArchivedProducts, BatchResult, Decision, Snapshot, SpecialTerms, StoredOrders, Times,
            Writes,
        },
        holdings::{self, HoldingChanges, Holdings},
        ids::{IdempotencyKey, OrderId, ProductId},
        inventory::{Inventories, Inventory},
        lines::Line,
        movement::{Movement, MovementReason},
        order::{Order, OrderState, Payment},
        rejection::RejectionDetails,
        rules::Rules,
        terms::Terms,
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

    /// What these buyers hold (`[[product_id, "<buyer>"], …]`): those of them that hold anything.
    fn holdings(&mut self, holders: String) -> impl Future<Output = Result<Holdings, StoreError>> + Send;

    /// Writes what a batch changes, and commits, in as few round trips as the database takes: a lone order waits for each.
    fn commit(self, changes: Changes) -> impl Future<Output = Result<(), CommitError>> + Send;
}

/// The inventories of a batch, locked.
pub(super) struct LockedInventories {
    pub inventories: Inventories,
    pub archived: ArchivedProducts,
    pub terms: SpecialTerms,
    /// Products whose inventory or terms are invalid, and what is wrong with them.
    pub unreadable: HashMap<ProductId, String>,
    /// The database's clock, in Unix milliseconds.
    pub now: i64,
}

impl LockedInventories {
    pub(super) fn of(rows: Vec<LockedRow>) -> Result<Self, StoreError> {
        // Without any inventory nothing needs the time.
        let now = rows.first().map_or(0, |row| row.now_ms);
        let (mut inventories, mut terms) = (Inventories::new(), SpecialTerms::new());
        let (mut archived, mut unreadable) = (ArchivedProducts::new(), HashMap::new());
        for row in rows {
            let id = product_id(row.product_id)?;
            archived.extend(row.archived_at.map(|at| (id, from_millis(at))));
            match read(row) {
                Ok((inventory, special)) => {
                    inventories.insert(id, inventory);
                    terms.extend(special.map(|special| (id, special)));
                }
                Err(error) => drop(unreadable.insert(id, format!("the inventory of product {id}: {error}"))),
            }
        }
        Ok(Self { inventories, archived, terms, unreadable, now })
    }

    fn times(&self, rules: Rules) -> Times {
        let ttl_ms = i64::try_from(rules.reservation_ttl.as_millis()).unwrap_or(i64::MAX);
        Times { decided_at: from_millis(self.now), expires_at: from_millis(self.now.saturating_add(ttl_ms)) }
    }
}

fn read(row: LockedRow) -> Result<(Inventory, Option<Terms>), String> {
    let inventory = Inventory::try_from(row.stock).map_err(|error| error.to_string())?;
    Ok((inventory, terms::read_unless_default(row.terms.into())?))
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
    /// What changed of stored orders: `[["<32 hex digits>", status, expires_at, paid_at, payment_reference], …]`.
    pub changed_orders: Option<String>,
    /// What is known now of orders that were given up before their turn: `[["<32 hex digits>", product_id, total, lines, buyer], …]`.
    pub completed_orders: Option<String>,
    /// Other ids of stored orders, `[["<32 hex digits>", "<32 hex digits of the order>"], …]`; ids that are stored already stay
    /// as they are.
    pub aliases: Option<String>,
    /// Products to archive: `[[product_id, archived_at], …]`.
    pub archived: Option<String>,
    /// Rows of the ledger: `[[product_id, moved_at, kind, stock_change, order_count, stored_stock, reason], …]`.
    pub movements: Option<String>,
    /// Moves of stock, `[[product_id, stored, available, reserved], …]`, each the difference to what is there; nothing but
    /// numbers.
    pub stock: Option<String>,
    /// What buyers hold more than before, `[[product_id, "<buyer>", pieces], …]`.
    pub more_held: Option<String>,
    /// What buyers hold less than before, in the same form.
    pub less_held: Option<String>,
    /// The buyers of new orders, `[["<buyer>", "<32 hex digits>"], …]`.
    pub buyers: Option<String>,
    /// Products whose holdings are forgotten, `[product_id, …]`. No batch has any.
    pub holdings_forgotten: Option<String>,
    /// Products whose holdings are counted from their stored orders, in the same form. No batch has any.
    pub holdings_counted: Option<String>,
    /// New terms of products: `[[product_id, selling (0 or 1), opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds],
    /// …]`. No batch has any.
    pub terms: Option<String>,
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
    rules: Rules,
) -> BoxFuture<'a, Result<BatchResult, StoreError>> {
    Box::pin(async move {
        let error = match decide_together(store, commands, rules).await {
            Err(error) if !error.is_transient() => error,
            result => return result,
        };
        match commands {
            [] => return Ok(BatchResult::default()),
            [command] => return Ok(BatchResult::undecidable(command.product_id(), error.to_string())),
            _ => {}
        }
        let (first, second) = commands.split_at(commands.len() / 2);
        let first = decide(store, first, rules).await?;
        Ok(first.followed_by(decide(store, second, rules).await?))
    })
}

async fn decide_together<B: Begin>(
    store: &B,
    commands: &[Command],
    rules: Rules,
) -> Result<BatchResult, StoreError> {
    let mut reads = if are_new_orders(commands) { Reads::Nothing } else { Reads::StoredOrders };
    let mut run = 1;
    loop {
        let result = match reads {
            Reads::Nothing => decide_new_orders(store, commands, rules).await,
            Reads::StoredOrders | Reads::OrphanedKeys => {
                decide_any_commands(store, commands, rules, reads).await
            }
        };
        let cause = match result {
            Ok(decided) => return Ok(decided),
            // An order of the batch is stored, after all.
            Err(CommitError::Duplicate) if reads == Reads::Nothing => {
                reads = Reads::StoredOrders;
                RetryCause::Duplicate
            }
            // A worker of another lane has just stored one of its keys, or a client has just given up one of its orders: the next
            // run finds it. Or the order of a key was deleted by hand, and the key is left.
            Err(CommitError::Duplicate) if run < RUNS => {
                (reads, run) = (Reads::OrphanedKeys, run + 1);
                RetryCause::Duplicate
            }
            Err(CommitError::Duplicate) if commands.iter().all(|command| command.key().is_none()) => {
                return Err(StoreError::Corrupt("an order collides with one that is not stored".to_owned()));
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
    rules: Rules,
) -> Result<BatchResult, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(products_of(commands)).await?;
    if !locked.unreadable.is_empty() {
        return Err(CommitError::Duplicate); // the run that reads stored orders isolates the commands of these products
    }
    let holdings = holdings(&mut transaction, &locked.terms, commands).await?;
    let times = locked.times(rules);
    let LockedInventories { inventories: before, archived, terms, .. } = locked;
    let inventories = before.clone();
    let snapshot = Snapshot { inventories, archived, terms, holdings, stored: None, times, rules };
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
    rules: Rules,
    reads: Reads,
) -> Result<BatchResult, CommitError> {
    let mut transaction = store.begin().await?;
    let mut locked = transaction.lock_inventories(products_of(commands)).await?;
    let mut stored = stored_orders(&mut transaction, commands, reads).await?;
    stored.unreadable.products = mem::take(&mut locked.unreadable);
    let holdings = holdings(&mut transaction, &locked.terms, commands).await?;
    let times = locked.times(rules);
    let LockedInventories { inventories: before, archived, terms, .. } = locked;
    let inventories = before.clone();
    let snapshot = Snapshot { inventories, archived, terms, holdings, stored: Some(stored), times, rules };
    let decision = decide::decide(snapshot, commands);
    transaction.commit(changes(&before, &decision)).await?;
    Ok(decision.result)
}

/// What the buyers of new orders hold. They only change under the locks of the inventories: what is read stays true.
async fn holdings(
    transaction: &mut impl Transaction,
    terms: &SpecialTerms,
    commands: &[Command],
) -> Result<Holdings, StoreError> {
    let holders = holdings::holders(terms, commands);
    if holders.is_empty() { Ok(Holdings::new()) } else { transaction.holdings(json(&holders)).await }
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
    let Writes { orders, changed, completed, aliases, holdings, orphaned_keys, movements } = &decision.writes;
    let hex = |id: &OrderId| id.uuid().simple();
    let mut reservations = BTreeMap::<_, Vec<_>>::new();
    let (mut detailed, mut rejections) = (Vec::new(), Vec::new());
    let (mut basket_lines, mut keys, mut buyers) = (Vec::new(), Vec::new(), Vec::new());
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
        buyers.extend(order.buyer.as_ref().map(|buyer| (buyer, id)));
    }
    let mut completed_orders = Vec::new();
    for (order, key) in completed {
        let Some(lines) = &order.lines else { continue };
        let (id, Line { product_id, total }) = (hex(&order.id), lines.first());
        buyers.extend(order.buyer.as_ref().map(|buyer| (buyer, id)));
        completed_orders.push((id, product_id, total, stored_lines(lines), &order.buyer));
        basket_lines.extend(lines.others().iter().map(|line| (line.product_id, id, line.total)));
        keys.extend(key.as_ref().map(|key| (key, id)));
    }
    let reservations = reservations.into_iter();
    let reservations: Vec<_> = reservations
        .map(|((product_id, total, expires_at), ids)| (product_id, total, expires_at, ids))
        .collect();
    let changed: Vec<_> = changed.values().map(changed_row).collect();
    let aliases: Vec<_> = aliases.iter().map(|(id, order)| (hex(id), hex(order))).collect();
    let orphaned_keys: Vec<_> = orphaned_keys.iter().map(|(key, order)| (key, hex(order))).collect();
    Changes {
        reservations: list(&reservations),
        detailed_reservations: list(&detailed),
        rejections: list(&rejections),
        basket_lines: list(&basket_lines),
        orphaned_keys: list(&orphaned_keys),
        keys: list(&keys),
        changed_orders: list(&changed),
        completed_orders: list(&completed_orders),
        aliases: list(&aliases),
        movements: movement_rows(movements),
        stock: stock_moves(before, &decision.inventories),
        buyers: list(&buyers),
        ..held(holdings)
    }
}

/// Only what these holdings change.
pub(super) fn held(changes: &HoldingChanges) -> Changes {
    let rows = |sign: i64| {
        let rows = changes.iter().filter(|(_, change)| change.signum() == sign);
        rows.map(|((id, buyer), change)| (*id, buyer, change.unsigned_abs())).collect::<Vec<_>>()
    };
    Changes { more_held: list(&rows(1)), less_held: list(&rows(-1)), ..Changes::default() }
}

/// As [`Changes::changed_orders`] takes it.
fn changed_row(order: &Order) -> impl Serialize {
    let Payment { reference, paid_at } = order.payment.clone().unwrap_or_default();
    let (expires_at, paid_at) =
        (order.expires_at().map(Timestamp::as_millisecond), paid_at.map(Timestamp::as_millisecond));
    (order.id.uuid().simple(), order.status().as_str(), expires_at, paid_at, reference)
}

/// As [`Changes::movements`] takes them.
pub(super) fn movement_rows(movements: &[Movement]) -> Option<String> {
    let rows = movements.iter().map(|movement| {
        let Movement { product_id, at, kind, change, orders, stored_stock, reason } = movement;
        let reason = reason.as_ref().map(MovementReason::as_str);
        (*product_id, at.as_millisecond(), kind.as_str(), *change, *orders, *stored_stock, reason)
    });
    list(&rows.collect::<Vec<_>>())
}

pub(super) fn list(rows: &[impl Serialize]) -> Option<String> {
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

/// As [`Changes::stock`] takes them.
pub(super) fn stock_moves(before: &Inventories, after: &Inventories) -> Option<String> {
    let difference = |after: u32, before: u32| i64::from(after) - i64::from(before);
    let moves: Vec<_> = before
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
        .collect();
    list(&moves)
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
