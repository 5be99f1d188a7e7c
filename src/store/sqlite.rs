//! The store contract on an SQLite file: the embedded mode.
//!
//! One connection writes, a few read; write-ahead log, so that readers never wait for the writer;
//! `synchronous=FULL`, so that a commit is on the disk before anybody learns of it.

mod batch;
mod buyers;
mod ledger;
mod products;
mod retention;

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
    ConnectOptions, Connection, Execute, FromRow, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    query::QueryAs,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};
use tokio::{
    sync::Mutex,
    time::{self, timeout_at},
};
use uuid::Uuid;

use super::{
    error::StoreError,
    json::json,
    lists::{
        self, ListPermits, OrdersById, page_of_due, page_of_inventories, page_of_orders, page_of_products,
    },
    migrations::{self, Schema},
    observed::{Observed, Observer},
    observer::TransactionObserver,
    open_error::OpenError,
    page::{Due, OrderPage, Page},
    pool_use::PoolUse,
    ports::{
        Archival, Catalog, Creation, Decider, GivenUp, Health, Installation, Orders, ProductLane, Store,
        Update, given_up_too_late,
    },
    rows::{FoundRow, InventoryRow, KeyedRow, OrderRow, id_column, installation_id, product_id, readable},
    seller,
    slow_query::timed,
    sqlx_error::is_duplicate,
    statements::{
        DETAILS, GIVE_UP, INSERT_INVENTORY, INSTALLATION_ID, INVENTORIES, INVENTORY, PRODUCT, PRODUCT_IDS,
        PRODUCTS, details_found, due, insert_opening, inventory_found, lanes_of_products, product_found,
        product_lanes, product_states, products,
    },
    terms,
    transaction::{self, Begin, Transaction, hex_ids},
};
use crate::domain::{
    command::Command,
    decide::BatchResult,
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{Inventory, Stock},
    lane_set::LaneSet,
    order::Order,
    product::{NewProduct, Product, ProductChange, ProductState},
    rejection::Rejection,
    rules::Rules,
    sku::Sku,
    terms::Terms,
};

