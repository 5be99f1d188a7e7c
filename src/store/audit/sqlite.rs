//! The audit on an SQLite file.

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use sqlx::{ConnectOptions, Executor, SqliteConnection, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use super::{
    ALIASES, Audit, BookPage, Books, KEYS, LinkRow, Links, MovementRow, PRODUCTS, ROWS_PER_STATEMENT, Range,
    SumRow, links, movement_sums, sums,
};
use crate::store::{error::StoreError, open_error::OpenError};

/// How long it waits for another process that keeps the whole file locked, which only recovery after a crash does.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection, on which all steps follow each other.
pub struct SqliteAudit(SqliteConnection);

impl SqliteAudit {
    /// Opens the file of a `sqlite://` URL, which must exist. Changes nothing there.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::from_str(url)?
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        Ok(Self(options.connect().await?))
    }

    async fn snapshot_of_books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, sqlx::Error> {
        // The snapshot is that of the first read, and writers go on beside it.
        self.0.execute("BEGIN").await?;
        let products = sqlx::query_as(PRODUCTS).bind(after.unwrap_or(i64::MIN)).bind(limit);
        let mut books = Books::new(products.fetch_all(&mut self.0).await?, limit);
        // Orders by their first lines, then the other lines.
        for sums in [SUMS, BASKET_SUMS] {
            let mut range = Range::new(after, books.to(), Uuid::max());
            loop {
                let rows = sqlx::query_as(sums)
                    .bind(range.product_id)
                    .bind(range.id)
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

const SUMS: &str = concat!(
    "SELECT product_id, ",
    sums!(),
    ", MAX(id)
     FROM (
         SELECT product_id, id, total, status, expires_at, rejected_available, rejection_reason
         FROM orders INDEXED BY orders_of_product
         WHERE (product_id, id) > (?, ?) AND product_id <= ?
         ORDER BY product_id, id LIMIT ?
     )
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
         FROM basket_lines CROSS JOIN orders ON orders.id = order_id
         WHERE (basket_lines.product_id, order_id) > (?, ?) AND basket_lines.product_id <= ?
         ORDER BY basket_lines.product_id, order_id LIMIT ?
     )
     GROUP BY product_id ORDER BY product_id"
);

const MOVEMENT_SUMS: &str = concat!(
    "SELECT product_id, ",
    movement_sums!(),
    " FROM (
         SELECT product_id, seq, stock_change FROM movements INDEXED BY movements_of_product
         WHERE (product_id, seq) > (?, ?) AND product_id <= ?
         ORDER BY product_id, seq LIMIT ?
     )
     GROUP BY product_id ORDER BY product_id"
);

#[async_trait]
impl Audit for SqliteAudit {
    async fn books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, StoreError> {
        Ok(self.snapshot_of_books(after, limit).await?)
    }

    async fn keys(&mut self, after: Option<&str>, limit: u32) -> Result<Links<String>, StoreError> {
        let rows: Vec<LinkRow<String>> =
            sqlx::query_as(KEYS).bind(after.unwrap_or("")).bind(limit).fetch_all(&mut self.0).await?;
        Ok(links(rows, limit))
    }

    async fn aliases(&mut self, after: Option<Uuid>, limit: u32) -> Result<Links<Uuid>, StoreError> {
        let rows: Vec<LinkRow<Uuid>> = sqlx::query_as(ALIASES)
            .bind(after.unwrap_or_default())
            .bind(limit)
            .fetch_all(&mut self.0)
            .await?;
        Ok(links(rows, limit))
    }
}
