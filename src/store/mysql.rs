//! The store contract on MySQL 8.4 and later: any number of APIs and workers share it.
//!
//! READ COMMITTED: under REPEATABLE READ, a read after waiting for a lock can still see the rows as they were
//! before the wait. The batch's statements join from `JSON_TABLE` with `STRAIGHT_JOIN`, so that rows are looked up by
//! key in the order of the list, and only they are locked. Statements that lock rows name the index as well: a table of a few
//! rows would otherwise be scanned, and a scan waits for rows that another transaction has locked.

mod batch;
mod buyers;
mod connections;
mod ledger;
mod retention;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{Connection, MySqlConnection};
use uuid::Uuid;

use self::connections::{ConnectionPool, Generation};
use super::{
    error::StoreError,
    json::json,
    lane_sets,
    lists::{
        self, ListPermits, OrdersById, page_of_due, page_of_inventories, page_of_orders, page_of_products,
    },
    migrations::{self, Schema},
    mysql_url::connect_options,
    observed::{Observed, Observer},
    observer::TransactionObserver,
    open_error::OpenError,
    page::{Due, OrderPage, Page},
    pool_use::PoolUse,
    ports::{
        Archival, Catalog, Creation, Decider, GivenUp, Health, Installation, Orders, ProductLane, Store,
        Update, given_up_too_late,
    },
    rows::{FoundRow, KeyedRow, id_column, installation_id, product_id, readable},
    seller,
    sqlx_error::is_duplicate,
    statements::{
        DETAILS, GIVE_UP, INSERT_INVENTORY, INSTALLATION_ID, INVENTORIES, INVENTORY, PRODUCT, PRODUCT_IDS,
        PRODUCTS, details_found, due, insert_opening, inventory_found, lanes_of_products, product_found,
        product_ids, product_lanes, product_states, products, update_product,
    },
    terms,
    transaction::{self, hex_ids},
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

/// Connections of one process for reads: enough for an API, because it joins the reads of many requests.
const READERS: u32 = 8;
/// Connections of one process for transactions.
const WRITERS: u32 = 8;
/// How long a read may take in total.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// How long a transaction may take in total: long enough for a slow disk, so that a batch does not begin again and again.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// The store on a MySQL server.
#[derive(Clone, Debug)]
pub struct MySqlStore {
    reads: ConnectionPool,
    /// Only for lists.
    lists: ConnectionPool,
    list_permits: ListPermits,
    /// With `autocommit = 0`: the first statement begins a transaction, so that no `BEGIN` is needed.
    writes: ConnectionPool,
    /// Only for readiness.
    health: ConnectionPool,
    observer: Observer,
}

impl MySqlStore {
    /// Who has the SKU, if a statement failed because somebody has it.
    async fn sku_taken(&self, sku: Option<Sku>, error: sqlx::Error) -> Result<ProductId, StoreError> {
        let Some(sku) = sku.filter(|_| is_duplicate(&error)) else { return Err(error.into()) };
        let taken = self.products_by_sku(&[sku]).await?;
        taken.first().map(|product| product.id).ok_or_else(|| error.into())
    }

    async fn update_once(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError> {
        let mut connection = self.writes.acquire().await?;
        let sku = change.sku.clone().flatten();
        if let Some(mut update) = update_product(id, change)
            && let Err(error) = connection.execute(update.build()).await
        {
            drop(connection);
            let taken = self.sku_taken(sku, error).await?;
            return Ok(Update::SkuTaken(taken));
        }
        let rows = connection.fetch_all(sqlx::query_as(PRODUCT).bind(id_column(id))).await?;
        connection.commit("COMMIT").await?;
        Ok(product_found(rows)?.map_or(Update::NoSuchProduct, Update::Done))
    }

    /// Connects to the database of a `mysql://` URL, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let options = connect_options(url)?;
        // On a connection without the time limits of the pools.
        let mut connection = MySqlConnection::connect_with(&options).await?;
        migrations::bring_up_to_date(&migrations::MYSQL, &mut connection).await?;
        connection.close().await?;
        let generation = Generation::default();
        let pool = |settings: &str, count, limit| {
            ConnectionPool::new(&options, settings, count, limit, &generation)
                .map_err(|error| sqlx::Error::Configuration(error.into()))
        };
        // The server ends a read whose client has given up.
        let of_reads = format!("autocommit = 1, max_execution_time = {}", READ_LIMIT.as_millis());
        let of_lists = format!("autocommit = 1, max_execution_time = {}", lists::TIME_LIMIT.as_millis());
        Ok(Self {
            reads: pool(&of_reads, READERS, READ_LIMIT)?,
            lists: pool(&of_lists, lists::CONCURRENT_LISTS, READ_LIMIT)?,
            list_permits: ListPermits::default(),
            writes: pool("autocommit = 0", WRITERS, WRITE_LIMIT)?,
            health: pool("autocommit = 0", 1, READ_LIMIT)?,
            observer: Observer::default(),
        })
    }

    /// Somebody learns how long the parts of its transactions take.
    pub fn observed_by(self, observer: Arc<dyn TransactionObserver>) -> Self {
        Self { observer: Observer::new(observer), ..self }
    }

    /// The use of its connections now.
    pub fn pool_use(&self) -> [PoolUse; 4] {
        [
            self.reads.in_use("reads"),
            self.lists.in_use("lists"),
            self.writes.in_use("writes"),
            self.health.in_use("health"),
        ]
    }

    /// What tables the database of a `mysql://` URL has. Changes nothing.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        let mut connection = MySqlConnection::connect_with(&connect_options(url)?).await?;
        let schema = Schema::read(&migrations::MYSQL, &mut connection).await?;
        connection.close().await?;
        Ok(schema)
    }
}

