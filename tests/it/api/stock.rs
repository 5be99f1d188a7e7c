//! The seller's books: compare and set, adjustments by difference, and the movements of a product.

use std::sync::Arc;

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::harness::{Answer, App, Client, MAX_TOTAL, Pair};

on_both_pairs!(
    a_count_that_expects_another_stock_is_refused,
    an_adjustment_is_a_movement,
    an_adjustment_that_is_not_possible_is_refused,
    invalid_bodies_of_an_adjustment,
    a_repeated_adjustment_is_answered_with_its_movement,
    one_adjustment_twenty_times_at_once_moves_once,
    every_change_of_the_stock_is_listed,
    movements_are_listed_page_by_page,
    pieces_that_were_added_can_be_ordered_at_once,
    restocking_during_a_sale,
);

/// An adjustment with these request headers.
async fn adjust(app: &Client, product: u64, body: Value, headers: &[(&str, &str)]) -> Answer {
    let path = format!("/api/products/{product}/inventory/adjustments");
    app.send(Method::POST, &path, |request| {
        headers.iter().fold(request.json(&body), |request, (name, value)| request.header(*name, *value))
    })
    .await
}

async fn adjust_with_key(app: &Client, product: u64, body: Value, key: &str) -> Answer {
    adjust(app, product, body, &[("Idempotency-Key", key)]).await
}

/// All movements, the oldest first.
async fn movements(app: &Client, product: u64) -> Vec<Value> {
    let mut rows = app.all(&format!("/api/products/{product}/inventory/movements?limit=100")).await;
    rows.reverse();
    rows
}

/// Kind, change, orders, stored stock after it, and reason.
fn facts(movement: &Value) -> Value {
    json!(["kind", "change", "orders", "stored_stock", "reason"].map(|field| &movement[field]))
}

fn number(movement: &Value, field: &str) -> i64 {
    movement[field].as_i64().unwrap_or_else(|| panic!("{movement}"))
}

/// The movements of a product lead from nothing to its stored stock, one after the other. Returns them.
async fn agreeing_movements(app: &Client, product: u64) -> Vec<Value> {
    let rows = movements(app, product).await;
    let (mut stored, mut seq) = (0, 0);
    for row in &rows {
        stored += number(row, "change");
        assert_eq!(number(row, "stored_stock"), stored, "{row}");
        assert!(number(row, "seq") > seq, "{row} after {seq}");
        seq = number(row, "seq");
    }
    let [now, ..] = app.inventory(product).await;
    assert_eq!(now as i64, stored);
    rows
}

#[track_caller]
fn is_refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.reason()), (status, reason), "{answer:?}");
}

async fn a_count_that_expects_another_stock_is_refused(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let path = format!("/api/products/{product}/inventory");
    let (paid, held) = (app.order(product, 3).await, app.order(product, 2).await);
    assert_eq!(app.pay(paid.id()).await.status, 200);
    // The seller read 10, and 5 came in. Without `expected_stock` the 3 that are sold would come back.
    let changed = app.put(&path, json!({"stock": 15, "expected_stock": 10})).await;
    is_refused(&changed, 409, "stock_changed");
    assert_eq!(changed.data()["stored_stock"], 7, "{changed:?}");
    let below = app.put(&path, json!({"stock": 1, "expected_stock": 7})).await;
    is_refused(&below, 409, "stock_below_reserved");
    assert_eq!(app.inventory(product).await, [7, 5, 2]);
    let counted = app.put(&path, json!({"stock": 12, "expected_stock": 7})).await;
    assert_eq!((counted.status, &counted.data()["stored_stock"]), (200, &json!(12)), "{counted:?}");
    // Sent again, it does not count twice.
    is_refused(&app.put(&path, json!({"stock": 12, "expected_stock": 7})).await, 409, "stock_changed");
    let anyway = app.put(&path, json!({"stock": 20, "expected_stock": null})).await;
    assert_eq!((anyway.status, &anyway.data()["available_stock"]), (200, &json!(18)), "{anyway:?}");
    for value in ["-1", "2147483648", "1.5", "\"7\"", "true"] {
        let body: Value =
            serde_json::from_str(&format!("{{\"stock\": 1, \"expected_stock\": {value}}}")).unwrap();
        let invalid = app.put(&path, body).await;
        is_refused(&invalid, 400, "invalid_stock");
        assert_eq!(invalid.data()["field"], "expected_stock", "{invalid:?}");
    }
    assert_eq!(app.cancel(held.id()).await.status, 200);
    assert_eq!(app.inventory(product).await, [20, 20, 0]);
}

