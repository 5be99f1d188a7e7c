//! What waits in the lanes, put together from what all processes know of them.

use std::{collections::HashMap, time::Duration};

use super::{
    super::{STALLED_AFTER, report::LaneReport, standstill::elapsed_ms},
    view::LaneView,
};
use crate::domain::ids::ProductId;

/// The lanes with undecided commands.
pub(super) type Lanes = HashMap<ProductId, LaneSum>;

#[derive(Clone, Debug, Default)]
pub(super) struct LaneSum {
    /// At all APIs.
    unanswered: u64,
    /// By all workers.
    held: u64,
    oldest_ms: u64,
    undecided_ms: u64,
    tries: u32,
    error: Option<String>,
}

impl LaneSum {
    /// What a process told this long ago.
    pub(super) fn add(&mut self, report: &LaneReport, ago: Duration) {
        let ago_ms = elapsed_ms(ago);
        self.unanswered = self.unanswered.saturating_add(report.unanswered);
        self.held = self.held.saturating_add(report.held);
        self.oldest_ms = self.oldest_ms.max(report.oldest_ms.saturating_add(ago_ms));
        self.undecided_ms = self.undecided_ms.max(report.undecided_ms.saturating_add(ago_ms));
        if report.tries >= self.tries {
            self.tries = report.tries;
            self.error = report.error.clone().or(self.error.take());
        }
    }

    /// Some commands that a worker holds are among those that an API waits for, and others are not: their API is gone, or has
    /// given up.
    pub(super) fn waiting(&self) -> u64 {
        self.unanswered.max(self.held)
    }

    pub(super) fn is_held(&self) -> bool {
        self.held > 0
    }

    /// `decided_ago`: of the last decision in this lane that any process told.
    pub(super) fn view(&self, decided_ago: Option<Duration>) -> LaneView {
        let decided_ago =
            decided_ago.map_or(u64::MAX, |ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        let undecided_ms = self.undecided_ms.min(decided_ago);
        LaneView {
            waiting: self.waiting(),
            oldest_ms: self.oldest_ms,
            undecided_ms,
            is_stalled: u128::from(undecided_ms) >= STALLED_AFTER.as_millis() && self.waiting() > 0,
            tries: self.tries,
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unanswered: u64, held: u64, undecided_ms: u64) -> LaneReport {
        LaneReport {
            product_id: ProductId::new(1).unwrap(),
            unanswered,
            held,
            oldest_ms: undecided_ms,
            undecided_ms,
            tries: 0,
            error: None,
        }
    }

    #[test]
    fn commands_that_an_api_waits_for_and_a_worker_holds_are_counted_once() {
        let mut lane = LaneSum::default();
        for one in [report(30, 0, 10), report(20, 0, 10), report(0, 40, 10)] {
            lane.add(&one, Duration::ZERO);
        }
        assert_eq!(lane.waiting(), 50);
        lane.add(&report(0, 40, 10), Duration::ZERO);
        assert_eq!(lane.waiting(), 80);
    }

    #[test]
    fn a_lane_is_stalled_when_nothing_of_it_is_decided() {
        let mut lane = LaneSum::default();
        let ms = STALLED_AFTER.as_millis() as u64;
        lane.add(&report(3, 0, ms - 500), Duration::from_millis(400));
        assert!(!lane.view(None).is_stalled);
        lane.add(&report(0, 3, ms - 500), Duration::from_millis(500));
        assert_eq!(lane.view(None).undecided_ms, ms);
        assert!(lane.view(None).is_stalled);
        // Another API's commands are decided: those of this one are in their turn.
        assert!(!lane.view(Some(Duration::from_secs(1))).is_stalled);
    }
}
