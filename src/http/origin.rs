//! Which request a command comes from. [`site`](super::site) sees to it that each request has its id.

use std::convert::Infallible;

use axum::{extract::FromRequestParts, http::request::Parts};

use super::site::REQUEST_ID;
use crate::domain::origin::Origin;

pub(super) struct RequestOrigin(pub(super) Origin);

impl<S: Send + Sync> FromRequestParts<S> for RequestOrigin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let request_id = parts.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        Ok(Self(Origin { request_id, trace: None }))
    }
}
