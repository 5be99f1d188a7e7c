//! Orders of several products over REST.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::harness::{Answer, App, Client, Pair, eventually};

on_both_pairs!(
    a_basket_is_reserved_paid_and_listed,
    a_basket_that_is_short_of_one_product_reserves_nothing,
    a_malformed_basket_is_refused_with_its_field,
    a_basket_is_answered_again_under_its_key,
    a_basket_whose_client_did_not_wait_is_decided_too,
);

async fn place(app: &Client, order: &Value) -> Answer {
    app.post("/api/orders", order.clone()).await
}

fn lines(of: &[(u64, u64)]) -> Value {
    of.iter().map(|(product, total)| json!({"product_id": product, "total": total})).collect()
}

async fn a_basket_is_reserved_paid_and_listed(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, hat) = (app.create_stocked("Kaos Polos", 10).await, app.create_stocked("Topi", 5).await);
    let wanted = lines(&[(hat, 2), (shirt, 3)]);
    let placed = place(&app, &json!({"lines": wanted, "buyer": "buyer-1"})).await;
    assert_eq!(
        (placed.status, &placed.data()["lines"], &placed.data()["buyer"]),
        (201, &wanted, &json!("buyer-1"))
    );
    assert_eq!((placed.data().get("product_id"), placed.data().get("total")), (None, None));
    assert_eq!(app.inventory(hat).await, [5, 3, 2]);
    assert_eq!(app.inventory(shirt).await, [10, 7, 3]);
    let paid = app.pay(placed.id()).await;
    assert_eq!((paid.status, &paid.data()["lines"]), (200, &wanted));
    assert_eq!(app.inventory(hat).await, [3, 3, 0]);
    assert_eq!(app.inventory(shirt).await, [7, 7, 0]);
    for product in [shirt, hat] {
        let listed = app.get(&format!("/api/orders?product_id={product}")).await;
        assert_eq!(
            (listed.data()[0]["id"].as_str(), &listed.data()[0]["lines"]),
            (Some(placed.id()), &wanted)
        );
    }
    // An order of one line is the same in either shape.
    // Some generated clients send an empty list for one that was not set.
    let shapes = [
        json!({"product_id": hat, "total": 1}),
        json!({"product_id": hat, "total": 1, "lines": []}),
        json!({"lines": lines(&[(hat, 1)])}),
    ];
    for order in shapes {
        let placed = place(&app, &order).await;
        let data = placed.data();
        assert_eq!((placed.status, &data["product_id"], &data["total"]), (201, &json!(hat), &json!(1)));
        assert_eq!(data["lines"], lines(&[(hat, 1)]));
    }
    assert_eq!(app.cancel(placed.id()).await.status, 409);
}

async fn a_basket_that_is_short_of_one_product_reserves_nothing(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, hat) = (app.create_stocked("Kaos Polos", 10).await, app.create_stocked("Topi", 1).await);
    for _ in 0..3 {
        let refused = place(&app, &json!({"lines": lines(&[(shirt, 3), (hat, 2)])})).await;
        assert_eq!((refused.status, refused.reason()), (400, "insufficient_stock"), "{refused:?}");
        let data = refused.data();
        assert_eq!((&data["product_id"], &data["available_stock"]), (&json!(hat), &json!(1)));
    }
    assert_eq!(app.order(hat, 1).await.status, 201);
    // Sold out: refused by the lane at first, and without it later.
    for _ in 0..3 {
        let refused = place(&app, &json!({"lines": lines(&[(shirt, 3), (hat, 2)])})).await;
        let data = refused.data();
        assert_eq!(
            (refused.status, &data["product_id"], &data["available_stock"]),
            (400, &json!(hat), &json!(0))
        );
    }
    let unknown = place(&app, &json!({"lines": lines(&[(shirt, 3), (hat + 100, 1)])})).await;
    assert_eq!((unknown.status, unknown.reason()), (404, "product_not_found"));
    assert_eq!(unknown.data()["product_id"], json!(hat + 100));
    assert_eq!(app.inventory(shirt).await, [10, 10, 0]);
}

