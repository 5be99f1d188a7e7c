//! The life of orders through several APIs and workers: each is moved once, whoever asks, sweeps, or dies meanwhile.

use reqwest::Url;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp},
    sync::Notify,
};

use super::*;
use crate::api::life;

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
async fn the_last_piece_given_back_is_sold_at_every_api() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    life::the_last_piece_goes_round(&cluster.apis[0], &cluster.apis[1]).await;
    life::pieces_come_one_by_one(&cluster.apis[0], &cluster.apis[1]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn one_key_through_two_apis() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 3, &[]).await;
    life::one_order_for_twenty_requests(&cluster.clients()).await;
    life::one_of_these_products(&cluster.clients(), 8, 15).await;
    life::keys_meet(&cluster.clients(), 6, 800).await;
    all_is_decided(&place).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_key_outlives_the_broker() {
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 2, 1, &[]).await;
    let product = life::one_order_for_twenty_requests(&cluster.clients()).await;
    let order = cluster.apis[0].all("/api/orders").await;
    alone.restart(Server::Broker).await;
    for api in cluster.clients() {
        let answer = eventually("orders do not get in line", async || {
            let answer = api.order_with(product, 7, &[("Idempotency-Key", life::KEY)]).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        // A verdict that comes too late for the deadline is there all the same.
        let found = match answer.status {
            202 => api.verdict(answer.header("location")).await,
            _ => answer.data().clone(),
        };
        assert_eq!(&found, &order[0], "{answer:?}");
        let other = api.order_with(product, 8, &[("Idempotency-Key", life::KEY)]).await;
        assert_eq!((other.status, other.reason()), (422, "idempotency_key_reused"));
    }
    assert_eq!(cluster.apis[1].inventory(product).await, [100, 93, 7]);
}

/// What every worker finds is decided once, and what is paid in time stays so.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn two_workers_sweep_and_no_piece_comes_back_twice() {
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
    // What both workers found stands in line twice: behind it, nothing has moved.
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

/// A payment that was answered 200 stands, and each order leaves the stock once, though each is paid twice, and the
/// workers die in the middle.
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

    let told = Arc::new(watch::Sender::new(0));
    let payments: Vec<_> =
        orders.iter().cloned().flat_map(|order| [(order.clone(), 0), (order, 1)]).collect();
    let paying = tokio::spawn({
        let (apis, told) = (apis.clone(), told.clone());
        stream::iter(payments)
            .map(move |(order, api)| {
                let (api, told) = (apis[api].clone(), told.clone());
                async move {
                    let answer = api.pay(&order).await;
                    told.send_modify(|told| *told += 1);
                    answer
                }
            })
            .buffered(48)
            .collect::<Vec<_>>()
    });
    let until = async |count: usize| {
        timeout(PATIENCE, told.subscribe().wait_for(|told| *told >= count))
            .await
            .expect("no payments")
            .unwrap();
    };
    let mut killed_at = Vec::new();
    for (worker, count) in [(0, 150), (1, 700)] {
        until(count).await;
        cluster.workers[worker].kill9().await;
        killed_at.push(*told.borrow());
    }
    let answers = paying.await.unwrap();
    assert!(killed_at[1] < answers.len(), "the second kill came too late");

    let (mut paid, mut in_line) = (0, 0);
    for (answer, order) in answers.iter().zip(orders.iter().flat_map(|order| [order, order])) {
        assert_eq!(answer.id(), order);
        match answer.status {
            200 => paid += 1,
            202 => in_line += 1,
            _ => panic!("{answer:?}"),
        }
        // Answered or not: it stood in line, and so it is paid.
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
        "{paid} payments were answered 200, {in_line} 202; workers were killed after {killed_at:?} of them"
    );
    all_is_decided(&place).await;
    for (n, product) in products.iter().enumerate() {
        let pieces: u64 = (n..ORDERS).step_by(3).map(|n| 1 + n as u64 % 3).sum();
        assert_eq!(apis[1].ledger(*product, STOCK).await, BTreeMap::from([("paid".to_owned(), pieces)]));
    }
}

/// A line to the broker that can go dead, so that what is said on it is lost, and break.
struct Line {
    amqp_url: String,
    end: Arc<LineEnd>,
}

struct LineEnd {
    /// What was said into the dead line; `None` while it works.
    lost: watch::Sender<Option<Vec<u8>>>,
    breaks: Notify,
}

