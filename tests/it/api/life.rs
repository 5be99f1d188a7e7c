//! The life of an order behind its verdict: paid, cancelled, expired; and how it is asked for twice, or without waiting.
//! After each move the inventory says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::{join, join_all};
use reqwest::{Method, header::HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::harness::{Answer, App, Client, Pair, RawConnection, eventually};

on_both_pairs!(
    a_paid_order_leaves_the_stock,
    a_cancelled_order_gives_its_pieces_back,
    a_rejected_order_stays_rejected,
    a_queued_order_can_be_neither_paid_nor_cancelled,
    unknown_orders_are_not_changed,
    a_change_needs_no_body,
    the_last_cancelled_piece_is_sold_at_once,
    paid_and_cancelled_at_the_same_time,
    a_reservation_expires,
    a_payment_at_the_time_of_expiry,
    one_key_twenty_times_at_once,
    one_key_for_many_products_at_once,
    the_same_keys_in_several_lanes_at_once,
    a_repeated_key_returns_the_order_in_any_status,
    a_repeated_key_is_queued_although_the_product_is_sold_out,
    a_key_may_be_quoted_or_bare,
    invalid_idempotency_keys,
    one_order_under_two_ids,
    a_client_that_does_not_wait_finds_the_verdict,
    a_client_may_wait_less_but_not_longer,
    a_change_is_decided_after_its_client_timed_out,
    unknown_preferences_are_ignored,
    an_error_also_names_the_applied_preferences,
);

/// No order has this id.
const NO_ORDER: &str = "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d";

/// A new order for so many pieces, which are there.
async fn reserved(app: &Client, product: u64, total: u64) -> String {
    let answer = app.order(product, total).await;
    assert_eq!((answer.status, &answer.data()["status"]), (201, &json!("reserved")), "{answer:?}");
    answer.id().to_owned()
}

/// The answer to a move that is made, or was made before.
#[track_caller]
fn is_moved(answer: &Answer, order: &str, status: &str) {
    let found = (answer.status, answer.id(), answer.data()["status"].as_str());
    assert_eq!(found, (200, order, Some(status)), "{answer:?}");
}

/// The answer to a move that is too late, or too early.
#[track_caller]
fn is_refused(answer: &Answer, reason: &str, status: &str) {
    let found = (answer.status, answer.reason(), answer.data()["order_status"].as_str());
    assert_eq!(found, (409, reason, Some(status)), "{answer:?}");
}

async fn a_paid_order_leaves_the_stock(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let (order, other) = (reserved(&app, product, 12).await, reserved(&app, product, 1).await);
    assert_eq!(app.inventory(product).await, [100, 87, 13]);

    let before = app.get(&format!("/api/orders/{order}")).await;
    let paid = app.pay(&order).await;
    is_moved(&paid, &order, "paid");
    let mut expected = before.data().clone();
    expected["status"] = json!("paid");
    assert_eq!(paid.data(), &expected, "nothing else of it changes");
    assert_eq!(app.inventory(product).await, [88, 87, 1]);
    assert_eq!(app.get(&format!("/api/orders/{order}")).await.data(), &expected);
    for _ in 0..3 {
        let again = app.pay(&order).await;
        assert_eq!((again.status, again.data()), (200, &expected));
        is_refused(&app.cancel(&order).await, "order_already_paid", "paid");
    }
    assert_eq!(app.inventory(product).await, [88, 87, 1]);
    assert_eq!(app.all("/api/orders?status=paid").await, [expected]);
    assert_eq!(app.reservations(product).await.orders, BTreeMap::from([(other, 1)]));
    // What left the stock is not there any more for the seller to count.
    assert_eq!(app.stock(product, 1).await.status, 200);
    assert_eq!(app.inventory(product).await, [1, 0, 1]);
}

async fn a_cancelled_order_gives_its_pieces_back(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let (order, other) = (reserved(&app, product, 12).await, reserved(&app, product, 1).await);
    let mut expected = app.get(&format!("/api/orders/{order}")).await.data().clone();
    expected["status"] = json!("cancelled");
    for _ in 0..3 {
        let cancelled = app.cancel(&order).await;
        is_moved(&cancelled, &order, "cancelled");
        assert_eq!(cancelled.data(), &expected);
        is_refused(&app.pay(&order).await, "order_not_reserved", "cancelled");
        assert_eq!(app.inventory(product).await, [100, 99, 1]);
    }
    assert_eq!(app.get(&format!("/api/orders/{order}")).await.data(), &expected);
    assert_eq!(app.all("/api/orders?status=cancelled").await, [expected]);
    assert_eq!(app.reservations(product).await.orders, BTreeMap::from([(other.clone(), 1)]));
    // The pieces are another's now; nothing that was cancelled takes them back.
    let next = reserved(&app, product, 99).await;
    is_moved(&app.cancel(&order).await, &order, "cancelled");
    is_moved(&app.pay(&next).await, &next, "paid");
    is_moved(&app.cancel(&other).await, &other, "cancelled");
    assert_eq!(app.inventory(product).await, [1, 1, 0]);
}

async fn a_rejected_order_stays_rejected(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let placed = app.order_with(product, 6, &[("Prefer", "respond-async")]).await;
    assert_eq!(app.verdict(placed.header("location")).await["status"], "rejected");
    assert_eq!(app.stock(product, 100).await.status, 200);
    is_refused(&app.pay(placed.id()).await, "order_not_reserved", "rejected");
    is_refused(&app.cancel(placed.id()).await, "order_not_reserved", "rejected");
    assert_eq!(app.inventory(product).await, [100, 100, 0]);
}

async fn a_queued_order_can_be_neither_paid_nor_cancelled(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    reserved(&app, product, 1).await;
    let hold = app.hold_decisions().await;
    let placed = app.order_with(product, 2, &[("Prefer", "respond-async")]).await;
    assert_eq!(placed.status, 202);
    is_refused(&app.pay(placed.id()).await, "order_not_reserved", "pending");
    is_refused(&app.cancel(placed.id()).await, "order_not_reserved", "pending");
    hold.end().await;
    assert_eq!(app.verdict(placed.header("location")).await["status"], "reserved");
    assert_eq!(app.inventory(product).await, [5, 2, 3]);
    is_moved(&app.pay(placed.id()).await, placed.id(), "paid");
    assert_eq!(app.inventory(product).await, [3, 2, 1]);
}

async fn unknown_orders_are_not_changed(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = reserved(&app, product, 1).await;
    for what in ["payment", "cancellation"] {
        for id in [NO_ORDER, "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
            let answer = app.change(id, what, &[]).await;
            assert_eq!((answer.status, answer.reason()), (404, "order_not_found"), "{id}: {answer:?}");
        }
        for id in [
            "1",
            "abc",
            "%00",
            "%2e%2e%2f",
            &order.replace('-', ""),
            &format!("{order}0"),
            &"9".repeat(5_000),
        ] {
            let answer = app.change(id, what, &[]).await;
            assert_eq!((answer.status, answer.reason()), (400, "invalid_order_id"), "{id}: {answer:?}");
        }
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
            let path = format!("/api/orders/{order}/{what}");
            let answer = app.send(method, &path, |request| request).await;
            assert_eq!((answer.status, answer.header("allow")), (405, "POST"));
        }
    }
    assert_eq!(app.inventory(product).await, [5, 4, 1]);
}

