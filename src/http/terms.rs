//! A product's terms of sale.

use axum::{extract::State, http::StatusCode, response::Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, PartsAndBody},
    envelope::{ApiError, Reason, success},
    query::ProductPath,
    time::{Time, rfc3339},
};
use crate::domain::{
    order::Quantity,
    terms::{Hold, NeverOpen, SalePeriod, Terms},
};

/// All of the terms. A field that is missing or null has its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TermsRequest {
    selling: Option<bool>,
    opens_at: Option<RequestTime>,
    closes_at: Option<RequestTime>,
    max_per_order: Option<Quantity>,
    max_per_buyer: Option<Quantity>,
    hold_seconds: Option<Hold>,
}

impl Fields for TermsRequest {
    const FIELDS: &'static [Field] = &[];
    const OPTIONAL: &'static [Field] = &[
        ("selling", Reason::InvalidTerms, "true or false"),
        ("opens_at", Reason::InvalidTerms, RequestTime::EXPECTED),
        ("closes_at", Reason::InvalidTerms, RequestTime::EXPECTED),
        ("max_per_order", Reason::InvalidTerms, Quantity::EXPECTED),
        ("max_per_buyer", Reason::InvalidTerms, Quantity::EXPECTED),
        ("hold_seconds", Reason::InvalidTerms, Hold::EXPECTED),
    ];
}

impl TryFrom<TermsRequest> for Terms {
    type Error = NeverOpen;

    fn try_from(request: TermsRequest) -> Result<Self, NeverOpen> {
        let time = |given: Option<RequestTime>| given.map(|RequestTime(time)| time);
        Ok(Self {
            selling: request.selling.unwrap_or(Self::default().selling),
            period: SalePeriod::new(time(request.opens_at), time(request.closes_at))?,
            max_per_order: request.max_per_order,
            max_per_buyer: request.max_per_buyer,
            hold: request.hold_seconds,
        })
    }
}

impl From<NeverOpen> for ApiError {
    fn from(_: NeverOpen) -> Self {
        let message = "closes_at must be later than opens_at, or nobody could ever order; nothing was changed, send other times";
        Self::field(Reason::InvalidTerms, "closes_at", message)
    }
}

/// The terms as clients see them.
#[derive(Serialize)]
pub(super) struct TermsView {
    selling: bool,
    opens_at: Option<Time>,
    closes_at: Option<Time>,
    max_per_order: Option<Quantity>,
    max_per_buyer: Option<Quantity>,
    hold_seconds: Option<Hold>,
}

impl From<Terms> for TermsView {
    fn from(terms: Terms) -> Self {
        let Terms { selling, period, max_per_order, max_per_buyer, hold } = terms;
        Self {
            selling,
            opens_at: period.opens_at().map(Time),
            closes_at: period.closes_at().map(Time),
            max_per_order,
            max_per_buyer,
            hold_seconds: hold,
        }
    }
}

/// `GET /api/products/{productId}/terms`
pub(super) async fn show(State(api): State<Api>, ProductPath(id): ProductPath) -> Result<Response, ApiError> {
    let terms = api.catalog.terms(id).await?.ok_or_else(|| ApiError::product_not_found(id))?;
    Ok(success(StatusCode::OK, TermsView::from(terms)))
}

/// `PUT /api/products/{productId}/terms`
pub(super) async fn set(
    State(api): State<Api>,
    PartsAndBody(ProductPath(id), JsonBody(request)): PartsAndBody<ProductPath, JsonBody<TermsRequest>>,
) -> Result<Response, ApiError> {
    let terms = Terms::try_from(request)?;
    if !api.catalog.set_terms(id, terms).await? {
        return Err(ApiError::product_not_found(id));
    }
    Ok(success(StatusCode::OK, TermsView::from(terms)))
}

/// A time as a client writes it: RFC 3339, with any offset.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct RequestTime(Timestamp);

impl RequestTime {
    /// What a time looks like, for error messages.
    const EXPECTED: &str = "a time like 2026-01-31T09:00:00.000Z (RFC 3339)";
}

impl TryFrom<String> for RequestTime {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        // Before the year 0, an answer could not write it.
        let first = Timestamp::constant(-62_167_219_200, 0);
        rfc3339(&text).filter(|time| *time >= first).map(Self).ok_or(Self::EXPECTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_can_be_written_in_an_answer() {
        let millis = |text: &str| {
            RequestTime::try_from(text.to_owned()).ok().map(|RequestTime(time)| time.as_millisecond())
        };
        for (text, expected) in [
            ("2026-01-31T16:00:00.1239+07:00", Some(1_769_850_000_123)),
            ("0000-01-01T00:00:00Z", Some(-62_167_219_200_000)),
            ("0000-01-01T00:00:00+01:00", None),
            ("9999-12-31T23:59:59Z", Some(Timestamp::MAX.as_millisecond())),
            ("now", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
    }
}
