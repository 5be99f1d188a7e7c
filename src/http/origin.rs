//! Which request a command comes from. [`site`](mod@super::site) sees to it that each request has its id.

use std::{convert::Infallible, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};

use super::site::{REQUEST_ID, trace_context};
use crate::{domain::origin::Origin, telemetry::traces};

pub(super) struct RequestOrigin(pub(super) Origin);

impl<S: Send + Sync> FromRequestParts<S> for RequestOrigin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let request_id = parts.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        let trace = if traces::is_on() { trace_context(&parts.headers).map(Arc::new) } else { None };
        Ok(Self(Origin { request_id, trace }))
    }
}
