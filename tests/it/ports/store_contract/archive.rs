//! Products are changed and archived.

use super::*;

suite! {
    every_store: [
        a_product_is_changed_as_far_as_the_seller_says,
        a_sku_moves_from_one_product_to_another,
        of_those_who_want_to_have_one_sku_one_gets_it,
        an_archived_product_takes_no_new_orders,
        a_product_with_reservations_is_not_archived,
        archived_products_are_told_apart,
        orders_and_the_archive_agree_on_who_was_first,
        a_late_rejection_of_an_archived_product_is_stored,
    ],
    sql_only: [],
}

fn sku(text: &str) -> Sku {
    text.to_owned().try_into().unwrap()
}

fn rename(text: &str) -> ProductChange {
    ProductChange { name: Some(name(text)), sku: None }
}

fn with_sku(text: Option<&str>) -> ProductChange {
    ProductChange { name: None, sku: Some(text.map(sku)) }
}

#[track_caller]
fn updated(update: Update) -> Product {
    match update {
        Update::Done(product) => product,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn archived(archival: Archival) -> Product {
    match archival {
        Archival::Done(product) if product.archived_at.is_some() => product,
        other => panic!("{other:?}"),
    }
}

async fn a_product_is_changed_as_far_as_the_seller_says(database: Database) {
    let store = &database.store;
    let (id, other) = (database.product_of(5).await, database.product_of(1).await);
    let before = store.product(other).await.unwrap();
    let named = Product { id, name: name("'; ? 👕"), sku: None, archived_at: None };
    assert_eq!(updated(store.update(id, rename("'; ? 👕")).await.unwrap()), named);
    let with = Product { sku: Some(sku("A'?%")), ..named };
    assert_eq!(updated(store.update(id, with_sku(Some("A'?%"))).await.unwrap()), with);
    assert_eq!(updated(store.update(id, ProductChange::default()).await.unwrap()), with);
    assert_eq!(store.product(id).await.unwrap().as_ref(), Some(&with));
    let both = ProductChange { name: Some(name("Kaos Polos")), sku: Some(None) };
    let both = updated(store.update(id, both).await.unwrap());
    assert_eq!(both, Product { name: name("Kaos Polos"), sku: None, ..with });
    assert_eq!(store.update(stranger(), rename("Topi")).await.unwrap(), Update::NoSuchProduct);
    assert_eq!(store.update(stranger(), ProductChange::default()).await.unwrap(), Update::NoSuchProduct);
    assert_eq!(store.product(other).await.unwrap(), before);
    assert_eq!(database.pieces(id).await, [5, 5, 0]);
}

async fn a_sku_moves_from_one_product_to_another(database: Database) {
    let store = &database.store;
    let (shirt, cap) = (database.product_of(0).await, database.product_of(0).await);
    updated(store.update(shirt, with_sku(Some("A"))).await.unwrap());
    for change in [with_sku(Some("A")), ProductChange { name: Some(name("Topi")), ..with_sku(Some("A")) }] {
        assert_eq!(store.update(cap, change).await.unwrap(), Update::SkuTaken(shirt));
    }
    assert_eq!(store.product(cap).await.unwrap().unwrap().name, name("Kaos Polos"), "nothing of it is done");
    updated(store.update(shirt, with_sku(Some("A"))).await.unwrap());
    updated(store.update(shirt, with_sku(None)).await.unwrap());
    assert_eq!(updated(store.update(cap, with_sku(Some("A"))).await.unwrap()).sku, Some(sku("A")));
    // The refused ones have left no lock.
    assert_eq!(accepted(&database.decide(&[order(shirt, 1)]).await), [false]);
}

async fn of_those_who_want_to_have_one_sku_one_gets_it(database: Database) {
    let mut products = Vec::new();
    for _ in 0..8 {
        products.push(database.product_of(0).await);
    }
    for round in 0..10 {
        let text = format!("SKU-{round}");
        let wanted = products.iter().map(|id| database.store.update(*id, with_sku(Some(&text))));
        let results: Vec<_> = join_all(wanted).await.into_iter().map(Result::unwrap).collect();
        let winners = results.iter().filter(|one| matches!(one, Update::Done(_))).count();
        let [winner] = &database.store.products_by_sku(&[sku(&text)]).await.unwrap()[..] else {
            panic!("{results:?}")
        };
        let losers = results.iter().filter(|one| **one == Update::SkuTaken(winner.id)).count();
        assert_eq!((winners, losers), (1, 7), "{results:?}");
    }
}

async fn an_archived_product_takes_no_new_orders(database: Database) {
    let store = &database.store;
    let (shirt, cap) = (database.product_of(5).await, database.product_of(5).await);
    let [paid] = database.reserve(shirt, [2]).await;
    assert_eq!(database.change(&paid, PAY).await, PAID);
    let before = SystemClock.now();
    let product = archived(store.archive(shirt).await.unwrap());
    assert_eq!(archived(store.archive(shirt).await.unwrap()), product, "the time stays");
    let age = product.archived_at.unwrap().duration_since(before);
    assert!(age.abs() < SignedDuration::from_secs(60), "{age}");
    assert_eq!(store.product(shirt).await.unwrap().as_ref(), Some(&product));

    let not_found = Verdict::Rejected(Rejection::ProductNotFound { product_id: shirt });
    let orders = [order(shirt, 1), order(cap, 1), keyed(order(shirt, 9), "a-key"), detached_order(shirt, 1)];
    let verdicts = database.decide(&orders).await;
    assert_eq!([&verdicts[0], &verdicts[2], &verdicts[3]], [&not_found; 3]);
    assert!(is_reserved(&verdicts[1]));
    assert_eq!((database.pieces(shirt).await, database.pieces(cap).await), ([3, 3, 0], [5, 4, 1]));
    // Redelivered, and changed again: the stored order counts.
    assert!(is_reserved(&database.decide(slice::from_ref(&paid)).await[0]));
    assert_eq!(database.change(&paid, PAY).await, PAID);
    assert_eq!(store.recount(shirt, stock(9)).await.unwrap(), Recount::Archived);
    assert_eq!(store.recount_if(shirt, stock(9), Some(stock(4))).await.unwrap(), Recount::Archived);
    let adjustment = Adjustment { change: StockChange::new(1).unwrap(), reason: None, key: None };
    assert_eq!(store.adjust(shirt, &adjustment).await.unwrap(), Adjusted::Archived);
    assert_eq!(database.pieces(shirt).await, [3, 3, 0]);
    assert_eq!(updated(store.update(shirt, rename("Topi")).await.unwrap()).archived_at, product.archived_at);
    database.assert_balanced().await;
}

async fn a_product_with_reservations_is_not_archived(database: Database) {
    let store = &database.store;
    let id = database.product_of(5).await;
    let [first, second] = database.reserve(id, [1, 3]).await;
    assert_eq!(store.archive(id).await.unwrap(), Archival::HasReservations(4));
    assert_eq!(database.change(&first, PAY).await, PAID);
    assert_eq!(store.archive(id).await.unwrap(), Archival::HasReservations(3));
    assert_eq!(store.product(id).await.unwrap().unwrap().archived_at, None);
    assert_eq!(database.change(&second, Change::Cancel).await, CANCELLED);
    archived(store.archive(id).await.unwrap());
    assert_eq!(store.archive(stranger()).await.unwrap(), Archival::NoSuchProduct);
}

async fn archived_products_are_told_apart(database: Database) {
    let store = &database.store;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(database.product_of(0).await);
    }
    for id in [ids[1], ids[2], ids[5]] {
        archived(store.archive(id).await.unwrap());
    }
    let listed = async |archived, after, limit| {
        let page = store.products(archived, after, limit).await.unwrap();
        (page.rows.iter().map(|product| product.id).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(listed(false, None, 2).await, (vec![ids[0], ids[3]], Some(ids[3])));
    assert_eq!(listed(false, Some(ids[3]), 2).await, (vec![ids[4]], None));
    assert_eq!(listed(true, None, 2).await, (vec![ids[1], ids[2]], Some(ids[2])));
    assert_eq!(listed(true, Some(ids[2]), 2).await, (vec![ids[5]], None));
    assert_eq!(store.product_ids().await.unwrap(), ids);
    let page = store.inventories(None, 10).await.unwrap();
    assert_eq!(page.rows.iter().map(|(product, _)| product.id).collect::<Vec<_>>(), [ids[0], ids[3], ids[4]]);
    let states = store.states(&ids).await.unwrap();
    assert_eq!((states[&ids[0]], states[&ids[5]]), (ProductState::Live, ProductState::Archived));
    let closed = store.closed_to_orders(&ids, Duration::ZERO).await.unwrap();
    let sold_out: BTreeSet<_> = closed.into_iter().map(|(id, _)| id).collect();
    assert_eq!(sold_out, BTreeSet::from([ids[0], ids[3], ids[4]]), "nobody is told that it is sold out");
    let lanes = store.product_lanes().await.unwrap();
    let lanes: BTreeMap<_, _> = lanes.iter().map(|lane| (lane.product_id, lane.archived_for)).collect();
    assert_eq!((lanes.len(), lanes[&ids[0]]), (6, None));
    assert!(lanes[&ids[1]].unwrap() < Duration::from_secs(60), "{lanes:?}");
}

async fn orders_and_the_archive_agree_on_who_was_first(database: Database) {
    for _ in 0..20 {
        let id = database.product_of(10).await;
        let orders = [order(id, 1), order(id, 1)];
        let (verdicts, archival) = tokio::join!(database.decide(&orders), async {
            loop {
                match database.store.archive(id).await {
                    Ok(archival) => return archival,
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
        });
        let reserved = pieces_accepted(&orders, &verdicts);
        match archival {
            Archival::Done(_) => assert_eq!(reserved, 0, "{verdicts:?}"),
            Archival::HasReservations(pieces) => assert_eq!((pieces, reserved), (2, 2), "{verdicts:?}"),
            Archival::NoSuchProduct => panic!("it is there"),
        }
        database.assert_balanced().await;
    }
}

/// The client was answered 202 before: it looks for the verdict.
async fn a_late_rejection_of_an_archived_product_is_stored(database: Database) {
    let id = database.product_of(5).await;
    archived(database.store.archive(id).await.unwrap());
    let orders = [detached_order(id, 1), order(id, 1), keyed(detached_order(id, 2), "a-key")];
    for round in 0..2 {
        let not_found = Verdict::Rejected(Rejection::ProductNotFound { product_id: id });
        assert_eq!(database.decide(&orders).await, vec![not_found; 3], "{round}");
        for (order, is_stored) in orders.iter().zip([true, false, true]) {
            let stored = database.store.order(order.id).await.unwrap();
            assert_eq!(stored.map(|order| order.status()), is_stored.then_some(OrderStatus::Rejected));
        }
    }
}
