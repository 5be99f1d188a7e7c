//! The expiries that were asked for. The store finds their reservations again and again, and they are not to be put in line
//! each time; nor are those that cannot be decided.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::now,
    domain::time::from_millis,
    domain::{
        command::{ChangeOrder, ReplyMode},
        ids::{CommandId, OrderId, ProductId},
        order::{Change, Order, OrderStatus},
        verdict::Verdict,
    },
    queue::{Outcome, ReplySink, Submitter},
};

/// How many expiries are undecided at most: half of what a lane takes, so that buyers still get in line.
pub(super) const MAX_QUEUED: usize = 5_000;

/// The same for one product, so that others have room.
pub(super) const MAX_OF_PRODUCT: usize = 1_000;

/// With so many a product that did not answer is tried again.
pub(super) const PROBE: usize = 10;

/// How long it waits for the verdict on an expiry before it asks again.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The first of the growing delays.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

/// The longest delay for a lane that takes nothing or does not answer.
const MAX_LANE_DELAY: Duration = Duration::from_secs(60);

/// The longest delay for a reservation that cannot be decided.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(3_600);

/// How many delays are remembered. With more, the first of them are asked for again early.
const MAX_DELAYS: usize = 100_000;

/// What is known of expiries.
#[derive(Default)]
pub(super) struct Asked(Mutex<State>);

#[derive(Default)]
struct State {
    in_line: HashMap<CommandId, Queued>,
    of_products: HashMap<ProductId, usize>,
    delayed: HashMap<OrderId, Delay>,
    delayed_products: HashMap<ProductId, Delay>,
}

struct Queued {
    order_id: OrderId,
    product_id: ProductId,
    /// When it is taken for lost.
    lost_at: Instant,
}

/// Something is to be tried again.
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
            return; // many fail at the same time
        }
        let length = PAUSE.saturating_mul(2_u32.saturating_pow(delay.failures)).min(longest);
        (delay.until, delay.failures) = (now + length, delay.failures.saturating_add(1));
    }
}

impl State {
    fn take(&mut self, id: CommandId) -> Option<Queued> {
        let taken = self.in_line.remove(&id)?;
        if let Some(count) = self.of_products.get_mut(&taken.product_id) {
            *count -= 1;
            if *count == 0 {
                self.of_products.remove(&taken.product_id);
            }
        }
        Some(taken)
    }

    /// Whether there is room for one more expiry of this product.
    fn has_room_for(&self, product_id: ProductId, now: Instant) -> bool {
        let most = match self.delayed_products.get(&product_id) {
            Some(delay) if delay.until > now => 0,
            Some(_) => PROBE,
            None => MAX_OF_PRODUCT,
        };
        self.in_line.len() < MAX_QUEUED && self.of_products.get(&product_id).copied().unwrap_or(0) < most
    }
}

impl Asked {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The orders whose expiry is in line.
    pub(super) fn orders(&self) -> HashSet<OrderId> {
        self.state().in_line.values().map(|asked| asked.order_id).collect()
    }

    /// Takes those for lost that have had no verdict for long, and returns their products.
    pub(super) fn give_up(&self) -> Vec<ProductId> {
        let now = Instant::now();
        let mut state = self.state();
        let lost: Vec<_> =
            state.in_line.iter().filter(|(_, asked)| asked.lost_at <= now).map(|(id, _)| *id).collect();
        let mut products: Vec<_> =
            lost.iter().filter_map(|id| state.take(*id)).map(|asked| asked.product_id).collect();
        products.sort_unstable();
        products.dedup();
        for product_id in &products {
            Delay::grow(&mut state.delayed_products, *product_id, MAX_LANE_DELAY);
        }
        if !products.is_empty() {
            tracing::warn!(expiries = lost.len(), ?products, "no verdict on expiries, asking again later");
        }
        products
    }

    /// Asks nothing of a product for the longest time.
    pub(super) fn put_off(&self, product_id: ProductId) {
        let delay = Delay { until: Instant::now() + MAX_DELAY, failures: u32::MAX };
        self.state().delayed_products.insert(product_id, delay);
    }

    /// Puts up to `most` expiries in line, and says how many.
    pub(super) fn ask<'a>(
        &self,
        submitter: &dyn Submitter,
        due: impl Iterator<Item = &'a Order>,
        most: usize,
    ) -> usize {
        let reply = ReplyMode::Until(from_millis(now().as_millisecond() + PATIENCE.as_millis() as i64));
        let now = Instant::now();
        let mut expiries = Vec::new();
        {
            let state = &mut *self.state();
            for order in due {
                if expiries.len() == most || state.in_line.len() == MAX_QUEUED {
                    break;
                }
                let is_delayed = state.delayed.get(&order.id).is_some_and(|delay| delay.until > now);
                if is_delayed || !state.has_room_for(order.product_id, now) {
                    continue;
                }
                let Order { id: order_id, product_id, .. } = *order;
                let id = CommandId::generate();
                // Before it is submitted: the answer may be there at once.
                state.in_line.insert(id, Queued { order_id, product_id, lost_at: now + PATIENCE });
                *state.of_products.entry(product_id).or_default() += 1;
                expiries.push(ChangeOrder { id, order_id, product_id, change: Change::Expire, reply });
            }
        }
        let count = expiries.len();
        expiries.into_iter().for_each(|expiry| submitter.submit(expiry.into()));
        count
    }

    #[cfg(test)]
    pub(super) fn in_line(&self) -> Vec<(CommandId, OrderId)> {
        self.state().in_line.iter().map(|(id, asked)| (*id, asked.order_id)).collect()
    }
}

impl ReplySink for Asked {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        let mut state = self.state();
        for (id, outcome) in outcomes {
            if outcome == Outcome::Queued {
                continue;
            }
            let Some(Queued { order_id, product_id, .. }) = state.take(id) else { continue };
            match outcome {
                Outcome::Queued => {}
                Outcome::Refused(_) => Delay::grow(&mut state.delayed_products, product_id, MAX_LANE_DELAY),
                Outcome::Decided(verdict) => {
                    state.delayed_products.remove(&product_id);
                    match verdict {
                        // Nothing became of it.
                        Verdict::Undecidable | Verdict::Status(OrderStatus::Reserved) => {
                            Delay::grow(&mut state.delayed, order_id, MAX_DELAY);
                        }
                        _ => drop(state.delayed.remove(&order_id)),
                    }
                }
            }
        }
    }
}
