//! Terms of sale: what a seller sets, and what buyers are answered.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    metrics::Scrape,
    support::harness::{Answer, App, Client, Pair, eventually},
};

on_both_pairs!(
    terms_are_set_as_a_whole,
    invalid_terms_change_nothing,
    a_refused_order_is_told_why,
    a_rejection_is_found_where_a_202_says,
    a_key_gets_the_answer_of_the_lane,
    a_reservation_holds_as_long_as_the_terms_say,
    a_sale_goes_on_at_once,
    nothing_is_reserved_after_a_pause,
    nobody_gets_in_before_the_opening,
);

const DEFAULT: [(&str, Value); 6] = [
    ("selling", Value::Bool(true)),
    ("opens_at", Value::Null),
    ("closes_at", Value::Null),
    ("max_per_order", Value::Null),
    ("max_per_buyer", Value::Null),
    ("hold_seconds", Value::Null),
];

/// The default terms, but for these.
fn with(fields: Value) -> Value {
    let mut terms: serde_json::Map<_, _> =
        DEFAULT.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    terms.extend(fields.as_object().unwrap().clone());
    Value::Object(terms)
}

impl Client {
    async fn put_terms(&self, product: u64, terms: &Value) -> Answer {
        self.put(&format!("/api/products/{product}/terms"), terms.clone()).await
    }

