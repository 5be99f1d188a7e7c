//! The page of the whole shop.

use std::time::Duration;

use maud::{Markup, html};

use super::{
    chart::{Chart, Line},
    figures::{Age, Count, Rate, Span, UNKNOWN, clock, since},
    piece::Piece,
    query::{FILTERS, ShopQuery},
    stock::bar,
};
use crate::monitor::{
    board::{
        Alert, AlertKind, Board, NotOnSale, Overview, ProcessView, ProductPage, ProductSort, ProductView,
        Severity, ShopPoint,
    },
    latency::Percentiles,
    report::Vital,
};

/// How many steps a chart has, and how many seconds each is: ten minutes.
const STEPS: i64 = 150;
const STEP_SECONDS: i64 = 4;

/// The shop at one moment, and the products that somebody asked for.
pub(super) struct Shop<'a> {
    root: &'a str,
    query: &'a ShopQuery,
    overview: Overview,
    page: ProductPage,
}

impl<'a> Shop<'a> {
    pub(super) fn read(board: &Board, root: &'a str, query: &'a ShopQuery) -> Self {
        Self { root, query, overview: board.overview(), page: board.products(query.get()) }
    }

    /// What changes while it is shown.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        let rows = self.page.rows.iter().map(|row| Piece::new(row_id(row), self.row(row))).collect();
        vec![
            Piece::new("vitals", self.vitals()),
            Piece::new("alerts", self.alerts()),
            Piece::new("figures", self.figures()),
            Piece::new("charts", self.charts()),
            Piece::new("processes", self.processes()),
            Piece::new("count", self.count()),
            Piece { rows, ..Piece::new("rows", self.rows()) },
            Piece::new("pager", self.pager()),
        ]
    }

    /// The content of the page.
    pub(super) fn content(&self) -> Markup {
        html! {
            h1.hidden { "The shop" }
            section aria-label="What the shop needs" { (self.vitals()) }
            (self.alerts())
            section.card aria-labelledby="whole" {
                h2.hidden #whole { "The whole shop" }
                (self.figures())
                (self.charts())
            }
            section.card aria-labelledby="processes-title" {
                h2 #processes-title { "Processes" }
                (self.processes())
            }
            section.card aria-labelledby="products-title" {
                div.head {
                    h2 #products-title { "Products" }
                    (self.count())
                    (self.form())
                }
                table.cards role="table" aria-labelledby="products-title" {
                    thead role="rowgroup" { tr role="row" {
                        (self.header("Product", ProductSort::Name, ""))
                        th.bar role="columnheader" scope="col" { "Stock" }
                        (self.header("Available", ProductSort::Available, "n"))
                        (self.header("Reserved", ProductSort::Reserved, "n"))
                        (self.header("Stored", ProductSort::Stored, "n"))
                        (self.header("Accepted/s", ProductSort::Accepted, "n"))
                        (self.header("Refused/s", ProductSort::Refused, "n"))
                        (self.header("Waiting", ProductSort::Waiting, "n"))
                        (self.header("Oldest", ProductSort::Oldest, "n"))
                        th.n role="columnheader" scope="col" { abbr title="Half of the verdicts took no longer" { "p50" } }
                        th.n role="columnheader" scope="col" { abbr title="95 % of the verdicts took no longer" { "p95" } }
                        (self.header("p99", ProductSort::Latency, "n"))
                    } }
                    (self.rows())
                }
                (self.pager())
            }
        }
    }

    fn vitals(&self) -> Markup {
        let alive = || self.overview.processes.iter().filter(|process| process.gone_since.is_none());
        let workers = alive().filter(|process| process.role.is_worker()).count();
        let apis = alive().filter(|process| process.role.is_api()).count();
        let dead = self.overview.dead_letters;
        html! {
            ul.vitals #vitals {
                (self.vital("Database", &self.overview.database))
                (self.vital("Broker", &self.overview.broker))
                li.vital.bad[workers == 0] { "Workers " b { (workers) } }
                li.vital { "APIs " b { (apis) } }
                li.vital.warn[dead.is_some_and(|count| count > 0)] {
                    "Dead letters " b { @match dead { Some(count) => { (Count(count)) } None => { (UNKNOWN) } } }
                }
            }
        }
    }

    fn vital(&self, name: &str, vital: &Vital) -> Markup {
        let (is_bad, text) = match vital {
            Vital::Ok => (false, "ok".to_owned()),
            Vital::Unknown => (false, UNKNOWN.to_owned()),
            Vital::Unavailable { since: from, .. } => {
                (true, format!("away for {}", Age(since(*from, self.overview.at))))
            }
        };
        html! { li.vital.bad[is_bad] { (name) " " b { (text) } } }
    }

    fn alerts(&self) -> Markup {
        let is_stale = matches!(self.overview.database, Vital::Unavailable { .. });
        html! {
            section.alerts #alerts aria-label="Alerts" {
                // Read out when the set of alerts changes, not with each second that passes.
                p.hidden #announcement role="status" {
                    @for alert in &self.overview.alerts { (announcement(alert)) ". " }
                }
                @for (at, alert) in self.overview.alerts.iter().enumerate() {
                    // Many lanes that stand still need the same: it is said once.
                    (self.alert(alert, !self.overview.alerts[..at].iter().any(|before| before.kind == alert.kind)))
                }
                @if is_stale {
                    p.quiet { "Stock is as it was known before the database went away. What is decided meanwhile is not shown." }
                }
            }
        }
    }

    fn alert(&self, alert: &Alert, has_advice: bool) -> Markup {
        let is_warning = alert.severity == Severity::Warning;
        html! {
            article.alert.warning[is_warning] {
                svg viewBox="0 0 20 20" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.8" {
                    path d="M10 2.5 18.5 17.5H1.5z" stroke-linejoin="round" {}
                    path d="M10 8v4.2M10 14.6v.4" stroke-linecap="round" {}
                }
                h3 {
                    span.hidden { (if is_warning { "Warning: " } else { "Critical: " }) }
                    @match alert.product_id {
                        Some(id) => a href={ (self.root) "products/" (id) } { (alert.text) },
                        None => (alert.text),
                    }
                }
                time datetime=(alert.since) {
                    "since " (clock(alert.since)) " (" (Age(since(alert.since, self.overview.at))) ")"
                }
                @if has_advice { p { (alert.advice) } }
            }
        }
    }

    fn figures(&self) -> Markup {
        let overview = &self.overview;
        let has_stalled = overview.alerts.iter().any(|alert| alert.product_id.is_some());
        html! {
            dl.figures #figures {
                div { dt { "Accepted" } dd #accepted-rate { (Rate(overview.accepted_per_s)) small { " /s" } } }
                div { dt { "Refused" } dd { (Rate(overview.refused_per_s)) small { " /s" } } }
                div { dt { "Accepted in all" } dd #accepted-total { (Count(overview.totals.reserved)) } }
                div { dt { "Refused in all" } dd #refused-total { (Count(overview.totals.refused())) } }
                div { dt { "Waiting" } dd #waiting-total { (Count(overview.waiting)) } }
                div.bad[has_stalled] { dt { "Oldest waits" } dd { (oldest(overview.oldest_ms)) } }
                (percentiles(overview.latency))
            }
        }
    }

    fn charts(&self) -> Markup {
        let overview = &self.overview;
        let series =
            |of: fn(&ShopPoint) -> Option<f64>| steps(&overview.series, overview.at.as_millisecond(), of);
        let rate = |name, now: f64, of| Line { name, now: format!("{} /s", Rate(now)), values: series(of) };
        let latency = |name, of: fn(&Percentiles) -> f64, values| Line {
            name,
            now: overview.latency.map_or(UNKNOWN.to_owned(), |latency| ms(of(&latency))),
            values,
        };
        let charts = [
            Chart {
                title: "Orders",
                from: "10 min ago",
                lines: vec![
                    rate("accepted", overview.accepted_per_s, |point| Some(point.accepted as f64)),
                    rate("refused", overview.refused_per_s, |point| Some(point.refused as f64)),
                ],
                axis: |value| format!("{} /s", Rate(value)),
            },
            Chart {
                title: "Verdict latency",
                from: "10 min ago",
                lines: vec![
                    latency("p50", |latency| latency.p50_ms, series(|point| Some(point.latency?.p50_ms))),
                    latency("p99", |latency| latency.p99_ms, series(|point| Some(point.latency?.p99_ms))),
                ],
                axis: ms,
            },
            Chart {
                title: "Waiting commands",
                from: "10 min ago",
                lines: vec![Line {
                    name: "waiting",
                    now: Count(overview.waiting).to_string(),
                    values: series(|point| Some(point.waiting as f64)),
                }],
                axis: |value| Count(value.ceil() as u64).to_string(),
            },
        ];
        html! { div.charts #charts { @for chart in charts { (chart.render()) } } }
    }

    fn processes(&self) -> Markup {
        html! {
            ul.processes #processes {
                @for process in &self.overview.processes { (self.process(process)) }
                @if self.overview.processes.is_empty() { li.quiet { "No process has told anything yet." } }
            }
        }
    }

    fn process(&self, process: &ProcessView) -> Markup {
        let now = self.overview.at;
        html! {
            li.process.gone[process.gone_since.is_some()] id={ "process-" (process.id) } {
                b { (process.name) } " " span.tag { (process.role.as_str()) }
                p.quiet {
                    @if let Some(gone) = process.gone_since {
                        "gone since " (clock(gone)) " (" (Age(since(gone, now))) ")"
                    } @else {
                        @if process.role.is_worker() {
                            (Count(process.lanes_served.into())) " lanes, " (Count(process.lanes_active.into())) " active · "
                        }
                        "up " (Age(since(process.started_at, now))) " · " (process.version)
                    }
                }
                @for (name, vital) in [("database", &process.database), ("broker", &process.broker)] {
                    @if let (Vital::Unavailable { error, .. }, None) = (vital, process.gone_since) {
                        p.bad-text { (name) ": " (error) }
                    }
                }
            }
        }
    }

    fn count(&self) -> Markup {
        let (matching, all) = (self.page.matching as u64, self.overview.products as u64);
        html! {
            p.quiet #count {
                @if self.query.is_filtered() { (Count(matching)) " of " }
                (Count(all))
            }
        }
    }

    fn form(&self) -> Markup {
        let query = self.query.get();
        let (sort, usually_descending) = self.query.sort_word();
        html! {
            form.end role="search" aria-label="Find products" action=(self.root) {
                label.hidden for="q" { "Name, SKU or id" }
                input #q name="q" type="search" placeholder="Name, SKU or id" value=(query.search) maxlength="100" autocomplete="off";
                label.hidden for="show" { "Which products" }
                select #show name="show" data-submit {
                    @for (word, _, name) in FILTERS {
                        option value=(word) selected[self.query.show_word() == word] { (name) }
                    }
                }
                input type="hidden" name="sort" value=(sort);
                @if query.descending != usually_descending {
                    input type="hidden" name="order" value=(if query.descending { "desc" } else { "asc" });
                }
                button { "Show" }
            }
        }
    }

    fn header(&self, name: &str, sort: ProductSort, class: &str) -> Markup {
        let query = self.query.get();
        let direction =
            (query.sort == sort).then_some(if query.descending { "descending" } else { "ascending" });
        html! {
            th class=[(!class.is_empty()).then_some(class)] role="columnheader" scope="col" aria-sort=[direction] {
                a href=(self.href(&self.query.sorted_by(sort))) { (name) }
            }
        }
    }

    fn href(&self, query: &ShopQuery) -> String {
        match query.to_text() {
            text if text.is_empty() => self.root.to_owned(),
            text => format!("{}?{text}", self.root),
        }
    }

    fn rows(&self) -> Markup {
        html! {
            tbody #rows role="rowgroup" data-rows {
                @for row in &self.page.rows { (self.row(row)) }
                @if self.page.rows.is_empty() {
                    tr #no-rows role="row" { td.wide role="cell" colspan="12" { (self.no_products()) } }
                }
            }
        }
    }

    fn no_products(&self) -> Markup {
        html! {
            @if self.overview.products > 0 {
                p.quiet { "No product matches. " a href=(self.root) { "Show all" } }
            } @else {
                div.empty {
                    p { b { "There is no product yet." } " Create one, count its pieces, and this page shows it:" }
                    pre tabindex="0" { code {
                        "curl http://localhost:3000/api/products --json '{\"name\": \"Kaos Polos\"}'\n"
                        "curl -X PUT http://localhost:3000/api/products/1/inventory --json '{\"stock\": 100}'"
                    } }
                    p.quiet { "With the host and the product's id of yours. " a href={ (self.root) "docs" } { "The API" } " has all calls." }
                }
            }
        }
    }

    fn row(&self, product: &ProductView) -> Markup {
        let lane = &product.lane;
        let latency =
            |of: fn(&Percentiles) -> f64| product.latency.map_or(UNKNOWN.to_owned(), |all| ms(of(&all)));
        let pieces = |of: fn(&crate::monitor::report::StockLevel) -> u64| {
            product.stock.map_or(UNKNOWN.to_owned(), |stock| Count(of(&stock)).to_string())
        };
        html! {
            tr id=(row_id(product)) role="row" {
                th role="rowheader" scope="row" {
                    a href={ (self.root) "products/" (product.id) } { (product.name.as_deref().unwrap_or("(name not read yet)")) }
                    " " span.quiet { "#" (product.id) }
                    @if lane.is_stalled { " " span.tag.bad { "stands still" } }
                    @if let Some(why) = product.not_on_sale { " " (not_on_sale_tag(why)) }
                }
                td.bar role="cell" { (bar(product.stock, product.most_stored)) }
                td.n role="cell" data-label="Available" { (pieces(|stock| stock.available.into())) }
                td.n role="cell" data-label="Reserved" { (pieces(|stock| stock.reserved.into())) }
                td.n role="cell" data-label="Stored" { (pieces(|stock| stock.stored())) }
                td.n.zero[product.accepted_per_s == 0.0] role="cell" data-label="Accepted/s" { (Rate(product.accepted_per_s)) }
                td.n.zero[product.refused_per_s == 0.0] role="cell" data-label="Refused/s" { (Rate(product.refused_per_s)) }
                td.n.zero[lane.waiting == 0] role="cell" data-label="Waiting" { (Count(lane.waiting)) }
                td.n.bad[lane.is_stalled].zero[lane.waiting == 0] role="cell" data-label="Oldest" {
                    (oldest((lane.waiting > 0).then_some(lane.oldest_ms)))
                }
                td.n role="cell" data-label="p50" { (latency(|all| all.p50_ms)) }
                td.n role="cell" data-label="p95" { (latency(|all| all.p95_ms)) }
                td.n role="cell" data-label="p99" { (latency(|all| all.p99_ms)) }
            }
        }
    }

    fn pager(&self) -> Markup {
        let ProductPage { page, pages, .. } = self.page;
        html! {
            nav.pager #pager aria-label="Pages of products" {
                @if pages > 1 {
                    @if page > 0 { a rel="prev" href=(self.href(&self.query.at_page(page - 1))) { "Previous" } }
                    span.quiet { "Page " (page + 1) " of " (pages) }
                    @if page + 1 < pages { a rel="next" href=(self.href(&self.query.at_page(page + 1))) { "Next" } }
                }
            }
        }
    }
}

