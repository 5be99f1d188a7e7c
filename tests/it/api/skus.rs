//! The seller's own names for products.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::harness::{App, Pair};

on_both_pairs!(
    a_product_is_found_by_its_sku,
    a_sku_belongs_to_one_product,
    one_sku_twenty_times_at_once_is_one_product,
);

async fn a_product_is_found_by_its_sku(pair: Pair) {
    let app = App::start(pair).await;
    let plain = app.create_product("Topi").await;
    let shirt = app.post("/api/products", json!({"name": "Kaos Polos", "sku": "KAOS&1/%"})).await;
    assert_eq!((shirt.status, &shirt.data()["sku"]), (201, &json!("KAOS&1/%")), "{shirt:?}");
    let none = app.post("/api/products", json!({"name": "Kopi", "sku": null})).await;
    assert_eq!((none.status, none.data().get("sku")), (201, None), "{none:?}");
    let id = shirt.data()["id"].as_u64().unwrap();
    let path = format!("/api/products/{id}");
    assert_eq!(app.get(&path).await.data()["sku"], shirt.data()["sku"]);
    assert_eq!(app.get(&format!("/api/products/{plain}")).await.data().get("sku"), None);
    let listed = app.all("/api/products").await;
    assert_eq!(listed.iter().filter_map(|product| product.get("sku")).collect::<Vec<_>>(), ["KAOS&1/%"]);
    let found = app.get("/api/products?sku=KAOS%261/%25").await;
    assert_eq!((found.data(), found.next()), (&json!([shirt.data()]), None), "{found:?}");
    assert_eq!(app.get("/api/products?sku=kaos%261/%25").await.data(), &json!([]), "case counts");
    assert_eq!(
        app.get(&format!("/api/products?sku=KAOS%261/%25&after={id}&limit=1")).await.data(),
        &json!([])
    );
    assert_eq!(app.inventory(id).await, [0, 0, 0]);
}

async fn a_sku_belongs_to_one_product(pair: Pair) {
    let app = App::start(pair).await;
    let first = app.post("/api/products", json!({"name": "Kaos Polos", "sku": "A"})).await;
    assert_eq!(first.status, 201, "{first:?}");
    for name in ["Kaos Polos", "Topi"] {
        let again = app.post("/api/products", json!({"name": name, "sku": "A"})).await;
        assert_eq!((again.status, again.reason()), (409, "sku_taken"), "{again:?}");
        assert_eq!(again.data()["product_id"], first.data()["id"], "{again:?}");
    }
    // The database is as able as before.
    let other = app.post("/api/products", json!({"name": "Topi", "sku": "a"})).await;
    assert_eq!(other.status, 201, "{other:?}");
    assert_eq!(app.all("/api/products").await.len(), 2);
}

async fn one_sku_twenty_times_at_once_is_one_product(pair: Pair) {
    let app = App::start(pair).await;
    for round in 0..5 {
        let sku = format!("SKU-{round}");
        let body = json!({"name": "Kaos Polos", "sku": sku});
        let answers = join_all((0..20).map(|_| app.post("/api/products", body.clone()))).await;
        let created: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
        assert_eq!(created.len(), 1, "{answers:?}");
        let others = answers.iter().filter(|answer| answer.status != 201);
        let known: BTreeSet<_> = others
            .map(|answer| {
                assert_eq!((answer.status, answer.reason()), (409, "sku_taken"), "{answer:?}");
                answer.data()["product_id"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(known, BTreeSet::from([created[0].data()["id"].as_u64().unwrap()]));
    }
    assert_eq!(app.all("/api/products").await.len(), 5);
}
