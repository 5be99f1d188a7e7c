//! Decides a batch: commands in the order of their arrival, the inventories of their products, and the stored orders.
//!
//! Pure. A store locks and reads the [`Snapshot`] before, and writes what the [`Decision`] says after.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::domain::{
    command::{ChangeOrder, Command, NewOrder},
    event::Event,
    holdings::{BatchHoldings, HoldingChanges, Holdings},
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{InsufficientStock, Inventories},
    life::{Changed, Circumstances},
    lines::{Line, Lines},
    movement::{BatchMovements, Movement},
    order::{Change, ChangeKind, Order, OrderState, OrderStatus, Payment},
    outcome::{Effect, ProductOutcome, ProductOutcomes},
    rejection::Rejection,
    rules::Rules,
    verdict::Verdict,
};

/// Products that are archived, and since when.
pub type ArchivedProducts = HashMap<ProductId, Timestamp>;

pub use crate::domain::terms::SpecialTerms;

/// What a transaction reads, under its locks, before it decides.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Of all products of the batch that have one. A product without an inventory does not exist.
    pub inventories: Inventories,
    /// Those of them that nobody can order any more.
    pub archived: ArchivedProducts,
    pub terms: SpecialTerms,
    /// What the buyers of its new orders hold: see [`holders`](crate::domain::holdings::holders).
    pub holdings: Holdings,
    /// `None` for a batch of new orders that have different ids and keys, none of which is stored.
    pub stored: Option<StoredOrders>,
    pub times: Times,
    pub rules: Rules,
}

/// The stored orders that commands of a batch may be about.
#[derive(Clone, Debug, Default)]
pub struct StoredOrders {
    pub orders: HashMap<OrderId, Order>,
    pub keys: HashMap<IdempotencyKey, OrderId>,
    /// Keys whose orders no longer exist: somebody deleted them by hand. Such a key is free again.
    pub orphaned_keys: HashMap<IdempotencyKey, OrderId>,
    pub unreadable: Unreadable,
}

/// Rows that somebody changed by hand so that they are invalid, and what is wrong with each.
#[derive(Clone, Debug, Default)]
pub struct Unreadable {
    /// Products with an invalid inventory.
    pub products: HashMap<ProductId, String>,
    pub orders: HashMap<OrderId, String>,
}

/// The time of a batch, by the database's clock.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub decided_at: Timestamp,
    /// When reservations of this batch end.
    pub expires_at: Timestamp,
}

/// What was decided on a batch: what its clients and the shop's other services learn of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchResult {
    /// One for each command, at the same index.
    pub verdicts: Vec<Verdict>,
    /// In the order of arrival. An order that was decided before is reported again: the worker that decided it may have died
    /// before it sent the event.
    pub events: Vec<Event>,
    /// Why commands were not decided, ascending.
    pub undecidable: Vec<Undecidable>,
    /// What became of each product of the batch.
    pub outcomes: ProductOutcomes,
}

impl BatchResult {
    /// Of a batch whose only command, of this product, cannot be decided.
    pub fn undecidable(product_id: ProductId, cause: String) -> Self {
        let undecidable = vec![Undecidable { index: 0, cause }];
        let mut outcome = ProductOutcome::default();
        outcome.count(Effect::Undecidable);
        let outcomes = [(product_id, outcome)].into();
        Self { verdicts: vec![Verdict::Undecidable], undecidable, outcomes, ..Self::default() }
    }

    /// The result of this batch and of the one behind it, as if they were one.
    pub fn followed_by(mut self, next: Self) -> Self {
        let offset = self.verdicts.len();
        let moved = next.undecidable.into_iter().map(|one| Undecidable { index: offset + one.index, ..one });
        self.undecidable.extend(moved);
        self.verdicts.extend(next.verdicts);
        self.events.extend(next.events);
        for (product_id, next) in next.outcomes {
            let outcome = self.outcomes.entry(product_id).or_default();
            *outcome = outcome.followed_by(next);
        }
        self
    }
}

/// A command that cannot be decided, because of invalid data in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecidable {
    /// Of the command in its batch.
    pub index: usize,
    pub cause: String,
}