fn announcement(alert: &Alert) -> String {
    match (alert.kind, alert.product_id) {
        (AlertKind::DatabaseUnavailable, _) => "The database does not answer".to_owned(),
        (AlertKind::BrokerUnavailable, _) => "The broker does not answer".to_owned(),
        (AlertKind::NoWorker, _) => "No worker is alive".to_owned(),
        (AlertKind::LaneStalled, Some(id)) => format!("Lane {id} stands still"),
        (AlertKind::LaneStalled, None) => "More lanes stand still".to_owned(),
        (AlertKind::DeadLetters, _) => "There are dead letters".to_owned(),
    }
}

fn row_id(product: &ProductView) -> String {
    format!("product-{}", product.id)
}

/// Why no order is taken, in words: color alone says nothing to some people.
pub(super) fn not_on_sale_tag(why: NotOnSale) -> Markup {
    let text = match why {
        NotOnSale::Paused => "paused",
        NotOnSale::NotOpen => "not open yet",
        NotOnSale::Closed => "closed",
    };
    html! { span.tag { (text) } }
}

/// Half, 95 % and 99 % of the verdicts took no longer.
pub(super) fn percentiles(latency: Option<Percentiles>) -> Markup {
    type One = fn(&Percentiles) -> f64;
    let figures: [(&str, &str, One); 3] = [
        ("p50", "half of the verdicts took no longer", |all| all.p50_ms),
        ("p95", "95 % of the verdicts took no longer", |all| all.p95_ms),
        ("p99", "99 % of the verdicts took no longer", |all| all.p99_ms),
    ];
    html! {
        @for (name, meaning, of) in figures {
            div title=(meaning) { dt { "Latency " (name) } dd { (latency.map_or(UNKNOWN.to_owned(), |all| ms(of(&all)))) } }
        }
    }
}

