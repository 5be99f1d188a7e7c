//! Several APIs and workers, as processes of their own, on one database and one broker: whoever of them comes, goes,
//! dies or stands still, no order is lost, and none is decided twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::{join, join_all};
use rustix::process::Signal;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    harness::{App, Client, MAX_TOTAL, PATIENCE},
    race,
    servers::{Place, servers},
};

/// Processes that share a place.
struct Cluster {
    apis: Vec<App>,
    workers: Vec<App>,
}

impl Cluster {
    /// Starts all of them at once: one makes the tables, and the others wait for it.
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
async fn a_race_through_lanes_that_products_share() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[("LANES", "hash:4")]).await;
    for n in 0..4 {
        cluster.apis[0].create_product(&format!("Kaos {n}")).await;
    }
    race::race_for_a_hundred_pieces(&cluster.clients()).await;
    race::race_for_two_products(&cluster.clients()).await;
    // Five products and more, four lanes.
    let names: Vec<_> = lanes_of(&place).await;
    assert_eq!(names, ["orders.lane.0", "orders.lane.1", "orders.lane.2", "orders.lane.3"]);
}

/// The names of this place's lanes, without the prefix.
async fn lanes_of(place: &Place) -> Vec<String> {
    let queues = servers().await.queues(&format!("{}orders.", place.queue_prefix)).await;
    let names = queues.iter().filter_map(|queue| queue.name.strip_prefix(&place.queue_prefix));
    names.filter(|name| *name != "orders.dead").map(str::to_owned).collect()
}

/// Waits until no order is in line, and nothing among the dead letters.
async fn all_is_decided(place: &Place) {
    let prefix = format!("{}orders.", place.queue_prefix);
    servers().await.queues_when(&prefix, |queues| queues.iter().all(|queue| queue.messages == 0)).await;
}

/// Buyers who order all products in turn, as long as they are given orders to place. No two orders of a product have
/// the same total: that tells whose order it is that stands on record, whatever its buyer was told.
struct Load {
    buyers: JoinSet<()>,
    given: Arc<Semaphore>,
    given_count: usize,
    history: Arc<watch::Sender<Vec<Placed>>>,
}

/// An order and what its buyer was told.
#[derive(Clone, Debug)]
struct Placed {
    product: u64,
    total: u64,
    told: Told,
}

#[derive(Clone, Debug)]
enum Told {
    /// 201; the order's id.
    Reserved(String),
    /// 400; how many pieces were left.
    Rejected(u64),
    /// 202; the order's id.
    Pending(String),
    /// The connection ended without an answer.
    Nothing,
}

const BUYERS: usize = 48;

impl Load {
    fn start(apis: &[&Client], products: &[u64]) -> Self {
        let given = Arc::new(Semaphore::new(0));
        let history = Arc::new(watch::Sender::new(Vec::new()));
        let products: Arc<[(u64, AtomicU64)]> =
            products.iter().map(|product| (*product, AtomicU64::new(0))).collect();
        let mut buyers = JoinSet::new();
        for buyer in 0..BUYERS {
            let (given, history, products) = (given.clone(), history.clone(), products.clone());
            let apis: Vec<Client> = apis.iter().map(|api| (*api).clone()).collect();
            buyers.spawn(async move {
                let mut api = buyer % apis.len();
                for turn in buyer.. {
                    let Ok(order) = given.acquire().await else { return };
                    order.forget();
                    let (product, last_total) = &products[turn % products.len()];
                    let (product, total) = (*product, 1 + last_total.fetch_add(1, Ordering::Relaxed));
                    let told = tell(&apis[api], product, total).await;
                    if matches!(told, Told::Nothing) {
                        api = (api + 1) % apis.len();
                    }
                    history.send_modify(|history| history.push(Placed { product, total, told }));
                }
            });
        }
        Self { buyers, given, given_count: 0, history }
    }

    /// Gives the buyers so many more orders to place, and returns when a fifth of them is answered: then they are in
    /// the middle of it.
    async fn go_on(&mut self, orders: usize) {
        let enough = self.given_count + orders / 5;
        self.given.add_permits(orders);
        self.given_count += orders;
        self.answered(enough).await;
    }

    /// Waits until all that was given is answered.
    async fn done(&mut self) {
        self.answered(self.given_count).await;
    }

    async fn answered(&mut self, count: usize) {
        let mut history = self.history.subscribe();
        tokio::select! {
            seen = timeout(PATIENCE, history.wait_for(|history| history.len() >= count)) => {
                seen.unwrap_or_else(|_| panic!("{} of {count} are answered", self.history.borrow().len())).unwrap();
            }
            Some(buyer) = self.buyers.join_next() => panic!("a buyer went away: {buyer:?}"),
        }
    }

    async fn over(mut self) -> Vec<Placed> {
        self.done().await;
        self.given.close();
        self.buyers.join_all().await;
        self.history.send_replace(Vec::new())
    }
}

