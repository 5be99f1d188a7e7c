//! The store contract on MySQL 8.4 and later: any number of APIs and workers share it.
//!
//! READ COMMITTED: under REPEATABLE READ, a read after waiting for a lock could still see what stood there before
//! the wait. The batch's statements join from `JSON_TABLE` with `STRAIGHT_JOIN`, so that rows are looked up by
//! key in the order of the list, and only they are locked.

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, MySql, MySqlPool, QueryBuilder,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use super::{
    Decided, OrderPage, OrderRow, Store, StoreError, column, product, product_id,
    transaction::{self, Begin, InsertError, Transaction, json},
};
use crate::{
    batch::Inventories,
    inventory::{Inventory, Stock, StockBelowReserved},
    order::{NewOrder, Order, OrderId},
    product::{Product, ProductId, ProductName},
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/mysql");

/// Connections of one process: enough for a worker's batches and an API's reads.
const CONNECTIONS: u32 = 8;
/// How long a call waits for a connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// After this many seconds the server rolls back the transaction of a client that says nothing any more: a
/// process that was stopped or cut off in the middle of a batch must not keep its rows locked.
const SILENT_SECONDS: u32 = 15;
/// The pool gives up idle connections well before the server does.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement waits for a row that another transaction has locked.
const LOCK_WAIT_SECONDS: u32 = 5;

/// The store on a MySQL server.
#[derive(Clone, Debug)]
pub struct MySqlStore {
    pool: MySqlPool,
}

impl MySqlStore {
    /// Connects to the database of a `mysql://` URL, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, sqlx::Error> {
        let options = MySqlConnectOptions::from_str(url)?.disable_statement_logging();
        migrate(&options).await?;
        let limits = format!(
            "SET SESSION wait_timeout = {SILENT_SECONDS}, innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}"
        );
        let pool = MySqlPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(IDLE_TIMEOUT)
            .after_connect(move |connection, _| {
                let limits = AssertSqlSafe(limits.clone()); // made of constants
                Box::pin(async move {
                    connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                    connection.execute(limits).await?;
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        Ok(Self { pool })
    }
}

/// Applies the migrations on a connection of its own: one process does, others wait for it, however long that
/// takes, so none of the pool's time limits are right for it.
async fn migrate(options: &MySqlConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = sqlx::MySqlConnection::connect_with(options).await?;
    MIGRATIONS.run(&mut connection).await?;
    connection.close().await
}

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
        let name: Option<String> = sqlx::query_scalar("SELECT name FROM products WHERE id = ?")
            .bind(column(id))
            .fetch_optional(&self.pool)
            .await?;
        name.map(|name| product(column(id), name)).transpose()
    }

    async fn products(&self, after: Option<ProductId>, limit: u32) -> Result<Vec<Product>, StoreError> {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT id, name FROM products WHERE id > ? ORDER BY id LIMIT ?")
                .bind(after.map_or(0, column))
                .bind(limit)
                .fetch_all(&self.pool)
                .await?;
        rows.into_iter().map(|(id, name)| product(id, name)).collect()
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM products ORDER BY id").fetch_all(&self.pool).await?;
        ids.into_iter().map(product_id).collect()
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        let row: Option<(String, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT name, stored_stock, available_stock, reserved_stock, version
             FROM products JOIN inventories ON product_id = id WHERE id = ?",
        )
        .bind(column(id))
        .fetch_optional(&self.pool)
        .await?;
        let Some((name, stored, available, reserved, version)) = row else { return Ok(None) };
        let inventory = Inventory::from_columns(stored, available, reserved, version)?;
        Ok(Some((product(column(id), name)?, inventory)))
    }

    async fn recount(
        &self,
        id: ProductId,
        stock: Stock,
    ) -> Result<Option<Result<(Product, Inventory), StockBelowReserved>>, StoreError> {
        let mut transaction = self.begin().await?;
        let Some(before) = transaction.lock_inventories(json(&[id])).await?.remove(&id) else {
            return Ok(None);
        };
        let mut counted = before;
        if let Err(below) = counted.recount(stock) {
            return Ok(Some(Err(below)));
        }
        let inventory = counted.committed(before);
        let mut transaction = transaction.0;
        sqlx::query(
            "UPDATE inventories SET stored_stock = ?, available_stock = ?, version = ? WHERE product_id = ?",
        )
        .bind(inventory.stored())
        .bind(inventory.available())
        .bind(inventory.version().cast_signed())
        .bind(column(id))
        .execute(&mut *transaction)
        .await?;
        let name: String = sqlx::query_scalar("SELECT name FROM products WHERE id = ?")
            .bind(column(id))
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(Ok((product(column(id), name)?, inventory))))
    }

    async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        let row: Option<OrderRow> = sqlx::query_as("SELECT * FROM orders WHERE id = ?")
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await?;
        row.map(Order::try_from).transpose()
    }

    async fn orders(&self, page: OrderPage) -> Result<Vec<Order>, StoreError> {
        let mut query = QueryBuilder::new("SELECT * FROM orders WHERE id > ");
        query.push_bind(page.after.map_or(uuid::Uuid::nil(), OrderId::uuid));
        if let Some(id) = page.product_id {
            query.push(" AND product_id = ").push_bind(column(id));
        }
        if let Some(status) = page.status {
            query.push(" AND status = ").push_bind(status.as_str());
        }
        query.push(" ORDER BY id LIMIT ").push_bind(page.limit);
        let rows: Vec<OrderRow> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn decide(&self, orders: &[NewOrder], reservation_ttl: Duration) -> Result<Decided, StoreError> {
        transaction::decide(self, orders, reservation_ttl).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

impl Begin for MySqlStore {
    type Transaction = MySqlTransaction;

    async fn begin(&self) -> Result<MySqlTransaction, StoreError> {
        Ok(MySqlTransaction(self.pool.begin().await?))
    }
}

pub(super) struct MySqlTransaction(sqlx::Transaction<'static, MySql>);

impl Transaction for MySqlTransaction {
    async fn lock_inventories(&mut self, products: String) -> Result<Inventories, StoreError> {
        let rows: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT product_id, stored_stock, available_stock, reserved_stock, version
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN inventories ON product_id = batch.id FOR UPDATE OF inventories",
        )
        .bind(products)
        .fetch_all(&mut *self.0)
        .await?;
        rows.into_iter()
            .map(|(id, stored, available, reserved, version)| {
                Ok((product_id(id)?, Inventory::from_columns(stored, available, reserved, version)?))
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
        .fetch_all(&mut *self.0)
        .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    async fn insert_orders(&mut self, rows: String) -> Result<(), InsertError> {
        sqlx::query(
            "INSERT INTO orders (id, product_id, total, status, expires_at, rejected_available)
             SELECT UNHEX(id), product_id, total, status, expires_at, rejected_available
             FROM JSON_TABLE(?, '$[*]' COLUMNS (
                 id CHAR(32) PATH '$[0]', product_id BIGINT PATH '$[1]', total INT PATH '$[2]',
                 status VARCHAR(10) PATH '$[3]', expires_at BIGINT PATH '$[4]', rejected_available INT PATH '$[5]'
             )) AS batch",
        )
        .bind(rows)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    async fn move_stock(&mut self, differences: String) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
                 id BIGINT PATH '$[0]', more_stored BIGINT PATH '$[1]',
                 more_available BIGINT PATH '$[2]', more_reserved BIGINT PATH '$[3]'
             )) AS batch
             STRAIGHT_JOIN inventories ON product_id = batch.id
             SET stored_stock    = stored_stock    + more_stored,
                 available_stock = available_stock + more_available,
                 reserved_stock  = reserved_stock  + more_reserved,
                 version         = version + 1",
        )
        .bind(differences)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    async fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit().await?)
    }
}
