//! The store contract, second part: an order's life behind its reservation, and what a client calls its order.

use std::collections::BTreeSet;

use antre::{
    domain::{command::ChangeOrder, event::Event, ids::IdempotencyKey, order::Change},
    store::{Due, Page},
};

use super::*;

suite! {
    every_store: [
        a_payment_takes_the_pieces_out_of_the_warehouse,
        a_cancellation_gives_the_pieces_back,
        an_expiry_waits_for_its_time,
        the_first_change_wins_whatever_comes_after,
        the_verdict_on_a_change_is_the_whole_order,
        a_change_in_the_wrong_lane_or_of_no_order_changes_nothing,
        times_are_the_databases,
        one_key_is_one_order,
        a_key_on_another_order_is_refused,
        an_order_under_a_key_is_found_after_the_shelf_is_empty,
        lanes_that_fight_for_one_key_make_one_order,
        an_order_that_was_given_two_ids_is_found_under_both,
        a_key_that_is_refused_late_goes_on_record,
        events_tell_what_became_of_orders_in_the_order_of_the_lane,
        what_is_sold_out_is_known_with_the_commit,
        payments_and_cancellations_at_once_end_in_one_of_the_two,
        any_life_keeps_the_books,
    ],
    sql_only: [
        what_is_due_is_found_the_longest_overdue_first,
        a_key_whose_order_was_deleted_is_free_again,
        an_inventory_short_of_its_orders_stops_no_other_order,
        a_command_that_the_database_refuses_is_alone_with_that,
        a_change_of_an_order_without_inventory_is_undecidable,
        rows_that_cannot_be_stop_nobody_else,
    ],
}

/// Reservations that are overdue at once.
const NO_TIME: Duration = Duration::ZERO;

fn change_of(order: &NewOrder, change: Change) -> Command {
    let (id, reply) = (SystemClock.command_id(), ReplyMode::Until(SystemClock.now()));
    ChangeOrder { id, order_id: order.id, product_id: order.product_id, change, reply }.into()
}

fn keyed(order: NewOrder, key: &str) -> NewOrder {
    NewOrder { key: Some(self::key(key)), ..order }
}

fn key(text: &str) -> IdempotencyKey {
    text.to_owned().try_into().unwrap()
}

/// What a verdict on a change must be.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The order, with this status.
    Now(OrderStatus),
    Undecidable,
}

impl PartialEq<Expected> for Verdict {
    fn eq(&self, expected: &Expected) -> bool {
        match expected {
            Expected::Now(status) => matches!(self, Self::Current(order) if order.status() == *status),
            Expected::Undecidable => *self == Self::Undecidable,
        }
    }
}

const PAID: Expected = Expected::Now(OrderStatus::Paid);
const CANCELLED: Expected = Expected::Now(OrderStatus::Cancelled);
const EXPIRED: Expected = Expected::Now(OrderStatus::Expired);
const RESERVED: Expected = Expected::Now(OrderStatus::Reserved);
const REJECTED: Expected = Expected::Now(OrderStatus::Rejected);
const UNDECIDABLE: Expected = Expected::Undecidable;
const KEY_REUSED: Verdict = Verdict::Rejected(Rejection::KeyReused);

impl Database {
    /// Decides as a worker does: asks until the database answers.
    async fn settle(&self, commands: &[Command]) -> Vec<Verdict> {
        self.settle_within(commands, TTL).await
    }

    async fn settle_within(&self, commands: &[Command], ttl: Duration) -> Vec<Verdict> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.store.decide(commands, ttl).await {
                Ok(decided) => return decided.verdicts,
                Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error}"),
            }
        }
    }

    async fn change(&self, order: &NewOrder, change: Change) -> Verdict {
        self.settle(&[change_of(order, change)]).await[0]
    }

    /// Reservations of so many pieces each.
    async fn reserve<const N: usize>(&self, id: ProductId, totals: [u32; N]) -> [NewOrder; N] {
        self.reserve_for(id, totals, TTL).await
    }

    async fn reserve_for<const N: usize>(
        &self,
        id: ProductId,
        totals: [u32; N],
        ttl: Duration,
    ) -> [NewOrder; N] {
        let orders = totals.map(|total| order(id, total));
        let verdicts = self.settle_within(&commands(&orders), ttl).await;
        assert_eq!(accepted(&verdicts), [true; N]);
        orders
    }

    async fn status(&self, order: &NewOrder) -> OrderStatus {
        self.store.order(order.id).await.unwrap().unwrap().status()
    }
}

