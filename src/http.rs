//! The REST API: `apispec.json` is its contract, and this is all of it.

mod body;
mod docs;
mod envelope;
mod health;
mod orders;
mod preferences;
mod products;
mod query;

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    Router,
    extract::{FromRef, Request},
    http::{HeaderName, HeaderValue, Method, Uri},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use futures_util::FutureExt;
use tower::Service;

use crate::{lookup::Lookup, order::OrderId, placement::Placement, store::Store};
use envelope::{ApiError, Logged, Reason};

pub use docs::CONTRACT;
pub use health::Probes;

/// What every handler can reach.
#[derive(Clone)]
pub struct Api {
    /// Products, inventories and orders on record.
    pub store: Arc<dyn Store>,
    /// Finds orders on record.
    pub lookup: Arc<Lookup<OrderId>>,
    /// The way into the lanes.
    pub placement: Arc<Placement>,
    /// Whether the process can do its work.
    pub probes: Probes,
}

impl FromRef<Api> for Probes {
    fn from_ref(api: &Api) -> Self {
        api.probes.clone()
    }
}

/// Every path of the contract and what answers there. A test holds it against `apispec.json`.
pub fn routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/api/products", get(products::list).post(products::create)),
        ("/api/products/{productId}", get(products::show)),
        ("/api/products/{productId}/inventory", get(products::inventory).put(products::recount)),
        ("/api/orders", post(orders::place).get(orders::list)),
        ("/api/orders/{orderId}", get(orders::show)),
        ("/api/orders/{orderId}/payment", post(orders::pay)),
        ("/api/orders/{orderId}/cancellation", post(orders::cancel)),
        ("/health/live", get(health::live)),
        ("/health/ready", get(health::ready)),
        ("/apispec.json", get(docs::contract)),
    ]
}

/// The whole API.
pub fn service(api: Api) -> Observed<Router> {
    finish(routes(), api)
}

/// What a worker answers: only how it is.
pub fn health_service(probes: Probes) -> Observed<Router> {
    finish(vec![("/health/live", get(health::live)), ("/health/ready", get(health::ready))], probes)
}

fn finish<S: Clone + Send + Sync + 'static>(
    routes: Vec<(&'static str, MethodRouter<S>)>,
    state: S,
) -> Observed<Router> {
    let router = routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(route_not_found)
        .with_state(state);
    Observed(router)
}

async fn route_not_found(uri: Uri, request: Request) -> ApiError {
    body::pass_over(request).await;
    ApiError::new(Reason::RouteNotFound, format!("there is nothing at {}; see /apispec.json", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri, request: Request) -> ApiError {
    body::pass_over(request).await;
    ApiError::new(
        Reason::MethodNotAllowed,
        format!("{method} is not for {}; see the Allow header", uri.path()),
    )
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each answer its `x-request-id`, answers for handlers that panic, and logs each error once.
///
/// Around the router, not a layer of it: each layer makes a box or three for every request, and there is nothing here
/// that a route would have to know.
#[derive(Clone, Debug)]
pub struct Observed<S>(S);

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let began = Instant::now();
        let request_id = request_id(&request);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let answering = AssertUnwindSafe(self.0.call(request)).catch_unwind();
        Box::pin(async move {
            let mut response = match answering.await {
                Ok(answered) => answered?,
                Err(_) => ApiError::internal("a handler panicked").into_response(),
            };
            let (status, id) = (response.status().as_u16(), request_id.to_str().unwrap_or_default());
            if let Some(Logged { reason, cause }) = response.extensions().get() {
                let cause = cause.as_deref();
                if status >= 500 {
                    tracing::warn!(request_id = id, %method, %uri, status, reason = reason.as_str(), cause, "answered with an error");
                } else {
                    tracing::debug!(request_id = id, %method, %uri, status, reason = reason.as_str(), "answered with an error");
                }
            } else {
                tracing::debug!(request_id = id, %method, %uri, status, elapsed = ?began.elapsed(), "answered");
            }
            response.headers_mut().insert(REQUEST_ID, request_id);
            Ok(response)
        })
    }
}

/// The client's id when it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID);
    if let Some(id) = given
        && (1..=128).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let mut text = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
}
