//! Lists, page by page.

use uuid::Uuid;

use crate::domain::{
    ids::{OrderId, ProductId},
    names::Buyer,
    order::{Order, OrderStatus},
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
#[derive(Clone, Debug)]
pub struct OrderPage {
    pub product_id: Option<ProductId>,
    pub buyer: Option<Buyer>,
    pub status: Option<OrderStatus>,
    /// Only orders with greater ids: those that were created later.
    pub newer_than: Option<OrderId>,
    pub direction: Direction,
    /// The page begins behind this id, in its direction.
    pub after: Option<OrderId>,
    pub limit: u32,
}

impl OrderPage {
    /// The first page of all orders, the oldest first.
    pub fn first(limit: u32) -> Self {
        Self {
            product_id: None,
            buyer: None,
            status: None,
            newer_than: None,
            direction: Direction::OldestFirst,
            after: None,
            limit,
        }
    }

    /// The ids between which all orders of this page are: greater than the first, and less than the second, if there is one.
    pub(super) fn bounds(&self) -> (OrderId, Option<OrderId>) {
        let least = OrderId::from(Uuid::nil());
        let newer_than = self.newer_than.unwrap_or(least);
        match self.direction {
            Direction::OldestFirst => (newer_than.max(self.after.unwrap_or(least)), None),
            Direction::NewestFirst => (newer_than, self.after),
        }
    }

    /// Whether an order is one of those that the page, or one behind it, lists.
    pub fn has(&self, order: &Order) -> bool {
        let (greater_than, less_than) = self.bounds();
        greater_than < order.id
            && less_than.is_none_or(|less_than| order.id < less_than)
            && self.product_id.is_none_or(|wanted| order.has_product(wanted))
            && self.buyer.as_ref().is_none_or(|wanted| order.buyer.as_ref() == Some(wanted))
            && self.status.is_none_or(|wanted| order.status() == wanted)
    }
}

/// In which direction orders are listed. The order of their ids is that of their creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    #[default]
    OldestFirst,
    NewestFirst,
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
