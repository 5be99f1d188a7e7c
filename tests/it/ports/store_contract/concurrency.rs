//! Several workers, APIs and processes use one database at once.

use super::*;

suite! {
    every_store: [
        many_workers_never_oversell_one_product,
        many_workers_never_oversell_crossing_products,
        orders_that_many_workers_decide_at_once_are_decided_once,
        concurrent_recounts_and_orders_lose_no_update,
        committed_data_survives_closing,
        several_stores_use_one_database_at_once,
        concurrent_changes_of_an_order_agree_on_one_status,
    ],
    sql_only: [],
}

/// Many workers decide at once, each its own batches.
async fn decide_at_once(store: &Arc<dyn Store>, work: Vec<Vec<Vec<NewOrder>>>) -> HashMap<OrderId, Verdict> {
    let mut workers = JoinSet::new();
    for batches in work {
        let store = store.clone();
        workers.spawn(async move {
            let mut verdicts = Vec::new();
            for batch in batches {
                verdicts.extend(batch.iter().map(|order| order.id).zip(decide(&*store, &batch).await));
            }
            verdicts
        });
    }
    let mut verdicts = HashMap::new();
    for (id, verdict) in workers.join_all().await.into_iter().flatten() {
        // All decisions on one order must agree.
        assert_eq!(*verdicts.entry(id).or_insert(verdict.clone()), verdict, "{id}");
    }
    verdicts
}

/// Asserts that exactly the accepted orders are stored, once each, as their verdicts say.
async fn assert_stored(database: &Database, verdicts: &HashMap<OrderId, Verdict>) {
    let mut stored = HashMap::new();
    for id in database.store.product_ids().await.unwrap() {
        for order in database.orders_of(id).await {
            assert_eq!(
                stored.insert(order.id, Verdict::on_stored(&order)),
                None,
                "{order:?} is stored twice"
            );
        }
    }
    let accepted = verdicts.iter().filter(|(_, verdict)| is_reserved(verdict));
    assert_eq!(stored, accepted.map(|(id, verdict)| (*id, verdict.clone())).collect());
    database.assert_balanced().await;
}

async fn many_workers_never_oversell_one_product(database: Database) {
    let id = database.product_of(300).await;
    let work = (0..8).map(|_| (0..10).map(|_| (0..10).map(|_| order(id, 1)).collect()).collect()).collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 800);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 300);
    assert_eq!(database.pieces(id).await, [300, 0, 300]);
    assert_stored(&database, &verdicts).await;
}

async fn many_workers_never_oversell_crossing_products(database: Database) {
    let mut products = Vec::new();
    for _ in 0..6 {
        products.push(database.product_of(60).await);
    }
    // Every worker goes through the products in another order, forwards or backwards, with gaps: a store that locks
    // rows in the order of the batch ends in a deadlock.
    let work = (0..8)
        .map(|worker: usize| {
            let mut own = products.clone();
            own.rotate_left(worker % 6);
            if worker % 2 == 1 {
                own.reverse();
            }
            let batch = |round: usize| {
                let gap = round % 6;
                own.iter()
                    .enumerate()
                    .filter(move |(at, _)| *at != gap)
                    .map(|(_, id)| order(*id, 1))
                    .collect()
            };
            (0..12).map(batch).collect()
        })
        .collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 8 * 12 * 5);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 6 * 60);
    for id in products {
        assert_eq!(database.pieces(id).await, [60, 0, 60]);
    }
    assert_stored(&database, &verdicts).await;
}

async fn orders_that_many_workers_decide_at_once_are_decided_once(database: Database) {
    let (shirt, hat) = (database.product_of(50).await, database.product_of(1_000).await);
    // As a failover of the broker can cause: several workers have the same messages, cut into different batches.
    let orders: Vec<NewOrder> =
        (0..120).map(|n| if n % 2 == 0 { order(shirt, 1) } else { order(hat, 1) }).collect();
    let work = [120, 40, 30, 24, 7, 120]
        .iter()
        .map(|size| orders.chunks(*size).map(<[_]>::to_vec).collect::<Vec<_>>())
        .collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 120);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 50 + 60);
    assert_eq!(database.pieces(shirt).await, [50, 0, 50]);
    assert_eq!(database.pieces(hat).await, [1_000, 940, 60]);
    assert_stored(&database, &verdicts).await;
}

