//! The page of one product.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

use super::{
    chart::{Chart, Line},
    figures::{Age, Count, Rate, UNKNOWN, clock, since},
    listing::Listing,
    piece::Piece,
    shop::{not_on_sale_tag, oldest, percentiles},
    stock::large_bar,
};
use crate::{
    domain::ids::ProductId,
    monitor::board::{Board, ProductDetail, ProductPoint},
};

/// How many steps a chart has, and how many seconds each is: ten minutes.
const STEPS: i64 = 60;
const STEP_SECONDS: i64 = 10;
/// Stock that was seen within this is not worth an age.
const FRESH: Duration = Duration::from_secs(15);

/// A product at one moment.
pub(super) struct ProductPage {
    id: ProductId,
    at: Timestamp,
    /// `None`: the board does not know it (yet).
    detail: Option<ProductDetail>,
}

impl ProductPage {
    pub(super) fn read(board: &Board, id: ProductId, at: Timestamp) -> Self {
        Self { id, at, detail: board.product(id) }
    }

    pub(super) fn is_known(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.product.name.is_some())
    }

    pub(super) fn name(&self) -> String {
        let name = self.detail.as_ref().and_then(|detail| detail.product.name.clone());
        name.unwrap_or_else(|| format!("Product {}", self.id))
    }

    pub(super) fn pieces(&self) -> Vec<Piece> {
        vec![
            Piece::new("title", self.title()),
            Piece::new("state", self.state()),
            Piece::new("stock", self.stock()),
            Piece::new("figures", self.figures()),
            Piece::new("charts", self.charts()),
        ]
    }

    pub(super) fn content(&self, root: &str, listing: &Listing) -> Markup {
        html! {
            nav.crumbs aria-label="Way back" { a href=(root) { "Dashboard" } " / Product " (self.id) }
            (self.title())
            (self.state())
            section.card.large aria-labelledby="stock-title" {
                h2 #stock-title { "Stock" }
                (self.stock())
            }
            section.card aria-labelledby="orders-now" {
                h2.hidden #orders-now { "Orders now" }
                (self.figures())
                (self.charts())
            }
            section.card aria-labelledby="orders-title" { (listing.render(root, self.id)) }
        }
    }

    fn title(&self) -> Markup {
        let not_on_sale = self.detail.as_ref().and_then(|detail| detail.product.not_on_sale);
        html! {
            h1 #title {
                (self.name()) " " span.quiet { "#" (self.id) }
                @if let Some(why) = not_on_sale { " " (not_on_sale_tag(why)) }
            }
        }
    }

    /// What is wrong with its lane, if anything is.
    fn state(&self) -> Markup {
        let lane = self.detail.as_ref().map(|detail| &detail.product.lane).filter(|lane| lane.is_stalled);
        html! {
            div.alerts #state {
                // Read out when the lane stops or goes on, not with each second that passes.
                p.hidden role="status" { @if lane.is_some() { "This lane stands still" } }
                @if let Some(lane) = lane {
                    article.alert {
                        svg viewBox="0 0 20 20" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.8" {
                            path d="M10 2.5 18.5 17.5H1.5z" stroke-linejoin="round" {}
                            path d="M10 8v4.2M10 14.6v.4" stroke-linecap="round" {}
                        }
                        h3 { "This lane stands still: " (Count(lane.waiting)) " waiting" }
                        span { "for " (Age(Duration::from_millis(lane.undecided_ms))) }
                        p {
                            @if let Some(error) = &lane.error { "Try " (lane.tries) ": " (error) ". " }
                            "Look for what keeps its rows locked, or why no worker takes its commands. It goes on by itself once that is over."
                        }
                    }
                }
                @if self.detail.is_none() {
                    p.quiet { "Its figures are not known: nothing has happened to it since this process started, or it is archived." }
                }
            }
        }
    }

    fn stock(&self) -> Markup {
        let product = self.detail.as_ref().map(|detail| &detail.product);
        let stock = product.and_then(|product| product.stock);
        let seen = stock.and_then(|stock| Timestamp::from_millisecond(stock.seen_ms).ok());
        html! {
            div #stock {
                (large_bar(stock, product.map_or(0, |product| product.most_stored)))
                @if let Some(seen) = seen && since(seen, self.at) > FRESH {
                    p.quiet { "As of " time datetime=(seen) { (clock(seen)) } ", " (Age(since(seen, self.at))) " ago." }
                }
            }
        }
    }

    fn figures(&self) -> Markup {
        let product = self.detail.as_ref().map(|detail| &detail.product);
        let lane = product.map(|product| product.lane.clone()).unwrap_or_default();
        let totals = product.map(|product| product.totals).unwrap_or_default();
        let rate = |of: fn(&crate::monitor::board::ProductView) -> f64| Rate(product.map_or(0.0, of));
        let counts = [
            ("Accepted in all", totals.reserved),
            ("Refused in all", totals.refused()),
            ("Paid", totals.paid),
            ("Cancelled", totals.cancelled),
            ("Expired", totals.expired),
            ("Returned", totals.returned),
            ("Paid too late", totals.too_late),
        ];
        html! {
            dl.figures #figures {
                div { dt { "Accepted" } dd { (rate(|product| product.accepted_per_s)) small { " /s" } } }
                div { dt { "Refused" } dd { (rate(|product| product.refused_per_s)) small { " /s" } } }
                div { dt { "Waiting" } dd { (Count(lane.waiting)) } }
                div.bad[lane.is_stalled] { dt { "Oldest waits" } dd { (oldest((lane.waiting > 0).then_some(lane.oldest_ms))) } }
                (percentiles(product.and_then(|product| product.latency)))
                @for (name, count) in counts { div { dt { (name) } dd { (Count(count)) } } }
                @if let Some(worker) = product.and_then(|product| product.worker.as_ref()) {
                    div { dt { "Worker" } dd { small { (worker) } } }
                }
            }
        }
    }

    fn charts(&self) -> Markup {
        let detail = self.detail.as_ref();
        let points = detail.map_or(&[][..], |detail| &detail.series);
        let at = self.at.as_millisecond();
        let product = detail.map(|detail| &detail.product);
        let (accepted, refused) =
            product.map_or((0.0, 0.0), |product| (product.accepted_per_s, product.refused_per_s));
        let waiting = product.map_or(0, |product| product.lane.waiting);
        // A point of the board is of ten seconds.
        let rate = |name, now, of: fn(&ProductPoint) -> u64| Line {
            name,
            now: format!("{} /s", Rate(now)),
            values: steps(points, at, |point| of(point) as f64 / STEP_SECONDS as f64, now),
        };
        let available = detail.and_then(|detail| detail.product.stock).map(|stock| stock.available);
        let charts = [
            Chart {
                title: "Orders",
                from: "10 min ago",
                lines: vec![
                    rate("accepted", accepted, |point| point.accepted),
                    rate("refused", refused, |point| point.refused),
                ],
                axis: |value| format!("{} /s", Rate(value)),
            },
            Chart {
                title: "Available pieces",
                from: "10 min ago",
                lines: vec![Line {
                    name: "available",
                    now: available.map_or(UNKNOWN.to_owned(), |pieces| Count(pieces.into()).to_string()),
                    values: available_steps(points, at, available),
                }],
                axis: |value| Count(value.ceil() as u64).to_string(),
            },
            Chart {
                title: "Waiting commands",
                from: "10 min ago",
                lines: vec![Line {
                    name: "waiting",
                    now: Count(waiting).to_string(),
                    values: steps(points, at, |point| point.waiting as f64, waiting as f64),
                }],
                axis: |value| Count(value.ceil() as u64).to_string(),
            },
        ];
        html! { div.charts #charts { @for chart in charts { (chart.render()) } } }
    }
}

