//! What a rehearsal found: the numbers, and whether they add up. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    journal::{Failure, Kind, Record, Sample, Status},
    percentiles::Percentiles,
    shop::Inventory,
};

/// What was played.
#[derive(Clone, Debug, Serialize)]
pub struct Sale {
    /// The URL, as the user named it.
    pub target: String,
    /// The product that the rehearsal created.
    pub product_id: u64,
    /// Its name.
    pub product_name: String,
    /// When the first buyer was due, RFC 3339.
    pub started_at: String,
    /// Buyers of one piece each.
    pub buyers: u64,
    /// Pieces.
    pub stock: u64,
    /// Buyers a second; `None` for all at once.
    pub rate: Option<f64>,
    /// How long the rate climbed to that.
    pub ramp_seconds: f64,
    /// The share of accepted orders that was to be paid.
    pub pay: f64,
    /// The share of accepted orders that was to be cancelled.
    pub cancel: f64,
    /// How long a buyer waits.
    pub patience_seconds: f64,
    /// The most connections at once.
    pub connections: usize,
    /// The version of this program.
    pub antre: &'static str,
}

/// The numbers, and the verdict on them.
#[derive(Clone, Debug, Serialize)]
pub struct Assessment {
    /// What was played.
    pub sale: Sale,
    /// Whether it was stopped before all buyers were in.
    pub interrupted: bool,
    /// From the first buyer's arrival to the last verdict.
    pub seconds: f64,
    /// How the orders ended.
    pub orders: Orders,
    /// What became of accepted orders.
    pub afterwards: Afterwards,
    /// Errors by kind, of orders, payments and cancellations.
    pub errors: BTreeMap<String, Failure>,
    /// From a buyer's scheduled arrival to its verdict. Of orders with a verdict.
    pub latency: Percentiles,
    /// From sending a payment to its 200.
    pub payment_latency: Percentiles,
    /// Orders with a verdict, divided by `seconds`.
    pub verdicts_per_second: f64,
    /// What clients met on the way.
    pub on_the_way: OnTheWay,
    /// What the inventory says at the end.
    pub inventory: Inventory,
    /// Accepted pieces beyond the stock.
    pub oversold: u64,
    /// What does not add up, a sentence each.
    pub differences: Vec<String>,
    /// Not oversold, nothing in `differences`, no errors.
    pub passed: bool,
    /// One for each buyer, for charts.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

/// How the orders ended; together as many as buyers were let in.
#[derive(Clone, Debug, Serialize)]
pub struct Orders {
    /// Buyers let in.
    pub placed: u64,
    /// Reserved.
    pub accepted: u64,
    /// Refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Answered 202, and not decided while the buyer waited.
    pub pending: u64,
    /// Answered 503 until the buyer gave up.
    pub not_taken: u64,
    /// Ended with an error.
    pub failed: u64,
}

/// What became of accepted orders; together as many as were accepted.
#[derive(Clone, Debug, Serialize)]
pub struct Afterwards {
    /// Still reserved.
    pub reserved: u64,
    /// Paid.
    pub paid: u64,
    /// Cancelled: the pieces could be sold again.
    pub cancelled: u64,
    /// Expired: the pieces could be sold again.
    pub expired: u64,
    /// Nobody knows.
    pub unknown: u64,
    /// Payments and cancellations that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Payments and cancellations that were answered 202, and not decided in time.
    pub pending: u64,
    /// Payments and cancellations that were answered 503 until the buyer gave up.
    pub not_taken: u64,
}

/// What clients met on the way to their verdict.
#[derive(Clone, Debug, Serialize)]
pub struct OnTheWay {
    /// Orders answered 202, whose buyers asked again until they were decided.
    pub answered_202: u64,
    /// Answers 503 or 429. A buyer sends its request up to five times again.
    pub answered_503: u64,
    /// Requests sent again because their connection broke.
    pub reconnects: u64,
    /// Connections that were closed while they were idle: no error.
    pub closed_when_idle: u64,
    /// Buyers let in more than 50 ms after they were due, because this machine was too busy. Their latency counts from when
    /// they were due.
    pub let_in_late: u64,
}

/// Judges what was written down against the inventory at the end.
pub fn assess(
    sale: Sale,
    record: Record,
    inventory: Inventory,
    closed_when_idle: u64,
    interrupted: bool,
) -> Assessment {
    let afterwards = Afterwards {
        reserved: record.count(Status::Reserved),
        paid: record.count(Status::Paid),
        cancelled: record.count(Status::Cancelled),
        expired: record.count(Status::Expired),
        unknown: record.count(Status::Unknown),
        refused: record.changes_refused.clone(),
        pending: record.changes_pending,
        not_taken: record.changes_not_taken,
    };
    let oversold = oversold(&sale, &record, &inventory, &afterwards);
    let differences = differences(&sale, &record, &inventory, &afterwards);
    let with_verdict: Vec<_> = record.samples.iter().filter(|sample| sample.latency().is_some()).collect();
    let last = with_verdict.iter().map(|sample| sample.ended).max().unwrap_or_default();
    let seconds = last.as_secs_f64();
    Assessment {
        sale,
        interrupted,
        seconds,
        orders: Orders {
            placed: record.entered,
            accepted: record.accepted,
            pending: record.ended(Kind::Pending),
            not_taken: record.ended(Kind::NotTaken),
            failed: record.ended(Kind::Failed),
            refused: record.refused,
        },
        afterwards,
        latency: Percentiles::of(record.samples.iter().filter_map(Sample::latency)),
        payment_latency: Percentiles::of(record.payments.iter().copied()),
        verdicts_per_second: if seconds > 0.0 { with_verdict.len() as f64 / seconds } else { 0.0 },
        on_the_way: OnTheWay {
            answered_202: record.told_to_look_later,
            answered_503: record.not_taken_answers,
            reconnects: record.reconnects,
            closed_when_idle,
            let_in_late: record.entered_late,
        },
        inventory,
        oversold,
        passed: oversold == 0 && differences.is_empty() && record.errors.is_empty(),
        differences,
        errors: record.errors,
        samples: record.samples,
    }
}

/// By the answers: the most pieces that buyers held at one moment. A piece counts as given back from the moment at which its
/// cancellation was sent, and expired ones do not count, so this is never too many. By the inventory: what is reserved at the
/// end, and what was paid.
fn oversold(sale: &Sale, record: &Record, inventory: &Inventory, afterwards: &Afterwards) -> u64 {
    let stock = number(sale.stock);
    let held = record.most_held - number(afterwards.expired);
    let sold = inventory.reserved_stock + number(afterwards.paid);
    (held.max(sold) - stock).max(0).cast_unsigned()
}

fn differences(sale: &Sale, record: &Record, inventory: &Inventory, afterwards: &Afterwards) -> Vec<String> {
    let Inventory { stored_stock, available_stock, reserved_stock } = *inventory;
    let mut differences = Vec::new();
    let repeated = record.accepted - record.orders.len() as u64;
    if repeated > 0 {
        differences.push(format!("{repeated} buyers were given an order id that another buyer has"));
    }
    if stored_stock != available_stock + reserved_stock || available_stock < 0 || reserved_stock < 0 {
        differences.push(format!(
            "the inventory contradicts itself: stored {stored_stock}, available {available_stock}, reserved {reserved_stock}"
        ));
    }
    // A change without a clear answer may have happened; so may an order.
    let changed = afterwards.unknown;
    let paid = number(sale.stock) - stored_stock;
    if let Some(range) = outside(paid, afterwards.paid, changed) {
        differences.push(format!(
            "{paid} pieces left the stock ({} were counted, {stored_stock} are stored), and the answers say {range} were paid",
            sale.stock
        ));
    }
    if let Some(range) = outside(reserved_stock, afterwards.reserved, changed + record.unknown) {
        differences.push(format!(
            "the inventory has {reserved_stock} pieces reserved, and the answers say {range} are reserved"
        ));
    }
    let refused = record.refused.get("insufficient_stock").copied().unwrap_or_default();
    let came_back = afterwards.cancelled + afterwards.expired + changed + record.unknown;
    if refused > 0 && available_stock > 0 && came_back == 0 {
        differences.push(format!(
            "{refused} buyers were refused for lack of stock, and {available_stock} pieces are left, though none came back"
        ));
    }
    differences
}

/// The range from `least` to `least + more`, in words, if the value is outside.
fn outside(value: i64, least: u64, more: u64) -> Option<String> {
    let (least, most) = (number(least), number(least + more));
    if (least..=most).contains(&value) {
        None
    } else if least == most {
        Some(least.to_string())
    } else {
        Some(format!("{least} to {most}"))
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Assessment {
    /// How many orders were refused, whatever the reason.
    pub fn refused(&self) -> u64 {
        self.orders.refused.values().sum()
    }

    /// The whole verdict in a sentence.
    pub fn sentence(&self) -> String {
        let Self { oversold, differences, errors, .. } = self;
        if *oversold > 0 {
            return format!("OVERSOLD: {oversold} pieces were sold that are not there");
        }
        let mut complaints = Vec::new();
        match differences.len() {
            0 => {}
            1 => complaints.push("the books do not balance".to_owned()),
            count => complaints.push(format!("the books do not balance in {count} ways")),
        }
        let failed: u64 = errors.values().map(|failure| failure.count).sum();
        if failed > 0 {
            complaints.push(format!("{failed} {}", if failed == 1 { "error" } else { "errors" }));
        }
        if !complaints.is_empty() {
            return format!("FAILED: {}", complaints.join(", "));
        }
        let undecided = self.orders.pending + self.orders.not_taken;
        let doubt =
            if undecided > 0 { format!("; {undecided} buyers got no verdict") } else { String::new() };
        format!("PASSED: 0 oversold, books balanced, no errors{doubt}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::journal::Life, *};

    fn sale() -> Sale {
        Sale {
            target: "http://localhost:3000".to_owned(),
            product_id: 1,
            product_name: "rehearsal".to_owned(),
            started_at: "2026-11-25T00:00:00.000Z".to_owned(),
            buyers: 10,
            stock: 4,
            rate: Some(1_000.0),
            ramp_seconds: 0.0,
            pay: 0.5,
            cancel: 0.0,
            patience_seconds: 30.0,
            connections: 512,
            antre: "0",
        }
    }

    /// `accepted` orders with these statuses, and the other of ten buyers refused.
    fn record(statuses: &[(Status, u64)]) -> Record {
        let mut record = Record { entered: 10, ..Record::default() };
        for (status, count) in statuses {
            for _ in 0..*count {
                let id = format!("{}", record.orders.len());
                record.orders.insert(id, Life { status: *status, expires_at: None });
                record.accepted += 1;
            }
        }
        record.most_held = number(record.accepted);
        record.refused.insert("insufficient_stock".to_owned(), 10 - record.accepted);
        for index in 0..10 {
            let kind = if index < record.accepted { Kind::Accepted } else { Kind::Refused };
            let (due, ended) = (Duration::from_millis(index), Duration::from_millis(index + 5));
            record.samples.push(Sample { due, ended, kind });
        }
        record
    }

    fn inventory(stored_stock: i64, available_stock: i64, reserved_stock: i64) -> Inventory {
        Inventory { stored_stock, available_stock, reserved_stock }
    }

    fn assessed(record: Record, inventory: Inventory) -> Assessment {
        assess(sale(), record, inventory, 0, false)
    }

    #[test]
    fn a_sale_that_adds_up_passes() {
        let found = assessed(record(&[(Status::Reserved, 2), (Status::Paid, 2)]), inventory(2, 0, 2));
        assert!(found.passed, "{found:?}");
        assert_eq!((found.orders.accepted, found.refused(), found.oversold), (4, 6, 0));
        assert_eq!(found.sentence(), "PASSED: 0 oversold, books balanced, no errors");
        assert!((found.verdicts_per_second - 10.0 / 0.014).abs() < 1.0, "{}", found.verdicts_per_second);
        assert!((found.latency.p50_ms - 5.0).abs() < 0.01, "{:?}", found.latency);
    }

    #[test]
    fn more_accepted_than_there_are_is_oversold() {
        let found = assessed(record(&[(Status::Reserved, 6)]), inventory(4, -2, 6));
        assert_eq!((found.oversold, found.passed), (2, false));
        assert_eq!(found.sentence(), "OVERSOLD: 2 pieces were sold that are not there");
        // The inventory hides it; the answers do not.
        let found = assessed(record(&[(Status::Reserved, 6)]), inventory(4, 0, 4));
        assert_eq!((found.oversold, found.passed), (2, false));
        // The answers were lost; the inventory has it.
        let mut lost = record(&[(Status::Reserved, 4)]);
        lost.unknown = 2;
        assert_eq!(assessed(lost, inventory(4, -2, 6)).oversold, 2);
    }

    #[test]
    fn a_piece_that_was_cancelled_may_be_sold_again() {
        let mut resold = record(&[(Status::Reserved, 4), (Status::Cancelled, 2)]);
        resold.most_held = 4;
        let found = assessed(resold, inventory(4, 0, 4));
        assert!(found.passed, "{:?}", found.differences);
        let mut twice = record(&[(Status::Reserved, 4), (Status::Cancelled, 2)]);
        twice.most_held = 5;
        assert_eq!(assessed(twice, inventory(4, 0, 4)).oversold, 1);
    }

    #[test]
    fn an_inventory_that_says_otherwise_is_a_difference() {
        for (inventory, sentence) in [
            (inventory(4, 2, 2), "the answers say 2 were paid"),
            (inventory(2, 1, 1), "the inventory has 1 pieces reserved, and the answers say 2 are reserved"),
            (inventory(2, 1, 2), "contradicts itself"),
        ] {
            let found = assessed(record(&[(Status::Reserved, 2), (Status::Paid, 2)]), inventory);
            assert!(!found.passed && found.oversold == 0, "{found:?}");
            assert!(found.differences.iter().any(|one| one.contains(sentence)), "{:?}", found.differences);
            assert!(found.sentence().starts_with("FAILED: the books do not balance"), "{}", found.sentence());
        }
    }

    #[test]
    fn what_nobody_knows_may_be_either_way() {
        let mut unknown = record(&[(Status::Reserved, 1), (Status::Paid, 1), (Status::Unknown, 1)]);
        unknown.unknown = 1;
        for inventory in [inventory(3, 2, 1), inventory(2, 1, 1), inventory(3, 0, 3)] {
            let found = assessed(unknown.clone(), inventory);
            assert_eq!(found.differences, Vec::<String>::new(), "{inventory:?}");
        }
        assert!(!assessed(unknown, inventory(1, 0, 1)).differences.is_empty());
    }

    #[test]
    fn pieces_that_are_left_must_not_have_been_refused() {
        let found = assessed(record(&[(Status::Reserved, 3)]), inventory(4, 1, 3));
        assert_eq!(
            found.differences,
            ["7 buyers were refused for lack of stock, and 1 pieces are left, though none came back"]
        );
        let back = assessed(record(&[(Status::Reserved, 3), (Status::Expired, 1)]), inventory(4, 1, 3));
        assert!(back.passed, "{:?}", back.differences);
    }

    #[test]
    fn an_id_that_two_buyers_have_is_a_difference() {
        let mut twice = record(&[(Status::Reserved, 3)]);
        twice.accepted += 1;
        let found = assessed(twice, inventory(4, 1, 3));
        assert!(found.differences[0].contains("order id"), "{:?}", found.differences);
    }

    #[test]
    fn an_error_fails_and_a_503_does_not() {
        let mut busy = record(&[(Status::Reserved, 4)]);
        busy.not_taken_answers = 7;
        busy.samples[9].kind = Kind::NotTaken;
        let found = assessed(busy.clone(), inventory(4, 0, 4));
        assert!(found.passed);
        assert!(found.sentence().ends_with("; 1 buyers got no verdict"), "{}", found.sentence());
        busy.errors.insert("500 internal_error".to_owned(), Failure { count: 1, example: String::new() });
        let found = assessed(busy, inventory(4, 0, 4));
        assert_eq!(found.sentence(), "FAILED: 1 error");
        assert!(!found.passed);
    }
}