/// The age of the oldest command that waits.
pub(super) fn oldest(ms: Option<u64>) -> String {
    ms.map_or(UNKNOWN.to_owned(), |ms| Span(Duration::from_millis(ms)).to_string())
}

pub(super) fn ms(ms: f64) -> String {
    Span(Duration::try_from_secs_f64(ms / 1_000.0).unwrap_or_default()).to_string()
}

/// The mean of each step; `None` for a step without any value. Steps begin at whole multiples of their length, so that a line
/// moves on by a step and does not change its shape each second.
fn steps(points: &[ShopPoint], now_ms: i64, of: fn(&ShopPoint) -> Option<f64>) -> Vec<Option<f64>> {
    let step_of = |at_ms: i64| at_ms.div_euclid(STEP_SECONDS * 1_000);
    let first = step_of(now_ms) - STEPS + 1;
    let mut sums = vec![(0.0, 0_u32); STEPS as usize];
    for point in points {
        let sum = usize::try_from(step_of(point.at_ms) - first).ok().and_then(|at| sums.get_mut(at));
        if let (Some((sum, count)), Some(value)) = (sum, of(point)) {
            (*sum, *count) = (*sum + value, *count + 1);
        }
    }
    sums.into_iter().map(|(sum, count)| (count > 0).then(|| sum / f64::from(count))).collect()
}
