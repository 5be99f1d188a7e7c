//! The store contract on MySQL 8.4 and later: any number of APIs and workers share it.
//!
//! READ COMMITTED: under REPEATABLE READ, a read after waiting for a lock could still see what stood there before
//! the wait. The batch's statements join from `JSON_TABLE` with `STRAIGHT_JOIN`, so that rows are looked up by
//! key in the order of the list, and only they are locked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{
    Connection, Executor, MySql, MySqlConnection, MySqlPool, mysql::MySqlPoolOptions, pool::PoolConnection,
};
use uuid::Uuid;

use super::{
    Decided, FoundRow, INSTALLATION_ID, KeyedRow, OrderPage, OrderRow, Page, Store, StoreError, Text, column,
    installation_id,
    lists::{self, Turns, Walk, page_of_orders, page_of_products},
    migrations::{self, Schema},
    mysql_url::connect_options,
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

/// Connections of one process: enough for a worker's batches and an API's reads.
const CONNECTIONS: u32 = 8;
/// How long a call waits for a connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// After this many seconds the server rolls back the transaction of a client that says nothing any more: a
/// process that was stopped or cut off in the middle of a batch must not keep its rows locked.
const SILENT_SECONDS: u32 = 15;
/// A connection that was silent for longer than this is asked whether it still works before it is used.
const TRUSTED: Duration = Duration::from_secs(1);
/// The pool gives up idle connections well before the server does.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement waits for a row that another transaction has locked.
const LOCK_WAIT_SECONDS: u32 = 5;

/// The store on a MySQL server.
#[derive(Clone, Debug)]
pub struct MySqlStore {
    pool: MySqlPool,
    /// For lists alone.
    listing: MySqlPool,
    turns: Turns,
    deciding: Deciding,
}

/// Connections for transactions that lock inventories, with `autocommit = 0`: their first statement begins a
/// transaction, which spares a `BEGIN`.
///
/// A lone order waits for every round trip, and on a busy machine each one costs a batch some hundred microseconds.
/// The pool makes two of its own, asking a connection whether it works when it is taken and when it is given back. So
/// the connection of the last transaction is kept outside of it.
#[derive(Clone, Debug)]
struct Deciding {
    pool: MySqlPool,
    kept: Arc<Mutex<Option<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    connection: PoolConnection<MySql>,
    since: Instant,
}

impl MySqlStore {
    /// Connects to the database of a `mysql://` URL, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let options = connect_options(url)?;
        // On a connection of its own: none of the pool's time limits are right for it.
        let mut connection = MySqlConnection::connect_with(&options).await?;
        migrations::bring_up_to_date(&migrations::MYSQL, &mut connection).await?;
        connection.close().await?;
        let reading = connections("autocommit = 1").connect_with(options.clone()).await?;
        let deciding = connections("autocommit = 0")
            // Whatever was not committed. A connection that is gone (the server ends silent ones) needs no warning.
            .after_release(|connection, _| {
                Box::pin(async move { Ok(connection.execute("ROLLBACK").await.is_ok()) })
            })
            .connect_lazy_with(options.clone());
        let listing =
            connections(&format!("autocommit = 1, max_execution_time = {}", lists::TIME_LIMIT.as_millis()))
                .max_connections(lists::AT_ONCE)
                .connect_lazy_with(options);
        Ok(Self {
            pool: reading,
            listing,
            turns: Turns::default(),
            deciding: Deciding { pool: deciding, kept: Arc::default() },
        })
    }

    /// What tables the database of a `mysql://` URL has. Changes nothing.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        let mut connection = MySqlConnection::connect_with(&connect_options(url)?).await?;
        let schema = Schema::read(&migrations::MYSQL, &mut connection).await?;
        connection.close().await?;
        Ok(schema)
    }
}

/// Connections whose sessions have these settings besides those that all have.
fn connections(settings: &str) -> MySqlPoolOptions {
    let limits = format!(
        "SET SESSION wait_timeout = {SILENT_SECONDS}, innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}, \
         {settings}"
    );
    MySqlPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .after_connect(move |connection, _| {
            let limits = limits.clone();
            Box::pin(async move {
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                connection.execute(limits.as_str()).await?;
                Ok(())
            })
        })
}