/// The result of a batch, and what its transaction must write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub result: BatchResult,
    /// The inventories afterwards.
    pub inventories: Inventories,
    pub writes: Writes,
    /// Indexes of the commands whose new orders are not stored, ascending. A store that has not looked
    /// for them must still do so: no insertion collides when they are stored already.
    pub not_stored: Vec<usize>,
}

/// What a batch writes in addition to its inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// New orders, with their idempotency keys.
    pub orders: Vec<(Order, Option<IdempotencyKey>)>,
    /// Stored orders whose status, end or payment changed, as they are now.
    pub changed: BTreeMap<OrderId, Order>,
    /// Stored orders that were given up before their turn, with what is known of them now, and their idempotency keys.
    pub completed: Vec<(Order, Option<IdempotencyKey>)>,
    /// Other ids of stored orders: `(id, id of the stored order)`.
    pub aliases: Vec<(OrderId, OrderId)>,
    /// What buyers hold more or less than before, of products with a limit for each buyer.
    pub holdings: HoldingChanges,
    /// Keys to delete, with the orders that no longer exist: new orders take them.
    pub orphaned_keys: Vec<(IdempotencyKey, OrderId)>,
    /// What the seller's ledger says of this batch.
    pub movements: Vec<Movement>,
}

/// First come, first served: each order gets all pieces of all its lines if as many are available when its turn comes, and
/// none otherwise. The first change that an order's status allows counts. Commands without a common product never affect each other.
///
/// A command that cannot be decided is [`Verdict::Undecidable`], and changes nothing for the others.
pub fn decide(snapshot: Snapshot, commands: &[Command]) -> Decision {
    let Snapshot { inventories, archived, terms, holdings, stored, times, rules } = snapshot;
    let mut decision = Decision { inventories, ..Decision::default() };
    decision.result.verdicts.reserve_exact(commands.len());
    let holdings = BatchHoldings::new(holdings);
    let (placed, movements) = (HashMap::new(), BatchMovements::default());
    let mut batch = Batch { decision, archived, terms, holdings, stored, times, rules, placed, movements };
    for (index, command) in commands.iter().enumerate() {
        let decided = match command {
            Command::Place(order) => batch.place(index, order),
            Command::Change(change) => batch.change(change),
        };
        let (verdict, effect) = decided.unwrap_or_else(|cause| {
            batch.decision.result.undecidable.push(Undecidable { index, cause });
            (Verdict::Undecidable, Effect::Undecidable)
        });
        let result = &mut batch.decision.result;
        result.verdicts.push(verdict);
        let mut products = command.products();
        if let Some(lane) = products.next() {
            result.outcomes.entry(lane).or_default().count(effect);
        }
        for other in products {
            result.outcomes.entry(other).or_default();
        }
    }
    let Batch { mut decision, holdings, stored, movements, .. } = batch;
    decision.writes.holdings = holdings.into_changes();
    decision.writes.movements = movements.finish(&decision.inventories, times.decided_at);
    for (product_id, outcome) in &mut decision.result.outcomes {
        outcome.inventory = decision.inventories.get(product_id).copied();
    }
    if let Some(StoredOrders { orders, .. }) = stored {
        // A detached copy further back may have stored the order.
        decision.not_stored.retain(|index| !orders.contains_key(&commands[*index].order_id()));
    }
    decision
}

/// A verdict and what it changed, or why there is none.
type Decided = Result<(Verdict, Effect), String>;

struct Batch {
    decision: Decision,
    archived: ArchivedProducts,
    terms: SpecialTerms,
    holdings: BatchHoldings,
    stored: Option<StoredOrders>,
    times: Times,
    rules: Rules,
    /// The verdicts on orders of this batch: an order that is in it twice is decided once.
    placed: HashMap<OrderId, Verdict>,
    movements: BatchMovements,
}

impl Batch {
    fn place(&mut self, index: usize, order: &NewOrder) -> Decided {
        if self.stored.is_none() {
            return Ok(self.place_new(index, order));
        }
        if let Some(verdict) = self.placed.get(&order.id).cloned() {
            self.store_for_copy(order, &verdict);
            return Ok((verdict, Effect::Repeated));
        }
        let decided = match self.stored_verdict(order)? {
            Some(decided) => decided,
            None => {
                order.lines.products().try_for_each(|id| self.check_product(id))?;
                self.place_new(index, order)
            }
        };
        self.placed.insert(order.id, decided.0.clone());
        Ok(decided)
    }