/// A payment or cancellation takes no body; an empty object passes for none.
async fn a_change_needs_no_body(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let order = reserved(&app, product, 1).await;
    let send = async |order: &str, what: &str, headers: &str, body: &[u8]| {
        let path = format!("/api/orders/{order}/{what}");
        let mut wire = RawConnection::open(&app).await;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: antre\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        wire.send(head.as_bytes()).await;
        wire.send(body).await;
        wire.answer("POST", &path).await
    };
    let large = [b"{}".to_vec(), vec![b' '; 16 * 1024]].concat();
    let huge = vec![b' '; 5_000_000];
    for what in ["payment", "cancellation"] {
        for body in [&b"[]"[..], b"null", b"{", b"{}{}", b"{\"total\":1}", b"paid", b"\xff", b"0", b"\"\""] {
            for headers in ["", "Content-Type: application/json\r\n"] {
                let answer = send(&order, what, headers, body).await;
                let shown = String::from_utf8_lossy(body);
                assert_eq!((answer.status, answer.reason()), (400, "invalid_body"), "{shown}: {answer:?}");
            }
        }
        for body in [&large, &huge] {
            let answer = send(&order, what, "", body).await;
            assert_eq!((answer.status, answer.reason()), (413, "body_too_large"), "{answer:?}");
        }
        // What is refused for another reason is refused in words as well, not by a reset while it is being sent.
        let answer = send("1", what, "", &huge).await;
        assert_eq!((answer.status, answer.reason()), (400, "invalid_order_id"), "{answer:?}");
    }
    assert_eq!(app.inventory(product).await, [100, 99, 1]);
    for (n, (headers, body)) in [
        ("", &b""[..]),
        ("Content-Type: application/json\r\n", b""),
        ("", b"{}"),
        ("Content-Type: application/json\r\n", b" {\n} "),
        ("Content-Type: text/plain\r\n", b" \r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let (what, status) = [("payment", "paid"), ("cancellation", "cancelled")][n % 2];
        let order = reserved(&app, product, 1).await;
        is_moved(&send(&order, what, headers, body).await, &order, status);
    }
    // In capitals it is the same order, and without a length there is no body.
    let mut wire = RawConnection::open(&app).await;
    let path = format!("/api/orders/{}/payment", order.to_uppercase());
    wire.send(format!("POST {path} HTTP/1.1\r\nHost: antre\r\n\r\n").as_bytes()).await;
    is_moved(&wire.answer("POST", &path).await, &order, "paid");
    assert_eq!(app.inventory(product).await, [96, 96, 0]);
}

async fn the_last_cancelled_piece_is_sold_at_once(pair: Pair) {
    let app = App::start(pair).await;
    the_last_piece_is_cancelled_and_sold_again(&app, &app).await;
    pieces_come_one_by_one(&app, &app).await;
}

/// A product of one piece that is ordered at one API, cancelled at the other, sold there, and given back again and again.
/// Once an API has answered the cancellation, the piece can be ordered at every API, whatever that one had cached.
pub(crate) async fn the_last_piece_is_cancelled_and_sold_again(one: &Client, other: &Client) {
    const ROUNDS: u64 = 50;
    let product = one.create_stocked("Kaos Polos", 1).await;
    for round in 0..ROUNDS {
        let order = reserved(one, product, 1).await;
        all_gates_close(&[one, other], product, round).await;
        is_moved(&other.cancel(&order).await, &order, "cancelled");
        let order = reserved(other, product, 1).await;
        is_moved(&other.cancel(&order).await, &order, "cancelled");
    }
    assert_eq!(one.ledger(product, 1).await, BTreeMap::from([("cancelled".to_owned(), 2 * ROUNDS)]));
}

/// The seller finds one more piece, again and again, and says so at one API; it is sold at the other.
pub(crate) async fn pieces_come_one_by_one(one: &Client, other: &Client) {
    const PIECES: u64 = 50;
    let product = one.create_product("Kaos Polos").await;
    for piece in 1..=PIECES {
        all_gates_close(&[one, other], product, piece).await;
        assert_eq!(other.stock(product, piece).await.status, 200);
        reserved(one, product, 1).await;
    }
    assert_eq!(one.inventory(product).await, [PIECES, 0, PIECES]);
}

/// Refused by the lane, then by a read, then on the lease of that read.
async fn all_gates_close(apis: &[&Client], product: u64, round: u64) {
    for api in apis.iter().flat_map(|api| [api; 3]) {
        let refused = api.order(product, 1).await;
        assert_eq!((refused.status, refused.reason()), (400, "insufficient_stock"), "round {round}");
    }
}

async fn paid_and_cancelled_at_the_same_time(pair: Pair) {
    let app = App::start(pair).await;
    each_ends_as_exactly_one(&[&app, &app]).await;
}

/// 100 orders, each paid at one API and cancelled at the other at the same time.
pub(crate) async fn each_ends_as_exactly_one(apis: &[&Client; 2]) {
    let [one, other] = apis;
    let product = one.create_stocked("Kaos Polos", 1_000).await;
    let orders = join_all((0..100).map(|n| reserved(one, product, 1 + n % 3))).await;
    let moves = orders.iter().enumerate().map(|(n, order)| {
        let (one, other, order) = ((*one).clone(), (*other).clone(), order.clone());
        tokio::spawn(async move {
            // By turns: who asks first has the better chance.
            let (first, second) =
                if n % 2 == 0 { ("payment", "cancellation") } else { ("cancellation", "payment") };
            let (first, second) =
                join(one.change(&order, first, &[]), other.change(&order, second, &[])).await;
            if n % 2 == 0 { (first, second) } else { (second, first) }
        })
    });
    let moves = join_all(moves.collect::<Vec<_>>()).await;
    let mut paid = 0;
    for (order, answers) in orders.iter().zip(moves) {
        let (payment, cancellation) = answers.unwrap();
        let status = if payment.status == 200 {
            is_moved(&payment, order, "paid");
            is_refused(&cancellation, "order_already_paid", "paid");
            paid += 1;
            "paid"
        } else {
            is_refused(&payment, "order_not_reserved", "cancelled");
            is_moved(&cancellation, order, "cancelled");
            "cancelled"
        };
        assert_eq!(other.get(&format!("/api/orders/{order}")).await.data()["status"], status);
    }
    eprintln!("{paid} of 100 orders ended as paid");
    let pieces = one.ledger(product, 1_000).await;
    assert_eq!(pieces.values().sum::<u64>(), (0..100).map(|n| 1 + n % 3).sum::<u64>());
    assert_eq!(pieces.get("reserved"), None);
}

async fn a_reservation_expires(pair: Pair) {
    let app = App::start_with(pair, &[("RESERVATION_TTL", "1500ms")]).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let [paid, cancelled, other] = [
        reserved(&app, product, 1).await,
        reserved(&app, product, 2).await,
        reserved(&app, product, 3).await,
    ];
    let last = reserved(&app, product, 4).await;
    let began = Instant::now();
    is_moved(&app.pay(&paid).await, &paid, "paid");
    is_moved(&app.cancel(&cancelled).await, &cancelled, "cancelled");
    assert_eq!(app.inventory(product).await, [9, 2, 7]);
    eventually("it does not expire", async || (app.inventory(product).await == [9, 9, 0]).then_some(()))
        .await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for order in [&other, &last] {
        let found = app.get(&format!("/api/orders/{order}")).await;
        assert_eq!(found.data()["status"], "expired");
        is_refused(&app.pay(order).await, "order_not_reserved", "expired");
        is_refused(&app.cancel(order).await, "order_not_reserved", "expired");
    }
    is_moved(&app.pay(&paid).await, &paid, "paid");
    is_moved(&app.cancel(&cancelled).await, &cancelled, "cancelled");
    // The gate that the last piece closed is open, and what was sold once more expires once more.
    let order = reserved(&app, product, 9).await;
    assert_eq!(app.inventory(product).await, [9, 0, 9]);
    eventually("it does not expire", async || (app.inventory(product).await == [9, 9, 0]).then_some(()))
        .await;
    assert_eq!(app.get(&format!("/api/orders/{order}")).await.data()["status"], "expired");
    let expected = [("cancelled", 2), ("expired", 16), ("paid", 1)];
    let expected = expected.map(|(status, pieces)| (status.to_owned(), pieces));
    assert_eq!(app.ledger(product, 10).await, BTreeMap::from(expected));
}

/// Payments that come when the time is just over: each finds its order reserved or expired, and it ends as that.
async fn a_payment_at_the_time_of_expiry(pair: Pair) {
    const ORDERS: u64 = 120;
    let app = App::start_with(pair, &[("RESERVATION_TTL", "1s")]).await;
    let product = app.create_stocked("Kaos Polos", ORDERS).await;
    let orders = join_all((0..ORDERS).map(|_| reserved(&app, product, 1))).await;
    let began = Instant::now();
    let payments = orders.iter().enumerate().map(|(n, order)| {
        let (app, order) = ((*app).clone(), order.clone());
        tokio::spawn(async move {
            // From before the end to after the sweep that comes at most half a second later.
            tokio::time::sleep_until(began + Duration::from_millis(900 + 7 * n as u64)).await;
            app.pay(&order).await
        })
    });
    let payments = join_all(payments.collect::<Vec<_>>()).await;
    eventually("they do not expire", async || (app.inventory(product).await[2] == 0).then_some(())).await;
    let mut paid = 0;
    for (order, payment) in orders.iter().zip(payments) {
        let payment = payment.unwrap();
        let status = app.get(&format!("/api/orders/{order}")).await.data()["status"].clone();
        if payment.status == 200 {
            is_moved(&payment, order, "paid");
            assert_eq!(status, "paid");
            paid += 1;
        } else {
            is_refused(&payment, "order_not_reserved", "expired");
            assert_eq!(status, "expired");
        }
    }
    eprintln!("{paid} of {ORDERS} orders were paid");
    let pieces = app.ledger(product, ORDERS).await;
    let of = |status: &str| pieces.get(status).copied().unwrap_or_default();
    assert_eq!((of("paid"), of("expired")), (paid, ORDERS - paid));
}

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

async fn a_client_that_does_not_wait_finds_the_verdict(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = async |total| {
        let answer = app.order_with(product, total, &[("Prefer", "respond-async")]).await;
        let applied = (answer.status, &answer.data()["status"], answer.header("preference-applied"));
        assert_eq!(applied, (202, &json!("pending"), "respond-async"), "{answer:?}");
        answer
    };
    for (total, left, verdict) in [(3, 2, "reserved"), (3, 2, "rejected"), (2, 0, "reserved")] {
        let placed = order(total).await;
        let found = app.verdict(placed.header("location")).await;
        assert_eq!((&found["id"], &found["status"]), (&json!(placed.id()), &json!(verdict)));
        if verdict == "rejected" {
            assert_eq!(
                (&found["reason"], &found["available_stock"]),
                (&json!("insufficient_stock"), &json!(left))
            );
        }
        assert_eq!(app.inventory(product).await, [5, left, 5 - left]);
    }
    // Nothing is left: without a key that is said at once, and costs no row. With one, only the lane knows.
    eventually("the gate stays open", async || {
        let answer = app.order_with(product, 1, &[("Prefer", "respond-async")]).await;
        (answer.status == 400).then(|| assert_eq!(answer.data()["available_stock"], 0))
    })
    .await;
    let keyed = async |key| {
        let headers = [("Idempotency-Key", key), ("Prefer", "respond-async")];
        let placed = app.order_with(product, 1, &headers).await;
        assert_eq!(app.verdict(placed.header("location")).await["status"], "rejected");
    };
    // Behind those that were queued while the gate was open: once it is decided, they are.
    keyed("a-key").await;
    let stored = app.all("/api/orders?status=rejected").await.len();
    for _ in 0..10 {
        assert_eq!(app.order_with(product, 1, &[("Prefer", "respond-async")]).await.status, 400);
    }
    keyed("another-key").await;
    // What is certainly wrong is answered at once.
    let answer = app.order_with(product + 1, 1, &[("Prefer", "respond-async")]).await;
    assert_eq!((answer.status, answer.reason()), (404, "product_not_found"));
    assert_eq!(app.all("/api/orders?status=rejected").await.len(), stored + 1);
}

async fn a_client_may_wait_less_but_not_longer(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "2s")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let ask = async |prefer: &str| {
        let asked = Instant::now();
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        let applied = answer.header("preference-applied").to_owned();
        (answer.status, applied, asked.elapsed())
    };
    for (prefer, applied, status) in [
        ("wait=0", "wait=0", 202),
        ("wait=1", "wait=1", 201),
        ("wait=2", "wait=2", 201),
        ("wait=100", "wait=2", 201),
        ("wait=4294967295", "wait=2", 201),
        ("respond-async, wait=100", "respond-async, wait=2", 201),
        ("respond-async, wait=0", "respond-async, wait=0", 202),
    ] {
        let (found, told, _) = ask(prefer).await;
        assert_eq!((found, told.as_str()), (status, applied), "{prefer}");
    }
    app.lane_served(product).await;
    assert_eq!(app.reservations(product).await.reserved, 7);

    // Nobody decides: the longer the client waits, the later it gets its answer.
    let hold = app.hold_decisions().await;
    for (prefer, applied, seconds) in [
        ("wait=0", "wait=0", 0..1),
        ("respond-async", "respond-async", 0..1),
        ("wait=1", "wait=1", 1..2),
        ("respond-async, wait=1", "respond-async, wait=1", 1..2),
        ("wait=60", "wait=2", 2..4),
    ] {
        let (status, told, took) = ask(prefer).await;
        assert_eq!((status, told.as_str()), (202, applied), "{prefer}");
        assert!(seconds.contains(&took.as_secs()), "{prefer}: {took:?}");
    }
    hold.end().await;
    app.lane_served(product).await;
    assert_eq!(app.reservations(product).await.reserved, 12);
}

