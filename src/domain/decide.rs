//! Decides a batch: commands in the order of their arrival meet the inventories of their products and the orders on
//! record.
//!
//! Pure: what the store does around it is to lock and read before, and to write the result after.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::domain::{
    command::{ChangeOrder, Command, NewOrder, ReplyMode},
    event::Event,
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{InsufficientStock, Inventory},
    order::{Order, OrderState, OrderStatus},
    rejection::Rejection,
    verdict::Verdict,
};

/// The inventories of a batch, by product.
pub type Inventories = BTreeMap<ProductId, Inventory>;

/// Those orders on record that commands of a batch may be about.
#[derive(Clone, Debug, Default)]
pub struct StoredOrders {
    /// By their ids.
    pub orders: HashMap<OrderId, Order>,
    /// What their clients call them.
    pub keys: HashMap<IdempotencyKey, OrderId>,
    /// Keys of orders that are not there any more: somebody deleted them by hand. Such a key is free again.
    pub orphaned_keys: HashMap<IdempotencyKey, OrderId>,
    /// What cannot be read, and why: somebody changed it by hand.
    pub unreadable: Unreadable,
}

/// Rows that cannot be, and why.
#[derive(Clone, Debug, Default)]
pub struct Unreadable {
    /// Products, because of their inventories.
    pub products: HashMap<ProductId, String>,
    /// Orders.
    pub orders: HashMap<OrderId, String>,
}

/// The clock of a batch: the database's.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Now.
    pub decided_at: Timestamp,
    /// When reservations that are made now end.
    pub expires_at: Timestamp,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// One for each command, at the same index.
    pub verdicts: Vec<Verdict>,
    /// The inventories afterwards.
    pub inventories: Inventories,
    /// What is to be written.
    pub writes: Writes,
    /// What the shop's other services hear, in the order of arrival. An order that was decided before is told of
    /// again: whoever decided it may have died before saying so.
    pub events: Vec<Event>,
    /// Why commands were not decided, ascending.
    pub undecidable: Vec<Undecidable>,
}

/// A command that cannot be decided, because what stands in the database cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecidable {
    /// Where it stands in its batch.
    pub index: usize,
    /// What is wrong.
    pub cause: String,
}

/// What a batch writes beside its inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Orders that go on record, and what their clients call them.
    pub orders: Vec<(Order, Option<IdempotencyKey>)>,
    /// Orders that went further.
    pub statuses: BTreeMap<OrderId, OrderStatus>,
    /// Ids that were given out for an order that is on record under another one.
    pub aliases: Vec<(OrderId, OrderId)>,
    /// Keys that are taken from orders which are not there any more.
    pub freed_keys: Vec<(IdempotencyKey, OrderId)>,
}

/// First come, first served: each order gets all its pieces if as many are available when its turn comes, and
/// none otherwise; a reservation is paid, cancelled or expired by whoever comes first. Commands of different products
/// never touch each other. A product without an inventory does not exist.
///
/// `stored` is `None` for a batch of new orders none of which is on record or stands in it twice, under its id or its
/// key.
///
/// What cannot be decided is [`Verdict::Undecidable`], and changes nothing for the others.
pub fn decide(
    inventories: Inventories,
    stored: Option<StoredOrders>,
    commands: &[Command],
    times: Times,
) -> Decision {
    let decision =
        Decision { inventories, verdicts: Vec::with_capacity(commands.len()), ..Decision::default() };
    let mut batch = Batch { decision, stored, times, placed: HashMap::new() };
    for (index, command) in commands.iter().enumerate() {
        let verdict = match command {
            Command::Place(order) => batch.place(order),
            Command::Change(change) => batch.change(change),
        };
        let verdict = verdict.unwrap_or_else(|cause| {
            batch.decision.undecidable.push(Undecidable { index, cause });
            Verdict::Undecidable
        });
        batch.decision.verdicts.push(verdict);
    }
    batch.decision
}

/// A verdict, or why there is none.
type Decided = Result<Verdict, String>;

