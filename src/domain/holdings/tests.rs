use std::{collections::HashMap, time::Duration};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    clock::{Clock, SystemClock},
    domain::{
        command::{ChangeOrder, NewOrder, ReplyMode},
        decide::{ArchivedProducts, Decision, Snapshot, StoredOrders, Times, decide},
        ids::OrderId,
        inventory::{Inventories, Inventory},
        order::{Change, OrderStatus},
        origin::Origin,
        rules::{LatePayment, Rules},
        terms::Terms,
        time::from_millis,
        verdict::Verdict,
    },
};

/// By product: pieces in stock, and the limit for each buyer.
const PRODUCTS: [(u64, u32, Option<u32>); 4] =
    [(1, 40, Some(2)), (2, 40, Some(5)), (3, 40, None), (4, 6, Some(9))];

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

fn terms() -> SpecialTerms {
    let limited = |(number, _, limit): (u64, u32, Option<u32>)| {
        let max_per_buyer = Some(Quantity::new(limit?).unwrap());
        Some((product(number), Terms { max_per_buyer, ..Terms::default() }))
    };
    PRODUCTS.into_iter().filter_map(limited).collect()
}

fn buyer(number: u8) -> Buyer {
    Buyer::try_from(format!("buyer-{number}")).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Place {
        lines: Vec<(u64, u32)>,
        buyer: Option<u8>,
    },
    /// A command that was there before, once more.
    Again {
        of: Index,
    },
    Change {
        of: Index,
        change: Change,
    },
}

const PAY: Change = Change::Pay { reference: None };

fn steps() -> impl Strategy<Value = Step> {
    let lines = proptest::sample::subsequence(vec![1_u64, 2, 3, 4], 1..=3).prop_shuffle();
    let lines =
        (lines, vec(1_u32..4, 3)).prop_map(|(products, totals)| products.into_iter().zip(totals).collect());
    let buyer = prop_oneof![1 => Just(None), 6 => (0_u8..3).prop_map(Some)];
    let change = prop_oneof![Just(PAY), Just(Change::Cancel), Just(Change::Expire)];
    prop_oneof![
        6 => (lines, buyer).prop_map(|(lines, buyer)| Step::Place { lines, buyer }),
        1 => any::<Index>().prop_map(|of| Step::Again { of }),
        3 => (any::<Index>(), change).prop_map(|(of, change)| Step::Change { of, change }),
    ]
}

/// The verdict on an order, its lines, its buyer, and its status.
type Known = (String, Vec<(u64, u32)>, Option<u8>, OrderStatus);

/// What a store has, and the same on plain numbers.
struct World {
    inventories: Inventories,
    holdings: Holdings,
    orders: HashMap<OrderId, Order>,
    /// All commands until now.
    history: Vec<Command>,
    available: HashMap<u64, i64>,
    held: HashMap<(u64, u8), i64>,
    /// The verdict on each order, its lines, its buyer, and whether its buyer has its pieces.
    known: HashMap<OrderId, Known>,
}

