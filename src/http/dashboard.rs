//! The dashboard: what an operator sees of a sale, live.
//!
//! The server renders every page, and what changes of it once a second ([`viewers`]). The figures are those of the
//! [`Board`](crate::monitor::board::Board); only orders are read from the database, as a person asks for them.

mod chart;
mod figures;
mod files;
mod frame;
mod listing;
mod order;
mod piece;
mod product;
mod query;
mod shop;
mod stock;
mod view;
pub(super) mod viewers;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use url::form_urlencoded;

use self::{
    frame::Frame,
    listing::{Found, Listing, ListingQuery},
    order::OrderPage,
    product::ProductPage,
    query::ShopQuery,
    shop::Shop,
    view::{Content, View},
    viewers::TooManyViewers,
};
use super::{
    api::Api,
    envelope::{ApiError, Reason},
    public_url::Root,
    query::ProductPath,
};
use crate::domain::ids::{OrderId, ProductId};

/// How often a page of live figures loads itself again where there is no script.
const RELOAD_SECONDS: u32 = 5;

/// `GET /`
pub(super) async fn shop(State(api): State<Api>, Root(root): Root, uri: Uri) -> Response {
    let query = ShopQuery::parse(uri.query().unwrap_or_default());
    let view = View { root, content: Content::Shop(query.to_text()) };
    let content = Shop::read(api.dashboard.board(), &view.root, &query).content();
    Frame { is_home: true, ..frame("The shop", &view.root) }.live(&view).around(&content)
}

/// `GET /products/{productId}`
pub(super) async fn product(
    State(api): State<Api>,
    Root(root): Root,
    Path(id): Path<String>,
    uri: Uri,
) -> Response {
    let Ok(id) = id.parse::<ProductId>() else { return no_such_product(&root, &id) };
    let now = api.dashboard.clock().now();
    let query = ListingQuery::parse(uri.query().unwrap_or_default());
    let mut product = ProductPage::read(api.dashboard.board(), id, now);
    if !product.is_known() {
        // The board learns of a product once something happens to it, or once it has read the catalogue.
        let seen = api.dashboard.clock().now();
        match api.catalog.inventory(id).await {
            Ok(Some((found, _))) if found.archived_at.is_some() => {} // it is on no board; its orders are listed
            Ok(Some((found, inventory))) => {
                api.dashboard.board().learn([(found, Some(inventory))], seen);
                product = ProductPage::read(api.dashboard.board(), id, now);
            }
            Ok(None) => return no_such_product(&root, &id.to_string()),
            Err(_) => {} // the page says that its figures are not known, and the list of orders why
        }
    }
    let found = api.orders.list(query.list(id, now)).await;
    let found = match found {
        Ok(page) => Ok(Found { rows: page.rows, next: page.next }),
        Err(error) => Err(ApiError::from(error).message().to_owned()),
    };
    let listing = Listing { query, found };
    let view = View { root, content: Content::Product(id) };
    let title = product.name();
    frame(&title, &view.root).live(&view).around(&product.content(&view.root, &listing))
}

/// `GET /orders/{orderId}`
pub(super) async fn order(State(api): State<Api>, Root(root): Root, Path(text): Path<String>) -> Response {
    let Ok(id) = text.parse::<OrderId>() else {
        return unknown(
            &Frame { order_id: &text, ..frame("No such order", &root) },
            &order::unknown(&root, &text),
        );
    };
    match api.orders.status(id).await {
        Ok(Some(order)) => {
            let page = OrderPage { order, at: api.dashboard.clock().now() };
            let reload_seconds = page.is_open().then_some(RELOAD_SECONDS);
            Frame { reload_seconds, order_id: &text, ..frame("Order", &root) }.around(&page.content(&root))
        }
        Ok(None) => unknown(
            &Frame { order_id: &text, ..frame("No such order", &root) },
            &order::unknown(&root, &text),
        ),
        Err(error) => {
            let error = ApiError::from(error);
            let frame =
                Frame { reload_seconds: Some(RELOAD_SECONDS), order_id: &text, ..frame("Order", &root) };
            let content = problem(&root, "The order cannot be read now", error.message());
            with_status(StatusCode::SERVICE_UNAVAILABLE, frame.around(&content))
        }
    }
}

/// `GET /orders?id=`: leads to the order's page.
pub(super) async fn find_order(Root(root): Root, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default().as_bytes();
    let given = form_urlencoded::parse(query).find(|(name, _)| name == "id").map(|(_, id)| id);
    let id = given.as_deref().unwrap_or_default().trim().to_lowercase();
    match id.parse::<OrderId>() {
        Ok(found) => {
            // Relative, so that it is right behind a proxy that adds a prefix.
            (StatusCode::SEE_OTHER, [(header::LOCATION, format!("./orders/{found}"))]).into_response()
        }
        Err(_) => {
            unknown(&Frame { order_id: &id, ..frame("No such order", &root) }, &order::unknown(&root, &id))
        }
    }
}

/// `GET /dashboard/events`
pub(super) async fn shop_events(State(api): State<Api>, root: Root, uri: Uri) -> Result<Response, ApiError> {
    let query = ShopQuery::parse(uri.query().unwrap_or_default());
    events(&api, View { root: root.of_page("./"), content: Content::Shop(query.to_text()) })
}

/// `GET /dashboard/events/products/{productId}`
pub(super) async fn product_events(
    State(api): State<Api>,
    root: Root,
    ProductPath(id): ProductPath,
) -> Result<Response, ApiError> {
    events(&api, View { root: root.of_page("../"), content: Content::Product(id) })
}

fn events(api: &Api, view: View) -> Result<Response, ApiError> {
    let events = api.dashboard.watch(view).map_err(|TooManyViewers| {
        let message =
            "too many browsers watch this process already; close some, or open the dashboard of another API";
        ApiError::new(Reason::Overloaded, message)
    })?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        // Proxies that buffer would hold the events back.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// `GET /dashboard/{file}`
pub(super) async fn file(
    Path(name): Path<String>,
    uri: Uri,
    request: HeaderMap,
) -> Result<Response, ApiError> {
    let file = files::file(&name).ok_or_else(|| ApiError::route_not_found(uri.path()))?;
    Ok(file.answer(&request, uri.query()))
}

fn frame<'a>(title: &'a str, root: &'a str) -> Frame<'a> {
    Frame { title, root, is_home: false, events: None, reload_seconds: None, order_id: "" }
}

impl Frame<'_> {
    /// With events, or loaded again where there is no script.
    fn live(self, view: &View) -> Self {
        Self { events: Some(view.events()), reload_seconds: Some(RELOAD_SECONDS), ..self }
    }
}

fn no_such_product(root: &str, id: &str) -> Response {
    let content = problem(root, "No such product", &format!("There is no product {id}."));
    unknown(&frame("No such product", root), &content)
}

fn problem(root: &str, title: &str, text: &str) -> Markup {
    html! {
        nav.crumbs aria-label="Way back" { a href=(root) { "Dashboard" } }
        h1 { (title) }
        section.card { p { (text) } }
    }
}

fn unknown(frame: &Frame<'_>, content: &Markup) -> Response {
    with_status(StatusCode::NOT_FOUND, frame.around(content))
}

fn with_status(status: StatusCode, mut page: Response) -> Response {
    *page.status_mut() = status;
    page
}
