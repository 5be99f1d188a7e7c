//! The store contract on an SQLite file: the embedded mode.
//!
//! One connection writes, a few read; write-ahead log, so that readers never wait for the writer;
//! `synchronous=FULL`, so that a commit is on the disk before anybody hears of it.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{
    ConnectOptions, Connection, Executor, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::{
    Decided, FoundRow, INSTALLATION_ID, KeyedRow, OrderPage, OrderRow, Page, Store, StoreError, Text, column,
    installation_id,
    lists::{self, Turns, Walk, page_of_orders, page_of_products},
    migrations::{self, Schema},
    open_error::OpenError,
    product, product_id,
    transaction::{self, Begin, Changes, CommitError, Transaction, hex, json},
};
use crate::{
    batch::Inventories,
    command::Command,
    inventory::{Inventory, Stock, StockBelowReserved},
    order::{IdempotencyKey, Order, OrderId},
    product::{Product, ProductId, ProductName},
};

/// Connections that only read.
const READERS: u32 = 2;
/// How long a writer waits for another process that has the file open.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The store on an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    /// Not in a pool, which would ask it whether it works before and after each transaction. `None` once it is closed.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    readers: SqlitePool,
    /// For lists alone.
    listing: SqlitePool,
    turns: Turns,
}

impl SqliteStore {
    /// Opens the file of a `sqlite://` URL, creates it if there is none, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .optimize_on_close(true, None)
            .disable_statement_logging();
        create_private(options.get_filename())?;
        let mut writer = options.connect().await?;
        migrations::bring_up_to_date(&migrations::SQLITE, &mut writer).await?;
        warn_of_others(options.get_filename());
        let options = options.read_only(true).optimize_on_close(false, None);
        let reading =
            |count| SqlitePoolOptions::new().max_connections(count).idle_timeout(None).max_lifetime(None);
        let readers = reading(READERS).connect_with(options.clone()).await?;
        let listing = reading(lists::AT_ONCE).connect_lazy_with(options);
        let writer = Arc::new(Mutex::new(Some(writer)));
        Ok(Self { writer, readers, listing, turns: Turns::default() })
    }

    /// What tables the file of a `sqlite://` URL has. Changes nothing, and creates no file.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        let options = SqliteConnectOptions::from_str(url)?.read_only(true).disable_statement_logging();
        if !options.get_filename().exists() {
            return Ok(Schema::none(&migrations::SQLITE));
        }
        let mut connection = options.connect().await?;
        let schema = Schema::read(&migrations::SQLITE, &mut connection).await?;
        connection.close().await?;
        Ok(schema)
    }

    /// A connection for a list, whose statements are interrupted when the time of the list is over.
    async fn listing(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        /// Steps of SQLite's machine between two looks at the clock: well below a millisecond.
        const STEPS: i32 = 10_000;
        let mut connection = self.listing.acquire().await?;
        let deadline = Instant::now() + lists::TIME_LIMIT;
        connection.lock_handle().await?.set_progress_handler(STEPS, move || Instant::now() < deadline);
        Ok(connection)
    }
}

