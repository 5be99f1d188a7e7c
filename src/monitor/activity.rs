//! What this process does, product by product: counted where it happens, told once a second.
//!
//! An order costs a few atomic operations here, a batch one short lock for each of its products. Products that nobody orders
//! leave after a while, so that memory is bounded by those that are active.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    latency::LatencyRecorder,
    report::{Counts, LaneReport, ProductReport, StockLevel},
    standstill::Standstill,
    undecided::{Undecided, age_ms, time_of},
};
use crate::{
    clock::Clock,
    domain::{
        command::Command, decide::BatchResult, ids::ProductId, inventory::Inventory, outcome::ProductOutcome,
    },
    queue::Outcome,
};

/// How many products are kept. Those above it are not counted until others leave.
const MAX_PRODUCTS: usize = 10_000;
/// A product leaves when nothing happens to it for this long.
const IDLE: Duration = Duration::from_secs(600);
/// How many products and lanes one report has at most; the others are in the next one.
const MAX_REPORTED: usize = 2_000;

/// The activity of one process.
pub struct Activity {
    clock: Arc<dyn Clock>,
    products: RwLock<HashMap<ProductId, Arc<ProductActivity>>>,
    undecided: Arc<Undecided>,
    lanes_served: AtomicU32,
}

#[derive(Debug)]
struct ProductActivity {
    /// Something happened since the last report.
    is_changed: AtomicBool,
    decided: Mutex<Decided>,
    latency: LatencyRecorder,
    refused_early: AtomicU64,
    not_queued: AtomicU64,
    /// Commands whose clients wait for a verdict.
    waiting: AtomicU64,
    /// Commands whose clients do not wait any more, and of whose verdicts nothing is known.
    abandoned: AtomicU64,
    /// The newest of these: Unix milliseconds, of its id.
    last_abandoned_ms: AtomicI64,
    /// No undecided command is older: Unix milliseconds, of an id.
    oldest_ms: AtomicI64,
    /// When a verdict arrived last; before that, when the first command was submitted. Unix milliseconds.
    progress_ms: AtomicI64,
}

/// What batches did since the last report.
#[derive(Debug, Default)]
struct Decided {
    counts: Counts,
    stock: Option<StockLevel>,
    until_ms: i64,
    /// When something happened last.
    at: Option<Instant>,
}

