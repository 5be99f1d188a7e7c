//! Changes of orders through several APIs and workers. Each is made once, whichever process submits it, sweeps or dies.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::Url;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp},
    sync::{Notify, watch},
    time::timeout,
};

use super::{Cluster, all_is_decided, workers_serve};
use crate::{
    api::life::{self, keys},
    support::{
        harness::{App, TIMEOUT, eventually},
        servers::{Place, Server, servers},
    },
};

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn paid_at_one_api_and_cancelled_at_the_other() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    life::each_ends_as_exactly_one(&[&cluster.apis[0], &cluster.apis[1]]).await;
    life::each_ends_as_exactly_one(&[&cluster.apis[1], &cluster.apis[0]]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_last_piece_that_is_returned_is_sold_at_every_api() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    life::the_last_piece_is_cancelled_and_sold_again(&cluster.apis[0], &cluster.apis[1]).await;
    life::pieces_come_one_by_one(&cluster.apis[0], &cluster.apis[1]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn one_key_through_two_apis() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[]).await;
    keys::one_order_for_twenty_requests(&cluster.clients()).await;
    keys::one_of_these_products(&cluster.clients(), 8, 15).await;
    keys::keys_meet(&cluster.clients(), 6, 800).await;
    all_is_decided(&place).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_key_outlives_the_broker() {
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 2, 1, &[]).await;
    let product = keys::one_order_for_twenty_requests(&cluster.clients()).await;
    let order = cluster.apis[0].all("/api/orders").await;
    alone.restart(Server::Broker).await;
    for api in cluster.clients() {
        let answer = eventually("orders are not queued", async || {
            let answer = api.order_with(product, 7, &[("Idempotency-Key", keys::KEY)]).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        // The verdict may come after the deadproxy.
        let found = match answer.status {
            202 => api.verdict(answer.header("location")).await,
            _ => answer.data().clone(),
        };
        assert_eq!(&found, &order[0], "{answer:?}");
        let other = api.order_with(product, 8, &[("Idempotency-Key", keys::KEY)]).await;
        assert_eq!((other.status, other.reason()), (422, "idempotency_key_reused"));
    }
    assert_eq!(cluster.apis[1].inventory(product).await, [100, 93, 7]);
}

/// Both workers find every expired reservation; each expires once, and orders that were paid in time stay paid.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn two_workers_sweep_and_no_piece_is_released_twice() {
    const ORDERS: u64 = 240;
    const STOCK: u64 = 1_000;
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[("RESERVATION_TTL", "2s")]).await;
    let api = &cluster.apis[0];
    let products = join_all((0..3).map(|_| api.create_stocked("Kaos Polos", STOCK))).await;
    workers_serve(&place, products.len(), 2).await;
    let orders = join_all((0..ORDERS).map(|n| api.order(products[n as usize % 3], 1 + n % 4))).await;
    let reserved = Instant::now();
    assert!(orders.iter().all(|answer| answer.status == 201));
    let payments = orders.iter().step_by(5).map(|order| cluster.apis[1].pay(order.id()));
    for payment in join_all(payments).await {
        assert_eq!((payment.status, &payment.data()["status"]), (200, &json!("paid")), "{payment:?}");
    }
    eventually("reservations do not expire", async || {
        let inventories = join_all(products.iter().map(|product| api.inventory(*product))).await;
        inventories
            .iter()
            .all(|[stored, available, reserved]| stored == available && *reserved == 0)
            .then_some(())
    })
    .await;
    let back = reserved.elapsed();
    eprintln!("all pieces were back {back:?} after the last reservation");
    assert!(back < Duration::from_secs(5), "{back:?}");
    // Expiries that both workers found are queued twice: the second copy changes nothing.
    join_all(products.iter().map(|product| api.lane_served(*product))).await;
    all_is_decided(&place).await;
    let mut pieces = BTreeMap::<_, u64>::new();
    for product in &products {
        for (status, total) in api.ledger(*product, STOCK).await {
            *pieces.entry(status).or_default() += total;
        }
    }
    let paid: u64 = orders.iter().step_by(5).map(|order| order.data()["total"].as_u64().unwrap()).sum();
    let all: u64 = (0..ORDERS).map(|n| 1 + n % 4).sum();
    assert_eq!(pieces, BTreeMap::from([("paid".to_owned(), paid), ("expired".to_owned(), all - paid)]));
}