/// Creates the file for its owner alone: it says who ordered what. SQLite gives the files beside it the same mode.
fn create_private(path: &Path) -> io::Result<()> {
    if path.to_string_lossy().starts_with("file:") {
        return Ok(()); // in memory
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A file that was there before keeps its mode, which somebody may have chosen.
fn warn_of_others(path: &Path) {
    let mode = path.metadata().map_or(0, |file| file.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let (file, mode) = (path.display(), format!("{mode:o}"));
        tracing::warn!(%file, mode, "others than its owner may open the database: chmod 600");
    }
}

const BY_ID: Walk = Walk { all: "orders NOT INDEXED", of_product: "orders INDEXED BY orders_of_product" };

/// The orders on record of a list of idempotency keys.
const ORDERS_OF_KEYS: &str = "SELECT idempotency_key, orders.* FROM json_each(?) AS batch
    CROSS JOIN idempotency_keys ON idempotency_key = batch.value
    CROSS JOIN orders ON orders.id = order_id";

#[async_trait]
impl Store for SqliteStore {
    async fn create_product(&self, name: ProductName) -> Result<Product, StoreError> {
        let mut writer = self.writer.lock().await;
        let writer = writer.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
        let id: i64 = sqlx::query_scalar("INSERT INTO products (name) VALUES (?) RETURNING id")
            .bind(name.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO inventories (product_id) VALUES (?)")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Product { id: product_id(id)?, name })
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        let name: Option<Text> = sqlx::query_scalar("SELECT name FROM products WHERE id = ?")
            .bind(column(id))
            .fetch_optional(&self.readers)
            .await?;
        name.map(|name| product(column(id), name)).transpose()
    }

    async fn products(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        let _turn = self.turns.take().await?;
        let rows: Vec<(i64, Text)> =
            sqlx::query_as("SELECT id, name FROM products WHERE id > ? ORDER BY id LIMIT ?")
                .bind(after.map_or(0, column))
                .bind(i64::from(limit) + 1)
                .fetch_all(&mut *self.listing().await?)
                .await?;
        let products = rows.into_iter().map(|(id, name)| product(id, name)).collect::<Result<_, _>>()?;
        Ok(page_of_products(products, limit))
    }

    async fn existing(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT products.id FROM json_each(?) AS batch CROSS JOIN products ON products.id = batch.value",
        )
        .bind(json(&ids))
        .fetch_all(&self.readers)
        .await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn sold_out(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT product_id
             FROM json_each(?) AS batch CROSS JOIN inventories ON product_id = batch.value
             WHERE available_stock = 0",
        )
        .bind(json(&ids))
        .fetch_all(&self.readers)
        .await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM products ORDER BY id").fetch_all(&self.readers).await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        let row: Option<(Text, i64, i64, i64)> = sqlx::query_as(
            "SELECT name, stored_stock, available_stock, reserved_stock
             FROM products JOIN inventories ON product_id = id WHERE id = ?",
        )
        .bind(column(id))
        .fetch_optional(&self.readers)
        .await?;
        let Some((name, stored, available, reserved)) = row else { return Ok(None) };
        let inventory = Inventory::from_columns(stored, available, reserved)?;
        Ok(Some((product(column(id), name)?, inventory)))
    }

    async fn recount(
        &self,
        id: ProductId,
        stock: Stock,
    ) -> Result<Option<Result<(Product, Inventory), StockBelowReserved>>, StoreError> {
        transaction::recount(self, id, stock).await
    }

    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
        let rows: Vec<FoundRow> = sqlx::query_as(
            "SELECT batch.value AS asked, orders.*
             FROM json_each(?) AS batch
             LEFT JOIN order_aliases ON order_aliases.id = unhex(batch.value)
             CROSS JOIN orders ON orders.id = COALESCE(order_aliases.order_id, unhex(batch.value))",
        )
        .bind(hex(ids.iter().copied()))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        let rows: Vec<KeyedRow> =
            sqlx::query_as(ORDERS_OF_KEYS).bind(json(&keys)).fetch_all(&self.readers).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn due(&self, at: Timestamp, limit: u32) -> Result<Vec<Order>, StoreError> {
        let rows: Vec<OrderRow> = sqlx::query_as(
            "SELECT * FROM orders WHERE status = 'reserved' AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        )
        .bind(at.as_millisecond())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        let _turn = self.turns.take().await?;
        let mut connection = self.listing().await?;
        let edge = match BY_ID.edge(&page) {
            Some(mut edge) => edge.build_query_scalar().fetch_optional(&mut *connection).await?,
            None => None,
        };
        let rows: Vec<OrderRow> =
            BY_ID.orders(&page, edge).build_query_as().fetch_all(&mut *connection).await?;
        let orders = rows.into_iter().map(Order::try_from).collect::<Result<_, _>>()?;
        Ok(page_of_orders(orders, page.limit, edge))
    }

    async fn decide(&self, commands: &[Command], reservation_ttl: Duration) -> Result<Decided, StoreError> {
        transaction::decide(self, commands, reservation_ttl).await
    }

    async fn installation_id(&self) -> Result<Uuid, StoreError> {
        installation_id(sqlx::query_scalar(INSTALLATION_ID).fetch_optional(&self.readers).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.listing.close().await;
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.close().await; // all that was promised is committed
        }
    }
}

impl Begin for SqliteStore {
    type Transaction = SqliteTransaction;

    async fn begin(&self) -> Result<SqliteTransaction, StoreError> {
        Ok(SqliteTransaction(Some(self.writer.clone().lock_owned().await)))
    }
}

/// Begins when it locks. Dropping it rolls it back before anybody else gets the connection.
pub(super) struct SqliteTransaction(Option<OwnedMutexGuard<Option<SqliteConnection>>>);

impl SqliteTransaction {
    fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.0.as_mut().and_then(|writer| writer.as_mut()).ok_or(sqlx::Error::PoolClosed)
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        let Some(mut writer) = self.0.take() else { return };
        tokio::spawn(async move {
            if let Some(connection) = writer.as_mut() {
                let _ = connection.execute("ROLLBACK").await; // fails where nothing had begun
            }
        });
    }
}

impl Transaction for SqliteTransaction {
    async fn lock_inventories(&mut self, products: String) -> Result<Inventories, StoreError> {
        // The write lock of the file covers all rows. A transaction that begins by reading and writes later fails at once
        // when another process wrote in between, whatever the busy timeout: take the lock at the start.
        let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
            "BEGIN IMMEDIATE;
             SELECT product_id, stored_stock, available_stock, reserved_stock
             FROM json_each(?) AS batch CROSS JOIN inventories ON product_id = batch.value",
        )
        .bind(products)
        .fetch_all(self.connection()?)
        .await?;
        rows.into_iter()
            .map(|(id, stored, available, reserved)| {
                Ok((product_id(id)?, Inventory::from_columns(stored, available, reserved)?))
            })
            .collect()
    }

    async fn orders_on_record(&mut self, ids: String) -> Result<Vec<Order>, StoreError> {
        let rows: Vec<OrderRow> = sqlx::query_as(
            "SELECT orders.* FROM json_each(?) AS batch CROSS JOIN orders ON orders.id = unhex(batch.value)",
        )
        .bind(ids)
        .fetch_all(self.connection()?)
        .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn orders_of_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, Order)>, StoreError> {
        let rows: Vec<KeyedRow> =
            sqlx::query_as(ORDERS_OF_KEYS).bind(keys).fetch_all(self.connection()?).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn commit(mut self, changes: Changes) -> Result<(), CommitError> {
        let Changes { reservations, rejections, keys, statuses, aliases, stock } = changes;
        let writes = [
            (reservations, INSERT_RESERVATIONS),
            (rejections, INSERT_REJECTIONS),
            (keys, INSERT_KEYS),
            (statuses, SET_STATUSES),
            (aliases, INSERT_ALIASES),
            (stock, MOVE_STOCK),
        ];
        let (mut statements, mut lists) = (String::new(), Vec::new());
        for (list, statement) in writes {
            if let Some(list) = list {
                statements.push_str(statement);
                lists.push(list);
            }
        }
        statements.push_str("COMMIT");
        // Made of constants, and few: they stay prepared.
        let query = lists.into_iter().fold(sqlx::query(&statements), |query, list| query.bind(list));
        query.execute(self.connection()?).await?;
        self.0 = None;
        Ok(())
    }
}

// Materialized: else the whole list would be read for each of its orders.
const INSERT_RESERVATIONS: &str = "WITH alike AS MATERIALIZED (
         SELECT value ->> 0 AS product_id, value ->> 1 AS total, value ->> 2 AS expires_at, value -> 3 AS ids
         FROM json_each(?)
     )
     INSERT INTO orders (id, product_id, total, status, expires_at)
     SELECT unhex(id.value), product_id, total, 'reserved', expires_at
     FROM alike CROSS JOIN json_each(ids) AS id;";

