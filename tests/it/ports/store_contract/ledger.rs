//! The seller's changes of stock, and the ledger: the sum of a product's movements is its stored stock, always.

use super::*;

suite! {
    every_store: [
        a_recount_that_changes_the_stock_is_a_movement,
        a_recount_that_expects_another_stock_changes_nothing,
        an_adjustment_moves_the_stock_by_a_difference,
        an_adjustment_that_is_not_possible_changes_nothing,
        an_adjustment_with_a_key_has_one_effect,
        parallel_adjustments_with_one_key_move_once,
        payments_are_one_movement_for_each_product_and_batch,
        a_paid_basket_is_a_movement_of_each_product,
        the_opening_stock_is_a_movement,
        movements_are_paged_the_newest_first,
        restocking_during_a_sale_agrees_to_the_piece,
        any_operations_keep_the_ledger_equal_to_the_stock,
    ],
    sql_only: [
        a_batch_without_payments_writes_no_movement,
        a_movement_that_was_changed_by_hand_is_left_out,
    ],
}

fn adjustment(change: i64) -> Adjustment {
    Adjustment { change: StockChange::new(change).unwrap(), reason: None, key: None }
}

fn keyed_adjustment(change: i64, key: &str) -> Adjustment {
    Adjustment { key: Some(self::key(key)), ..adjustment(change) }
}

fn reason(text: &str) -> MovementReason {
    text.to_owned().try_into().unwrap()
}

/// Kind, change, orders, and the stored stock after it.
fn facts(entry: &LedgerEntry) -> (&'static str, i64, u32, i64) {
    let Movement { kind, change, orders, stored_stock, .. } = &entry.movement;
    (kind.as_str(), *change, *orders, *stored_stock)
}

impl Database {
    /// The movements of a product, the oldest first, fetched page by page.
    async fn ledger_of(&self, id: ProductId) -> Vec<LedgerEntry> {
        let (mut entries, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.movements(id, after, 100).await.unwrap();
            entries.extend(page.rows);
            after = page.next;
            if after.is_none() {
                entries.reverse();
                return entries;
            }
        }
    }

    async fn facts_of(&self, id: ProductId) -> Vec<(&'static str, i64, u32, i64)> {
        self.ledger_of(id).await.iter().map(facts).collect()
    }

    /// Asserts that the movements of a product lead from nothing to its stored stock, one after the other.
    #[track_caller]
    pub(super) fn assert_ledger(&self, id: ProductId) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let (mut stored, mut last) = (0, None);
            for entry in self.ledger_of(id).await {
                let movement = &entry.movement;
                assert!(last < Some(entry.seq), "{entry:?} after {last:?}, seen from {caller}");
                assert_eq!(movement.product_id, id);
                stored += movement.change;
                assert_eq!(movement.stored_stock, stored, "{entry:?}, seen from {caller}");
                last = Some(entry.seq);
            }
            let [now, ..] = self.pieces(id).await;
            assert_eq!(i64::from(now), stored, "of product {id}, seen from {caller}");
        }
    }
}

async fn a_recount_that_changes_the_stock_is_a_movement(database: Database) {
    let before = SystemClock.now().as_second() - 5;
    let (id, other) = (database.product_of(10).await, database.product_of(0).await);
    for counted in [10, 7, 7, 0, 12] {
        database.store.recount(id, stock(counted)).await.unwrap().done().unwrap();
    }
    let expected =
        [("recount", 10, 0, 10), ("recount", -3, 0, 7), ("recount", -7, 0, 0), ("recount", 12, 0, 12)];
    assert_eq!(database.facts_of(id).await, expected);
    assert_eq!(database.facts_of(other).await, []);
    for entry in database.ledger_of(id).await {
        let at = entry.movement.at.as_second();
        assert!((before..before + 65).contains(&at), "{entry:?}");
        assert_eq!(entry.movement.reason, None);
    }
    database.assert_balanced().await;
}

