//! The pages for people as HTTP: what anybody may ask for, how it may be cached, and what a browser may do with it.

use std::io::Read;

use flate2::read::GzDecoder;
use reqwest::{
    Method, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
        HeaderMap, IF_NONE_MATCH,
    },
};
use serde_json::Value;
use sqlx::Connection;

use crate::support::harness::{App, Pair, eventually};

/// The answer to a GET with these headers.
async fn get(app: &App, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
    ask(app, Method::GET, path, headers).await
}

async fn ask(
    app: &App,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Vec<u8>) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, format!("http://{}{path}", app.address()));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    (answer.status(), answer.headers().clone(), answer.bytes().await.unwrap().to_vec())
}

async fn page(app: &App, path: &str) -> String {
    let (status, headers, body) = get(app, path, &[]).await;
    assert_eq!(status, 200, "{path}");
    assert_is_page(path, &headers);
    String::from_utf8(body).unwrap()
}

/// Nothing from another host, no script and no style in the page itself, no other site's frame.
fn assert_is_page(path: &str, headers: &HeaderMap) {
    assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8", "{path}");
    assert_eq!(headers[CACHE_CONTROL], "no-store", "{path}");
    assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
    let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
    for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.split(';').any(|given| given.trim() == rule), "{path}: {policy}");
    }
}

/// The files that a page loads, as they are written in it.
fn files(page: &str) -> Vec<String> {
    let links = page.split("<link").skip(1).chain(page.split("<script").skip(1));
    let values = links.filter_map(|tag| {
        let tag = tag.split('>').next()?;
        let value = tag.split_once("href=\"").or(tag.split_once("src=\""))?.1;
        Some(value.split('"').next()?.replace("&amp;", "&"))
    });
    values.collect()
}

/// Each file of a page is there, is compressed for browsers, and is not asked for again until it changes.
async fn assert_files(app: &App, path: &str, kinds: &[&str]) {
    let files = files(&page(app, path).await);
    assert_eq!(files.len(), kinds.len(), "{files:?}");
    for (file, kind) in files.iter().zip(kinds) {
        assert!(!file.starts_with('/') && !file.contains(':'), "relative, for proxies with a prefix: {file}");
        let url = format!("/{}", file.trim_start_matches("./"));
        let (status, plain_headers, plain) = get(app, &url, &[]).await;
        assert_eq!(status, 200, "{url}");
        assert_eq!(plain_headers[CONTENT_TYPE], *kind, "{url}");
        assert_eq!(plain_headers[CACHE_CONTROL], "public, max-age=31536000, immutable", "{url}");

        let (_, headers, zipped) = get(app, &url, &[(ACCEPT_ENCODING.as_str(), "gzip, br")]).await;
        assert_eq!(headers[CONTENT_ENCODING], "gzip", "{url}");
        let mut unpacked = Vec::new();
        GzDecoder::new(&*zipped).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain, "{url}");
        assert_ne!(headers[ETAG], plain_headers[ETAG], "{url}");

        let tag = plain_headers[ETAG].to_str().unwrap();
        let (status, _, body) = get(app, &url, &[(IF_NONE_MATCH.as_str(), tag)]).await;
        assert_eq!((status.as_u16(), body.len()), (304, 0), "{url}");
        let without_version = url.split('?').next().unwrap();
        let (_, headers, _) = get(app, without_version, &[]).await;
        assert_eq!(headers[CACHE_CONTROL], "no-cache", "{url}");
    }
}

async fn assert_reads_only(app: &App, path: &str) {
    let (got, get_headers, _) = get(app, path, &[]).await;
    let (status, headers, body) = ask(app, Method::HEAD, path, &[]).await;
    assert_eq!((status, body.len()), (got, 0), "{path}");
    assert_eq!(headers[CONTENT_TYPE], get_headers[CONTENT_TYPE], "{path}");
    let (status, headers, body) = ask(app, Method::POST, path, &[]).await;
    assert_eq!(status, 405, "{path}");
    assert_eq!(headers[ALLOW], "GET,HEAD", "{path}");
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap()["data"]["reason"],
        "method_not_allowed",
        "{path}"
    );
}

#[tokio::test]
async fn the_contract_is_shown_by_a_viewer_that_comes_with_the_binary() {
    let app = App::start_with(Pair::Embedded, &[("TRUSTED_PROXIES", "127.0.0.1")]).await;
    let css = "text/css; charset=utf-8";
    let script = "text/javascript; charset=utf-8";
    assert_files(&app, "/docs", &["image/svg+xml", css, css, script, script]).await;
    assert!(page(&app, "/docs").await.contains("data-contract=\"apispec.json\""));
    assert_reads_only(&app, "/docs").await;
    assert_reads_only(&app, "/docs/viewer.js").await;
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for prefix in ["", "/antre"] {
        let request = client.get(format!("http://{}/docs/", app.address()));
        let answer = request.header("x-forwarded-prefix", prefix).send().await.unwrap();
        // Relative: below whatever prefix the browser asked.
        let found = (answer.status().as_u16(), answer.headers()["location"].to_str().unwrap());
        assert_eq!(found, (308, "../docs"), "{prefix}");
    }
    assert!(page(&app, "/docs/").await.contains("data-contract"), "a browser follows it");
    for unknown in ["/docs//", "/docs/x", "/docs/..%2fdocs.rs", "/docs/viewer.js/x"] {
        let (status, _, body) = get(&app, unknown, &[]).await;
        assert_eq!(status, 404, "{unknown}");
        assert_eq!(
            serde_json::from_slice::<Value>(&body).unwrap()["data"]["reason"],
            "route_not_found",
            "{unknown}"
        );
    }
}

