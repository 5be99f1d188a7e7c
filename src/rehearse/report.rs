//! The report: one page that needs nothing but itself. No script, no font, no image and no style from anywhere else.

mod chart;
mod html;
mod timeline;

use std::fmt::Write as _;

use self::{
    chart::{Line, Stack, bars, lines},
    html::escaped,
    timeline::Timeline,
};
use super::{
    assessment::Assessment,
    journal::Kind,
    percentiles::Percentiles,
    text::{arrivals, milliseconds, notes},
};
use crate::digits::thousands;

const STYLE: &str = include_str!("report/page.css");

/// The page, as HTML.
pub fn page(assessment: &Assessment) -> String {
    let sale = &assessment.sale;
    let title = escaped(&sale.product_name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    page += &head(assessment);
    page += &tiles(assessment);
    let timeline = Timeline::of(&assessment.samples);
    page += &endings(&timeline);
    page += &latencies(&timeline);
    page += &tables(assessment);
    page += &details(assessment);
    page += "</main>\n</body>\n</html>\n";
    page
}

fn head(assessment: &Assessment) -> String {
    let sale = &assessment.sale;
    let (class, mark) = if assessment.passed { ("passed", "✓") } else { ("failed", "✗") };
    let mut head = format!(
        "<header>\n<h1>{}</h1>\n<p class=\"sub\">{} buyers, {}, for {} pieces at <b>{}</b></p>\n\
         <p class=\"verdict {class}\"><span aria-hidden=\"true\">{mark}</span> {}</p>\n",
        escaped(&sale.product_name),
        thousands(sale.buyers),
        escaped(&arrivals(assessment)),
        thousands(sale.stock),
        escaped(&sale.target),
        escaped(&assessment.sentence())
    );
    let mut list = assessment.differences.clone();
    list.extend(assessment.errors.iter().map(|(kind, failure)| {
        format!("{} × {kind}; the first: {}", thousands(failure.count), failure.example)
    }));
    if assessment.interrupted {
        list.push(format!("Stopped after {} buyers.", thousands(assessment.orders.placed)));
    }
    if !list.is_empty() {
        let items: String = list.iter().map(|one| format!("<li>{}</li>", escaped(one))).collect();
        let _ = writeln!(head, "<ul class=\"findings\">{items}</ul>");
    }
    head + "</header>\n"
}

fn tiles(assessment: &Assessment) -> String {
    let Assessment { orders, afterwards, latency, .. } = assessment;
    let books = if assessment.differences.is_empty() { "balanced" } else { "wrong" };
    let undecided = orders.pending + orders.not_taken;
    let failed: u64 = assessment.errors.values().map(|failure| failure.count).sum();
    let tiles = [
        ("Accepted", thousands(orders.accepted), format!("{} paid", thousands(afterwards.paid))),
        ("Refused", thousands(assessment.refused()), "each with a reason".to_owned()),
        ("Oversold", thousands(assessment.oversold), format!("books {books}")),
        ("Errors", thousands(failed), format!("{} without a verdict", thousands(undecided))),
        (
            "Half had a verdict in",
            milliseconds(latency.p50_ms),
            format!("99 % in {}", milliseconds(latency.p99_ms)),
        ),
        (
            "Verdicts a second",
            thousands(assessment.verdicts_per_second.round() as u64),
            format!("over {:.2} s", assessment.seconds),
        ),
    ];
    let tiles: String = tiles
        .iter()
        .map(|(name, number, more)| {
            format!("<div><dt>{name}</dt><dd>{number}<small>{more}</small></dd></div>\n")
        })
        .collect();
    format!("<dl class=\"tiles\">\n{tiles}</dl>\n")
}

/// How the orders ended, over time.
fn endings(timeline: &Timeline) -> String {
    let stacks = [
        ("accepted", Kind::Accepted),
        ("refused", Kind::Refused),
        ("pending", Kind::Pending),
        ("not taken", Kind::NotTaken),
        ("error", Kind::Failed),
    ];
    let stacks = stacks.map(|(name, kind)| Stack {
        name,
        class: class(kind),
        values: timeline.buckets.iter().map(|bucket| bucket.ended(kind)).collect(),
    });
    bars(
        "Orders by how they ended",
        &format!("Orders in each {}, when their buyers had the answer.", milliseconds(timeline.width_ms())),
        timeline,
        &stacks,
    )
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Accepted => "accepted",
        Kind::Refused => "refused",
        Kind::Pending => "pending",
        Kind::NotTaken => "not-taken",
        Kind::Failed => "error",
    }
}

