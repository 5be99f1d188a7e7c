//! What buyers hold of products that have a limit for each buyer: the pieces that they have reserved or paid.

use std::collections::BTreeMap;

use crate::domain::{
    command::Command,
    ids::ProductId,
    inventory::Stock,
    lines::{Line, Lines},
    names::Buyer,
    order::Order,
    quantity::Quantity,
    rejection::Rejection,
    terms::SpecialTerms,
};

/// A buyer, and the product that the buyer holds pieces of.
pub type Holder = (ProductId, Buyer);

/// How many pieces each of them holds. Who holds nothing is not in it.
pub type Holdings = BTreeMap<Holder, u64>;

/// By how many pieces each holding changes; never by 0.
pub type HoldingChanges = BTreeMap<Holder, i64>;

/// The holders whose holdings decide the new orders of a batch.
pub fn holders(terms: &SpecialTerms, commands: &[Command]) -> Vec<Holder> {
    if !terms.values().any(|terms| terms.max_per_buyer.is_some()) {
        return Vec::new(); // as of most batches
    }
    let orders = commands.iter().filter_map(|command| match command {
        Command::Place(order) => Some((&order.lines, order.buyer.as_ref()?)),
        Command::Change(_) => None,
    });
    let mut holders: Vec<_> = orders
        .flat_map(|(lines, buyer)| limited(terms, lines).map(|(line, _)| (line.product_id, buyer.clone())))
        .collect();
    holders.sort_unstable();
    holders.dedup();
    holders
}

/// The lines of products with a limit for each buyer, each with that limit.
fn limited(terms: &SpecialTerms, lines: &Lines) -> impl Iterator<Item = (Line, Quantity)> {
    let limit = |line: &Line| Some((*line, terms.get(&line.product_id)?.max_per_buyer?));
    lines.as_slice().iter().filter_map(limit)
}

/// The holdings of a batch while it is decided.
#[derive(Debug)]
pub(super) struct BatchHoldings {
    /// Those of [`holders`], before the batch.
    before: Holdings,
    changes: HoldingChanges,
}

impl BatchHoldings {
    pub(super) fn new(before: Holdings) -> Self {
        Self { before, changes: HoldingChanges::new() }
    }

    pub(super) fn into_changes(self) -> HoldingChanges {
        self.changes
    }

    /// Whether the buyer may have these pieces as well.
    pub(super) fn check(
        &self,
        terms: &SpecialTerms,
        lines: &Lines,
        buyer: Option<&Buyer>,
    ) -> Result<(), Rejection> {
        limited(terms, lines).try_for_each(|(Line { product_id, total }, limit)| {
            let Some(buyer) = buyer else { return Err(Rejection::BuyerRequired { product_id }) };
            let held = self.held(&(product_id, buyer.clone()));
            if held.saturating_add(total.get().into()) <= limit.get().into() {
                return Ok(());
            }
            // As many as a client's integer holds. Only who paid again and again after recounts can hold more.
            let held = u32::try_from(held).unwrap_or(u32::MAX).min(Stock::MAX);
            Err(Rejection::LimitPerBuyer { product_id, limit: limit.get(), held })
        })
    }

    fn held(&self, holder: &Holder) -> u64 {
        let before = self.before.get(holder).copied().unwrap_or_default();
        before.saturating_add_signed(self.changes.get(holder).copied().unwrap_or_default())
    }

    /// The buyer holds all pieces of these lines from now on.
    pub(super) fn give(&mut self, terms: &SpecialTerms, lines: &Lines, buyer: Option<&Buyer>) {
        self.change(terms, lines, buyer, 1);
    }

    /// The status of the order has changed. `held`: whether it held its pieces before.
    pub(super) fn follow(&mut self, terms: &SpecialTerms, held: bool, order: &Order) {
        let change = i64::from(order.holds_pieces()) - i64::from(held);
        if let Some(lines) = order.lines.as_ref().filter(|_| change != 0) {
            self.change(terms, lines, order.buyer.as_ref(), change);
        }
    }

    fn change(&mut self, terms: &SpecialTerms, lines: &Lines, buyer: Option<&Buyer>, sign: i64) {
        let Some(buyer) = buyer else { return };
        for (Line { product_id, total }, _) in limited(terms, lines) {
            add(&mut self.changes, (product_id, buyer.clone()), sign * i64::from(total.get()));
        }
    }
}

/// What buyers hold of these products by these orders.
pub fn held_by<'a>(
    orders: impl IntoIterator<Item = &'a Order>,
    is_limited: impl Fn(ProductId) -> bool,
) -> Holdings {
    let mut holdings = Holdings::new();
    for order in orders.into_iter().filter(|order| order.holds_pieces()) {
        let (Some(lines), Some(buyer)) = (&order.lines, &order.buyer) else { continue };
        for line in lines.as_slice().iter().filter(|line| is_limited(line.product_id)) {
            let held = holdings.entry((line.product_id, buyer.clone())).or_default();
            *held = held.saturating_add(line.total.get().into());
        }
    }
    holdings
}

/// Changes holdings. What would be less than nothing is nothing.
pub fn apply(holdings: &mut Holdings, changes: HoldingChanges) {
    for (holder, change) in changes {
        let held = holdings.entry(holder.clone()).or_default();
        *held = held.saturating_add_signed(change);
        if *held == 0 {
            holdings.remove(&holder);
        }
    }
}

/// The holdings as changes that take all of them away.
pub fn taken_away(holdings: Holdings) -> HoldingChanges {
    let less = |held: u64| i64::try_from(held).map_or(i64::MIN, |held| -held);
    holdings.into_iter().map(|(holder, held)| (holder, less(held))).collect()
}

fn add(changes: &mut HoldingChanges, holder: Holder, more: i64) {
    let change = changes.entry(holder.clone()).or_default();
    *change = change.saturating_add(more);
    if *change == 0 {
        changes.remove(&holder);
    }
}

#[cfg(test)]
mod tests;
