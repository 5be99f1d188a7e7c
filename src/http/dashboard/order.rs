//! The page of one order: its life.

use jiff::Timestamp;
use maud::{Markup, html};

use super::figures::{Age, Count, moment, since};
use crate::{
    domain::{
        ids::OrderId,
        lines::Lines,
        order::{Order, OrderStatus, Payment},
        rejection::{Rejection, RejectionReason},
    },
    service::ordering::OrderLookup,
};

/// An order at one moment.
pub(super) struct OrderPage {
    pub(super) order: OrderLookup,
    pub(super) at: Timestamp,
}

impl OrderPage {
    fn id(&self) -> OrderId {
        match &self.order {
            OrderLookup::Stored(order) => order.id,
            OrderLookup::Pending(id) => *id,
        }
    }

    /// Whether it may still change.
    pub(super) fn is_open(&self) -> bool {
        matches!(&self.order, OrderLookup::Pending(_))
            || matches!(&self.order, OrderLookup::Stored(order) if order.status() == OrderStatus::Reserved)
    }

    pub(super) fn content(&self, root: &str) -> Markup {
        let product = match &self.order {
            OrderLookup::Stored(order) => order.lane(),
            OrderLookup::Pending(_) => None,
        };
        html! {
            nav.crumbs aria-label="Way back" {
                a href=(root) { "Dashboard" }
                @if let Some(product) = product { " / " a href={ (root) "products/" (product) } { "Product " (product) } }
                " / Order"
            }
            h1 { "Order " code { (self.id()) } }
            div #order data-refresh=[self.is_open().then_some("2")] {
                section.card {
                    @match &self.order {
                        OrderLookup::Stored(order) => (self.stored(order, root)),
                        OrderLookup::Pending(id) => (self.pending(*id)),
                    }
                }
            }
        }
    }

    fn stored(&self, order: &Order, root: &str) -> Markup {
        html! {
            dl.facts {
                dt { "Status" } dd { (status_tag(order.status())) }
                @for line in order.lines.iter().flat_map(Lines::as_slice) {
                    dt { "Product" } dd { a href={ (root) "products/" (line.product_id) } { (line.product_id) } }
                    dt { "Pieces" } dd { (Count(line.total.get().into())) }
                }
                @if let Some(buyer) = &order.buyer { dt { "Buyer" } dd { (buyer.as_str()) } }
            }
            ol.life {
                li { b { "Created" } " " (time(order.id.created_at())) (self.ago(order.id.created_at())) }
                (self.decided(order))
            }
        }
    }

    fn decided(&self, order: &Order) -> Markup {
        if let Some(rejection) = order.rejection() {
            return html! { li.bad { b { "Rejected" } " " (why(rejection)) p.quiet { "When it was decided is not stored." } } };
        }
        if order.was_given_up() {
            return html! { li.bad { b { "Cancelled" } p.quiet { "Before its turn in the lane: it never had any pieces." } } };
        }
        let end = order.expires_at().unwrap_or(order.id.created_at());
        let status = order.status();
        html! {
            li { b { "Reserved" } p.quiet { "Its pieces were set aside. When that was decided is not stored." } }
            @match status {
                OrderStatus::Reserved if end > self.at => {
                    li.next { b { "Expires" } " " (time(end)) " (in " (Age(since(self.at, end))) ") unless it is paid" }
                },
                OrderStatus::Reserved => {
                    li.next { b { "Due" } " since " (time(end)) (self.ago(end)) p.quiet { "Its expiry waits in the lane; a payment that is decided before it still counts." } }
                },
                OrderStatus::Expired => {
                    li.bad { b { "Expired" } " after " (time(end)) p.quiet { "Its pieces are available again." } }
                    @if let Some(payment) = &order.payment { (self.paid_too_late(payment)) }
                },
                OrderStatus::Paid | OrderStatus::Returned => {
                    (self.paid(order, end))
                    @if status == OrderStatus::Returned { li.bad { b { "Returned" } } }
                },
                OrderStatus::Cancelled | OrderStatus::Rejected => {
                    li.bad { b { "Cancelled" } p.quiet { "Its pieces are available again. When that was is not stored. The reservation would have ended " (time(end)) "." } }
                },
            }
        }
    }

    fn paid(&self, order: &Order, end: Timestamp) -> Markup {
        let payment = order.payment.clone().unwrap_or_default();
        html! {
            li {
                b { "Paid" }
                @if let Some(at) = payment.paid_at { " " (time(at)) (self.ago(at)) }
                p.quiet {
                    "Its pieces left the stock. "
                    @if let Some(reference) = &payment.reference { "The payment is " code { (reference.as_str()) } ". " }
                    "The reservation would have ended " (time(end)) "."
                }
            }
        }
    }

    fn paid_too_late(&self, payment: &Payment) -> Markup {
        html! {
            li.bad {
                b { "Paid too late" }
                @if let Some(at) = payment.paid_at { " " (time(at)) (self.ago(at)) }
                p.quiet {
                    "It got no pieces, and the money must go back. "
                    @if let Some(reference) = &payment.reference { "The payment is " code { (reference.as_str()) } ". " }
                }
            }
        }
    }

    fn pending(&self, id: OrderId) -> Markup {
        html! {
            dl.facts { dt { "Status" } dd { span.tag { (OrderStatus::PENDING) } } }
            ol.life {
                li { b { "Created" } " " (time(id.created_at())) (self.ago(id.created_at())) }
                li.next {
                    b { "Not decided yet" }
                    p.quiet {
                        "It waits in its lane, or with a worker. Or it was refused while its client waited for the answer: such a "
                        "rejection is not stored."
                    }
                }
            }
        }
    }

    fn ago(&self, then: Timestamp) -> Markup {
        html! { " " span.quiet { "(" (Age(since(then, self.at))) " ago)" } }
    }
}

/// An order that is nowhere.
pub(super) fn unknown(root: &str, id: &str) -> Markup {
    html! {
        nav.crumbs aria-label="Way back" { a href=(root) { "Dashboard" } " / Order" }
        h1 { "No such order" }
        section.card.empty {
            p { "There is no order " code { (id) } "." }
            p.quiet {
                "An order id is a UUID, as in the answer to its POST. An order that was refused at once is not stored, and one "
                "that was pruned is gone."
            }
        }
    }
}

pub(super) fn status_tag(status: OrderStatus) -> Markup {
    let is_bad = matches!(status, OrderStatus::Rejected);
    let is_on = matches!(status, OrderStatus::Reserved | OrderStatus::Paid);
    html! { span.tag.bad[is_bad].on[is_on] { (status.as_str()) } }
}

/// When something was.
pub(super) fn time(at: Timestamp) -> Markup {
    html! { time datetime=(at) { (moment(at)) } }
}

fn why(rejection: Rejection) -> String {
    match (rejection.reason(), rejection.available()) {
        (RejectionReason::InsufficientStock, Some(available)) => {
            format!("because only {} pieces were available", Count(available.into()))
        }
        (reason, _) => format!("({})", reason.as_str()),
    }
}
