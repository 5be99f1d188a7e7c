//! What the shop's other services hear of orders.

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::Value;

use super::*;

/// One of the shop's other services: a queue of its own behind the exchange.
struct Listener {
    connection: Connection,
    exchange: String,
    /// One that it hears.
    key: String,
    heard: Arc<watch::Sender<Vec<Heard>>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Heard {
    key: String,
    /// Null for a message that is not antre's.
    event: Value,
}

impl Heard {
    fn text(&self, field: &str) -> &str {
        self.event[field].as_str().unwrap()
    }

    fn product(&self) -> u64 {
        self.event["product_id"].as_u64().unwrap()
    }
}

impl Listener {
    /// Hears from now on what matches.
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
        let heard = Arc::new(watch::Sender::new(Vec::new()));
        let sender = heard.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let key = message.routing_key.to_string();
                let kind = message.properties.kind().as_ref().map(|kind| kind.to_string());
                let events: Vec<Value> = match kind.as_deref() {
                    Some("antre.events.v1") => {
                        assert_eq!(
                            message.properties.delivery_mode(),
                            &Some(2),
                            "it would not outlive the broker"
                        );
                        let content_type = message.properties.content_type().as_ref().unwrap().to_string();
                        assert_eq!(content_type, "application/json");
                        let message: Value = serde_json::from_slice(&message.data).unwrap();
                        message["events"].as_array().unwrap().clone()
                    }
                    _ => vec![Value::Null],
                };
                let events = events.into_iter().map(|event| Heard { key: key.clone(), event });
                sender.send_modify(|heard| heard.extend(events));
            }
        });
        let key = pattern.replace(['*', '#'], "test");
        Self { connection, exchange, key, heard }
    }

    /// Waits until it has heard enough.
    async fn until(&self, enough: impl FnMut(&Vec<Heard>) -> bool) {
        let mut heard = self.heard.subscribe();
        let waiting = timeout(PATIENCE, heard.wait_for(enough)).await.map(|heard| drop(heard.unwrap()));
        assert!(waiting.is_ok(), "it heard only {:?}", self.heard.borrow());
    }

    /// All that was published before now.
    async fn all(&self) -> Vec<Heard> {
        let channel = self.connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let exchange = self.exchange.as_str().into();
        let key = self.key.as_str().into();
        channel.basic_publish(exchange, key, options, b"", properties).await.unwrap().await.unwrap();
        self.until(|heard| heard.last().is_some_and(|last| last.event.is_null())).await;
        let mut heard = self.heard.send_replace(Vec::new());
        heard.pop();
        heard
    }
}

/// What was heard for the first time, each (order, status), in that order.
fn first_appearances(heard: &[Heard]) -> Vec<&Heard> {
    let mut known = BTreeSet::new();
    heard.iter().filter(|heard| known.insert((heard.text("order_id"), heard.text("status")))).collect()
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn each_move_is_told() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[("RESERVATION_TTL", "2s")]).await;
    let api = &cluster.apis[0];
    let [all, expired] = [Listener::bind(&place, "#").await, Listener::bind(&place, "order.expired.*").await];
    let product = api.create_stocked("Kaos Polos", 10).await;
    let mut orders = Vec::new();
    for total in 1..=3 {
        orders.push(api.order(product, total).await);
    }
    assert_eq!(api.order(product, 5).await.status, 400, "a rejection is no event");
    let [paid, cancelled, late] = &orders[..] else { panic!("{orders:?}") };
    for _ in 0..2 {
        assert_eq!(api.pay(paid.id()).await.status, 200);
        assert_eq!(api.cancel(cancelled.id()).await.status, 200);
    }
    assert_eq!(api.pay(cancelled.id()).await.status, 409);
    expired.until(|heard| !heard.is_empty()).await;

    let told = |order: &crate::support::harness::Answer, status: &str| {
        let expires_at: jiff::Timestamp = order.data()["expires_at"].as_str().unwrap().parse().unwrap();
        let event = json!({
            "order_id": order.id(), "product_id": product, "total": order.data()["total"], "status": status,
            "expires_at": expires_at.as_millisecond(),
        });
        Heard { key: format!("order.{status}.{product}"), event }
    };
    let expected = [
        told(paid, "reserved"),
        told(cancelled, "reserved"),
        told(late, "reserved"),
        told(paid, "paid"),
        told(cancelled, "cancelled"),
        told(late, "expired"),
    ];
    all.until(|heard| heard.contains(&expected[5])).await;
    let heard = all.all().await;
    assert_eq!(first_appearances(&heard), expected.iter().collect::<Vec<_>>());
    let heard = expired.heard.borrow().clone();
    assert_eq!(first_appearances(&heard), [&expected[5]]);
}

