//! Several APIs and workers, as processes of their own, on one database and one broker: whoever of them comes, goes,
//! dies or stands still, no order is lost, and none is decided twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    api::race,
    support::harness::{App, Client, MAX_TOTAL, PATIENCE, Wire, antre, eventually},
    support::servers::{ConsumerInfo, Place, Server, servers},
};

mod chaos;
mod events;
mod life;
mod queue;

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

/// For each lane the connection of its active consumer, once every lane has so many consumers and the one of them
/// with the highest priority is active. After a worker's death, the management plugin of RabbitMQ 4.3 may go on calling
/// another one active as well; `rabbitmqctl list_consumers`, which asks the queue itself, does not.
async fn owners(place: &Place, lanes: usize, workers: usize) -> BTreeMap<String, String> {
    let prefix = format!("{}orders.", place.queue_prefix);
    let by_lane = |consumers: &[ConsumerInfo]| {
        let mut by_lane = BTreeMap::<_, Vec<_>>::new();
        for consumer in consumers.iter().cloned() {
            by_lane.entry(consumer.queue.clone()).or_default().push(consumer);
        }
        by_lane
    };
    let owner = |consumers: &[ConsumerInfo]| {
        let owner = consumers.iter().max_by_key(|consumer| consumer.priority).unwrap();
        owner.active.then(|| owner.connection.clone())
    };
    let settled = |consumers: &Vec<ConsumerInfo>| {
        let known = consumers.iter().all(|consumer| !consumer.connection.is_empty());
        consumers.len() == workers && known && owner(consumers).is_some()
    };
    let consumers = servers()
        .await
        .consumers_when(&prefix, |consumers| {
            let by_lane = by_lane(consumers);
            by_lane.len() == lanes && by_lane.values().all(settled)
        })
        .await;
    by_lane(&consumers).into_iter().map(|(lane, consumers)| (lane, owner(&consumers).unwrap())).collect()
}

/// How many lanes each connection serves.
fn shares(owners: &BTreeMap<String, String>) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    owners.values().for_each(|owner| *shares.entry(owner.clone()).or_default() += 1);
    shares
}

/// A worker that dies leaves its lanes to the others, a worker that joins takes its share, and no other lane moves.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn lanes_spread_over_the_workers_and_move_when_one_goes() {
    const LANES: usize = 48;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 1, 2, &[]).await;
    join_all((0..LANES).map(|n| cluster.apis[0].create_stocked("Kaos Polos", n as u64))).await;
    let of_two = owners(&place, LANES, 2).await;
    assert_eq!(shares(&of_two).len(), 2);

    let join = async |before: &BTreeMap<String, String>, workers: usize| {
        let worker = App::start_role("worker", &place, &[]).await;
        let after = owners(&place, LANES, workers).await;
        let moved: BTreeSet<_> =
            after.iter().filter(|(lane, owner)| before[*lane] != **owner).map(|(_, owner)| owner).collect();
        assert_eq!(moved.len(), 1, "lanes moved to others than the one that joined");
        let joined = (*moved.first().unwrap()).clone();
        assert!(!before.values().any(|owner| *owner == joined));
        (worker, joined, after)
    };
    let (mut third, connection, of_three) = join(&of_two, 3).await;
    let share_of_three = shares(&of_three);
    assert_eq!(share_of_three.len(), 3);
    assert!(share_of_three.values().all(|share| *share >= 4), "{share_of_three:?}");
    let called = servers().await.connections("antre worker: orders").await;
    assert!(share_of_three.keys().all(|connection| called.contains(connection)));

    third.kill9().await;
    let of_those_left = owners(&place, LANES, 2).await;
    assert_eq!(shares(&of_those_left).len(), 2);
    for (lane, owner) in &of_three {
        let now = &of_those_left[lane];
        assert!(now == owner || *owner == connection, "{lane} moved, whose worker is alive");
    }
    // Each product takes an order, whoever serves its lane now.
    let products = cluster.apis[0].all("/api/products?limit=100").await;
    let orders = products.iter().map(|product| cluster.apis[0].order(product["id"].as_u64().unwrap(), 1));
    assert!(join_all(orders).await.iter().all(|answer| [201, 400].contains(&answer.status)));

    let (fourth, _, of_three) = join(&of_those_left, 3).await;
    assert!(shares(&of_three).values().all(|share| *share >= 4), "{of_three:?}");
    cluster.workers.push(fourth);
}

