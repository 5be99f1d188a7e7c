//! Whatever comes in: a 4xx that says why, a program that lives on, and a stock that did not move.

mod bodies;

use std::ops::Range;

use serde_json::json;

use crate::support::harness::{Answer, App, Pair, RawConnection};

on_both_pairs!(unknown_paths, invalid_queries, unknown_methods, what_is_not_http, interrupted_requests,);

/// The program, with one product whose stock must not move.
struct Target {
    app: App,
    product: u64,
}

impl Target {
    async fn start(pair: Pair) -> Self {
        let app = App::start(pair).await;
        let product = app.create_stocked("Kaos Polos", 5).await;
        Self { app, product }
    }

    /// Sends a request with this body, as it is.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut wire = RawConnection::open(&self.app).await;
        let length = body.len();
        wire.send(
            format!("{method} {path} HTTP/1.1\r\nHost: antre\r\n{headers}Content-Length: {length}\r\n\r\n")
                .as_bytes(),
        )
        .await;
        wire.send(body).await;
        wire.answer(method, path).await
    }

    /// The body is refused, with this reason and field.
    async fn refuses(&self, method: &str, path: &str, body: &[u8], reason: &str, field: Option<&str>) {
        let answer = self.send(method, path, JSON, body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(answer.status, 400, "{shown}: {answer:?}");
        assert_eq!(
            (answer.reason(), answer.data()["field"].as_str()),
            (reason, field),
            "{shown}: {answer:?}"
        );
        self.is_unharmed(&shown).await;
    }

    /// It answers, and nothing was created, ordered or counted.
    async fn is_unharmed(&self, by: &str) {
        assert_eq!(self.app.inventory(self.product).await, [5, 5, 0], "{by}");
        assert_eq!(self.app.all("/api/products").await.len(), 1, "{by}");
        assert_eq!(self.app.all("/api/orders").await.len(), 0, "{by}");
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

async fn unknown_paths(pair: Pair) {
    let target = Target::start(pair).await;
    let (digits, long) = ("1".repeat(5_000), "x".repeat(30_000));
    for id in [
        "0",
        "-1",
        "+1",
        "01x",
        "1.0",
        "1e3",
        "0x1",
        "abc",
        "null",
        "%00",
        "1%00",
        "%FF",
        "%C3%28",
        "%20",
        "1%20",
        "%0A",
        "%2e%2e",
        "..",
        ".",
        "%",
        "%zz",
        "1%2F2",
        "1;2",
        "*",
        "9007199254740992",
        "18446744073709551616",
        "%EF%BC%91",
        "%D9%A1",
        "1'--",
        "$(id)",
        &digits,
        &long,
    ] {
        for (method, path) in [
            ("GET", format!("/api/products/{id}")),
            ("GET", format!("/api/products/{id}/inventory")),
            ("PUT", format!("/api/products/{id}/inventory")),
        ] {
            let answer = target.send(method, &path, JSON, b"{\"stock\":9}").await;
            let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
            assert_eq!(found, (400, "invalid_product_id", Some("productId")), "{method} {path}");
        }
    }
    for id in [
        "1",
        "abc",
        "%00",
        "%FF",
        "..",
        "0197f5a2",
        "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6",
        "0197f5a27c1e7b3a9d423f0c5e8a1b6d",
        "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d0",
        "{0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d}",
        "g197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d",
        "urn:uuid:0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d",
        "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d%00",
        "0197f5a27-c1e-7b3a-9d42-3f0c5e8a1b6d",
        &digits,
        &long,
    ] {
        let answer = target.send("GET", &format!("/api/orders/{id}"), "", b"").await;
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, "invalid_order_id", Some("orderId")), "{id}");
    }
    for path in [
        "/..",
        "/../etc/passwd",
        "/api/../api/products",
        "/api/products/../orders",
        "/api//products",
        "/api/products/",
        "/api/products/1/",
        "/api/products/1/inventory/",
        "/api%2Fproducts",
        "/api/products%00",
        "/api/products/1/2",
        "/%FF",
        "/api\\products",
        "*",
        "/apispec.json/",
        "/health",
        "/metrics/x",
        "/.env",
        "/antre.db",
        &format!("/{long}"),
    ] {
        let answer = target.send("GET", path, "", b"").await;
        assert_eq!((answer.status, answer.reason()), (404, "route_not_found"), "{path}");
    }
    // An empty id is a bad one; to the contract it is no call at all.
    let mut wire = RawConnection::open(&target.app).await;
    wire.send(b"GET /api/products//inventory HTTP/1.1\r\nHost: antre\r\n\r\n").await;
    assert_eq!(wire.read().await.unwrap().0, 400);
    target.is_unharmed("paths").await;
}

