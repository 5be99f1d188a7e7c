//! The transaction of a batch on MySQL, and its statements.

use super::{MySqlStore, ORDERS_OF_KEYS, buyers, connections::PooledConnection, now_ms};
use crate::{
    domain::{
        holdings::Holdings,
        ids::{IdempotencyKey, OrderId},
    },
    store::{
        error::StoreError,
        holdings::{self, HoldingRow},
        rows::{KeyRow, KeyedRow, LockedRow, OrderRow, ReadOrder},
        transaction::{Begin, Changes, CommitError, LockedInventories, Transaction},
    },
};

impl Begin for MySqlStore {
    type Transaction = MySqlTransaction;

    async fn begin(&self) -> Result<MySqlTransaction, StoreError> {
        Ok(MySqlTransaction(self.writes.acquire().await?))
    }
}

/// Begins with its first statement. Dropping it rolls it back.
pub(in crate::store) struct MySqlTransaction(pub(super) PooledConnection);

impl MySqlTransaction {
    /// Writes all changes but those of the stock.
    pub(super) async fn write(&mut self, changes: Changes) -> Result<(), sqlx::Error> {
        let Changes { more_held, less_held, buyers, holdings_forgotten, holdings_counted, .. } = changes;
        let Changes { reservations, detailed_reservations, rejections, basket_lines, .. } = changes;
        let Changes {
            completed_orders,
            orphaned_keys,
            keys,
            changed_orders,
            aliases,
            movements,
            terms,
            archived,
            ..
        } = changes;
        for (rows, statement) in [
            (reservations, INSERT_RESERVATIONS),
            (detailed_reservations, INSERT_DETAILED_RESERVATIONS),
            (rejections, INSERT_REJECTIONS),
            (completed_orders, COMPLETE_ORDERS),
            (basket_lines, INSERT_BASKET_LINES),
            (orphaned_keys, DELETE_ORPHANED_KEYS),
            (keys, INSERT_KEYS),
            (changed_orders, CHANGE_ORDERS),
            (aliases, INSERT_ALIASES),
            (movements, INSERT_MOVEMENTS),
            (buyers, buyers::INSERT_BUYERS),
            (more_held, buyers::MORE_HELD),
            (less_held.clone(), buyers::LESS_HELD),
            (less_held, buyers::DELETE_EMPTY_HOLDINGS),
            (holdings_forgotten, buyers::FORGET_HOLDINGS),
            (holdings_counted, buyers::COUNT_HOLDINGS),
            (terms, SET_TERMS),
            (archived, ARCHIVE),
        ] {
            if let Some(rows) = rows {
                self.0.execute(sqlx::query(statement).bind(rows)).await?;
            }
        }
        Ok(())
    }
}

impl Transaction for MySqlTransaction {
    async fn lock_inventories(&mut self, products: String) -> Result<LockedInventories, StoreError> {
        const LOCK: &str = concat!(
            "SELECT product_id, stored_stock, available_stock, reserved_stock, archived_at, selling, opens_at, closes_at,
                 max_per_order, max_per_buyer, hold_seconds, ",
            now_ms!(),
            " AS now_ms FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON product_id = batch.id FOR UPDATE OF inventories"
        );
        let rows: Vec<LockedRow> = self.0.fetch_all(sqlx::query_as(LOCK).bind(products)).await?;
        LockedInventories::of(rows)
    }

    async fn stored_orders(&mut self, ids: String) -> Result<Vec<ReadOrder>, StoreError> {
        let query = sqlx::query_as(
            "SELECT orders.*
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
             STRAIGHT_JOIN orders ON orders.id = UNHEX(batch.id)",
        );
        let rows: Vec<OrderRow> = self.0.fetch_all(query.bind(ids)).await?;
        Ok(rows.into_iter().map(OrderRow::read).collect())
    }

    async fn orders_of_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, ReadOrder)>, StoreError> {
        let rows: Vec<KeyedRow> = self.0.fetch_all(sqlx::query_as(ORDERS_OF_KEYS).bind(keys)).await?;
        rows.into_iter().map(KeyedRow::read).collect()
    }

    async fn orphaned_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, OrderId)>, StoreError> {
        let query = sqlx::query_as(
            "SELECT idempotency_key, order_id
             FROM JSON_TABLE(?, '$[*]' COLUMNS (idempotency_key VARCHAR(255) COLLATE ascii_bin PATH '$')) AS batch
             STRAIGHT_JOIN idempotency_keys USING (idempotency_key)
             LEFT JOIN orders ON orders.id = order_id
             WHERE orders.id IS NULL",
        );
        let rows: Vec<KeyRow> = self.0.fetch_all(query.bind(keys)).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn holdings(&mut self, holders: String) -> Result<Holdings, StoreError> {
        let rows: Vec<HoldingRow> = self.0.fetch_all(sqlx::query_as(buyers::HOLDINGS).bind(holders)).await?;
        holdings::read(rows)
    }

    async fn commit(mut self, mut changes: Changes) -> Result<(), CommitError> {
        let stock = changes.stock.take();
        self.write(changes).await?;
        // As text, because each prepared statement is a round trip; numbers need no quoting. If the first of the two fails,
        // the commit does not run.
        let move_stock = stock.map_or(String::new(), |differences| {
            format!(
                "UPDATE JSON_TABLE('{differences}', '$[*]' COLUMNS (
                     id BIGINT PATH '$[0]', more_stored BIGINT PATH '$[1]',
                     more_available BIGINT PATH '$[2]', more_reserved BIGINT PATH '$[3]'
                 )) AS batch
                 STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON product_id = batch.id
                 SET stored_stock    = stored_stock    + more_stored,
                     available_stock = available_stock + more_available,
                     reserved_stock  = reserved_stock  + more_reserved;"
            )
        });
        let statements = move_stock + "COMMIT";
        Ok(self.0.commit(&statements).await?)
    }
}