async fn a_change_is_decided_after_its_client_timed_out(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "1s")]).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let [paid, cancelled, late] = [
        reserved(&app, product, 1).await,
        reserved(&app, product, 2).await,
        reserved(&app, product, 3).await,
    ];
    let hold = app.hold_decisions().await;
    let is_in_line = |answer: &Answer, order: &str, applied: Option<&str>| {
        let found = (answer.status, answer.id(), &answer.data()["status"]);
        assert_eq!(found, (202, order, &json!("reserved")), "{answer:?}");
        assert_eq!(answer.header("location"), format!("/api/orders/{order}"));
        let told = answer.headers.get("preference-applied").map(|value| value.to_str().unwrap());
        assert_eq!(told, applied);
    };
    let not_to_wait = [("Prefer", "respond-async")];
    is_in_line(&app.change(&paid, "payment", &not_to_wait).await, &paid, Some("respond-async"));
    is_in_line(
        &app.change(&cancelled, "cancellation", &[("Prefer", "wait=0")]).await,
        &cancelled,
        Some("wait=0"),
    );
    // The first in the lane decides, whatever comes behind it.
    is_in_line(&app.change(&paid, "cancellation", &not_to_wait).await, &paid, Some("respond-async"));
    let asked = Instant::now();
    is_in_line(&app.pay(&late).await, &late, None);
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!(app.inventory(product).await, [10, 4, 6]);
    hold.end().await;

    for (order, status) in [(&paid, "paid"), (&cancelled, "cancelled"), (&late, "paid")] {
        eventually("it stays reserved", async || {
            let found = app.get(&format!("/api/orders/{order}")).await;
            (found.data()["status"] != "reserved").then(|| assert_eq!(found.data()["status"], status))
        })
        .await;
    }
    assert_eq!(app.inventory(product).await, [6, 6, 0]);
    // What is final is known at once, however long one prefers to wait.
    let again = app.change(&paid, "payment", &not_to_wait).await;
    is_moved(&again, &paid, "paid");
    is_refused(&app.change(&paid, "cancellation", &not_to_wait).await, "order_already_paid", "paid");
}

