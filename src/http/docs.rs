//! The contract, for those who write clients.

use axum::{http::header, response::IntoResponse};

/// `apispec.json`: OpenAPI 3.0.3, the source of truth.
pub const CONTRACT: &str = include_str!("../../apispec.json");

/// `GET /apispec.json`
pub(super) async fn contract() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], CONTRACT)
}