async fn a_payment_takes_the_pieces_out_of_the_warehouse(database: Database) {
    let id = database.product_of(10).await;
    let [order, _] = database.reserve(id, [3, 2]).await;
    let before = database.store.order(order.id).await.unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(database.change(&order, Change::Pay).await, PAID);
        assert_eq!(database.pieces(id).await, [7, 5, 2]);
    }
    let paid = database.store.order(order.id).await.unwrap().unwrap();
    assert_eq!(paid, before.with_status(OrderStatus::Paid));
    database.assert_balanced().await;
}

async fn a_cancellation_gives_the_pieces_back(database: Database) {
    let id = database.product_of(10).await;
    let [order, _] = database.reserve(id, [3, 2]).await;
    for _ in 0..2 {
        assert_eq!(database.change(&order, Change::Cancel).await, CANCELLED);
        assert_eq!(database.pieces(id).await, [10, 8, 2]);
    }
    // Within the batch that takes them back, the next order gets them.
    let [last] = database.reserve(id, [8]).await;
    let next = super::order(id, 8);
    let verdicts = database.settle(&[change_of(&last, Change::Cancel), next.into()]).await;
    assert_eq!(verdicts[0], CANCELLED);
    assert!(is_reserved(&verdicts[1]), "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
    database.assert_balanced().await;
}

async fn an_expiry_waits_for_its_time(database: Database) {
    let id = database.product_of(10).await;
    let [early] = database.reserve(id, [3]).await;
    assert_eq!(database.change(&early, Change::Expire).await, RESERVED);
    assert_eq!(database.pieces(id).await, [10, 7, 3]);
    let [due] = database.reserve_for(id, [2], NO_TIME).await;
    for _ in 0..2 {
        assert_eq!(database.change(&due, Change::Expire).await, EXPIRED);
        assert_eq!(database.pieces(id).await, [10, 7, 3]);
    }
    assert_eq!(
        [database.status(&early).await, database.status(&due).await],
        [OrderStatus::Reserved, OrderStatus::Expired]
    );
    database.assert_balanced().await;
}

async fn the_first_change_wins_whatever_comes_after(database: Database) {
    let id = database.product_of(100).await;
    let all = [(Change::Pay, PAID), (Change::Cancel, CANCELLED), (Change::Expire, EXPIRED)];
    for (first, verdict) in all {
        for (second, _) in all {
            let [apart, together] = database.reserve_for(id, [1, 1], NO_TIME).await;
            assert_eq!(database.change(&apart, first).await, verdict);
            let pieces = database.pieces(id).await;
            assert_eq!(database.change(&apart, second).await, verdict);
            assert_eq!(database.pieces(id).await, pieces);
            let batch = [change_of(&together, first), change_of(&together, second)];
            assert_eq!(database.settle(&batch).await, [verdict; 2]);
        }
    }
    // Of nine products' worth of each: three paid orders of each kind of batch are gone from the warehouse.
    assert_eq!(database.pieces(id).await, [94, 94, 0]);
    // What never was a reservation stays what it is.
    let late = detached_order(id, 95);
    assert_eq!(database.decide(slice::from_ref(&late)).await, [rejected(94)]);
    for (change, _) in all {
        assert_eq!(database.change(&late, change).await, REJECTED);
    }
    assert_eq!(database.pieces(id).await, [94, 94, 0]);
    database.assert_balanced().await;
}

async fn the_verdict_on_a_change_is_the_whole_order(database: Database) {
    let id = database.product_of(10).await;
    let [first, second] = database.reserve(id, [3, 2]).await;
    let batch = [
        change_of(&first, Change::Expire),
        change_of(&first, Change::Pay),
        change_of(&second, Change::Cancel),
        change_of(&second, Change::Cancel),
    ];
    let before = database.store.order(first.id).await.unwrap().unwrap();
    let verdicts = database.settle(&batch).await;
    let [paid, cancelled] = [first.id, second.id].map(|id| database.store.order(id));
    let (paid, cancelled) = (paid.await.unwrap().unwrap(), cancelled.await.unwrap().unwrap());
    assert_eq!(verdicts, [before, paid, cancelled, cancelled].map(Verdict::Current));
    let rejected = detached_order(id, 95);
    database.decide(slice::from_ref(&rejected)).await;
    let rejected = database.store.order(rejected.id).await.unwrap().unwrap();
    let change = ChangeOrder {
        id: SystemClock.command_id(),
        order_id: rejected.id,
        product_id: id,
        change: Change::Pay,
        reply: ReplyMode::Until(SystemClock.now()),
    };
    assert_eq!(database.settle(&[change.into()]).await, [Verdict::Current(rejected)]);
}

async fn a_change_in_the_wrong_lane_or_of_no_order_changes_nothing(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let [order] = database.reserve(shirt, [2]).await;
    database.reserve(hat, [2]).await;
    let strays = [
        change_of(&super::order(shirt, 1), Change::Pay),
        change_of(&NewOrder { product_id: hat, ..order.clone() }, Change::Cancel),
        change_of(&NewOrder { product_id: stranger(), ..order.clone() }, Change::Pay),
    ];
    assert_eq!(database.settle(&strays).await, [Verdict::OrderNotFound; 3]);
    assert_eq!(database.pieces(shirt).await, [5, 3, 2]);
    assert_eq!(database.pieces(hat).await, [5, 3, 2]);
    assert_eq!(database.status(&order).await, OrderStatus::Reserved);
}

async fn what_is_due_is_found_the_longest_overdue_first(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let mut due = Vec::new();
    for (id, seconds) in [(shirt, 20), (hat, 10), (shirt, 30), (hat, 10)] {
        let [order] = database.reserve_for(id, [1], NO_TIME).await;
        let (hex, at) = (order.id.uuid().simple(), 1_734_000_000_000_i64 - seconds * 1_000);
        database.by_hand(&format!("UPDATE orders SET expires_at = {at} WHERE id = X'{hex}'")).await.unwrap();
        due.push(order.id);
    }
    database.reserve_for(shirt, [1], Duration::from_secs(2)).await;
    let [paid, cancelled] = database.reserve_for(shirt, [1, 1], NO_TIME).await;
    database.change(&paid, Change::Pay).await;
    database.change(&cancelled, Change::Cancel).await;
    assert_eq!(database.decide(&[detached_order(shirt, 1000)]).await, [rejected(96)]);
    let found = async |after, limit| -> (Vec<OrderId>, Option<Due>) {
        let page = database.store.due(after, limit).await.unwrap();
        (page.rows.iter().map(|order| order.id).collect(), page.next)
    };
    let all = [due[2], due[0], due[1], due[3]];
    assert_eq!(found(None, 10).await, (all.to_vec(), None));
    // Page by page; two of the same time are on two pages.
    let (mut pages, mut place) = (Vec::new(), None);
    loop {
        let (rows, next) = found(place, 1).await;
        pages.extend(rows);
        place = next;
        if place.is_none() {
            break;
        }
    }
    assert_eq!(pages, all);
}

/// The database's clock says when a reservation ends; an id from the future ends no earlier than it begins.
async fn times_are_the_databases(database: Database) {
    let id = database.product_of(10).await;
    let before = SystemClock.now();
    let [order] = database.reserve_for(id, [1], Duration::from_secs(60)).await;
    let expires_at = database.store.order(order.id).await.unwrap().unwrap().expires_at().unwrap();
    let ttl_ms = expires_at.as_millisecond() - before.as_millisecond();
    assert!((60_000 - 5_000..60_000 + 5_000).contains(&ttl_ms), "{ttl_ms} ms: one machine, one clock");
    let mut bytes = SystemClock.order_id().uuid().into_bytes();
    bytes[..6].copy_from_slice(&(SystemClock.now().as_millisecond() + 3_600_000).to_be_bytes()[2..]);
    let ahead = NewOrder { id: uuid::Uuid::from_bytes(bytes).into(), ..super::order(id, 1) };
    let verdict = database.settle_within(&commands(slice::from_ref(&ahead)), NO_TIME).await[0];
    assert_eq!(verdict, Verdict::Reserved { expires_at: ahead.id.created_at() });
}

/// Somebody purges orders by hand, and leaves the keys.
async fn a_key_whose_order_was_deleted_is_free_again(database: Database) {
    let id = database.product_of(10).await;
    let first = [keyed(order(id, 1), "buyer-1"), keyed(order(id, 1), "buyer-2")];
    assert_eq!(accepted(&database.decide(&first).await), [true; 2]);
    database.by_hand("DELETE FROM orders").await.unwrap();
    // Among others, twice in a batch, and with another total.
    let batch = [order(id, 1), keyed(order(id, 2), "buyer-1"), keyed(order(id, 2), "buyer-1"), order(id, 1)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true, false, true]);
    assert!(matches!(verdicts[2], Verdict::AlreadyPlaced(known) if known.id == batch[1].id));
    let known = database.store.orders_by_key(&[key("buyer-1"), key("buyer-2")]).await.unwrap();
    assert_eq!(
        known.into_iter().map(|(key, order)| (key, order.id)).collect::<Vec<_>>(),
        [(key("buyer-1"), batch[1].id)]
    );
    // Of two that are equally fast, one gets it.
    let again = [keyed(order(id, 1), "buyer-2"), keyed(order(id, 1), "buyer-2")];
    let (one, other) = tokio::join!(database.decide(&again[..1]), database.decide(&again[1..]));
    let placed = [one[0], other[0]].iter().filter(|verdict| is_reserved(verdict)).count();
    assert_eq!(placed, 1, "{one:?} {other:?}");
}

