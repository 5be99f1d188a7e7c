//! What happened, written down while it happens: by buyers, and read by the progress line and at the end.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use super::shop::{Fault, SeenOrder};

/// A buyer let in later than this after it was due was kept waiting by the rehearsal, not by the server.
const LATE: Duration = Duration::from_millis(50);

/// How it ended for one buyer.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The piece is reserved.
    Accepted(SeenOrder),
    /// The answer was no: the reason, one word of the contract.
    Refused(String),
    /// Answered 202, and not decided while the buyer waited.
    Pending,
    /// Answered 503 until the buyer gave up.
    NotTaken {
        /// An earlier attempt broke, and may have been taken.
        may_have_acted: bool,
    },
    /// An error.
    Failed(Fault),
}

/// How it ended, in one word: the columns of charts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// See [`Ending::Accepted`].
    Accepted,
    /// See [`Ending::Refused`].
    Refused,
    /// See [`Ending::Pending`].
    Pending,
    /// See [`Ending::NotTaken`].
    NotTaken,
    /// See [`Ending::Failed`].
    Failed,
}

impl Ending {
    /// In one word.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Accepted(_) => Kind::Accepted,
            Self::Refused(_) => Kind::Refused,
            Self::Pending => Kind::Pending,
            Self::NotTaken { .. } => Kind::NotTaken,
            Self::Failed(_) => Kind::Failed,
        }
    }
}

/// One buyer. Both times count from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was due.
    pub due: Duration,
    /// When it had its verdict, or gave up.
    pub ended: Duration,
    /// How it ended.
    pub kind: Kind,
}

impl Sample {
    /// How long the buyer waited for its verdict; `None` where it got none.
    pub fn latency(&self) -> Option<Duration> {
        matches!(self.kind, Kind::Accepted | Kind::Refused).then(|| self.ended.saturating_sub(self.due))
    }
}

/// What the answers say of an accepted order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Neither paid nor cancelled.
    Reserved,
    /// Its payment was answered 200.
    Paid,
    /// Its cancellation was answered 200.
    Cancelled,
    /// Read from the order.
    Expired,
    /// A payment or cancellation was sent, and nobody knows what became of it.
    Unknown,
}

/// An accepted order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// What the answers say.
    pub status: Status,
    /// When the reservation ends.
    pub expires_at: Option<Timestamp>,
}

/// Errors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// How many buyers met it.
    pub count: u64,
    /// What exactly the first one met.
    pub example: String,
}

/// Everything that was written down.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// One for each buyer that is done.
    pub samples: Vec<Sample>,
    /// Buyers let in.
    pub entered: u64,
    /// Buyers let in more than 50 ms after they were due.
    pub entered_late: u64,
    /// The accepted orders, by id.
    pub orders: HashMap<String, Life>,
    /// How many orders were accepted, those of one id each counted.
    pub accepted: u64,
    /// Refused orders by reason.
    pub refused: BTreeMap<String, u64>,
    /// Orders without a verdict that the server may have accepted all the same.
    pub unknown: u64,
    /// Answers 503 or 429, those included after which a retry was taken.
    pub not_taken_answers: u64,
    /// Requests sent again because their connection broke.
    pub reconnects: u64,
    /// Orders answered 202.
    pub told_to_look_later: u64,
    /// Payments and cancellations refused, by reason.
    pub changes_refused: BTreeMap<String, u64>,
    /// Payments and cancellations that were answered 202 and not decided in time.
    pub changes_pending: u64,
    /// Payments and cancellations that were answered 503 until the buyer gave up.
    pub changes_not_taken: u64,
    /// Errors by kind, of orders, payments and cancellations.
    pub errors: BTreeMap<String, Failure>,
    /// How long payments took.
    pub payments: Vec<Duration>,
    /// Pieces that buyers hold by the answers: accepted, and no cancellation sent.
    pub held: i64,
    /// The most that were held at one moment.
    pub most_held: i64,
}

impl Record {
    /// How many accepted orders have this status.
    pub fn count(&self, status: Status) -> u64 {
        self.orders.values().filter(|life| life.status == status).count() as u64
    }

    /// How many buyers ended so.
    pub fn ended(&self, kind: Kind) -> u64 {
        self.samples.iter().filter(|sample| sample.kind == kind).count() as u64
    }
}

/// The figures of a progress line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Let in.
    pub entered: u64,
    /// Done with their order.
    pub done: u64,
    /// Of these, accepted.
    pub accepted: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Of these, with an error.
    pub failed: u64,
    /// Paid orders.
    pub paid: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    start: Instant,
    record: Mutex<(Record, Live)>,
}

impl Journal {
    /// An empty one; times count from `start`.
    pub fn new(start: Instant) -> Self {
        Self { start, record: Mutex::default() }
    }

    /// What has happened until now.
    pub fn live(&self) -> Live {
        self.lock().1
    }

