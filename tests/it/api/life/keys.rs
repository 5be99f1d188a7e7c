//! Idempotency keys: how an order is asked for twice.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::{Method, header::HeaderValue};
use serde_json::{Value, json};

use super::{is_moved, is_refused, reserved};
use crate::support::harness::{Answer, App, Client, Pair, RawConnection};

on_both_pairs!(
    one_key_twenty_times_at_once,
    one_key_for_many_products_at_once,
    the_same_keys_in_several_lanes_at_once,
    a_repeated_key_returns_the_order_in_any_status,
    a_repeated_key_is_queued_although_the_product_is_sold_out,
    a_key_may_be_quoted_or_bare,
    invalid_idempotency_keys,
    one_order_under_two_ids,
);

/// The key of [`one_order_for_twenty_requests`].
pub(crate) const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

/// Quotes a key as the IETF's draft does.
fn quoted(key: &str) -> String {
    format!("\"{key}\"")
}

async fn one_key_twenty_times_at_once(pair: Pair) {
    let mut app = App::start(pair).await;
    let product = one_order_for_twenty_requests(&[&app]).await;
    assert!(app.terminate().await.success());
    app.restart().await;
    let again = app.order_with(product, 7, &[("Idempotency-Key", KEY)]).await;
    let on_record = app.all("/api/orders").await;
    assert_eq!((again.status, again.data(), on_record.len()), (201, &on_record[0], 1));
    assert_eq!(app.inventory(product).await, [100, 93, 7]);
}

/// One key, quoted and bare, twenty times at once over these APIs: one order, and its id in all answers. Returns the
/// product.
pub(crate) async fn one_order_for_twenty_requests(apis: &[&Client]) -> u64 {
    let product = apis[0].create_stocked("Kaos Polos", 100).await;
    let requests = (0..20).map(|n| {
        let api = apis[n % apis.len()];
        let key = if n / 2 % 2 == 0 { KEY.to_owned() } else { quoted(KEY) };
        async move { api.order_with(product, 7, &[("Idempotency-Key", &key)]).await }
    });
    let answers = join_all(requests).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.data()), (201, answers[0].data()), "{answer:?}");
        assert_eq!(answer.header("location"), answers[0].header("location"));
    }
    assert_eq!(apis[0].inventory(product).await, [100, 93, 7]);
    product
}

/// A key names one order, whatever the product: one of the products gets it, the others read 422.
async fn one_key_for_many_products_at_once(pair: Pair) {
    const PRODUCTS: usize = 8;
    let app = App::start(pair).await;
    one_of_these_products(&[&app], PRODUCTS, 25).await;
}

pub(crate) async fn one_of_these_products(apis: &[&Client], products: usize, rounds: usize) {
    let products = join_all((0..products).map(|_| apis[0].create_stocked("Kaos Polos", 1_000))).await;
    for round in 0..rounds {
        let key = format!("key-{round}");
        let requests = products.iter().enumerate().map(|(n, product)| {
            let (api, key) = (apis[(n + round) % apis.len()], &key);
            async move { (*product, api.order_with(*product, 1, &[("Idempotency-Key", key)]).await) }
        });
        let answers = join_all(requests).await;
        let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer.status == 201);
        assert_eq!(won.len(), 1, "{won:?}");
        for (product, answer) in lost {
            assert_eq!((answer.status, answer.reason()), (422, "idempotency_key_reused"), "{answer:?}");
            assert_eq!(answer.json["status"], "UNPROCESSABLE ENTITY");
            let (winner, order) = (won[0].0, &won[0].1);
            assert_ne!(winner, *product);
            // And so it stays.
            let again = apis[round % apis.len()].order_with(*product, 1, &[("Idempotency-Key", &key)]).await;
            assert_eq!(again.status, 422);
            assert_eq!(order.data()["product_id"], winner);
        }
    }
    let mut on_record = 0;
    for product in products {
        on_record += apis[0].reservations(product).await.reserved;
    }
    assert_eq!(on_record, rounds as u64);
}

/// Many keys in several lanes at once, so that the batches of one meet those of the other in the other order.
async fn the_same_keys_in_several_lanes_at_once(pair: Pair) {
    let app = App::start(pair).await;
    keys_meet(&[&app], 2, 400).await;
}

