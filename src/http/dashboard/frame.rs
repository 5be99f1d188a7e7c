//! What every page of the dashboard has around its content.

use axum::response::Response;
use maud::{DOCTYPE, Markup, html};

use super::files::href;
use crate::http::page::page;

/// A page to be.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    /// What leads from the page to the dashboard's root: `./`, `../` or `/prefix/`.
    pub(super) root: &'a str,
    /// Whether it is the page of the whole shop.
    pub(super) is_home: bool,
    /// Where its events come from, if it has any.
    pub(super) events: Option<String>,
    /// What the page does without a script: how often it loads itself again.
    pub(super) reload_seconds: Option<u32>,
    /// What is searched for in the page's head.
    pub(super) order_id: &'a str,
}

impl Frame<'_> {
    pub(super) fn around(&self, content: &Markup) -> Response {
        let Self { title, root, is_home, events, reload_seconds, order_id } = self;
        page(html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    title { (title) " · antre" }
                    link rel="icon" href=[href(root, "icon.svg")];
                    link rel="stylesheet" href=[href(root, "page.css")];
                    script src=[href(root, "page.js")] defer {}
                    @if let Some(seconds) = reload_seconds {
                        noscript { meta http-equiv="refresh" content=(seconds); }
                    }
                }
                body data-release=(env!("CARGO_PKG_VERSION")) data-events=[events.as_deref()] {
                    a.skip href="#content" { "To the content" }
                    header.top {
                        a.brand href=(root) { "antre" }
                        nav aria-label="Pages" {
                            a href=(root) aria-current=[is_home.then_some("page")] { "Dashboard" }
                            a href={ (root) "docs" } { "API" }
                        }
                        @if events.is_some() {
                            p #connection role="status" { i aria-hidden="true" {} span { "Updates with each reload" } }
                        }
                        form action={ (root) "orders" } role="search" aria-label="Find an order" {
                            label.hidden for="order-id" { "Order id" }
                            input #order-id name="id" type="search" placeholder="Order id" value=(order_id)
                                autocomplete="off" spellcheck="false" maxlength="64";
                            button { "Find order" }
                        }
                    }
                    main #content tabindex="-1" { (content) }
                    footer.bottom {
                        p { "antre " (env!("CARGO_PKG_VERSION")) " · times are UTC · rates are of the last 5 seconds, latencies of the last minute" }
                    }
                }
            }
        })
    }
}