const INSERT_REJECTIONS: &str = "INSERT INTO orders (id, product_id, total, status, rejected_available)
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2, 'rejected', value ->> 3 FROM json_each(?);";

const INSERT_KEYS: &str = "INSERT INTO idempotency_keys (idempotency_key, order_id)
     SELECT value ->> 0, unhex(value ->> 1) FROM json_each(?);";

const SET_STATUSES: &str = "UPDATE orders SET status = batch.value ->> 1
     FROM json_each(?) AS batch WHERE orders.id = unhex(batch.value ->> 0);";

const INSERT_ALIASES: &str = "INSERT INTO order_aliases (id, order_id)
     SELECT unhex(value ->> 0), unhex(value ->> 1) FROM json_each(?) WHERE true
     ON CONFLICT (id) DO NOTHING;";

const MOVE_STOCK: &str = "UPDATE inventories
     SET stored_stock    = stored_stock    + (batch.value ->> 1),
         available_stock = available_stock + (batch.value ->> 2),
         reserved_stock  = reserved_stock  + (batch.value ->> 3)
     FROM json_each(?) AS batch WHERE product_id = batch.value ->> 0;";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_without_end_is_interrupted_and_its_connection_lists_again() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("antre.db").display());
        let store = SqliteStore::open(&url).await.unwrap();
        let endless = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
            SELECT n FROM numbers WHERE n < 0";
        let began = Instant::now();
        let mut connection = store.listing().await.unwrap();
        let error = connection.execute(endless).await.unwrap_err();
        let (took, error) = (began.elapsed(), StoreError::from(error));
        assert!(error.is_transient(), "{error}");
        assert!(took >= lists::TIME_LIMIT && took < 2 * lists::TIME_LIMIT, "{took:?}");
        drop(connection);
        for _ in 0..=lists::AT_ONCE {
            assert_eq!(store.products(None, 10).await.unwrap(), Page::empty());
        }
    }
}
