//! Deleting old orders on MySQL.

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{MySqlStore, batch::MySqlTransaction, buyers, now_ms};
use crate::{
    domain::{
        ids::{OrderId, ProductId},
        time::from_millis,
    },
    store::{
        error::StoreError,
        holdings,
        json::json,
        page::Page,
        ports::{Deleted, Retention},
        statements::{is_final, page_of_final_orders, product_ids},
        transaction::{Begin, Transaction, hex_ids},
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
        let mut transaction = self.begin().await?;
        let asked = hex_ids(ids.iter().copied());
        // Inventories are locked before orders, as everywhere; only those whose holdings change.
        let limited = limited_products(&mut transaction, &asked).await?;
        if !limited.is_empty() {
            transaction.lock_inventories(json(&limited)).await?;
        }
        let locked: Vec<(Uuid,)> = transaction.0.fetch_all(sqlx::query_as(LOCK).bind(asked)).await?;
        let ids = hex_ids(locked.into_iter().map(|(id,)| id.into()));
        let still_limited = limited_products(&mut transaction, &ids).await?;
        if still_limited.iter().any(|id| !limited.contains(id)) {
            return Err(StoreError::Contended("a product of old orders has just got a limit".to_owned()));
        }
        if !still_limited.is_empty() {
            let changes = holdings::of_deleted(&mut transaction, ids.clone(), &still_limited).await?;
            transaction.write(changes).await?;
        }
        let mut rows = [0; 5];
        let deletes =
            [DELETE_KEYS, DELETE_ALIASES, DELETE_BASKET_LINES, buyers::DELETE_BUYERS, DELETE_ORDERS];
        for (rows, statement) in rows.iter_mut().zip(deletes) {
            *rows = transaction.0.execute(sqlx::query(statement).bind(&ids)).await?.rows_affected();
        }
        transaction.0.commit("COMMIT").await?;
        let [idempotency_keys, aliases, _, _, orders] = rows;
        Ok(Deleted { orders, idempotency_keys, aliases })
    }
}

async fn limited_products(
    transaction: &mut MySqlTransaction,
    orders: &str,
) -> Result<Vec<ProductId>, StoreError> {
    product_ids(transaction.0.fetch_all(sqlx::query_as(buyers::LIMITED_PRODUCTS).bind(orders)).await?)
}
