//! Lists, page by page.

use crate::domain::{
    ids::{OrderId, ProductId},
    order::OrderStatus,
};

/// Some rows in the order of their places, and where the rows behind them begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, Place> {
    /// There may be fewer than `limit`, or none, while there are more behind them.
    pub rows: Vec<T>,
    /// The next page begins behind this place. `None`: this is the last page.
    pub next: Option<Place>,
}

impl<T, Place> Page<T, Place> {
    /// A page without rows that is the last one.
    pub fn empty() -> Self {
        Self { rows: Vec::new(), next: None }
    }

    /// A page of `rows`, which has one row more than `limit` if there are so many. `last_examined` is the place of the last
    /// row that was examined, if there may be rows behind it.
    pub(super) fn cut(
        mut rows: Vec<T>,
        limit: u32,
        last_examined: Option<Place>,
        place: impl Fn(&T) -> Place,
    ) -> Self {
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = if more { rows.last().map(place) } else { last_examined };
        Self { rows, next }
    }
}

/// The place of a due reservation among all that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Unix milliseconds.
    pub expires_at: i64,
    /// Tells apart those of the same millisecond.
    pub id: OrderId,
}

/// Which orders [`Orders::orders`](super::ports::Orders::orders) lists.
#[derive(Clone, Copy, Debug)]
pub struct OrderPage {
    pub product_id: Option<ProductId>,
    pub status: Option<OrderStatus>,
    pub after: Option<OrderId>,
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_one_begins() {
        let page = |rows: &[u32], last_examined| Page::cut(rows.to_vec(), 2, last_examined, |row| *row);
        assert_eq!(page(&[1, 2, 3], None), Page { rows: vec![1, 2], next: Some(2) });
        assert_eq!(page(&[1, 2, 3], Some(9)), Page { rows: vec![1, 2], next: Some(2) });
        assert_eq!(page(&[1, 2], Some(9)), Page { rows: vec![1, 2], next: Some(9) });
        assert_eq!(page(&[], Some(9)), Page { rows: vec![], next: Some(9) });
        assert_eq!(page(&[1, 2], None), Page { rows: vec![1, 2], next: None });
        assert_eq!(page(&[], None), Page::empty());
    }
}