const BY_ID: OrdersById = OrdersById {
    all: "orders FORCE INDEX (PRIMARY)",
    of_product: "orders FORCE INDEX (orders_of_product)",
    of_other_lines: "basket_lines FORCE INDEX (PRIMARY) STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = order_id",
    of_buyer: "orders_of_buyers FORCE INDEX (PRIMARY) STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = order_id",
};

/// The stored orders of a list of idempotency keys.
const ORDERS_OF_KEYS: &str = "SELECT idempotency_key, orders.*
    FROM JSON_TABLE(?, '$[*]' COLUMNS (idempotency_key VARCHAR(255) COLLATE ascii_bin PATH '$')) AS batch
    STRAIGHT_JOIN idempotency_keys USING (idempotency_key)
    STRAIGHT_JOIN orders ON orders.id = order_id";

#[async_trait]
impl Catalog for MySqlStore {
    async fn create(&self, NewProduct { name, sku, stock }: NewProduct) -> Result<Creation, StoreError> {
        let mut connection = self.writes.acquire().await?;
        let insert = sqlx::query("INSERT INTO products (name, sku) VALUES (?, ?)")
            .bind(name.as_str())
            .bind(sku.as_ref().map(Sku::as_str));
        let id = match connection.execute(insert).await {
            Ok(inserted) => inserted.last_insert_id(),
            Err(error) => {
                drop(connection);
                return Ok(Creation::SkuTaken(self.sku_taken(sku, error).await?));
            }
        };
        connection
            .execute(sqlx::query(INSERT_INVENTORY).bind(id).bind(stock.get()).bind(stock.get()))
            .await?;
        if stock != Stock::ZERO {
            let opening = sqlx::query(INSERT_OPENING).bind(id).bind(stock.get()).bind(stock.get());
            connection.execute(opening).await?;
        }
        connection.commit("COMMIT").await?;
        Ok(Creation::Done(Product { id: product_id(id.cast_signed())?, name, sku, archived_at: None }))
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        product_found(self.reads.fetch_all(sqlx::query_as(PRODUCT).bind(id_column(id))).await?)
    }

    async fn update(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError> {
        seller::again_if_locked(|| async { Ok(self.update_once(id, change.clone()).await?) }).await
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
        Ok(page_of_products(self.lists.fetch_all(query).await?, limit))
    }

    async fn products_by_sku(&self, skus: &[Sku]) -> Result<Vec<Product>, StoreError> {
        let query = sqlx::query_as(
            "SELECT products.id, products.name, products.sku, archived_at
             FROM JSON_TABLE(?, '$[*]' COLUMNS (sku VARCHAR(64) COLLATE ascii_bin PATH '$')) AS batch
             STRAIGHT_JOIN products USING (sku)
             LEFT JOIN inventories ON product_id = products.id",
        );
        products(self.reads.fetch_all(query.bind(json(&skus))).await?)
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        let rows: Vec<(i64,)> = self.reads.fetch_all(sqlx::query_as(PRODUCT_IDS)).await?;
        Ok(readable(rows.into_iter().map(|(id,)| product_id(id))))
    }

    async fn product_lanes(&self) -> Result<Vec<ProductLane>, StoreError> {
        Ok(lanes_of_products(self.reads.fetch_all(sqlx::query_as(PRODUCT_LANES)).await?))
    }

    async fn states(&self, ids: &[ProductId]) -> Result<HashMap<ProductId, ProductState>, StoreError> {
        let query = sqlx::query_as(
            "SELECT products.id, archived_at IS NOT NULL
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN products ON products.id = batch.id
             LEFT JOIN inventories ON product_id = products.id",
        );
        product_states(self.reads.fetch_all(query.bind(json(&ids))).await?)
    }

    async fn closed_to_orders(
        &self,
        ids: &[ProductId],
        opening_margin: Duration,
    ) -> Result<Vec<(ProductId, Rejection)>, StoreError> {
        let query = sqlx::query_as(CLOSED_TO_ORDERS);
        terms::closed_to_orders(self.reads.fetch_all(query.bind(json(&ids))).await?, opening_margin)
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        inventory_found(self.reads.fetch_all(sqlx::query_as(INVENTORY).bind(id_column(id))).await?)
    }

    async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
        details_found(self.reads.fetch_all(sqlx::query_as(DETAILS).bind(id_column(id))).await?)
    }

