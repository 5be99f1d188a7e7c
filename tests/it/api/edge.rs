//! What stands between the socket and the handlers: limits on clients, answers to what is no request, the headers of every
//! answer, HTTP/2, and the end of the process.

use std::{collections::BTreeMap, io::Read, time::Duration};

use flate2::read::GzDecoder;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::harness::{App, Pair, RawConnection, TIMEOUT, eventually, order_request};

const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: antre\r\n\r\n";

/// What is answered to these bytes: status, headers, `data`.
async fn told(app: &App, bytes: &[u8]) -> (u16, HeaderMap, Value) {
    let mut wire = RawConnection::open(app).await;
    wire.send(bytes).await;
    let (status, headers, body) = wire.read().await.expect("no answer");
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status >= 400 {
        assert_eq!(json["code"], status, "{json}");
        assert_eq!(headers["content-type"], "application/json");
        assert!(json["data"]["message"].is_string(), "{json}");
    }
    for name in ["x-request-id", "date", "cache-control", "x-content-type-options"] {
        assert!(headers.contains_key(name), "{name} is missing: {headers:?}");
    }
    (status, headers, json["data"].clone())
}

/// The line of the log that has this.
async fn logged(app: &App, text: &str) -> String {
    let found = async || app.log().lines().find(|line| line.contains(text)).map(str::to_owned);
    eventually(&format!("the log has no {text}"), found).await
}

#[tokio::test]
async fn an_invalid_request_gets_an_error_of_the_contract() {
    let app = App::start_with(Pair::Embedded, &[("RUST_LOG", "antre=debug")]).await;
    let (long, large) = ("x".repeat(40_000), "y".repeat(200_000));
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases: [(Vec<u8>, u16, &str); 7] = [
        (b"GARBAGE\r\n\r\n".to_vec(), 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400, "invalid_request"),
        (b"PRI * HTTP/2.0\r\n\r\nno preface".to_vec(), 400, "invalid_request"),
        (b"POST / HTTP/1.1\r\nHost: antre\r\nContent-Length: -1\r\n\r\n".to_vec(), 400, "invalid_request"),
        (format!("GET /{long} HTTP/1.1\r\nHost: antre\r\n\r\n").into_bytes(), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: antre\r\nx: {large}\r\n\r\n").into_bytes(), 431, "head_too_large"),
        (format!("GET / HTTP/1.1\r\nHost: antre\r\n{many}\r\n").into_bytes(), 431, "head_too_large"),
    ];
    for (bytes, status, reason) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let (given, headers, data) = told(&app, &bytes).await;
        assert_eq!((given, data["reason"].as_str()), (status, Some(reason)), "{shown}");
        assert_eq!(headers["connection"], "close", "{shown}");
        let line = logged(&app, headers["x-request-id"].to_str().unwrap()).await;
        assert!(line.contains("DEBUG") && line.contains(reason), "{line}");
    }
}

/// The answer to the first leaves as it is, though the second is refused in the same breath.
#[tokio::test]
async fn an_invalid_request_does_not_affect_earlier_answers() {
    let app = App::start(Pair::Embedded).await;
    let mut wire = RawConnection::open(&app).await;
    wire.send(&[LIVE, LIVE, b"GARBAGE\r\n\r\n"].concat()).await;
    for status in [200, 200, 400] {
        let (given, headers, _) = wire.read().await.unwrap();
        assert!(given == status && headers.contains_key("x-request-id"), "{given}: {headers:?}");
    }
    assert!(wire.read().await.is_none());
}

#[tokio::test]
async fn a_request_has_one_host() {
    let app = App::start(Pair::Embedded).await;
    let status = async |version: &str, hosts: &str| {
        let (status, _, data) =
            told(&app, format!("GET /health/live HTTP/{version}\r\n{hosts}\r\n").as_bytes()).await;
        assert!(status == 200 || data["reason"] == "invalid_host", "{data}");
        status
    };
    for good in ["Host: antre\r\n", "host: 127.0.0.1:3000\r\n", "Host: [::1]:3000\r\n", "Host:\r\n"] {
        assert_eq!(status("1.1", good).await, 200, "{good}");
    }
    for bad in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: me@a\r\n",
    ] {
        assert_eq!(status("1.1", bad).await, 400, "{bad}");
    }
    // A body is taken in before its request is refused, and is no request.
    let mut wire = RawConnection::open(&app).await;
    let order = order_request(1, 1).replace("Host: antre\r\n", "");
    wire.send(&[order.as_bytes(), LIVE].concat()).await;
    assert_eq!((wire.read().await.unwrap().0, wire.read().await.unwrap().0), (400, 200));
}

