//! What buyers hold, as rows of both databases.

use super::{
    error::StoreError,
    rows::{TextColumn, product_id},
    transaction::{Changes, Transaction, list},
};
use crate::domain::{
    holdings::{HoldingChanges, Holdings, held_by, taken_away},
    ids::ProductId,
    names::Buyer,
};

/// A row of `holdings`: product_id, buyer, pieces.
pub(super) type HoldingRow = (i64, TextColumn, i64);

pub(super) fn read(rows: Vec<HoldingRow>) -> Result<Holdings, StoreError> {
    let read = |(id, TextColumn(buyer), pieces): HoldingRow| {
        let corrupt =
            |_| StoreError::Corrupt(format!("an invalid buyer in the table holdings, of product {id}"));
        let holder = (product_id(id)?, Buyer::try_from(buyer).map_err(corrupt)?);
        Ok((holder, u64::try_from(pieces).unwrap_or_default()))
    };
    rows.into_iter().map(read).collect()
}

/// Only what these holdings change.
pub(super) fn changes(changes: &HoldingChanges) -> Changes {
    let rows = |sign: i64| {
        let rows = changes.iter().filter(|(_, change)| change.signum() == sign);
        rows.map(|((product_id, buyer), change)| (*product_id, buyer, change.unsigned_abs()))
            .collect::<Vec<_>>()
    };
    Changes { more_held: list(&rows(1)), less_held: list(&rows(-1)), ..Changes::default() }
}

/// What buyers hold no more once these orders (`["<32 hex digits>", …]`) are deleted, of products with a limit.
pub(super) async fn of_deleted(
    transaction: &mut impl Transaction,
    orders: String,
    limited: &[ProductId],
) -> Result<Changes, StoreError> {
    let orders = transaction.stored_orders(orders).await?;
    // An invalid order counts for nothing: what it says is not known.
    let held = held_by(orders.iter().flatten(), |id| limited.contains(&id));
    Ok(changes(&taken_away(held)))
}