/// Each order is paid twice, and workers are killed in between. A payment that was answered 200 is stored, and each order
/// leaves the stock once.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn workers_are_killed_in_the_middle_of_payments() {
    const ORDERS: usize = 900;
    const STOCK: u64 = 10_000;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[]).await;
    let apis = [(*cluster.apis[0]).clone(), (*cluster.apis[1]).clone()];
    let products = join_all((0..3).map(|_| apis[0].create_stocked("Kaos Polos", STOCK))).await;
    workers_serve(&place, products.len(), 3).await;
    let orders: Vec<_> = stream::iter(0..ORDERS)
        .map(|n| apis[n % 2].order(products[n % 3], 1 + n as u64 % 3))
        .buffered(64)
        .map(|answer| answer.id().to_owned())
        .collect()
        .await;

    let answered = Arc::new(watch::Sender::new(0));
    let payments: Vec<_> =
        orders.iter().cloned().flat_map(|order| [(order.clone(), 0), (order, 1)]).collect();
    let paying = tokio::spawn({
        let (apis, answered) = (apis.clone(), answered.clone());
        stream::iter(payments)
            .map(move |(order, api)| {
                let (api, answered) = (apis[api].clone(), answered.clone());
                async move {
                    let answer = api.pay(&order).await;
                    answered.send_modify(|count| *count += 1);
                    answer
                }
            })
            .buffered(48)
            .collect::<Vec<_>>()
    });
    let until = async |count: usize| {
        timeout(TIMEOUT, answered.subscribe().wait_for(|answered| *answered >= count))
            .await
            .expect("no payments")
            .unwrap();
    };
    let mut killed_at = Vec::new();
    for (worker, count) in [(0, 150), (1, 700)] {
        until(count).await;
        cluster.workers[worker].kill9().await;
        killed_at.push(*answered.borrow());
    }
    let answers = paying.await.unwrap();
    assert!(killed_at[1] < answers.len(), "the second kill came too late");

    let (mut paid, mut queued) = (0, 0);
    for (answer, order) in answers.iter().zip(orders.iter().flat_map(|order| [order, order])) {
        assert_eq!(answer.id(), order);
        match answer.status {
            200 => paid += 1,
            202 => queued += 1,
            _ => panic!("{answer:?}"),
        }
        // Answered 200 or 202: it was queued, so it is paid.
        eventually("it is not paid", async || {
            let status = apis[0].get(&format!("/api/orders/{order}")).await.data()["status"].clone();
            assert!(
                status == "paid" || (status == "reserved" && answer.status == 202),
                "{status}: {answer:?}"
            );
            (status == "paid").then_some(())
        })
        .await;
    }
    eprintln!(
        "{paid} payments were answered 200, {queued} 202; workers were killed after {killed_at:?} of them"
    );
    all_is_decided(&place).await;
    for (n, product) in products.iter().enumerate() {
        let pieces: u64 = (n..ORDERS).step_by(3).map(|n| 1 + n as u64 % 3).sum();
        assert_eq!(apis[1].ledger(*product, STOCK).await, BTreeMap::from([("paid".to_owned(), pieces)]));
    }
}

/// A TCP proxy in front of the broker. It can swallow what the API sends, and break its connections.
struct Proxy {
    amqp_url: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// The bytes that were swallowed; `None` while the proxy works.
    lost: watch::Sender<Option<Vec<u8>>>,
    breaks: Notify,
}

impl Proxy {
    async fn to_the_broker(place: &Place) -> Self {
        let mut url: Url = place.amqp_url.parse().unwrap();
        let broker = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let shared = Arc::new(Shared { lost: watch::Sender::new(None), breaks: Notify::new() });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((api, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&broker).await else { continue };
                let ((from_api, to_api), (from_broker, to_broker)) = (api.into_split(), broker.into_split());
                let shared = accepting.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = shared.carry(from_api, to_broker, true) => {}
                        () = shared.carry(from_broker, to_api, false) => {}
                        () = shared.breaks.notified() => {}
                    }
                });
            }
        });
        Self { amqp_url: url.into(), shared }
    }

    fn swallow(&self) {
        self.shared.lost.send_replace(Some(Vec::new()));
    }

    /// Waits until these bytes were swallowed.
    async fn lost(&self, words: &str) {
        let lost = |lost: &Option<Vec<u8>>| String::from_utf8_lossy(lost.as_ref().unwrap()).contains(words);
        timeout(TIMEOUT, self.shared.lost.subscribe().wait_for(lost))
            .await
            .expect("it was not sent")
            .unwrap();
    }

    /// Breaks all connections. New ones work.
    fn break_all(&self) {
        self.shared.lost.send_replace(None);
        self.shared.breaks.notify_waiters();
    }
}

