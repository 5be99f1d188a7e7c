//! `antre audit`: whether each inventory agrees with its orders and its movements, and keys and aliases name stored orders.

use std::time::Instant;

use serde::Serialize;

use super::{
    database,
    outcome::{Finding, ToolError},
    output::{self, count},
};
use crate::{
    server_url::shown,
    settings::{Database, Settings, tools::Output},
    store::{
        OpenError,
        audit::{Audit, Book, StockColumns, mysql::MySqlAudit, sqlite::SqliteAudit},
    },
};

/// How many products are read in one snapshot.
const PRODUCTS_PER_STEP: u32 = 100;
/// How many keys and aliases are read in one statement.
const LINKS_PER_STEP: u32 = 5_000;
/// How many differences are listed. All are counted.
const MAX_LISTED: usize = 1_000;

pub(super) async fn run(settings: &Settings, Output { json }: Output) -> Result<Finding, ToolError> {
    let database = settings.backends.database()?;
    let (Database::Sqlite(url) | Database::MySql(url)) = &database;
    let began = Instant::now();
    let mut report = Report { database: shown(url), ..Report::default() };
    let failed = |error: String| ToolError::Failed(format!("cannot audit {}: {error}", shown(url)));
    let mut audit = open(&database).await.map_err(failed)?;
    report.read(&mut *audit).await.map_err(|error| failed(error.to_string()))?;
    report.seconds = began.elapsed().as_secs_f64();
    if json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(if report.difference_count == 0 { Finding::None } else { Finding::Some })
}

async fn open(database: &Database) -> Result<Box<dyn Audit>, String> {
    let text = |error: OpenError| {
        format!("{error}. Check that the database can be reached, and DATABASE_URL (--database-url)")
    };
    database::must_have_tables(database).await?;
    Ok(match database {
        Database::Sqlite(url) => Box::new(SqliteAudit::open(url).await.map_err(text)?),
        Database::MySql(url) => Box::new(MySqlAudit::open(url).await.map_err(text)?),
    })
}

/// What was examined, and what does not agree.
#[derive(Debug, Default, Serialize)]
struct Report {
    database: String,
    products: u64,
    orders: u64,
    movements: u64,
    idempotency_keys: u64,
    aliases: u64,
    seconds: f64,
    /// All of them.
    difference_count: u64,
    /// The first [`MAX_LISTED`] of them.
    differences: Vec<Difference>,
}

/// Two things in the database that must agree, and do not.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Difference {
    /// A stable word for programs.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    stock: Option<Stock>,
    message: String,
    likely_cause: &'static str,
    what_to_do: String,
}

/// The inventory and its orders, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Stock {
    stored_stock: i64,
    available_stock: i64,
    reserved_stock: i64,
    reserved_by_orders: i64,
    stored_by_movements: i64,
}

