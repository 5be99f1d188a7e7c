//! The broker or the database goes away, and comes back.

use futures_util::future::join_all;
use rustix::process::Signal;

use super::*;
use crate::support::servers::Server;

/// While the broker is away, waiting clients get 202, new orders 503 at once, and requests that need no queue are served. When
/// it is back, everything goes on without help.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_broker_dies_and_comes_back() {
    const PRODUCTS: usize = 4;
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 2, 2, &[]).await;
    let [one, other] = [&*cluster.apis[0], &*cluster.apis[1]];
    let products = join_all((0..PRODUCTS).map(|_| one.create_stocked("Kaos Polos", 100))).await;
    for product in &products {
        assert_eq!(other.order(*product, 1).await.status, 201);
    }

    let notices = other.create_stocked("Kaos Garis", 100).await;

    // Orders that are queued, and not decided, because the workers are frozen.
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
        eventually("orders are not refused", async || {
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
            eventually("orders are not queued", async || {
                let answer = api.order(product, 3).await;
                (answer.status != 503).then(|| assert_eq!(answer.status, 201, "{answer:?}"))
            })
            .await;
        }
    }
    for product in &products {
        assert_eq!(other.reservations(*product).await.reserved, 1 + 2 + 3 + 3);
    }
    for process in [one, other, &cluster.workers[0], &cluster.workers[1]] {
        eventually("it is not ready", async || {
            (process.get("/health/ready").await.status == 200).then_some(())
        })
        .await;
    }
    all_is_decided(&alone.place).await;
}

/// While the database is away, orders are queued: waiting clients get 202, reads 503. When it is back, the orders are
/// decided.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_database_dies_and_comes_back() {
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 1, 2, &[("ORDER_TIMEOUT", "1s")]).await;
    let api = &*cluster.apis[0];
    let product = api.create_stocked("Kaos Polos", 100).await;
    let mut placed = vec![api.order(product, 1).await];
    // First its processes are frozen, with their connections open; then they are killed.
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
    assert_eq!(api.reservations(product).await.reserved, 1 + 2 * 4);
    all_is_decided(&alone.place).await;
}
