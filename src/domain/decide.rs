//! Decides a batch: commands in the order of their arrival, the inventories of their products, and the stored orders.
//!
//! Pure. A store locks and reads the [`Snapshot`] before, and writes what the [`Decision`] says after.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::domain::{
    command::{ChangeOrder, Command, NewOrder},
    event::Event,
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{InsufficientStock, Inventory},
    order::{Order, OrderState, OrderStatus},
    outcome::{Effect, ProductOutcome, ProductOutcomes},
    rejection::Rejection,
    verdict::Verdict,
};

/// The inventories of a batch, by product.
pub type Inventories = BTreeMap<ProductId, Inventory>;

/// Products that are archived, and since when.
pub type ArchivedProducts = HashMap<ProductId, Timestamp>;

/// What a transaction reads, under its locks, before it decides.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Of all products of the batch that have one. A product without an inventory does not exist.
    pub inventories: Inventories,
    /// Those of them that nobody can order any more.
    pub archived: ArchivedProducts,
    /// `None` for a batch of new orders that have different ids and keys, none of which is stored.
    pub stored: Option<StoredOrders>,
    pub times: Times,
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
    /// Indexes of the commands whose new orders, of existing products, are not stored, ascending. A store that has not looked
    /// for them must still do so: no insertion collides when they are stored already.
    pub not_stored: Vec<usize>,
}

/// What a batch writes in addition to its inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// New orders, with their idempotency keys.
    pub orders: Vec<(Order, Option<IdempotencyKey>)>,
    /// New statuses of stored orders.
    pub statuses: BTreeMap<OrderId, OrderStatus>,
    /// Other ids of stored orders: `(id, id of the stored order)`.
    pub aliases: Vec<(OrderId, OrderId)>,
    /// Keys to delete, with the orders that no longer exist: new orders take them.
    pub orphaned_keys: Vec<(IdempotencyKey, OrderId)>,
}

/// First come, first served: each order gets all its pieces if as many are available when its turn comes, and
/// none otherwise. The first change of a reservation counts. Commands of different products never affect each other.
///
/// A command that cannot be decided is [`Verdict::Undecidable`], and changes nothing for the others.
pub fn decide(snapshot: Snapshot, commands: &[Command]) -> Decision {
    let Snapshot { inventories, archived, stored, times } = snapshot;
    let mut decision = Decision { inventories, ..Decision::default() };
    decision.result.verdicts.reserve_exact(commands.len());
    let mut batch = Batch { decision, archived, stored, times, placed: HashMap::new() };
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
        result.outcomes.entry(command.product_id()).or_default().count(effect);
    }
    let Batch { mut decision, stored, .. } = batch;
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
    stored: Option<StoredOrders>,
    times: Times,
    /// The verdicts on orders of this batch: an order that is in it twice is decided once.
    placed: HashMap<OrderId, Verdict>,
}

impl Batch {
    fn place(&mut self, index: usize, order: &NewOrder) -> Decided {
        if self.stored.is_none() {
            return Ok(self.place_new(index, order));
        }
        if let Some(verdict) = self.placed.get(&order.id).copied() {
            self.store_for_copy(order, verdict);
            return Ok((verdict, Effect::Repeated));
        }
        let decided = match self.stored_verdict(order)? {
            Some(decided) => decided,
            None => {
                self.check_product(order.product_id)?;
                self.place_new(index, order)
            }
        };
        self.placed.insert(order.id, decided.0);
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
        let Some(inventory) = self.decision.inventories.get_mut(&order.product_id) else {
            return rejected(Rejection::ProductNotFound);
        };
        let reserved = match self.archived.contains_key(&order.product_id) {
            true => None,
            false => Some(inventory.reserve(order.total)),
        };
        let (verdict, effect) = match reserved {
            // Whoever orders it now learns the same as of a product that was never there.
            None => rejected(Rejection::ProductNotFound),
            // An API whose clock is ahead generates ids with a later time; no reservation ends before its order was created.
            Some(Ok(())) => {
                let expires_at = self.times.expires_at.max(order.id.created_at());
                (Verdict::Reserved { expires_at }, Effect::Reserved)
            }
            Some(Err(InsufficientStock { available })) => rejected(Rejection::InsufficientStock { available }),
        };
        if !self.store_order(order, verdict, order.key.clone()) {
            self.decision.not_stored.push(index);
        }
        (verdict, effect)
    }