    async fn set_terms(&self, product: u64, terms: Value) {
        let answer = self.put_terms(product, &terms).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn terms(&self, product: u64) -> Value {
        let answer = self.get(&format!("/api/products/{product}/terms")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.data().clone()
    }
}

/// As answers write it.
fn text(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

async fn terms_are_set_as_a_whole(pair: Pair) {
    let app = App::start(pair).await;
    let (product, other) = (app.create_stocked("Kaos", 5).await, app.create_stocked("Topi", 5).await);
    assert_eq!(app.terms(product).await, with(json!({})));
    let all = json!({
        "selling": false, "opens_at": "2026-01-31T09:00:00.000Z", "closes_at": "2026-01-31T21:00:00.120Z",
        "max_per_order": 2, "max_per_buyer": 1, "hold_seconds": 31_536_000,
    });
    for (sent, expected) in [
        (all.clone(), all),
        (json!({"max_per_order": 2_147_483_647}), with(json!({"max_per_order": 2_147_483_647}))),
        (
            json!({"opens_at": "2026-01-31T16:00:00+07:00"}),
            with(json!({"opens_at": "2026-01-31T09:00:00.000Z"})),
        ),
        (
            json!({"closes_at": "2026-01-31t09:00:00.1239z"}),
            with(json!({"closes_at": "2026-01-31T09:00:00.123Z"})),
        ),
        (with(json!({"hold_seconds": 1})), with(json!({"hold_seconds": 1}))),
        (json!({"selling": null}), with(json!({}))),
        (json!({"selling": false}), with(json!({"selling": false}))),
        (json!({}), with(json!({}))),
    ] {
        for _ in 0..2 {
            let set = app.put_terms(product, &sent).await;
            assert_eq!((set.status, set.data()), (200, &expected), "{sent}");
            assert_eq!(app.terms(product).await, expected);
        }
    }
    assert_eq!(app.terms(other).await, with(json!({})));
    assert_eq!(app.inventory(product).await, [5, 5, 0]);
    for id in ["4711", "9007199254740991"] {
        let path = format!("/api/products/{id}/terms");
        let set = app.put(&path, json!({})).await;
        for answer in [app.get(&path).await, set] {
            assert_eq!((answer.status, answer.reason()), (404, "product_not_found"));
        }
    }
    for id in ["0", "x", "9007199254740992"] {
        let path = format!("/api/products/{id}/terms");
        let set = app.put(&path, json!({})).await;
        for answer in [app.get(&path).await, set] {
            assert_eq!((answer.status, answer.reason()), (400, "invalid_product_id"));
        }
    }
}

async fn invalid_terms_change_nothing(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos", 5).await;
    let before = with(json!({"max_per_order": 3, "opens_at": "2026-01-31T09:00:00.000Z"}));
    app.set_terms(product, before.clone()).await;
    let refuses = async |body: Value, reason: &str, field: Option<&str>| {
        let answer = app.put_terms(product, &body).await;
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, reason, field), "{body}: {answer:?}");
        assert_eq!(app.terms(product).await, before, "{body}");
    };
    let nine = "2026-01-31T09:00:00.000Z";
    for closes_at in
        [nine, "2026-01-31T08:59:59.999Z", "2026-01-31T09:00:00.0009Z", "2026-01-31T09:30:00+01:00"]
    {
        refuses(json!({"opens_at": nine, "closes_at": closes_at}), "invalid_terms", Some("closes_at")).await;
    }
    let common = [json!("x"), json!([]), json!({}), json!(-1), json!(1.5)];
    for field in ["opens_at", "closes_at"] {
        for value in common.iter().cloned().chain([
            json!(""),
            json!(true),
            json!(1_769_850_000),
            json!("2026-01-31"),
            json!("2026-01-31T09:00:00"),
            json!("2026-01-31 09:00:00Z"),
            json!("2026-02-29T09:00:00Z"),
            json!("2026-01-31T09:00:00Z[Asia/Jakarta]"),
            json!("0000-01-01T00:00:00+01:00"),
            json!("9".repeat(5_000)),
        ]) {
            refuses(json!({field: value}), "invalid_terms", Some(field)).await;
        }
    }
    for field in ["max_per_order", "max_per_buyer", "hold_seconds"] {
        let large = if field == "hold_seconds" { 31_536_001_u64 } else { 2_147_483_648 };
        for value in
            common.iter().cloned().chain([json!(0), json!(true), json!("1"), json!(large), json!(u64::MAX)])
        {
            refuses(json!({field: value}), "invalid_terms", Some(field)).await;
        }
    }
    for value in [json!(0), json!(1), json!("true"), json!([true]), json!({})] {
        refuses(json!({"selling": value}), "invalid_terms", Some("selling")).await;
    }
    refuses(json!({"Selling": true}), "invalid_field", Some("Selling")).await;
    refuses(json!({"selling": true, "total": 1}), "invalid_field", Some("total")).await;
    refuses(json!([]), "invalid_body", None).await;
    refuses(json!([true, null, null, null, null, null]), "invalid_body", None).await;
    let twice = r#"{"selling":true,"selling":false}"#;
    let path = format!("/api/products/{product}/terms");
    let answer = app
        .send(Method::PUT, &path, |request| request.header("content-type", "application/json").body(twice))
        .await;
    assert_eq!((answer.status, answer.reason()), (400, "invalid_body"));
    assert_eq!(app.terms(product).await, before);
}

/// What an order is refused with, by the lane and then by the gate.
#[track_caller]
fn is_refused(answer: &Answer, product: u64, reason: &str, details: Value) {
    assert_eq!((answer.status, answer.reason()), (400, reason), "{answer:?}");
    let mut expected = details;
    for (name, value) in [("reason", json!(reason)), ("product_id", json!(product))] {
        expected[name] = value;
    }
    let mut found = answer.data().clone();
    let message = found.as_object_mut().unwrap().remove("message").unwrap();
    assert!(message.as_str().is_some_and(|message| message.contains("nothing was reserved")), "{answer:?}");
    assert_eq!(found, expected, "{answer:?}");
    let retry_after =
        answer.headers.get("retry-after").map(|seconds| seconds.to_str().unwrap().parse().unwrap());
    match (reason, retry_after) {
        ("sale_not_open", Some(1..=3_600_u64)) | (_, None) => {
            assert_eq!(reason == "sale_not_open", retry_after.is_some())
        }
        _ => panic!("{answer:?}"),
    }
}

async fn a_refused_order_is_told_why(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos", 5).await;
    let (past, soon, far) = (in_seconds(-60), in_seconds(1_000), in_seconds(100_000));
    for (terms, total, reason, details) in [
        (json!({"selling": false, "closes_at": text(past), "max_per_order": 1}), 9, "sale_paused", json!({})),
        (json!({"opens_at": text(soon)}), 9, "sale_not_open", json!({"opens_at": text(soon)})),
        (
            json!({"opens_at": text(far), "max_per_order": 1}),
            9,
            "sale_not_open",
            json!({"opens_at": text(far)}),
        ),
        (json!({"closes_at": text(past), "max_per_order": 1}), 9, "sale_closed", json!({})),
        (
            json!({"opens_at": text(past), "closes_at": text(far), "max_per_order": 2}),
            9,
            "limit_per_order",
            json!({"limit": 2}),
        ),
    ] {
        app.set_terms(product, terms).await;
        for _ in 0..4 {
            is_refused(&app.order(product, total).await, product, reason, details.clone());
        }
        assert_eq!(app.inventory(product).await, [5, 5, 0]);
    }
    let refused = app.order(product, 3).await;
    is_refused(&refused, product, "limit_per_order", json!({"limit": 2}));
    assert_eq!(app.order(product, 2).await.status, 201);
    app.set_terms(product, json!({"opens_at": text(far)})).await;
    let seconds = app.order(product, 1).await.header("retry-after").parse::<u64>().unwrap();
    assert_eq!(seconds, 3_600, "no client is told to wait for a day");
    app.set_terms(product, json!({"opens_at": text(soon)})).await;
    let seconds = app.order(product, 1).await.header("retry-after").parse::<u64>().unwrap();
    assert!((900..=1_000).contains(&seconds), "{seconds}");
}

async fn a_rejection_is_found_where_a_202_says(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos", 5).await;
    let (past, far) = (in_seconds(-60), in_seconds(100_000));
    for (terms, reason, details) in [
        (json!({"selling": false}), "sale_paused", json!({})),
        (json!({"opens_at": text(far)}), "sale_not_open", json!({"opens_at": text(far)})),
        (json!({"closes_at": text(past)}), "sale_closed", json!({})),
        (json!({"max_per_order": 1}), "limit_per_order", json!({"limit": 1})),
    ] {
        app.set_terms(product, terms).await;
        // With a key, so that it goes to the lane.
        let headers = [("Prefer", "respond-async"), ("Idempotency-Key", reason)];
        let placed = app.order_with(product, 2, &headers).await;
        assert_eq!(placed.status, 202, "{placed:?}");
        let order = app.verdict(placed.header("location")).await;
        assert_eq!((&order["status"], &order["reason"]), (&json!("rejected"), &json!(reason)), "{order}");
        // The key keeps its answer, whatever the terms are later.
        app.set_terms(product, json!({})).await;
        let again = app.order_with(product, 2, &[("Idempotency-Key", reason)]).await;
        is_refused(&again, product, reason, details);
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    assert_eq!(app.inventory(product).await, [5, 5, 0]);
}

async fn a_key_gets_the_answer_of_the_lane(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos", 5).await;
    let order = async |key: &str| app.order_with(product, 1, &[("Idempotency-Key", key)]).await;
    let first = order("a").await;
    assert_eq!(first.status, 201);
    app.set_terms(product, json!({"selling": false})).await;
    for _ in 0..3 {
        is_refused(&app.order(product, 1).await, product, "sale_paused", json!({}));
        let again = order("a").await;
        assert_eq!(
            (again.status, again.id(), again.header("idempotent-replayed")),
            (201, first.id(), "true")
        );
        is_refused(&order("b").await, product, "sale_paused", json!({}));
    }
    // It was told in time, so it is not stored, and the key may try again.
    app.set_terms(product, json!({})).await;
    assert_eq!(order("b").await.status, 201);
    assert_eq!(app.inventory(product).await, [5, 3, 2]);
}

async fn a_reservation_holds_as_long_as_the_terms_say(pair: Pair) {
    let app = App::start_with(pair, &[("RESERVATION_TTL", "900s")]).await;
    let product = app.create_stocked("Kaos", 5).await;
    let hold = async |hold: Value| {
        app.set_terms(product, json!({"hold_seconds": hold})).await;
        let before = Timestamp::now();
        let order = app.order(product, 1).await;
        let expires_at: Timestamp = order.data()["expires_at"].as_str().unwrap().parse().unwrap();
        (order.id().to_owned(), expires_at.duration_since(before).as_secs())
    };
    for (seconds, expected) in [(json!(60), 60), (json!(31_536_000), 31_536_000), (Value::Null, 900)] {
        let (_, seconds) = hold(seconds).await;
        assert!((expected - 1..=expected + 30).contains(&seconds), "{seconds}");
    }
    let (order, _) = hold(json!(1)).await;
    eventually("it does not expire", async || {
        (app.get(&format!("/api/orders/{order}")).await.data()["status"] == "expired").then_some(())
    })
    .await;
    assert_eq!(app.inventory(product).await, [5, 2, 3]);
}

async fn a_sale_goes_on_at_once(pair: Pair) {
    let app = App::start(pair).await;
    each_opening_is_known_to_all(&app, &app).await;
}

/// A sale is stopped at one API in each of three ways, and goes on: once the other API has answered that, no API refuses.
pub(crate) async fn each_opening_is_known_to_all(one: &Client, other: &Client) {
    const ROUNDS: usize = 30;
    let product = one.create_stocked("Kaos Polos", ROUNDS as u64).await;
    for round in 0..ROUNDS {
        let (terms, reason) = match round % 3 {
            0 => (json!({"selling": false}), "sale_paused"),
            1 => (json!({"opens_at": text(in_seconds(1_000))}), "sale_not_open"),
            _ => (json!({"closes_at": text(in_seconds(-1))}), "sale_closed"),
        };
        one.set_terms(product, terms).await;
        // Refused by the lane, then by a read, then on the lease of that read.
        for api in [one, other, one, other, one, other] {
            let refused = api.order(product, 1).await;
            assert_eq!((refused.status, refused.reason()), (400, reason), "round {round}");
        }
        other.set_terms(product, json!({})).await;
        assert_eq!(one.order(product, 1).await.status, 201, "round {round}");
    }
    assert_eq!(one.inventory(product).await, [ROUNDS as u64, 0, ROUNDS as u64]);
}

async fn nothing_is_reserved_after_a_pause(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "60s")]).await;
    pause_under_load(&[&app]).await;
}

