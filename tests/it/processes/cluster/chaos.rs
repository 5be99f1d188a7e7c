//! A database that fails in every way at once, under load: every promise is kept, and orders are reserved again afterwards.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Cluster, all_is_decided};
use crate::{
    support::harness::{Client, eventually},
    support::mysql_proxy::MySqlProxy,
    support::servers::servers,
};

/// How long the database fails.
const FAILING: Duration = Duration::from_secs(30);
/// Orders are reserved again within this time.
const RECOVERY: Duration = Duration::from_secs(5);

/// What the answers 201 and 202 promised, for orders and payments.
#[derive(Default)]
struct Promises {
    /// The URL of each order, and the statuses that it may have.
    orders: Vec<(String, &'static [&'static str])>,
    answers: BTreeMap<u16, usize>,
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_database_that_fails_in_every_way_breaks_no_promise() {
    const PRODUCTS: usize = 4;
    // Alone, because the recovery is measured.
    let alone = servers().await.alone().await;
    let place = &alone.place;
    let seed = Uuid::new_v4().as_u128() as u64;
    eprintln!("seed {seed}");
    let proxy = MySqlProxy::start(&place.database_url, seed).await;
    let behind = place.behind(proxy.url());
    let cluster = Cluster::start(&behind, 2, 2, &[("ORDER_TIMEOUT", "2s")]).await;
    let mut products = Vec::new();
    for n in 0..PRODUCTS {
        products.push(cluster.apis[n % 2].create_stocked("Kaos Polos", 1_000_000).await);
    }
    for product in &products {
        assert_eq!(cluster.apis[0].order(*product, 1).await.status, 201);
    }

    proxy.make_trouble(true);
    let until = Instant::now() + FAILING;
    let mut buyers = JoinSet::new();
    for buyer in 0..32 {
        let (api, product) = ((*cluster.apis[buyer % 2]).clone(), products[buyer / 2 % PRODUCTS]);
        buyers.spawn(async move { buy(&api, product, until).await });
    }
    let promises = buyers.join_all().await;
    proxy.make_trouble(false);
    let over = Instant::now();
    for api in cluster.clients() {
        for product in &products {
            eventually("no order is reserved", async || {
                (api.order(*product, 1).await.status == 201).then_some(())
            })
            .await;
        }
    }
    let recovered = over.elapsed();

    let mut answers = BTreeMap::<_, usize>::new();
    for Promises { orders, answers: of_buyer } in promises {
        of_buyer.into_iter().for_each(|(status, count)| *answers.entry(status).or_default() += count);
        for (order, may_be) in orders {
            let found = cluster.apis[0].verdict(&order).await;
            assert!(may_be.contains(&found["status"].as_str().unwrap()), "expected {may_be:?}: {found}");
        }
    }
    eprintln!("answers {answers:?}; reserved again after {recovered:?}");
    all_is_decided(place).await;
    let dead = servers().await.queues(&format!("{}orders.dead", place.queue_prefix)).await;
    assert_eq!(dead[0].messages, 0, "dead letters, though everything could be decided");
    for product in &products {
        cluster.apis[0].ledger(*product, 1_000_000).await;
    }
    assert!(recovered < RECOVERY, "reserved again after {recovered:?}");
}

/// Orders, and pays for every third, until then.
async fn buy(api: &Client, product: u64, until: Instant) -> Promises {
    let mut promises = Promises::default();
    for n in 0.. {
        if Instant::now() > until {
            break;
        }
        let Ok(answer) = api.try_order(product, 1).await else { continue };
        *promises.answers.entry(answer.status).or_default() += 1;
        let mut may_be: &[_] = match answer.status {
            201 => &["reserved"],
            202 => &["reserved", "rejected"],
            _ => continue,
        };
        let location = answer.header("location").to_owned();
        if answer.status == 201 && n % 3 == 0 {
            may_be = match api.try_change(answer.id(), "payment", &[]).await.map(|paid| paid.status) {
                Ok(200 | 202) => &["paid"],
                _ => &["reserved", "paid"],
            };
        }
        promises.orders.push((location, may_be));
    }
    promises
}
