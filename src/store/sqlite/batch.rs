//! The transaction of a batch on SQLite, and its statements.

use sqlx::{
    Execute, Executor, FromRow, Sqlite, SqliteConnection,
    query::{Query, QueryAs},
    sqlite::{SqliteArguments, SqliteRow},
};
use tokio::{sync::OwnedMutexGuard, time};

use super::{ORDERS_OF_KEYS, SqliteStore, WRITE_LIMIT, buyers, in_time, now_ms};
use crate::{
    domain::{
        holdings::Holdings,
        ids::{IdempotencyKey, OrderId},
    },
    store::{
        error::StoreError,
        holdings::{self, HoldingRow},
        rows::{KeyRow, KeyedRow, LockedRow, OrderRow, ReadOrder},
        slow_query::timed,
        transaction::{Begin, Changes, CommitError, LockedInventories, Transaction},
    },
};

impl Begin for SqliteStore {
    type Transaction = SqliteTransaction;

    async fn begin(&self) -> Result<SqliteTransaction, StoreError> {
        let deadline = time::Instant::now() + WRITE_LIMIT;
        let writer = in_time(deadline, async { Ok(self.writer.clone().lock_owned().await) }).await?;
        Ok(SqliteTransaction { writer: Some(writer), deadline })
    }
}

/// Begins when it locks. Dropping it rolls it back before anybody else gets the connection.
pub(in crate::store) struct SqliteTransaction {
    writer: Option<OwnedMutexGuard<Option<SqliteConnection>>>,
    pub(super) deadline: time::Instant,
}

impl SqliteTransaction {
    pub(super) async fn fetch_all<'a, T>(
        &'a mut self,
        query: QueryAs<'a, Sqlite, T, SqliteArguments<'a>>,
    ) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'row> FromRow<'row, SqliteRow> + Send + Unpin,
    {
        let (deadline, sql) = (self.deadline, query.sql());
        timed(sql, in_time(deadline, query.fetch_all(self.connection()?))).await
    }

    pub(super) async fn execute<'a>(
        &'a mut self,
        query: Query<'a, Sqlite, SqliteArguments<'a>>,
    ) -> Result<(), sqlx::Error> {
        let (deadline, sql) = (self.deadline, query.sql());
        timed(sql, in_time(deadline, query.execute(self.connection()?))).await.map(drop)
    }

    /// Writes all changes, and runs `end` after that.
    pub(super) async fn write(&mut self, changes: Changes, end: &str) -> Result<(), sqlx::Error> {
        let Changes { more_held, less_held, buyers, holdings_forgotten, holdings_counted, .. } = changes;
        let Changes { reservations, detailed_reservations, rejections, basket_lines, .. } = changes;
        let Changes {
            completed_orders,
            orphaned_keys,
            keys,
            changed_orders,
            aliases,
            movements,
            stock,
            terms,
            archived,
            ..
        } = changes;
        let writes = [
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
            (stock, MOVE_STOCK),
            (buyers, buyers::INSERT_BUYERS),
            (more_held, buyers::MORE_HELD),
            (less_held, buyers::LESS_HELD),
            (holdings_forgotten, buyers::FORGET_HOLDINGS),
            (holdings_counted, buyers::COUNT_HOLDINGS),
            (terms, SET_TERMS),
            (archived, ARCHIVE),
        ];
        let (mut statements, mut lists) = (String::new(), Vec::new());
        for (list, statement) in writes {
            if let Some(list) = list {
                statements.push_str(statement);
                lists.push(list);
            }
        }
        statements.push_str(end);
        // Made of constants, and few: they stay prepared.
        let query = lists.into_iter().fold(sqlx::query(&statements), |query, list| query.bind(list));
        self.execute(query).await
    }

    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.writer.as_mut().and_then(|writer| writer.as_mut()).ok_or(sqlx::Error::PoolClosed)
    }

    /// After the commit.
    pub(super) fn end(mut self) {
        self.writer = None;
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        tokio::spawn(async move {
            if let Some(connection) = writer.as_mut() {
                let _ = connection.execute("ROLLBACK").await; // fails where nothing had begun
            }
        });
    }
}

impl Transaction for SqliteTransaction {
    async fn lock_inventories(&mut self, products: String) -> Result<LockedInventories, StoreError> {
        // The write lock of the file covers all rows. A transaction that begins by reading and writes later fails at once
        // when another process wrote in between, whatever the busy timeout: take the lock at the start.
        const LOCK: &str = concat!(
            "BEGIN IMMEDIATE;
             SELECT product_id, stored_stock, available_stock, reserved_stock, archived_at, selling, opens_at, closes_at,
                  max_per_order, max_per_buyer, hold_seconds, ",
            now_ms!(),
            " AS now_ms FROM json_each(?) AS batch CROSS JOIN inventories ON product_id = batch.value"
        );
        let rows: Vec<LockedRow> = self.fetch_all(sqlx::query_as(LOCK).bind(products)).await?;
        LockedInventories::of(rows)
    }