pub(crate) async fn keys_meet(apis: &[&Client], products: usize, keys: usize) {
    let products = join_all((0..products).map(|_| apis[0].create_stocked("Kaos Polos", 10_000))).await;
    let order_of = |lane: usize, n: usize| if lane.is_multiple_of(2) { n } else { keys - 1 - n };
    let requests = (0..keys)
        .flat_map(|n| products.iter().enumerate().map(move |(lane, product)| (*product, order_of(lane, n))));
    let requests = requests.map(|(product, key)| {
        let api = apis[key % apis.len()].clone();
        tokio::spawn(async move {
            let key = format!("both-{key}");
            (api.order_with(product, 1, &[("Idempotency-Key", &key)]).await, key)
        })
    });
    let answers = join_all(requests.collect::<Vec<_>>()).await;
    let (mut won, mut lost) = (BTreeSet::new(), 0);
    for (answer, key) in answers.into_iter().map(Result::unwrap) {
        match answer.status {
            201 => assert!(won.insert(key), "two orders of one key: {answer:?}"),
            422 => lost += 1,
            _ => panic!("{key}: {answer:?}"),
        }
    }
    assert_eq!((won.len(), lost), (keys, (products.len() - 1) * keys));
    let mut shares = Vec::new();
    for product in products {
        shares.push(apis[0].reservations(product).await.reserved);
    }
    assert_eq!(shares.iter().sum::<u64>(), keys as u64);
    eprintln!("the lanes got {shares:?} of {keys} keys");
}

async fn a_repeated_key_returns_the_order_in_any_status(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let other = app.create_stocked("Kaos Garis", 10).await;
    let order = async |key: &str, product: u64, total: u64| {
        app.order_with(product, total, &[("Idempotency-Key", key)]).await
    };
    let is_the_order = |answer: &Answer, first: &Answer, status: &str| {
        let found = (answer.status, answer.id(), &answer.data()["status"]);
        assert_eq!(found, (201, first.id(), &json!(status)), "{answer:?}");
        assert_eq!(answer.header("location"), first.header("location"));
        assert_eq!(answer.header("idempotent-replayed"), "true");
    };
    let holds_nothing = |answer: &Answer, status: &str| {
        let found = (answer.status, answer.reason(), &answer.data()["order_status"]);
        assert_eq!(found, (409, "order_not_reserved", &json!(status)), "{answer:?}");
        assert_eq!(answer.header("idempotent-replayed"), "true");
    };
    let is_of_another = |answer: &Answer| {
        assert_eq!((answer.status, answer.reason()), (422, "idempotency_key_reused"), "{answer:?}");
    };
    let [paid, cancelled, kept] = [
        order("paid", product, 1).await,
        order("cancelled", product, 2).await,
        order("kept", product, 3).await,
    ];
    is_moved(&app.pay(paid.id()).await, paid.id(), "paid");
    is_moved(&app.cancel(cancelled.id()).await, cancelled.id(), "cancelled");
    // A refusal in time is answered and forgotten: the key is still free.
    assert_eq!(order("late", product, 7).await.reason(), "insufficient_stock");
    assert_eq!(order("late", product, 8).await.reason(), "insufficient_stock");
    let sold_out = order("late", product, 6).await;
    assert_eq!(sold_out.status, 201);
    assert!(!sold_out.headers.contains_key("idempotent-replayed"));
    assert_eq!(app.inventory(product).await, [9, 0, 9]);
    // The product is sold out, and the gate closed.
    for _ in 0..2 {
        assert_eq!(app.order(product, 1).await.status, 400);
        is_the_order(&order("paid", product, 1).await, &paid, "paid");
        holds_nothing(&order("cancelled", product, 2).await, "cancelled");
        is_the_order(&order("kept", product, 3).await, &kept, "reserved");
        is_the_order(&order("late", product, 6).await, &sold_out, "reserved");
    }
    for key in ["paid", "cancelled", "kept", "late"] {
        is_of_another(&order(key, product, 9).await);
        is_of_another(&order(key, other, 1).await);
    }
    for key in ["kept", "never-used"] {
        assert_eq!(order(key, other + 1, 1).await.reason(), "product_not_found");
    }
    // A client that asks again without waiting gets what is known as well.
    let not_to_wait = async |key: &str, total: u64, prefer: &str| {
        app.order_with(product, total, &[("Idempotency-Key", key), ("Prefer", prefer)]).await
    };
    for prefer in ["respond-async", "wait=0"] {
        is_the_order(&not_to_wait("kept", 3, prefer).await, &kept, "reserved");
        is_the_order(&not_to_wait("paid", 1, prefer).await, &paid, "paid");
        holds_nothing(&not_to_wait("cancelled", 2, prefer).await, "cancelled");
        is_of_another(&not_to_wait("kept", 4, prefer).await);
    }

    // One that was rejected after its client had left, and asked for again when there is enough.
    let rejected = not_to_wait("rejected", 10, "respond-async").await;
    assert_eq!(rejected.status, 202);
    assert_eq!(app.verdict(rejected.header("location")).await["status"], "rejected");
    assert_eq!(app.stock(product, 100).await.status, 200);
    let again = [
        order("rejected", product, 10).await,
        not_to_wait("rejected", 10, "respond-async").await,
        not_to_wait("rejected", 10, "wait=0").await,
    ];
    for again in again {
        assert_eq!((again.status, again.reason()), (400, "insufficient_stock"), "{again:?}");
        assert_eq!(again.data()["available_stock"], 0);
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    is_of_another(&order("rejected", product, 11).await);
    assert_eq!(app.inventory(product).await, [100, 91, 9]);
    assert_eq!(app.inventory(other).await, [10, 10, 0]);
    assert_eq!(app.all("/api/orders?status=rejected").await.len(), 1);
    assert_eq!(app.all("/api/orders").await.len(), 5);
}

/// Nothing is left, but a queued cancellation gives a piece back, and an order with a key is queued behind it. A client that
/// sends that order again is not refused in the meantime.
async fn a_repeated_key_is_queued_although_the_product_is_sold_out(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 1).await;
    let last_piece = reserved(&app, product, 1).await;
    let hold = app.hold_decisions().await;
    let given_back = app.change(&last_piece, "cancellation", &[("Prefer", "respond-async")]).await;
    assert_eq!(given_back.status, 202, "{given_back:?}");
    let left = [("Idempotency-Key", "a-key"), ("Prefer", "respond-async")];
    let first = app.order_with(product, 1, &left).await;
    assert_eq!(first.status, 202, "{first:?}");
    let again = tokio::spawn({
        let app = (*app).clone();
        async move { app.order_with(product, 1, &[("Idempotency-Key", "a-key")]).await }
    });
    // A round trip later it is queued as well, or was refused.
    assert_eq!(app.order_with(product, 1, &left).await.status, 202);
    hold.end().await;
    let again = again.await.unwrap();
    assert_eq!((again.status, again.id()), (201, first.id()), "{again:?}");
    assert_eq!(app.verdict(first.header("location")).await["status"], "reserved");
    assert_eq!(app.inventory(product).await, [1, 0, 1]);
}