/// Orders run, payments and cancellations behind them, and workers are killed in the middle: every order on record has
/// its events, and per product their first appearances are in the order of the lane.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn workers_are_killed_and_every_order_on_record_has_its_events() {
    const PRODUCTS: usize = 10;
    const ORDERS: usize = 100;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 1, 1, &[]).await;
    let api = (*cluster.apis[0]).clone();
    let listener = Listener::bind(&place, "#").await;
    // Some products are sold out in the middle.
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
    let of_one = Listener::bind(&place, &format!("order.*.{one}")).await;

    // One buyer for each product, who orders again as soon as the last order is in line: so the order of the lane is
    // that of the ids.
    let mut buyers = JoinSet::new();
    for &product in stocks.keys() {
        let api = api.clone();
        buyers.spawn(async move {
            let mut last = String::new();
            for n in 0..ORDERS as u64 {
                let answer = api.order_with(product, 1 + n % 2, &[("Prefer", "respond-async")]).await;
                if answer.status == 400 {
                    assert_eq!(answer.data()["available_stock"], 0, "{answer:?}"); // the gate knows it
                    continue;
                }
                assert_eq!(answer.status, 202, "{answer:?}");
                last = answer.header("location").to_owned();
            }
            last
        });
    }
    let distinct = |heard: &Vec<Heard>| first_appearances(heard).len();
    let mut heard_at = Vec::new();
    for moment in [100, 350] {
        listener.until(|heard| distinct(heard) >= moment).await;
        cluster.workers.pop().unwrap().kill9().await;
        heard_at.push(distinct(&listener.heard.borrow()));
        cluster.workers.push(App::start_role("worker", &place, &[]).await);
    }
    for last in buyers.join_all().await {
        api.verdict(&last).await;
    }

    // And the same while they are paid and cancelled.
    let orders = api.all("/api/orders?status=reserved&limit=100").await;
    let ids: Vec<_> = orders.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect();
    let moving = tokio::spawn({
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
    listener.until(|heard| distinct(heard) >= so_far + 100).await;
    cluster.workers.pop().unwrap().kill9().await;
    heard_at.push(distinct(&listener.heard.borrow()));
    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    moving.await.unwrap();
    listener.until(|heard| distinct(heard) >= 2 * so_far).await;
    all_is_decided(&place).await;

    let heard = listener.all().await;
    let first = first_appearances(&heard);
    eprintln!(
        "{} events, {} of them for the first time; workers were killed after {heard_at:?} of these",
        heard.len(),
        first.len()
    );
    let on_record = api.all("/api/orders?limit=100").await;
    let accepted: Vec<_> = on_record.iter().filter(|order| order["status"] != "rejected").collect();
    assert_eq!(accepted.len(), ids.len());
    for (&product, &stock) in &stocks {
        let of_product: Vec<_> = first.iter().filter(|heard| heard.product() == product).collect();
        let (reserved, moved): (Vec<_>, Vec<_>) =
            of_product.iter().partition(|heard| heard.text("status") == "reserved");
        let expected: Vec<_> = accepted.iter().filter(|order| order["product_id"] == product).collect();
        let ids_of = |heard: &[&&&Heard]| {
            heard.iter().map(|heard| heard.text("order_id").to_owned()).collect::<Vec<_>>()
        };
        let expected_ids: Vec<_> =
            expected.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids_of(&reserved), expected_ids, "product {product}: not in the order of the lane");
        // Each of them moved once, and the event says whereto.
        let moved: BTreeMap<_, _> =
            moved.iter().map(|heard| (heard.text("order_id").to_owned(), heard.text("status"))).collect();
        for order in expected {
            let id = order["id"].as_str().unwrap();
            assert_eq!(moved.get(id).copied(), order["status"].as_str(), "{order}");
        }
        assert_eq!((moved.len(), of_product.len()), (reserved.len(), 2 * reserved.len()));
        api.ledger(product, stock).await;
    }
    let status_of = |key: &str| key.split('.').nth(1).unwrap().to_owned();
    for Heard { key, event } in &heard {
        assert_eq!(status_of(key), event["status"].as_str().unwrap());
    }
    // Who is bound to one product hears all of it, and of others what came in the same message.
    let of_one = of_one.all().await;
    assert!(heard.len() >= of_one.len(), "{} {}", heard.len(), of_one.len());
    let of_one: Vec<_> = of_one.into_iter().filter(|heard| heard.product() == one).collect();
    let all: Vec<_> = heard.into_iter().filter(|heard| heard.product() == one).collect();
    assert_eq!(of_one, all);
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn events_can_be_turned_off() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 1, 1, &[("EVENTS", "off")]).await;
    let api = &cluster.apis[0];
    let listener = Listener::bind(&place, "#").await;
    let product = api.create_stocked("Kaos Polos", 10).await;
    for n in 0..10 {
        let order = api.order(product, 1).await;
        assert_eq!(order.status, 201);
        let what = ["payment", "cancellation"][n % 2];
        assert_eq!(api.change(order.id(), what, &[]).await.status, 200);
    }
    // Acknowledged: whatever would have been published is.
    all_is_decided(&place).await;
    assert_eq!(listener.all().await, []);
}
