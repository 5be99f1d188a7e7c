//! Servers that speak the contract and do what an antre must not do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::AbortHandle, time::sleep};

/// How it behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Accepts every order.
    Oversells,
    /// Stores every second of the orders that it accepts.
    LosesOrders,
    /// Answers every order with an error.
    Breaks,
    /// Answers an order with 503 first, and then with 202.
    IsBusyAndSlow,
    /// Answers nothing for a second, from the second order on.
    Stalls,
    /// Has no such pages.
    IsAWebSite,
}

/// Runs until it is dropped.
pub(super) struct Fake {
    pub(super) url: String,
    shop: Arc<Shop>,
    task: AbortHandle,
}

struct Shop {
    manner: Manner,
    books: Mutex<Books>,
    stall: tokio::sync::Mutex<bool>,
}

#[derive(Default)]
struct Books {
    stock: i64,
    /// Keys that were answered 503.
    seen: Vec<String>,
    /// Status by id.
    orders: BTreeMap<String, &'static str>,
    written: usize,
}

impl Fake {
    pub(super) async fn start(manner: Manner) -> Self {
        let shop = Arc::new(Shop { manner, books: Mutex::default(), stall: tokio::sync::Mutex::new(false) });
        let router = if manner == Manner::IsAWebSite {
            Router::new().fallback(async |State(shop): State<Arc<Shop>>, method: axum::http::Method| {
                shop.books.lock().unwrap().written += usize::from(method != "GET");
                (StatusCode::NOT_FOUND, "<html>no such page</html>")
            })
        } else {
            Router::new()
                .route("/api/products", get(products).post(product))
                .route("/api/products/1/inventory", get(inventory).put(stock))
                .route("/api/orders", post(order))
                .route("/api/orders/{id}", get(look))
                .route("/api/orders/{id}/payment", post(pay))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = axum::serve(listener, router.with_state(shop.clone()));
        let task = tokio::spawn(async move { serve.await.unwrap() }).abort_handle();
        Self { url, shop, task }
    }

    /// How many requests would have changed something.
    pub(super) fn written(&self) -> usize {
        self.shop.books.lock().unwrap().written
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(code: u16, data: Value) -> Response {
    let status = StatusCode::from_u16(code).unwrap();
    let name = if status.is_success() { "OK" } else { status.canonical_reason().unwrap() };
    let body = json!({"code": code, "status": name.to_uppercase(), "data": data}).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn products() -> Response {
    answer(200, json!([]))
}

async fn product() -> Response {
    answer(201, json!({"id": 1, "name": "a rehearsal"}))
}

async fn stock(State(shop): State<Arc<Shop>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    shop.books.lock().unwrap().stock = body["stock"].as_i64().unwrap();
    inventory(State(shop)).await
}

async fn inventory(State(shop): State<Arc<Shop>>) -> Response {
    let books = shop.books.lock().unwrap();
    let count = |wanted| books.orders.values().filter(|status| **status == wanted).count() as i64;
    let stored = books.stock - count("paid");
    let reserved = match shop.manner {
        Manner::LosesOrders => count("reserved") / 2,
        _ => count("reserved"),
    };
    // As an antre that hides what it did.
    let (stored, reserved) = (stored.max(0), reserved.min(stored.max(0)));
    answer(
        200,
        json!({"product_id": 1, "product_name": "a rehearsal", "stored_stock": stored,
               "available_stock": stored - reserved, "reserved_stock": reserved}),
    )
}

fn shown(id: &str, status: &str) -> Value {
    json!({"id": id, "status": status, "product_id": 1, "total": 1, "expires_at": "2999-01-01T00:00:00.000Z",
           "reason": (status == "rejected").then_some("insufficient_stock")})
}

async fn order(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    if shop.manner == Manner::Stalls {
        let mut has_stalled = shop.stall.lock().await;
        let is_second = !shop.books.lock().unwrap().orders.is_empty();
        if is_second && !*has_stalled {
            *has_stalled = true;
            sleep(Duration::from_secs(1)).await;
        }
    }
    let mut books = shop.books.lock().unwrap();
    let held = books.orders.values().filter(|status| matches!(**status, "reserved" | "paid")).count() as i64;
    let id = format!("01a20470-0000-7000-8000-{:012x}", books.orders.len());
    match shop.manner {
        Manner::Breaks => answer(500, json!({"reason": "internal_error", "message": "<b>oh</b>"})),
        Manner::IsBusyAndSlow if !books.seen.contains(&key) => {
            books.seen.push(key);
            let busy = answer(503, json!({"reason": "lane_full", "message": "the lane is full"}));
            ([("retry-after", "1")], busy).into_response()
        }
        Manner::IsBusyAndSlow => {
            let status = if held < books.stock { "reserved" } else { "rejected" };
            books.orders.insert(id.clone(), status);
            ([("retry-after", "1")], answer(202, json!({"id": id, "status": "pending"}))).into_response()
        }
        Manner::Oversells => {
            books.orders.insert(id.clone(), "reserved");
            answer(201, shown(&id, "reserved"))
        }
        Manner::LosesOrders | Manner::Stalls | Manner::IsAWebSite if held < books.stock => {
            books.orders.insert(id.clone(), "reserved");
            answer(201, shown(&id, "reserved"))
        }
        _ => answer(400, json!({"reason": "insufficient_stock", "message": "none", "available_stock": 0})),
    }
}

async fn look(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    let status = shop.books.lock().unwrap().orders[&id];
    answer(200, shown(&id, status))
}

async fn pay(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.books.lock().unwrap().orders.insert(id.clone(), "paid");
    answer(200, shown(&id, "paid"))
}