/// Workers hear of a new product at once: their look through all products comes only every five seconds.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_product_of_one_api_takes_an_order_at_the_other() {
    const PRODUCTS: u32 = 12;
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    workers_are_there(&cluster).await;
    let began = Instant::now();
    for _ in 0..PRODUCTS {
        let product = cluster.apis[0].create_stocked("Kaos Polos", 1).await;
        assert_eq!(cluster.apis[1].order(product, 1).await.status, 201);
        // What one API heard of it, the other heard too.
        assert_eq!(cluster.apis[0].order(product, 1).await.status, 400);
        assert_eq!(cluster.apis[1].inventory(product).await, [1, 0, 1]);
    }
    assert!(began.elapsed() < Duration::from_secs(1) * PRODUCTS, "{:?}", began.elapsed());
}

/// Waits until the workers serve a lane: before that, they may not have come so far as to hear of new ones.
async fn workers_are_there(cluster: &Cluster) {
    let product = cluster.apis[0].create_stocked("Kaos Polos", 1).await;
    assert_eq!(cluster.apis[0].order(product, 1).await.status, 201);
}

/// A process that is asked to stop finishes what it has in hand: no buyer is left without an answer, and what they
/// were told is all there is on record.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn asked_to_stop_under_load() {
    const ORDERS: usize = 1_200;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[]).await;
    let stocks = stocks(&cluster.apis[0]).await;
    let products: Vec<_> = stocks.keys().copied().collect();
    workers_serve(&place, products.len(), 3).await;
    let mut load = Load::start(&cluster.clients(), &products);
    for worker in &mut cluster.workers[..2] {
        load.go_on(ORDERS).await;
        assert_eq!(worker.terminate().await.code(), Some(0));
        load.done().await;
    }
    load.go_on(ORDERS).await;
    assert_eq!(cluster.apis[0].terminate().await.code(), Some(0));
    let history = load.over().await;
    assert_eq!(cluster.workers[2].terminate().await.code(), Some(0));

    all_is_decided(&place).await;
    the_history_is_true(&cluster.apis[1], &stocks, &history).await;
    // Some found the door of the API closed; nobody who came in went without an answer.
    let on_record = stocks.keys().map(|product| cluster.apis[1].books(*product));
    let on_record: usize = join_all(on_record).await.iter().map(|books| books.orders.len()).sum();
    let told = |which: fn(&Told) -> bool| history.iter().filter(|placed| which(&placed.told)).count();
    assert_eq!(on_record, told(|told| matches!(told, Told::Reserved(_))));
    assert_eq!(told(|told| matches!(told, Told::Pending(_))), 0);
}

/// A worker that stands still in the middle of a transaction keeps its rows locked, until the database gives up on it
/// and the broker gives its lanes to others.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_worker_that_stands_still_does_not_hold_up_its_lanes_for_good() {
    let mut place = servers().await.fresh().await;
    place.amqp_url.push_str("?heartbeat=2"); // the broker declares it dead sooner
    let mut cluster = Cluster::start(&place, 1, 1, &[("ORDER_TIMEOUT", "1s")]).await;
    let api = &cluster.apis[0];
    let product = api.create_stocked("Kaos Polos", 100).await;
    let placed = api.order(product, 1).await;
    assert_eq!(api.verdict(placed.header("location")).await["status"], "reserved");
    let held = stopped_with_the_row(&cluster, &place, product).await;

    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    assert_eq!(cluster.apis[0].verdict(&held).await["status"], "reserved");
    all_is_decided(&place).await;

    // It wakes up, finds that it has lost everything, and is of use again; in a new lane, because in the old one the
    // broker may have forgotten to remove it: see `queue_contract`.
    cluster.workers[0].signal(Signal::CONT);
    workers_serve(&place, 1, 2).await;
    let other = cluster.apis[0].create_stocked("Kaos Garis", 100).await;
    workers_serve(&place, 2, 2).await;
    cluster.workers[1].kill9().await;
    for _ in 0..3 {
        let placed = cluster.apis[0].order(other, 3).await;
        assert_eq!(cluster.apis[0].verdict(placed.header("location")).await["status"], "reserved");
    }
    all_is_decided(&place).await;
    for product in [product, other] {
        cluster.apis[0].books(product).await;
    }
}