/// The seller's books are a piece short of their orders: as many expire as can.
async fn an_inventory_short_of_its_orders_stops_no_other_order(database: Database) {
    let id = database.product_of(5).await;
    let orders = database.reserve_for(id, [1; 5], NO_TIME).await;
    database
        .by_hand(&format!(
            "UPDATE inventories SET stored_stock = 4, reserved_stock = 4 WHERE product_id = {id}"
        ))
        .await
        .unwrap();
    let mut batch: Vec<_> = orders.iter().map(|order| change_of(order, Change::Expire)).collect();
    batch.push(order(id, 4).into());
    let decided = database.store.decide(&batch, TTL).await.unwrap();
    assert_eq!(decided.verdicts[..5], [EXPIRED, EXPIRED, EXPIRED, EXPIRED, UNDECIDABLE]);
    assert!(is_reserved(&decided.verdicts[5]), "{:?}", decided.verdicts);
    assert_eq!(decided.undecidable.iter().map(|one| one.index).collect::<Vec<_>>(), [4]);
    assert_eq!(database.pieces(id).await, [4, 0, 4]);
}

/// What the database refuses of one command is refused of that one alone.
async fn a_command_that_the_database_refuses_is_alone_with_that(database: Database) {
    let (good, bad) = (database.product_of(100).await, database.product_of(100).await);
    let poison = order(bad, 7);
    let hex = poison.id.uuid().simple();
    let trigger = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => format!(
            "CREATE TRIGGER refuse_one BEFORE INSERT ON orders WHEN NEW.id = X'{hex}'
             BEGIN SELECT RAISE(ABORT, 'refused by hand'); END"
        ),
        Home::MySql { .. } => format!(
            "CREATE TRIGGER refuse_one BEFORE INSERT ON orders FOR EACH ROW
             IF NEW.id = X'{hex}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused by hand'; END IF"
        ),
    };
    database.by_hand(&trigger).await.unwrap();
    let mut batch: Vec<_> = (0..20).map(|n| order(if n % 2 == 0 { good } else { bad }, 1)).collect();
    batch.insert(13, poison);
    let decided = database.store.decide(&commands(&batch), TTL).await.unwrap();
    for (index, verdict) in decided.verdicts.iter().enumerate() {
        assert_eq!(is_reserved(verdict), index != 13, "{index}: {verdict:?}");
    }
    assert_eq!(decided.undecidable.len(), 1);
    assert_eq!(decided.undecidable[0].index, 13);
    assert!(decided.undecidable[0].cause.contains("refused by hand"), "{:?}", decided.undecidable);
    assert_eq!(decided.events.len(), 20);
    database.assert_balanced().await;
}