async fn invalid_queries(pair: Pair) {
    let target = Target::start(pair).await;
    let uuid = "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d";
    let refuses = async |path: &str, query: &str, reason: &str, field: Option<&str>| {
        let answer = target.send("GET", &format!("{path}?{query}"), "", b"").await;
        let found = (answer.status, answer.reason(), answer.data()["field"].as_str());
        assert_eq!(found, (400, reason, field), "{path}?{query}");
    };
    for sku in ["", "a%20b", "%C3%A9", &"x".repeat(65)] {
        refuses("/api/products", &format!("sku={sku}"), "invalid_sku", Some("sku")).await;
    }
    refuses("/api/products", "sku=a&sku=a", "invalid_query", Some("sku")).await;
    for path in ["/api/products", "/api/orders"] {
        for limit in [
            "",
            "0",
            "-1",
            "101",
            "+5",
            "%2B5",
            "5.0",
            "1e1",
            "abc",
            "null",
            "%00",
            "%FF",
            "5%00",
            "99999999999999999999",
            "5,6",
            "%D9%A5",
        ] {
            refuses(path, &format!("limit={limit}"), "invalid_limit", Some("limit")).await;
        }
        refuses(path, "limit", "invalid_limit", Some("limit")).await;
        for (query, field) in [
            ("page=2", "page"),
            ("Limit=5", "Limit"),
            ("limit=5&offset=5", "offset"),
            ("limit=5&limit=5", "limit"),
            ("limit=5&after=&limit=6", "limit"),
            ("=5", ""),
            ("limit[]=5", "limit[]"),
            ("%6Cimit=5&limit=5", "limit"),
            ("%FF=1", "\u{fffd}"),
            ("a;b", "a;b"),
            ("?limit=5", "?limit"),
        ] {
            refuses(path, query, "invalid_query", Some(field)).await;
        }
        let long = "x".repeat(30_000);
        refuses(path, &format!("{long}=1"), "invalid_query", Some(&long[..100])).await;
    }
    for after in ["", "0", "-1", "abc", uuid, "9007199254740992"] {
        refuses("/api/products", &format!("after={after}"), "invalid_after", Some("after")).await;
    }
    refuses("/api/products", "product_id=1", "invalid_query", Some("product_id")).await;
    for after in ["", "0", "1", "abc", "%00", &uuid.replace('-', "")] {
        refuses("/api/orders", &format!("after={after}"), "invalid_after", Some("after")).await;
    }
    for id in ["", "0", "-1", "abc", uuid, "9007199254740992", "1%00"] {
        refuses("/api/orders", &format!("product_id={id}"), "invalid_product_id", Some("product_id")).await;
    }
    for status in ["", "open", "RESERVED", "Reserved", "reserved%20", "reserved%00", "reserved,paid", "%FF"] {
        refuses("/api/orders", &format!("status={status}"), "invalid_status", Some("status")).await;
    }
    // Where there are no parameters they mean nothing.
    let path = format!("/api/products/{}?limit=0&%FF", target.product);
    assert_eq!(target.send("GET", &path, "", b"").await.status, 200);
    target.is_unharmed("queries").await;
}

async fn unknown_methods(pair: Pair) {
    let target = Target::start(pair).await;
    let order = json!({"product_id": target.product, "total": 1}).to_string();
    let long = "X".repeat(1_000);
    for method in ["BREW", "get", "Post", "PROPFIND", "PRI", "G-E_T!", &long] {
        for path in ["/api/orders", "/api/products", "/health/live"] {
            let answer = target.send(method, path, JSON, order.as_bytes()).await;
            assert_eq!((answer.status, answer.reason()), (405, "method_not_allowed"), "{method} {path}");
        }
    }
    // A method that a proxy may have hidden in a header is no method.
    let override_it = format!("{JSON}X-HTTP-Method-Override: POST\r\n");
    assert_eq!(target.send("PATCH", "/api/orders", &override_it, order.as_bytes()).await.status, 405);
    target.is_unharmed("methods").await;
}