/// Stops the worker while it has the product's row, and returns the order that it is about to decide.
async fn stopped_with_the_row(cluster: &Cluster, place: &Place, product: u64) -> String {
    let mut database = MySqlConnection::connect(&place.database_url).await.unwrap();
    let lock = "SELECT 1 FROM inventories FOR UPDATE NOWAIT";
    // On a very busy machine, the worker may give up waiting for the row just before it is stopped.
    for _ in 0..5 {
        eventually("somebody keeps the row", async || {
            database.execute("BEGIN").await.unwrap();
            database.execute(lock).await.ok()
        })
        .await;
        let placed = cluster.apis[0].order(product, 2).await;
        assert_eq!(placed.status, 202);
        eventually("the worker never waits for the row", async || {
            // The view is made anew only when nobody has looked for a tenth of a second.
            database.execute("DO SLEEP(0.15)").await.unwrap();
            let waiting: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM information_schema.innodb_trx JOIN information_schema.processlist
                 ON processlist.id = trx_mysql_thread_id
                 WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()",
            )
            .fetch_one(&mut database)
            .await
            .unwrap();
            (waiting == 1).then_some(())
        })
        .await;
        // While the test holds the row, the worker waits for it; when the test lets go, the worker has it.
        cluster.workers[0].signal(Signal::STOP);
        database.execute("COMMIT").await.unwrap();
        if database.execute(lock).await.is_err() {
            return placed.header("location").to_owned();
        }
        cluster.workers[0].signal(Signal::CONT);
    }
    panic!("the worker never has the row");
}