const BY_ID: Walk =
    Walk { all: "orders FORCE INDEX (PRIMARY)", of_product: "orders FORCE INDEX (orders_of_product)" };

/// The orders on record of a list of idempotency keys.
const ORDERS_OF_KEYS: &str = "SELECT idempotency_key, orders.*
    FROM JSON_TABLE(?, '$[*]' COLUMNS (idempotency_key VARCHAR(255) COLLATE ascii_bin PATH '$')) AS batch
    STRAIGHT_JOIN idempotency_keys USING (idempotency_key)
    STRAIGHT_JOIN orders ON orders.id = order_id";

#[async_trait]
impl Store for MySqlStore {
    async fn create_product(&self, name: ProductName) -> Result<Product, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let id = sqlx::query("INSERT INTO products (name) VALUES (?)")
            .bind(name.as_str())
            .execute(&mut *transaction)
            .await?
            .last_insert_id();
        sqlx::query("INSERT INTO inventories (product_id) VALUES (?)")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Product { id: product_id(id.cast_signed())?, name })
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        let name: Option<Text> = sqlx::query_scalar("SELECT name FROM products WHERE id = ?")
            .bind(column(id))
            .fetch_optional(&self.pool)
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
                .fetch_all(&self.listing)
                .await?;
        let products = rows.into_iter().map(|(id, name)| product(id, name)).collect::<Result<_, _>>()?;
        Ok(page_of_products(products, limit))
    }

    async fn existing(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT products.id
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN products ON products.id = batch.id",
        )
        .bind(json(&ids))
        .fetch_all(&self.pool)
        .await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn sold_out(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT product_id
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN inventories ON product_id = batch.id
             WHERE available_stock = 0",
        )
        .bind(json(&ids))
        .fetch_all(&self.pool)
        .await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM products ORDER BY id").fetch_all(&self.pool).await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        let row: Option<(Text, i64, i64, i64)> = sqlx::query_as(
            "SELECT name, stored_stock, available_stock, reserved_stock
             FROM products JOIN inventories ON product_id = id WHERE id = ?",
        )
        .bind(column(id))
        .fetch_optional(&self.pool)
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
            "SELECT batch.id AS asked, orders.*
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
             LEFT JOIN order_aliases ON order_aliases.id = UNHEX(batch.id)
             STRAIGHT_JOIN orders ON orders.id = COALESCE(order_aliases.order_id, UNHEX(batch.id))",
        )
        .bind(hex(ids.iter().copied()))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        let rows: Vec<KeyedRow> =
            sqlx::query_as(ORDERS_OF_KEYS).bind(json(&keys)).fetch_all(&self.pool).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn due(&self, at: Timestamp, limit: u32) -> Result<Vec<Order>, StoreError> {
        let rows: Vec<OrderRow> = sqlx::query_as(
            "SELECT * FROM orders WHERE status = 'reserved' AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        )
        .bind(at.as_millisecond())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        let _turn = self.turns.take().await?;
        let mut connection = self.listing.acquire().await?;
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
        installation_id(sqlx::query_scalar(INSTALLATION_ID).fetch_optional(&self.pool).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn close(&self) {
        drop(self.deciding.kept());
        self.deciding.pool.close().await;
        self.listing.close().await;
        self.pool.close().await;
    }
}

impl Begin for MySqlStore {
    type Transaction = MySqlTransaction;

    async fn begin(&self) -> Result<MySqlTransaction, StoreError> {
        let connection = match self.deciding.kept() {
            Some(kept) if kept.since.elapsed() < TRUSTED => kept.connection,
            _ => self.deciding.pool.acquire().await?,
        };
        Ok(MySqlTransaction { connection, deciding: self.deciding.clone() })
    }
}

impl Deciding {
    fn kept(&self) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// One, not more: who waits for a connection waits at the pool.
    fn keep(&self, connection: PoolConnection<MySql>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert(Kept { connection, since: Instant::now() });
    }
}

/// Begins with its first statement. Dropping it gives its connection back to the pool, which rolls back.
pub(super) struct MySqlTransaction {
    connection: PoolConnection<MySql>,
    deciding: Deciding,
}

impl Transaction for MySqlTransaction {
    async fn lock_inventories(&mut self, products: String) -> Result<Inventories, StoreError> {
        let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT product_id, stored_stock, available_stock, reserved_stock
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN inventories ON product_id = batch.id FOR UPDATE OF inventories",
        )
        .bind(products)
        .fetch_all(&mut *self.connection)
        .await?;
        rows.into_iter()
            .map(|(id, stored, available, reserved)| {
                Ok((product_id(id)?, Inventory::from_columns(stored, available, reserved)?))
            })
            .collect()
    }

    async fn orders_on_record(&mut self, ids: String) -> Result<Vec<Order>, StoreError> {
        let rows: Vec<OrderRow> = sqlx::query_as(
            "SELECT orders.*
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
             STRAIGHT_JOIN orders ON orders.id = UNHEX(batch.id)",
        )
        .bind(ids)
        .fetch_all(&mut *self.connection)
        .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn orders_of_keys(&mut self, keys: String) -> Result<Vec<(IdempotencyKey, Order)>, StoreError> {
        let rows: Vec<KeyedRow> =
            sqlx::query_as(ORDERS_OF_KEYS).bind(keys).fetch_all(&mut *self.connection).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn commit(mut self, changes: Changes) -> Result<(), CommitError> {
        let Changes { reservations, rejections, keys, statuses, aliases, stock } = changes;
        for (rows, statement) in [
            (reservations, INSERT_RESERVATIONS),
            (rejections, INSERT_REJECTIONS),
            (keys, INSERT_KEYS),
            (statuses, SET_STATUSES),
            (aliases, INSERT_ALIASES),
        ] {
            if let Some(rows) = rows {
                sqlx::query(statement).bind(rows).execute(&mut *self.connection).await?;
            }
        }
        // Text, because prepared statements travel alone; numbers need no quoting. If the first of the two fails, the
        // commit is not run.
        let move_stock = stock.map_or(String::new(), |differences| {
            format!(
                "UPDATE JSON_TABLE('{differences}', '$[*]' COLUMNS (
                     id BIGINT PATH '$[0]', more_stored BIGINT PATH '$[1]',
                     more_available BIGINT PATH '$[2]', more_reserved BIGINT PATH '$[3]'
                 )) AS batch
                 STRAIGHT_JOIN inventories ON product_id = batch.id
                 SET stored_stock    = stored_stock    + more_stored,
                     available_stock = available_stock + more_available,
                     reserved_stock  = reserved_stock  + more_reserved;"
            )
        });
        let statements = move_stock + "COMMIT";
        self.connection.execute(sqlx::raw_sql(&statements)).await?;
        self.deciding.keep(self.connection);
        Ok(())
    }
}

const INSERT_RESERVATIONS: &str = "INSERT INTO orders (id, product_id, total, status, expires_at)
     SELECT UNHEX(id), product_id, total, 'reserved', expires_at
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', total INT PATH '$[1]', expires_at BIGINT PATH '$[2]',
         NESTED PATH '$[3][*]' COLUMNS (id CHAR(32) PATH '$')
     )) AS batch";

const INSERT_REJECTIONS: &str = "INSERT INTO orders (id, product_id, total, status, rejected_available)
     SELECT UNHEX(id), product_id, total, 'rejected', rejected_available
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', product_id BIGINT PATH '$[1]', total INT PATH '$[2]',
         rejected_available INT PATH '$[3]'
     )) AS batch";

const INSERT_KEYS: &str = "INSERT INTO idempotency_keys (idempotency_key, order_id)
     SELECT idempotency_key, UNHEX(order_id)
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         idempotency_key VARCHAR(255) PATH '$[0]', order_id CHAR(32) PATH '$[1]'
     )) AS batch";

const SET_STATUSES: &str = "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
         id CHAR(32) PATH '$[0]', new_status VARCHAR(10) PATH '$[1]'
     )) AS batch
     STRAIGHT_JOIN orders ON orders.id = UNHEX(batch.id)
     SET status = new_status";

const INSERT_ALIASES: &str = "INSERT INTO order_aliases (id, order_id)
     SELECT UNHEX(batch.id), UNHEX(batch.order_id)
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$[0]', order_id CHAR(32) PATH '$[1]')) AS batch
     ON DUPLICATE KEY UPDATE order_aliases.order_id = order_aliases.order_id";
