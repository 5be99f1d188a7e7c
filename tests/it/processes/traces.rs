//! Traces: one order is one trace, from its request to its commit. Only with the feature: `cargo test --features otel`.

mod collector;

use reqwest::{Method, RequestBuilder};
use serde_json::json;

use self::collector::{Collector, Span};
use crate::{
    processes::cli::{complaint, directory, run},
    support::{
        harness::{Answer, App, Pair, eventually},
        servers::servers,
    },
};

const SERVER: u64 = 2;
const PRODUCER: u64 = 4;
const CONSUMER: u64 = 5;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENTS_SPAN: &str = "00f067aa0ba902b7";

/// The spans leave ten times a second.
fn settings(collector: &Collector) -> [(&str, &str); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url), ("OTEL_BSP_SCHEDULE_DELAY", "100")]
}

async fn order(api: &App, product: u64, traceparent: Option<String>) -> Answer {
    let body = json!({"product_id": product, "total": 1});
    let build = |request: RequestBuilder| match traceparent {
        Some(parent) => request.header("traceparent", parent).header("tracestate", "rojo=1").json(&body),
        None => request.json(&body),
    };
    api.send(Method::POST, "/api/orders", build).await
}

/// The spans of an order, once all have arrived: request, command, decision.
async fn spans_of(collector: &Collector, order_id: &str) -> [Span; 3] {
    eventually("not all spans of the order arrive", async || {
        let all = collector.spans();
        let is_of_order =
            |span: &&Span| span.attributes.get("antre.order_id").is_some_and(|id| id == order_id);
        let named = |name: &str| all.iter().filter(is_of_order).find(|span| span.name == name).cloned();
        let (command, decision) = (named("place order")?, named("decide place")?);
        let request = all.iter().find(|span| span.span_id == command.parent).cloned()?;
        Some([request, command, decision])
    })
    .await
}

/// One trace, whose spans follow from each other.
fn is_one_trace([request, command, decision]: &[Span; 3], product: u64, roles: [&str; 2]) {
    assert!([command, decision].iter().all(|span| span.trace_id == request.trace_id), "{decision:?}");
    assert_eq!((request.name.as_str(), request.kind), ("POST /api/orders", SERVER));
    assert_eq!((command.kind, decision.kind), (PRODUCER, CONSUMER));
    assert_eq!(decision.parent, command.span_id);
    let of = |span: &Span, name: &str| span.attributes[&format!("antre.{name}")].clone();
    assert_eq!(request.attributes["http.response.status_code"], "201");
    assert_eq!(of(request, "request_id"), of(decision, "request_id"));
    assert_eq!([of(request, "role"), of(decision, "role")], roles);
    assert_eq!(of(command, "outcome"), "reserved");
    assert_eq!(
        [of(decision, "verdict"), of(decision, "product_id")],
        ["reserved".into(), product.to_string()]
    );
    assert!(of(decision, "lane").ends_with(&format!("orders.product.{product}")), "{decision:?}");
    assert_eq!(decision.attributes["service.name"], "antre");
    let [began, ended] = request.times;
    assert!(began <= decision.times[0] && decision.times[1] <= ended, "{request:?} {decision:?}");
}

async fn traces_are_whole(collector: &Collector, api: &App, roles: [&str; 2]) {
    let product = api.create_stocked("Kaos Polos", 10).await;

    // In the trace of its client.
    let answer = order(api, product, Some(format!("00-{TRACE}-{CLIENTS_SPAN}-01"))).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let spans = spans_of(collector, answer.id()).await;
    is_one_trace(&spans, product, roles);
    let [request, command, decision] = spans;
    assert_eq!((request.trace_id.as_str(), request.parent.as_str()), (TRACE, CLIENTS_SPAN));

    // The batch and the decision name each other.
    let [(_, batch_id)] = decision.links.as_slice() else { panic!("{decision:?}") };
    let find_batch = async || collector.spans().into_iter().find(|span| span.span_id == *batch_id);
    let batch = eventually("the span of the batch does not arrive", find_batch).await;
    assert_eq!((batch.name.as_str(), batch.parent.as_str()), ("decide batch", ""));
    assert!(batch.links.contains(&(TRACE.to_owned(), command.span_id)), "{batch:?}");

    // One that its client does not record, which is told from what follows it.
    let unrecorded = "0af7651916cd43dd8448eb211c80319c";
    let answer = order(api, product, Some(format!("00-{unrecorded}-{CLIENTS_SPAN}-00"))).await;
    assert_eq!(answer.status, 201, "{answer:?}");

    // In a trace of its own.
    let answer = order(api, product, None).await;
    let spans = spans_of(collector, answer.id()).await;
    is_one_trace(&spans, product, roles);
    assert!(spans[0].parent.is_empty() && spans[0].trace_id != TRACE, "{:?}", spans[0]);
    assert!(collector.spans().iter().all(|span| span.trace_id != unrecorded));
}

#[tokio::test]
async fn an_order_is_one_trace_in_one_process() {
    let collector = Collector::start().await;
    let app = App::start_with(Pair::Embedded, &settings(&collector)).await;
    traces_are_whole(&collector, &app, ["serve", "serve"]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_order_is_one_trace_through_api_and_worker() {
    let collector = Collector::start().await;
    let place = servers().await.fresh().await;
    let api = App::start_role("api", &place, &settings(&collector)).await;
    let _worker = App::start_role("worker", &place, &settings(&collector)).await;
    traces_are_whole(&collector, &api, ["api", "worker"]).await;
}

#[tokio::test]
async fn the_last_spans_are_sent_at_the_end() {
    let collector = Collector::start().await;
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let mut app = App::start_with(Pair::Embedded, &[endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).await;
    let product = app.create_stocked("Kaos Polos", 1).await;
    let answer = order(&app, product, None).await;
    assert!(app.terminate().await.success());
    is_one_trace(&spans_of(&collector, answer.id()).await, product, ["serve", "serve"]);
}

/// Orders do not depend on the collector.
#[tokio::test]
async fn without_the_collector_orders_are_taken_and_the_log_says_that_spans_are_lost() {
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let app = App::start_with(Pair::Embedded, &settings).await;
    let product = app.create_stocked("Kaos Polos", 1).await;
    assert_eq!(app.order(product, 1).await.status, 201);
    eventually("the log does not say it", async || app.log().contains("spans are lost").then_some(())).await;
}

#[tokio::test]
async fn a_collector_that_cannot_be_used_is_named() {
    let directory = directory();
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:secret@collector.example"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ] {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        let output = run(directory.path(), &["serve"], &[endpoint, (name, value)]).await;
        let said = complaint(&output, 2);
        assert!(said.contains(name) && !said.contains("secret"), "{said}");
    }
}