/// The seller pauses a sale under load, again and again: an order that is sent after the answer is refused, and nothing that
/// was sent before is reserved any more.
pub(crate) async fn pause_under_load(apis: &[&Client]) {
    const BUYERS: usize = 24;
    const ROUNDS: u64 = 5;
    const STOCK: u64 = 1_000_000;
    let seller = apis[0];
    let product = seller.create_stocked("Kaos Polos", STOCK).await;
    // Odd while the sale is paused, by an answer that the seller has; 2 × ROUNDS is the end.
    let phase = Arc::new(AtomicU64::new(0));
    let mut buyers = JoinSet::new();
    for buyer in 0..BUYERS {
        let (api, phase) = (apis[buyer % apis.len()].clone(), phase.clone());
        buyers.spawn(async move {
            let (mut reserved, mut refused) = (0, 0);
            loop {
                let sent_in = phase.load(Ordering::SeqCst);
                if sent_in == 2 * ROUNDS {
                    return (reserved, refused);
                }
                let answer = api.order(product, 1).await;
                let was_paused = sent_in % 2 == 1 && phase.load(Ordering::SeqCst) == sent_in;
                match answer.status {
                    201 => {
                        assert!(!was_paused, "reserved after the pause: {answer:?}");
                        reserved += 1;
                    }
                    _ => {
                        assert_eq!((answer.status, answer.reason()), (400, "sale_paused"), "{answer:?}");
                        refused += 1;
                    }
                }
            }
        });
    }
    let reserved = async || seller.inventory(product).await[2];
    for _ in 0..ROUNDS {
        let before = reserved().await;
        eventually("nobody buys", async || (reserved().await >= before + BUYERS as u64).then_some(())).await;
        seller.set_terms(product, json!({"selling": false})).await;
        phase.fetch_add(1, Ordering::SeqCst);
        let at_the_pause = reserved().await;
        for api in apis.iter().cycle().take(50) {
            let refused = api.order(product, 1).await;
            assert_eq!((refused.status, refused.reason()), (400, "sale_paused"));
        }
        assert_eq!(reserved().await, at_the_pause, "reserved after the pause was answered");
        // Before the terms, so that no buyer takes an order that they allow for one too many.
        phase.fetch_add(1, Ordering::SeqCst);
        seller.set_terms(product, json!({})).await;
    }
    let all = buyers.join_all().await;
    let (accepted, refused): (Vec<u64>, Vec<u64>) = all.into_iter().unzip();
    let (accepted, refused) = (accepted.iter().sum::<u64>(), refused.iter().sum::<u64>());
    eprintln!("{accepted} orders reserved, {refused} refused while the sale was paused");
    assert!(refused > 0);
    assert_eq!(seller.inventory(product).await, [STOCK, STOCK - accepted, accepted]);
}

