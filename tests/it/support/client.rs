//! A client of the program. Every answer is checked against the contract.

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap, LINK},
};
use serde_json::{Value, json};

use super::wait::{TIMEOUT, eventually};
use crate::api::contract;

/// The largest total that an order may have.
pub(crate) const MAX_TOTAL: u64 = 2_147_483_647;

#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(url: String) -> Self {
        Self { url, http: reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().unwrap() }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually("it does not become ready", async || {
            let answer = self.try_send(Method::GET, "/health/ready", |request| request).await;
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// Sends a request that `build` completes. An error is one of the connection: there was no answer.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        build: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.http.request(method.clone(), format!("{}{path}", self.url));
        let response = build(request).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer::checked(method.as_str(), path, status, headers, response.bytes().await?))
    }

    /// Sends a request that `build` completes.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        build: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Answer {
        self.try_send(method, path, build).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, |request| request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, |request| request.json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, |request| request.json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, |request| request.json(&body)).await
    }

    /// Archives a product.
    pub(crate) async fn archive(&self, product: u64) -> Answer {
        self.send(Method::DELETE, &format!("/api/products/{product}"), |request| request).await
    }

    /// A new product's id.
    pub(crate) async fn create_product(&self, name: &str) -> u64 {
        let answer = self.post("/api/products", json!({"name": name})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.data()["id"].as_u64().unwrap()
    }

    /// A new product's id, with this stock.
    pub(crate) async fn create_stocked(&self, name: &str, pieces: u64) -> u64 {
        let id = self.create_product(name).await;
        let answer = self.stock(id, pieces).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        id
    }

    /// A recount by the seller.
    pub(crate) async fn stock(&self, product: u64, pieces: u64) -> Answer {
        self.put(&format!("/api/products/{product}/inventory"), json!({"stock": pieces})).await
    }

    /// Stored, available, reserved.
    pub(crate) async fn inventory(&self, product: u64) -> [u64; 3] {
        let answer = self.get(&format!("/api/products/{product}/inventory")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let pieces = |which: &str| answer.data()[which].as_u64().unwrap();
        [pieces("stored_stock"), pieces("available_stock"), pieces("reserved_stock")]
    }

    pub(crate) async fn order(&self, product: u64, total: u64) -> Answer {
        self.try_order(product, total).await.unwrap()
    }

    /// An error is one of the connection: the order may be decided or not.
    pub(crate) async fn try_order(&self, product: u64, total: u64) -> Result<Answer, reqwest::Error> {
        let body = json!({"product_id": product, "total": total});
        self.try_send(Method::POST, "/api/orders", |request| request.json(&body)).await
    }

    /// An order with these request headers.
    pub(crate) async fn order_with(&self, product: u64, total: u64, headers: &[(&str, &str)]) -> Answer {
        let body = json!({"product_id": product, "total": total});
        self.send(Method::POST, "/api/orders", |request| with(request, headers).json(&body)).await
    }

    pub(crate) async fn pay(&self, order: &str) -> Answer {
        self.change(order, "payment", &[]).await
    }

    pub(crate) async fn cancel(&self, order: &str) -> Answer {
        self.change(order, "cancellation", &[]).await
    }

    /// A payment with a reference.
    pub(crate) async fn pay_by(&self, order: &str, reference: &str) -> Answer {
        self.post(&format!("/api/orders/{order}/payment"), json!({"reference": reference})).await
    }

    pub(crate) async fn extend(&self, order: &str) -> Answer {
        self.change(order, "extension", &[]).await
    }

    pub(crate) async fn take_back(&self, order: &str, restock: bool) -> Answer {
        self.post(&format!("/api/orders/{order}/return"), json!({"restock": restock})).await
    }

    /// A `payment`, `cancellation` or `extension` with these request headers.
    pub(crate) async fn change(&self, order: &str, what: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_change(order, what, headers).await.unwrap()
    }

    /// An error is one of the connection.
    pub(crate) async fn try_change(
        &self,
        order: &str,
        what: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, reqwest::Error> {
        let path = format!("/api/orders/{order}/{what}");
        self.try_send(Method::POST, &path, |request| with(request, headers)).await
    }

    /// All rows of a list, page by page. A page may be empty while there are more.
    pub(crate) async fn all(&self, list: &str) -> Vec<Value> {
        let (mut rows, mut page) = (Vec::new(), Some(list.to_owned()));
        while let Some(path) = page {
            let answer = self.get(&path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let mut found = answer.data().as_array().unwrap().clone();
            rows.append(&mut found);
            page = answer.next();
        }
        rows
    }

    /// Waits until every order that was queued for this product before is decided. A lane is served in order, so the
    /// rejection of an order for more than any stock shows it.
    pub(crate) async fn lane_served(&self, product: u64) {
        eventually("the lane is not served", async || {
            let answer = self.order(product, MAX_TOTAL).await;
            match answer.status {
                400 if answer.reason() == "insufficient_stock" => Some(()),
                202 => {
                    self.verdict(answer.header("location")).await;
                    Some(())
                }
                503 => None,
                _ => panic!("{answer:?}"),
            }
        })
        .await;
    }

    /// A pending order once it is decided.
    pub(crate) async fn verdict(&self, location: &str) -> Value {
        eventually("it stays pending", async || {
            let found = self.get(location).await;
            assert_eq!(found.status, 200, "{found:?}");
            (found.data()["status"] != "pending").then(|| found.data().clone())
        })
        .await
    }

    /// Checks the inventory of a product against all of its stored orders. `counted` is the seller's only recount, before the
    /// first order. Nothing may change in the meantime. Returns the pieces by status.
    pub(crate) async fn ledger(&self, product: u64, counted: u64) -> BTreeMap<String, u64> {
        let mut pieces = BTreeMap::<_, u64>::new();
        for order in self.all(&format!("/api/orders?product_id={product}&limit=100")).await {
            *pieces.entry(order["status"].as_str().unwrap().to_owned()).or_default() +=
                order["total"].as_u64().unwrap();
        }
        let of = |status: &str| pieces.get(status).copied().unwrap_or_default();
        let stored = counted - of("paid");
        let expected = [stored, stored - of("reserved"), of("reserved")];
        assert_eq!(
            self.inventory(product).await,
            expected,
            "the inventory and the orders disagree: {pieces:?}"
        );
        pieces
    }

    /// The inventory of a product and the totals of its reserved orders by id, checked against each other. Nothing may
    /// change in the meantime.
    pub(crate) async fn reservations(&self, product: u64) -> Reservations {
        let [stored, available, reserved] = self.inventory(product).await;
        assert_eq!(stored, available + reserved);
        let rows = self.all(&format!("/api/orders?product_id={product}&status=reserved&limit=100")).await;
        let ids: Vec<_> = rows.iter().map(|order| order["id"].as_str().unwrap()).collect();
        assert!(ids.is_sorted(), "orders are not listed in the order of their creation");
        let orders: BTreeMap<_, _> = rows
            .iter()
            .map(|order| {
                assert_eq!((&order["product_id"], &order["status"]), (&json!(product), &json!("reserved")));
                (order["id"].as_str().unwrap().to_owned(), order["total"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(orders.len(), rows.len(), "an order is listed twice");
        assert_eq!(orders.values().sum::<u64>(), reserved, "stored orders and reserved stock disagree");
        Reservations { stored, available, reserved, orders }
    }
}

fn with(request: RequestBuilder, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// See [`Client::reservations`].
#[derive(Debug)]
pub(crate) struct Reservations {
    pub(crate) stored: u64,
    pub(crate) available: u64,
    pub(crate) reserved: u64,
    /// Total by id.
    pub(crate) orders: BTreeMap<String, u64>,
}

/// An answer as the contract describes it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Null when the body is not JSON.
    pub(crate) json: Value,
}

impl Answer {
    /// Panics when the answer breaks the contract. An answer to a call that the contract does not name must have an
    /// `x-request-id`, and its error must be in the envelope.
    #[track_caller]
    pub(crate) fn checked(method: &str, path: &str, status: u16, headers: HeaderMap, body: Bytes) -> Self {
        let json = serde_json::from_slice(&body).unwrap_or_default();
        let answer = Self { status, headers, body, json };
        assert!(
            answer.headers.contains_key("x-request-id"),
            "{method} {path} without x-request-id: {answer:?}"
        );
        if contract::has(method, path) {
            contract::check(method, path, status, &answer.headers, &answer.body);
        } else if method != "HEAD" {
            assert!([404, 405].contains(&status), "{method} {path} is not in the contract: {answer:?}");
            assert_eq!(answer.headers[CONTENT_TYPE], "application/json", "{answer:?}");
            assert_eq!(answer.json["code"], status, "{answer:?}");
            assert!(answer.data()["message"].is_string(), "{answer:?}");
            let reason = if status == 404 { "route_not_found" } else { "method_not_allowed" };
            assert_eq!(answer.reason(), reason, "{answer:?}");
        }
        answer
    }

    /// The content of the envelope.
    #[track_caller]
    pub(crate) fn data(&self) -> &Value {
        self.json.get("data").unwrap_or_else(|| panic!("no envelope: {self:?}"))
    }

    /// The id of an order.
    #[track_caller]
    pub(crate) fn id(&self) -> &str {
        self.data()["id"].as_str().unwrap_or_else(|| panic!("no order: {self:?}"))
    }

    /// The reason of an error.
    #[track_caller]
    pub(crate) fn reason(&self) -> &str {
        self.data()["reason"].as_str().unwrap_or_else(|| panic!("no reason: {self:?}"))
    }

    /// A header that must be there, as text.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Where the next page is.
    #[track_caller]
    pub(crate) fn next(&self) -> Option<String> {
        let link = self.headers.get(LINK)?.to_str().unwrap();
        let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
        Some(next.unwrap_or_else(|| panic!("not a link to the next page: {link}")).to_owned())
    }
}
