//! What buyers hold, as rows of both databases.

use super::{
    error::StoreError,
    rows::{TextColumn, product_id},
    transaction::{Changes, Transaction, held},
};
use crate::domain::{
    holdings::{Holdings, held_by, taken_away},
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

/// What buyers hold no more once these orders (`["<32 hex digits>", …]`) are deleted, of products with a limit.
pub(super) async fn of_deleted(
    transaction: &mut impl Transaction,
    orders: String,
    limited: &[ProductId],
) -> Result<Changes, StoreError> {
    let orders = transaction.stored_orders(orders).await?;
    // An invalid order counts for nothing: what it says is not known.
    let of_orders = held_by(orders.iter().flatten(), |id| limited.contains(&id));
    Ok(held(&taken_away(of_orders)))
}