async fn concurrent_recounts_and_orders_lose_no_update(database: Database) {
    let id = database.product_of(0).await;
    let seller = tokio::spawn({
        let store = database.store.clone();
        async move {
            let mut last = 0;
            for counted in (10..=400).step_by(10).chain([200, 399, 0, 400]) {
                match store.recount(id, stock(counted)).await {
                    Ok(Recount::Done(_, inventory)) => {
                        assert_eq!(inventory.stored(), counted);
                        last = counted;
                    }
                    Ok(Recount::BelowReserved(below)) => {
                        assert!(counted < below.reserved, "{counted}: {below:?}")
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
            last
        }
    });
    let work = (0..4).map(|_| (0..30).map(|_| (0..3).map(|_| order(id, 1)).collect()).collect()).collect();
    let verdicts = decide_at_once(&database.store, work).await;
    let counted = seller.await.unwrap();
    let reserved = verdicts.values().filter(|verdict| is_reserved(verdict)).count() as u32;
    assert_eq!(database.pieces(id).await, [counted, counted - reserved, reserved]);
    assert_stored(&database, &verdicts).await;
}

async fn committed_data_survives_closing(database: Database) {
    let id = database.product_of(5).await;
    let batch = [order(id, 3), detached_order(id, 100)];
    let verdicts = database.decide(&batch).await;
    let (product, orders) = (database.store.product(id).await.unwrap(), database.orders_of(id).await);
    database.store.close().await;
    let database = Database::at(database.home).await;
    assert_eq!(database.store.product(id).await.unwrap(), product);
    assert_eq!(database.pieces(id).await, [5, 2, 3]);
    assert_eq!(database.orders_of(id).await, orders);
    assert_eq!(database.decide(&batch).await, verdicts);
    assert!(database.product_of(1).await > id);
}

async fn several_stores_use_one_database_at_once(database: Database) {
    let id = database.product_of(30).await;
    let stores = join_all((0..4).map(|_| database.home.open())).await;
    let mut workers = JoinSet::new();
    for store in stores {
        workers.spawn(async move {
            let verdicts = decide(&*store, &std::array::from_fn::<_, 10, _>(|_| order(id, 1))).await;
            store.close().await;
            verdicts
        });
    }
    let verdicts = workers.join_all().await.concat();
    assert_eq!(accepted(&verdicts).iter().filter(|accepted| **accepted).count(), 30);
    assert_eq!(database.pieces(id).await, [30, 0, 30]);
    database.assert_balanced().await;
}

async fn concurrent_changes_of_an_order_agree_on_one_status(database: Database) {
    const ORDERS: u32 = 60;
    let id = database.product_of(ORDERS).await;
    let orders: Vec<NewOrder> = (0..ORDERS).map(|_| order(id, 1)).collect();
    assert_eq!(accepted(&database.settle_within(&commands(&orders), NO_TIME).await), [true; ORDERS as usize]);
    let changing: Vec<_> = [PAY, Change::Cancel, Change::Expire]
        .into_iter()
        .map(|change| {
            let mut changes: Vec<_> = orders.iter().map(|order| change_of(order, change.clone())).collect();
            if change != PAY {
                changes.reverse();
            }
            let store = database.store.clone();
            tokio::spawn(async move {
                let mut verdicts = Vec::new();
                for batch in changes.chunks(7) {
                    verdicts.extend(store.decide(batch, NO_TIME).await.unwrap().verdicts);
                }
                if change != PAY {
                    verdicts.reverse();
                }
                verdicts
            })
        })
        .collect();
    let verdicts: Vec<_> = join_all(changing).await.into_iter().map(Result::unwrap).collect();
    let mut paid = 0;
    for (number, order) in orders.iter().enumerate() {
        let status = database.status(order).await;
        paid += u32::from(status == OrderStatus::Paid);
        for answers in &verdicts {
            assert_eq!(answers[number], Expected::Now(status));
        }
    }
    assert_eq!(database.pieces(id).await, [ORDERS - paid, ORDERS - paid, 0]);
    database.assert_balanced().await;
}
