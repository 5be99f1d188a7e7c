//! Several APIs and workers, as separate processes on one database and one broker. Whichever of them joins, leaves, dies or
//! freezes, no order is lost, and none is decided twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};
use serde_json::json;

use crate::{
    api::{race, stock},
    support::harness::{App, Client, eventually},
    support::servers::{Place, servers},
};

mod archive;
mod baskets;
mod buyers;
mod chaos;
mod events;
mod life;
mod load;
mod outages;
mod queue;
mod terms;
mod workers;

/// Processes that share a place.
struct Cluster {
    apis: Vec<App>,
    workers: Vec<App>,
}

impl Cluster {
    /// Starts all processes at once: one creates the tables, and the others wait for it.
    async fn start(place: &Place, apis: usize, workers: usize, settings: &[(&str, &str)]) -> Self {
        let of = |role, count| join_all((0..count).map(move |_| App::start_role(role, place, settings)));
        let (apis, workers) = join(of("api", apis), of("worker", workers)).await;
        Self { apis, workers }
    }

    fn clients(&self) -> Vec<&Client> {
        self.apis.iter().map(|api| &**api).collect()
    }
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_race_through_two_apis() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[]).await;
    race::race_for_a_hundred_pieces(&cluster.clients()).await;
    race::race_for_two_products(&cluster.clients()).await;
    let names: Vec<_> = lanes_of(&place).await;
    assert_eq!(names, ["orders.product.1", "orders.product.2", "orders.product.3"]);
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn restocking_through_two_apis() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[]).await;
    stock::restock_during_a_sale(&cluster.clients()).await;
    stock::pieces_are_sold_when_they_are_added(&cluster.apis[0], &cluster.apis[1]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_race_through_lanes_that_products_share() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[("LANES", "hash:4")]).await;
    for n in 0..4 {
        cluster.apis[0].create_product(&format!("Kaos {n}")).await;
    }
    race::race_for_a_hundred_pieces(&cluster.clients()).await;
    race::race_for_two_products(&cluster.clients()).await;
    // More than five products, four lanes.
    let names: Vec<_> = lanes_of(&place).await;
    assert_eq!(names, ["orders.lane.0", "orders.lane.1", "orders.lane.2", "orders.lane.3"]);
}

/// The names of this place's lanes, without the prefix.
async fn lanes_of(place: &Place) -> Vec<String> {
    let queues = servers().await.queues(&format!("{}orders.", place.queue_prefix)).await;
    let names = queues.iter().filter_map(|queue| queue.name.strip_prefix(&place.queue_prefix));
    names.filter(|name| *name != "orders.dead").map(str::to_owned).collect()
}

/// Waits until no command is queued, and there is no dead letter.
async fn all_is_decided(place: &Place) {
    let prefix = format!("{}orders.", place.queue_prefix);
    servers().await.queues_when(&prefix, |queues| queues.iter().all(|queue| queue.messages == 0)).await;
}

/// The connections on which workers consume this place's lanes, once there are so many and each consumes every lane.
async fn workers_serve(place: &Place, lanes: usize, workers: usize) -> BTreeSet<String> {
    let prefix = format!("{}orders.", place.queue_prefix);
    let consumers = servers()
        .await
        .consumers_when(&prefix, |consumers| {
            let mut lanes_of = BTreeMap::<_, usize>::new();
            consumers.iter().for_each(|consumer| *lanes_of.entry(&consumer.connection).or_default() += 1);
            lanes_of.len() == workers && lanes_of.values().all(|served| *served == lanes)
        })
        .await;
    consumers.into_iter().map(|consumer| consumer.connection).collect()
}

/// Workers are notified of a new product. Without that they would look for new products every five seconds only.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_product_of_one_api_takes_an_order_at_the_other() {
    const PRODUCTS: u32 = 12;
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    workers_are_ready(&cluster).await;
    let began = Instant::now();
    for _ in 0..PRODUCTS {
        let product = cluster.apis[0].create_stocked("Kaos Polos", 1).await;
        assert_eq!(cluster.apis[1].order(product, 1).await.status, 201);
        // The other API knows the product as well.
        assert_eq!(cluster.apis[0].order(product, 1).await.status, 400);
        assert_eq!(cluster.apis[1].inventory(product).await, [1, 0, 1]);
    }
    assert!(began.elapsed() < Duration::from_secs(1) * PRODUCTS, "{:?}", began.elapsed());
}

/// Waits until the workers serve a lane. Before that, they may not receive notifications yet.
async fn workers_are_ready(cluster: &Cluster) {
    let product = cluster.apis[0].create_stocked("Kaos Polos", 1).await;
    assert_eq!(cluster.apis[0].order(product, 1).await.status, 201);
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_thousand_products_with_a_lane_each() {
    const PRODUCTS: usize = 1_000;
    // Alone, for a fair measurement.
    let alone = servers().await.alone().await;
    let mut cluster = Cluster::start(&alone.place, 2, 0, &[("ORDER_TIMEOUT", "60s")]).await;
    let products: Vec<_> = stream::iter(0..PRODUCTS)
        .map(|n| cluster.apis[n % 2].create_stocked("Kaos Polos", 1))
        .buffered(32)
        .collect()
        .await;

    let began = Instant::now();
    let start = || App::start_role("worker", &alone.place, &[]);
    let (one, other) = join(start(), start()).await;
    cluster.workers = vec![one, other];
    let prefix = format!("{}orders.", alone.place.queue_prefix);
    servers().await.consumers_when(&prefix, |consumers| consumers.len() == 2 * PRODUCTS).await;
    let ready = began.elapsed();
    eprintln!("two workers serve {PRODUCTS} lanes after {ready:?}");
    assert!(ready < Duration::from_secs(15), "{ready:?}");

    let placed: Vec<_> = stream::iter(products.iter().enumerate())
        .map(|(n, product)| cluster.apis[n / 2 % 2].order(*product, 1))
        .buffered(256)
        .collect()
        .await;
    assert!(placed.iter().all(|answer| answer.status == 201));
    all_is_decided(&alone.place).await;
}