impl Activity {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            products: RwLock::default(),
            undecided: Arc::default(),
            lanes_served: AtomicU32::new(0),
        }
    }

    /// What the worker of this process holds.
    pub fn undecided(&self) -> &Arc<Undecided> {
        &self.undecided
    }

    /// The worker serves the lanes of this many products.
    pub fn serve(&self, products: usize) {
        self.lanes_served.store(u32::try_from(products).unwrap_or(u32::MAX), Relaxed);
    }

    pub fn lanes_served(&self) -> u32 {
        self.lanes_served.load(Relaxed)
    }

    /// An API submits a command now, and says what becomes of it by [`Submitted::answer`].
    pub fn submit(&self, command: &Command) -> Submitted {
        let (product, submitted_ms) = (self.product(command.product_id()), time_of(command));
        if let Some(product) = &product {
            product.is_changed.store(true, Relaxed);
            if product.waiting.fetch_add(1, Relaxed) == 0 && product.abandoned.load(Relaxed) == 0 {
                product.oldest_ms.store(submitted_ms, Relaxed);
                product.progress_ms.store(submitted_ms, Relaxed);
            }
        }
        Submitted { product, submitted_ms, began: Instant::now() }
    }

    /// An API refused an order because the product is closed to orders.
    pub fn refuse_early(&self, product_id: ProductId) {
        if let Some(product) = self.product(product_id) {
            product.refused_early.fetch_add(1, Relaxed);
            product.is_changed.store(true, Relaxed);
        }
    }

    /// A batch is decided and committed.
    pub fn decide(&self, commands: &[Command], result: &BatchResult) {
        let seen_ms = self.clock.now().as_millisecond();
        // One pass, however many products there are: of each, the time of its last command.
        let runs = commands.chunk_by(|a, b| a.product_id() == b.product_id());
        let last = runs.filter_map(<[Command]>::last).map(|one| (one.product_id(), time_of(one)));
        let last: HashMap<_, _> = last.collect();
        for (product_id, outcome) in &result.outcomes {
            let Some(product) = self.product(*product_id) else { continue };
            let until_ms = last.get(product_id).copied().unwrap_or_default();
            let mut decided = product.decided();
            decided.counts += counts_of(outcome);
            decided.stock =
                outcome.inventory.map(|inventory| StockLevel::new(inventory, seen_ms)).or(decided.stock);
            decided.until_ms = decided.until_ms.max(until_ms);
            drop(decided);
            product.is_changed.store(true, Relaxed);
            product.clear_until(until_ms);
        }
    }

    /// A batch was not decided.
    pub fn fail(&self, commands: &[Command], error: &str) {
        self.undecided.fail(commands, error);
    }

    /// The seller counted the pieces of a product.
    pub fn recount(&self, product_id: ProductId, inventory: Inventory) {
        if let Some(product) = self.product(product_id) {
            let seen_ms = self.clock.now().as_millisecond();
            product.decided().stock = Some(StockLevel::new(inventory, seen_ms));
            product.is_changed.store(true, Relaxed);
        }
    }

    /// Another process decided this product's commands up to this time.
    pub fn decided_until(&self, product_id: ProductId, until_ms: i64) {
        if let Some(product) = self.known(product_id) {
            product.clear_until(until_ms);
        }
    }

    /// No command of this product waits anywhere.
    pub fn nothing_waits(&self, product_id: ProductId) {
        if let Some(product) = self.known(product_id) {
            product.abandoned.store(0, Relaxed);
        }
    }

    /// Products some of whose commands may wait though no client waits for them.
    pub fn abandoned(&self) -> Vec<ProductId> {
        let products = self.products.read().unwrap_or_else(PoisonError::into_inner);
        let abandoned = products.iter().filter(|(_, product)| product.abandoned.load(Relaxed) > 0);
        abandoned.map(|(id, _)| *id).collect()
    }

    /// The lanes in which this process's worker decides nothing.
    pub fn standstill(&self) -> Standstill {
        self.undecided.standstill(self.clock.now().as_millisecond())
    }

    /// The lanes with undecided commands that this process knows of.
    pub fn lanes(&self) -> Vec<LaneReport> {
        let now_ms = self.clock.now().as_millisecond();
        let mut lanes: HashMap<_, _> =
            self.undecided.lanes(now_ms).into_iter().map(|lane| (lane.product_id, lane)).collect();
        for (product_id, product) in &*self.products.read().unwrap_or_else(PoisonError::into_inner) {
            let Some(waiting) = product.lane(*product_id, now_ms) else { continue };
            match lanes.get_mut(product_id) {
                Some(lane) => {
                    lane.unanswered = waiting.unanswered;
                    lane.oldest_ms = lane.oldest_ms.max(waiting.oldest_ms);
                    lane.undecided_ms = lane.undecided_ms.min(waiting.undecided_ms);
                }
                None => drop(lanes.insert(*product_id, waiting)),
            }
        }
        lanes.into_values().collect()
    }

    /// What happened since the last call. Forgets products that are idle.
    pub fn take_report(&self) -> (Vec<ProductReport>, Vec<LaneReport>) {
        let now = Instant::now();
        let mut reports = Vec::new();
        let mut has_idle = false;
        for (product_id, product) in &*self.products.read().unwrap_or_else(PoisonError::into_inner) {
            if reports.len() < MAX_REPORTED && product.is_changed.swap(false, Relaxed) {
                reports.push(product.take_report(*product_id, now));
            }
            has_idle |= product.is_idle(now);
        }
        if has_idle {
            let mut products = self.products.write().unwrap_or_else(PoisonError::into_inner);
            products.retain(|_, product| !product.is_idle(now) || Arc::strong_count(product) > 1);
        }
        let mut lanes = self.lanes();
        if lanes.len() > MAX_REPORTED {
            lanes.sort_by_key(|lane| std::cmp::Reverse(lane.undecided_ms));
            lanes.truncate(MAX_REPORTED);
        }
        (reports, lanes)
    }

    fn known(&self, id: ProductId) -> Option<Arc<ProductActivity>> {
        self.products.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// `None`: there are too many.
    fn product(&self, id: ProductId) -> Option<Arc<ProductActivity>> {
        if let Some(known) = self.known(id) {
            return Some(known);
        }
        let mut products = self.products.write().unwrap_or_else(PoisonError::into_inner);
        if products.len() >= MAX_PRODUCTS && !products.contains_key(&id) {
            return None;
        }
        Some(products.entry(id).or_insert_with(|| Arc::new(ProductActivity::new())).clone())
    }
}

