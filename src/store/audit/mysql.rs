//! The audit on MySQL.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    ALIASES, Audit, BookPage, Books, KEYS, LinkRow, Links, MovementRow, PRODUCTS, ROWS_PER_STATEMENT, Range,
    SumRow, links, movement_sums, sums,
};
use crate::store::{error::StoreError, mysql_url::connect_options, open_error::OpenError, rows::TextColumn};

/// How long a step may take: far more than one takes, so that only a server that stands still exceeds it.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// One connection, on which all steps follow each other.
pub struct MySqlAudit(MySqlConnection);

impl MySqlAudit {
    /// Connects to the database of a `mysql://` URL. Changes nothing there.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let mut connection = MySqlConnection::connect_with(&connect_options(url)?).await?;
        // A table that somebody changes is not waited for: the statement of that somebody would hold up the sale behind it.
        connection.execute("SET SESSION lock_wait_timeout = 5, max_execution_time = 30000").await?;
        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        Ok(Self(connection))
    }

    async fn snapshot_of_books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, sqlx::Error> {
        self.0.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
        let products = sqlx::query_as(PRODUCTS).bind(after.unwrap_or(i64::MIN)).bind(limit);
        let mut books = Books::new(products.fetch_all(&mut self.0).await?, limit);
        // Orders by their first lines, then the other lines.
        for sums in [SUMS, BASKET_SUMS] {
            let mut range = Range::new(after, books.to(), Uuid::max());
            loop {
                let rows = sqlx::query_as(sums)
                    .bind(range.product_id)
                    .bind(range.id)
                    .bind(range.product_id)
                    .bind(range.to)
                    .bind(ROWS_PER_STATEMENT);
                let rows: Vec<SumRow> = rows.fetch_all(&mut self.0).await?;
                if !books.add(rows, &mut range) {
                    break;
                }
            }
        }
        let mut range = Range::new(after, books.to(), i64::MAX);
        loop {
            let rows = sqlx::query_as(MOVEMENT_SUMS)
                .bind(range.product_id)
                .bind(range.id)
                .bind(range.product_id)
                .bind(range.to)
                .bind(ROWS_PER_STATEMENT);
            let rows: Vec<MovementRow> = rows.fetch_all(&mut self.0).await?;
            if !books.add_movements(rows, &mut range) {
                break;
            }
        }
        self.0.execute("COMMIT").await?;
        Ok(books.page())
    }
}

/// Two ranges of the index, read in its order.
const SUMS: &str = concat!(
    "SELECT product_id, ",
    sums!(),
    ", MAX(id)
     FROM (
         SELECT product_id, id, total, status, expires_at, rejected_available, rejection_reason
         FROM orders FORCE INDEX (orders_of_product)
         WHERE (product_id = ? AND id > ?) OR (product_id > ? AND product_id <= ?)
         ORDER BY product_id, id LIMIT ?
     ) AS step
     GROUP BY product_id ORDER BY product_id"
);

/// The lines of orders of several products behind their first ones.
const BASKET_SUMS: &str = concat!(
    "SELECT product_id, ",
    sums!(),
    ", MAX(id)
     FROM (
         SELECT basket_lines.product_id, order_id AS id, basket_lines.total, status, expires_at, rejected_available,
             rejection_reason
         FROM basket_lines FORCE INDEX (PRIMARY) STRAIGHT_JOIN orders ON orders.id = order_id
         WHERE (basket_lines.product_id = ? AND order_id > ?)
             OR (basket_lines.product_id > ? AND basket_lines.product_id <= ?)
         ORDER BY basket_lines.product_id, order_id LIMIT ?
     ) AS step
     GROUP BY product_id ORDER BY product_id"
);

const MOVEMENT_SUMS: &str = concat!(
    "SELECT product_id, ",
    movement_sums!(),
    " FROM (
         SELECT product_id, seq, stock_change FROM movements FORCE INDEX (movements_of_product)
         WHERE (product_id = ? AND seq > ?) OR (product_id > ? AND product_id <= ?)
         ORDER BY product_id, seq LIMIT ?
     ) AS step
     GROUP BY product_id ORDER BY product_id"
);

#[async_trait]
impl Audit for MySqlAudit {
    async fn books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, StoreError> {
        in_time(self.snapshot_of_books(after, limit)).await
    }

    async fn keys(&mut self, after: Option<&str>, limit: u32) -> Result<Links<String>, StoreError> {
        let rows = sqlx::query_as(KEYS).bind(after.unwrap_or("")).bind(limit);
        let rows: Vec<LinkRow<TextColumn>> = in_time(rows.fetch_all(&mut self.0)).await?;
        let rows = rows.into_iter().map(|(TextColumn(key), order, stored)| (key, order, stored)).collect();
        Ok(links(rows, limit))
    }

    async fn aliases(&mut self, after: Option<Uuid>, limit: u32) -> Result<Links<Uuid>, StoreError> {
        let rows = sqlx::query_as(ALIASES).bind(after.unwrap_or_default()).bind(limit);
        let rows: Vec<LinkRow<Uuid>> = in_time(rows.fetch_all(&mut self.0)).await?;
        Ok(links(rows, limit))
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    let silent = || StoreError::Unavailable(format!("the database is silent for {STEP_LIMIT:?} now"));
    Ok(timeout(STEP_LIMIT, step).await.map_err(|_| silent())??)
}
