//! Fills the database before a run, and checks it afterwards.

use std::time::Duration;

use antre_testkit::error::Result;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};

use crate::{load::Counts, scenario::Scenario, variant::Variant};

/// The largest stock of an inventory: no run sells out by accident.
pub(crate) const PLENTY: i64 = i32::MAX as i64;

/// More pieces a second than are sold with a row for each piece, as measured. Not far more: inserting rows takes time.
const PIECES_PER_SECOND: u64 = 8_000;

/// Products 1 to n with their inventories, by the same statements in both databases. Directly into the tables, because
/// the direct variants have no API for it.
fn products_and_inventories(products: u64, stock: i64) -> [String; 2] {
    [
        format!("INSERT INTO products (id, name) {} SELECT n, 'Kaos Polos' FROM numbers", numbers(products)),
        format!(
            "INSERT INTO inventories (product_id, stored_stock, available_stock) {} SELECT n, {stock}, {stock}
             FROM numbers",
            numbers(products)
        ),
    ]
}

/// The movements with which the stock begins, so that nothing reports a difference during a run.
const OPENING_BALANCES: &str =
    "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
     SELECT product_id, 0, 'recount', stored_stock, 0, stored_stock, 'opening balance'
     FROM inventories WHERE stored_stock <> 0";

/// Orders of one piece of product 1, reserved until far in the future. `hex` is an SQL expression: the number `n` as eight hexadecimal digits.
fn reservations(count: u64, hex: &str) -> Vec<String> {
    if count == 0 {
        return Vec::new();
    }
    vec![
        format!(
            "INSERT INTO orders (id, product_id, total, status, expires_at) {} SELECT
             UNHEX(CONCAT({hex}, '000070008000000000000000')), 1, 1, 'reserved', 4102444800000 FROM numbers",
            numbers(count)
        ),
        format!(
            "UPDATE inventories SET available_stock = available_stock - {count}, reserved_stock = {count}
             WHERE product_id = 1"
        ),
    ]
}

fn numbers(count: u64) -> String {
    format!("WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})")
}

/// The tables of a direct variant: copies of antre's, with their keys and checks.
fn direct_tables(products: u64, stock: i64, seconds: Duration) -> Vec<String> {
    let pieces = match stock {
        0 => 0,
        _ => (PIECES_PER_SECOND as f64 * seconds.as_secs_f64()) as u64 / products + 10,
    };
    let mut statements: Vec<String> = [
        "CREATE TABLE direct_inventories LIKE inventories",
        "INSERT INTO direct_inventories SELECT * FROM inventories",
        "CREATE TABLE direct_orders LIKE orders",
        "CREATE TABLE direct_pieces (
             product_id BIGINT NOT NULL,
             piece      BIGINT NOT NULL,
             PRIMARY KEY (product_id, piece)
         ) ENGINE = InnoDB",
    ]
    .map(str::to_owned)
    .into();
    if pieces > 0 {
        statements.push(format!(
            "INSERT INTO direct_pieces (product_id, piece) {} SELECT products.id, n FROM products, numbers
             ORDER BY products.id, n",
            numbers(pieces)
        ));
    }
    statements
}

/// Fills the MySQL tables that `antre migrate` has created.
pub(crate) async fn fill_mysql(
    url: &str,
    variant: Variant,
    scenario: Scenario,
    stock: i64,
    seconds: Duration,
) -> Result<()> {
    let products = scenario.products();
    let mut connection = MySqlConnection::connect(url).await?;
    sqlx::raw_sql("SET SESSION cte_max_recursion_depth = 10000000").execute(&mut connection).await?;
    let mut statements = products_and_inventories(products, stock).to_vec();
    statements.extend(reservations(scenario.payments(seconds), "LPAD(HEX(n), 8, '0')"));
    if variant.is_direct() {
        statements.extend(direct_tables(products, stock, seconds));
    }
    for statement in statements {
        connection.execute(sqlx::raw_sql(&statement)).await?;
    }
    let _ = connection.execute(OPENING_BALANCES).await; // an earlier release, to compare with, has no ledger
    Ok(connection.close().await?)
}