/// A worker answers how it is where it is told to, and nothing else; told nothing, it listens nowhere.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_worker_tells_its_health_where_it_is_told_to() {
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 0, 1, &[]).await;
    let worker = &mut cluster.workers[0];
    assert_eq!(worker.get("/health/live").await.data(), &json!({"live": true}));
    let ready = eventually("it never becomes ready", async || {
        let answer = worker.get("/health/ready").await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(ready.await.data(), &json!({"database": "ok", "queue": "ok", "worker": "ok"}));
    for path in ["/api/products", "/api/orders", "/apispec.json", "/"] {
        let mut wire = Wire::open(worker).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: antre\r\n\r\n").as_bytes()).await;
        assert_eq!(wire.read().await.unwrap().0, 404, "{path}");
    }
    assert_eq!(worker.terminate().await.code(), Some(0));

    let directory = tempfile::tempdir().unwrap();
    let mut worker = antre(directory.path());
    worker.arg("worker").envs(place.settings()).stdout(Stdio::piped());
    let mut worker = worker.spawn().unwrap();
    let mut stdout = BufReader::new(worker.stdout.take().unwrap()).lines();
    let first = timeout(PATIENCE, stdout.next_line()).await.unwrap().unwrap().unwrap();
    assert!(first.contains("is open: a worker"), "{first}");
    assert_eq!(listening(worker.id().unwrap()), 0);
    let _own = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(listening(std::process::id()) > 0, "the test cannot see who listens");
    let id = Pid::from_raw(worker.id().unwrap().cast_signed()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    assert_eq!(timeout(PATIENCE, worker.wait()).await.unwrap().unwrap().code(), Some(0));
}

/// On how many TCP sockets a process listens, as Linux tells it.
fn listening(process: u32) -> usize {
    let sockets: BTreeSet<_> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
        .filter_map(|file| Some(file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter(|row| {
        let columns: Vec<_> = row.split_whitespace().collect();
        columns[3] == "0A" && sockets.contains(columns[9]) // state LISTEN; inode
    })
    .count()
}

/// While the broker is away: who waits gets 202, who comes is sent away at once, and what needs no queue works. When
/// it is back, all goes on by itself.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_broker_goes_away_and_comes_back() {
    const PRODUCTS: usize = 4;
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 2, 2, &[]).await;
    let [one, other] = [&*cluster.apis[0], &*cluster.apis[1]];
    let products = join_all((0..PRODUCTS).map(|_| one.create_stocked("Kaos Polos", 100))).await;
    for product in &products {
        assert_eq!(other.order(*product, 1).await.status, 201);
    }

    let notices = other.create_stocked("Kaos Garis", 100).await;

    // Orders that are in line for sure, while nobody decides them.
    cluster.workers.iter().for_each(|worker| worker.signal(Signal::STOP));
    let waiting: Vec<_> = products
        .iter()
        .zip([one, other].into_iter().cycle())
        .map(|(product, api)| (api.clone(), *product))
        .map(|(api, product)| tokio::spawn(async move { api.order(product, 2).await }))
        .collect();
    let prefix = format!("{}orders.product.", alone.place.queue_prefix);
    servers()
        .await
        .queues_when(&prefix, |lanes| lanes.iter().filter(|lane| lane.messages == 1).count() == PRODUCTS)
        .await;
    alone.kill(Server::Broker).await;
    let gone = Instant::now();
    cluster.workers.iter().for_each(|worker| worker.signal(Signal::CONT));

    for api in [one, other] {
        eventually("it does not notice", async || {
            let answer = api.order(notices, 1).await;
            let refused = answer.status == 503 && answer.reason() == "queue_unavailable";
            (refused && answer.header("retry-after") == "1").then_some(())
        })
        .await;
    }
    assert!(gone.elapsed() < Duration::from_secs(3), "it took {:?}", gone.elapsed());
    let unavailable = json!({"database": "ok", "queue": "unavailable"});
    for process in [one, other, &cluster.workers[0], &cluster.workers[1]] {
        let ready = process.get("/health/ready").await;
        assert_eq!((ready.status, ready.reason()), (503, "not_ready"));
        assert_eq!(
            json!({"database": ready.data()["database"], "queue": ready.data()["queue"]}),
            unavailable
        );
        assert_eq!(process.get("/health/live").await.status, 200);
    }
    for product in &products {
        let asked = Instant::now();
        let refused = one.order(*product, 50).await;
        assert_eq!((refused.status, refused.reason()), (503, "queue_unavailable"));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        // A worker decides what had reached it before the broker died, and it is delivered again when the broker is back.
        let pieces = other.inventory(*product).await;
        assert!([[100, 99, 1], [100, 97, 3]].contains(&pieces), "{pieces:?}");
    }
    let created_meanwhile = one.create_stocked("Kaos Garis", 10).await;
    let waited: Vec<_> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    for answer in &waited {
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    assert!(gone.elapsed() < Duration::from_secs(12), "they waited {:?}", gone.elapsed());

    alone.start(Server::Broker).await;
    for answer in &waited {
        assert_eq!(other.verdict(answer.header("location")).await["status"], "reserved");
    }
    for api in [one, other] {
        for product in products.iter().copied().chain([created_meanwhile]) {
            eventually("orders do not get in line", async || {
                let answer = api.order(product, 3).await;
                (answer.status != 503).then(|| assert_eq!(answer.status, 201, "{answer:?}"))
            })
            .await;
        }
    }
    for product in &products {
        assert_eq!(other.books(*product).await.reserved, 1 + 2 + 3 + 3);
    }
    for process in [one, other, &cluster.workers[0], &cluster.workers[1]] {
        eventually("it is not ready", async || {
            (process.get("/health/ready").await.status == 200).then_some(())
        })
        .await;
    }
    all_is_decided(&alone.place).await;
}

/// While the database is away, orders stand in line: who waits gets 202, reads are refused. When it is back, they are
/// decided.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_database_goes_away_and_comes_back() {
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 1, 2, &[("ORDER_TIMEOUT", "1s")]).await;
    let api = &*cluster.apis[0];
    let product = api.create_stocked("Kaos Polos", 100).await;
    let mut placed = vec![api.order(product, 1).await];
    // Its processes stand still, with their connections open; then they are killed.
    for round in ["paused", "killed"] {
        match round {
            "paused" => alone.pause(Server::Database).await,
            _ => alone.kill(Server::Database).await,
        }
        for _ in 0..2 {
            let answer = api.order(product, 2).await;
            assert_eq!(answer.status, 202, "{round}: {answer:?}");
            placed.push(answer);
        }
        let asked = Instant::now();
        let inventory = format!("/api/products/{product}/inventory");
        for path in ["/api/products", "/api/orders", &inventory, placed[0].header("location")] {
            let answer = api.get(path).await;
            assert_eq!((answer.status, answer.reason()), (503, "database_unavailable"), "{round}: {path}");
            assert_eq!(answer.header("retry-after"), "1");
        }
        assert_eq!(api.stock(product, 5).await.status, 503);
        assert!(asked.elapsed() < Duration::from_secs(20), "{round}: {:?}", asked.elapsed());
        let unavailable = json!({"database": "unavailable", "queue": "ok"});
        for process in [api, &cluster.workers[0], &cluster.workers[1]] {
            let ready = process.get("/health/ready").await;
            assert_eq!((ready.status, ready.reason()), (503, "not_ready"), "{round}");
            let named = json!({"database": ready.data()["database"], "queue": ready.data()["queue"]});
            assert_eq!(named, unavailable, "{round}");
            assert_eq!(process.get("/health/live").await.status, 200, "{round}");
        }

        match round {
            "paused" => alone.unpause(Server::Database).await,
            _ => alone.start(Server::Database).await,
        }
        for answer in &placed {
            eventually("the order is not decided", async || {
                let found = api.get(answer.header("location")).await;
                (found.status == 200 && found.data()["status"] == "reserved").then_some(())
            })
            .await;
        }
        for process in [api, &cluster.workers[0], &cluster.workers[1]] {
            eventually("it is not ready", async || {
                (process.get("/health/ready").await.status == 200).then_some(())
            })
            .await;
        }
    }
    assert_eq!(api.books(product).await.reserved, 1 + 2 * 4);
    all_is_decided(&alone.place).await;
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