const HOSTILE: &str = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>";

/// Nothing of a hostile text is markup.
fn assert_is_escaped(page: &str) {
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
    for markup in ["<script>", "<img"] {
        assert!(!page.contains(markup), "{page}");
    }
}

#[tokio::test]
async fn the_dashboard_comes_with_the_binary_and_changes_nothing() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = app.order(product, 1).await.id().to_owned();
    let kinds = ["image/svg+xml", "text/css; charset=utf-8", "text/javascript; charset=utf-8"];
    assert_files(&app, "/", &kinds).await;
    for path in [
        "/".to_owned(),
        "/?q=x&sort=name&page=9&show=%00".to_owned(),
        format!("/products/{product}"),
        format!("/products/{product}?since=all&status=reserved&after={order}"),
        format!("/orders/{order}"),
    ] {
        let text = page(&app, &path).await;
        assert!(text.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{path}");
        assert_reads_only(&app, &path).await;
        for inline in ["<style", " style=", "onclick", "javascript:", "http://", "https://"] {
            // The empty shop shows a call as an example.
            let text = text.replace("http://localhost:3000", "").replace("http-equiv", "");
            assert!(!text.contains(inline), "{path} has {inline}");
        }
    }
    assert_reads_only(&app, "/dashboard/page.css").await;
    assert_eq!(app.inventory(product).await, [5, 4, 1]);
}

#[tokio::test]
async fn what_people_wrote_is_text_on_every_page() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked(HOSTILE, 5).await;
    assert_is_escaped(&page(&app, &format!("/products/{product}")).await);
    let shop = eventually("the shop does not show the product", async || {
        let shop = page(&app, "/").await;
        shop.contains("alert(1)").then_some(shop)
    });
    assert_is_escaped(&shop.await);
    assert!(page(&app, "/?q=%22%3E%3Cscript%3E").await.contains("value=\"&quot;&gt;&lt;script&gt;\""));
    for path in
        ["/orders/%3Cscript%3Ealert(1)", "/orders?id=%3Cscript%3Ealert(1)", "/products/%3Cscript%3Ealert(1)"]
    {
        let (status, headers, body) = get(&app, path, &[]).await;
        assert_eq!(status, 404, "{path}");
        assert_is_page(path, &headers);
        assert_is_escaped(&String::from_utf8(body).unwrap());
    }
}

#[tokio::test]
async fn an_order_is_found_by_its_id_and_its_page_tells_its_life() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = app.order(product, 2).await.id().to_owned();
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let find = format!("http://{}/orders?id=+{}+", app.address(), order.to_uppercase());
    let found = client.get(find).send().await.unwrap();
    assert_eq!(found.status(), 303);
    assert_eq!(found.headers()["location"], format!("./orders/{order}"));

    let order_page = format!("/orders/{order}");
    let reserved = page(&app, &order_page).await;
    assert!(reserved.contains(">reserved<") && reserved.contains("unless it is paid"), "{reserved}");
    let listed = page(&app, &format!("/products/{product}?status=reserved")).await;
    assert!(listed.contains(&format!("href=\"../orders/{order}\"")), "{listed}");
    let newer = app.order(product, 1).await.id().to_owned();
    let both = page(&app, &format!("/products/{product}")).await;
    let place =
        |id: &str| both.find(&format!("id=\"order-{id}\"")).unwrap_or_else(|| panic!("no {id}: {both}"));
    assert!(place(&newer) < place(&order), "the newest is first");
    assert_eq!(app.pay(&order).await.status, 200);
    let paid = page(&app, &order_page).await;
    assert!(paid.contains(">paid<") && !paid.contains("data-refresh"), "{paid}");
    let listed = page(&app, &format!("/products/{product}?status=reserved")).await;
    assert!(!listed.contains(&order), "{listed}");

    for unknown in [
        "/orders/01980000-0000-7000-8000-000000000000",
        "/orders/x",
        "/orders",
        "/products/99",
        "/products/x",
    ] {
        let (status, headers, _) = get(&app, unknown, &[]).await;
        assert_eq!(status, 404, "{unknown}");
        assert_is_page(unknown, &headers);
    }
}

