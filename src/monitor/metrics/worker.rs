//! What a worker measures: its batches, the expiries, and whether inventories agree with their orders.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use prometheus::{Error, Histogram, IntCounter, IntGauge};

use super::{
    instruments::{Counters, Label, Maker},
    table,
};
use crate::{
    domain::{outcome::ProductOutcomes, rejection::RejectionReason},
    store::{RetryCause, StoreError, TransactionObserver, TransactionPhases},
};

#[derive(Debug)]
pub struct WorkerMetrics {
    taken: IntCounter,
    decided: Counters<Decided>,
    lane_wait: Histogram,
    batch_commands: Histogram,
    batch_duration: Histogram,
    phases: Phases,
    failures: Counters<FailureCause>,
    retries: Counters<RetryCause>,
    requeued: IntCounter,
    consumers_started: IntCounter,
    dead_letters_written: IntCounter,
    pub expiry: Arc<ExpiryMetrics>,
    pub conservation: Arc<ConservationMetrics>,
}

#[derive(Debug)]
struct Phases {
    lock_and_read: Histogram,
    decide: Histogram,
    commit: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    Reserved,
    Rejected(RejectionReason),
    Paid,
    Cancelled,
    Expired,
    Extended,
    Returned,
    PaymentTooLate,
    Repeated,
    Undecidable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureCause {
    Unavailable,
    Locked,
    Contended,
    Refused,
}

impl WorkerMetrics {
    pub(super) fn new(maker: &Maker) -> Result<Self, Error> {
        let phases = maker.histogram_family(&table::BATCH_PHASE_DURATION)?;
        let phase = |name| phases.get_metric_with_label_values(&[name]);
        Ok(Self {
            taken: maker.counter(&table::COMMANDS_TAKEN)?,
            decided: maker.counters(&table::COMMANDS_DECIDED)?,
            lane_wait: maker.histogram(&table::LANE_WAIT)?,
            batch_commands: maker.histogram(&table::BATCH_COMMANDS)?,
            batch_duration: maker.histogram(&table::BATCH_DURATION)?,
            phases: Phases {
                lock_and_read: phase("lock_and_read")?,
                decide: phase("decide")?,
                commit: phase("write_and_commit")?,
            },
            failures: maker.counters(&table::BATCH_FAILURES)?,
            retries: maker.counters(&table::TRANSACTION_RETRIES)?,
            requeued: maker.counter(&table::COMMANDS_REQUEUED)?,
            consumers_started: maker.counter(&table::CONSUMERS_STARTED)?,
            dead_letters_written: maker.counter(&table::DEAD_LETTERS_WRITTEN)?,
            expiry: Arc::new(ExpiryMetrics::new(maker)?),
            conservation: Arc::new(ConservationMetrics::new(maker)?),
        })
    }

    pub fn taken(&self, commands: usize) {
        self.taken.inc_by(commands as u64);
    }

    pub fn requeued(&self, commands: usize) {
        self.requeued.inc_by(commands as u64);
    }

    pub fn consumer_started(&self) {
        self.consumers_started.inc();
    }

    pub fn dead_letters_written(&self, commands: usize) {
        self.dead_letters_written.inc_by(commands as u64);
    }

    /// A batch begins, with a command that was created so long ago.
    pub fn waited(&self, age: Duration) {
        self.lane_wait.observe(age.as_secs_f64());
    }

    /// A batch is committed.
    pub fn decided(&self, commands: usize, duration: Duration, outcomes: &ProductOutcomes) {
        self.batch_commands.observe(commands as f64);
        self.batch_duration.observe(duration.as_secs_f64());
        for outcome in outcomes.values() {
            let counts = [
                (Decided::Reserved, outcome.reserved),
                (Decided::Paid, outcome.paid),
                (Decided::Cancelled, outcome.cancelled),
                (Decided::Expired, outcome.expired),
                (Decided::Extended, outcome.extended),
                (Decided::Returned, outcome.returned),
                (Decided::PaymentTooLate, outcome.too_late),
                (Decided::Repeated, outcome.repeated),
                (Decided::Undecidable, outcome.undecidable),
            ];
            let rejected = RejectionReason::ALL
                .into_iter()
                .map(|reason| (Decided::Rejected(reason), outcome.rejected(reason)));
            for (what, count) in counts.into_iter().chain(rejected).filter(|(_, count)| *count > 0) {
                self.decided.add(what, count.into());
            }
        }
    }

