//! Lists have bounded work, whatever their filter: a page examines at most [`MAX_EXAMINED`] rows in the order of ids, and
//! says where the next one begins. An index for each filter would be paid by every order: an index more is a tenth of
//! what it costs to insert a row.
//!
//! Each process lists on connections of its own, [`AT_ONCE`] at a time, so that no list is in the way of anything else.

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
    page::{Due, OrderPage, Page},
    rows::{OrderRow, Text, column, product, product_id, readable},
};
use crate::domain::{
    ids::{OrderId, ProductId},
    order::Order,
    product::Product,
};

/// How many lists a process reads at a time, and its connections for them.
pub(super) const AT_ONCE: u32 = 2;
/// How many rows a page examines at most to find those that its filter wants.
pub(super) const MAX_EXAMINED: i64 = 5_000;
/// How long the database works on a page at most. Less than what the reader of the page waits.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(2);
/// How long a list waits for its turn at most.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How many times as long as a list reads its turn rests.
const REST: u32 = 3;
/// How long a turn rests at most.
const MAX_REST: Duration = Duration::from_millis(500);

// Pages are cut before rows that cannot be are left out, so that these end no list.

pub(super) fn page_of_products(rows: Vec<(i64, Text)>, limit: u32) -> Page<Product, ProductId> {
    let Page { rows, next } = Page::cut(rows, limit, None, |(id, _)| *id);
    let products = readable(rows.into_iter().map(|(id, name)| product(id, name)));
    Page { rows: products, next: next.and_then(|id| product_id(id).ok()) }
}

pub(super) fn page_of_orders(rows: Vec<OrderRow>, limit: u32, edge: Option<Uuid>) -> Page<Order, OrderId> {
    let Page { rows, next } = Page::cut(rows, limit, edge, |row| row.id);
    Page { rows: readable(rows.into_iter().map(Order::try_from)), next: next.map(OrderId::from) }
}

pub(super) fn page_of_due(rows: Vec<OrderRow>, limit: u32) -> Page<Order, Due> {
    let due = |row: &OrderRow| Due { expires_at: row.expires_at.unwrap_or_default(), id: row.id.into() };
    let Page { rows, next } = Page::cut(rows, limit, None, due);
    Page { rows: readable(rows.into_iter().map(Order::try_from)), next }
}

/// The table of orders as it is walked in the order of ids. Without a word about the index, the database would sometimes
/// rather read all orders of one status and sort them.
pub(super) struct Walk {
    /// All orders.
    pub(super) all: &'static str,
    /// Those of one product.
    pub(super) of_product: &'static str,
}

impl Walk {
    /// Finds the last order that a page may examine, where its filter may pass over orders.
    pub(super) fn edge<DB>(&self, page: &OrderPage) -> Option<QueryBuilder<'static, DB>>
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
    {
        page.status?;
        let mut query = self.behind("SELECT id", page);
        query.push(" ORDER BY id LIMIT 1 OFFSET ").push_bind(MAX_EXAMINED - 1);
        Some(query)
    }

    /// Finds the orders of a page, and one more.
    pub(super) fn orders<DB>(&self, page: &OrderPage, edge: Option<Uuid>) -> QueryBuilder<'static, DB>
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
        &'static str: Encode<'static, DB> + Type<DB>,
    {
        let mut query = self.behind("SELECT *", page);
        if let Some(edge) = edge {
            query.push(" AND id <= ").push_bind(edge);
        }
        if let Some(status) = page.status {
            query.push(" AND status = ").push_bind(status.as_str());
        }
        query.push(" ORDER BY id LIMIT ").push_bind(i64::from(page.limit) + 1);
        query
    }

    fn behind<DB>(&self, select: &str, page: &OrderPage) -> QueryBuilder<'static, DB>
    where
        DB: Database,
        i64: Encode<'static, DB> + Type<DB>,
        Uuid: Encode<'static, DB> + Type<DB>,
    {
        let table = if page.product_id.is_some() { self.of_product } else { self.all };
        let mut query = QueryBuilder::new(format!("{select} FROM {table} WHERE id > "));
        query.push_bind(page.after.map_or(Uuid::nil(), OrderId::uuid));
        if let Some(id) = page.product_id {
            query.push(" AND product_id = ").push_bind(column(id));
        }
        query
    }
}

/// Lets [`AT_ONCE`] lists read at a time, in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE as usize)))
    }
}

impl Turns {
    /// Waits for a turn, which ends when it is dropped.
    pub(super) async fn take(&self) -> Result<Turn, StoreError> {
        match timeout(MAX_WAIT, self.0.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { permit: Some(permit), began: Instant::now() }),
            Ok(Err(_)) | Err(_) => Err(StoreError::TooManyLists),
        }
    }
}

/// The turn of one list. The next one begins after a rest that is [`REST`] times as long as this list read, so that clients
/// who do nothing but list leave most of the database's time to orders: two lists without a rest make a payment on a
/// machine of two cores two to four times as slow.
pub(super) struct Turn {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
}

impl Drop for Turn {
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
    async fn who_gets_no_turn_in_time_hears_so() {
        let turns = Turns::default();
        let (first, _second) = (turns.take().await.unwrap(), turns.take().await.unwrap());
        assert!(matches!(turns.take().await, Err(StoreError::TooManyLists)));
        drop(first);
        assert!(turns.take().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_rests_as_long_as_its_list_was_dear() {
        let turns = Turns::default();
        let (first, _second) = (turns.take().await.unwrap(), turns.take().await.unwrap());
        sleep(Duration::from_millis(10)).await;
        drop(first);
        let began = Instant::now();
        drop(turns.take().await.unwrap());
        assert_eq!(began.elapsed().as_millis(), 30);
    }
}
