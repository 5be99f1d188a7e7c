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

use crate::support::harness::{App, Pair};

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
    let app = App::start(Pair::Embedded).await;
    let css = "text/css; charset=utf-8";
    let script = "text/javascript; charset=utf-8";
    assert_files(&app, "/docs", &[css, css, script, script]).await;
    assert!(page(&app, "/docs").await.contains("data-contract=\"apispec.json\""));
    assert_reads_only(&app, "/docs").await;
    assert_reads_only(&app, "/docs/viewer.js").await;
    for unknown in ["/docs/", "/docs/x", "/docs/..%2fdocs.rs", "/docs/viewer.js/x"] {
        let (status, _, body) = get(&app, unknown, &[]).await;
        assert_eq!(status, 404, "{unknown}");
        assert_eq!(
            serde_json::from_slice::<Value>(&body).unwrap()["data"]["reason"],
            "route_not_found",
            "{unknown}"
        );
    }
}
