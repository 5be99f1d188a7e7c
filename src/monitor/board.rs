//! What an API knows of all processes and products: from their reports, and from the catalogue. Pages and tools read it.

mod alerts;
mod lanes;
mod processes;
mod product;
mod products;
mod state;
mod view;
mod window;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use self::{
    alerts::{Situation, alerts},
    product::{Moment, ProductRow},
    state::{Second, State},
};
use super::{
    report::{Report, StockLevel},
    standstill::{LISTED_AFTER_MS, Standstill, WaitingLane, elapsed_ms},
};
use crate::{
    clock::Clock,
    domain::{ids::ProductId, inventory::Inventory, product::Product, rejection::Rejection, sku::Sku},
};

pub use view::{
    Alert, AlertKind, LaneView, NotOnSale, Overview, ProcessView, ProductDetail, ProductFilter, ProductPage,
    ProductPoint, ProductQuery, ProductSort, ProductView, Severity, ShopPoint,
};

/// How many seconds of the shop are kept.
const POINTS: usize = 600;
/// How long after the start the absence of a worker is nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);
/// Somebody looks, as long as something is asked at least this often.
const WATCHED: Duration = Duration::from_secs(15);

/// The board of one process. Reading and writing it takes microseconds, a query over all products a few milliseconds.
pub struct Board {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Board {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State::new(Instant::now(), clock.now());
        Self { clock, state: Mutex::new(state), changed: watch::Sender::new(0) }
    }

    /// Takes in a report of this process or of another one.
    pub fn receive(&self, mut report: Report) {
        let mut state = self.state();
        let now = self.moment(&state);
        let wall = self.clock.now();
        if !state.processes.receive(&mut report, now.instant, wall) {
            return;
        }
        if report.process.role.is_worker() && !report.is_last {
            state.worker_seen = (now.instant, wall);
        }
        if let Some(count) = report.dead_letters {
            state.dead_since = (count > 0).then(|| state.dead_since.unwrap_or(wall));
            state.dead_letters = Some(count);
        }
        for product in &report.products {
            let counts = product.counts;
            state.totals += counts;
            state.rate.add(now.second, counts.reserved, counts.refused());
            state.latency.add(now.second, &product.latencies);
            state.current.accepted += counts.reserved;
            state.current.refused += counts.refused();
            state.current.latency += &product.latencies;
            if product.decided_until_ms > 0 {
                state.decided_at = Some(now.instant);
            }
            if let Some(row) = state.row(product.product_id) {
                row.add(product, report.process.id, now);
            }
        }
    }

    /// Takes in products with their inventories, as they were read from the catalogue at `seen`.
    pub fn learn(&self, products: impl IntoIterator<Item = (Product, Option<Inventory>)>, seen: Timestamp) {
        let mut state = self.state();
        for (product, inventory) in products {
            let Some(row) = state.row(product.id) else { continue };
            row.set_names(product.name.as_str(), product.sku.as_ref().map(Sku::as_str));
            if let Some(inventory) = inventory {
                row.set_stock(StockLevel::new(inventory, seen.as_millisecond()));
            }
        }
    }

    /// Leaves out products that are archived.
    pub fn forget(&self, archived: impl IntoIterator<Item = ProductId>) {
        let mut state = self.state();
        for id in archived {
            state.products.remove(&id);
        }
    }

    /// Takes in which of these products are closed to orders, and why.
    pub fn learn_closed(&self, products: &[ProductId], closed: &HashMap<ProductId, Rejection>) {
        let mut state = self.state();
        for id in products {
            let Some(row) = state.row(*id) else { continue };
            row.set_not_on_sale(closed.get(id).copied().and_then(NotOnSale::of));
        }
    }

    /// Ends a second. Must be called once a second.
    pub fn tick(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let now = self.moment(state);
        state.processes.forget_old(now.instant);
        if state.processes.has_worker(now.instant) {
            state.worker_seen = (now.instant, self.clock.now());
        }
        let lanes = state.processes.lanes(now.instant);
        for (product_id, lane) in &lanes {
            if let Some(row) = state.products.get_mut(product_id) {
                row.add_waiting(lane.waiting(), now);
            }
        }
        let Second { accepted, refused, latency } = std::mem::take(&mut state.current);
        let (waiting, oldest_ms) = state.waiting(&lanes, now.instant);
        let point = ShopPoint {
            at_ms: now.unix_ms,
            accepted,
            refused,
            waiting,
            oldest_ms: oldest_ms.unwrap_or_default(),
            latency: latency.percentiles(),
        };
        if state.points.len() == POINTS {
            state.points.pop_front();
        }
        state.points.push_back(point);
        self.changed.send_modify(|ticks| *ticks += 1);
    }