/// Somebody deleted a product that has orders: its orders are there, and say so; nobody is told that there is no order.
async fn a_change_of_an_order_without_inventory_is_undecidable(database: Database) {
    let (gone, kept) = (database.product_of(5).await, database.product_of(5).await);
    let [reserved, paid] = database.reserve(gone, [1, 1]).await;
    database.change(&paid, Change::Pay).await;
    let [other] = database.reserve(kept, [1]).await;
    database.by_hand(&format!("DELETE FROM inventories WHERE product_id = {gone}")).await.unwrap();
    let batch =
        [change_of(&reserved, Change::Pay), change_of(&other, Change::Pay), change_of(&paid, Change::Cancel)];
    assert_eq!(database.settle(&batch).await, [UNDECIDABLE, PAID, PAID]);
    assert_eq!(database.status(&reserved).await, OrderStatus::Reserved);
}

/// Rows that no program of ours writes.
async fn rows_that_cannot_be_stop_nobody_else(database: Database) {
    let (bad, good) = (database.product_of(10).await, database.product_of(10).await);
    let [broken, sound] = database.reserve_for(bad, [1, 1], NO_TIME).await;
    let [other] = database.reserve_for(good, [1], NO_TIME).await;
    let hex = broken.id.uuid().simple();
    let statements = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => vec![
            "PRAGMA ignore_check_constraints = ON".to_owned(),
            format!("UPDATE orders SET total = 0 WHERE id = X'{hex}'"),
            format!("UPDATE products SET name = ' ' WHERE id = {bad}"),
        ],
        Home::MySql { .. } => vec![
            "ALTER TABLE orders ALTER CHECK total_is_positive NOT ENFORCED".to_owned(),
            format!("UPDATE orders SET total = 0 WHERE id = X'{hex}'"),
            format!("UPDATE products SET name = ' ' WHERE id = {bad}"),
        ],
    };
    database.by_hand(&statements.join(";")).await.unwrap();
    let store = &database.store;
    // Lists leave them out, and go on behind them.
    let everything = OrderPage { product_id: None, status: None, after: None, limit: 1 };
    let (mut listed, mut page) = (Vec::new(), everything);
    loop {
        let Page { rows, next } = store.orders(page).await.unwrap();
        listed.extend(rows.iter().map(|order| order.id));
        let Some(next) = next else { break };
        page.after = Some(next);
    }
    assert_eq!(listed, [sound.id, other.id]);
    let products = store.products(None, 10).await.unwrap().rows;
    assert_eq!(products.iter().map(|product| product.id).collect::<Vec<_>>(), [good]);
    let due = store.due(None, 10).await.unwrap().rows;
    assert_eq!(due.iter().map(|order| order.id).collect::<Vec<_>>(), [sound.id, other.id]);
    // Asked for by its id, it is told that something is wrong.
    assert!(matches!(store.order(broken.id).await, Err(StoreError::Corrupt(_))));
    // In a batch it is alone.
    let batch = [&broken, &sound, &other].map(|order| change_of(order, Change::Expire));
    assert_eq!(database.settle(&batch).await, [UNDECIDABLE, EXPIRED, EXPIRED]);
    assert_eq!(database.settle(&commands(&[broken, order(bad, 1)])).await[0], UNDECIDABLE);
}