/// A client that takes too long gets an answer, if one can still be sent, and its connection is closed.
#[tokio::test]
async fn slow_clients_are_closed_in_time() {
    let app = App::start(Pair::Embedded).await;
    let begun = Instant::now();
    // Drips a byte every 100 ms until it is answered or closed; says after how many seconds.
    let drips = async |begin: &[u8]| {
        let mut wire = RawConnection::open(&app).await;
        wire.send(begin).await;
        let answer = loop {
            if let Ok(answer) = timeout(Duration::from_millis(100), wire.read()).await {
                break answer;
            }
            if !begin.is_empty() && wire.try_send(b"x").await.is_err() {
                break wire.read().await;
            }
        };
        let seconds = begun.elapsed().as_secs();
        let answer = answer.map(|(status, headers, body)| {
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(headers["connection"], "close");
            (status, body["data"]["reason"].as_str().unwrap().to_owned())
        });
        (answer, seconds)
    };
    let timed_out = Some((408, "request_timeout".to_owned()));
    let body = b"POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n";
    let never_reads = async {
        let mut wire = RawConnection::open(&app).await;
        let request = b"GET /apispec.json HTTP/1.1\r\nHost: antre\r\n\r\n";
        // As much as both sides buffer, and more: then nothing moves any more.
        while timeout(Duration::from_secs(2), wire.try_send(request)).await.is_ok_and(|sent| sent.is_ok()) {}
        let stalled = Instant::now(); // 2 s ago at the latest
        eventually("it is not closed", async || wire.try_send(request).await.err()).await;
        stalled.elapsed().as_secs()
    };
    let ((silent, silent_s), (head, head_s), (late_body, body_s), reading_s) =
        tokio::join!(drips(b""), drips(b"GET /health/live HTTP/1.1\r\nx: "), drips(body), never_reads);
    assert_eq!((silent, head, late_body), (None, timed_out.clone(), timed_out));
    for (what, seconds) in [("silent", silent_s), ("head", head_s), ("body", body_s)] {
        assert!((9..20).contains(&seconds), "{what}: {seconds} s");
    }
    assert!((15..40).contains(&reading_s), "{reading_s} s");
}

/// Connections that do nothing make room for a buyer, and the log says that there are too many.
#[tokio::test]
async fn silent_connections_do_not_block_other_clients() {
    let app = App::start_with(Pair::Embedded, &[("MAX_CONNECTIONS", "20")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let mut silent = Vec::new();
    for n in 0..60 {
        let mut wire = RawConnection::open(&app).await;
        if n % 2 == 1 {
            let _ = wire.try_send(b"GET /api/pro").await; // a head that never ends
        }
        silent.push(wire);
    }
    for _ in 0..5 {
        let asked = Instant::now();
        let mut wire = RawConnection::open(&app).await;
        wire.send(order_request(product, 1).as_bytes()).await;
        assert_eq!(wire.answer("POST", "/api/orders").await.status, 201);
        assert!(asked.elapsed() < Duration::from_secs(9), "it took {:?}", asked.elapsed());
    }
    assert!(logged(&app, "MAX_CONNECTIONS").await.contains("WARN"));
}

#[tokio::test]
async fn the_contract_is_compressed_and_cacheable() {
    let app = App::start(Pair::Embedded).await;
    let ask = async |method: &str, headers: &str| {
        let mut wire = RawConnection::open(&app).await;
        wire.send(format!("{method} /apispec.json HTTP/1.1\r\nHost: antre\r\n{headers}\r\n").as_bytes())
            .await;
        let (status, headers, body) = if method == "HEAD" {
            let (status, headers) = wire.read_head().await.unwrap();
            (status, headers, Vec::new().into())
        } else {
            wire.read().await.unwrap()
        };
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("vary").as_deref(), Some("Accept-Encoding"));
        assert_eq!(header("cache-control").as_deref(), Some("no-cache"));
        (status, header("etag").unwrap(), header("content-encoding"), body)
    };
    let (status, tag, encoding, plain) = ask("GET", "").await;
    assert_eq!((status, encoding), (200, None));
    let (status, zipped_tag, encoding, zipped) = ask("GET", "Accept-Encoding: br, gzip\r\n").await;
    assert_eq!((status, encoding.as_deref()), (200, Some("gzip")));
    let mut unzipped = Vec::new();
    GzDecoder::new(&zipped[..]).read_to_end(&mut unzipped).unwrap();
    assert_eq!(unzipped, plain);
    assert!(zipped.len() * 4 < plain.len() && tag != zipped_tag && !tag.starts_with("W/"));

    for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let (status, again, _, body) = ask("GET", &format!("If-None-Match: {known}\r\n")).await;
        assert_eq!((status, again, body.len()), (304, tag.clone(), 0), "{known}");
    }
    let zipped_known = format!("If-None-Match: {zipped_tag}\r\n");
    assert_eq!(ask("GET", &zipped_known).await.0, 200, "it is another encoding's");
    assert_eq!(ask("GET", &format!("Accept-Encoding: gzip\r\n{zipped_known}")).await.0, 304);
    assert_eq!(ask("HEAD", "").await.1, tag);
}

