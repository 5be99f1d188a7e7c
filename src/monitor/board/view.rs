//! What a board answers: plain figures for pages and tools, as of one moment.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::super::{
    latency::Percentiles,
    report::{Counts, ProcessRole, StockLevel, Vital},
};
use crate::domain::{ids::ProductId, rejection::Rejection};

/// The whole shop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    pub at: Timestamp,
    /// Totals are of what happened since then.
    pub since: Timestamp,
    /// As all processes see it: unavailable if one of those that are alive says so.
    pub database: Vital,
    pub broker: Vital,
    /// Those that are alive first, then by name.
    pub processes: Vec<ProcessView>,
    /// `None`: nobody has asked the broker yet, or there is none.
    pub dead_letters: Option<u64>,
    /// The worst first.
    pub alerts: Vec<Alert>,
    /// Orders a second, over the last seconds.
    pub accepted_per_s: f64,
    pub refused_per_s: f64,
    pub totals: Counts,
    /// Commands without a verdict, in all lanes.
    pub waiting: u64,
    /// The age of the oldest of them.
    pub oldest_ms: Option<u64>,
    /// Of the last minute, as the clients of all APIs waited.
    pub latency: Option<Percentiles>,
    /// The last ten minutes, a point for each second, the oldest first.
    pub series: Vec<ShopPoint>,
    /// How many products are known.
    pub products: usize,
}

/// One second of the shop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ShopPoint {
    /// The end of the second, in Unix milliseconds.
    pub at_ms: i64,
    pub accepted: u64,
    pub refused: u64,
    pub waiting: u64,
    pub oldest_ms: u64,
    /// `None`: no client got an answer.
    pub latency: Option<Percentiles>,
}

/// A process that told something lately.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessView {
    pub id: Uuid,
    pub name: String,
    pub role: ProcessRole,
    pub version: String,
    pub started_at: Timestamp,
    /// `None`: it is alive. Otherwise when it was heard of last.
    pub gone_since: Option<Timestamp>,
    /// Lanes that a worker serves.
    pub lanes_served: u32,
    /// Products of which a worker decided something within the last minute.
    pub lanes_active: u32,
    pub database: Vital,
    pub broker: Vital,
}

/// Something that a person should know now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    pub kind: AlertKind,
    pub severity: Severity,
    pub since: Timestamp,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub advice: &'static str,
    /// Of a lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_id: Option<ProductId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    DatabaseUnavailable,
    BrokerUnavailable,
    NoWorker,
    LaneStalled,
    DeadLetters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Orders wait or are refused.
    Critical,
    /// A person must look, not now.
    Warning,
}

/// One product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProductView {
    pub id: ProductId,
    /// `None` until the catalogue is read.
    pub name: Option<String>,
    /// `None` until it is read or reported.
    pub stock: Option<StockLevel>,
    /// Why the terms of sale allow no order; `None`: they do, or are not read yet.
    pub not_on_sale: Option<NotOnSale>,
    /// The most pieces that were stored at once, as far as it is known: what a bar of the stock begins with.
    pub most_stored: u64,
    pub accepted_per_s: f64,
    pub refused_per_s: f64,
    /// Since [`Overview::since`].
    pub totals: Counts,
    pub lane: LaneView,
    /// Of the last minute.
    pub latency: Option<Percentiles>,
    /// The worker that decided its orders last.
    pub worker: Option<String>,
}

/// Why the terms of sale allow no order of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotOnSale {
    Paused,
    NotOpen,
    Closed,
}

impl NotOnSale {
    /// `None`: every order is refused for another reason.
    pub(super) fn of(rejection: Rejection) -> Option<Self> {
        match rejection {
            Rejection::SalePaused { .. } => Some(Self::Paused),
            Rejection::SaleNotOpen { .. } => Some(Self::NotOpen),
            Rejection::SaleClosed { .. } => Some(Self::Closed),
            _ => None,
        }
    }
}

/// What waits in a product's lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneView {
    /// Commands without a verdict: in the lane, or with a worker.
    pub waiting: u64,
    /// The age of the oldest of them; 0 if none waits.
    pub oldest_ms: u64,
    /// For how long none was decided while some wait.
    pub undecided_ms: u64,
    /// Commands wait, and none is decided for [`STALLED_AFTER`](super::super::STALLED_AFTER).
    pub is_stalled: bool,
    /// How often a worker failed to decide them.
    pub tries: u32,
    /// Why it failed last.
    pub error: Option<String>,
}

/// A product, and its last ten minutes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProductDetail {
    pub product: ProductView,
    /// A point for every ten seconds in which something happened, the oldest first.
    pub series: Vec<ProductPoint>,
}

/// Ten seconds of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProductPoint {
    /// Their begin, in Unix milliseconds.
    pub at_ms: i64,
    pub accepted: u64,
    pub refused: u64,
    /// At the end; `None`: unknown.
    pub available: Option<u32>,
    /// The most commands that waited.
    pub waiting: u64,
}

/// Which products, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductQuery {
    /// Products whose name or SKU contains this, in any case, or the one with this id. Empty: all.
    pub search: String,
    pub show: ProductFilter,
    pub sort: ProductSort,
    /// The largest first.
    pub descending: bool,
    /// Counts from 0.
    pub page: usize,
    pub page_size: usize,
}

impl Default for ProductQuery {
    fn default() -> Self {
        Self {
            search: String::new(),
            show: ProductFilter::All,
            sort: ProductSort::Id,
            descending: false,
            page: 0,
            page_size: 50,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductFilter {
    All,
    /// Orders came within the last minute, or wait.
    Active,
    /// No piece is available.
    SoldOut,
    /// Commands wait.
    Waiting,
    Stalled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductSort {
    Id,
    Name,
    Available,
    Reserved,
    Stored,
    Accepted,
    Refused,
    Waiting,
    Oldest,
    /// The 99th percentile.
    Latency,
}

/// Some of the products that a query matches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProductPage {
    pub rows: Vec<ProductView>,
    /// Of the rows; the last page if the query asked for one behind it.
    pub page: usize,
    /// At least 1.
    pub pages: usize,
    /// How many products match.
    pub matching: usize,
}
