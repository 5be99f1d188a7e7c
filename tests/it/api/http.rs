//! Each call of the contract and what it answers. That an answer fits `apispec.json` is checked in the harness;
//! what is in here is what a schema cannot say.

use jiff::{Timestamp, ToSpan};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::harness::{App, MAX_TOTAL, Pair, RawConnection, eventually};

on_both_pairs!(
    a_product_is_created_and_found,
    a_name_is_stored_as_it_was_sent,
    products_are_listed_page_by_page,
    the_stock_is_what_the_seller_counted,
    the_proof_that_the_original_asked_for,
    never_a_partial_fill,
    a_stored_order_equals_the_answer,
    orders_are_listed_by_product_and_status,
    unknown_ids_are_not_found,
    an_answer_carries_the_id_of_its_request,
    head_is_get_without_the_body,
    errors_name_the_valid_call,
    the_contract_and_the_health_are_served,
);

/// No product and no order has these.
const NO_PRODUCT: u64 = 9_007_199_254_740_991;
const NO_ORDER: &str = "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d";

async fn a_product_is_created_and_found(pair: Pair) {
    let app = App::start(pair).await;
    let created = app.post("/api/products", json!({"name": "  Kaos Polos\n"})).await;
    assert_eq!(created.status, 201);
    let id = created.data()["id"].as_u64().unwrap();
    assert_eq!(created.json, json!({"code": 201, "status": "OK", "data": {"id": id, "name": "Kaos Polos"}}));
    assert_eq!(created.header("location"), format!("/api/products/{id}"));

    let found = app.get(created.header("location")).await;
    let mut shown = found.json.clone();
    for part in ["inventory", "terms"] {
        assert!(shown["data"].as_object_mut().unwrap().remove(part).is_some(), "{found:?}");
    }
    assert_eq!(shown, json!({"code": 200, "status": "OK", "data": {"id": id, "name": "Kaos Polos"}}));

    let inventory = app.get(&format!("/api/products/{id}/inventory")).await;
    let zeros = json!({
        "product_id": id, "product_name": "Kaos Polos",
        "stored_stock": 0, "available_stock": 0, "reserved_stock": 0,
    });
    assert_eq!(inventory.data(), &zeros);
}

