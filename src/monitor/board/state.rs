//! All that a board keeps.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    super::{latency::LatencySum, report::Counts},
    lanes::Lanes,
    processes::{Process, Processes},
    product::ProductRow,
    view::{LaneView, ProcessView, ShopPoint},
    window::{LatencyWindow, RateWindow},
};
use crate::domain::ids::ProductId;

/// How many products are kept. Of more, those are left out that were heard of last.
const MAX_PRODUCTS: usize = 10_000;
/// A product or worker is active while something happens at least this often.
pub(super) const ACTIVE: Duration = Duration::from_secs(60);

pub(super) struct State {
    pub(super) began: Instant,
    pub(super) since: Timestamp,
    pub(super) processes: Processes,
    pub(super) products: HashMap<ProductId, ProductRow>,
    pub(super) totals: Counts,
    pub(super) rate: RateWindow,
    pub(super) latency: LatencyWindow,
    pub(super) points: VecDeque<ShopPoint>,
    /// What was told in the second that is not over.
    pub(super) current: Second,
    pub(super) dead_letters: Option<u64>,
    pub(super) dead_since: Option<Timestamp>,
    /// When a worker was alive last.
    pub(super) worker_seen: (Instant, Timestamp),
    /// When anything was decided last, in any lane.
    pub(super) decided_at: Option<Instant>,
    pub(super) looked_at: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Second {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) latency: LatencySum,
}

impl State {
    /// Of a board that begins now.
    pub(super) fn new(began: Instant, since: Timestamp) -> Self {
        Self {
            began,
            since,
            processes: Processes::default(),
            products: HashMap::new(),
            totals: Counts::default(),
            rate: RateWindow::default(),
            latency: LatencyWindow::default(),
            points: VecDeque::new(),
            current: Second::default(),
            dead_letters: None,
            dead_since: None,
            worker_seen: (began, since),
            decided_at: None,
            looked_at: None,
        }
    }

    /// `None`: there are too many.
    pub(super) fn row(&mut self, id: ProductId) -> Option<&mut ProductRow> {
        if self.products.len() >= MAX_PRODUCTS && !self.products.contains_key(&id) {
            return None;
        }
        Some(self.products.entry(id).or_default())
    }

    /// How many commands wait, and the age of the oldest in milliseconds.
    pub(super) fn waiting(&self, lanes: &Lanes, now: Instant) -> (u64, Option<u64>) {
        let views = lanes.iter().map(|(id, lane)| lane.view(self.decided_ago(*id, now)));
        views.filter(|lane| lane.waiting > 0).fold((0, None), |(waiting, oldest), lane| {
            (waiting + lane.waiting, oldest.max(Some(lane.oldest_ms)))
        })
    }

    pub(super) fn stalled(&self, lanes: &Lanes, now: Instant) -> impl Iterator<Item = (ProductId, LaneView)> {
        let views = lanes.iter().map(move |(id, lane)| (*id, lane.view(self.decided_ago(*id, now))));
        views.filter(|(_, lane)| lane.is_stalled)
    }

    pub(super) fn decided_ago(&self, id: ProductId, now: Instant) -> Option<Duration> {
        let (_, at) = self.products.get(&id)?.decided()?;
        Some(now.duration_since(at))
    }

    pub(super) fn process_views(&self, now: Instant) -> Vec<ProcessView> {
        let mut active: HashMap<Uuid, u32> = HashMap::new();
        for (worker, at) in self.products.values().filter_map(ProductRow::decided) {
            if now.duration_since(at) < ACTIVE {
                *active.entry(worker).or_default() += 1;
            }
        }
        let view = |process: &Process| ProcessView {
            id: process.identity.id,
            name: process.identity.name.clone(),
            role: process.identity.role,
            version: process.identity.version.clone(),
            started_at: process.identity.started_at,
            gone_since: process.gone_since(now),
            lanes_served: process.lanes_served,
            lanes_active: active.get(&process.identity.id).copied().unwrap_or_default(),
            database: process.database.clone(),
            broker: process.broker.clone(),
        };
        let mut views: Vec<_> = self.processes.all().map(view).collect();
        views.sort_by(|a, b| (a.gone_since.is_some(), &a.name).cmp(&(b.gone_since.is_some(), &b.name)));
        views
    }
}