/// How long buyers waited, over time.
fn latencies(timeline: &Timeline) -> String {
    let line = |name, class, of: fn(&Percentiles) -> f64| Line {
        name,
        class,
        values: timeline
            .buckets
            .iter()
            .map(|bucket| (bucket.latency.count > 0).then(|| of(&bucket.latency)))
            .collect(),
    };
    lines(
        "How long buyers waited",
        "From the scheduled arrival to the verdict, retries included, by when the buyers were due.",
        timeline,
        &[
            line("p50", "p50", |latency| latency.p50_ms),
            line("p95", "p95", |latency| latency.p95_ms),
            line("max", "max", |latency| latency.max_ms),
        ],
    )
}

fn tables(assessment: &Assessment) -> String {
    let Assessment { orders, afterwards, latency, payment_latency, inventory, .. } = assessment;
    let mut ended = vec![("accepted".to_owned(), thousands(orders.accepted))];
    ended.extend(
        orders.refused.iter().map(|(reason, count)| (format!("refused: {reason}"), thousands(*count))),
    );
    ended.push(("pending (202 to the end)".to_owned(), thousands(orders.pending)));
    ended.push(("not taken (503 to the end)".to_owned(), thousands(orders.not_taken)));
    ended.push(("error".to_owned(), thousands(orders.failed)));
    ended.push(("buyers let in".to_owned(), thousands(orders.placed)));

    let mut books = vec![
        ("paid".to_owned(), thousands(afterwards.paid)),
        ("cancelled".to_owned(), thousands(afterwards.cancelled)),
        ("expired".to_owned(), thousands(afterwards.expired)),
        ("still reserved".to_owned(), thousands(afterwards.reserved)),
        ("unknown".to_owned(), thousands(afterwards.unknown)),
    ];
    books.extend(
        afterwards
            .refused
            .iter()
            .map(|(reason, count)| (format!("change refused: {reason}"), thousands(*count))),
    );
    books.push(("inventory: stored".to_owned(), inventory.stored_stock.to_string()));
    books.push(("inventory: available".to_owned(), inventory.available_stock.to_string()));
    books.push(("inventory: reserved".to_owned(), inventory.reserved_stock.to_string()));

    let mut times = rows("verdict", latency);
    if payment_latency.count > 0 {
        times.extend(rows("payment", payment_latency));
    }
    format!(
        "<div class=\"tables\">\n{}{}{}</div>\n",
        table("All orders", &ended),
        table("The accepted orders", &books),
        table("Latency", &times)
    )
}

fn rows(what: &str, latency: &Percentiles) -> Vec<(String, String)> {
    let Percentiles { p50_ms, p90_ms, p95_ms, p99_ms, max_ms, .. } = *latency;
    [("p50", p50_ms), ("p90", p90_ms), ("p95", p95_ms), ("p99", p99_ms), ("max", max_ms)]
        .map(|(name, ms)| (format!("{what} {name}"), milliseconds(ms)))
        .to_vec()
}

fn table(title: &str, rows: &[(String, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escaped(name), escaped(value))
        })
        .collect();
    format!("<section><h2>{}</h2><table>\n{rows}</table></section>\n", escaped(title))
}

fn details(assessment: &Assessment) -> String {
    let sale = &assessment.sale;
    let way = &assessment.on_the_way;
    let mut lines = notes(assessment);
    lines.push(format!(
        "The arrival of each buyer was scheduled before the sale, and latencies count from there: a server that stalls is \
         measured by all buyers who arrive during it (no coordinated omission). Up to {} connections.",
        thousands(sale.connections as u64)
    ));
    lines.push(format!(
        "On the way: {} answers 202, {} answers 503, {} requests sent again after a broken connection, {} connections closed while \
         idle, {} buyers let in late.",
        thousands(way.answered_202),
        thousands(way.answered_503),
        thousands(way.reconnects),
        thousands(way.closed_when_idle),
        thousands(way.let_in_late)
    ));
    lines.push(format!(
        "Asked to pay {} % and to cancel {} % of the accepted orders; a buyer waits {} s.",
        sale.pay * 100.0,
        sale.cancel * 100.0,
        sale.patience_seconds
    ));
    let lines: String = lines.iter().map(|line| format!("<p>{}</p>\n", escaped(line))).collect();
    format!(
        "<footer>\n{lines}<p>Product {}, started {}, antre {}.</p>\n</footer>\n",
        sale.product_id,
        escaped(&sale.started_at),
        escaped(sale.antre)
    )
}
