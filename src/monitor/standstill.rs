//! Lanes in which commands wait and none is decided: what readiness answers, and what the log says of them.

use std::{fmt::Write, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::STALLED_AFTER;
use crate::{digits::thousands, domain::ids::ProductId};

/// Lanes without a decision for this long are listed when something does not work, though they do not stand still yet.
pub(super) const LISTED_AFTER_MS: u64 = 1_000;
/// How often the log says that lanes stand still, at most.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// How many lanes one line of the log names.
const NAMED: usize = 3;

/// The lanes in which commands wait for long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standstill {
    /// Some lane stands still, and no other goes on.
    pub is_complete: bool,
    /// Those without a decision for the longest time first; also some that do not stand still yet.
    pub lanes: Vec<WaitingLane>,
}

/// A lane with commands that nobody has decided for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingLane {
    pub product_id: ProductId,
    /// Commands without a verdict.
    pub waiting: u64,
    /// How long ago the oldest of them was submitted.
    pub oldest_ms: u64,
    /// For how long none was decided.
    pub undecided_ms: u64,
    /// How often their decision failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub tries: u32,
    /// Why it failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Standstill {
    /// `any_decided_ms`: how long ago anything was decided last; `None`: nothing ever was.
    pub fn new(mut lanes: Vec<WaitingLane>, any_decided_ms: Option<u64>) -> Self {
        lanes.sort_by_key(|lane| (std::cmp::Reverse(lane.undecided_ms), lane.product_id));
        let nothing_goes_on = any_decided_ms.is_none_or(|ms| ms >= stalled_after_ms());
        Self { is_complete: nothing_goes_on && lanes.iter().any(WaitingLane::is_stalled), lanes }
    }

    /// Those that stand still.
    pub fn stalled(&self) -> impl Iterator<Item = &WaitingLane> {
        self.lanes.iter().filter(|lane| lane.is_stalled())
    }
}

impl WaitingLane {
    /// Whether it stands still.
    pub fn is_stalled(&self) -> bool {
        self.undecided_ms >= stalled_after_ms()
    }
}

fn stalled_after_ms() -> u64 {
    elapsed_ms(STALLED_AFTER)
}

/// In whole milliseconds.
pub(super) fn elapsed_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the log says of lanes that stand still: at most every five seconds, and once when it is over.
#[derive(Debug, Default)]
pub struct StandstillLog {
    /// Since when lanes stand still.
    since: Option<Instant>,
    logged_at: Option<Instant>,
}

impl StandstillLog {
    /// To be called about once a second.
    pub fn update(&mut self, standstill: &Standstill) {
        let Some(worst) = standstill.stalled().next() else {
            if let Some(since) = self.since.take() {
                let elapsed_ms = elapsed_ms(since.elapsed());
                tracing::info!(elapsed_ms, "all lanes go on");
            }
            self.logged_at = None;
            return;
        };
        self.since.get_or_insert_with(Instant::now);
        if self.logged_at.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        self.logged_at = Some(Instant::now());
        let lanes = standstill.lanes.len();
        let WaitingLane { waiting, oldest_ms, tries, error, .. } = worst;
        tracing::warn!(
            product_id = worst.product_id.get(),
            waiting,
            oldest_ms,
            tries,
            error = error.as_deref(),
            lanes,
            "{}",
            sentence(standstill)
        );
    }
}

/// `lane 17: 1,203 waiting, oldest 6 s, try 3: database is locked`. Those that do not stand still yet are named as well: what is
/// wrong with one is often wrong with all.
fn sentence(standstill: &Standstill) -> String {
    let mut text = String::new();
    for (index, lane) in standstill.lanes.iter().take(NAMED).enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let (id, waiting, seconds) = (lane.product_id, thousands(lane.waiting), lane.oldest_ms / 1_000);
        let _ = write!(text, "{separator}lane {id}: {waiting} waiting, oldest {seconds} s");
        if lane.tries > 0 {
            let _ = write!(text, ", try {}", lane.tries);
        }
        if let Some(error) = &lane.error {
            let _ = write!(text, ": {error}");
        }
    }
    match standstill.lanes.len().saturating_sub(NAMED) {
        0 => {}
        others => drop(write!(text, "; and {others} more lanes")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(number: u64, undecided_ms: u64) -> WaitingLane {
        let product_id = ProductId::new(number).unwrap();
        WaitingLane { product_id, waiting: 1_203, oldest_ms: 6_400, undecided_ms, tries: 0, error: None }
    }

    #[test]
    fn it_is_complete_while_nothing_goes_on() {
        let ms = stalled_after_ms();
        let is_complete = |lanes: &[WaitingLane], any| Standstill::new(lanes.to_vec(), any).is_complete;
        assert!(!is_complete(&[], None));
        assert!(!is_complete(&[lane(1, ms - 1)], None));
        assert!(is_complete(&[lane(1, ms - 1), lane(2, ms)], Some(ms)));
        assert!(!is_complete(&[lane(2, ms)], Some(ms - 1)), "another lane goes on");
    }

    #[test]
    fn the_log_names_the_worst_lanes_and_how_many_others_there_are() {
        let failing =
            WaitingLane { tries: 3, error: Some("database is locked".to_owned()), ..lane(17, 9_000) };
        let standstill = Standstill::new(vec![lane(4, 1_000), failing], None);
        let expected = "lane 17: 1,203 waiting, oldest 6 s, try 3: database is locked; lane 4: 1,203 waiting, oldest 6 s";
        assert_eq!(sentence(&standstill), expected);
        let many = Standstill::new((1..=8).map(|number| lane(number, 9_000)).collect(), None);
        assert!(sentence(&many).ends_with("lane 3: 1,203 waiting, oldest 6 s; and 5 more lanes"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
