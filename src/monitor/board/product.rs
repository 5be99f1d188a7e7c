//! What a board keeps of one product.

use std::collections::VecDeque;

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    super::report::{Counts, ProductReport, StockLevel},
    view::{NotOnSale, ProductPoint},
    window::{LatencyWindow, RateWindow, SLOT_SECONDS},
};

/// How many points are kept: ten minutes.
const POINTS: usize = 60;

#[derive(Debug, Default)]
pub(super) struct ProductRow {
    name: Option<String>,
    /// Name and SKU, for searches.
    folded_name: String,
    folded_sku: Option<String>,
    stock: Option<StockLevel>,
    not_on_sale: Option<NotOnSale>,
    most_stored: u64,
    totals: Counts,
    rate: RateWindow,
    latency: LatencyWindow,
    points: VecDeque<(u64, ProductPoint)>,
    /// The worker that decided something last, and when.
    decided: Option<(Uuid, Instant)>,
    /// When something was told last.
    active_at: Option<Instant>,
}

/// When something is told: on the clock of the board, and on that of people.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    /// Whole seconds of the board.
    pub(super) second: u64,
    pub(super) unix_ms: i64,
}

impl ProductRow {
    /// From the catalogue.
    pub(super) fn set_names(&mut self, name: &str, sku: Option<&str>) {
        if self.name.as_deref() != Some(name) {
            self.folded_name = name.to_lowercase();
            self.name = Some(name.to_owned());
        }
        self.folded_sku = sku.map(str::to_lowercase);
    }

    /// From the catalogue.
    pub(super) fn set_not_on_sale(&mut self, not_on_sale: Option<NotOnSale>) {
        self.not_on_sale = not_on_sale;
    }

    /// Keeps the latest: reports of several processes, and what the catalogue says, arrive in any order.
    pub(super) fn set_stock(&mut self, stock: StockLevel) {
        if self.stock.is_none_or(|known| known.seen_ms <= stock.seen_ms) {
            self.stock = Some(stock);
            self.most_stored = self.most_stored.max(stock.stored());
        }
    }

    pub(super) fn add(&mut self, report: &ProductReport, process: Uuid, now: Moment) {
        let counts = report.counts;
        self.totals += counts;
        self.rate.add(now.second, counts.reserved, counts.refused());
        self.latency.add(now.second, &report.latencies);
        if let Some(stock) = report.stock {
            self.set_stock(stock);
        }
        if report.decided_until_ms > 0 {
            self.decided = Some((process, now.instant));
        }
        self.active_at = Some(now.instant);
        let available = self.stock.map(|stock| stock.available);
        let point = self.point(now);
        point.accepted += counts.reserved;
        point.refused += counts.refused();
        point.available = available;
    }

    /// Commands wait.
    pub(super) fn add_waiting(&mut self, waiting: u64, now: Moment) {
        self.active_at = Some(now.instant);
        let available = self.stock.map(|stock| stock.available);
        let point = self.point(now);
        point.waiting = point.waiting.max(waiting);
        point.available = available;
    }

    /// The point of now.
    fn point(&mut self, now: Moment) -> &mut ProductPoint {
        let slot = now.second / SLOT_SECONDS;
        if self.points.back().is_none_or(|(of, _)| *of != slot) {
            self.points.retain(|(of, _)| of + POINTS as u64 > slot);
            let into_slot_ms = (now.second % SLOT_SECONDS) * 1_000;
            let at_ms = (now.unix_ms - into_slot_ms.cast_signed()) / 1_000 * 1_000;
            self.points.push_back((slot, ProductPoint { at_ms, ..ProductPoint::default() }));
        }
        let last = self.points.len() - 1;
        &mut self.points[last].1
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether name or SKU contains this.
    pub(super) fn is_called(&self, folded: &str) -> bool {
        self.folded_name.contains(folded) || self.folded_sku.as_ref().is_some_and(|sku| sku.contains(folded))
    }

    pub(super) fn stock(&self) -> Option<StockLevel> {
        self.stock
    }

    pub(super) fn not_on_sale(&self) -> Option<NotOnSale> {
        self.not_on_sale
    }

    pub(super) fn most_stored(&self) -> u64 {
        self.most_stored
    }

    pub(super) fn totals(&self) -> Counts {
        self.totals
    }

    pub(super) fn rate(&self) -> &RateWindow {
        &self.rate
    }

    pub(super) fn latency(&self) -> &LatencyWindow {
        &self.latency
    }

    pub(super) fn decided(&self) -> Option<(Uuid, Instant)> {
        self.decided
    }

    pub(super) fn active_at(&self) -> Option<Instant> {
        self.active_at
    }

    pub(super) fn points(&self, now: Moment) -> Vec<ProductPoint> {
        let slot = now.second / SLOT_SECONDS;
        let recent = self.points.iter().filter(|(of, _)| of + POINTS as u64 > slot);
        recent.map(|(_, point)| *point).collect()
    }
}
