//! What a worker has taken and not decided, lane by lane. Its numbers are exact but for one case: when lanes hold several
//! products and one of them is locked, commands that are requeued count as if none of their message were decided.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    report::LaneReport,
    standstill::{LISTED_AFTER_MS, Standstill, WaitingLane, elapsed_ms},
};
use crate::{
    domain::{command::Command, ids::ProductId},
    queue::Delivery,
};

/// The undecided commands of a worker.
#[derive(Debug, Default)]
pub struct Undecided(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lanes: HashMap<ProductId, Held>,
    decided_at: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    commands: u64,
    /// The time of the oldest one's id, in Unix milliseconds.
    oldest_ms: i64,
    /// When one was decided last; before that, when the first was taken.
    progress_at: Instant,
    tries: u32,
    error: Option<String>,
}

impl Undecided {
    /// A worker has taken these.
    pub fn take(&self, deliveries: &[Delivery]) {
        let now = Instant::now();
        let mut state = self.state();
        for_each_product(deliveries, |product_id, first, _, count| {
            let held = state.lanes.entry(product_id).or_insert_with(|| Held {
                commands: 0,
                oldest_ms: time_of(first),
                progress_at: now,
                tries: 0,
                error: None,
            });
            held.commands += count;
        });
    }

    /// These are decided.
    pub fn decide(&self, deliveries: &[Delivery]) {
        self.state().decided_at = Some(Instant::now());
        self.release(deliveries);
    }

    /// A worker gives these up: they are decided, or back in their lanes.
    pub fn release(&self, deliveries: &[Delivery]) {
        let now = Instant::now();
        let mut state = self.state();
        for_each_product(deliveries, |product_id, _, last, count| {
            let Some(held) = state.lanes.get_mut(&product_id) else { return };
            if held.commands <= count {
                state.lanes.remove(&product_id);
                return;
            }
            held.commands -= count;
            // First in, first out: those that are left came later.
            held.oldest_ms = held.oldest_ms.max(time_of(last));
            (held.progress_at, held.tries, held.error) = (now, 0, None);
        });
    }

    /// The decision of these has failed.
    pub fn fail(&self, commands: &[Command], error: &str) {
        let mut state = self.state();
        let mut last = None;
        for product_id in commands.iter().map(Command::product_id) {
            if last.replace(product_id) == Some(product_id) {
                continue;
            }
            if let Some(held) = state.lanes.get_mut(&product_id) {
                held.tries += 1;
                held.error = Some(error.to_owned());
            }
        }
    }

    /// The session of a worker with its queue. What it holds when this is dropped goes back to the lanes.
    pub fn session(self: &Arc<Self>) -> impl Drop + use<> {
        Session(self.clone())
    }

    /// What is held in each lane.
    pub fn lanes(&self, now_ms: i64) -> Vec<LaneReport> {
        let state = self.state();
        let lanes = state.lanes.iter().map(|(product_id, held)| LaneReport {
            product_id: *product_id,
            unanswered: 0,
            held: held.commands,
            oldest_ms: age_ms(now_ms, held.oldest_ms),
            undecided_ms: elapsed_ms(held.progress_at.elapsed()),
            tries: held.tries,
            error: held.error.clone(),
        });
        lanes.collect()
    }