async fn unknown_preferences_are_ignored(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 1_000).await;
    for prefer in [
        "",
        ",",
        ";",
        "=",
        "return=minimal",
        "handling=strict",
        "wait",
        "wait=",
        "wait=-1",
        "wait=1.5",
        "wait=x",
        "wait=+3",
        "wait=\"3",
        "foo=\"bar, respond-async, wait=3\"",
        "respond-async-please",
        "x=respond-async",
        "\"respond-async\"",
        "wait=\u{e9}",
        "return=representation; wait=0",
    ] {
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        let applied = answer.headers.get("preference-applied");
        assert_eq!((answer.status, applied), (201, None), "{prefer}: {answer:?}");
        let paid = app.change(answer.id(), "payment", &[("Prefer", prefer)]).await;
        assert_eq!((paid.status, paid.headers.get("preference-applied")), (200, None), "{prefer}");
    }
    // Beside those that are known they do no harm.
    for (prefer, applied) in [
        ("return=minimal, wait=5, foo; bar=\"baz\"", "wait=5"),
        ("WAIT=5", "wait=5"),
        ("foo,,wait = 5", "wait=5"),
        ("foo=\"a, wait=3; \\\", wait=4\"; bar, wait=5", "wait=5"),
        ("wait=99999999999999999999", "wait=10"),
    ] {
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        assert_eq!((answer.status, answer.header("preference-applied")), (201, applied), "{prefer}");
    }
}

