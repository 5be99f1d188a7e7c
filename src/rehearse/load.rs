//! The load generator: lets visitors in by a schedule, over a bounded number of connections. It knows no terminal, no product
//! and no order; what a visitor does is a function.
//!
//! The loop is open. When each visitor is due is fixed beforehand and does not depend on earlier answers, and latencies count
//! from then. A server that stalls is measured by all visitors that arrive during the stall, not only by the few whose requests it
//! held ("coordinated omission", Gil Tene). A closed loop, as the benchmark has, needs only the [`client`].

pub mod arrivals;
pub mod client;
pub mod target;

use std::{
    future::Future,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::arrivals::Arrivals;

/// The longest sleep of the thread that lets visitors in: how late it learns that it should stop.
const NAP: Duration = Duration::from_millis(100);

/// One visitor, who has just been let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// From 0.
    pub number: u64,
    /// When it was to be let in. Latencies count from here.
    pub due: Instant,
}

/// Lets all visitors in, each at its time, and returns how many there were when all are done. After `stop` nobody is let in
/// any more.
pub async fn open_loop<F, Fut>(arrivals: Arrivals, start: Instant, stop: CancellationToken, visit: F) -> u64
where
    F: Fn(Visit) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let gate = Gate::open(arrivals, start);
    let mut visits = JoinSet::new();
    let mut number = 0;
    while number < arrivals.count() {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = gate.next() => {
                visits.spawn(visit(Visit { number, due: start + arrivals.due(number) }));
                number += 1;
            }
        }
        while visits.try_join_next().is_some() {}
    }
    drop(gate);
    while visits.join_next().await.is_some() {}
    number
}

/// Opens for one visitor after the other, on its own thread: tokio's timers know whole milliseconds only.
struct Gate {
    due: Arc<Semaphore>,
}

impl Gate {
    fn open(arrivals: Arrivals, start: Instant) -> Self {
        let due = Arc::new(Semaphore::new(0));
        let opened = due.clone();
        thread::spawn(move || {
            let mut number = 0;
            while number < arrivals.count() && !opened.is_closed() {
                let elapsed = start.elapsed();
                let first = number;
                while number < arrivals.count() && arrivals.due(number) <= elapsed {
                    number += 1;
                }
                opened.add_permits((number - first) as usize);
                if number < arrivals.count() {
                    thread::sleep(arrivals.due(number).saturating_sub(start.elapsed()).min(NAP));
                }
            }
        });
        Self { due }
    }

    async fn next(&self) {
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.due.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Visitors do not wait for earlier ones: all start although none of them ends before the last one has arrived.
    #[tokio::test]
    async fn a_visitor_does_not_wait_for_earlier_ones() {
        let arrivals = Arrivals::at_rate(50, 1_000.0, Duration::ZERO);
        let inside = Arc::new(tokio::sync::Barrier::new(50));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let visit = |visit: Visit| {
            let (inside, seen) = (inside.clone(), seen.clone());
            async move {
                seen.lock().unwrap().push((visit.number, visit.due - start, visit.due.elapsed()));
                inside.wait().await;
            }
        };
        assert_eq!(open_loop(arrivals, start, CancellationToken::new(), visit).await, 50);
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        for (index, (number, due, _)) in seen.into_iter().enumerate() {
            assert_eq!((number, due), (index as u64, arrivals.due(index as u64)));
        }
    }

    #[tokio::test]
    async fn nobody_is_let_in_after_the_stop() {
        let arrivals = Arrivals::at_rate(1_000_000, 0.001, Duration::ZERO);
        let stop = CancellationToken::new();
        let visit = |_| {
            let stop = stop.clone();
            async move { stop.cancel() }
        };
        assert_eq!(open_loop(arrivals, Instant::now(), stop.clone(), visit).await, 1);
    }
}