    /// A buyer is let in, so long after it was due.
    pub fn entered(&self, late: Duration) {
        let (record, live) = &mut *self.lock();
        record.entered += 1;
        record.entered_late += u64::from(late > LATE);
        live.entered += 1;
    }

    /// A buyer's order came to this end now.
    pub fn decided(&self, due: Instant, ending: Ending) {
        let now = Instant::now();
        let (record, live) = &mut *self.lock();
        record.samples.push(Sample {
            due: due.saturating_duration_since(self.start),
            ended: now.saturating_duration_since(self.start),
            kind: ending.kind(),
        });
        live.done += 1;
        match ending {
            Ending::Accepted(order) => {
                live.accepted += 1;
                record.accepted += 1;
                let life = Life { status: Status::Reserved, expires_at: order.expires_at };
                // An id that was answered before stays one order; that there are two answers is seen at the end.
                if let Entry::Vacant(entry) = record.orders.entry(order.id) {
                    entry.insert(life);
                }
                record.held += 1;
                record.most_held = record.most_held.max(record.held);
            }
            Ending::Refused(reason) => {
                live.refused += 1;
                *record.refused.entry(reason).or_default() += 1;
            }
            Ending::Pending => record.unknown += 1,
            Ending::NotTaken { may_have_acted } => record.unknown += u64::from(may_have_acted),
            Ending::Failed(fault) => {
                live.failed += 1;
                record.unknown += u64::from(fault.may_have_acted);
                record.failed(fault);
            }
        }
    }

    /// An order was answered 202.
    pub fn was_told_to_look_later(&self) {
        self.lock().0.told_to_look_later += 1;
    }

    /// A request was answered 503 or 429.
    pub fn was_not_taken(&self) {
        self.lock().0.not_taken_answers += 1;
    }

    /// A request is sent again because its connection broke.
    pub fn reconnects(&self) {
        self.lock().0.reconnects += 1;
    }

    /// A cancellation is about to be sent: from now on the piece may be another buyer's.
    pub fn cancels(&self) {
        self.lock().0.held -= 1;
    }

    /// A payment was answered 200.
    pub fn paid(&self, id: &str, took: Duration) {
        let (record, live) = &mut *self.lock();
        live.paid += 1;
        record.payments.push(took);
        record.set(id, Status::Paid);
    }

    /// A cancellation was answered 200.
    pub fn cancelled(&self, id: &str) {
        self.lock().0.set(id, Status::Cancelled);
    }

    /// A payment or a cancellation was refused. What the order is then is read at the end.
    pub fn change_refused(&self, id: &str, reason: &str) {
        let record = &mut self.lock().0;
        *record.changes_refused.entry(reason.to_owned()).or_default() += 1;
        record.set(id, Status::Unknown);
    }

    /// A payment or a cancellation was answered 202, and not decided in time.
    pub fn change_pending(&self, id: &str) {
        let record = &mut self.lock().0;
        record.changes_pending += 1;
        record.set(id, Status::Unknown);
    }

    /// A payment or a cancellation was answered 503 until the buyer gave up. An earlier attempt may have broken.
    pub fn change_not_taken(&self, id: &str) {
        let record = &mut self.lock().0;
        record.changes_not_taken += 1;
        record.set(id, Status::Unknown);
    }

    /// A payment or a cancellation met an error.
    pub fn change_failed(&self, id: &str, fault: Fault) {
        let record = &mut self.lock().0;
        record.failed(Fault { kind: format!("{} (payment or cancellation)", fault.kind), ..fault });
        record.set(id, Status::Unknown);
    }

    /// What a GET says of an order at the end.
    pub fn seen(&self, id: &str, status: &str) {
        let status = match status {
            "reserved" => Status::Reserved,
            "paid" => Status::Paid,
            "cancelled" => Status::Cancelled,
            "expired" => Status::Expired,
            _ => return,
        };
        self.lock().0.set(id, status);
    }

    /// The accepted orders whose status must be read: nobody knows it, or they expire before `time`.
    pub fn doubtful(&self, time: Timestamp) -> Vec<String> {
        let record = &self.lock().0;
        let is_doubtful = |life: &Life| match life.status {
            Status::Unknown => true,
            Status::Reserved => life.expires_at.is_some_and(|expires_at| expires_at <= time),
            Status::Paid | Status::Cancelled | Status::Expired => false,
        };
        record.orders.iter().filter(|(_, life)| is_doubtful(life)).map(|(id, _)| id.clone()).collect()
    }

    /// A copy of what was written down until now.
    pub fn record(&self) -> Record {
        self.lock().0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Record, Live)> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn set(&mut self, id: &str, status: Status) {
        if let Some(life) = self.orders.get_mut(id) {
            life.status = status;
        }
    }

    fn failed(&mut self, fault: Fault) {
        let failure = self.errors.entry(fault.kind).or_default();
        failure.count += 1;
        if failure.count == 1 {
            failure.example = fault.example;
        }
    }
}
