//! The expiries that were submitted. The store finds their reservations at every sweep, and they must not be queued each time;
//! nor must those that cannot be decided.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::Clock,
    domain::time::from_millis,
    domain::{
        command::{ChangeOrder, ReplyMode},
        ids::{CommandId, OrderId, ProductId},
        order::{Change, Order, OrderStatus},
        origin::Origin,
        verdict::Verdict,
    },
    queue::{Outcome, ReplySink, Submitter},
    telemetry::listed,
};

/// How many expiries are queued at most: half of what a lane takes, so that orders still fit in.
pub(super) const MAX_QUEUED: usize = 5_000;

/// The same for one product, so that others have room.
pub(super) const MAX_OF_PRODUCT: usize = 1_000;

/// So many expiries of a product are submitted at first after its lane did not answer.
pub(super) const PROBE_SIZE: usize = 10;

/// How long an expiry waits for its verdict before it is submitted again.
pub(super) const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// The first of the growing delays.
pub(super) const MIN_DELAY: Duration = Duration::from_secs(2);

/// The longest delay for a lane that refuses or does not answer.
const MAX_LANE_DELAY: Duration = Duration::from_secs(60);

/// The longest delay for a reservation that cannot be decided.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(3_600);

/// How many delays are remembered. With more, all are forgotten, and their expiries are submitted again early.
const MAX_DELAYS: usize = 100_000;

/// Which expiries are queued, and which are delayed.
#[derive(Default)]
pub(super) struct ExpiryRequests(Mutex<State>);

#[derive(Default)]
struct State {
    queued: HashMap<CommandId, QueuedExpiry>,
    queued_by_product: HashMap<ProductId, usize>,
    delayed: HashMap<OrderId, Delay>,
    delayed_products: HashMap<ProductId, Delay>,
}

struct QueuedExpiry {
    order_id: OrderId,
    product_id: ProductId,
    /// When it is taken for lost.
    times_out_at: Instant,
}

/// When something is tried again.
struct Delay {
    until: Instant,
    failures: u32,
}

impl Delay {
    /// Twice as long each time.
    fn grow<K: Eq + std::hash::Hash>(delays: &mut HashMap<K, Self>, key: K, longest: Duration) {
        if delays.len() >= MAX_DELAYS {
            delays.clear();
        }
        let now = Instant::now();
        let delay = delays.entry(key).or_insert(Self { until: now, failures: 0 });
        if delay.until > now {
            return; // many expiries fail at the same time
        }
        let length = MIN_DELAY.saturating_mul(2_u32.saturating_pow(delay.failures)).min(longest);
        (delay.until, delay.failures) = (now + length, delay.failures.saturating_add(1));
    }
}

impl State {
    fn take(&mut self, id: CommandId) -> Option<QueuedExpiry> {
        let taken = self.queued.remove(&id)?;
        if let Some(count) = self.queued_by_product.get_mut(&taken.product_id) {
            *count -= 1;
            if *count == 0 {
                self.queued_by_product.remove(&taken.product_id);
            }
        }
        Some(taken)
    }

    /// Whether there is room for one more expiry of this product.
    fn has_room_for(&self, product_id: ProductId, now: Instant) -> bool {
        let most = match self.delayed_products.get(&product_id) {
            Some(delay) if delay.until > now => 0,
            Some(_) => PROBE_SIZE,
            None => MAX_OF_PRODUCT,
        };
        self.queued.len() < MAX_QUEUED && self.queued_by_product.get(&product_id).copied().unwrap_or(0) < most
    }
}

impl ExpiryRequests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The orders whose expiry is queued.
    pub(super) fn queued_orders(&self) -> HashSet<OrderId> {
        self.state().queued.values().map(|expiry| expiry.order_id).collect()
    }

    /// Drops expiries without a verdict after [`VERDICT_TIMEOUT`], and returns their products.
    pub(super) fn time_out(&self) -> Vec<ProductId> {
        let now = Instant::now();
        let mut state = self.state();
        let lost: Vec<_> =
            state.queued.iter().filter(|(_, expiry)| expiry.times_out_at <= now).map(|(id, _)| *id).collect();
        let mut products: Vec<_> =
            lost.iter().filter_map(|id| state.take(*id)).map(|expiry| expiry.product_id).collect();
        products.sort_unstable();
        products.dedup();
        for product_id in &products {
            Delay::grow(&mut state.delayed_products, *product_id, MAX_LANE_DELAY);
        }
        if !products.is_empty() {
            tracing::warn!(
                expiries = lost.len(),
                products = listed(&products),
                "no verdict on expiries, submitting them again later"
            );
        }
        products
    }

    /// Submits no expiries of a product for [`MAX_DELAY`].
    pub(super) fn suspend(&self, product_id: ProductId) {
        let delay = Delay { until: Instant::now() + MAX_DELAY, failures: u32::MAX };
        self.state().delayed_products.insert(product_id, delay);
    }

    /// Submits up to `max` expiries, and returns how many.
    pub(super) fn submit<'a>(
        &self,
        submitter: &dyn Submitter,
        clock: &dyn Clock,
        due: impl Iterator<Item = &'a Order>,
        max: usize,
    ) -> usize {
        let reply =
            ReplyMode::Until(from_millis(clock.now().as_millisecond() + VERDICT_TIMEOUT.as_millis() as i64));
        let now = Instant::now();
        let mut expiries = Vec::new();
        {
            let state = &mut *self.state();
            for order in due {
                if expiries.len() == max || state.queued.len() == MAX_QUEUED {
                    break;
                }
                let is_delayed = state.delayed.get(&order.id).is_some_and(|delay| delay.until > now);
                let id = clock.command_id();
                let expiry = ChangeOrder::of(order, id, Change::Expire, reply, Origin::default());
                let Some(expiry) = expiry else { continue };
                let (order_id, product_id) = (order.id, expiry.product_id);
                if is_delayed || !state.has_room_for(product_id, now) {
                    continue;
                }
                // Before it is submitted: the verdict may arrive at once.
                state
                    .queued
                    .insert(id, QueuedExpiry { order_id, product_id, times_out_at: now + VERDICT_TIMEOUT });
                *state.queued_by_product.entry(product_id).or_default() += 1;
                expiries.push(expiry);
            }
        }
        let count = expiries.len();
        expiries.into_iter().for_each(|expiry| submitter.submit(expiry.into()));
        count
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> Vec<(CommandId, OrderId)> {
        self.state().queued.iter().map(|(id, expiry)| (*id, expiry.order_id)).collect()
    }
}

impl ReplySink for ExpiryRequests {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        let mut state = self.state();
        for (id, outcome) in outcomes {
            if outcome == Outcome::Queued {
                continue;
            }
            let Some(QueuedExpiry { order_id, product_id, .. }) = state.take(id) else { continue };
            match outcome {
                Outcome::Queued => {}
                Outcome::Refused(_) => Delay::grow(&mut state.delayed_products, product_id, MAX_LANE_DELAY),
                Outcome::Decided(verdict) => {
                    state.delayed_products.remove(&product_id);
                    match verdict {
                        Verdict::Undecidable => Delay::grow(&mut state.delayed, order_id, MAX_DELAY),
                        // It has not expired.
                        Verdict::Current(order) if order.status() == OrderStatus::Reserved => {
                            Delay::grow(&mut state.delayed, order_id, MAX_DELAY);
                        }
                        _ => drop(state.delayed.remove(&order_id)),
                    }
                }
            }
        }
    }
}