async fn one_key_is_one_order(database: Database) {
    let id = database.product_of(10).await;
    let first = keyed(order(id, 2), "buyer-1");
    let reserved = database.decide(slice::from_ref(&first)).await[0];
    assert!(is_reserved(&reserved));
    let on_record = database.store.order(first.id).await.unwrap().unwrap();
    // Again with another id, twice in a batch, and in company; the first one itself, redelivered.
    let again = || keyed(order(id, 2), "buyer-1");
    let verdicts = database.decide(&[again(), order(id, 1), again(), first.clone()]).await;
    assert_eq!([verdicts[0], verdicts[2]], [Verdict::AlreadyPlaced(on_record); 2]);
    assert_eq!(verdicts[3], reserved);
    assert!(is_reserved(&verdicts[1]));
    assert_eq!(database.pieces(id).await, [10, 7, 3]);
    // Twice in the batch in which it comes first.
    let [one, two] = [keyed(order(id, 1), "buyer-2"), keyed(order(id, 1), "buyer-2")];
    let verdicts = database.decide(&[one.clone(), two]).await;
    let on_record = database.store.order(one.id).await.unwrap().unwrap();
    assert_eq!(verdicts[1], Verdict::AlreadyPlaced(on_record));
    // Whatever became of it since, it is told as it is.
    database.change(&first, Change::Pay).await;
    let paid = database.store.order(first.id).await.unwrap().unwrap();
    assert_eq!(database.decide(&[again()]).await, [Verdict::AlreadyPlaced(paid)]);
    assert_eq!(paid.status(), OrderStatus::Paid);
    // Keys are told apart to the letter.
    let others = ["buyer-10", "Buyer-1", "buyer-1.", &"k".repeat(IdempotencyKey::MAX_LENGTH), "\"\\'%;--"];
    let orders: Vec<_> = others.iter().map(|other| keyed(order(id, 1), other)).collect();
    assert_eq!(accepted(&database.decide(&orders).await), [true; 5]);
    let found = database.store.orders_by_key(&others.map(key)).await.unwrap();
    for (text, order) in others.iter().zip(&orders) {
        assert_eq!(found[&key(text)].id, order.id);
    }
    assert_eq!(found.len(), 5);
    assert!(database.store.orders_by_key(&[key("nobody's")]).await.unwrap().is_empty());
    database.assert_balanced().await;
}