/// Connections that only read.
const READERS: u32 = 2;
/// How long a writer waits for another process that has the file open.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read may take in total.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// How long a transaction may take in total, the wait for the writing connection included.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// The store on an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    /// Not in a pool, which would ping it before and after each transaction. `None` once it is closed.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    reads: SqlitePool,
    /// Only for lists.
    lists: SqlitePool,
    list_permits: ListPermits,
    observer: Observer,
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
        let reads = reading(READERS).connect_with(options.clone()).await?;
        let lists = reading(lists::CONCURRENT_LISTS).connect_lazy_with(options);
        let writer = Arc::new(Mutex::new(Some(writer)));
        Ok(Self { writer, reads, lists, list_permits: ListPermits::default(), observer: Observer::default() })
    }

    /// Somebody learns how long the parts of its transactions take.
    pub fn observed_by(self, observer: Arc<dyn TransactionObserver>) -> Self {
        Self { observer: Observer::new(observer), ..self }
    }

    /// The use of its connections for reads now. How many calls wait for one is not known.
    pub fn pool_use(&self) -> [PoolUse; 2] {
        let pool = |name, pool: &SqlitePool, max: u32| {
            let (open, idle) = (pool.size() as usize, pool.num_idle());
            PoolUse { name, in_use: open.saturating_sub(idle), idle, max: max as usize, waiting: None }
        };
        [pool("reads", &self.reads, READERS), pool("lists", &self.lists, lists::CONCURRENT_LISTS)]
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

    async fn fetch_all<'a, T>(
        &'a self,
        query: QueryAs<'a, Sqlite, T, SqliteArguments<'a>>,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'row> FromRow<'row, SqliteRow> + Send + Unpin,
    {
        let (deadline, sql) = (time::Instant::now() + READ_LIMIT, query.sql());
        Ok(timed(sql, in_time(deadline, query.fetch_all(&self.reads))).await?)
    }

    /// A connection for a list. Its statements are interrupted at the time limit of the list.
    async fn listing(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        /// Steps of SQLite's machine between two looks at the clock: well below a millisecond.
        const STEPS: i32 = 10_000;
        let mut connection = self.lists.acquire().await?;
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

const BY_ID: OrdersById = OrdersById {
    all: "orders NOT INDEXED",
    of_product: "orders INDEXED BY orders_of_product",
    of_other_lines: "basket_lines NOT INDEXED CROSS JOIN orders NOT INDEXED ON orders.id = order_id",
    of_buyer: "orders_of_buyers NOT INDEXED CROSS JOIN orders NOT INDEXED ON orders.id = order_id",
};

/// The stored orders of a list of idempotency keys.
const ORDERS_OF_KEYS: &str = "SELECT idempotency_key, orders.* FROM json_each(?) AS batch
    CROSS JOIN idempotency_keys ON idempotency_key = batch.value
    CROSS JOIN orders ON orders.id = order_id";

/// The database's clock, in Unix milliseconds.
macro_rules! now_ms {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}
use now_ms;

const DUE: &str = due!(now_ms!());
const PRODUCT_LANES: &str = product_lanes!(now_ms!());
const INSERT_OPENING: &str = insert_opening!(now_ms!());

/// Rows for [`terms::closed_to_orders`].
const CLOSED_TO_ORDERS: &str = concat!(
    "SELECT product_id, available_stock, selling, opens_at, closes_at, ",
    now_ms!(),
    " FROM json_each(?) AS batch CROSS JOIN inventories ON product_id = batch.value
     WHERE archived_at IS NULL"
);

#[async_trait]
impl Catalog for SqliteStore {
    async fn create(&self, NewProduct { name, sku, stock }: NewProduct) -> Result<Creation, StoreError> {
        let mut transaction = self.begin().await?;
        // Without sqlx's transaction type: that does not notice when SQLite rolls back, for example on a full disk, and begins
        // no other transaction on that connection.
        let insert = "BEGIN IMMEDIATE;
            INSERT INTO products (name, sku) VALUES (?, ?) ON CONFLICT (sku) DO NOTHING RETURNING id";
        let insert = sqlx::query_as(insert).bind(name.as_str()).bind(sku.as_ref().map(Sku::as_str));
        let ids: Vec<(i64,)> = transaction.fetch_all(insert).await?;
        let Some((id,)) = ids.first().copied() else {
            drop(transaction);
            let taken = self.products_by_sku(sku.as_slice()).await?;
            let taken = taken.first().ok_or(sqlx::Error::RowNotFound)?;
            return Ok(Creation::SkuTaken(taken.id));
        };
        let insert = sqlx::query(INSERT_INVENTORY).bind(id).bind(stock.get()).bind(stock.get());
        transaction.execute(insert).await?;
        if stock != Stock::ZERO {
            let opening = sqlx::query(INSERT_OPENING).bind(id).bind(stock.get()).bind(stock.get());
            transaction.execute(opening).await?;
        }
        transaction.execute(sqlx::query("COMMIT")).await?;
        transaction.end();
        Ok(Creation::Done(Product { id: product_id(id)?, name, sku, archived_at: None }))
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        product_found(self.fetch_all(sqlx::query_as(PRODUCT).bind(id_column(id))).await?)
    }

    async fn update(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError> {
        self.update_product(id, change).await
    }

    async fn archive(&self, id: ProductId) -> Result<Archival, StoreError> {
        seller::archive(self, id).await
    }

    async fn products(
        &self,
        archived: bool,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let query = sqlx::query_as(PRODUCTS);
        let query = query.bind(after.map_or(0, id_column)).bind(archived).bind(i64::from(limit) + 1);
        let mut connection = self.listing().await?;
        let rows = timed(PRODUCTS, query.fetch_all(&mut *connection)).await?;
        Ok(page_of_products(rows, limit))
    }

    async fn products_by_sku(&self, skus: &[Sku]) -> Result<Vec<Product>, StoreError> {
        let query = sqlx::query_as(
            "SELECT products.id, name, sku, archived_at
             FROM json_each(?) AS batch CROSS JOIN products ON sku = batch.value
             LEFT JOIN inventories ON product_id = products.id",
        );
        products(self.fetch_all(query.bind(json(&skus))).await?)
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        let rows: Vec<(i64,)> = self.fetch_all(sqlx::query_as(PRODUCT_IDS)).await?;
        Ok(readable(rows.into_iter().map(|(id,)| product_id(id))))
    }

    async fn product_lanes(&self) -> Result<Vec<ProductLane>, StoreError> {
        Ok(lanes_of_products(self.fetch_all(sqlx::query_as(PRODUCT_LANES)).await?))
    }

    async fn states(&self, ids: &[ProductId]) -> Result<HashMap<ProductId, ProductState>, StoreError> {
        let query = sqlx::query_as(
            "SELECT products.id, archived_at IS NOT NULL
             FROM json_each(?) AS batch CROSS JOIN products ON products.id = batch.value
             LEFT JOIN inventories ON product_id = products.id",
        );
        product_states(self.fetch_all(query.bind(json(&ids))).await?)
    }

    async fn closed_to_orders(
        &self,
        ids: &[ProductId],
        opening_margin: Duration,
    ) -> Result<Vec<(ProductId, Rejection)>, StoreError> {
        let query = sqlx::query_as(CLOSED_TO_ORDERS);
        terms::closed_to_orders(self.fetch_all(query.bind(json(&ids))).await?, opening_margin)
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        inventory_found(self.fetch_all(sqlx::query_as(INVENTORY).bind(id_column(id))).await?)
    }

    async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
        details_found(self.fetch_all(sqlx::query_as(DETAILS).bind(id_column(id))).await?)
    }

    async fn inventories(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<(Product, Option<Inventory>), ProductId>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let rows: Vec<InventoryRow> = sqlx::query_as(INVENTORIES)
            .bind(after.map_or(0, id_column))
            .bind(i64::from(limit) + 1)
            .fetch_all(&mut *self.listing().await?)
            .await?;
        Ok(page_of_inventories(rows, limit))
    }

    async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError> {
        terms::found(self.fetch_all(sqlx::query_as(terms::TERMS).bind(id_column(id))).await?)
    }

    async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
        seller::set_terms(self, id, terms).await
    }
}

#[async_trait]
impl Orders for SqliteStore {
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
        let query = sqlx::query_as(
            "SELECT batch.value AS asked, orders.*
             FROM json_each(?) AS batch
             LEFT JOIN order_aliases ON order_aliases.id = unhex(batch.value)
             CROSS JOIN orders ON orders.id = COALESCE(order_aliases.order_id, unhex(batch.value))",
        );
        let rows: Vec<FoundRow> = self.fetch_all(query.bind(hex_ids(ids.iter().copied()))).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        let rows: Vec<KeyedRow> = self.fetch_all(sqlx::query_as(ORDERS_OF_KEYS).bind(json(&keys))).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let mut connection = self.listing().await?;
        let last_examined = match BY_ID.last_examined(&page) {
            Some(mut last_examined) => {
                let sql = last_examined.sql().to_owned();
                let query = last_examined.build_query_scalar();
                timed(&sql, query.fetch_optional(&mut *connection)).await?
            }
            None => None,
        };
        let mut orders = BY_ID.orders(&page, last_examined);
        let sql = orders.sql().to_owned();
        let rows: Vec<OrderRow> = timed(&sql, orders.build_query_as().fetch_all(&mut *connection)).await?;
        Ok(page_of_orders(rows, page.limit, last_examined))
    }

    async fn give_up(&self, id: OrderId) -> Result<GivenUp, StoreError> {
        let mut transaction = self.begin().await?;
        transaction.execute(sqlx::query("BEGIN IMMEDIATE")).await?;
        let end = Order::given_up(id).expires_at().map(Timestamp::as_millisecond);
        match transaction.execute(sqlx::query(GIVE_UP).bind(id.uuid()).bind(end)).await {
            Ok(()) => {
                transaction.execute(sqlx::query("COMMIT")).await?;
                transaction.end();
                Ok(GivenUp::Done(Order::given_up(id)))
            }
            Err(error) if is_duplicate(&error) => {
                drop(transaction);
                given_up_too_late(self, id).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn due(&self, after: Option<Due>, limit: u32) -> Result<Page<Order, Due>, StoreError> {
        let after = after.unwrap_or(Due { expires_at: i64::MIN, id: Uuid::nil().into() });
        let query = sqlx::query_as(DUE)
            .bind(after.expires_at)
            .bind(after.expires_at)
            .bind(after.id.uuid())
            .bind(i64::from(limit) + 1);
        Ok(page_of_due(self.fetch_all(query).await?, limit))
    }
}

#[async_trait]
impl Decider for SqliteStore {
    async fn decide(&self, commands: &[Command], rules: Rules) -> Result<BatchResult, StoreError> {
        let observed = Observed { store: self, observer: &self.observer };
        transaction::decide(&observed, commands, rules).await
    }

    /// One lock covers the whole file.
    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        Ok(ids.to_vec())
    }
}

#[async_trait]
impl Installation for SqliteStore {
    async fn installation_id(&self) -> Result<Uuid, StoreError> {
        let rows: Vec<(Uuid,)> = self.fetch_all(sqlx::query_as(INSTALLATION_ID)).await?;
        installation_id(rows.first().map(|(id,)| *id))
    }

    /// Stores nothing: lanes in memory are known to their own process only.
    async fn use_lanes(&self, _: &LaneSet) -> Result<(), StoreError> {
        Ok(())
    }

    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Health for SqliteStore {
    async fn ping(&self) -> Result<(), StoreError> {
        // Waits for its turn among the writers, so that many orders do not look like a failure.
        self.begin().await?.lock_inventories(json(&[(); 0])).await.map(drop)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn close(&self) {
        self.reads.close().await;
        self.lists.close().await;
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.close().await; // all that was answered is committed
        }
    }
}

/// The answer, unless it takes too long. What is given up runs to its end in the thread of its connection, which takes the
/// next statement only then.
async fn in_time<T>(
    deadline: time::Instant,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "the disk is slow, or another process writes");
    timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(sqlx::Error::Io(silent())))
}

#[cfg(test)]
mod tests;