    async fn inventories(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<(Product, Option<Inventory>), ProductId>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let query = sqlx::query_as(INVENTORIES).bind(after.map_or(0, id_column)).bind(i64::from(limit) + 1);
        Ok(page_of_inventories(self.lists.fetch_all(query).await?, limit))
    }

    async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError> {
        terms::found(self.reads.fetch_all(sqlx::query_as(terms::TERMS).bind(id_column(id))).await?)
    }

    async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
        seller::set_terms(self, id, terms).await
    }
}

#[async_trait]
impl Orders for MySqlStore {
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
        let query = sqlx::query_as(
            "SELECT batch.id AS asked, orders.*
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
             LEFT JOIN order_aliases ON order_aliases.id = UNHEX(batch.id)
             STRAIGHT_JOIN orders ON orders.id = COALESCE(order_aliases.order_id, UNHEX(batch.id))",
        );
        let rows: Vec<FoundRow> = self.reads.fetch_all(query.bind(hex_ids(ids.iter().copied()))).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        let rows: Vec<KeyedRow> =
            self.reads.fetch_all(sqlx::query_as(ORDERS_OF_KEYS).bind(json(&keys))).await?;
        rows.into_iter().map(TryFrom::try_from).collect()
    }

    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let mut connection = self.lists.acquire().await?;
        let last_examined: Vec<(Uuid,)> = match BY_ID.last_examined(&page) {
            Some(mut last_examined) => connection.fetch_all(last_examined.build_query_as()).await?,
            None => Vec::new(),
        };
        let last_examined = last_examined.first().map(|(id,)| *id);
        let rows = connection.fetch_all(BY_ID.orders(&page, last_examined).build_query_as()).await?;
        Ok(page_of_orders(rows, page.limit, last_examined))
    }

    async fn give_up(&self, id: OrderId) -> Result<GivenUp, StoreError> {
        let end = Order::given_up(id).expires_at().map(Timestamp::as_millisecond);
        let mut connection = self.writes.acquire().await?;
        match connection.execute(sqlx::query(GIVE_UP).bind(id.uuid()).bind(end)).await {
            Ok(_) => Ok(GivenUp::Done(connection.commit("COMMIT").await.map(|()| Order::given_up(id))?)),
            Err(error) if is_duplicate(&error) => {
                drop(connection);
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
        Ok(page_of_due(self.reads.fetch_all(query).await?, limit))
    }
}

#[async_trait]
impl Decider for MySqlStore {
    async fn decide(&self, commands: &[Command], rules: Rules) -> Result<BatchResult, StoreError> {
        let observed = Observed { store: self, observer: &self.observer };
        transaction::decide(&observed, commands, rules).await
    }

    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        let query = sqlx::query_as(
            "SELECT product_id
             FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
             STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON product_id = batch.id FOR UPDATE OF inventories SKIP LOCKED",
        );
        let mut connection = self.writes.acquire().await?;
        let rows = connection.fetch_all(query.bind(json(&ids))).await?;
        connection.commit("ROLLBACK").await?;
        product_ids(rows)
    }
}

#[async_trait]
impl Installation for MySqlStore {
    async fn installation_id(&self) -> Result<Uuid, StoreError> {
        let rows: Vec<(Uuid,)> = self.reads.fetch_all(sqlx::query_as(INSTALLATION_ID)).await?;
        installation_id(rows.first().map(|(id,)| *id))
    }

    async fn use_lanes(&self, lanes: &LaneSet) -> Result<(), StoreError> {
        Ok(self.reads.acquire().await?.execute(lane_sets::put(lanes)).await.map(drop)?)
    }

    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError> {
        let rows = self.reads.fetch_all(sqlx::query_as(lane_sets::IN_USE)).await?;
        Ok(rows.into_iter().filter_map(lane_sets::lane_set).collect())
    }
}

#[async_trait]
impl Health for MySqlStore {
    async fn ping(&self) -> Result<(), StoreError> {
        // Changes nothing, and is refused by a server that is read-only.
        let mut connection = self.health.acquire().await?;
        connection.execute(sqlx::query("UPDATE installation SET only_row = 1 WHERE only_row = 1")).await?;
        Ok(connection.commit("ROLLBACK").await?)
    }
}

#[async_trait]
impl Store for MySqlStore {
    async fn close(&self) {
        for pool in [&self.writes, &self.lists, &self.health, &self.reads] {
            pool.close();
        }
    }
}

/// The database's clock, in Unix milliseconds, whatever the time zone of the session.
macro_rules! now_ms {
    () => {
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000"
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
    " FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
     STRAIGHT_JOIN inventories ON product_id = batch.id
     WHERE archived_at IS NULL"
);