async fn a_recount_that_expects_another_stock_changes_nothing(database: Database) {
    let id = database.product_of(10).await;
    let [paid, _] = database.reserve(id, [3, 2]).await;
    assert_eq!(database.change(&paid, PAY).await, PAID);
    let recount = async |counted, expected| {
        database.store.recount_if(id, stock(counted), Some(stock(expected))).await.unwrap()
    };
    assert_eq!(recount(15, 10).await, Recount::StockChanged { stored: 7 });
    // What is expected is compared first.
    assert_eq!(recount(0, 10).await, Recount::StockChanged { stored: 7 });
    assert_eq!(recount(1, 7).await, Recount::BelowReserved(StockBelowReserved { reserved: 2 }));
    assert_eq!(database.pieces(id).await, [7, 5, 2]);
    assert!(recount(12, 7).await.done().is_some());
    assert_eq!(recount(12, 7).await, Recount::StockChanged { stored: 12 });
    assert_eq!(database.pieces(id).await, [12, 10, 2]);
    assert_eq!(
        database.store.recount_if(stranger(), stock(1), Some(stock(0))).await.unwrap(),
        Recount::NoSuchProduct
    );
    let expected = [("recount", 10, 0, 10), ("sale", -3, 1, 7), ("recount", 5, 0, 12)];
    assert_eq!(database.facts_of(id).await, expected);
}

async fn an_adjustment_moves_the_stock_by_a_difference(database: Database) {
    let id = database.product_of(10).await;
    database.reserve(id, [4]).await;
    let longest = "é".repeat(MovementReason::MAX_LENGTH);
    for (change, why, expected) in [
        (-3, Some("damaged"), [7, 3, 4]),
        (5, None, [12, 8, 4]),
        (-8, Some(longest.as_str()), [4, 0, 4]),
        (1, Some("\"'\\ %_?:x$1 🦀"), [5, 1, 4]),
    ] {
        let adjusted = Adjustment { reason: why.map(reason), ..adjustment(change) };
        let Adjusted::Done(entry, inventory) = database.store.adjust(id, &adjusted).await.unwrap() else {
            panic!("{change} is not possible")
        };
        assert_eq!([inventory.stored(), inventory.available(), inventory.reserved()], expected);
        assert_eq!(database.pieces(id).await, expected);
        assert_eq!(facts(&entry), ("adjustment", change, 0, i64::from(expected[0])));
        assert_eq!(entry.movement.reason, why.map(reason));
        assert_eq!(database.ledger_of(id).await.last(), Some(&entry));
    }
    database.assert_balanced().await;
}

async fn an_adjustment_that_is_not_possible_changes_nothing(database: Database) {
    let id = database.product_of(10).await;
    database.reserve(id, [4]).await;
    let max = i64::from(Stock::MAX);
    let below = InvalidAdjustment::BelowReserved(StockBelowReserved { reserved: 4 });
    let above = InvalidAdjustment::AboveMaximum(StockAboveMaximum { stored: 10 });
    for (change, why) in [(-7, below), (-max, below), (max - 9, above), (max, above)] {
        let refused = database.store.adjust(id, &keyed_adjustment(change, "a-key")).await.unwrap();
        assert_eq!(refused, Adjusted::Invalid(why), "{change}");
    }
    assert_eq!(database.store.adjust(stranger(), &adjustment(1)).await.unwrap(), Adjusted::NoSuchProduct);
    assert_eq!(database.pieces(id).await, [10, 6, 4]);
    assert_eq!(database.facts_of(id).await, [("recount", 10, 0, 10)]);
    // A refused one has not used its key, and left no lock behind.
    let done = database.store.adjust(id, &keyed_adjustment(max - 10, "a-key")).await.unwrap();
    assert!(matches!(done, Adjusted::Done(..)), "{done:?}");
    assert_eq!(database.pieces(id).await, [Stock::MAX, Stock::MAX - 4, 4]);
    database.assert_balanced().await;
}