async fn an_adjustment_is_a_movement(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    for (body, expected, stock) in [
        (
            json!({"change": -3, "reason": "  damaged in transport "}),
            json!(["adjustment", -3, 0, 7, "damaged in transport"]),
            [7, 7, 0],
        ),
        (json!({"change": 5}), json!(["adjustment", 5, 0, 12, null]), [12, 12, 0]),
        (json!({"change": -12, "reason": null}), json!(["adjustment", -12, 0, 0, null]), [0, 0, 0]),
        (
            json!({"change": MAX_TOTAL, "reason": "é".repeat(100)}),
            json!(["adjustment", MAX_TOTAL, 0, MAX_TOTAL, "é".repeat(100)]),
            [MAX_TOTAL, MAX_TOTAL, 0],
        ),
    ] {
        let answer = adjust(&app, product, body, &[]).await;
        assert_eq!((answer.status, facts(answer.data())), (201, expected), "{answer:?}");
        assert!(!answer.headers.contains_key("idempotent-replayed"), "{answer:?}");
        assert_eq!(app.inventory(product).await, stock);
        assert_eq!(movements(&app, product).await.last(), Some(answer.data()));
    }
    agreeing_movements(&app, product).await;
}

async fn an_adjustment_that_is_not_possible_is_refused(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    assert_eq!(app.order(product, 4).await.status, 201);
    for change in [-7, -10, -2_147_483_647] {
        let below = adjust_with_key(&app, product, json!({"change": change}), "a-key").await;
        is_refused(&below, 409, "stock_below_reserved");
        assert_eq!(below.data()["reserved_stock"], 4, "{below:?}");
    }
    for change in [MAX_TOTAL - 9, MAX_TOTAL] {
        let above = adjust_with_key(&app, product, json!({"change": change}), "a-key").await;
        is_refused(&above, 409, "stock_above_maximum");
        assert_eq!(above.data()["stored_stock"], 10, "{above:?}");
    }
    for unknown in [product + 1, 9_007_199_254_740_991] {
        is_refused(&adjust(&app, unknown, json!({"change": 1}), &[]).await, 404, "product_not_found");
        let list = app.get(&format!("/api/products/{unknown}/inventory/movements")).await;
        is_refused(&list, 404, "product_not_found");
    }
    assert_eq!(app.inventory(product).await, [10, 6, 4]);
    assert_eq!(movements(&app, product).await.len(), 1);
    // A key is used by what was done, not by what was refused.
    assert_eq!(adjust_with_key(&app, product, json!({"change": -6}), "a-key").await.status, 201);
    assert_eq!(app.inventory(product).await, [4, 0, 4]);
}

async fn invalid_bodies_of_an_adjustment(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let path = format!("/api/products/{product}/inventory/adjustments");
    let refuses = async |body: &str, reason: &str, field: Option<&str>| {
        let body = body.to_owned();
        let json = ("content-type", "application/json");
        let answer = app.send(Method::POST, &path, |request| request.header(json.0, json.1).body(body)).await;
        is_refused(&answer, 400, reason);
        assert_eq!(answer.data()["field"].as_str(), field, "{answer:?}");
    };
    for value in
        ["0", "-0", "null", "0.5", "1e1", "\"1\"", "true", "[1]", "2147483648", "-2147483648", "1e400"]
    {
        refuses(&format!("{{\"change\":{value}}}"), "invalid_change", Some("change")).await;
    }
    refuses("{}", "invalid_change", Some("change")).await;
    refuses("{\"reason\":\"damaged\"}", "invalid_change", Some("change")).await;
    for value in [
        "\"\"",
        "\" \"",
        "7",
        "\"\\u200b\"",
        "\"a\\u202eb\"",
        "\"a\\u0000\"",
        &format!("{:?}", "x".repeat(101)),
    ] {
        refuses(&format!("{{\"change\":1,\"reason\":{value}}}"), "invalid_reason", Some("reason")).await;
    }
    refuses("{\"change\":1,\"stock\":7}", "invalid_field", Some("stock")).await;
    refuses("{\"change\":1,\"change\":1}", "invalid_body", None).await;
    refuses("[1]", "invalid_body", None).await;
    refuses("", "invalid_json", None).await;
    for key in ["", "a key", "\"open", &"k".repeat(256)] {
        let answer = adjust_with_key(&app, product, json!({"change": 1}), key).await;
        is_refused(&answer, 400, "invalid_idempotency_key");
    }
    is_refused(
        &app.post("/api/products/x/inventory/adjustments", json!({"change": 1})).await,
        400,
        "invalid_product_id",
    );
    assert_eq!(app.inventory(product).await, [5, 5, 0]);
    assert_eq!(movements(&app, product).await.len(), 1);
}

