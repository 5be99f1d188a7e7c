//! Payments, late and twice, extensions, returns, and orders that are given up: one order's life, step by step.

use jiff::SignedDuration;

use super::*;

/// One product with some pieces, and one order of it.
struct Life {
    inventories: Inventories,
    stored: StoredOrders,
    rules: Rules,
    now: Timestamp,
    id: OrderId,
    lines: Lines,
}

impl Life {
    /// Of an order of all four pieces of product 1 that is reserved for 900 s.
    fn begin() -> Self {
        let order = order(1, 4);
        let (id, lines) = (order.id, order.lines.clone());
        let inventories = [(product(1), inventory(4))].into();
        let stored = StoredOrders::default();
        let mut life = Self { inventories, stored, rules: RULES, now: id.created_at(), id, lines };
        assert_eq!(life.decide(order.into()).0, Verdict::Reserved { expires_at: life.after(900) });
        life
    }

    fn after(&self, seconds: i64) -> Timestamp {
        self.id.created_at() + SignedDuration::from_secs(seconds)
    }

    fn decide(&mut self, command: Command) -> (Verdict, Vec<Event>) {
        let expires_at = self.now + SignedDuration::try_from(self.rules.reservation_ttl).unwrap();
        let times = Times { decided_at: self.now, expires_at };
        let (inventories, stored) = (self.inventories.clone(), Some(self.stored.clone()));
        let decision = decide(snapshot(inventories, stored, times, self.rules), &[command]);
        self.inventories = decision.inventories;
        let orders = decision.writes.orders.into_iter().map(|(order, _)| order);
        let written = orders.chain(decision.writes.changed.into_values());
        self.stored.orders.extend(written.map(|order| (order.id, order)));
        let mut result = decision.result;
        (result.verdicts.remove(0), result.events)
    }

    fn change(&mut self, change: Change) -> (Order, Vec<&'static str>) {
        let command = ChangeOrder {
            id: SystemClock.command_id(),
            order_id: self.id,
            product_id: product(1),
            other_products: [].into(),
            change,
            reply: ReplyMode::Detached,
            origin: Origin::default(),
        };
        let (verdict, events) = self.decide(command.into());
        let order = verdict.current().cloned().unwrap();
        assert_eq!(order, self.stored.orders[&self.id], "the verdict is what is stored");
        assert_eq!(order.lines.as_ref(), Some(&self.lines));
        (order, events.iter().map(|event| event.topic()[1]).collect())
    }

    fn pay(&mut self, text: &str) -> (Order, Vec<&'static str>) {
        self.change(Change::Pay { reference: Some(reference(text)) })
    }

    fn pieces(&self) -> [u32; 3] {
        let inventory = self.inventories[&product(1)];
        [inventory.stored(), inventory.available(), inventory.reserved()]
    }
}

#[test]
fn the_first_payment_counts_and_its_reference_and_time_are_stored() {
    let mut life = Life::begin();
    life.now = life.after(5);
    let (paid, events) = life.pay("tx-1");
    let payment = Payment { reference: Some(reference("tx-1")), paid_at: Some(life.now) };
    assert_eq!((paid.payment.as_ref(), events), (Some(&payment), vec!["paid"]));
    life.now = life.after(6);
    for again in ["tx-1", "tx-2"] {
        assert_eq!(life.pay(again), (paid.clone(), vec!["paid"]));
    }
    assert_eq!(life.pieces(), [0, 0, 0]);
}

#[test]
fn a_late_payment_gets_the_pieces_that_are_still_there() {
    let mut life = Life::begin();
    life.now = life.after(900);
    assert_eq!(life.change(Change::Expire).1, ["expired"]);
    let (paid, events) = life.pay("tx-1");
    assert_eq!((paid.status(), events), (OrderStatus::Paid, vec!["paid"]));
    assert_eq!(life.pieces(), [0, 0, 0]);
}