    fn check_product(&self, id: ProductId) -> Result<(), String> {
        let cause = self.stored.as_ref().and_then(|stored| stored.unreadable.products.get(&id));
        cause.map_or(Ok(()), |cause| Err(cause.clone()))
    }

    fn check_order(&self, id: OrderId) -> Result<(), String> {
        let cause = self.stored.as_ref().and_then(|stored| stored.unreadable.orders.get(&id));
        cause.map_or(Ok(()), |cause| Err(cause.clone()))
    }

    fn place_new(&mut self, index: usize, order: &NewOrder) -> (Verdict, Effect) {
        let (verdict, effect) = match self.reserve(order) {
            // An API whose clock is ahead generates ids with a later time; no reservation ends before its order was created.
            Ok(()) => {
                let expires_at = self.hold_ends_at(&order.lines).max(order.id.created_at());
                (Verdict::Reserved { expires_at }, Effect::Reserved)
            }
            Err(rejection) => rejected(rejection),
        };
        if !self.store_order(order, &verdict, order.key.clone()) {
            self.decision.not_stored.push(index);
        }
        (verdict, effect)
    }

    /// Reserves the pieces of all lines, or none.
    fn reserve(&mut self, order: &NewOrder) -> Result<(), Rejection> {
        // Whoever orders an archived product learns the same as of one that was never there.
        if let Some(product_id) = order.lines.products().find(|id| self.archived.contains_key(id)) {
            return Err(Rejection::ProductNotFound { product_id });
        }
        self.check_terms(order)?;
        let inventories = &mut self.decision.inventories;
        if let Some(line) = order.lines.only() {
            reserve(inventories, line)?;
        } else {
            let before: Vec<_> =
                order.lines.products().filter_map(|id| Some((id, *inventories.get(&id)?))).collect();
            let reserved = order.lines.as_slice().iter().try_for_each(|line| reserve(inventories, *line));
            reserved.inspect_err(|_| inventories.extend(before))?;
        }
        self.holdings.give(&self.terms, &order.lines, order.buyer.as_ref());
        Ok(())
    }

    /// Whether the terms of sale of all its products allow the order. What is in stock does not matter yet.
    fn check_terms(&self, order: &NewOrder) -> Result<(), Rejection> {
        if self.terms.is_empty() {
            return Ok(()); // as most batches are
        }
        let unknown = order.lines.products().find(|id| !self.decision.inventories.contains_key(id));
        if let Some(product_id) = unknown {
            return Err(Rejection::ProductNotFound { product_id });
        }
        let mut lines = order.lines.as_slice().iter();
        lines.try_for_each(|line| match self.terms.get(&line.product_id) {
            Some(terms) => terms.check(*line, self.times.decided_at),
            None => Ok(()),
        })?;
        self.holdings.check(&self.terms, &order.lines, order.buyer.as_ref())
    }

    /// When a reservation of these lines ends that begins, or is extended, now: with the shortest hold of its products. The one
    /// place that says how long a hold is.
    fn hold_ends_at(&self, lines: &Lines) -> Timestamp {
        let Times { decided_at, expires_at } = self.times;
        if self.terms.is_empty() {
            return expires_at;
        }
        let hold = |id| self.terms.get(&id).and_then(|terms| terms.hold);
        let ends = lines.products().map(|id| hold(id).map_or(expires_at, |hold| hold.ends_at(decided_at)));
        ends.min().unwrap_or(expires_at)
    }

