//! Products are renamed and archived, and one call shows all of one.

use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::support::harness::{App, Pair, eventually};

on_both_pairs!(
    one_call_shows_all_of_a_product,
    a_product_is_renamed_and_gets_another_sku,
    a_change_that_says_nothing_or_nonsense_is_refused,
    of_two_who_want_one_sku_one_gets_it,
    an_archived_product_is_not_sold_and_stays_readable,
    a_product_with_reservations_is_not_archived,
    no_order_is_reserved_once_the_archive_is_answered,
    a_repeated_key_of_an_archived_product_gets_the_stored_order,
    an_order_that_was_queued_before_the_archive_has_a_verdict,
);

fn path(product: u64) -> String {
    format!("/api/products/{product}")
}

#[track_caller]
fn ids(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|product| product["id"].as_u64().unwrap()).collect()
}

async fn one_call_shows_all_of_a_product(pair: Pair) {
    let app = App::start(pair).await;
    let shirt = app.post("/api/products", json!({"name": "Kaos Polos", "sku": "KAOS"})).await;
    let id = shirt.data()["id"].as_u64().unwrap();
    assert_eq!(app.stock(id, 10).await.status, 200);
    assert_eq!(app.order(id, 3).await.status, 201);
    let set = app.put(&format!("{}/terms", path(id)), json!({"max_per_order": 4})).await;
    assert_eq!(set.status, 200, "{set:?}");
    let inventory = json!({"stored_stock": 10, "available_stock": 7, "reserved_stock": 3});
    let mut shown = app.get(&path(id)).await.data().clone();
    let fields = shown.as_object_mut().unwrap();
    let terms = fields.remove("terms").unwrap();
    assert_eq!(terms, *app.get(&format!("{}/terms", path(id))).await.data());
    assert_eq!((&terms["selling"], &terms["max_per_order"]), (&json!(true), &json!(4)));
    assert_eq!(shown, json!({"id": id, "name": "Kaos Polos", "sku": "KAOS", "inventory": inventory}));
}

async fn a_product_is_renamed_and_gets_another_sku(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, cap) = (app.create_product("Kaos Polos").await, app.create_product("Topi").await);
    let changed = app.patch(&path(shirt), json!({"name": " Kaos  Garis "})).await;
    assert_eq!((changed.status, changed.data()), (200, &json!({"id": shirt, "name": "Kaos  Garis"})));
    let changed = app.patch(&path(shirt), json!({"sku": "A"})).await;
    assert_eq!(changed.data(), &json!({"id": shirt, "name": "Kaos  Garis", "sku": "A"}));
    for body in [json!({"sku": "A"}), json!({"name": "Topi", "sku": "A"})] {
        let taken = app.patch(&path(cap), body).await;
        assert_eq!((taken.status, taken.reason()), (409, "sku_taken"), "{taken:?}");
        assert_eq!(taken.data()["product_id"], shirt);
    }
    assert_eq!(app.patch(&path(shirt), json!({"sku": "A"})).await.status, 200, "it is its own");
    let both = app.patch(&path(shirt), json!({"name": "Kaos", "sku": null})).await;
    assert_eq!((both.status, both.data()), (200, &json!({"id": shirt, "name": "Kaos"})));
    assert_eq!(app.patch(&path(cap), json!({"sku": "A"})).await.status, 200, "it is free again");
    assert_eq!(app.inventory(cap).await, [0, 0, 0]);
    assert_eq!(app.get("/api/products?sku=A").await.data()[0]["id"], cap);
}

async fn a_change_that_says_nothing_or_nonsense_is_refused(pair: Pair) {
    let app = App::start(pair).await;
    let id = app.create_product("Kaos Polos").await;
    for (body, reason) in [
        (json!({}), "invalid_body"),
        (json!({"name": null}), "invalid_name"),
        (json!({"name": " "}), "invalid_name"),
        (json!({"name": 7, "sku": "A"}), "invalid_name"),
        (json!({"sku": ""}), "invalid_sku"),
        (json!({"sku": "a b"}), "invalid_sku"),
        (json!({"sku": ["A"]}), "invalid_sku"),
        (json!({"archived_at": null}), "invalid_field"),
        (json!([]), "invalid_body"),
    ] {
        let refused = app.patch(&path(id), body.clone()).await;
        assert_eq!((refused.status, refused.reason()), (400, reason), "{body}: {refused:?}");
    }
    let nobody = app.patch(&path(4_711), json!({"name": "Topi"})).await;
    assert_eq!((nobody.status, nobody.reason()), (404, "product_not_found"), "{nobody:?}");
    for (query, field) in [("archived=1", "archived"), ("archived=", "archived"), ("archive=true", "archive")]
    {
        let refused = app.get(&format!("/api/products?{query}")).await;
        assert_eq!((refused.status, refused.reason()), (400, "invalid_query"), "{refused:?}");
        assert_eq!(refused.data()["field"], field);
    }
    assert_eq!(app.get(&path(id)).await.data()["name"], "Kaos Polos");
}