impl Report {
    async fn read(&mut self, audit: &mut dyn Audit) -> Result<(), crate::store::StoreError> {
        let mut after = None;
        loop {
            let page = audit.books(after, PRODUCTS_PER_STEP).await?;
            for book in page.books {
                self.products += u64::from(book.is_product);
                self.orders += book.orders.count.max(0).cast_unsigned();
                self.movements += book.movements.count.max(0).cast_unsigned();
                differences(&book).into_iter().for_each(|difference| self.add(difference));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut after: Option<String> = None;
        loop {
            let page = audit.keys(after.as_deref(), LINKS_PER_STEP).await?;
            self.idempotency_keys += page.examined;
            for (key, order) in page.broken {
                let message =
                    format!("the idempotency key {key:?} names the order {order}, which is not stored");
                self.add(Difference {
                    kind: "key_without_order",
                    product_id: None,
                    stock: None,
                    message,
                    likely_cause: "the order was deleted by hand, and its key was left",
                    what_to_do: "nothing must be done: the next order with this key takes it. To free it now, delete its \
                         row in idempotency_keys"
                        .to_owned(),
                });
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        loop {
            let page = audit.aliases(after, LINKS_PER_STEP).await?;
            self.aliases += page.examined;
            for (alias, order) in page.broken {
                let message = format!("the alias {alias} names the order {order}, which is not stored");
                self.add(Difference {
                    kind: "alias_without_order",
                    product_id: None,
                    stock: None,
                    message,
                    likely_cause: "the order was deleted by hand, and its alias was left",
                    what_to_do: "delete its row in order_aliases".to_owned(),
                });
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn add(&mut self, difference: Difference) {
        self.difference_count += 1;
        if self.differences.len() < MAX_LISTED {
            self.differences.push(difference);
        }
    }

    fn print(&self) -> Result<(), std::io::Error> {
        for Difference { message, likely_cause, what_to_do, .. } in &self.differences {
            output::line(format_args!("{message}\n    likely: {likely_cause}\n    to do:  {what_to_do}"))?;
        }
        let left_out = self.difference_count - self.differences.len() as u64;
        if left_out > 0 {
            output::line(format_args!("and {} more", count(left_out, "difference", "differences")))?;
        }
        let verdict = match self.difference_count {
            0 => "all of it agrees".to_owned(),
            found => count(found, "difference", "differences"),
        };
        output::line(format_args!(
            "{}: {}, {}, {}, {} and {} examined in {:.1} s: {verdict}.",
            self.database,
            count(self.products, "product", "products"),
            count(self.orders, "order", "orders"),
            count(self.movements, "movement", "movements"),
            count(self.idempotency_keys, "idempotency key", "idempotency keys"),
            count(self.aliases, "alias", "aliases"),
            self.seconds,
        ))
    }
}

/// What does not agree in the books of one product.
fn differences(book: &Book) -> Vec<Difference> {
    let Book { product_id, is_product, inventory, orders, movements } = *book;
    let mut found = Vec::new();
    let mut add = |kind, stock, message, likely_cause, what_to_do: String| {
        found.push(Difference {
            kind,
            product_id: Some(product_id),
            stock,
            message,
            likely_cause,
            what_to_do,
        });
    };
    if !is_product && orders.count > 0 {
        add(
            "orders_without_product",
            None,
            format!("product {product_id} does not exist, and has {}", count_orders(orders.count)),
            "the product was deleted by hand, or the tables come from different backups",
            "put the product and its inventory back, or delete these orders".to_owned(),
        );
    }
    if !is_product && movements.count > 0 {
        add(
            "movements_without_product",
            None,
            format!("product {product_id} does not exist, and has {}", count_movements(movements.count)),
            "the product was deleted by hand, or the tables come from different backups",
            "put the product and its inventory back, or delete these movements".to_owned(),
        );
    }
    if orders.invalid > 0 {
        add(
            "invalid_orders",
            None,
            format!("product {product_id} has {} with impossible columns", count_orders(orders.invalid)),
            "rows of orders were written by hand while the CHECK constraints were off",
            format!(
                "look at them: SELECT * FROM orders WHERE product_id = {product_id}; a GET of one of them answers 500 and \
                 the log names it"
            ),
        );
    }
    let Some(StockColumns { stored, available, reserved }) = inventory else {
        if is_product {
            let stored = movements.pieces.max(orders.reserved_pieces);
            add(
                "product_without_inventory",
                None,
                format!("product {product_id} has no inventory, and {}", count_orders(orders.count)),
                "its row in inventories was deleted by hand",
                format!(
                    "insert it: product_id {product_id}, stored_stock {stored} (the sum of its movements), reserved_stock {}, \
                     available_stock {}; then count the stock with PUT /api/products/{product_id}/inventory",
                    orders.reserved_pieces,
                    stored.saturating_sub(orders.reserved_pieces),
                ),
            );
        }
        return found;
    };
    let stock = Some(Stock {
        stored_stock: stored,
        available_stock: available,
        reserved_stock: reserved,
        reserved_by_orders: orders.reserved_pieces,
        stored_by_movements: movements.pieces,
    });
    let valid = 0..=i64::from(u32::MAX);
    let sum = available.saturating_add(reserved);
    if stored != sum || ![stored, available, reserved].iter().all(|pieces| valid.contains(pieces)) {
        add(
            "stock_does_not_add_up",
            stock,
            format!(
                "product {product_id}: stored {stored} is not available {available} + reserved {reserved}, or one of them is \
                 out of range"
            ),
            "the inventory was changed by hand while the CHECK constraints were off",
            format!(
                "set reserved_stock to {0}, and stored_stock to available_stock + {0}; the product sells nothing until then",
                orders.reserved_pieces
            ),
        );
    }
    let more = i128::from(reserved) - i128::from(orders.reserved_pieces);
    if more != 0 {
        let (by, than, likely_cause) = match more > 0 {
            true => (
                more,
                "more",
                "a reserved order was deleted or its status was set by hand, pieces were moved to reserved_stock by hand, or \
                 orders come from an older backup than inventories",
            ),
            false => (
                -more,
                "fewer",
                "an order was inserted or set back to reserved by hand, pieces were moved out of reserved_stock by hand, or \
                 inventories come from an older backup than orders",
            ),
        };
        add(
            "reserved_differs_from_orders",
            stock,
            format!(
                "product {product_id}: reserved_stock is {reserved}, and its {} reserved hold {}: {by} {than}",
                count_orders(orders.reserved_count),
                count(orders.reserved_pieces.max(0).cast_unsigned(), "piece", "pieces"),
            ),
            likely_cause,
            format!(
                "find out which of the two is right. If the orders are: UPDATE inventories SET available_stock = \
                 available_stock + {more}, reserved_stock = reserved_stock - {more} WHERE product_id = {product_id}"
            ),
        );
    }
    let more = i128::from(stored) - i128::from(movements.pieces);
    if more != 0 {
        let than = if more > 0 { "more" } else { "fewer" };
        add(
            "stored_differs_from_movements",
            stock,
            format!(
                "product {product_id}: stored_stock is {stored}, and the sum of its {} is {}: {} {than}",
                count_movements(movements.count),
                movements.pieces,
                more.abs(),
            ),
            "pieces were moved in or out of inventories by hand, a movement was deleted or changed by hand, or a worker of a \
             release without movements was still taking payments after the tables were migrated",
            format!(
                "find out which of the two is right. If the inventory is: INSERT INTO movements (product_id, moved_at, kind, \
                 stock_change, order_count, stored_stock, reason) SELECT product_id, (SELECT COALESCE(MAX(moved_at), 0) FROM \
                 movements AS earlier WHERE earlier.product_id = {product_id}), 'recount', {more}, 0, stored_stock, \
                 'corrected after an audit' FROM inventories WHERE product_id = {product_id}"
            ),
        );
    }
    found
}

fn count_movements(number: i64) -> String {
    count(number.max(0).cast_unsigned(), "movement", "movements")
}

fn count_orders(number: i64) -> String {
    count(number.max(0).cast_unsigned(), "order", "orders")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::audit::{MovementSums, OrderSums};

    fn book(inventory: [i64; 3], reserved_pieces: i64) -> Book {
        let [stored, available, reserved] = inventory;
        Book {
            product_id: 17,
            is_product: true,
            inventory: Some(StockColumns { stored, available, reserved }),
            orders: OrderSums { count: 9, reserved_count: 2, reserved_pieces, invalid: 0 },
            movements: MovementSums { count: 4, pieces: stored },
        }
    }

    fn kinds(book: &Book) -> Vec<&'static str> {
        differences(book).iter().map(|difference| difference.kind).collect()
    }

    #[test]
    fn books_that_agree_have_no_difference() {
        assert_eq!(kinds(&book([10, 7, 3], 3)), Vec::<&str>::new());
        assert_eq!(kinds(&book([0, 0, 0], 0)), Vec::<&str>::new());
    }

    #[test]
    fn each_difference_is_named_with_its_numbers() {
        let found = differences(&book([10, 7, 3], 2));
        assert_eq!(found.len(), 1);
        let Difference { kind, product_id, message, what_to_do, .. } = &found[0];
        assert_eq!((*kind, *product_id), ("reserved_differs_from_orders", Some(17)));
        assert!(message.contains("reserved_stock is 3") && message.contains("2 pieces: 1 more"), "{message}");
        assert!(what_to_do.contains("reserved_stock - 1 WHERE product_id = 17"), "{what_to_do}");
        assert!(differences(&book([10, 7, 3], 5))[0].message.contains("2 fewer"));

        assert_eq!(kinds(&book([11, 7, 3], 3)), ["stock_does_not_add_up"]);
        assert_eq!(kinds(&book([-1, -4, 3], 3)), ["stock_does_not_add_up"]);
        let extreme = book([i64::MAX, i64::MAX, i64::MAX], i64::MIN);
        assert_eq!(kinds(&extreme), ["stock_does_not_add_up", "reserved_differs_from_orders"]);
        assert_eq!(kinds(&Book { inventory: None, ..book([0; 3], 0) }), ["product_without_inventory"]);
        let orphans = Book { is_product: false, inventory: None, ..book([0; 3], 0) };
        assert_eq!(kinds(&orphans), ["orders_without_product", "movements_without_product"]);
        let moved = |pieces| Book { movements: MovementSums { count: 4, pieces }, ..book([10, 7, 3], 3) };
        let found = &differences(&moved(12))[0];
        assert_eq!(found.kind, "stored_differs_from_movements");
        assert!(found.message.contains("the sum of its 4 movements is 12: 2 fewer"), "{}", found.message);
        assert!(found.what_to_do.contains("'recount', -2, 0, stored_stock"), "{}", found.what_to_do);
        assert!(differences(&moved(9))[0].message.contains("1 more"));
        let invalid = OrderSums { invalid: 1, ..OrderSums::default() };
        assert_eq!(kinds(&Book { orders: invalid, ..book([0; 3], 0) }), ["invalid_orders"]);
    }
}