/// What the HTTP library refuses before our code sees it: a 4xx without an envelope, or no answer.
async fn what_is_not_http(pair: Pair) {
    let target = Target::start(pair).await;
    let order = json!({"product_id": target.product, "total": 1}).to_string();
    let length = order.len();
    let post =
        |headers: &str| format!("POST /api/orders HTTP/1.1\r\nHost: antre\r\n{JSON}{headers}\r\n{order}");
    let refused = async |bytes: &[u8], statuses: Range<u16>| {
        let mut wire = RawConnection::open(&target.app).await;
        wire.send(bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        let Some((status, ..)) = wire.read().await else { panic!("no answer to {shown:?}") };
        assert!(statuses.contains(&status), "{status} to {shown:?}");
        target.is_unharmed(&shown).await;
    };
    let bad_requests = [
        b"GARBAGE\r\n\r\n".to_vec(),
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /api/products\r\n\r\n".to_vec(),
        b"GET /api/products HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /api/pro ducts HTTP/1.1\r\n\r\n".to_vec(),
        b"GET api/products HTTP/1.1\r\n\r\n".to_vec(),
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), // a TLS handshake
        post("a header without a colon\r\n").into_bytes(),
        post(": no name\r\n").into_bytes(),
        post("Na me: x\r\n").into_bytes(),
        post("Name: a\0b\r\n").into_bytes(),
        post("Content-Length: abc\r\n").into_bytes(),
        post("Content-Length: -1\r\n").into_bytes(),
        post("Content-Length: 99999999999999999999\r\n").into_bytes(),
        post(&format!("Content-Length: {length}\r\nContent-Length: 5\r\n")).into_bytes(),
        post("Transfer-Encoding: gzip\r\n").into_bytes(),
    ];
    for bytes in bad_requests {
        refused(&bytes, 400..401).await;
    }
    let long = "x".repeat(70_000);
    refused(format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes(), 414..415).await;
    let many: String = (0..1_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    refused(post(&many).as_bytes(), 431..432).await;
    let megabyte = format!("x: {}\r\n", "y".repeat(1_000_000));
    refused(post(&megabyte).as_bytes(), 431..432).await;
}

/// The client leaves in the middle, or says one thing and does another: nobody is there to be answered, or our
/// code answers; in no case is it an order.
async fn interrupted_requests(pair: Pair) {
    let target = Target::start(pair).await;
    let order = json!({"product_id": target.product, "total": 1}).to_string();
    let head = format!("POST /api/orders HTTP/1.1\r\nHost: antre\r\n{JSON}");
    let whole = format!("{head}Content-Length: {}\r\n\r\n{order}", order.len());
    for end in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        RawConnection::open(&target.app).await.send(&whole.as_bytes()[..end]).await;
    }
    // A whole order, of which more was announced.
    let mut wire = RawConnection::open(&target.app).await;
    wire.send(format!("{head}Content-Length: 1000\r\n\r\n{order}").as_bytes()).await;
    wire.finish_sending().await;
    assert!(wire.read().await.is_none_or(|(status, ..)| status == 400));
    target.is_unharmed("a request that breaks off").await;

    // Chunks that are none, or that never end.
    for chunks in
        [format!("zz\r\n{order}\r\n0\r\n\r\n"), format!("{:x}\r\n{order}xx\r\n0\r\n\r\n", order.len())]
    {
        let mut wire = RawConnection::open(&target.app).await;
        wire.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes()).await;
        let answer = wire.answer("POST", "/api/orders").await;
        assert_eq!((answer.status, answer.reason()), (400, "invalid_body"), "{chunks}");
    }
    let mut wire = RawConnection::open(&target.app).await;
    wire.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{order}\r\n", order.len()).as_bytes())
        .await;
    wire.finish_sending().await;
    assert!(wire.read().await.is_none_or(|(status, ..)| status == 400));

    // Less was announced than is sent: what follows is another request, and it is none.
    let mut wire = RawConnection::open(&target.app).await;
    wire.send(format!("{head}Content-Length: {}\r\n\r\n{order}", order.len() - 1).as_bytes()).await;
    assert_eq!(wire.answer("POST", "/api/orders").await.reason(), "invalid_json");
    target.is_unharmed("requests that break off").await;
}
