//! Names, stock and sale of all products, for the board: read page by page, and only while somebody looks, because nobody else
//! reports the stock of a product without orders.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::board::Board;
use crate::{clock::Clock, store::Catalog, store::StoreError};

/// How often somebody may begin to look without the catalogue.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often all of it is read while somebody looks.
const READ_EVERY: Duration = Duration::from_secs(5);
/// How many products one statement reads.
const PAGE: u32 = 1_000;
/// How many products are read at most.
const MAX_PAGES: usize = 10;

/// Reads the catalogue for ever: once at the start, and while somebody looks.
pub async fn read_while_watched(store: Arc<dyn Catalog>, board: Arc<Board>, clock: Arc<dyn Clock>) {
    let mut read_at = None::<Instant>;
    loop {
        let is_due = read_at.is_none_or(|at| at.elapsed() >= READ_EVERY);
        if is_due && (read_at.is_none() || board.is_watched()) {
            if let Err(error) = read(&*store, &board, &*clock).await {
                tracing::debug!(%error, "the catalogue was not read for the board");
            }
            read_at = Some(Instant::now());
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn read(store: &dyn Catalog, board: &Board, clock: &dyn Clock) -> Result<(), StoreError> {
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let seen = clock.now();
        let page = store.inventories(after, PAGE).await?;
        let ids: Vec<_> = page.rows.iter().map(|(product, _)| product.id).collect();
        let closed = store.closed_to_orders(&ids, Duration::ZERO).await?.into_iter().collect();
        board.learn(page.rows, seen);
        board.learn_closed(&ids, &closed);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let products = store.product_lanes().await?;
    board.forget(products.iter().filter(|one| one.archived_for.is_some()).map(|one| one.product_id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        domain::{inventory::Stock, terms::Terms},
        monitor::board::{NotOnSale, ProductQuery},
        store::{Ledger, Store, memory::MemoryStore},
    };

    #[tokio::test(start_paused = true)]
    async fn the_board_knows_what_is_not_on_sale() {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let mut ids = Vec::new();
        for _ in 0..2 {
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
            ids.push(product.id); // sold out, which the stock says
        }
        let board = Board::new(Arc::new(SystemClock));
        let shown = || board.products(&ProductQuery::default()).rows;
        for (selling, expected) in [(true, None), (false, Some(NotOnSale::Paused)), (true, None)] {
            store.set_terms(ids[1], Terms { selling, ..Terms::default() }).await.unwrap();
            read(&*store, &board, &SystemClock).await.unwrap();
            assert_eq!(shown().iter().map(|row| row.not_on_sale).collect::<Vec<_>>(), [None, expected]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_catalogue_is_read_at_the_start_and_while_somebody_looks() {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let create = async || {
            let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
            store.recount(product.id, Stock::new(3).unwrap()).await.unwrap();
        };
        let board = Arc::new(Board::new(Arc::new(SystemClock)));
        for _ in 0..PAGE + 2 {
            create().await;
        }
        let reading = tokio::spawn(read_while_watched(store.clone(), board.clone(), Arc::new(SystemClock)));
        sleep(READ_EVERY).await;
        create().await;
        sleep(10 * READ_EVERY).await;
        let page = board.products(&ProductQuery::default());
        assert_eq!(page.matching, 1_002, "nobody has looked");
        assert_eq!(page.rows[0].stock.map(|stock| stock.available), Some(3));
        sleep(2 * LOOK_EVERY).await;
        assert_eq!(board.products(&ProductQuery::default()).matching, 1_003);
        let first = store.product_ids().await.unwrap()[0];
        store.archive(first).await.unwrap();
        assert!(board.product(first).is_some());
        sleep(2 * READ_EVERY).await;
        assert!(board.product(first).is_none(), "it is archived");
        store.close().await;
        sleep(READ_EVERY).await;
        assert!(!reading.is_finished(), "a store that fails is asked again");
    }
}
