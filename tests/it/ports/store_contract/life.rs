//! Random commands of all kinds: the books balance after each step.

use super::*;

suite! {
    every_store: [
        any_sequence_of_commands_keeps_the_books_balanced,
    ],
    sql_only: [],
}

/// One step with two products.
#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Pick>),
    Recount { product: usize, counted: u32 },
}

#[derive(Clone, Debug)]
enum Pick {
    Place {
        product: usize,
        total: u32,
        key: Option<u8>,
        late: bool,
    },
    Change(Index, Change),
    /// A command of an earlier step, redelivered.
    Again(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = prop_oneof![2 => Just(None), 1 => (0_u8..5).prop_map(Some)];
    let change = prop_oneof![
        Just(PAY),
        Just(Change::Cancel),
        Just(Change::Expire),
        Just(Change::Return { restock: true }),
    ];
    let pick = prop_oneof![
        3 => (0..2_usize, 1_u32..8, key, any::<bool>())
            .prop_map(|(product, total, key, late)| Pick::Place { product, total, key, late }),
        3 => (any::<Index>(), change).prop_map(|(index, change)| Pick::Change(index, change)),
        1 => any::<Index>().prop_map(Pick::Again),
    ];
    let step = prop_oneof![
        4 => vec(pick, 0..10).prop_map(Step::Batch),
        1 => (0..2_usize, 0_u32..30).prop_map(|(product, counted)| Step::Recount { product, counted }),
    ];
    vec(step, 1..16)
}

async fn any_sequence_of_commands_keeps_the_books_balanced(database: Database) {
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    let round = std::cell::Cell::new(0_u32);
    block_in_place(|| {
        let history = |steps| {
            round.set(round.get() + 1);
            runtime.block_on(live(&database, round.get(), steps));
            Ok(())
        };
        TestRunner::new(config).run(&steps(), history).unwrap_or_else(|error| panic!("{error}"));
    });
}

/// After every step the inventories agree with the stored orders, an order goes along the arrows of its life, a key is one
/// order, and every answer agrees with what is stored afterwards.
async fn live(database: &Database, round: u32, steps: Vec<Step>) {
    let products = [database.product_of(0).await, database.product_of(0).await];
    let mut counted = [0_u32; 2];
    let mut paid_since = [0_i64; 2];
    let (mut given, mut placed): (Vec<Command>, Vec<NewOrder>) = (Vec::new(), Vec::new());
    let mut known: BTreeMap<OrderId, Order> = BTreeMap::new();
    for step in steps {
        let batch = match step {
            Step::Recount { product, counted: pieces } => {
                let done = database.store.recount(products[product], stock(pieces)).await.unwrap();
                if done.done().is_some() {
                    (counted[product], paid_since[product]) = (pieces, 0);
                }
                continue;
            }
            Step::Batch(picks) => {
                let mut batch: Vec<Command> = Vec::new();
                for pick in picks {
                    let command = match pick {
                        Pick::Place { product, total, key, late } => {
                            let order = if late { detached_order } else { order }(products[product], total);
                            let key = key.map(|key| self::key(&format!("{round}-{key}")));
                            placed.push(NewOrder { key, ..order });
                            placed[placed.len() - 1].clone().into()
                        }
                        Pick::Change(_, _) if placed.is_empty() => continue,
                        Pick::Change(index, change) => change_of(index.get(&placed), change),
                        Pick::Again(_) if given.is_empty() => continue,
                        Pick::Again(index) => index.get(&given).clone(),
                    };
                    batch.push(command.clone());
                    given.push(command);
                }
                batch
            }
        };
        // About half of all reservations are due at once.
        let rules = if batch.len().is_multiple_of(2) { NO_TIME } else { TTL };
        let late_payment =
            if batch.len().is_multiple_of(3) { LatePayment::Refuse } else { LatePayment::Accept };
        let rules = Rules { late_payment, ..rules };
        let verdicts = database.store.decide(&batch, rules).await.unwrap().verdicts;
        assert_eq!(verdicts.len(), batch.len());
        let stored_orders: BTreeMap<OrderId, Order> =
            [database.orders_of(products[0]).await, database.orders_of(products[1]).await]
                .concat()
                .into_iter()
                .map(|order| (order.id, order))
                .collect();
        for (id, before) in &known {
            let after = &stored_orders[id];
            assert!(before == after || may_become(before, after), "{before:?} {after:?}");
        }
        for (command, verdict) in batch.iter().zip(&verdicts) {
            match (command, verdict) {
                (Command::Place(order), Verdict::Reserved { .. }) => {
                    assert_eq!(Verdict::on_stored(&stored_orders[&order.id]), *verdict);
                }
                (Command::Place(order), Verdict::AlreadyPlaced(known)) => {
                    assert_eq!(known.lines.as_ref(), Some(&order.lines));
                    assert_eq!(Verdict::on_stored(&stored_orders[&known.id]), Verdict::on_stored(known));
                }
                (Command::Place(_), Verdict::Rejected(_)) => {}
                (Command::Change(change), Verdict::Current(order)) => {
                    // In the same batch it may have changed later.
                    let now = &stored_orders[&change.order_id];
                    assert!(order == now || may_become(order, now), "{order:?}, {now:?}");
                }
                (Command::Change(change), Verdict::OrderNotFound) => {
                    let was_known = known.contains_key(&change.order_id);
                    assert!(!was_known, "{change:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        for (product, id) in products.iter().enumerate() {
            let of = |status| -> i64 {
                let orders = stored_orders
                    .values()
                    .filter(|order| order.lane() == Some(*id) && order.status() == status);
                orders.map(|order| i64::from(order.lines.as_ref().unwrap().first().total.get())).sum()
            };
            let before: i64 = known
                .values()
                .filter(|order| order.lane() == Some(*id) && order.status() == OrderStatus::Paid)
                .map(|order| i64::from(order.lines.as_ref().unwrap().first().total.get()))
                .sum();
            paid_since[product] += of(OrderStatus::Paid) - before;
            let stored = i64::from(counted[product]) - paid_since[product];
            let reserved = of(OrderStatus::Reserved);
            let pieces = database.pieces(*id).await.map(i64::from);
            assert_eq!(pieces, [stored, stored - reserved, reserved]);
        }
        known = stored_orders;
    }
}

/// Whether an order can become another one, in some steps of its life.
fn may_become(before: &Order, after: &Order) -> bool {
    use OrderStatus::{Expired, Paid, Rejected, Reserved, Returned};
    let is_same = |a: &Order, b: &Order| (a.id, &a.lines, &a.buyer) == (b.id, &b.lines, &b.buyer);
    let is_paid = |order: &Order| order.payment.is_some();
    is_same(before, after)
        && before.expires_at() == after.expires_at()
        && match (before.status(), after.status()) {
            (Rejected, _) | (_, Rejected) => false,
            (Reserved, _) => true,
            // Too late, or not: either is for ever.
            (Expired, Expired | Paid | Returned) => !is_paid(before) && is_paid(after),
            (Paid, Returned) => before.payment == after.payment,
            _ => false,
        }
}
