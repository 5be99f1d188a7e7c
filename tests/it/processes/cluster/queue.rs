//! A failure of one lane does not spread; nor does the broker's memory alarm, or a setting that differs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::{Cluster, all_is_decided, workers_are_ready};
use crate::{
    support::harness::{Answer, App, Client, eventually},
    support::servers::{Place, Server, servers},
};

/// What a process logs of a lane that does not work.
const OTHERS_GO_ON: &str = "others are not concerned";

/// The answer comes at once.
async fn at_once<T>(answer: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(2), answer).await.expect("it is not answered at once")
}

async fn refused_at_once(api: &Client, product: u64, reason: &str) {
    let answer = at_once(api.order(product, 1)).await;
    assert_eq!((answer.status, answer.reason()), (503, reason), "{answer:?}");
}

async fn is_sold_again(api: &Client, product: u64) {
    eventually("the product is not sold again", async || {
        let answer = api.order(product, 1).await;
        assert!([201, 202, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 201).then_some(())
    })
    .await;
}

async fn channel(place: &Place) -> (lapin::Connection, lapin::Channel) {
    let connection = lapin::Connection::connect(&place.amqp_url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// How many messages are among the dead letters.
async fn dead_letters(place: &Place) -> u64 {
    let name = format!("{}orders.dead", place.queue_prefix);
    servers().await.queues(&name).await[0].messages
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_lane_that_is_declared_differently_stops_no_other() {
    // Alone, because the answers are timed.
    let alone = servers().await.alone().await;
    let place = &alone.place;
    let (_connection, channel) = channel(place).await;
    let lane = format!("{}orders.product.2", place.queue_prefix);
    let declare =
        channel.queue_declare(lane.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default());
    declare.await.unwrap();

    let cluster = Cluster::start(place, 1, 1, &[]).await;
    let api = &*cluster.apis[0];
    let products = join_all((0..3).map(|_| api.create_stocked("Kaos Polos", 10_000))).await;
    assert_eq!(products.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3]));
    for _ in 0..20 {
        assert_eq!(at_once(api.order(1, 1)).await.status, 201);
        refused_at_once(api, 2, "queue_unavailable").await;
        assert_eq!(at_once(api.order(3, 1)).await.status, 201);
    }
    for process in [&cluster.apis[0], &cluster.workers[0]] {
        // A worker opens its lanes on tasks of their own: the others may be served long before.
        let line = eventually("the log does not name the lane", async || {
            process.log().lines().find(|line| line.contains(OTHERS_GO_ON)).map(str::to_owned)
        })
        .await;
        assert!(line.contains(&lane) && line.contains("inequivalent arg"), "{line}");
    }

    channel.queue_delete(lane.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    is_sold_again(api, 2).await;
    for (process, again) in
        [(&cluster.apis[0], "takes orders again"), (&cluster.workers[0], "serves the lane again")]
    {
        eventually("it is not in the log", async || process.log().contains(again).then_some(())).await;
        // It was tried many times, and reported once.
        let log = process.log();
        assert_eq!(log.matches(OTHERS_GO_ON).count(), 1, "{log}");
        assert_eq!(log.matches("Channel closed").count(), 0, "{log}");
    }
}

/// To consume a queue whose Raft server is down closes the connection for all consumers.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_lane_whose_raft_server_is_down_stops_no_other() {
    let alone = servers().await.alone().await;
    let mut cluster = Cluster::start(&alone.place, 1, 1, &[]).await;
    let api = (*cluster.apis[0]).clone();
    join_all((0..3).map(|_| api.create_stocked("Kaos Polos", 10_000))).await;
    for product in 1..=3 {
        assert_eq!(api.order(product, 1).await.status, 201);
    }
    let server = |what: &str| {
        format!(
            "ra:{what}_server(quorum_queues, {{'%2F_{}orders.product.2', node()}}).",
            alone.place.queue_prefix
        )
    };
    alone.rabbitmqctl(&["eval", &server("stop")]).await;
    cluster.workers[0].kill9().await;
    cluster.workers = vec![App::start_role("worker", &alone.place, &[]).await];
    for product in [1, 3] {
        is_sold_again(&api, product).await;
    }
    // The broker does not confirm the first order. Once that is known, later orders need not wait.
    let first = api.order_with(2, 1, &[("Prefer", "wait=1")]).await;
    assert!([202, 503].contains(&first.status), "{first:?}");
    eventually("its orders are not refused", async || {
        let answer = api.order_with(2, 1, &[("Prefer", "wait=1")]).await;
        (answer.status == 503).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(at_once(api.order(1, 1)).await.status, 201);
        assert_eq!(at_once(api.order(2, 1)).await.status, 503);
        assert_eq!(at_once(api.order(3, 1)).await.status, 201);
    }
    alone.rabbitmqctl(&["eval", &server("restart")]).await;
    is_sold_again(&api, 2).await;
    all_is_decided(&alone.place).await;
}

/// The broker cancels the consumer of a queue that is deleted. The lane is opened again; no other one moves.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_lane_that_is_deleted_is_opened_again_and_no_other_moves() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[]).await;
    let api = &*cluster.apis[0];
    join_all((0..2).map(|_| api.create_stocked("Kaos Polos", 10_000))).await;
    let before = super::workers_serve(&place, 2, 1).await;
    let (_connection, channel) = channel(&place).await;
    for _ in 0..3 {
        let lane = format!("{}orders.product.2", place.queue_prefix);
        channel.queue_delete(lane.into(), QueueDeleteOptions::default()).await.unwrap();
        assert_eq!(at_once(api.order(1, 1)).await.status, 201);
        is_sold_again(api, 2).await;
    }
    assert_eq!(super::workers_serve(&place, 2, 1).await, before);
    let log = cluster.apis[0].log();
    assert!(!log.contains("data: ["), "the payload of a returned message: {log}");
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn orders_are_refused_at_once_while_the_broker_is_short_of_memory() {
    let alone = servers().await.alone().await;
    let cluster = Cluster::start(&alone.place, 2, 1, &[]).await;
    let product = cluster.apis[0].create_stocked("Kaos Polos", 10_000).await;
    let other = cluster.apis[0].create_stocked("Kaos Garis", 10_000).await;
    workers_are_ready(&cluster).await;
    assert_eq!(cluster.apis[0].order(product, 1).await.status, 201);

    alone.rabbitmqctl(&["set_vm_memory_high_watermark", "0.0001"]).await;
    let mut first_answers: Vec<(usize, Answer)> = Vec::new();
    // The broker reports that it blocks when something is published, so each API may publish once before.
    for (n, api) in cluster.apis.iter().enumerate() {
        let first = api.order_with(product, 2, &[("Prefer", "wait=1")]).await;
        assert!([201, 202, 503].contains(&first.status), "{first:?}");
        first_answers.push((n, first));
    }
    for _ in 0..10 {
        for api in &cluster.apis {
            let answers = join_all([product, other].map(|product| at_once(api.order(product, 3)))).await;
            for answer in answers {
                assert_eq!((answer.status, answer.reason()), (503, "queue_unavailable"), "{answer:?}");
            }
            assert_eq!(at_once(api.get("/health/ready")).await.status, 503);
        }
    }
    // A flood of 503 answers does not fill the log.
    let log = cluster.apis[0].log();
    assert!(log.matches("answered with an error").count() < 10, "{log}");

    alone.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    for api in &cluster.apis {
        is_sold_again(api, product).await;
        is_sold_again(api, other).await;
        eventually("it is not ready", async || (api.get("/health/ready").await.status == 200).then_some(()))
            .await;
    }
    for (n, answer) in first_answers.iter().filter(|(_, answer)| answer.status == 202) {
        assert_eq!(cluster.apis[*n].verdict(answer.header("location")).await["status"], "reserved");
    }
    all_is_decided(&alone.place).await;
}

/// Shops fill their catalogue while the load balancer asks for readiness.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn creating_products_does_not_make_an_api_unready() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[]).await;
    let api = &cluster.apis[0];
    let mut sellers = JoinSet::new();
    for seller in 0..120 {
        let api = (**api).clone();
        sellers.spawn(async move {
            for n in 0..5 {
                api.create_product(&format!("Kaos {seller}.{n}")).await;
            }
        });
    }
    let mut asked = 0;
    while !sellers.is_empty() {
        let ready = api.get("/health/ready").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        asked += 1;
        let _ = timeout(Duration::from_millis(200), sellers.join_next()).await;
    }
    assert!(asked > 1);
    // Lanes that were not opened are opened by their first order.
    let product = api.create_stocked("Kaos Polos", 1).await;
    is_sold_again(api, product).await;
}

/// A worker that uses other lanes than the APIs, because a setting has changed, serves theirs as well.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn processes_with_different_lane_sets_serve_each_other() {
    let place = servers().await.fresh().await;
    let prefix = format!("{}other.", place.queue_prefix);
    let worker = App::start_role("worker", &place, &[]).await;
    let apis = join_all(
        [
            App::start_role("api", &place, &[]),
            App::start_role("api", &place, &[("LANES", "hash:2")]),
            App::start_role("api", &place, &[("QUEUE_PREFIX", &prefix), ("LANES", "hash:3")]),
        ]
        .into_iter(),
    )
    .await;
    let product = apis[0].create_stocked("Kaos Polos", 100).await;
    for api in &apis {
        let placed = api.order(product, 1).await;
        assert!([201, 202].contains(&placed.status), "{placed:?}");
        assert_eq!(api.verdict(placed.header("location")).await["status"], "reserved");
        assert_eq!(api.order(product, 1).await.status, 201);
    }
    assert_eq!(apis[0].inventory(product).await, [100, 94, 6]);
    eventually("it is not in the log", async || {
        let log = worker.log();
        let sets = [
            format!("QUEUE_PREFIX={} LANES=hash:2", place.queue_prefix),
            format!("QUEUE_PREFIX={prefix} LANES=hash:3"),
        ];
        sets.iter().all(|set| log.contains(set)).then_some(())
    })
    .await;
    // Orders are not stranded when no worker runs either: one that starts later finds them.
    let mut worker = worker;
    worker.kill9().await;
    let placed = apis[2].order_with(product, 1, &[("Prefer", "respond-async")]).await;
    assert_eq!(placed.status, 202);
    worker.restart().await;
    assert_eq!(apis[0].verdict(placed.header("location")).await["status"], "reserved");
}

/// Two installations with one prefix: orders of one must not be stored in the database of the other.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_worker_of_another_database_refuses_orders() {
    let place = servers().await.fresh().await;
    let other = servers().await.fresh().await;
    let shared = [("QUEUE_PREFIX", &*place.queue_prefix)];
    let api = App::start_role("api", &place, &[]).await;
    let elsewhere = App::start_role("api", &other, &shared).await;
    let worker = App::start_role("worker", &other, &shared).await;
    let products =
        [api.create_stocked("Kaos Polos", 100).await, elsewhere.create_stocked("Kaos Polos", 100).await];
    assert_eq!(products, [1, 1]);
    eventually("it is not served", async || (elsewhere.order(1, 1).await.status == 201).then_some(())).await;
    let reserved = elsewhere.inventory(1).await;
    for n in 1..=3 {
        let refused = at_once(api.order(1, 1)).await;
        assert_eq!((refused.status, refused.reason()), (503, "queue_unavailable"), "{refused:?}");
        assert!(refused.data()["message"].as_str().unwrap().contains("QUEUE_PREFIX"), "{refused:?}");
        let name = format!("{}orders.dead", place.queue_prefix);
        servers().await.queues_when(&name, |queues| queues[0].messages == n).await;
    }
    assert_eq!(elsewhere.order(1, 1).await.status, 201);
    assert_eq!(elsewhere.inventory(1).await, [100, reserved[1] - 1, reserved[2] + 1]);
    assert_eq!(api.inventory(1).await, [100, 100, 0]);
    let told = |process: &App| process.log().matches("QUEUE_PREFIX. Give each").count();
    for process in [&api, &worker] {
        eventually("it is not in the log", async || (told(process) > 0).then_some(())).await;
        assert_eq!(told(process), 1, "{}", process.log());
    }
}

