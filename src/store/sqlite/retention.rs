//! Deleting old orders on SQLite.

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{SqliteStore, buyers, in_time, now_ms};
use crate::{
    domain::{ids::OrderId, time::from_millis},
    store::{
        error::StoreError,
        holdings,
        page::Page,
        ports::{Deleted, Retention},
        statements::{is_final, page_of_final_orders, product_ids},
        transaction::{Begin, hex_ids},
    },
};

const NOW: &str = concat!("SELECT ", now_ms!());

/// Reads the range of the primary key.
const EXAMINE: &str = concat!(
    "SELECT id, ",
    is_final!(),
    " FROM orders NOT INDEXED WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
);

/// Under the write lock of the file: what is final stays final, and nobody adds an alias in between.
const LOCK: &str = concat!(
    "BEGIN IMMEDIATE;
     SELECT orders.id FROM json_each(?) AS batch CROSS JOIN orders ON orders.id = unhex(batch.value) WHERE ",
    is_final!()
);

const DELETE_KEYS: &str = "DELETE FROM idempotency_keys INDEXED BY keys_of_order
     WHERE order_id IN (SELECT unhex(value) FROM json_each(?))";

const DELETE_ALIASES: &str = "DELETE FROM order_aliases INDEXED BY aliases_of_order
     WHERE order_id IN (SELECT unhex(value) FROM json_each(?))";

const DELETE_BASKET_LINES: &str = "DELETE FROM basket_lines INDEXED BY lines_of_order
     WHERE order_id IN (SELECT unhex(value) FROM json_each(?))";

const DELETE_ORDERS: &str =
    "DELETE FROM orders NOT INDEXED WHERE id IN (SELECT unhex(value) FROM json_each(?))";

#[async_trait]
impl Retention for SqliteStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        let rows: Vec<(i64,)> = self.fetch_all(sqlx::query_as(NOW)).await?;
        Ok(from_millis(rows.first().map_or(0, |(now,)| *now)))
    }

    async fn final_orders(
        &self,
        after: Option<OrderId>,
        end: OrderId,
        limit: u32,
    ) -> Result<Page<OrderId, OrderId>, StoreError> {
        let query = sqlx::query_as(EXAMINE)
            .bind(after.map_or(Uuid::nil(), OrderId::uuid))
            .bind(end.uuid())
            .bind(limit);
        Ok(page_of_final_orders(self.fetch_all(query).await?, limit))
    }

    async fn delete_orders(&self, ids: &[OrderId]) -> Result<Deleted, StoreError> {
        let mut transaction = self.begin().await?;
        let locked: Vec<(Uuid,)> =
            transaction.fetch_all(sqlx::query_as(LOCK).bind(hex_ids(ids.iter().copied()))).await?;
        let ids = hex_ids(locked.into_iter().map(|(id,)| id.into()));
        let limited = transaction.fetch_all(sqlx::query_as(buyers::LIMITED_PRODUCTS).bind(&ids)).await?;
        let limited = product_ids(limited)?;
        if !limited.is_empty() {
            let changes = holdings::of_deleted(&mut transaction, ids.clone(), &limited).await?;
            transaction.write(changes, "").await?;
        }
        let mut rows = [0; 5];
        let deletes =
            [DELETE_KEYS, DELETE_ALIASES, DELETE_BASKET_LINES, buyers::DELETE_BUYERS, DELETE_ORDERS];
        for (rows, statement) in rows.iter_mut().zip(deletes) {
            let deadline = transaction.deadline;
            let delete = sqlx::query(statement).bind(&ids).execute(transaction.connection()?);
            *rows = in_time(deadline, delete).await?.rows_affected();
        }
        transaction.execute(sqlx::query("COMMIT")).await?;
        transaction.end();
        let [idempotency_keys, aliases, _, _, orders] = rows;
        Ok(Deleted { orders, idempotency_keys, aliases })
    }
}