impl ProductActivity {
    fn new() -> Self {
        Self {
            is_changed: AtomicBool::new(true),
            decided: Mutex::new(Decided { at: Some(Instant::now()), ..Decided::default() }),
            latency: LatencyRecorder::default(),
            refused_early: AtomicU64::new(0),
            not_queued: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            last_abandoned_ms: AtomicI64::new(0),
            oldest_ms: AtomicI64::new(0),
            progress_ms: AtomicI64::new(0),
        }
    }

    fn decided(&self) -> MutexGuard<'_, Decided> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands up to this time are decided: a lane is first in, first out.
    fn clear_until(&self, until_ms: i64) {
        self.oldest_ms.fetch_max(until_ms, Relaxed);
        if self.abandoned.load(Relaxed) > 0 && self.last_abandoned_ms.load(Relaxed) <= until_ms {
            self.abandoned.store(0, Relaxed);
        }
    }

    fn abandon(&self, submitted_ms: i64) {
        self.last_abandoned_ms.fetch_max(submitted_ms, Relaxed);
        self.abandoned.fetch_add(1, Relaxed);
    }

    fn take_report(&self, product_id: ProductId, now: Instant) -> ProductReport {
        let mut decided = self.decided();
        let mut counts = std::mem::take(&mut decided.counts);
        let (stock, decided_until_ms) = (decided.stock.take(), std::mem::take(&mut decided.until_ms));
        decided.at = Some(now);
        drop(decided);
        counts.refused_early = self.refused_early.swap(0, Relaxed);
        counts.not_queued = self.not_queued.swap(0, Relaxed);
        ProductReport { product_id, counts, stock, decided_until_ms, latencies: self.latency.take() }
    }

    /// `None`: nothing waits.
    fn lane(&self, product_id: ProductId, now_ms: i64) -> Option<LaneReport> {
        let unanswered = self.waiting.load(Relaxed) + self.abandoned.load(Relaxed);
        (unanswered > 0).then(|| LaneReport {
            product_id,
            unanswered,
            held: 0,
            oldest_ms: age_ms(now_ms, self.oldest_ms.load(Relaxed)),
            undecided_ms: age_ms(now_ms, self.progress_ms.load(Relaxed)),
            tries: 0,
            error: None,
        })
    }

    fn is_idle(&self, now: Instant) -> bool {
        let is_old = || self.decided().at.is_none_or(|at| now.duration_since(at) >= IDLE);
        !self.is_changed.load(Relaxed)
            && self.waiting.load(Relaxed) + self.abandoned.load(Relaxed) == 0
            && is_old()
    }
}

fn counts_of(outcome: &ProductOutcome) -> Counts {
    Counts {
        reserved: outcome.reserved.into(),
        rejected: outcome.all_rejected().into(),
        paid: outcome.paid.into(),
        cancelled: outcome.cancelled.into(),
        expired: outcome.expired.into(),
        extended: outcome.extended.into(),
        returned: outcome.returned.into(),
        too_late: outcome.too_late.into(),
        repeated: outcome.repeated.into(),
        undecidable: outcome.undecidable.into(),
        ..Counts::default()
    }
}

/// A command for whose verdict a client waits. Dropped without an answer, its client has left.
#[must_use]
pub struct Submitted {
    product: Option<Arc<ProductActivity>>,
    submitted_ms: i64,
    began: Instant,
}

impl Submitted {
    /// What its client is answered; `None`: that there will be a verdict.
    pub fn answer(mut self, outcome: Option<&Outcome>) {
        let Some(product) = self.product.take() else { return };
        let elapsed = self.began.elapsed();
        product.waiting.fetch_sub(1, Relaxed);
        match outcome {
            Some(Outcome::Decided(_)) => {
                let elapsed_ms = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
                product.progress_ms.fetch_max(self.submitted_ms.saturating_add(elapsed_ms), Relaxed);
                product.clear_until(self.submitted_ms);
                product.latency.record(elapsed);
            }
            Some(Outcome::Refused(_)) => drop(product.not_queued.fetch_add(1, Relaxed)),
            // No client waits for it.
            Some(Outcome::Queued) => product.abandon(self.submitted_ms),
            None => {
                product.abandon(self.submitted_ms);
                product.latency.record(elapsed);
            }
        }
        product.is_changed.store(true, Relaxed);
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if let Some(product) = self.product.take() {
            product.waiting.fetch_sub(1, Relaxed);
            product.abandon(self.submitted_ms);
        }
    }
}

#[cfg(test)]
mod tests;
