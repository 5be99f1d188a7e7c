//! The orders of one product since a time, the newest first, page by page.

use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use url::form_urlencoded;

use super::{
    figures::Count,
    order::{status_tag, time},
};
use crate::{
    domain::{
        ids::{OrderId, ProductId},
        lines::Lines,
        order::{Order, OrderStatus},
    },
    service::ordering::{Direction, OrderList, OrderPage},
};

/// How many orders a page shows.
const PAGE_SIZE: u32 = 25;

/// Since when orders are listed: the word in the URL, for people, and how long ago.
const SINCE: [(&str, &str, Option<SignedDuration>); 4] = [
    ("hour", "Of the last hour", Some(SignedDuration::from_hours(1))),
    ("10min", "Of the last 10 minutes", Some(SignedDuration::from_mins(10))),
    ("minute", "Of the last minute", Some(SignedDuration::from_mins(1))),
    ("all", "All", None),
];

/// Which orders, as a URL asks for them. What is not understood counts as not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListingQuery {
    since: &'static str,
    status: Option<OrderStatus>,
    after: Option<OrderId>,
}

impl ListingQuery {
    pub(super) fn parse(text: &str) -> Self {
        let mut query = Self { since: SINCE[0].0, status: None, after: None };
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*name {
                "since" => {
                    if let Some((word, ..)) = SINCE.iter().find(|(word, ..)| *word == value) {
                        query.since = word;
                    }
                }
                "status" => query.status = OrderStatus::from_word(&value),
                "after" => query.after = value.parse().ok(),
                _ => {}
            }
        }
        query
    }

    /// The orders of this product, the newest first.
    pub(super) fn list(&self, product: ProductId, now: Timestamp) -> OrderList {
        OrderList::Page(OrderPage {
            product_id: Some(product),
            buyer: None,
            status: self.status,
            newer_than: self.newer_than(now),
            direction: Direction::NewestFirst,
            after: self.after,
            limit: PAGE_SIZE,
        })
    }

    fn newer_than(&self, now: Timestamp) -> Option<OrderId> {
        let ago = SINCE.iter().find(|(word, ..)| *word == self.since).and_then(|(.., ago)| *ago);
        Some(OrderId::before(now.checked_sub(ago?).ok()?))
    }

    fn to_text(&self, after: Option<OrderId>) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.append_pair("since", self.since);
        if let Some(status) = self.status {
            text.append_pair("status", status.as_str());
        }
        if let Some(after) = after {
            text.append_pair("after", &after.to_string());
        }
        text.finish()
    }
}

/// Some orders, and behind which one the next page begins.
pub(super) struct Found {
    pub(super) rows: Vec<Order>,
    pub(super) next: Option<OrderId>,
}

/// A page of orders, or why there is none.
pub(super) struct Listing {
    pub(super) query: ListingQuery,
    pub(super) found: Result<Found, String>,
}

impl Listing {
    /// Loads itself again every few seconds: an order that is shown may change.
    pub(super) fn render(&self, root: &str, product: ProductId) -> Markup {
        html! {
            div.head {
                h2 #orders-title { "Orders" }
                (self.form(root, product))
            }
            div #orders data-refresh="5" {
                @match &self.found {
                    Ok(page) => (self.page(root, product, page)),
                    Err(why) => p.bad-text { (why) },
                }
            }
        }
    }

    fn form(&self, root: &str, product: ProductId) -> Markup {
        html! {
            form.end action={ (root) "products/" (product) } {
                label.hidden for="since" { "Since when" }
                select #since name="since" data-submit {
                    @for (word, name, _) in SINCE { option value=(word) selected[self.query.since == word] { (name) } }
                }
                label.hidden for="status" { "Status" }
                select #status name="status" data-submit {
                    option value="" { "Any status" }
                    @for status in OrderStatus::ALL {
                        option value=(status.as_str()) selected[self.query.status == Some(status)] { (status.as_str()) }
                    }
                }
                button { "Show" }
            }
        }
    }

    fn page(&self, root: &str, product: ProductId, page: &Found) -> Markup {
        let href = |after| format!("{root}products/{product}?{}", self.query.to_text(after));
        html! {
            @if page.rows.is_empty() && page.next.is_none() {
                p.quiet {
                    @if self.query.after.is_some() { "No more orders. " } @else { "No order here. " }
                    "Orders that are not decided yet, and those that were refused at once, are not stored."
                }
            }
            @if !page.rows.is_empty() {
                table.cards role="table" aria-labelledby="orders-title" {
                    thead role="rowgroup" { tr role="row" {
                        th role="columnheader" scope="col" { "Order" }
                        th role="columnheader" scope="col" { "Status" }
                        th.n role="columnheader" scope="col" { "Pieces" }
                        th role="columnheader" scope="col" { "Created" }
                    } }
                    tbody role="rowgroup" {
                        @for order in &page.rows {
                            tr role="row" id={ "order-" (order.id) } {
                                th role="rowheader" scope="row" {
                                    a href={ (root) "orders/" (order.id) } { code { (order.id) } }
                                }
                                td role="cell" { (status_tag(order.status())) }
                                td.n role="cell" data-label="Pieces" { (Count(pieces(order, product))) }
                                td role="cell" data-label="Created" { (time(order.id.created_at())) }
                            }
                        }
                    }
                }
            }
            nav.pager aria-label="Pages of orders" {
                @if self.query.after.is_some() { a href=(href(None)) { "First page" } }
                @if let Some(next) = page.next { a rel="next" href=(href(Some(next))) { "Next" } }
            }
        }
    }
}

/// The pieces of a product in an order.
fn pieces(order: &Order, product_id: ProductId) -> u64 {
    let mut lines = order.lines.iter().flat_map(Lines::as_slice);
    lines.find(|line| line.product_id == product_id).map_or(0, |line| line.total.get().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_the_one_that_the_url_asks_for() {
        let now = Timestamp::from_millisecond(1_769_850_000_000).unwrap();
        let page = |text: &str| match ListingQuery::parse(text).list(ProductId::new(7).unwrap(), now) {
            OrderList::Page(page) => page,
            other => panic!("{other:?}"),
        };
        let since = |text: &str| Some(page(text).newer_than?.created_at());
        assert_eq!(since(""), Some(now - SignedDuration::from_hours(1)));
        assert_eq!(since("since=x&status=y&after=z"), since(""));
        assert_eq!(since("since=minute"), Some(now - SignedDuration::from_mins(1)));
        assert_eq!(since("since=all"), None);
        assert_eq!(page("").direction, Direction::NewestFirst);
        let id = "0193b2f0-0000-7000-8000-000000000001";
        let next = page(&format!("since=minute&after={id}"));
        assert_eq!(next.after.unwrap().to_string(), id);
        assert!(next.newer_than.is_some(), "the list ends where it did on the first page");
        let query = ListingQuery::parse("status=paid&since=all");
        assert_eq!(query.to_text(None), "since=all&status=paid");
        assert_eq!(query.to_text(Some(id.parse().unwrap())), format!("since=all&status=paid&after={id}"));
    }
}