async fn an_adjustment_with_a_key_has_one_effect(database: Database) {
    let store = &database.store;
    let (id, other) = (database.product_of(10).await, database.product_of(10).await);
    let first = Adjustment { reason: Some(reason("damaged")), ..keyed_adjustment(-3, "a-key") };
    let Adjusted::Done(entry, _) = store.adjust(id, &first).await.unwrap() else { panic!("not possible") };
    store.recount(id, stock(3)).await.unwrap().done().unwrap();
    for _ in 0..3 {
        assert_eq!(store.adjust(id, &first).await.unwrap(), Adjusted::Before(entry.clone()));
    }
    let others = [
        Adjustment { reason: None, ..first.clone() },
        Adjustment { reason: Some(reason("lost")), ..first.clone() },
        Adjustment { change: StockChange::new(3).unwrap(), ..first.clone() },
        Adjustment { change: StockChange::new(-100).unwrap(), ..first.clone() },
    ];
    for other in &others {
        assert_eq!(store.adjust(id, other).await.unwrap(), Adjusted::KeyReused, "{other:?}");
    }
    assert_eq!(store.adjust(other, &first).await.unwrap(), Adjusted::KeyReused);
    assert_eq!(database.pieces(id).await, [3, 3, 0]);
    assert_eq!(database.pieces(other).await, [10, 10, 0]);
    // Upper and lower case are two keys, and an order's key is another's.
    assert!(matches!(store.adjust(id, &keyed_adjustment(-3, "A-key")).await.unwrap(), Adjusted::Done(..)));
    assert_eq!(accepted(&database.decide(&[keyed(order(other, 1), "a-key")]).await), [true]);
    assert!(matches!(
        store.adjust(id, &keyed_adjustment(5, &"k".repeat(255))).await.unwrap(),
        Adjusted::Done(..)
    ));
    database.assert_balanced().await;
}

async fn parallel_adjustments_with_one_key_move_once(database: Database) {
    for round in 0..5 {
        let products = [database.product_of(100).await, database.product_of(100).await];
        let adjusted = keyed_adjustment(-7, &format!("key-{round}"));
        let requests = (0..20).map(|n| {
            let (store, adjusted, id) = (database.store.clone(), adjusted.clone(), products[n % 2]);
            tokio::spawn(async move {
                let deadline = Instant::now() + DEADLINE;
                loop {
                    match store.adjust(id, &adjusted).await {
                        Ok(answer) => return (id, answer),
                        Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error}"),
                    }
                }
            })
        });
        let answers: Vec<_> =
            join_all(requests.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
        let done = answers.iter().filter_map(|(id, answer)| match answer {
            Adjusted::Done(entry, _) => Some((*id, entry.clone())),
            _ => None,
        });
        let [(winner, entry)] = &done.collect::<Vec<_>>()[..] else { panic!("{answers:?}") };
        for (id, answer) in &answers {
            match answer {
                Adjusted::Done(..) => {}
                answer if id == winner => assert_eq!(answer, &Adjusted::Before(entry.clone())),
                answer => assert_eq!(answer, &Adjusted::KeyReused),
            }
        }
        for id in products {
            let stored = if id == *winner { 93 } else { 100 };
            assert_eq!(database.pieces(id).await, [stored, stored, 0]);
        }
    }
    database.assert_balanced().await;
}

async fn payments_are_one_movement_for_each_product_and_batch(database: Database) {
    let (shirt, hat) = (database.product_of(20).await, database.product_of(20).await);
    let [a, b, c, d] = database.reserve(shirt, [1, 2, 3, 4]).await;
    let [e, f] = database.reserve(hat, [5, 6]).await;
    let pay = |order| change_of(order, PAY);
    // Twice in one batch, and again later: paid once.
    let batch = [pay(&a), pay(&e), pay(&b), pay(&a), change_of(&c, Change::Cancel), order(shirt, 1).into()];
    database.settle(&batch).await;
    database.settle(&batch).await;
    database.settle(&[pay(&d), change_of(&f, Change::Expire)]).await;
    let expected = [("recount", 20, 0, 20), ("sale", -3, 2, 17), ("sale", -4, 1, 13)];
    assert_eq!(database.facts_of(shirt).await, expected);
    assert_eq!(database.facts_of(hat).await, [("recount", 20, 0, 20), ("sale", -5, 1, 15)]);
    database.assert_balanced().await;
}