    async fn stored_orders(&mut self, ids: String) -> Result<Vec<ReadOrder>, StoreError> {
        let query = sqlx::query_as(
            "SELECT orders.* FROM json_each(?) AS batch CROSS JOIN orders ON orders.id = unhex(batch.value)",
        );
        let rows: Vec<OrderRow> = self.fetch_all(query.bind(ids)).await?;
        Ok(rows.into_iter().map(OrderRow::read).collect())
    }

    async fn orders_of_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, ReadOrder)>, StoreError> {
        let rows: Vec<KeyedRow> = self.fetch_all(sqlx::query_as(ORDERS_OF_KEYS).bind(keys)).await?;
        rows.into_iter().map(KeyedRow::read).collect()
    }

    async fn orphaned_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, OrderId)>, StoreError> {
        let query = sqlx::query_as(
            "SELECT idempotency_key, order_id FROM json_each(?) AS batch
             CROSS JOIN idempotency_keys ON idempotency_key = batch.value
             LEFT JOIN orders ON orders.id = order_id
             WHERE orders.id IS NULL",
        );
        let rows: Vec<KeyRow> = self.fetch_all(query.bind(keys)).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn holdings(&mut self, holders: String) -> Result<Holdings, StoreError> {
        let rows: Vec<HoldingRow> = self.fetch_all(sqlx::query_as(buyers::HOLDINGS).bind(holders)).await?;
        holdings::read(rows)
    }

    async fn commit(mut self, changes: Changes) -> Result<(), CommitError> {
        self.write(changes, "COMMIT").await?;
        self.end();
        Ok(())
    }
}

// Materialized: otherwise the whole list would be read for each of its orders.
const INSERT_RESERVATIONS: &str = "WITH alike AS MATERIALIZED (
         SELECT value ->> 0 AS product_id, value ->> 1 AS total, value ->> 2 AS expires_at, value -> 3 AS ids
         FROM json_each(?)
     )
     INSERT INTO orders (id, product_id, total, status, expires_at)
     SELECT unhex(id.value), product_id, total, 'reserved', expires_at
     FROM alike CROSS JOIN json_each(ids) AS id;";

const INSERT_DETAILED_RESERVATIONS: &str =
    "INSERT INTO orders (id, product_id, total, status, expires_at, lines, buyer)
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2, 'reserved', value ->> 3, value ->> 4, value ->> 5
     FROM json_each(?);";

const INSERT_REJECTIONS: &str =
    "INSERT INTO orders (
         id, product_id, total, status, rejected_available, rejection_reason, rejection_details, lines, buyer
     )
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2, 'rejected', value ->> 3, value ->> 4, value ->> 5, value ->> 6,
         value ->> 7
     FROM json_each(?);";

const INSERT_BASKET_LINES: &str = "INSERT INTO basket_lines (product_id, order_id, total)
     SELECT value ->> 0, unhex(value ->> 1), value ->> 2 FROM json_each(?);";

const DELETE_ORPHANED_KEYS: &str = "DELETE FROM idempotency_keys
     WHERE (idempotency_key, order_id) IN (SELECT value ->> 0, unhex(value ->> 1) FROM json_each(?));";

const INSERT_KEYS: &str = "INSERT INTO idempotency_keys (idempotency_key, order_id)
     SELECT value ->> 0, unhex(value ->> 1) FROM json_each(?);";

const CHANGE_ORDERS: &str = "UPDATE orders
     SET status = batch.value ->> 1, expires_at = batch.value ->> 2, paid_at = batch.value ->> 3,
         payment_reference = batch.value ->> 4
     FROM json_each(?) AS batch WHERE orders.id = unhex(batch.value ->> 0);";

const COMPLETE_ORDERS: &str = "UPDATE orders
     SET product_id = batch.value ->> 1, total = batch.value ->> 2, lines = batch.value ->> 3, buyer = batch.value ->> 4
     FROM json_each(?) AS batch WHERE orders.id = unhex(batch.value ->> 0);";

const INSERT_ALIASES: &str = "INSERT INTO order_aliases (id, order_id)
     SELECT unhex(value ->> 0), unhex(value ->> 1) FROM json_each(?) WHERE true
     ON CONFLICT (id) DO NOTHING;";

const INSERT_MOVEMENTS: &str =
    "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
     FROM json_each(?);";

const MOVE_STOCK: &str = "UPDATE inventories
     SET stored_stock    = stored_stock    + (batch.value ->> 1),
         available_stock = available_stock + (batch.value ->> 2),
         reserved_stock  = reserved_stock  + (batch.value ->> 3)
     FROM json_each(?) AS batch WHERE product_id = batch.value ->> 0;";

const ARCHIVE: &str = "UPDATE inventories SET archived_at = batch.value ->> 1
     FROM json_each(?) AS batch WHERE product_id = batch.value ->> 0;";

const SET_TERMS: &str = "UPDATE inventories
     SET selling       = batch.value ->> 1,
         opens_at      = batch.value ->> 2,
         closes_at     = batch.value ->> 3,
         max_per_order = batch.value ->> 4,
         max_per_buyer = batch.value ->> 5,
         hold_seconds  = batch.value ->> 6
     FROM json_each(?) AS batch WHERE product_id = batch.value ->> 0;";