    /// An attempt to decide a batch failed.
    pub fn failed(&self, error: &StoreError) {
        let cause = match error {
            StoreError::Unavailable(_) | StoreError::TooManyLists => FailureCause::Unavailable,
            StoreError::Locked(_) => FailureCause::Locked,
            StoreError::Contended(_) => FailureCause::Contended,
            StoreError::Refused(_) | StoreError::BooksDoNotBalance(_) | StoreError::Corrupt(_) => {
                FailureCause::Refused
            }
        };
        self.failures.add(cause, 1);
    }
}

impl TransactionObserver for WorkerMetrics {
    fn committed(&self, phases: TransactionPhases) {
        self.phases.lock_and_read.observe(phases.lock_and_read.as_secs_f64());
        self.phases.decide.observe(phases.decide.as_secs_f64());
        self.phases.commit.observe(phases.write_and_commit.as_secs_f64());
    }

    fn runs_again(&self, cause: RetryCause) {
        self.retries.add(cause, 1);
    }
}

/// The reservations that are due, as the sweeps find them.
#[derive(Debug)]
pub struct ExpiryMetrics {
    backlog: IntGauge,
    submitted: IntCounter,
    last_sweep: IntGauge,
    /// Found so far by the sweep that is under way.
    found: AtomicU64,
    /// When the reservation ends that is overdue longest, in Unix milliseconds. `i64::MAX`: none is.
    oldest_due_ms: AtomicI64,
}

impl ExpiryMetrics {
    fn new(maker: &Maker) -> Result<Self, Error> {
        Ok(Self {
            backlog: maker.gauge(&table::EXPIRY_BACKLOG)?,
            submitted: maker.counter(&table::EXPIRIES_SUBMITTED)?,
            last_sweep: maker.gauge(&table::EXPIRY_LAST_SWEEP)?,
            found: AtomicU64::new(0),
            oldest_due_ms: AtomicI64::new(i64::MAX),
        })
    }

    /// A sweep begins with the reservation that is overdue longest, if any is.
    pub fn sweep_begins(&self, oldest_due: Option<Timestamp>) {
        self.found.store(0, Relaxed);
        self.oldest_due_ms.store(oldest_due.map_or(i64::MAX, Timestamp::as_millisecond), Relaxed);
    }

    /// It found so many, and submitted the expiries of some.
    pub fn found(&self, reservations: usize, submitted: usize) {
        self.found.fetch_add(reservations as u64, Relaxed);
        self.submitted.inc_by(submitted as u64);
    }

    /// It has seen all.
    pub fn sweep_ends(&self, now: Timestamp) {
        self.backlog.set(i64::try_from(self.found.load(Relaxed)).unwrap_or(i64::MAX));
        self.last_sweep.set(now.as_second());
    }

    /// How late the reservation is that is overdue longest, in seconds.
    pub fn lag_seconds(&self, now: Timestamp) -> f64 {
        let oldest = self.oldest_due_ms.load(Relaxed);
        now.as_millisecond().saturating_sub(oldest).max(0) as f64 / 1_000.0
    }
}

/// What the comparison of inventories with their orders found.
#[derive(Debug)]
pub struct ConservationMetrics {
    difference: IntGauge,
    checked: IntCounter,
    failures: IntCounter,
    rounds: IntCounter,
}

impl ConservationMetrics {
    fn new(maker: &Maker) -> Result<Self, Error> {
        Ok(Self {
            difference: maker.gauge(&table::CONSERVATION_DIFFERENCE)?,
            checked: maker.counter(&table::CONSERVATION_CHECKED)?,
            failures: maker.counter(&table::CONSERVATION_FAILURES)?,
            rounds: maker.counter(&table::CONSERVATION_ROUNDS)?,
        })
    }

