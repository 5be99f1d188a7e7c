//! Reads for an audit: what the inventories say, and what the stored orders and the ledger say. Safe while a sale runs: nothing is written
//! or locked, each step reads in its own snapshot, and a step is bounded.
//!
//! Two adapters, [`mysql`] and [`sqlite`], each on its own connection.

pub mod mysql;
pub mod sqlite;

use async_trait::async_trait;
use uuid::Uuid;

use super::error::StoreError;

/// How many orders or movements one statement reads at most. A product with more of them is read in several statements of one
/// snapshot.
pub(super) const ROWS_PER_STATEMENT: i64 = 20_000;

/// A database that can be audited.
#[async_trait]
pub trait Audit: Send {
    /// Up to `limit` products behind `after` in id order, each with its inventory, its orders and its movements, all in one snapshot.
    /// Orders and movements whose product does not exist are counted as well: with the product behind them.
    async fn books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, StoreError>;

    /// Up to `limit` idempotency keys behind `after`, in one statement.
    async fn keys(&mut self, after: Option<&str>, limit: u32) -> Result<Links<String>, StoreError>;

    /// Up to `limit` aliases behind `after`, in one statement.
    async fn aliases(&mut self, after: Option<Uuid>, limit: u32) -> Result<Links<Uuid>, StoreError>;
}

/// Some products, and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookPage {
    /// In id order.
    pub books: Vec<Book>,
    /// The last product of this page. `None`: there is no further page.
    pub next: Option<i64>,
}

/// What the database says of one product, in one snapshot. Plain numbers: they may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    pub product_id: i64,
    /// Whether there is a row in `products`.
    pub is_product: bool,
    /// `None`: there is no row in `inventories`.
    pub inventory: Option<StockColumns>,
    pub orders: OrderSums,
    pub movements: MovementSums,
}

impl Book {
    /// By how many pieces the inventory differs from its orders, from its movements, and from itself. 0 in a database that nobody changed by hand.
    pub fn difference(&self) -> u64 {
        let StockColumns { stored, available, reserved } = self.inventory.unwrap_or_default();
        let of_orders = i128::from(reserved) - i128::from(self.orders.reserved_pieces);
        let of_movements = i128::from(stored) - i128::from(self.movements.pieces);
        let of_itself = i128::from(stored) - i128::from(available) - i128::from(reserved);
        u64::try_from(of_orders.abs() + of_movements.abs() + of_itself.abs()).unwrap_or(u64::MAX)
    }
}

/// The columns of a row of `inventories`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StockColumns {
    pub stored: i64,
    pub available: i64,
    pub reserved: i64,
}

/// The orders of one product, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrderSums {
    /// How many there are, of any status.
    pub count: i64,
    /// How many of them are reserved.
    pub reserved_count: i64,
    /// The pieces of the reserved ones.
    pub reserved_pieces: i64,
    /// How many have columns that this program cannot read as an order.
    pub invalid: i64,
}

impl OrderSums {
    fn add(&mut self, more: Self) {
        self.count += more.count;
        self.reserved_count += more.reserved_count;
        self.reserved_pieces += more.reserved_pieces;
        self.invalid += more.invalid;
    }
}

/// The movements of one product, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovementSums {
    pub count: i64,
    /// The sum of their changes.
    pub pieces: i64,
}

/// Some idempotency keys or aliases, and those of them whose order is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links<Id> {
    /// How many were examined.
    pub examined: u64,
    /// Those without an order, with the order that they name.
    pub broken: Vec<(Id, Uuid)>,
    /// The last one examined. `None`: there is no further page.
    pub next: Option<Id>,
}

/// A row of `products` and its inventory: id, stored, available, reserved.
type ProductRow = (i64, Option<i64>, Option<i64>, Option<i64>);
/// Orders of one product, out of a bounded range: product, the four [`OrderSums`], the last id.
type SumRow = (i64, i64, i64, i64, i64, Uuid);
/// Movements of one product, out of a bounded range: product, the two [`MovementSums`], the last seq.
type MovementRow = (i64, i64, i64, i64);
/// A key or an alias, the order that it names, and whether that is stored.
type LinkRow<Id> = (Id, Uuid, bool);

/// The range of orders or movements that belongs to a page of products, and how far it was read.
struct Range<Id> {
    product_id: i64,
    id: Id,
    /// The last product of the range.
    to: i64,
}

impl<Id> Range<Id> {
    /// All of the products behind `after`, up to `to`. No id is greater than `max`.
    fn new(after: Option<i64>, to: i64, max: Id) -> Self {
        Self { product_id: after.unwrap_or(i64::MIN), id: max, to }
    }
}

/// Brings the rows of products and the sums of their orders together.
struct Books {
    books: Vec<Book>,
    next: Option<i64>,
}

impl Books {
    fn new(products: Vec<ProductRow>, limit: u32) -> Self {
        let is_full = products.len() >= limit as usize;
        let next = products.last().map(|(id, ..)| *id).filter(|_| is_full);
        let book = |(product_id, stored, available, reserved): ProductRow| Book {
            product_id,
            is_product: true,
            inventory: stored
                .zip(available)
                .zip(reserved)
                .map(|((stored, available), reserved)| StockColumns { stored, available, reserved }),
            orders: OrderSums::default(),
            movements: MovementSums::default(),
        };
        Self { books: products.into_iter().map(book).collect(), next }
    }

    /// The last page also has all orders behind it.
    fn to(&self) -> i64 {
        self.next.unwrap_or(i64::MAX)
    }

