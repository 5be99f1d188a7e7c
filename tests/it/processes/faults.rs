//! Kills and stops under load: what was answered 201 is stored, and the books balance.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    support::harness::{App, Client, Pair, RawConnection, TIMEOUT, eventually, order_request},
    support::servers::{QueueInfo, servers},
};

on_both_pairs!(
    killed_under_load_again_and_again,
    stopped_under_load,
    what_is_in_flight_is_finished,
    a_client_that_stalls_does_not_hold_up_the_end,
);

/// How many buyers order at a time.
const BUYERS: usize = 64;

/// Buyers who order one after the other, 1 to 3 pieces each time, until nobody answers any more.
struct Rush {
    buyers: JoinSet<()>,
    seen: Arc<watch::Sender<Seen>>,
}

/// What the buyers of a rush were told.
#[derive(Default)]
struct Seen {
    /// Total by order id, for each product.
    accepted: BTreeMap<u64, BTreeMap<String, u64>>,
    accepted_count: usize,
    refused_count: usize,
}

impl Rush {
    fn start(client: &Client, products: &[u64]) -> Self {
        let seen = Arc::new(watch::Sender::new(Seen::default()));
        let mut buyers = JoinSet::new();
        for buyer in 0..BUYERS {
            let (client, seen, product) = (client.clone(), seen.clone(), products[buyer % products.len()]);
            buyers.spawn(async move {
                let mut total = 1 + buyer as u64 % 3;
                while let Ok(answer) = client.try_order(product, total).await {
                    match answer.status {
                        201 => seen.send_modify(|seen| {
                            let id = answer.data()["id"].as_str().unwrap().to_owned();
                            assert_eq!(answer.data()["total"], total);
                            let before = seen.accepted.entry(product).or_default().insert(id, total);
                            assert_eq!(before, None, "two buyers got one order");
                            seen.accepted_count += 1;
                        }),
                        400 if answer.reason() == "insufficient_stock" => {
                            seen.send_modify(|seen| seen.refused_count += 1);
                        }
                        _ => panic!("{answer:?}"),
                    }
                    total = total % 3 + 1;
                }
            });
        }
        Self { buyers, seen }
    }

    /// Waits until the buyers have seen this.
    async fn until(&self, enough: impl FnMut(&Seen) -> bool) {
        timeout(TIMEOUT, self.seen.subscribe().wait_for(enough))
            .await
            .expect("it never comes so far")
            .unwrap();
    }

    /// Waits until no buyer gets an answer any more.
    async fn over(mut self) -> Seen {
        while let Some(buyer) = self.buyers.join_next().await {
            buyer.unwrap();
        }
        self.seen.send_replace(Seen::default())
    }
}

/// The moments depend on what buyers have seen, from the first answer to long after the stock ran out. An order that was
/// not answered may be stored or not; an order that was answered is.
async fn killed_under_load_again_and_again(pair: Pair) {
    const SCARCE: u64 = 1_000;
    const PLENTY: u64 = 1_000_000;
    let moments: [fn(&Seen) -> bool; 8] = [
        |seen| seen.accepted_count >= 1,
        |seen| seen.accepted_count >= 10,
        |seen| seen.accepted_count >= 100,
        |seen| seen.accepted_count >= 333,
        |seen| seen.refused_count >= 1,
        |seen| seen.refused_count >= 200,
        |seen| seen.accepted_count >= 1,
        |seen| seen.accepted_count >= 500,
    ];
    let mut app = App::start(pair).await;
    let scarce = app.create_stocked("Kaos Polos", SCARCE).await;
    let plenty = app.create_stocked("Kaos Garis", PLENTY).await;
    let mut promised: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();

    for (round, moment) in moments.into_iter().enumerate() {
        let rush = Rush::start(&app, &[scarce, plenty]);
        rush.until(moment).await;
        app.kill9().await;
        for (product, orders) in rush.over().await.accepted {
            promised.entry(product).or_default().extend(orders);
        }
        app.restart().await;

        let mut untold = 0;
        for (product, stock) in [(scarce, SCARCE), (plenty, PLENTY)] {
            app.lane_served(product).await;
            let books = app.reservations(product).await;
            assert_eq!(books.stored, stock, "round {round}");
            let promised = promised.entry(product).or_default();
            for (id, total) in &*promised {
                assert_eq!(
                    books.orders.get(id),
                    Some(total),
                    "round {round}: a promised order is lost: {id}"
                );
            }
            untold += books.orders.len() - promised.len();
        }
        assert!(untold <= (round + 1) * BUYERS, "round {round}: {untold} orders that nobody waited for");
    }
    assert!(app.inventory(scarce).await[1] < 3, "the scarce product was never sold out");
    let orders: Vec<_> = promised.into_values().flatten().collect();
    for (id, total) in orders.iter().step_by(29) {
        let found = app.get(&format!("/api/orders/{id}")).await;
        assert_eq!((found.status, &found.data()["total"]), (200, &json!(total)));
    }
}

