mod one_life;

use std::{slice, time::Duration};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::domain::{event::EventKind, time::from_millis};
use crate::{
    clock::{Clock, SystemClock},
    domain::{
        command::ReplyMode,
        ids::{CommandId, OrderId},
        inventory::{Inventory, Stock},
        lines::Lines,
        names::PaymentReference,
        order::{Change, Quantity},
        origin::Origin,
        rules::LatePayment,
        terms::{Hold, Terms},
    },
};

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

const RULES: Rules = Rules::of_ttl(Duration::from_secs(900));

/// Without special terms of sale.
fn snapshot(inventories: Inventories, stored: Option<StoredOrders>, times: Times, rules: Rules) -> Snapshot {
    let (archived, terms, holdings) = (ArchivedProducts::new(), SpecialTerms::new(), Holdings::new());
    Snapshot { inventories, archived, terms, holdings, stored, times, rules }
}

/// A batch of new orders, none of which is stored.
fn decide_new(inventories: Inventories, orders: &[NewOrder], expires_at: Timestamp) -> Decision {
    let commands: Vec<_> = orders.iter().cloned().map(Command::Place).collect();
    let times = Times { decided_at: SystemClock.now(), expires_at };
    decide(snapshot(inventories, None, times, RULES), &commands)
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
    let snapshot = Snapshot { archived, ..snapshot(inventories, Some(stored), times, RULES) };
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
    /// with the stored orders, an order goes only along the arrows of its life, and a new order that comes twice gets the
    /// same verdict twice.
    #[test]
    fn whole_lives_keep_the_books(
        steps in vec(steps(), 1..60), cuts in vec(1_usize..8, 1..60), accepts in any::<bool>()
    ) {
        let mut world = World::new(60);
        world.rules.late_payment = if accepts { LatePayment::Accept } else { LatePayment::Refuse };
        let mut steps = steps.into_iter();
        for cut in cuts {
            let steps: Vec<_> = steps.by_ref().take(cut).collect();
            world.run(&steps)?;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Place {
        total: u32,
        key: Option<u8>,
        again: bool,
    },
    Change {
        of: Index,
        change: Change,
        again: bool,
    },
    /// A client gives up an order that is placed right after.
    GiveUp {
        total: u32,
        key: Option<u8>,
        again: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let key = prop_oneof![2 => Just(None), 1 => (0_u8..4).prop_map(Some)];
    let reference = prop_oneof![Just(None), (0_u8..3).prop_map(|n| Some(reference(&n.to_string())))];
    let change = prop_oneof![
        3 => reference.prop_map(|reference| Change::Pay { reference }),
        1 => Just(Change::Cancel),
        2 => Just(Change::Expire),
        1 => Just(Change::Extend),
        2 => any::<bool>().prop_map(|restock| Change::Return { restock }),
    ];
    let order = (1_u32..12, key, any::<bool>());
    prop_oneof![
        4 => order.clone().prop_map(|(total, key, again)| Step::Place { total, key, again }),
        1 => order.prop_map(|(total, key, again)| Step::GiveUp { total, key, again }),
        6 =>         (any::<Index>(), change, any::<bool>()).prop_map(|(of, change, again)| Step::Change {
            of,
            change,
            again
        }),
    ]
}

fn reference(text: &str) -> PaymentReference {
    text.to_owned().try_into().unwrap()
}

/// One product and what a database would hold of it.
struct World {
    /// Pieces that the seller counted, less those that came back broken.
    stock: u32,
    rules: Rules,
    inventories: Inventories,
    stored: StoredOrders,
    ids: Vec<OrderId>,
}

impl World {
    fn new(stock: u32) -> Self {
        let inventories = [(product(1), inventory(stock))].into();
        Self { stock, rules: RULES, inventories, stored: StoredOrders::default(), ids: Vec::new() }
    }

    fn command(&mut self, step: &Step) -> Vec<Command> {
        let (command, again): (Command, bool) = match step {
            Step::Place { total, key, again } => {
                let key = key.map(|key| key.to_string().try_into().unwrap());
                (NewOrder { key, ..order(1, *total) }.into(), *again)
            }
            Step::GiveUp { total, key, again } => {
                let key = key.map(|key| key.to_string().try_into().unwrap());
                let order = order(1, *total);
                self.stored.orders.insert(order.id, Order::given_up(order.id));
                self.ids.push(order.id);
                (NewOrder { key, ..order }.into(), *again)
            }
            Step::Change { of, change, again } if !self.ids.is_empty() => {
                let (id, reply) = (SystemClock.command_id(), ReplyMode::Until(SystemClock.now()));
                let order_id = *of.get(&self.ids);
                let change = ChangeOrder {
                    id,
                    order_id,
                    product_id: product(1),
                    other_products: [].into(),
                    change: change.clone(),
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
        let decision = decide(snapshot(inventories, stored, times, self.rules), &commands);
        prop_assert_eq!(&decision.result.undecidable, &[]);
        self.check_outcome(&decision, commands.len())?;
        let mut answers: HashMap<CommandId, Verdict> = HashMap::new();
        for (command, verdict) in commands.iter().zip(&decision.result.verdicts) {
            // A change that comes twice may find what came in between: only of new orders the verdict is the same.
            if matches!(command, Command::Place(_)) {
                prop_assert_eq!(answers.entry(command.id()).or_insert(verdict.clone()), verdict);
            }
        }
        for (order, key) in &decision.writes.orders {
            prop_assert!(self.stored.orders.insert(order.id, order.clone()).is_none(), "inserted twice");
            if let Some(key) = key {
                prop_assert!(self.stored.keys.insert(key.clone(), order.id).is_none(), "one key twice");
            }
            self.ids.push(order.id);
        }
        for (order, key) in &decision.writes.completed {
            let before = self.stored.orders.insert(order.id, order.clone()).unwrap();
            prop_assert!(before.was_given_up() && before.lines.is_none(), "{before:?} was known");
            prop_assert!(order.was_given_up() && order.lines.is_some(), "{order:?}");
            if let Some(key) = key {
                prop_assert!(self.stored.keys.insert(key.clone(), order.id).is_none(), "one key twice");
            }
        }
        for order in decision.writes.changed.values() {
            let before = self.stored.orders.insert(order.id, order.clone()).unwrap();
            self.check_change(&before, order)?;
        }
        for event in &decision.result.events {
            self.check_event(event)?;
        }
        self.inventories = decision.inventories;
        let pieces = |status: OrderStatus| -> u32 {
            self.stored
                .orders
                .values()
                .filter(|order| order.status() == status)
                .map(|order| order.lines.as_ref().map_or(0, |lines| lines.first().total.get()))
                .sum()
        };
        let inventory = self.inventories[&product(1)];
        prop_assert_eq!(inventory.reserved(), pieces(OrderStatus::Reserved));
        // Of those that came back, the order does not say whether they can be sold again.
        let gone = pieces(OrderStatus::Paid);
        prop_assert!(inventory.stored() <= self.stock - gone);
        prop_assert!(inventory.stored() >= self.stock - gone - pieces(OrderStatus::Returned));
        Ok(())
    }

    /// An order went along the arrows of its life.
    fn check_change(&self, before: &Order, after: &Order) -> Result<(), TestCaseError> {
        use OrderStatus::{Cancelled, Expired, Paid, Reserved, Returned};
        let way = match (before.status(), after.status()) {
            (Reserved, Reserved) => before.expires_at() < after.expires_at(),
            (Reserved, Cancelled | Expired | Paid | Returned) => true,
            // Once a payment was refused as too late, none is accepted.
            (Expired, Paid | Returned) => {
                before.payment.is_none() && self.rules.late_payment == LatePayment::Accept
            }
            (Expired, Expired) => before.payment.is_none() && after.payment.is_some(),
            (Paid, Returned) => before.payment == after.payment,
            _ => false,
        };
        prop_assert!(way, "{before:?} became {after:?}");
        prop_assert_eq!(before.lines.as_ref(), after.lines.as_ref());
        let is_paid = matches!(after.status(), Paid | Returned);
        prop_assert!(!is_paid || after.payment.is_some());
        Ok(())
    }

    /// An event tells what is true, or was within the batch.
    fn check_event(&self, event: &Event) -> Result<(), TestCaseError> {
        let now = &self.stored.orders[&event.order.id];
        prop_assert!(event.order.lines.is_some());
        if event.kind == EventKind::PaymentTooLate {
            prop_assert_eq!(now.status(), OrderStatus::Expired);
            prop_assert!(now.payment.is_some());
            return Ok(());
        }
        let was = match now.status() {
            OrderStatus::Cancelled if now.was_given_up() => vec![OrderStatus::Cancelled],
            OrderStatus::Paid | OrderStatus::Returned => {
                vec![OrderStatus::Reserved, OrderStatus::Expired, OrderStatus::Paid, OrderStatus::Returned]
            }
            status => vec![OrderStatus::Reserved, status],
        };
        prop_assert!(was.contains(&event.order.status()), "{event:?} is reported of {now:?}");
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
        // An order that changes more than once is written once.
        let ends = outcome.paid + outcome.cancelled + outcome.expired;
        let changed = (ends + outcome.extended + outcome.returned + outcome.too_late) as usize;
        prop_assert!(changed >= decision.writes.changed.len());
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
    let decision = decide_new(Inventories::new(), slice::from_ref(&detached), SystemClock.now());
    let not_found = Verdict::Rejected(Rejection::ProductNotFound { product_id: product(1) });
    assert_eq!(decision.result.verdicts, [not_found]);
    assert_eq!(decision.writes.orders, [], "it has no product to be stored with");
}

/// A snapshot of products 1 to 3 with ten pieces each, at second 100.
fn snapshot_with(terms: &[(u64, Terms)]) -> Snapshot {
    let inventories = (1..=3).map(|number| (product(number), inventory(10))).collect();
    let terms = terms.iter().map(|(number, terms)| (product(*number), *terms)).collect();
    let times = Times { decided_at: from_millis(100_000), expires_at: from_millis(1_000_000) };
    Snapshot { terms, ..snapshot(inventories, None, times, RULES) }
}

fn lines(lines: &[(u64, u32)]) -> NewOrder {
    let line = |(number, total): &(u64, u32)| Line {
        product_id: product(*number),
        total: Quantity::new(*total).unwrap(),
    };
    let lines = Lines::try_from(lines.iter().map(line).collect::<Vec<_>>()).unwrap();
    // Created before the time of the snapshot.
    let id = OrderId::first_at(from_millis(1_000));
    NewOrder { id, lines, ..order(1, 1) }
}

fn verdict_on(snapshot: Snapshot, order: NewOrder) -> Verdict {
    decide(snapshot, &[order.into()]).result.verdicts.remove(0)
}

#[test]
fn the_terms_of_every_line_count_before_any_stock() {
    let paused = Terms { selling: false, ..Terms::default() };
    let limited = Terms { max_per_order: Quantity::new(2), ..Terms::default() };
    let refused = |terms: &[(u64, Terms)], of: &[(u64, u32)]| {
        let Verdict::Rejected(rejection) = verdict_on(snapshot_with(terms), lines(of)) else {
            panic!("{of:?}")
        };
        rejection
    };
    let of_two = Rejection::SalePaused { product_id: product(2) };
    assert_eq!(refused(&[(2, paused)], &[(2, 1)]), of_two);
    assert_eq!(refused(&[(2, paused)], &[(1, 1), (2, 1)]), of_two);
    assert_eq!(refused(&[(2, paused)], &[(1, 99), (2, 1)]), of_two, "though product 1 is short");
    assert_eq!(
        refused(&[(2, paused)], &[(2, 1), (5, 1)]),
        Rejection::ProductNotFound { product_id: product(5) }
    );
    let limit = Rejection::LimitPerOrder { product_id: product(3), limit: 2 };
    assert_eq!(refused(&[(3, limited)], &[(1, 5), (3, 3)]), limit);
    assert_eq!(
        refused(&[(3, limited)], &[(1, 11), (3, 2)]),
        Rejection::InsufficientStock { product_id: product(1), available: 10 }
    );
    // Nothing of the line before is gone.
    let snapshot = snapshot_with(&[(2, paused)]);
    let decision = decide(snapshot.clone(), &[lines(&[(1, 1), (2, 1)]).into()]);
    assert_eq!(decision.inventories, snapshot.inventories);
    assert_eq!(decision.not_stored, [0], "it may be a redelivered one");
    assert!(matches!(verdict_on(snapshot, lines(&[(1, 1), (3, 1)])), Verdict::Reserved { .. }));
}

#[test]
fn a_reservation_ends_with_the_shortest_hold_of_its_products() {
    let hold = |seconds| Terms { hold: Hold::new(seconds), ..Terms::default() };
    let terms = [(1, hold(60)), (2, hold(3_600))];
    let ends = |order: NewOrder| {
        let Verdict::Reserved { expires_at } = verdict_on(snapshot_with(&terms), order) else { panic!() };
        expires_at.as_millisecond()
    };
    assert_eq!(ends(lines(&[(1, 1)])), 160_000);
    assert_eq!(ends(lines(&[(2, 1)])), 3_700_000, "longer than the setting");
    assert_eq!(ends(lines(&[(3, 1)])), 1_000_000, "the setting");
    assert_eq!(ends(lines(&[(2, 1), (3, 1)])), 1_000_000);
    assert_eq!(ends(lines(&[(2, 1), (3, 1), (1, 1)])), 160_000);
    // Of an order that was created later than the database's clock says.
    let late = NewOrder { id: OrderId::first_at(from_millis(500_000)), ..lines(&[(1, 1)]) };
    assert_eq!(ends(late), 500_000);
}
