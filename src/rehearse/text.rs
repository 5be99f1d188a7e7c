//! The verdict on a terminal, and numbers for people.

use std::fmt::Write as _;

use super::{assessment::Assessment, percentiles::Percentiles};
use crate::digits::thousands;

/// Milliseconds with their unit, three significant digits.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{} ms", thousands(ms.round() as u64)),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// The rate and the ramp in words.
pub fn arrivals(assessment: &Assessment) -> String {
    let sale = &assessment.sale;
    match sale.rate {
        None => "all at once".to_owned(),
        Some(rate) if sale.ramp_seconds > 0.0 => {
            format!("up to {} a second after a ramp of {} s", rounded(rate), sale.ramp_seconds)
        }
        Some(rate) => format!("{} a second", rounded(rate)),
    }
}

fn rounded(rate: f64) -> String {
    if rate >= 100.0 { thousands(rate.round() as u64) } else { rate.to_string() }
}

/// Lines with a name and a number: what people read first is at the top and at the bottom.
pub fn verdict(assessment: &Assessment) -> String {
    let Assessment { sale, orders, afterwards, on_the_way, inventory, .. } = assessment;
    let mut text = format!(
        "{}: {} buyers, {}, {} pieces\n",
        sale.product_name,
        thousands(sale.buyers),
        arrivals(assessment),
        thousands(sale.stock)
    );
    if assessment.interrupted {
        let _ = writeln!(text, "stopped after {} buyers", thousands(orders.placed));
    }
    let mut line = |name: &str, number: String, remark: &str| {
        let line = format!("  {name:<14}{number:>12}  {remark}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("accepted", thousands(orders.accepted), "");
    line("refused", thousands(assessment.refused()), &by_reason(&orders.refused));
    line("pending", thousands(orders.pending), "");
    line("not taken", thousands(orders.not_taken), &counted(on_the_way.answered_503, "answers 503"));
    let failed: u64 = assessment.errors.values().map(|failure| failure.count).sum();
    line("errors", thousands(failed), "");
    for (kind, failure) in &assessment.errors {
        let _ = writeln!(text, "{:>28}  {kind}; the first: {}", thousands(failure.count), failure.example);
    }
    let mut line = |name: &str, number: String, remark: &str| {
        let line = format!("  {name:<14}{number:>12}  {remark}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("paid", thousands(afterwards.paid), &by_reason(&afterwards.refused));
    if sale.cancel > 0.0 {
        line("cancelled", thousands(afterwards.cancelled), "");
    }
    if afterwards.expired > 0 {
        line("expired", thousands(afterwards.expired), "");
    }
    line("still reserved", thousands(afterwards.reserved), "");
    if afterwards.unknown > 0 {
        line("unknown", thousands(afterwards.unknown), "paid or cancelled without a clear answer");
    }
    line(
        "verdicts",
        format!("{}/s", thousands(assessment.verdicts_per_second.round() as u64)),
        &format!("over {:.2} s", assessment.seconds),
    );
    line("latency", milliseconds(assessment.latency.p50_ms), &format!("p50, {}", rest(&assessment.latency)));
    if assessment.payment_latency.count > 0 {
        let latency = &assessment.payment_latency;
        line("of payments", milliseconds(latency.p50_ms), &format!("p50, {}", rest(latency)));
    }
    line(
        "inventory",
        thousands(inventory.stored_stock.max(0).cast_unsigned()),
        &format!("stored, {} available, {} reserved", inventory.available_stock, inventory.reserved_stock),
    );
    line("oversold", thousands(assessment.oversold), "");
    line("books", (if assessment.differences.is_empty() { "balanced" } else { "WRONG" }).to_owned(), "");
    for difference in &assessment.differences {
        let _ = writeln!(text, "    {difference}");
    }
    for note in notes(assessment) {
        let _ = writeln!(text, "  note: {note}");
    }
    text + assessment.sentence().as_str() + "\n"
}

/// What a reader should know before believing the numbers.
pub fn notes(assessment: &Assessment) -> Vec<String> {
    let on_the_way = &assessment.on_the_way;
    let mut notes = Vec::new();
    if on_the_way.let_in_late > 0 {
        notes.push(format!(
            "{} buyers were let in late because this machine was busy; their latency counts from when they were due",
            thousands(on_the_way.let_in_late)
        ));
    }
    if on_the_way.answered_202 > 0 {
        notes.push(format!(
            "{} orders were answered 202, and asked for until they were decided",
            thousands(on_the_way.answered_202)
        ));
    }
    if on_the_way.reconnects > 0 {
        notes.push(format!(
            "{} requests were sent again because their connection broke",
            thousands(on_the_way.reconnects)
        ));
    }
    notes
}

fn rest(latency: &Percentiles) -> String {
    format!(
        "{} p90, {} p95, {} p99, {} max",
        milliseconds(latency.p90_ms),
        milliseconds(latency.p95_ms),
        milliseconds(latency.p99_ms),
        milliseconds(latency.max_ms)
    )
}

fn by_reason(reasons: &std::collections::BTreeMap<String, u64>) -> String {
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, count)| format!("{} {reason}", thousands(*count))).collect();
    reasons.join(", ")
}

fn counted(count: u64, what: &str) -> String {
    if count == 0 { String::new() } else { format!("{} {what}", thousands(count)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [0.5, 12.34, 123.4, 1_234.0, 12_340.0].map(milliseconds),
            ["0.50 ms", "12.3 ms", "123 ms", "1,234 ms", "12.3 s"]
        );
    }
}