/// A request that the program took gets its answer. So after a stop, what is stored is what was answered,
/// no more and no less.
async fn stopped_under_load(pair: Pair) {
    const STOCK: u64 = 1_000_000;
    let mut app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", STOCK).await;
    let mut promised = BTreeMap::new();
    for round in 0..3 {
        let rush = Rush::start(&app, &[product]);
        rush.until(|seen| seen.accepted_count >= 200).await;
        let asked = Instant::now();
        let status = app.terminate().await;
        assert_eq!(status.code(), Some(0), "round {round}");
        assert!(asked.elapsed().as_secs() < 10, "round {round}: it took {:?}", asked.elapsed());
        promised.append(rush.over().await.accepted.get_mut(&product).unwrap());
        app.restart().await;

        let books = app.reservations(product).await;
        assert_eq!(books.stored, STOCK);
        assert_eq!(books.orders, promised, "round {round}");
    }
}

/// Like [`stopped_under_load`], where it is certain how far each request had come: its head is read, its body is
/// not yet sent.
async fn what_is_in_flight_is_finished(pair: Pair) {
    let mut app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let body = json!({"product_id": product, "total": 1}).to_string();
    let mut in_flight = join_all((0..50).map(async |_| in_flight(&app, body.len()).await)).await;
    app.signal(Signal::TERM);
    app.refuses_connections().await;
    for wire in &mut in_flight {
        wire.send(body.as_bytes()).await;
    }
    for mut wire in in_flight {
        let answer = wire.answer("POST", "/api/orders").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert!(wire.read().await.is_none(), "the connection stays open");
    }
    assert_eq!(app.exited().await.code(), Some(0));
    app.restart().await;
    assert_eq!(app.inventory(product).await, [100, 50, 50]);
    assert_eq!(app.reservations(product).await.orders.len(), 50);
}

/// A request for an order whose head is read for certain: the program asks for the body.
async fn in_flight(client: &Client, body_length: usize) -> RawConnection {
    let mut wire = RawConnection::open(client).await;
    let head = format!(
        "POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\n\
         Content-Length: {body_length}\r\nExpect: 100-continue\r\n\r\n"
    );
    wire.send(head.as_bytes()).await;
    assert_eq!(wire.read().await.unwrap().0, StatusCode::CONTINUE);
    wire
}

/// The first signal leaves it time, but not for ever; the second one leaves none.
async fn a_client_that_stalls_does_not_hold_up_the_end(pair: Pair) {
    let mut app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;

    let _idle = RawConnection::open(&app).await;
    let stalled = in_flight(&app, 100).await;
    app.signal(Signal::TERM);
    app.refuses_connections().await;
    let asked = Instant::now();
    assert_eq!(app.terminate().await.code(), Some(128 + 15));
    assert!(asked.elapsed().as_secs() < 2, "the second signal took {:?}", asked.elapsed());
    drop(stalled);

    app.restart().await;
    let _idle = RawConnection::open(&app).await;
    let _stalled = in_flight(&app, 100).await;
    let asked = Instant::now();
    assert_eq!(app.terminate().await.code(), Some(0));
    assert!(asked.elapsed().as_secs() < 10, "it took {:?}", asked.elapsed());

    app.restart().await;
    assert_eq!(app.reservations(product).await.available, 100);
}