/// An order with these lines.
fn basket<const N: usize>(lines: [(ProductId, u32); N]) -> NewOrder {
    let line = |(product_id, total)| Line { product_id, total: Quantity::new(total).unwrap() };
    let lines: Vec<_> = lines.into_iter().map(line).collect();
    NewOrder { lines: lines.try_into().unwrap(), ..order(stranger(), 1) }
}

async fn a_paid_basket_is_a_movement_of_each_product(database: Database) {
    let (shirt, hat) = (database.product_of(20).await, database.product_of(20).await);
    let orders = [basket([(shirt, 1), (hat, 2)]), basket([(hat, 3), (shirt, 4)]), order(hat, 5)];
    assert_eq!(accepted(&database.decide(&orders).await), [true; 3]);
    let pay: Vec<_> = orders.iter().map(|order| change_of(order, PAY)).collect();
    database.settle(&pay).await;
    assert_eq!(database.facts_of(shirt).await, [("recount", 20, 0, 20), ("sale", -5, 2, 15)]);
    assert_eq!(database.facts_of(hat).await, [("recount", 20, 0, 20), ("sale", -10, 3, 10)]);
    database.assert_balanced().await;
}

async fn the_opening_stock_is_a_movement(database: Database) {
    let new = |pieces| NewProduct { name: name("Kaos Polos"), sku: None, stock: stock(pieces) };
    for (pieces, expected) in [(7, vec![("recount", 7, 0, 7)]), (0, vec![])] {
        let Creation::Done(product) = database.store.create(new(pieces)).await.unwrap() else {
            panic!("a product without a SKU")
        };
        assert_eq!(database.facts_of(product.id).await, expected);
        for entry in database.ledger_of(product.id).await {
            assert_eq!(entry.movement.reason, Some(reason(MovementReason::OPENING_BALANCE)));
        }
    }
    database.assert_balanced().await;
}

async fn movements_are_paged_the_newest_first(database: Database) {
    let (id, other) = (database.product_of(0).await, database.product_of(0).await);
    for change in 1..=7 {
        for product in [id, other] {
            database.store.adjust(product, &adjustment(change)).await.unwrap();
        }
    }
    let mut all = database.ledger_of(id).await;
    all.reverse();
    assert_eq!(all.iter().map(|entry| entry.movement.change).collect::<Vec<_>>(), [7, 6, 5, 4, 3, 2, 1]);
    let page = async |after, limit| {
        let page = database.store.movements(id, after, limit).await.unwrap();
        (page.rows, page.next)
    };
    let seq = |index: usize| Some(all[index].seq);
    assert_eq!(page(None, 3).await, (all[..3].to_vec(), seq(2)));
    assert_eq!(page(seq(2), 3).await, (all[3..6].to_vec(), seq(5)));
    assert_eq!(page(seq(5), 3).await, (all[6..].to_vec(), None));
    assert_eq!(page(seq(6), 3).await, (vec![], None));
    assert_eq!(page(None, 7).await, (all.clone(), None));
    assert_eq!(page(MovementSeq::new(ProductId::MAX), 100).await, (all.clone(), None));
    assert_eq!(database.store.movements(stranger(), None, 10).await.unwrap(), Page::empty());
}

