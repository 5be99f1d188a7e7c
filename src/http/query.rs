//! URLs: ids in the path, and the parameters of lists.

use std::str::FromStr;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::request::Parts,
};
use url::form_urlencoded;

use super::envelope::{ApiError, Reason};
use crate::domain::ids::{InvalidProductId, OrderId, ProductId};

/// The `{productId}` of a path.
pub(super) struct ProductPath(pub(super) ProductId);

impl<S: Send + Sync> FromRequestParts<S> for ProductPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        parse_path(parts, state).await.map(Self).ok_or_else(|| {
            ApiError::field(Reason::InvalidProductId, "productId", InvalidProductId.to_string())
        })
    }
}

/// The `{orderId}` of a path.
pub(super) struct OrderPath(pub(super) OrderId);

impl<S: Send + Sync> FromRequestParts<S> for OrderPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        parse_path(parts, state)
            .await
            .map(Self)
            .ok_or_else(|| ApiError::field(Reason::InvalidOrderId, "orderId", "an order id is a UUID"))
    }
}

async fn parse_path<T: FromStr, S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<T> {
    let Path(text) = Path::<String>::from_request_parts(parts, state).await.ok()?;
    text.parse().ok()
}

/// The query of a URL: the parameters of a list, or of another call.
pub(super) struct ListQuery(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(error) => Err(ApiError::new(Reason::InvalidQuery, error.body_text())),
        }
    }
}

impl ListQuery {
    const DEFAULT_LIMIT: u32 = 20;
    const MAX_LIMIT: u32 = 100;

    /// Refuses unknown and repeated parameters.
    pub(super) fn only(self, names: &[&str]) -> Result<Self, ApiError> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            let problem = if !names.contains(&name.as_str()) {
                "unknown parameter"
            } else if self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                "parameter given twice"
            } else {
                continue;
            };
            let shown: String = name.chars().take(100).collect();
            let message = format!("{problem}; the parameters are: {}", names.join(", "));
            return Err(ApiError::field(Reason::InvalidQuery, shown, message));
        }
        Ok(self)
    }

    /// The parsed parameter; `None` if it is not given.
    pub(super) fn get<T>(
        &self,
        name: &'static str,
        reason: Reason,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some((_, text)) = self.0.iter().find(|(given, _)| given == name) else { return Ok(None) };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(ApiError::field(reason, name, format!("{name} must be {expected}"))),
        }
    }

    /// How many rows a page has: `limit`, 1 to 100.
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        let in_range = |text: &str| {
            let plain = !text.starts_with(['0', '+']);
            text.parse().ok().filter(|limit| plain && (1..=Self::MAX_LIMIT).contains(limit))
        };
        let limit = self.get("limit", Reason::InvalidLimit, "an integer from 1 to 100", in_range)?;
        Ok(limit.unwrap_or(Self::DEFAULT_LIMIT))
    }

    /// The `Link` to the page that begins behind `after`, with the same parameters.
    pub(super) fn next(&self, path: &str, after: impl std::fmt::Display) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.0.iter().filter(|(name, _)| name != "after"));
        query.append_pair("after", &after.to_string());
        format!("<{path}?{}>; rel=\"next\"", query.finish())
    }
}