/// A connection on which nothing happens is no reason to stay.
#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() {
    let mut app = App::start(Pair::Embedded).await;
    let _silent = RawConnection::open(&app).await;
    let mut idle = RawConnection::open(&app).await;
    idle.send(b"GET /health/live HTTP/1.1\r\nHost: antre\r\n\r\n").await;
    idle.answer("GET", "/health/live").await;
    let asked = Instant::now();
    assert_eq!(app.terminate().await.code(), Some(0));
    assert!(asked.elapsed().as_secs() < 2, "it took {:?}", asked.elapsed());
    assert!(idle.read().await.is_none());
}

/// The database does not answer, and the buyers keep coming: when the lane is full they are sent away at once,
/// and only the orders that were queued are served later.
#[tokio::test]
async fn a_full_lane_refuses_at_once() {
    const CAPACITY: usize = 10_000;
    const IN_HAND: usize = 1_000; // what a worker takes at most
    let app = App::start_with(Pair::Embedded, &[("ORDER_TIMEOUT", "1ms")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let other = app.create_stocked("Kaos Garis", 100).await;
    let database = app.lock_database().await;

    const CONNECTIONS: usize = 50;
    const EACH: usize = (CAPACITY + IN_HAND) / CONNECTIONS + 2;
    let requests = order_request(product, 1).repeat(EACH);
    let buyers = join_all((0..CONNECTIONS).map(async |_| {
        let mut wire = RawConnection::open(&app).await;
        wire.send(requests.as_bytes()).await;
        let mut pending = 0;
        for _ in 0..EACH {
            match wire.read().await.unwrap().0 {
                202 => pending += 1,
                status => assert_eq!(status, 503),
            }
        }
        pending
    }));
    let pending: usize = buyers.await.into_iter().sum();
    assert!((CAPACITY..=CAPACITY + IN_HAND).contains(&pending), "{pending} were queued");

    let refused = app.order_with(product, 1, &[("Prefer", "wait=5")]).await;
    assert_eq!((refused.status, refused.reason(), refused.header("retry-after")), (503, "lane_full", "1"));
    assert_eq!(refused.header("preference-applied"), "wait=1", "the millisecond, rounded up");
    assert_eq!(app.order(other, 1).await.status, 202, "another lane has nothing to do with it");
    assert_eq!(app.inventory(product).await, [100, 100, 0]);

    database.close().await.unwrap();
    app.lane_served(product).await;
    assert_eq!(app.reservations(product).await.reserved, 100);
    app.lane_served(other).await;
    assert_eq!(app.reservations(other).await.reserved, 1);
}

/// A stop is bounded, whatever stays away.
#[tokio::test]
async fn a_lost_database_does_not_delay_shutdown() {
    let mut app = App::start_with(Pair::Embedded, &[("ORDER_TIMEOUT", "1ms")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let database = app.lock_database().await;
    assert_eq!(app.order(product, 1).await.status, 202);
    let asked = Instant::now();
    assert_eq!(app.terminate().await.code(), Some(0));
    assert!(asked.elapsed().as_secs() < 10, "it took {:?}", asked.elapsed());
    database.close().await.unwrap();
    app.restart().await;
    assert_eq!(app.inventory(product).await, [100, 100, 0]);
}

/// A client that reads learns in time that the database does not answer, also while the reads of others are under way.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_unanswered_read_times_out() {
    let app = App::start(Pair::Servers).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = app.order(product, 1).await;
    let paths = [
        "/api/products".to_owned(),
        "/api/orders".to_owned(),
        format!("/api/products/{product}"),
        format!("/api/products/{product}/inventory"),
        order.header("location").to_owned(),
    ];
    let database = app.hold_reads().await;
    for round in 0..3 {
        let asked = Instant::now();
        let mut answers = join_all(paths.iter().map(|path| app.get(path))).await;
        answers.push(app.pay(order.id()).await);
        for answer in answers {
            assert_eq!((answer.status, answer.reason()), (503, "database_unavailable"), "{answer:?}");
            assert_eq!(answer.header("retry-after"), "1");
        }
        // Three seconds for the reads together, and as much for the payment.
        assert!(asked.elapsed().as_secs() < 8, "round {round}: {:?}", asked.elapsed());
    }
    database.close().await.unwrap();
    eventually("it stays away", async || (app.get(&paths[3]).await.status == 200).then_some(())).await;
    assert_eq!(app.pay(order.id()).await.status, 200);
    assert_eq!(app.inventory(product).await, [4, 4, 0]);
}

/// Somebody keeps one product's row locked, as a report or a person with a console does.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_locked_product_delays_no_other() {
    for lanes in ["product", "hash:1"] {
        let place = servers().await.fresh().await;
        let settings = [("LANES", lanes), ("ORDER_TIMEOUT", "4s")];
        let worker = App::start_role("worker", &place, &settings).await;
        let api = App::start_role("api", &place, &settings).await;
        let locked = api.create_stocked("Kaos Polos", 100).await;
        let other = api.create_stocked("Kaos Garis", 100).await;
        let mut somebody = MySqlConnection::connect(&place.database_url).await.unwrap();
        somebody.execute("BEGIN").await.unwrap();
        let lock = format!("SELECT 1 FROM inventories WHERE product_id = {locked} FOR UPDATE");
        somebody.execute(lock.as_str()).await.unwrap();
        let waiting = join_all((0..5).map(async |_| {
            let answer = api.order(locked, 1).await;
            assert_eq!(answer.status, 202);
            answer.header("location").to_owned()
        }));
        let others = async {
            for _ in 0..10 {
                assert_eq!(api.order(other, 1).await.status, 201, "{lanes}");
            }
            assert_eq!(worker.get("/health/ready").await.status, 200);
        };
        let (waiting, ()) = tokio::join!(waiting, others);
        somebody.execute("ROLLBACK").await.unwrap();
        for location in waiting {
            assert_eq!(api.verdict(&location).await["status"], "reserved");
        }
        assert_eq!(api.inventory(locked).await, [100, 95, 5]);
        assert_eq!(api.inventory(other).await, [100, 90, 10]);
    }
}

/// Somebody deleted a product that has reservations: their payment is answered 500, and stops nobody else.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn only_the_undecidable_payment_fails() {
    let place = servers().await.fresh().await;
    let settings = [("LANES", "hash:1")];
    let _worker = App::start_role("worker", &place, &settings).await;
    let api = App::start_role("api", &place, &settings).await;
    let gone = api.create_stocked("Kaos Polos", 10).await;
    let other = api.create_stocked("Kaos Garis", 100).await;
    let order = api.order(gone, 1).await.id().to_owned();
    let mut somebody = MySqlConnection::connect(&place.database_url).await.unwrap();
    somebody.execute(format!("DELETE FROM inventories WHERE product_id = {gone}").as_str()).await.unwrap();
    let orders = join_all((0..20).map(async |_| api.order(other, 1).await.status));
    let (payment, orders) = tokio::join!(api.pay(&order), orders);
    assert_eq!((payment.status, payment.reason()), (500, "internal_error"));
    assert_eq!(orders, [201; 20]);
    let path = format!("/api/orders/{order}");
    assert_eq!(api.get(&path).await.data()["status"], "reserved", "one truth");
    let dead = |queue: &QueueInfo| queue.name.ends_with("orders.dead") && queue.messages_ready == 1;
    servers().await.queues_when(&place.queue_prefix, |queues| queues.iter().any(dead)).await;
}
