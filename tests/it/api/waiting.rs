//! `GET /api/orders/{orderId}?wait=N`: who was answered 202 waits for the verdict, at any API.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{
    harness::{App, Pair, eventually},
    raw_connection::RawConnection,
    servers::servers,
};

on_both_pairs!(
    many_clients_wait_for_their_verdicts,
    a_wait_ends_when_its_time_is_over,
    what_is_decided_or_unknown_is_answered_at_once,
    invalid_waits_are_refused,
);

const NO_ORDER: &str = "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d";

/// Far less than the waits of these tests.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The URL of an order that is queued, and not decided.
async fn pending(app: &App, product: u64, total: u64) -> String {
    let placed = app.order_with(product, total, &[("Prefer", "respond-async")]).await;
    assert_eq!((placed.status, placed.header("retry-after")), (202, "1"), "{placed:?}");
    placed.header("location").to_owned()
}

/// The order once it is decided, or after so many seconds; and how long that took.
async fn wait(app: &App, order: &str, seconds: u32) -> (Value, Duration) {
    let asked = Instant::now();
    let found = app.get(&format!("{order}?wait={seconds}")).await;
    assert_eq!(found.status, 200, "{found:?}");
    (found.data().clone(), asked.elapsed())
}

async fn many_clients_wait_for_their_verdicts(pair: Pair) {
    const CLIENTS_PER_ORDER: usize = 20;
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "60s")]).await;
    let product = app.create_stocked("Kaos Polos", 15).await;
    let hold = app.hold_decisions().await;
    let mut orders = Vec::new();
    for _ in 0..20 {
        orders.push(pending(&app, product, 1).await);
    }
    let clients = join_all((0..CLIENTS_PER_ORDER).flat_map(|_| &orders).map(|order| wait(&app, order, 60)));
    let deciding = async {
        let (order, took) = wait(&app, &orders[0], 1).await;
        assert!(order["status"] == "pending" && took >= Duration::from_secs(1), "{order} after {took:?}");
        hold.end().await;
        Instant::now()
    };
    let (answers, decided) = tokio::join!(clients, deciding);
    assert!(decided.elapsed() < 4 * AT_ONCE, "{:?}", decided.elapsed());
    let count = |status: &str| answers.iter().filter(|(order, _)| order["status"] == status).count();
    assert_eq!([count("reserved"), count("rejected")], [15 * CLIENTS_PER_ORDER, 5 * CLIENTS_PER_ORDER]);
    assert_eq!(app.inventory(product).await, [15, 0, 15]);
}

async fn a_wait_ends_when_its_time_is_over(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "2s")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let hold = app.hold_decisions().await;
    let order = pending(&app, product, 1).await;
    // No longer than the service itself would wait.
    for (seconds, expected) in [(0, 0..1), (1, 1..2), (2, 2..4), (4_294_967_295, 2..4)] {
        let (found, took) = wait(&app, &order, seconds).await;
        assert_eq!(found["status"], "pending");
        assert!(expected.contains(&took.as_secs()), "wait={seconds} took {took:?}");
    }
    hold.end().await;
    assert_eq!(app.verdict(&order).await["status"], "reserved");
}

async fn what_is_decided_or_unknown_is_answered_at_once(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "60s")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let placed = app.order(product, 2).await;
    let began = Instant::now();
    let (found, _) = wait(&app, placed.header("location"), 60).await;
    assert_eq!(found, *placed.data());
    let unknown = app.get(&format!("/api/orders/{NO_ORDER}?wait=60")).await;
    assert_eq!((unknown.status, unknown.reason()), (404, "order_not_found"));
    let no_number = app.get(&format!("{}?wait=99999999999999999999", placed.header("location"))).await;
    assert_eq!(no_number.status, 200);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

async fn invalid_waits_are_refused(pair: Pair) {
    let app = App::start(pair).await;
    let refuses = async |query: &str, reason: &str, field: &str| {
        let answer = app.get(&format!("/api/orders/{NO_ORDER}?{query}")).await;
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, reason, Some(field)), "{query}: {answer:?}");
    };
    for wait in ["", "-1", "1.5", "1e1", "x", "%2B3", "+3", "5%00", "%22", "5s", "NaN", "%D9%A5", "%FF"] {
        refuses(&format!("wait={wait}"), "invalid_wait", "wait").await;
    }
    refuses("wait", "invalid_wait", "wait").await;
    refuses("wait=1&wait=1", "invalid_query", "wait").await;
    refuses("Wait=1", "invalid_query", "Wait").await;
    refuses("limit=1", "invalid_query", "limit").await;
    let answer = app.get("/api/orders/1?wait=x").await;
    assert_eq!((answer.status, answer.reason()), (400, "invalid_order_id"));
}

/// The value of `antre_http_connections`.
async fn connections(app: &App) -> u64 {
    let text = reqwest::get(format!("http://{}/metrics", app.address())).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("antre_http_connections "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[tokio::test]
async fn a_wait_ends_when_its_client_leaves_and_when_the_server_stops() {
    let mut app = App::start_with(Pair::Embedded, &[("ORDER_TIMEOUT", "300s")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let hold = app.hold_decisions().await;
    let order = pending(&app, product, 1).await;
    let few = connections(&app).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = RawConnection::open(&app).await;
        client.send(format!("GET {order}?wait=300 HTTP/1.1\r\nHost: antre\r\n\r\n").as_bytes()).await;
        clients.push(client);
    }
    eventually("they do not connect", async || (connections(&app).await >= few + 50).then_some(())).await;
    drop(clients);
    eventually("they stay", async || (connections(&app).await <= few + 2).then_some(())).await;

    let client = (*app).clone();
    let url = format!("{order}?wait=300");
    let waiting = tokio::spawn(async move { (client.get(&url).await, Instant::now()) });
    // Its request is on the way before the signal is.
    wait(&app, &order, 1).await;
    let stopped = Instant::now();
    let (found, at) = {
        app.signal(rustix::process::Signal::TERM);
        waiting.await.unwrap()
    };
    assert_eq!((found.status, &found.data()["status"]), (200, &Value::from("pending")));
    assert!(at.duration_since(stopped) < AT_ONCE, "{:?}", at.duration_since(stopped));
    hold.end().await;
    app.exited().await;
}

/// Nobody decides while no worker runs. A client that waits then gets the verdict of the next one.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_client_waits_for_the_next_worker() {
    let place = servers().await.fresh().await;
    let settings = [("ORDER_TIMEOUT", "60s")];
    let [first, second] =
        [App::start_role("api", &place, &settings).await, App::start_role("api", &place, &settings).await];
    let mut worker = App::start_role("worker", &place, &[]).await;
    let product = first.create_stocked("Kaos Polos", 5).await;
    assert_eq!(first.order(product, 1).await.status, 201);
    worker.terminate().await;
    let order = pending(&first, product, 2).await;
    let (found, took) = wait(&second, &order, 1).await;
    assert!(found["status"] == "pending" && took >= Duration::from_secs(1), "{found} after {took:?}");
    let (at_first, at_second, ()) =
        tokio::join!(wait(&first, &order, 60), wait(&second, &order, 60), worker.restart());
    for (found, _) in [at_first, at_second] {
        assert_eq!((&found["status"], &found["total"]), (&Value::from("reserved"), &Value::from(2)));
    }
}