struct Batch {
    decision: Decision,
    stored: Option<StoredOrders>,
    times: Times,
    /// What orders of this batch were answered with: an order that stands in it twice is decided once.
    placed: HashMap<OrderId, Verdict>,
}

impl Batch {
    fn place(&mut self, order: &NewOrder) -> Decided {
        if self.stored.is_none() {
            return Ok(self.place_new(order));
        }
        if let Some(verdict) = self.placed.get(&order.id).copied() {
            self.store_for_copy(order, verdict);
            return Ok(verdict);
        }
        let verdict = match self.stored_verdict(order)? {
            Some(verdict) => verdict,
            None => {
                self.check_product(order.product_id)?;
                self.place_new(order)
            }
        };
        self.placed.insert(order.id, verdict);
        Ok(verdict)
    }

    fn check_product(&self, id: ProductId) -> Result<(), String> {
        let unreadable = self.stored.as_ref().and_then(|record| record.unreadable.products.get(&id));
        unreadable.map_or(Ok(()), |cause| Err(cause.clone()))
    }

    fn check_order(&self, id: OrderId) -> Result<(), String> {
        let unreadable = self.stored.as_ref().and_then(|record| record.unreadable.orders.get(&id));
        unreadable.map_or(Ok(()), |cause| Err(cause.clone()))
    }

    fn place_new(&mut self, order: &NewOrder) -> Verdict {
        let Some(inventory) = self.decision.inventories.get_mut(&order.product_id) else {
            return Verdict::Rejected(Rejection::ProductNotFound);
        };
        let verdict = match inventory.reserve(order.total) {
            // An API whose clock is ahead makes ids from the future; nothing ends before it begins.
            Ok(()) => Verdict::Reserved { expires_at: self.times.expires_at.max(order.id.created_at()) },
            Err(InsufficientStock { available }) => {
                Verdict::Rejected(Rejection::InsufficientStock { available })
            }
        };
        self.store_order(order, verdict, order.key.clone());
        verdict
    }

    /// What an order is answered with that was decided before, under its own id or as its client calls it.
    fn stored_verdict(&mut self, order: &NewOrder) -> Result<Option<Verdict>, String> {
        self.check_order(order.id)?;
        let Some(StoredOrders { orders, keys, .. }) = &self.stored else { return Ok(None) };
        if let Some(known) = orders.get(&order.id) {
            let (known, verdict) = (*known, known.verdict());
            self.tell(known.with_status(OrderStatus::Reserved));
            return Ok(Some(verdict));
        }
        let Some(id) = order.key.as_ref().and_then(|key| keys.get(key)).copied() else { return Ok(None) };
        self.check_order(id)?;
        let Some(known) = orders.get(&id).copied() else { return Ok(None) };
        if !known.is_for(order.product_id, order.total) {
            let verdict = Verdict::Rejected(Rejection::KeyReused);
            self.store_order(order, verdict, None);
            return Ok(Some(verdict));
        }
        if order.reply == ReplyMode::Detached {
            self.decision.writes.aliases.push((order.id, known.id));
        }
        Ok(Some(Verdict::AlreadyPlaced(known)))
    }

    /// An order stands in a batch twice when its client stopped waiting meanwhile: then the verdict on the first copy, which
    /// was only to be sent, is stored.
    fn store_for_copy(&mut self, order: &NewOrder, verdict: Verdict) {
        let is_stored = |record: &StoredOrders| record.orders.contains_key(&order.id);
        match verdict {
            _ if order.reply != ReplyMode::Detached || self.stored.as_ref().is_some_and(is_stored) => {}
            Verdict::AlreadyPlaced(known) => self.decision.writes.aliases.push((order.id, known.id)),
            Verdict::Rejected(Rejection::KeyReused) => self.store_order(order, verdict, None),
            _ => self.store_order(order, verdict, order.key.clone()),
        }
    }

    fn store_order(&mut self, order: &NewOrder, verdict: Verdict, key: Option<IdempotencyKey>) {
        let Some(order) = stored(order, verdict) else { return };
        if let Some(StoredOrders { orders, keys, orphaned_keys, .. }) = &mut self.stored {
            orders.insert(order.id, order);
            if let Some(key) = &key {
                keys.insert(key.clone(), order.id);
                self.decision.writes.freed_keys.extend(orphaned_keys.remove_entry(key));
            }
        }
        self.decision.writes.orders.push((order, key));
        self.tell(order);
    }

