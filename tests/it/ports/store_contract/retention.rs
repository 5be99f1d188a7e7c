//! Deleting orders that are final and old.

use antre::store::{
    Deleted,
    retention::{MIN_AGE, Mode, Pass},
};
use uuid::{NoContext, Uuid};

use super::*;

suite! {
    every_store: [
        old_final_orders_are_deleted_with_all_that_names_them,
        what_is_not_final_stays_with_its_key,
        the_age_counts_by_the_clock_of_the_database,
        orders_are_examined_in_steps,
        passes_at_the_same_time_delete_each_order_once,
        a_key_that_is_repeated_while_its_order_is_deleted_leaves_nothing_behind,
    ],
    sql_only: [],
}

/// An order that was created this long ago.
fn old(order: NewOrder, age: Duration) -> NewOrder {
    let created = SystemClock.now().as_duration().unsigned_abs() - age;
    let time = uuid::Timestamp::from_unix(NoContext, created.as_secs(), created.subsec_nanos());
    NewOrder { id: OrderId::with_checksum(Uuid::new_v7(time)), ..order }
}

const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

async fn pass(database: &Database, age: Duration, mode: Mode) -> Deleted {
    let mut pass = Pass::begin(&*database.store, age, mode).await.unwrap();
    while pass.step().await.unwrap().is_some() {}
    pass.deleted()
}