// NULL is said, so that the default of the column, which serves earlier releases, is not evaluated for each order.
const INSERT_RESERVATIONS: &str =
    "INSERT INTO orders (id, product_id, total, status, expires_at, rejection_reason)
     SELECT UNHEX(id), product_id, total, 'reserved', expires_at, NULL
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', total INT PATH '$[1]', expires_at BIGINT PATH '$[2]',
         NESTED PATH '$[3][*]' COLUMNS (id CHAR(32) PATH '$')
     )) AS batch";

const INSERT_DETAILED_RESERVATIONS: &str =
    "INSERT INTO orders (id, product_id, total, status, expires_at, rejection_reason, `lines`, buyer)
     SELECT UNHEX(id), product_id, total, 'reserved', expires_at, NULL, all_lines, buyer
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', product_id BIGINT PATH '$[1]', total INT PATH '$[2]', expires_at BIGINT PATH '$[3]',
         all_lines VARCHAR(2000) PATH '$[4]', buyer VARCHAR(128) PATH '$[5]'
     )) AS batch";

const INSERT_REJECTIONS: &str =
    "INSERT INTO orders (
         id, product_id, total, status, rejected_available, rejection_reason, rejection_details, `lines`, buyer
     )
     SELECT UNHEX(id), product_id, total, 'rejected', rejected_available, rejection_reason, rejection_details, all_lines,
         buyer
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', product_id BIGINT PATH '$[1]', total INT PATH '$[2]',
         rejected_available INT PATH '$[3]', rejection_reason VARCHAR(32) PATH '$[4]',
         rejection_details VARCHAR(255) PATH '$[5]', all_lines VARCHAR(2000) PATH '$[6]', buyer VARCHAR(128) PATH '$[7]'
     )) AS batch";

const INSERT_BASKET_LINES: &str = "INSERT INTO basket_lines (product_id, order_id, total)
     SELECT product_id, UNHEX(order_id), total
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', order_id CHAR(32) PATH '$[1]', total INT PATH '$[2]'
     )) AS batch";

// Only from the order that is known to be gone: another transaction that was faster with the key keeps it.
const DELETE_ORPHANED_KEYS: &str = "DELETE idempotency_keys
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         idempotency_key VARCHAR(255) COLLATE ascii_bin PATH '$[0]', order_id CHAR(32) PATH '$[1]'
     )) AS batch
     STRAIGHT_JOIN idempotency_keys FORCE INDEX (PRIMARY) USING (idempotency_key)
     WHERE idempotency_keys.order_id = UNHEX(batch.order_id)";

const INSERT_KEYS: &str = "INSERT INTO idempotency_keys (idempotency_key, order_id)
     SELECT idempotency_key, UNHEX(order_id)
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         idempotency_key VARCHAR(255) PATH '$[0]', order_id CHAR(32) PATH '$[1]'
     )) AS batch";

const CHANGE_ORDERS: &str = "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', new_status VARCHAR(10) PATH '$[1]', new_end BIGINT PATH '$[2]',
         new_paid_at BIGINT PATH '$[3]', new_reference VARCHAR(128) PATH '$[4]'
     )) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)
     SET status = new_status, expires_at = new_end, paid_at = new_paid_at, payment_reference = new_reference";

const COMPLETE_ORDERS: &str = "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', new_product BIGINT PATH '$[1]', new_total INT PATH '$[2]',
         all_lines VARCHAR(2000) PATH '$[3]', new_buyer VARCHAR(128) PATH '$[4]'
     )) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)
     SET product_id = new_product, total = new_total, `lines` = all_lines, buyer = new_buyer";

const SET_TERMS: &str = "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
         id BIGINT PATH '$[0]', new_selling TINYINT PATH '$[1]', new_opens_at BIGINT PATH '$[2]',
         new_closes_at BIGINT PATH '$[3]', new_max_per_order INT PATH '$[4]', new_max_per_buyer INT PATH '$[5]',
         new_hold_seconds INT PATH '$[6]'
     )) AS batch
     STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON product_id = batch.id
     SET selling       = new_selling,
         opens_at      = new_opens_at,
         closes_at     = new_closes_at,
         max_per_order = new_max_per_order,
         max_per_buyer = new_max_per_buyer,
         hold_seconds  = new_hold_seconds";

// Its order is locked, so that it is not pruned in between.
const INSERT_ALIASES: &str = "INSERT INTO order_aliases (id, order_id)
     SELECT UNHEX(batch.id), orders.id
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$[0]', order_id CHAR(32) PATH '$[1]')) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.order_id) FOR SHARE OF orders
     ON DUPLICATE KEY UPDATE order_aliases.order_id = order_aliases.order_id";

const ARCHIVE: &str =
    "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$[0]', at BIGINT PATH '$[1]')) AS batch
     STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON product_id = batch.id
     SET archived_at = batch.at";

const INSERT_MOVEMENTS: &str =
    "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
     SELECT product_id, moved_at, kind, stock_change, order_count, stored_stock, reason
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', moved_at BIGINT PATH '$[1]', kind VARCHAR(10) PATH '$[2]',
         stock_change BIGINT PATH '$[3]', order_count INT PATH '$[4]', stored_stock BIGINT PATH '$[5]',
         reason VARCHAR(100) PATH '$[6]'
     )) AS batch";