async fn nobody_gets_in_before_the_opening(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "60s")]).await;
    storm_around_the_opening(&[&app]).await;
}

/// Buyers who order again and again, from two seconds before the opening until the last piece is sold.
///
/// A reservation says when it was decided, by the clock of the database: its end minus the hold. No process takes part in
/// that with its own clock.
pub(crate) async fn storm_around_the_opening(apis: &[&Client]) {
    const BUYERS: usize = 48;
    const STOCK: u64 = 500;
    const HOLD: SignedDuration = SignedDuration::from_secs(600);
    let seller = apis[0];
    let product = seller.create_stocked("Kaos Polos", STOCK).await;
    let opens_at = Timestamp::now() + SignedDuration::from_millis(2_500);
    seller.set_terms(product, json!({"opens_at": text(opens_at), "hold_seconds": HOLD.as_secs()})).await;
    let opens_at: Timestamp = text(opens_at).parse().unwrap();

    let mut buyers = JoinSet::new();
    for buyer in 0..BUYERS {
        let api = apis[buyer % apis.len()].clone();
        buyers.spawn(async move {
            let mut answers = BTreeMap::<String, u64>::new();
            loop {
                let sent_at = Timestamp::now();
                let answer = api.order(product, 1).await;
                let ending = match answer.status {
                    201 => {
                        let expires_at: Timestamp =
                            answer.data()["expires_at"].as_str().unwrap().parse().unwrap();
                        let decided_at = expires_at - HOLD;
                        assert!(decided_at >= opens_at, "reserved at {decided_at}: {answer:?}");
                        "reserved"
                    }
                    400 if answer.reason() == "sale_not_open" => {
                        assert_eq!(answer.data()["opens_at"], text(opens_at));
                        // This machine has one clock, and the database is on it.
                        assert!(sent_at < opens_at, "sent at {sent_at}, and refused: {answer:?}");
                        "sale_not_open"
                    }
                    _ => {
                        assert_eq!(
                            (answer.status, answer.reason()),
                            (400, "insufficient_stock"),
                            "{answer:?}"
                        );
                        assert!(Timestamp::now() >= opens_at, "sold out before the opening");
                        "insufficient_stock"
                    }
                };
                *answers.entry(ending.to_owned()).or_default() += 1;
                if ending == "insufficient_stock" {
                    return answers;
                }
            }
        });
    }
    let mut answers = BTreeMap::<String, u64>::new();
    for (ending, count) in buyers.join_all().await.into_iter().flatten() {
        *answers.entry(ending).or_default() += count;
    }
    eprintln!("around the opening: {answers:?}");
    assert_eq!(answers["reserved"], STOCK);
    assert!(answers["sale_not_open"] > BUYERS as u64, "{answers:?}");
    assert_eq!(seller.inventory(product).await, [STOCK, 0, STOCK]);

    // Most of those who came too early never reached the lane.
    let refused = apis
        .iter()
        .map(async |api| Scrape::of(api).await.get(r#"antre_gate_refusals_total{reason="sale_not_open"}"#));
    let refused: f64 = join_all(refused).await.into_iter().sum();
    eprintln!("{refused} of them were refused without the queue");
    assert!(refused > 0.0);
}
