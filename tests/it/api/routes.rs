//! The program serves the calls of `apispec.json`: no fewer, no more, and no other methods.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::json;

use crate::{
    api::contract,
    support::harness::{App, Pair},
};

/// Methods by path, as the contract has them.
fn contract_calls() -> BTreeMap<String, BTreeSet<String>> {
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (method, path) in contract::calls() {
        methods.entry(path).or_default().insert(method);
    }
    methods
}

#[test]
fn the_router_and_the_contract_name_the_same_paths() {
    let routes: BTreeSet<_> = antre::http::routes().into_iter().map(|(path, _)| path.to_owned()).collect();
    assert_eq!(routes, contract_calls().into_keys().collect());
}

#[tokio::test]
async fn each_path_takes_the_methods_of_the_contract() {
    let app = App::start(Pair::Embedded).await;
    for (template, mut methods) in contract_calls() {
        let path = template.replace("{productId}", "1").replace("{orderId}", "1");
        let made_up = Method::from_bytes(b"BREW").unwrap();
        let answer = app.send(made_up, &path, |request| request).await;
        assert_eq!((answer.status, answer.reason()), (405, "method_not_allowed"), "{path}");
        let allowed: BTreeSet<_> =
            answer.header("allow").split(',').map(|method| method.trim().to_owned()).collect();
        // HEAD comes with GET (RFC 9110, section 9.3.2), and the contract does not repeat it.
        if methods.contains("GET") {
            methods.insert("HEAD".to_owned());
        }
        assert_eq!(allowed, methods, "{path}");
    }
}

/// Each call of the contract can succeed, and what it then answers is what the contract says.
#[tokio::test]
async fn each_call_of_the_contract_succeeds() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 99).await;
    for (method, template) in contract::calls() {
        let order = app.order(product, 1).await.data()["id"].as_str().unwrap().to_owned();
        let id = match method.as_str() {
            "DELETE" => app.create_product("Topi").await, // the other one has reservations
            _ => product,
        };
        let path = template.replace("{productId}", &id.to_string()).replace("{orderId}", &order);
        let body = match (method.as_str(), template.as_str()) {
            ("PATCH", "/api/products/{productId}") => Some(json!({"name": "Kaos Polos, hitam"})),
            ("POST", "/api/products") => Some(json!({"name": "Kaos Garis"})),
            ("PUT", "/api/products/{productId}/inventory") => Some(json!({"stock": 99})),
            ("PUT", "/api/products/{productId}/terms") => Some(json!({"max_per_order": 9})),
            ("POST", "/api/products/{productId}/inventory/adjustments") => Some(json!({"change": 1})),
            ("POST", "/api/orders") => Some(json!({"product_id": product, "total": 1})),
            ("POST", "/api/orders/{orderId}/return") => {
                assert_eq!(app.pay(&order).await.status, 200);
                Some(json!({"restock": true}))
            }
            _ => None,
        };
        let method: Method = method.parse().unwrap();
        let answer = app
            .send(method.clone(), &path, |request| match &body {
                Some(body) => request.json(body),
                None => request,
            })
            .await;
        assert!([200, 201].contains(&answer.status), "{method} {path}: {answer:?}");
    }
}