    /// The lanes in which nothing is decided.
    pub fn standstill(&self, now_ms: i64) -> Standstill {
        let lanes = self.lanes(now_ms).into_iter();
        let lanes = lanes.filter(|lane| lane.undecided_ms >= LISTED_AFTER_MS).map(|lane| WaitingLane {
            product_id: lane.product_id,
            waiting: lane.held,
            oldest_ms: lane.oldest_ms,
            undecided_ms: lane.undecided_ms,
            tries: lane.tries,
            error: lane.error,
        });
        Standstill::new(lanes.collect(), self.state().decided_at.map(|at| elapsed_ms(at.elapsed())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Session(Arc<Undecided>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.state().lanes.clear();
    }
}

/// Calls `each` with the first and last command and the number of each run of commands of one product.
fn for_each_product(deliveries: &[Delivery], mut each: impl FnMut(ProductId, &Command, &Command, u64)) {
    for delivery in deliveries {
        for run in delivery.commands.chunk_by(|a, b| a.product_id() == b.product_id()) {
            if let [first, ..] = run
                && let Some(last) = run.last()
            {
                each(first.product_id(), first, last, run.len() as u64);
            }
        }
    }
}

/// When a command was submitted, in Unix milliseconds.
pub(super) fn time_of(command: &Command) -> i64 {
    command.id().as_order().created_at().as_millisecond()
}

pub(super) fn age_ms(now_ms: i64, then_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(then_ms)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::{NewOrder, ReplyMode},
            lines::Lines,
            order::Quantity,
            origin::Origin,
        },
        monitor::STALLED_AFTER,
    };

    fn delivery(products: &[u64]) -> Delivery {
        let order = |number: &u64| {
            let (id, product_id) = (SystemClock.order_id(), ProductId::new(*number).unwrap());
            let (total, reply, origin) = (Quantity::new(1).unwrap(), ReplyMode::Detached, Origin::default());
            Command::from(NewOrder {
                id,
                lines: Lines::one(product_id, total),
                buyer: None,
                reply,
                key: None,
                origin,
            })
        };
        let commands = products.iter().map(order).collect();
        Delivery { commands, lane: "a lane".into(), reply_to: "an API".into(), tag: 1 }
    }

    fn held(undecided: &Undecided) -> Vec<(u64, u64)> {
        let lanes = undecided.lanes(SystemClock.now().as_millisecond());
        let mut held: Vec<_> = lanes.iter().map(|lane| (lane.product_id.get(), lane.held)).collect();
        held.sort_unstable();
        held
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_and_not_decided_is_held() {
        let undecided = Arc::new(Undecided::default());
        let session = undecided.session();
        let [first, second] = [delivery(&[1, 1, 2, 1]), delivery(&[2, 3])];
        undecided.take(&[first.clone(), second.clone()]);
        assert_eq!(held(&undecided), [(1, 3), (2, 2), (3, 1)]);
        undecided.decide(std::slice::from_ref(&first));
        assert_eq!(held(&undecided), [(2, 1), (3, 1)]);
        undecided.release(&[first, second]);
        assert_eq!(held(&undecided), []);
        undecided.take(&[delivery(&[1])]);
        drop(session);
        assert_eq!(held(&undecided), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_stands_still_until_something_of_it_is_decided() {
        let undecided = Undecided::default();
        let [locked, free] = [delivery(&[1, 1]), delivery(&[2])];
        undecided.take(&[locked.clone(), free.clone()]);
        undecided.fail(&locked.commands, "locked");
        undecided.fail(&locked.commands, "locked");
        advance(STALLED_AFTER).await;
        let now_ms = SystemClock.now().as_millisecond() + 4_000;
        let standstill = undecided.standstill(now_ms);
        assert!(standstill.is_complete);
        let of_locked = standstill.lanes.iter().find(|lane| lane.product_id.get() == 1).unwrap();
        assert_eq!((of_locked.waiting, of_locked.tries, of_locked.error.as_deref()), (2, 2, Some("locked")));
        assert!((4_000..4_500).contains(&of_locked.oldest_ms), "{of_locked:?}");
        undecided.decide(&[free]);
        let standstill = undecided.standstill(now_ms);
        assert!(!standstill.is_complete);
        assert_eq!(standstill.stalled().count(), 1);
        let [first, _] = locked.commands.clone().try_into().unwrap();
        undecided.decide(&[Delivery { commands: vec![first], ..locked }]);
        advance(Duration::from_millis(1_500)).await;
        let standstill = undecided.standstill(now_ms);
        assert_eq!((standstill.lanes.len(), standstill.stalled().count()), (1, 0));
        assert_eq!((standstill.lanes[0].waiting, standstill.lanes[0].tries), (1, 0));
    }
}
