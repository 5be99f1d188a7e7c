//! Lists of orders: newest first, since a time, and by idempotency key.

use std::slice;

use jiff::{Timestamp, ToSpan, tz::Offset};
use serde_json::Value;

use crate::support::harness::{App, Pair};

on_both_pairs!(
    orders_are_listed_newest_first,
    orders_are_listed_since_a_time,
    an_order_is_found_by_its_key,
    invalid_filters_are_refused,
);

const NONE: [Value; 0] = [];

/// Orders of two products by turns, the oldest first.
async fn place(app: &App, count: usize) -> ([u64; 2], Vec<Value>) {
    let products = [app.create_stocked("Kaos Polos", 100).await, app.create_stocked("Kaos Garis", 100).await];
    let mut placed = Vec::new();
    for number in 0..count {
        placed.push(app.order(products[number % 2], 1).await.data().clone());
    }
    (products, placed)
}

fn backwards(orders: &[Value]) -> Vec<Value> {
    orders.iter().rev().cloned().collect()
}

async fn orders_are_listed_newest_first(pair: Pair) {
    let app = App::start(pair).await;
    let ([polos, _], placed) = place(&app, 25).await;
    let of_polos: Vec<_> = placed.iter().step_by(2).cloned().collect();
    let first = app.get("/api/orders?order=desc").await;
    assert_eq!(first.data().as_array().unwrap(), &backwards(&placed[5..]));
    assert_eq!(first.json["next"], placed[5]["id"]);
    let second = app.get(&first.next().unwrap()).await;
    let last = (second.data().as_array().unwrap(), &second.json["next"]);
    assert_eq!(last, (&backwards(&placed[..5]), &Value::Null));
    for limit in [1, 7, 25, 100] {
        assert_eq!(app.all(&format!("/api/orders?order=desc&limit={limit}")).await, backwards(&placed));
        assert_eq!(app.all(&format!("/api/orders?limit={limit}&order=asc")).await, placed);
        let both = format!("/api/orders?status=reserved&order=desc&limit={limit}&product_id={polos}");
        assert_eq!(app.all(&both).await, backwards(&of_polos));
    }
    // Behind an id means older ones.
    let middle = placed[12]["id"].as_str().unwrap();
    assert_eq!(app.all(&format!("/api/orders?order=desc&after={middle}")).await, backwards(&placed[..12]));
    assert_eq!(app.all("/api/orders?order=desc&status=paid").await, NONE);
    assert_eq!(app.all("/api/orders?order=desc&status=pending").await, NONE);
}

async fn orders_are_listed_since_a_time(pair: Pair) {
    let app = App::start(pair).await;
    let (_, placed) = place(&app, 9).await;
    let created = |order: &Value| order["created_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let later_than = |time: Timestamp| -> Vec<_> {
        placed.iter().filter(|order| created(order) > time).cloned().collect()
    };
    for order in &placed {
        let time = created(order);
        let later = later_than(time);
        assert!(!later.contains(order), "an order is not later than itself");
        for written in [
            format!("{time:.3}"),
            format!("{:.9}", time + 999_999.nanoseconds()),
            // Two hours later by the clock of a place whose clock is two hours ahead.
            format!("{:.3}%2B02:00", Offset::constant(2).to_datetime(time)),
        ] {
            let list = format!("/api/orders?created_after={written}");
            assert_eq!(app.all(&list).await, later, "{list}");
            // A time also survives the way through the links.
            assert_eq!(app.all(&format!("{list}&limit=2")).await, later, "{list}");
            assert_eq!(app.all(&format!("{list}&order=desc&limit=2")).await, backwards(&later), "{list}");
        }
        let before = format!("{:.3}", time - 1.millisecond());
        assert!(app.all(&format!("/api/orders?created_after={before}")).await.contains(order));
    }
    // Of two beginnings the later one counts.
    let (early, late) = (&placed[2], &placed[6]);
    for (after, since) in [(early, late), (late, early)] {
        let list = format!(
            "/api/orders?after={}&created_after={}",
            after["id"].as_str().unwrap(),
            since["created_at"].as_str().unwrap()
        );
        let found = app.all(&list).await;
        assert!(found.iter().all(|order| created(order) >= created(late)) && found.ends_with(&placed[7..]));
    }
    for (time, expected) in [
        ("0000-01-01T00:00:00Z", placed.clone()),
        ("1969-12-31t23:59:59.5z", placed.clone()),
        ("9999-12-31T23:59:60.99999999999-23:59", vec![]),
    ] {
        assert_eq!(app.all(&format!("/api/orders?created_after={time}")).await, expected, "{time}");
    }
}