/// Where on the chart a point is.
fn step_of(point: &ProductPoint, now_ms: i64) -> Option<usize> {
    let step = |at_ms: i64| at_ms.div_euclid(STEP_SECONDS * 1_000);
    let at = usize::try_from(step(point.at_ms) - step(now_ms) + STEPS - 1).ok()?;
    (at < STEPS as usize).then_some(at)
}

/// A step without a point is one in which nothing happened. The last step is not over: it shows what is so now.
fn steps(
    points: &[ProductPoint],
    now_ms: i64,
    of: impl Fn(&ProductPoint) -> f64,
    now: f64,
) -> Vec<Option<f64>> {
    let mut values = vec![Some(0.0); STEPS as usize];
    for point in points {
        if let Some(at) = step_of(point, now_ms) {
            values[at] = Some(of(point));
        }
    }
    if let Some(last) = values.last_mut() {
        *last = Some(now);
    }
    values
}

/// Pieces stay where they are while nothing happens. Before the first point they are not known.
fn available_steps(points: &[ProductPoint], now_ms: i64, now: Option<u32>) -> Vec<Option<f64>> {
    let mut values = vec![None; STEPS as usize];
    for point in points {
        if let (Some(at), Some(available)) = (step_of(point, now_ms), point.available) {
            values[at..].fill(Some(f64::from(available)));
        }
    }
    if let (Some(last), Some(now)) = (values.last_mut(), now) {
        *last = Some(f64::from(now));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_of_a_product_fills_the_time_without_points() {
        let now_ms = 1_769_850_000_000;
        let point = |ago_s: i64, accepted, available| ProductPoint {
            at_ms: now_ms - ago_s * 1_000,
            accepted,
            available,
            ..ProductPoint::default()
        };
        let points = [point(700, 9, Some(99)), point(100, 40, Some(7)), point(50, 10, None)];
        let rates = steps(&points, now_ms, |point| point.accepted as f64 / 10.0, 3.0);
        assert_eq!(rates.len(), 60);
        assert_eq!((rates[49], rates[54], rates[59]), (Some(4.0), Some(1.0), Some(3.0)));
        assert_eq!(rates.iter().flatten().sum::<f64>(), 8.0);
        let available = available_steps(&points, now_ms, Some(5));
        assert_eq!(
            (available[48], available[49], available[58], available[59]),
            (None, Some(7.0), Some(7.0), Some(5.0))
        );
    }
}