    /// The verdict on an order that was decided before, under its own id or its key.
    fn stored_verdict(&mut self, order: &NewOrder) -> Result<Option<(Verdict, Effect)>, String> {
        self.check_order(order.id)?;
        let Some(StoredOrders { orders, keys, .. }) = &self.stored else { return Ok(None) };
        if let Some(known) = orders.get(&order.id).cloned() {
            if known.was_given_up() {
                return Ok(Some(self.place_given_up(order, known)));
            }
            let verdict = Verdict::on_stored(&known);
            self.emit(known.with_status(OrderStatus::Reserved));
            return Ok(Some((verdict, Effect::Repeated)));
        }
        let Some(id) = order.key.as_ref().and_then(|key| keys.get(key)).copied() else { return Ok(None) };
        self.check_order(id)?;
        let Some(known) = orders.get(&id).cloned() else { return Ok(None) };
        if !known.is_for(&order.lines, order.buyer.as_ref()) {
            let (verdict, effect) = rejected(Rejection::KeyReused);
            self.store_order(order, &verdict, None);
            return Ok(Some((verdict, effect)));
        }
        if order.is_detached() {
            self.decision.writes.aliases.push((order.id, known.id));
        }
        Ok(Some((Verdict::AlreadyPlaced(known), Effect::Repeated)))
    }

    /// Its turn has come, and it was given up before: nothing is reserved. What it asked for is stored now.
    fn place_given_up(&mut self, order: &NewOrder, mut known: Order) -> (Verdict, Effect) {
        let exists = |id| self.decision.inventories.contains_key(&id);
        let is_news = known.lines.is_none() && order.lines.products().all(exists);
        known.lines = Some(order.lines.clone());
        known.buyer = order.buyer.clone();
        if let Some(StoredOrders { orders, keys, orphaned_keys, .. }) = &mut self.stored
            && is_news
        {
            orders.insert(known.id, known.clone());
            // The key may be that of an earlier copy of the order.
            let key = order.key.clone().filter(|key| !keys.contains_key(key));
            if let Some(key) = &key {
                keys.insert(key.clone(), known.id);
                self.decision.writes.orphaned_keys.extend(orphaned_keys.remove_entry(key));
            }
            self.decision.writes.completed.push((known.clone(), key));
        }
        self.emit(known.clone());
        (Verdict::AlreadyPlaced(known), Effect::Repeated)
    }

    /// An order is in a batch twice when its client stopped waiting in between: then the verdict on the first copy, which was
    /// only to be sent, is stored.
    fn store_for_copy(&mut self, order: &NewOrder, verdict: &Verdict) {
        let is_stored = |stored: &StoredOrders| stored.orders.contains_key(&order.id);
        if !order.is_detached() || self.stored.as_ref().is_some_and(is_stored) {
            return;
        }
        match verdict {
            Verdict::AlreadyPlaced(known) => self.decision.writes.aliases.push((order.id, known.id)),
            Verdict::Rejected(Rejection::KeyReused) => _ = self.store_order(order, verdict, None),
            _ => _ = self.store_order(order, verdict, order.key.clone()),
        }
    }

    /// Whether the order is stored with this verdict.
    fn store_order(&mut self, order: &NewOrder, verdict: &Verdict, key: Option<IdempotencyKey>) -> bool {
        // One that is archived is there; without all of its products an order cannot be stored.
        let exists = |id| self.decision.inventories.contains_key(&id);
        if matches!(verdict, Verdict::Rejected(Rejection::ProductNotFound { .. }))
            && !order.lines.products().all(exists)
        {
            return false;
        }
        let Some(order) = stored_order(order, verdict) else { return false };
        if let Some(StoredOrders { orders, keys, orphaned_keys, .. }) = &mut self.stored {
            orders.insert(order.id, order.clone());
            if let Some(key) = &key {
                keys.insert(key.clone(), order.id);
                self.decision.writes.orphaned_keys.extend(orphaned_keys.remove_entry(key));
            }
        }
        self.emit(order.clone());
        self.decision.writes.orders.push((order, key));
        true
    }

