//! Buyers who order under load, and the check of what they were answered against what is stored.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::support::harness::{Client, MAX_TOTAL, TIMEOUT};

/// Buyers who order all products in turn, as long as there are orders to place. No two orders of a product have the same
/// total, so a stored order can be matched with its buyer, whatever the answer was.
pub(super) struct Load {
    buyers: JoinSet<()>,
    permits: Arc<Semaphore>,
    order_count: usize,
    history: Arc<watch::Sender<Vec<Placed>>>,
}

/// An order and its answer.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    product: u64,
    total: u64,
    pub(super) answer: Answered,
}

#[derive(Clone, Debug)]
pub(super) enum Answered {
    /// 201; the order's id.
    Reserved(String),
    /// 400; how many pieces were left.
    Rejected(u64),
    /// 202; the order's id.
    Pending(String),
    /// The connection ended without an answer.
    Nothing,
}

pub(super) const BUYERS: usize = 48;

impl Load {
    pub(super) fn start(apis: &[&Client], products: &[u64]) -> Self {
        let permits = Arc::new(Semaphore::new(0));
        let history = Arc::new(watch::Sender::new(Vec::new()));
        let products: Arc<[(u64, AtomicU64)]> =
            products.iter().map(|product| (*product, AtomicU64::new(0))).collect();
        let mut buyers = JoinSet::new();
        for buyer in 0..BUYERS {
            let (permits, history, products) = (permits.clone(), history.clone(), products.clone());
            let apis: Vec<Client> = apis.iter().map(|api| (*api).clone()).collect();
            buyers.spawn(async move {
                let mut api = buyer % apis.len();
                for turn in buyer.. {
                    let Ok(permit) = permits.acquire().await else { return };
                    permit.forget();
                    let (product, last_total) = &products[turn % products.len()];
                    let (product, total) = (*product, 1 + last_total.fetch_add(1, Ordering::Relaxed));
                    let answer = place_order(&apis[api], product, total).await;
                    if matches!(answer, Answered::Nothing) {
                        api = (api + 1) % apis.len();
                    }
                    history.send_modify(|history| history.push(Placed { product, total, answer }));
                }
            });
        }
        Self { buyers, permits, order_count: 0, history }
    }

    /// Adds so many orders to place, and returns when a fifth of them is answered: then the buyers are in the middle of it.
    pub(super) async fn go_on(&mut self, orders: usize) {
        let enough = self.order_count + orders / 5;
        self.permits.add_permits(orders);
        self.order_count += orders;
        self.answered(enough).await;
    }

    /// Waits until all orders are answered.
    pub(super) async fn done(&mut self) {
        self.answered(self.order_count).await;
    }

    async fn answered(&mut self, count: usize) {
        let mut history = self.history.subscribe();
        tokio::select! {
            seen = timeout(TIMEOUT, history.wait_for(|history| history.len() >= count)) => {
                seen.unwrap_or_else(|_| panic!("{} of {count} are answered", self.history.borrow().len())).unwrap();
            }
            Some(buyer) = self.buyers.join_next() => panic!("a buyer ended: {buyer:?}"),
        }
    }

    pub(super) async fn over(mut self) -> Vec<Placed> {
        self.done().await;
        self.permits.close();
        self.buyers.join_all().await;
        self.history.send_replace(Vec::new())
    }
}

async fn place_order(api: &Client, product: u64, total: u64) -> Answered {
    let Ok(answer) = api.try_order(product, total).await else { return Answered::Nothing };
    match answer.status {
        201 => {
            assert_eq!(
                (&answer.data()["product_id"], &answer.data()["total"]),
                (&product.into(), &total.into())
            );
            Answered::Reserved(answer.data()["id"].as_str().unwrap().to_owned())
        }
        202 => Answered::Pending(answer.data()["id"].as_str().unwrap().to_owned()),
        400 if answer.reason() == "insufficient_stock" => {
            Answered::Rejected(answer.data()["available_stock"].as_u64().unwrap())
        }
        _ => panic!("{answer:?}"),
    }
}

/// Compares the answers with the stored orders, once all orders are decided.
pub(super) async fn the_answers_are_true(api: &Client, stocks: &BTreeMap<u64, u64>, history: &[Placed]) {
    for (&product, &stock) in stocks {
        let books = api.reservations(product).await;
        assert_eq!(books.stored, stock);
        let rejected = api.all(&format!("/api/orders?product_id={product}&status=rejected&limit=100")).await;
        let rejected = rejected
            .iter()
            .map(|order| (order["total"].as_u64().unwrap(), order["id"].as_str().unwrap().to_owned()));
        let mut rejected = by_total(rejected);
        let mut reserved = by_total(books.orders.iter().map(|(id, total)| (*total, id.clone())));
        for placed in history.iter().filter(|placed| placed.product == product) {
            let stored = (reserved.remove(&placed.total), rejected.remove(&placed.total));
            let is_true = match (&placed.answer, &stored) {
                (Answered::Reserved(id), (Some(found), None)) => id == found,
                (Answered::Rejected(left), (None, _)) => *left < placed.total && books.available <= *left,
                (Answered::Pending(id), (Some(found), None) | (None, Some(found))) => id == found,
                (Answered::Nothing, (None, _) | (_, None)) => true,
                _ => false,
            };
            assert!(is_true, "{placed:?}; stored as (reserved, rejected): {stored:?}");
        }
        assert!(reserved.is_empty() && rejected.is_empty(), "no buyer placed {reserved:?} {rejected:?}");
    }
}

fn by_total(orders: impl Iterator<Item = (u64, String)>) -> BTreeMap<u64, String> {
    let mut by_total = BTreeMap::new();
    for (total, id) in orders {
        let before = by_total.insert(total, id.clone());
        assert_eq!(before, None, "an order is stored twice, once as {id}");
    }
    by_total
}

/// Six products with plenty of stock, and two that sell out on the way.
pub(super) async fn stocks(api: &Client) -> BTreeMap<u64, u64> {
    let mut stocks = BTreeMap::new();
    for stock in [MAX_TOTAL, MAX_TOTAL, MAX_TOTAL, 20_000, MAX_TOTAL, MAX_TOTAL, MAX_TOTAL, 90_000] {
        stocks.insert(api.create_stocked("Kaos Polos", stock).await, stock);
    }
    stocks
}