#[tokio::test]
async fn an_order_without_a_verdict_has_a_page() {
    let app = App::start_with(Pair::Embedded, &[("ORDER_TIMEOUT", "20ms")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let database = app.lock_database().await;
    let placed = app.order(product, 3).await;
    assert_eq!(placed.status, 202);
    let pending = page(&app, &format!("/orders/{}", placed.id())).await;
    assert!(pending.contains(">pending<") && pending.contains("Not decided yet"), "{pending}");
    database.close().await.unwrap();
    app.verdict(placed.header("location")).await;
    assert!(page(&app, &format!("/orders/{}", placed.id())).await.contains(">reserved<"));
}

#[tokio::test]
async fn a_proxy_with_a_prefix_gets_links_below_it() {
    let app = App::start_with(Pair::Embedded, &[("TRUSTED_PROXIES", "127.0.0.1")]).await;
    let product = app.create_product("Kaos Polos").await;
    let prefixed = [("x-forwarded-prefix", "/antre/")];
    for path in ["/".to_owned(), format!("/products/{product}")] {
        let (_, _, body) = get(&app, &path, &prefixed).await;
        let text = String::from_utf8(body).unwrap();
        let links: Vec<_> =
            text.split(" href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(links.len() > 5 && text.contains("data-events=\"/antre/dashboard/events"), "{text}");
        for link in links.into_iter().chain(files(&text).iter().map(String::as_str)) {
            assert!(link.starts_with("/antre/") || link == "#content", "{path}: {link}");
        }
    }
    let order = "01980000-0000-7000-8000-000000000000";
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let find = client.get(format!("http://{}/orders?id={order}", app.address()));
    let found = find.header(prefixed[0].0, prefixed[0].1).send().await.unwrap();
    assert_eq!(found.headers()["location"], format!("./orders/{order}"), "relative, so below any prefix");
    let mut events = Events::open(&app, "/dashboard/events", &prefixed).await;
    let links = events.next().await.unwrap().to_string();
    assert!(links.contains("/antre/") && !links.contains("\\\"./"), "{links}");
}

/// The events of a page.
struct Events {
    answer: reqwest::Response,
    received: String,
}

impl Events {
    async fn open(app: &App, path: &str, headers: &[(&str, &str)]) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("http://{}{path}", app.address()));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.unwrap();
        Self { answer, received: String::new() }
    }

    /// The data of the next event; `None`: the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.received.split_once("\n\n") {
                let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event}"));
                let data = serde_json::from_str(data).unwrap();
                self.received = rest.to_owned();
                return Some(data);
            }
            let chunk = self.answer.chunk().await.unwrap()?;
            self.received.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

fn ids(event: &Value) -> Vec<&str> {
    event["changed"].as_array().unwrap().iter().map(|change| change[0].as_str().unwrap()).collect()
}

#[tokio::test]
async fn events_tell_all_of_a_page_and_then_what_changes_until_the_server_stops() {
    let mut app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 50).await;
    page(&app, &format!("/products/{product}")).await; // now the board knows it
    for (path, pieces) in [
        (
            "/dashboard/events",
            &["vitals", "alerts", "figures", "charts", "processes", "count", "rows", "pager"][..],
        ),
        ("/dashboard/events/products/1", &["title", "state", "stock", "figures", "charts"]),
    ] {
        let mut events = Events::open(&app, path, &[]).await;
        let headers = events.answer.headers();
        assert_eq!(headers[CONTENT_TYPE], "text/event-stream");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        let first = events.next().await.unwrap();
        assert_eq!(ids(&first), pieces, "{path}");
        assert_eq!(first["release"], env!("CARGO_PKG_VERSION"));
        let text =
            page(&app, path.strip_prefix("/dashboard/events").filter(|path| !path.is_empty()).unwrap_or("/"))
                .await;
        for id in ids(&first) {
            assert!(text.contains(&format!("id=\"{id}\"")), "{id} is not on the page of {path}");
        }
        for _ in 0..2 {
            let next = events.next().await.unwrap();
            assert!(ids(&next).iter().all(|id| *id != "pager"), "what stays is not told again: {next}");
        }
    }
    let (status, _, _) = get(&app, "/dashboard/events/products/x", &[]).await;
    assert_eq!(status, 400);

    let mut open = Events::open(&app, "/dashboard/events", &[]).await;
    open.next().await.unwrap();
    let began = std::time::Instant::now();
    let (exit, ()) = tokio::join!(app.terminate(), async { while open.next().await.is_some() {} });
    assert_eq!(exit.code(), Some(0));
    assert!(began.elapsed().as_secs() < 5, "an open page holds the stop up: {:?}", began.elapsed());
}

#[tokio::test]
async fn the_number_of_viewers_is_bounded() {
    let app = App::start(Pair::Embedded).await;
    let mut all = Vec::new();
    for at in 0..100 {
        let mut events = Events::open(&app, &format!("/dashboard/events?page={}", at % 3), &[]).await;
        assert!(events.next().await.is_some());
        all.push(events);
    }
    let (status, _, body) = get(&app, "/dashboard/events", &[]).await;
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status.as_u16(), &error["data"]["reason"]), (503, &Value::from("overloaded")));
    assert!(error["data"]["message"].as_str().unwrap().contains("too many browsers"), "{error}");
    // A page is still served, and one that leaves makes room.
    page(&app, "/").await;
    all.pop();
    eventually("the place of a viewer that left stays taken", async || {
        let mut events = Events::open(&app, "/dashboard/events", &[]).await;
        if events.answer.status() != 200 {
            return None;
        }
        events.next().await
    })
    .await;
}
