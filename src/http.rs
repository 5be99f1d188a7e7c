//! The REST API, whose contract is `apispec.json`, and the pages for people beside it.

mod api;
mod asset;
mod body;
mod connection;
mod dashboard;
mod docs;
mod envelope;
mod errors;
mod health;
mod ledger;
mod metrics;
mod order_list;
mod orders;
mod origin;
mod page;
mod preferences;
mod products;
mod public_url;
mod query;
mod readiness;
mod reason;
mod route_names;
mod server;
mod site;
mod socket;
mod terms;
mod time;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{Method, Uri},
    routing::{MethodRouter, get, post},
};

use envelope::{ApiError, Reason};
use metrics::Exposition;
use route_names::RouteNames;

use crate::monitor::metrics::{HttpMetrics, Metrics};

pub use api::Api;
pub use dashboard::viewers::Dashboard;
pub use docs::CONTRACT;
pub use health::Probes;
pub use public_url::{Links, PublicUrl, TrustedProxies};
pub use reason::error_reasons;
pub use server::{Server, listen};
pub use site::Site;

/// Every path of the contract with its handlers. A test compares it with `apispec.json`.
pub fn routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/api/products", get(products::list).post(products::create)),
        ("/api/products/{productId}", get(products::show).patch(products::update).delete(products::archive)),
        ("/api/products/{productId}/inventory", get(products::inventory).put(products::recount)),
        ("/api/products/{productId}/inventory/adjustments", post(ledger::adjust)),
        ("/api/products/{productId}/inventory/movements", get(ledger::movements)),
        ("/api/products/{productId}/terms", get(terms::show).put(terms::set)),
        ("/api/orders", post(orders::place).get(order_list::list)),
        ("/api/orders/{orderId}", get(orders::show)),
        ("/api/orders/{orderId}/payment", post(orders::pay)),
        ("/api/orders/{orderId}/cancellation", post(orders::cancel)),
        ("/api/orders/{orderId}/extension", post(orders::extend)),
        ("/api/orders/{orderId}/return", post(orders::take_back)),
        ("/health/live", get(health::live)),
        ("/health/ready", get(health::ready)),
        ("/apispec.json", get(docs::contract)),
    ]
}

/// What an API has for people and their tools. It is not a part of the contract: it may change with any release.
pub fn operator_routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/", get(dashboard::shop)),
        ("/products/{productId}", get(dashboard::product)),
        ("/orders", get(dashboard::find_order)),
        ("/orders/{orderId}", get(dashboard::order)),
        ("/dashboard/events", get(dashboard::shop_events)),
        ("/dashboard/events/products/{productId}", get(dashboard::product_events)),
        ("/dashboard/{file}", get(dashboard::file)),
        ("/docs", get(docs::viewer::show)),
        ("/docs/", get(docs::viewer::without_slash)),
        ("/docs/{file}", get(docs::viewer::file)),
        ("/metrics", get(metrics::show)),
    ]
}

/// The whole API, and the pages for people.
pub fn site(api: Api, links: Links) -> Site {
    let http_metrics = api.metrics.http.clone();
    build([routes(), operator_routes()].concat(), api, links, http_metrics)
}

/// What a worker serves: its health and its metrics.
pub fn worker_site(probes: Probes, metrics: Arc<Metrics>) -> Site {
    let routes = vec![
        ("/health/live", get(health::live)),
        ("/health/ready", get(health::ready)),
        ("/metrics", get(metrics::show)),
    ];
    let http_metrics = metrics.http.clone();
    build(routes, Exposition { metrics, probes }, Links::default(), http_metrics)
}

fn build<S: Clone + Send + Sync + 'static>(
    routes: Vec<(&'static str, MethodRouter<S>)>,
    state: S,
    links: Links,
    metrics: Arc<HttpMetrics>,
) -> Site {
    let names = RouteNames::new(routes.iter().map(|(path, _)| *path), metrics);
    let router = routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(route_not_found)
        .with_state(state);
    Site { router, links: Arc::new(links), routes: Arc::new(names) }
}

async fn route_not_found(uri: Uri, request: Request) -> ApiError {
    body::drain_body(request).await;
    ApiError::route_not_found(uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri, request: Request) -> ApiError {
    body::drain_body(request).await;
    ApiError::new(
        Reason::MethodNotAllowed,
        format!("{method} is not for {}; see the Allow header", uri.path()),
    )
}