    /// Adds what one statement found of orders. Returns whether there may be more in the range.
    fn add(&mut self, rows: Vec<SumRow>, range: &mut Range<Uuid>) -> bool {
        let mut examined = 0;
        for (product_id, count, reserved_count, reserved_pieces, invalid, last) in rows {
            examined += count;
            (range.product_id, range.id) = (product_id, last);
            let more = OrderSums { count, reserved_count, reserved_pieces, invalid };
            self.book(product_id).orders.add(more);
        }
        examined >= ROWS_PER_STATEMENT
    }

    /// Adds what one statement found of movements. Returns whether there may be more in the range.
    fn add_movements(&mut self, rows: Vec<MovementRow>, range: &mut Range<i64>) -> bool {
        let mut examined = 0;
        for (product_id, count, pieces, last) in rows {
            examined += count;
            (range.product_id, range.id) = (product_id, last);
            let sums = &mut self.book(product_id).movements;
            sums.count += count;
            sums.pieces = sums.pieces.saturating_add(pieces);
        }
        examined >= ROWS_PER_STATEMENT
    }

    /// Of a product that may not exist.
    fn book(&mut self, product_id: i64) -> &mut Book {
        let at = self.books.binary_search_by_key(&product_id, |book| book.product_id).unwrap_or_else(|at| {
            self.books.insert(at, Book { product_id, ..Book::default() });
            at
        });
        &mut self.books[at]
    }

    fn page(self) -> BookPage {
        BookPage { books: self.books, next: self.next }
    }
}

fn links<Id: Clone>(rows: Vec<LinkRow<Id>>, limit: u32) -> Links<Id> {
    let is_full = rows.len() >= limit as usize;
    let next = rows.last().map(|(id, ..)| id.clone()).filter(|_| is_full);
    let examined = rows.len() as u64;
    let broken = rows.into_iter().filter(|(.., stored)| !stored).map(|(id, order, _)| (id, order)).collect();
    Links { examined, broken, next }
}

/// Parameters: the id behind which it begins, how many. Rows are [`ProductRow`]s.
const PRODUCTS: &str = "SELECT id, stored_stock, available_stock, reserved_stock
    FROM products LEFT JOIN inventories ON product_id = id WHERE id > ? ORDER BY id LIMIT ?";

/// Parameters: the key behind which it begins, how many. Rows are [`LinkRow`]s.
const KEYS: &str = "SELECT idempotency_key, order_id, orders.id IS NOT NULL
    FROM (
        SELECT idempotency_key, order_id FROM idempotency_keys
        WHERE idempotency_key > ? ORDER BY idempotency_key LIMIT ?
    ) AS step
    LEFT JOIN orders ON orders.id = order_id ORDER BY idempotency_key";

/// Parameters: the alias behind which it begins, how many. Rows are [`LinkRow`]s.
const ALIASES: &str = "SELECT step.id, order_id, orders.id IS NOT NULL
    FROM (SELECT id, order_id FROM order_aliases WHERE id > ? ORDER BY id LIMIT ?) AS step
    LEFT JOIN orders ON orders.id = order_id ORDER BY step.id";

/// Both numbers of [`MovementSums`] of some rows of `movements`, and the last seq.
macro_rules! movement_sums {
    () => {
        "COUNT(*), CAST(COALESCE(SUM(stock_change), 0) AS SIGNED), MAX(seq)"
    };
}
use movement_sums;

/// The four numbers of [`OrderSums`] of some rows of `orders`, as both databases read them.
macro_rules! sums {
    () => {
        "COUNT(*),
         CAST(COALESCE(SUM(status = 'reserved'), 0) AS SIGNED),
         CAST(COALESCE(SUM(CASE WHEN status = 'reserved' THEN total ELSE 0 END), 0) AS SIGNED),
         CAST(COALESCE(SUM(
             total < 1 OR total > 2147483647
             OR status NOT IN ('reserved', 'paid', 'cancelled', 'expired', 'returned', 'rejected')
             OR (status = 'rejected') <> (expires_at IS NULL)
             OR (status = 'rejected') <> (rejection_reason IS NOT NULL)
             OR COALESCE(rejection_reason NOT IN (
                 'insufficient_stock', 'product_not_found', 'idempotency_key_reused', 'sale_paused', 'sale_not_open',
                 'sale_closed', 'limit_per_order', 'limit_per_buyer', 'buyer_required'
             ), 0)
             OR (COALESCE(rejection_reason, '') = 'insufficient_stock') <> (rejected_available IS NOT NULL)
         ), 0) AS SIGNED)"
    };
}
use sums;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_that_is_not_where_it_must_be_counts() {
        let book = |[stored, available, reserved]: [i64; 3], reserved_pieces| {
            let orders = OrderSums { reserved_pieces, ..OrderSums::default() };
            let inventory = Some(StockColumns { stored, available, reserved });
            let movements = MovementSums { count: 1, pieces: 10 };
            Book { product_id: 1, is_product: true, inventory, orders, movements }.difference()
        };
        assert_eq!(book([10, 7, 3], 3), 0);
        assert_eq!(book([10, 7, 3], 1), 2);
        assert_eq!(book([11, 7, 3], 3), 2);
        assert_eq!(book([11, 8, 3], 3), 1);
        assert_eq!(book([10, 8, 3], 4), 2);
        assert_eq!(book([i64::MIN, i64::MAX, i64::MAX], i64::MIN), u64::MAX);
        let orders = OrderSums { reserved_pieces: 3, ..OrderSums::default() };
        assert_eq!(Book { orders, ..Book::default() }.difference(), 3);
    }
}
