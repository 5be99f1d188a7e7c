//! A product's terms of sale.

use axum::{extract::State, http::StatusCode, response::Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, PartsAndBody},
    envelope::{ApiError, Reason, success},
    query::ProductPath,
    time::Time,
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
        without_fine_fraction(&text).and_then(|text| text.parse().ok()).map(Self).ok_or(Self::EXPECTED)
    }
}

/// The text with at most three digits of fraction, if it has the shape of RFC 3339. The parser takes other spellings too, and
/// no more than nine digits.
fn without_fine_fraction(text: &str) -> Option<String> {
    let (whole, rest) = text.split_at_checked("0000-00-00T00:00:00".len())?;
    let digits = rest.strip_prefix('.').map(|rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let (fraction, offset) = rest.split_at(digits.map_or(0, |digits| digits + 1));
    let is_rfc3339 = has_shape(whole, "0000-00-00T00:00:00")
        && fraction.len() != 1
        && (offset.eq_ignore_ascii_case("Z")
            || ["+00:00", "-00:00"].iter().any(|shape| has_shape(offset, shape)));
    is_rfc3339.then(|| format!("{whole}{}{offset}", &fraction[..fraction.len().min(4)]))
}

/// Whether there is a digit for each `0`, and nothing else differs but the case.
fn has_shape(text: &str, shape: &str) -> bool {
    let fits = |(byte, shape): (u8, u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        shape => byte.eq_ignore_ascii_case(&shape),
    };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> Option<i64> {
        RequestTime::try_from(text.to_owned()).ok().map(|RequestTime(time)| time.as_millisecond())
    }

    #[test]
    fn a_time_is_rfc_3339_with_any_offset_and_fraction() {
        for (text, expected) in [
            ("2026-01-31T09:00:00Z", 1_769_850_000_000),
            ("2026-01-31t09:00:00z", 1_769_850_000_000),
            ("2026-01-31T16:00:00+07:00", 1_769_850_000_000),
            ("2026-01-31T09:00:00-00:00", 1_769_850_000_000),
            ("2026-01-31T09:00:00.1Z", 1_769_850_000_100),
            ("2026-01-31T09:00:00.123456+00:00", 1_769_850_000_123),
            ("2026-01-31T09:00:00.12399999999999999999Z", 1_769_850_000_123),
            ("2026-06-30T23:59:60Z", 1_782_863_999_000), // where a leap second may be
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-30T00:00:00Z", 253_402_128_000_000),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in [
            "",
            "now",
            "2026-01-31",
            "2026-01-31T09:00Z",
            "2026-01-31T09:00:00",
            "2026-01-31 09:00:00Z",
            "2026-01-31T09:00:00.Z",
            "2026-01-31T09:00:00,1Z",
            "2026-01-31T09:00:00+07",
            "2026-01-31T09:00:00+0700",
            "2026-01-31T09:00:00Z[Asia/Jakarta]",
            "2026-02-29T09:00:00Z",
            "2026-01-31T24:00:00Z",
            "20260131T090000Z",
            "+002026-01-31T09:00:00Z",
            "9999-12-31T23:59:59Z",
            "1769850000",
            " 2026-01-31T09:00:00Z",
            "2026-01-31T09:00:0👕Z",
        ] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