async fn a_key_may_be_quoted_or_bare(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let longest = "k".repeat(255);
    let keys = [
        ["abc", "\"abc\"", " abc "],
        ["ABC", "\"ABC\"", "\t\"ABC\""], // not the same as abc
        ["a\"b\\c", r#""a\"b\\c""#, r#" "a\"b\\c" "#],
        ["'; DROP TABLE orders; --".split(' ').next().unwrap(), "\"';\"", "';"],
        ["[\"a\",1]", r#""[\"a\",1]""#, "[\"a\",1]"],
        [&longest, &quoted(&longest), &longest],
        ["~!@#$%^&*()_+{}|:<>?", "\"~!@#$%^&*()_+{}|:<>?\"", "~!@#$%^&*()_+{}|:<>?"],
    ];
    let mut orders = BTreeSet::new();
    for spellings in keys {
        let mut of_key = BTreeSet::new();
        for key in spellings {
            let answer = app.order_with(product, 1, &[("idempotency-key", key)]).await;
            assert_eq!(answer.status, 201, "{key}: {answer:?}");
            of_key.insert(answer.id().to_owned());
        }
        assert_eq!(of_key.len(), 1, "{spellings:?}");
        orders.append(&mut of_key);
    }
    assert_eq!(orders.len(), 7, "two keys became one");
    assert_eq!(app.inventory(product).await, [100, 93, 7]);
}

async fn invalid_idempotency_keys(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let refuses = async |keys: &[&[u8]]| {
        let body = json!({"product_id": product, "total": 1});
        let answer = app
            .send(Method::POST, "/api/orders", |request| {
                let values = keys.iter().map(|key| HeaderValue::from_bytes(key).unwrap());
                values.fold(request, |request, key| request.header("Idempotency-Key", key)).json(&body)
            })
            .await;
        let shown: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, "invalid_idempotency_key", Some("Idempotency-Key")), "{shown:?}: {answer:?}");
    };
    let (long, long_quoted) = ("k".repeat(256), quoted(&"k".repeat(256)));
    let huge = "k".repeat(60_000);
    for key in [
        "",
        " ",
        "\t",
        "two words",
        "tab\tbed",
        "\"two words\"",
        "\"\"",
        "\"",
        "\"abc",
        "\"abc\"x",
        "\"abc\";x=1",
        "\"a\\bc\"",
        "\"abc\\\"",
        "\"abc\", \"def\"",
        "kaos-é",
        "\u{1f455}",
        &long,
        &long_quoted,
        &huge,
    ] {
        refuses(&[key.as_bytes()]).await;
    }
    refuses(&[b"\xff"]).await;
    refuses(&[b"abc", b"abc"]).await;
    refuses(&[b"abc", b""]).await;
    assert_eq!(app.all("/api/orders").await, [] as [Value; 0]);
    assert_eq!(app.inventory(product).await, [5, 5, 0]);

    // In words, not by a reset while a large body is being sent.
    let body = vec![b' '; 5_000_000];
    let mut wire = RawConnection::open(&app).await;
    let head = format!(
        "POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\nIdempotency-Key: \r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    wire.send(head.as_bytes()).await;
    wire.send(&body).await;
    assert_eq!(wire.answer("POST", "/api/orders").await.reason(), "invalid_idempotency_key");
}

/// A client that does not wait asks again before the first of its orders is decided, and is given another id: both
/// lead to the one order.
async fn one_order_under_two_ids(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let hold = app.hold_decisions().await;
    let order = async |total| {
        let headers = [("Idempotency-Key", "one"), ("Prefer", "respond-async")];
        let answer = app.order_with(product, total, &headers).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer
    };
    let [first, second, of_another, third] = [order(4).await, order(4).await, order(5).await, order(4).await];
    let waiting = tokio::spawn({
        let app = (*app).clone();
        async move { app.order_with(product, 4, &[("Idempotency-Key", "one")]).await }
    });
    let given: BTreeSet<_> = [&first, &second, &third].iter().map(|answer| answer.id()).collect();
    assert_eq!(given.len(), 3);
    for answer in [&first, &second, &of_another, &third] {
        assert_eq!(app.get(answer.header("location")).await.data()["status"], "pending");
    }
    hold.end().await;

    let waited = waiting.await.unwrap();
    let order = app.verdict(first.header("location")).await;
    let known = (&order["id"], &order["status"], &order["total"]);
    assert_eq!(known, (&json!(first.id()), &json!("reserved"), &json!(4)));
    for answer in [&second, &third] {
        assert_eq!(app.verdict(answer.header("location")).await, order);
    }
    assert_eq!((waited.status, waited.data()), (201, &order));
    assert_eq!(app.inventory(product).await, [10, 6, 4]);
    let rejected = app.verdict(of_another.header("location")).await;
    assert_eq!(
        (&rejected["id"], &rejected["status"], &rejected["reason"], rejected.get("available_stock")),
        (&json!(of_another.id()), &json!("rejected"), &json!("idempotency_key_reused"), None)
    );
    assert_eq!(app.all("/api/orders?status=reserved").await, std::slice::from_ref(&order));
    assert_eq!(app.all("/api/orders?status=rejected").await, [rejected]);

    // It can be moved under each of its names.
    is_refused(&app.pay(of_another.id()).await, "order_not_reserved", "rejected");
    is_moved(&app.cancel(second.id()).await, first.id(), "cancelled");
    for answer in [&first, &second, &third] {
        is_moved(&app.cancel(answer.id()).await, first.id(), "cancelled");
        is_refused(&app.pay(answer.id()).await, "order_not_reserved", "cancelled");
        assert_eq!(app.get(answer.header("location")).await.data()["status"], "cancelled");
    }
    assert_eq!(app.inventory(product).await, [10, 10, 0]);
}