#[test]
fn a_payment_that_is_refused_as_too_late_stays_refused() {
    for rules in [RULES, Rules { late_payment: LatePayment::Refuse, ..RULES }] {
        let mut life = Life { rules, ..Life::begin() };
        life.now = life.after(900);
        life.change(Change::Expire);
        if rules == RULES {
            life.inventories = [(product(1), inventory(3))].into(); // somebody has bought one
        }
        let before = life.pieces();
        let (expired, events) = life.pay("tx-1");
        assert_eq!((expired.status(), events), (OrderStatus::Expired, vec!["too_late"]));
        // The pieces come back, and the command is delivered again: its client may have the answer already.
        life.rules = RULES;
        life.inventories = [(product(1), inventory(4))].into();
        let mut told = expired.clone();
        told.payment = Some(Payment { reference: Some(reference("tx-1")), paid_at: Some(life.now) });
        assert_eq!(life.pay("tx-1"), (told, vec!["too_late"]));
        assert_eq!(life.pay("tx-2").0.payment_reference(), Some(&reference("tx-1")));
        assert!(before[0] <= 4 && life.pieces() == [4, 4, 0]);
    }
}

#[test]
fn an_extension_holds_for_longer_but_not_for_ever() {
    let mut life = Life { rules: Rules { max_hold: Duration::from_secs(2_000), ..RULES }, ..Life::begin() };
    for (now, end) in [(0, 900), (600, 1_500), (300, 1_500), (1_200, 2_000), (1_999, 2_000), (2_500, 2_000)] {
        life.now = life.after(now);
        let (order, events) = life.change(Change::Extend);
        assert_eq!(order.expires_at(), Some(life.after(end)), "at {now}");
        assert!(events.is_empty());
    }
    assert_eq!(life.change(Change::Expire).0.status(), OrderStatus::Expired);
    assert_eq!(life.change(Change::Extend).0.status(), OrderStatus::Expired);
    assert_eq!(life.pieces(), [4, 4, 0]);
}

#[test]
fn a_paid_order_comes_back_with_or_without_its_pieces() {
    for (restock, pieces) in [(true, [4, 4, 0]), (false, [0, 0, 0])] {
        let mut life = Life::begin();
        assert_eq!(life.change(Change::Return { restock }).0.status(), OrderStatus::Reserved);
        let (paid, _) = life.pay("tx-1");
        let (returned, events) = life.change(Change::Return { restock });
        assert_eq!(returned, paid.with_status(OrderStatus::Returned));
        assert_eq!(events, ["returned"]);
        assert_eq!(life.change(Change::Return { restock: true }).0, returned);
        assert_eq!(life.pieces(), pieces);
    }
    let mut life = Life::begin();
    life.pay("tx-1");
    life.inventories = [(product(1), inventory(Stock::MAX - 3))].into();
    let (paid, events) = life.change(Change::Return { restock: true });
    assert_eq!((paid.status(), events.len()), (OrderStatus::Paid, 0), "there would be too many");
    assert_eq!(life.change(Change::Return { restock: false }).0.status(), OrderStatus::Returned);
}

#[test]
fn an_order_that_was_given_up_is_never_reserved_and_is_known_once_its_turn_comes() {
    let (free, taken) = (order(1, 1), order(1, 2));
    let key = |text: &str| Some(IdempotencyKey::try_from(text.to_owned()).unwrap());
    let given_up = NewOrder { key: key("k"), reply: ReplyMode::Detached, ..order(1, 1) };
    let mut stored = StoredOrders::default();
    stored.orders.insert(given_up.id, Order::given_up(given_up.id));
    let commands = [free.into(), given_up.clone().into(), given_up.clone().into(), taken.into()];
    let times = Times { decided_at: SystemClock.now(), expires_at: SystemClock.now() };
    let inventories = [(product(1), inventory(3))].into();
    let decision = decide(snapshot(inventories, Some(stored), times, RULES), &commands);
    let known = Order { lines: Some(given_up.lines.clone()), ..Order::given_up(given_up.id) };
    let verdicts = decision.result.verdicts;
    assert_eq!(verdicts[1..3], [1, 2].map(|_| Verdict::AlreadyPlaced(known.clone())));
    assert!(matches!(verdicts[3], Verdict::Reserved { .. }), "its pieces were never taken");
    assert_eq!(decision.writes.completed, [(known.clone(), key("k"))]);
    let events = decision.result.events;
    assert_eq!(events.iter().filter(|event| event.order.id == known.id).count(), 1);
    assert_eq!(events[1], Event::of_order(known));
}