impl World {
    fn new() -> Self {
        let stock = |(number, pieces, _)| (product(number), Inventory::of(Stock::new(pieces).unwrap()));
        Self {
            inventories: PRODUCTS.into_iter().map(stock).collect(),
            holdings: Holdings::new(),
            orders: HashMap::new(),
            history: Vec::new(),
            available: PRODUCTS.into_iter().map(|(number, pieces, _)| (number, pieces.into())).collect(),
            held: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// The command of a step, and what it must lead to.
    fn command(&mut self, step: &Step) -> Option<(Command, String)> {
        let (reply, origin) = (ReplyMode::Detached, Origin::default());
        match step {
            Step::Place { lines, buyer: by } => {
                let id = SystemClock.order_id();
                let verdict = self.place(lines, *by);
                let status =
                    if verdict == "reserved" { OrderStatus::Reserved } else { OrderStatus::Rejected };
                self.known.insert(id, (verdict.clone(), lines.clone(), *by, status));
                let line = |(number, total): &(u64, u32)| Line {
                    product_id: product(*number),
                    total: Quantity::new(*total).unwrap(),
                };
                let lines = Lines::try_from(lines.iter().map(line).collect::<Vec<_>>()).unwrap();
                let order = NewOrder { id, lines, buyer: by.map(buyer), reply, key: None, origin };
                Some((order.into(), verdict))
            }
            Step::Again { of } => {
                let places = self.history.iter().filter(|command| matches!(command, Command::Place(_)));
                let places: Vec<_> = places.collect();
                let again = (!places.is_empty()).then(|| (*of.get(&places)).clone())?;
                let verdict = self.known[&again.order_id()].0.clone();
                Some((again, verdict))
            }
            Step::Change { of, change } => {
                let mut stored: Vec<_> = self.orders.values().collect();
                stored.sort_unstable_by_key(|order| order.id);
                let order = (!stored.is_empty()).then(|| of.get(&stored))?;
                let command =
                    ChangeOrder::of(order, SystemClock.command_id(), change.clone(), reply, origin)?;
                let (_, lines, by, status) = self.known.get_mut(&order.id).unwrap();
                if *status == OrderStatus::Reserved {
                    *status = change.kind().leads_to();
                    if *change != PAY {
                        for (number, total) in lines.iter() {
                            *self.available.get_mut(number).unwrap() += i64::from(*total);
                            if let Some(by) = by {
                                *self.held.get_mut(&(*number, *by)).unwrap() -= i64::from(*total);
                            }
                        }
                    }
                }
                Some((command.into(), status.as_str().to_owned()))
            }
        }
    }

    /// What must become of a new order, on plain numbers.
    fn place(&mut self, lines: &[(u64, u32)], by: Option<u8>) -> String {
        let limit = |number: u64| PRODUCTS[number as usize - 1].2;
        for (number, total) in lines {
            let Some(limit) = limit(*number) else { continue };
            let Some(by) = by else { return format!("buyer_required {number}") };
            let held = self.held.get(&(*number, by)).copied().unwrap_or_default();
            if held + i64::from(*total) > i64::from(limit) {
                return format!("limit_per_buyer {number} {limit} {held}");
            }
        }
        for (number, total) in lines {
            if self.available[number] < i64::from(*total) {
                return format!("insufficient_stock {number} {}", self.available[number]);
            }
        }
        for (number, total) in lines {
            *self.available.get_mut(number).unwrap() -= i64::from(*total);
            if let Some(by) = by {
                *self.held.entry((*number, by)).or_default() += i64::from(*total);
            }
        }
        "reserved".to_owned()
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        let (mut commands, mut expected) = (Vec::new(), Vec::new());
        for step in steps {
            if let Some((command, verdict)) = self.command(step) {
                commands.push(command);
                expected.push(verdict);
            }
        }
        // A store reads only what was asked for.
        let holders = holders(&terms(), &commands);
        let holdings: Holdings = holders
            .into_iter()
            .filter_map(|holder| Some((holder.clone(), *self.holdings.get(&holder)?)))
            .collect();
        let at = from_millis(32_503_680_000_000);
        let snapshot = Snapshot {
            inventories: self.inventories.clone(),
            archived: ArchivedProducts::new(),
            terms: terms(),
            holdings,
            stored: Some(StoredOrders { orders: self.orders.clone(), ..StoredOrders::default() }),
            times: Times { decided_at: at, expires_at: at },
            rules: Rules { late_payment: LatePayment::Refuse, ..Rules::of_ttl(Duration::ZERO) },
        };
        if steps.iter().all(|step| matches!(step, Step::Place { .. })) {
            let without = decide(Snapshot { stored: None, ..snapshot.clone() }, &commands);
            prop_assert_eq!(words(&without), expected.clone(), "without a look at stored orders");
        }
        let decision = decide(snapshot, &commands);
        prop_assert_eq!(words(&decision), expected);
        prop_assert!(decision.writes.holdings.values().all(|change| *change != 0));
        self.inventories = decision.inventories;
        self.orders.extend(decision.writes.orders.into_iter().map(|(order, _)| (order.id, order)));
        self.orders.extend(decision.writes.changed);
        apply(&mut self.holdings, decision.writes.holdings);
        self.history.extend(commands);
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let limited = |id: ProductId| terms().contains_key(&id);
        prop_assert_eq!(&self.holdings, &held_by(self.orders.values(), limited), "counted from the orders");
        let held = self.held.iter().filter(|((number, _), held)| limited(product(*number)) && **held > 0);
        let held: Holdings =
            held.map(|((number, by), held)| ((product(*number), buyer(*by)), *held as u64)).collect();
        prop_assert_eq!(&self.holdings, &held);
        for ((id, _), held) in &self.holdings {
            prop_assert!(*held <= terms()[id].max_per_buyer.unwrap().get().into());
        }
        for (id, inventory) in &self.inventories {
            prop_assert_eq!(i64::from(inventory.available()), self.available[&id.get()]);
        }
        Ok(())
    }
}

/// The verdicts in the words of the plain replay.
fn words(decision: &Decision) -> Vec<String> {
    let word = |verdict: &Verdict| match verdict {
        Verdict::Rejected(Rejection::LimitPerBuyer { product_id, limit, held }) => {
            format!("limit_per_buyer {product_id} {limit} {held}")
        }
        Verdict::Rejected(Rejection::BuyerRequired { product_id }) => format!("buyer_required {product_id}"),
        Verdict::Rejected(Rejection::InsufficientStock { product_id, available }) => {
            format!("insufficient_stock {product_id} {available}")
        }
        other => other.as_str().to_owned(),
    };
    decision.result.verdicts.iter().map(word).collect()
}

proptest! {
    /// Whole lives of orders with limits, cut into batches anywhere, some commands twice, replayed on plain numbers: every
    /// verdict is the one that the numbers say, nobody holds more than the limit, and the holdings are what the stored
    /// orders say.
    #[test]
    fn nobody_holds_more_than_the_limit(steps in vec(steps(), 1..80), cuts in vec(1_usize..12, 1..80)) {
        let mut world = World::new();
        let mut steps = steps.into_iter();
        for cut in cuts {
            let steps: Vec<_> = steps.by_ref().take(cut).collect();
            world.run(&steps)?;
        }
    }
}

#[test]
fn only_what_the_decision_needs_is_read() {
    let order = |lines: &[(u64, u32)], by: Option<u8>| {
        let line = |(number, total): &(u64, u32)| Line {
            product_id: product(*number),
            total: Quantity::new(*total).unwrap(),
        };
        let lines = Lines::try_from(lines.iter().map(line).collect::<Vec<_>>()).unwrap();
        let (id, reply) = (SystemClock.order_id(), ReplyMode::Detached);
        Command::from(NewOrder {
            id,
            lines,
            buyer: by.map(buyer),
            reply,
            key: None,
            origin: Origin::default(),
        })
    };
    let commands = [
        order(&[(2, 1), (3, 1), (1, 1)], Some(1)),
        order(&[(2, 1)], Some(0)),
        order(&[(3, 1)], Some(2)),
        order(&[(1, 1)], None),
        order(&[(1, 2)], Some(1)),
    ];
    let asked = holders(&terms(), &commands);
    assert_eq!(asked, [(product(1), buyer(1)), (product(2), buyer(0)), (product(2), buyer(1))]);
    assert_eq!(holders(&SpecialTerms::new(), &commands), []);
    let unlimited = [(product(1), Terms { selling: false, ..Terms::default() })].into();
    assert_eq!(holders(&unlimited, &commands), []);
}

#[test]
fn more_than_a_client_can_read_is_said_as_the_most_it_can() {
    let lines = Lines::one(product(1), Quantity::new(1).unwrap());
    let holdings = BatchHoldings::new([((product(1), buyer(1)), 1 << 40)].into());
    let refused = holdings.check(&terms(), &lines, Some(&buyer(1)));
    let rejection = Rejection::LimitPerBuyer { product_id: product(1), limit: 2, held: Stock::MAX };
    assert_eq!(refused, Err(rejection));
}

#[test]
fn less_than_nothing_is_nothing() {
    let mut holdings: Holdings = [((product(1), buyer(1)), 3), ((product(1), buyer(2)), 2)].into();
    let changes = [((product(1), buyer(1)), -5), ((product(1), buyer(2)), -1), ((product(2), buyer(1)), -1)];
    apply(&mut holdings, changes.into());
    assert_eq!(holdings, [((product(1), buyer(2)), 1)].into());
    let changes = taken_away(holdings.clone());
    apply(&mut holdings, changes);
    assert_eq!(holdings, Holdings::new());
}