async fn a_name_is_stored_as_it_was_sent(pair: Pair) {
    let app = App::start(pair).await;
    let names = [
        "x".to_owned(),
        "👕".repeat(100),
        "'; DROP TABLE products; --".to_owned(),
        "\"quoted\" \\ and back\\slashed".to_owned(),
        "two\r\nlines\tand a tab".to_owned(),
        "قميص سادة".to_owned(),
        "می\u{200c}خواهم".to_owned(), // what joins letters may stand between them
        "e\u{301}".to_owned(),        // not made one character of
        "\u{feff}mark".to_owned(),
        "\u{10ffff}".to_owned(),
    ];
    for name in &names {
        let blanks_around = format!(" \t\u{3000}{name}\u{a0}\n");
        let created = app.post("/api/products", json!({"name": blanks_around})).await;
        assert_eq!((created.status, &created.data()["name"]), (201, &json!(name)));
        let inventory = app.get(&format!("{}/inventory", created.header("location"))).await;
        assert_eq!(inventory.data()["product_name"], json!(name));
    }
    let listed = app.all("/api/products").await;
    let listed: Vec<_> = listed.iter().map(|product| product["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
}

async fn products_are_listed_page_by_page(pair: Pair) {
    let app = App::start(pair).await;
    let none = app.get("/api/products").await;
    assert_eq!((none.data(), none.next()), (&json!([]), None));

    let mut ids = Vec::new();
    for n in 0..21 {
        ids.push(app.create_product(&format!("Kaos {n}")).await);
    }
    assert!(ids.is_sorted());
    let ids_of = |rows: &[Value]| rows.iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<_>>();
    let page = async |path: &str| {
        let answer = app.get(path).await;
        (ids_of(answer.data().as_array().unwrap()), answer.next())
    };

    // Twenty, unless something else is asked for.
    let (first, next) = page("/api/products").await;
    assert_eq!(first, ids[..20]);
    assert_eq!(page(&next.unwrap()).await, (vec![ids[20]], None));
    // Whatever the size of the pages, they are all of it.
    for limit in [1, 2, 7, 20, 21, 100] {
        assert_eq!(ids_of(&app.all(&format!("/api/products?limit={limit}")).await), ids, "limit {limit}");
    }
    // A page that is full and the last one says so.
    assert_eq!(page("/api/products?limit=21").await, (ids.clone(), None));
    // The next page has the size of this one.
    let (_, next) = page("/api/products?limit=3").await;
    let (second, next) = page(&next.unwrap()).await;
    assert_eq!((second, next.is_some()), (ids[3..6].to_vec(), true));
    assert_eq!(page(&format!("/api/products?after={}", ids[20])).await, (vec![], None));
    assert_eq!(page(&format!("/api/products?after={NO_PRODUCT}&limit=100")).await, (vec![], None));
}

async fn the_stock_is_what_the_seller_counted(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_product("Kaos Polos").await;
    let count = async |stock: u64| {
        let answer = app.stock(product, stock).await;
        let pieces = ["stored_stock", "available_stock", "reserved_stock"];
        (answer.status, pieces.map(|which| answer.data()[which].as_u64()))
    };
    let counted = |stored, available, reserved| (200, [Some(stored), Some(available), Some(reserved)]);
    let below = |reserved| (409, [None, None, Some(reserved)]);

    assert_eq!(count(100).await, counted(100, 100, 0));
    assert_eq!(count(100).await, counted(100, 100, 0), "the second time changes nothing");
    assert_eq!(app.order(product, 30).await.status, 201);
    assert_eq!(app.inventory(product).await, [100, 70, 30]);
    assert_eq!(count(100).await, counted(100, 70, 30));
    assert_eq!(count(50).await, counted(50, 20, 30));
    assert_eq!(count(29).await, below(30));
    assert_eq!(count(0).await, below(30));
    assert_eq!(app.inventory(product).await, [50, 20, 30], "a refused count changes nothing");
    assert_eq!(count(30).await, counted(30, 0, 30));
    assert_eq!(count(MAX_TOTAL).await, counted(MAX_TOTAL, MAX_TOTAL - 30, 30));

    let refused = app.stock(product, 29).await;
    assert_eq!((refused.reason(), &refused.json["status"]), ("stock_below_reserved", &json!("CONFLICT")));
    let other = app.create_product("Kaos Garis").await;
    assert_eq!(app.inventory(other).await, [0, 0, 0], "products have nothing to do with each other");
}

async fn the_proof_that_the_original_asked_for(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    for n in 1..=100 {
        let answer = app.order(product, 1).await;
        assert_eq!(answer.status, 201, "order {n}: {answer:?}");
        assert_eq!(app.inventory(product).await, [100, 100 - n, n]);
    }
    for _ in 0..2 {
        let refused = app.order(product, 1).await;
        assert_eq!((refused.status, refused.reason()), (400, "insufficient_stock"));
        assert_eq!(refused.data()["available_stock"], 0);
        assert_eq!(app.inventory(product).await, [100, 0, 100]);
    }
    // The seller finds one more.
    assert_eq!(app.stock(product, 101).await.status, 200);
    assert_eq!(app.order(product, 1).await.status, 201);
    assert_eq!(app.reservations(product).await.orders.len(), 101);
}

async fn never_a_partial_fill(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let refused = async |total, available: u64| {
        let before = app.inventory(product).await;
        let answer = app.order(product, total).await;
        assert_eq!((answer.status, answer.reason()), (400, "insufficient_stock"));
        assert_eq!(answer.data()["available_stock"], available);
        assert_eq!(app.inventory(product).await, before);
    };
    refused(6, 5).await;
    refused(MAX_TOTAL, 5).await;
    assert_eq!(app.order(product, 3).await.status, 201);
    refused(3, 2).await;
    assert_eq!(app.order(product, 2).await.status, 201);
    refused(1, 0).await;
    // An order that was answered with a rejection is not stored.
    assert_eq!(app.all("/api/orders").await.len(), 2);

    // The largest order there can be takes the largest stock there can be.
    let large = app.create_stocked("Kaos Garis", MAX_TOTAL).await;
    assert_eq!(app.order(large, MAX_TOTAL).await.status, 201);
    assert_eq!(app.inventory(large).await, [MAX_TOTAL, 0, MAX_TOTAL]);
}

async fn a_stored_order_equals_the_answer(pair: Pair) {
    let app = App::start_with(pair, &[("RESERVATION_TTL", "2h")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    // Ids keep whole milliseconds.
    let before = Timestamp::now() - 1.millisecond();
    let placed = app.order(product, 12).await;
    let after = Timestamp::now();
    assert_eq!(placed.status, 201);
    let order = placed.data();
    assert_eq!((&order["product_id"], &order["total"]), (&json!(product), &json!(12)));
    assert_eq!(order["status"], "reserved");
    let time = |field: &str| order[field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!((before..=after).contains(&time("created_at")), "{order}");
    assert!((before + 2.hours()..=after + 2.hours()).contains(&time("expires_at")), "{order}");

    assert_eq!(placed.header("location"), format!("/api/orders/{}", order["id"].as_str().unwrap()));
    let found = app.get(placed.header("location")).await;
    assert_eq!((found.status, found.data()), (200, order));
    let in_capitals = placed.header("location").rsplit_once('/').unwrap().1.to_uppercase();
    assert_eq!(app.get(&format!("/api/orders/{in_capitals}")).await.data(), order);
    assert_eq!(app.all("/api/orders").await, std::slice::from_ref(order));
}

async fn orders_are_listed_by_product_and_status(pair: Pair) {
    let app = App::start(pair).await;
    let polos = app.create_stocked("Kaos Polos", 100).await;
    let garis = app.create_stocked("Kaos Garis", 100).await;
    let mut placed = Vec::new();
    for n in 0..25 {
        let product = if n % 5 == 0 { garis } else { polos };
        placed.push(app.order(product, 1 + n % 3).await.data().clone());
    }
    let of = |product: u64| {
        placed.iter().filter(|order| order["product_id"] == product).cloned().collect::<Vec<_>>()
    };

    // Newest last; twenty, unless something else is asked for.
    let first = app.get("/api/orders").await;
    assert_eq!(first.data().as_array().unwrap(), &placed[..20]);
    let second = app.get(&first.next().unwrap()).await;
    assert_eq!((second.data().as_array().unwrap().as_slice(), second.next()), (&placed[20..], None));
    // The next page is one of the same list.
    for limit in [1, 3, 5, 20, 100] {
        assert_eq!(app.all(&format!("/api/orders?limit={limit}")).await, placed);
        assert_eq!(app.all(&format!("/api/orders?product_id={polos}&limit={limit}")).await, of(polos));
        let both = format!("/api/orders?status=reserved&limit={limit}&product_id={garis}");
        assert_eq!(app.all(&both).await, of(garis));
    }
    for status in ["pending", "paid", "cancelled", "expired", "rejected"] {
        assert_eq!(app.all(&format!("/api/orders?status={status}")).await, [] as [Value; 0], "{status}");
    }
    assert_eq!(app.all(&format!("/api/orders?product_id={NO_PRODUCT}")).await, [] as [Value; 0]);
    // `after` need not be an order of the list, nor any order.
    let newest_of_garis = of(garis).last().unwrap()["id"].as_str().unwrap().to_owned();
    let behind = app.all(&format!("/api/orders?product_id={polos}&after={newest_of_garis}")).await;
    assert_eq!(behind, placed[21..]);
    assert_eq!(app.all(&format!("/api/orders?after={NO_ORDER}")).await, placed);
    assert_eq!(app.all("/api/orders?after=ffffffff-ffff-ffff-ffff-ffffffffffff").await, [] as [Value; 0]);
}

async fn unknown_ids_are_not_found(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_product("Kaos Polos").await;
    let unknown = [
        app.get(&format!("/api/products/{NO_PRODUCT}")).await,
        app.get(&format!("/api/products/{}/inventory", product + 1)).await,
        app.stock(product + 1, 5).await,
        app.order(product + 1, 1).await,
        app.order(NO_PRODUCT, 1).await,
    ];
    for answer in unknown {
        assert_eq!((answer.status, answer.reason()), (404, "product_not_found"), "{answer:?}");
        assert_eq!(answer.json["status"], "NOT FOUND");
    }
    // Any UUID may be asked for.
    for id in [NO_ORDER, "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
        let answer = app.get(&format!("/api/orders/{id}")).await;
        assert_eq!((answer.status, answer.reason()), (404, "order_not_found"), "{answer:?}");
    }
    let order = format!("/api/orders/{NO_ORDER}/");
    for path in ["/api", "/api/product", "/api/products/", "/API/products", "//api/products", &order] {
        let answer = app.get(path).await;
        assert_eq!((answer.status, answer.reason()), (404, "route_not_found"), "{path}: {answer:?}");
    }
    assert_eq!(app.all("/api/products").await.len(), 1);
}

async fn an_answer_carries_the_id_of_its_request(pair: Pair) {
    let app = App::start(pair).await;
    let ask = async |path: &str, id: &str| {
        let answer = app.send(Method::GET, path, |request| request.header("x-request-id", id)).await;
        answer.header("x-request-id").to_owned()
    };
    let long = "x".repeat(128);
    for id in ["a", "7f3c!~\"{}", &long] {
        for path in ["/health/live", "/api/products", "/api/products/0", "/api/orders/x", "/nowhere"] {
            assert_eq!(ask(path, id).await, id, "{path}");
        }
    }
    let too_long = "x".repeat(129);
    for id in ["", "two words", "tab\tbed", "kaos-é", &too_long] {
        let own = ask("/health/live", id).await;
        assert!(own != id && own.parse::<uuid::Uuid>().is_ok(), "{id:?} became {own:?}");
    }
    let first = app.get("/health/live").await;
    let second = app.get("/health/live").await;
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

async fn head_is_get_without_the_body(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_product("Kaos Polos").await;
    app.create_product("Kaos Garis").await;
    let paths = [
        "/api/products?limit=1".to_owned(),
        format!("/api/products/{product}"),
        format!("/api/products/{product}/inventory"),
        "/api/products/0".to_owned(),
        "/api/orders".to_owned(),
        format!("/api/orders/{NO_ORDER}"),
        "/health/live".to_owned(),
        "/health/ready".to_owned(),
        "/apispec.json".to_owned(),
    ];
    for path in paths {
        let get = app.get(&path).await;
        let head = app.send(Method::HEAD, &path, |request| request).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        for name in ["content-type", "content-length", "link"] {
            assert_eq!(head.headers.get(name), get.headers.get(name), "{name} of {path}");
        }
        assert_eq!(get.header("content-length"), get.body.len().to_string());
    }
}

async fn errors_name_the_valid_call(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 7).await;
    let calls = [
        (Method::DELETE, "/api/products".to_owned(), "GET,HEAD,POST"),
        (Method::PUT, format!("/api/products/{product}"), "DELETE,GET,HEAD,PATCH"),
        (Method::POST, format!("/api/products/{product}"), "DELETE,GET,HEAD,PATCH"),
        (Method::POST, format!("/api/products/{product}/inventory"), "GET,HEAD,PUT"),
        (Method::PATCH, format!("/api/products/{product}/inventory"), "GET,HEAD,PUT"),
        (Method::PUT, "/api/orders".to_owned(), "GET,HEAD,POST"),
        (Method::DELETE, format!("/api/orders/{NO_ORDER}"), "GET,HEAD"),
        (Method::OPTIONS, "/api/orders".to_owned(), "GET,HEAD,POST"),
        (Method::TRACE, "/health/live".to_owned(), "GET,HEAD"),
        (Method::POST, "/apispec.json".to_owned(), "GET,HEAD"),
    ];
    for (method, path, allowed) in calls {
        let answer = app.send(method.clone(), &path, |request| request.json(&json!({"stock": 0}))).await;
        assert_eq!((answer.status, answer.reason()), (405, "method_not_allowed"), "{method} {path}");
        assert_eq!(answer.json["status"], "METHOD NOT ALLOWED");
        let mut allow: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{method} {path}");
    }
    assert_eq!(app.inventory(product).await, [7, 7, 0]);
}

async fn the_contract_and_the_health_are_served(pair: Pair) {
    let app = App::start(pair).await;
    let contract = app.get("/apispec.json").await;
    assert_eq!(contract.header(CONTENT_TYPE.as_str()), "application/json");
    assert!(contract.body == include_bytes!("../../../apispec.json").as_slice());
    assert_eq!(app.get("/health/live").await.data(), &json!({"live": true}));
    // The worker connects while the API answers already.
    let ready = eventually("it never becomes ready", async || {
        let answer = app.get("/health/ready").await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(ready.await.data(), &json!({"database": "ok", "queue": "ok", "worker": "ok"}));
}

/// What is not known is not guessed: 202, and the verdict stands at the URL later.
#[tokio::test]
async fn an_order_without_a_verdict_in_time_is_pending() {
    let app = App::start_with(Pair::Embedded, &[("ORDER_TIMEOUT", "20ms")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let database = app.lock_database().await;
    let [first, second] = [app.order(product, 3).await, app.order(product, 3).await];
    for placed in [&first, &second] {
        let id = placed.data()["id"].as_str().unwrap();
        assert_eq!(
            placed.json,
            json!({"code": 202, "status": "OK", "data": {"id": id, "status": "pending"}})
        );
        assert_eq!(placed.header("location"), format!("/api/orders/{id}"));
        let found = app.get(placed.header("location")).await;
        assert_eq!((found.status, found.data()), (200, placed.data()));
    }
    assert_eq!(app.all("/api/orders").await, [] as [Value; 0], "a queued order is not stored");
    database.close().await.unwrap();

    let first = app.verdict(first.header("location")).await;
    let second = app.verdict(second.header("location")).await;
    assert_eq!((&first["status"], &first["total"]), (&json!("reserved"), &json!(3)));
    // No client was there to be answered: the rejection is stored.
    assert_eq!((&second["status"], &second["expires_at"]), (&json!("rejected"), &Value::Null));
    assert_eq!((&second["reason"], &second["available_stock"]), (&json!("insufficient_stock"), &json!(2)));
    assert_eq!(app.all("/api/orders").await, [first.clone(), second.clone()]);
    assert_eq!(app.all("/api/orders?status=rejected").await, [second]);
    assert_eq!(app.all("/api/orders?status=reserved").await, [first]);
    assert_eq!(app.inventory(product).await, [5, 2, 3]);
}

/// A client that asks for permission before it sends the body gets it, or the error at once.
#[tokio::test]
async fn expect_100_continue_is_answered_when_the_body_is_read() {
    let app = App::start(Pair::Embedded).await;
    let head = |length: usize| {
        format!(
            "POST /api/products HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut wire = RawConnection::open(&app).await;
    wire.send(head(15).as_bytes()).await;
    assert_eq!(wire.read().await.unwrap().0, 100);
    wire.send(br#"{"name":"Kaos"}"#).await;
    assert_eq!(wire.answer("POST", "/api/products").await.status, 201);

    let mut wire = RawConnection::open(&app).await;
    wire.send(head(1_000_000).as_bytes()).await;
    assert_eq!(wire.answer("POST", "/api/products").await.reason(), "body_too_large");
}

/// Reads go on; a write is refused once the database did not answer for five seconds, and nothing is written
/// later behind the client's back.
#[tokio::test]
async fn a_locked_database_is_unavailable() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let database = app.lock_database().await;
    let refused = app.stock(product, 9).await;
    assert_eq!((refused.status, refused.reason()), (503, "database_unavailable"), "{refused:?}");
    assert_eq!(
        (&refused.json["status"], refused.header("retry-after")),
        (&json!("SERVICE UNAVAILABLE"), "1")
    );
    assert_eq!(app.inventory(product).await, [5, 5, 0]);
    assert_eq!(app.get("/health/ready").await.status, 503);
    database.close().await.unwrap();
    assert_eq!(app.order(product, 5).await.status, 201);
    assert_eq!(app.inventory(product).await, [5, 0, 5]);
    assert_eq!(app.stock(product, 9).await.status, 200);
}
