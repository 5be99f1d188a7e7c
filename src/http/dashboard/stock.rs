//! A product's pieces as a bar.

use maud::{Markup, html};

use super::figures::{Count, UNKNOWN};
use crate::monitor::report::StockLevel;

/// Available and reserved pieces, as parts of the most that were ever stored: pieces that are paid leave the bar.
pub(super) fn bar(stock: Option<StockLevel>, most_stored: u64) -> Markup {
    let (available, reserved) = shares(stock, most_stored);
    html! {
        svg.stock aria-hidden="true" { (parts(available, reserved)) }
    }
}

/// The same with its figures, as text and for screen readers.
pub(super) fn large_bar(stock: Option<StockLevel>, most_stored: u64) -> Markup {
    let (available, reserved) = shares(stock, most_stored);
    let count =
        |of: fn(StockLevel) -> u64| stock.map_or(UNKNOWN.to_owned(), |stock| Count(of(stock)).to_string());
    let texts = [
        ("available", "available", count(|stock| stock.available.into())),
        ("reserved", "reserved", count(|stock| stock.reserved.into())),
        ("gone", "stored", count(StockLevel::stored)),
    ];
    let label = texts.each_ref().map(|(_, name, count)| format!("{count} {name}")).join(", ");
    html! {
        svg.stock role="img" aria-label={ "Pieces: " (label) } { (parts(available, reserved)) }
        p.legend aria-hidden="true" {
            @for (class, name, count) in &texts[..2] {
                span class=(class) { i {} b { (count) } " " (name) }
            }
            span { b { (texts[2].2) } " stored" }
            span.quiet { "of at most " (Count(most_stored)) }
        }
    }
}

fn parts(available: f64, reserved: f64) -> Markup {
    html! {
        rect.available width={ (format!("{available:.2}")) "%" } {}
        rect.reserved x={ (format!("{available:.2}")) "%" } width={ (format!("{reserved:.2}")) "%" } {}
    }
}

/// In percent.
fn shares(stock: Option<StockLevel>, most_stored: u64) -> (f64, f64) {
    let Some(stock) = stock else { return (0.0, 0.0) };
    let whole = most_stored.max(stock.stored()).max(1) as f64;
    (f64::from(stock.available) / whole * 100.0, f64::from(stock.reserved) / whole * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paid_pieces_leave_the_bar() {
        let level = |available, reserved| Some(StockLevel { available, reserved, seen_ms: 0 });
        assert_eq!(shares(None, 100), (0.0, 0.0));
        assert_eq!(shares(level(0, 0), 0), (0.0, 0.0));
        assert_eq!(shares(level(60, 40), 0), (60.0, 40.0));
        assert_eq!(shares(level(10, 15), 100), (10.0, 15.0));
        let text = large_bar(level(1_000, 2), 1_500).into_string();
        assert!(text.contains("aria-label=\"Pieces: 1,000 available, 2 reserved, 1,002 stored\""), "{text}");
    }
}