async fn an_error_also_names_the_applied_preferences(pair: Pair) {
    // Not whole seconds: the answer rounds up what is granted.
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "2500ms")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let [paid, cancelled] = [reserved(&app, product, 1).await, reserved(&app, product, 1).await];
    is_moved(&app.pay(&paid).await, &paid, "paid");
    is_moved(&app.cancel(&cancelled).await, &cancelled, "cancelled");
    let key = ("Idempotency-Key", "a-key");
    assert_eq!(app.order_with(product, 1, &[key]).await.status, 201);
    for (prefer, applied) in [("wait=100", "wait=3"), ("wait=1, respond-async", "respond-async, wait=1")] {
        let wanted = ("Prefer", prefer);
        for (answer, status, reason) in [
            (app.order_with(product, 100, &[wanted]).await, 400, "insufficient_stock"),
            (app.order_with(product + 1, 1, &[wanted]).await, 404, "product_not_found"),
            (app.order_with(product, 2, &[wanted, key]).await, 422, "idempotency_key_reused"),
            (app.change(&cancelled, "payment", &[wanted]).await, 409, "order_not_reserved"),
            (app.change(&paid, "cancellation", &[wanted]).await, 409, "order_already_paid"),
            (app.change(NO_ORDER, "payment", &[wanted]).await, 404, "order_not_found"),
        ] {
            let found = (answer.status, answer.reason(), answer.header("preference-applied"));
            assert_eq!(found, (status, reason, applied), "{answer:?}");
        }
        // What is no request waits for nothing.
        for answer in [
            app.order_with(product, 0, &[wanted]).await,
            app.order_with(product, 1, &[wanted, ("Idempotency-Key", "")]).await,
            app.change("1", "payment", &[wanted]).await,
        ] {
            assert_eq!((answer.status, answer.headers.get("preference-applied")), (400, None), "{answer:?}");
        }
    }
}
