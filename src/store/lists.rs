//! Lists have bounded work, whatever their filter: a page examines at most [`MAX_EXAMINED`] rows in the order of ids, and
//! says where the next one begins. An index for each filter would be paid by every order: an index more is a tenth of
//! what it costs to insert a row.
//!
//! Lists have their own connections, [`CONCURRENT_LISTS`] in each process, so that they delay nothing else.

use std::{sync::Arc, time::Duration};

use sqlx::{Database, Encode, QueryBuilder, Type};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use super::{
    error::StoreError,
    page::{Direction, Due, OrderPage, Page},
    rows::{InventoryRow, OrderRow, ProductRow, id_column, product_id, readable},
};
use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::Inventory,
    names::Buyer,
    order::Order,
    product::Product,
};

/// Lists that one process reads at a time, and its connections for them.
pub(super) const CONCURRENT_LISTS: u32 = 2;
/// Rows that one page examines at most, whatever its filter.
pub(super) const MAX_EXAMINED: i64 = 5_000;
/// How long the database works on one page at most; shorter than its client waits.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(2);
/// How long a list waits for its permit at most.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// A permit rests this many times as long as its list read.
const REST: u32 = 3;
/// How long a permit rests at most.
const MAX_REST: Duration = Duration::from_millis(500);

// Pages are cut before invalid rows are left out, so that these end no list.

pub(super) fn page_of_products(rows: Vec<ProductRow>, limit: u32) -> Page<Product, ProductId> {
    let Page { rows, next } = Page::cut(rows, limit, None, |row| row.id);
    let products = readable(rows.into_iter().map(Product::try_from));
    Page { rows: products, next: next.and_then(|id| product_id(id).ok()) }
}

pub(super) fn page_of_inventories(
    rows: Vec<InventoryRow>,
    limit: u32,
) -> Page<(Product, Option<Inventory>), ProductId> {
    let Page { rows, next } = Page::cut(rows, limit, None, |row| row.product.id);
    let inventories = rows
        .into_iter()
        .map(|InventoryRow { product, stock }| Ok((product.try_into()?, stock.try_into().ok())));
    Page { rows: readable(inventories), next: next.and_then(|id| product_id(id).ok()) }
}

pub(super) fn page_of_orders(
    rows: Vec<OrderRow>,
    limit: u32,
    last_examined: Option<Uuid>,
) -> Page<Order, OrderId> {
    let Page { rows, next } = Page::cut(rows, limit, last_examined, |row| row.id);
    Page { rows: readable(rows.into_iter().map(Order::try_from)), next: next.map(OrderId::from) }
}

pub(super) fn page_of_due(rows: Vec<OrderRow>, limit: u32) -> Page<Order, Due> {
    let due = |row: &OrderRow| Due { expires_at: row.expires_at.unwrap_or_default(), id: row.id.into() };
    let Page { rows, next } = Page::cut(rows, limit, None, due);
    Page { rows: readable(rows.into_iter().map(Order::try_from)), next }
}

/// The tables from which orders are listed, each with the index that it must use: without an index hint, the database sometimes
/// reads all orders of one status and sorts them.
pub(super) struct OrdersById {
    pub(super) all: &'static str,
    /// By the product of the first line.
    pub(super) of_product: &'static str,
    /// `basket_lines` with the orders that it leads to: by the products of the other lines.
    pub(super) of_other_lines: &'static str,
    /// `orders_of_buyers` with the orders that it leads to.
    pub(super) of_buyer: &'static str,
}

/// The part of one index in which a page finds orders, in the order of their ids.
struct Walk {
    /// With the orders that the index leads to.
    tables: &'static str,
    /// The column of the index that has the ids of orders.
    id: &'static str,
    /// Only the rows with this value: the column of the index.
    only: Option<(&'static str, Only)>,
}

/// The value of the first column of an index.
enum Only {
    Product(ProductId),
    Buyer(Buyer),
}

impl OrdersById {
    /// The walks that find all orders of a page, none of them twice. A filter that shortens no walk passes over orders: see
    /// [`passes_over_orders`] and [`OrdersById::orders`].
    fn walks(&self, page: &OrderPage) -> Vec<Walk> {
        if let Some(buyer) = page.buyer.clone() {
            let only = Some(("orders_of_buyers.buyer", Only::Buyer(buyer)));
            return vec![Walk { tables: self.of_buyer, id: "orders_of_buyers.order_id", only }];
        }
        let Some(id) = page.product_id else {
            return vec![Walk { tables: self.all, id: "orders.id", only: None }];
        };
        let walk = |tables, id_column, column| Walk {
            tables,
            id: id_column,
            only: Some((column, Only::Product(id))),
        };
        vec![
            walk(self.of_product, "orders.id", "orders.product_id"),
            walk(self.of_other_lines, "order_id", "basket_lines.product_id"),
        ]
    }

    /// Finds the last order that the page may examine, if its filters may pass over orders.
    pub(super) fn last_examined<DB>(&self, page: &OrderPage) -> Option<QueryBuilder<'static, DB>>
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
        String: Encode<'static, DB> + Type<DB>,
    {
        passes_over_orders(page).then(|| {
            let last = Part { skip: MAX_EXAMINED - 1, take: 1 };
            merged(&self.walks(page), page.direction, last, |query, walk| {
                walk.push_rows(query, &format!("{} AS id", walk.id), page);
            })
        })
    }

