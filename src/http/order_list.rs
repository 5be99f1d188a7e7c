//! `GET /api/orders`: the stored orders, page by page.

use std::sync::LazyLock;

use axum::{extract::State, response::Response};
use jiff::{SignedDuration, Timestamp};

use super::{
    api::Api,
    envelope::{ApiError, Reason, page},
    orders::OrderView,
    preferences::idempotency_key,
    query::ListQuery,
    time::rfc3339,
};
use crate::{
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        names::Buyer,
        order::OrderStatus,
    },
    service::ordering::{Direction, OrderList, OrderPage},
};

const PARAMETERS: [&str; 8] =
    ["product_id", "buyer", "status", "limit", "after", "order", "created_after", "idempotency_key"];

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
    let buyer =
        query.get("buyer", Reason::InvalidBuyer, Buyer::EXPECTED, |text| text.to_owned().try_into().ok())?;
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
    let page = OrderPage { product_id, buyer, status, newer_than, direction, after, limit };
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

#[cfg(test)]
mod tests {
    use super::*;

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
