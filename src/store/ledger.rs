//! The seller's changes of stock, the same in every database: each in one transaction, under the lock of the inventory, with its
//! movement.

use super::{
    error::StoreError,
    json::json,
    page::Page,
    ports::{Adjusted, Catalog, Recount},
    rows::{TextColumn, product_id, readable},
    seller::again_if_locked,
    transaction::{Begin, Changes, CommitError, LockedInventories, Transaction, movement_rows, stock_moves},
};
use crate::domain::{
    ids::{IdempotencyKey, ProductId},
    inventory::{Inventories, Inventory, Stock},
    movement::{Adjustment, LedgerEntry, Movement, MovementKind, MovementReason, MovementSeq},
    product::Product,
    time::from_millis,
};

/// What a transaction can do for the ledger, in addition to a batch's.
pub(super) trait LedgerTransaction: Transaction {
    /// The adjustment with this key, of any product.
    fn adjustment_of_key(
        &mut self,
        key: &IdempotencyKey,
    ) -> impl Future<Output = Result<Option<LedgerEntry>, StoreError>> + Send;

    /// Inserts an adjustment, with its key.
    fn insert_adjustment(
        &mut self,
        movement: &Movement,
        key: Option<&IdempotencyKey>,
    ) -> impl Future<Output = Result<MovementSeq, CommitError>> + Send;
}

/// Sets a product's stock: see [`super::ports::Ledger::recount_if`].
pub(super) async fn recount<S: Catalog + Begin>(
    store: &S,
    id: ProductId,
    stock: Stock,
    expected: Option<Stock>,
) -> Result<Recount, StoreError> {
    let Some(product) = store.product(id).await? else { return Ok(Recount::NoSuchProduct) };
    again_if_locked(|| recount_once(store, product.clone(), stock, expected)).await
}

async fn recount_once<B: Begin>(
    store: &B,
    product: Product,
    stock: Stock,
    expected: Option<Stock>,
) -> Result<Recount, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = lock(&mut transaction, product.id).await?;
    let Some(before) = locked.inventories.get(&product.id).copied() else {
        return Ok(Recount::NoSuchProduct);
    };
    if locked.archived.contains_key(&product.id) {
        return Ok(Recount::Archived);
    }
    let stored = before.stored();
    if expected.is_some_and(|expected| expected.get() != stored) {
        return Ok(Recount::StockChanged { stored });
    }
    let mut after = before;
    if let Err(below) = after.recount(stock) {
        return Ok(Recount::BelowReserved(below));
    }
    let now = from_millis(locked.now);
    let movements = movement_rows(Movement::recount(product.id, now, before, after).as_slice());
    let stock = stock_move(locked.inventories, product.id, after);
    transaction.commit(Changes { movements, stock, ..Changes::default() }).await?;
    Ok(Recount::Done(product, after))
}

/// Changes a product's stock by a difference: see [`super::ports::Ledger::adjust`].
pub(super) async fn adjust<B: Begin<Transaction: LedgerTransaction>>(
    store: &B,
    id: ProductId,
    adjustment: &Adjustment,
) -> Result<Adjusted, StoreError> {
    again_if_locked(|| adjust_once(store, id, adjustment)).await
}

async fn adjust_once<B: Begin<Transaction: LedgerTransaction>>(
    store: &B,
    id: ProductId,
    adjustment: &Adjustment,
) -> Result<Adjusted, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = lock(&mut transaction, id).await?;
    let Some(before) = locked.inventories.get(&id).copied() else { return Ok(Adjusted::NoSuchProduct) };
    let key = adjustment.key.as_ref();
    if let Some(key) = key
        && let Some(known) = transaction.adjustment_of_key(key).await?
    {
        let is_same = known.movement.is_of(id, adjustment);
        return Ok(if is_same { Adjusted::Before(known) } else { Adjusted::KeyReused });
    }
    if locked.archived.contains_key(&id) {
        return Ok(Adjusted::Archived);
    }
    let mut after = before;
    if let Err(invalid) = after.adjust(adjustment.change) {
        return Ok(Adjusted::Invalid(invalid));
    }
    let movement = Movement::adjustment(id, from_millis(locked.now), adjustment, after);
    let seq = transaction.insert_adjustment(&movement, key).await?;
    let stock = stock_move(locked.inventories, id, after);
    transaction.commit(Changes { stock, ..Changes::default() }).await?;
    Ok(Adjusted::Done(LedgerEntry { seq, movement }, after))
}

/// Locks the inventory of one product, which must be valid.
async fn lock(transaction: &mut impl Transaction, id: ProductId) -> Result<LockedInventories, StoreError> {
    let mut locked = transaction.lock_inventories(json(&[id])).await?;
    match locked.unreadable.remove(&id) {
        Some(cause) => Err(StoreError::Corrupt(cause)),
        None => Ok(locked),
    }
}

fn stock_move(before: Inventories, id: ProductId, after: Inventory) -> Option<String> {
    stock_moves(&before, &[(id, after)].into())
}

/// A row of `movements`: its seq and the columns of [`Changes::movements`].
pub(super) type LedgerRow = (i64, i64, i64, TextColumn, i64, i64, i64, Option<TextColumn>);

/// The columns of a [`LedgerRow`].
macro_rules! ledger_columns {
    () => {
        "movements.seq, product_id, moved_at, kind, stock_change, order_count, stored_stock, reason"
    };
}
pub(super) use ledger_columns;

pub(super) fn ledger_entry(row: LedgerRow) -> Result<LedgerEntry, StoreError> {
    let (number, product, moved_at, TextColumn(kind), change, orders, stored_stock, reason) = row;
    let corrupt = |what: &str| StoreError::Corrupt(format!("the movement {number} has {what}"));
    let reason = reason.map(|TextColumn(reason)| {
        MovementReason::stored(&reason).ok_or_else(|| corrupt("an invalid reason"))
    });
    let movement = Movement {
        product_id: product_id(product).map_err(|_| corrupt("an invalid product id"))?,
        at: from_millis(moved_at),
        kind: MovementKind::from_word(&kind).ok_or_else(|| corrupt("no such kind"))?,
        change,
        orders: u32::try_from(orders).map_err(|_| corrupt("an invalid order_count"))?,
        stored_stock,
        reason: reason.transpose()?,
    };
    Ok(LedgerEntry { seq: seq(number)?, movement })
}

pub(super) fn page_of_movements(rows: Vec<LedgerRow>, limit: u32) -> Page<LedgerEntry, MovementSeq> {
    let Page { rows, next } = Page::cut(rows, limit, None, |(number, ..)| *number);
    Page { rows: readable(rows.into_iter().map(ledger_entry)), next: next.and_then(|next| seq(next).ok()) }
}

pub(super) fn seq(column: i64) -> Result<MovementSeq, StoreError> {
    let seq = u64::try_from(column).ok().and_then(MovementSeq::new);
    seq.ok_or_else(|| StoreError::Corrupt(format!("the movement {column}")))
}

pub(super) fn seq_column(seq: MovementSeq) -> i64 {
    seq.get().cast_signed() // at most 2^53 − 1
}