async fn a_key_on_another_order_is_refused(database: Database) {
    let (shirt, hat) = (database.product_of(10).await, database.product_of(10).await);
    let first = keyed(order(shirt, 2), "buyer-1");
    let others = [keyed(order(shirt, 3), "buyer-1"), keyed(order(hat, 2), "buyer-1")];
    let verdicts = database.decide(&[slice::from_ref(&first), &others].concat()).await;
    assert!(is_reserved(&verdicts[0]));
    assert_eq!(verdicts[1..], [KEY_REUSED; 2]);
    assert_eq!(database.decide(&others).await, [KEY_REUSED; 2]);
    assert_eq!(database.pieces(shirt).await, [10, 8, 2]);
    assert_eq!(database.pieces(hat).await, [10, 10, 0]);
    assert_eq!(database.orders_of(shirt).await.len() + database.orders_of(hat).await.len(), 1);
}

async fn an_order_under_a_key_is_found_after_the_shelf_is_empty(database: Database) {
    let id = database.product_of(2).await;
    let taker = keyed(order(id, 2), "buyer-1");
    assert_eq!(accepted(&database.decide(slice::from_ref(&taker)).await), [true]);
    let on_record = database.store.order(taker.id).await.unwrap().unwrap();
    for again in [keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 2), "buyer-1")] {
        assert_eq!(database.decide(&[again]).await, [Verdict::AlreadyPlaced(on_record)]);
    }
    assert_eq!(database.decide(&[keyed(order(id, 1), "buyer-2")]).await, [rejected(0)]);
    // A rejection in time is not on record: the same key may try again when there are pieces.
    database.store.recount(id, stock(3)).await.unwrap().done().unwrap();
    assert_eq!(accepted(&database.decide(&[keyed(order(id, 1), "buyer-2")]).await), [true]);
    // A late one is.
    let late = keyed(detached_order(id, 1), "buyer-3");
    assert_eq!(database.decide(slice::from_ref(&late)).await, [rejected(0)]);
    database.store.recount(id, stock(9)).await.unwrap().done().unwrap();
    let on_record = database.store.order(late.id).await.unwrap().unwrap();
    assert_eq!(database.decide(&[keyed(order(id, 1), "buyer-3")]).await, [Verdict::AlreadyPlaced(on_record)]);
    database.assert_balanced().await;
}

async fn lanes_that_fight_for_one_key_make_one_order(database: Database) {
    const ROUNDS: usize = 15;
    let products =
        [database.product_of(100).await, database.product_of(100).await, database.product_of(100).await];
    for round in 0..ROUNDS {
        // Each lane has both keys, and they come in different orders: they wait for each other crosswise.
        let lanes = products.iter().enumerate().map(|(number, id)| {
            let mut keys = [format!("a{round}"), format!("b{round}")];
            keys.rotate_left(number % 2);
            let batch = keys.map(|text| keyed(order(*id, 1), &text));
            let store = database.store.clone();
            tokio::spawn(async move { decide(&*store, &batch).await })
        });
        let verdicts: Vec<_> = join_all(lanes).await.into_iter().flat_map(Result::unwrap).collect();
        let accepted = verdicts.iter().filter(|verdict| is_reserved(verdict)).count();
        let refused = verdicts.iter().filter(|verdict| **verdict == KEY_REUSED).count();
        assert_eq!((accepted, refused), (2, 4), "{verdicts:?}");
    }
    let mut orders = 0;
    for id in products {
        orders += database.orders_of(id).await.len();
    }
    assert_eq!(orders, 2 * ROUNDS);
    database.assert_balanced().await;
}

async fn an_order_that_was_given_two_ids_is_found_under_both(database: Database) {
    let id = database.product_of(10).await;
    let first = keyed(order(id, 2), "buyer-1");
    let (in_time, late) = (keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 2), "buyer-1"));
    let batch = [first.clone(), in_time.clone(), late.clone()];
    let verdicts = database.decide(&batch).await;
    let on_record = database.store.order(first.id).await.unwrap().unwrap();
    assert_eq!(verdicts[1..], [Verdict::AlreadyPlaced(on_record); 2]);
    // Redelivered, too.
    database.decide(&batch).await;
    assert_eq!(database.store.order(late.id).await.unwrap(), Some(on_record));
    // The client of this one has its answer and was never given that id.
    assert_eq!(database.store.order(in_time.id).await.unwrap(), None);
    let ids = [first.id, late.id, in_time.id, SystemClock.order_id()];
    let found = database.store.orders_by_id(&ids).await.unwrap();
    assert_eq!(found, [(first.id, on_record), (late.id, on_record)].into());
    assert_eq!(database.orders_of(id).await, [on_record]);
    assert_eq!(database.pieces(id).await, [10, 8, 2]);
}