async fn tell(api: &Client, product: u64, total: u64) -> Told {
    let Ok(answer) = api.try_order(product, total).await else { return Told::Nothing };
    match answer.status {
        201 => {
            assert_eq!(
                (&answer.data()["product_id"], &answer.data()["total"]),
                (&product.into(), &total.into())
            );
            Told::Reserved(answer.data()["id"].as_str().unwrap().to_owned())
        }
        202 => Told::Pending(answer.data()["id"].as_str().unwrap().to_owned()),
        400 if answer.reason() == "insufficient_stock" => {
            Told::Rejected(answer.data()["available_stock"].as_u64().unwrap())
        }
        _ => panic!("{answer:?}"),
    }
}

/// Holds what buyers were told against what is on record, once all is decided.
async fn the_history_is_true(api: &Client, stocks: &BTreeMap<u64, u64>, history: &[Placed]) {
    for (&product, &stock) in stocks {
        let books = api.books(product).await;
        assert_eq!(books.stored, stock);
        let rejected = api.all(&format!("/api/orders?product_id={product}&status=rejected&limit=100")).await;
        let rejected = rejected
            .iter()
            .map(|order| (order["total"].as_u64().unwrap(), order["id"].as_str().unwrap().to_owned()));
        let mut rejected = by_total(rejected);
        let mut reserved = by_total(books.orders.iter().map(|(id, total)| (*total, id.clone())));
        for placed in history.iter().filter(|placed| placed.product == product) {
            let on_record = (reserved.remove(&placed.total), rejected.remove(&placed.total));
            let is_true = match (&placed.told, &on_record) {
                (Told::Reserved(id), (Some(found), None)) => id == found,
                (Told::Rejected(left), (None, _)) => *left < placed.total && books.available <= *left,
                (Told::Pending(id), (Some(found), None) | (None, Some(found))) => id == found,
                (Told::Nothing, (None, _) | (_, None)) => true,
                _ => false,
            };
            assert!(is_true, "{placed:?}, and on record as reserved or rejected is {on_record:?}");
        }
        assert!(reserved.is_empty() && rejected.is_empty(), "nobody placed {reserved:?} {rejected:?}");
    }
}

fn by_total(orders: impl Iterator<Item = (u64, String)>) -> BTreeMap<u64, String> {
    let mut by_total = BTreeMap::new();
    for (total, id) in orders {
        let before = by_total.insert(total, id.clone());
        assert_eq!(before, None, "one order is on record twice, and once as {id}");
    }
    by_total
}

/// Six products of which there is plenty, and two that are sold out in the middle.
async fn stocks(api: &Client) -> BTreeMap<u64, u64> {
    let mut stocks = BTreeMap::new();
    for stock in [MAX_TOTAL, MAX_TOTAL, MAX_TOTAL, 20_000, MAX_TOTAL, MAX_TOTAL, MAX_TOTAL, 90_000] {
        stocks.insert(api.create_stocked("Kaos Polos", stock).await, stock);
    }
    stocks
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

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn killed_stopped_and_joined_under_load() {
    const ORDERS: usize = 1_200;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[("ORDER_TIMEOUT", "5s")]).await;
    let stocks = stocks(&cluster.apis[0]).await;
    let products: Vec<_> = stocks.keys().copied().collect();
    workers_serve(&place, products.len(), 3).await;
    let mut load = Load::start(&cluster.clients(), &products);

    load.go_on(ORDERS).await;
    cluster.workers[0].kill9().await;
    load.done().await;
    let left = workers_serve(&place, products.len(), 2).await;

    // Its connections stay open, and it says nothing: the broker declares it dead when two heartbeats are missing.
    load.go_on(ORDERS).await;
    cluster.workers[1].signal(Signal::STOP);
    let other = workers_serve(&place, products.len(), 1).await;
    assert!(other.is_subset(&left));
    load.go_on(ORDERS).await;
    cluster.workers[1].signal(Signal::CONT);
    load.done().await;
    workers_serve(&place, products.len(), 2).await;

    load.go_on(ORDERS).await;
    cluster.workers[0].restart().await;
    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    workers_serve(&place, products.len(), 4).await;

    load.go_on(ORDERS).await;
    cluster.apis[1].kill9().await;
    let history = load.over().await;
    cluster.apis[1].restart().await;

    all_is_decided(&place).await;
    the_history_is_true(&cluster.apis[1], &stocks, &history).await;
    let told = |which: fn(&Told) -> bool| history.iter().filter(|placed| which(&placed.told)).count();
    assert!(told(|told| matches!(told, Told::Reserved(_))) > ORDERS);
    assert!(told(|told| matches!(told, Told::Rejected(_))) > ORDERS / 4);
    assert!(told(|told| matches!(told, Told::Nothing)) <= BUYERS);
    for api in cluster.clients() {
        for product in &products {
            let answer = api.order(*product, 1).await;
            assert!([201, 400].contains(&answer.status), "{answer:?}");
        }
    }
}
