//! What an API measures: the answers that clients get, and how long they wait for them.

use std::time::Duration;

use prometheus::{Error, Histogram, IntCounter, IntGauge};

use super::{
    instruments::{Counters, Label, Maker},
    table,
};
use crate::{
    domain::{order::ChangeKind, rejection::RejectionReason},
    queue::Refusal,
};

#[derive(Debug)]
pub struct ApiMetrics {
    orders: Counters<OrderAnswer>,
    changes: Counters<(AskedChange, ChangeAnswer)>,
    verdict_latency: Histogram,
    detached: IntCounter,
    pending_replies: IntGauge,
    gated_products: IntGauge,
    gate_refusals: Counters<RejectionReason>,
    gate_reads: Counters<ReadOutcome>,
}

/// The answer to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderAnswer {
    Accepted,
    /// It was placed earlier, under the same key.
    Replayed,
    /// The order of this key holds no pieces any more.
    NotReserved,
    Pending,
    Rejected(RejectionReason),
    Refused(Refusal),
    Undecidable,
    /// The database did not answer.
    Failed,
}

/// The answer to a payment, a cancellation, an extension or a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeAnswer {
    Done,
    Pending,
    NotFound,
    NotDecided,
    Conflict,
    Refused,
    Undecidable,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskedChange {
    Payment,
    Cancellation,
    Extension,
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadOutcome {
    Done,
    Failed,
}

impl ApiMetrics {
    pub(super) fn new(maker: &Maker) -> Result<Self, Error> {
        Ok(Self {
            orders: maker.counters(&table::ORDERS_ANSWERED)?,
            changes: maker.counters(&table::CHANGES_ANSWERED)?,
            verdict_latency: maker.histogram(&table::VERDICT_LATENCY)?,
            detached: maker.counter(&table::COMMANDS_DETACHED)?,
            pending_replies: maker.gauge(&table::PENDING_REPLIES)?,
            gated_products: maker.gauge(&table::GATED_PRODUCTS)?,
            gate_refusals: maker.counters(&table::GATE_REFUSALS)?,
            gate_reads: maker.counters(&table::GATE_READS)?,
        })
    }

    pub fn order_answered(&self, answer: OrderAnswer) {
        self.orders.add(answer, 1);
    }

    pub fn change_answered(&self, change: ChangeKind, answer: ChangeAnswer) {
        let change = match change {
            ChangeKind::Pay => AskedChange::Payment,
            ChangeKind::Cancel => AskedChange::Cancellation,
            ChangeKind::Extend => AskedChange::Extension,
            ChangeKind::Return => AskedChange::Return,
            ChangeKind::Expire => return, // no client asks for it
        };
        self.changes.add((change, answer), 1);
    }

    /// A client has its verdict, after this time.
    pub fn decided(&self, waited: Duration) {
        self.verdict_latency.observe(waited.as_secs_f64());
    }

    /// A command gets its verdict without its client.
    pub fn detached(&self) {
        self.detached.inc();
    }

    pub fn set_pending_replies(&self, count: usize) {
        self.pending_replies.set(gauge(count));
    }

    /// The order gate has leases of this many products.
    pub fn set_gated_products(&self, count: usize) {
        self.gated_products.set(gauge(count));
    }

    /// The order gate refused an order.
    pub fn refused_early(&self, reason: RejectionReason) {
        self.gate_refusals.add(reason, 1);
    }

    /// The order gate read the database.
    pub fn gate_read(&self, is_done: bool) {
        self.gate_reads.add(if is_done { ReadOutcome::Done } else { ReadOutcome::Failed }, 1);
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Label for OrderAnswer {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        let plain = [
            (Self::Accepted, "accepted"),
            (Self::Replayed, "replayed"),
            (Self::NotReserved, "not_reserved"),
            (Self::Pending, "pending"),
            (Self::Undecidable, "undecidable"),
            (Self::Failed, "failed"),
        ];
        let refusals = [
            (Refusal::LaneFull, "lane_full"),
            (Refusal::QueueUnavailable, "queue_unavailable"),
            (Refusal::Overloaded, "overloaded"),
            (Refusal::OtherInstallation, "other_installation"),
        ];
        let rejected = |reason: RejectionReason| (Self::Rejected(reason), vec!["rejected", reason.as_str()]);
        let plain = plain.into_iter().map(|(answer, outcome)| (answer, vec![outcome, ""]));
        let refused =
            refusals.into_iter().map(|(refusal, reason)| (Self::Refused(refusal), vec!["refused", reason]));
        plain.chain(RejectionReason::ALL.into_iter().map(rejected)).chain(refused).collect()
    }
}

impl Label for (AskedChange, ChangeAnswer) {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        let changes = [
            (AskedChange::Payment, "payment"),
            (AskedChange::Cancellation, "cancellation"),
            (AskedChange::Extension, "extension"),
            (AskedChange::Return, "return"),
        ];
        let answers = [
            (ChangeAnswer::Done, "done"),
            (ChangeAnswer::Pending, "pending"),
            (ChangeAnswer::NotFound, "not_found"),
            (ChangeAnswer::NotDecided, "not_decided"),
            (ChangeAnswer::Conflict, "conflict"),
            (ChangeAnswer::Refused, "refused"),
            (ChangeAnswer::Undecidable, "undecidable"),
            (ChangeAnswer::Failed, "failed"),
        ];
        let with = |(change, word): (AskedChange, &'static str)| {
            answers.map(|(answer, outcome)| ((change, answer), vec![word, outcome]))
        };
        changes.into_iter().flat_map(with).collect()
    }
}

impl Label for RejectionReason {
    /// Those for which every order of a product is refused.
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        Self::CLOSED.map(|reason| (reason, vec![reason.as_str()])).into()
    }
}

impl Label for ReadOutcome {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        vec![(Self::Done, vec!["done"]), (Self::Failed, vec!["failed"])]
    }
}