async fn a_malformed_basket_is_refused_with_its_field(pair: Pair) {
    let app = App::start(pair).await;
    let shirt = app.create_stocked("Kaos Polos", 100).await;
    let many: Vec<_> = (1..=51).map(|product| (product, 1)).collect();
    let line = lines(&[(shirt, 1)])[0].clone();
    for (order, reason, field) in [
        (json!({"lines": []}), "invalid_lines", "lines"),
        (json!({"lines": lines(&many)}), "invalid_lines", "lines"),
        (json!({"lines": {}}), "invalid_lines", "lines"),
        (json!({"lines": [line, 7]}), "invalid_lines", "lines[1]"),
        (json!({"lines": lines(&[(shirt, 1), (shirt + 1, 1), (shirt, 2)])}), "duplicate_product", "lines"),
        (json!({"lines": [line], "product_id": shirt}), "invalid_lines", "lines"),
        (json!({"lines": [line], "total": 1}), "invalid_lines", "lines"),
        (json!({"lines": [{"product_id": shirt, "total": 0}]}), "invalid_total", "lines[0].total"),
        (json!({"lines": [{"product_id": 0, "total": 1}]}), "invalid_product_id", "lines[0].product_id"),
        (json!({"product_id": shirt}), "invalid_total", "total"),
        (json!({"total": 1}), "invalid_product_id", "product_id"),
        (json!({}), "invalid_product_id", "product_id"),
        (json!({"product_id": shirt, "total": 1, "buyer": ""}), "invalid_buyer", "buyer"),
        (json!({"product_id": shirt, "total": 1, "buyer": "a b"}), "invalid_buyer", "buyer"),
        (json!({"product_id": shirt, "total": 1, "buyer": "b".repeat(129)}), "invalid_buyer", "buyer"),
    ] {
        let refused = place(&app, &order).await;
        assert_eq!((refused.status, refused.reason()), (400, reason), "{order}: {refused:?}");
        assert_eq!(refused.data()["field"], field, "{order}: {refused:?}");
    }
    for order in [
        json!({"lines": [{"product_id": shirt}]}),
        json!({"lines": [{"product_id": shirt, "total": 1, "x": 1}]}),
    ] {
        assert_eq!(place(&app, &order).await.status, 400, "{order}");
    }
    assert_eq!(app.inventory(shirt).await, [100, 100, 0]);
}

async fn a_basket_is_answered_again_under_its_key(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, hat) = (app.create_stocked("Kaos Polos", 10).await, app.create_stocked("Topi", 5).await);
    let send = async |order: Value| {
        let key = ("Idempotency-Key", "basket-1");
        app.send(Method::POST, "/api/orders", |request| request.header(key.0, key.1).json(&order)).await
    };
    let basket = json!({"lines": lines(&[(shirt, 3), (hat, 2)])});
    let (first, again) = (send(basket.clone()).await, send(basket.clone()).await);
    assert_eq!((first.status, again.status, again.id()), (201, 201, first.id()));
    assert_eq!(again.header("idempotent-replayed"), "true");
    for other in [json!({"lines": lines(&[(hat, 2), (shirt, 3)])}), json!({"product_id": shirt, "total": 3})]
    {
        let refused = send(other).await;
        assert_eq!((refused.status, refused.reason()), (422, "idempotency_key_reused"));
    }
    assert_eq!(app.inventory(hat).await, [5, 3, 2]);
}

async fn a_basket_whose_client_did_not_wait_is_decided_too(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, hat) = (app.create_stocked("Kaos Polos", 10).await, app.create_stocked("Topi", 2).await);
    let send = async |of: &[(u64, u64)]| {
        let order = json!({"lines": lines(of)});
        let build = |request: reqwest::RequestBuilder| request.header("Prefer", "respond-async").json(&order);
        let answer = app.send(Method::POST, "/api/orders", build).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let path = format!("/api/orders/{}", answer.id());
        eventually("the order is not decided", async || {
            let order = app.get(&path).await;
            (order.data()["status"] != "pending").then_some(order)
        })
        .await
    };
    let reserved = send(&[(shirt, 1), (hat, 1)]).await;
    assert_eq!(reserved.data()["status"], "reserved");
    let rejected = send(&[(shirt, 10), (hat, 1)]).await;
    let data = rejected.data();
    assert_eq!((&data["status"], &data["reason"]), (&json!("rejected"), &json!("insufficient_stock")));
    assert_eq!(app.inventory(shirt).await, [10, 9, 1]);
}
