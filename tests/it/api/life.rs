//! The life of an order behind its verdict: paid, cancelled, expired. After each move the inventory says so.

pub(crate) mod keys;
mod payments;
mod preferences;

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::{join, join_all};
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::support::harness::{Answer, App, Client, Pair, RawConnection, eventually};

on_both_pairs!(
    a_paid_order_leaves_the_stock,
    a_cancelled_order_gives_its_pieces_back,
    a_rejected_order_stays_rejected,
    a_queued_order_can_only_be_given_up,
    unknown_orders_are_not_changed,
    a_change_needs_no_body,
    the_last_cancelled_piece_is_sold_at_once,
    paid_and_cancelled_at_the_same_time,
    a_reservation_expires,
    a_payment_at_the_time_of_expiry,
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
    expected["paid_at"] = paid.data()["paid_at"].clone();
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

async fn a_queued_order_can_only_be_given_up(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    reserved(&app, product, 1).await;
    let hold = app.hold_decisions().await;
    let placed = app.order_with(product, 2, &[("Prefer", "respond-async")]).await;
    assert_eq!(placed.status, 202);
    is_refused(&app.pay(placed.id()).await, "order_not_reserved", "pending");
    is_refused(&app.extend(placed.id()).await, "order_not_reserved", "pending");
    is_refused(&app.take_back(placed.id(), true).await, "order_not_reserved", "pending");
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

/// A cancellation or extension takes no body, a payment needs none; an empty object passes for none.
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
    for what in ["cancellation", "extension"] {
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
    let app = App::start_with(pair, &[("RESERVATION_TTL", "1500ms"), ("LATE_PAYMENT", "refuse")]).await;
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
        is_refused(&app.pay(order).await, "order_expired", "expired");
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
    let app = App::start_with(pair, &[("RESERVATION_TTL", "1s"), ("LATE_PAYMENT", "refuse")]).await;
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
            is_refused(&payment, "order_expired", "expired");
            assert_eq!(status, "expired");
        }
    }
    eprintln!("{paid} of {ORDERS} orders were paid");
    let pieces = app.ledger(product, ORDERS).await;
    let of = |status: &str| pieces.get(status).copied().unwrap_or_default();
    assert_eq!((of("paid"), of("expired")), (paid, ORDERS - paid));
}