/// The seller adds and removes pieces while buyers order, pay, and give up. Nothing is lost, and nothing comes out of nothing.
async fn restocking_during_a_sale_agrees_to_the_piece(database: Database) {
    const BUYERS: u32 = 4;
    let id = database.product_of(20).await;
    let seller = tokio::spawn({
        let store = database.store.clone();
        async move {
            let mut added = 0;
            for round in 0_i64..60 {
                let change = if round % 3 == 2 { -2 } else { 5 };
                let adjusted = keyed_adjustment(change, &format!("delivery-{round}"));
                // As a seller whose connection was lost: once more, with the same key.
                for _ in 0..2 {
                    let deadline = Instant::now() + DEADLINE;
                    loop {
                        match store.adjust(id, &adjusted).await {
                            Ok(Adjusted::Done(..)) => added += change,
                            Ok(Adjusted::Before(_) | Adjusted::Invalid(_)) => {}
                            Ok(other) => panic!("{other:?}"),
                            Err(error) if error.is_transient() && Instant::now() < deadline => continue,
                            Err(error) => panic!("{error}"),
                        }
                        break;
                    }
                }
            }
            added
        }
    });
    let buyers = (0..BUYERS).map(|_| {
        let store = database.store.clone();
        tokio::spawn(async move {
            let mut paid = 0;
            for round in 0..40_u32 {
                let orders = [1, 2, 1].map(|total| order(id, total));
                let verdicts = decide(&*store, &orders).await;
                let change = if round % 4 == 3 { Change::Cancel } else { PAY };
                let reserved: Vec<_> = orders
                    .iter()
                    .zip(&verdicts)
                    .filter(|(_, verdict)| is_reserved(verdict))
                    .map(|(order, _)| (order, change_of(order, change.clone())))
                    .collect();
                let changes: Vec<_> = reserved.iter().map(|(_, change)| change.clone()).collect();
                let deadline = Instant::now() + DEADLINE;
                while let Err(error) = store.decide(&changes, TTL).await {
                    assert!(error.is_transient() && Instant::now() < deadline, "{error}");
                }
                if change == PAY {
                    let lines = reserved.iter().flat_map(|(order, _)| order.lines.as_slice());
                    paid += lines.map(|line| i64::from(line.total.get())).sum::<i64>();
                }
            }
            paid
        })
    });
    let buyers = join_all(buyers.collect::<Vec<_>>()).await;
    let paid: i64 = buyers.into_iter().map(Result::unwrap).sum();
    let added = seller.await.unwrap();
    let stored = u32::try_from(20 + added - paid).unwrap();
    assert_eq!(database.pieces(id).await, [stored, stored, 0]);
    let of_kind = |ledger: &[LedgerEntry], kind: MovementKind| -> i64 {
        let of_kind = ledger.iter().map(|entry| &entry.movement).filter(|movement| movement.kind == kind);
        of_kind.map(|movement| movement.change).sum()
    };
    let ledger = database.ledger_of(id).await;
    assert_eq!(of_kind(&ledger, MovementKind::Sale), -paid);
    assert_eq!(of_kind(&ledger, MovementKind::Adjustment), added);
    assert!(paid > 0 && added > 0, "{paid} {added}");
    database.assert_balanced().await;
}

/// One step with two products.
#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Pick>),
    Recount { product: usize, counted: u32, expected: Option<u32> },
    Adjust { product: usize, change: i64, key: Option<u8> },
}

#[derive(Clone, Debug)]
enum Pick {
    Place { product: usize, total: u32, key: Option<u8>, is_basket: bool },
    Change(Index, Change),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || prop_oneof![2 => Just(None), 1 => (0_u8..5).prop_map(Some)];
    let change = prop_oneof![3 => Just(PAY), 1 => Just(Change::Cancel), 1 => Just(Change::Expire)];
    let pick = prop_oneof![
        1 => (0..2_usize, 1_u32..8, key(), any::<bool>())
            .prop_map(|(product, total, key, is_basket)| Pick::Place { product, total, key, is_basket }),
        1 => (any::<Index>(), change).prop_map(|(index, change)| Pick::Change(index, change)),
    ];
    let expected = prop_oneof![2 => Just(None), 1 => (0_u32..30).prop_map(Some)];
    let step = prop_oneof![
        4 => vec(pick, 0..10).prop_map(Step::Batch),
        1 => (0..2_usize, 0_u32..30, expected)
            .prop_map(|(product, counted, expected)| Step::Recount { product, counted, expected }),
        2 => (0..2_usize, 1_i64..12, any::<bool>(), key()).prop_map(|(product, pieces, adds, key)| Step::Adjust {
            product,
            change: if adds { pieces } else { -pieces },
            key,
        }),
    ];
    vec(step, 1..16)
}

async fn any_operations_keep_the_ledger_equal_to_the_stock(database: Database) {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    let round = std::cell::Cell::new(0_u32);
    block_in_place(|| {
        let history = |steps| {
            round.set(round.get() + 1);
            runtime.block_on(operate(&database, round.get(), steps));
            Ok(())
        };
        TestRunner::new(config).run(&steps(), history).unwrap_or_else(|error| panic!("{error}"));
    });
}

