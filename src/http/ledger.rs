//! Changes of stock by a difference, and the movements of a product's stock.

use axum::{extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, PartsAndBody},
    envelope::{ApiError, Reason, mark_replayed, page, success},
    preferences::IdempotencyKeyHeader,
    query::{ListQuery, ProductPath},
    time::Time,
};
use crate::domain::{
    inventory::StockChange,
    movement::{Adjustment, LedgerEntry, MovementReason, MovementSeq},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdjustmentRequest {
    change: StockChange,
    reason: Option<MovementReason>,
}

impl Fields for AdjustmentRequest {
    const FIELDS: &'static [Field] = &[("change", Reason::InvalidChange, StockChange::EXPECTED)];
    const OPTIONAL: &'static [Field] = &[("reason", Reason::InvalidReasonText, MovementReason::EXPECTED)];
}

/// `POST /api/products/{productId}/inventory/adjustments`
pub(super) async fn adjust(
    State(api): State<Api>,
    PartsAndBody(ProductPath(id), PartsAndBody(IdempotencyKeyHeader(key), JsonBody(request))): PartsAndBody<
        ProductPath,
        PartsAndBody<IdempotencyKeyHeader, JsonBody<AdjustmentRequest>>,
    >,
) -> Result<Response, ApiError> {
    let AdjustmentRequest { change, reason } = request;
    let done = api.catalog.adjust(id, &Adjustment { change, reason, key }).await?;
    let answer = success(StatusCode::CREATED, MovementView::from(done.entry));
    Ok(if done.is_replayed { mark_replayed(answer) } else { answer })
}

/// `GET /api/products/{productId}/inventory/movements`
pub(super) async fn movements(
    State(api): State<Api>,
    ProductPath(id): ProductPath,
    query: ListQuery,
) -> Result<Response, ApiError> {
    let query = query.only(&["limit", "after"])?;
    let after = query.get("after", Reason::InvalidAfter, MovementSeq::EXPECTED, |text| text.parse().ok())?;
    let found = api.catalog.movements(id, after, query.limit()?).await?;
    let found = found.ok_or_else(|| ApiError::product_not_found(id))?;
    let views = found.rows.into_iter().map(MovementView::from).collect();
    let path = format!("/api/products/{id}/inventory/movements");
    Ok(page(views, found.next, |after| query.next(&path, after)))
}

/// A movement as clients see it.
#[derive(Serialize)]
struct MovementView {
    seq: MovementSeq,
    at: Time,
    kind: &'static str,
    change: i64,
    orders: u32,
    stored_stock: i64,
    reason: Option<MovementReason>,
}

impl From<LedgerEntry> for MovementView {
    fn from(LedgerEntry { seq, movement }: LedgerEntry) -> Self {
        Self {
            seq,
            at: Time(movement.at),
            kind: movement.kind.as_str(),
            change: movement.change,
            orders: movement.orders,
            stored_stock: movement.stored_stock,
            reason: movement.reason,
        }
    }
}