impl Line {
    async fn to_the_broker(place: &Place) -> Self {
        let mut url: Url = place.amqp_url.parse().unwrap();
        let broker = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let end = Arc::new(LineEnd { lost: watch::Sender::new(None), breaks: Notify::new() });
        let accepting = end.clone();
        tokio::spawn(async move {
            while let Ok((api, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(&broker).await else { continue };
                let ((from_api, to_api), (from_broker, to_broker)) = (api.into_split(), broker.into_split());
                let end = accepting.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = end.carry(from_api, to_broker, true) => {}
                        () = end.carry(from_broker, to_api, false) => {}
                        () = end.breaks.notified() => {}
                    }
                });
            }
        });
        Self { amqp_url: url.into(), end }
    }

    fn goes_dead(&self) {
        self.end.lost.send_replace(Some(Vec::new()));
    }

    /// Waits until this was said into the dead line.
    async fn lost(&self, words: &str) {
        let lost = |lost: &Option<Vec<u8>>| String::from_utf8_lossy(lost.as_ref().unwrap()).contains(words);
        timeout(PATIENCE, self.end.lost.subscribe().wait_for(lost)).await.expect("nobody said so").unwrap();
    }

    /// It breaks, and the next one works.
    fn breaks(&self) {
        self.end.lost.send_replace(None);
        self.end.breaks.notify_waiters();
    }
}

impl LineEnd {
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

/// Nobody knows whether what was under way arrived. It did not, and it is sent again: also for clients who do not wait,
/// who are told where to look.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn what_is_lost_on_the_way_to_the_broker_is_sent_again() {
    let place = servers().await.fresh().await;
    let line = Line::to_the_broker(&place).await;
    let api = App::start_role("api", &place, &[("AMQP_URL", &line.amqp_url)]).await;
    let _worker = App::start_role("worker", &place, &[]).await;
    let products = join_all((0..3).map(|_| api.create_stocked("Kaos Polos", 10))).await;
    let mut reserved = Vec::new();
    for product in &products {
        reserved.push(api.order(*product, 1).await.id().to_owned());
    }

    line.goes_dead();
    let not_to_wait = [("Prefer", "respond-async")];
    let (order, payment, waiting) = tokio::join!(
        api.order_with(products[0], 7, &not_to_wait),
        api.change(&reserved[1], "payment", &not_to_wait),
        async {
            let (waiting, ()) = tokio::join!(api.order(products[2], 8), async {
                join_all(["\"total\":7", "\"change\":\"pay\"", "\"total\":8"].map(|words| line.lost(words)))
                    .await;
                line.breaks();
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
    // Its verdict may have gone to the line that broke.
    assert!([201, 202].contains(&waiting.status), "{waiting:?}");
    assert_eq!(api.verdict(waiting.header("location")).await["status"], "reserved");
    let inventories = join_all(products.iter().map(|product| api.inventory(*product))).await;
    assert_eq!(inventories, [[10, 2, 8], [9, 9, 0], [10, 1, 9]]);
}

/// An order whose client left with 202 gets its verdict, also when it gathered behind one that the broker never took, and
/// was still in this process when that was known.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn who_was_told_to_look_later_finds_a_verdict() {
    let place = servers().await.fresh().await;
    let line = Line::to_the_broker(&place).await;
    let api = App::start_role("api", &place, &[("AMQP_URL", &line.amqp_url)]).await;
    let _worker = App::start_role("worker", &place, &[]).await;
    let product = api.create_stocked("Kaos Polos", 1_000).await;
    let placed = api.order(product, 1).await;
    assert_eq!(api.verdict(placed.header("location")).await["status"], "reserved");

    line.goes_dead();
    let for_a_second = [("Prefer", "wait=1")];
    let (first, behind) = tokio::join!(api.order_with(product, 2, &for_a_second), async {
        line.lost("\"total\":2").await;
        api.order_with(product, 3, &for_a_second).await
    });
    let mut told = vec![first, behind];
    let refused = eventually("it is never known that the line is dead", async || {
        let answer = api.order_with(product, 4, &for_a_second).await;
        if answer.status == 202 {
            told.push(answer);
            return None;
        }
        Some(answer)
    })
    .await;
    assert_eq!((refused.status, refused.reason()), (503, "queue_unavailable"));
    line.breaks();
    for answer in &told {
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(api.verdict(answer.header("location")).await["status"], "reserved");
    }
    all_is_decided(&place).await;
    let reserved = 1 + 2 + 3 + 4 * (told.len() as u64 - 2);
    assert_eq!(api.inventory(product).await, [1_000, 1_000 - reserved, reserved]);
}
