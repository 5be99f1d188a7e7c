//! The contract, for authors of clients: as a file, and in a viewer for people.

pub(super) mod viewer;

use std::sync::LazyLock;

use axum::{http::HeaderMap, response::Response};

use super::asset::Asset;

/// `apispec.json`: OpenAPI 3.0.3, the source of truth.
pub const CONTRACT: &str = include_str!("../../apispec.json");

/// `GET /apispec.json`
pub(super) async fn contract(request: HeaderMap) -> Response {
    static FILE: LazyLock<Asset> = LazyLock::new(|| Asset::new("application/json", CONTRACT.as_bytes()));
    FILE.answer(&request, None)
}
