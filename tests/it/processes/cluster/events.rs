//! The events that the shop's other services receive.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{Cluster, all_is_decided, workers_serve};
use crate::support::{
    harness::{Answer, App, TIMEOUT},
    servers::{Place, servers},
};

/// One of the shop's other services, with a queue that is bound to the exchange.
struct Receiver {
    connection: Connection,
    exchange: String,
    /// A routing key that matches its binding.
    key: String,
    received: Arc<watch::Sender<Vec<Received>>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Received {
    key: String,
    /// `null` for a message that is not antre's.
    event: Value,
}

impl Received {
    fn text(&self, field: &str) -> &str {
        self.event[field].as_str().unwrap()
    }

    fn product(&self) -> u64 {
        self.event["product_id"].as_u64().unwrap()
    }
}

impl Receiver {
    /// Receives matching events from now on.
    async fn bind(place: &Place, pattern: &str) -> Self {
        let options = ConnectionProperties::default();
        let connection = Connection::connect(&place.amqp_url, options).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let exchange = format!("{}antre.events", place.queue_prefix);
        let (name, options) = (queue.name().clone(), QueueBindOptions::default());
        channel
            .queue_bind(
                name.clone(),
                exchange.as_str().into(),
                pattern.into(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut messages =
            channel.basic_consume(name, "".into(), options, FieldTable::default()).await.unwrap();
        let received = Arc::new(watch::Sender::new(Vec::new()));
        let sender = received.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let key = message.routing_key.to_string();
                let kind = message.properties.kind().as_ref().map(|kind| kind.to_string());
                let events: Vec<Value> = match kind.as_deref() {
                    Some("antre.events.v1") => {
                        assert_eq!(
                            message.properties.delivery_mode(),
                            &Some(2),
                            "the message is not persistent"
                        );
                        let content_type = message.properties.content_type().as_ref().unwrap().to_string();
                        assert_eq!(content_type, "application/json");
                        let message: Value = serde_json::from_slice(&message.data).unwrap();
                        message["events"].as_array().unwrap().clone()
                    }
                    _ => vec![Value::Null],
                };
                let events = events.into_iter().map(|event| Received { key: key.clone(), event });
                sender.send_modify(|received| received.extend(events));
            }
        });
        let key = pattern.replace(['*', '#'], "test");
        Self { connection, exchange, key, received }
    }

    /// Waits until enough has arrived.
    async fn until(&self, enough: impl FnMut(&Vec<Received>) -> bool) {
        let mut received = self.received.subscribe();
        let waiting =
            timeout(TIMEOUT, received.wait_for(enough)).await.map(|received| drop(received.unwrap()));
        assert!(waiting.is_ok(), "only these arrived: {:?}", self.received.borrow());
    }

    /// Everything that was published before this call.
    async fn all(&self) -> Vec<Received> {
        let channel = self.connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let exchange = self.exchange.as_str().into();
        let key = self.key.as_str().into();
        channel.basic_publish(exchange, key, options, b"", properties).await.unwrap().await.unwrap();
        self.until(|received| received.last().is_some_and(|last| last.event.is_null())).await;
        let mut received = self.received.send_replace(Vec::new());
        received.pop();
        received
    }
}