#[tokio::test]
async fn no_other_answer_is_cacheable() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 1).await;
    for answer in [
        app.get("/api/products").await,
        app.order(product, 1).await,
        app.order(product, 1).await,
        app.get("/nothing").await,
        app.get("/health/ready").await,
    ] {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{answer:?}");
    }
}

/// HTTP/2 without TLS, as gateways speak it: many requests on one connection, each answered as over HTTP/1.1.
#[tokio::test]
async fn http2_with_prior_knowledge_works() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 50).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let order = async |_| {
        let order = client.post(format!("http://{}/api/orders", app.address()));
        let answer = order.json(&json!({"product_id": product, "total": 1})).send().await.unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert!(answer.headers().contains_key("x-request-id"));
        answer.status().as_u16()
    };
    let mut statuses = BTreeMap::<_, u32>::new();
    for status in futures_util::future::join_all((0..60).map(order)).await {
        *statuses.entry(status).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(201, 50), (400, 10)]));
}

#[tokio::test]
async fn references_use_the_public_url() {
    let location = async |app: &App, prefix: &[(&str, &str)]| {
        let product = app.create_stocked("Kaos Polos", 1).await;
        let body = json!({"product_id": product, "total": 1}).to_string();
        let headers: String = prefix.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut wire = RawConnection::open(app).await;
        let length = body.len();
        wire.send(
            format!(
                "POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\n{headers}\
                 Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        )
        .await;
        let (status, headers, body) = wire.read().await.unwrap();
        assert_eq!(status, 201);
        let order: Value = serde_json::from_slice(&body).unwrap();
        let path = format!("/api/orders/{}", order["data"]["id"].as_str().unwrap());
        headers["location"].to_str().unwrap().strip_suffix(&path).expect("another order").to_owned()
    };
    let prefix = [("X-Forwarded-Prefix", "/antre")];
    let app = App::start(Pair::Embedded).await;
    assert_eq!(location(&app, &prefix).await, "", "nobody is trusted unless it is said");

    let app = App::start_with(Pair::Embedded, &[("TRUSTED_PROXIES", "10.0.0.1, 127.0.0.0/8")]).await;
    assert_eq!(location(&app, &prefix).await, "/antre");
    assert_eq!(location(&app, &[]).await, "");
    assert_eq!(location(&app, &[("X-Forwarded-Prefix", "//evil.example")]).await, "");

    let url = [("PUBLIC_URL", "https://shop.example/antre/"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let app = App::start_with(Pair::Embedded, &url).await;
    assert_eq!(location(&app, &[("X-Forwarded-Prefix", "/other")]).await, "https://shop.example/antre");
    app.create_product("Kaos Garis").await;
    let mut wire = RawConnection::open(&app).await;
    wire.send(b"GET /api/products?limit=1 HTTP/1.1\r\nHost: antre\r\n\r\n").await;
    let (_, headers, _) = wire.read().await.unwrap();
    let link = headers["link"].to_str().unwrap();
    assert!(link.starts_with("<https://shop.example/antre/api/products?limit=1&after="), "{link}");
}

/// Nobody writes lines into the log, or makes one read as another.
#[tokio::test]
async fn input_of_clients_is_escaped_in_the_log() {
    let app = App::start_with(Pair::Embedded, &[("RUST_LOG", "antre=debug")]).await;
    let (status, ..) = told(
        &app,
        "GET /a\u{202e}b\u{85}c HTTP/1.1\r\nHost: antre\r\nx-request-id: a\u{202e}b\r\n\r\n".as_bytes(),
    )
    .await;
    assert_eq!(status, 404);
    logged(&app, "/a\\u{202e}b\\u{85}c").await;
    assert!(!app.log().contains(['\u{202e}', '\u{85}']));
}

/// What is idle is closed at once, and what the process does is always logged.
#[tokio::test]
async fn shutdown_is_logged_and_does_not_wait_for_idle_clients() {
    let mut app = App::start(Pair::Embedded).await;
    for n in 1..=4 {
        let mut idle = RawConnection::open(&app).await;
        idle.send(LIVE).await;
        assert_eq!(idle.read().await.unwrap().0, 200);
        let _silent = RawConnection::open(&app).await;
        let mut late = RawConnection::open(&app).await;
        late.send(b"GET /health/live HTTP").await;
        let asked = Instant::now();
        assert_eq!(app.terminate().await.code(), Some(0));
        assert!(asked.elapsed() < TIMEOUT / 10, "it took {:?}", asked.elapsed());
        assert!(idle.read().await.is_none());
        assert_eq!(app.log().matches("stopping").count(), n);
        app.restart().await;
    }
}
