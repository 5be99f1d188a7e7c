//! What every request passes before its handler, and every answer after it.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Version, header, uri::Authority},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::body::Incoming;
use tower::Service;

use super::{
    body,
    connection::{Connection, Exchange, TrackedBody},
    envelope::{ApiError, ErrorReport, Reason},
    public_url::Links,
    route_names::RouteNames,
};
use crate::{
    domain::origin::{RequestId, TraceContext},
    telemetry::{ms, traces::RequestSpan},
};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The router and what is around it: gives each answer its `x-request-id` and the common headers, answers for handlers that
/// panic, and logs each error once.
///
/// Around the router, not a layer of it: each layer allocates up to three boxes for every request, and no route needs to
/// know of this.
#[derive(Clone, Debug)]
pub struct Site {
    pub(super) router: Router,
    pub(super) links: Arc<Links>,
    pub(super) routes: Arc<RouteNames>,
}

/// The site for the requests of one connection.
pub(super) struct ConnectionService {
    pub(super) site: Site,
    pub(super) connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<TrackedBody<Body, Exchange>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = self.connection.exchange();
        let mut request = request.map(|body| Body::new(exchange.track_request(body)));
        let base = self.site.links.base(self.connection.peer, request.headers());
        if let Some(prefix) = self.site.links.forwarded_prefix(self.connection.peer, request.headers()) {
            request.extensions_mut().insert(prefix);
        }
        let (router, routes) = (self.site.router.clone(), self.site.routes.clone());
        Box::pin(async move {
            let mut response = answer(router, &routes, request).await;
            if let Some(base) = base {
                Links::rebase(&base, response.headers_mut());
            }
            Ok(response.map(|body| exchange.track_response(body)))
        })
    }
}

async fn answer(mut router: Router, routes: &RouteNames, mut request: Request) -> Response {
    let began = Instant::now();
    let request_id = give_request_id(&mut request);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let span = RequestSpan::begin(method.as_str(), uri.path(), || trace_context(request.headers()));
    if let Some(context) = span.context() {
        give_trace_context(&mut request, &context);
    }
    let handling = async move {
        if let Err(error) = check_host(&request) {
            body::drain_body(request).await;
            return error.into_response();
        }
        match router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    let mut response = match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::internal("a handler panicked").into_response(),
    };
    let (status, id) = (response.status().as_u16(), request_id.to_str().unwrap_or_default());
    let error = response.extensions().get().map(|ErrorReport { reason, .. }| reason.as_str());
    routes.metrics.answered(routes.of(uri.path()), method.as_str(), status, began.elapsed(), error);
    if let Some(ErrorReport { reason, cause }) = response.extensions().get() {
        let cause = cause.as_deref();
        if status >= 500 {
            if let Some(suppressed) = reason.due() {
                tracing::warn!(request_id = id, %method, %uri, status, reason = reason.as_str(), cause, elapsed_ms = ms(began.elapsed()), suppressed, "answered with an error");
            }
        } else {
            tracing::debug!(request_id = id, %method, %uri, status, reason = reason.as_str(), elapsed_ms = ms(began.elapsed()), "answered with an error");
        }
    } else {
        tracing::debug!(request_id = id, %method, %uri, status, elapsed_ms = ms(began.elapsed()), "answered");
    }
    span.end(status, id);
    add_common_headers(response.headers_mut(), request_id);
    response
}

/// The headers of every answer.
fn add_common_headers(headers: &mut HeaderMap, request_id: HeaderValue) {
    // Stock and orders change at any time. A handler whose answer may be cached says so.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID, request_id);
}

/// The place of a request in its client's trace (W3C Trace Context).
pub(super) fn trace_context(headers: &HeaderMap) -> Option<TraceContext> {
    let context: TraceContext = headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()?;
    let states: Vec<_> = headers.get_all(TRACESTATE).iter().filter_map(|state| state.to_str().ok()).collect();
    Some(context.with_state(Some(&states.join(","))))
}