/// The orders are decided after their clients were answered 202, and rejected. The rejections are stored, even if their API
/// was stopped.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_rejection_after_the_answer_202_is_stored() {
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 1, 1, &[("ORDER_TIMEOUT", "2s")]).await;
    let api = (*cluster.apis[0]).clone();
    let product = api.create_stocked("Kaos Polos", 1).await;
    assert_eq!(api.order(product, 1).await.status, 201);
    let order =
        async || api.order_with(product, 1, &[("Idempotency-Key", &uuid::Uuid::new_v4().to_string())]).await;

    // The worker is frozen until the deadline has passed.
    cluster.workers[0].signal(Signal::STOP);
    let late = join_all((0..20).map(|_| order())).await;
    cluster.workers[0].signal(Signal::CONT);
    let rejected = async |answer: &Answer| {
        assert_eq!(answer.status, 202, "{answer:?}");
        let found = api.verdict(answer.header("location")).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!("rejected"), &json!("insufficient_stock")));
    };
    for answer in &late {
        rejected(answer).await;
    }

    // The API is stopped while clients wait: it answers them 202, and ends in time.
    cluster.workers[0].signal(Signal::STOP);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let api = api.clone();
            let key = uuid::Uuid::new_v4().to_string();
            tokio::spawn(async move { api.order_with(product, 1, &[("Idempotency-Key", &key)]).await })
        })
        .collect();
    let lane = format!("{}orders.product.{product}", place.queue_prefix);
    servers().await.queues_when(&lane, |lanes| lanes.iter().any(|lane| lane.messages > 0)).await;
    let asked = Instant::now();
    assert_eq!(cluster.apis[0].terminate().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let waiting: Vec<_> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    cluster.workers[0].signal(Signal::CONT);
    cluster.apis[0].restart().await;
    let api = (*cluster.apis[0]).clone();
    for answer in &waiting {
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(api.verdict(answer.header("location")).await["status"], "rejected");
    }
    all_is_decided(&place).await;
    assert_eq!(dead_letters(&place).await, 0);
}

/// The broker dies while clients wait, and the API is stopped before it is back: the API ends in time.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_api_without_a_broker_ends_in_time() {
    let alone = servers().await.alone().await;
    let mut cluster = Cluster::start(&alone.place, 1, 0, &[]).await;
    let api = (*cluster.apis[0]).clone();
    let product = api.create_stocked("Kaos Polos", 1).await;
    let waiting = tokio::spawn(async move { api.order(product, 1).await });
    let lane = format!("{}orders.product.{product}", alone.place.queue_prefix);
    servers().await.queues_when(&lane, |lanes| lanes.iter().any(|lane| lane.messages > 0)).await;
    alone.kill(Server::Broker).await;
    let asked = Instant::now();
    assert_eq!(cluster.apis[0].terminate().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
    assert_eq!(waiting.await.unwrap().status, 202);
}
