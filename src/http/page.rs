//! What all pages for people have in common.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use maud::Markup;

/// Everything comes from this host, and nothing of it stands in the page itself: text that a page shows cannot become script
/// or style. Swagger UI has images as `data:`.
const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A page of HTML.
pub(super) fn page(markup: Markup) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SECURITY_POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, markup.into_string()).into_response()
}
