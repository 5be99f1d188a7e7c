//! What a browser asks of the list of products: how it is sorted, filtered and cut into pages. It stands in the URL, and people
//! change URLs: what is not understood counts as not given.

use url::form_urlencoded;

use crate::monitor::board::{ProductFilter, ProductQuery, ProductSort};

/// How many products a page shows.
const PAGE_SIZE: usize = 50;
/// Longer searches find nothing: a name has at most 100 characters.
const MAX_SEARCH: usize = 100;

/// Each column that sorts: the word in the URL, and whether the largest comes first.
pub(super) const SORTS: [(&str, ProductSort, bool); 10] = [
    ("id", ProductSort::Id, false),
    ("name", ProductSort::Name, false),
    ("available", ProductSort::Available, true),
    ("reserved", ProductSort::Reserved, true),
    ("stored", ProductSort::Stored, true),
    ("accepted", ProductSort::Accepted, true),
    ("refused", ProductSort::Refused, true),
    ("waiting", ProductSort::Waiting, true),
    ("oldest", ProductSort::Oldest, true),
    ("latency", ProductSort::Latency, true),
];

/// Each filter: the word in the URL, and for people.
pub(super) const FILTERS: [(&str, ProductFilter, &str); 5] = [
    ("all", ProductFilter::All, "All products"),
    ("active", ProductFilter::Active, "Active in the last minute"),
    ("sold_out", ProductFilter::SoldOut, "Sold out"),
    ("waiting", ProductFilter::Waiting, "With waiting commands"),
    ("stalled", ProductFilter::Stalled, "Standing still"),
];

/// The list of products as a URL asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShopQuery(ProductQuery);

impl Default for ShopQuery {
    /// Where most is sold comes first.
    fn default() -> Self {
        let query = ProductQuery {
            sort: ProductSort::Accepted,
            descending: true,
            page_size: PAGE_SIZE,
            ..ProductQuery::default()
        };
        Self(query)
    }
}

impl ShopQuery {
    /// From the query of a URL.
    pub(super) fn parse(text: &str) -> Self {
        let mut query = Self::default().0;
        let mut order = None;
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*name {
                "q" => query.search = value.trim().chars().take(MAX_SEARCH).collect(),
                "show" => {
                    if let Some((_, show, _)) = FILTERS.iter().find(|(word, ..)| *word == value) {
                        query.show = *show;
                    }
                }
                "sort" => {
                    if let Some((_, sort, descending)) = SORTS.iter().find(|(word, ..)| *word == value) {
                        (query.sort, query.descending) = (*sort, *descending);
                    }
                }
                "order" => {
                    order = match &*value {
                        "desc" => Some(true),
                        "asc" => Some(false),
                        _ => order,
                    }
                }
                // Pages count from 1 for people.
                "page" => query.page = value.parse::<u32>().map_or(0, |page| page.saturating_sub(1) as usize),
                _ => {}
            }
        }
        query.descending = order.unwrap_or(query.descending);
        Self(query)
    }

    pub(super) fn get(&self) -> &ProductQuery {
        &self.0
    }

    pub(super) fn is_filtered(&self) -> bool {
        !self.0.search.is_empty() || self.0.show != ProductFilter::All
    }

    /// As the query of a URL: one text for one list. Empty for the default.
    pub(super) fn to_text(&self) -> String {
        let (query, default) = (&self.0, Self::default().0);
        let mut text = form_urlencoded::Serializer::new(String::new());
        if !query.search.is_empty() {
            text.append_pair("q", &query.search);
        }
        if query.show != default.show {
            text.append_pair("show", self.show_word());
        }
        let (word, usually_descending) = self.sort_word();
        if query.sort != default.sort || query.descending != usually_descending {
            text.append_pair("sort", word);
        }
        if query.descending != usually_descending {
            text.append_pair("order", if query.descending { "desc" } else { "asc" });
        }
        if query.page > 0 {
            text.append_pair("page", &(query.page + 1).to_string());
        }
        text.finish()
    }

    pub(super) fn show_word(&self) -> &'static str {
        FILTERS.iter().find(|(_, show, _)| *show == self.0.show).map_or("all", |(word, ..)| word)
    }

    /// The word, and whether the largest comes first unless the URL says otherwise.
    pub(super) fn sort_word(&self) -> (&'static str, bool) {
        let found = SORTS.iter().find(|(_, sort, _)| *sort == self.0.sort);
        found.map_or(("id", false), |(word, _, descending)| (*word, *descending))
    }

    /// The same list by this column; the other way round if it is sorted by it already.
    pub(super) fn sorted_by(&self, sort: ProductSort) -> Self {
        let usual = SORTS.iter().any(|(_, known, descending)| *known == sort && *descending);
        let descending = if self.0.sort == sort { !self.0.descending } else { usual };
        Self(ProductQuery { sort, descending, page: 0, ..self.0.clone() })
    }

    pub(super) fn at_page(&self, page: usize) -> Self {
        Self(ProductQuery { page, ..self.0.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_is_written() {
        assert_eq!(ShopQuery::default().to_text(), "");
        for text in [
            "q=Kaos+%26+%3Cb%3E",
            "show=stalled&page=7",
            "sort=id",
            "sort=id&order=desc",
            "sort=accepted&order=asc",
            "q=%F0%9F%91%95&show=sold_out&sort=latency&order=asc&page=2",
        ] {
            assert_eq!(ShopQuery::parse(text).to_text(), text);
        }
    }

    #[test]
    fn what_is_not_understood_counts_as_not_given() {
        for text in
            ["", "&&=&", "sort=x&show=y&order=z&page=-1", "page=0&q=+", "page=x&other=1", "order=desc"]
        {
            assert_eq!(ShopQuery::parse(text), ShopQuery::default(), "{text}");
        }
        let long = ShopQuery::parse(&format!("q={}", "x".repeat(5_000)));
        assert_eq!(long.get().search.len(), MAX_SEARCH);
        assert_eq!(ShopQuery::parse("page=4294967295").get().page, 4_294_967_294);
    }

    #[test]
    fn a_column_sorts_the_other_way_round_at_the_second_time() {
        let list = ShopQuery::parse("page=3").sorted_by(ProductSort::Name);
        assert_eq!(list.to_text(), "sort=name");
        assert_eq!(list.sorted_by(ProductSort::Name).to_text(), "sort=name&order=desc");
        assert_eq!(list.sorted_by(ProductSort::Waiting).at_page(1).to_text(), "sort=waiting&page=2");
    }
}
