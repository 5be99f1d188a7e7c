//! Buyers: limits of what one may hold, and the list of a buyer's orders.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::harness::{Answer, App, Client, Pair};

on_both_pairs!(
    a_buyer_gets_no_more_than_the_limit,
    the_list_of_a_buyers_orders,
    fifty_parallel_orders_of_one_buyer,
);

impl Client {
    pub(crate) async fn order_of(&self, buyer: &str, product: u64, total: u64) -> Answer {
        self.post("/api/orders", json!({"product_id": product, "total": total, "buyer": buyer})).await
    }

    async fn limit_per_buyer(&self, product: u64, limit: Value) {
        let path = format!("/api/products/{product}/terms");
        let answer = self.put(&path, json!({"max_per_buyer": limit})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

async fn a_buyer_gets_no_more_than_the_limit(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let before = app.order_of("customer-1", product, 3).await;
    assert_eq!((before.status, &before.data()["buyer"]), (201, &json!("customer-1")));
    assert_eq!(app.order(product, 1).await.data()["buyer"], Value::Null);
    app.limit_per_buyer(product, json!(2)).await;

    // A limit that is set in the middle of a sale counts what buyers hold.
    let refused = app.order_of("customer-1", product, 1).await;
    assert_eq!((refused.status, refused.reason()), (400, "limit_per_buyer"));
    let details = ["product_id", "limit", "held"].map(|name| refused.data()[name].as_u64().unwrap());
    assert_eq!(details, [product, 2, 3]);
    let nobody = app.order(product, 1).await;
    assert_eq!((nobody.status, nobody.reason()), (400, "buyer_required"));
    assert_eq!(nobody.data()["product_id"], product);
    assert_eq!(app.order_of("customer-2", product, 3).await.reason(), "limit_per_buyer");
    assert_eq!(app.order_of("customer-2", product, 2).await.status, 201);

    let path = format!("/api/orders/{}", before.data()["id"].as_str().unwrap());
    let cancelled = app.send(Method::POST, &format!("{path}/cancellation"), |request| request).await;
    assert_eq!((cancelled.status, &cancelled.data()["buyer"]), (200, &json!("customer-1")));
    let mine = app.order_of("customer-1", product, 2).await;
    assert_eq!(mine.status, 201);
    let path = format!("/api/orders/{}", mine.data()["id"].as_str().unwrap());
    assert_eq!(app.send(Method::POST, &format!("{path}/payment"), |request| request).await.status, 200);
    assert_eq!(app.order_of("customer-1", product, 1).await.data()["held"], 2);
    app.limit_per_buyer(product, Value::Null).await;
    assert_eq!(app.order_of("customer-1", product, 1).await.status, 201);
    assert_eq!(app.order(product, 1).await.status, 201);

    for bad in [json!(""), json!("a b"), json!("é"), json!("9".repeat(129)), json!(7), json!(["a"])] {
        let body = json!({"product_id": product, "total": 1, "buyer": bad});
        let answer = app.post("/api/orders", body).await;
        assert_eq!((answer.status, answer.reason()), (400, "invalid_buyer"), "{bad}");
    }
}

async fn the_list_of_a_buyers_orders(pair: Pair) {
    let app = App::start(pair).await;
    let (shirt, hat) = (app.create_stocked("Kaos", 9).await, app.create_stocked("Topi", 9).await);
    let mut ids = Vec::new();
    for (buyer, product) in [("a+b&c", shirt), ("a+b&c", hat), ("other", shirt), ("a+b&c", shirt)] {
        let answer = app.order_of(buyer, product, 1).await;
        assert_eq!(answer.status, 201);
        ids.push(answer.data()["id"].as_str().unwrap().to_owned());
    }
    let list = async |query: String| {
        let answer = app.get(&format!("/api/orders?{query}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let orders = answer.data().as_array().unwrap().iter();
        orders.map(|order| order["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [first, second, other, last] = [0, 1, 2, 3].map(|n| ids[n].clone());
    let mine = "buyer=a%2Bb%26c";
    assert_eq!(list(mine.to_owned()).await, [first.clone(), second.clone(), last.clone()]);
    assert_eq!(list(format!("{mine}&order=desc&product_id={shirt}")).await, [last, first.clone()]);
    assert_eq!(list(format!("{mine}&product_id={hat}&status=reserved")).await, std::slice::from_ref(&second));
    assert_eq!(list("buyer=other".to_owned()).await, [other]);
    assert_eq!(list("buyer=nobody".to_owned()).await, [""; 0]);
    // The next page keeps the buyer.
    let page = app.get(&format!("/api/orders?{mine}&limit=1")).await;
    let link = page.header("link");
    let next = link.split(['<', '>']).nth(1).unwrap();
    let next = app.get(&next[next.find("/api").unwrap()..]).await;
    assert_eq!(next.data()[0]["id"], json!(second));
    for bad in ["buyer=", "buyer=a%20b", "buyer=%C3%A9", "buyer=a&buyer=b"] {
        assert_eq!(app.get(&format!("/api/orders?{bad}")).await.status, 400, "{bad}");
    }
}

async fn fifty_parallel_orders_of_one_buyer(pair: Pair) {
    let app = App::start(pair).await;
    race_of_buyers(&[&app], 4, async {}).await;
}

/// Each buyer sends 50 orders of one piece at once, over all APIs, of a product with a limit of 2. Each gets exactly two, also
/// when something happens meanwhile.
pub(crate) async fn race_of_buyers(apis: &[&Client], buyers: usize, meanwhile: impl Future<Output = ()>) {
    const ORDERS: usize = 50;
    let app = apis[0];
    let product = app.create_stocked("Kaos Polos", 10_000).await;
    app.limit_per_buyer(product, json!(2)).await;
    let calls = (0..ORDERS * buyers).map(async |number| {
        let buyer = format!("customer-{}", number % buyers);
        let answer = apis[number / buyers % apis.len()].order_of(&buyer, product, 1).await;
        (buyer, answer)
    });
    let (answers, ()) = tokio::join!(join_all(calls), meanwhile);
    let mut accepted = BTreeMap::<_, usize>::new();
    for (buyer, answer) in &answers {
        match answer.status {
            201 => *accepted.entry(buyer.clone()).or_default() += 1,
            400 => {
                assert_eq!(answer.reason(), "limit_per_buyer", "{answer:?}");
                assert_eq!([&answer.data()["limit"], &answer.data()["held"]], [&json!(2), &json!(2)]);
            }
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(accepted.len(), buyers);
    assert!(accepted.values().all(|pieces| *pieces == 2), "{accepted:?}");
    let sold = 2 * buyers as u64;
    assert_eq!(app.inventory(product).await, [10_000, 10_000 - sold, sold]);
    for buyer in accepted.keys() {
        let listed = app.get(&format!("/api/orders?buyer={buyer}&product_id={product}")).await;
        assert_eq!(listed.data().as_array().unwrap().len(), 2);
    }
}
