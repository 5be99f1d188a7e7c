//! Deleting old orders on MySQL.

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{MySqlStore, now_ms};
use crate::{
    domain::{ids::OrderId, time::from_millis},
    store::{
        error::StoreError,
        page::Page,
        ports::{Deleted, Retention},
        statements::{is_final, page_of_final_orders},
        transaction::hex_ids,
    },
};

const NOW: &str = concat!("SELECT ", now_ms!());

/// Reads the range of the primary key, and waits for no lock.
const EXAMINE: &str = concat!(
    "SELECT id, ",
    is_final!(),
    " FROM orders FORCE INDEX (PRIMARY) WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
);

/// Locked before what names them is deleted: a transaction that adds an alias locks its order too, so that none is left.
const LOCK: &str = concat!(
    "SELECT orders.id FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)
     WHERE ",
    is_final!(),
    " FOR UPDATE OF orders"
);

const DELETE_KEYS: &str = "DELETE idempotency_keys
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN idempotency_keys FORCE INDEX (keys_of_order) ON order_id = UNHEX(batch.id)";

const DELETE_ALIASES: &str = "DELETE order_aliases
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN order_aliases FORCE INDEX (aliases_of_order) ON order_id = UNHEX(batch.id)";

const DELETE_BASKET_LINES: &str = "DELETE basket_lines
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN basket_lines FORCE INDEX (lines_of_order) ON order_id = UNHEX(batch.id)";

const DELETE_ORDERS: &str = "DELETE orders
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)";

#[async_trait]
impl Retention for MySqlStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        let rows: Vec<(i64,)> = self.reads.fetch_all(sqlx::query_as(NOW)).await?;
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
        Ok(page_of_final_orders(self.reads.fetch_all(query).await?, limit))
    }

    async fn delete_orders(&self, ids: &[OrderId]) -> Result<Deleted, StoreError> {
        let mut connection = self.writes.acquire().await?;
        let locked: Vec<(Uuid,)> =
            connection.fetch_all(sqlx::query_as(LOCK).bind(hex_ids(ids.iter().copied()))).await?;
        let ids = hex_ids(locked.into_iter().map(|(id,)| id.into()));
        let mut rows = [0; 4];
        let deletes = [DELETE_KEYS, DELETE_ALIASES, DELETE_BASKET_LINES, DELETE_ORDERS];
        for (rows, statement) in rows.iter_mut().zip(deletes) {
            *rows = connection.execute(sqlx::query(statement).bind(&ids)).await?.rows_affected();
        }
        connection.commit("COMMIT").await?;
        let [idempotency_keys, aliases, _, orders] = rows;
        Ok(Deleted { orders, idempotency_keys, aliases })
    }
}