async fn an_order_is_found_by_its_key(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let keys = ["buyer-1", "Buyer-1", "a+b&c=d%#?/", "\"quoted\"", "'; DROP TABLE orders;--"];
    let mut placed = Vec::new();
    for key in keys.map(|key| key.replace(' ', "")) {
        let quoted = format!("\"{}\"", key.replace('"', "\\\""));
        let order = app.order_with(product, 1, &[("Idempotency-Key", &quoted)]).await.data().clone();
        placed.push((key, quoted, order));
    }
    app.order(product, 1).await;
    let by_key = async |key: &str, more: &str| {
        let key: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        app.all(&format!("/api/orders?idempotency_key={key}{more}")).await
    };
    for (key, quoted, order) in &placed {
        // A bare key does not begin with a quotation mark.
        let bare = (!key.starts_with('"')).then_some(key);
        for spelling in bare.into_iter().chain([quoted]) {
            assert_eq!(by_key(spelling, "").await, slice::from_ref(order), "{spelling}");
        }
        let id = order["id"].as_str().unwrap();
        for more in [
            "&limit=1".to_owned(),
            format!("&product_id={product}&status=reserved&order=desc"),
            "&created_after=2026-01-01T00:00:00Z".to_owned(),
            "&after=00000000-0000-0000-0000-000000000000".to_owned(),
        ] {
            assert_eq!(by_key(quoted, &more).await, slice::from_ref(order), "{quoted}{more}");
        }
        for more in [
            format!("&product_id={}", product + 1),
            "&status=paid".to_owned(),
            "&status=pending".to_owned(),
            format!("&after={id}"),
            format!("&after={id}&order=desc"),
            format!("&created_after={}", order["created_at"].as_str().unwrap()),
        ] {
            assert_eq!(by_key(quoted, &more).await, NONE, "{quoted}{more}");
        }
    }
    assert_eq!(by_key("buyer-2", "").await, NONE);
    // It is found whatever became of it.
    let (key, _, order) = &placed[0];
    assert_eq!(app.cancel(order["id"].as_str().unwrap()).await.status, 200);
    assert_eq!(by_key(key, "").await[0]["status"], "cancelled");
}

async fn invalid_filters_are_refused(pair: Pair) {
    let app = App::start(pair).await;
    let refuses = async |query: &str, reason: &str, field: &str| {
        let answer = app.get(&format!("/api/orders?{query}")).await;
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, reason, Some(field)), "{query}: {answer:?}");
    };
    for order in ["", "ASC", "Desc", "newest", "asc,desc", "-1", "desc%00"] {
        refuses(&format!("order={order}"), "invalid_order", "order").await;
    }
    for time in [
        "",
        "0",
        "1769850000000",
        "now",
        "2026-01-31",
        "2026-01-31T09:00Z",
        "2026-01-31T09:00:00",
        "2026-01-31%2009:00:00Z",
        "2026-01-31T09:00:00+02:00", // in a URL, the + is a space
        "2026-01-31T09:00:00%2B2:00",
        "2026-01-31T09:00:00Z[UTC]",
        "2026-02-30T09:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T09:00:00.Z",
        "2026-01-31T09:00:00%2B24:00",
        "2026-01-31T09:00:00Z%00",
        "%FF",
    ] {
        refuses(&format!("created_after={time}"), "invalid_created_after", "created_after").await;
    }
    let long = "k".repeat(256);
    for key in ["", "%20", "a%20b", "%C3%A9", "%00", "%22", "%22a", &long] {
        refuses(&format!("idempotency_key={key}"), "invalid_idempotency_key", "idempotency_key").await;
    }
    refuses("order=asc&order=desc", "invalid_query", "order").await;
    refuses("created=1", "invalid_query", "created").await;
}