impl Shared {
    async fn carry(&self, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, is_api: bool) {
        let mut bytes = vec![0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let is_dead = self.lost.borrow().is_some();
            if is_dead && is_api {
                self.lost.send_modify(|lost| lost.iter_mut().for_each(|lost| lost.extend(&bytes[..count])));
            } else if !is_dead && to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// An API does not know whether a message in flight arrived. It did not, and the API sends it again, for detached commands
/// too.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_message_that_is_lost_on_the_way_to_the_broker_is_sent_again() {
    let place = servers().await.fresh().await;
    let proxy = Proxy::to_the_broker(&place).await;
    let api = App::start_role("api", &place, &[("AMQP_URL", &proxy.amqp_url)]).await;
    let _worker = App::start_role("worker", &place, &[]).await;
    let products = join_all((0..3).map(|_| api.create_stocked("Kaos Polos", 10))).await;
    let mut reserved = Vec::new();
    for product in &products {
        reserved.push(api.order(*product, 1).await.id().to_owned());
    }

    proxy.swallow();
    let detached = [("Prefer", "respond-async")];
    let (order, payment, waiting) = tokio::join!(
        api.order_with(products[0], 7, &detached),
        api.change(&reserved[1], "payment", &detached),
        async {
            let (waiting, ()) = tokio::join!(api.order(products[2], 8), async {
                join_all(["\"total\":7", "\"change\":\"pay\"", "\"total\":8"].map(|words| proxy.lost(words)))
                    .await;
                proxy.break_all();
            });
            waiting
        }
    );
    assert_eq!((order.status, payment.status), (202, 202), "{order:?} {payment:?}");
    assert_eq!(api.verdict(order.header("location")).await["status"], "reserved");
    eventually("it is not paid", async || {
        (api.get(payment.header("location")).await.data()["status"] == "paid").then_some(())
    })
    .await;
    // Its verdict may have been sent to the connection that broke.
    assert!([201, 202].contains(&waiting.status), "{waiting:?}");
    assert_eq!(api.verdict(waiting.header("location")).await["status"], "reserved");
    let inventories = join_all(products.iter().map(|product| api.inventory(*product))).await;
    assert_eq!(inventories, [[10, 2, 8], [9, 9, 0], [10, 1, 9]]);
}

/// An order that was answered 202 gets its verdict, even if it was in the API's lane buffer, behind a message that the broker
/// never took.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_order_answered_202_gets_a_verdict() {
    let place = servers().await.fresh().await;
    let proxy = Proxy::to_the_broker(&place).await;
    let api = App::start_role("api", &place, &[("AMQP_URL", &proxy.amqp_url)]).await;
    let _worker = App::start_role("worker", &place, &[]).await;
    let product = api.create_stocked("Kaos Polos", 1_000).await;
    let placed = api.order(product, 1).await;
    assert_eq!(api.verdict(placed.header("location")).await["status"], "reserved");

    proxy.swallow();
    let for_a_second = [("Prefer", "wait=1")];
    let (first, behind) = tokio::join!(api.order_with(product, 2, &for_a_second), async {
        proxy.lost("\"total\":2").await;
        api.order_with(product, 3, &for_a_second).await
    });
    let mut pending = vec![first, behind];
    let refused = eventually("orders are never refused", async || {
        let answer = api.order_with(product, 4, &for_a_second).await;
        if answer.status == 202 {
            pending.push(answer);
            return None;
        }
        Some(answer)
    })
    .await;
    assert_eq!((refused.status, refused.reason()), (503, "queue_unavailable"));
    proxy.break_all();
    for answer in &pending {
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(api.verdict(answer.header("location")).await["status"], "reserved");
    }
    all_is_decided(&place).await;
    let reserved = 1 + 2 + 3 + 4 * (pending.len() as u64 - 2);
    assert_eq!(api.inventory(product).await, [1_000, 1_000 - reserved, reserved]);
}