    fn change(&mut self, command: &ChangeOrder) -> Decided {
        self.check_order(command.order_id)?;
        self.check_product(command.product_id)?;
        let order = self.stored.as_mut().and_then(|record| record.orders.get_mut(&command.order_id));
        let Some(order) = order else { return Ok(Verdict::OrderNotFound) };
        if order.product_id != command.product_id {
            return Ok(Verdict::OrderNotFound); // the wrong lane, and the wrong inventory
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
        let (order, status) = (*order, order.status());
        if changed {
            self.decision.writes.statuses.insert(order.id, status);
        }
        if changed || status == command.change.leads_to() {
            self.tell(order);
        }
        Ok(Verdict::Status(status))
    }

    fn tell(&mut self, order: Order) {
        if matches!(order.state, OrderState::Accepted { .. }) {
            self.decision.events.push(Event { order });
        }
    }
}

/// The order as it goes on record with this verdict; `None` when it does not.
///
/// A reservation always does. A rejection does only when nobody waits for it; any other is sent and forgotten, so that a
/// sold-out storm writes nothing.
pub fn stored(order: &NewOrder, verdict: Verdict) -> Option<Order> {
    let state = match verdict {
        Verdict::Reserved { expires_at } => {
            OrderState::Accepted { status: OrderStatus::Reserved, expires_at }
        }
        Verdict::Rejected(rejection @ (Rejection::InsufficientStock { .. } | Rejection::KeyReused))
            if order.reply == ReplyMode::Detached =>
        {
            OrderState::Rejected(rejection)
        }
        _ => return None,
    };
    Some(Order { id: order.id, product_id: order.product_id, total: order.total, state })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::domain::time::from_millis;
    use crate::{
        clock::now,
        domain::{
            ids::{CommandId, OrderId},
            inventory::Stock,
            order::{Change, Quantity},
        },
    };

    fn product(number: u64) -> ProductId {
        ProductId::new(number).unwrap()
    }

    /// A batch of new orders, none of which is on record.
    fn decide_new(inventories: Inventories, orders: &[NewOrder], expires_at: Timestamp) -> Decision {
        let commands: Vec<_> = orders.iter().cloned().map(Command::Place).collect();
        decide(inventories, None, &commands, Times { decided_at: now(), expires_at })
    }

    fn inventory(stock: u32) -> Inventory {
        let mut inventory = Inventory::EMPTY;
        inventory.recount(Stock::new(stock).unwrap()).unwrap();
        inventory
    }

    fn order(number: u64, total: u32) -> NewOrder {
        NewOrder {
            id: OrderId::generate(),
            product_id: product(number),
            total: Quantity::new(total).unwrap(),
            reply: ReplyMode::Until(now()),
            key: None,
        }
    }

    /// Products 1 to 4 exist, 5 does not.
    fn batches() -> impl Strategy<Value = (Inventories, Vec<NewOrder>)> {
        let stock = prop_oneof![4 => 0_u32..40, 1 => 0..=Stock::MAX];
        let total = prop_oneof![4 => 1_u32..12, 1 => 1..=Quantity::MAX];
        let inventories = vec(stock, 4).prop_map(|stocks| {
            (1..).map(product).zip(stocks.into_iter().map(inventory)).collect::<Inventories>()
        });
        let orders = vec((1_u64..=5, total).prop_map(|(number, total)| order(number, total)), 0..80);
        (inventories, orders)
    }

    proptest! {
        /// The whole rule, replayed order by order on plain signed numbers: an order is refused exactly when
        /// fewer pieces are left than it asks for, never filled in part, and nothing turns negative.
        #[test]
        fn first_come_first_served_all_or_nothing((inventories, orders) in batches()) {
            let expires_at = now();
            let decision = decide_new(inventories.clone(), &orders, expires_at);
            prop_assert_eq!(decision.verdicts.len(), orders.len());
            let mut left: BTreeMap<_, _> =
                inventories.iter().map(|(id, inventory)| (*id, i64::from(inventory.available()))).collect();
            for (order, verdict) in orders.iter().zip(&decision.verdicts) {
                let wanted = i64::from(order.total.get());
                match (left.get_mut(&order.product_id), verdict) {
                    (None, verdict) => prop_assert_eq!(*verdict, Verdict::Rejected(Rejection::ProductNotFound)),
                    (Some(left), Verdict::Reserved { expires_at: until }) => {
                        *left -= wanted;
                        prop_assert!(*left >= 0);
                        prop_assert_eq!(*until, expires_at);
                    }
                    (Some(left), Verdict::Rejected(Rejection::InsufficientStock { available })) => {
                        prop_assert!(*left < wanted);
                        prop_assert_eq!(i64::from(*available), *left);
                    }
                    (Some(_), other) => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert!(decision.inventories.keys().eq(inventories.keys()));
            for (id, after) in &decision.inventories {
                prop_assert_eq!(i64::from(after.available()), left[id]);
                prop_assert_eq!(after.stored(), inventories[id].stored());
            }
        }

        /// Lanes share a transaction but never a verdict: a product's verdicts do not depend on its company.
        #[test]
        fn lanes_do_not_touch_each_other((inventories, orders) in batches()) {
            let expires_at = now();
            let together = decide_new(inventories.clone(), &orders, expires_at).verdicts;
            for id in (1..=5).map(product) {
                let of_lane = |order: &NewOrder| order.product_id == id;
                let alone: Vec<_> = orders.iter().filter(|order| of_lane(order)).cloned().collect();
                let expected = decide_new(inventories.clone(), &alone, expires_at).verdicts;
                let found: Vec<_> =
                    orders.iter().zip(&together).filter(|(order, _)| of_lane(order)).map(|(_, verdict)| *verdict).collect();
                prop_assert_eq!(found, expected);
            }
        }

        /// How arrivals are cut into batches changes no verdict.
        #[test]
        fn where_a_batch_ends_does_not_matter((inventories, orders) in batches(), cut in 0.0..1.0_f64) {
            let expires_at = now();
            let whole = decide_new(inventories.clone(), &orders, expires_at);
            let (first, second) = orders.split_at((orders.len() as f64 * cut) as usize);
            let first = decide_new(inventories, first, expires_at);
            let second = decide_new(first.inventories, second, expires_at);
            prop_assert_eq!([first.verdicts, second.verdicts].concat(), whole.verdicts);
            prop_assert_eq!(second.inventories, whole.inventories);
        }

        /// Whole lives, cut into batches anywhere, some of whose commands come twice: at every commit the books agree
        /// with the orders on record, an order moves once at most after it was reserved, and nobody who asks twice
        /// hears two stories.
        #[test]
        fn whole_lives_keep_the_books(steps in vec(steps(), 1..60), cuts in vec(1_usize..8, 1..60)) {
            let mut world = World::new(60);
            let mut steps = steps.into_iter();
            for cut in cuts {
                let steps: Vec<_> = steps.by_ref().take(cut).collect();
                world.run(&steps)?;
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Place { total: u32, key: Option<u8>, again: bool },
        Change { of: Index, change: Change, again: bool },
    }

    fn steps() -> impl Strategy<Value = Step> {
        let key = prop_oneof![2 => Just(None), 1 => (0_u8..4).prop_map(Some)];
        let change = prop_oneof![Just(Change::Pay), Just(Change::Cancel), Just(Change::Expire)];
        prop_oneof![
            (1_u32..12, key, any::<bool>()).prop_map(|(total, key, again)| Step::Place { total, key, again }),
            (any::<Index>(), change, any::<bool>()).prop_map(|(of, change, again)| Step::Change {
                of,
                change,
                again
            }),
        ]
    }

    /// One product and what a database would hold of it.
    struct World {
        stock: u32,
        inventories: Inventories,
        record: StoredOrders,
        ids: Vec<OrderId>,
    }

    impl World {
        fn new(stock: u32) -> Self {
            let inventories = [(product(1), inventory(stock))].into();
            Self { stock, inventories, record: StoredOrders::default(), ids: Vec::new() }
        }

        fn command(&self, step: &Step) -> Vec<Command> {
            let (command, again): (Command, bool) = match step {
                Step::Place { total, key, again } => {
                    let key = key.map(|key| key.to_string().try_into().unwrap());
                    (NewOrder { key, ..order(1, *total) }.into(), *again)
                }
                Step::Change { of, change, again } if !self.ids.is_empty() => {
                    let (id, reply) = (CommandId::generate(), ReplyMode::Until(now()));
                    let order_id = *of.get(&self.ids);
                    let change = ChangeOrder { id, order_id, product_id: product(1), change: *change, reply };
                    (change.into(), *again)
                }
                Step::Change { .. } => return Vec::new(),
            };
            vec![command; 1 + usize::from(again)]
        }

        fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
            let commands: Vec<_> = steps.iter().flat_map(|step| self.command(step)).collect();
            // Every reservation is overdue at once, so an expiry has its way.
            let decided_at = now();
            let times = Times { decided_at, expires_at: decided_at };
            let decision = decide(self.inventories.clone(), Some(self.record.clone()), &commands, times);
            prop_assert_eq!(&decision.undecidable, &[]);
            let mut answers: HashMap<CommandId, Verdict> = HashMap::new();
            for (command, verdict) in commands.iter().zip(&decision.verdicts) {
                prop_assert_eq!(answers.entry(command.id()).or_insert(*verdict), verdict);
            }
            for (order, key) in &decision.writes.orders {
                prop_assert!(self.record.orders.insert(order.id, *order).is_none(), "inserted twice");
                if let Some(key) = key {
                    prop_assert!(self.record.keys.insert(key.clone(), order.id).is_none(), "one key twice");
                }
                self.ids.push(order.id);
            }
            for (id, status) in &decision.writes.statuses {
                let order = self.record.orders.get_mut(id).unwrap();
                prop_assert_eq!(order.status(), OrderStatus::Reserved, "only a reservation goes further");
                *order = order.with_status(*status);
            }
            let first_told = decision.events.iter().map(|event| (event.order.id, event.order.status()));
            for (id, status) in first_told {
                let now = self.record.orders[&id].status();
                prop_assert!(
                    status == now || status == OrderStatus::Reserved,
                    "{status:?} is told, {now:?} is true"
                );
            }
            self.inventories = decision.inventories;
            let pieces = |status: OrderStatus| -> u32 {
                self.record
                    .orders
                    .values()
                    .filter(|order| order.status() == status)
                    .map(|order| order.total.get())
                    .sum()
            };
            let inventory = self.inventories[&product(1)];
            prop_assert_eq!(inventory.reserved(), pieces(OrderStatus::Reserved));
            prop_assert_eq!(inventory.stored(), self.stock - pieces(OrderStatus::Paid));
            Ok(())
        }
    }

    #[test]
    fn a_rejection_is_stored_exactly_when_nobody_waits_for_it() {
        let rejected = Verdict::Rejected(Rejection::InsufficientStock { available: 3 });
        let reserved = Verdict::Reserved { expires_at: now() };
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(4).unwrap());
        let order = |reply| NewOrder { id: OrderId::generate(), product_id, total, reply, key: None };
        // No clock plays a part: a deadline that is long over changes nothing.
        for answer_by in [from_millis(0), now(), Timestamp::MAX] {
            let waited_for = order(ReplyMode::Until(answer_by));
            assert_eq!(stored(&waited_for, rejected), None);
            assert_eq!(stored(&waited_for, reserved).unwrap().verdict(), reserved);
        }
        let detached = order(ReplyMode::Detached);
        for verdict in [rejected, reserved] {
            assert_eq!(stored(&detached, verdict).unwrap().verdict(), verdict);
        }
        let not_found = Verdict::Rejected(Rejection::ProductNotFound);
        assert_eq!(stored(&detached, not_found), None, "it has no product to be stored with");
    }
}