/// Deletes as the tool does: tries again while others hold the rows.
async fn patient_pass(store: Arc<dyn Store>, age: Duration) -> Deleted {
    let mut pass = Pass::begin(&*store, age, Mode::Delete).await.unwrap();
    loop {
        match pass.step().await {
            Ok(None) => return pass.deleted(),
            Ok(Some(_)) => {}
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

fn deleted(orders: u64, idempotency_keys: u64, aliases: u64) -> Deleted {
    Deleted { orders, idempotency_keys, aliases }
}

async fn old_final_orders_are_deleted_with_all_that_names_them(database: Database) {
    let id = database.product_of(10).await;
    let [paid, cancelled, expired] =
        [1, 2, 3].map(|number| keyed(old(order(id, 1), 2 * MONTH), &format!("buyer-{number}")));
    let rejected = keyed(old(detached_order(id, 100), 2 * MONTH), "buyer-4");
    let recent = keyed(order(id, 1), "buyer-5");
    let all = [paid.clone(), cancelled.clone(), rejected.clone(), recent.clone()];
    database.decide(&all).await;
    database.settle_within(&commands(slice::from_ref(&expired)), NO_TIME).await;
    // An alias is as new as its order is old.
    let alias = keyed(detached_order(id, 1), "buyer-1");
    database.decide(slice::from_ref(&alias)).await;
    for (order, change) in
        [(&paid, PAY), (&recent, PAY), (&cancelled, Change::Cancel), (&expired, Change::Expire)]
    {
        database.change(order, change).await;
    }
    assert_eq!(database.store.order(alias.id).await.unwrap().unwrap().id, paid.id);

    assert_eq!(pass(&database, 3 * MONTH, Mode::Delete).await, Deleted::default());
    assert_eq!(pass(&database, MONTH, Mode::Count).await, deleted(4, 0, 0));
    assert_eq!(database.orders_of(id).await.len(), 5);
    assert_eq!(pass(&database, MONTH, Mode::Delete).await, deleted(4, 4, 1));
    assert_eq!(pass(&database, MONTH, Mode::Delete).await, Deleted::default());
    assert_eq!(database.orders_of(id).await.iter().map(|order| order.id).collect::<Vec<_>>(), [recent.id]);
    for gone in [&paid, &cancelled, &expired, &rejected, &alias] {
        assert_eq!(database.store.order(gone.id).await.unwrap(), None);
    }
    let keys = [1, 2, 3, 4, 5].map(|number| key(&format!("buyer-{number}")));
    let known = database.store.orders_by_key(&keys).await.unwrap();
    assert_eq!(known.into_keys().collect::<Vec<_>>(), [key("buyer-5")]);
    // Its key places a new order, and a change finds no order.
    let again = keyed(order(id, 1), "buyer-1");
    assert_eq!(accepted(&database.decide(&[again]).await), [true]);
    assert_eq!(database.change(&paid, PAY).await, Verdict::OrderNotFound);
    assert_eq!(database.pieces(id).await, [8, 7, 1]);
    database.assert_balanced().await;
}

async fn what_is_not_final_stays_with_its_key(database: Database) {
    let id = database.product_of(10).await;
    let (reserved, paid) =
        (keyed(old(order(id, 2), MONTH), "buyer-1"), keyed(old(order(id, 1), MONTH), "buyer-2"));
    database.decide(&[reserved.clone(), paid.clone()]).await;
    database.change(&paid, PAY).await;
    let ids = [reserved.id, SystemClock.order_id(), paid.id, paid.id];
    assert_eq!(database.store.delete_orders(&ids).await.unwrap(), deleted(1, 1, 0));
    assert_eq!(database.store.delete_orders(&ids).await.unwrap(), Deleted::default());
    assert_eq!(database.store.delete_orders(&[]).await.unwrap(), Deleted::default());
    assert_eq!(database.status(&reserved).await, OrderStatus::Reserved);
    let known = database.store.orders_by_key(&[key("buyer-1"), key("buyer-2")]).await.unwrap();
    assert_eq!(known.into_keys().collect::<Vec<_>>(), [key("buyer-1")]);
    assert_eq!(database.change(&reserved, PAY).await, PAID);
    assert_eq!(pass(&database, MIN_AGE, Mode::Delete).await, deleted(1, 1, 0));
    database.assert_balanced().await;
}

async fn the_age_counts_by_the_clock_of_the_database(database: Database) {
    let id = database.product_of(10).await;
    let minute = Duration::from_secs(60);
    let (older, younger) = (old(order(id, 1), MIN_AGE + minute), old(order(id, 1), MIN_AGE - minute));
    database.decide(&[older.clone(), younger.clone()]).await;
    for order in [&older, &younger] {
        database.change(order, Change::Cancel).await;
    }
    // A shorter age is not heeded.
    assert_eq!(pass(&database, Duration::ZERO, Mode::Delete).await, deleted(1, 0, 0));
    assert_eq!(database.status(&younger).await, OrderStatus::Cancelled);
    let difference = database.store.now().await.unwrap().duration_since(SystemClock.now());
    assert!(difference.abs() < SignedDuration::from_secs(60), "{difference}");
}

async fn orders_are_examined_in_steps(database: Database) {
    let id = database.product_of(100).await;
    let mut orders: Vec<_> = (1..=7).map(|days| old(order(id, 1), MIN_AGE * days)).collect();
    database.decide(&orders).await;
    orders.reverse(); // the oldest first
    for order in orders.iter().filter(|order| order.id != orders[1].id) {
        database.change(order, Change::Cancel).await;
    }
    let end = orders[6].id;
    let (mut after, mut pages) = (None, Vec::new());
    loop {
        let page = database.store.final_orders(after, end, 2).await.unwrap();
        pages.push(page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
    // The second one is reserved, the last one is not older than itself.
    assert_eq!(pages[..3], [vec![ids[0]], ids[2..4].to_vec(), ids[4..6].to_vec()]);
    assert_eq!(pages[3..].concat(), []);
}

async fn passes_at_the_same_time_delete_each_order_once(database: Database) {
    const ORDERS: usize = 3_000;
    let id = database.product_of(1).await;
    for _ in 0..ORDERS / 500 {
        // Rejections are final from the start.
        let orders: Vec<_> = (0..500).map(|_| old(detached_order(id, 2), MONTH)).collect();
        database.decide(&orders).await;
    }
    let passes = (0..3).map(|_| tokio::spawn(patient_pass(database.store.clone(), MIN_AGE)));
    let results: Vec<_> = join_all(passes).await.into_iter().map(Result::unwrap).collect();
    let orders: u64 = results.iter().map(|deleted| deleted.orders).sum();
    assert_eq!(orders, ORDERS as u64, "{results:?}");
    assert_eq!(database.orders_of(id).await, []);
}

async fn a_key_that_is_repeated_while_its_order_is_deleted_leaves_nothing_behind(database: Database) {
    let id = database.product_of(1_000).await;
    for round in 0..15 {
        let keys: Vec<_> = (0..20).map(|number| format!("buyer-{round}-{number}")).collect();
        let orders: Vec<_> = keys.iter().map(|key| keyed(old(order(id, 1), MONTH), key)).collect();
        database.decide(&orders).await;
        let cancellations: Vec<_> = orders.iter().map(|order| change_of(order, Change::Cancel)).collect();
        database.settle(&cancellations).await;
        let again: Vec<_> = keys.iter().map(|key| keyed(detached_order(id, 1), key)).collect();
        let repeat = async {
            for order in &again {
                database.decide(slice::from_ref(order)).await;
            }
        };
        let (pruned, ()) = tokio::join!(patient_pass(database.store.clone(), MIN_AGE), repeat);
        assert_eq!(pruned.orders, 20);
        // Each was placed again, or was answered with the old order, which is gone with its alias.
        let left = pass_over_aliases(&database, &again).await;
        assert!(left.iter().all(|(asked, found)| asked == found), "{left:?}");
        let known = database
            .store
            .orders_by_key(&keys.iter().map(|text| key(text)).collect::<Vec<_>>())
            .await
            .unwrap();
        assert_eq!(known.len(), left.len());
    }
    database.assert_balanced().await;
}

/// Of these orders those that are found, with the id under which they are stored.
async fn pass_over_aliases(database: &Database, orders: &[NewOrder]) -> Vec<(OrderId, OrderId)> {
    let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
    let found = database.store.orders_by_id(&ids).await.unwrap();
    found.into_iter().map(|(asked, order)| (asked, order.id)).collect()
}
