use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::domain::time::from_millis;
use crate::{
    clock::{Clock, SystemClock},
    domain::{
        command::ReplyMode,
        ids::{CommandId, OrderId},
        inventory::{Inventory, Stock},
        lines::Lines,
        order::{Change, Quantity},
        origin::Origin,
    },
};

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

/// A batch of new orders, none of which is stored.
fn decide_new(inventories: Inventories, orders: &[NewOrder], expires_at: Timestamp) -> Decision {
    let commands: Vec<_> = orders.iter().cloned().map(Command::Place).collect();
    let times = Times { decided_at: SystemClock.now(), expires_at };
    decide(Snapshot { inventories, archived: HashMap::new(), stored: None, times }, &commands)
}

#[test]
fn an_archived_product_takes_no_new_orders_and_its_stored_ones_stay() {
    let (shirt, cap) = (product(1), product(2));
    let inventories: Inventories = [(shirt, inventory(5)), (cap, inventory(5))].into();
    let archived = [(shirt, SystemClock.now())].into();
    let times = Times { decided_at: SystemClock.now(), expires_at: SystemClock.now() };
    let known = order(1, 2);
    let state = OrderState::Accepted { status: OrderStatus::Paid, expires_at: times.expires_at };
    let lines = Some(known.lines.clone());
    let paid = Order { id: known.id, lines, buyer: None, payment: None, state };
    let stored = StoredOrders { orders: [(paid.id, paid)].into(), ..StoredOrders::default() };
    let commands = [order(1, 1), known, order(2, 1)].map(Command::Place);
    let snapshot = Snapshot { inventories, archived, stored: Some(stored), times };
    let decision = decide(snapshot, &commands);
    let [refused, again, reserved] = &decision.result.verdicts[..] else { panic!("{decision:?}") };
    assert_eq!(*refused, Verdict::Rejected(Rejection::ProductNotFound { product_id: shirt }));
    assert!(matches!(again, Verdict::Reserved { .. }), "redelivered, it gets its stored verdict");
    assert!(matches!(reserved, Verdict::Reserved { .. }));
    assert_eq!(decision.inventories[&shirt], inventory(5));
}

fn inventory(stock: u32) -> Inventory {
    let mut inventory = Inventory::EMPTY;
    inventory.recount(Stock::new(stock).unwrap()).unwrap();
    inventory
}