    fn change(&mut self, command: &ChangeOrder) -> Decided {
        self.check_order(command.order_id)?;
        command.products().try_for_each(|id| self.check_product(id))?;
        let order = self.stored.as_ref().and_then(|stored| stored.orders.get(&command.order_id));
        let Some(mut order) = order.filter(|order| command.is_about(order)).cloned() else {
            return Ok((Verdict::OrderNotFound, Effect::Repeated)); // or the wrong lane, and the wrong inventories
        };
        let held = order.holds_pieces();
        let (kind, circumstances) = (command.change.kind(), self.circumstances(&order));
        let changed = order
            .change(&command.change, &mut self.decision.inventories, &circumstances)
            .map_err(|error| error.to_string())?;
        if matches!(changed, Changed::Done | Changed::TooLate { is_first: true }) {
            self.holdings.follow(&self.terms, held, &order);
            self.write_change(&order);
            if changed == Changed::Done {
                self.record(&order, &command.change);
            }
        }
        let effect = match changed {
            Changed::Done => Effect::Changed(kind),
            Changed::Nothing => Effect::Repeated,
            Changed::TooLate { .. } => Effect::PaymentTooLate,
        };
        if let (Changed::TooLate { .. }, Change::Pay { reference }) = (changed, &command.change) {
            let payment = Payment { reference: reference.clone(), paid_at: Some(self.times.decided_at) };
            self.decision.result.events.push(Event::payment_too_late(order.clone(), payment));
        } else if kind != ChangeKind::Extend && order.status() == kind.leads_to() {
            self.emit(order.clone()); // by this change or by an earlier one
        }
        Ok((Verdict::Current(order), effect))
    }

    fn circumstances(&self, order: &Order) -> Circumstances {
        let Rules { max_hold, late_payment, .. } = self.rules;
        let hold_ends_at = order.lines.as_ref().map(|lines| self.hold_ends_at(lines));
        let Times { decided_at, expires_at } = self.times;
        Circumstances {
            at: decided_at,
            hold_ends_at: hold_ends_at.unwrap_or(expires_at),
            max_hold,
            late_payment,
        }
    }

    fn write_change(&mut self, order: &Order) {
        if let Some(stored) = &mut self.stored {
            stored.orders.insert(order.id, order.clone());
        }
        self.decision.writes.changed.insert(order.id, order.clone());
    }

    /// Notes what a change of an order does to the stored pieces.
    fn record(&mut self, order: &Order, change: &Change) {
        match change {
            Change::Pay { .. } => {
                let lines = order.lines.iter().flat_map(|lines| lines.as_slice());
                lines.for_each(|line| self.movements.sold(line.product_id, line.total));
            }
            Change::Return { restock: true } => {
                let lines = order.lines.iter().flat_map(|lines| lines.as_slice());
                lines.for_each(|line| self.movements.returned(line.product_id, line.total));
            }
            // Available again, and never left the stock; or gone for good.
            Change::Cancel | Change::Expire | Change::Extend | Change::Return { restock: false } => {}
        }
    }

    fn emit(&mut self, order: Order) {
        if matches!(order.state, OrderState::Accepted { .. }) {
            self.decision.result.events.push(Event::of_order(order));
        }
    }
}

/// Reserves all pieces of a line, or none.
fn reserve(inventories: &mut Inventories, Line { product_id, total }: Line) -> Result<(), Rejection> {
    let inventory = inventories.get_mut(&product_id).ok_or(Rejection::ProductNotFound { product_id })?;
    inventory
        .reserve(total)
        .map_err(|InsufficientStock { available }| Rejection::InsufficientStock { product_id, available })
}

fn rejected(rejection: Rejection) -> (Verdict, Effect) {
    (Verdict::Rejected(rejection), Effect::Rejected(rejection))
}

/// The order as it is stored with this verdict; `None` when it is not stored.
///
/// A reservation always is. A rejection only when no client waits for it; any other is only sent, so that a flood of orders
/// for a sold-out product writes nothing.
fn stored_order(order: &NewOrder, verdict: &Verdict) -> Option<Order> {
    let state = match *verdict {
        Verdict::Reserved { expires_at } => {
            OrderState::Accepted { status: OrderStatus::Reserved, expires_at }
        }
        Verdict::Rejected(rejection) if order.is_detached() && rejection.reason().is_stored() => {
            OrderState::Rejected(rejection)
        }
        _ => return None,
    };
    let NewOrder { id, lines, buyer, .. } = order;
    Some(Order { id: *id, lines: Some(lines.clone()), buyer: buyer.clone(), payment: None, state })
}

#[cfg(test)]
mod tests;