async fn a_key_that_is_refused_late_goes_on_record(database: Database) {
    let id = database.product_of(10).await;
    let (first, late) = (keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 3), "buyer-1"));
    for _ in 0..2 {
        assert_eq!(database.decide(&[first.clone(), late.clone()]).await[1], KEY_REUSED);
        let on_record = database.store.order(late.id).await.unwrap().unwrap();
        assert_eq!(on_record.state, OrderState::Rejected(Rejection::KeyReused));
        assert_eq!(
            database.store.orders_by_key(&[key("buyer-1")]).await.unwrap()[&key("buyer-1")].id,
            first.id
        );
    }
    database.assert_balanced().await;
}

async fn events_tell_what_became_of_orders_in_the_order_of_the_lane(database: Database) {
    let id = database.product_of(5).await;
    let events = async |commands: &[Command]| -> Vec<(OrderId, OrderStatus)> {
        let told = |event: &Event| (event.order.id, event.order.status());
        database.store.decide(commands, NO_TIME).await.unwrap().events.iter().map(told).collect()
    };
    let [a, b, c] = [order(id, 1), order(id, 9), keyed(order(id, 1), "buyer-1")];
    let batch = commands(&[a.clone(), b.clone(), detached_order(id, 9), c.clone(), order(stranger(), 1)]);
    let reserved = [(a.id, OrderStatus::Reserved), (c.id, OrderStatus::Reserved)];
    assert_eq!(events(&batch).await, reserved);
    assert_eq!(events(&batch[..1]).await, reserved[..1], "again, when it is redelivered");
    // Whatever became of it since, this is what its lane decided then.
    let changes = [change_of(&c, Change::Pay), change_of(&a, Change::Expire), change_of(&a, Change::Pay)];
    let changed = [(c.id, OrderStatus::Paid), (a.id, OrderStatus::Expired)];
    assert_eq!(events(&changes).await, changed);
    assert_eq!(events(&changes).await, changed);
    assert_eq!(events(&batch).await, reserved);
    // Asked again under its key, it was told of already.
    assert_eq!(events(&commands(&[keyed(order(id, 1), "buyer-1")])).await, []);
    // A whole life in one batch.
    let d = order(id, 2);
    let life = [d.clone().into(), change_of(&d, Change::Cancel)];
    assert_eq!(events(&life).await, [(d.id, OrderStatus::Reserved), (d.id, OrderStatus::Cancelled)]);
    assert_eq!(database.status(&d).await, OrderStatus::Cancelled);
    database.assert_balanced().await;
}

async fn what_is_sold_out_is_known_with_the_commit(database: Database) {
    let store = &database.store;
    let (shirt, hat, empty) =
        (database.product_of(2).await, database.product_of(1).await, database.product_of(0).await);
    let all = [hat, shirt, stranger(), empty];
    let sold_out = async || store.sold_out(&all).await.unwrap().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(store.sold_out(&[]).await.unwrap(), []);
    assert_eq!(sold_out().await, BTreeSet::from([empty]));
    for round in 0..20 {
        database.decide(&[order(hat, 1), order(shirt, 1)]).await;
        assert_eq!(sold_out().await, BTreeSet::from([hat, empty]), "{round}");
        let last = order(shirt, 1);
        database.decide(slice::from_ref(&last)).await;
        assert_eq!(sold_out().await, BTreeSet::from([hat, shirt, empty]), "{round}");
        store.recount(hat, stock(round + 2)).await.unwrap().done().unwrap();
        store.decide(&[change_of(&last, Change::Cancel)], TTL).await.unwrap();
        assert_eq!(sold_out().await, BTreeSet::from([empty]), "{round}");
        store.recount(shirt, stock(round + 3)).await.unwrap().done().unwrap();
    }
}

