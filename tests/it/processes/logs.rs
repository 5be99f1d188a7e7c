//! What the log tells: one order is followed from its request to its decision, what is slow is named, and no password is shown.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    harness::{Answer, App, Client, Pair, eventually},
    servers::{Place, servers},
};

on_both_pairs!(at_info_no_order_has_a_line, a_slow_batch_and_its_slow_statement_are_named);

const DEBUG_JSON: [(&str, &str); 2] = [("RUST_LOG", "antre=debug"), ("LOG_FORMAT", "json")];

/// The complete lines so far. All of them are JSON.
fn lines(app: &App) -> Vec<Value> {
    let log = app.log();
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    complete.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The first line with this message and these fields.
async fn line(app: &App, message: &str, fields: &Value) -> Value {
    let has = |line: &Value| {
        line["message"] == message
            && fields.as_object().unwrap().iter().all(|(name, value)| line[name] == *value)
    };
    eventually(&format!("no line {message:?} with {fields}"), async || lines(app).into_iter().find(has)).await
}

async fn order(client: &Client, product: u64, request_id: &str) -> Answer {
    let body = json!({"product_id": product, "total": 1});
    let build = |request: reqwest::RequestBuilder| request.header("x-request-id", request_id).json(&body);
    client.send(Method::POST, "/api/orders", build).await
}

/// Both processes say the same of the order, in fields of the same names.
async fn is_followed(api: &App, worker: &App, lane_prefix: &str) {
    let product = api.create_stocked("Kaos Polos", 1).await;
    let answer = order(api, product, "abc").await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let of_order =
        json!({"order_id": answer.id(), "product_id": product, "request_id": "abc", "what": "place"});
    let decided = line(worker, "decided", &of_order).await;
    assert_eq!(decided["verdict"], "reserved");
    assert_eq!(decided["lane"], format!("{lane_prefix}orders.product.{product}"));
    let outcome = line(api, "a command has its outcome", &of_order).await;
    assert_eq!(outcome["outcome"], "reserved");
    assert!(outcome["elapsed_ms"].is_f64(), "{outcome}");
    let answered = line(api, "answered", &json!({"request_id": "abc"})).await;
    assert_eq!((&answered["status"], answered["elapsed_ms"].is_f64()), (&201.into(), true), "{answered}");

    // One whose client sent none has the id that its answer has.
    let answer = order(api, product, "").await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let generated = answer.headers["x-request-id"].to_str().unwrap();
    let decided = line(worker, "decided", &json!({"request_id": generated})).await;
    assert_eq!(
        (&decided["verdict"], &decided["product_id"]),
        (&"insufficient_stock".into(), &product.into())
    );
}

#[tokio::test]
async fn a_request_is_followed_through_one_process() {
    let app = App::start_with(Pair::Embedded, &DEBUG_JSON).await;
    is_followed(&app, &app, "").await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_request_is_followed_from_the_api_to_the_worker() {
    let place = servers().await.fresh().await;
    let api = App::start_role("api", &place, &DEBUG_JSON).await;
    let worker = App::start_role("worker", &place, &DEBUG_JSON).await;
    is_followed(&api, &worker, &place.queue_prefix).await;
}

async fn at_info_no_order_has_a_line(pair: Pair) {
    // A busy test machine may be slow.
    let app = App::start_with(pair, &[("SLOW_BATCH", "60s"), ("SLOW_QUERY", "60s")]).await;
    let product = app.create_stocked("Kaos Polos", 20).await;
    assert_eq!(app.order(product, 1).await.status, 201);
    let before = app.log();
    for _ in 0..20 {
        app.order(product, 1).await;
    }
    assert_eq!(app.log(), before);
    assert!(!before.contains("decided"), "{before}");
}

async fn a_slow_batch_and_its_slow_statement_are_named(pair: Pair) {
    let settings = [("LOG_FORMAT", "json"), ("SLOW_BATCH", "200ms"), ("SLOW_QUERY", "200ms")];
    let app = App::start_with(pair, &settings).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    assert_eq!(app.order(product, 1).await.status, 201);
    let hold = app.hold_decisions().await;
    let client = Client::clone(&app);
    let ordering = tokio::spawn(async move { client.order(product, 1).await });
    let batch = line(&app, "a slow batch", &json!({})).await;
    assert_eq!((&batch["products"], &batch["commands"]), (&product.to_string().into(), &1.into()), "{batch}");
    assert!(batch["elapsed_ms"].as_f64().unwrap() >= 200.0 && batch["level"] == "WARN", "{batch}");
    let query = line(&app, "a slow query", &json!({})).await;
    assert!(query["elapsed_ms"].as_f64().unwrap() >= 200.0, "{query}");
    let sql = query["sql"].as_str().unwrap();
    assert!(sql.contains("SELECT product_id, stored_stock") && !sql.contains("[["), "{sql}");
    hold.end().await;
    let answer = ordering.await.unwrap();
    assert!([201, 202].contains(&answer.status), "{answer:?}");
}

async fn settings_line(role: &'static str, place: &Place) -> Value {
    let app = App::start_role(role, place, &[("LOG_FORMAT", "json"), ("RESERVATION_TTL", "90s")]).await;
    let line = line(&app, "starts with these settings", &json!({"role": role})).await;
    let password = place.database_url.split(['@', ':']).nth(2).unwrap();
    assert!(place.database_url.contains(&format!(":{password}@")), "{}", place.database_url);
    assert!(!app.log().contains(&format!(":{password}@")), "{line}");
    line
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_settings_of_a_role_are_in_its_log_without_passwords() {
    let place = servers().await.fresh().await;
    let worker = settings_line("worker", &place).await;
    assert_eq!((&worker["reservation_ttl_ms"], &worker["lanes"]), (&90_000.into(), &"product".into()));
    assert_eq!(worker["queue_prefix"], place.queue_prefix);
    for url in ["database_url", "amqp_url"] {
        let shown = worker[url].as_str().unwrap();
        assert!(shown.contains("://") && !shown.contains('@'), "{shown}");
    }
    let api = settings_line("api", &place).await;
    assert_eq!((&api["order_timeout_ms"], api.get("events")), (&10_000.into(), None));
}
