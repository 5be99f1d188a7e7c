//! The gate before the lanes: while it is known that nothing of a product is left, its orders are refused at once, so
//! that the storm after the last piece does not stand in line for nothing. Orders with an idempotency key are let
//! through, and those whose client does not wait: see [`crate::placement::Placement::place`].
//!
//! It may be trusted, because
//!
//! - it closes only on a committed stock of zero, so it never refuses an order that could be filled in part or whole;
//! - news carries the version of the inventory: old news that arrives late changes nothing;
//! - it opens with the first news of pieces, which whoever brought them back sends to every API before saying so: the API
//!   that says so is open by then, another one a message's time later;
//! - without fresh news it opens by itself after [`Gate::MAX_CLOSED`]: the next orders stand in line, and their verdict
//!   is fresh news.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use tokio::time::Instant;

use crate::{inventory::StockNews, product::ProductId};

/// What one API knows of what is left. One entry for each product that it heard of.
#[derive(Debug, Default)]
pub struct Gate(RwLock<HashMap<ProductId, Heard>>);

#[derive(Clone, Copy, Debug)]
struct Heard {
    version: u64,
    available: u32,
    at: Instant,
}

impl Gate {
    /// How long it stays closed on the last news.
    pub const MAX_CLOSED: Duration = Duration::from_secs(1);

    /// Takes news, unless newer news has been heard.
    pub fn hear(&self, news: StockNews) {
        let heard = Heard { version: news.version, available: news.available, at: Instant::now() };
        let mut products = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = products.entry(news.product_id).or_insert(heard);
        if heard.version >= known.version {
            *known = heard;
        }
    }

    /// Whether nothing of the product is left.
    pub fn is_closed(&self, product_id: ProductId) -> bool {
        let products = self.0.read().unwrap_or_else(PoisonError::into_inner);
        products
            .get(&product_id)
            .is_some_and(|heard| heard.available == 0 && heard.at.elapsed() < Self::MAX_CLOSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(version: u64, available: u32) -> StockNews {
        StockNews { product_id: ProductId::new(1).unwrap(), version, available }
    }

    fn is_closed(gate: &Gate) -> bool {
        gate.is_closed(ProductId::new(1).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_on_zero_and_opens_on_newer_news() {
        let gate = Gate::default();
        assert!(!is_closed(&gate), "nothing was heard");
        gate.hear(news(5, 1));
        assert!(!is_closed(&gate), "one piece is left");
        gate.hear(news(6, 0));
        assert!(is_closed(&gate));
        assert!(!gate.is_closed(ProductId::new(2).unwrap()), "another product");
        gate.hear(news(7, 3));
        assert!(!is_closed(&gate));
        gate.hear(news(6, 0));
        assert!(!is_closed(&gate), "old news that arrives late");
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_by_itself_without_fresh_news() {
        let gate = Gate::default();
        gate.hear(news(6, 0));
        tokio::time::advance(Gate::MAX_CLOSED / 2).await;
        assert!(is_closed(&gate));
        gate.hear(news(6, 0)); // the same, but fresh
        tokio::time::advance(Gate::MAX_CLOSED * 3 / 4).await;
        assert!(is_closed(&gate));
        gate.hear(news(5, 0)); // old news does not keep it closed
        tokio::time::advance(Gate::MAX_CLOSED / 4).await;
        assert!(!is_closed(&gate));
    }
}
