//! The terms of sale, as columns of `inventories`.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    error::StoreError,
    rows::{TermsColumns, product_id, readable},
};
use crate::domain::{
    ids::ProductId,
    quantity::Quantity,
    rejection::Rejection,
    terms::{Hold, SalePeriod, Terms},
    time::from_millis,
};

/// Parameter: product. Rows for [`read`].
pub(super) const TERMS: &str =
    "SELECT selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds
    FROM inventories WHERE product_id = ?";

/// The columns: selling, opens_at, closes_at (Unix milliseconds), max_per_order, max_per_buyer, hold_seconds.
pub(super) type TermsRow = (bool, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

impl From<TermsColumns> for TermsRow {
    fn from(columns: TermsColumns) -> Self {
        let TermsColumns { selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds } =
            columns;
        (selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds)
    }
}

/// The columns of nearly all products.
const DEFAULT: TermsRow = (true, None, None, None, None, None);

/// The terms, or what is wrong with the columns, which somebody changed by hand.
pub(super) fn read(row: TermsRow) -> Result<Terms, String> {
    let (selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds) = row;
    let period = SalePeriod::new(opens_at.map(from_millis), closes_at.map(from_millis));
    Ok(Terms {
        selling,
        period: period.map_err(|error| error.to_string())?,
        max_per_order: number("max_per_order", max_per_order, Quantity::new)?,
        max_per_buyer: number("max_per_buyer", max_per_buyer, Quantity::new)?,
        hold: number("hold_seconds", hold_seconds, Hold::new)?,
    })
}

/// The same; `None` for the default terms.
pub(super) fn read_unless_default(row: TermsRow) -> Result<Option<Terms>, String> {
    if row == DEFAULT { Ok(None) } else { read(row).map(Some) }
}

fn number<T>(name: &str, column: Option<i64>, parse: fn(u32) -> Option<T>) -> Result<Option<T>, String> {
    let Some(number) = column else { return Ok(None) };
    let parsed = u32::try_from(number).ok().and_then(parse);
    parsed.map(Some).ok_or_else(|| format!("an invalid {name}, {number}"))
}

/// What the columns of these terms say.
pub(super) fn columns(terms: &Terms) -> TermsRow {
    (
        terms.selling,
        terms.period.opens_at().map(|at| at.as_millisecond()),
        terms.period.closes_at().map(|at| at.as_millisecond()),
        terms.max_per_order.map(|pieces| pieces.get().into()),
        terms.max_per_buyer.map(|pieces| pieces.get().into()),
        terms.hold.map(|hold| hold.seconds().into()),
    )
}

/// Of rows of [`TERMS`].
pub(super) fn found(rows: Vec<TermsRow>) -> Result<Option<Terms>, StoreError> {
    let terms = rows.into_iter().next().map(read).transpose();
    terms.map_err(|error| StoreError::Corrupt(format!("the terms of a product have {error}")))
}

/// The columns: product_id, available_stock, selling, opens_at, closes_at, and the database's clock in Unix milliseconds.
pub(super) type ClosedRow = (i64, i64, bool, Option<i64>, Option<i64>, i64);

/// Those of which every order is refused, and why.
pub(super) fn closed_to_orders(
    rows: Vec<ClosedRow>,
    opening_margin: Duration,
) -> Result<Vec<(ProductId, Rejection)>, StoreError> {
    let read = |(id, available, selling, opens_at, closes_at, now): ClosedRow| {
        let corrupt = |error| StoreError::Corrupt(format!("the terms of product {id} have {error}"));
        let terms = read((selling, opens_at, closes_at, None, None, None)).map_err(corrupt)?;
        let id = product_id(id)?;
        Ok((id, closed(id, available, &terms, from_millis(now), opening_margin)))
    };
    let closed = readable(rows.into_iter().map(read)).into_iter();
    Ok(closed.filter_map(|(id, rejection)| Some((id, rejection?))).collect())
}

/// Why every order of a product is refused at this time. The last moment before its opening does not count.
pub(super) fn closed(
    product_id: ProductId,
    available: i64,
    terms: &Terms,
    now: Timestamp,
    opening_margin: Duration,
) -> Option<Rejection> {
    match terms.closed(product_id, now) {
        Some(Rejection::SaleNotOpen { opens_at, .. })
            if opens_at.duration_since(now).unsigned_abs() <= opening_margin =>
        {
            None
        }
        Some(rejection) => Some(rejection),
        None => (available == 0).then_some(Rejection::InsufficientStock { product_id, available: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_as_they_were_written() {
        let at = |millis| Some(from_millis(millis));
        let all = Terms {
            selling: false,
            period: SalePeriod::new(at(1), at(2)).unwrap(),
            max_per_order: Quantity::new(3),
            max_per_buyer: Quantity::new(Quantity::MAX),
            hold: Hold::new(Hold::MAX),
        };
        for terms in [Terms::default(), all] {
            assert_eq!(read(columns(&terms)), Ok(terms));
            assert_eq!(read_unless_default(columns(&terms)), Ok((!terms.is_default()).then_some(terms)));
        }
        assert_eq!(columns(&Terms::default()), DEFAULT);
    }

    #[test]
    fn invalid_columns_are_no_terms() {
        for row in [
            (true, Some(2), Some(1), None, None, None),
            (true, None, None, Some(0), None, None),
            (true, None, None, None, Some(-1), None),
            (true, None, None, None, None, Some(i64::MAX)),
        ] {
            assert!(read(row).is_err() && read_unless_default(row).is_err(), "{row:?}");
        }
    }
}