    /// Finds the orders of the page, and one more.
    pub(super) fn orders<DB>(
        &self,
        page: &OrderPage,
        last_examined: Option<Uuid>,
    ) -> QueryBuilder<'static, DB>
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
        String: Encode<'static, DB> + Type<DB>,
        &'static str: Encode<'static, DB> + Type<DB>,
    {
        let first = Part { skip: 0, take: i64::from(page.limit) + 1 };
        merged(&self.walks(page), page.direction, first, |query, walk| {
            walk.push_rows(query, "orders.*", page);
            if let Some(last_examined) = last_examined {
                let up_to = match page.direction {
                    Direction::OldestFirst => "<=",
                    Direction::NewestFirst => ">=",
                };
                query.push(format_args!(" AND {} {up_to} ", walk.id)).push_bind(last_examined);
            }
            if let (Some(id), Some(_)) = (page.product_id, &page.buyer) {
                query.push(" AND (orders.product_id = ").push_bind(id_column(id));
                query.push(" OR EXISTS (SELECT 1 FROM basket_lines WHERE basket_lines.product_id = ");
                query.push_bind(id_column(id));
                query.push(" AND basket_lines.order_id = orders.id))");
            }
            if let Some(status) = page.status {
                query.push(" AND status = ").push_bind(status.as_str());
            }
        })
    }
}

/// Whether the page may examine more orders than it lists.
fn passes_over_orders(page: &OrderPage) -> bool {
    page.status.is_some() || page.buyer.is_some() && page.product_id.is_some()
}

impl Walk {
    /// The rows behind the beginning of the page, up to the end of the list.
    fn push_rows<DB>(&self, query: &mut QueryBuilder<'static, DB>, columns: &str, page: &OrderPage)
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
        String: Encode<'static, DB> + Type<DB>,
    {
        let (greater_than, less_than) = page.bounds();
        let Self { tables, id, only } = self;
        query
            .push(format_args!("SELECT {columns} FROM {tables} WHERE {id} > "))
            .push_bind(greater_than.uuid());
        if let Some(less_than) = less_than {
            query.push(format_args!(" AND {id} < ")).push_bind(less_than.uuid());
        }
        if let Some((column, value)) = only {
            query.push(format_args!(" AND {column} = "));
            match value {
                Only::Product(id) => query.push_bind(id_column(*id)),
                Only::Buyer(buyer) => query.push_bind(buyer.as_str().to_owned()),
            };
        }
    }
}

/// Some of the rows that a list has.
#[derive(Clone, Copy)]
struct Part {
    skip: i64,
    take: i64,
}

/// A part of the rows of these walks, as if they were one. No walk is longer than it would have to be alone.
fn merged<DB>(
    walks: &[Walk],
    direction: Direction,
    Part { skip, take }: Part,
    push_rows: impl Fn(&mut QueryBuilder<'static, DB>, &Walk),
) -> QueryBuilder<'static, DB>
where
    DB: Database,
    i64: Encode<'static, DB> + Type<DB>,
{
    let descending = match direction {
        Direction::OldestFirst => "",
        Direction::NewestFirst => " DESC",
    };
    let mut query = QueryBuilder::new("");
    let order = |query: &mut QueryBuilder<'static, DB>, id: &str, take: i64, skip: i64| {
        query.push(format_args!(" ORDER BY {id}{descending} LIMIT ")).push_bind(take);
        query.push(" OFFSET ").push_bind(skip);
    };
    if let [walk] = walks {
        push_rows(&mut query, walk);
        order(&mut query, walk.id, take, skip);
        return query;
    }
    for (number, walk) in walks.iter().enumerate() {
        query.push(if number == 0 { "SELECT * FROM (" } else { " UNION ALL SELECT * FROM (" });
        push_rows(&mut query, walk);
        order(&mut query, walk.id, skip + take, 0);
        query.push(format_args!(") AS walk_{number}"));
    }
    order(&mut query, "id", take, skip);
    query
}

/// Permits for [`CONCURRENT_LISTS`] lists at a time, given in the order of arrival.
#[derive(Clone, Debug)]
pub(super) struct ListPermits(Arc<Semaphore>);

impl Default for ListPermits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONCURRENT_LISTS as usize)))
    }
}

impl ListPermits {
    /// Waits for a permit. The list ends when it is dropped.
    pub(super) async fn take(&self) -> Result<ListPermit, StoreError> {
        match timeout(MAX_WAIT, self.0.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(ListPermit { permit: Some(permit), began: Instant::now() }),
            Ok(Err(_)) | Err(_) => Err(StoreError::TooManyLists),
        }
    }
}

/// The permit of one list. It is free again after a rest that is [`REST`] times as long as the list read, so that clients that
/// do nothing but list leave most of the database's time to orders: two lists without a rest make a payment on a machine
/// of two cores two to four times as slow.
pub(super) struct ListPermit {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
}

impl Drop for ListPermit {
    fn drop(&mut self) {
        let permit = self.permit.take();
        let rest = (self.began.elapsed() * REST).min(MAX_REST);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                sleep(rest).await;
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_without_a_permit_in_time_is_refused() {
        let permits = ListPermits::default();
        let (first, _second) = (permits.take().await.unwrap(), permits.take().await.unwrap());
        assert!(matches!(permits.take().await, Err(StoreError::TooManyLists)));
        drop(first);
        assert!(permits.take().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_rests_in_proportion_to_its_list() {
        let permits = ListPermits::default();
        let (first, _second) = (permits.take().await.unwrap(), permits.take().await.unwrap());
        sleep(Duration::from_millis(10)).await;
        drop(first);
        let began = Instant::now();
        drop(permits.take().await.unwrap());
        assert_eq!(began.elapsed().as_millis(), 30);
    }
}