/// Fills the SQLite tables that `antre migrate` has created.
pub(crate) async fn fill_sqlite(url: &str, scenario: Scenario, stock: i64, seconds: Duration) -> Result<()> {
    let mut connection = SqliteConnection::connect(url).await?;
    let mut statements = products_and_inventories(scenario.products(), stock).to_vec();
    statements.extend(reservations(scenario.payments(seconds), "printf('%08x', n)"));
    for statement in statements {
        connection.execute(sqlx::raw_sql(&statement)).await?;
    }
    let _ = connection.execute(OPENING_BALANCES).await; // an earlier release, to compare with, has no ledger
    Ok(connection.close().await?)
}

/// What the database holds after a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Inventories in which stored is not available + reserved, or reserved is not the sum of the product's orders.
    pub(crate) wrong_inventories: i64,
    pub(crate) reserved: i64,
    /// Stored orders with the status reserved; each is of one piece.
    pub(crate) orders: i64,
    /// Stored orders with the status paid.
    pub(crate) paid: i64,
}

fn wrong_inventories(prefix: &str) -> String {
    format!(
        "SELECT COUNT(*) FROM {prefix}inventories AS i
         LEFT JOIN (SELECT product_id, SUM(total) AS pieces FROM {prefix}orders WHERE status = 'reserved'
                    GROUP BY product_id) AS o ON o.product_id = i.product_id
         WHERE stored_stock <> available_stock + reserved_stock OR reserved_stock <> COALESCE(o.pieces, 0)
            OR available_stock < 0 OR reserved_stock < 0"
    )
}

fn reserved(prefix: &str) -> String {
    format!("SELECT COALESCE(SUM(reserved_stock), 0) FROM {prefix}inventories")
}

fn orders(prefix: &str, status: &str) -> String {
    format!("SELECT COUNT(*) FROM {prefix}orders WHERE status = '{status}'")
}

pub(crate) async fn totals_in_mysql(url: &str, variant: Variant) -> Result<Totals> {
    let mut connection = MySqlConnection::connect(url).await?;
    let prefix = if variant.is_direct() { "direct_" } else { "" };
    let mut number = async |statement: String| -> Result<i64> {
        let statement = format!("SELECT CAST(({statement}) AS SIGNED)");
        Ok(sqlx::query_scalar(&statement).fetch_one(&mut connection).await?)
    };
    let totals = if variant == Variant::DirectSkipLocked {
        // The missing pieces are reserved. Numbers go up from 1 without a gap, and the last piece of a product is there
        // unless it is sold out.
        let left = number("SELECT COUNT(*) FROM direct_pieces".to_owned()).await?;
        let filled = number(
            "SELECT COALESCE(SUM(last), 0) FROM (SELECT MAX(piece) AS last FROM direct_pieces GROUP BY product_id) AS p"
                .to_owned(),
        )
        .await?;
        let orders = number(orders(prefix, "reserved")).await?;
        Totals { wrong_inventories: 0, reserved: filled - left, orders, paid: 0 }
    } else {
        Totals {
            wrong_inventories: number(wrong_inventories(prefix)).await?,
            reserved: number(reserved(prefix)).await?,
            orders: number(orders(prefix, "reserved")).await?,
            paid: number(orders(prefix, "paid")).await?,
        }
    };
    connection.close().await?;
    Ok(totals)
}

pub(crate) async fn totals_in_sqlite(url: &str) -> Result<Totals> {
    let mut connection = SqliteConnection::connect(url).await?;
    let mut number = async |statement: String| -> Result<i64> {
        let statement = format!("SELECT CAST(({statement}) AS INTEGER)");
        Ok(sqlx::query_scalar(&statement).fetch_one(&mut connection).await?)
    };
    let totals = Totals {
        wrong_inventories: number(wrong_inventories("")).await?,
        reserved: number(reserved("")).await?,
        orders: number(orders("", "reserved")).await?,
        paid: number(orders("", "paid")).await?,
    };
    connection.close().await?;
    Ok(totals)
}

impl Totals {
    /// Fails unless the answers and the stored orders agree.
    pub(crate) fn check(&self, scenario: Scenario, counts: &Counts) -> Result<()> {
        let accepted = if scenario == Scenario::Pay { self.paid } else { self.reserved };
        let (least, most) = (counts.accepted as i64, (counts.accepted + counts.unknown()) as i64);
        if self.wrong_inventories == 0 && self.orders == self.reserved && (least..=most).contains(&accepted) {
            return Ok(());
        }
        Err(format!("the stored orders do not match the answers: {self:?} after {counts:?}").into())
    }
}