async fn payments_and_cancellations_at_once_end_in_one_of_the_two(database: Database) {
    const ORDERS: u32 = 60;
    let id = database.product_of(ORDERS).await;
    let orders: Vec<NewOrder> = (0..ORDERS).map(|_| order(id, 1)).collect();
    assert_eq!(accepted(&database.settle_within(&commands(&orders), NO_TIME).await), [true; ORDERS as usize]);
    let asked: Vec<_> = [Change::Pay, Change::Cancel, Change::Expire]
        .into_iter()
        .map(|change| {
            let mut changes: Vec<_> = orders.iter().map(|order| change_of(order, change)).collect();
            if change != Change::Pay {
                changes.reverse();
            }
            let store = database.store.clone();
            tokio::spawn(async move {
                let mut verdicts = Vec::new();
                for batch in changes.chunks(7) {
                    verdicts.extend(store.decide(batch, NO_TIME).await.unwrap().verdicts);
                }
                if change != Change::Pay {
                    verdicts.reverse();
                }
                verdicts
            })
        })
        .collect();
    let verdicts: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let mut paid = 0;
    for (number, order) in orders.iter().enumerate() {
        let status = database.status(order).await;
        paid += u32::from(status == OrderStatus::Paid);
        for told in &verdicts {
            assert_eq!(told[number], Expected::Now(status));
        }
    }
    assert_eq!(database.pieces(id).await, [ORDERS - paid, ORDERS - paid, 0]);
    database.assert_balanced().await;
}

/// What happens to two products.
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
    /// A command that was given before, redelivered.
    Again(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = prop_oneof![2 => Just(None), 1 => (0_u8..5).prop_map(Some)];
    let change = prop_oneof![Just(Change::Pay), Just(Change::Cancel), Just(Change::Expire)];
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

async fn any_life_keeps_the_books(database: Database) {
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

/// After every step the books agree with the orders on record; an order takes one way through its life; a key is one
/// order; and every answer is what stands on record afterwards.
async fn live(database: &Database, round: u32, steps: Vec<Step>) {
    let products = [database.product_of(0).await, database.product_of(0).await];
    let mut counted = [0_u32; 2];
    let mut paid_since = [0_u32; 2];
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
        // Half of all reservations are overdue at once.
        let ttl = if batch.len().is_multiple_of(2) { NO_TIME } else { TTL };
        let verdicts = database.store.decide(&batch, ttl).await.unwrap().verdicts;
        assert_eq!(verdicts.len(), batch.len());
        let on_record: BTreeMap<OrderId, Order> =
            [database.orders_of(products[0]).await, database.orders_of(products[1]).await]
                .concat()
                .into_iter()
                .map(|order| (order.id, order))
                .collect();
        for (id, before) in &known {
            let after = on_record[id];
            let went_on = before.status() == OrderStatus::Reserved && after.status() != OrderStatus::Rejected;
            assert!(
                *before == after || went_on && after == before.with_status(after.status()),
                "{before:?} {after:?}"
            );
        }
        for (command, verdict) in batch.iter().zip(&verdicts) {
            match (command, verdict) {
                (Command::Place(order), Verdict::Reserved { .. }) => {
                    assert_eq!(Verdict::on_stored(&on_record[&order.id]), *verdict);
                }
                (Command::Place(order), Verdict::AlreadyPlaced(known)) => {
                    assert_eq!((known.product_id, known.total), (order.product_id, order.total));
                    assert_eq!(Verdict::on_stored(&on_record[&known.id]), Verdict::on_stored(&known));
                }
                (Command::Place(_), Verdict::Rejected(_)) => {}
                (Command::Change(change), Verdict::Current(order)) => {
                    // In the same batch it may have changed later, from a reservation.
                    let now = on_record[&change.order_id];
                    assert_eq!(order.with_status(now.status()), now);
                    let status = order.status();
                    assert!(now.status() == status || status == OrderStatus::Reserved, "{status:?}, {now:?}");
                }
                (Command::Change(change), Verdict::OrderNotFound) => {
                    let was_known = known.contains_key(&change.order_id);
                    assert!(!was_known, "{change:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        for (product, id) in products.iter().enumerate() {
            let of = |status| -> u32 {
                let orders =
                    on_record.values().filter(|order| order.product_id == *id && order.status() == status);
                orders.map(|order| order.total.get()).sum()
            };
            let before: u32 = known
                .values()
                .filter(|order| order.product_id == *id && order.status() == OrderStatus::Paid)
                .map(|order| order.total.get())
                .sum();
            paid_since[product] += of(OrderStatus::Paid) - before;
            let stored = counted[product] - paid_since[product];
            let reserved = of(OrderStatus::Reserved);
            assert_eq!(database.pieces(*id).await, [stored, stored - reserved, reserved]);
        }
        known = on_record;
    }
}