async fn of_two_who_want_one_sku_one_gets_it(pair: Pair) {
    let app = App::start(pair).await;
    let products = join_all((0..8).map(|n| app.create_product(if n == 0 { "Topi" } else { "Kaos" }))).await;
    for round in 0..5 {
        let body = json!({"sku": format!("SKU-{round}")});
        let answers = join_all(products.iter().map(|id| {
            let (path, body, app) = (path(*id), body.clone(), &app);
            async move { app.patch(&path, body).await }
        }))
        .await;
        let winners: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        let [winner] = winners[..] else { panic!("{answers:?}") };
        for loser in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!((loser.status, loser.reason()), (409, "sku_taken"), "{loser:?}");
            assert_eq!(loser.data()["product_id"], winner.data()["id"]);
        }
    }
}

async fn an_archived_product_is_not_sold_and_stays_readable(pair: Pair) {
    let app = App::start(pair).await;
    let shirt = app.post("/api/products", json!({"name": "Kaos Polos", "sku": "A"})).await;
    let shirt = shirt.data()["id"].as_u64().unwrap();
    let cap = app.create_stocked("Topi", 5).await;
    app.stock(shirt, 10).await;
    let order = app.order(shirt, 2).await;
    assert_eq!(app.pay(order.id()).await.status, 200);

    let archived = app.archive(shirt).await;
    assert_eq!(archived.status, 200, "{archived:?}");
    let at = archived.data()["archived_at"].as_str().unwrap().to_owned();
    assert_eq!(archived.data(), &json!({"id": shirt, "name": "Kaos Polos", "sku": "A", "archived_at": at}));
    assert_eq!(app.archive(shirt).await.data(), archived.data(), "again");
    assert_eq!((app.archive(4_711).await.status, app.order(cap, 1).await.status), (404, 201));

    for headers in [&[][..], &[("Prefer", "respond-async")], &[("Idempotency-Key", "a-new-one")]] {
        let refused = app.order_with(shirt, 1, headers).await;
        assert_eq!((refused.status, refused.reason()), (404, "product_not_found"), "{refused:?}");
    }
    let refused = app.stock(shirt, 20).await;
    assert_eq!((refused.status, refused.reason()), (409, "product_archived"), "{refused:?}");
    let adjustments = format!("{}/inventory/adjustments", path(shirt));
    let refused = app.post(&adjustments, json!({"change": 1})).await;
    assert_eq!((refused.status, refused.reason()), (409, "product_archived"), "{refused:?}");

    let shown = app.get(&path(shirt)).await;
    assert_eq!(
        (&shown.data()["archived_at"], &shown.data()["inventory"]["stored_stock"]),
        (&json!(at), &json!(8))
    );
    assert_eq!(app.inventory(shirt).await, [8, 8, 0]);
    assert_eq!(app.get(&format!("/api/orders/{}", order.id())).await.data()["status"], "paid");
    assert_eq!(app.all(&format!("/api/orders?product_id={shirt}")).await.len(), 1);
    assert_eq!(app.pay(order.id()).await.status, 200);

    assert_eq!(ids(&app.all("/api/products").await), [cap]);
    assert_eq!(ids(&app.all("/api/products?archived=false&limit=1").await), [cap]);
    assert_eq!(ids(&app.all("/api/products?archived=true").await), [shirt]);
    assert_eq!(app.all(&format!("/api/products?archived=true&after={shirt}")).await.len(), 0);
    assert_eq!(app.all("/api/products?sku=A").await.len(), 0);
    assert_eq!(ids(&app.all("/api/products?sku=A&archived=true").await), [shirt]);

    // Its SKU stays taken until it is removed.
    let taken = app.post("/api/products", json!({"name": "Kaos", "sku": "A"})).await;
    assert_eq!((taken.status, &taken.data()["product_id"]), (409, &json!(shirt)), "{taken:?}");
    assert_eq!(app.patch(&path(shirt), json!({"sku": null})).await.data()["archived_at"], at);
    assert_eq!(app.post("/api/products", json!({"name": "Kaos", "sku": "A"})).await.status, 201);
}

