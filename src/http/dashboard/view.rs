//! What a browser can watch.

use jiff::Timestamp;

use super::{piece::Piece, product::ProductPage, query::ShopQuery, shop::Shop};
use crate::{domain::ids::ProductId, monitor::board::Board};

/// A page, and where it leads back to. Two that are equal are the same HTML.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct View {
    /// What leads from the page to the dashboard's root.
    pub(super) root: String,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// The query of its URL.
    Shop(String),
    Product(ProductId),
}

impl View {
    /// Where its events are.
    pub(super) fn events(&self) -> String {
        let root = &self.root;
        match &self.content {
            Content::Shop(query) => format!("{root}dashboard/events?{query}"),
            Content::Product(id) => format!("{root}dashboard/events/products/{id}"),
        }
    }

    /// What changes of it while it is shown.
    pub(super) fn pieces(&self, board: &Board, at: Timestamp) -> Vec<Piece> {
        match &self.content {
            Content::Shop(query) => Shop::read(board, &self.root, &ShopQuery::parse(query)).pieces(),
            Content::Product(id) => ProductPage::read(board, *id, at).pieces(),
        }
    }
}