    /// The verdict on an order that was decided before, under its own id or its key.
    fn stored_verdict(&mut self, order: &NewOrder) -> Result<Option<(Verdict, Effect)>, String> {
        self.check_order(order.id)?;
        let Some(StoredOrders { orders, keys, .. }) = &self.stored else { return Ok(None) };
        if let Some(known) = orders.get(&order.id).copied() {
            self.emit(known.with_status(OrderStatus::Reserved));
            return Ok(Some((Verdict::on_stored(&known), Effect::Repeated)));
        }
        let Some(id) = order.key.as_ref().and_then(|key| keys.get(key)).copied() else { return Ok(None) };
        self.check_order(id)?;
        let Some(known) = orders.get(&id).copied() else { return Ok(None) };
        if !known.is_for(order.product_id, order.total) {
            let (verdict, effect) = rejected(Rejection::KeyReused);
            self.store_order(order, verdict, None);
            return Ok(Some((verdict, effect)));
        }
        if order.is_detached() {
            self.decision.writes.aliases.push((order.id, known.id));
        }
        Ok(Some((Verdict::AlreadyPlaced(known), Effect::Repeated)))
    }

    /// An order is in a batch twice when its client stopped waiting in between: then the verdict on the first copy, which was
    /// only to be sent, is stored.
    fn store_for_copy(&mut self, order: &NewOrder, verdict: Verdict) {
        let is_stored = |stored: &StoredOrders| stored.orders.contains_key(&order.id);
        if !order.is_detached() || self.stored.as_ref().is_some_and(is_stored) {
            return;
        }
        match verdict {
            Verdict::AlreadyPlaced(known) => self.decision.writes.aliases.push((order.id, known.id)),
            Verdict::Rejected(Rejection::KeyReused) => drop(self.store_order(order, verdict, None)),
            _ => drop(self.store_order(order, verdict, order.key.clone())),
        }
    }

    /// Whether the order is stored with this verdict.
    fn store_order(&mut self, order: &NewOrder, verdict: Verdict, key: Option<IdempotencyKey>) -> bool {
        let Some(order) = stored_order(order, verdict) else { return false };
        if let Some(StoredOrders { orders, keys, orphaned_keys, .. }) = &mut self.stored {
            orders.insert(order.id, order);
            if let Some(key) = &key {
                keys.insert(key.clone(), order.id);
                self.decision.writes.orphaned_keys.extend(orphaned_keys.remove_entry(key));
            }
        }
        self.decision.writes.orders.push((order, key));
        self.emit(order);
        true
    }

    fn change(&mut self, command: &ChangeOrder) -> Decided {
        self.check_order(command.order_id)?;
        self.check_product(command.product_id)?;
        let order = self.stored.as_mut().and_then(|stored| stored.orders.get_mut(&command.order_id));
        let Some(order) = order else { return Ok((Verdict::OrderNotFound, Effect::Repeated)) };
        if order.product_id != command.product_id {
            return Ok((Verdict::OrderNotFound, Effect::Repeated)); // the wrong lane, and the wrong inventory
        }
        let changed = match self.decision.inventories.get_mut(&command.product_id) {
            Some(inventory) => order
                .change(command.change, inventory, self.times.decided_at)
                .map_err(|error| error.to_string())?,
            None if order.status() == OrderStatus::Reserved => {
                return Err(format!("product {} has no inventory, though it has orders", order.product_id));
            }
            None => false,
        };
        let order = *order;
        if changed {
            self.decision.writes.statuses.insert(order.id, order.status());
        }
        if changed || order.status() == command.change.leads_to() {
            self.emit(order);
        }
        let effect = if changed { Effect::Changed(command.change) } else { Effect::Repeated };
        Ok((Verdict::Current(order), effect))
    }

    fn emit(&mut self, order: Order) {
        if matches!(order.state, OrderState::Accepted { .. }) {
            self.decision.result.events.push(Event { order });
        }
    }
}

fn rejected(rejection: Rejection) -> (Verdict, Effect) {
    (Verdict::Rejected(rejection), Effect::Rejected(rejection))
}

/// The order as it is stored with this verdict; `None` when it is not stored.
///
/// A reservation always is. A rejection only when no client waits for it; any other is only sent, so that a flood of orders
/// for a sold-out product writes nothing.
fn stored_order(order: &NewOrder, verdict: Verdict) -> Option<Order> {
    let state = match verdict {
        Verdict::Reserved { expires_at } => {
            OrderState::Accepted { status: OrderStatus::Reserved, expires_at }
        }
        Verdict::Rejected(rejection) if order.is_detached() && rejection.reason().is_stored() => {
            OrderState::Rejected(rejection)
        }
        _ => return None,
    };
    Some(Order { id: order.id, product_id: order.product_id, total: order.total, state })
}

#[cfg(test)]
mod tests;