/// The first event of each (order, status), in the order of arrival.
fn first_appearances(received: &[Received]) -> Vec<&Received> {
    let mut known = BTreeSet::new();
    received
        .iter()
        .filter(|received| known.insert((received.text("order_id"), received.text("status"))))
        .collect()
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn each_change_of_an_order_is_an_event() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[("RESERVATION_TTL", "2s")]).await;
    let api = &cluster.apis[0];
    let [all, expired] = [Receiver::bind(&place, "#").await, Receiver::bind(&place, "order.expired.*").await];
    let product = api.create_stocked("Kaos Polos", 10).await;
    let mut orders = Vec::new();
    for total in 1..=3 {
        orders.push(api.order(product, total).await);
    }
    assert_eq!(api.order(product, 5).await.status, 400, "a rejection is no event");
    let [paid, cancelled, late] = &orders[..] else { panic!("{orders:?}") };
    let mut paid_at = None;
    for _ in 0..2 {
        let answer = api.pay(paid.id()).await;
        assert_eq!(answer.status, 200);
        paid_at = Some(answer.data()["paid_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
        assert_eq!(api.cancel(cancelled.id()).await.status, 200);
    }
    assert_eq!(api.pay(cancelled.id()).await.status, 409);
    expired.until(|received| !received.is_empty()).await;

    let event_of = |order: &Answer, status: &str| {
        let expires_at: jiff::Timestamp = order.data()["expires_at"].as_str().unwrap().parse().unwrap();
        let mut event = json!({
            "order_id": order.id(), "product_id": product, "total": order.data()["total"], "status": status,
            "expires_at": expires_at.as_millisecond(),
        });
        if status == "paid" {
            event["paid_at"] = json!(paid_at.unwrap().as_millisecond());
        }
        Received { key: format!("order.{status}.{product}"), event }
    };
    let expected = [
        event_of(paid, "reserved"),
        event_of(cancelled, "reserved"),
        event_of(late, "reserved"),
        event_of(paid, "paid"),
        event_of(cancelled, "cancelled"),
        event_of(late, "expired"),
    ];
    all.until(|received| received.contains(&expected[5])).await;
    let received = all.all().await;
    assert_eq!(first_appearances(&received), expected.iter().collect::<Vec<_>>());
    let received = expired.received.borrow().clone();
    assert_eq!(first_appearances(&received), [&expected[5]]);
}

/// Orders, payments and cancellations run while workers are killed. Every stored order has its events, and the first events
/// of each product are in the order of its lane.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn workers_are_killed_and_every_stored_order_has_its_events() {
    const PRODUCTS: usize = 10;
    const ORDERS: usize = 100;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 1, 1, &[]).await;
    let api = (*cluster.apis[0]).clone();
    let receiver = Receiver::bind(&place, "#").await;
    // Some products sell out on the way.
    let stocks: BTreeMap<_, _> = stream::iter(0..PRODUCTS)
        .then(|n| {
            let stock = if n % 3 == 0 { 60 } else { 1_000 };
            let api = &api;
            async move { (api.create_stocked("Kaos Polos", stock).await, stock) }
        })
        .collect()
        .await;
    workers_serve(&place, PRODUCTS, 1).await;
    let one = *stocks.keys().nth(5).unwrap();
    let of_one = Receiver::bind(&place, &format!("order.*.{one}")).await;

    // One buyer for each product, who orders again as soon as the last order is queued: so the lane has the order of the
    // ids.
    let mut buyers = JoinSet::new();
    for &product in stocks.keys() {
        let api = api.clone();
        buyers.spawn(async move {
            let mut last = String::new();
            for n in 0..ORDERS as u64 {
                let answer = api.order_with(product, 1 + n % 2, &[("Prefer", "respond-async")]).await;
                if answer.status == 400 {
                    assert_eq!(answer.data()["available_stock"], 0, "{answer:?}"); // the sold-out cache knows it
                    continue;
                }
                assert_eq!(answer.status, 202, "{answer:?}");
                last = answer.header("location").to_owned();
            }
            last
        });
    }
    let distinct = |received: &Vec<Received>| first_appearances(received).len();
    let mut killed_at = Vec::new();
    for moment in [100, 350] {
        receiver.until(|received| distinct(received) >= moment).await;
        cluster.workers.pop().unwrap().kill9().await;
        killed_at.push(distinct(&receiver.received.borrow()));
        cluster.workers.push(App::start_role("worker", &place, &[]).await);
    }
    for last in buyers.join_all().await {
        api.verdict(&last).await;
    }

    // The same while they are paid and cancelled.
    let orders = api.all("/api/orders?status=reserved&limit=100").await;
    let ids: Vec<_> = orders.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect();
    let changing = tokio::spawn({
        let api = api.clone();
        stream::iter(ids.clone().into_iter().enumerate())
            .map(move |(n, id)| {
                let (api, what) = (api.clone(), ["payment", "cancellation"][n % 2]);
                async move { api.change(&id, what, &[("Prefer", "respond-async")]).await }
            })
            .buffered(16)
            .for_each(async |answer| assert!([200, 202].contains(&answer.status), "{answer:?}"))
    });
    let so_far = ids.len();
    receiver.until(|received| distinct(received) >= so_far + 100).await;
    cluster.workers.pop().unwrap().kill9().await;
    killed_at.push(distinct(&receiver.received.borrow()));
    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    changing.await.unwrap();
    receiver.until(|received| distinct(received) >= 2 * so_far).await;
    all_is_decided(&place).await;

    let received = receiver.all().await;
    let first = first_appearances(&received);
    eprintln!(
        "{} events, {} of them for the first time; workers were killed after {killed_at:?} of these",
        received.len(),
        first.len()
    );
    let stored = api.all("/api/orders?limit=100").await;
    let accepted: Vec<_> = stored.iter().filter(|order| order["status"] != "rejected").collect();
    assert_eq!(accepted.len(), ids.len());
    for (&product, &stock) in &stocks {
        let of_product: Vec<_> = first.iter().filter(|received| received.product() == product).collect();
        let (reserved, changed): (Vec<_>, Vec<_>) =
            of_product.iter().partition(|received| received.text("status") == "reserved");
        let expected: Vec<_> = accepted.iter().filter(|order| order["product_id"] == product).collect();
        let ids_of = |received: &[&&&Received]| {
            received.iter().map(|received| received.text("order_id").to_owned()).collect::<Vec<_>>()
        };
        let expected_ids: Vec<_> =
            expected.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids_of(&reserved), expected_ids, "product {product}: not in the order of the lane");
        // The status of each changed once, and the event says to which.
        let changed: BTreeMap<_, _> = changed
            .iter()
            .map(|received| (received.text("order_id").to_owned(), received.text("status")))
            .collect();
        for order in expected {
            let id = order["id"].as_str().unwrap();
            assert_eq!(changed.get(id).copied(), order["status"].as_str(), "{order}");
        }
        assert_eq!((changed.len(), of_product.len()), (reserved.len(), 2 * reserved.len()));
        api.ledger(product, stock).await;
    }
    let status_of = |key: &str| key.split('.').nth(1).unwrap().to_owned();
    for Received { key, event } in &received {
        assert_eq!(status_of(key), event["status"].as_str().unwrap());
    }
    // A queue that is bound to one product gets all of its events, and those of other products in the same messages.
    let of_one = of_one.all().await;
    assert!(received.len() >= of_one.len(), "{} {}", received.len(), of_one.len());
    let of_one: Vec<_> = of_one.into_iter().filter(|received| received.product() == one).collect();
    let all: Vec<_> = received.into_iter().filter(|received| received.product() == one).collect();
    assert_eq!(of_one, all);
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn events_can_be_turned_off() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[("EVENTS", "off")]).await;
    let api = &cluster.apis[0];
    let receiver = Receiver::bind(&place, "#").await;
    let product = api.create_stocked("Kaos Polos", 10).await;
    for n in 0..10 {
        let order = api.order(product, 1).await;
        assert_eq!(order.status, 201);
        let what = ["payment", "cancellation"][n % 2];
        assert_eq!(api.change(order.id(), what, &[]).await.status, 200);
    }
    // The lane is empty, so all events would have been published.
    all_is_decided(&place).await;
    assert_eq!(receiver.all().await, []);
}