    /// So many products were compared, and this round has found a difference of so many pieces.
    pub fn compared(&self, products: usize, pieces: u64) {
        self.checked.inc_by(products as u64);
        let pieces = i64::try_from(pieces).unwrap_or(i64::MAX);
        self.difference.set(self.difference.get().max(pieces));
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    /// A complete round found a difference of so many pieces.
    pub fn round_ends(&self, pieces: u64) {
        self.difference.set(i64::try_from(pieces).unwrap_or(i64::MAX));
        self.rounds.inc();
    }
}

impl Label for Decided {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        let plain = [
            (Self::Reserved, "reserved"),
            (Self::Paid, "paid"),
            (Self::Cancelled, "cancelled"),
            (Self::Expired, "expired"),
            (Self::Extended, "extended"),
            (Self::Returned, "returned"),
            (Self::PaymentTooLate, "payment_too_late"),
            (Self::Repeated, "repeated"),
            (Self::Undecidable, "undecidable"),
        ];
        let rejected = |reason: RejectionReason| (Self::Rejected(reason), vec!["rejected", reason.as_str()]);
        let plain = plain.into_iter().map(|(decided, outcome)| (decided, vec![outcome, ""]));
        plain.chain(RejectionReason::ALL.into_iter().map(rejected)).collect()
    }
}

impl Label for FailureCause {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        vec![
            (Self::Unavailable, vec!["unavailable"]),
            (Self::Locked, vec!["locked"]),
            (Self::Contended, vec!["contended"]),
            (Self::Refused, vec!["refused"]),
        ]
    }
}

impl Label for RetryCause {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        vec![(Self::Contended, vec!["contended"]), (Self::Duplicate, vec!["duplicate"])]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Metrics, *};
    use crate::domain::{
        ids::ProductId,
        outcome::{Effect, ProductOutcome},
        rejection::Rejection,
        time::from_millis,
    };

    #[test]
    fn a_batch_is_counted_by_what_was_decided() {
        let metrics = Metrics::unwatched();
        let mut outcome = ProductOutcome::default();
        for effect in
            [Effect::Reserved, Effect::Reserved, Effect::Rejected(Rejection::KeyReused), Effect::Undecidable]
        {
            outcome.count(effect);
        }
        let outcomes = [1, 2].map(|id| (ProductId::new(id).unwrap(), outcome)).into();
        metrics.worker.decided(8, Duration::from_millis(3), &outcomes);
        let decided = &metrics.worker.decided;
        assert_eq!(decided.get(Decided::Reserved), 4);
        assert_eq!(decided.get(Decided::Rejected(RejectionReason::KeyReused)), 2);
        assert_eq!(decided.get(Decided::Rejected(RejectionReason::InsufficientStock)), 0);
        assert_eq!(decided.get(Decided::Undecidable), 2);
        assert_eq!(metrics.worker.batch_commands.get_sample_count(), 1);
    }

    #[test]
    fn the_lag_is_that_of_the_longest_overdue_and_grows_until_the_next_sweep() {
        let expiry = Metrics::unwatched().worker.expiry.clone();
        let at = |seconds: i64| from_millis(seconds * 1_000);
        assert_eq!(expiry.lag_seconds(at(100)), 0.0);
        expiry.sweep_begins(Some(at(90)));
        expiry.found(3, 2);
        assert_eq!((expiry.lag_seconds(at(100)), expiry.lag_seconds(at(101))), (10.0, 11.0));
        assert_eq!(expiry.backlog.get(), 0, "the sweep is not complete");
        expiry.found(1, 1);
        expiry.sweep_ends(at(101));
        assert_eq!((expiry.backlog.get(), expiry.submitted.get(), expiry.last_sweep.get()), (4, 3, 101));
        expiry.sweep_begins(None);
        expiry.sweep_ends(at(102));
        assert_eq!((expiry.lag_seconds(at(102)), expiry.backlog.get()), (0.0, 0));
    }

    #[test]
    fn a_difference_shows_at_once_and_goes_with_a_complete_round_without_it() {
        let conservation = Metrics::unwatched().worker.conservation.clone();
        conservation.compared(5, 0);
        conservation.compared(5, 2);
        assert_eq!(conservation.difference.get(), 2);
        conservation.round_ends(2);
        conservation.compared(5, 0);
        assert_eq!(
            conservation.difference.get(),
            2,
            "the difference may be in products that are not compared yet"
        );
        conservation.round_ends(0);
        assert_eq!((conservation.difference.get(), conservation.checked.get()), (0, 15));
    }
}
