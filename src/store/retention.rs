//! Deletes orders that are final and old: a pass over them in id order, which is the order of their creation, in small steps.
//!
//! A pass may end at any step, and several may run at once: a step deletes what is still there, with all that names it, or
//! nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    error::StoreError,
    ports::{Deleted, Retention},
};
use crate::domain::ids::OrderId;

/// The least age of an order that may be deleted: by then no lane and no client knows of it any more.
pub const MIN_AGE: Duration = Duration::from_secs(24 * 3600);

/// How many orders one step examines at most.
const MAX_STEP: u32 = 1_000;
/// How many the first step examines: how quick this database is shows only then.
const FIRST_STEP: u32 = 100;
/// How many it examines at least, whatever that takes.
const MIN_STEP: u32 = 10;
/// How long a step should take: an order that meets it waits as long. On SQLite, where a step holds the file's lock, steps of 5 ms
/// took the p99 of 300 orders a second from 1.7 to 8.9 ms.
const STEP_TIME: Duration = Duration::from_millis(1);
/// The pass rests this many times as long as its last step took, so that most of the database's time is left for orders.
const REST: u32 = 3;

/// What a pass does with the orders that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Delete,
    Count,
}

/// One pass over all orders that are old enough when it begins.
pub struct Pass<'a> {
    store: &'a dyn Retention,
    mode: Mode,
    end: OrderId,
    /// The last order that was examined.
    place: Option<OrderId>,
    step: u32,
    deleted: Deleted,
}

impl<'a> Pass<'a> {
    /// A pass over the orders that are older than `age` (at least [`MIN_AGE`]) now, by the database's clock.
    pub async fn begin(store: &'a dyn Retention, age: Duration, mode: Mode) -> Result<Self, StoreError> {
        let now = store.now().await?;
        // A time before all times is before all orders.
        let end = now.checked_sub(age.max(MIN_AGE)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Ok(Self {
            store,
            mode,
            end: OrderId::first_at(end),
            place: None,
            step: FIRST_STEP,
            deleted: Deleted::default(),
        })
    }

    /// Goes one step. Returns how long to rest before the next one; `None`: the pass is over. After an error that is transient,
    /// the same step may be tried again.
    pub async fn step(&mut self) -> Result<Option<Duration>, StoreError> {
        let began = Instant::now();
        let page = self.store.final_orders(self.place, self.end, self.step).await?;
        self.deleted += match self.mode {
            Mode::Count => Deleted { orders: page.rows.len() as u64, ..Deleted::default() },
            Mode::Delete if page.rows.is_empty() => Deleted::default(),
            Mode::Delete => self.store.delete_orders(&page.rows).await?,
        };
        let took = began.elapsed();
        self.step = next_step(self.step, took);
        let Some(place) = page.next else { return Ok(None) };
        self.place = Some(place);
        Ok(Some(took * REST))
    }

    /// What was deleted so far. [`Mode::Count`] counts orders only.
    pub fn deleted(&self) -> Deleted {
        self.deleted
    }

    /// All orders that were created before this one are old enough.
    pub fn end(&self) -> OrderId {
        self.end
    }

    /// The last order that was examined.
    pub fn place(&self) -> Option<OrderId> {
        self.place
    }
}

/// As many orders as fit into [`STEP_TIME`], by the last step; growing slowly, because one quick step says little.
fn next_step(last: u32, took: Duration) -> u32 {
    let fitting = f64::from(last) * STEP_TIME.as_secs_f64() / took.as_secs_f64().max(1e-6);
    let fitting = fitting.min(f64::from(last) * 1.25);
    (fitting as u32).clamp(MIN_STEP, MAX_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_step_makes_the_next_one_smaller_and_a_quick_one_lets_it_grow() {
        let next = |last, us| next_step(last, Duration::from_micros(us));
        assert_eq!(next(1_000, 2_000), 500);
        assert_eq!(next(400, 1_000), 400);
        assert_eq!(next(400, 200), 500);
        assert_eq!(next(1_000, 0), MAX_STEP);
        assert_eq!(next(100, 10_000_000), MIN_STEP);
    }
}
