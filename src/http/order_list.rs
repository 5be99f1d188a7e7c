//! `GET /api/orders`: the stored orders, page by page.

use std::sync::LazyLock;

use axum::{extract::State, response::Response};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::Offset};

use super::{
    api::Api,
    envelope::{ApiError, Reason, page},
    orders::OrderView,
    preferences::idempotency_key,
    query::ListQuery,
};
use crate::{
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        order::OrderStatus,
    },
    service::ordering::{Direction, OrderList, OrderPage},
};

const PARAMETERS: [&str; 7] =
    ["product_id", "status", "limit", "after", "order", "created_after", "idempotency_key"];

/// `GET /api/orders`
pub(super) async fn list(State(api): State<Api>, query: ListQuery) -> Result<Response, ApiError> {
    let query = query.only(&PARAMETERS)?;
    let found = api.orders.list(order_list(&query)?).await?;
    let views = found.rows.into_iter().map(OrderView::from).collect();
    Ok(page(views, found.next, |after| query.next("/api/orders", after)))
}

fn order_list(query: &ListQuery) -> Result<OrderList, ApiError> {
    let product_id =
        query.get("product_id", Reason::InvalidProductId, ProductId::EXPECTED, |text| text.parse().ok())?;
    let status = query.get("status", Reason::InvalidStatus, &STATUS_WORDS, status)?;
    let newer_than = query.get("created_after", Reason::InvalidCreatedAfter, TIME, newest_until)?;
    let direction = query.get("order", Reason::InvalidOrder, "asc or desc", direction)?.unwrap_or_default();
    let after = query.get("after", Reason::InvalidAfter, "the id of an order", |text| text.parse().ok())?;
    let limit = query.limit()?;
    let expected = IdempotencyKey::EXPECTED;
    let key = query.get("idempotency_key", Reason::InvalidIdempotencyKey, expected, idempotency_key)?;
    let status = match status {
        Some(Status::Pending) => return Ok(OrderList::Pending),
        Some(Status::Stored(status)) => Some(status),
        None => None,
    };
    let page = OrderPage { product_id, status, newer_than, direction, after, limit };
    Ok(match key {
        Some(key) => OrderList::OfKey(key, page),
        None => OrderList::Page(page),
    })
}

enum Status {
    Pending,
    Stored(OrderStatus),
}

/// What the parameter `status` must be.
static STATUS_WORDS: LazyLock<String> = LazyLock::new(|| {
    let words: Vec<_> =
        [OrderStatus::PENDING].into_iter().chain(OrderStatus::ALL.map(OrderStatus::as_str)).collect();
    format!("one of {}", words.join(", "))
});

fn status(word: &str) -> Option<Status> {
    match word {
        OrderStatus::PENDING => Some(Status::Pending),
        word => OrderStatus::from_word(word).map(Status::Stored),
    }
}

fn direction(word: &str) -> Option<Direction> {
    match word {
        "asc" => Some(Direction::OldestFirst),
        "desc" => Some(Direction::NewestFirst),
        _ => None,
    }
}

/// What the parameter `created_after` must be.
const TIME: &str = "a time of RFC 3339, for example 2026-01-31T09:00:00Z; a + in it is written %2B in a URL";

/// An id that sorts behind all orders that were created until this time, and before all later ones.
fn newest_until(text: &str) -> Option<OrderId> {
    let time = rfc3339(text)?;
    // Orders have whole milliseconds: one of the same millisecond was not created after it.
    let next = time.checked_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
    Some(OrderId::first_at(next))
}

/// A time of RFC 3339, down to its millisecond. Only what the RFC allows, and all of it: the library's parser takes a space for
/// the `T`, a zone in brackets, and more, and refuses the last day of the year 9999 and more than nine digits of fraction.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let (date_time, rest) = (text.get(..19)?, text.get(19..)?);
    let (fraction, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    if !is_like(date_time, "0000-00-00T00:00:00") {
        return None;
    }
    let millis: i64 = match fraction.strip_prefix('.') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            format!("{digits:0<3}")[..3].parse().ok()?
        }
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let date_time: DateTime = date_time.parse().ok()?;
    let time = offset(zone)?.to_timestamp(date_time).unwrap_or(match date_time.year() {
        ..2000 => Timestamp::MIN,
        2000.. => Timestamp::MAX,
    });
    Some(time.checked_add(SignedDuration::from_millis(millis)).unwrap_or(time))
}

/// From UTC: `Z`, or hours and minutes.
fn offset(text: &str) -> Option<Offset> {
    if is_like(text, "Z") {
        return Some(Offset::UTC);
    }
    if !is_like(text, "+00:00") && !is_like(text, "-00:00") {
        return None;
    }
    let (hours, minutes): (i32, i32) = (text[1..3].parse().ok()?, text[4..].parse().ok()?);
    let seconds = hours * 3_600 + minutes * 60;
    let is_in_range = hours < 24 && minutes < 60;
    Offset::from_seconds(if text.starts_with('-') { -seconds } else { seconds }).ok().filter(|_| is_in_range)
}

/// Whether a text has digits where the shape has zeros, and the same letters otherwise.
fn is_like(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            shape => byte.eq_ignore_ascii_case(&shape),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-31T09:00:00.120Z", 1_769_850_000_120),
            ("2026-01-31t09:00:00.12z", 1_769_850_000_120),
            ("2026-01-31T16:00:00.120999999+07:00", 1_769_850_000_120),
            ("2026-01-31T09:00:00-00:00", 1_769_850_000_000),
            ("2026-01-31T09:00:00.1234567890123456789012345Z", 1_769_850_000_123),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000), // a leap second
        ] {
            assert_eq!(rfc3339(text).unwrap().as_millisecond(), unix_ms, "{text}");
        }
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31T09:00:00",
            "2026-01-31 09:00:00Z",
            "2026-01-31T09:00:00 07:00",
            "2026-01-31T09:00Z",
            "2026-01-31T09:00:00.Z",
            "2026-01-31T09:00:00,5Z",
            "2026-01-31T09:00:00+07",
            "2026-01-31T09:00:00+0700",
            "2026-01-31T09:00:00Z[UTC]",
            "2026-02-30T09:00:00Z",
            "2026-01-31T25:00:00Z",
            "2026-01-31T09:00:00+99:99",
            "+002026-01-31T09:00:00Z",
            "20260131T090000Z",
            "1769850000",
            "now",
            "٢٠٢٦-01-31T09:00:00Z",
            "🕘",
        ] {
            assert!(rfc3339(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_order_of_the_same_millisecond_was_not_created_after_it() {
        let at = |text: &str| newest_until(text).unwrap();
        let created = |text: &str| OrderId::first_at(text.parse().unwrap());
        for time in ["2026-01-31T09:00:00.120Z", "2026-01-31T09:00:00.1209Z"] {
            assert!(created("2026-01-31T09:00:00.120Z") < at(time), "{time}");
            assert!(created("2026-01-31T09:00:00.121Z") >= at(time), "{time}");
        }
        // Every time has its place.
        assert!(at("0000-01-01T00:00:00Z") < created("1970-01-02T00:00:00Z"));
        assert!(at("9999-12-31T23:59:59.999Z") > created("9999-12-30T00:00:00Z"));
    }
}