fn order(number: u64, total: u32) -> NewOrder {
    NewOrder {
        id: SystemClock.order_id(),
        lines: Lines::one(product(number), Quantity::new(total).unwrap()),
        buyer: None,
        reply: ReplyMode::Until(SystemClock.now()),
        key: None,
        origin: Origin::default(),
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
        let expires_at = SystemClock.now();
        let decision = decide_new(inventories.clone(), &orders, expires_at);
        prop_assert_eq!(decision.result.verdicts.len(), orders.len());
        let mut left: BTreeMap<_, _> =
            inventories.iter().map(|(id, inventory)| (*id, i64::from(inventory.available()))).collect();
        for (order, verdict) in orders.iter().zip(&decision.result.verdicts) {
            let wanted = i64::from(order.lines.first().total.get());
            match (left.get_mut(&order.lines.first().product_id), verdict) {
                (None, verdict) => prop_assert!(
                    matches!(verdict, Verdict::Rejected(Rejection::ProductNotFound { .. })), "{:?}", verdict
                ),
                (Some(left), Verdict::Reserved { expires_at: until }) => {
                    *left -= wanted;
                    prop_assert!(*left >= 0);
                    prop_assert_eq!(*until, expires_at);
                }
                (Some(left), Verdict::Rejected(Rejection::InsufficientStock { available, .. })) => {
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
        let expires_at = SystemClock.now();
        let together = decide_new(inventories.clone(), &orders, expires_at).result.verdicts;
        for id in (1..=5).map(product) {
            let of_lane = |order: &NewOrder| order.lines.first().product_id == id;
            let alone: Vec<_> = orders.iter().filter(|order| of_lane(order)).cloned().collect();
            let expected = decide_new(inventories.clone(), &alone, expires_at).result.verdicts;
            let found: Vec<_> =
                orders.iter().zip(&together).filter(|(order, _)| of_lane(order)).map(|(_, verdict)| verdict.clone()).collect();
            prop_assert_eq!(found, expected);
        }
    }

    /// How arrivals are cut into batches changes no verdict.
    #[test]
    fn where_a_batch_ends_does_not_matter((inventories, orders) in batches(), cut in 0.0..1.0_f64) {
        let expires_at = SystemClock.now();
        let whole = decide_new(inventories.clone(), &orders, expires_at);
        let (first, second) = orders.split_at((orders.len() as f64 * cut) as usize);
        let first = decide_new(inventories, first, expires_at);
        let second = decide_new(first.inventories, second, expires_at);
        prop_assert_eq!([first.result.verdicts, second.result.verdicts].concat(), whole.result.verdicts);
        prop_assert_eq!(second.inventories, whole.inventories);
    }

    /// Whole lives, cut into batches anywhere, some of whose commands come twice: at every commit the books agree
    /// with the stored orders, an order changes once at most after it was reserved, and a command that comes twice gets the
    /// same verdict twice.
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
    stored: StoredOrders,
    ids: Vec<OrderId>,
}

impl World {
    fn new(stock: u32) -> Self {
        let inventories = [(product(1), inventory(stock))].into();
        Self { stock, inventories, stored: StoredOrders::default(), ids: Vec::new() }
    }

    fn command(&self, step: &Step) -> Vec<Command> {
        let (command, again): (Command, bool) = match step {
            Step::Place { total, key, again } => {
                let key = key.map(|key| key.to_string().try_into().unwrap());
                (NewOrder { key, ..order(1, *total) }.into(), *again)
            }
            Step::Change { of, change, again } if !self.ids.is_empty() => {
                let (id, reply) = (SystemClock.command_id(), ReplyMode::Until(SystemClock.now()));
                let order_id = *of.get(&self.ids);
                let change = ChangeOrder {
                    id,
                    order_id,
                    product_id: product(1),
                    other_products: [].into(),
                    change: *change,
                    reply,
                    origin: Origin::default(),
                };
                (change.into(), *again)
            }
            Step::Change { .. } => return Vec::new(),
        };
        vec![command; 1 + usize::from(again)]
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        let commands: Vec<_> = steps.iter().flat_map(|step| self.command(step)).collect();
        // Every reservation is due at once, so an expiry takes effect.
        let decided_at = SystemClock.now();
        let times = Times { decided_at, expires_at: decided_at };
        let (inventories, stored) = (self.inventories.clone(), Some(self.stored.clone()));
        let decision = decide(Snapshot { inventories, archived: HashMap::new(), stored, times }, &commands);
        prop_assert_eq!(&decision.result.undecidable, &[]);
        self.check_outcome(&decision, commands.len())?;
        let mut answers: HashMap<CommandId, Verdict> = HashMap::new();
        for (command, verdict) in commands.iter().zip(&decision.result.verdicts) {
            prop_assert_eq!(answers.entry(command.id()).or_insert(verdict.clone()), verdict);
        }
        for (order, key) in &decision.writes.orders {
            prop_assert!(self.stored.orders.insert(order.id, order.clone()).is_none(), "inserted twice");
            if let Some(key) = key {
                prop_assert!(self.stored.keys.insert(key.clone(), order.id).is_none(), "one key twice");
            }
            self.ids.push(order.id);
        }
        for (id, status) in &decision.writes.statuses {
            let order = self.stored.orders.get_mut(id).unwrap();
            prop_assert_eq!(order.status(), OrderStatus::Reserved, "only a reservation changes");
            *order = order.clone().with_status(*status);
        }
        let reported = decision.result.events.iter().map(|event| (event.order.id, event.order.status()));
        for (id, status) in reported {
            let now = self.stored.orders[&id].status();
            prop_assert!(
                status == now || status == OrderStatus::Reserved,
                "{status:?} is reported, {now:?} is true"
            );
        }
        self.inventories = decision.inventories;
        let pieces = |status: OrderStatus| -> u32 {
            self.stored
                .orders
                .values()
                .filter(|order| order.status() == status)
                .map(|order| order.lines.as_ref().unwrap().first().total.get())
                .sum()
        };
        let inventory = self.inventories[&product(1)];
        prop_assert_eq!(inventory.reserved(), pieces(OrderStatus::Reserved));
        prop_assert_eq!(inventory.stored(), self.stock - pieces(OrderStatus::Paid));
        Ok(())
    }
}

impl World {
    /// The outcome counts each command once, and says what is written.
    fn check_outcome(&self, decision: &Decision, commands: usize) -> Result<(), TestCaseError> {
        let outcome = decision.result.outcomes.get(&product(1)).copied().unwrap_or_default();
        prop_assert_eq!(outcome.commands() as usize, commands);
        if commands > 0 {
            prop_assert_eq!(outcome.inventory, decision.inventories.get(&product(1)).copied());
        }
        let orders = decision.writes.orders.iter();
        let reserved = orders.filter(|(order, _)| matches!(order.state, OrderState::Accepted { .. })).count();
        prop_assert_eq!(outcome.reserved as usize, reserved);
        // An order changes once at most: each change is one new status.
        let changed = (outcome.paid + outcome.cancelled + outcome.expired) as usize;
        prop_assert_eq!(changed, decision.writes.statuses.len());
        Ok(())
    }
}

#[test]
fn each_product_of_a_batch_has_its_outcome() {
    let inventories = [(product(1), inventory(3)), (product(2), inventory(5))].into();
    let orders = [order(1, 2), order(1, 2), order(2, 5), order(5, 1)];
    let outcomes = decide_new(inventories, &orders, SystemClock.now()).result.outcomes;
    let found = outcomes.iter().map(|(id, outcome)| {
        let available = outcome.inventory.map(Inventory::available);
        (id.get(), available, outcome.reserved, outcome.all_rejected())
    });
    assert_eq!(found.collect::<Vec<_>>(), [(1, Some(1), 1, 1), (2, Some(0), 1, 0), (5, None, 0, 1)]);
}

#[test]
fn a_batch_that_is_decided_in_parts_has_one_outcome() {
    let first = decide_new([(product(1), inventory(3))].into(), &[order(1, 2)], SystemClock.now());
    let second = decide_new(first.inventories.clone(), &[order(1, 1), order(1, 1)], SystemClock.now());
    let whole = first.result.followed_by(second.result);
    let whole = whole.followed_by(BatchResult::undecidable(product(2), "by a test".to_owned()));
    let outcome = whole.outcomes[&product(1)];
    assert_eq!((outcome.reserved, outcome.all_rejected()), (2, 1));
    assert_eq!(outcome.inventory.map(Inventory::available), Some(0));
    assert_eq!(whole.outcomes[&product(2)].undecidable, 1);
}

#[test]
fn a_rejection_is_stored_exactly_when_no_client_waits_for_it() {
    let rejected = Verdict::Rejected(Rejection::InsufficientStock { product_id: product(1), available: 3 });
    let reserved = Verdict::Reserved { expires_at: SystemClock.now() };
    let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(4).unwrap());
    let order = |reply| NewOrder {
        id: SystemClock.order_id(),
        lines: Lines::one(product_id, total),
        buyer: None,
        reply,
        key: None,
        origin: Origin::default(),
    };
    // No clock plays a part: a deadline that is long past changes nothing.
    for answer_by in [from_millis(0), SystemClock.now(), Timestamp::MAX] {
        let waited_for = order(ReplyMode::Until(answer_by));
        assert_eq!(stored_order(&waited_for, &rejected), None);
        assert_eq!(
            stored_order(&waited_for, &reserved).map(|order| Verdict::on_stored(&order)),
            Some(reserved.clone())
        );
    }
    let detached = order(ReplyMode::Detached);
    for verdict in [rejected, reserved] {
        assert_eq!(stored_order(&detached, &verdict).map(|order| Verdict::on_stored(&order)), Some(verdict));
    }
    let not_found = Verdict::Rejected(Rejection::ProductNotFound { product_id: product(1) });
    assert_eq!(stored_order(&detached, &not_found), None, "it has no product to be stored with");
}