    /// Changes once a second, when what the board answers may have changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether somebody asked for something lately.
    pub fn is_watched(&self) -> bool {
        self.state().looked_at.is_some_and(|at| at.elapsed() < WATCHED)
    }

    /// The whole shop.
    pub fn overview(&self) -> Overview {
        let mut state = self.looked_at();
        let state = &mut *state;
        let (now, at) = (self.moment(state), self.clock.now());
        let lanes = state.processes.lanes(now.instant);
        let (waiting, oldest_ms) = state.waiting(&lanes, now.instant);
        let database = state.processes.vital(now.instant, |process| &process.database);
        let broker = state.processes.vital(now.instant, |process| &process.broker);
        let (worker_seen_at, worker_seen) = state.worker_seen;
        let is_missed = !state.processes.has_worker(now.instant) && worker_seen_at.elapsed() >= PATIENCE;
        let stalled = state.stalled(&lanes, now.instant).map(|(id, lane)| {
            let name = state.products.get(&id).and_then(ProductRow::name);
            (id, name, lane)
        });
        let alerts = alerts(Situation {
            now: at,
            database: &database,
            broker: &broker,
            no_worker_since: is_missed.then_some(worker_seen),
            stalled: stalled.collect(),
            dead_letters: state.dead_letters.zip(state.dead_since),
            waiting,
        });
        let (accepted_per_s, refused_per_s) = state.rate.per_second(now.second);
        Overview {
            at,
            since: state.since,
            database,
            broker,
            processes: state.process_views(now.instant),
            dead_letters: state.dead_letters,
            alerts,
            accepted_per_s,
            refused_per_s,
            totals: state.totals,
            waiting,
            oldest_ms,
            latency: state.latency.percentiles(now.second),
            series: state.points.iter().copied().collect(),
            products: state.products.len(),
        }
    }

    /// One page of the products that match.
    pub fn products(&self, query: &ProductQuery) -> ProductPage {
        let state = self.looked_at();
        products::page(&state, query, self.moment(&state))
    }

    /// A product with its last minutes. `None`: it is not known (yet).
    pub fn product(&self, id: ProductId) -> Option<ProductDetail> {
        let state = self.looked_at();
        let now = self.moment(&state);
        let row = state.products.get(&id)?;
        let lanes = state.processes.lanes(now.instant);
        Some(ProductDetail { product: products::view(&state, id, row, &lanes, now), series: row.points(now) })
    }

    /// The lanes in which nothing is decided.
    pub fn standstill(&self) -> Standstill {
        let state = self.state();
        let now = self.moment(&state).instant;
        let lanes = state.processes.lanes(now);
        let waiting = lanes.iter().map(|(id, lane)| (*id, lane.view(state.decided_ago(*id, now))));
        let waiting = waiting.filter(|(_, lane)| lane.waiting > 0 && lane.undecided_ms >= LISTED_AFTER_MS);
        let waiting = waiting.map(|(product_id, lane)| WaitingLane {
            product_id,
            waiting: lane.waiting,
            oldest_ms: lane.oldest_ms,
            undecided_ms: lane.undecided_ms,
            tries: lane.tries,
            error: lane.error,
        });
        Standstill::new(waiting.collect(), state.decided_at.map(|at| elapsed_ms(now.duration_since(at))))
    }

    /// Whether a worker says that it holds commands of this product.
    pub fn is_held(&self, id: ProductId) -> bool {
        let state = self.state();
        let lanes = state.processes.lanes(Instant::now());
        lanes.get(&id).is_some_and(|lane| lane.is_held())
    }

    fn moment(&self, state: &State) -> Moment {
        let instant = Instant::now();
        let second = instant.duration_since(state.began).as_secs();
        Moment { instant, second, unix_ms: self.clock.now().as_millisecond() }
    }

    /// The state for somebody who looks.
    fn looked_at(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.looked_at = Some(Instant::now());
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