async fn a_repeated_adjustment_is_answered_with_its_movement(pair: Pair) {
    let app = App::start(pair).await;
    let (product, other) = (app.create_stocked("Kaos Polos", 10).await, app.create_stocked("Topi", 10).await);
    let body = json!({"change": -3, "reason": "damaged"});
    let first = adjust_with_key(&app, product, body.clone(), "delivery-1").await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(app.stock(product, 3).await.status, 200);
    for (key, same) in
        [("delivery-1", body.clone()), ("\"delivery-1\"", json!({"reason": " damaged ", "change": -3}))]
    {
        let again = adjust_with_key(&app, product, same, key).await;
        assert_eq!((again.status, again.data()), (201, first.data()), "{again:?}");
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    for (product, body) in [
        (product, json!({"change": -3})),
        (product, json!({"change": -3, "reason": "lost"})),
        (product, json!({"change": 3, "reason": "damaged"})),
        (product, json!({"change": -1000, "reason": "damaged"})),
        (other, body.clone()),
    ] {
        let reused = adjust_with_key(&app, product, body, "delivery-1").await;
        is_refused(&reused, 422, "idempotency_key_reused");
    }
    assert_eq!([app.inventory(product).await, app.inventory(other).await], [[3, 3, 0], [10, 10, 0]]);
    // An order's keys are others.
    let order = app.order_with(other, 1, &[("Idempotency-Key", "delivery-1")]).await;
    assert_eq!(order.status, 201, "{order:?}");
    assert!(!order.headers.contains_key("idempotent-replayed"), "{order:?}");
    agreeing_movements(&app, product).await;
}

async fn one_adjustment_twenty_times_at_once_moves_once(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    for round in 0..5_u64 {
        let (body, key) = (json!({"change": -7}), format!("round-{round}"));
        let answers = join_all((0..20).map(|_| adjust_with_key(&app, product, body.clone(), &key))).await;
        for answer in &answers {
            assert_eq!((answer.status, answer.data()), (201, answers[0].data()), "{answer:?}");
        }
        let replayed = answers.iter().filter(|answer| answer.headers.contains_key("idempotent-replayed"));
        assert_eq!(replayed.count(), 19);
        let left = 100 - 7 * (round + 1);
        assert_eq!(app.inventory(product).await, [left, left, 0]);
    }
    assert_eq!(agreeing_movements(&app, product).await.len(), 6);
}

async fn every_change_of_the_stock_is_listed(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let orders = [app.order(product, 1).await, app.order(product, 2).await, app.order(product, 3).await];
    assert_eq!(app.pay(orders[0].id()).await.status, 200);
    assert_eq!(app.cancel(orders[1].id()).await.status, 200);
    assert_eq!(adjust(&app, product, json!({"change": 4}), &[]).await.status, 201);
    assert_eq!(app.pay(orders[2].id()).await.status, 200);
    for _ in 0..2 {
        assert_eq!(app.pay(orders[2].id()).await.status, 200);
        assert_eq!(app.stock(product, 10).await.status, 200);
    }
    let rows = agreeing_movements(&app, product).await;
    let expected = json!([
        ["recount", 10, 0, 10, null],
        ["sale", -1, 1, 9, null],
        ["adjustment", 4, 0, 13, null],
        ["sale", -3, 1, 10, null],
    ]);
    assert_eq!(json!(rows.iter().map(facts).collect::<Vec<_>>()), expected);
    let times: Vec<_> = rows.iter().map(|row| row["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted() && times[0] >= "2026-01-01", "{times:?}");
    assert!(times.iter().all(|time| time.len() == "2026-01-31T09:00:00.125Z".len()), "{times:?}");
    assert_eq!(movements(&app, app.create_product("Topi").await).await, Vec::<Value>::new());
}

async fn movements_are_listed_page_by_page(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_product("Kaos Polos").await;
    for change in 1..=5 {
        assert_eq!(adjust(&app, product, json!({"change": change}), &[]).await.status, 201);
    }
    let path = format!("/api/products/{product}/inventory/movements");
    let page = app.get(&format!("{path}?limit=2")).await;
    let rows = page.data().as_array().unwrap();
    assert_eq!(rows.iter().map(|row| number(row, "change")).collect::<Vec<_>>(), [5, 4]);
    assert_eq!(page.json["next"], rows[1]["seq"], "{page:?}");
    let changes: Vec<_> = app.all(&format!("{path}?limit=2")).await;
    assert_eq!(changes.iter().map(|row| number(row, "change")).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    for (query, reason, field) in [
        ("limit=0", "invalid_limit", "limit"),
        ("limit=101", "invalid_limit", "limit"),
        ("after=0", "invalid_after", "after"),
        ("after=x", "invalid_after", "after"),
        ("after=9007199254740992", "invalid_after", "after"),
        ("kind=sale", "invalid_query", "kind"),
        ("after=1&after=2", "invalid_query", "after"),
    ] {
        let refused = app.get(&format!("{path}?{query}")).await;
        is_refused(&refused, 400, reason);
        assert_eq!(refused.data()["field"], field, "{refused:?}");
    }
}

async fn pieces_that_were_added_can_be_ordered_at_once(pair: Pair) {
    let app = App::start(pair).await;
    pieces_are_sold_when_they_are_added(&app, &app).await;
}

/// Both APIs know that the product is sold out, and one adds a piece: the other sells it at once.
pub(crate) async fn pieces_are_sold_when_they_are_added(adds: &Client, sells: &Client) {
    let product = adds.create_product("Kaos Polos").await;
    for round in 0..20 {
        for app in [adds, sells] {
            is_refused(&app.order(product, 1).await, 400, "insufficient_stock");
        }
        let added = adjust_with_key(adds, product, json!({"change": 1}), &format!("{product}-{round}")).await;
        assert_eq!(added.status, 201, "{added:?}");
        let order = sells.order(product, 1).await;
        assert_eq!(order.status, 201, "round {round}: {order:?}");
    }
}

async fn restocking_during_a_sale(pair: Pair) {
    let app = App::start(pair).await;
    restock_during_a_sale(&[&app]).await;
}

/// The seller adds and removes pieces while buyers order, pay and cancel: movements, inventory and orders agree to the piece.
pub(crate) async fn restock_during_a_sale(apis: &[&Client]) {
    const ORDERS: usize = 600;
    const STOCK: i64 = 100;
    let product = apis[0].create_stocked("Kaos Polos", STOCK as u64).await;
    let sold_out = Arc::new(Notify::new());
    let clients: Vec<Client> = apis.iter().map(|api| (*api).clone()).collect();
    let sale = tokio::spawn({
        let (clients, sold_out) = (clients.clone(), sold_out.clone());
        async move {
            stream::iter(0..ORDERS)
                .map(|n| {
                    let (api, sold_out) = (clients[n % clients.len()].clone(), sold_out.clone());
                    async move {
                        let answer = api.order(product, 1 + n as u64 % 3).await;
                        match answer.status {
                            201 if n % 4 == 3 => assert_eq!(api.cancel(answer.id()).await.status, 200),
                            201 => assert_eq!(api.pay(answer.id()).await.status, 200),
                            400 => sold_out.notify_one(),
                            _ => panic!("{answer:?}"),
                        }
                    }
                })
                .buffer_unordered(24)
                .count()
                .await
        }
    });
    let (mut added, mut round) = (0, 0_usize);
    sold_out.notified().await;
    while !sale.is_finished() {
        let change = if round % 3 == 2 { -4 } else { 7 };
        // As after a lost connection: once more, at another API.
        for n in 0..2 {
            let api = &clients[(round + n) % clients.len()];
            let answer =
                adjust_with_key(api, product, json!({"change": change}), &format!("{product}-{round}")).await;
            match answer.status {
                201 if answer.headers.contains_key("idempotent-replayed") => assert_eq!(n, 1),
                201 => added += change,
                409 => is_refused(&answer, 409, "stock_below_reserved"),
                _ => panic!("{answer:?}"),
            }
        }
        round += 1;
    }
    assert_eq!(sale.await.unwrap(), ORDERS);
    assert!(added > 0 && round > 1, "{added} in {round} rounds");
    // The orders agree with the inventory, and both with the movements.
    let pieces = apis[0].ledger(product, u64::try_from(STOCK + added).unwrap()).await;
    let rows = agreeing_movements(apis[0], product).await;
    let of_kind = |kind: &str, field: &str| -> i64 {
        rows.iter().filter(|row| row["kind"] == kind).map(|row| number(row, field)).sum()
    };
    assert_eq!(of_kind("adjustment", "change"), added);
    assert_eq!(of_kind("sale", "change"), -(pieces["paid"] as i64));
    let paid = apis[0].all(&format!("/api/orders?product_id={product}&status=paid&limit=100")).await;
    assert_eq!(of_kind("sale", "orders"), paid.len() as i64);
    assert_eq!(of_kind("recount", "change"), STOCK);
}