async fn operate(database: &Database, round: u32, steps: Vec<Step>) {
    let products = [database.product_of(20).await, database.product_of(0).await];
    let mut placed: Vec<NewOrder> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Recount { product, counted, expected } => {
                let expected = expected.map(stock);
                database.store.recount_if(products[product], stock(counted), expected).await.unwrap();
            }
            Step::Adjust { product, change, key } => {
                let key = key.map(|key| self::key(&format!("{round}-{key}")));
                let adjusted = Adjustment { key, ..adjustment(change) };
                let [before, ..] = database.pieces(products[product]).await;
                let answer = database.store.adjust(products[product], &adjusted).await.unwrap();
                let moved = if matches!(answer, Adjusted::Done(..)) { change } else { 0 };
                let [after, ..] = database.pieces(products[product]).await;
                assert_eq!(i64::from(after), i64::from(before) + moved, "{answer:?}");
            }
            Step::Batch(picks) => {
                let mut batch: Vec<Command> = Vec::new();
                for pick in picks {
                    batch.push(match pick {
                        Pick::Place { product, total, key, is_basket } => {
                            let key = key.map(|key| self::key(&format!("{round}-{key}")));
                            let (id, other) = (products[product], products[1 - product]);
                            let order =
                                if is_basket { basket([(id, total), (other, 1)]) } else { order(id, total) };
                            placed.push(NewOrder { key, ..order });
                            placed[placed.len() - 1].clone().into()
                        }
                        Pick::Change(..) if placed.is_empty() => continue,
                        Pick::Change(index, change) => change_of(index.get(&placed), change),
                    });
                }
                let ttl = if number % 2 == 0 { NO_TIME } else { TTL };
                database.settle_within(&batch, ttl).await;
            }
        }
        for id in products {
            database.assert_ledger(id).await;
        }
    }
}

async fn a_batch_without_payments_writes_no_movement(database: Database) {
    let id = database.product_of(10).await;
    let [paid, cancelled] = database.reserve(id, [1, 2]).await;
    database.by_hand(&database.home.refuse("INSERT", "movements")).await.unwrap();
    assert_eq!(database.change(&cancelled, Change::Cancel).await, CANCELLED);
    assert_eq!(accepted(&database.decide(&[order(id, 3)]).await), [true]);
    assert_eq!(database.store.recount(id, stock(10)).await.unwrap().done().unwrap().1.stored(), 10);
    // The trigger works: a payment whose movement cannot be written is not made.
    assert_eq!(database.change(&paid, PAY).await, Verdict::Undecidable);
    assert!(!database.store.recount(id, stock(11)).await.unwrap_err().is_transient());
    assert!(!database.store.adjust(id, &adjustment(1)).await.unwrap_err().is_transient());
    assert_eq!(database.pieces(id).await, [10, 6, 4]);
    database.by_hand("DROP TRIGGER refuse_INSERT_movements").await.unwrap();
    assert_eq!(database.change(&paid, PAY).await, PAID);
    database.assert_balanced().await;
}

async fn a_movement_that_was_changed_by_hand_is_left_out(database: Database) {
    let id = database.product_of(10).await;
    let Adjusted::Done(entry, _) = database.store.adjust(id, &keyed_adjustment(-1, "a-key")).await.unwrap()
    else {
        panic!("not possible")
    };
    let by_hand = format!("UPDATE movements SET reason = ' ' WHERE seq = {}", entry.seq);
    database.by_hand(&by_hand).await.unwrap();
    assert_eq!(database.facts_of(id).await, [("recount", 10, 0, 10)]);
    // By its key it is found, and is an error.
    let error = database.store.adjust(id, &keyed_adjustment(-1, "a-key")).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("an invalid reason"), "{error}");
    for wrong in ["kind = 'theft'", "stock_change = 0", "order_count = -1", "stored_stock = -1"] {
        assert!(database.by_hand(&format!("UPDATE movements SET {wrong}")).await.is_err(), "{wrong}");
    }
}
