//! Queries over all products: thousands of light keys are sorted, and only the rows of the page are put together.

use std::cmp::Ordering;

use super::{
    lanes::Lanes,
    product::{Moment, ProductRow},
    state::{ACTIVE, State},
    view::{LaneView, ProductFilter, ProductPage, ProductQuery, ProductSort, ProductView},
};
use crate::domain::ids::ProductId;

/// How many rows a page has at most.
const MAX_PAGE_SIZE: usize = 500;

pub(super) fn page(state: &State, query: &ProductQuery, now: Moment) -> ProductPage {
    let lanes = state.processes.lanes(now.instant);
    let search = Search::new(&query.search);
    let matching = state.products.iter().filter(|(id, row)| {
        search.finds(**id, row) && is_shown(query.show, row, || lane(state, **id, &lanes, now), now)
    });
    let mut keys: Vec<_> = matching
        .map(|(id, row)| (key(query.sort, row, || lane(state, *id, &lanes, now), now), *id))
        .collect();
    keys.sort_by(|(a, a_id), (b, b_id)| {
        let order = compare(a, b);
        let order = if query.descending { order.reverse() } else { order };
        // Products that are equal keep their places.
        let by_id = a_id.cmp(b_id);
        order.then(if query.descending && query.sort == ProductSort::Id { by_id.reverse() } else { by_id })
    });
    let size = query.page_size.clamp(1, MAX_PAGE_SIZE);
    let pages = keys.len().div_ceil(size).max(1);
    let page = query.page.min(pages - 1);
    let shown = keys.iter().skip(page * size).take(size);
    let rows = shown.filter_map(|(_, id)| Some(view(state, *id, state.products.get(id)?, &lanes, now)));
    ProductPage { rows: rows.collect(), page, pages, matching: keys.len() }
}

pub(super) fn view(
    state: &State,
    id: ProductId,
    row: &ProductRow,
    lanes: &Lanes,
    now: Moment,
) -> ProductView {
    let (accepted_per_s, refused_per_s) = row.rate().per_second(now.second);
    let worker = row.decided().and_then(|(worker, _)| state.processes.name_of(worker));
    ProductView {
        id,
        name: row.name().map(str::to_owned),
        stock: row.stock(),
        not_on_sale: row.not_on_sale(),
        most_stored: row.most_stored(),
        accepted_per_s,
        refused_per_s,
        totals: row.totals(),
        lane: lane(state, id, lanes, now).unwrap_or_default(),
        latency: row.latency().percentiles(now.second),
        worker: worker.map(str::to_owned),
    }
}

/// What waits in a product's lane; `None`: nothing.
fn lane(state: &State, id: ProductId, lanes: &Lanes, now: Moment) -> Option<LaneView> {
    Some(lanes.get(&id)?.view(state.decided_ago(id, now.instant)))
}

/// What a person searches for.
struct Search {
    folded: String,
    id: Option<ProductId>,
}

impl Search {
    fn new(text: &str) -> Self {
        let text = text.trim();
        Self { folded: text.to_lowercase(), id: text.parse().ok() }
    }

    fn finds(&self, id: ProductId, row: &ProductRow) -> bool {
        self.folded.is_empty() || self.id == Some(id) || row.is_called(&self.folded)
    }
}

fn is_shown(
    show: ProductFilter,
    row: &ProductRow,
    lane: impl FnOnce() -> Option<LaneView>,
    now: Moment,
) -> bool {
    match show {
        ProductFilter::All => true,
        ProductFilter::Active => row.active_at().is_some_and(|at| now.instant.duration_since(at) < ACTIVE),
        ProductFilter::SoldOut => row.stock().is_some_and(|stock| stock.available == 0),
        ProductFilter::Waiting => lane().is_some_and(|lane| lane.waiting > 0),
        ProductFilter::Stalled => lane().is_some_and(|lane| lane.is_stalled),
    }
}

/// What products are sorted by. A product without it counts as the smallest.
enum Key<'a> {
    None,
    Number(u64),
    Float(f64),
    Text(&'a str),
}

fn key(sort: ProductSort, row: &ProductRow, lane: impl FnOnce() -> Option<LaneView>, now: Moment) -> Key<'_> {
    let stock = row.stock();
    let number = |number: Option<u64>| number.map_or(Key::None, Key::Number);
    match sort {
        ProductSort::Id => Key::None,
        ProductSort::Name => row.name().map_or(Key::None, Key::Text),
        ProductSort::Available => number(stock.map(|stock| stock.available.into())),
        ProductSort::Reserved => number(stock.map(|stock| stock.reserved.into())),
        ProductSort::Stored => number(stock.map(|stock| stock.stored())),
        ProductSort::Accepted => Key::Float(row.rate().per_second(now.second).0),
        ProductSort::Refused => Key::Float(row.rate().per_second(now.second).1),
        ProductSort::Waiting => Key::Number(lane().map_or(0, |lane| lane.waiting)),
        ProductSort::Oldest => Key::Number(lane().map_or(0, |lane| lane.oldest_ms)),
        ProductSort::Latency => {
            row.latency().percentiles(now.second).map_or(Key::None, |latency| Key::Float(latency.p99_ms))
        }
    }
}

fn compare(a: &Key<'_>, b: &Key<'_>) -> Ordering {
    match (a, b) {
        (Key::Number(a), Key::Number(b)) => a.cmp(b),
        (Key::Float(a), Key::Float(b)) => a.total_cmp(b),
        (Key::Text(a), Key::Text(b)) => a.cmp(b),
        (Key::None, Key::None) => Ordering::Equal,
        (Key::None, _) => Ordering::Less,
        (_, Key::None) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}