/// From now on the request's place in the trace is this.
fn give_trace_context(request: &mut Request, context: &TraceContext) {
    let Ok(parent) = HeaderValue::try_from(context.to_string()) else { return };
    request.headers_mut().insert(TRACEPARENT, parent);
    match context.state().and_then(|state| HeaderValue::try_from(state).ok()) {
        Some(state) => drop(request.headers_mut().insert(TRACESTATE, state)),
        None => drop(request.headers_mut().remove(TRACESTATE)),
    }
}

/// HTTP/1.1 requires exactly one `Host` (RFC 9112, section 3.2): of two, a proxy and this server could each believe another.
fn check_host(request: &Request) -> Result<(), ApiError> {
    let mut given = request.headers().get_all(header::HOST).iter();
    let problem = match (given.next(), given.next()) {
        (_, Some(_)) => "a request has one Host header, and this one has several",
        (None, None) if request.version() == Version::HTTP_11 => "the Host header is missing",
        (Some(host), None) if !is_host(host) => "the Host header must be a host, or host:port",
        _ => return Ok(()),
    };
    Err(ApiError::new(Reason::InvalidHost, problem))
}

fn is_host(value: &HeaderValue) -> bool {
    let text = value.as_bytes();
    // A client whose URL has no host sends an empty one.
    text.is_empty()
        || is_plain_host(text)
        || Authority::try_from(text).is_ok_and(|host| !host.as_str().contains('@'))
}

/// A name or an IPv4 address, perhaps with a port: what nearly all clients send. Such a host is always valid, so it need not be
/// parsed, which copies it.
fn is_plain_host(text: &[u8]) -> bool {
    let is_name = |name: &[u8]| {
        !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte))
    };
    match text.iter().position(|byte| *byte == b':') {
        None => is_name(text),
        Some(at) => {
            let port = &text[at + 1..];
            is_name(&text[..at]) && (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit)
        }
    }
}

/// The client's id if it is one, otherwise a new one, which the request then has too. It is a header rather than an extension:
/// the first extension of a request costs two allocations.
fn give_request_id(request: &mut Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID);
    if let Some(id) = given
        && id.to_str().is_ok_and(RequestId::is_valid)
    {
        return id.clone();
    }
    let id = new_request_id();
    request.headers_mut().insert(REQUEST_ID, id.clone());
    id
}

fn new_request_id() -> HeaderValue {
    let mut text = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
}

/// The answer to bytes that are no request, as bytes: the last answer on its connection.
pub(super) fn last_answer(error: &ApiError) -> Vec<u8> {
    let request_id = new_request_id();
    let id = request_id.to_str().unwrap_or_default();
    let (status, body) = error.to_json();
    tracing::debug!(
        request_id = id,
        status = status.as_u16(),
        reason = error.reason(),
        "answered with an error"
    );
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        headers.insert(header::DATE, date);
    }
    add_common_headers(&mut headers, request_id);
    let mut answer = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in &headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            answer.extend_from_slice(part);
        }
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(&body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_host_is_a_valid_authority() {
        for host in ["localhost", "127.0.0.1:3000", "shop.example", "a-b.example:1", "x:99999", "X.", "-"] {
            assert!(is_plain_host(host.as_bytes()), "{host}");
            let authority = Authority::try_from(host).unwrap();
            assert!(!authority.as_str().contains('@'));
        }
        for other in [
            "",
            ":",
            ":80",
            "a:",
            "a:b",
            "a:123456",
            "a:1:2",
            "[::1]:3000",
            "a@b",
            "a/b",
            "a b",
            "a_b",
            "\u{e9}",
        ] {
            assert!(!is_plain_host(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_host_is_a_host_with_a_port_or_none() {
        let valid = |text: &str| is_host(&HeaderValue::try_from(text).unwrap());
        for host in ["", "localhost", "localhost:3000", "[::1]:3000", "a_b.example"] {
            assert!(valid(host), "{host}");
        }
        for bad in ["user@host", "a b", "a/b", "http://a", "a:1:2"] {
            assert!(!valid(bad), "{bad}");
        }
    }
}