async fn a_product_with_reservations_is_not_archived(pair: Pair) {
    let app = App::start(pair).await;
    let id = app.create_stocked("Kaos Polos", 5).await;
    let (first, second) = (app.order(id, 1).await, app.order(id, 3).await);
    let refused = app.archive(id).await;
    assert_eq!((refused.status, refused.reason()), (409, "product_has_reservations"), "{refused:?}");
    assert_eq!(refused.data()["reserved_stock"], 4);
    assert_eq!(app.pay(first.id()).await.status, 200);
    assert_eq!(app.archive(id).await.status, 409);
    assert_eq!(app.cancel(second.id()).await.status, 200);
    assert_eq!(app.archive(id).await.status, 200);
    assert_eq!(app.inventory(id).await, [4, 4, 0]);
}

/// An order and the archive meet: either the order is first, and the archive is refused, or the order is.
async fn no_order_is_reserved_once_the_archive_is_answered(pair: Pair) {
    let app = App::start(pair).await;
    for round in 0..10 {
        let id = app.create_stocked("Kaos Polos", 100).await;
        let orders = join_all((0..20).map(|_| app.order(id, 1)));
        let (archived, orders) = join(app.archive(id), orders).await;
        let reserved = orders.iter().filter(|order| order.status == 201).count() as u64;
        let refused = orders.iter().filter(|order| order.status == 404).count() as u64;
        assert_eq!(reserved + refused, 20, "{orders:?}");
        match archived.status {
            200 => assert_eq!((reserved, app.inventory(id).await), (0, [100, 100, 0]), "{round}: {orders:?}"),
            409 => assert!(reserved > 0, "{round}: {orders:?}"),
            _ => panic!("{archived:?}"),
        }
    }
}

async fn a_repeated_key_of_an_archived_product_gets_the_stored_order(pair: Pair) {
    let app = App::start(pair).await;
    let id = app.create_stocked("Kaos Polos", 5).await;
    let key = [("Idempotency-Key", "of-a-paid-order")];
    let order = app.order_with(id, 2, &key).await;
    assert_eq!(app.pay(order.id()).await.status, 200);
    assert_eq!(app.archive(id).await.status, 200);
    for headers in [vec![key[0]], vec![key[0], ("Prefer", "respond-async")]] {
        let again = app.order_with(id, 2, &headers).await;
        assert_eq!((again.status, again.id()), (201, order.id()), "{again:?}");
        assert_eq!(again.data()["status"], "paid");
    }
    assert_eq!(app.order_with(id, 1, &key).await.status, 422, "another total");
}

/// Orders whose clients did not wait are queued, and the product is archived meanwhile.
async fn an_order_that_was_queued_before_the_archive_has_a_verdict(pair: Pair) {
    let app = App::start(pair).await;
    for _ in 0..5 {
        let id = app.create_product("Kaos Polos").await; // without stock, so that nothing is reserved
        let order = async || app.order_with(id, 1, &[("Prefer", "respond-async")]).await;
        let orders = join_all((0..20).map(|_| order()));
        let (orders, archived) = join(orders, app.archive(id)).await;
        assert_eq!(archived.status, 200, "{archived:?}");
        for order in orders {
            match order.status {
                202 => {
                    let verdict = app.verdict(order.header("location")).await;
                    assert_eq!(verdict["status"], "rejected");
                    let reason = verdict["reason"].as_str().unwrap();
                    assert!(["insufficient_stock", "product_not_found"].contains(&reason), "{verdict}");
                }
                400 | 404 => {}
                _ => panic!("{order:?}"),
            }
        }
        eventually("it is still ordered", async || (app.order(id, 1).await.status == 404).then_some(()))
            .await;
    }
}
